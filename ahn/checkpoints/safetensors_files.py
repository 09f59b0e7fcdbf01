"""safetensors files without torch: their headers, and writing them tensor by tensor.

A file is 8 bytes (length of the header, little endian), the header (JSON: name to dtype, shape
and byte range), and the tensors' bytes. Writing copies byte ranges, so that a merge of any size
needs the memory of one block and changes no bit; the layout is that of the `safetensors` package.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import InputError

#: bytes per element, in the order in which the `safetensors` package lays tensors out (last first)
ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
_ORDER = {dtype: place for place, dtype in enumerate(ITEM_BYTES)}
#: types of weights that are computed with
FLOAT_TYPES = ("F64", "F32", "BF16", "F16")
_HEADER_LIMIT = 100_000_000
_BLOCK = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        file: the safetensors file.
        dtype: type as safetensors names it (`F32`, `BF16` ...).
        shape: sizes.
        start: first byte, counted from the beginning of the file (of a file on the hub: of its
            data).
        end: the byte after its last.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in its file."""
        return self.end - self.start


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name, in the order of their bytes.

    Raises:
        InputError: not a safetensors file, cut off, or with a header that contradicts itself.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            (length,) = struct.unpack("<Q", start)
            if length > min(_HEADER_LIMIT, size):
                if start.startswith((b"PK\3\4", b"\x80")):
                    raise ValueError("it is a pickle of torch.save; only safetensors are loaded")
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        return _tensors(file, header, 8 + length, size)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    except (struct.error, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: not a safetensors file ({error})") from error


def _tensors(file: Path, header: dict[str, Any], data: int, size: int) -> dict[str, StoredTensor]:
    if data + max((e["data_offsets"][1] for e in header.values()), default=0) != size:
        raise ValueError("its length is not what its header says: cut off?")
    tensors, place = {}, data
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        if dtype not in ITEM_BYTES:
            raise ValueError(f"{name}: dtype {dtype!r} is not supported")
        if any(not isinstance(n, int) or n < 0 for n in (*shape, first, last)):
            raise ValueError(f"{name}: sizes that are no numbers")
        if data + first != place or last - first != prod(shape) * ITEM_BYTES[dtype]:
            raise ValueError(f"{name}: byte range and shape {list(shape)} do not fit")
        place = data + last
        tensors[name] = StoredTensor(file, dtype, shape, data + first, data + last)
    return tensors


def write_file(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write a safetensors file with the bytes of these tensors, whatever files they lie in.

    Raises:
        InputError: a weight that is not a finite number, by name.
        OSError: the file cannot be written (disk full).
    """
    names = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in names:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.nbytes],
        }
        place += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            _copy(name, tensors[name], stream)


def _copy(name: str, tensor: StoredTensor, stream: BinaryIO) -> None:
    for block in _blocks(tensor):
        if not _finite(block, tensor.dtype):
            raise InputError(f"{tensor.file}: {name} has weights that are not finite numbers")
        stream.write(block)


def _blocks(tensor: StoredTensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as source:
        source.seek(tensor.start)
        left = tensor.nbytes
        while left:
            block = source.read(min(left, _BLOCK))
            if not block:
                raise InputError(f"{tensor.file}: became shorter while it was read")
            left -= len(block)
            yield block


def _finite(block: bytes, dtype: str) -> bool:
    if dtype == "BF16":  # numpy has no bfloat16: all exponent bits set is infinite or NaN
        bits = np.frombuffer(block, np.uint16)
        return not bool(((bits & 0x7F80) == 0x7F80).any())
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    return dtype not in kinds or bool(np.isfinite(np.frombuffer(block, kinds[dtype])).all())


def not_finite(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Names of the tensors with a weight that is not a finite number."""
    return [
        name
        for name, tensor in tensors.items()
        if not all(_finite(block, tensor.dtype) for block in _blocks(tensor))
    ]
