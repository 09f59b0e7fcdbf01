"""Resolve a configuration into tasks x variants x examples, and check all of it.

Everything that can be known without weights is found here, before a model is loaded: the plan
either holds, or `make_plan` raises one `InputError` that lists every problem. The tokenizer is
loaded, because only it can say how long the prompts are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ahn.checkpoints.rope import context_length
from ahn.checkpoints.tokenizer import load_tokenizer
from common.errors import InputError, Problems
from common.writing import check_folder_writable
from evaluation.backends.base import Backend, RunSettings
from evaluation.backends.generation import generation_settings, load_generation_config
from evaluation.backends.registry import find_backend
from evaluation.backends.streaming import KINDS, StreamingModels
from evaluation.plan.budget import Budget, find_budget
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.making import making_of
from evaluation.plan.planned import Plan, PlannedTask
from evaluation.plan.prompts import prepare, smallest_max_length
from evaluation.plan.recording import unwritable
from evaluation.plan.tasks import AskedTasks, LoadedRows, Watch, load_rows, resolve_tasks
from evaluation.plan.variants import Asked, asked_variants
from tasks.making import Making
from tasks.schema import TaskProtocol

CONTEXT_SLACK = 500  # the authors' max_length is the model's context less this


def make_plan(
    configuration: RunConfiguration,
    earlier_problems: Sequence[str] = (),
    watch: Watch | None = None,
) -> Plan:
    """Resolve and check `configuration`.

    Args:
        configuration: what is asked for.
        earlier_problems: are listed with what is found here.
        watch: is told of rows and prompts that are made.

    Raises:
        InputError: everything that is wrong.
    """
    draft = _Draft(configuration, earlier_problems, watch)
    draft.choose_variants()
    draft.find_budget()
    draft.find_context()
    draft.choose_tasks()
    draft.check_output()
    draft.load_tokenizer()
    draft.load_rows()
    draft.prepare_prompts()
    return draft.finished()


@dataclass(frozen=True)
class PlannedModels:
    """What a plan says of the models alone.

    Attributes:
        models: the variants by name.
        model_config: the base model's `config.json`; {} where it is not here.
        context: positions that all of them were made for; None: nobody knows.
        tokenizer: the one that is named, else the model's.
        warnings: what people must be told.
    """

    models: Mapping[str, Backend]
    model_config: Mapping[str, Any]
    context: int | None
    tokenizer: Any
    warnings: Sequence[str]


def plan_models(configuration: RunConfiguration) -> PlannedModels:
    """The variants of a configuration, their context and their tokenizer, without any task.

    Raises:
        InputError: everything that is wrong with them, or with the place of the output.
    """
    draft = _Draft(configuration, (), None)
    draft.choose_variants()
    draft.find_context()
    draft.check_output()
    draft.load_tokenizer()
    return draft.models_alone()


class _Draft:
    """A plan in the making: what is known of it so far, and what is wrong with it.

    Each step collects its problems; later steps do what earlier ones still allow, so that all
    problems are found at once.
    """

    def __init__(
        self, configuration: RunConfiguration, earlier: Sequence[str], watch: Watch | None
    ) -> None:
        self.configuration = configuration
        self.problems = Problems(earlier)
        self.warnings: list[str] = []
        self._watch = watch
        self._settings = RunSettings.of(configuration)
        self._base = self._settings.once(StreamingModels)
        self._model_config: dict[str, Any] = {}
        self._models: dict[str, Backend] = {}
        self._windowed = False
        self._reads_model = True
        self._generation: dict[str, list[str]] = {}
        self._budget: Budget | None = None
        self._context: int | None = None
        self._asked = AskedTasks([], "", ())
        self._rows = LoadedRows({}, ())
        self._tokenizer: Any = None
        self._planned: list[PlannedTask] = []

    @property
    def _seed(self) -> int:
        if self.configuration.seed is not None:
            return self.configuration.seed
        tasks = self._asked.tasks
        return tasks[0].protocols[self._asked.protocol].seed if tasks else 0

    def choose_variants(self) -> None:
        """Make every variant that is asked for; each refuses what is wrong with it."""
        configuration = self.configuration
        texts, read = list(configuration.variants), set[str]()
        if not texts and configuration.endpoint is not None:
            texts = ["endpoint"]
        if not texts:
            with self.problems.collecting():
                texts = self._base.default_kinds()
        makers = []
        for text in texts:
            with self.problems.collecting():
                for asked in asked_variants(text, self._settings):
                    request, _ = asked
                    if request.kind in KINDS and KINDS[request.kind].needs_memory:
                        read.add(request.options.get("weights", ""))
                    with self.problems.collecting():
                        makers.append(find_backend(request.kind))
                        model = makers[-1](*asked)
                        assert model.name == request.name, f"{request.kind}: it names itself"
                        self._check_window(asked, model)
                        self._add(model)
        unread = [name for name in configuration.ahn if name not in read]
        if unread:
            which = f" {', '.join(unread)}" if any(unread) else ""
            self.warnings.append(f"--ahn: none of the variants reads these weights{which}")
        if configuration.endpoint is not None and find_backend("endpoint") not in makers:
            self.warnings.append("--endpoint: none of the variants asks it (--variant endpoint)")
        if self._settings.windows and not self._windowed and not self.problems:
            self.warnings.append("--window: several are given, and none of the variants takes one")
        self._reads_model = not makers or any(getattr(m, "reads_model", True) for m in makers)
        for model in self._models.values():
            self.warnings += [notice for notice in model.notices if notice not in self.warnings]

    def _check_window(self, asked: Asked, model: Backend) -> None:
        """Of several windows, that this one holds more than the sinks, and that someone takes it.

        Raises:
            InputError: it is smaller than the sinks.
        """
        request, settings = asked
        if not self._settings.windows:
            return
        if settings.window is not None:
            self._windowed = True
            sinks = model.describe().get("sinks")
            if isinstance(sinks, int) and settings.window < sinks:
                raise InputError(
                    f"--window: {settings.window:,} tokens are fewer than the {sinks:,} sinks; of "
                    "several windows each holds at least as many (see --sinks)"
                )
        elif find_backend(request.kind).__module__.partition(".")[0] != "evaluation":
            self.warnings.append(
                f"--window: several are given, and {model.name} is made once, without any of them "
                "(its back-end does not say has_window)"
            )

    def _add(self, model: Backend) -> None:
        same = self._models.setdefault(model.name, model)
        if same is not model and same.describe() != model.describe():
            raise InputError(
                f"--variant: two variants are called {model.name}; give one of them a name of its "
                "own (KIND:name=...)"
            )

    def find_budget(self) -> None:
        """What sizable variants may keep of a document."""
        sizable = [name for name, model in self._models.items() if model.sizable]
        if self.configuration.budget is None:
            return
        if not sizable and not self.problems:
            self.warnings.append("--budget: none of the variants has a size that it could choose")
        with self.problems.collecting():
            self._budget = find_budget(self._settings, self._models)

    @property
    def _at_boundary(self) -> bool:
        return self.configuration.budget is not None or any(
            model.needs_boundary for model in self._models.values()
        )

    def find_context(self) -> None:
        """Positions that base model and variants were made for; `--max-length` stays within."""
        configuration = self.configuration
        contexts = [model.context for model in self._models.values()]
        if configuration.model is not None:
            with self.problems.collecting():
                self._model_config = self._config_of_model(configuration.model)
                contexts.append(context_length(self._model_config))
        self._context = min((c for c in contexts if c is not None), default=None)
        longest = configuration.max_length
        if longest is None or self._context is None or configuration.allow_overlong:
            return
        if longest > self._context:
            self.problems.add(
                f"--max-length: {longest} is more than the model's max_position_embeddings "
                f"{self._context} (give --allow-overlong if that is meant)"
            )

    def _config_of_model(self, name: str) -> dict[str, Any]:
        """The base model's `config.json`; {} where no variant needs it and it is not here.

        Raises:
            InputError: it is needed, or without it nothing says which tokenizer makes the prompts.
        """
        try:
            return self._base.config
        except InputError as error:
            if self._reads_model:
                raise
            if self.configuration.tokenizer is None:
                raise InputError(
                    f"--tokenizer: needed, since nothing here tells that of --model {name} "
                    f"({error}); give the folder or hub id whose tokenizer makes the prompts"
                ) from None
        self.warnings.append(
            f"--model {name}: its files are not here, so the server's own defaults hold for what "
            "the protocol does not say (repetition penalty, stop tokens)"
        )
        return {}

    def choose_tasks(self) -> None:
        """The tasks under the protocol."""
        with self.problems.collecting():
            self._asked = resolve_tasks(self.configuration)
        self.problems.add(*self._asked.problems)

    def check_output(self) -> None:
        """The run folder can be made and written to."""
        if self.configuration.output is not None:
            with self.problems.collecting("--output: "):
                check_folder_writable(Path(self.configuration.output))

    def load_rows(self) -> None:
        """The rows of every task."""
        with self.problems.collecting():
            self._rows = load_rows(
                self._asked.tasks,
                self.configuration,
                self._seed,
                self._watch,
                files_only=bool(self.problems),
                making=self._making(),
            )
        self.problems.add(*self._rows.problems)

    def _making(self) -> Making | None:
        """What rows are made with that belong to the tokenizer; None where it is not known."""
        asked = self._asked
        if self._tokenizer is None or not asked.tasks:
            return None
        rules = asked.tasks[0].protocols[asked.protocol]
        return making_of(
            self.configuration, self._tokenizer, rules, self._model_config.get("model_type")
        )

    def load_tokenizer(self) -> None:
        """The tokenizer that is named, else the model's."""
        given = self.configuration.tokenizer
        with self.problems.collecting("--tokenizer: "):
            if given is not None:
                self._tokenizer = load_tokenizer(given)
            elif self._model_config:
                self._tokenizer = load_tokenizer(self._base.base)
            elif self.configuration.model is None and self._models:
                raise InputError("none given, and no --model whose tokenizer could be used")

    def prepare_prompts(self) -> None:
        """The prompts of every task that has rows, and the settings that answer them."""
        without_files = self.configuration.model and not self._model_config and self._reads_model
        if self._tokenizer is None or without_files:
            return
        config, protocol, model_type = (
            self._model_config,
            self._asked.protocol,
            self._model_config.get("model_type"),
        )
        checkpoint = GenerationConfig()
        if config:
            with self.problems.collecting():
                folder = self._base.base.folder(weights=False)
                checkpoint = load_generation_config(folder, config)
        total = sum(len(source.examples) for source in self._rows.sources.values())
        done = 0
        for task in self._asked.tasks:
            rules, source = task.protocols[protocol], self._rows.sources.get(task.name)
            length = 0
            with self.problems.collecting():
                length = self._max_length(task.name, rules)
            if source is None or not length:
                continue
            prompts, before = [], done
            for example in source.examples:
                with self.problems.collecting():
                    prompts.append(
                        prepare(
                            task,
                            example,
                            protocol,
                            self._tokenizer,
                            length,
                            model_type,
                            self._at_boundary,
                        )
                    )
                done += 1
                if self._watch:
                    self._watch(done, total, "preparing prompts")
                if len(prompts) < done - before:
                    break  # one such example says enough
            if len(prompts) < len(source.examples):
                continue
            if self._at_boundary and task.asks_before_document(protocol):
                self.warnings.append(
                    f"{task.name}: part of the question stands before the document or in it: what "
                    "is chosen of the document is chosen with that in view"
                )
            with self.problems.collecting():
                settings = generation_settings(
                    checkpoint,
                    protocol,
                    rules.generation,
                    rules.max_new_tokens,
                    self._tokenizer,
                    model_type,
                    task.benchmark,
                )
                planned = PlannedTask(
                    task,
                    protocol,
                    length,
                    source.examples,
                    prompts,
                    source.files,
                    settings,
                    source.made_of,
                )
                self._check_generation(planned)
                self.problems.add(*self._wrong_with(planned), *unwritable(planned))
                self.problems.add(*self._too_small(planned))
                self.warnings += self._too_short(planned)
                self._planned.append(planned)

    def _check_generation(self, planned: PlannedTask) -> None:
        """Note which variants cannot follow a task's generation settings, and how."""
        for model in self._models.values():
            with self.problems.collecting(f"{planned.task.name}: {model.name}: "):
                told = model.generation(planned.settings, planned.rules.stop, self._tokenizer)
                for notice in () if told is None else told.notices:
                    tasks = self._generation.setdefault(f"{model.name}: {notice}", [])
                    tasks.append(planned.task.name)

    def _max_length(self, task: str, rules: TaskProtocol) -> int:
        """Longest prompt of `task`, in tokens.

        Raises:
            InputError: it leaves no room for a prompt, or nothing says how long one may be.
        """
        reason = ""
        if self.configuration.max_length is not None:
            length = self.configuration.max_length
        elif rules.default_max_length is not None:
            length = rules.default_max_length
        elif self._context is None:
            raise InputError("--max-length: needed, since no variant says how much it can read")
        else:
            length = self._context - CONTEXT_SLACK
            reason = f"; by default the model's {self._context} - {CONTEXT_SLACK}"
        smallest = smallest_max_length(rules)
        if length < smallest:
            raise InputError(
                f"--max-length: {length} is too small for {task} (at least {smallest}{reason})"
            )
        return length

    def _wrong_with(self, planned: PlannedTask) -> Iterator[str]:
        """Prompts that do not fit the model, its positions and its vocabulary; warns of others."""
        name, context = planned.task.name, self._context
        for example, prompt in zip(planned.examples, planned.prompts, strict=True):
            if not prompt.tokens:
                yield f"{example.where}: the prompt of {name} has no tokens"
        highest = max((int(p.ids.max()) for p in planned.prompts if p.tokens), default=0)
        vocabulary = self._model_config.get("vocab_size")
        if vocabulary is not None and highest >= vocabulary:
            yield (
                f"--tokenizer: gives token id {highest} in {name}, but the model's vocabulary "
                f"ends at {vocabulary - 1}"
            )
        if context is None:
            return
        longest = max((prompt.tokens for prompt in planned.prompts), default=0)
        overlong = sum(prompt.tokens > context for prompt in planned.prompts)
        if overlong and not self.configuration.allow_overlong:
            yield (
                f"{name}: {overlong} of {len(planned.prompts)} prompts are longer than the "
                f"model's max_position_embeddings {context} (longest: {longest} tokens); lower "
                "--max-length, stretch them with --yarn-factor, or give --allow-overlong"
            )
        elif longest + planned.rules.max_new_tokens > context:
            self.warnings.append(
                f"{name}: the longest prompt ({longest} tokens) and its answer (up to "
                f"{planned.rules.max_new_tokens}) together pass the model's {context} positions"
            )

    def _too_small(self, planned: PlannedTask) -> Iterator[str]:
        """Variants that cannot be sized to the budget of some document."""
        if self._budget is None:
            return
        lengths = {prompt.document_tokens or 0 for prompt in planned.prompts} - {0}
        for model in self._models.values():
            for tokens in sorted(lengths) if model.sizable else ():
                try:
                    model.kept(tokens, self._budget.of(tokens))
                except InputError as error:
                    yield f"--budget: {planned.task.name}, {tokens} tokens: {error}"
                    break

    def _too_short(self, planned: PlannedTask) -> Iterator[str]:
        """Variants with a size of their own, to which some documents cannot be brought."""
        lengths = [prompt.document_tokens or 0 for prompt in planned.prompts]
        for model in self._models.values():
            found: dict[int, InputError] = {}
            for tokens in set(lengths) - {0} if model.needs_boundary and not model.sizable else ():
                try:
                    model.document_bytes(tokens)
                except InputError as error:
                    found[tokens] = error
            if found:
                yield (
                    f"{planned.task.name}: {sum(n in found for n in lengths)} of {len(lengths)} "
                    f"examples will fail with {model.name}: {found[min(found)]}"
                )

    def models_alone(self) -> PlannedModels:
        """What is known of the models.

        Raises:
            InputError: everything that was found to be wrong.
        """
        self.problems.check()
        return PlannedModels(
            self._models, self._model_config, self._context, self._tokenizer, self.warnings
        )

    def finished(self) -> Plan:
        """The plan.

        Raises:
            InputError: everything that was found to be wrong.
        """
        self.problems.check()
        for notice, tasks in self._generation.items():
            some = "" if len(tasks) == len(self._planned) else f" ({', '.join(tasks)})"
            self.warnings.append(f"{notice}{some}")
        return Plan(
            configuration=self.configuration,
            models=self._models,
            model_config=self._model_config,
            context=self._context,
            tokenizer=self._tokenizer,
            tasks=self._planned,
            seed=self._seed,
            warnings=self.warnings,
            budget=self._budget,
            at_boundary=self._at_boundary,
        )


def sampling_seed(seed: int, task: str, example_id: str) -> int:
    """Seed of one sampled answer: independent of which examples came before it."""
    digest = hashlib.sha256(f"{seed}\n{task}\n{example_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
