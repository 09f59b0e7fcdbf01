"""Rows and prediction files of LongBench-E: those of LongBench, in files `<task>_e.jsonl`."""

from __future__ import annotations

from tasks.longbench.adapter import LongBenchEAdapter

ADAPTER = LongBenchEAdapter()
