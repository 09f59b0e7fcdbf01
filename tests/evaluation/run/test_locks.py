"""A folder is claimed whole or left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import InputError
from evaluation.run.locks import LOCK_FILE, FolderLock, is_locked


def _fails() -> None:
    raise InputError("the rows are not there")


def test_a_folder_that_was_made_for_nothing_is_gone_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="the rows are not there"):
        FolderLock(folder).claim("run.json", _fails)
    assert not folder.exists()


def test_a_folder_that_was_there_stays_and_is_free(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(InputError, match="the rows are not there"):
        FolderLock(tmp_path).claim("run.json", _fails)
    assert (tmp_path / "note").read_text() == "mine" and is_locked(tmp_path) is None


def test_a_folder_that_says_what_it_holds_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def begins_and_fails() -> None:
        (folder / "run.json").write_text("{}")
        _fails()

    with pytest.raises(InputError, match="the rows are not there"):
        FolderLock(folder).claim("run.json", begins_and_fails)
    assert (folder / "run.json").exists() and is_locked(folder) is None


def test_a_claimed_folder_is_ones_own(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run")
    lock.claim("run.json", lambda: None)
    assert is_locked(tmp_path / "run") is not None
    with pytest.raises(InputError, match="is being written by another process"):
        FolderLock(tmp_path / "run").claim("run.json", lambda: None)
    lock.release()
    assert is_locked(tmp_path / "run") is None and (tmp_path / "run" / LOCK_FILE).exists()


def test_a_place_where_no_folder_can_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output: .*run cannot be written"):
        FolderLock(tmp_path / "file" / "run").claim("run.json", _fails)
