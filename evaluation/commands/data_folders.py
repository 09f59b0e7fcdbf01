"""Benchmarks that a folder of data defines: a run folder says where its own was."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from common.errors import InputError
from reports.records import RunInfo
from tasks.registry import is_benchmark_folder, register_benchmark


def register_benchmark_of(info: RunInfo) -> None:
    """Make the benchmark known that the run's `--data` folder defined, if it is still there.

    Its tasks are then scored and exported as before; where it is gone, or is another benchmark now,
    they are unknown tasks, which the commands say.
    """
    data = info.configuration.get("data")
    if isinstance(data, str) and is_benchmark_folder(data):
        with suppress(InputError):
            register_benchmark(Path(data))


def register_benchmark_in(data: str | None) -> None:
    """Make the benchmark known that the folder `data` defines; nothing where it defines none.

    Raises:
        InputError: its files are wrong, or there is another benchmark of its name.
    """
    if data is not None and is_benchmark_folder(data):
        register_benchmark(Path(data))
