"""The settings of a table or figure of the paper: what of a run is left open by the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictBool

from common.settings import Flag, Settings, Whole, as_dtype
from evaluation.plan.configuration import DTypeName, Name
from tasks.sources import MOST_ROWS

RUNS = "runs/paper"
"""Folder of the paper's runs, where none is named."""


def by_name(value: object) -> object:
    """`NAME=PATH`, a list of these, or a mapping; a path without a name has the name ''."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        return value
    found: dict[str, str] = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not equals or "/" in name:
            name, path = "", item
        if name in found:
            raise ValueError(f"{name or 'one without a name'} is given twice")
        if not path.strip():
            raise ValueError("a path is empty")
        found[name] = path
    return found


def _names(value: object) -> object:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        return value
    return list(dict.fromkeys(name.strip() for item in given for name in item.split(",")))


class PaperRun(Settings):
    """Settings of `run_eval paper table3` and the others that need answers of a model."""

    groups: ClassVar[Mapping[str, str]] = {
        "model": "What is run",
        "base": "Weights and rows",
        "dtype": "Machine",
        "output": "Run folders",
    }

    model: Name | None = None
    """qwen2.5-3b, qwen2.5-7b, qwen2.5-14b as far as the paper has it, or pocket, the embedded model
    that does all of it in miniature."""
    variants: Annotated[
        list[str],
        Flag(("--variant",), metavar="NAME", own_form=True),
        BeforeValidator(_names),
    ] = []
    """Only these, by the names that --dry-run shows (ahn-gdn-32640); joined by commas or repeated.
    Default: all of the table or figure."""
    limit: Whole | None = Field(default=None, gt=0, le=MOST_ROWS)
    """Examples per task. A finished run can be raised later. Default: all; pocket: 24."""
    dry_run: StrictBool = False
    """Print the plan; load no weights, write nothing."""
    costs_only: StrictBool = False
    """Print the costs and run nothing."""
    json_: bool = Field(
        False, description="Print our costs as JSON, unrounded, in the table's units; run nothing."
    )
    base: Name | None = None
    """Weights of the base model: folder or hub id. Default: the hub's."""
    tokenizer: Name | None = None
    """Tokenizer: folder or hub id. Default: the model's own."""
    ahn: Annotated[
        dict[str, str], Flag(metavar="NAME=PATH", own_form=True), BeforeValidator(by_name)
    ] = Field(default_factory=dict)
    """AHN weights gdn, dn or mamba2: folder or hub id; repeatable. Default: the hub's. Of table4
    kl-random, ce-random and kl-fixed1024, with pocket and a seed kl-random-seed0 ...; default: what
    was trained here, else what is embedded."""
    data: Annotated[
        dict[str, str], Flag(metavar="[BENCHMARK=]PATH", own_form=True), BeforeValidator(by_name)
    ] = Field(default_factory=dict)
    """Folder with the rows of lveval, infinitebench, longbench or ruler; repeatable. Default: the
    benchmark's hub; ruler: rows are made."""
    essay: Name | None = None
    """RULER: haystack of the essay tasks: the authors' PaulGrahamEssays.json, or a text file."""
    dtype: DTypeName = "auto"
    """Weights' type (bf16 ... are understood). Default: auto, bfloat16 on cuda, float32
    elsewhere; pocket: float32."""
    device: Name = "auto"
    """cpu, cuda, cuda:1, or auto (default): cuda where there is one, else cpu; pocket: cpu."""
    threads: Whole | None = Field(default=None, gt=0, le=1024)
    """Threads of torch on the CPU. Default: 1 for a model of under ten million parameters,
    torch's own choice else."""
    output: Annotated[Name, Flag(("--output", "-o"), metavar="DIR")] = RUNS
    """Folder of all of the paper's runs: each is MODEL/PART/VARIANT below it, shared by all tables
    and figures, and continued if it is there."""
    overwrite: StrictBool = False
    """Delete the records of earlier runs in the folders of this table or figure first."""
    max_errors: Whole = Field(default=20, ge=0, le=10**9)
    """Failed examples per variant after which the run stops."""
    reuse_prefixes: StrictBool = True
    """Prefill a document once for all examples that share it."""
    report: StrictBool = True
    """Write <output>/<model>/<table or figure>.html at the end."""

    def of_run(self) -> dict[str, Any]:
        """What every run is told as it was given."""
        keys = ("tokenizer", "threads", "overwrite", "max_errors", "reuse_prefixes")
        return {key: getattr(self, key) for key in keys}


class GradientsRun(Settings):
    """Settings of `run_eval paper figure5`."""

    groups: ClassVar[Mapping[str, str]] = {
        "model": "What is run",
        "dtype": "Machine",
        "output": "Files",
    }

    model: Name = "pocket"
    """pocket: the embedded model; the paper's own text is not published (ahn probe takes any)."""
    ahn: Annotated[list[str], Flag(metavar="NAME", own_form=True), BeforeValidator(_names)] = []
    """Only these of its memories: gdn, dn-seed1 ..., ablation/kl-random-seed0 ...; joined by commas
    or repeated. Default: all but those of the ablation."""
    limit: Whole | None = Field(default=None, gt=0, le=MOST_ROWS)
    """Documents. Default: 100."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16", "float64"], as_dtype] = "float32"
    """Type that all is computed in (bf16 ... are understood)."""
    device: Name = "cpu"
    """cpu, cuda, cuda:1."""
    output: Annotated[Name, Flag(("--output", "-o"), metavar="DIR")] = RUNS
    """Folder of all of the paper's runs; the probes are MODEL/figure5/MEMORY/{beyond,answer} below
    it, and MODEL/figure5/figure5.html. Memories that were probed before are not probed again."""
    overwrite: StrictBool = False
    """Probe all of them anew."""
    json_: bool = Field(False, description="Print the effects as JSON instead of a table.")
