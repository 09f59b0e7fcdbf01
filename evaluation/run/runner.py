"""Variants over their examples: load once, answer, score, record.

Examples about one document follow one another, so that its beginning is read once, and the
longest groups go first, so that what does not fit the memory fails early and the time left is
not underestimated. An example that fails is recorded with its error and the run goes on.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from ahn.cells.base import MemoryCell
from ahn.ops.selector import asked, pick
from evaluation.backends.streaming import Generation, Generator, is_out_of_memory
from evaluation.plan.costs import example_cache_bytes, example_flops
from evaluation.plan.plan import sampling_seed
from evaluation.plan.planned import Plan, PlannedTask
from evaluation.plan.prompts import shared_tokens
from evaluation.plan.recording import example_fields
from evaluation.plan.variants import ModelSpec
from evaluation.run.store import RunStore
from reports.records import ExampleRecord


class TooManyErrors(RuntimeError):
    """More examples failed than `max_errors` allows; the folder is whole and can be continued."""


class Listener(Protocol):
    """Is told how a run goes on."""

    def variant_started(self, variant: str, examples: int) -> None:
        """`variant` is being loaded; so many examples are to be answered."""

    def example_done(self, record: ExampleRecord, tokens: int) -> None:
        """`record` is on disk; its prompt had `tokens` tokens."""

    def variant_finished(self, variant: str, seconds: float) -> None:
        """`variant` has answered all its examples."""


@dataclass(frozen=True)
class Group:
    """Examples of one task about one document, and how many leading ids they share."""

    planned: PlannedTask
    indices: list[int]
    shared_tokens: int

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(self.planned.prompts[i].tokens for i in self.indices)


def groups_in_order(plan: Plan) -> list[Group]:
    """All examples of `plan` in the order they are run, whether or not they are done already.

    The shared beginning is taken over the whole group, so that an interrupted run is continued
    with the same numerics.
    """
    groups = []
    for planned in plan.tasks:
        by_document: dict[str, list[int]] = {}
        for index, example in enumerate(planned.examples):
            by_document.setdefault(example.document_id, []).append(index)
        for indices in by_document.values():
            prompts = [planned.prompts[index] for index in indices]
            shared = shared_tokens(prompts) if plan.configuration.reuse_prefixes else 0
            groups.append(Group(planned, indices, shared))
    return sorted(groups, key=lambda group: -group.longest)  # stable: ties stay in plan order


def seed_everything(seed: int) -> None:
    """Seed all generators and ask for repeatable kernels, as the authors' scripts do."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def pending_groups(plan: Plan, variant: str, store: RunStore) -> list[tuple[Group, list[int]]]:
    """The groups with something left to do, each with the indices that are left."""
    done = {p.task.name: store.done(variant, p.task.name) for p in plan.tasks}
    pending = []
    for group in groups_in_order(plan):
        finished = done[group.planned.task.name]
        left = [i for i in group.indices if group.planned.examples[i].example_id not in finished]
        if left:
            pending.append((group, left))
    return pending


class VariantRun:
    """What is left to do of one variant. Without anything left no model is loaded."""

    def __init__(self, plan: Plan, variant: str, store: RunStore, listener: Listener) -> None:
        self.errors = 0
        self.pending = pending_groups(plan, variant, store)
        self._plan = plan
        self._variant = variant
        self._store = store
        self._listener = listener
        self._answerer: Answerer | None = None
        self._seconds = 0.0

    def load(self) -> None:
        """Build the model and describe it in ``run.json``."""
        self._listener.variant_started(self._variant, sum(len(left) for _, left in self.pending))
        started = time.perf_counter()
        seed_everything(self._plan.seed)
        spec = self._plan.models[self._variant]
        model = spec.load()
        spec = _as_built(spec, model)
        self._store.describe_model(
            self._variant,
            {
                "cell": spec.cell,
                "parameters": model.num_parameters(),
                "layout": [_layer_as_dict(layer) for layer in model.layout],
            },
            recurrence_forms(model),
        )
        self._answerer = Answerer(self._plan, spec, model)
        self._seconds += time.perf_counter() - started

    def answer(self, group: Group, left: list[int]) -> None:
        """Answer the examples `left` of a group.

        Raises `TooManyErrors` as soon as more than ``max_errors`` have failed in this variant.
        """
        assert self._answerer is not None
        started = time.perf_counter()
        for record in self._answerer.answer(group, left):
            self._store.append(record)
            self._listener.example_done(record, record.prompt_tokens or 0)
            self.errors += record.error is not None
            if self.errors > self._plan.configuration.max_errors:
                raise TooManyErrors(
                    f"{self._variant}: {self.errors} examples failed, more than --max-errors "
                    f"{self._plan.configuration.max_errors} allows; the last: {record.error}"
                )
        self._seconds += time.perf_counter() - started

    def finish(self) -> None:
        """Say how long it took."""
        self._listener.variant_finished(self._variant, self._seconds)


def run_variant(plan: Plan, variant: str, store: RunStore, listener: Listener) -> int:
    """Answer what `variant` has not answered yet; returns how many examples failed.

    Raises `TooManyErrors` as soon as more than ``max_errors`` have.
    """
    run = VariantRun(plan, variant, store, listener)
    if not run.pending:
        return 0
    run.load()
    for group, left in run.pending:
        run.answer(group, left)
    run.finish()
    return run.errors


