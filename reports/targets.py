"""What a file that a user names may replace: a page replaces a page, and never a run's file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from common.errors import InputError, shown
from common.pages import PAGE_BEGINS, PAGE_IS, check_replaces, file_head, is_page
from reports.run_folders import read_run_info

_COST_TITLE = b"<title>AHN-Bench cost: "
_COST_PICTURE = b'aria-label="Cost over length'


def check_page_target(output: Path) -> None:
    """`InputError` where writing a page to `output` would destroy something.

    That is: a place where a run keeps a file, through whatever link, whether it is there already
    or not; and any file that is no page of ours, under whatever name.
    """
    _check(output, is_page, PAGE_IS, "HTML file")


def check_cost_target(output: Path) -> None:
    """As `check_page_target`, of a figure of costs (`reports.cost_curves`), SVG or HTML.

    Raises:
        InputError: writing it would destroy something else.
    """
    _check(output, is_cost_figure, "figure of run_eval cost", "SVG or HTML file")


def _check(output: Path, is_ours: Callable[[Path], bool], what: str, file: str) -> None:
    try:
        is_folder = output.is_dir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown(output)}: cannot be written ({reason})") from error
    if is_folder:
        raise InputError(f"{output}: is a folder; give the name of the {file} to write")
    check_no_run_file(output)
    check_replaces(output, is_ours, what)


def is_cost_figure(path: Path) -> bool:
    """Whether a file is a figure of costs that `reports.cost_curves` made."""
    head = file_head(path)
    return (head.startswith(b"<svg ") and _COST_PICTURE in head) or (
        head.startswith(PAGE_BEGINS) and _COST_TITLE in head
    )


def check_no_run_file(output: Path) -> None:
    """`InputError` where `output` is, or would become, a file of a run."""
    for place in (output.absolute(), Path(os.path.realpath(output))):
        around = _run_around(place)
        if around is not None:
            raise InputError(
                f"{output}: is where the run {around} keeps its own files; name another file"
            )


def _run_around(path: Path) -> Path | None:
    """The run folder in which a run would keep a file of this name, in any case; else None."""
    name = path.name.lower()
    if name in ("run.json", ".lock") or (name.startswith(".run.json.") and name.endswith(".tmp")):
        return path.parent if (path.parent / "run.json").is_file() else None
    if name.endswith((".jsonl", ".jsonl.rejected")):
        above = path.parent.parent
        return above if (above / "run.json").is_file() else None
    return path.parent if name in _variants(path.parent) else None


def _variants(folder: Path) -> set[str]:
    """Names, in lower case, of the folders that the run in `folder` keeps; none where none is."""
    try:
        return {name.lower() for name in read_run_info(folder).models}
    except InputError:
        return set()
