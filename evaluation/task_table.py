"""`run_eval tasks`: what can be asked for by name. No torch."""

from __future__ import annotations

from rich.table import Table

from tasks import pocket
from tasks.registry import find_task, group_names, task_names


def task_table(benchmark: str) -> Table:
    """The tasks of a benchmark that can be asked for by name."""
    table = Table(title=f"Tasks of {benchmark}", title_justify="left", caption_justify="left")
    for name in ("task", "language", "category", "metric", "answer up to", "rows"):
        table.add_column(name, no_wrap=True)
    generated = pocket.task_names() if benchmark == "longbench" else []
    for name in [*task_names(benchmark), *generated]:
        task = find_task(benchmark, name)
        rules = task.protocols["official"]
        other = task.protocols.get("ahn", rules)
        lengths = dict.fromkeys((rules.max_new_tokens, other.max_new_tokens))
        table.add_row(
            name,
            task.language,
            task.category,
            rules.metric,
            " / ahn ".join(str(length) for length in lengths),
            "generated (--data pocket)" if name in generated else "published",
        )
    groups = [name for name in group_names(benchmark) if name != benchmark]
    table.caption = f"groups: {', '.join([benchmark, *groups, *(['pocket'] if generated else [])])}"
    return table
