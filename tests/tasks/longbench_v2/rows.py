"""Rows in LongBench v2's format, made here."""

from __future__ import annotations

from typing import Any

DOMAINS = (
    "Single-Document QA",
    "Multi-Document QA",
    "Long In-context Learning",
    "Long-dialogue History Understanding",
    "Code Repository Understanding",
    "Long Structured Data Understanding",
)


def row(number: int, **changed: Any) -> dict[str, Any]:
    """A row; three follow one another in each group of lengths, two share a text."""
    return {
        "_id": f"row{number}",
        "domain": DOMAINS[number % 6],
        "sub_domain": "Made",
        "difficulty": ("easy", "hard")[number % 2],
        "length": ("short", "medium", "long")[number % 3],
        "question": f" Which lamp is number {number}? ",
        "choice_A": "the red one",
        "choice_B": "the green one ",
        "choice_C": "the blue one",
        "choice_D": "none",
        "answer": "ABCD"[number % 4],
        "context": f"\nText {number // 2} tells of lamps. " * 4,
    } | changed
