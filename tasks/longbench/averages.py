"""The LongBench leaderboard: categories and the two languages.

A category is the mean of its data sets in that language; a language's Avg is the mean of its six
categories, where code completion counts in both. Source: THUDM/LongBench 2e00731,
LongBench/README.md, whose 16 Avgs and 96 cells come out this way (to 0.07, its own rounding).
"""

from __future__ import annotations

from collections.abc import Mapping

from tasks.means import Figure, Scores, Table, mean, percent
from tasks.registry import expand, find_task

CATEGORIES = (
    "single-doc QA",
    "multi-doc QA",
    "summarization",
    "few-shot learning",
    "code completion",
    "synthetic",
)
"""In the order of the leaderboard, which has Avg before them."""
_LANGUAGES = {"English": "longbench_en", "Chinese": "longbench_zh"}


def tables(scores: Scores) -> list[Table]:
    """The mean of each data set, and the leaderboard of each language that has any task."""
    figures = {name: percent(found) for name, found in scores.items()}
    per_task = Table(
        "LongBench: score per data set",
        ("score",),
        tuple((name, (figure,)) for name, figure in figures.items()),
    )
    return [per_task, *leaderboards(figures)]


def leaderboards(figures: Mapping[str, Figure]) -> list[Table]:
    """Avg and the categories of each language, from the figure of each data set, in percent."""
    found = []
    for language, group in _LANGUAGES.items():
        members = [task.name for task in expand("longbench", [group], None)]
        missing = [name for name in members if figures.get(name) is None]
        if len(missing) == len(members):
            continue
        of_category = {
            category: mean(
                [figures.get(name) for name in members if _category(name) == category], 2
            )
            for category in CATEGORIES
        }
        average = mean(list(of_category.values()), 2)
        found.append(
            Table(
                f"LongBench: {language}",
                ("Avg", *CATEGORIES),
                (("mean", (average, *of_category.values())),),
                f"not here: {', '.join(missing)}" if missing else "",
            )
        )
    return found


def _category(name: str) -> str:
    return find_task("longbench", name).category
