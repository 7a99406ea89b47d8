"""What reaches a terminal or a pipe: no control characters, and one line where nothing can be written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import unicodedata

import pytest

from vitembed.errors import BadImage, printable

STEERING = [
    "\x1b[31m", "\x1b]0;title\x07", "\x08", "\x7f", "\x9b31m", "\x85", "\u202e", "\u2066", "\u200f", "\u061c", "\u2028",
    "\ufeff", "\u200b", "\t", "\r", "\U000e0041",
]  # fmt: skip


def steers(text: str) -> list[str]:
    """Characters that a terminal may act on, by Unicode's own classes; line feeds are the program's."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") and c not in "\n\u200d\u200c"]


@pytest.mark.parametrize("text", STEERING)
def test_what_steers_a_terminal_is_escaped(text):
    assert not steers(printable(f"a{text}b"))
    assert printable(f"a{text}b") == "a" + "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    ) + "b"  # fmt: skip
    assert not steers(str(BadImage(f"a{text}b", "truncated")))


def test_other_writing_is_left_alone():
    for text in ("größe.jpg", "日本語.png", "عربي.png", "עברית", "e\u0301", "👩\u200d🔬.png", "a b'c\"d\\e"):
        assert printable(text) == text
    assert printable(os.fsdecode(b"\xff\n")) == "\\udcff\\n"


@pytest.fixture
def hostile(workspace, photo_folder):
    """Every kind of hostile name, as image, as broken image, as folder, and as label."""
    folder = photo_folder / f"cl\x1b[1mass{STEERING[6]}"
    folder.mkdir()
    for number, text in enumerate(STEERING):
        shutil.copy(photo_folder / "discs" / f"discs_{number % 8}.png", folder / f"n{number}{text}.png")
        (folder / f"bad{number}{text}.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    labels = [f"{path.relative_to(workspace)},\x1b[2Jlabel" for path in photo_folder.glob("stripes/*")]
    (workspace / "labels.csv").write_text("\n".join(["path,label", *labels]))
    return workspace


def test_no_name_steers_a_terminal(vitembed, hostile):
    results = [
        vitembed("index", "photos"),
        vitembed("search", "photos/discs/discs_0.png", "-k", "100", "--html", "page.html"),
        vitembed("search", "photos/discs/discs_0.png", "-k", "100", "--json"),
        vitembed("search", "photos/gone\x1b[31m.png", code=1),
        vitembed("search", "photos/discs/discs_0.png", "--where", "name = '\x1b[31m' x", code=1),
        vitembed("search", "photos/discs/discs_0.png", "--labels", "labels.csv", "--where", "label = '\x1b[2Jlabel'"),
        vitembed("dupes", "--threshold", "0.9999", "--html", "dupes.html"),
        vitembed("map", "--clusters", "2"),
        vitembed("probe", "photos", "--few-shot", "0"),
        vitembed("info", "no\x1b[31m/\u202esuch", code=1),
        vitembed("search", "--no\x1b[31msuch", code=2),
        vitembed("no\x1b[31msuch", code=2),
        vitembed("search", "x", "--graphics", "\x1b[31m", code=2),
        vitembed("--\u202e", code=2),
    ]
    for result in results:
        assert not steers(result.stdout + result.stderr)
    table = results[1].stdout.splitlines()
    assert len(table) == 1 + 24 - 1 + len(STEERING)
    assert "n13\\t.png" in results[1].stdout
    document = json.loads(results[2].stdout)
    assert {text for text in STEERING for hit in document["results"] if hit["path"].endswith(f"{text}.png")} == set(
        STEERING
    )
    for page in ("page.html", "dupes.html", "map.html"):
        assert not set(steers((hostile / page).read_text(encoding="utf-8"))) - {"\t"}


def test_paths_are_bytes_in_a_pipe_and_escaped_on_a_terminal(vitembed, hostile, monkeypatch, capsysbinary):
    from vitembed_cli import output

    vitembed("index", "photos")
    listed = vitembed("search", "photos/discs/discs_0.png", "-k", "100", "-0").stdout_bytes.split(b"\0")
    assert len([path for path in listed if b"\x1b" in path]) == len(STEERING)
    csv = "a\x1b[31m,b\u202e"
    output.say_csv([csv])
    output.say_paths([csv])
    assert capsysbinary.readouterr().out.decode().replace("\r", "") == f'"{csv}"\n{csv}\n'
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.say_csv([csv])
    output.say_paths([csv])
    assert not steers(capsysbinary.readouterr().out.decode().replace("\r", ""))


def run(tail: str, *arguments: str, cwd=None) -> subprocess.CompletedProcess:
    """A command with redirections, as the shell makes them."""
    program = [sys.executable, "-m", "vitembed_cli", *arguments]
    return subprocess.run(["sh", "-c", f'"$@" {tail}', "sh", *program], capture_output=True, text=True, cwd=cwd)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_stdout_that_cannot_be_written_is_one_line(vitembed, workspace, photo_folder):
    vitembed("index", "photos")
    search = ("search", "photos/discs/discs_0.png")
    for tail, problem in ((">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")):
        for arguments in (("--version",),) if "-" in tail else ((*search, "-0"), ("index", "photos")):
            result = run(tail, *arguments, cwd=workspace)
            assert (result.stderr, result.returncode) == (f"Error: cannot write to stdout: {problem}\n", 1)
    listed = run("2>&-", *search, cwd=workspace)
    assert listed.returncode == 0
    assert listed.stdout == vitembed(*search).stdout
    closed = run("<&-", "search", "--batch", "-", cwd=workspace)
    assert (closed.stderr, closed.returncode) == ("Error: stdin is closed: nothing can be read from it\n", 1)
    left = run("| head -c 1", *search, "-0", cwd=workspace)
    assert (left.stderr, len(left.stdout)) == ("", 1)
