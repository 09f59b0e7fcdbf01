"""InfiniteBench: numbers, keys and computed values that are right or wrong.

Source: OpenBMB/InfiniteBench 88b3daa, src/compute_scores.py, `get_score_one_passkey`,
`get_score_one_number_string`, `get_score_one_kv_retrieval`, `get_score_one_code_run`,
`get_score_one_math_find` and `get_score_one_math_calc`, oddities included: a label's *type*
counts, so the metrics read `example.label` (the raw gold value) and not the answers' texts.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from tasks.schema import Example

_ASCII_DIGITS = re.compile("[0-9]+")
_NUMBER = re.compile(r"\d+\.\d+|\d+")
_RETRIEVAL_PUNCTUATION = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))
_VALUE_PUNCTUATION = str.maketrans(dict.fromkeys("\n.`'\":", " "))


def gold(example: Example) -> Any:
    """The raw gold value of an example; its answers where there is none."""
    return list(example.answers) if example.label is None else example.label


def first(label: Any) -> Any:
    """A label that is not a list, or the first entry of one; None for an empty list."""
    if isinstance(label, list):
        return label[0] if label else None
    return label


def retrieval_words(text: str) -> list[str]:
    """Words after ``\\n : " ' . , ? ! { }`` became blanks; brackets and back quotes stay."""
    return text.translate(_RETRIEVAL_PUNCTUATION).split()


def first_number(prediction: str, example: Example) -> float:
    """Passkey and number string: 1 if the first run of ASCII digits is the label's text, else 0.

    "71432" is found in "71432.0", but neither in "071432" nor in "1. 71432". An empty list as
    label, at which the authors' code raises, scores 0.
    """
    digits = _ASCII_DIGITS.search(prediction)
    return float(first(gold(example)) == (digits[0] if digits else ""))


def kv_retrieval(prediction: str, example: Example) -> float:
    """1 if the label is one of the prediction's words (see `retrieval_words`), else 0.

    A label that is a list is no word and scores 0, as in the authors' code: they scored a data
    set whose labels were texts. Rows of today's, where each is a list of one text, are unwrapped
    when they are read (`tasks/infinitebench/adapter.py`).
    """
    label = example.answers[0] if example.label is None and example.answers else example.label
    return float(label in retrieval_words(prediction))


def code_run(prediction: str, example: Example) -> float:
    """1 if the last word, as an integer, equals the label, else 0.

    Blanks, newlines and ``. ` ' " :`` part words, and `int` reads them: "4_0" is 40 and "４" is
    4, but "24.\\n\\nThe value" ends in no number. A label that is text never equals.
    """
    words = prediction.translate(_VALUE_PUNCTUATION).split()
    try:
        value = int(words[-1]) if words else None
    except ValueError:  # no integer, or one of more digits than Python converts
        return 0.0
    return float(value is not None and first(gold(example)) == value)


def math_find(prediction: str, example: Example) -> float:
    """1 if the first number (Unicode digits, no sign, perhaps decimals) equals the label, else 0.

    The authors' code raises where the label is an integer and the number has decimals, and where
    the label is text; the values are compared there too, so "88.5" is not 88, "88.0" is, and the
    label "88" is 88. A label that is no number scores 0.
    """
    found = _NUMBER.search(prediction)
    label = _number(first(gold(example)))
    if found is None or label is None:
        return 0.0
    if isinstance(label, float):
        return float(float(found[0]) == label)
    return float(Decimal(found[0]) == label)


def _number(label: Any) -> int | float | Decimal | None:
    if isinstance(label, int | float):
        return label
    try:
        return Decimal(label) if isinstance(label, str) else None
    except InvalidOperation:
        return None


def math_calc(prediction: str, example: Example) -> float:
    """Share of the label's values that the prediction gives before its first wrong one.

    The prediction's values are its runs of ASCII digits: signs are lost, and "1.2" is two values.
    Where the row says that its model is `gpt4`, the first is dropped, since the authors' prompt
    makes that model repeat the first operand. A label that is no list, or an empty one, at which
    the authors' code raises, scores 0; a number of over 4300 digits, at which it raises too, is
    a wrong one.
    """
    return _leading_share(prediction, example, 1 if example.row.get("model") == "gpt4" else 0)


def math_calc_gpt4(prediction: str, example: Example) -> float:
    """`math_calc` without the prediction's first number: the authors' rule for GPT-4."""
    return _leading_share(prediction, example, 1)


def _leading_share(prediction: str, example: Example, skipped: int) -> float:
    label = gold(example)
    if isinstance(label, list) and label and isinstance(label[0], list):
        label = label[0]
    if not isinstance(label, list) or not label:
        return 0.0
    values = _ASCII_DIGITS.findall(prediction)[skipped:]
    right = 0
    for value, wanted in zip(values, label, strict=False):
        if Decimal(value) != wanted:
            break
        right += 1
    return right / len(label)
