"""Writing what training makes: a folder with AHN weights alone, under the released names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.checkpoints.keys import MEMORY_KEY
from ahn.config import AHNConfig
from ahn.released import released_config


def save_memory(model: Any, folder: Path, base_config: Mapping[str, Any], **training: Any) -> None:
    """Write an AHN-only folder: `model.safetensors` with released key names, and `config.json`.

    Args:
        model: a model of `ahn.models.causal_lm` with memories.
        folder: made when absent.
        base_config: the base model's `config.json`.
        training: further keys of a released configuration (`loss_type` ...).
    """
    from safetensors.torch import save_file

    from ahn.models.weights import stored_weights

    folder.mkdir(parents=True, exist_ok=True)
    # what was gathered from many processes is no module, and holds everything under its name
    named = stored_weights(model) if hasattr(model, "modules") else model.named_parameters()
    tensors = {name: p.detach().cpu().contiguous() for name, p in named if MEMORY_KEY.match(name)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = released_config(base_config, AHNConfig(**model.config.ahn), **training)
    write_config(folder, config)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write `config.json`."""
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
