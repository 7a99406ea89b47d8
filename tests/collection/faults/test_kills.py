"""SIGKILL at random moments: the index is in a committed state, search is right, and the same call goes on."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


def kill_many(old_place, copy_of_old, tools, num_kills, seed):
    """Kills updates again and again until enough have been hit while they were at work."""
    rng = np.random.default_rng(seed)
    reference = copy_of_old()
    tools.everything(reference)
    start = time.monotonic()
    reference.bring_up_to_date()
    whole_seconds = time.monotonic() - start
    final = reference.snapshot()
    known = {*old_place.snapshot().items(), *final.items()}
    # A file that has moved keeps its vector under its new path.
    num_hit = 0
    place = None
    while num_hit < num_kills:
        if place is None:
            place = copy_of_old()
            tools.everything(place)
        child = os.fork()
        if child == 0:
            try:
                place.bring_up_to_date()
            finally:
                os._exit(0)
        time.sleep(float(rng.uniform(0, 1.2 * whole_seconds)))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        num_hit += status == -signal.SIGKILL
        state = place.snapshot()
        strange = {*state.items()} - known
        assert not strange, f"after {num_hit} kills: {sorted(name for name, _ in strange)}"
        assert len(state) > 3
        place.check_search()
        if status == 0 or rng.random() < 0.3:
            place.bring_up_to_date()
            assert place.snapshot() == final
            place.check_search()
            place = None
    return num_hit


def test_a_few_kills(old_place, copy_of_old, tools):
    assert kill_many(old_place, copy_of_old, tools, 6, seed=1) == 6


@pytest.mark.slow
def test_200_kills(old_place, copy_of_old, tools):
    assert kill_many(old_place, copy_of_old, tools, 200, seed=2) == 200


@pytest.mark.slow
def test_a_kill_at_every_system_call(old_place, copy_of_old, tools):
    """Below Python: at each write, fsync, rename, cut and removal that SQLite, FAISS and we ask of the system."""
    import shutil
    import subprocess
    from pathlib import Path

    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    reference = copy_of_old()
    tools.everything(reference)
    reference.bring_up_to_date()
    final = reference.snapshot()
    known = {*old_place.snapshot().items(), *final.items()}
    here = Path(__file__).parent.parent
    code = (
        f"import sys; sys.path.insert(0, {str(here)!r})\n"
        "import os, color_grid\n"
        "from vitembed.collection import update\n"
        "from vitembed.collection.collection import Collection\n"
        "update.MAX_UNCOMMITTED_IMAGES = 3\n"
        "import faiss\n"
        "os.write(2, b'begin')\n"
        f"with Collection.create(sys.argv[2], **{tools.CREATION!r}) as c:\n"
        "    c.update(color_grid.ColorGrid(), [sys.argv[1]], batch_size=3)\n"
    )
    calls = "write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,ftruncate,unlink,unlinkat"
    number, place = 0, None
    while True:
        number += 1
        if place is None:
            place = copy_of_old()
            tools.everything(place)
        done = subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}",
             "-e", f"inject={calls}:signal=KILL:when={number + 1}",
             sys.executable, "-c", code, str(place.photos), str(place.index)],
            capture_output=True,
        )  # fmt: skip
        if done.returncode == 0:
            break
        assert done.returncode in (-9, 137), done.stderr
        strange = {*place.snapshot().items()} - known
        assert not strange, f"killed at call {number}: {sorted(name for name, _ in strange)}"
        place.check_search()
        place.bring_up_to_date()
        assert place.snapshot() == final
        place = None
    assert place.snapshot() == final
    print(f"{number - 1} system calls, a kill at each")
    assert number > 30
