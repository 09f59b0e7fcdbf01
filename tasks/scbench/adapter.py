"""Rows and prediction files of SCBench: a context and several turns about it.

Rows: microsoft/SCBench, `data/<task>.jsonl`; the same as Parquet in `<task>/`. From
microsoft/MInference fb56c91: prompt fields and golds, scbench/eval_utils.py
(`create_multiturn_prompt`, `create_scdq_prompt`, `get_ground_truth`); number of turns, room for
answers and prediction files, scbench/run_scbench.py. Each turn is an example: `<row>-<turn>`, both
from 0, as in the authors' files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt

from tasks.metrics.scbench_function import LANGUAGES, check_available
from tasks.rows import Count, FullText, Row, Text, parse
from tasks.schema import Example, RowAdapter, Task, TaskProtocol, scored_example

MOST_TURNS = 5
"""`--max_turns`: where a file's first row has more turns, only so many of each row are asked."""
PARTS = {
    "scbench_summary_with_needles": ("scbench_summary", "scbench_passkey"),
    "scbench_repoqa_and_kv": ("scbench_repoqa", "scbench_kv"),
}
"""The kinds of question of the tasks that mix two."""
FUNCTIONS = ("scbench_repoqa", "scbench_repoqa_and_kv")
_LETTERS = "ABCD"
_TARGET = re.compile("The .+ is")
# Their labels are looped over: a list, or the characters of a text.
_LISTED = ("scbench_vt", "scbench_many_shot", "scbench_qa_chn")
_Number = StrictInt | StrictFloat


class Turn(BaseModel):
    """A question and its answer; further fields may be there and are kept."""

    model_config = ConfigDict(extra="allow")

    input: Text
    answer: Text | _Number | Annotated[list[Text], Field(min_length=1)]
    options: list[Text] | None = None
    task: Text | None = None
    name: Text | None = None


class SCBenchRow(BaseModel):
    """The row schema; further fields may be there and are kept."""

    model_config = ConfigDict(extra="allow")

    context: FullText | Annotated[list[_Number], Field(min_length=1)] | None = None
    input: FullText | None = None
    """The context, of rows that have none under that name."""
    multi_turns: Annotated[list[Turn], Field(min_length=1)]
    lang: Text | None = None
    repo: Text | None = None


class Gold(BaseModel):
    """What is scored against, in a line as the authors' script writes it."""

    model_config = ConfigDict(extra="ignore")

    ground_truth: Any
    turn_idx: Count
    task: Text | None = None
    lang: Text | None = None
    repo: Text | None = None
    func_name: Text | None = None


class RecordGold(BaseModel):
    """What is scored against, in our records."""

    model_config = ConfigDict(extra="ignore")

    answers: list[Text]
    label: Any = None
    attributes: dict[str, Any] = {}


def _texts(answer: Any) -> list[str]:
    return [str(entry) for entry in answer] if isinstance(answer, list) else [str(answer)]


def _wrong_answer(name: str, answer: Any) -> str | None:
    """What is wrong with a turn's gold answer, of a task or of one kind of question in it."""
    if name == "scbench_mf":
        return None if isinstance(answer, int | float) else "should be a number"
    if name in _LISTED:
        return None if isinstance(answer, str | list) else "should be a text or a list of texts"
    return None if isinstance(answer, str) else "should be a text"


def _wrong_turn(turn: Row, name: str) -> str | None:
    """What is wrong with a turn of a task."""
    if name in PARTS:
        if turn.get("task") not in PARTS[name]:
            return f"'task' is {turn.get('task')!r}, not {' or '.join(PARTS[name])}"
        name = turn["task"]
    if wrong := _wrong_answer(name, turn["answer"]):
        return f"'answer' {wrong}"
    if name == "scbench_choice_eng":
        options = turn.get("options") or []
        if len(options) != len(_LETTERS):
            return f"'options' has {len(options)} entries, not 4"
        if turn["answer"] not in options:
            return f"'answer' {turn['answer']!r} is none of the options"
    if name == "scbench_mf" and not _TARGET.search(turn["input"]):
        return "'input' says no 'The ... is'"
    if name == "scbench_repoqa" and not turn.get("name"):
        return "'name', of the function, is missing"
    return None


