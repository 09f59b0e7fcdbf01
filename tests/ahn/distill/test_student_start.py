"""What a training starts from: fresh memories, released or own ones; not a memory as the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

import ahn
from ahn.cli import app
from ahn.distill.recipe import Recipe
from ahn.distill.run import train
from ahn.distill.student import student_model
from ahn.models.weights import stored_weights
from tests.ahn.distill.recipes import pocket_options, write_conversations

CELLS = {"gdn": "GatedDeltaNet", "dn": "DeltaNet", "mamba2": "Mamba2"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bf16", [False, True])
def test_a_memory_is_gone_on_with(data: Path, tmp_path: Path, cell: str, bf16: bool) -> None:
    """Its weights bit by bit, in float32, whatever the base computes in."""
    named = {"ahn_name_or_path": f"pocket/{cell}", "ahn_implementation": CELLS[cell]}
    recipe = Recipe(**pocket_options(data, tmp_path, bf16=bf16, **named))
    assert recipe.ahn_name_or_path == str(ahn.POCKET_PATH / cell)
    model = student_model(recipe)
    stored = load_file(ahn.POCKET_PATH / cell / "model.safetensors")
    found = {name: t for name, t in stored_weights(model) if ".ahn.fn." in name}
    assert found.keys() == stored.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter, stored[name]) and parameter.dtype == torch.float32
    fresh = student_model(Recipe(**pocket_options(data, tmp_path, ahn_implementation=CELLS[cell])))
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == {name for name, p in fresh.named_parameters() if p.requires_grad}


def test_training_a_trained_memory_starts_where_it_was(data: Path, tmp_path: Path) -> None:
    fresh = train(Recipe(**pocket_options(data, tmp_path / "fresh")))
    named = {"ahn_name_or_path": "pocket/gdn"}
    folder = train(Recipe(**pocket_options(data, tmp_path / "on", **named)))
    losses = [
        json.loads((place / "training.json").read_text())["history"][0]["loss"]
        for place in (fresh, folder)
    ]
    assert losses[1] < losses[0]  # it has learnt before
    card = (folder / "README.md").read_text()
    assert "starting from `pocket/gdn`" in card
    assert "starting from" not in (fresh / "README.md").read_text()
    # one's own, of a training before; the log names it by what it holds
    own = train(Recipe(**pocket_options(data, tmp_path / "own", ahn_name_or_path=str(fresh))))
    log = json.loads((own / "training.json").read_text())
    assert log["recipe"]["ahn_name_or_path"] == str(fresh) and log["content"]["ahn_name_or_path"]
    moved = Path(shutil.copytree(fresh, tmp_path / "moved"))
    weights = load_file(moved / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, moved / "model.safetensors")
    options = pocket_options(data, tmp_path / "own", ahn_name_or_path=str(moved), max_steps=3)
    with pytest.raises(ahn.InputError, match="ahn_name_or_path: .*now, .*before"):
        train(Recipe(**options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ahn_name_or_path": "pocket/dn"},
            "holds DeltaNet, the recipe trains GatedDeltaNet; say ",
        ),
        ({"ahn_name_or_path": "pocket/gdn", "fa_layer_ids": [0]}, "say fa_layer_ids: \\[\\]"),
        ({"ahn_name_or_path": "/no/where"}, "/no/where: no such folder"),
        ({"ahn_name_or_path": str(ahn.POCKET_PATH)}, "names no cell.*not an AHN checkpoint"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused_before_data_are_read(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    options = pocket_options(tmp_path / "absent.jsonl", tmp_path / "out", **changes)
    with pytest.raises(ahn.InputError, match=message):
        train(Recipe(**options))
    assert not (tmp_path / "out").exists()


def test_a_memory_with_other_shapes_or_without_numbers_is_refused(
    data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(ahn.POCKET_PATH / "gdn", tmp_path / "gdn"))
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.ahn.fn.o_proj.weight"
    options = pocket_options(data, tmp_path / "out", ahn_name_or_path=str(folder))
    for changed, message in (
        (weights[name][:, :, :8].contiguous(), f"{name} has shape"),
        (weights[name] * float("nan"), f"{name}: not finite"),
        (None, "memory keys are missing"),
    ):
        kept = {k: v for k, v in weights.items() if k != name}
        save_file(
            kept if changed is None else {**kept, name: changed}, folder / "model.safetensors"
        )
        with pytest.raises(ahn.InputError, match=message):
            train(Recipe(**options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay_init_max": 0.1}, "decay_init_max is for fresh memories"),
        ({"stage": "pretrain"}, "ahn_name_or_path is for stage distill"),
    ],
)
def test_options_that_do_not_go_with_a_memory(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"model_name_or_path": "pocket", "output_dir": "x", "dataset": "x"}
    with pytest.raises(ValidationError, match=message):
        Recipe(**options, ahn_name_or_path="pocket", **changes)


@pytest.mark.parametrize("stage", ["distill", "pretrain"])
def test_a_memory_given_as_the_base_is_told_so(tmp_path: Path, stage: str) -> None:
    """As a base for stage pretrain it would be a model with random weights."""
    words = ["train", "--stage", stage, "--dataset", "x", "--output_dir", str(tmp_path / "out")]
    memory = str(ahn.POCKET_PATH / "dn")
    result = CliRunner().invoke(app, [*words, "--model_name_or_path", memory])
    assert result.exit_code == 2
    text = result.stderr
    assert f"{memory}: is a memory (DeltaNet), not a base model" in text
    assert "ahn_name_or_path" in text
    merged = tmp_path / "merged"
    asked = ["merge", "--base", "pocket", "--ahn", "pocket/dn", "-o", str(merged)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    result = CliRunner().invoke(app, [*words, "--model_name_or_path", str(merged)])
    assert "has memories merged into it" in result.stderr
    assert "ahn split" in result.stderr
    assert not (tmp_path / "out").exists()
