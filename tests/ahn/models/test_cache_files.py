"""A cache on disk says to its model what it said before, and to no other model anything."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from ahn import AHNCache, InputError
from ahn.config import CELLS, VARIANTS
from tests.ahn.conftest import SINKS, WINDOW, tokens, variant_model


@torch.no_grad()
def read(model: Any, length: int = 60, rows: int = 1, ragged: bool = False) -> tuple[Any, Any]:
    """A cache after a document, and the mask that belongs to it."""
    ids, mask = tokens(length, rows=rows), torch.ones(rows, length, dtype=torch.long)
    if ragged:
        for row in range(1, rows):
            mask[row, : 17 * row] = 0
    cache = model.new_cache()
    model(ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
    return cache, mask


@torch.no_grad()
def asked(model: Any, cache: Any, mask: Any, rows: int) -> torch.Tensor:
    """Logits of a question of several tokens and of three single ones after it."""
    question, pieces = tokens(9, rows=rows, seed=5), []
    for start, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
        ids = question[:, start:end]
        mask = F.pad(mask, (0, end - start), value=1)
        pieces.append(model(ids, attention_mask=mask, past_key_values=cache).logits)
    return torch.cat(pieces, 1)


@pytest.mark.parametrize(
    ("rows", "ragged", "dtype"),
    [(1, False, torch.float32), (3, False, torch.bfloat16), (3, True, torch.float32)],
)
@pytest.mark.parametrize(
    "options",
    [{"variant": variant} for variant in VARIANTS]
    + [{"variant": "ahn", "cell": cell, "full_attention_layers": (1,)} for cell in CELLS],
    ids=str,
)
def test_a_loaded_cache_answers_as_the_one_that_was_saved(
    options: dict[str, Any], rows: int, ragged: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = variant_model(**options).to(dtype)
    cache, mask = read(model, rows=rows, ragged=ragged)
    path = tmp_path / "deep" / "er" / "document.safetensors"
    cache.save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    loaded = AHNCache.load(path, model)
    assert loaded.nbytes == cache.nbytes and loaded.get_seq_length() == cache.get_seq_length()
    expected = asked(model, cache, mask, rows)
    assert torch.equal(asked(model, loaded, mask, rows), expected)
    again = AHNCache.load(path)  # checked by its first use
    assert torch.equal(asked(model, again, mask, rows), expected)


def test_the_file_holds_tensors_and_json_only(models: Any, tmp_path: Path) -> None:
    model = models("ahn")
    cache, _ = read(model)
    cache.save(tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["ahn_cache"])
        assert len(list(file.keys())) == sum(len(layer.tensors()) for layer in cache.layers)
    assert facts["version"] == 1 and facts["seen"] == 60 and facts["rows"] == 1
    assert facts["model"]["hidden_size"] == 48 and facts["model"]["rope"]["rope_theta"] > 0
    assert facts["layouts"][0] == {**facts["layouts"][0], "window": WINDOW, "sinks": SINKS}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: variant_model("window"), "the weights are others"),
        (lambda: variant_model("ahn", window=WINDOW + 1), "another layout"),
        (lambda: variant_model("ahn", full_attention_layers=(2,)), "weights are others"),
        (lambda: variant_model("ahn", cell="Mamba2"), "the weights are others"),
        (lambda: variant_model("ahn", family="qwen3"), "model_type was 'qwen2_ahn'"),
        (lambda: variant_model("ahn").bfloat16(), "dtype was 'float32', the model's is 'bfloat16'"),
    ],
)
def test_another_model_is_refused_by_name(
    models: Any, tmp_path: Path, other: Any, message: str
) -> None:
    path = tmp_path / "c.safetensors"
    read(models("ahn"))[0].save(path)
    with pytest.raises(InputError, match=message) as error:
        AHNCache.load(path, other())
    assert str(path) in str(error.value)
    with pytest.raises((InputError, ValueError), match="another (model|layout)"):
        other()(tokens(1), past_key_values=AHNCache.load(path))


def test_a_model_trained_further_is_another_model(tmp_path: Path) -> None:
    model = variant_model("ahn")
    read(model)[0].save(tmp_path / "c")
    with torch.no_grad():
        model.model.layers[2].ahn.fn.o_proj.weight.mul_(1.01)
    with pytest.raises(InputError, match="trained further"):
        AHNCache.load(tmp_path / "c", model)


def test_what_is_no_cache_is_refused(models: Any, tmp_path: Path) -> None:
    model, path = models("ahn"), tmp_path / "c.safetensors"
    with pytest.raises(InputError, match="no such file"):
        AHNCache.load(path, model)
    path.write_bytes(pickle.dumps({"layers": [1]}))
    with pytest.raises(InputError, match="not a saved cache"):
        AHNCache.load(path, model)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(InputError, match="a safetensors file, but not a saved cache"):
        AHNCache.load(path, model)
    path.unlink()
    read(model)[0].save(path)
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 40, 0):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="damaged"):
            AHNCache.load(path, model)
    with pytest.raises(InputError, match="belongs to none"):
        AHNCache(model.layout).save(path)


def test_only_a_saved_cache_is_replaced(models: Any, tmp_path: Path) -> None:
    model, path = models("ahn"), tmp_path / "c.safetensors"
    cache = read(model)[0]
    cache.save(path)
    whole = path.read_bytes()
    for content in (b"a letter", pickle.dumps([1]), whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="holds no saved cache, so it is not replaced"):
            cache.save(path)
        assert path.read_bytes() == content
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(InputError, match="holds no saved cache, so it is not replaced"):
        cache.save(path)
    for content in (b"", whole):
        path.write_bytes(content)
        cache.save(path)
        assert path.read_bytes() == whole
    with pytest.raises(InputError, match="is a folder"):
        cache.save(tmp_path)


def test_metadata_that_contradicts_the_tensors_is_refused(models: Any, tmp_path: Path) -> None:
    model, path = models("ahn"), tmp_path / "c.safetensors"
    read(model)[0].save(path)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["ahn_cache"])

    def written(facts: Any, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, path, metadata={"ahn_cache": json.dumps(facts)})

    for change, message in (
        ({"version": 9}, "format version 9"),
        ({"seen": [1, 2]}, "one a row"),
        ({"columns": 3}, "contradict"),
        ({"layouts": facts["layouts"][:2]}, "2 layouts for 3 layers"),
        ({"layouts": [{"gap": 3}]}, "metadata does not fit"),
        ({"rows": 2}, "layers.0.keys is"),
    ):
        written({**facts, **change}, tensors)
        with pytest.raises(InputError, match=message):
            AHNCache.load(path, model)
    written(facts, {key: x for key, x in tensors.items() if key != "layers.1.state"})
    with pytest.raises(InputError, match="layers.1.state is missing"):
        AHNCache.load(path, model)


def test_a_cache_with_steps_in_half_precision_is_read_anew(tmp_path: Path) -> None:
    # as caches of half-precision Mamba2 memories were before their dt was computed in float32
    model, path = variant_model("ahn", cell="Mamba2").bfloat16(), tmp_path / "c.safetensors"
    cache, _ = read(model)
    for layer in cache.layers:
        layer.slots["write"] = layer.slots["write"].bfloat16()
    cache.save(path)
    with pytest.raises(InputError, match="write was computed in half precision.*read the document"):
        AHNCache.load(path, model)


def test_a_failed_write_leaves_the_old_file(models: Any, tmp_path: Path, monkeypatch: Any) -> None:
    cache, _ = read(models("ahn"))
    path = tmp_path / "c.safetensors"
    cache.save(path)
    before = path.read_bytes()

    def torn(tensors: Any, name: Path, metadata: Any) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("ahn.models.cache_files.save_file", torn)
    with pytest.raises(InputError, match="No space left"):
        cache.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        cache.save(tmp_path / "file" / "c.safetensors")


@torch.no_grad()
def test_a_moved_cache_holds_the_same_and_an_empty_one_can_be_saved(
    models: Any, tmp_path: Path
) -> None:
    model = models("ahn")
    cache, _ = read(model)
    assert cache.to("meta") is cache  # a device that every machine has
    assert all(x.device.type == "meta" for layer in cache.layers for x in layer.tensors().values())
    model.new_cache().save(tmp_path / "empty")
    empty = AHNCache.load(tmp_path / "empty", model)
    assert empty.nbytes == 0
    ids = tokens(40)
    assert torch.equal(model(ids, past_key_values=empty).logits, model(ids).logits)
