"""The files of a checkpoint: where they are, and what their headers say. Nothing is loaded.

Only safetensors are looked at, and their headers are read without torch, so that a plan can be
checked in milliseconds.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from ahn.checkpoints.config_values import non_finite, stop_problems
from ahn.checkpoints.names import model_path
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


class CheckpointFiles:
    """The files of one checkpoint; each is looked for and read at most once.

    Several variants of a model share one object, so that a plan reads each file once.

    Args:
        place: folder or hub id, or a name of the embedded model (`ahn.checkpoints.names`).
    """

    def __init__(self, place: str | Path) -> None:
        self.place = model_path(place)

    def __str__(self) -> str:
        return str(self.place)

    def is_same(self, other: CheckpointFiles) -> bool:
        """Whether both are one checkpoint."""
        one, two = Path(self.place), Path(other.place)
        return str(one) == str(two) or (one.is_dir() and two.is_dir() and one.samefile(two))

    @cached_property
    def is_folder(self) -> bool:
        """Whether the checkpoint is a folder here.

        Raises:
            InputError: nothing was given, or a file.
        """
        if not str(self.place).strip():
            raise InputError("the path of a model is empty; pass a folder or a hub id")
        if Path(self.place).is_file():
            raise InputError(f"{self.place}: is a file; pass the folder that holds it")
        return Path(self.place).is_dir()

    def folder(self, weights: bool = True) -> Path:
        """The folder of the checkpoint: itself, or the hub's snapshot.

        Args:
            weights: also fetch the weights, not only configuration and tokenizer.

        Raises:
            InputError: no such folder, and not on the hub (or the hub cannot be reached).
        """
        return self._with_files(_CONFIGURATION + (_WEIGHTS if weights else []))

    def _with_files(self, patterns: list[str]) -> Path:
        return Path(self.place) if self.is_folder else _from_hub(self.place, patterns)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The `config.json`; of a hub id only that file is fetched.

        Raises:
            InputError: no folder, no `config.json`, or not strict JSON: numbers that are none
                (`NaN`) and keys that stand twice are refused.
        """
        path = self._with_files(["config.json"]) / "config.json"
        if not path.is_file():
            raise InputError(f"{self.place}: no config.json in this folder")
        return _json_object(path)

    @cached_property
    def generation_config(self) -> dict[str, Any] | None:
        """The `generation_config.json`, of a hub id only that file; None without one.

        Raises:
            InputError: not strict JSON (see `config`), or no object.
        """
        path = self._with_files([_GENERATION]) / _GENERATION
        return _json_object(path) if os.path.lexists(path) else None  # a dead link is an error

    def check_stop_tokens(self, vocab_size: int) -> None:
        """Refuse a checkpoint whose answers would never end, which transformers passes over.

        Args:
            vocab_size: tokens that the model has.

        Raises:
            InputError: a `generation_config.json` that cannot be read, or stop tokens that are
                none of the model's.
        """
        defaults, file = self.generation_config, f"{self.place}: config.json"
        if defaults is not None:
            file = str(self._with_files([_GENERATION]) / _GENERATION)
        stops = (self.config if defaults is None else defaults).get("eos_token_id")
        if problems := stop_problems(stops, vocab_size):
            raise InputError(*(f"{file}: {problem}" for problem in problems))

    @cached_property
    def weight_files(self) -> list[Path]:
        """The safetensors files, those of the index where there is one, sorted.

        Raises:
            InputError: none there (with a hint when there is a pickle), or the index names a file
                that is missing.
        """
        folder = self.folder()
        if self._weight_map:
            files = [folder / name for name in sorted(set(self._weight_map.values()))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise InputError(
                    f"{folder / _INDEX}: names files that are missing: {', '.join(missing)}"
                )
            return files
        if (folder / "model.safetensors").is_file():
            return [folder / "model.safetensors"]
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            pickles = [p.name for kind in _PICKLES for p in sorted(folder.glob(kind))]
            hint = f" ({pickles[0]} is a pickle; only safetensors are loaded)" if pickles else ""
            raise InputError(f"{self.place}: no .safetensors file{hint}")
        return files

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        """Key to file name, from the index; empty without one."""
        index = self.folder() / _INDEX
        return _weight_map(index) if index.is_file() else {}

    @cached_property
    def is_remote(self) -> bool:
        """Whether the weights are on the hub only; `tensors` then come from there."""
        return not self.is_folder and self._remote_tensors is not None

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor, from the files' headers alone.

        Of a hub id whose weights are not in the local cache only the headers are fetched.

        Raises:
            InputError: a file that is not safetensors, one key in two files, or a key that is not
                in the file that the index names.
        """
        if self.is_remote:
            assert self._remote_tensors is not None
            return self._remote_tensors
        tensors: dict[str, StoredTensor] = {}
        for file in self.weight_files:
            for key, tensor in read_header(file).items():
                if key in tensors:
                    raise InputError(
                        f"{file}: {key} is in another file of this checkpoint too "
                        f"({tensors[key].file.name})"
                    )
                tensors[key] = tensor
        for key, name in self._weight_map.items():
            if key not in tensors or tensors[key].file.name != name:
                index = self.weight_files[0].parent / _INDEX
                raise InputError(f"{index}: {key} is not in {name}, which it names")
        return tensors

    @cached_property
    def _remote_tensors(self) -> dict[str, StoredTensor] | None:
        return _remote_tensors(self.place)

    def downloaded(self) -> CheckpointFiles:
        """The same checkpoint with its weights here: itself, unless it `is_remote`."""
        return CheckpointFiles(self.folder()) if self.is_remote else self


def local_folder(path_or_id: str | Path, weights: bool = True) -> Path:
    """See `CheckpointFiles.folder`."""
    return CheckpointFiles(path_or_id).folder(weights)


def describe_model(path_or_id: str | Path) -> dict[str, Any]:
    """See `CheckpointFiles.config`."""
    return CheckpointFiles(path_or_id).config


def weight_files(path_or_id: str | Path) -> list[Path]:
    """See `CheckpointFiles.weight_files`."""
    return CheckpointFiles(path_or_id).weight_files


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


_MAY_BE_INFINITE = ("time_step_limit[", "time_step_limit:")
"""Keys of `config.json` under which transformers writes an infinite limit (Mamba2, Falcon-H1)."""


def _json_object(path: Path) -> dict[str, Any]:
    """The content of a file of strict JSON that holds an object."""
    content = _json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content


def _json(path: Path) -> Any:
    """The content of a file of strict JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
        problems = [told for told in non_finite(content) if not told.startswith(_MAY_BE_INFINITE)]
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
