"""Our writer and reader of safetensors files, with the `safetensors` package as oracle."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ahn.checkpoints.safetensors_files import not_finite, read_header, write_file
from common.errors import InputError

_TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8]


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(_TYPES), st.lists(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_a_file_is_the_packages_file_to_the_byte(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("files")
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in entries.items()}
    save_file(tensors, folder / "theirs", metadata={"format": "pt"})
    held = read_header(folder / "theirs")
    assert {name: list(t.shape) for name, t in held.items()} == {
        name: list(shape) for name, (_, shape) in entries.items()
    }
    write_file(folder / "ours", held)
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found_and_not_written(tmp_path: Path, dtype, value):
    tensors = {"good": torch.full((9,), torch.finfo(dtype).max, dtype=dtype)}
    tensors["bad"] = tensors["good"].clone()
    tensors["bad"][-1] = value
    save_file(tensors, tmp_path / "a")
    held = read_header(tmp_path / "a")
    assert not_finite(held) == ["bad"]
    with pytest.raises(InputError, match="bad has weights that are not finite"):
        write_file(tmp_path / "b", held)
    write_file(tmp_path / "b", {"good": held["good"]})
    assert torch.equal(load_file(tmp_path / "b")["good"], tensors["good"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\x80\x02}q\x00." * 9, "pickle"),
        (b"PK\x03\x04" + b"x" * 99, "pickle"),
        (struct.pack("<Q", 2) + b"[]", "not a safetensors file"),
        (struct.pack("<Q", 3) + b"{}x", "not a safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_refused_by_name(tmp_path: Path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_header(tmp_path / "model.safetensors")
    assert str(tmp_path / "model.safetensors") in str(caught.value)


def test_a_header_of_640_bytes_is_not_taken_for_a_pickle(tmp_path: Path):
    # 640 is 80 02 in little endian, as a pickle begins
    for length in range(1, 900):
        save_file({"a" * length: torch.ones(1)}, tmp_path / "a")
        if (tmp_path / "a").read_bytes()[:2] == b"\x80\x02":
            assert list(read_header(tmp_path / "a")) == ["a" * length]
            return
    raise AssertionError("no header of 640 bytes came up")


def test_byte_ranges_that_overlap_are_refused(tmp_path: Path):
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data.replace(b"[16,32]", b"[ 0,32]"))
    with pytest.raises(InputError, match="do not fit"):
        read_header(tmp_path / "a")
