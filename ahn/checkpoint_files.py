"""The files of a checkpoint: where they are, and what their headers say. Nothing is loaded.

Only safetensors are looked at, and their headers are read without torch, so that a plan can be
checked in milliseconds.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from ahn.config import InputError

_CONFIGURATION = ["*.json", "*.jinja", "merges.txt"]
_WEIGHTS = ["*.safetensors"]


def _is_hub_id(path_or_id: str | Path) -> bool:
    text = str(path_or_id)
    return not Path(text).is_absolute() and not text.startswith(".") and text.count("/") == 1


def _from_hub(path_or_id: str | Path, patterns: list[str]) -> Path:
    """The hub's snapshot with at least these files.

    Raises:
        InputError: not a hub id, or the hub does not give it.
    """
    if not _is_hub_id(path_or_id):
        raise InputError(f"{path_or_id}: no such folder (and not a hub id like 'Qwen/Qwen2.5-3B')")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{path_or_id}: no such folder, and the hub did not give it "
            f"({type(error).__name__}); download it first or pass a local folder"
        ) from error


def local_folder(path_or_id: str | Path, weights: bool = True) -> Path:
    """The folder of a checkpoint: `path_or_id` itself, or the hub's snapshot.

    Args:
        path_or_id: folder or hub id.
        weights: also fetch the weights, not only configuration and tokenizer.

    Raises:
        InputError: no such folder, and not on the hub (or the hub cannot be reached).
    """
    path = Path(path_or_id)
    wanted = _CONFIGURATION + (_WEIGHTS if weights else [])
    return path if path.is_dir() else _from_hub(path_or_id, wanted)


def describe_model(path_or_id: str | Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint as a mapping; of a hub id only that file is fetched.

    Raises:
        InputError: no folder, no `config.json`, or not JSON.
    """
    path = Path(path_or_id)
    folder = path if path.is_dir() else _from_hub(path_or_id, ["config.json"])
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path_or_id}: no config.json in this folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a JSON object")
    return config


def weight_files(path_or_id: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint, those of its index where it has one, sorted.

    Raises:
        InputError: none there (with a hint when there is a pickle), or the index names a file
            that is missing.
    """
    folder = local_folder(path_or_id)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise InputError(f"{index}: not a safetensors index: {error}") from error
        files = [folder / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise InputError(f"{index}: names files that are missing: {', '.join(missing)}")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [p.name for kind in ("*.bin", "*.pt", "*.pth") for p in folder.glob(kind)]
        hint = f" ({pickles[0]} is a pickle; only safetensors are loaded)" if pickles else ""
        raise InputError(f"{path_or_id}: no .safetensors file{hint}")
    return files


def tensor_shapes(path_or_id: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint, from the files' headers alone.

    Of a hub id whose weights are not in the local cache only the headers are fetched.

    Raises:
        InputError: a file that is not safetensors, or one key in two files.
    """
    if not Path(path_or_id).is_dir() and (remote := _remote_shapes(path_or_id)) is not None:
        return remote
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(path_or_id):
        for key, shape in _header(file).items():
            if key in shapes:
                raise InputError(f"{file}: {key} is in another file of this checkpoint too")
            shapes[key] = shape
    return shapes


def _remote_shapes(path_or_id: str | Path) -> dict[str, tuple[int, ...]] | None:
    """Shapes from the hub by range requests; None when the hub cannot be asked (then the local
    cache, or the message that nothing is there, decides)."""
    if not _is_hub_id(path_or_id):
        return None
    from huggingface_hub import get_safetensors_metadata, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, NotASafetensorsRepoError

    try:  # weights that are here already need no network
        local = snapshot_download(str(path_or_id), local_files_only=True)
        if any(Path(local).glob("*.safetensors")):
            return None
    except LocalEntryNotFoundError:
        pass  # nothing of it is here: ask the hub
    try:
        metadata = get_safetensors_metadata(str(path_or_id))
    except NotASafetensorsRepoError:
        raise InputError(f"{path_or_id}: no .safetensors file on the hub") from None
    except Exception:  # whatever keeps the hub away (its client's errors vary): as if offline
        return None
    return {
        key: tuple(info.shape)
        for file in metadata.files_metadata.values()
        for key, info in file.tensors.items()
    }


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file (8 bytes length, then JSON)."""
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > min(100_000_000, file.stat().st_size):
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(size))
            ends = [e["data_offsets"][1] for k, e in header.items() if k != "__metadata__"]
            if 8 + size + max(ends, default=0) != file.stat().st_size:
                raise ValueError("its length is not what its header says: cut off?")
            return {
                key: tuple(entry["shape"]) for key, entry in header.items() if key != "__metadata__"
            }
    except (struct.error, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{file}: not a safetensors file ({error})") from error
