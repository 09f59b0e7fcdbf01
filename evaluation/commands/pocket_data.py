"""`run_eval pocket-data`: write the pocket training data and tokenizer for `ahn train`.

It is a command of its own because the trainer does not know the benchmarks: it reads files.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import InputError, shown
from common.writing import replacing


def write_pocket_data(output: Path, share: float = 1.0) -> dict[str, int]:
    """Write `tokenizer/` and one chat JSONL per training phase into `output`.

    Args:
        output: folder, made when absent.
        share: part of each phase's tokens, for trials.

    Returns:
        Conversations written, per file name.

    Raises:
        InputError: a file that is there already is none of these, or nothing can be written.
    """
    from tasks.pocket.tokenizer import tokenizer_files, write_tokenizer
    from tasks.pocket.training import PHASES, conversations

    paths = {name: output / f"{name}.jsonl" for name in PHASES}
    _check(output / "tokenizer", tokenizer_files(), paths)
    try:
        write_tokenizer(output / "tokenizer")
        return {
            path.name: _write_lines(path, conversations(name, share))
            for name, path in paths.items()
        }
    except OSError as error:
        raise InputError(
            f"--output: {shown(output)} cannot be written ({error.strerror})"
        ) from error


def _write_lines(path: Path, lines: Iterator[Any]) -> int:
    count = 0
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
            count += 1
    return count


def _check(folder: Path, tokenizer: dict[str, Any], data: dict[str, Path]) -> None:
    """Refuse to replace what this command did not write."""
    from reports.targets import check_no_run_file

    foreign = [folder / name for name in tokenizer if not _is_json(folder / name, tokenizer[name])]
    for path in data.values():
        check_no_run_file(path)
        if path.exists() and not _is_conversations(path):
            foreign.append(path)
    if foreign:
        raise InputError(
            *(
                f"--output: {path} is there already and is no pocket data, so it is not replaced; "
                "name another folder"
                for path in foreign
            )
        )


def _is_json(path: Path, content: Any) -> bool:
    """Whether a file holds `content`, or is not there."""
    try:
        return not path.exists() or json.loads(path.read_text(encoding="utf-8")) == content
    except (OSError, ValueError):
        return False


def _is_conversations(path: Path) -> bool:
    """Whether a file's first lines are chats, as of this command."""
    try:
        with path.open(encoding="utf-8") as file:
            first = [json.loads(line) for line in itertools.islice(file, 3)]
    except (OSError, ValueError):
        return False
    return bool(first) and all(isinstance(line, dict) and "messages" in line for line in first)
