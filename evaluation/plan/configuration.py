"""What a run is asked to do: a YAML file, flags that win over it, and defaults.

Each field of `RunConfiguration` is a key of the file and a flag of the same name (``max_length`` is
``--max-length``); see `common.settings`. Relative paths count from the working directory, in the
file as in flags. `evaluation.plan.plan` resolves the names in it (tasks, models, data).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, StrictBool, ValidationInfo, field_validator

from common.errors import InputError, Problems, shown
from common.files import kind_of
from common.settings import (
    Flag,
    Number,
    Seed,
    Settings,
    SettingsError,
    SettingsFile,
    Several,
    Tokens,
    Whole,
    as_dtype,
    one_or_several,
    parse_file,
    read_file,
    settings,
)
from evaluation.backends.requests import join_options, server_url
from tasks.sources import MOST_ROWS

DTypeName = Annotated[Literal["auto", "float32", "bfloat16", "float16"], as_dtype]
MOST_TOKENS = 10**9
"""Tokens that a machine can hold. The plan refuses too few: it knows what needs a window."""


def _without_null(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a null byte")
    return text


MADE_OF = ("essay", "words", "squad", "hotpotqa")
"""Fields that name files which rows are made of, for the tokenizer of a run."""
OWN_PRESET = ("pocket",)
"""Benchmarks whose defaults are the preset of their name."""
Benchmark = Annotated[
    str,
    Flag(argument=True, metavar="BENCHMARK"),
    Field(min_length=1),
    AfterValidator(_without_null),
]
Name = Annotated[str, Field(min_length=1), AfterValidator(_without_null)]
"""A path, hub id or other name; an empty one would mean the working directory, or a default."""


class RunConfiguration(Settings):
    """One evaluation run, as asked for. None means: the documented default.

    Attributes:
        groups: headings of the flags' groups in the help, by the first field of each.
    """

    groups: ClassVar[Mapping[str, str]] = {
        "model": "Models and variants",
        "tasks": "Tasks and data",
        "protocol": "Prompts",
        "dtype": "Machine and seed",
        "output": "Run folder",
    }

    benchmark: Benchmark = "longbench"
    """Its name; run_eval tasks lists them."""
    model: Name | None = None
    """Base model: folder, hub id, or 'pocket' for the embedded one."""
    tokenizer: Name | None = None
    """Tokenizer: folder or hub id. Default: the model's own."""
    ahn: Annotated[dict[str, str], Flag(metavar="[NAME=]PATH", own_form=True)] = Field(
        default_factory=dict
    )
    """AHN weights: folder, hub id, or 'pocket' ('pocket/dn' ...). One without a name gives the
    variant 'ahn'; to compare several, gdn=PATH, dn=PATH give 'ahn-gdn', 'ahn-dn'; repeatable.
    """
    variants: Annotated[list[str], Flag(("--variant",), metavar="NAME", own_form=True)] = Field(
        default_factory=list
    )
    """full, window, ahn, no-write, memory-only, compressive, hf, kvpress, quantized, endpoint, or
    the name of a back-end of your own; KIND:key=value,... has settings of its own
    (window:window=64,sinks=4,name=narrow), in a file also {kind: window, window: 64}. Of several
    AHN weights 'ahn' means each, 'ahn-gdn' one; repeatable. Default: full; with a window also
    window; with AHN weights also window and ahn; with --endpoint: endpoint."""
    endpoint: Annotated[Name | None, Flag(metavar="URL")] = None
    """OpenAI-compatible server that the variant 'endpoint' asks for --model (vLLM, SGLang, TGI,
    transformers serve); its key is read from AHN_BENCH_API_KEY or OPENAI_API_KEY."""
    window: Annotated[Several | None, one_or_several(MOST_TOKENS)] = None
    """Sliding window, in tokens (also 32k). Several, joined by commas or repeated, make one variant
    each of every variant that has a window: window-1024, ahn-gdn-1024. Default: that of the AHN
    weights."""
    sinks: Tokens | None = Field(default=None, le=MOST_TOKENS)
    """Attention sinks, in tokens. Default: that of the AHN weights, else 128."""
    tasks: Annotated[list[str], Flag(("--tasks", "--task"), metavar="NAMES", own_form=True)] = []
    """Tasks or groups, joined by commas or repeated; run_eval tasks lists them. Default: all of
    the benchmark."""
    data: Name | None = None
    """Folder, file or archive with rows, or 'pocket'. Default: the benchmark's hub."""
    lengths: Annotated[
        list[str], Flag(("--lengths", "--length"), metavar="LENGTHS", own_form=True)
    ] = []
    """Lengths of the texts, joined by commas or repeated. LV-Eval: levels, 16k to 256k; RULER: any,
    with the answer; other generated rows: about so many tokens. Default: all levels; what the
    generator chooses."""
    essay: Name | None = None
    """RULER: haystack of the essay tasks: the authors' PaulGrahamEssays.json, or a text file."""
    words: Name | None = None
    """RULER: the authors' english_words.json, for rows of cwe beyond about 128k tokens."""
    squad: Name | None = None
    """RULER: SQuAD v2's validation questions for qa_1 (JSON, JSON lines, Parquet). Default: the
    hub's."""
    hotpotqa: Name | None = None
    """RULER: HotpotQA's validation questions, distractor setting, for qa_2. Default: the hub's."""
    limit: Whole | None = Field(default=None, gt=0, le=MOST_ROWS)
    """Examples per task. A finished run can be raised later. Default: all."""
    protocol: Name = "official"
    """Whose procedure is followed."""
    max_length: Tokens | None = Field(default=None, le=MOST_TOKENS)
    """Longest prompt before the chat template, in tokens. Default: the protocol's, or the
    model's context - 500."""
    allow_overlong: StrictBool = False
    """Accept prompts beyond the model's max_position_embeddings."""
    yarn_factor: Number | None = Field(default=None, ge=1, le=1000)
    """Stretch the model's positions by YaRN, so many times: 4 makes 32,768 into 131,072.
    Default: as its config.json has it."""
    budget: Name | None = None
    """Compare at equal bytes: window, presses and other variants whose size can be chosen keep of
    each document what another variant does (ahn-gdn), a share of its keys and values (0.26), or
    so many bytes (1.2GiB). Default: each has its own size."""
    dtype: DTypeName = "auto"
    """Weights' type (bf16 ... are understood). Default: auto, bfloat16 on cuda, float32
    elsewhere."""
    device: Name = "auto"
    """cpu, cuda, cuda:1, or auto (default): cuda where there is one, else cpu."""
    threads: Whole | None = Field(default=None, gt=0, le=1024)
    """Threads of torch on the CPU. Default: 1 for a model of under ten million parameters,
    torch's own choice else."""
    seed: Seed | None = None
    """Seed of sampling and of generated data. Default: the protocol's."""
    output: Annotated[Name | None, Flag(("--output", "-o"), metavar="DIR")] = None
    """Run folder; continued if it is there. Default: runs/<benchmark>-<start of identity>."""
    overwrite: StrictBool = False
    """Delete the records of an earlier run in the folder first."""
    max_errors: Whole = Field(default=20, ge=0, le=10**9)
    """Failed examples per variant after which the run stops."""
    reuse_prefixes: StrictBool = True
    """Prefill a document once for all examples that share it."""
    in_turns: Annotated[StrictBool, Flag(off="one-by-one")] = False
    """Let all variants answer a document before the next one, with all models in memory at once:
    measured times compare better. Default: one variant after the other."""
    report: StrictBool = True
    """Write <output>/report.html at the end."""

    @field_validator("ahn", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        """Accept PATH, NAME=PATH, a list of these, or a mapping of names to paths."""
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return value
        found: dict[str, str] = {}
        for item in value:
            name, path = _named(item)
            if name in found:
                raise ValueError(
                    f"{name} is given twice"
                    if name
                    else "several AHN weights need names, NAME=PATH"
                )
            found[name] = path
        return found

    @field_validator("ahn")
    @classmethod
    def _names_are_folder_names(cls, value: dict[str, str]) -> dict[str, str]:
        odd = [name for name in value if name and not _NAME.fullmatch(name)]
        if odd:
            raise ValueError(f"{odd[0]!r} is no name (letters, digits, '.', '_', '+', '-')")
        if not all(path.strip() for path in value.values()):
            raise ValueError("a path is empty")
        if "" in value and len(value) > 1:
            raise ValueError("several AHN weights need names, NAME=PATH")
        return value

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        """Refuse here what would write a password into the run folder."""
        return None if value is None else server_url(value)

    @field_validator("variants", "tasks", "lengths", mode="before")
    @classmethod
    def _split_commas(cls, value: object, info: ValidationInfo) -> object:
        """Accept one name, names joined by commas, or a list of either; order kept, no doubles.

        Where something was said but no name (``--tasks ,``) one empty name stays, so that the
        plan can refuse it; it does not mean the default. A length may be a number.
        """
        given = value if isinstance(value, list) else [value]
        if info.field_name == "variants":
            given = [_as_text(item) if isinstance(item, Mapping) else item for item in given]
        items = [str(item) for item in given if isinstance(item, str) or type(item) is int]
        if len(items) < len(given):
            return given
        names = [name.strip() for item in items for name in item.split(",")]
        if info.field_name == "variants":
            names = join_options(names)
        return list(dict.fromkeys(name for name in names if name)) or ([""] if names else [])


def _as_text(item: Mapping[Any, Any]) -> str:
    """A variant that a file gives as a mapping with `kind`, as `KIND:key=value,...`.

    Raises:
        ValueError: it has no kind, or a value that cannot be written so.
    """
    if not isinstance(item.get("kind"), str):
        raise ValueError(f"a variant that is a mapping needs its kind: {shown(str(dict(item)))}")
    options = []
    for key, value in item.items():
        if isinstance(value, bool):
            value = str(value).lower()
        if not isinstance(value, str | int | float) or "," in str(value):
            raise ValueError(f"{item['kind']}: {key}: must be one word or number, not {value!r}")
        if key != "kind":
            options.append(f"{key}={value}")
    return f"{item['kind']}:{','.join(options)}" if options else item["kind"]


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def _named(item: str) -> tuple[str, str]:
    """NAME=PATH taken apart; a path that holds '=' further on has no name."""
    name, equals, path = item.partition("=")
    return (name, path) if equals and _NAME.fullmatch(name) else ("", item)


def preset_names() -> list[str]:
    """Names of the presets that ship with the package (``configs/eval/<name>.yaml``)."""
    folder = resources.files("configs").joinpath("eval")
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def _presets() -> str:
    """The presets for a message; those that differ in the model's size alone as one."""
    sizes: dict[str, list[str]] = {}
    for name in preset_names():
        stem, _, size = name.rpartition("-")
        several = re.fullmatch(r"\d+b", size)
        sizes.setdefault(stem if several else name, []).extend([size] if several else [])
    return ", ".join(
        f"{stem}-{'|'.join(found)}" if found else stem for stem, found in sizes.items()
    )


def _preset(name: str) -> str | None:
    """Content of the preset `name`, which ships with the package; None where there is none."""
    file = resources.files("configs").joinpath("eval", f"{name.removesuffix('.yaml')}.yaml")
    return file.read_text(encoding="utf-8") if "/" not in name and file.is_file() else None


def read_config_file(file: str) -> SettingsFile:
    """The settings in a configuration file: a path or, where there is none, a shipped preset.

    A preset is named ``demo`` or as in a checkout, ``configs/eval/demo.yaml``.

    Raises:
        InputError: there is no such file, or it is no mapping of keys to values.
    """
    try:
        if kind_of(file) is not None:
            return replace(read_file(RunConfiguration, file), name=f"--config: {shown(file)}")
        name = Path(file).name if Path(file).parent.as_posix() == "configs/eval" else file
        # No preset has so long a name, and no file can.
        text = _preset(name) if len(name) < 100 else None
        if text is None:
            raise InputError(f"no such file: {shown(file)} (presets that ship: {_presets()})")
        return replace(parse_file(RunConfiguration, text, file), name=f"--config: {file}")
    except InputError as error:
        raise error.prefixed("--config: ") from error


def resolve_configuration(
    flags: Mapping[str, Any], file: str | None = None
) -> tuple[RunConfiguration, list[str]]:
    """Merge `file` (YAML) and `flags` (which win; None means not given).

    Returns the configuration and all problems found. A value with a problem is replaced by its
    default, so that the caller can go on and list what else is wrong; it must not run then.
    """
    problems = Problems()
    read = SettingsFile("")
    given = {key: value for key, value in flags.items() if value is not None and value != []}
    with problems.collecting():
        if file is not None:
            read = read_config_file(file)
        elif given.get("benchmark") in OWN_PRESET:
            name = given["benchmark"]  # the preset, whatever file of that name lies here
            read = parse_file(RunConfiguration, _preset(name) or "", name)
    benchmark = read.values.get("benchmark")
    if benchmark is not None and benchmark != given.get("benchmark", benchmark):
        problems.add(f"{read.name}: benchmark is {benchmark!r}, but {given['benchmark']!r} is run")
    try:
        return settings(RunConfiguration, given, read), list(problems)
    except SettingsError as error:
        problems.add(*error.problems)
        usable = read.without(error.keys)
        given = {key: value for key, value in given.items() if key not in error.keys}
        return settings(RunConfiguration, given, usable), list(problems)
