"""Only regular files are opened, at once, and no more of them is read than is allowed."""

import gzip
import hashlib
import os
import socket
import zlib

import pytest

from common import files
from common.errors import InputError


def problem(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        found = call(*arguments, **options)
        if call is not files.open_file:
            list(found)
    return str(caught.value)


def test_pipes_devices_sockets_and_folders_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    told = problem(files.open_file, tmp_path / "pipe")
    assert (
        told == f"{tmp_path}/pipe: is a named pipe, not a file; write what it gives to a file first"
    )
    assert "/dev/zero: is a device, not a file" in problem(files.open_file, "/dev/zero")
    assert problem(files.open_file, tmp_path) == f"{tmp_path}: is a folder, not a file"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        assert "is a socket, not a file" in problem(files.open_file, tmp_path / "s")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    assert "is a named pipe" in problem(files.open_file, tmp_path / "link")


def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(files, "kind_of", lambda path: "a file")
    assert problem(files.open_file, tmp_path / "pipe") == f"{tmp_path}/pipe: is no regular file"


@pytest.mark.parametrize("name", ["none", "x" * 5000, "a\0b", "file/below", "y" * 300],
                         ids=["absent", "5000", "null", "below a file", "300"])  # fmt: skip
def test_what_cannot_be_there_is_not_there(tmp_path, name):
    (tmp_path / "file").write_text("x")
    assert files.kind_of(tmp_path / name) is None
    told = problem(files.open_file, tmp_path / name)
    assert told.endswith(": no such file") and len(told) < 400


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_is_closed_to_us_is_told(tmp_path):
    (tmp_path / "closed").write_text("x")
    (tmp_path / "closed").chmod(0)
    assert problem(files.open_file, tmp_path / "closed").endswith(
        "cannot be read: Permission denied"
    )


def test_a_file_is_read_to_its_bound_and_no_further(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert files.read_bytes(tmp_path / "a", 5) == b"12345"
    told = problem(files.read_bytes, tmp_path / "a", 4)
    assert told == f"{tmp_path}/a: is longer than the 4 bytes that are read"


def test_text_comes_without_a_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffé".encode())
    assert files.read_text(tmp_path / "a", 100) == "é"
    (tmp_path / "a").write_bytes(b"ab\xff")
    assert problem(files.read_text, tmp_path / "a", 100) == f"{tmp_path}/a: is not UTF-8 (byte 3)"


def all_lines(path, most_line=100, most=1000, digest=None):
    with files.open_unpacked(path) as stream:
        yield from files.lines(stream, "f", most_line=most_line, most=most, digest=digest)


CONTENT = b"one\n\ntwo \xe2\x80\xa8 \r\nthree"


@pytest.mark.parametrize("packed", [False, True])
def test_lines_end_at_newlines_and_the_digest_is_that_of_the_content(tmp_path, packed):
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(CONTENT) if packed else CONTENT)
    digest = hashlib.sha256()
    assert list(all_lines(path, digest=digest)) == CONTENT.split(b"\n")
    assert digest.digest() == hashlib.sha256(CONTENT).digest()
    assert list(all_lines(path, most_line=9, most=len(CONTENT))) == CONTENT.split(b"\n")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_and_a_file_have_their_bounds(tmp_path, packed, end):
    path = tmp_path / "a"
    content = b"1234\n" * 3 + b"12345" + end
    path.write_bytes(gzip.compress(content) if packed else content)
    assert len(list(all_lines(path, most_line=5, most=21))) == 4
    told = problem(all_lines, path, most_line=4)
    assert told == "f:4: is longer than a line may be (4 bytes)"
    told = problem(all_lines, path, most=19)
    assert told == "f: holds more than the 19 bytes that are read of a file"


def test_damaged_gzip_is_told(tmp_path):
    path = tmp_path / "a"
    whole = gzip.compress(os.urandom(500))
    for damaged in (whole[:-6], whole[:12], whole[:100] + b"\xff" * 50 + whole[150:], whole + b"x"):
        path.write_bytes(damaged)
        assert "f: is not a whole gzip file" in problem(all_lines, path, most_line=10_000)
    path.write_bytes(whole + whole)  # several members are one content
    assert sum(map(len, all_lines(path, most_line=2000))) > 900


def test_a_gigabyte_of_zeros_is_not_unpacked(tmp_path):
    path = tmp_path / "a"
    pack = zlib.compressobj(1, zlib.DEFLATED, 31)
    block = bytes(2**20)
    with path.open("wb") as file:
        for _ in range(64):
            file.write(pack.compress(block))
        file.write(pack.flush())
    with files.open_unpacked(path) as stream:
        with pytest.raises(InputError, match="f:1: is longer than a line may be"):
            list(files.lines(stream, "f", most_line=2**16, most=2**30))
        assert stream.tell() < 2**18


def test_closing_a_packed_file_closes_the_file_below(tmp_path):
    (tmp_path / "a").write_bytes(gzip.compress(b"x"))
    stream = files.open_unpacked(tmp_path / "a")
    below = stream._below  # type: ignore[attr-defined]
    stream.close()
    assert below.closed


@pytest.mark.parametrize(
    ("count", "words"), [(12, "12 bytes"), (2048, "2 KiB"), (2**27, "128 MiB"), (2**32, "4 GiB")]
)
def test_sizes_are_written_in_words(count, words):
    assert files.size(count) == words
