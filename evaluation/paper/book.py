"""Figure 3 c and d: log perplexity and peak memory by token index over one book."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, StrictBool

from ahn.cost import zoo
from common.errors import InputError
from common.settings import Flag, Settings, Tokens, Whole, settings
from evaluation.paper.experiments import POCKET, experiments
from evaluation.paper.options import RUNS, by_name
from evaluation.paper.study import folder_of, model_of, models_of, weights_of
from evaluation.paper.variants import variants
from evaluation.plan.configuration import MOST_TOKENS, DTypeName, Name

if TYPE_CHECKING:
    from evaluation.perplexity.configuration import PerplexityConfiguration

NAME = "figure3"
PART = "book"
BOOK = (
    "the first book of PG19's test set, 57K tokens: "
    "https://storage.googleapis.com/deepmind-gutenberg/test/10146.txt"
)
_WINDOW_ALONE = "Sinks + SWA"
_BLOCK, _POCKET_BLOCK = 128, 40


class PaperBook(Settings):
    """Settings of `run_eval paper figure3`."""

    groups: ClassVar[Mapping[str, str]] = {
        "model": "What is run",
        "base": "Weights",
        "dtype": "Machine",
        "output": "Output",
    }

    model: Name | None = None
    """qwen2.5-3b, or pocket, the embedded model on a generated text of 4,000 tokens."""
    data: Name | None = None
    """The book: a text file, also packed by gzip. The paper's: the first of PG19's test set, 57K
    tokens, https://storage.googleapis.com/deepmind-gutenberg/test/10146.txt. pocket: generated."""
    max_tokens: Tokens | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """First tokens of the text that are read (also 32k). Default: all; pocket: 4,000."""
    dry_run: StrictBool = False
    """Print the plan; load no weights, write nothing."""
    base: Name | None = None
    """Weights of the base model: folder or hub id. Default: the hub's."""
    tokenizer: Name | None = None
    """Tokenizer: folder or hub id. Default: the model's own."""
    ahn: Annotated[
        dict[str, str], Flag(metavar="NAME=PATH", own_form=True), BeforeValidator(by_name)
    ] = Field(default_factory=dict)
    """AHN weights gdn: folder or hub id. Default: the hub's."""
    dtype: DTypeName = "auto"
    """Weights' type (bf16 ... are understood). Default: auto, bfloat16 on cuda, float32
    elsewhere; pocket: float32."""
    device: Name = "auto"
    """cpu, cuda, cuda:1, or auto (default): cuda where there is one, else cpu; pocket: cpu."""
    threads: Whole | None = Field(default=None, gt=0, le=1024)
    """Threads of torch on the CPU. Default: 1 for a model of under ten million parameters,
    torch's own choice else."""
    peak: StrictBool = True
    """Measure the peak of memory."""
    output: Annotated[Name, Flag(("--output", "-o"), metavar="DIR")] = RUNS
    """Folder of all of the paper's runs: this is MODEL/book below it, and continued if it is
    there."""
    overwrite: StrictBool = False
    """Delete the records of an earlier run first."""
    report: StrictBool = True
    """Write <output>/<model>/book/report.html at the end."""
    json_: bool = Field(False, description="Print the results, or the plan, as JSON.")


def book_configuration(asked: PaperBook) -> PerplexityConfiguration:
    """What `run_eval perplexity` is asked for the figure.

    The paper's text is longer than the model's positions, which the figure is about: that is
    accepted here. Beside the pocket model's two variants stands the window alone, to tell what the
    memory adds.

    Raises:
        InputError: no model of the figure, or no book.
    """
    from evaluation.perplexity.configuration import PerplexityConfiguration

    if asked.model is None:
        raise InputError(f"--model: needed by {NAME}; one of {', '.join(models_of(NAME))}")
    model, made = model_of(NAME, asked.model), experiments()[NAME]
    on_pocket = model == POCKET
    if asked.data is None and not on_pocket:
        raise InputError(f"--data: needed: a file with {BOOK}")
    sweep = made.sweep_of(model)
    methods = [*made.methods, *([_WINDOW_ALONE] if on_pocket else [])]
    chosen = variants(methods, sweep.windows, sweep.sinks)
    needed = list(dict.fromkeys(one.weights for one in chosen if one.weights))
    for name in asked.ahn:
        if name and name not in needed:
            raise InputError(f"--ahn: {NAME} reads {', '.join(needed)}, as gdn=PATH; not {name!r}")
    given: dict[str, Any] = {
        "model": asked.base or (POCKET if on_pocket else zoo.find(model).hub_id),
        "ahn": weights_of(model, needed, {name or needed[0]: p for name, p in asked.ahn.items()}),
        "variants": [one.request for one in chosen],
        "data": asked.data or POCKET,
        "block_tokens": _POCKET_BLOCK if on_pocket else _BLOCK,
        "allow_overlong": not on_pocket,
        "output": str(folder(asked)),
        **({"dtype": "float32", "device": "cpu"} if on_pocket else {}),
    }
    for key in ("tokenizer", "max_tokens", "threads", "peak", "overwrite", "report", "json_"):
        given[key] = getattr(asked, key)
    given |= {k: getattr(asked, k) for k in ("dtype", "device") if k in asked.model_fields_set}
    return settings(PerplexityConfiguration, {k: v for k, v in given.items() if v is not None})


def folder(asked: PaperBook) -> Path:
    """Where the records are."""
    return folder_of(Path(asked.output), model_of(NAME, asked.model or ""), PART, "")


def run_book(asked: PaperBook) -> int:
    """Plan and run the figure; returns the exit code.

    Raises:
        InputError: everything that is wrong or missing; nothing is written then.
    """
    from evaluation.commands.perplexity import perplexity

    return perplexity(book_configuration(asked), asked.dry_run)
