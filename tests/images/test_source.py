"""Finding images: order, lists, links, odd names, and nothing left out without a word."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitembed.errors import BadImage, DataError
from vitembed.images.ignored import passed_over_lines
from vitembed.images.source import ImageRef, find_images, sniff, split_path_list, walk

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files")


def write_image(path: Path, format_name: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(path, format_name)
    return path


def names(root: Path, refs: list[ImageRef]) -> list[str]:
    return [os.path.relpath(ref.path, root) for ref in refs]


def test_content_decides_not_the_suffix(tmp_path):
    write_image(tmp_path / "a.txt", "JPEG")
    write_image(tmp_path / "b", "PNG")
    write_image(tmp_path / "c.jpg", "PNG")
    (tmp_path / "d.jpg").write_text("a shopping list")
    (tmp_path / "e.png").touch()
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "empty.txt").touch()
    found = find_images([tmp_path])
    assert names(tmp_path, found.refs) == ["a.txt", "b", "c.jpg"]
    assert [(os.path.basename(bad.path), bad.reason.replace(f"{tmp_path}/", "")) for bad in found.bad] == [
        ("d.jpg", "not an image"),
        ("e.png", "zero bytes"),
    ]
    assert found.num_other == 2


def test_a_named_file_is_never_waved_away(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "empty.bin").touch()
    found = find_images([tmp_path / "notes.txt", tmp_path / "empty.bin"])
    assert found.refs == []
    assert [bad.reason for bad in found.bad] == ["zero bytes", "not an image"]
    assert found.num_other == 0


def test_order_is_that_of_the_path_bytes_and_each_path_comes_once(tmp_path):
    for name in ("b/2.png", "b/10.png", "a.png", "B.png", "é.png", "b.png"):
        write_image(tmp_path / name)
    inputs = [tmp_path / "b", tmp_path, tmp_path / "a.png", str(tmp_path) + "/./b/../a.png"]
    refs = find_images(inputs).refs
    expected = sorted(
        os.fsencode(os.path.join(folder, name)) for folder, _, files in os.walk(tmp_path) for name in files
    )
    assert [os.fsencode(ref.path) for ref in refs] == expected
    assert all(os.path.isabs(ref.path) for ref in refs)


def test_relative_inputs_become_absolute(tmp_path, monkeypatch):
    write_image(tmp_path / "x" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert [ref.path for ref in find_images(["x"]).refs] == [str(tmp_path / "x" / "a.png")]


def test_walk_tells_what_stat_tells(tmp_path):
    path = write_image(tmp_path / "a.png")
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    found = walk([tmp_path])
    (entry,), bad = found.entries, found.bad
    assert (entry.path, entry.size, entry.mtime_ns) == (str(path), path.stat().st_size, path.stat().st_mtime_ns)
    assert bad == []


def test_folders_of_other_programs_are_skipped_unless_named(tmp_path):
    for folder in (".git", ".vitembed", "@eaDir", "node_modules", "System Volume Information", "__MACOSX"):
        write_image(tmp_path / folder / "deep" / "a.png")
    write_image(tmp_path / "._a.png")
    write_image(tmp_path / ".hidden" / "b.png")
    assert names(tmp_path, find_images([tmp_path]).refs) == [os.path.join(".hidden", "b.png")]
    assert len(find_images([tmp_path / "@eaDir"]).refs) == 1
    assert len(find_images([tmp_path / "._a.png"]).refs) == 1


def test_list_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "pictures" / "a.png")
    write_image(tmp_path / "pictures" / "b c .png")
    write_image(tmp_path / "elsewhere" / "d.png")
    (tmp_path / "pictures" / "text.txt").write_text("no image")
    lines = [
        "# a comment",
        "",
        "  ",
        "pictures/a.png",
        "./pictures/b c .png\r",
        str(tmp_path / "elsewhere"),
        "gone.png",
        "b c .png",
        "pictures/text.txt",
        "pictures/a.png",
    ]
    (tmp_path / "pictures" / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    found = find_images(["@pictures/list.txt"])
    assert names(tmp_path, found.refs) == ["elsewhere/d.png", "pictures/a.png", "pictures/b c .png"]
    assert [(os.path.basename(bad.path), bad.reason.replace(f"{tmp_path}/", "")) for bad in found.bad] == [
        (
            "b c .png",
            "no such file: names in @pictures/list.txt count from the current folder; it lies beside the list, as "
            "pictures/b c .png",
        ),
        ("gone.png", "no such file"),
        ("text.txt", "not an image"),
    ]


def test_inputs_that_cannot_be_are_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder: .*gone"):
        find_images([tmp_path / "gone"])
    with pytest.raises(DataError, match=r"@gone\.txt: no such file"):
        find_images(["@gone.txt"])
    with pytest.raises(DataError, match="one path per line"):
        find_images([f"@{write_image(tmp_path / 'a.png')}"])
    with pytest.raises(DataError):
        find_images(["bad\0name"])


@posix
@pytest.mark.parametrize("name", [b"caf\xe9.png", b"line\nbreak.png", b"\xff\xfe\n\r.png", b" blank .png"])
def test_odd_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = write_image(tmp_path / "plain.png")
    try:
        os.rename(plain, os.path.join(os.fsencode(tmp_path), name))
    except OSError:
        pytest.skip("this file system refuses the name")
    (ref,) = find_images([tmp_path]).refs
    assert os.fsencode(ref.path) == os.path.join(os.fsencode(tmp_path), name)
    assert sniff(ref.path) == "PNG"
    (tmp_path / "list.txt").write_bytes(name)
    if b"\n" not in name:
        assert find_images([f"@{tmp_path / 'list.txt'}"]).refs == [ref]
    (tmp_path / "list.txt").write_bytes(name + b"\0")
    assert find_images([f"@{tmp_path / 'list.txt'}"]).refs == [ref]


@posix
def test_links(tmp_path):
    write_image(tmp_path / "real" / "a.png")
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "link.png").symlink_to(tmp_path / "real" / "a.png")
    (tmp_path / "album" / "loop").symlink_to(tmp_path / "album")
    (tmp_path / "album" / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "album" / "dangling.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "album" / ".#lock").symlink_to("nobody@nowhere")
    (tmp_path / "album" / "ouroboros.jpg").symlink_to("ouroboros.jpg")
    plain = find_images([tmp_path / "album"])
    assert names(tmp_path, plain.refs) == ["album/link.png"]
    assert [os.path.basename(bad.path) for bad in plain.bad] == ["dangling.png", "ouroboros.jpg"]
    assert plain.bad[0].reason == "no such file"
    followed = find_images([tmp_path / "album"], follow_symlinks=True)
    assert names(tmp_path, followed.refs) == ["album/folder/a.png", "album/link.png"]


@posix
def test_followed_links_visit_each_real_folder_once(tmp_path):
    # Each folder links to all folders: followed naively, the number of paths explodes.
    folders = [tmp_path / f"f{i}" for i in range(8)]
    for folder in folders:
        write_image(folder / "a.png")
        for other in folders:
            (folder / f"to_{other.name}").symlink_to(other)
    assert names(tmp_path, find_images([tmp_path], follow_symlinks=True).refs) == [f"f{i}/a.png" for i in range(8)]


@posix
def test_pipes_and_sockets_are_left_out_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as sock:
        os.chdir(tmp_path)
        sock.bind("socket.png")
        write_image(tmp_path / "a.png")
        found = find_images([tmp_path])
    assert names(tmp_path, found.refs) == ["a.png"]
    assert found.bad == []
    with pytest.raises(DataError, match="neither a file nor a folder"):
        find_images([tmp_path / "pipe.png"])
    with pytest.raises(BadImage, match="not a regular file"):
        sniff(str(tmp_path / "pipe.png"))


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_listed(tmp_path):
    write_image(tmp_path / "secret.png").chmod(0)
    write_image(tmp_path / "closed" / "a.png")
    (tmp_path / "closed").chmod(0)
    found = find_images([tmp_path])
    (tmp_path / "closed").chmod(0o700)
    assert [bad.reason for bad in found.bad] == ["folder: permission denied", "permission denied"]


def test_refused_reads_are_listed(tmp_path, monkeypatch):
    # As above, for test runs as root.
    write_image(tmp_path / "secret.png")
    write_image(tmp_path / "closed" / "a.png")
    real_open, real_scandir = os.open, os.scandir

    def refuse_open(path, *args, **kwargs):
        if str(path).endswith("secret.png"):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args, **kwargs)

    def refuse_scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real_scandir(path)

    monkeypatch.setattr(os, "open", refuse_open)
    monkeypatch.setattr(os, "scandir", refuse_scandir)
    found = find_images([tmp_path])
    assert [bad.reason for bad in found.bad] == ["folder: permission denied", "permission denied"]


def test_a_tree_deeper_than_recursion(tmp_path):
    folder = tmp_path
    for _ in range(300):
        folder = folder / "d"
    write_image(folder / "a.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        refs = find_images([tmp_path]).refs
    finally:
        sys.setrecursionlimit(limit)
    assert len(refs) == 1


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\xff\xd8\xff\xe1", "JPEG"),
        (b"GIF89a", "GIF"),
        (b"MM\0*", "TIFF"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WEBP"),
        (b"RIFF\x10\0\0\0WAVEfmt ", None),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf", "AVIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0iso2mp41", None),
        (b"BM is how this text starts, no more", None),
        (b"P1 is a motorway, 3 lanes", None),
        (b"P6\n# made by hand\n3 2\n255\n", "PPM"),
        (b"#define MAX 3\n", None),
        (b"#define a_width 8\n#define a_height 1\n", "XBM"),
        (b"/* a style sheet */ body { }", None),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS"),
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<html><svg></svg></html>", None),
        (b"\0\0\1\0\0\0", None),
        (b"x", None),
    ],
)
def test_sniff(tmp_path, head, name):
    path = tmp_path / "file.bin"
    path.write_bytes(head)
    assert sniff(str(path)) == name


def test_trash_thumbnails_and_unfinished_files_are_passed_over_and_counted(tmp_path):
    waste = [
        *(
            ".Trash-1000/files",
            ".Trash",
            ".Trashes/501",
            ".thumbnails",
            ".cache/thumbnails",
            "#recycle",
            "$RECYCLE.BIN",
        ),
        *("$Recycle.Bin/S-1", ".dtrash", ".picasaoriginals", ".@__thumb", "@eaDir", ".ipynb_checkpoints", "lost+found"),
        *(".Spotlight-V100", ".fseventsd", "My Previews.lrdata/a", "P.photoslibrary/resources", "__MACOSX"),
        *("P.photolibrary/Thumbnails", "System Volume Information", "node_modules/x", ".stversions"),
    ]
    kept = [".cache/else", "thumbnails", "P.photoslibrary/originals", "P.photolibrary/Masters", "Trash", ".hidden"]
    for folder in (*waste, *kept, ".git"):
        write_image(tmp_path / folder / "deep" / "a.png")
    unfinished = [
        "a.png.part",
        "b.jpg.crdownload",
        "~syncthing~c.png.tmp",
        ".syncthing.d.png",
        ".e.jpg.aB3dE9",
        "f.tmp",
    ]
    for name in unfinished:
        write_image(tmp_path / "thumbnails" / name)
    found = find_images([tmp_path])
    assert names(tmp_path, found.refs) == sorted(f"{folder}/deep/a.png" for folder in kept)
    assert len(found.passed_over) == len(waste)
    assert sorted(map(os.path.basename, found.unfinished)) == sorted(unfinished)
    for folder in waste:  # named outright
        assert len(find_images([tmp_path / folder]).refs) == 1, folder
    assert len(find_images([tmp_path / "thumbnails" / "f.tmp"]).refs) == 1
    assert passed_over_lines(["/x/@eaDir", "/y/@eaDir", "/.Trash-1\n"], ["/a.part"]) == [
        "passed over: 3 trash or thumbnail folders (@eaDir, .Trash-1\\n)",
        "passed over: 1 unfinished or temporary file (a.part)",
    ]


def test_lists_in_all_their_forms(tmp_path):
    text = "a.png\nb c.png\n# no name\n"
    for data in (text.encode(), text.replace("\n", "\r\n").encode(), text.encode("utf-16"), b"a.png\0b c.png\0"):
        assert split_path_list(data) == ["a.png", "b c.png"]
    assert split_path_list(b"# a name\0b\nc\0") == ["# a name", "b\nc"]  # what find -print0 gives is taken as it is
    assert split_path_list(b"") == []
    assert split_path_list(b"one\nb\0d\ntwo\n") == ["one", "b\0d", "two"]  # one stray NUL is the mistake of its line
    for data in (b"\0" * 99, b"x" * 40_000 + b"\0", b"GIF89a...\0"):
        with pytest.raises(ValueError, match="paths that end in NUL"):
            split_path_list(data)


@posix
def test_two_dots_behind_a_link_lead_where_the_system_goes(tmp_path, monkeypatch):
    write_image(tmp_path / "real" / "pictures" / "a.png")
    write_image(tmp_path / "pictures" / "wrong.png")
    (tmp_path / "real" / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    monkeypatch.chdir(tmp_path)
    assert names(tmp_path, find_images(["link/../pictures"]).refs) == ["real/pictures/a.png"]
    assert names(tmp_path, find_images(["real/../pictures//"]).refs) == ["pictures/wrong.png"]
    with pytest.raises(DataError, match="null byte"):
        find_images(["a\0b"])
