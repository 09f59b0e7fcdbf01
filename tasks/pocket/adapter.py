"""Rows of the pocket suite: those of the benchmark that a task imitates (`tasks.pocket.rows`)."""

from __future__ import annotations

from typing import Any

from tasks.rows import Row
from tasks.schema import RowAdapter, Task


class PocketAdapter(RowAdapter):
    """The standard rows, or InfiniteBench's, which have `id` and `answer`."""

    def check(self, row: Row, task: Task) -> list[str]:
        """See `RowAdapter.check`."""
        return super().check({"answers": row.get("answer"), **row}, task)

    def example_id(self, row: Row, task: Task, line: int) -> str:
        """See `RowAdapter.example_id`."""
        return str(row.get("_id") or row["id"])

    def answers(self, row: Row) -> list[str]:
        """See `RowAdapter.answers`."""
        return list(row.get("answers") or row["answer"])

    def label(self, row: Row, task: Task) -> Any:
        """None: the answers say all."""
        return None


ADAPTER = PocketAdapter()
