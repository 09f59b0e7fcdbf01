"""Conversations of the pocket vocabulary, and options of a training that takes a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ahn
from tests.ahn.distill.processes import ON_CPU


def write_conversations(path: Path) -> Path:
    """Twelve conversations of unequal lengths."""
    words = [f"{number:02d}" for number in range(100)]
    rows = []
    for number in range(12):
        text = " ".join(words[(number * 7 + i * 3) % 100] for i in range(40 + 9 * number))
        answer = " ".join(words[(number + i) % 100] for i in range(5))
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": f"{answer} ."},
                ]
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pocket_options(data: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Two steps of the pocket model with windows and sinks that are drawn."""
    return {
        "model_name_or_path": str(ahn.POCKET_PATH),
        "output_dir": str(output),
        "dataset": str(data),
        "sliding_window_type": "random",
        "sliding_window_choices": [32, 48],
        "ahn_position": "random",
        "num_attn_sinks_choices": [0, 4],
        "sliding_window": 32,
        "num_attn_sinks": 4,
        "kl_positions": "prediction",
        "learning_rate": 1e-2,
        "max_steps": 2,
        "logging_steps": 1,
        "save_steps": 1,
        "threads": 1,
        "training_arguments": ON_CPU,
        **options,
    }
