"""The settings of `run_eval`'s commands other than runs: each field is a flag.

Those of a run are `evaluation.plan.configuration.RunConfiguration`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ahn.config import MOST_TOKENS, AHNConfig
from common.quantities import token_count
from common.settings import (
    Flag,
    Number,
    Seed,
    Settings,
    Several,
    Tokens,
    Whole,
    as_dtype,
    one_or_several,
)
from evaluation.backends.requests import join_options

_Run = Annotated[Path, Flag(argument=True, metavar="RUN")]
Workers = Annotated[Whole | None, Field(ge=1, le=1024)]
_WORKERS = "Processes. Default: as many as are worth it."
_JSON = "Print JSON."


def _known_cell(name: str) -> str:
    if problems := AHNConfig.problems("ahn", name, None, None):
        raise ValueError(problems[0])
    return name


def _names(value: object) -> object:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        return value
    parts = [part.strip() for item in given for part in str(item).split(",")]
    return list(dict.fromkeys(part for part in parts if part))


STEPS = 64
"""Lengths that a range is."""
_MOST_LENGTHS = 2000


def _lengths(value: object) -> object:
    """`1k,2k`, `0..256k`, numbers, or a list of these, as numbers of tokens, ascending."""
    given = value if isinstance(value, list | tuple) else [value]
    found: set[int] = set()
    for item in given:
        for part in item.split(",") if isinstance(item, str) else [item]:
            found.update(_range(part.strip()) if isinstance(part, str) else [_length(part)])
    if not 0 < len(found) <= _MOST_LENGTHS:
        raise ValueError(f"{len(found):,} lengths; give 1 to {_MOST_LENGTHS:,}")
    return sorted(found)


def _range(text: str) -> list[int]:
    """A length, or those of a range `A..B`: its ends and equal steps between; never 0."""
    first, dots, last = text.partition("..")
    if not dots:
        return [_length(text)]
    if last.startswith("."):
        raise ValueError(f"{text!r} is no length (128000, 128k, 1m) and no range (0..256k)")
    least, most = _length(first, 0), _length(last)
    if least >= most:
        raise ValueError(f"{text!r} is empty: a range begins with its smaller end")
    steps = (least + (most - least) * i // STEPS for i in range(STEPS + 1))
    return [length for length in steps if length]


def _length(item: object, least: int = 1) -> int:
    found = token_count(item)
    if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 20:
        found = int(found)
    if type(found) is not int:
        raise ValueError(f"{item!r} is no length (128000, 128k, 1m) and no range (0..256k)")
    if not least <= found <= MOST_TOKENS:
        raise ValueError(f"must be {least} to {MOST_TOKENS:,} tokens, not {found}")
    return found


def _variants(value: object) -> object:
    """Variants joined by commas or repeated, their options with them; no doubles."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        return given
    parts = join_options(part.strip() for item in given for part in item.split(","))
    return list(dict.fromkeys(parts))


class Report(Settings):
    """Settings of `run_eval report`."""

    runs: Annotated[list[Path], Flag(argument=True, metavar="RUN...", own_form=True)]
    """Run folders."""
    output: Annotated[Path, Flag(("--output", "-o"), metavar="FILE")]
    """The HTML file to write."""


class Check(Settings):
    """Settings of `run_eval check`."""

    run: _Run
    """Run folder."""
    repair: bool = False
    """Move bad lines to <task>.jsonl.rejected; the next start of the run answers their examples
    anew. Not while the run is being written."""
    workers: Workers = Field(None, description=_WORKERS)


class Score(Settings):
    """Settings of `run_eval score`."""

    file: Annotated[Path, Flag(argument=True, metavar="FILE")]
    """Predictions, one JSON object per line."""
    benchmark: str
    """Of the predictions: longbench, longbench_v2, lveval, infinitebench, ruler, scbench ..."""
    task: str
    """Task that the predictions are of."""
    protocol: str = "official"
    """official, ahn, or another that the task has."""
    per_example: Annotated[Path | None, Flag(metavar="OUT")] = None
    """Write {"score": ...} per line of FILE, in order."""
    data: str | None = None
    """Folder with the rows: FILE must have a prediction for each of them."""
    workers: Workers = Field(None, description=_WORKERS)
    metric: Annotated[str | None, Flag(metavar="NAME")] = None
    """Another metric than the protocol's, as code_similarity_levenshtein."""


class Export(Settings):
    """Settings of `run_eval export`."""

    run: _Run
    """Run folder."""
    format: str
    """The run's benchmark: longbench, longbench_v2, lveval, infinitebench, ruler, scbench ..."""
    output: Annotated[Path | None, Flag(("--output", "-o"), metavar="DIR")] = None
    """Folder. Default: RUN/export."""
    variants: Annotated[list[str], Flag(("--variant",), metavar="NAME", own_form=True)] = []
    """Only this variant; repeatable."""
    model_name: str | None = None
    """Folder of the predictions. Default: the model's name and the variant."""
    force: bool = False
    """Replace files that are there."""


