from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vitembed.collection import update
from vitembed.collection.collection import Collection
from vitembed.errors import CollectionError
from vitembed.lock import exclusive

# An update in a process of its own that ends, in one way or another, after batch 3 of 4 (8 images each, commits of 8).
SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {here!r})
from color_grid import ColorGrid
from vitembed.collection import update
from vitembed.collection.collection import Collection
update.MAX_UNCOMMITTED_IMAGES = 8
def end(batch):
    if batch == 3:
        {how}
with Collection.open({directory!r}) as collection:
    collection.update(ColorGrid(after_batch=end), [{photos!r}], batch_size=8)
"""


def run(directory, photos, how, **options):
    here = str(Path(__file__).parent)
    code = SCRIPT.format(here=here, directory=str(directory), photos=str(photos), how=how)
    return subprocess.Popen([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize("how", ["os._exit(9)", "os.kill(os.getpid(), signal.SIGKILL)", "raise KeyboardInterrupt"])
def test_a_killed_update_keeps_its_batches_and_goes_on(how, photos, make, encoder, referee):
    collection = make()
    done = run(collection.directory, photos, how)
    done.communicate(timeout=60)
    assert done.returncode != 0
    kept = len(collection)
    assert kept == 24  # the third batch was due and committed when it arrived
    referee(collection, collection.paths())
    report = collection.update(encoder, [photos])
    assert (report.added, report.unchanged, len(encoder.seen)) == (6, 24, 6)
    referee(collection, [str(path) for path in photos.rglob("*.png")])


def test_an_interrupt_commits_what_is_embedded(photos, make, encoder):
    def stop(batch):
        if batch == 2:
            raise KeyboardInterrupt

    encoder.after_batch = stop
    collection = make()
    with pytest.raises(KeyboardInterrupt):
        collection.update(encoder, [photos], batch_size=8)  # far below 1,000 images and 30 seconds
    assert len(collection) == 16


def test_time_alone_makes_a_commit_due(photos, make, encoder, monkeypatch):
    monkeypatch.setattr(update, "MAX_UNCOMMITTED_SECONDS", 0.0)
    collection = make()
    seen = []
    with Collection.open(collection.directory) as reader:
        encoder.after_batch = lambda batch: seen.append(len(reader))
        collection.update(encoder, [photos], batch_size=8)
    assert seen == [8, 16, 24, 30]


def test_readers_see_a_committed_state_at_any_time(photos, make, encoder, monkeypatch):
    """While batches are written, another connection answers from a whole number of them, and exactly."""
    monkeypatch.setattr(update, "MAX_UNCOMMITTED_IMAGES", 4)
    collection = make()
    sizes, failures, over = [], [], threading.Event()
    queries = np.random.default_rng(0).standard_normal((3, 48))

    def read():
        try:
            with Collection.open(collection.directory) as reader:
                while not over.is_set():
                    for query in queries:
                        hits = reader.search(query, k=100)
                        sizes.append(len(hits))
                        scores = [hit.score for hit in hits]
                        assert scores == sorted(scores, reverse=True)
                        assert len({hit.path for hit in hits}) == len(hits)
        except BaseException as error:
            failures.append(error)

    encoder.after_batch = lambda batch: time.sleep(0.05)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        collection.update(encoder, [photos], batch_size=4)
        time.sleep(0.05)
    finally:
        over.set()
        thread.join()
    assert not failures
    assert set(sizes) <= {0, 4, 8, 12, 16, 20, 24, 28, 30}
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3


def test_one_writer_at_a_time(photos, make, encoder):
    collection = make()
    running = run(collection.directory, photos, "print('ready', flush=True); time.sleep(60)")
    try:
        assert running.stdout.readline() == "ready\n"
        with pytest.raises(CollectionError, match=rf"is being written by process {running.pid} on .*: wait for it"):
            collection.update(encoder, [photos])
        assert len(collection.search(np.ones(48), k=100)) == 24
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()
    assert collection.update(encoder, [photos]).added == 6


def test_a_lock_file_left_behind_is_no_obstacle(tmp_path):
    lock = tmp_path / "write.lock"
    lock.write_text(json.dumps({"pid": 1, "host": "here"}))  # a living process that holds no lock
    with exclusive(lock, CollectionError):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
        with pytest.raises(CollectionError, match="being written by"), exclusive(lock, CollectionError):
            pass
    with exclusive(lock, CollectionError):
        pass
    with (
        pytest.raises(CollectionError, match="cannot write to"),
        exclusive(tmp_path / "absent" / "write.lock", CollectionError),
    ):
        pass


def test_a_full_disk_is_one_line_and_loses_nothing(photos, make, encoder, draw, monkeypatch):
    """The catalogue may not grow any more: the failed batch is not there, the ones before are."""
    collection = make()
    collection.update(encoder, [photos / "a"])
    with collection._catalog.read():
        pages = collection._catalog._db.execute("PRAGMA page_count").fetchone()[0]
    collection._catalog._db.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(200):
        draw(str(photos / "b" / f"more{number}.png"), 1000 + number)
    with pytest.raises(CollectionError, match="disk is full"):
        collection.update(encoder, [photos])
    assert len(collection) == 15
    collection._catalog._db.execute("PRAGMA max_page_count = 1000000")
    assert collection.update(encoder, [photos]).added == 215
