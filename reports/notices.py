"""Warnings of a page: unfinished runs, errors, conditions that differ between runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from reports.costs import Cost, cost_of
from reports.equal_bytes import off_budget
from reports.leaderboard import Column, TaskKey, compared_tasks, model_names, tasks_of
from reports.matched import matched
from reports.run_folders import Run

_MOST_WARNINGS = 10
_MOST_TASKS = 6
_SETTINGS = (
    "template_sha256",
    "system_message",
    "chat_template",
    "max_length",
    "truncation",
    "max_new_tokens",
)
"""What `run.json` says of a task that decides what its score means."""

_GENERATED = re.compile(r"generated:[^/?]+/(?P<task>[^?]+)\?(?P<how>.*)")


def notices(runs: Sequence[Run], columns: Sequence[Column]) -> list[str]:
    """Plain sentences, the gravest first; empty when there is nothing to warn of."""
    found: list[str] = []
    for run in runs:
        found += _of_run(run, [column for column in columns if column.run is run])
    found += _unlike(columns)
    found += off_budget([(column, _own_cost(column)) for column in columns])
    found += _fallbacks(columns)
    found += _cache_disagrees(columns)
    found += _answers_removed(columns)
    found += _generated(runs)
    found += _guesses(columns)
    warnings = [warning for run in runs for warning in run.warnings]
    found += warnings[:_MOST_WARNINGS]
    if len(warnings) > _MOST_WARNINGS:
        found.append(f"… and {len(warnings) - _MOST_WARNINGS} more warnings about the files.")
    return found


def _of_run(run: Run, columns: Sequence[Column]) -> list[str]:
    """Unfinished, incomplete or failed parts of one run."""
    found: list[str] = []
    name = columns[0].run_name if columns else str(run.path)
    per_variant = sum(columns[0].planned(task) or 0 for task in run.info.tasks) if columns else 0
    planned = per_variant * max(len(run.info.models), len(columns))
    have = len(run.records)
    progress = f": {have:,} of {planned:,} planned examples have a record" if planned else ""
    if run.info.status != "finished":
        found.append(
            f"Run {name} is not finished (status: {run.info.status}){progress}. Every figure "
            "below is preliminary."
        )
    elif planned and have < planned:
        found.append(f"Run {name} calls itself finished, but is incomplete{progress}.")
    absent = [variant for variant in run.info.models if variant not in {c.variant for c in columns}]
    if absent:
        found.append(f"Run {name} has no record of the variant{_plural(absent)}.")
    failed = {c.label: c.errors for c in columns if c.errors}
    if failed:
        total = sum(failed.values())
        each = ", ".join(f"{label}: {count:,}" for label, count in failed.items())
        found.append(
            f"{total:,} of {have:,} examples of run {name} ended with an error ({each}). They have "
            "no score and are left out of means, differences and costs, for every variant; if they "
            "were hard ones, all of these flatter."
        )
    return found


def _unlike(columns: Sequence[Column]) -> list[str]:
    """Where columns were not asked the same questions in the same way."""
    found: list[str] = []
    shared, every = compared_tasks(columns), tasks_of(columns)
    if len(columns) > 1 and not shared:
        found.append(
            "No task was answered by every variant: each average covers the tasks of its own "
            "variant, and averages must not be compared."
        )
    elif len(shared) < len(every):
        found.append(
            f"{len(every) - len(shared)} of {len(every)} tasks lack a score of some variant: "
            f"averages and cost cover the {len(shared)} tasks that all have."
        )
    for task in every:
        differing = _differing(task, [c for c in columns if task in c.cells])
        if differing:
            found.append(
                f"Task {task.task}: the runs used different prompts or metrics "
                f"({', '.join(differing)}); its scores are not comparable between them."
            )
    return found + _unmatched(columns) + _models(columns)


def _differing(task: TaskKey, columns: Sequence[Column]) -> list[str]:
    """Which of a task's settings differ between the runs of `columns`."""
    settings = [column.run.info.tasks.get(task.task, {}) for column in columns]
    found = [
        name
        for name in _SETTINGS
        if len({str(s[name]) for s in settings if s.get(name) is not None}) > 1
    ]
    metrics = {record.metric for column in columns for record in column.cells[task]}
    return [*found, "metric"] if len(metrics) > 1 else found


def _unmatched(columns: Sequence[Column]) -> list[str]:
    """Examples that only some of the columns answered."""
    shared = matched(columns)
    found, left_out, asked = [], Counter[str](), 0
    for task in tasks_of(columns):
        if len(shared.having[task]) < 2:
            continue
        if not shared.common[task]:
            found.append(
                f"Task {task.task}: the variants answered different examples, and have none in "
                "common; each has the mean of its own, and these do not compare."
            )
            continue
        missing = shared.left_out(columns, task)
        asked += missing + len(shared.common[task])
        left_out[task.task] += missing
    listed = [f"{task}: {count:,}" for task, count in left_out.most_common(_MOST_TASKS) if count]
    if not listed:
        return found
    more = sum(count > 0 for count in left_out.values()) - len(listed)
    if more:
        listed.append(f"and {more} more tasks")
    found.append(
        f"{sum(left_out.values()):,} of {asked:,} examples were not answered by every variant "
        f"({', '.join(listed)}): scores, differences, costs and curves leave them out."
    )
    return found


