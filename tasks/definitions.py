"""The YAML files of a benchmark, checked when they are read.

A benchmark is a folder. `_benchmark.yaml` says what its tasks share; every other YAML file in it
whose name does not begin with `_` is one task or one group of tasks, in the schema that
lm-evaluation-harness reads too (our own keys stand under `metadata`; `include` merges top-level
keys only, as there). An unknown key, a missing one or a value of the wrong kind is an InputError
that names the file, so a mistyped constant never becomes a silent default.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    field_validator,
)

from common import yaml
from common.errors import InputError, Problems
from common.validation import Model, validated
from tasks.metric_registry import unknown_metric
from tasks.metrics import METRICS, find_metric
from tasks.schema import RowAdapter, Task, TaskProtocol, TextCut, Truncation, Turns

Settings = dict[str, bool | int | float | str]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CutDefinition(_Strict):
    """One cleaning step of a prediction; see `tasks.schema.TextCut`."""

    strip_left: str = ""
    keep_before: str | None = None
    strip: StrictBool = False

    def build(self) -> TextCut:
        """The step itself."""
        return TextCut(self.strip_left, self.keep_before, self.strip)


class HubLocation(_Strict):
    """Where a benchmark's rows lie on the Hugging Face hub; the adapter says in which file."""

    repository: str
    revision: str


class ProtocolDefaults(_Strict):
    """What all tasks of a benchmark share under one protocol."""

    source: str
    truncation: Truncation
    odd_token_in_tail: StrictBool = False
    decode_uncut: StrictBool = False
    reserve_generation: StrictBool
    default_max_length: StrictInt | None = Field(gt=0)
    chat_template: StrictBool | None = None
    system_message: str | None = None
    seed: StrictInt = Field(ge=0, lt=2**32)
    generation: Settings
    postprocess: list[CutDefinition]


class BenchmarkDefinition(_Strict):
    """`_benchmark.yaml`."""

    benchmark: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)
    title: str
    citation: str
    hub: HubLocation | None = None
    """None: the rows lie in the benchmark's own folder, or are generated."""
    protocols: dict[str, ProtocolDefaults] = Field(min_length=1)
    levels: list[str] = []
    """Length levels, shortest first, that every data set has; none: it has one file."""
    related: list[str] = []
    """Benchmarks whose tasks and groups may be asked for under this one's name."""
    protocol_aliases: dict[str, str] = {}
    """Other names of the protocols."""
    synthetic: list[str] = []
    """Tasks that `data="synthetic"` generates."""
    generated: StrictBool = False
    """Whether the rows of all tasks are generated, and there are no others."""
    made_for_tokenizer: StrictBool = False
    """Whether rows are made for the tokenizer of a run, at any length, unless a folder has them:
    `<task>_<tokens>` has rows of so many."""
    lengths: list[StrictInt] = []
    """Tokens of generated texts: `<task>_<tokens>` has texts of so many, and a task without such
    an ending of the first of these."""


class TurnsDefinition(_Strict):
    """The questions of a conversation after its first turn; see `tasks.schema.Turns`."""

    answered: StrictBool
    follow_up: str
    follow_up_in_chat: str
    opening: str = ""
    new_tokens: dict[str, StrictInt] = {}
    reserved: StrictInt = Field(default=0, ge=0)

    def build(self) -> Turns:
        """The constants themselves."""
        return Turns(**dict(self))


class TaskProtocolDefinition(_Strict):
    """One protocol's constants in a task's file; what is left out, the task's own apply."""

    prompt: str | None = None
    max_new_tokens: StrictInt | None = Field(default=None, gt=0)
    chat_template: StrictBool | None = None
    system_message: str | None = None
    metric: str | None = None
    postprocess: list[CutDefinition] = []
    """Cuts of this task, made after those that the protocol makes to every task."""
    generation: Settings = {}
    """Additions to the protocol's generation arguments."""
    default_max_length: StrictInt | None = Field(default=None, gt=0)
    demonstration: list[tuple[Literal["system", "user", "assistant"], str]] = []
    """Turns, (role, text), before the prompt's."""
    turns: TurnsDefinition | None = None
    """Of a conversation about one document, of which `prompt` is the first turn."""

    @field_validator("metric")
    @classmethod
    def _metric_exists(cls, name: str | None) -> str | None:
        return None if name is None else _known_metric(name)


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(unknown_metric(name))
    return name


