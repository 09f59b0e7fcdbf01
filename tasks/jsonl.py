"""Reading JSON lines so that every problem is found and named by file and line.

Lines end at "\\n" only: the texts hold U+2028 and U+0085, at which `str.splitlines` and text
files opened with universal newlines would split too. A file is read line by line and never held
whole.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from common import json as strict
from common.errors import InputError, shown
from common.files import Digest, Stream, lines, open_unpacked, read_piece, size

MOST_ROW_BYTES = 128 * 2**20
"""Longest row: a text of ten million tokens fits."""
MOST_FILE_BYTES = 4 * 2**30
"""All rows of a file, unpacked; the largest published one, InfiniteBench's passkey, has 277 MB."""
MOST_PROBLEMS = 1000
"""Lines that are wrong, after which a file is read no further."""


@dataclass(frozen=True)
class Line:
    """One JSON object and the line it stands on, counted from 1."""

    number: int
    value: dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """A line that is no row, and why."""

    number: int
    problem: str


_PIECE = 1 << 20
_BLANK = re.compile(r"[ \t\n\r]+")

Problem = tuple[int, str]
"""The number of a line, and what is wrong with it."""

_SHOWN = 50
_ALIKE = 3


def located(name: str, problems: list[Problem]) -> InputError:
    """The error that tells the problems of a file, in the order of its lines.

    A file can be wrong in every line: what is wrong with more than three is told of the first, the
    others counted, and so are problems beyond the first 50.
    """
    numbers: dict[str, list[int]] = {}
    for number, text in sorted(problems, key=lambda p: p[0]):
        numbers.setdefault(text, []).append(number)
    alike = {text: found for text, found in numbers.items() if len(found) > _ALIKE}
    told = [
        (number, text)
        for text, found in numbers.items()
        for number in (found[:1] if text in alike else found)
    ]
    ordered = [
        f"{name}:{number}: {text}{_also(alike.get(text, []))}"
        for number, text in sorted(told, key=lambda p: p[0])
    ]
    if len(ordered) > _SHOWN:
        ordered[_SHOWN:] = [f"{name}: {len(ordered) - _SHOWN} further problems"]
    return InputError(*ordered)


def _also(numbers: list[int]) -> str:
    """That the same is wrong with further lines, after the first of `numbers`."""
    if not numbers:
        return ""
    more = f", and of {len(numbers) - 3} more" if len(numbers) > 3 else ""
    return f" (also of lines {numbers[1]}, {numbers[2]}{more})"


def read_objects(path: Path) -> tuple[list[Line], list[Problem]]:
    """The JSON objects of a file, plain or gzip, and what is wrong with each line that is none.

    Of a file in which no line is an object, which is no such file, only the first line is told.
    InputError when the file cannot be read.
    """
    with open_unpacked(path) as file:
        return split(stream_objects(file, shown(path)))


def split(found: Iterable[Line | Bad]) -> tuple[list[Line], list[Problem]]:
    """The rows, and the problems; at most `MOST_PROBLEMS`, the last of which says so."""
    rows: list[Line] = []
    problems: list[Problem] = []
    for line in found:
        if isinstance(line, Line):
            rows.append(line)
        else:
            problems.append((line.number, line.problem))
            if len(problems) >= MOST_PROBLEMS:
                problems.append((line.number, "reading stops here: too many lines are wrong"))
                break
    if not rows and len(problems) > 1:
        number, what = problems[0]
        problems = [(number, f"{what}; no line is a JSON object, as each should be")]
    return rows, problems


