"""The files of a checkpoint: where they are, and what their headers say. Nothing is loaded.

Only safetensors are looked at, and their headers are read without torch, so that a plan can be
checked in milliseconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.checkpoints.config_values import non_finite, stop_problems
from ahn.checkpoints.safetensors_files import StoredTensor, read_header
from common.errors import InputError

_CONFIGURATION = ["*.json", "*.jinja", "*.txt", "*.model"]
_WEIGHTS = ["*.safetensors"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_INDEX = "model.safetensors.index.json"
_GENERATION = "generation_config.json"


def _is_hub_id(path_or_id: str | Path) -> bool:
    text = str(path_or_id)
    return not Path(text).is_absolute() and not text.startswith(".") and text.count("/") == 1


def _is_folder(path_or_id: str | Path) -> bool:
    """Whether this is a folder here.

    Raises:
        InputError: nothing was given, or a file.
    """
    if not str(path_or_id).strip():
        raise InputError("the path of a model is empty; pass a folder or a hub id")
    if Path(path_or_id).is_file():
        raise InputError(f"{path_or_id}: is a file; pass the folder that holds it")
    return Path(path_or_id).is_dir()


def _from_hub(path_or_id: str | Path, patterns: list[str]) -> Path:
    """The hub's snapshot with at least these files.

    Raises:
        InputError: not a hub id, or the hub does not give it.
    """
    if not _is_hub_id(path_or_id):
        raise InputError(f"{path_or_id}: no such folder (and not a hub id like 'Qwen/Qwen2.5-3B')")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        offline = ", HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
        raise InputError(
            f"{path_or_id}: no such folder, and the hub did not give it "
            f"({type(error).__name__}{offline}); check the name, download it first, or pass a "
            "local folder"
        ) from error


def local_folder(path_or_id: str | Path, weights: bool = True) -> Path:
    """The folder of a checkpoint: `path_or_id` itself, or the hub's snapshot.

    Args:
        path_or_id: folder or hub id.
        weights: also fetch the weights, not only configuration and tokenizer.

    Raises:
        InputError: no such folder, and not on the hub (or the hub cannot be reached).
    """
    wanted = _CONFIGURATION + (_WEIGHTS if weights else [])
    return Path(path_or_id) if _is_folder(path_or_id) else _from_hub(path_or_id, wanted)


def describe_model(path_or_id: str | Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint as a mapping; of a hub id only that file is fetched.

    Raises:
        InputError: no folder, no `config.json`, or not strict JSON: numbers that are none (`NaN`)
            and keys that stand twice are refused.
    """
    here = _is_folder(path_or_id)
    folder = Path(path_or_id) if here else _from_hub(path_or_id, ["config.json"])
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path_or_id}: no config.json in this folder")
    config = _json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a JSON object")
    return config


def generation_defaults(path_or_id: str | Path) -> dict[str, Any] | None:
    """The `generation_config.json` of a checkpoint, of a hub id only that file; None without one.

    Raises:
        InputError: not strict JSON (see `describe_model`), or no object.
    """
    path = _generation_file(path_or_id)
    if not os.path.lexists(path):  # a link to nowhere is an error
        return None
    content = _json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content


def _generation_file(path_or_id: str | Path) -> Path:
    here = _is_folder(path_or_id)
    return (Path(path_or_id) if here else _from_hub(path_or_id, [_GENERATION])) / _GENERATION


def check_stop_tokens(path_or_id: str | Path, config: Mapping[str, Any], vocab_size: int) -> None:
    """Refuse a checkpoint whose answers would never end, which transformers passes over.

    Args:
        path_or_id: folder or hub id.
        config: its `config.json`, which says what no `generation_config.json` does.
        vocab_size: tokens that the model has.

    Raises:
        InputError: a `generation_config.json` that cannot be read, or stop tokens that are none.
    """
    defaults = generation_defaults(path_or_id)
    place = f"{path_or_id}: config.json"
    if defaults is not None:
        place = str(_generation_file(path_or_id))
    stops = (config if defaults is None else defaults).get("eos_token_id")
    if problems := stop_problems(stops, vocab_size):
        raise InputError(*(f"{place}: {problem}" for problem in problems))


def _json(path: Path) -> Any:
    """The content of a file of strict JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
        problems = non_finite(content)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if problems:
        raise InputError(*(f"{path}: {problem}" for problem in problems))
    return content


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"key {twice!r} stands twice in one object")
    return found


def weight_files(path_or_id: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint, those of its index where it has one, sorted.

    Raises:
        InputError: none there (with a hint when there is a pickle), or the index names a file
            that is missing.
    """
    folder = local_folder(path_or_id)
    index = folder / _INDEX
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        files = [folder / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise InputError(f"{index}: names files that are missing: {', '.join(missing)}")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [p.name for kind in _PICKLES for p in sorted(folder.glob(kind))]
        hint = f" ({pickles[0]} is a pickle; only safetensors are loaded)" if pickles else ""
        raise InputError(f"{path_or_id}: no .safetensors file{hint}")
    return files


def _weight_map(index: Path) -> dict[str, str]:
    """Key to file name, from an index."""
    content = _json(index)
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise InputError(f"{index}: not a safetensors index: no 'weight_map'")
    for key, name in found.items():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise InputError(f"{index}: {key}: {name!r} is not the name of a file of this folder")
    return found


def stored_tensors(path_or_id: str | Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, from the files' headers alone.

    Of a hub id whose weights are not in the local cache only the headers are fetched.

    Raises:
        InputError: a file that is not safetensors, one key in two files, or a key that is not in
            the file that the index names.
    """
    if not _is_folder(path_or_id) and (remote := _remote_tensors(path_or_id)) is not None:
        return remote
    tensors: dict[str, StoredTensor] = {}
    files = weight_files(path_or_id)
    for file in files:
        for key, tensor in read_header(file).items():
            if key in tensors:
                raise InputError(
                    f"{file}: {key} is in another file of this checkpoint too "
                    f"({Path(tensors[key].file).name})"
                )
            tensors[key] = tensor
    index = files[0].parent / _INDEX
    if index.is_file():
        named = _weight_map(index)
        wrong = [k for k, v in named.items() if k not in tensors or tensors[k].file.name != v]
        if wrong:
            raise InputError(f"{index}: {wrong[0]} is not in {named[wrong[0]]}, which it names")
    return tensors


def tensor_shapes(path_or_id: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint; see `stored_tensors`."""
    return {key: tensor.shape for key, tensor in stored_tensors(path_or_id).items()}


def _remote_tensors(path_or_id: str | Path) -> dict[str, StoredTensor] | None:
    """Headers from the hub by range requests; None when the hub cannot be asked (then the local
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
        key: StoredTensor(Path(name), str(info.dtype), tuple(info.shape), *info.data_offsets)
        for name, file in metadata.files_metadata.items()
        for key, info in file.tensors.items()
    }
