"""A folder of photographs to a search, beside rclip and clip-retrieval: one encoder, one machine, in turn.

    python benchmarks/index_search.py --venvs DIR [--size base|small|tiny] [--rounds 3] [--only index query ...]

All three get the same random weights of one ViT (open_clip's ViT-B-32-256 with --size base, the architecture of rclip's
model; the others are smaller), made without a network by ``side_by_side/weights.py``. Speed does not depend on what
weights know; nothing is said here about how good results are.

- **vitembed**: ``vitembed index`` and ``vitembed search`` as users run them. Its vectors are the tower's own (768
  wide), the peers' are projected to 512.
- **rclip**: its own command, in its own environment (``--venvs``; installed from PyPI at the first run). Replaced is
  the file of weights alone: an ONNX export in fp32 of the same tower. It has no command that only indexes, so its
  indexing includes a query; its text tower is an empty file that a query by image does not open.
- **clip-retrieval**: its own ``inference``, ``index`` (autofaiss) and ``filter``, in their own environment beside our
  torch and FAISS. Replaced is the loading of the model; left out its warm-up, and batches are of 32 instead of 256,
  both in its favour. ``filter`` copies the results it finds.

Sections: ``index`` (folder to searchable; each tool once a round, the order turning), ``damage`` (corrupt files, EXIF),
``kill``, ``query`` (the whole command among --vectors vectors, put into each index by its own format) and ``unchanged``
(a second run over --files empty files that the index believes it has).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from index_unchanged import make_files
from side_by_side.behaviour import damaged_files, exif_orientation, killed
from side_by_side.folders import many, photo_folders
from side_by_side.measure import Command, Run, run
from side_by_side.tools import ClipRetrieval, Failed, Ours, Rclip, Tool
from side_by_side.venvs import clip_retrieval_python, rclip_python, version

SECTIONS = ("index", "damage", "kill", "query", "unchanged")
TOOLS = ("vitembed", "rclip", "clip-retrieval")


def make_tools(venvs: Path, size: str, weights: Path, names: Sequence[str]) -> list[Tool]:
    """Those of these names, ours first; a peer that cannot be had is left out, with a line that says why."""
    tools: list[Tool] = [Ours(weights=weights)]
    clip_python = clip_retrieval_python(venvs)
    script = Path(__file__).parent / "side_by_side" / "weights.py"
    paths = os.pathsep.join(map(os.fspath, (script.parents[1], script.parents[2])))
    done = run(Command([os.fspath(clip_python), os.fspath(script), size, os.fspath(weights)], {"PYTHONPATH": paths}))
    if done.status != 0:
        raise SystemExit(f"no weights, so nothing to compare with: {done.output}")
    try:
        python = rclip_python(venvs)
        print(f"rclip {version(python, 'rclip')}")
        tools.append(Rclip(weights=weights, python=python))
    except subprocess.CalledProcessError as error:
        print(f"rclip is left out: {error}")
    print(f"clip-retrieval {version(clip_python, 'clip-retrieval')}, autofaiss {version(clip_python, 'autofaiss')}")
    tools.append(ClipRetrieval(weights=weights, python=clip_python, size=size))
    return [tool for tool in tools if tool.name in names]


def in_rounds(tools: Sequence[Tool], rounds: int, work: Callable[[Tool, int], Run]) -> dict[str, list[Run]]:
    """Every tool once a round, the order turning by one place; one that fails is left out of the rest."""
    runs: dict[str, list[Run]] = {tool.name: [] for tool in tools}
    failed = set[str]()
    for number in range(rounds):
        turn = number % len(tools)
        for tool in [*tools[turn:], *tools[:turn]]:
            if tool.name in failed:
                continue
            try:
                runs[tool.name].append(work(tool, number))
            except Failed as error:
                failed.add(tool.name)
                print(f"  {tool.name} could not: {' '.join(str(error).split())[-300:]}")
    return {name: done for name, done in runs.items() if name not in failed}


def say(title: str, runs: dict[str, list[Run]], *, num_images: int = 0) -> None:
    """A table: median wall and processor time, peak memory, and our lead as the median ratio of the rounds."""
    print(f"\n{title}")
    for name, done in runs.items():
        wall, cpu = (statistics.median(values) for values in zip(*((one.wall, one.cpu) for one in done), strict=True))
        memory = statistics.median(one.memory for one in done) / 2**20
        speed = f"  {num_images / wall:7.1f} images/s, {num_images / cpu:6.1f} per CPU-second" if num_images else ""
        lead = ""
        if name != "vitembed" and "vitembed" in runs:
            pairs = list(zip(runs["vitembed"], done, strict=False))
            ratios = [
                statistics.median(getattr(b, kind) / getattr(a, kind) for a, b in pairs) for kind in ("wall", "cpu")
            ]
            lead = f"  ours is {ratios[0]:.2f} times as fast, {ratios[1]:.2f} in processor time"
        print(f"  {name:15} {wall:7.2f} s wall {cpu:7.2f} s CPU {memory:6.0f} MB{speed}{lead}")


def index_section(tools: list[Tool], folders: dict[str, Path], scratch: Path, rounds: int, query: Path) -> None:
    def fresh(tool: Tool, name: str) -> Run:
        state = scratch / f"{tool.name} {name}"
        tool.prepare(state)
        done = tool.indexed(folders[name], state, query)
        expected, given = len(list(folders[name].iterdir())), len(tool.vectors(state))
        shutil.rmtree(state)
        if given != expected:
            raise Failed(f"{tool.name}: {given} vectors of {expected} photos")
        return done

    for name in (name for name in folders if name != "start"):
        starts: dict[str, list[Run]] = {tool.name: [] for tool in tools}

        def work(tool: Tool, _: int, name: str = name, starts: dict[str, list[Run]] = starts) -> Run:
            starts[tool.name].append(fresh(tool, "start"))  # just before, so that both meet the same load
            return fresh(tool, name)

        runs = in_rounds(tools, rounds, work)
        num_images = len(list(folders[name].iterdir()))
        say("folder to searchable, two photos: what a run costs in any case", {tool: starts[tool] for tool in runs})
        say(f"folder to searchable, {num_images} photos of {name}", runs, num_images=num_images)
        more = {tool: [beyond(*pair) for pair in zip(runs[tool], starts[tool], strict=True)] for tool in runs}
        if all(one.wall > 0 and one.cpu > 0 for done in more.values() for one in done):
            say(f"the same less the run with two photos, {name}", more, num_images=num_images - 2)
        else:
            print("\nthe same less the run with two photos: not to be told, the starts vary more than the photos take")


def beyond(whole: Run, start: Run) -> Run:
    """What a run took beyond another; both can come out negative where the machine is busy."""
    return Run(whole.wall - start.wall, whole.cpu - start.cpu, whole.memory, 0, "")


def query_section(tools: list[Tool], folder: Path, scratch: Path, rounds: int, query: Path, num_vectors: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, 512)).astype(np.float32)
    vectors = centres[rng.integers(0, 1000, num_vectors)]
    vectors += rng.standard_normal(vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [os.fspath(folder / f"not-there-{number:07}.jpg") for number in range(num_vectors)]
    states, ready = dict[str, Path](), list[Tool]()
    for tool in tools:
        states[tool.name] = scratch / f"{tool.name} query"
        tool.prepare(states[tool.name])
        try:
            tool.indexed(folder, states[tool.name], query)
            tool.fill(states[tool.name], names, vectors)
        except Failed as error:
            print(f"  {tool.name} could not: {' '.join(str(error).split())[-300:]}")
            continue
        ready.append(tool)

    def ask(tool: Tool, _: int) -> Run:
        done = run(tool.query(query, folder, states[tool.name]))
        if done.status != 0:
            raise Failed(f"{tool.name}: {done.output[-500:]}")
        return done

    in_rounds(ready, 1, ask)  # to warm the disk
    say(
        f"whole command: a query by a fresh image of 12 MP among {num_vectors:,} vectors", in_rounds(ready, rounds, ask)
    )


def unchanged_section(tools: list[Tool], folder: Path, scratch: Path, rounds: int, query: Path, num_files: int) -> None:
    place = scratch / f"{num_files} files"
    entries = make_files(place / "photos", num_files)
    states, able = dict[str, Path](), list[Tool]()
    for tool in tools:
        states[tool.name] = place / tool.name
        tool.prepare(states[tool.name])
        tool.indexed(folder, states[tool.name], query)
        if tool.known(states[tool.name], entries):
            able.append(tool)
        else:
            print(f"\n{tool.name}: keeps no record of files and embeds all {num_files:,} again")
    work = in_rounds(able, rounds, lambda tool, _: tool.indexed(place / "photos", states[tool.name], query))
    say(f"whole command: index again, {num_files:,} unchanged files", work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venvs", type=Path, required=True, help="where the peers' environments are, or will be made")
    parser.add_argument("--size", choices=("base", "small", "tiny"), default="base")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", type=int, default=200, help="photos of 0.3 MP")
    parser.add_argument("--large", type=int, default=40, help="photos of 12 MP")
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kill-photos", type=int, default=3000)
    parser.add_argument("--kill-after", type=float, default=45.0, help="seconds")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # it takes long: what is known is shown, in a file too
    with tempfile.TemporaryDirectory() as top:
        scratch = Path(top)
        tools = make_tools(options.venvs, options.size, scratch / "weights", options.tools)
        folders = photo_folders(scratch / "photos", options.small, options.large)
        query = photo_folders(scratch / "query", 0, 1)["12 MP"] / "00000.jpg"
        if "index" in options.only:
            index_section(tools, folders, scratch, options.rounds, query)
        few = folders["start"]
        if "damage" in options.only:
            for tool in tools:
                rows = damaged_files(tool, few, scratch, query)
                rows["EXIF orientation right"] = exif_orientation(tool, few, scratch, query)
                print("\n" + "\n".join(f"{tool.name:15} {name}: {text}" for name, text in rows.items()))
        if "kill" in options.only:
            lot = many(scratch / "many", folders["0.3 MP"], options.kill_photos)
            for tool in tools:
                print(f"\n{tool.name:15} SIGKILL after {options.kill_after:.0f} s: ", end="", flush=True)
                print(killed(tool, lot, scratch, query, seconds=options.kill_after))
        if "query" in options.only:
            query_section(tools, few, scratch, max(5, options.rounds), query, options.vectors)
        if "unchanged" in options.only:
            for num_files in options.files:
                unchanged_section(tools, few, scratch, options.rounds, query, num_files)


if __name__ == "__main__":
    main()
