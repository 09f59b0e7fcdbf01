"""The settings of `ahn`'s commands: each field is a flag, with type, range, default and help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from ahn.config import CELLS, MOST_RATE, MOST_TOKENS, POOLINGS, VARIANTS
from common.settings import Flag, Number, Seed, Settings, Tokens, Whole, as_dtype

DType = Annotated[Literal["auto", "float32", "bfloat16", "float16", "float64"], as_dtype]
_COLDEST, _HOTTEST = 1e-3, 100.0
"""Beyond these, float32 holds no probabilities any more, or all tokens are as likely."""
MOST_NEW_TOKENS = 10**9


def _temperature(value: float) -> float:
    if value != 0 and not _COLDEST <= value <= _HOTTEST:
        raise ValueError(f"must be 0, or from {_COLDEST} to {_HOTTEST}, not {value}")
    return value


Window = Annotated[
    Tokens | None,
    Field(ge=1, le=MOST_TOKENS, description="Sliding window, in tokens (also 32k)."),
]
Sinks = Annotated[
    Tokens | None, Field(ge=0, le=MOST_TOKENS, description="Attention sinks, in tokens.")
]
Factor = Annotated[
    Number | None, Field(ge=1, le=1000, description="RoPE scaling: YaRN with this factor.")
]
Folder = Annotated[
    str, Flag(("--output", "-o"), metavar="DIR"), Field(description="Folder to make.")
]
ShardSize = Annotated[str, Field(description="Largest file, e.g. 5GB or 500MB.")]
Force = Annotated[bool, Field(description="Replace a model's folder that is already there.")]


class Prompted(Settings):
    """What commands have that read a prompt with a model."""

    model: str
    """Base or merged model: folder, hub id, or 'pocket' (embedded)."""
    ahn: str | None = None
    """AHN weights: folder, hub id, or 'pocket'. Not for a merged model."""
    variant: str | None = Field(
        None, description=f"{', '.join(VARIANTS)}. Default: ahn where there are weights."
    )
    window: Window = None
    sinks: Sinks = None
    rate: Tokens | None = Field(
        None,
        ge=1,
        le=MOST_RATE,
        description="Of compressive: tokens pooled into one. Default: 4, the paper's.",
    )
    pooling: str | None = Field(
        None, description=f"Of compressive: {' or '.join(POOLINGS)}. Default: {POOLINGS[0]}."
    )
    slots: Whole | None = Field(
        None,
        ge=1,
        le=MOST_TOKENS,
        description="Of compressive: pooled slots a layer. Default: the bytes of AHN's state.",
    )
    yarn_factor: Factor = None
    dtype: DType | None = None
    """Weights' type (bf16 ... are understood). Default: the model's."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""
    prompt: str | None = None
    """The prompt."""
    prompt_file: str | None = None
    """A UTF-8 file with the prompt; '-': standard input."""
    chat: Annotated[bool | None, Flag(off="raw")] = None
    """Chat template, or the bare text. Default: chat if there is a template."""
    tokenizer: str | None = None
    """Tokenizer: folder or hub id. Default: the model's."""


class Generate(Prompted):
    """Settings of `ahn generate`."""

    max_new_tokens: Tokens = Field(256, ge=1, le=MOST_NEW_TOKENS)
    """Longest answer, in tokens."""
    temperature: Annotated[Number, AfterValidator(_temperature)] = 0.0
    """Of the random draws. Default: 0, always the most probable token."""
    seed: Seed = 0
    """Of the random draws."""
    stream: bool = True
    """Print the answer as it comes, or at its end."""

    groups: ClassVar[Mapping[str, str]] = {
        "model": "Model",
        "prompt": "Prompt",
        "max_new_tokens": "Answer",
    }


class ProbeSettings(Prompted):
    """Settings of `ahn probe`."""

    dtype: DType = "float32"
    """Type that all is computed in (bf16 ... are understood)."""
    compared: Literal["beyond", "last"] = "beyond"
    """Positions at which teacher and student are compared: all beyond the window, or the last."""
    top: Whole = Field(10, ge=1, le=MOST_TOKENS)
    """Tokens shown in the terminal, with the smallest and with the largest gradients."""
    output: Annotated[Path, Flag(("--output", "-o"), metavar="DIR")] = Path("runs/probe")
    """Folder of probe.html and probe.json."""
    json_: bool = False
    """Print what probe.json holds instead of tables."""

    groups: ClassVar[Mapping[str, str]] = {
        "model": "Model",
        "prompt": "Prompt",
        "compared": "Probe",
    }


class Info(Settings):
    """Settings of `ahn info`."""

    path: Annotated[str | None, Flag(argument=True, metavar="[PATH]")] = None
    """Folder or hub id (only headers are fetched), or 'pocket'."""
    model: str | None = None
    """A model of the zoo, from its shape alone: qwen2.5-7b."""
    cell: str | None = Field(None, description=f"With --model: memory to add; {', '.join(CELLS)}.")
    window: Window = None
    """With --model: window, in tokens."""
    sinks: Sinks = None
    """With --model: sinks, in tokens."""
    list_: bool = False
    """All models of the zoo and their released AHN weights."""
    json_: bool = False
    """One JSON object instead of a table."""

    @model_validator(mode="after")
    def _one_subject(self) -> Info:
        if (self.path is not None) + (self.model is not None) + self.list_ != 1:
            raise ValueError("give one of PATH, --model NAME and --list")
        if self.model is None and (self.cell, self.window, self.sinks) != (None, None, None):
            raise ValueError("--cell, --window and --sinks go with --model")
        return self


class Merge(Settings):
    """Settings of `ahn merge`."""

    base: str
    """Base model: folder or hub id."""
    ahn: str
    """AHN weights: folder or hub id."""
    output: Folder
    window: Window = None
    """Window to record, in tokens. Default: the AHN weights'."""
    sinks: Sinks = None
    """Sinks to record, in tokens. Default: the AHN weights'."""
    yarn_factor: Factor = None
    """RoPE scaling to record: YaRN with this factor."""
    max_shard_size: ShardSize = "5GB"
    force: Force = False


class Split(Settings):
    """Settings of `ahn split`."""

    model: str
    """Model with AHN weights in it: folder or hub id."""
    output: Folder
    max_shard_size: ShardSize = "5GB"
    force: Force = False


class Bench(Settings):
    """Settings of `python -m ahn.commands.bench`."""

    model: str = "pocket"
    """Base model: folder or hub id."""
    ahn: str = "pocket"
    """AHN weights: folder or hub id."""
    window: Tokens = Field(128, ge=1, le=MOST_TOKENS)
    """Window, in tokens."""
    sinks: Tokens = Field(4, ge=0, le=MOST_TOKENS)
    """Sinks, in tokens."""
    lengths: list[Annotated[Tokens, Field(ge=1, le=MOST_TOKENS)]] = Field(
        [512, 2048, 8192], min_length=1
    )
    """Prompt lengths, in tokens."""
    steps: Whole = Field(32, ge=1, le=MOST_TOKENS)
    """Decode steps."""
    repeats: Whole = Field(3, ge=1, le=10**6)
    """Times each is measured."""
    dtype: DType | None = None
    """Weights' type. Default: the model's."""
    device: str | None = None
    """cpu, cuda, cuda:1."""
