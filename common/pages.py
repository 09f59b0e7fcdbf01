"""Pages of HTML that load nothing: their policy allows their own style, by its hash, alone."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup

from common.errors import InputError

# HTML has no place for control characters, which a model may well generate: a NUL makes the
# file binary for every tool. They are shown as Unicode's pictures of them.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"}
_CONTROL_PICTURES[0x7F] = 0x2421

PAGE_BEGINS = b"<!doctype html>"
_PAGE_TITLE = b"<title>AHN-Bench: "
_HEAD_BYTES = 4096
PAGE_IS = "report of ahn-bench"
"""What a page is called in messages."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src {hash}; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>AHN-Bench: {title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def policy_hash(text: str) -> str:
    """The source expression by which a content security policy allows exactly `text`."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def page(title: str, style: str, body: Markup) -> bytes:
    """A page without scripts.

    Args:
        title: behind the name of this project.
        style: the whole style sheet: our own text, never a model's.
        body: in which everything is escaped that is not ours.
    """
    made = Markup(_PAGE).format(
        hash=Markup(policy_hash(style)), title=title, style=Markup(style), body=body
    )
    return printable(made)


def printable(text: str) -> bytes:
    """The bytes of a page: control characters as Unicode's pictures of them."""
    return text.translate(_CONTROL_PICTURES).encode("utf-8", "replace")


def file_head(path: Path) -> bytes:
    """A file's first bytes, by which its kind is known; none where it cannot be read."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def is_page(path: Path) -> bool:
    """Whether a file is a page that this project wrote."""
    head = file_head(path)
    return head.startswith(PAGE_BEGINS) and _PAGE_TITLE in head


def check_replaces(output: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """`InputError` where something is there that is not ours, also a link to nothing.

    Args:
        output: the file to be written.
        is_ours: whether a file is of the kind that may be replaced.
        what: that kind, as a message says it.
    """
    if not os.path.lexists(output) or is_ours(output):
        return
    if not output.exists():
        raise InputError(f"{output}: is a link to a file that is not there; name another file")
    raise InputError(
        f"{output}: is there already and is no {what}, so it is not replaced; name "
        "another file, or delete this one"
    )
