"""Our tasks inside lm-evaluation-harness 0.4.13, which loads the same YAML files.

`tasks/_lm_eval.yaml` names `rows` and `score` for every task: the documents are the rendered
prompts of our rows, the score is our metric. What the harness has no words for (which part of a
long prompt is cut, for which tasks the chat template is left out) a model can do as `run_eval`
does, since `document_of` gives it the task, the example and the protocol of a document; of any
other model `tasks.lm_eval_task` says so.

`lm_eval --metadata '{"protocol": "ahn", "data": "FOLDER", "limit": 10}'` chooses.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

from common.errors import InputError, Problems
from common.suggestions import nearest
from tasks.lengths import parse_length
from tasks.registry import (
    at_length,
    benchmark_definition,
    find_task,
    is_benchmark_folder,
    protocol_name,
    register_benchmark,
)
from tasks.schema import Example, Task
from tasks.sources import check_limit, load_examples

PROTOCOL_MODELS: WeakSet[Any] = WeakSet()
"""Models of this process that ask our documents by their protocol, whatever the harness does."""

_CHOICES = ("protocol", "data", "limit", "length", "seed")


@dataclass(frozen=True)
class TaskDocument:
    """What a document stands for."""

    task: Task
    example: Example
    protocol: str


def rows(
    benchmark: str,
    name: str,
    level: str | None = None,
    protocol: str = "official",
    data: str | None = None,
    limit: int | None = None,
    length: int | str | None = None,
    seed: int | None = None,
    **other: Any,
) -> dict[str, Any]:
    """`custom_dataset`: the documents of one task, as the split `test`.

    Args:
        benchmark, name, level: which task; from `dataset_kwargs` of its file.
        protocol: `official`, `ahn` or another that the task has.
        data: a folder, `"synthetic"`, or None, the hub; as of `tasks.sources.load_examples`.
        limit: rows, at most `tasks.sources.MOST_ROWS`. lm_eval's own `--limit` is applied
            afterwards, to what is read here.
        length: tokens, of generated rows: a number, or a text such as `128k`; of rows that are made
            for a tokenizer and lie in a folder of each length: which.
        seed: of generated rows; None: the protocol's.
        other: the constants of the file and the arguments of the model, which lm_eval passes on
            together; not used. A name so near to one of the above that it must be meant is an
            error.

    Returns:
        `{"test": datasets.Dataset}` with the columns `prompt`, `target` (the first answer),
        `benchmark`, `name`, `protocol`, and `example` (the `Example` as JSON).

    Raises:
        InputError: unknown task or protocol, a choice of the wrong kind, or rows that cannot be
            had or used.
    """
    from datasets import Dataset

    _check_choices(protocol, data, limit, seed, other)
    name = name if level is None else f"{name}_{level}"
    if is_benchmark_folder(data):
        register_benchmark(Path(str(data)))
    task = find_task(benchmark, name)
    definition = benchmark_definition(task.benchmark)
    if length is not None and (definition.lengths or definition.made_for_tokenizer):
        task, length = at_length(task, parse_length(length)), None
    protocol = protocol_name(task.benchmark, protocol)
    seed = task.protocol(protocol).seed if seed is None else seed
    source = load_examples(task, data, limit, seed, length)
    documents = [
        {
            "prompt": task.render(example, protocol) + task.render_answer_prefix(example, protocol),
            "target": example.answers[0] if example.answers else "",
            "benchmark": task.benchmark,
            "name": task.name,
            "protocol": protocol,
            "example": json.dumps(dataclasses.asdict(example), default=str),
        }
        for example in source.examples
    ]
    return {"test": Dataset.from_list(documents)}


def _check_choices(
    protocol: Any, data: Any, limit: Any, seed: Any, other: Mapping[str, Any]
) -> None:
    """InputError with a message for each choice of `--metadata` that cannot be meant."""
    problems = Problems()
    for name, value in (("protocol", protocol), ("data", data)):
        if not isinstance(value, str) and not (name == "data" and value is None):
            problems.add(f"--metadata: {name} should be text, not {value!r}")
    if limit is not None:
        with problems.collecting("--metadata: "):
            check_limit(limit)
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    if seed is not None and not (whole and 0 <= seed < 2**32):
        problems.add(f"--metadata: seed should be a number from 0 to 2**32 - 1, not {seed!r}")
    for name, value in other.items():
        if name == "protocols" and isinstance(value, Mapping):  # the constants of the file
            continue
        if close := nearest(name, _CHOICES, most=1, cutoff=0.8):
            problems.add(f"--metadata: unknown key {name!r}; did you mean {close[0]!r}?")
    problems.check()


@lru_cache(maxsize=4)
def _example(text: str) -> Example:
    return Example(**json.loads(text))


def document_of(doc: Mapping[str, Any]) -> TaskDocument | None:
    """What a document made by `rows` stands for; None for one of somebody else's task."""
    keys = ("benchmark", "name", "protocol", "example")
    if not all(isinstance(doc.get(key), str) for key in keys):
        return None
    try:
        task = find_task(doc["benchmark"], doc["name"])
        return TaskDocument(task, _example(doc["example"]), doc["protocol"])
    except (InputError, TypeError, ValueError):
        return None


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`process_results`: the score in [0, 1] of the answer to a document made by `rows`."""
    document = document_of(doc)
    if document is None:
        raise ValueError(f"not a document of these tasks: {', '.join(doc)}")
    return {"score": document.task.score(results[0], document.example, document.protocol)}
