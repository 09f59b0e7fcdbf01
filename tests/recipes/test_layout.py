"""The recipe of a layout, carried out as written: a package outside this one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ahn
from ahn.cost.accounting import cache_bytes
from ahn.cost.shapes import ModelShape
from tests.recipes.test_cell import installed, invoke


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    yield from installed("layout.md", tmp_path, monkeypatch)


def test_the_recipe_is_carried_out_as_written(
    recipe: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for line in recipe["commands"].splitlines():
        result = invoke(line)
        assert result.exit_code == 0, result.output
    trained = load_file("runs/mean/model.safetensors")
    assert {key.rsplit(".", 1)[1] for key in trained} == {"share"}
    assert all(share.any() for share in trained.values()), "zero before training"
    capsys.readouterr()
    exec(recipe["own_layers.py"], {})
    *table, answer = capsys.readouterr().out.splitlines()
    assert "window 12, sinks 0, memory RunningMean" in table[0]
    assert "window 20, sinks 4, memory RunningMean" in table[2]
    assert answer.count(",") == 3
    check_model(ahn.load_model(ahn.POCKET_PATH, ahn="runs/mean"))


@torch.no_grad()
def check_model(model: Any) -> None:
    """Pieces give what the whole gives, and the cache is as large as it is said to be."""
    ids, cache = torch.arange(8, 108)[None], model.new_cache()
    pieces = [model(piece, past_key_values=cache).logits for piece in ids.split([30, 1, 69], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids).logits, rtol=0, atol=2e-4)
    shape = ModelShape.from_config(ahn.describe_model(ahn.POCKET_PATH))
    analytic = cache_bytes(
        shape,
        "ahn",
        100,
        dtype_bytes=4,
        window=28,
        sinks=4,
        cell="RunningMean",
        layers={0: {"window": 12, "sinks": 0}, 2: {"window": 20}},
    )
    assert cache.nbytes == analytic.total
