"""From checkpoint files to a model: transformers' loader over all files as one folder.

What is loaded was decided before (`ahn.checkpoints.resolve`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ahn.checkpoints.keys import MEMORY_KEY, listed
from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.safetensors_files import StoredTensor
from ahn.config import AHNConfig
from ahn.families import family_of
from ahn.released import RELEASED_KEYS
from common.errors import InputError


def build_model(
    folder: Path,
    family: str,
    config: Mapping[str, Any],
    settings: AHNConfig,
    dtype: Any,
    *,
    tensors: Mapping[str, StoredTensor] | None = None,
    device_map: Any = None,
) -> Any:
    """The model of `ahn.models.causal_lm` with the folder's weights; memories it lacks are fresh.

    Args:
        folder: of the base model.
        family: `model_type` of its row in `ahn.families`.
        config: its `config.json`.
        settings: what AHN adds.
        dtype: torch dtype of all weights, or `auto`.
        tensors: where every weight lies, also outside `folder`; default: the folder's.
        device_map: as in transformers.

    Raises:
        InputError: a device map that cannot be, or weights that do not fit the model.
    """
    from ahn.models.causal_lm import family_classes
    from ahn.models.family_check import check_family

    row = family_of({"model_type": family}, folder)
    classes = family_classes(row)
    own = _configuration(classes.config, folder, row.without_own_window(config), settings)
    own.architectures = [row.ahn_class]
    if not row.built_in:
        check_family(row, classes, own)
    tensors = CheckpointFiles(folder).tensors if tensors is None else tensors
    with _without_load_report(), _one_folder(folder, tensors) as joined:
        try:
            model, info = classes.causal_lm.from_pretrained(
                joined,
                config=own,
                dtype=dtype,
                device_map=device_map,
                use_safetensors=True,
                output_loading_info=True,
            )
        except InputError:
            raise
        except ValueError as error:
            if device_map is None:
                raise
            raise InputError(f"device_map {device_map!r}: {error}") from error
    model.config._name_or_path = model.name_or_path = str(folder)
    stray = [k for k in info["unexpected_keys"] if not MEMORY_KEY.match(k)]
    absent = [k for k in info["missing_keys"] if not MEMORY_KEY.match(k)]
    problems = []
    if stray:
        problems.append(f"{folder}: keys that the model has not: {listed(stray)}")
    if absent:
        problems.append(f"{folder}: weights are missing: {listed(absent)}")
    if info["mismatched_keys"]:
        problems.append(f"{folder}: shapes do not fit: {info['mismatched_keys']}")
    if problems:
        raise InputError(*problems)
    return model


def _configuration(
    config_class: Any, folder: Path, config: Mapping[str, Any], settings: AHNConfig
) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers.activations import ACT2FN

    left_out = RELEASED_KEYS | {"ahn", "model_type", "dtype", "torch_dtype"}
    values = {
        key: value
        for key, value in config.items()
        if key not in left_out and (key, value) != ("head_dim", None)
    }
    try:
        made = config_class(ahn=settings.to_dict(), **values)
    except (StrictDataclassError, TypeError, ValueError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder / 'config.json'}: {reason}") from error
    problems = []
    if made.hidden_act not in ACT2FN:
        problems.append(f"hidden_act {made.hidden_act!r} is unknown")
    if not -made.vocab_size <= (made.pad_token_id or 0) < made.vocab_size:  # -1: there is none
        problems.append(f"pad_token_id {made.pad_token_id} is none of the {made.vocab_size} tokens")
    if problems:
        raise InputError(*(f"{folder / 'config.json'}: {line}" for line in problems))
    return made


@contextmanager
def _one_folder(folder: Path, tensors: Mapping[str, StoredTensor]) -> Iterator[Path]:
    """All files of base and memory behind one index, as links: transformers loads one folder."""
    with tempfile.TemporaryDirectory(prefix="ahn-load-") as made:
        joined = Path(made)
        links: dict[Path, str] = {}
        for tensor in tensors.values():
            if tensor.file not in links:
                links[tensor.file] = f"weights-{len(links):05d}.safetensors"
                (joined / links[tensor.file]).symlink_to(tensor.file.resolve())
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {key: links[tensor.file] for key, tensor in tensors.items()},
        }
        (joined / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        for name in ("config.json", "generation_config.json"):  # for `generate`'s defaults
            if (folder / name).is_file():
                (joined / name).symlink_to((folder / name).resolve())
        yield joined


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Suppress transformers' table of keys: `build_model` reports missing and unexpected ones."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def check_finite(model: Any, path: str | Path) -> None:
    """Refuse a model with a weight that is not a number, or that is not here.

    Raises:
        InputError: names the parameters.
    """
    import torch

    from ahn.models.weights import stored_weights

    if offloaded := [name for name, p in stored_weights(model) if p.is_meta]:
        raise InputError(
            f"{path}: does not fit where device_map puts it: {listed(offloaded)} would be "
            "offloaded, which is not supported (a memory's weights must lie where it computes); "
            "take a smaller dtype, or device='cpu'"
        )
    bad = [name for name, p in stored_weights(model) if not bool(torch.isfinite(p).all())]
    if bad:
        raise InputError(
            f"{path}: weights that are not finite numbers in {model.dtype}: {listed(bad)}"
        )
