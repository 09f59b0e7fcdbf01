"""How a run was made, as rows of text for the page: versions, hardware, settings, hashes."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from reports.formats import clipped
from reports.leaderboard import run_names
from reports.run_folders import Run

MOST_CHARACTERS = 1500
MOST_ROWS = 80


def details(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Per run its name and titled tables of (name, value); long ones are cut, and say so."""
    names = run_names([run.path for run in runs])
    return [{"name": name, "tables": _tables(run)} for name, run in zip(names, runs, strict=True)]


def _tables(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    info = run.info
    git = info.git or {}
    revision = str(git.get("revision", "not a git checkout"))
    if git.get("dirty"):
        revision += " with uncommitted changes"
    about = {
        "Folder": run.path.name,
        "Status": info.status,
        "Identity (SHA-256)": info.identity,
        "Started": info.created,
        "Last written": info.updated,
        "Command": shlex.join(info.command),
        "Code revision": revision,
        "Record schema": f"version {info.schema_version}",
    }
    tables: list[tuple[str, Mapping[str, Any]]] = [("The run", about)]
    if len(info.starts) > 1:  # the tables below are the latest one's
        tables.append(("Starts", _starts(run)))
    tables += [(f"Variant {name}", model) for name, model in info.models.items()]
    tables += [
        (f"Effective generation settings, {names}", settings)
        for names, settings in _merged(info.generation)
    ]
    tables.append(("Hardware", info.hardware))
    tables.append(("Package versions", info.packages))
    tables.append(("Configuration", info.configuration))
    tables.append(("Tasks: protocol, prompt hash, limits", info.tasks))
    tables.append(("Data files", _data_files(info.data_files)))
    tables.append(("What the identity is made of", info.identity_parts))
    return [(title, _rows(table)) for title, table in tables if table]


def _starts(run: Run) -> dict[str, Any]:
    """One row for each start: when, with what, and how many of the records are its."""
    counts = Counter(record.start or 0 for record in run.records)
    return {
        f"Start {number}": f"{start.time}{' (and later ones)' if start.reconstructed else ''}; "
        f"{counts[number]:,} records; {shlex.join(start.command)}"
        for number, start in enumerate(run.info.starts)
    }


def _merged(settings: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Settings with the names of the variants that share them."""
    groups: list[tuple[list[str], Mapping[str, Any]]] = []
    for variant, values in settings.items():
        for names, known in groups:
            if known == values:
                names.append(variant)
                break
        else:
            groups.append(([variant], values))
    return [(", ".join(names), values) for names, values in groups]


def _data_files(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        str(file.get("path", f"file {i}")): {k: v for k, v in file.items() if k != "path"}
        for i, file in enumerate(files, start=1)
    }


def _rows(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(clipped(str(k), 200), _written(v)) for k, v in list(table.items())[:MOST_ROWS]]
    if len(table) > MOST_ROWS:
        rows.append(("…", f"{len(table) - MOST_ROWS} more in run.json"))
    return rows


def _written(value: Any) -> str:
    """A value as text: plain for plain values, 'key: value' pairs for flat mappings, else JSON."""
    if value is None:
        text = "none"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, str):
        text = value
    elif isinstance(value, int):
        text = f"{value:,}" if abs(value) >= 10_000 else str(value)
    elif isinstance(value, Mapping) and all(
        v is None or isinstance(v, (str, int, float)) for v in value.values()
    ):
        text = " · ".join(f"{k}: {_written(v)}" for k, v in value.items()) or "none"
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return clipped(text, MOST_CHARACTERS)
