"""A process that ends, or a disk that is full, at each single write, fsync, rename and commit of every kind of change.

What is left must be a state that an undisturbed run goes through, search must equal brute force over it, and the same
call must then arrive where the undisturbed run arrives.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

from vitembed import faults
from vitembed.collection.catalog import AbsentError
from vitembed.collection.collection import Collection
from vitembed.errors import CollectionError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

EXIT = 9
FORMAT_1 = Path(__file__).parent.parent / "data" / "format1.sqlite"


@pytest.fixture(params=["create", "add", "change", "delete", "move", "everything", "rebuild", "migrate", "vacuum"])
def case(request, copy_of_old, tools):
    """``prepare()`` gives a place with work to do, ``act(place)`` does it."""
    name = request.param

    def prepare():
        place = copy_of_old()
        if name in ("create", "rebuild"):
            shutil.rmtree(place.photos / "a")  # fewer images, as each is a step
        if name == "create":
            shutil.rmtree(place.index)
        elif name == "migrate":
            shutil.rmtree(place.top)
            place.index.mkdir(parents=True)
            shutil.copy(FORMAT_1, place.index / "catalog.sqlite")
        elif name == "vacuum":
            tools.CHANGES["delete"](place)
        elif name in tools.CHANGES:
            tools.CHANGES[name](place)
        return place

    def act(place):
        if name == "migrate":
            place.check_search()
        elif name == "vacuum":
            with Collection.open(place.index) as collection:
                collection.update(place.color_grid.ColorGrid(), [place.photos])
                collection.vacuum()
        else:
            place.bring_up_to_date(rebuild=name == "rebuild")

    return name, prepare, act


def state_of(place):
    try:
        return place.snapshot()
    except AbsentError:
        return None


def undisturbed(prepare, act):
    """The steps of a run and the states before, after and between them."""
    place = prepare()
    before = place.copy(place.top.with_name(f"{place.top.name}-before"))
    states, steps = [state_of(before)], []

    def watch(step):
        steps.append(step)
        if step == "go on after a commit":
            faults.hook, kept = None, faults.hook
            states.append(place.snapshot())
            faults.hook = kept

    faults.hook = watch
    act(place)
    faults.hook = None
    final = place.snapshot()
    return steps, [*states, {}, final], final


@pytest.mark.slow
def test_the_process_ends_anywhere(case, tools):
    name, prepare, act = case
    steps, states, final = undisturbed(prepare, act)
    assert len(steps) >= 5, steps
    if name != "create":
        assert None not in states
    for number, step in enumerate(steps):
        place = prepare()
        count = iter(range(len(steps) + 50))

        def end(_, number=number, count=count):
            if next(count) == number:
                os._exit(EXIT)

        def run(place=place, end=end):
            faults.hook = end
            act(place)

        assert tools.in_child(run) == EXIT, step
        state = state_of(place)
        assert state in states, f"at step {number}, {step}: {None if state is None else sorted(state)}"
        if name not in ("create", "rebuild"):
            assert state, "an update never empties an index"
        if state is not None:
            place.check_search()
        act(place)
        assert place.snapshot() == final, step
        place.check_search()
        shutil.rmtree(place.top)


def test_the_disk_is_full_anywhere(case):
    """From the given step on nothing can be written any more; then there is room again."""
    _, prepare, act = case
    steps, states, final = undisturbed(prepare, act)
    for number in range(0, len(steps), 3 if len(steps) > 30 else 1):
        place = prepare()
        count = iter(range(10_000))

        def fail(step, number=number, count=count):
            if next(count) >= number and step != "go on after a commit":
                if "vectors" in step or "background" in step or step.startswith(("fsync", "rename v", "write .")):
                    raise OSError(errno.ENOSPC, "No space left on device")
                raise sqlite3.OperationalError("database or disk is full")

        faults.hook, said = fail, ""
        try:
            act(place)
        except (CollectionError, sqlite3.OperationalError) as error:  # SQLite's own only before any file is named
            said = str(error)
        finally:
            faults.hook = None
        assert not said or "full" in said or "No space" in said
        state = state_of(place)
        assert state in states, steps[number]
        act(place)
        assert place.snapshot() == final
        place.check_search()
        assert not [left for left in os.listdir(place.index) if left.startswith(".tmp")]
        shutil.rmtree(place.top)