class Constants(_Strict):
    """`metadata` of a task's file: what lm-evaluation-harness has no words for."""

    version: StrictFloat
    language: str
    category: str
    citation: str
    source: list[str] = Field(min_length=1)
    prompt: str
    answer_prefix: str = ""
    """What the answer begins with, behind the chat template's opening of it."""
    metric: str
    chat_template: StrictBool | None = None
    protocols: dict[str, TaskProtocolDefinition]
    unavailable: dict[str, str] = {}
    """Protocols of the benchmark that this task lacks, with the reason."""
    chance: StrictFloat | None = Field(default=None, gt=0, lt=1)
    """The mean score of guesses, where answers are chosen from a list."""

    @field_validator("metric")
    @classmethod
    def _metric_exists(cls, name: str) -> str:
        return _known_metric(name)


class RowsAsked(_Strict):
    """`dataset_kwargs`: whose rows."""

    benchmark: str
    name: str
    level: str | None = None


class GenerationKwargs(_Strict):
    """`generation_kwargs`, in lm-evaluation-harness's words, of the protocol `official`."""

    max_gen_toks: StrictInt = Field(gt=0)
    do_sample: StrictBool
    until: list[str]


class MetricEntry(_Strict):
    """The one entry of `metric_list`."""

    metric: Literal["score"] = "score"
    aggregation: Literal["mean"] = "mean"
    higher_is_better: Literal[True] = True


