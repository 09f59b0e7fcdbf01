"""`ahn info`: parameters, sizes and settings, against the files and the paper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import ahn
from ahn.cli import app
from ahn.commands.info import checkpoint_info, zoo_info, zoo_table
from ahn.commands.info_table import millions
from ahn.models.weights import stored_weights
from tests.ahn.checkpoints.makers import base_folder, memory_folder
from tests.ahn.conftest import SINKS, WINDOW, variant_model


# arXiv 2510.07318: parameters that AHN adds
@pytest.mark.parametrize(
    ("model", "cell", "added"),
    [
        ("qwen2.5-3b", "Mamba2", "11.9M"),
        ("qwen2.5-3b", "DeltaNet", "11.8M"),
        ("qwen2.5-3b", "GatedDeltaNet", "13.0M"),
        ("qwen2.5-7b", "Mamba2", "18.6M"),
        ("qwen2.5-7b", "DeltaNet", "18.5M"),
        ("qwen2.5-7b", "GatedDeltaNet", "21.3M"),
        ("qwen2.5-14b", "Mamba2", "51.4M"),
        ("qwen2.5-14b", "DeltaNet", "51.1M"),
        ("qwen2.5-14b", "GatedDeltaNet", "61.0M"),
    ],
)
def test_the_papers_nine_figures(model: str, cell: str, added: str) -> None:
    assert millions(zoo_info(model, cell).parameters["memory"]) == added
    shown = CliRunner().invoke(app, ["info", "--model", model, "--cell", cell])
    assert f"added by memory         {added}" in shown.output.replace("\u2502", " ")


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_parts_and_bytes_are_those_of_the_loaded_model(tmp_path: Path, family: str) -> None:
    base = base_folder(tmp_path / "base", family)
    memory = memory_folder(tmp_path / "memory", base, "Mamba2", family, full_attention_layers=(2,))
    ahn.merge_checkpoint(base, memory, tmp_path / "merged", window=9, max_shard_size="30KB")
    info = checkpoint_info(tmp_path / "merged")
    model = ahn.load_model(tmp_path / "merged")
    parameters = dict(stored_weights(model))
    assert info.parameters_total == sum(p.numel() for p in parameters.values())
    for part, mark in (("memory", ".ahn."), ("mlp", ".mlp."), ("embedding", "embed_tokens")):
        held = sum(p.numel() for name, p in parameters.items() if mark in name)
        assert info.parameters[part] == held, part
    assert info.disk_bytes == info.memory_bytes == 4 * info.parameters_total
    files = [load_file(file) for file in ahn.weight_files(tmp_path / "merged")]
    assert info.disk_bytes == sum(t.nbytes for tensors in files for t in tensors.values())
    assert (info.kind, info.cell, info.window, info.sinks) == ("merged", "Mamba2", 9, SINKS)
    assert info.full_attention_layers == (2,)
    states = model.new_cache()
    with torch.no_grad():
        model(torch.zeros(1, 40, dtype=torch.long), past_key_values=states)
    measured = sum(x.nbytes for layer in states.layers for x in layer.states.values())
    assert info.cache_state_bytes == measured


def test_kinds_of_folders(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    memory = memory_folder(tmp_path / "memory", base)
    assert checkpoint_info(base).kind == "base" and checkpoint_info(base).cell is None
    alone = checkpoint_info(memory)
    assert (alone.kind, alone.window, set(alone.parameters)) == ("ahn", WINDOW, {"memory"})
    added = sum(p.numel() for n, p in stored_weights(variant_model("ahn")) if ".ahn." in n)
    assert alone.parameters_total == added


def test_json_is_one_object_with_the_same_figures(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    result = CliRunner().invoke(app, ["info", str(base), "--json"])
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert shown["parameters_total"] == checkpoint_info(base).parameters_total
    assert shown["dtypes"] == {"F32": len(load_file(base / "model.safetensors"))}


def test_the_list_names_all_nine_released_checkpoints() -> None:
    ids = [hub_id for row in zoo_table() for hub_id in row["released_ahn"].values()]
    assert sorted(ids) == sorted(
        f"ByteDance-Seed/AHN-{cell}-for-Qwen-2.5-Instruct-{size}"
        for cell in ("Mamba2", "DN", "GDN")
        for size in ("3B", "7B", "14B")
    )
    result = CliRunner().invoke(app, ["info", "--list"])
    for text in [*ids, *(row["hub_id"] for row in zoo_table())]:
        assert text in result.output, text
    assert json.loads(CliRunner().invoke(app, ["info", "--list", "--json"]).stdout) == zoo_table()