def _models(columns: Sequence[Column]) -> list[str]:
    """Which models a page is about, where there are several."""
    names = model_names([column.model for column in columns])
    if len(names) < 2:
        return []
    return [
        f"This page has {len(names)} models ({', '.join(names.values())}). Each variant is "
        "compared with full attention and the window of its own model."
    ]


def _own_cost(column: Column) -> Cost:
    """Costs of a column over all of its examples that did not fail."""
    return cost_of([(record, None) for record in column.records if record.error is None])


def _fallbacks(columns: Sequence[Column]) -> list[str]:
    """Columns that do not work as their kind does: they said so (`fallback` in run.json)."""
    told = [(c.label, c.run.info.models.get(c.variant, {}).get("fallback")) for c in columns]
    return [f"{label}: {fallback}." for label, fallback in told if fallback]


def _cache_disagrees(columns: Sequence[Column]) -> list[str]:
    """Columns whose measured cache is not the analytic one: one of the two is wrong."""
    found = []
    for column in columns:
        pairs = [
            (r.cache_bytes_measured, r.cache_bytes_analytic)
            for r in column.records
            if r.cache_bytes_measured is not None and r.cache_bytes_analytic is not None
        ]
        unequal = sum(measured != analytic for measured, analytic in pairs)
        if unequal:
            found.append(
                f"{column.label}: measured and analytic cache bytes differ in {unequal:,} of "
                f"{len(pairs):,} examples."
            )
    return found


def _answers_removed(columns: Sequence[Column]) -> list[str]:
    """Where the cut took the answer away, so that no model could have read it there."""
    removed: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    seen = set()
    for column in columns:
        for record in column.records:
            example = (record.task, record.protocol, record.example_id, record.prompt_tokens)
            if example not in seen:
                seen.add(example)
                asked[record.task] += 1
                removed[record.task] += record.answer_removed
    affected = [(task, count) for task, count in removed.most_common() if count]
    if not affected:
        return []
    listed = [f"{task}: {count:,} of {asked[task]:,}" for task, count in affected[:_MOST_TASKS]]
    if len(affected) > _MOST_TASKS:
        listed.append(f"and {len(affected) - _MOST_TASKS} more tasks")
    return [
        f"The cut removed the reference answer's text from {sum(removed.values()):,} prompts "
        f"({', '.join(listed)}): a miss there is no fault of the model."
    ]


def _generated(runs: Sequence[Run]) -> list[str]:
    """Benchmarks' tasks whose rows were made, not read; tasks that have no others do not count.

    Rows that are made for a tokenizer have no published form: one notice for all their lengths.
    """
    tasks: dict[str, list[str]] = {}
    for run in runs:
        for file in run.info.data_files:
            match = _GENERATED.fullmatch(str(file.get("path")))
            if match and match["task"] not in tasks.setdefault(match["how"], []):
                tasks[match["how"]].append(match["task"])
    found: list[str] = []
    made: dict[tuple[tuple[str, str], ...], tuple[list[str], list[str]]] = {}
    for how, names in tasks.items():
        settings = dict(part.partition("=")[::2] for part in how.split("&"))
        if "tokenizer_sha256" not in settings:
            found.append(
                f"The rows of {', '.join(names)} were generated ({how.replace('&', ', ')}), they "
                "are not the published ones: published figures are of other questions."
            )
            continue
        length = settings.pop("length")
        lengths, of_all = made.setdefault(tuple(settings.items()), ([], []))
        lengths.append(length)
        of_all += [name for name in names if name not in of_all]
    for made_by, (lengths, names) in made.items():
        found.append(
            f"The rows of {', '.join(names)} (length {', '.join(lengths)}; seed "
            f"{dict(made_by).get('seed')}) were made for this model's tokenizer: a model with "
            "another tokenizer is asked other rows, also where its published figures are made so."
        )
    return found


def _guesses(columns: Sequence[Column]) -> list[str]:
    """Tasks whose answers are chosen from a list: what a guess is worth."""
    tasks: dict[float, list[str]] = {}
    for column in columns:
        for task in column.cells:
            chance = column.run.info.tasks.get(task.task, {}).get("chance")
            if isinstance(chance, int | float) and not isinstance(chance, bool):
                named = tasks.setdefault(chance, [])
                if task.task not in named:
                    named.append(task.task)
    return [
        f"{', '.join(names)}: a guess scores {100 * chance:g} %. A score whose interval holds "
        f"{100 * chance:g} shows no more than guessing, and small differences between variants are "
        "not told apart by so few questions: compare the intervals."
        for chance, names in tasks.items()
    ]


def _plural(names: Sequence[str]) -> str:
    return f"s {', '.join(names)}" if len(names) > 1 else f" {names[0]}"