class Cost(Settings):
    """Settings of `run_eval cost`."""

    model: Annotated[str, Field(min_length=1)]
    """Name in the model zoo, folder, hub id or 'pocket'."""
    length: Tokens = Field(128_000, ge=1, le=MOST_TOKENS)
    """Prompt, in tokens; 128k is 131072."""
    lengths: Annotated[
        list[int], Flag(metavar="LENGTHS", own_form=True), BeforeValidator(_lengths)
    ] = []
    """Instead of one length: several, joined by commas or repeated, also as a range (0..256k, in 64
    equal steps); FLOPs and cache of the variants over them."""
    variants: Annotated[
        list[str], Flag(("--variant",), metavar="NAME", own_form=True), BeforeValidator(_variants)
    ] = []
    """With --lengths: full, window, ahn, no-write, memory-only or compressive, with options of its
    own (ahn:cell=DeltaNet, window:window=1k,name=narrow, compressive:slots=64); repeatable.
    Default: full, window, ahn."""
    plot: Annotated[Path | None, Flag(metavar="FILE")] = None
    """With --lengths: draw both over the length, as .svg or .html; replaces only such a figure."""
    accounting: Annotated[
        Literal["exact", "paper", "paper-abstract", "paper-free-lookup"] | None, Flag()
    ] = None
    """With --lengths: how FLOPs and bytes are counted. Default: exact. Without, all are printed."""
    generate: Tokens = Field(0, ge=0, le=MOST_TOKENS)
    """Generated tokens."""
    window: Annotated[Several, one_or_several(MOST_TOKENS, least=1)] = 32_640
    """Sliding window, in tokens; with --lengths also several, joined by commas or repeated."""
    sinks: Tokens = Field(128, ge=0, le=MOST_TOKENS)
    """Attention sinks, in tokens."""
    cell: Annotated[str, AfterValidator(_known_cell)] = "GatedDeltaNet"
    """Memory cell."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], as_dtype] = "bfloat16"
    """Type of keys and values (bf16 ... are understood)."""
    json_: bool = False
    """Print JSON with exact numbers."""


class PaperTable(Settings):
    """Settings of `run_eval paper table1` and of the other tables of costs."""

    model: str | None = None
    """Only this model: qwen2.5-3b, qwen2.5-7b or qwen2.5-14b; or pocket, the embedded model, at its
    own length, window and sinks."""
    json_: bool = Field(False, description="Print ours as JSON, unrounded, in the table's units.")


class PaperReport(Settings):
    """Settings of `run_eval paper report`."""

    runs: Annotated[list[Path], Flag(argument=True, metavar="RUN...", own_form=True)]
    """Folders in which, or below which, run folders lie."""
    output: Annotated[Path | None, Flag(("--output", "-o"), metavar="FILE")] = None
    """The HTML file to write."""
    json_: bool = Field(False, description="Print what the page says as JSON.")


class TrainingStep(Settings):
    """Settings of `run_eval training-step`."""

    model: Annotated[str, Field(min_length=1)]
    """Name in the model zoo, folder, hub id or 'pocket'."""
    length: Tokens = Field(24_000, ge=1, le=MOST_TOKENS)
    """Tokens of each sequence."""
    batch_size: Whole = Field(128, ge=1, le=2**20)
    """Sequences of a step."""
    window: Tokens = Field(8_064, ge=1, le=MOST_TOKENS)
    """Sliding window, in tokens."""
    sinks: Tokens = Field(128, ge=0, le=MOST_TOKENS)
    """Attention sinks, in tokens."""
    cell: Annotated[str, AfterValidator(_known_cell)] = "GatedDeltaNet"
    """Memory cell."""
    json_: bool = Field(False, description=_JSON)


class Tasks(Settings):
    """Settings of `run_eval tasks`."""

    benchmark: Annotated[str | None, Flag(argument=True, metavar="[BENCHMARK]")] = None
    """longbench, longbench_e, lveval ... or pocket. Default: all."""
    data: str | None = None
    """Folder to look for rows in, instead of the hub's cache."""
    json_: bool = Field(False, description=_JSON)


class PocketData(Settings):
    """Settings of `run_eval pocket-data`."""

    output: Annotated[Path, Flag(("--output", "-o"), metavar="DIR")] = Path("runs/pocket/data")
    """Folder for tokenizer and data."""
    share: Number = Field(1.0, gt=0, le=1)
    """Part of each phase's tokens."""


class Rows(Settings):
    """Settings of `run_eval rows`."""

    benchmark: Annotated[str, Flag(argument=True, metavar="BENCHMARK")]
    """ruler, infinitebench or pocket."""
    tasks: Annotated[
        list[str],
        Flag(("--tasks", "--task"), metavar="NAMES", own_form=True),
        BeforeValidator(_names),
    ] = []
    """Tasks or groups, joined by commas or repeated. Default: pocket, its group `pocket`; else all
    that need no further file."""
    length: Tokens | None = Field(None, gt=0, le=MOST_TOKENS)
    """Of a row, in tokens (also 128k); ruler: with the answer. Default: the benchmark's own."""
    seed: Seed | None = None
    """Seed of the random numbers. Default: ruler, 42 as its authors; else 0."""
    limit: Whole | None = Field(None, gt=0, le=100_000)
    """Rows per task. Default: ruler, 500 as its authors; else what the generator chooses."""
    tokenizer: str | None = None
    """Tokenizer that ruler's lengths are counted with: folder or hub id."""
    essay: Path | None = None
    """Haystack of ruler's essay tasks: the authors' PaulGrahamEssays.json, or a text file."""
    words: Path | None = None
    """The authors' english_words.json, for long rows of ruler's cwe."""
    squad: Path | None = None
    """SQuAD v2's validation questions, for ruler's qa_1. Default: the hub's."""
    hotpotqa: Path | None = None
    """HotpotQA's validation questions, for ruler's qa_2. Default: the hub's."""
    template_tokens: Tokens = Field(0, ge=0, le=MOST_TOKENS)
    """Tokens of ruler's length that are left to the chat template, as a run leaves them (the
    authors' --model_template_token)."""
    output: Annotated[Path, Flag(("--output", "-o"), metavar="DIR")]
    """Folder for <task>.jsonl."""
    force: bool = False
    """Replace files that are there already."""
