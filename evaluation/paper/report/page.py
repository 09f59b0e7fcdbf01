"""The page of `run_eval paper report`, and the same as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError, Problems
from common.probes import NAME as PROBE_FILE
from common.writing import write_whole
from evaluation.paper.report.blocks import Section, plain
from evaluation.paper.report.books import (
    Book,
    Probed,
    book_of,
    book_standings,
    probe_standings,
    probed_of,
)
from evaluation.paper.report.claims import (
    FAILS,
    HOLDS,
    OPEN,
    UNTRIED,
    Standing,
    cost_standings,
    standings,
)
from evaluation.paper.report.figures import figure_3, figure_5, windows_section
from evaluation.paper.report.measured import Measurements
from evaluation.paper.report.sections import cost_section, score_section
from evaluation.paper.report.tried import POCKET, Tried, all_tried
from evaluation.paper.scores import printed_scores
from reports.gradients import STYLE, read_probe
from reports.page import MOST_BYTES, page_bytes
from reports.perplexity import INFO_FILE, read_perplexity
from reports.run_folders import Run, read_run
from reports.targets import check_page_target

_NAMES = ("run.json", INFO_FILE, PROBE_FILE)
_CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "open", UNTRIED: "untried"}


@dataclass(frozen=True)
class RunLine:
    """A variant of a run, and what became of it."""

    name: str
    model: str
    method: str
    span: str
    use: str


@dataclass(frozen=True)
class PaperReport:
    """Everything that the page says.

    Attributes:
        answer: the verdict in a sentence or two.
        notices: what must be known of the folders.
        claims: that were tried.
        untried: claims that were not, in words.
        sections: tables and figures.
        runs: every variant.
    """

    answer: str
    notices: tuple[str, ...]
    claims: tuple[Standing, ...]
    untried: tuple[str, ...]
    sections: tuple[Section, ...]
    runs: tuple[RunLine, ...]


@dataclass(frozen=True)
class Folders:
    """What lies at and below the paths that were given."""

    runs: tuple[Run, ...]
    books: tuple[Book, ...]
    probes: tuple[Probed, ...]
    notices: tuple[str, ...]


def write_paper_report(paths: Sequence[Path], output: Path) -> Path:
    """Write the page on what lies at and below `paths`; return where it is.

    Raises:
        InputError: a path has nothing that a run left, a folder is damaged, or `output` is no place
            for a page.
    """
    check_page_target(output)
    report = paper_report(paths)
    content = page_bytes(
        "paper.html.j2",
        ("report.css", "paper.css"),
        STYLE,
        answer=report.answer,
        notices=report.notices,
        claims=report.claims,
        untried=report.untried,
        sections=report.sections,
        runs=report.runs,
        classes=_CLASSES,
        source=str(printed_scores().source),
    )
    if len(content) >= MOST_BYTES:
        raise InputError(
            f"the page would take {len(content):,} bytes, over the limit of {MOST_BYTES:,}: report "
            "fewer runs on one page"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror})") from error
    write_whole(output, content)
    return output


def paper_report_json(paths: Sequence[Path]) -> dict[str, Any]:
    """The page's content as plain data; see `write_paper_report`."""
    made: dict[str, Any] = plain(paper_report(paths))
    return made


def paper_report(paths: Sequence[Path]) -> PaperReport:
    """What the page says; see `write_paper_report`."""
    folders = read_folders(paths)
    found = Measurements(all_tried(folders.runs))
    made = standings(found)
    tokens = [*book_standings(folders.books), *probe_standings(folders.probes)]
    claims = [*(one for one in made if one.verdict != UNTRIED), *tokens, *cost_standings()]
    sections = (
        cost_section("table1"),
        score_section("table2", found),
        score_section("table3", found),
        score_section("table4", found),
        score_section("table5", found),
        score_section("table6", found),
        cost_section("table7"),
        score_section("table8", found),
        cost_section("table9"),
        figure_3(folders.books),
        windows_section("figure4", found),
        figure_5(folders.probes),
        windows_section("figure7", found),
    )
    return PaperReport(
        answer=_answer([*made, *tokens]),
        notices=(*folders.notices, *_apart(found.tried)),
        claims=tuple(claims),
        untried=tuple(_untried(made)),
        sections=sections,
        runs=(
            *(_line(tried, found) for tried in found.tried),
            *(_line_of_book(book) for book in folders.books),
            *(_line_of_probe(probed) for probed in folders.probes),
        ),
    )


