"""Asking in a terminal, line by line: a person at the keyboard or a pipe answers alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vitembed.errors import DataError
from vitembed.probe.labelling.class_names import checked_classes, class_named
from vitembed.probe.labelling.session import LabelSession, Suggestion

HELP = (
    "number or beginning of a class: label; Enter: as suggested; ? none of these or cannot tell; s skip for now; "
    "u undo; +name new class; o open the image; q leave"
)
_COMMANDS = {
    "?": "unsure",
    "unsure": "unsure",
    "s": "skip",
    "skip": "skip",
    "u": "undo",
    "undo": "undo",
    "o": "open",
    "open": "open",
    "q": "quit",
    "quit": "quit",
    "h": "help",
    "help": "help",
}


@dataclass(frozen=True)
class Terminal:
    """What a dialog needs of the world."""

    read: Callable[[], str | None]
    """The next line typed, without its end; None when there is no more."""
    say: Callable[[str], None]
    """A line for the person."""
    prompt: Callable[[], None]
    """Shows that an answer is awaited."""
    show: Callable[[str], None]
    """Draws the image of this name, where that can be done."""
    open: Callable[[str], None]
    """Opens it in a window."""
    shown: Callable[[str], str]
    """Its name as people want to read it."""


def dialog(session: LabelSession, terminal: Terminal, *, num: int = 8, always_open: bool = False) -> bool:
    """Ask about images, ``num`` at a time, until the person leaves or none is left.

    After each round the probe is fitted anew and what it is worth is said. Every answer is kept at once.

    Returns:
        Whether the images ran out; False when the person left.
    """
    terminal.say(HELP)
    while True:
        rows = [int(row) for row in session.ask(num)]
        if not rows:
            terminal.say("no images are left to ask about: all are labelled, put aside, or copies of labelled ones")
            return True
        if not _round(session, terminal, rows, always_open):
            return False
        for line in progress_lines(session):
            terminal.say(line)


def progress_lines(session: LabelSession) -> list[str]:
    """How far the labels go, for people."""
    counts = session.counts()
    of_each = ", ".join(f"{name} {num}" for name, num in counts.items())
    found = [f"{session.num_labelled:,} labelled ({of_each}), {session.num_left:,} left"]
    if session.is_fitted():
        found += session.expected_accuracy().lines()
        missing = [name for name, num in counts.items() if not num]
        if missing:
            found.append(f"without any label yet, so never answered: {', '.join(missing)}")
    else:
        found.append("the probe begins with labels of two classes")
    return found


def _round(session: LabelSession, terminal: Terminal, rows: list[int], always_open: bool) -> bool:
    """Ask about these images; False when the person leaves."""
    hints = dict(zip(rows, session.suggestions(rows), strict=True))
    place = 0
    while place < len(rows):
        row = rows[place]
        _present(session, terminal, row, hints.get(row), always_open)
        step = _ask_one(session, terminal, row, hints.get(row))
        if step == "leave":
            return False
        if isinstance(step, int):  # an answer was taken back: ask about that image again, then go on
            rows.insert(place, step)
            if place and rows[place - 1] == step:
                del rows[place]
                place -= 1
            continue
        place += 1
    return True


def _present(session: LabelSession, terminal: Terminal, row: int, hint: Suggestion | None, always_open: bool) -> None:
    name = session.ids[row]
    terminal.show(name)
    if always_open:
        terminal.open(name)
    suggested = "" if hint is None else f"   suggested: {hint.label} ({100 * hint.probability:.0f} %)"
    terminal.say(f"[{session.num_labelled + 1}] {terminal.shown(name)}{suggested}")
    terminal.say("  " + "   ".join(_choices(session.classes)))


def _choices(classes: list[str]) -> list[str]:
    if _are_numbers(classes):
        return classes
    return [f"{number} {name}" for number, name in enumerate(classes, start=1)]


def _are_numbers(classes: list[str]) -> bool:
    """Whether a number typed is the name of a class rather than its place."""
    return any(name.isdecimal() for name in classes)


def _ask_one(session: LabelSession, terminal: Terminal, row: int, hint: Suggestion | None) -> str | int:
    """``next``, ``leave``, or the row whose answer was taken back."""
    while True:
        terminal.prompt()
        line = terminal.read()
        if line is None:
            terminal.say("")  # ends the line of the prompt
            return "leave"
        text = line.strip()
        try:
            command, label = _meaning(text, session.classes, hint)
        except DataError as error:
            terminal.say(str(error))
            continue
        if command == "new":
            label = session.add_class(label or "")
            terminal.say(f"new class: {label}; this image is labelled with it")
            command = "label"
        if command == "label":
            session.answer(row, label)
            return "next"
        if command == "unsure":
            session.answer(row, None)
            return "next"
        if command == "skip":
            session.skip(row)
            return "next"
        if command == "quit":
            return "leave"
        if command == "undo":
            undone = session.undo()
            if undone is not None:
                terminal.say(f"taken back: {terminal.shown(session.ids[undone])}")
                return undone
            terminal.say("nothing to take back in this session")
        elif command == "open":
            terminal.open(session.ids[row])
        else:
            terminal.say(HELP)


def _meaning(text: str, classes: list[str], hint: Suggestion | None) -> tuple[str, str | None]:
    """A command and, for ``label`` and ``new``, the class.

    The full name of a class comes before commands, those before beginnings of names.

    Raises:
        DataError: If the text means nothing, or several classes.
    """
    if not text:
        if hint is None:
            raise DataError("nothing is suggested yet: type the number or the beginning of a class")
        return "label", hint.label
    whole = class_named(text, classes)
    if whole is not None:
        return "label", whole
    if text.startswith("+"):
        return "new", checked_classes([*classes, text[1:]])[-1]
    if text.casefold() in _COMMANDS:
        return _COMMANDS[text.casefold()], None
    if text.isdecimal() and not _are_numbers(classes):
        number = int(text)
        if 1 <= number <= len(classes):
            return "label", classes[number - 1]
        raise DataError(f"{text}: expected 1 to {len(classes)}")
    begun = [name for name in classes if name.casefold().startswith(text.casefold())]
    if len(begun) == 1:
        return "label", begun[0]
    if begun:
        raise DataError(f"{text!r} begins {', '.join(begun)}: type more of it")
    raise DataError(f"{text!r} is no class here ({', '.join(classes)}); +{text} makes it one, h shows the commands")
