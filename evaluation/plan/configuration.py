"""What a run is asked to do: a YAML file, flags that win over it, and defaults.

Every key of the file has a flag of the same name (``max_length`` is ``--max-length``), and an
unknown key is an error. Relative paths count from the working directory, in the file as in
flags. Resolving the names in it (tasks, models, data) is `evaluation.plan.plan`'s job.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from common import yaml
from common.errors import InputError, shown
from common.files import kind_of
from evaluation.backends.requests import join_options
from tasks.sources import MOST_ROWS

Benchmark = Literal["longbench", "lveval", "infinitebench", "pocket"]
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
Tokens = Annotated[StrictInt, Field(le=10**9)]
"""A number of tokens that a machine can hold; the plan says which of them make sense."""


def _without_null(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a null byte")
    return text


Name = Annotated[str, Field(min_length=1), AfterValidator(_without_null)]
"""A path, hub id or other name; an empty one would mean the working directory, or a default."""


class RunConfiguration(BaseModel):
    """One evaluation run, as asked for. None means: the documented default."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    benchmark: Benchmark = Field(default="longbench", description="Benchmark; set by the command.")
    model: Name | None = Field(
        default=None, description="Base model: folder, hub id, or 'pocket' for the embedded one."
    )
    tokenizer: Name | None = Field(
        default=None, description="Tokenizer: folder or hub id. Default: the model's own."
    )
    ahn: dict[str, str] = Field(
        default_factory=dict,
        description="AHN weights (folder, hub id, or 'pocket', 'pocket/dn' ... for embedded ones) "
        "by name. One without a name (here '') gives the variant 'ahn'; several need names, "
        "gdn=PATH gives 'ahn-gdn'.",
    )
    variants: list[str] = Field(
        default_factory=list,
        description="full, window, ahn, no-write, or a back-end's name; KIND:key=value,... has "
        "settings of its own (window:window=64,sinks=4,name=narrow). Of several AHN weights "
        "'ahn' means each, 'ahn-gdn' one. Default: full; with a window also window; with AHN "
        "weights also window and ahn.",
    )
    window: Tokens | None = Field(
        default=None, description="Sliding window, in tokens. Default: that of the AHN weights."
    )
    sinks: Tokens | None = Field(
        default=None,
        description="Attention sinks, in tokens. Default: that of the AHN weights, else 128.",
    )
    tasks: list[str] = Field(
        default_factory=list, description="Task names or groups. Default: all of the benchmark."
    )
    data: Name | None = Field(
        default=None,
        description="Folder, file or archive with rows, or 'pocket'. Default: the benchmark's hub.",
    )
    lengths: list[str] = Field(
        default_factory=list,
        description="Lengths of the texts. LV-Eval: levels, 16k to 256k; generated rows: about so "
        "many tokens. Default: all levels; what the generator chooses.",
    )
    limit: StrictInt | None = Field(
        default=None, gt=0, le=MOST_ROWS, description="Examples per task. Default: all."
    )
    protocol: Name = Field(default="official", description="Whose procedure is followed.")
    max_length: Tokens | None = Field(
        default=None,
        description="Longest prompt before the chat template, in tokens. Default: the protocol's, "
        "or the model's context - 500.",
    )
    allow_overlong: StrictBool = Field(
        default=False,
        description="Accept prompts beyond the model's max_position_embeddings.",
    )
    yarn_factor: StrictFloat | None = Field(
        default=None,
        ge=1,
        le=1000,
        allow_inf_nan=False,
        description="Stretch the model's positions by YaRN, so many times. Default: as its "
        "config.json has it.",
    )
    dtype: DTypeName = Field(
        default="auto", description="Weights' type. auto: bfloat16 on cuda, float32 elsewhere."
    )
    device: Name = Field(default="auto", description="auto: cuda where there is one, else cpu.")
    threads: StrictInt | None = Field(
        default=None,
        gt=0,
        le=1024,
        description="Threads of torch on the CPU. Default: 1 for a model of under ten million "
        "parameters, torch's own choice else.",
    )
    seed: StrictInt | None = Field(
        default=None,
        ge=0,
        lt=2**32,
        description="Seed of sampling and of generated data. Default: the protocol's.",
    )
    output: Name | None = Field(
        default=None, description="Run folder. Default: runs/<benchmark>-<start of identity>."
    )
    overwrite: StrictBool = Field(
        default=False, description="Delete the records of an earlier run in the folder first."
    )
    max_errors: StrictInt = Field(
        default=20, ge=0, description="Failed examples per variant after which the run stops."
    )
    reuse_prefixes: StrictBool = Field(
        default=True, description="Prefill a document once for all examples that share it."
    )
    in_turns: StrictBool = Field(
        default=False,
        description="Let all variants answer a document before the next one, all models in memory "
        "at once, so that a slower hour of the machine does not slow one variant alone.",
    )
    report: StrictBool = Field(default=True, description="Write <output>/report.html at the end.")

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

    @field_validator("variants", "tasks", "lengths", mode="before")
    @classmethod
    def _split_commas(cls, value: object, info: ValidationInfo) -> object:
        """Accept one name, names joined by commas, or a list of either; order kept, no doubles.

        Where something was said but no name (``--tasks ,``) one empty name stays, so that the
        plan can refuse it; it does not mean the default. A length may be a number.
        """
        given = value if isinstance(value, list) else [value]
        items = [str(item) for item in given if isinstance(item, str) or type(item) is int]
        if len(items) < len(given):
            return given
        names = [name.strip() for item in items for name in item.split(",")]
        if info.field_name == "variants":
            names = join_options(names)
        return list(dict.fromkeys(name for name in names if name)) or ([""] if names else [])


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_ALIASES = {"variant": "variants", "task": "tasks", "length": "lengths"}


