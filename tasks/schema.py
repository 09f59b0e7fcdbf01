"""Task, Example, TaskProtocol: what every benchmark provides, and nothing about how it is run.

A *task* is a data set with a prompt (LongBench's `hotpotqa`, one level of an LV-Eval
data set). A *protocol* is a way of asking and scoring it: the benchmark authors' own (`official`,
and `official-<family>` where they asked in several wordings) or that of the AHN evaluation
(`ahn`). A score means nothing without the protocol that made it, so every method here takes
the protocol's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Literal

from common.errors import InputError
from tasks.rows import (
    ClassificationGold,
    ClassificationRow,
    Gold,
    Row,
    StandardRow,
    answer_text,
    parse,
)

Truncation = Literal["middle", "middle_joined", "left", "none"]
"""What happens to a prompt that is too long.

`middle`: the first and the last half of the ids are kept, decoded apart (LongBench, LV-Eval);
`middle_joined`: the same halves, joined and decoded at once (InfiniteBench); `left`: the last
ids are kept; `none`: it is never cut.
"""


_ROUNDING = 1e-9
"""By so much a score may miss [0, 1]: sums of fractions are rounded."""


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
    """What a generator knows of its row (facts, distance of the evidence); of real rows what the
    authors' averages ask for (`RowAdapter.attributes`)."""
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
class Turns:
    """How the questions of a conversation about one document follow its first turn (SCBench)."""

    answered: bool
    """Whether earlier questions stand in the prompt, with their reference answers. If not, the
    protocol's template holds the document alone, and each question follows right behind it."""
    follow_up: str
    """Template of a further question without a chat template; `pre_ans` is the answer before."""
    follow_up_in_chat: str
    """Template of the user's turn in a chat template."""
    opening: str = ""
    """In a chat template, the beginning of the answer to a further question."""
    new_tokens: Mapping[str, int] = field(default_factory=dict)
    """`max_new_tokens` by kind of question, where a task mixes several."""
    reserved: int = 0
    """Tokens kept free besides those of the answers."""


@dataclass(frozen=True)
class FollowUp:
    """A question behind what has been read, in both wordings."""

    plain: str
    """Without a chat template, with the answer before it."""
    answer: str | None
    """The reference answer before it; None: there is none."""
    user: str
    """The user's turn."""


@dataclass(frozen=True)
class Conversation:
    """A prompt that is put together of turns, each tokenised by itself."""

    first: str
    """The first turn: the document and a question, or the document alone."""
    after: str
    """Its end, behind the document."""
    follow_ups: tuple[FollowUp, ...]
    answered: bool
    """See `Turns.answered`; if not, the one follow-up belongs to the same turn."""
    opening: str
    reserved: int
    """Tokens kept free, of the longest prompt, when the first turn is cut."""

    @property
    def text(self) -> str:
        """All of it without a chat template."""
        return self.first + "".join(turn.plain for turn in self.follow_ups)


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
    """Name of a metric (`tasks.metrics.METRICS`)."""
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
    answer_prefix: str = ""
    """`str.format` template of what the answer begins with: it stands behind the chat template's
    opening of the answer, at the end of the prompt where there is none."""
    turns: Turns | None = None
    """How questions of a conversation follow the template, which is its first turn; None: the
    template is the whole prompt."""
    decode_uncut: bool = False
    """Whether a prompt that is not cut is decoded from its tokens like one that is: special tokens
    that stand in the text, as `<|im_end|>`, are lost then, too."""


Metric = Callable[[str, Example], float]
"""From a cleaned prediction and its example to a score in [0, 1]."""


