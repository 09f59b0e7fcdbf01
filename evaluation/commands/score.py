"""`run_eval score`: a prediction file to scores; all written, or nothing. No torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from common.errors import InputError
from common.progress import ProgressBar
from common.writing import check_writable, write_whole
from evaluation.commands.data_folders import register_benchmark_in
from evaluation.commands.options import Score
from evaluation.commands.terminal import console
from reports.targets import check_no_run_file
from tasks.scoring import benchmark_score, score_per_length, scored_file


def score_to(asked: Score) -> str:
    """Score a prediction file and write ``{"score": ...}`` per line where asked.

    Returns:
        The line that is printed: task, protocol, number of predictions, score.

    Raises:
        InputError: whatever is wrong with the input; nothing is written then.
    """
    if asked.per_example is not None:
        _check_output(asked.per_example, asked.file)  # scoring may take long
    register_benchmark_in(asked.data)
    with ProgressBar(console(stderr=True), "scoring") as bar:
        lines = scored_file(
            asked.file,
            asked.benchmark,
            asked.task,
            asked.protocol,
            data=asked.data,
            metric=asked.metric,
            workers=asked.workers,
            watch=bar.update,
        )
    if asked.per_example is not None:
        content = "".join(json.dumps({"score": line.score}) + "\n" for line in lines)
        write_whole(asked.per_example, content)
    how = asked.protocol if asked.metric is None else f"{asked.protocol}, but by {asked.metric}"
    score = benchmark_score([line.score for line in lines])
    by_length = score_per_length(asked.benchmark, asked.task, lines)
    lengths = "; ".join(f"{length}: {figure}" for length, figure in by_length.items())
    return f"{asked.task} ({how}, {len(lines)} predictions): {score}" + (
        lengths and f" ({lengths})"
    )


def _check_output(output: Path, file: Path) -> None:
    check_writable(output)
    if output.exists() and file.exists() and output.samefile(file):
        raise InputError(f"--per-example: {output} is the file with the predictions")
    check_no_run_file(output)
    if os.path.lexists(output) and not _holds_scores(output):
        raise InputError(
            f"--per-example: {output} is there already and holds no scores, so it is not replaced; "
            "name another file, or delete this one"
        )


def _holds_scores(path: Path) -> bool:
    """Whether a file is a list of scores that this command wrote."""
    if not path.is_file():
        return False
    some = False
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                content = json.loads(line)
                if not isinstance(content, dict) or set(content) != {"score"}:
                    return False
                some = True
    except (OSError, ValueError, RecursionError):
        return False
    return some
