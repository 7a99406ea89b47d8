"""Asking in a terminal: what may be typed, and what comes of it."""

from __future__ import annotations

import numpy as np
import pytest

from vitembed.probe.labelling.session import LabelSession
from vitembed.probe.labelling.terminal_dialog import Terminal, dialog


class Person:
    """Types lines; remembers what was said and shown."""

    def __init__(self, *lines):
        self.lines, self.said, self.drawn, self.opened = list(lines), [], [], []

    def terminal(self):
        return Terminal(
            read=lambda: self.lines.pop(0) if self.lines else None,
            say=self.said.append,
            prompt=lambda: None,
            show=self.drawn.append,
            open=self.opened.append,
            shown=lambda name: f"<{name}>",
        )

    @property
    def text(self):
        return "\n".join(self.said)


@pytest.fixture
def session():
    rng = np.random.default_rng(0)
    return LabelSession(rng.standard_normal((40, 8)).astype(np.float32), ["cat", "car", "dog"])


def labelled(session):
    return [label for label in session.labels if label is not None]


def test_numbers_names_and_beginnings(session):
    asked = session.ask(8).tolist()
    person = Person("1", "DOG", "d", "c", "cat", "9", "x", "q")
    assert dialog(session, person.terminal()) is False
    assert [session.labels[row] for row in asked[:4]] == ["cat", "dog", "dog", "cat"]
    assert session.num_labelled == 4
    assert "'c' begins cat, car" in person.text
    assert "9: expected 1 to 3" in person.text
    assert "'x' is no class here (cat, car, dog); +x makes it one" in person.text
    assert person.drawn[0] == session.ids[asked[0]]
    assert not person.opened
    assert f"<{session.ids[asked[0]]}>" in person.text


def test_after_a_round_the_probe_suggests_and_enter_takes_it(session):
    first = Person("", *"12312312")
    dialog(session, first.terminal())
    assert "nothing is suggested yet" in first.text
    assert session.num_labelled == 8
    assert "8 labelled (cat 3, car 3, dog 2), 32 left" in first.text
    assert "too few to tell" in first.text
    row = int(session.ask(8)[0])
    (hint,) = session.suggestions([row])
    person = Person("")
    dialog(session, person.terminal())
    assert session.labels[row] == hint.label
    assert f"suggested: {hint.label} ({100 * hint.probability:.0f} %)" in person.text


def test_undo_skip_unsure_new_class_and_open(session):
    asked = session.ask(8).tolist()
    person = Person("u", "1", "2", "u", "3", "s", "?", "+mouse", "o", "h", "mouse")
    dialog(session, person.terminal())
    assert "nothing to take back" in person.text
    assert [session.labels[row] for row in asked[:6]] == ["cat", "dog", None, None, "mouse", "mouse"]
    assert session.unsure[asked[3]]
    assert not session.unsure[asked[2]]
    assert session.classes == ["cat", "car", "dog", "mouse"]
    assert person.opened == [session.ids[asked[5]]]
    again = Person("+=x", "+CAT", "q")
    dialog(session, again.terminal())
    assert "formula" in again.text
    assert "named twice" in again.text
    assert len(session.classes) == 4


def test_undo_reaches_back_over_the_round(session):
    asked = session.ask(2).tolist()
    person = Person("1", "2", "u", "3", "q")
    dialog(session, person.terminal(), num=2)
    assert [session.labels[row] for row in asked] == ["cat", "dog"]
    assert session.num_labelled == 2


def test_classes_that_are_called_like_commands_or_numbers():
    vectors = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    session = LabelSession(vectors, ["s", "u", "q"])
    dialog(session, Person("s", "u", "q", "quit").terminal())
    assert sorted(labelled(session)) == ["q", "s", "u"]
    digits = LabelSession(vectors, ["7", "3", "1"])
    person = Person("1", "3", "2")
    dialog(digits, person.terminal())
    assert sorted(labelled(digits)) == ["1", "3"]
    assert "'2' is no class" in person.text
    assert "  7   3   1" in person.said


def test_it_ends_when_no_image_is_left():
    session = LabelSession(np.eye(6, dtype=np.float32), ["a", "b"])
    person = Person(*"121212")
    assert dialog(session, person.terminal(), num=4, always_open=True) is True
    assert session.num_left == 0
    assert "no images are left" in person.said[-1]
    assert len(person.opened) == 6