def read_folders(paths: Sequence[Path]) -> Folders:
    """Every run folder, folder of perplexity and probe at and below the paths, each once.

    Raises:
        InputError: as of `write_paper_report`.
    """
    if not paths:
        raise InputError("no folder given: a report needs at least one")
    problems, notices = Problems(), []
    runs: dict[Path, Run] = {}
    books: dict[Path, Book] = {}
    probes: dict[Path, Probed] = {}
    for path in paths:
        if not path.exists():
            problems.add(f"{path}: no such folder")
            continue
        found = list(_found(path))
        if not found:
            names = " or ".join(_NAMES)
            problems.add(f"{path}: no run folder here or below (nothing has a {names})")
        for file in found:
            place = file.resolve()
            with problems.collecting():
                if file.name == PROBE_FILE:
                    probes[place] = probed_of(file, read_probe(file))
                elif file.name == INFO_FILE:
                    books[place] = book_of(read_perplexity(file.parent))
                elif place not in runs and _has_records(file.parent):
                    runs[place] = read_run(file.parent)
                elif place not in runs:
                    notices.append(f"{file.parent}: left out, the run has no records yet.")
    problems.check()
    notices += [warning for run in runs.values() for warning in run.warnings]
    notices += [warning for book in books.values() for warning in book.run.warnings]
    return Folders(
        tuple(runs.values()), tuple(books.values()), tuple(probes.values()), tuple(notices)
    )


def _has_records(folder: Path) -> bool:
    return any(file.stat().st_size for file in folder.glob("*/*.jsonl"))


def _found(path: Path) -> Iterator[Path]:
    """Descriptions at and below a path, by name; what is below a described folder is its own."""
    if path.is_file():
        if path.name in _NAMES:
            yield path
        return
    here = [path / name for name in _NAMES if (path / name).is_file()]
    if here:
        yield from here
        return
    try:
        below = sorted(f for f in path.iterdir() if f.is_dir() and not f.is_symlink())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    for folder in below:
        yield from _found(folder)


def _answer(made: Sequence[Standing]) -> str:
    sentences = []
    own = [one for one in made if one.model != POCKET and one.verdict != UNTRIED]
    if own:
        models = ", ".join(dict.fromkeys(one.model for one in own))
        sentences.append(f"On {models}: {_counted(own)}.")
    else:
        sentences.append(
            "None of the paper's scores was run here on its own models; its costs are computed."
        )
    pocket = [one for one in made if one.model == POCKET and one.verdict != UNTRIED]
    if pocket:
        sentences.append(f"In miniature, on the pocket model: {_counted(pocket)}.")
    return " ".join(sentences)


def _counted(made: Sequence[Standing]) -> str:
    words = (
        f"{verdict} {sum(one.verdict == verdict for one in made)}"
        for verdict in (HOLDS, FAILS, OPEN)
    )
    tried = "1 claim" if len(made) == 1 else f"{len(made)} claims"
    return f"{tried} tried; {', '.join(words)}"


def _untried(made: Sequence[Standing]) -> Iterator[str]:
    untried = [one for one in made if one.verdict == UNTRIED]
    for model in dict.fromkeys(one.model for one in untried):
        of_model = [one for one in untried if one.model == model]
        tables = dict.fromkeys(
            one.where.replace("table", "Table ").replace("figure", "Figure ") for one in of_model
        )
        yield f"{len(of_model)} claims on {model} ({', '.join(tables)})"


def _apart(tried: Sequence[Tried]) -> Iterator[str]:
    others = dict.fromkeys(
        one.column.model or one.column.run.path.name for one in tried if one.model is None
    )
    if others:
        yield (
            f"Not of the paper's models, and in no table: {', '.join(others)}. The runs are listed "
            "at the end; run_eval report makes a page of them."
        )


def _line(tried: Tried, found: Measurements) -> RunLine:
    used = "yes" if tried.name in found.used else "no: fits no cell, or another run fits better"
    span = "" if tried.window is None else f"{tried.window:,}, {tried.sinks or 0:,}"
    return RunLine(
        name=tried.name,
        model=tried.model or tried.column.model or "unknown",
        method=tried.method or tried.column.kind,
        span=span,
        use=f"no: {tried.unfit}" if tried.unfit else used,
    )


def _line_of_book(book: Book) -> RunLine:
    known = book.model in ("Qwen2.5-3B-Instruct", POCKET)
    return RunLine(
        name=book.name,
        model=book.model or book.run.info.model,
        method="perplexity of " + ", ".join(book.run.info.variants),
        span="",
        use="yes" if known else "no: Figure 3 is of Qwen2.5-3B-Instruct",
    )


def _line_of_probe(probed: Probed) -> RunLine:
    probe = probed.probe
    return RunLine(
        name=probed.name,
        model=probed.model,
        method=f"gradients, {probe.variant}",
        span=f"{probe.window:,}, {probe.sinks:,}",
        use="yes",
    )