def stream_objects(stream: Stream, name: str, digest: Digest | None = None) -> Iterator[Line | Bad]:
    """The JSON objects of an open file, one a line, or what is wrong with a line.

    Empty lines after the last object are no lines; an empty one before it is a problem.

    Args:
        stream: the lines, unpacked.
        name: of the file, for messages.
        digest: is told all of the content.

    Raises:
        InputError: the content is damaged, or longer than is read.
    """
    empty: list[int] = []
    found = lines(stream, name, most_line=MOST_ROW_BYTES, most=MOST_FILE_BYTES, digest=digest)
    for number, raw in enumerate(found, 1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip(b" \t\r"):
            if len(empty) < MOST_PROBLEMS:
                empty.append(number)
            continue
        yield from (Bad(before, "is empty") for before in empty)
        empty.clear()
        yield _parsed(number, raw)


def stream_array(stream: BinaryIO, name: str, digest: Digest | None = None) -> Iterator[Line | Bad]:
    """The objects of an open file that holds one JSON list; numbers are entries, from 1.

    It is decoded entry by entry, and never held whole. What is no JSON ends it: the rest cannot be
    told apart.

    Args:
        stream: the file, unpacked.
        name: of the file, for messages.
        digest: is told all of the content.

    Raises:
        InputError: the content is damaged, longer than is read, or no list.
    """
    text = _Text(stream, name, digest)
    if text.next_sign() != "[":
        raise InputError(f"{name}: is no JSON list")
    text.skip()
    number = 0
    while text.next_sign() != "]":
        if number:
            if text.next_sign() != ",":
                yield Bad(number + 1, "is not JSON: no comma before this entry, and no end")
                break
            text.skip()
        number += 1
        entry = text.entry(number)
        yield entry
        if isinstance(entry, Bad) and not text.whole:
            break
    else:
        text.skip()
        if rest := text.next_sign():
            yield Bad(number + 1, f"{rest!r} stands after the end of the list")
    text.drain()


class _Text:
    """The characters of a file that is read in pieces, with a place in them."""

    def __init__(self, stream: BinaryIO, name: str, digest: Digest | None) -> None:
        self._stream, self._name, self._digest = stream, name, digest
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._total, self._ended = "", 0, 0, False
        self.whole = True
        """Whether the last entry was JSON: the next one stands behind it."""

    def _more(self) -> bool:
        """Read a piece, as long as what is left; False where there is none."""
        if self._ended:
            return False
        self._text, self._at = self._text[self._at :], 0
        wanted = max(_PIECE, len(self._text))
        raw = read_piece(self._stream, self._name, wanted)
        self._total += len(raw)
        if self._total > MOST_FILE_BYTES:
            most = size(MOST_FILE_BYTES)
            raise InputError(f"{self._name}: holds more than the {most} that are read of a file")
        if self._digest is not None:
            self._digest.update(raw)
        self._ended = not raw
        try:
            self._text += self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            raise InputError(f"{self._name}: is not UTF-8 ({error.reason})") from None
        return True

    def next_sign(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            rest = _BLANK.match(self._text, self._at)
            self._at = rest.end() if rest else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Pass over a character."""
        self._at += 1

    def entry(self, number: int) -> Line | Bad:
        """The value that stands here, as a row."""
        self.next_sign()
        while True:
            try:
                value, self._at = strict.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > MOST_ROW_BYTES:
                    self.whole = False
                    most = size(MOST_ROW_BYTES)
                    return Bad(number, f"is not JSON, or longer than a row may be ({most})")
                if self._more():
                    continue
                self.whole = False
                return Bad(number, f"is not JSON: {error.msg}")
            except (ValueError, RecursionError) as error:
                self.whole = False
                return Bad(number, f"is not usable JSON: {error}")
            if isinstance(value, dict):
                return Line(number, value)
            return Bad(number, f"is a JSON {type(value).__name__}, not an object")

    def drain(self) -> None:
        """Read to the end, for the digest."""
        self._at = len(self._text)
        while self._more():
            self._at = len(self._text)


def _parsed(number: int, raw: bytes) -> Line | Bad:
    try:
        value = strict.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Bad(number, f"is not UTF-8 (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return Bad(number, f"is not JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Bad(number, f"is not usable JSON: {error}")
    if isinstance(value, dict):
        return Line(number, value)
    return Bad(number, f"is a JSON {type(value).__name__}, not an object")