class SCBenchAdapter(RowAdapter):
    """The authors' row schema; each turn of a row is an example of its own."""

    prompt_fields = frozenset(
        {"context", "input", "question", "pre_ans", "prefix", "last_prefix", "first_input"}
        | {f"OPTION_{letter}" for letter in _LETTERS}
    )
    own_keys = frozenset({"turn_idx", "ground_truth"})
    own_columns = frozenset({"multi_turns"})
    prediction_keys = ("prediction",)

    # -- one row ------------------------------------------------------------------------------

    def check(self, row: Row, task: Task) -> list[str]:
        """See `RowAdapter.check`; InputError where answers cannot be scored on this machine."""
        if task.name in FUNCTIONS:
            check_available()
        problems = parse(SCBenchRow, row)[1]
        if not problems and row.get("context") is None and row.get("input") is None:
            problems.append("field 'context' is missing")
        if problems:
            return problems
        if task.name in FUNCTIONS:
            if row.get("lang") not in LANGUAGES:
                problems.append(f"'lang' is {row.get('lang')!r}, not {', '.join(LANGUAGES)}")
            if not row.get("repo"):
                problems.append("field 'repo' is missing")
        for number, turn in enumerate(row["multi_turns"]):
            if wrong := _wrong_turn(turn, task.name):
                problems.append(f"multi_turns.{number}: {wrong}")
        return problems

    def questions(self, row: Row, task: Task, first: Row) -> Sequence[Row]:
        """The turns of a row, each with those before it.

        Where the first row has more than five, five of each row are asked; else all of them.
        """
        of_first = len(first["multi_turns"])
        cut = of_first > MOST_TURNS
        turns = row["multi_turns"][:MOST_TURNS] if cut else row["multi_turns"]
        kept = {**row, "multi_turns": turns, "turns_of_first": min(of_first, MOST_TURNS)}
        return [{**kept, "turn": number} for number in range(len(turns))]

    def example_id(self, row: Row, task: Task, line: int) -> str:
        """Row and turn, from 0: `id` and `turn_idx` of the authors' prediction files."""
        return f"{line - 1}-{row['turn']}"

    def answers(self, row: Row) -> list[str]:
        """The gold answers of the turn as texts."""
        return _texts(self._asked(row)["answer"])

    def label(self, row: Row, task: Task) -> Any:
        """What `get_ground_truth` gives to the authors' scorer, and what else it looks up."""
        turn = self._asked(row)
        return _label(task, turn["answer"], turn.get("options"), row, turn)

    def _asked(self, row: Row) -> Row:
        turn: Row = row["multi_turns"][row["turn"]]
        return turn

    def context(self, row: Row) -> str:
        """The shared context."""
        return str(_context(row))

    def attributes(self, row: Row, task: Task) -> dict[str, Any]:
        """The turn, from 1, and the kind of question where a task mixes several."""
        known = {"turn": row["turn"] + 1}
        return known | ({"part": self._asked(row)["task"]} if task.name in PARTS else {})

    def fields(self, row: Row, task: Task, protocol: str) -> Mapping[str, Any]:
        """The fields of the first turn, with which the document is read."""
        return _fields(row, 0)

    def turns(self, row: Row, task: Task) -> Sequence[Mapping[str, Any]]:
        """See `RowAdapter.turns`."""
        return [_fields(row, number) for number in range(row["turn"] + 1)]

    def new_tokens(self, row: Row, rules: TaskProtocol) -> int:
        """By kind of question, where a task mixes several."""
        kinds = {} if rules.turns is None else rules.turns.new_tokens
        return kinds.get(str(self._asked(row).get("task")), rules.max_new_tokens)

    def reserved_tokens(self, row: Row, rules: TaskProtocol) -> int:
        """Room for the answers of all turns of the file's first row (run_scbench.py)."""
        assert rules.turns is not None
        turns, kinds = row["turns_of_first"], rules.turns.new_tokens
        answers = sum(kinds.values()) * turns // 2 if kinds else rules.max_new_tokens * turns
        return answers + rules.turns.reserved

    def shared_gold(self, example: Example, task: Task) -> tuple[str, Any] | None:
        """A function that is asked for: the answers to others of its repository may be like it."""
        label = example.label
        if not isinstance(label, dict) or "needle" not in label:
            return None
        return label["repo"], {"name": label["name"], "needle": label["needle"]}

    def with_shared_gold(self, example: Example, shared: Mapping[str, Sequence[Any]]) -> Example:
        """All functions of the repository, instead of the one."""
        label = example.label
        if not isinstance(label, dict) or "needle" not in label:
            return example
        whole = {key: value for key, value in label.items() if key != "needle"}
        return dataclasses.replace(example, label=whole | {"needles": list(shared[label["repo"]])})

    # -- files --------------------------------------------------------------------------------

    def hub_file(self, task: Task) -> str:
        """JSON lines; the Parquet files of the hub hold the same rows."""
        return f"data/{task.name}.jsonl"

    def parts(self, task: Task) -> Sequence[str]:
        """See `RowAdapter.parts`."""
        return PARTS.get(task.name, ())

    def line_id(self, record: Row) -> str | None:
        """Row and turn."""
        if record.get("example_id") is not None:
            return str(record["example_id"])
        return None if record.get("id") is None else f"{record['id']}-{record.get('turn_idx')}"

    def gold(self, record: Row, task: Task) -> tuple[Example | None, list[str]]:
        """A line of prediction_<task>_<mode>.jsonl, or a record."""
        if task.name in FUNCTIONS:
            check_available()
        if "ground_truth" not in record and "answers" not in record:
            return None, ["field 'ground_truth' (or 'answers') is missing"]
        if "ground_truth" not in record:
            kept, problems = parse(RecordGold, record)
            if not isinstance(kept, RecordGold):
                return None, problems
            label = kept.answers if kept.label is None else kept.label
            return scored_example(kept.answers, label=label, attributes=kept.attributes), []
        line, problems = parse(Gold, record)
        if not isinstance(line, Gold):
            return None, problems
        if wrong := _wrong_line(line, task):
            return None, [wrong]
        known: dict[str, Any] = {"turn": line.turn_idx + 1}
        if task.name in PARTS:
            known["part"] = line.task
        turn = {"task": line.task, "name": line.func_name}
        label = _label(task, line.ground_truth, None, line.model_dump(), turn)
        return scored_example(_texts(line.ground_truth), label=label, attributes=known), []

    def export(self, record: Row, task: Task) -> dict[str, Any]:
        """A line as run_scbench.py writes it; of one that failed the prediction is empty."""
        row, _, turn = str(record["example_id"]).rpartition("-")
        label = record["answers"] if record.get("label") is None else record["label"]
        written: dict[str, Any] = {
            "id": int(row),
            "turn_idx": int(turn),
            "prediction": record["prediction"] or "",
            "ground_truth": label,
        }
        if isinstance(label, dict):
            written["ground_truth"] = record["answers"][0]
            if task.name in PARTS:
                written["task"] = record["attributes"]["part"]
            if "needles" in label:
                written |= {"lang": label["lang"], "repo": label["repo"]}
                written["func_name"] = label["name"]
            elif task.name in FUNCTIONS:
                written |= {"lang": label.get("lang"), "repo": label.get("of_repo")}
        return written

    def export_path(self, task: Task, model: str, protocol: str) -> str:
        """As run_scbench.py names predictions of several turns, and of questions alone."""
        mode = "scdq" if protocol == "official-scdq" else "multi_turn"
        return f"results/{model}/prediction_{task.name}_{mode}.jsonl"


