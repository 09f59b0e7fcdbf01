"""Merging AHN weights into a base model's folder, and taking them out again. No torch.

Bytes are copied from file to file, a block at a time: each tensor keeps its bits and its type
(a bfloat16 base and a float32 memory stay that on disk; loading brings them to one type). A folder
appears whole or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahn.checkpoints.keys import MEMORY_KEY, listed
from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.resolve import ResolvedCheckpoint, resolve_checkpoint
from ahn.checkpoints.safetensors_files import StoredTensor, write_file
from ahn.checkpoints.write import write_config
from ahn.families import family_of
from ahn.released import merged_config, read_ahn_config, split_config, window_notice
from common.errors import InputError
from common.notices import tell_once
from common.writing import replacing_folder

#: tokenizer, chat template, generation defaults, licence: what a model's folder holds beside
#: weights and `config.json`
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*")
_FOLDERS = ("additional_chat_templates",)
#: names, in lower case, of what `--force` may delete, besides what is copied again
_REPLACED = re.compile(
    r"(model|pytorch_model)[^/]*\.safetensors(\.index\.json)?|((generation|tokenizer|preprocessor)_)?config\.json"
    r"|tokenizer\.(json|model)|vocab\.(json|txt)|merges\.txt|added_tokens\.json"
    r"|special_tokens_map\.json|chat_template\.(jinja|json)|(license|notice)[^/]*|\.gitattributes"
)
_DEFAULT_SHARD = "5GB"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: where it stands.
        files: safetensors files.
        base_tensors: tensors of the base model.
        memory_tensors: tensors of the memory.
        weight_bytes: bytes of all tensors.
    """

    folder: Path
    files: tuple[str, ...]
    base_tensors: int
    memory_tensors: int
    weight_bytes: int


def merge_checkpoint(
    base: str | Path,
    ahn: str | Path,
    output: str | Path,
    *,
    window: int | None = None,
    sinks: int | None = None,
    rope_scaling: Mapping[str, Any] | None = None,
    yarn_factor: float | None = None,
    max_shard_size: int | str = _DEFAULT_SHARD,
    force: bool = False,
) -> Written:
    """Write one folder with base and memory, of a model type of ours, such as `qwen2_ahn`.

    It loads with `ahn.load_model`, and with `AutoModelForCausalLM` after `import ahn`.

    Args:
        base: folder or hub id of a base model.
        ahn: folder or hub id of AHN weights for it.
        output: folder to make; an empty one may be there.
        window: replaces the AHN configuration's, in tokens, or the paper's where that one is a
            leftover of training.
        sinks: likewise.
        rope_scaling: replaces the base's; see `ahn.load_model`.
        yarn_factor: short for YaRN with this factor.
        max_shard_size: bytes, or with a unit (`5GB`), of one file.
        force: replace a model's folder that is already there.

    Raises:
        InputError: anything that `load_model` would refuse (each key is accounted for), weights
            that are not finite, an output that is in use, or a disk that is full. Nothing is
            left behind then.
    """
    limit = shard_bytes(max_shard_size)
    checkpoint = resolve_checkpoint(
        base, "ahn", ahn, window, sinks, rope_scaling=rope_scaling, yarn_factor=yarn_factor
    )
    memory = checkpoint.memory
    if memory is None or not checkpoint.two_folders:
        raise InputError(f"{ahn}: base and AHN weights are the same folder; nothing to merge")
    _check_idle(checkpoint)
    checkpoint = checkpoint.downloaded()
    sources, tensors = [checkpoint.base.folder(), memory.folder()], checkpoint.tensors
    config, family = checkpoint.config, family_of(checkpoint.config)
    if family.sliding_layers(config):
        config = family.without_own_window(config)
    config = merged_config(config, checkpoint.settings.to_dict(), memory.config)
    for notice in checkpoint.notices:
        tell_once(notice)
    with _whole_folder(Path(output), sources, tensors, force) as folder:
        files = _write_weights(folder, tensors, limit)
        write_config(folder, config)
        _copy_companions(sources[0], folder)
    return _written(Path(output), files, tensors)


