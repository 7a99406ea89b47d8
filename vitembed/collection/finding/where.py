"""``--where``: a small language for which images may be found, translated to SQL with every value bound.

    expression := term (("and" | "or") term)*          "and" binds tighter; "not" and brackets as usual
    term       := "not" term | "(" expression ")" | comparison | pattern
    comparison := field ("=" | "!=" | "<" | "<=" | ">" | ">=") value
                | text-field ("~" | "!~") pattern       ~ is a glob: * ? [abc]
                | field "in" "(" value, value, ... ")"
    pattern    := a word with * or ?, which is matched against the path

Only the names in ``FIELDS`` and the operators above ever become SQL text; what the user typed is bound to it.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from vitembed.collection.finding.where_values import TimeSpan, parse_number, parse_time
from vitembed.collection.finding.where_values import parse_text as text_bytes
from vitembed.errors import DataError, printable

TEXT, NUMBER, TIME = "text", "number", "time"
FIELDS = {
    "path": TEXT,
    "name": TEXT,
    "folder": TEXT,
    "label": TEXT,
    "size": NUMBER,
    "width": NUMBER,
    "height": NUMBER,
    "pixels": NUMBER,
    "mtime": TIME,
}
"""What can be asked for, and what kind of value it is compared with."""

MAX_TOKENS = 1_000
MAX_DEPTH = 50
_SHOWN = 60
"""Characters before and behind the place of a mistake."""
_COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")
_TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<mark>[(),]) | (?P<operator>!=|<=|>=|==|!~|[=<>~])
      | (?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*") | (?P<word>[^\s(),=<>!~'"]+)""",
    re.VERBOSE,
)
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Clause:
    """A piece of SQL and the values for its question marks."""

    sql: str
    parameters: tuple[int | bytes, ...] = ()


Columns = Mapping[str, Clause]
"""Each field in SQL, and ``absolute``: the whole path. Constants of the program (``facts.py``)."""


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    """Place in the expression, from 0."""

    def keyword(self) -> str:
        return self.text.lower() if self.kind == "word" else ""


@dataclass(frozen=True)
class Where:
    """A parsed expression."""

    text: str
    fields: tuple[str, ...]
    """Those that it asks for, in order of appearance."""
    _build: Callable[[Columns], Clause]

    def clause(self, columns: Columns) -> Clause:
        """The expression as SQL over these columns."""
        return self._build(columns)


def parse_where(text: str, *, now: float | None = None) -> Where:
    """Read an expression such as ``name ~ '*.jpg' and mtime >= 2024-05 and not width < 640``.

    Args:
        text: The expression.
        now: Seconds since the epoch from which ages such as ``-7d`` count back.

    Raises:
        DataError: If it is none; the message shows the place.
    """
    return _Parser(text, time.time() if now is None else now).parse()


