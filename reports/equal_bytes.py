"""Comparison at equal bytes: budgets in words, what is off them, and what nobody can know.

A run with a budget gives every variant whose size can be chosen so many bytes for each document.
What is equal is the bytes in use once the document was read and before the question. Variants of
a size of their own hold what they hold, and a back-end that cannot see its cache says nothing:
neither may pass for equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports import formats
from reports.costs import Cost
from reports.leaderboard import Column
from reports.run_folders import Run

TOLERANCE = 0.005
"""Share of the budget by which bytes may be off it and still count as equal."""

_MOST_NAMED = 8
_OF_DOCUMENTS = ("budget_bytes", "kept_tokens", "document_bytes")


def budget_text(run: Run) -> str | None:
    """The budget of a run in words; None: it has none."""
    given = run.info.configuration.get("budget")
    parts = run.info.identity_parts.get("budget")
    if given is None and parts is None:
        return None
    known = parts if isinstance(parts, Mapping) else {}
    if "as" in known:
        return f"as {given or known.get('kind')} holds, exact accounting"
    share, size = known.get("share_of_keys_and_values"), known.get("bytes")
    if isinstance(share, (int, float)):
        return f"{formats.percent(share)} of every token's keys and values"
    if isinstance(size, (int, float)):
        return f"{formats.size(size)} for each document"
    return str(given if given is not None else parts)


def budgets(columns: Sequence[Column]) -> dict[str, str]:
    """The budgets of the columns' runs in words, by the run's name."""
    texts = {column.run_name: budget_text(column.run) for column in columns}
    return {name: text for name, text in texts.items() if text is not None}


def is_off(cost: Cost) -> bool:
    """Whether a column is not at its budget, or nobody knows."""
    off = cost.kept.deviation
    return off is None or abs(off) > TOLERANCE


def keeps_everything(cost: Cost) -> bool:
    """Whether every token of the documents is kept."""
    kept, tokens = cost.amounts["kept_tokens"].mean, cost.amounts["document_tokens"].mean
    return kept is not None and tokens is not None and kept >= tokens


def shown_fields(costs: Sequence[Cost]) -> set[str]:
    """Which of the fields on documents a page has figures of; empty: it needs no table.

    Storages alone say something only where they are not the bytes in use.
    """

    def known(name: str) -> bool:
        return any(cost.amounts[name].mean is not None for cost in costs)

    found = {name for name in (*_OF_DOCUMENTS, "peak_bytes") if known(name)}
    beyond = [
        cost
        for cost in costs
        if cost.amounts["cache_bytes_stored"].mean is not None
        and cost.amounts["cache_bytes_stored"].mean != cost.amounts["cache_bytes_measured"].mean
    ]
    if (found or beyond) and known("cache_bytes_stored"):
        found.add("cache_bytes_stored")
    return found


def gap(column: Column, cost: Cost) -> str:
    """Why a column has no bytes after the document; empty: it has, or it has no example at all."""
    amounts = cost.amounts
    if amounts["document_bytes"].mean is not None or not cost.kept.examples:
        return ""
    if amounts["cache_bytes_measured"].mean is None:
        if column.kind == "endpoint":
            return "a server, whose cache cannot be seen"
        return "its back-end cannot tell the bytes of its cache"
    if amounts["document_tokens"].mean is None:
        return "read documents and questions in one"
    return "bytes after the document were not measured"


def off_budget(pairs: Sequence[tuple[Column, Cost]]) -> list[str]:
    """A sentence on each run with a budget in which variants are not at it.

    Args:
        pairs: the columns, each with its costs.
    """
    found = []
    texts = budgets([column for column, _ in pairs])
    for run, text in texts.items():
        off = [
            _off(column, cost)
            for column, cost in pairs
            if column.run_name == run and cost.kept.examples and is_off(cost)
        ]
        if not off:
            continue
        named = ", ".join(off[:_MOST_NAMED])
        if len(off) > _MOST_NAMED:
            named += f" and {len(off) - _MOST_NAMED} more variants"
        found.append(
            f"Run {run} has a budget for each document ({formats.clipped(text, 80)}), and not at "
            f"it are {named}: they do not compare at equal bytes."
        )
    if len(set(texts.values())) > 1:
        each = "; ".join(f"{run}: {text}" for run, text in texts.items())
        found.append(
            f"The runs have different budgets ({each}): their sized variants do not compare at "
            "equal bytes with one another."
        )
    return found


def _off(column: Column, cost: Cost) -> str:
    if cost.kept.deviation is None:
        return f"{column.label}: bytes not known"
    everything = ", with every token kept" if keeps_everything(cost) else ""
    return f"{column.label} ({formats.signed_percent(cost.kept.deviation)}{everything})"


def kept_table(pairs: Sequence[tuple[Column, Cost]]) -> dict[str, Any] | None:
    """What a page shows of the bytes of documents; None: nothing is recorded of them.

    Returns:
        `fields`, which of the record's fields some column has; `budgets` in words, by run; and
        `rows`, each with `column`, `cost`, `gap` and `off` (whether it is off its budget).
    """
    fields = shown_fields([cost for _, cost in pairs])
    if not fields:
        return None
    of_documents = bool(fields & set(_OF_DOCUMENTS))
    texts = budgets([column for column, _ in pairs])
    return {
        "fields": fields,
        "budgets": texts,
        "runs": len({column.run_name for column, _ in pairs}),
        "rows": [
            {
                "column": column,
                "cost": cost,
                "gap": gap(column, cost) if of_documents else "",
                "off": column.run_name in texts and is_off(cost),
            }
            for column, cost in pairs
        ],
    }