def run_in_turns(plan: Plan, store: RunStore, listener: Listener) -> int:
    """As `run_variant` of all variants, document by document: all answer one before the next.

    All models are in memory at once. A machine that slows down, or is shared for an hour, then
    slows all variants alike. Which variant begins changes from document to document.
    """
    runs = [VariantRun(plan, variant, store, listener) for variant in plan.models]
    runs = [run for run in runs if run.pending]
    for run in runs:
        run.load()
    left = [{_name(group): (group, indices) for group, indices in run.pending} for run in runs]
    for number, group in enumerate(groups_in_order(plan)):
        for turn in range(len(runs)):
            at = (number + turn) % len(runs)
            if _name(group) in left[at]:
                runs[at].answer(*left[at][_name(group)])
    for run in runs:
        run.finish()
    return sum(run.errors for run in runs)


def _name(group: Group) -> tuple[str, int]:
    """What tells a group of a plan from the others: its task, and its first example."""
    return group.planned.task.name, group.indices[0]


def _as_built(spec: ModelSpec, model: Any) -> ModelSpec:
    """`spec` with what only the built model knows: its cell and its full-attention layers."""
    if spec.window is None:
        return spec
    layout = list(model.layout)
    cells = [layer.cell for layer in layout if layer.cell is not None]
    return replace(
        spec,
        cell=cells[0] if cells else None,
        full_attention_layers=tuple(i for i, layer in enumerate(layout) if layer.window is None),
    )


def _layer_as_dict(layer: Any) -> dict[str, Any]:
    return {"window": layer.window, "sinks": layer.sinks, "cell": layer.cell}


def recurrence_forms(model: Any) -> dict[str, str]:
    """The form of the memory's recurrence that this model computes; nothing without a memory.

    `AHN_BACKEND`, the weights' configuration and the packages that are installed choose it.
    """
    cells = (module for module in model.modules() if isinstance(module, MemoryCell))
    cell = next((cell for cell in cells if cell.declaration.recurrence is not None), None)
    if cell is None:
        return {}
    return {
        phase: pick(
            asked(cell.backend),
            model.device.type,
            model.dtype,
            cell.head_dim,
            one_token,
            cell.declaration.recurrence == "delta_rule",
            False,
        )
        for phase, one_token in (("prefill", False), ("decode", True))
    }


class Answerer:
    """Turns examples into records, with one loaded model."""

    def __init__(self, plan: Plan, spec: ModelSpec, model: Any) -> None:
        self._plan = plan
        self._spec = spec
        self._generator = Generator(model, plan.tokenizer)

    def answer(self, group: Group, indices: list[int]) -> Iterator[ExampleRecord]:
        """One record per index, in order."""
        for position, index in enumerate(indices):
            last = position == len(indices) - 1
            yield self._record(group.planned, index, group.shared_tokens, keep=not last)
        self._generator.forget()

    def _record(self, planned: PlannedTask, index: int, shared: int, keep: bool) -> ExampleRecord:
        """Answer and score one example; whatever goes wrong ends up in the record."""
        prediction, score, error = "", None, None
        generation: Generation | None = None
        try:
            generation = self._generate(planned, index, shared, keep)
            prediction = generation.text
            score = planned.task.score(prediction, planned.examples[index], planned.protocol)
        except Exception as reason:  # the boundary of one example: recorded, and the run goes on
            self._free_memory()
            first_line = (str(reason).splitlines() or [""])[0]
            error = f"{type(reason).__name__}: {first_line}"
        return self._as_record(planned, index, prediction, score, generation, error)

    def _generate(self, planned: PlannedTask, index: int, shared: int, keep: bool) -> Generation:
        prompt, settings, stop = planned.prompts[index], planned.settings, planned.rules.stop
        seed = None
        if settings.do_sample:
            name, example = planned.task.name, planned.examples[index]
            seed = sampling_seed(self._plan.seed, name, example.example_id)
        try:
            return self._generator.answer(
                prompt.ids,
                settings,
                shared_tokens=shared,
                keep_shared=keep,
                seed=seed,
                stop=stop,
            )
        except Exception as reason:
            if not (is_out_of_memory(reason) and keep):
                raise
        self._free_memory()  # the copy that was kept may be what did not fit
        return self._generator.answer(
            prompt.ids, settings, shared_tokens=shared, seed=seed, stop=stop
        )

    def _free_memory(self) -> None:
        self._generator.forget()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _as_record(
        self,
        planned: PlannedTask,
        index: int,
        prediction: str,
        score: float | None,
        generation: Generation | None,
        error: str | None,
    ) -> ExampleRecord:
        prompt, plan = planned.prompts[index], self._plan
        measured: dict[str, Any] = {}
        if generation is not None:
            generated = len(generation.token_ids)
            in_cache = prompt.tokens + max(generated - 1, 0)  # the last one is never read
            measured = {
                "generated_tokens": generated,
                "prefill_seconds": generation.prefill_seconds,
                "decode_seconds": generation.decode_seconds,
                "flops": example_flops(plan.shape, self._spec, prompt.tokens, generated),
                "cache_bytes_analytic": example_cache_bytes(plan.shape, self._spec, in_cache),
                "cache_bytes_measured": generation.cache_bytes,
                "finish_reason": generation.finish_reason,
                "reused_prefix_tokens": generation.reused_prefix_tokens,
            }
        return ExampleRecord(
            variant=self._spec.name,
            prediction=prediction,
            score=score,
            error=error,
            **example_fields(planned, index),
            **measured,
        )
