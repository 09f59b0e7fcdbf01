"""InfiniteBench: multiple choice and names.

Source: OpenBMB/InfiniteBench 88b3daa, src/compute_scores.py, `get_score_one_code_debug`,
`get_score_one_longbook_choice_eng` and `get_score_one_longdialogue_qa_eng`. What these miss is
kept, since the published scores contain it; two repaired variants stand beside them under names
of their own (`code_debug_letter`, `longdialogue_any`) and are no part of any protocol.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tasks.metrics.infinitebench import gold, retrieval_words
from tasks.schema import Example

_CHOICES = "ABCD"
_DEBUG_PREFIXES = ("answer is:", "is:", "answer:", "correct option is:")
_DEBUG_NOISE = re.compile("[\n`'\"*-]|Option|option")
_CHOICE_PREFIXES = ("answer is:", "answer:", "answer is", "option is")
_CHOICE_NOISE = re.compile("[\n\"'.,?!{}]")
_LEADING_LETTER = re.compile(r"\W*([A-D])(?=[^\w\s]|[^\S\n]*(?:\n|\Z))")
_BLANKS = re.compile("  +")


def _texts(label: object) -> list[str]:
    """The texts among a label's entries; a label that is one text is a list of it."""
    if isinstance(label, str):
        return [label]
    return [text for text in label if isinstance(text, str)] if isinstance(label, list) else []


def _after_prefix(text: str, prefixes: Iterable[str], answers: Sequence[str]) -> float | None:
    """Whether an answer follows the first of `prefixes` that the text has; None: it has none.

    One character after the prefix, whatever it is, is passed over.
    """
    for prefix in prefixes:
        place = text.find(prefix)
        if place >= 0:
            return float(text[place + len(prefix) + 1 :].startswith(tuple(answers)))
    return None


def code_debug(prediction: str, example: Example) -> float:
    """1 if the prediction names the function or its letter in one of a few forms, else 0.

    The label is [function, letter]; with less the score is 0, where the authors' code raises.
    Right are a prediction that starts with "B." or "B:", and one in which the function or the
    letter follows the first present of "answer is:", "is:", "answer:" and "correct option is:".
    A bare "B" and "B) ..." score 0.
    """
    answers = _texts(gold(example))[:2]
    if len(answers) < 2:
        return 0.0
    text = prediction.strip()
    if text.startswith((f"{answers[1]}.", f"{answers[1]}:")):
        return 1.0
    text = _BLANKS.sub(" ", _DEBUG_NOISE.sub(" ", text))
    return _after_prefix(text, _DEBUG_PREFIXES, answers[::-1]) or 0.0


def code_debug_letter(prediction: str, example: Example) -> float:
    """`code_debug`, or a prediction that begins with the letter: "B", "B)", "(B) f", "**B**".

    A letter before a blank counts only at the end of its line: "A function ..." chooses nothing.
    """
    answers = _texts(gold(example))[:2]
    if len(answers) < 2:
        return 0.0
    letter = _LEADING_LETTER.match(prediction)
    named = letter is not None and letter[1] == answers[1]
    return max(code_debug(prediction, example), float(named))


def longbook_choice(prediction: str, example: Example) -> float:
    """1 if the first sign of a choice in the prediction is the right one, else 0.

    The label is [option, letter]. If the stripped prediction's first character is one of ABCD,
    that decides - so "Certainly" chooses C. Else it is right if it is an entry of the label; else
    what follows the first present of "answer is:", "answer:", "answer is" and "option is"
    decides; else the first word that is a part of "ABCD" ("AB" too, which is never right).
    """
    answers = _texts(gold(example))
    text = prediction.strip()
    if not text:
        return 0.0
    if text[0] in _CHOICES:
        return float(text[0] in answers)
    if text in answers:
        return 1.0
    text = _BLANKS.sub(" ", _CHOICE_NOISE.sub(" ", text))
    decided = _after_prefix(text, _CHOICE_PREFIXES, answers)
    if decided is not None:
        return decided
    return next((float(word in answers) for word in text.split() if word in _CHOICES), 0.0)


def longdialogue(prediction: str, example: Example) -> float:
    """1 if the label's first name is one of the prediction's words in upper case, else 0.

    The name itself is neither put in upper case nor parted: one with a blank or a dot, as 24 of
    the 200 published ones, never scores, and further aliases do not count.
    """
    names = _texts(gold(example))[:1]
    words = [word.upper() for word in retrieval_words(prediction)]
    return float(any(name in words for name in names))


def longdialogue_any(prediction: str, example: Example) -> float:
    """1 if any of the label's names stands in the prediction word for word, case apart, else 0."""
    words = _name(prediction)
    names = (_name(name) for name in _texts(gold(example)))
    return float(any(len(name) > 2 and name in words for name in names))


def _name(text: str) -> str:
    return f" {' '.join(retrieval_words(text.upper()))} "
