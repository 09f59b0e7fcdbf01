"""Reading JSON lines so that every problem is found and named by file and line.

Lines end at "\\n" only: the texts hold U+2028 and U+0085, at which `str.splitlines` and text
files opened with universal newlines would split too.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.schema import InputError


@dataclass(frozen=True)
class Line:
    """One JSON object and the line it stands on, counted from 1."""

    number: int
    value: dict[str, Any]


def read_bytes(path: Path) -> bytes:
    """A file's bytes, unpacked if it is gzip (told by its content, not by its name)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is not a whole gzip file: {error}") from None


Problem = tuple[int, str]
"""The number of a line, and what is wrong with it."""

_SHOWN = 50
_ALIKE = 3


def located(name: str, problems: list[Problem]) -> InputError:
    """The error that tells the problems of a file, in the order of its lines.

    A file can be wrong in every line: what is wrong with more than three is told of the first, the
    others counted, and so are problems beyond the first 50.
    """
    lines: dict[str, list[int]] = {}
    for number, text in sorted(problems, key=lambda p: p[0]):
        lines.setdefault(text, []).append(number)
    alike = {text: numbers for text, numbers in lines.items() if len(numbers) > _ALIKE}
    told = [
        (number, text)
        for text, numbers in lines.items()
        for number in (numbers[:1] if text in alike else numbers)
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


def parse_objects(content: bytes) -> tuple[list[Line], list[Problem]]:
    """The JSON objects in `content`, one a line, and what is wrong with each line that is none.

    Empty lines after the last object are no lines; an empty one before it is a problem. Of a file
    in which no line is an object, which is no such file, only the first line is told.
    """
    lines: list[Line] = []
    problems: list[Problem] = []
    content = content.removeprefix(b"\xef\xbb\xbf").rstrip(b" \t\r\n")
    for number, raw in enumerate(content.split(b"\n") if content else [], 1):
        try:
            value = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            problems.append((number, f"is not UTF-8 (byte {error.start + 1} of the line)"))
        except json.JSONDecodeError as error:
            what = f"is not JSON: {error.msg} (column {error.colno})" if raw.strip() else "is empty"
            problems.append((number, what))
        except (ValueError, RecursionError) as error:
            problems.append((number, f"is not usable JSON: {error}"))
        else:
            if isinstance(value, dict):
                lines.append(Line(number, value))
            else:
                problems.append((number, f"is a JSON {type(value).__name__}, not an object"))
    if not lines and len(problems) > 1:
        number, what = problems[0]
        problems = [(number, f"{what}; no line is a JSON object, as each should be")]
    return lines, problems
