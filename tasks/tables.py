"""Rows of Parquet and Arrow files, one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import InputError, shown
from common.files import open_file, size
from tasks.jsonl import MOST_FILE_BYTES, MOST_ROW_BYTES, Bad, Line

_ROWS_AT_ONCE = 64


def parquet_rows(path: Path) -> Iterator[Line | Bad]:
    """The rows of a Parquet file, counted from 1; InputError where it cannot be read."""
    from pyarrow import ArrowException, parquet

    with open_file(path) as file:
        try:
            table = parquet.ParquetFile(file)
            _check_columns(path, table.schema_arrow.names)
            yield from _rows(path, table.iter_batches(batch_size=_ROWS_AT_ONCE))
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{shown(path)}: is not a whole Parquet file: {_first(error)}"
            ) from None


def arrow_rows(path: Path) -> Iterator[Line | Bad]:
    """The rows of a file that `datasets` saved (an Arrow stream), counted from 1.

    InputError where it cannot be read.
    """
    from pyarrow import ArrowException, ipc, memory_map

    open_file(path).close()  # what is no regular file cannot be mapped
    try:
        with memory_map(str(path)) as file, ipc.open_stream(file) as stream:
            _check_columns(path, stream.schema.names)
            yield from _rows(path, stream)
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shown(path)}: is not a whole Arrow file: {_first(error)}") from None


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_columns(path: Path, names: list[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(f"{shown(path)}: column {twice[0]!r} is there twice")


def _rows(path: Path, batches: Any) -> Iterator[Line | Bad]:
    number, total = 0, 0
    for batch in batches:
        for index in range(batch.num_rows):
            number += 1
            row = batch.slice(index, 1)
            total += row.nbytes
            if row.nbytes > MOST_ROW_BYTES:
                raise InputError(
                    f"{shown(path)}:{number}: is longer than a row may be ({size(MOST_ROW_BYTES)})"
                )
            if total > MOST_FILE_BYTES:
                raise InputError(
                    f"{shown(path)}: holds more than the {size(MOST_FILE_BYTES)} that are read "
                    "of a file"
                )
            (value,) = row.to_pylist()
            odd = [f"'{key}': {text} is no number" for key, text in _not_numbers(value)]
            yield Bad(number, odd[0]) if odd else Line(number, value)


def _not_numbers(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """NaN and infinities in a row, with the keys that lead there."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where, str(value)
    elif isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in entries:
            yield from _not_numbers(inner, f"{where}.{key}" if where else str(key))
