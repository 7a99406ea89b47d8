"""Decoding processes: order and positions hold, and what a decoder does to its process costs one image."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vitembed.errors import VitembedError
from vitembed.images.loader import load_batches
from vitembed.images.pool import load_in_processes
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef
from vitembed.images.worker import WorkerBugError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")


@pytest.fixture
def odd_loads(beside):
    return beside("odd_loads")


def loaded(load, paths, *, num_workers=2, look_ahead=8, image_seconds=30.0):
    refs = [ImageRef(path) for path in paths]
    return [
        result
        for result, _ in load_in_processes(
            refs, load, num_workers=num_workers, look_ahead=look_ahead, image_seconds=image_seconds
        )
    ]


def children():
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if "vitembed.images.worker" in line]


def test_each_image_keeps_its_place_whatever_the_others_do(odd_loads, tmp_path):
    paths = [f"{number} slow" if number % 3 else str(number) for number in range(40)]
    paths[5], paths[6], paths[20], paths[30] = "5 bad", "6 crash", "20 exit", "30 chatty"
    paths[33] = f"33 crash once {tmp_path / 'mark'}"
    results = loaded(odd_loads.load, paths)
    reasons = {place: result.reason for place, result in enumerate(results) if not hasattr(result, "pixels")}
    assert reasons == {
        5: "bad on purpose",
        6: "crashed its decoder (SIGSEGV)",
        20: "crashed its decoder (status 7)",
    }
    for place, result in enumerate(results):
        if place not in reasons:
            assert (result.pixels == place).all()
            assert result.pixels.shape == (2, 2, 3)
            assert result.full_size == (place, 7)
    assert children() == []


def test_what_decoders_print_names_no_image_and_is_not_shown(odd_loads, capfd):
    assert [result.full_size[0] for result in loaded(odd_loads.load, ["0 chatty", "1"])] == [0, 1]
    assert capfd.readouterr() == ("", "")


def test_an_image_that_takes_for_ever_costs_its_time_limit(odd_loads):
    start = time.monotonic()
    results = loaded(odd_loads.load, ["0", "1 hang", "2", "3"], num_workers=1, image_seconds=0.6)
    assert time.monotonic() - start < 20
    assert results[1].reason == "took longer than 0.6 s to decode"
    assert [result.full_size[0] for place, result in enumerate(results) if place != 1] == [0, 2, 3]
    assert children() == []


def test_a_bug_keeps_its_traceback_and_ends_the_processes(odd_loads):
    with pytest.raises(WorkerBugError, match=r"(?s)odd_loads\.py.*RuntimeError: a bug of ours"):
        loaded(odd_loads.load, ["0", "1 bug", *map(str, range(2, 100))])
    assert children() == []


def test_processes_load_no_torch(odd_loads):
    assert loaded(odd_loads.load, ["0 modules"], num_workers=1)[0].reason == "none"


def test_a_process_that_cannot_start_is_one_line(odd_loads):
    with pytest.raises(VitembedError, match=r"ended at its start with status 3: .*num_workers=0"):
        loaded(odd_loads.Unstartable(), ["0"], num_workers=1)


def test_closing_ends_processes_that_are_busy(odd_loads):
    results = load_in_processes(
        [ImageRef("0"), *[ImageRef(f"{number} hang") for number in range(1, 50)]],
        odd_loads.load,
        num_workers=2,
        look_ahead=10,
    )
    assert next(results)[0].full_size == (0, 7)
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 5
    assert children() == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitembed-decode")]


def test_a_killed_program_leaves_no_process_behind(odd_loads, tmp_path):
    """Its processes see their input end; one that is stuck has an alarm of its own."""
    code = (
        f"import sys, os, signal; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from odd_loads import load\n"
        "from vitembed.images.pool import load_in_processes\n"
        "from vitembed.images.source import ImageRef\n"
        "results = load_in_processes([ImageRef(str(n)) for n in range(99)], load, num_workers=1, look_ahead=2)\n"
        "next(results)\n"
        "os.system(f'ps -o pid= --ppid {os.getpid()} | head -1')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(done.stdout.split()[0])
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


def test_batches_are_the_same_as_in_this_process(solid_folder):
    refs = [ImageRef(str(solid_folder / f"{name}.png")) for name in "abcdefghijkl"]
    preprocess = Preprocess(img_size=16)
    here = list(load_batches(refs, preprocess.load_image, batch_size=4, num_workers=0))
    there = list(load_batches(refs, preprocess.load_image, batch_size=4, num_workers=2, isolated=True))
    assert len(here) == len(there) == 3
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.image_sizes, other.image_sizes)
        assert (one.image_sizes == (30, 20)).all()  # of the file, not of the model
        assert [(place, bad.path, bad.reason) for place, bad in one.bad] == [
            (place, bad.path, bad.reason) for place, bad in other.bad
        ]


def test_a_program_without_stderr_gets_its_images(solid_folder):
    """A closed descriptor 2 must not become the one through which the answers go."""
    code = (
        "import os, sys; from vitembed.images.pool import load_in_processes; "
        "from vitembed.images.preprocess import Preprocess; from vitembed.images.source import find_images; "
        "os.close(2); refs = find_images(sys.argv[1:]).refs; load = Preprocess(img_size=16).load_image; "
        "found = list(load_in_processes(refs, load, num_workers=1, look_ahead=4, image_seconds=20.0)); "
        "print(sum(hasattr(result, 'pixels') for result, _ in found))"
    )
    command = [sys.executable, "-c", code, os.fspath(solid_folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.stdout.split() == [b"8"]