class TaskDefinition(_Strict):
    """One task's file, with what it includes.

    The keys from `custom_dataset` on are for lm-evaluation-harness alone and have one value each;
    `tasks/_lm_eval.yaml` has them. A file may leave them out: `run_eval lm-eval` adds them.
    """

    task: str
    dataset_kwargs: RowsAsked
    generation_kwargs: GenerationKwargs
    metadata: Constants
    custom_dataset: Literal["tasks.lm_eval.rows"] = "tasks.lm_eval.rows"
    output_type: Literal["generate_until"] = "generate_until"
    test_split: Literal["test"] = "test"
    doc_to_text: Literal["prompt"] = "prompt"
    doc_to_target: Literal["target"] = "target"
    process_results: Literal["tasks.lm_eval.score"] = "tasks.lm_eval.score"
    class_: Literal["tasks.lm_eval_task.BenchmarkTask"] = Field(
        default="tasks.lm_eval_task.BenchmarkTask", alias="class"
    )
    num_fewshot: Literal[0] = 0
    metric_list: list[MetricEntry] = Field(default=[MetricEntry()], min_length=1, max_length=1)

    @property
    def dataset(self) -> str:
        """The authors' name of the data set."""
        return self.dataset_kwargs.name

    def build(self, name: str, benchmark: BenchmarkDefinition, adapter: RowAdapter) -> Task:
        """The task, its constants completed by those of its benchmark."""
        constants = self.metadata
        return Task(
            name=name,
            benchmark=benchmark.benchmark,
            language=constants.language,
            category=constants.category,
            citation=constants.citation,
            source="; ".join(constants.source),
            protocols={
                protocol: self._protocol(own, benchmark.protocols[protocol])
                for protocol, own in constants.protocols.items()
            },
            dataset=self.dataset,
            level=self.dataset_kwargs.level,
            lm_eval_name=self.task,
            unavailable=constants.unavailable,
            length=benchmark.lengths[0] if benchmark.lengths else None,
            chance=constants.chance,
            adapter=adapter,
            find_metric=find_metric,
        )

    def _protocol(self, own: TaskProtocolDefinition, shared: ProtocolDefaults) -> TaskProtocol:
        constants = self.metadata
        chat_template = _first(own.chat_template, constants.chat_template, shared.chat_template)
        return TaskProtocol(
            template=_first(own.prompt, constants.prompt),
            max_new_tokens=_first(own.max_new_tokens, self.generation_kwargs.max_gen_toks),
            chat_template=bool(chat_template),
            truncation=shared.truncation,
            reserve_generation=shared.reserve_generation,
            metric=_first(own.metric, constants.metric),
            generation={**shared.generation, **own.generation},
            seed=shared.seed,
            default_max_length=_first(own.default_max_length, shared.default_max_length),
            postprocess=tuple(cut.build() for cut in (*shared.postprocess, *own.postprocess)),
            system_message=_first(own.system_message, shared.system_message),
            stop=tuple(self.generation_kwargs.until),
            odd_token_in_tail=shared.odd_token_in_tail,
            decode_uncut=shared.decode_uncut,
            demonstration=tuple(own.demonstration),
            answer_prefix=constants.answer_prefix,
            turns=None if own.turns is None else own.turns.build(),
        )

    def problems(self, name: str, benchmark: BenchmarkDefinition, adapter: RowAdapter) -> list[str]:
        """What does not fit the file's name or the benchmark."""
        found = []
        asked, constants = self.dataset_kwargs, self.metadata
        if asked.benchmark != benchmark.benchmark:
            found.append(f"dataset_kwargs.benchmark: is not {benchmark.benchmark!r}")
        if (asked.level is not None) != bool(benchmark.levels) or (
            asked.level is not None and asked.level not in benchmark.levels
        ):
            found.append(f"dataset_kwargs.level: is {asked.level!r}, known: {benchmark.levels}")
        if not (name == asked.name or name.startswith(f"{asked.name}_")):
            found.append(f"dataset_kwargs.name: is {asked.name!r}, the file's name says otherwise")
        wanted = lm_eval_name(benchmark.benchmark, asked.name, asked.level)
        if self.task != wanted:
            found.append(f"task: is {self.task!r}, not {wanted!r}, as all tasks are named")
        unknown = sorted(set(constants.protocols) - set(benchmark.protocols))
        if unknown or "official" not in constants.protocols:
            found.append(
                f"metadata.protocols: must be official and any of {sorted(benchmark.protocols)}"
            )
        lacking = set(benchmark.protocols) - set(constants.protocols)
        if not set(constants.unavailable) <= lacking:
            found.append(
                f"metadata.unavailable: may name {sorted(lacking)}, the protocols that it lacks"
            )
        allowed = adapter.prompt_fields
        prompts = {"prompt": constants.prompt, "answer_prefix": constants.answer_prefix} | {
            f"protocols.{protocol}.prompt": own.prompt
            for protocol, own in constants.protocols.items()
            if own.prompt is not None
        }
        for protocol, own in constants.protocols.items():
            if own.turns is not None:
                where = f"protocols.{protocol}.turns"
                prompts[f"{where}.follow_up"] = own.turns.follow_up
                prompts[f"{where}.follow_up_in_chat"] = own.turns.follow_up_in_chat
        for key, prompt in prompts.items():
            try:
                parts = list(string.Formatter().parse(prompt))
            except ValueError as error:
                found.append(f"metadata.{key}: is no template ({error}); a brace is {{{{ or }}}}")
                continue
            names = {field for _, field, _, _ in parts if field is not None}
            if not names <= allowed:
                found.append(
                    f"metadata.{key}: uses {sorted(names - allowed)}, not a field of the rows"
                )
            if any(spec or conversion for _, _, spec, conversion in parts):
                found.append(f"metadata.{key}: a field has a format of its own; write {{name}}")
        for protocol, own in constants.protocols.items():
            shared = benchmark.protocols.get(protocol)
            given = (own.chat_template, constants.chat_template, shared and shared.chat_template)
            if given == (None, None, None):
                found.append(f"metadata.protocols.{protocol}.chat_template: is not given")
        return found


def _first(*values: Any) -> Any:
    """The first value that is given."""
    return next((value for value in values if value is not None), None)


LM_EVAL_PREFIX = "ahnbench_"


def lm_eval_name(benchmark: str, dataset: str, level: str | None = None) -> str:
    """The name in lm-evaluation-harness of a data set, or one of its levels.

    One rule for all: `ahnbench_<benchmark>_<data set>[_<level>]`, and for groups
    `ahnbench_<benchmark>[_<group>]`; lm-evaluation-harness has tasks and groups `longbench...` of
    its own.
    """
    own = dataset.removeprefix(f"{benchmark}_").replace("@", "_")
    return LM_EVAL_PREFIX + "_".join(part for part in (benchmark, own, level) if part)


