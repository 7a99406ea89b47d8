"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const map = document.getElementById("map"), card = document.getElementById("card");
const picture = document.getElementById("picture"), pen = map.getContext("2d");
const [cardName, cardPath] = [card.querySelector("b"), card.querySelector("span")];
const dark = matchMedia("(prefers-color-scheme: dark)");
// Hues a golden angle apart: neighbours in the list differ most.
const colour = label => `hsl(${(label * 137.5 + 20) % 360} ${dark.matches ? "70% 65%" : "65% 42%"})`;
const sheets = data.atlases.map(source => { const image = new Image(); image.src = source; return image; });
let zoom = 1, shift = [0, 0], chosen = -1, hovered = -1, dragged = null;

function place(point) {
  const size = Math.min(map.clientWidth, map.clientHeight) * 0.9 * zoom;
  return [map.clientWidth / 2 + shift[0] + (point[0] - 0.5) * size,
          map.clientHeight / 2 + shift[1] + (0.5 - point[1]) * size];
}

function drawCell(target, index, side) {
  const cell = data.cells[index];
  target.width = target.height = side;
  const context = target.getContext("2d");
  if (cell < 0) { context.fillStyle = "#8884"; context.fillRect(0, 0, side, side); return false; }
  const perSheet = data.side * data.side, inside = cell % perSheet, sheet = sheets[Math.floor(cell / perSheet)];
  context.drawImage(sheet, (inside % data.side) * data.thumb, Math.floor(inside / data.side) * data.thumb,
                    data.thumb, data.thumb, 0, 0, side, side);
  return true;
}

function draw() {
  const ratio = devicePixelRatio || 1;
  map.width = map.clientWidth * ratio; map.height = map.clientHeight * ratio;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const radius = Math.max(2, Math.min(6, 60 / Math.sqrt(data.points.length) + 1.5)) * Math.sqrt(Math.min(zoom, 4));
  data.points.forEach((point, index) => {
    const [x, y] = place(point);
    if (x < -9 || y < -9 || x > map.clientWidth + 9 || y > map.clientHeight + 9) return;
    pen.globalAlpha = chosen < 0 || data.labels[index] === chosen ? 0.8 : 0.1;
    pen.fillStyle = colour(data.labels[index]);
    pen.beginPath(); pen.arc(x, y, radius, 0, 7); pen.fill();
  });
  pen.globalAlpha = 1;
  data.clusters.forEach((cluster, label) => { if (chosen < 0 || chosen === label) drawExample(cluster, label); });
  if (hovered >= 0) {
    const [x, y] = place(data.points[hovered]);
    pen.strokeStyle = getComputedStyle(document.body).color; pen.lineWidth = 2;
    pen.beginPath(); pen.arc(x, y, radius + 3, 0, 7); pen.stroke();
  }
}

function drawExample(cluster, label) {
  const cell = data.cells[cluster.example];
  if (cell < 0) return;
  const [x, y] = place(data.points[cluster.example]), side = 34;
  const perSheet = data.side * data.side, inside = cell % perSheet, sheet = sheets[Math.floor(cell / perSheet)];
  pen.fillStyle = colour(label);
  pen.fillRect(x - side / 2 - 3, y - side / 2 - 3, side + 6, side + 6);
  pen.drawImage(sheet, (inside % data.side) * data.thumb, Math.floor(inside / data.side) * data.thumb,
                data.thumb, data.thumb, x - side / 2, y - side / 2, side, side);
}

function nearest(x, y) {
  let best = -1, least = 18 * 18;
  data.points.forEach((point, index) => {
    if (chosen >= 0 && data.labels[index] !== chosen) return;
    const [a, b] = place(point), distance = (a - x) ** 2 + (b - y) ** 2;
    if (distance < least) { least = distance; best = index; }
  });
  return best;
}

function hover(x, y) {
  hovered = nearest(x, y);
  card.hidden = hovered < 0;
  if (hovered >= 0) {
    drawCell(picture, hovered, Math.max(data.thumb, 192));
    cardName.textContent = data.clusters[data.labels[hovered]].name;
    cardPath.textContent = data.paths[hovered];
    const left = x + 16 + card.offsetWidth > map.clientWidth ? x - 16 - card.offsetWidth : x + 16;
    card.style.left = `${Math.max(4, left)}px`;
    card.style.top = `${Math.max(4, Math.min(y + 16, map.clientHeight - card.offsetHeight - 4))}px`;
  }
  draw();
}

const within = event => [event.offsetX, event.offsetY];
map.addEventListener("pointermove", event => {
  const [x, y] = within(event);
  if (dragged) { shift = [dragged[2] + x - dragged[0], dragged[3] + y - dragged[1]]; card.hidden = true; draw(); }
  else hover(x, y);
});
map.addEventListener("pointerdown", event => {
  const [x, y] = within(event);
  hover(x, y);
  dragged = [x, y, ...shift];
  map.setPointerCapture(event.pointerId);
});
map.addEventListener("pointerup", () => { dragged = null; });
map.addEventListener("pointerleave", () => { hovered = -1; card.hidden = true; draw(); });
map.addEventListener("wheel", event => {
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY / 400), ...within(event));
}, { passive: false });
map.addEventListener("keydown", event => {
  const steps = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
  if (event.key === "+" || event.key === "-") zoomBy(event.key === "+" ? 1.3 : 1 / 1.3, map.clientWidth / 2, map.clientHeight / 2);
  else if (event.key === "0") { zoom = 1; shift = [0, 0]; draw(); }
  else if (steps[event.key]) { shift = [shift[0] + steps[event.key][0], shift[1] + steps[event.key][1]]; draw(); }
});

function zoomBy(factor, x, y) {
  const next = Math.max(1, Math.min(60, zoom * factor)), change = next / zoom;
  const [middleX, middleY] = [map.clientWidth / 2, map.clientHeight / 2];
  shift = [x - middleX - (x - middleX - shift[0]) * change, y - middleY - (y - middleY - shift[1]) * change];
  zoom = next;
  draw();
}

function list() {
  const nav = document.getElementById("clusters");
  nav.replaceChildren(...data.clusters.map((cluster, label) => {
    const button = document.createElement("button"), small = document.createElement("small");
    const example = document.createElement("canvas"), text = document.createElement("span");
    drawCell(example, cluster.example, 96);
    example.style.borderColor = colour(label);
    text.textContent = cluster.name;
    small.textContent = `${cluster.size.toLocaleString("en")} images`;
    text.append(small);
    button.append(example, text);
    button.setAttribute("aria-pressed", String(chosen === label));
    button.addEventListener("click", () => { chosen = chosen === label ? -1 : label; list(); draw(); });
    return button;
  }));
}

list();  // names at once; their pictures when the atlases are decoded
Promise.all(sheets.map(sheet => sheet.decode().catch(() => null))).then(() => { list(); draw(); });
new ResizeObserver(draw).observe(map);
dark.addEventListener("change", () => { list(); draw(); });
