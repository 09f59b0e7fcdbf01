"""Our tasks inside lm-evaluation-harness 0.4.13, which loads the same YAML files.

`tasks/_lm_eval.yaml` names `rows` and `score` for every task: the documents are the rendered
prompts of our rows, the score is our metric. What the harness has no words for (which part of a
long prompt is cut, for which tasks the chat template is left out) a model can do as `run_eval`
does, since `document_of` gives it the task, the example and the protocol of a document.

`lm_eval --metadata '{"protocol": "ahn", "data": "FOLDER", "limit": 10}'` chooses; the number of
new tokens that the harness itself passes on is always that of `official`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tasks import pocket
from tasks.infinitebench.synthetic import parse_length
from tasks.registry import find_task, is_pocket, protocol_name
from tasks.schema import Example, InputError, Task
from tasks.sources import load_examples


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
        limit: rows. lm_eval's own `--limit` is applied afterwards, to what is read here.
        length: tokens, of pocket and synthetic rows: a number, or a text such as `128k`.
        seed: of generated rows; None: the protocol's.
        other: the constants of the file and the arguments of the model, which lm_eval passes on
            together; not used.

    Returns:
        `{"test": datasets.Dataset}` with the columns `prompt`, `target` (the first answer),
        `benchmark`, `name`, `protocol`, and `example` (the `Example` as JSON).

    Raises:
        InputError: unknown task or protocol, or rows that cannot be had or used.
    """
    from datasets import Dataset

    name = name if level is None else f"{name}_{level}"
    if is_pocket(name) and length is not None:
        tokens = parse_length(length)
        name, length = name if tokens == pocket.LENGTH else f"{name}_{tokens}", None
    task = find_task(benchmark, name)
    protocol = protocol_name(task.benchmark, protocol)
    seed = task.protocol(protocol).seed if seed is None else seed
    source = load_examples(task, data, limit, seed, length)
    documents = [
        {
            "prompt": task.render(example, protocol),
            "target": example.answers[0] if example.answers else "",
            "benchmark": task.benchmark,
            "name": task.name,
            "protocol": protocol,
            "example": json.dumps(dataclasses.asdict(example)),
        }
        for example in source.examples
    ]
    return {"test": Dataset.from_list(documents)}


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
