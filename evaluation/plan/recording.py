"""What a record says of its example before anything is answered, and that it can be written.

The plan tries it for every example: a field of a row that no record can hold (half a surrogate
pair, NaN, classes that are no texts) is refused there, and not after hours of answers.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from common.validation import messages
from evaluation.plan.identity import prompt_sha256
from evaluation.plan.planned import PlannedTask
from reports.records import ExampleRecord


def example_fields(planned: PlannedTask, index: int) -> dict[str, Any]:
    """The fields of `ExampleRecord` that follow from the example, its prompt and its task."""
    example, prompt = planned.examples[index], planned.prompts[index]
    length = example.row.get("length")
    return {
        "benchmark": planned.task.benchmark,
        "task": planned.task.name,
        "protocol": planned.protocol,
        "example_id": example.example_id,
        "document_id": example.document_id,
        "answers": list(example.answers),
        "metric": planned.rules.metric,
        "prompt_tokens": prompt.tokens,
        "prompt_tokens_untruncated": prompt.tokens_untruncated,
        "truncated": prompt.tokens_cut > 0,
        "truncation": prompt.truncation,
        "tokens_cut": prompt.tokens_cut,
        "chat_template": prompt.chat_template,
        "answer_in_prompt": prompt.answer_in_prompt,
        "answer_removed": prompt.answer_removed,
        "prompt_tail": prompt.tail,
        "length": length if type(length) is int else None,
        "all_classes": example.row.get("all_classes"),
        "label": None if example.label == example.answers else example.label,
        "gold_ans": example.row.get("answer_keywords"),
        "prompt_sha256": prompt_sha256(planned, index),
        "attributes": dict(example.attributes),
    }


def unwritable(planned: PlannedTask) -> list[str]:
    """A message for every example of which no record can be written, or not read back as it was."""
    problems = []
    for index, example in enumerate(planned.examples):
        reason = _why_not(example_fields(planned, index))
        if reason:
            problems.append(f"{example.where}: no record can be written of this row: {reason}")
    return problems


def _why_not(fields: dict[str, Any]) -> str | None:
    """Why a record with these fields cannot be written and read back; None: it can."""
    given: dict[str, Any] = {
        "variant": "any",
        "prediction": "",
        "score": None,
        "error": "not answered",
    }
    try:
        record = ExampleRecord(**fields, **given)
        content = json.loads(record.to_line())
        again = ExampleRecord.model_validate(content, strict=True)
    except ValidationError as error:
        place, text = next(messages(error, noun="field"))
        return f"{'.'.join(place)}: {text}"
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.start]
        return f"half a surrogate pair after {near!r}, which UTF-8 cannot hold"
    except (ValueError, TypeError, RecursionError) as error:
        return str(error)
    for name, value in fields.items():
        if getattr(again, name) != value:
            return f"{name}: {value!r} would be read back as {getattr(again, name)!r}"
    return None
