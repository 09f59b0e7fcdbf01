"""Loading: whole or refused, with the file and key named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ahn
from ahn.checkpoints.load import released_config, save_memory
from tests.ahn.conftest import SINKS, WINDOW, stock_model, tokens, variant_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A stock Qwen2 checkpoint."""
    stock_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def memory_folder(path: Path, base: Path, cell: str = "GatedDeltaNet", **ahn_options: Any) -> Path:
    model = variant_model("ahn", cell=cell, **ahn_options)
    save_memory(model, path, json.loads((base / "config.json").read_text()))
    return path


@pytest.fixture
def memory(tmp_path: Path, base: Path) -> Path:
    """AHN weights alone, with released names."""
    return memory_folder(tmp_path / "memory", base)


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


@torch.no_grad()
@pytest.mark.parametrize("cell", ahn.CELLS)
def test_base_and_memory_from_two_folders(tmp_path: Path, base: Path, cell: str) -> None:
    folder = memory_folder(tmp_path / cell, base, cell)
    model = ahn.load_model(base, ahn=folder)
    expected = variant_model("ahn", cell=cell)
    ids = tokens(60)
    assert torch.equal(model(ids).logits, expected(ids).logits)
    assert [(x.window, x.sinks, x.cell) for x in model.layout] == [(WINDOW, SINKS, cell)] * 3
    assert not model.training and model.dtype == torch.float32


@torch.no_grad()
def test_a_merged_folder_in_every_variant(tmp_path: Path, base: Path, memory: Path) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    save_file(
        {
            **load_file(base / "model.safetensors"),
            **load_file(memory / "model.safetensors"),
        },
        merged / "model.safetensors",
    )
    (merged / "config.json").write_text((memory / "config.json").read_text())
    ids = tokens(60)
    for variant in ahn.VARIANTS:
        model = ahn.load_model(merged, variant)
        assert torch.equal(model(ids).logits, variant_model(variant)(ids).logits), variant


