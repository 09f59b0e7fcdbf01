"""The form of a benchmark's YAML files, checked when they are read.

A benchmark is a folder beside this file: `_benchmark.yaml` says what its tasks share, every
other YAML file is one task. An unknown key, a missing one or a value of the wrong kind is an
InputError that names the file, so a mistyped constant never becomes a silent default.
"""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.metrics import METRICS
from tasks.schema import InputError, Task, TaskProtocol, TextCut, Truncation

ROW_FIELDS = frozenset({"context", "input"})
"""The fields of a row that a prompt may use."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CutDefinition(_Strict):
    """One cleaning step of a prediction; see `tasks.schema.TextCut`."""

    strip_left: str = ""
    keep_before: str | None = None
    strip: bool = False

    def build(self) -> TextCut:
        """The step itself."""
        return TextCut(self.strip_left, self.keep_before, self.strip)


class HubLocation(_Strict):
    """Where a benchmark's rows lie on the Hugging Face hub."""

    repository: str
    revision: str
    file: str


class ProtocolDefaults(_Strict):
    """What all tasks of a benchmark share under one protocol."""

    source: str
    truncation: Truncation
    reserve_generation: bool
    default_max_length: int | None = Field(gt=0)
    seed: int
    generation: dict[str, bool | int | float | str]
    postprocess: list[CutDefinition]


class BenchmarkDefinition(_Strict):
    """`_benchmark.yaml`."""

    benchmark: str
    citation: str
    hub: HubLocation
    protocols: dict[str, ProtocolDefaults]
    groups: dict[str, list[str]]


class TaskProtocolDefinition(_Strict):
    """One protocol's constants in a task's file."""

    max_new_tokens: int = Field(gt=0)
    chat_template: bool
    metric: str
    prompt: str | None = None
    """Only where the protocol asks in other words than the task's `prompt`."""
    postprocess: list[CutDefinition] = []
    """Cuts of this task, made after those that the protocol makes to every task."""
    generation: dict[str, bool | int | float | str] = {}
    """Additions to the protocol's generation arguments."""

    @field_validator("metric")
    @classmethod
    def _metric_exists(cls, name: str) -> str:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r} (known: {', '.join(sorted(METRICS))})")
        return name


class TaskDefinition(_Strict):
    """One task's file."""

    task: str
    benchmark: str
    language: str
    category: str
    citation: str
    source: list[str] = Field(min_length=1)
    prompt: str
    protocols: dict[str, TaskProtocolDefinition]

    @field_validator("prompt")
    @classmethod
    def _fields_exist(cls, prompt: str) -> str:
        fields = {name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None}
        if not fields <= ROW_FIELDS:
            raise ValueError(
                f"the prompt uses {sorted(fields - ROW_FIELDS)}, not a field of the rows"
            )
        return prompt

    def build(self, benchmark: BenchmarkDefinition) -> Task:
        """The task, its constants completed by those of its benchmark."""
        protocols = {}
        for name, own in self.protocols.items():
            shared = benchmark.protocols[name]
            protocols[name] = TaskProtocol(
                template=self.prompt if own.prompt is None else own.prompt,
                max_new_tokens=own.max_new_tokens,
                chat_template=own.chat_template,
                truncation=shared.truncation,
                reserve_generation=shared.reserve_generation,
                metric=own.metric,
                generation={**shared.generation, **own.generation},
                seed=shared.seed,
                default_max_length=shared.default_max_length,
                postprocess=tuple(cut.build() for cut in (*shared.postprocess, *own.postprocess)),
            )
        return Task(
            name=self.task,
            benchmark=self.benchmark,
            language=self.language,
            category=self.category,
            citation=self.citation,
            source="; ".join(self.source),
            protocols=protocols,
        )


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {error}") from None


def _problems(path: Path, error: ValidationError) -> list[str]:
    return [
        f"{path}: {'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}"
        for problem in error.errors()
    ]


@cache
def read_benchmark(folder: Path) -> tuple[BenchmarkDefinition, dict[str, Task]]:
    """A benchmark's definition and its tasks by name, in the alphabetical order of their files.

    InputError with one message for each thing that is wrong in any of the files.
    """
    path = folder / "_benchmark.yaml"
    try:
        benchmark = BenchmarkDefinition.model_validate(_read_yaml(path))
    except ValidationError as error:
        raise InputError(*_problems(path, error)) from None

    tasks: dict[str, Task] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("[!_]*.yaml")):
        try:
            definition = TaskDefinition.model_validate(_read_yaml(path))
        except ValidationError as error:
            problems += _problems(path, error)
            continue
        except InputError as error:
            problems += error.problems
            continue
        if definition.task != path.stem:
            problems.append(f"{path}: task: is {definition.task!r}, the file's name says otherwise")
        if definition.benchmark != benchmark.benchmark:
            problems.append(f"{path}: benchmark: is not {benchmark.benchmark!r}")
        if set(definition.protocols) != set(benchmark.protocols):
            problems.append(f"{path}: protocols: must be exactly {sorted(benchmark.protocols)}")
            continue
        tasks[definition.task] = definition.build(benchmark)
    problems += [
        f"{folder / '_benchmark.yaml'}: groups.{group}: no task {name!r}"
        for group, names in benchmark.groups.items()
        for name in names
        if name not in tasks
    ]
    if problems:
        raise InputError(*problems)
    return benchmark, tasks
