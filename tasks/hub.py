"""Files of a data set on the Hugging Face hub: downloaded once, kept in its cache, never run."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from common.errors import InputError
from tasks.registry import benchmark_definition
from tasks.schema import Task

REVISION_VARIABLE = "AHN_BENCH_DATA_REVISION"
"""Environment variable that pins the hub's files to a commit."""


def from_hub(task: Task) -> tuple[Path, str]:
    """The file with a task's rows in the hub's cache, and the commit it belongs to.

    The revision asked for is `AHN_BENCH_DATA_REVISION`, else the one in `_benchmark.yaml`. The
    commit is what that stood for when the first file of the repository was had, and the same for
    all of its files, should a branch move in the meantime. InputError, which names the file and
    where to place it, when it is neither in the cache nor to be had.
    """
    hub = benchmark_definition(task.benchmark).hub
    if hub is None:
        raise InputError(f"{task.benchmark}: is not on the hub; give its rows with --data")
    file = task.adapter.hub_file(task)
    revision = os.environ.get(REVISION_VARIABLE) or hub.revision
    path = _download(hub.repository, file, revision)
    if isinstance(path, str):
        unpacked = "" if Path(file).suffix != ".zip" else _unpacked(task)
        raise InputError(
            f"{path} Remedy: on a machine with network, fetch "
            f"https://huggingface.co/datasets/{hub.repository}/resolve/{revision}/{file}, "
            f"place it here as FOLDER/{file}{unpacked}, and give --data FOLDER."
        )
    return path, _commit_of(path, revision)


def file_from_hub(repository: str, revision: str, file: str, remedy: str) -> Path:
    """A file of a data set at one commit, in the hub's cache.

    Raises:
        InputError: it is neither there nor to be had; `remedy` says where to give it.
    """
    path = _download(repository, file, revision)
    if isinstance(path, str):
        raise InputError(
            f"{path} Remedy: on a machine with network, fetch "
            f"https://huggingface.co/datasets/{repository}/resolve/{revision}/{file}, and {remedy}."
        )
    return path


def _unpacked(task: Task) -> str:
    """Where the rows may lie when the zip file is unpacked, the same words for all its tasks."""
    if task.level is not None:
        dataset = task.dataset
        return f" (or unpack it to FOLDER/{dataset}/{dataset}_<level>.jsonl)"
    return " (or unpack it to FOLDER/data/<task>.jsonl)"


_commits: dict[tuple[str, str], str] = {}
"""What a revision of a repository stands for in this process: one commit for all its files."""


def forget_downloads() -> None:
    """Ask the hub anew, as a new process would."""
    _commits.clear()
    _download.cache_clear()


@lru_cache(maxsize=64)
def _download(repository: str, file: str, revision: str) -> Path | str:
    """The path of a data set's file in the hub's cache, or why it could not be had.

    Remembered either way, so that the tasks in one file do not each wait for a hub that cannot
    be reached.
    """
    from huggingface_hub import constants, hf_hub_download

    at = _commits.get((repository, revision), revision)
    try:
        path = Path(hf_hub_download(repository, file, repo_type="dataset", revision=at))
        _commits.setdefault((repository, revision), _commit_of(path, at))
        return path
    except Exception as error:  # whatever the network library below the hub's raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        why = "HF_HUB_OFFLINE is set and it is not in the local cache"
        commit = "" if at == revision else f", commit {at}, as its other files"
        return (
            f"{file} of the data set {repository} (revision {revision}{commit}) could not be had "
            f"from the hub: {why if constants.HF_HUB_OFFLINE else reason}."
        )


def _commit_of(path: Path, revision: str) -> str:
    """The commit in a path of the hub's cache, `.../snapshots/<commit>/<file>`."""
    below = [*path.parts]
    while "snapshots" in below:  # the innermost: a folder above the cache may be called so too
        below = below[below.index("snapshots") + 1 :]
    return below[0] if len(below) < len(path.parts) else revision
