"""Merging and splitting: every bit comes back, all or nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ahn
from ahn.checkpoints import merge as merging
from ahn.checkpoints.merge import merge_checkpoint, shard_bytes, split_checkpoint
from ahn.released import RELEASED_KEYS
from tests.ahn.checkpoints.makers import base_folder, edit_config, edit_tensors, memory_folder
from tests.ahn.conftest import tokens, variant_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_folder(tmp_path / "base")


@pytest.fixture
def memory(tmp_path: Path, base: Path) -> Path:
    return memory_folder(tmp_path / "memory", base)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("cell", ahn.CELLS)
def test_merge_then_split_returns_the_same_bytes(tmp_path: Path, family: str, cell: str) -> None:
    from transformers import AutoModelForCausalLM

    base = base_folder(tmp_path / "base", family)
    memory = memory_folder(tmp_path / "memory", base, cell, family, full_attention_layers=(1,))
    merged, back = tmp_path / "merged", tmp_path / "back"
    written = merge_checkpoint(base, memory, merged)
    assert written.memory_tensors == len(load_file(memory / "model.safetensors"))
    assert written.base_tensors == len(load_file(base / "model.safetensors"))
    config = json.loads((merged / "config.json").read_text())
    assert config["model_type"] == f"{family}_ahn" and config["ahn"]["cell"] == cell
    split_checkpoint(merged, back)
    for name in ("model.safetensors", "config.json"):
        assert (back / name).read_bytes() == (memory / name).read_bytes(), name

    ids = tokens(60)
    expected = ahn.load_model(base, ahn=memory)(ids).logits
    assert torch.equal(ahn.load_model(merged)(ids).logits, expected)
    auto, info = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(auto.eval()(ids).logits, expected)
    assert [layer.window for layer in auto.layout] == [16, None, 16]


def test_every_tensor_keeps_its_type_and_bits(tmp_path: Path, base: Path, memory: Path) -> None:
    edit_tensors(base, lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    edit_config(base, dtype="bfloat16")
    merge_checkpoint(base, memory, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    for folder in (base, memory):
        for key, tensor in load_file(folder / "model.safetensors").items():
            assert merged[key].dtype == tensor.dtype and torch.equal(merged[key], tensor), key
    model = ahn.load_model(tmp_path / "merged")  # one type once loaded: the base's
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_shards_on_both_sides(tmp_path: Path, base: Path, memory: Path) -> None:
    sharded = base_folder(tmp_path / "sharded", max_shard_size="20KB")
    written = merge_checkpoint(sharded, memory, tmp_path / "merged", max_shard_size="30KB")
    assert len(written.files) > 2
    for name in written.files:
        stored = sum(t.nbytes for t in load_file(tmp_path / "merged" / name).values())
        assert stored <= 30_000, "no tensor here is larger than a file"
    with torch.no_grad():
        expected = ahn.load_model(base, ahn=memory)(tokens(50)).logits
        assert torch.equal(ahn.load_model(tmp_path / "merged")(tokens(50)).logits, expected)
    split_checkpoint(tmp_path / "merged", tmp_path / "parts", max_shard_size="10KB")
    assert len(ahn.weight_files(tmp_path / "parts")) > 1
    with torch.no_grad():
        again = ahn.load_model(base, ahn=tmp_path / "parts")
        assert torch.equal(again(tokens(50)).logits, expected)
    split_checkpoint(tmp_path / "merged", tmp_path / "one")
    name = "model.safetensors"
    assert (tmp_path / "one" / name).read_bytes() == (memory / name).read_bytes()


def test_what_belongs_to_the_base_goes_along(tmp_path: Path, base: Path, memory: Path) -> None:
    companions = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": '{"chat_template": "x"}',
        "chat_template.jinja": "{{ messages }}",
        "generation_config.json": '{"eos_token_id": 7}',
        "merges.txt": "a b",
        "LICENSE": "text",
    }
    for name, text in companions.items():
        (base / name).write_text(text)
    (base / "pytorch_model.bin").write_bytes(b"no")
    merge_checkpoint(base, memory, tmp_path / "merged")
    for name, text in companions.items():
        assert (tmp_path / "merged" / name).read_text() == text
    assert not (tmp_path / "merged" / "pytorch_model.bin").exists()
    assert ahn.load_model(tmp_path / "merged").generation_config.eos_token_id == 7


def test_window_sinks_and_rope_are_recorded(tmp_path: Path, base: Path, memory: Path) -> None:
    merge_checkpoint(base, memory, tmp_path / "merged", window=9, sinks=1, yarn_factor=4.0)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["ahn"]["window"], config["ahn"]["sinks"]) == (9, 1)
    assert config["rope_parameters"]["rope_type"] == "yarn"
    with torch.no_grad():
        expected = ahn.load_model(base, ahn=memory, window=9, sinks=1, yarn_factor=4.0)
        merged = ahn.load_model(tmp_path / "merged")
        assert torch.equal(merged(tokens(60)).logits, expected(tokens(60)).logits)


def test_a_released_merged_folder_is_split(tmp_path: Path, base: Path, memory: Path) -> None:
    model = variant_model("ahn")
    folder = tmp_path / "released"
    model.save_pretrained(folder)
    (folder / "config.json").write_text((memory / "config.json").read_text())
    split_checkpoint(folder, tmp_path / "out")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (memory / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("first", [False, True])
def test_import_ahn_is_enough_for_auto_classes(
    tmp_path: Path, base: Path, memory: Path, first: bool
) -> None:
    """Also where transformers' auto classes were imported `first`."""
    merge_checkpoint(base, memory, tmp_path / "merged")
    script = f"""
import sys
if {first}: import transformers.models.auto.modeling_auto
import ahn
if not {first}: assert "torch" not in sys.modules, "import ahn is light"
from transformers import AutoConfig, AutoModelForCausalLM
assert AutoConfig.from_pretrained({str(base)!r}).__class__.__name__ == "Qwen2Config"
assert AutoConfig.from_pretrained({str(tmp_path / "merged")!r}).model_type == "qwen2_ahn"
for folder, module in (({str(base)!r}, "transformers.models.qwen2.modeling_qwen2"),
                       ({str(tmp_path / "merged")!r}, "ahn.models.causal_lm")):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__module__ == module, type(model)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


class TestNothingIsLost:
    """Refusals and failures leave the place as it was."""

    def test_a_folder_in_use(self, tmp_path: Path, base: Path, memory: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        merge_checkpoint(base, memory, out)  # an empty folder is free
        before = (out / "model.safetensors").stat().st_ino
        with pytest.raises(ahn.InputError, match="not empty"):
            merge_checkpoint(base, memory, out)
        assert (out / "model.safetensors").stat().st_ino == before
        merge_checkpoint(base, memory, out, window=7, force=True)
        assert json.loads((out / "config.json").read_text())["ahn"]["window"] == 7
        assert leftovers(tmp_path) == []

    def test_what_is_read_or_no_model_is_never_replaced(
        self, tmp_path: Path, base: Path, memory: Path
    ) -> None:
        for output in (base, memory, tmp_path):
            with pytest.raises(ahn.InputError, match="holds what is read"):
                merge_checkpoint(base, memory, output, force=True)
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").write_text("x")
        with pytest.raises(ahn.InputError, match="holds no model"):
            merge_checkpoint(base, memory, tmp_path / "home", force=True)
        assert (tmp_path / "home" / "thesis.tex").is_file()
        for name in ("thesis.tex", "run.json", "training.json", "full/qa.jsonl"):
            out = tmp_path / "merged" / name.partition("/")[0]
            merge_checkpoint(base, memory, out)
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text("x")
            before = sorted(out.rglob("*"))
            with pytest.raises(ahn.InputError, match="belongs to no model"):
                merge_checkpoint(base, memory, out, force=True)
            assert sorted(out.rglob("*")) == before
        (tmp_path / "file").write_text("x")
        with pytest.raises(ahn.InputError, match="is a file"):
            merge_checkpoint(base, memory, tmp_path / "file", force=True)

    def test_a_full_disk(self, tmp_path: Path, base: Path, memory: Path) -> None:
        # a real limit: the kernel ends a write beyond it with an error
        out = tmp_path / "place" / "out"
        script = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
sys.argv = ["ahn", "merge", "--base", {str(base)!r}, "--ahn", {str(memory)!r},
            "--output", {str(out)!r}]
import ahn.cli
ahn.cli.main()
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert "could not be written (File too large)" in done.stderr
        assert "Traceback" not in done.stderr
        assert list((tmp_path / "place").iterdir()) == []

    def test_too_little_space_is_known_before(
        self, tmp_path: Path, base: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = merging.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(ahn.InputError, match="GB are free"):
            merge_checkpoint(base, memory, tmp_path / "place" / "out")
        assert not (tmp_path / "place").exists()

    def test_weights_that_are_no_numbers(self, tmp_path: Path, base: Path, memory: Path) -> None:
        key = "model.layers.2.ahn.fn.g_proj.weight"
        edit_tensors(memory, lambda t: t[key][0].fill_(torch.inf))
        with pytest.raises(ahn.InputError, match=f"{key} has weights that are not finite"):
            merge_checkpoint(base, memory, tmp_path / "place" / "out")
        assert list((tmp_path / "place").iterdir()) == []


def test_one_folder_for_both_is_refused(base: Path, memory: Path, tmp_path: Path) -> None:
    merge_checkpoint(base, memory, tmp_path / "merged")
    with pytest.raises(ahn.InputError, match="the same folder"):
        merge_checkpoint(tmp_path / "merged", tmp_path / "merged", tmp_path / "out")
    with pytest.raises(ahn.InputError, match="has AHN weights of its own"):
        merge_checkpoint(tmp_path / "merged", memory, tmp_path / "out")
    with pytest.raises(ahn.InputError, match="holds weights of a base model too"):
        merge_checkpoint(base, tmp_path / "merged", tmp_path / "out")
    with pytest.raises(ahn.InputError, match="holds AHN weights alone"):
        split_checkpoint(memory, tmp_path / "out")
    with pytest.raises(ahn.InputError, match="no memory to take out"):
        split_checkpoint(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5 MiB", 1572864), (123, 123), ("20kb", 20000)],
)
def test_shard_sizes(text: str, size: int) -> None:
    assert shard_bytes(text) == size
    for wrong in ("0", "-5GB", "many", "5TB", ""):
        with pytest.raises(ahn.InputError, match="shard size"):
            shard_bytes(wrong)


@pytest.mark.shared
@torch.no_grad()
def test_a_reference_checkpoint_taken_apart_and_merged_again(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "qwen3-hd24-GatedDeltaNet"
    split_checkpoint(golden, tmp_path / "ahn")
    base = tmp_path / "base"
    base.mkdir()
    held = load_file(golden / "model.safetensors")
    stock = {key: tensor for key, tensor in held.items() if ".ahn." not in key}
    save_file(stock, base / "model.safetensors", metadata={"format": "pt"})
    config = ahn.describe_model(golden)
    names = {key: v for key, v in config.items() if key not in RELEASED_KEYS}
    (base / "config.json").write_text(json.dumps(names | {"sliding_window": None}))
    merge_checkpoint(base, tmp_path / "ahn", tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == held.keys()
    assert all(torch.equal(merged[key], held[key]) for key in held)
    ids = tokens(90)
    expected = ahn.load_model(golden)(ids).logits
    assert torch.equal(ahn.load_model(tmp_path / "merged")(ids).logits, expected)