class _Parser:
    def __init__(self, text: str, now: float) -> None:
        self._text = text
        self._now = now
        self._fields: dict[str, None] = {}
        self._tokens = self._split()
        self._place = 0

    def parse(self) -> Where:
        build = self._either(0)
        if self._next.kind != "end":
            self._fail(self._next, "expected 'and', 'or' or the end")
        return Where(self._text, tuple(self._fields), build)

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self) -> _Token:
        token = self._next
        self._place += token.kind != "end"
        return token

    def _fail(self, token: _Token, problem: str) -> None:
        got = f", got {printable(token.text)!r}" if token.text else ""
        start, end = max(0, token.start - _SHOWN), token.start + _SHOWN
        before = "..." * (start > 0) + printable(self._text[start : token.start])
        after = printable(self._text[token.start : end]) + "..." * (end < len(self._text))
        shown = f"{before}[here]{after}"
        raise DataError(f"--where, at character {token.start + 1}: {problem}{got}, in: {shown}")

    def _split(self) -> list[_Token]:
        tokens, place = list[_Token](), 0
        while place < len(self._text):
            match = _TOKEN.match(self._text, place)
            if match is None:
                token = _Token("wrong", self._text[place], place)
                self._fail(token, "a quote is not closed" if token.text in "'\"" else "no such operator")
                raise AssertionError
            kind = str(match.lastgroup)
            if kind != "space":
                tokens.append(_Token(kind, match[0], place))
            place = match.end()
        end = _Token("end", "", len(self._text))
        if not tokens:
            self._fail(end, f"nothing in it: expected a comparison of {', '.join(FIELDS)}")
        if len(tokens) > MAX_TOKENS:
            self._fail(tokens[MAX_TOKENS], f"too long: more than {MAX_TOKENS:,} words")
        return [*tokens, end]

    def _either(self, depth: int) -> Callable[[Columns], Clause]:
        parts = [self._both(depth)]
        while self._next.keyword() == "or":
            self._take()
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else lambda columns: _joined(" OR ", [part(columns) for part in parts])

    def _both(self, depth: int) -> Callable[[Columns], Clause]:
        parts = [self._term(depth)]
        while self._next.keyword() == "and":
            self._take()
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else lambda columns: _joined(" AND ", [part(columns) for part in parts])

    def _term(self, depth: int) -> Callable[[Columns], Clause]:
        token = self._take()
        if depth > MAX_DEPTH:
            self._fail(token, f"nested more than {MAX_DEPTH} deep")
        if token.keyword() == "not":
            inner = self._term(depth + 1)
            return lambda columns: Clause(f"(NOT {inner(columns).sql})", inner(columns).parameters)
        if token.text == "(":
            inner = self._either(depth + 1)
            if self._next.text != ")":
                self._fail(self._next, f"expected ')' for the '(' at character {token.start + 1}")
            self._take()
            return inner
        if token.kind not in ("word", "quoted"):
            self._fail(token, f"expected one of {', '.join(FIELDS)}")
        compares = self._next.kind == "operator" or self._next.keyword() == "in"
        if not compares and re.search(r"[*?]", token.text):
            return self._glob("path", token, positive=True)
        if token.keyword() not in FIELDS:
            near = difflib.get_close_matches(token.text.lower(), FIELDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self._fail(token, f"no such field (there are {', '.join(FIELDS)}{hint})")
        if not compares:
            self._fail(self._next, f"expected a comparison after {token.text!r}, such as = or >")
        return self._comparison(token.keyword())

    def _comparison(self, field: str) -> Callable[[Columns], Clause]:
        self._fields[field] = None
        operator = self._take()
        if operator.keyword() == "in":
            return self._one_of(field)
        if operator.text in ("~", "!~"):
            if FIELDS[field] != TEXT:
                self._fail(operator, f"{field} is a {FIELDS[field]}, {operator.text} takes text")
            return self._glob(field, self._value(), positive=operator.text == "~")
        sign = "=" if operator.text == "==" else operator.text
        if sign not in _COMPARISONS:
            self._fail(operator, f"expected one of {', '.join(_COMPARISONS)}")
        if FIELDS[field] == TEXT and sign not in ("=", "!="):
            self._fail(operator, f"{field} is text, which takes =, !=, ~, !~ and in")
        return self._compared(field, sign, self._value())

    def _value(self) -> _Token:
        token = self._take()
        if token.kind not in ("word", "quoted"):
            self._fail(token, "expected a value")
        return token

    def _one_of(self, field: str) -> Callable[[Columns], Clause]:
        if self._next.text != "(":
            self._fail(self._next, "expected '(' after 'in'")
        self._take()
        parts = [self._compared(field, "=", self._value())]
        while self._next.text == ",":
            self._take()
            parts.append(self._compared(field, "=", self._value()))
        if self._next.text != ")":
            self._fail(self._next, "expected ',' or ')'")
        self._take()
        return lambda columns: _joined(" OR ", [part(columns) for part in parts])

    def _compared(self, field: str, sign: str, token: _Token) -> Callable[[Columns], Clause]:
        text = _unquoted(token)
        if FIELDS[field] == TIME:
            span = self._read(token, lambda: parse_time(text, self._now))
            if span.is_age and sign in ("=", "!="):
                self._fail(token, f"an age goes with > (newer) and < (older), as in {field} > -7d")
            return lambda columns: _in_time(columns[field], sign, span)
        value: int | bytes
        if FIELDS[field] == NUMBER:
            value = self._read(token, lambda: parse_number(text))
        else:
            value = text_bytes(text)
        if field != "path":
            return lambda columns: _compare(columns[field], sign, value)
        # As it is shown (absolute), or as it lies below the collection's root.
        whole, joint = ("absolute", " OR ") if sign == "=" else ("absolute", " AND ")
        return lambda columns: _joined(joint, [_compare(columns[name], sign, value) for name in ("path", whole)])

    def _glob(self, field: str, token: _Token, *, positive: bool) -> Callable[[Columns], Clause]:
        self._fields[field] = None
        pattern = text_bytes(_unquoted(token))
        names = ("path", "absolute") if field == "path" else (field,)

        def build(columns: Columns) -> Clause:
            each = [_applied(columns[name], "GLOB CAST(? AS TEXT)", pattern) for name in names]
            found = _joined(" OR ", each)
            return found if positive else Clause(f"(NOT {found.sql})", found.parameters)

        return build

    def _read(self, token: _Token, reader: Callable[[], _Value]) -> _Value:
        try:
            return reader()
        except ValueError as error:
            self._fail(token, str(error))
            raise


def _unquoted(token: _Token) -> str:
    if token.kind != "quoted":
        return token.text
    quote = token.text[0]
    return token.text[1:-1].replace(2 * quote, quote)


def _joined(joint: str, parts: list[Clause]) -> Clause:
    sql = joint.join(part.sql for part in parts)
    return Clause(f"({sql})", tuple(value for part in parts for value in part.parameters))


def _applied(column: Clause, test: str, *values: int | bytes) -> Clause:
    return Clause(f"({column.sql} {test})", (*column.parameters, *values))


def _compare(column: Clause, sign: str, value: int | bytes) -> Clause:
    return _applied(column, f"{sign} {'CAST(? AS TEXT)' if isinstance(value, bytes) else '?'}", value)


def _in_time(column: Clause, sign: str, span: TimeSpan) -> Clause:
    """Compare as people read it: = is within the span, > after its end, < before its start; an age is a moment."""
    if sign == "=":
        return _joined(" AND ", [_applied(column, ">= ?", span.start), _applied(column, "< ?", span.end)])
    if sign == "!=":
        return _joined(" OR ", [_applied(column, "< ?", span.start), _applied(column, ">= ?", span.end)])
    border, moment = {
        "<": ("<", span.start), "<=": ("<", span.end), ">": (">=", span.end), ">=": (">=", span.start),
    }[sign]  # fmt: skip
    return _applied(column, f"{border} ?", moment)
