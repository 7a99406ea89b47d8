"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const shelf = "vitembed-label-" + data.sheet;
const NONE = -1;  // none of the classes, or cannot tell
let answers = {};  // key of an image -> number of a class, or NONE
let unsaved = false;
let current = 0;
const past = [];  // [place, earlier answer]

try { answers = JSON.parse(localStorage.getItem(shelf)) || {}; } catch (error) { answers = {}; }

function element(kind, cls, text) {
  const made = document.createElement(kind);
  if (cls) made.className = cls;
  if (text !== undefined) made.textContent = text;
  return made;
}

const main = document.getElementById("cards");
const cards = data.cards.map((card, place) => {
  const article = element("article");
  article.tabIndex = -1;
  if (card.picture) {
    const image = element("img");
    image.src = card.picture;
    image.alt = card.name;
    article.append(image);
  } else {
    article.append(element("div", "missing", card.problem));
  }
  article.append(element("div", "name", card.name));
  if (card.suggested !== null)
    article.append(element("div", "hint", `suggested: ${data.classes[card.suggested].name}, ${card.percent} %`));
  const choices = element("div", "choices");
  const buttons = data.classes.map((cls, number) => [number, number < 9 ? String(number + 1) : "", cls.name]);
  buttons.push([NONE, "0", "none / unsure"]);
  for (const [number, digit, name] of buttons) {
    const button = element("button", number === card.suggested ? "suggested" : "");
    button.append(element("i", "", digit), document.createTextNode(name));
    button.dataset.number = number;
    button.tabIndex = -1;
    button.addEventListener("click", () => { choose(place, number); });
    choices.append(button);
  }
  article.append(choices);
  article.addEventListener("pointerdown", () => { go(place, false); });
  main.append(article);
  return article;
});

function keep() {
  try { localStorage.setItem(shelf, JSON.stringify(answers)); } catch (error) { /* private windows have no shelf */ }
}

function show() {
  const done = data.cards.filter((card) => card.key in answers).length;
  document.getElementById("progress").textContent =
    `${done} of ${data.cards.length} answered` + (unsaved ? ", not saved yet" : "");
  const bar = document.getElementById("bar");
  bar.max = data.cards.length;
  bar.value = done;
  cards.forEach((article, place) => {
    const key = data.cards[place].key;
    article.classList.toggle("done", key in answers);
    article.classList.toggle("current", place === current);
    for (const button of article.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(key in answers && Number(button.dataset.number) === answers[key]));
  });
}

function go(place, scroll) {
  current = Math.max(0, Math.min(cards.length - 1, place));
  show();
  if (!cards.length) return;
  cards[current].focus({ preventScroll: true });
  if (scroll) cards[current].scrollIntoView({ block: "nearest" });
}

function choose(place, number) {
  const key = data.cards[place].key;
  past.push([place, answers[key]]);
  answers[key] = number;
  unsaved = true;
  keep();
  let next = place + 1;
  while (next < cards.length && data.cards[next].key in answers) next += 1;
  go(next < cards.length ? next : place, true);
}

function takeBack() {
  if (!past.length) return;
  const [place, earlier] = past.pop();
  if (earlier === undefined) delete answers[data.cards[place].key];
  else answers[data.cards[place].key] = earlier;
  unsaved = true;
  keep();
  go(place, true);
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
}

// Bytes, not text: a path may hold what is no UTF-8.
function csv() {
  const parts = ["path,label,key\n"];
  for (const card of data.cards) {
    const answer = answers[card.key];
    const label = answer === undefined ? "" : answer === NONE ? data.unsure : bytes(data.classes[answer].cell);
    parts.push(bytes(card.start), ",", label, ",", card.key, "\n");
  }
  return new Blob(parts, { type: "text/csv" });
}

function save() {
  const link = element("a");
  link.href = URL.createObjectURL(csv());
  link.download = data.file;
  document.body.append(link);
  link.click();
  link.remove();
  unsaved = false;
  show();
}

function perRow() {
  const top = cards.length ? cards[0].offsetTop : 0;
  const first = cards.findIndex((article) => article.offsetTop !== top);
  return first < 0 ? cards.length : first;
}

document.getElementById("save").addEventListener("click", save);
document.addEventListener("keydown", (event) => {
  if (!cards.length || event.ctrlKey || event.metaKey || event.altKey || event.target.id === "save") return;
  const card = data.cards[current];
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow(), ArrowDown: perRow() };
  if (event.key in moves) go(current + moves[event.key], true);
  else if (event.key === "0") choose(current, NONE);
  else if (/^[1-9]$/.test(event.key) && Number(event.key) <= data.classes.length) choose(current, Number(event.key) - 1);
  else if (event.key === "Enter" && card.suggested !== null) choose(current, card.suggested);
  else if (event.key === "Backspace") takeBack();
  else return;
  event.preventDefault();
});
window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
const open = data.cards.findIndex((card) => !(card.key in answers));
go(open < 0 ? 0 : open, false);
