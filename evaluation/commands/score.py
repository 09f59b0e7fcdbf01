"""`run_eval score`: a prediction file to scores; all written, or nothing. No torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from common.errors import InputError
from common.progress import ProgressBar
from common.writing import check_writable, write_whole
from evaluation.commands.data_folders import register_benchmark_in
from evaluation.commands.terminal import console
from reports.targets import check_no_run_file
from tasks.scoring import benchmark_score, score_per_length, scored_file


def score_to(
    file: Path,
    benchmark: str,
    task: str,
    protocol: str,
    per_example: Path | None = None,
    data: str | None = None,
    workers: int | None = None,
    metric: str | None = None,
) -> str:
    """Score `file`, write ``{"score": ...}`` per line to `per_example`; returns the result's line.

    Args:
        file: predictions, in the authors' format or ours.
        benchmark, task, protocol: what they are predictions of.
        per_example: where the scores go; None: nowhere.
        data: folder with the task's rows; the file must then have as many predictions. It may
            define the benchmark, too.
        workers: processes; None: chosen by what there is to do.
        metric: name of another metric than the protocol's; the result says so.

    Raises:
        InputError: whatever is wrong with the input; nothing is written then.
    """
    if per_example is not None:
        _check_output(per_example, file)  # scoring may take long
    register_benchmark_in(data)
    with ProgressBar(console(stderr=True), "scoring") as bar:
        lines = scored_file(
            file,
            benchmark,
            task,
            protocol,
            data=data,
            metric=metric,
            workers=workers,
            watch=bar.update,
        )
    if per_example is not None:
        content = "".join(json.dumps({"score": line.score}) + "\n" for line in lines)
        write_whole(per_example, content)
    how = protocol if metric is None else f"{protocol}, but by {metric}"
    score = benchmark_score([line.score for line in lines])
    by_length = score_per_length(benchmark, task, lines)
    lengths = "; ".join(f"{length}: {figure}" for length, figure in by_length.items())
    return f"{task} ({how}, {len(lines)} predictions): {score}" + (lengths and f" ({lengths})")


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