@torch.no_grad()
def test_our_own_folder_loads_again_and_by_auto_class(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, ids = variant_model("ahn"), tokens(60)
    model.save_pretrained(tmp_path / "ours")
    for again in (
        ahn.load_model(tmp_path / "ours"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "ours"),
    ):
        assert type(again).__name__ == "Qwen2AHNForCausalLM"
        assert torch.equal(again(ids).logits, model(ids).logits)


@torch.no_grad()
def test_window_and_sinks_asked_for_win(base: Path, memory: Path) -> None:
    for variant in ("window", "ahn", "no-write"):
        model = ahn.load_model(base, variant, ahn=memory, window=5, sinks=0)
        assert [(x.window, x.sinks) for x in model.layout] == [(5, 0)] * 3
    assert ahn.load_model(base, "full").layout == [ahn.LayerLayout()] * 3


def test_sharded_weights_and_dtype(tmp_path: Path, base: Path, memory: Path) -> None:
    stock_model().save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(ahn.weight_files(tmp_path / "sharded")) > 1
    model = ahn.load_model(tmp_path / "sharded", ahn=memory, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    (tmp_path / "sharded" / ahn.weight_files(tmp_path / "sharded")[0].name).unlink()
    with pytest.raises(ahn.InputError, match="names files that are missing"):
        ahn.load_model(tmp_path / "sharded", "full")


@torch.no_grad()
def test_layers_that_keep_full_attention(tmp_path: Path, base: Path) -> None:
    folder = memory_folder(tmp_path / "fa", base, full_attention_layers=(1,))
    assert json.loads((folder / "config.json").read_text())["fa_layer_ids"] == "1"
    model, ids = ahn.load_model(base, ahn=folder), tokens(60)
    assert [x.window for x in model.layout] == [WINDOW, None, WINDOW]
    whole = model(ids).logits
    model.prefill_chunk_size = 7
    torch.testing.assert_close(model(ids).logits, whole, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_memory_in_a_layer_with_full_attention_is_left_out_and_said(
    base: Path, memory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(memory, fa_layer_ids="1")  # and the weights of all three layers stay
    model = ahn.load_model(base, ahn=memory)
    assert re.search(r"keep full attention .*layers\.1\.ahn\.fn", caplog.text)
    assert [x.window for x in model.layout] == [WINDOW, None, WINDOW]
    assert model.model.layers[1].ahn is None
    ids, expected = tokens(60), variant_model("ahn", full_attention_layers=(1,))
    state = {k: v for k, v in variant_model("ahn").state_dict().items() if "layers.1.ahn" not in k}
    expected.load_state_dict(state)
    assert torch.equal(model(ids).logits, expected(ids).logits)
    with pytest.raises(ahn.InputError, match=r"keep full attention .*layers\.1\.ahn\.fn"):
        ahn.merge_checkpoint(base, memory, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@torch.no_grad()
@pytest.mark.parametrize("said", [{"head_dim": None}, {"dtype": ""}, {"torch_dtype": None}])
def test_keys_that_say_nothing_are_as_if_absent(base: Path, said: dict[str, Any]) -> None:
    expected, ids = ahn.load_model(base, "window"), tokens(30)
    edit(base, **said)
    model = ahn.load_model(base, "window")
    assert torch.equal(model(ids).logits, expected(ids).logits)


def test_a_base_model_gets_a_fresh_memory_and_no_noise(base: Path) -> None:
    from ahn.checkpoints.load import build_model

    model = build_model(
        base, "qwen2", ahn.describe_model(base), ahn.AHNConfig(window=8, sinks=0), "auto"
    )
    for layer in model.model.layers:
        cell = layer.ahn.fn
        assert torch.isfinite(cell.A_log).all() and (cell.A_log.exp() >= 1).all()
        assert (cell.A_log.exp() <= 16).all() and not cell.o_proj.weight.any()
        assert (cell.o_norm.weight == 1).all() and (cell.D == 1).all()
        step = torch.nn.functional.softplus(cell.dt_bias)
        assert (step >= 9e-4).all() and (step <= 0.11).all()
    with torch.no_grad():
        ids = tokens(40)
        window = ahn.load_model(base, "window", window=8, sinks=0)
        assert torch.equal(model.eval()(ids).logits, window(ids).logits)


class TestRefused:
    """Each mistake is one message that names file and key, before any weight is loaded."""

    def refused(self, message: str, *args: Any, **options: Any) -> None:
        problems = ahn.check_model(*args, **{"variant": "ahn", **options})
        assert any(message in problem for problem in problems), problems
        with pytest.raises(ahn.InputError, match=None) as caught:
            ahn.load_model(*args, **options)
        assert message in str(caught.value)

    def test_no_such_folder(self, tmp_path: Path) -> None:
        self.refused("no such folder", tmp_path / "nowhere", variant="full")

    def test_no_memory_weights(self, base: Path) -> None:
        self.refused("needs memory weights", base)

    @pytest.mark.parametrize(
        "options,message",
        [
            ({"window": 0}, "window must be at least 1"),
            ({"window": -3}, "window must be at least 1"),
            ({"sinks": -1}, "sinks must be at least 0"),
            ({"variant": "fast"}, "variant 'fast' is unknown"),
        ],
    )
    def test_settings(self, base: Path, options: dict[str, Any], message: str) -> None:
        self.refused(message, base, **options)

    def test_memory_of_another_shape(self, tmp_path: Path, base: Path, memory: Path) -> None:
        tensors = load_file(memory / "model.safetensors")
        tensors["model.layers.1.ahn.fn.o_norm.weight"] = torch.ones(13)
        save_file(tensors, memory / "model.safetensors")
        self.refused("model.layers.1.ahn.fn.o_norm.weight has shape [13]", base, ahn=memory)

    def test_missing_and_additional_memory_keys(self, base: Path, memory: Path) -> None:
        tensors = load_file(memory / "model.safetensors")
        del tensors["model.layers.0.ahn.fn.A_log"]
        tensors["model.layers.0.ahn.fn.surprise"] = torch.ones(1)
        save_file(tensors, memory / "model.safetensors")
        self.refused("memory keys are missing: model.layers.0.ahn.fn.A_log", base, ahn=memory)
        self.refused("unexpected memory keys: model.layers.0.ahn.fn.surprise", base, ahn=memory)

    def test_keys_that_nobody_knows(self, base: Path, memory: Path) -> None:
        for folder, options in ((memory, {"ahn": memory}), (base, {"variant": "full"})):
            tensors = load_file(folder / "model.safetensors")
            save_file(tensors | {"foo": torch.ones(1)}, folder / "model.safetensors")
            self.refused("foo", base, **options)
            save_file(tensors, folder / "model.safetensors")

    def test_biases_belong_to_the_base(self, base: Path) -> None:
        tensors = load_file(base / "model.safetensors")
        key = "model.layers.0.self_attn.q_proj.bias"
        save_file({k: v for k, v in tensors.items() if k != key}, base / "model.safetensors")
        self.refused(f"weights are missing: {key}", base, variant="full")
        save_file(tensors | {key: torch.ones(7)}, base / "model.safetensors")
        self.refused(f"{key} has shape [7]", base, variant="full")

    def test_a_file_that_was_cut_off(self, base: Path) -> None:
        data = (base / "model.safetensors").read_bytes()
        (base / "model.safetensors").write_bytes(data[:-100])
        self.refused("cut off?", base, variant="full")

    @pytest.mark.parametrize("window", [16.5, True, "12"])
    def test_windows_that_are_no_whole_numbers(self, base: Path, window: Any) -> None:
        self.refused("window must be a whole number", base, variant="window", window=window)

    def test_another_cell_than_the_weights(self, base: Path, memory: Path) -> None:
        edit(memory, _ahn_implementation="Mamba2")
        self.refused("memory keys are missing", base, ahn=memory)
        edit(memory, _ahn_implementation="LSTM")
        self.refused("cell 'LSTM' is unknown", base, ahn=memory)

    def test_another_family(self, base: Path, memory: Path) -> None:
        edit(memory, model_type="qwen3")
        self.refused("trained for qwen3", base, ahn=memory)
        edit(base, model_type="gemma")
        self.refused("model_type 'gemma' is not supported", base, variant="full")

    def test_router_and_q_proj_of_released_configurations(self, base: Path, memory: Path) -> None:
        edit(memory, use_q_proj=True)
        self.refused("use_q_proj: true, which is not supported", base, ahn=memory)

    def test_base_shapes_that_contradict_the_configuration(self, base: Path) -> None:
        edit(base, intermediate_size=65)
        self.refused("mlp.gate_proj.weight has shape [64, 48]", base, variant="full")

    def test_pickles_and_garbage(self, base: Path) -> None:
        (base / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all.")
        self.refused("not a safetensors file", base, variant="full")
        (base / "model.safetensors").unlink()
        (base / "pytorch_model.bin").write_bytes(b"x")
        self.refused("pytorch_model.bin is a pickle", base, variant="full")

    def test_weights_that_are_no_numbers(self, base: Path, memory: Path) -> None:
        tensors = load_file(memory / "model.safetensors")
        tensors["model.layers.2.ahn.fn.dt_bias"][0] = torch.nan
        save_file(tensors, memory / "model.safetensors")
        with pytest.raises(ahn.InputError, match=r"not finite.*layers\.2\.ahn\.fn\.dt_bias"):
            ahn.load_model(base, ahn=memory)

    def test_dtype(self, base: Path) -> None:
        with pytest.raises(ahn.InputError, match="dtype 'int8' is unknown"):
            ahn.load_model(base, "full", dtype="int8")


def test_released_configuration_has_released_keys(base: Path) -> None:
    config = released_config(ahn.describe_model(base), ahn.AHNConfig(window=32, sinks=4))
    assert config["_layer_implementation"] == "Qwen2MemDecoderLayer"
    assert config["_ahn_implementation"] == "GatedDeltaNet"
    assert (config["sliding_window"], config["num_attn_sinks"]) == (32, 4)
    assert config["model_type"] == "qwen2"


@pytest.mark.slow
def test_importing_ahn_is_light_and_leaves_stock_qwen2_alone(base: Path) -> None:
    script = f"""
import sys, ahn
assert ahn.check_model({str(base)!r}, "full") == []
assert "torch" not in sys.modules, "a check loads no torch"
import ahn.models.causal_lm
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(base)!r})
assert type(model).__module__ == "transformers.models.qwen2.modeling_qwen2"
"""
    subprocess.run([sys.executable, "-c", script], check=True)
