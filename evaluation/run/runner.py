"""Variants over their examples: load once, answer, score, record.

Examples about one document follow one another, so that its beginning is read once, and the
longest groups go first, so that what does not fit the memory fails early and the time left is
not underestimated. An example that fails is recorded with its error and the run goes on.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from evaluation.backends.base import Answer, Backend, Cost, Document, Question, Reader
from evaluation.plan.plan import sampling_seed
from evaluation.plan.planned import Plan, PlannedTask
from evaluation.plan.prompts import shared_tokens
from evaluation.plan.recording import example_fields
from evaluation.run.at_once import AtOnce
from evaluation.run.store import RunStore
from reports.records import ExampleRecord

_SCORING = threading.Lock()
"""Metrics need not be ready for several threads."""


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
        by_document: dict[Any, list[int]] = {}
        for index, example in enumerate(planned.examples):
            document: Any = example.document_id
            if plan.at_boundary:
                document = _as_read(plan, planned, index)
            by_document.setdefault(document, []).append(index)
        for indices in by_document.values():
            prompts = [planned.prompts[index] for index in indices]
            if plan.at_boundary:
                shared = prompts[0].document_tokens or 0
            else:
                shared = shared_tokens(prompts) if plan.configuration.reuse_prefixes else 0
            groups.append(Group(planned, indices, shared))
    return sorted(groups, key=lambda group: -group.longest)  # stable: ties stay in plan order


def _as_read(plan: Plan, planned: PlannedTask, index: int) -> Any:
    """What examples whose documents are read as one have in common: the ids up to their end."""
    prompt = planned.prompts[index]
    own = index if not plan.configuration.reuse_prefixes else None
    return own, prompt.ids[: prompt.document_tokens].tobytes()


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
    """What is left to do of one variant: hands out groups, writes what comes back.

    It alone writes records of its variant. Without anything left no model is loaded.
    """

    def __init__(self, plan: Plan, variant: str, store: RunStore, listener: Listener) -> None:
        self.errors = 0
        self.pending = pending_groups(plan, variant, store)
        self._plan = plan
        self._variant = variant
        self._store = store
        self._listener = listener
        self._worker = Worker(plan, variant)
        self._seconds = 0.0

    def load(self) -> None:
        """Make the model ready and describe it in ``run.json``."""
        self._listener.variant_started(self._variant, sum(len(left) for _, left in self.pending))
        started = time.perf_counter()
        reader = self._worker.open()
        self._store.describe_model(self._variant, reader.describe(), reader.forms())
        self._seconds += time.perf_counter() - started

    def answer(self, pending: Sequence[tuple[Group, list[int]]]) -> None:
        """Answer the examples that are left of some groups.

        Raises `TooManyErrors` as soon as more than ``max_errors`` have failed in this variant.
        """
        started = time.perf_counter()
        if self._worker.concurrency == 1:
            for group, left in pending:
                for record in self._worker.answer(group, left):
                    self._write(record)
        else:
            at_once = self._worker.at_once(pending)
            try:
                for record in at_once:
                    self._write(record)
            except (KeyboardInterrupt, TooManyErrors):
                for record in at_once.ready():  # they were answered, and may have been paid for
                    self._store.append(record)
                raise
        self._seconds += time.perf_counter() - started

    def _write(self, record: ExampleRecord) -> None:
        self._store.append(record)
        self._listener.example_done(record, record.prompt_tokens or 0)
        self.errors += record.error is not None
        if self.errors > self._plan.configuration.max_errors:
            raise TooManyErrors(
                f"{self._variant}: {self.errors} examples failed, more than --max-errors "
                f"{self._plan.configuration.max_errors} allows; the last: {record.error}"
            )

    def finish(self) -> None:
        """Say how long it took."""
        self._listener.variant_finished(self._variant, self._seconds)

    def close(self) -> None:
        """Give the model back."""
        self._worker.close()


def run_variant(plan: Plan, variant: str, store: RunStore, listener: Listener) -> int:
    """Answer what `variant` has not answered yet; returns how many examples failed.

    Raises `TooManyErrors` as soon as more than ``max_errors`` have.
    """
    run = VariantRun(plan, variant, store, listener)
    if not run.pending:
        return 0
    with closing(run):
        run.load()
        run.answer(run.pending)
        run.finish()
    return run.errors


def run_in_turns(plan: Plan, store: RunStore, listener: Listener) -> int:
    """As `run_variant` of all variants, document by document: all answer one before the next.

    All models are in memory at once. A machine that slows down, or is shared for an hour, then
    slows all variants alike. Which variant begins changes from document to document.
    """
    runs = [VariantRun(plan, variant, store, listener) for variant in plan.models]
    runs = [run for run in runs if run.pending]
    left = [{_name(group): (group, indices) for group, indices in run.pending} for run in runs]
    with ExitStack() as open_models:
        for run in runs:
            open_models.enter_context(closing(run))
            run.load()
        for number, group in enumerate(groups_in_order(plan)):
            for turn in range(len(runs)):
                at = (number + turn) % len(runs)
                if _name(group) in left[at]:
                    runs[at].answer([left[at][_name(group)]])
        for run in runs:
            run.finish()
    return sum(run.errors for run in runs)


def _name(group: Group) -> tuple[str, int]:
    """What tells a group of a plan from the others: its task, and its first example."""
    return group.planned.task.name, group.indices[0]


def _for_peaks(plan: Plan) -> set[tuple[tuple[str, int], int]]:
    """Examples whose peak is measured: where documents are read apart, the first of each length.

    A length is a power of two of prompt tokens.
    """
    found: dict[int, tuple[tuple[str, int], int]] = {}
    for group in groups_in_order(plan) if plan.at_boundary else ():
        found.setdefault(group.longest.bit_length(), (_name(group), group.indices[0]))
    return set(found.values())


class Worker:
    """Turns the examples of one variant into records. It knows no store, and writes nothing.

    Args:
        plan: what is asked.
        variant: who answers.
    """

    def __init__(self, plan: Plan, variant: str) -> None:
        self._plan = plan
        self._backend: Backend = plan.models[variant]
        self._reader: Reader | None = None
        self._peaks = _for_peaks(plan)

    @property
    def concurrency(self) -> int:
        """Questions that the open reader takes at once."""
        return 1 if self._reader is None else self._reader.concurrency

    def open(self) -> Reader:
        """Load the model, or connect."""
        self._reader = self._backend.open(self._plan.tokenizer, self._plan.seed)
        return self._reader

    def close(self) -> None:
        """Give the model back."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def at_once(self, pending: Sequence[tuple[Group, list[int]]]) -> AtOnce[ExampleRecord]:
        """One record per index of some groups as they are ready, several being asked at once."""

        def only(group: Group, index: int) -> ExampleRecord:
            return next(self.answer(group, [index]))

        pieces = [
            (_name(group), partial(only, group, index))
            for group, indices in pending
            for index in indices
        ]
        return AtOnce(pieces, self.concurrency)

    def answer(self, group: Group, indices: list[int]) -> Iterator[ExampleRecord]:
        """One record per index, in order. The document of the group is read once."""
        document: Document | None = None
        for index in indices:
            last = index == indices[-1]
            answer, prediction, score, error = None, "", None, None
            try:
                if document is None:
                    document = self._read(group)
                answer = document.ask(self._question(group, index), last)
                answer = self._with_peak(group, index, answer)
                prediction, planned = answer.text, group.planned
                with _SCORING:
                    score = planned.task.score(
                        prediction, planned.examples[index], planned.protocol
                    )
            except Exception as reason:  # the boundary of one example: recorded, the run goes on
                document = None  # it is read anew, whatever state it is in
                first_line = (str(reason).splitlines() or [""])[0]
                error = f"{type(reason).__name__}: {first_line}"
            yield self._as_record(group.planned, index, prediction, score, answer, error)

    def _read(self, group: Group) -> Document:
        assert self._reader is not None, "open() comes first"
        return self._reader.read(*self._to_read(group))

    def _to_read(self, group: Group) -> tuple[Any, ...]:
        """The arguments of `Reader.read`: the ids and, of a sizable variant, its bytes."""
        ids = group.planned.prompts[group.indices[0]].ids[: group.shared_tokens]
        budget = self._budget(group.shared_tokens)
        return (ids,) if budget is None else (ids, budget)

    def _budget(self, document_tokens: int | None) -> int | None:
        """Bytes that the variant may keep of a document; None: nothing is said about it."""
        if not self._backend.sizable:
            return None
        return self._plan.budget_of(document_tokens)

    def _with_peak(self, group: Group, index: int, answer: Answer) -> Answer:
        """The answer with its peak where that takes a pass of its own: for some examples."""
        if answer.peak_bytes is not None or (_name(group), index) not in self._peaks:
            return answer
        assert self._reader is not None, "open() comes first"
        ids, *budget = self._to_read(group)
        peak = self._reader.peak(ids, self._question(group, index), *budget)
        return replace(answer, peak_bytes=peak)

    def _question(self, group: Group, index: int) -> Question:
        planned, seed = group.planned, None
        example, settings = planned.examples[index], planned.settings
        longest = planned.task.new_tokens(example, planned.protocol)
        if longest != planned.rules.max_new_tokens:
            settings = copy.copy(settings)
            settings.max_new_tokens = longest
        if planned.settings.do_sample:
            seed = sampling_seed(self._plan.seed, planned.task.name, example.example_id)
        ids = planned.prompts[index].ids[group.shared_tokens :]
        return Question(ids, settings, planned.rules.stop, seed)

    def _as_record(
        self,
        planned: PlannedTask,
        index: int,
        prediction: str,
        score: float | None,
        answer: Answer | None,
        error: str | None,
    ) -> ExampleRecord:
        measured: dict[str, Any] = {}
        if answer is not None:
            generated = answer.generated_tokens
            prompt = planned.prompts[index]
            counted = prompt.tokens if answer.prompt_tokens is None else answer.prompt_tokens
            cost = Cost()
            if generated is not None:
                cost = self._plan.cost_of(self._backend.name, prompt, generated)
            measured = {
                "prompt_tokens": counted,
                "document_tokens": prompt.document_tokens,
                "budget_bytes": self._plan.budget_of(prompt.document_tokens),
                "kept_tokens": answer.kept_tokens if self._plan.at_boundary else None,
                "document_bytes": answer.document_bytes if self._plan.at_boundary else None,
                "cache_bytes_stored": answer.cache_stored,
                "peak_bytes": answer.peak_bytes,
                "generated_tokens": generated,
                "prefill_seconds": answer.prefill_seconds,
                "decode_seconds": answer.decode_seconds,
                "flops": cost.flops,
                "cache_bytes_analytic": cost.cache_bytes,
                "cache_bytes_measured": answer.cache_bytes,
                "finish_reason": answer.finish_reason,
            }
            if answer.reused_tokens is not None:
                measured["reused_prefix_tokens"] = answer.reused_tokens
        return ExampleRecord(
            variant=self._backend.name,
            prediction=prediction,
            score=score,
            error=error,
            **(example_fields(planned, index) | measured),
        )
