"""SCBench: texts that an answer must hold, characters, numbers.

Source: microsoft/MInference fb56c91, scbench/compute_scores.py, oddities included. Multiple choice,
pass keys and summaries are scored there as in InfiniteBench: `tasks.metrics.infinitebench_choice`,
`tasks.metrics.infinitebench`, `tasks.metrics.rouge_lsum`.
"""

from __future__ import annotations

import math
import re
from typing import Any

from tasks.metrics.infinitebench import first, first_number, gold
from tasks.metrics.infinitebench_text import character_f1
from tasks.metrics.rouge_lsum import rouge_lsum
from tasks.schema import Example, scored_example

_NUMBER = re.compile(r"\d+\.\d+|\d+")


def _entries(label: Any) -> list[str]:
    """What the authors' loop over a label goes through: of a text, its characters."""
    return [entry for entry in label if isinstance(entry, str)] if label else []


def key(prediction: str, example: Example) -> float:
    """1 if the label, a text, stands in the prediction as it is, else 0."""
    label = first(gold(example))
    return float(isinstance(label, str) and label in prediction)


def any_of(prediction: str, example: Example) -> float:
    """1 if any entry of the label stands in the prediction, case apart, else 0.

    Of a label that is one text the entries are its *characters*, as in the authors' code: ICL's
    "(B)" is found in every prediction with a bracket. `any_of_texts` is what was meant.
    """
    said = prediction.strip().upper()
    return float(any(entry.upper() in said for entry in _entries(gold(example))))


def any_of_texts(prediction: str, example: Example) -> float:
    """`any_of`, but a label that is one text is one entry; no part of any protocol."""
    said = prediction.strip().upper()
    return float(any(answer.upper() in said for answer in example.answers if answer))


def all_of(prediction: str, example: Example) -> float:
    """The share of the label's entries that stand in the prediction, case apart.

    Rounded to two decimals, as in the authors' code: one of three is 0.33.
    """
    entries, said = _entries(gold(example)), prediction.lower()
    hits = sum(entry.lower() in said for entry in entries)
    return round(hits / len(entries), 2) if entries else 0.0


def characters(prediction: str, example: Example) -> float:
    """F1 over the characters of the normalised texts, the best over the label's entries.

    Of a label that is one text the entries are its characters, as in the authors' code: each is
    compared with the whole prediction. `infinitebench_character_f1` takes the text as a whole.
    """
    return character_f1(prediction, scored_example(_entries(gold(example))))


def number(prediction: str, example: Example) -> float:
    """1 if the first number of the prediction (no sign, perhaps decimals) is the label, else 0.

    A label that is an integer is compared with the number cut off at its point: "88.5" is 88. The
    authors' code raises where it is neither integer nor float, and where the number is too large
    for a float; the score is 0 there.
    """
    label, found = first(gold(example)), _NUMBER.search(prediction)
    if found is None or isinstance(label, bool) or not isinstance(label, int | float):
        return 0.0
    said = float(found[0])
    if isinstance(label, float):
        return float(said == label)
    return float(math.isfinite(said) and int(said) == label)


def summary_or_passkey(prediction: str, example: Example) -> float:
    """Summaries by ROUGE-Lsum, pass keys by the first number: as the label's `task` says."""
    label = example.label
    if not isinstance(label, dict):
        return 0.0
    of_part = scored_example([str(label.get("gold"))], label=label.get("gold"))
    if label.get("task") == "scbench_passkey":
        return first_number(prediction, of_part)
    return rouge_lsum(prediction, of_part)