def _named(item: str) -> tuple[str, str]:
    """NAME=PATH taken apart; a path that holds '=' further on has no name."""
    name, equals, path = item.partition("=")
    return (name, path) if equals and _NAME.fullmatch(name) else ("", item)


OWN_PRESET = ("pocket",)
"""Commands whose defaults are the preset of their name."""


def preset_names() -> list[str]:
    """Names of the presets that ship with the package (``configs/eval/<name>.yaml``)."""
    folder = resources.files("configs").joinpath("eval")
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def _preset(name: str) -> str | None:
    """Content of the preset `name`, which ships with the package; None where there is none."""
    file = resources.files("configs").joinpath("eval", f"{name.removesuffix('.yaml')}.yaml")
    return file.read_text(encoding="utf-8") if "/" not in name and file.is_file() else None


def _read_config(file: str) -> Any:
    """Content of `file`: a path or, where there is no such path, a shipped preset.

    A preset is named ``demo`` or as in a checkout, ``configs/eval/demo.yaml``.
    """
    if kind_of(file) is not None:
        return yaml.read(file)
    name = Path(file).name if Path(file).parent.as_posix() == "configs/eval" else file
    # No preset has so long a name, and no file can.
    text = _preset(name) if len(name) < 100 else None
    if text is None:
        presets = ", ".join(preset_names())
        raise InputError(f"no such file: {shown(file)} (presets that ship: {presets})")
    return yaml.parse(text, file)


def read_config_file(file: str) -> dict[str, Any]:
    """Keys and values of a YAML configuration file; `InputError` when it is not a mapping."""
    try:
        content = _read_config(file)
    except InputError as error:
        raise error.prefixed("--config: ") from error
    return _values_of(content, file)


def _values_of(content: Any, file: str) -> dict[str, Any]:
    """Values by the names of the configuration's keys."""
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise InputError(f"--config: {shown(file)} must hold 'key: value' lines")
    values: dict[str, Any] = {}
    problems = []
    for raw_key, value in content.items():
        key = str(raw_key).replace("-", "_")
        key = _ALIASES.get(key, key)
        if key in values:
            problems.append(
                f"--config: {shown(file)}: {raw_key!r} is given twice under two spellings"
            )
        values[key] = value
    if problems:
        raise InputError(*problems)
    return values


def _describe(error: Mapping[str, Any], from_file: set[str], file: str | None) -> str:
    """One message for one pydantic error, naming where the value was written."""
    key = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, RunConfiguration.model_fields, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"--config: {file}: unknown key {key!r}{hint}"
    flag = {"variants": "variant"}.get(key, key).replace("_", "-")
    source = f"--config: {file}: {key}" if key in from_file else f"--{flag}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{source}: {message} (got {shown(repr(error['input']))})"


def resolve_configuration(
    flags: Mapping[str, Any], file: str | None = None
) -> tuple[RunConfiguration, list[str]]:
    """Merge `file` (YAML) and `flags` (which win; None means not given).

    Returns the configuration and all problems found. A value with a problem is replaced by its
    default, so that the caller can go on and list what else is wrong; it must not run then.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = read_config_file(file)
        except InputError as error:
            problems += error.problems
    given = {key: value for key, value in flags.items() if value is not None and value != []}
    if file is None and given.get("benchmark") in OWN_PRESET:
        name = given["benchmark"]  # the preset, whatever file of that name lies here
        values = _values_of(yaml.parse(_preset(name) or "", name), name)
    benchmark = values.get("benchmark")
    if benchmark is not None and benchmark != given.get("benchmark", benchmark):
        problems.append(
            f"--config: {file}: benchmark is {benchmark!r}, but {given['benchmark']!r} is run"
        )
    from_file = set(values) - set(given)
    values |= given
    # A null in the file is "not said", so that a preset can list a key without choosing.
    values = {
        key: value
        for key, value in values.items()
        if value is not None or key not in RunConfiguration.model_fields
    }
    try:
        return RunConfiguration.model_validate(values), problems
    except ValidationError as error:
        bad = set()
        for entry in error.errors():
            problems.append(_describe(entry, from_file, file))
            bad.add(entry["loc"][0] if entry["loc"] else "")
        usable = {key: value for key, value in values.items() if key not in bad}
        return RunConfiguration.model_validate(usable), problems
