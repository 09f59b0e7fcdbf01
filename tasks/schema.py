"""Task, Example, TaskProtocol: what every benchmark provides, and nothing about how it is run.

A *task* is a data set with a question form (LongBench's `hotpotqa`, one level of an LV-Eval
data set). A *protocol* is a way of asking and scoring it: the benchmark authors' own (`official`,
and `official-<family>` where they asked in several wordings) or that of the AHN evaluation
(`ahn`). A score means nothing without the protocol that made it, so every method here takes
the protocol's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from common.errors import InputError

Truncation = Literal["middle", "middle_joined", "left", "none"]
"""What happens to a prompt that is too long.

`middle`: the first and the last half of the ids are kept, decoded apart (LongBench, LV-Eval);
`middle_joined`: the same halves, joined and decoded at once (InfiniteBench); `left`: the last
ids are kept; `none`: it is never cut.
"""


@dataclass(frozen=True)
class Example:
    """One row of a benchmark, as it was published."""

    example_id: str
    """The row's own identifier, else `<task>:<line>`."""
    row: Mapping[str, Any]
    """The raw row, untouched: `context`, `input`, `answers`, `all_classes`, `length`, ..."""
    answers: list[str]
    """The gold answers as texts."""
    document_id: str
    """`document_id_of(context)`: rows of one document form one cluster."""
    where: str
    """`file:line`, or `generated`."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """What a generator knows of its row (facts, distance of the evidence); empty for real rows."""
    label: Any = None
    """The gold of the row with its JSON types, for metrics that tell 4 from "4"; None where the
    answers say all."""


def document_id_of(context: str) -> str:
    """The first 16 hex digits of the SHA-1 of a context's UTF-8 bytes."""
    return hashlib.sha1(context.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class TextCut:
    """One step of cleaning a prediction: first strip, then keep the text before a separator."""

    strip_left: str = ""
    """Characters removed from the left end before the cut; empty: none."""
    keep_before: str | None = None
    """The text from the first occurrence of this on is dropped; None: no cut."""
    strip: bool = False
    """Whether white space is removed from both ends afterwards."""

    def __call__(self, text: str) -> str:
        """The cleaned text."""
        if self.strip_left:
            text = text.lstrip(self.strip_left)
        if self.keep_before is not None:
            text = text.split(self.keep_before, 1)[0]
        return text.strip() if self.strip else text


@dataclass(frozen=True)
class TaskProtocol:
    """One task under one protocol: every constant that decides what its score means."""

    template: str
    """`str.format` template over the fields of a row; an exact constant, typing errors included."""
    max_new_tokens: int
    chat_template: bool
    """Whether the prompt is wrapped in the tokenizer's chat template (if it has one)."""
    truncation: Truncation
    """Which part of a too long prompt is dropped: its middle, its left end, or never any."""
    reserve_generation: bool
    """When a prompt is too long, whether `max_new_tokens` of the limit are kept free."""
    metric: str
    """Key of `tasks.metrics.METRICS`."""
    generation: Mapping[str, Any]
    """Arguments of `generate`; plus `newline_eos` (the last id of an encoded newline ends the
    text too) and `min_new_tokens`."""
    seed: int
    default_max_length: int | None
    """Longest prompt in tokens; None: the model's context less 500, as the LongBench authors."""
    postprocess: tuple[TextCut, ...] = ()
    """Cuts made to a prediction, in order, before the metric sees it."""
    system_message: str | None = None
    """The system's turn before the prompt; None: none of ours (a template may have its own)."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the tokens that the model's own settings name."""
    demonstration: tuple[tuple[str, str], ...] = ()
    """Turns, (role, text), between the system's and the prompt's, where there are any."""
    odd_token_in_tail: bool = False
    """Of an odd number of tokens to keep by `middle_joined`, whether the tail gets the odd one."""
    decode_uncut: bool = False
    """Whether a prompt that is not cut is decoded from its tokens like one that is: special tokens
    that stand in the text, as `<|im_end|>`, are lost then, too."""


@dataclass(frozen=True)
class Task:
    """A task of a benchmark under each of its protocols."""

    name: str
    """Unique in its benchmark: `hotpotqa`, `hotpotqa_e` (LongBench-E), `cmrc_mixup_16k`."""
    benchmark: str
    language: str
    """`en` or `zh`."""
    category: str
    citation: str
    source: str
    """Where the constants come from, with revision."""
    protocols: Mapping[str, TaskProtocol]
    dataset: str = ""
    """The authors' name of the data set, without level or `_e`; empty for generated tasks."""
    level: str | None = None
    """The length level, as `16k`, of a data set that has several (LV-Eval)."""
    lm_eval_name: str | None = None
    """Its name in lm-evaluation-harness; None where it has no file for it."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Why it has no such protocol, for protocols of its benchmark that it lacks."""

    def protocol(self, name: str) -> TaskProtocol:
        """The constants under protocol `name`; InputError when the task does not have it."""
        try:
            return self.protocols[name]
        except KeyError:
            known = f"(known: {', '.join(self.protocols)})"
            task = f"{self.benchmark}/{self.name}"
            if name in self.unavailable:
                why = self.unavailable[name]
                raise InputError(f"{task} has no protocol {name!r}: {why} {known}") from None
            raise InputError(f"unknown protocol {name!r} for {task} {known}") from None

    def render(self, example: Example, protocol: str) -> str:
        """The prompt of an example before truncation and chat template."""
        from tasks.rows import form_of

        template = self.protocol(protocol).template
        fields = form_of(self.benchmark).fields(example.row, self, protocol)
        try:
            return template.format_map(fields)
        except KeyError as error:
            raise InputError(
                f"{example.where}: field {error.args[0]!r}, which the prompt of {self.name} "
                "needs, is missing"
            ) from None

    def postprocess(self, prediction: str, protocol: str) -> str:
        """The part of a prediction that the protocol scores."""
        for cut in self.protocol(protocol).postprocess:
            prediction = cut(prediction)
        return prediction

    def score(self, prediction: str, example: Example, protocol: str) -> float:
        """The score of a raw prediction in [0, 1]: cleaned, then measured by the protocol's metric.

        Without answers it is 0, as in the authors' scripts.
        """
        from tasks.metrics import METRICS

        text = self.postprocess(prediction, protocol)
        return METRICS[self.protocol(protocol).metric](text, example)

    def template_sha256(self, protocol: str) -> str:
        """SHA-256 (hex) of the template's UTF-8 bytes."""
        return hashlib.sha256(self.protocol(protocol).template.encode()).hexdigest()


def scored_example(
    answers: Sequence[str],
    all_classes: Sequence[str] | None = None,
    where: str = "given",
    *,
    label: Any = None,
    **fields: Any,
) -> Example:
    """An example that holds only what a metric needs, for scoring without the original row.

    `fields` are further fields of the row that the benchmark's metrics read.
    """
    row = {"answers": list(answers), "all_classes": all_classes, **fields}
    return Example(where, row, list(answers), "", where, label=label)
