"""Rows and prediction files of LongBench and, but for the file names, of LongBench-E.

Rows: THUDM/LongBench, `data.zip`. Prediction files: THUDM/LongBench 2e00731, LongBench/pred.py.
"""

from __future__ import annotations

from tasks.rows import Row
from tasks.schema import RowAdapter, Task


class LongBenchAdapter(RowAdapter):
    """LongBench's rows are the standard ones; its files lie in one archive."""

    own_columns = frozenset({"_id"})

    def allows_unknown_dataset(self, row: Row) -> bool:
        """Every row names its own data set."""
        return False

    def archives(self, task: Task) -> list[str]:
        """The archive as the authors publish it."""
        return ["data.zip"]

    def hub_file(self, task: Task) -> str:
        """The same on the hub."""
        return "data.zip"

    def export_name(self, task: Task) -> str:
        """Both benchmarks name the file after the data set, in folders of their own."""
        return f"{task.dataset or task.name}.jsonl"


class LongBenchEAdapter(LongBenchAdapter):
    """LongBench-E: a task's name says in which file its rows are, `hotpotqa_e.jsonl`."""

    def export_folder(self, task: Task) -> str:
        """Beside LongBench's."""
        return "pred_e"


ADAPTER = LongBenchAdapter()