def split_checkpoint(
    model: str | Path,
    output: str | Path,
    *,
    max_shard_size: int | str = _DEFAULT_SHARD,
    force: bool = False,
) -> Written:
    """Write the memory of a merged model alone, with released key names and configuration keys.

    Weights and configuration are those that `merge_checkpoint` found, but for settings that were
    changed since.

    Args:
        model: folder or hub id with base and AHN weights, ours or a released one.
        output: folder to make; an empty one may be there.
        max_shard_size: bytes, or with a unit (`5GB`), of one file.
        force: replace a model's folder that is already there.

    Raises:
        InputError: as `merge_checkpoint`; a model without memory.
    """
    limit = shard_bytes(max_shard_size)
    files = CheckpointFiles(model)
    config = files.config
    settings = read_ahn_config(config, model)
    if settings is None:
        raise InputError(f"{model}: config.json names no cell; there is no memory to take out")
    checkpoint = resolve_checkpoint(files, "ahn")
    _check_idle(checkpoint)
    checkpoint = checkpoint.downloaded()
    tensors = {key: tensor for key, tensor in checkpoint.tensors.items() if MEMORY_KEY.match(key)}
    if config.get("ahn"):  # its window is written down; a released one's is only handed on
        tell_once(window_notice(config, model))
    written = split_config(config, settings, model)
    with _whole_folder(Path(output), [checkpoint.base.folder()], tensors, force) as folder:
        names = _write_weights(folder, tensors, limit)
        write_config(folder, written)
    return _written(Path(output), names, tensors)


def _check_idle(checkpoint: ResolvedCheckpoint) -> None:
    """Refuse memories of layers that keep full attention: no file is written without them."""
    if checkpoint.idle:
        raise InputError(
            f"{checkpoint.memory}: memory keys of layers that keep full attention (fa_layer_ids): "
            f"{listed(checkpoint.idle)}"
        )


def _written(folder: Path, files: list[str], tensors: Mapping[str, StoredTensor]) -> Written:
    memory = sum(1 for key in tensors if MEMORY_KEY.match(key))
    size = sum(tensor.nbytes for tensor in tensors.values())
    return Written(folder, tuple(files), len(tensors) - memory, memory, size)


def shard_bytes(size: int | str) -> int:
    """`5GB`, `500MiB` or a number, in bytes.

    Raises:
        InputError: something else, or nothing.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B)?\s*", str(size).upper())
    count = float(match[1]) * _UNITS[match[2] or ""] if match else 0
    if count < 1:
        raise InputError(f"shard size {size!r}: give bytes or a size like 5GB or 500MB")
    return int(count)


def _write_weights(folder: Path, tensors: Mapping[str, StoredTensor], limit: int) -> list[str]:
    """Write the tensors in files of at most `limit` bytes (or one tensor); returns their names."""
    shards: list[dict[str, StoredTensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shards[0])
        return ["model.safetensors"]
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {k: n for n, shard in zip(names, shards, strict=True) for k in shard},
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return names


def _copy_companions(base: Path, folder: Path) -> None:
    for pattern in _COMPANIONS:
        for file in base.glob(pattern):
            if file.is_file() and file.name != "config.json" and ".index." not in file.name:
                shutil.copyfile(file, folder / file.name)
    for name in _FOLDERS:
        if (base / name).is_dir():
            shutil.copytree(base / name, folder / name)


@contextmanager
def _whole_folder(
    output: Path, sources: list[Path], tensors: Mapping[str, StoredTensor], force: bool
) -> Iterator[Path]:
    """A folder to write into that becomes `output` when all went well, and else disappears."""
    _check_output(output, sources, force)
    size = sum(tensor.nbytes for tensor in tensors.values())
    parent = next(path for path in output.absolute().parents if path.exists())
    free = shutil.disk_usage(parent).free
    if free < size:
        raise InputError(
            f"{output}: {size / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free there"
        )
    with replacing_folder(output) as made:
        yield made


def _check_output(output: Path, sources: list[Path], force: bool) -> None:
    """Refuse a place where something would be lost."""
    if not str(output).strip() or output.resolve() == Path.cwd():
        raise InputError("--output: name a folder of its own")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; name a folder")
    place = output.resolve()
    for source in sources:
        if place == source.resolve() or place in source.resolve().parents:
            raise InputError(f"{output}: holds what is read ({source}); name another folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not force:
        raise InputError(f"{output}: is not empty; name another folder, or pass --force")
    if not (output / "config.json").is_file():
        raise InputError(f"{output}: holds no model (config.json), so --force does not replace it")
    copied = {file.name for source in sources for p in _COMPANIONS for file in source.glob(p)}
    foreign = sorted(
        path.name
        for path in output.iterdir()
        if (path.name not in _FOLDERS if path.is_dir() else path.name not in copied)
        and (path.is_dir() or not _REPLACED.fullmatch(path.name.lower()))
    )
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise InputError(
            f"{output}: --force replaces a model's folder, but of {', '.join(foreign[:3])}{more} "
            "nothing would be left, which belongs to no model: move that away, or name another "
            "folder"
        )