def _wrong_line(line: Gold, task: Task) -> str | None:
    """What is wrong with a line of a prediction file."""
    name = task.name
    if name in PARTS:
        if line.task not in PARTS[name]:
            return f"'task' is {line.task!r}, not {' or '.join(PARTS[name])}"
        name = str(line.task)
    if name == "scbench_repoqa" and not (line.repo and line.func_name):
        return "'repo' or 'func_name' is missing"
    if name == "scbench_repoqa" and line.lang not in LANGUAGES:
        return f"'lang' is {line.lang!r}, not {', '.join(LANGUAGES)}"
    gold = line.ground_truth
    if name in ("scbench_choice_eng", "scbench_qa_eng"):
        length = 2 if name == "scbench_choice_eng" else 1
        whole = isinstance(gold, list) and len(gold) == length
        if not whole or not all(isinstance(entry, str) for entry in gold):
            return f"'ground_truth' should be a list of {length} texts"
        return None
    if isinstance(gold, list) and not all(isinstance(entry, str) for entry in gold):
        return "'ground_truth' should hold texts"
    wrong = "is a boolean" if isinstance(gold, bool) else _wrong_answer(name, gold)
    return wrong and f"'ground_truth' {wrong}"


def _label(task: Task, answer: Any, options: Any, row: Row, turn: Row) -> Any:
    """What a turn is scored against, from a row or from a line of a prediction file."""
    if task.name == "scbench_choice_eng":
        return [answer, _LETTERS[options.index(answer)]] if options else answer
    if task.name == "scbench_qa_eng":
        return answer if isinstance(answer, list) else [answer]
    kind = turn.get("task") if task.name in PARTS else task.name
    label: dict[str, Any] = {"task": kind}
    if kind == "scbench_repoqa":
        known = {"name": turn["name"], "lang": row["lang"], "repo": row["repo"]}
        return label | known | {"needle": answer}
    if task.name == "scbench_repoqa_and_kv":
        return label | {"gold": answer, "lang": row.get("lang"), "of_repo": row.get("repo")}
    return label | {"gold": answer} if task.name in PARTS else answer


def _context(row: Row) -> Any:
    return row["input"] if row.get("context") is None else row["context"]


def _prefix(question: str) -> str | None:
    """Math.Find's question, from its instruction."""
    found = _TARGET.search(question)
    return None if found is None else f"What is {found[0].lower()[:-3]}?"


def _fields(row: Row, number: int) -> dict[str, Any]:
    """What the templates of a turn are formatted with.

    In a chat template the authors ask every further question of Math.Find in the words of the last
    one: `last_prefix`.
    """
    turns = row["multi_turns"]
    turn, last = turns[number], turns[-1]
    return {
        "context": _context(row),
        "input": turn["input"],
        "question": turn["input"],
        "first_input": turns[0]["input"],
        "pre_ans": turns[number - 1]["answer"] if number else None,
        "prefix": _prefix(turn["input"]),
        "last_prefix": _prefix(last["input"]),
        **{
            f"OPTION_{letter}": option
            for letter, option in zip(_LETTERS, turn.get("options") or (), strict=False)
        },
    }


ADAPTER = SCBenchAdapter()
