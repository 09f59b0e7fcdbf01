"""Rows and prediction files of LongBench-E: those of LongBench, in files `<task>_e.jsonl`."""

from __future__ import annotations

from tasks.longbench.form import FORM as _LONGBENCH

FORM = _LONGBENCH  # a task's name says the rest: `hotpotqa_e`