class RowAdapter:
    """What the rows and the prediction files of a benchmark look like.

    This class is the adapter of a benchmark that has none of its own: rows with the keys `context`,
    `input` and `answers`, as LongBench's, in files that are named after the tasks. A benchmark
    whose rows differ has a module `adapter` in its folder with `ADAPTER`, an instance of a subclass
    that overrides what differs. Adapters hold no state: they are sent to other processes.
    """

    prompt_fields: frozenset[str] = frozenset({"context", "input"})
    """The names that a prompt template may use: the keys that `fields` gives."""
    document_field: str = "context"
    """That of them which stands for the document: what is read before the question comes."""
    own_keys: frozenset[str] = frozenset()
    """Keys that only this benchmark's prediction files have: they give a mixed-up file away."""
    own_columns: frozenset[str] = frozenset()
    """Likewise for rows."""
    splits: tuple[str, ...] = ("test",)
    """What files of rows in a folder named as the task are called."""
    prediction_keys: tuple[str, ...] = ("pred", "prediction")
    """Keys of a prediction file under which a prediction stands; the last is that of records."""

    # -- one row ------------------------------------------------------------------------------

    def check(self, row: Row, task: Task) -> list[str]:
        """A message for each thing that is wrong with a row of a task; none: it can be used."""
        return parse(ClassificationRow if task.is_classification else StandardRow, row)[1]

    def allows_unknown_dataset(self, row: Row) -> bool:
        """Whether the row's `dataset` may be a name that is no data set of the benchmark."""
        return True

    def example_id(self, row: Row, task: Task, line: int) -> str:
        """Identifier of a row, unique in its task: the row's own, else of its line (from 1)."""
        return str(row.get("_id") or f"{task.name}:{line}")

    def answers(self, row: Row) -> list[str]:
        """The gold answers as texts."""
        return [answer_text(answer) for answer in row["answers"]]

    def label(self, row: Row, task: Task) -> Any:
        """The gold with its JSON types; None where the answers say all."""
        return self.answers(row)

    def attributes(self, row: Row, task: Task) -> dict[str, Any]:
        """What is known of a row besides its question, which averages or curves go by."""
        return {}

    def context(self, row: Row) -> str:
        """The document; rows with the same one form a cluster."""
        return str(row["context"])

    def fields(self, row: Row, task: Task, protocol: str) -> Mapping[str, Any]:
        """What the prompt template is formatted with."""
        return row

    # -- rows of several questions ------------------------------------------------------------

    def questions(self, row: Row, task: Task, first: Row) -> Sequence[Row]:
        """The rows that are asked one by one, of a row that has been checked.

        Args:
            row: as it stands in the file.
            task: whose row.
            first: the first row of the file.
        """
        return [row]

    def turns(self, row: Row, task: Task) -> Sequence[Mapping[str, Any]]:
        """Of a conversation, the fields of each turn up to the one that is asked."""
        return [self.fields(row, task, "official")]

    def new_tokens(self, row: Row, rules: TaskProtocol) -> int:
        """Longest answer to this row."""
        return rules.max_new_tokens

    def reserved_tokens(self, row: Row, rules: TaskProtocol) -> int:
        """Tokens that are kept free when the first turn of a conversation is cut."""
        return 0

    def shared_gold(self, example: Example, task: Task) -> tuple[str, Any] | None:
        """What the scores of other examples of the file need of this one, by a key; None: nothing.

        `with_shared_gold` is given all of them.
        """
        return None

    def with_shared_gold(self, example: Example, shared: Mapping[str, Sequence[Any]]) -> Example:
        """The example with what its score needs of others."""
        return example

    # -- files of rows ------------------------------------------------------------------------

    def folders(self, task: Task) -> list[str]:
        """Folders, below the one that a user names, in which files are named after tasks.

        The folder itself need not be among them (`tasks.layouts`).
        """
        return ["data"]

    def archives(self, task: Task) -> list[str]:
        """Names of zip archives that have the rows."""
        return []

    def shared_files(self, task: Task) -> list[str]:
        """Names of files that hold the rows of several tasks: JSON (a list), JSON lines, Parquet.

        Rows in them for which `is_of` is false are another task's and are passed over.
        """
        return []

    def is_of(self, row: Row, task: Task) -> bool:
        """Whether a row of a shared file, which has been checked, is one of the task."""
        return True

    def member(self, task: Task) -> str:
        """File name, without folder, of the rows inside a zip archive."""
        return f"{task.name}.jsonl"

    def hub_file(self, task: Task) -> str:
        """The file on the hub that holds the rows."""
        return f"{task.name}.jsonl"

    # -- prediction files ---------------------------------------------------------------------

    def line_id(self, record: Row) -> Any:
        """Which example a line answers; None where it does not say so."""
        given = [record[key] for key in ("example_id", "_id", "id") if record.get(key) is not None]
        return given[0] if given else None

    def parts(self, task: Task) -> Sequence[str]:
        """What a line may name as its task, besides the task: kinds of question that it mixes."""
        return ()

    def gold(self, record: Row, task: Task) -> tuple[Example | None, list[str]]:
        """What a line of a prediction file says besides the prediction, for the metric.

        Returns:
            An example that a metric can score against; None with the problems of the line.
        """
        parsed, problems = parse(ClassificationGold if task.is_classification else Gold, record)
        if not isinstance(parsed, Gold):
            return None, problems
        return scored_example(parsed.answers, parsed.all_classes, length=parsed.length), []

    def export(self, record: Row, task: Task) -> dict[str, Any]:
        """A run's record as one line of a prediction file as the authors write it."""
        return {
            "pred": record["prediction"],
            "answers": record["answers"],
            "all_classes": record.get("all_classes"),
            "length": record.get("length"),
        }

    def export_folder(self, task: Task) -> str:
        """The folder in which the authors' scoring script looks for prediction files."""
        return "pred"

    def export_name(self, task: Task) -> str:
        """The name that the authors' scoring script expects of that file."""
        return f"{task.name}.jsonl"

    def export_path(self, task: Task, model: str, protocol: str) -> str:
        """The whole path of that file for a model's predictions; tasks may share one."""
        return f"{self.export_folder(task)}/{model}/{self.export_name(task)}"


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
    length: int | None = None
    """Tokens of its texts, where they are generated at the length that its name says."""
    chance: float | None = None
    """The mean score of guesses, in [0, 1], where answers are chosen from a list."""
    adapter: RowAdapter = field(default_factory=RowAdapter, repr=False, compare=False)
    """How its rows and prediction files are read."""
    find_metric: Callable[[str], Metric] | None = field(default=None, repr=False, compare=False)
    """From the name of a metric to its function; set when the benchmark is read."""

    @property
    def is_classification(self) -> bool:
        """Whether answers are classes that the row lists."""
        return any(protocol.metric == "classification" for protocol in self.protocols.values())

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
        conversation = self.conversation(example, protocol)
        return self._first_turn(example, protocol) if conversation is None else conversation.text

    def _first_turn(self, example: Example, protocol: str) -> str:
        return self._filled(self.protocol(protocol).template, example, protocol)

    def render_answer_prefix(self, example: Example, protocol: str) -> str:
        """What stands behind the chat template's opening of the answer; mostly nothing."""
        return self._filled(self.protocol(protocol).answer_prefix, example, protocol)

    def _filled(self, template: str, example: Example, protocol: str) -> str:
        """A template with the fields of a row."""
        fields = self.adapter.fields(example.row, self, protocol)
        try:
            return template.format_map(fields)
        except KeyError as error:
            raise InputError(
                f"{example.where}: field {error.args[0]!r}, which the prompt of {self.name} "
                "needs, is missing"
            ) from None

    def conversation(self, example: Example, protocol: str) -> Conversation | None:
        """The turns of an example's prompt; None where the template is the whole prompt."""
        rules = self.protocol(protocol)
        if rules.turns is None:
            return None
        asked = self.adapter.turns(example.row, self)
        further = asked[1:] if rules.turns.answered else asked[-1:]
        return Conversation(
            first=self._first_turn(example, protocol),
            after=self.after_document(example, protocol) or "",
            follow_ups=tuple(
                FollowUp(
                    plain=rules.turns.follow_up.format_map(fields),
                    answer=str(fields["pre_ans"]) if rules.turns.answered else None,
                    user=rules.turns.follow_up_in_chat.format_map(fields),
                )
                for fields in further
            ),
            answered=rules.turns.answered,
            opening=rules.turns.opening,
            reserved=self.adapter.reserved_tokens(example.row, rules),
        )

    def new_tokens(self, example: Example, protocol: str) -> int:
        """Longest answer to an example."""
        return self.adapter.new_tokens(example.row, self.protocol(protocol))

    def after_document(self, example: Example, protocol: str) -> str | None:
        """What follows the document in `render`: the question; None: the prompt has no document."""
        template = self.protocol(protocol).template
        _, document, rest = template.rpartition("{" + self.adapter.document_field + "}")
        if not document:
            return None
        return rest.format_map(self.adapter.fields(example.row, self, protocol))

    def asks_before_document(self, protocol: str) -> bool:
        """Whether fields of the question stand before the document, or within it."""
        before, document, _ = self.protocol(protocol).template.rpartition(
            "{" + self.adapter.document_field + "}"
        )
        return bool(document) and any(field for _, field, _, _ in Formatter().parse(before))

    def postprocess(self, prediction: str, protocol: str) -> str:
        """The part of a prediction that the protocol scores."""
        for cut in self.protocol(protocol).postprocess:
            prediction = cut(prediction)
        return prediction

    def score(self, prediction: str, example: Example, protocol: str) -> float:
        """The score of a raw prediction in [0, 1]: cleaned, then measured by the protocol's metric.

        Without answers it is 0, as in the authors' scripts.

        Raises:
            InputError: unknown protocol or metric, or the metric gave no number in [0, 1].
        """
        name = self.protocol(protocol).metric
        if self.find_metric is None:
            raise InputError(f"{self.benchmark}/{self.name} was made without metrics")
        score = self.find_metric(name)(self.postprocess(prediction, protocol), example)
        if not isinstance(score, int | float) or not -_ROUNDING <= score <= 1 + _ROUNDING:
            raise InputError(f"metric {name!r} gave {score!r}, which is no score in [0, 1]")
        return score

    def template_sha256(self, protocol: str) -> str:
        """SHA-256 (hex) of the template's UTF-8 bytes."""
        return hashlib.sha256(self.protocol(protocol).template.encode()).hexdigest()


def scored_example(
    answers: Sequence[str],
    all_classes: Sequence[str] | None = None,
    where: str = "given",
    *,
    label: Any = None,
    attributes: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Example:
    """An example that holds only what a metric needs, for scoring without the original row.

    `attributes` are those that averages ask for; `fields` are further fields of the row that the
    benchmark's metrics read.
    """
    row = {"answers": list(answers), "all_classes": all_classes, **fields}
    return Example(where, row, list(answers), "", where, dict(attributes or {}), label)
