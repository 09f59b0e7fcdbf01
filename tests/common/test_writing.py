"""Files and folders that appear whole or not at all, also where the writer is killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import InputError
from common.writing import (
    check_folder_writable,
    check_writable,
    replacing,
    replacing_folder,
    write_whole,
)
from tests.conftest import ROOT

closed_to_us = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_as_utf_8_and_bytes_as_they_are(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "Zürich \ud800\n")
    assert (tmp_path / "a").read_bytes() == "Zürich \\ud800\n".encode()
    write_whole(tmp_path / "a", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff" and names(tmp_path) == ["a"]


def test_an_error_in_the_block_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


def test_a_killed_writer_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom common.writing import replacing\n"
        "with replacing(Path(sys.argv[1])) as beside:\n"
        "    beside.write_text('half')\n    print('written', flush=True)\n    time.sleep(60)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stdout.readline() == "written\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert path.read_text() == "old"


def test_a_reader_sees_the_old_content_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = ["x" * 500_000, "y" * 500_000]
    write_whole(path, contents[0])
    code = (
        "import sys\nfrom pathlib import Path\nfrom common.writing import write_whole\n"
        "for n in range(200): write_whole(Path(sys.argv[1]), 'xy'[n % 2] * 500_000)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT)
    seen = set()
    while writer.poll() is None:
        seen.add(path.read_text())
        time.sleep(0.001)
    assert writer.returncode == 0 and seen <= set(contents) and names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder", "it is a folder"),
        ("absent/file", "there is no folder"),
        ("pipe", "it is a named pipe, not a file"),
        ("x" * 300, "File name too long"),
    ],
)
def test_places_where_no_file_can_be_are_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=said):
        check_writable(tmp_path / name)
    with pytest.raises(InputError, match=said):
        write_whole(tmp_path / name, "text")
    assert names(tmp_path) == ["folder", "pipe"] and not names(tmp_path / "folder")


@closed_to_us
def test_a_closed_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="no permission"):
        check_writable(tmp_path / "file")
    with pytest.raises(InputError, match="no permission"):
        check_folder_writable(tmp_path / "a" / "b")


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_folder_writable(tmp_path / "a" / "b" / "c")
    for place in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(InputError, match="is a file, not a folder"):
            check_folder_writable(place)
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    place = tmp_path / "above" / "new"
    for content in ("first", "second"):
        with replacing_folder(place) as made:
            (made / content).write_text(content)
            assert not (place / content).exists()
        assert names(place) == [content]
    assert names(tmp_path / "above") == ["new"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(place.stat().st_mode) == 0o777 & ~mask


def test_a_folder_that_failed_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "new"
    with pytest.raises(RuntimeError), replacing_folder(place) as made:
        (made / "half").write_text("")
        raise RuntimeError
    assert names(tmp_path) == []
    place.mkdir()
    (place / "old").write_text("kept")
    with pytest.raises(InputError, match="could not be written"), replacing_folder(place) as made:
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == ["new"] and (place / "old").read_text() == "kept"