class GroupDefinition(_Strict):
    """A group's file. Our name of it is `group`, less `ahnbench_` at its beginning."""

    group: str
    task: list[str] = Field(min_length=1)
    """lm-evaluation-harness's names of tasks and of other groups."""
    aggregate_metric_list: list[dict[str, Any]] = Field(min_length=1, max_length=1)
    metadata: dict[Literal["version"], StrictFloat]

    @property
    def name(self) -> str:
        """What the group is called in commands."""
        return self.group.removeprefix(LM_EVAL_PREFIX)

    def problems(self, name: str, benchmark: str) -> list[str]:
        """What does not fit the file's name or the benchmark."""
        found = []
        if self.group != LM_EVAL_PREFIX + name:
            found.append(f"group: is {self.group!r}, not {LM_EVAL_PREFIX + name!r}, as its file")
        if name != benchmark and not name.startswith(f"{benchmark}_"):
            found.append(f"group: the file's name must be {benchmark} or {benchmark}_<group>")
        return found


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's folder, read."""

    folder: Path
    definition: BenchmarkDefinition
    tasks: Mapping[str, Task]
    """By name: in the order of the files' names, levels from short to long."""
    groups: Mapping[str, tuple[str, ...]]
    """The names of the tasks in each group; first the group of all."""


_STANDARD = RowAdapter()


@cache
def _read_yaml(path: Path, above: tuple[Path, ...] = ()) -> Any:
    """A YAML file with the one that it includes: its own top-level keys win.

    `above` are the files that led here by including one another.
    """
    content = yaml.read(path, tags=("!function",))  # lm-evaluation-harness's, which stays text
    if not isinstance(content, dict) or "include" not in content:
        return content
    own = {key: value for key, value in content.items() if key != "include"}
    included = (path.parent / str(content["include"])).resolve()
    if included in (path, *above):
        raise InputError(f"{path}: include: {content['include']} includes this file")
    shared = _read_yaml(included, (*above, path))
    if not isinstance(shared, dict):
        raise InputError(f"{path}: include: {content['include']} holds no keys")
    return {**shared, **own}


def _validated(path: Path, model: type[Model]) -> Model:
    """The file's content as `model`; InputError with one message per problem."""
    return validated(model, _read_yaml(path), str(path))


@cache
def read_benchmark(folder: Path, adapter: RowAdapter = _STANDARD) -> Benchmark:
    """The benchmark in `folder`, whose rows `adapter` reads.

    Raises:
        InputError: one message for each thing that is wrong in any of the files.
    """
    definition = _validated(folder / "_benchmark.yaml", BenchmarkDefinition)
    tasks: list[Task] = []
    groups: dict[Path, GroupDefinition] = {}
    problems = Problems()
    for path in sorted(folder.rglob("[!_]*.yaml")):
        with problems.collecting():
            content = _read_yaml(path)
            if isinstance(content, dict) and "group" in content:
                groups[path] = _validated(path, GroupDefinition)
                wrong = groups[path].problems(path.stem, definition.benchmark)
            else:
                task = _validated(path, TaskDefinition)
                wrong = task.problems(path.stem, definition, adapter)
                if not wrong:
                    tasks.append(task.build(path.stem, definition, adapter))
            problems.add(*(f"{path}: {problem}" for problem in wrong))
    tasks.sort(key=lambda task: (task.dataset, _rank(definition.levels, task.level)))
    members: dict[str, tuple[str, ...]] = {}
    with problems.collecting():
        members = _resolve_groups(groups, {task.lm_eval_name or "": task.name for task in tasks})
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            problems.add(f"{folder}: several files are named {name}.yaml")
    for listed in definition.synthetic:
        if listed not in names:
            problems.add(f"{folder / '_benchmark.yaml'}: synthetic: there is no task {listed!r}")
    if not tasks and not problems:
        problems.add(f"{folder}: has no file of a task")
    problems.check()
    return Benchmark(folder, definition, {task.name: task for task in tasks}, members)


def _rank(levels: list[str], level: str | None) -> int:
    return levels.index(level) if level is not None else 0


def _resolve_groups(
    groups: Mapping[Path, GroupDefinition], tasks: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Our task names by our group names, the largest group first.

    `tasks` are our names by lm-evaluation-harness's. InputError with each member that is neither.
    """
    by_name = {group.group: group for group in groups.values()}
    problems = Problems()

    def names(group: GroupDefinition, path: Path, above: tuple[str, ...]) -> list[str]:
        found = []
        for member in group.task:
            if member in tasks:
                found.append(tasks[member])
            elif member in by_name and member not in above:
                found += names(by_name[member], path, (*above, member))
            else:
                problems.add(f"{path}: task: no task or group {member!r}")
        return found

    members = {
        group.name: tuple(names(group, path, (group.group,))) for path, group in groups.items()
    }
    problems.check()
    return dict(sorted(members.items(), key=lambda item: -len(item[1])))
