"""Small checkpoints on disk, and how to break them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ahn.checkpoints.load import save_memory
from tests.ahn.conftest import stock_model, variant_model


def base_folder(path: Path, family: str = "qwen2", **options: Any) -> Path:
    """A stock checkpoint; `options` go to `save_pretrained`."""
    stock_model(family).save_pretrained(path, **options)
    return path


def memory_folder(
    path: Path, base: Path, cell: str = "GatedDeltaNet", family: str = "qwen2", **ahn_options: Any
) -> Path:
    """AHN weights alone, with released names."""
    model = variant_model("ahn", cell=cell, family=family, **ahn_options)
    save_memory(model, path, json.loads((base / "config.json").read_text()), loss_type=["kl"])
    return path


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of `config.json`."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], file: str = "model.safetensors"
) -> None:
    """Change tensors of a weight file in place."""
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / file).items()}
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def released_folder(path: Path, base: Path, cell: str = "GatedDeltaNet", **changes: Any) -> Path:
    """AHN weights whose `config.json` is what people report of the released checkpoints."""
    memory_folder(path, base, cell)
    config = json.loads((path / "config.json").read_text())
    del config["num_attn_sinks"]
    config |= {
        "ahn_position": "random",
        "sliding_window": 256,
        "sliding_window_type": "random",
        "save_ahn_only": True,
        "transformers_version": "4.51.3",
        **changes,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path
