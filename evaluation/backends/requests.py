"""What `--variant KIND[:key=value,...]` asks for, taken apart. Imports nothing that takes long."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from common.errors import Problems
from common.suggestions import did_you_mean

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
FIRST_WORD = {"kvpress": "press"}
"""By kind, the option that a first word without `=` stands for: `kvpress:snapkv`."""


@dataclass(frozen=True)
class VariantRequest:
    """One variant, as it was asked for.

    Attributes:
        kind: the kind of back-end, `window`.
        options: its own settings, by key, as text.
        name: in records, and of its folder.
    """

    kind: str
    options: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    def __str__(self) -> str:
        first = FIRST_WORD.get(self.kind)
        items = sorted(self.options.items(), key=lambda item: item[0] != first)
        options = ",".join(v if key == first else f"{key}={v}" for key, v in items)
        return without_secrets(f"{self.kind}:{options}" if options else self.kind)

    def take(self, **readers: Callable[[str], Any]) -> dict[str, Any]:
        """The options that were given, as values.

        Args:
            **readers: by key, what makes a value of its text; it raises ValueError where it cannot.

        Raises:
            InputError: all options that are unknown or cannot be read.
        """
        values, problems = {}, Problems()
        known = ", ".join(readers) or "none"
        for key, text in self.options.items():
            if key not in readers:
                hint = did_you_mean(key, readers)
                problems.add(
                    f"--variant {self}: {self.kind} has no option {key!r} (known: {known}){hint}"
                )
                continue
            try:
                values[key] = readers[key](text)
            except ValueError as error:
                problems.add(f"--variant {self}: {key}: {error}")
        problems.check()
        return values


def without_secrets(text: str) -> str:
    """A variant's text for messages: what may be a password or a key is `***`."""
    text = re.sub(r"//[^/,]*@", "//***@", text)
    names = "api[_-]?key|key|(?:auth|api|access)[_-]?token|token|secret|password|authorization"
    return re.sub(rf"(?i)((?:^|[:,])\s*(?:{names})\s*=)[^,]+", r"\1***", text)


def server_url(text: str) -> str:
    """The URL of a server's API without a slash at its end; `/v1` is added to a host alone.

    Raises:
        ValueError: it is none, or holds what belongs elsewhere; nothing of it is repeated.
    """
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("a URL has no spaces and nothing beyond ASCII")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("this is no URL: its host or port cannot be read") from None
    if "@" in parts.netloc:
        raise ValueError(
            "holds a user name or password, which would be written into the run folder; keys are "
            "read from the environment (AHN_BENCH_API_KEY)"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("must be http://HOST[:PORT][/PATH], or https://")
    if "?" in text or "#" in text:
        raise ValueError(
            "must end with the path, without '?' and '#'; keys are read from the environment "
            "(AHN_BENCH_API_KEY)"
        )
    path = parts.path.rstrip("/")
    for call in ("/completions", "/chat"):
        path = path.removesuffix(call)
    return f"{parts.scheme}://{parts.netloc}{path.rstrip('/') or '/v1'}"


def tokens(text: str) -> int:
    """A number of tokens, also `64k` (x 1,024), for `VariantRequest.take`."""
    match = re.fullmatch(r"(-?[0-9]{1,12})(k|m|)", text.lower())
    if match is None:
        raise ValueError(f"{text!r} is not a number of tokens")
    return int(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2]]


def whole(text: str) -> int:
    """A whole number, for `VariantRequest.take`."""
    if re.fullmatch(r"-?[0-9]{1,12}", text) is None:
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def join_options(items: Iterable[str]) -> list[str]:
    """Items that were cut at every comma, with each variant's options put together again.

    `window:window=64`, `sinks=4`, `full` are `window:window=64,sinks=4` and `full`.
    """
    found: list[str] = []
    for item in items:
        is_option = "=" in item.partition(":")[0]
        if is_option and found and ":" in found[-1]:
            found[-1] += f",{item}"
        else:
            found.append(item)
    return found


def parse_request(text: str) -> VariantRequest:
    """`KIND[:key=value,...]`, where the key `name` chooses the name in records.

    Without one the name is the text with `-` for `:` and `,`: `window-window64-sinks4`. A kind of
    `FIRST_WORD` may begin with a word alone: `kvpress:snapkv,keep=512`.

    Raises:
        InputError: it is no such text, or the name cannot be that of a folder.
    """
    kind, _, rest = text.partition(":")
    written, problems = without_secrets(text), Problems()
    options: dict[str, str] = {}
    words = [kind]
    for number, part in enumerate(rest.split(",") if rest else []):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if number == 0 and not equals and key and kind in FIRST_WORD:
            key, equals, value = FIRST_WORD[kind], "=", key
        if key != "name":
            words.append(value if key == FIRST_WORD.get(kind) else f"{key}{value}")
        if not (key and equals and value):
            problems.add(f"--variant {written}: {without_secrets(part)!r} is not key=value")
        elif key in options:
            problems.add(f"--variant {written}: {key} is given twice")
        options[key] = value
    if text.endswith(":"):
        problems.add(f"--variant {written}: no options after the colon")
    name = options.pop("name", re.sub(r"[^A-Za-z0-9._+-]", "_", "-".join(words)))
    if not problems and not _NAME.fullmatch(name) and (options or ":" in text):
        problems.add(f"--variant {written}: name: {name!r} (letters, digits, '.', '_', '+', '-')")
    problems.check()
    return VariantRequest(kind, options, name)
