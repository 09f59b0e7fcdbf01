"""What can be wrong with a base model, AHN weights, or what is asked for: a table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.ahn.checkpoints.makers import base_folder, edit_config, edit_tensors

GATE = "model.layers.1.ahn.fn.g_proj.weight"
FILE = "model.safetensors"


@dataclass(frozen=True)
class Folders:
    """A base and its AHN weights, fresh for each test."""

    base: Path
    memory: Path


@dataclass(frozen=True)
class Case:
    """What is broken, and what the message must say.

    Attributes:
        name: of the test.
        says: parts of the message; `{base}` and `{memory}` stand for the folders.
        spoil: breaks the folders.
        options: of `load_model`.
        memory: pass the AHN folder.
        base: instead of the base folder.
        late: found when weights are read (no check of headers can).
    """

    name: str
    says: tuple[str, ...]
    spoil: Callable[[Folders], Any] = lambda folders: None
    options: dict[str, Any] = field(default_factory=dict)
    memory: bool = True
    base: str | None = None
    late: bool = False


def config(folder: str, **changes: Any) -> Callable[[Folders], Any]:
    return lambda folders: edit_config(getattr(folders, folder), **changes)


def tensors(folder: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[..., Any]:
    return lambda folders: edit_tensors(getattr(folders, folder), change)


def written(folder: str, name: str, data: bytes, drop: str | None = None) -> Callable[..., Any]:
    def spoil(folders: Folders) -> None:
        if drop is not None:
            (getattr(folders, folder) / drop).unlink()
        (getattr(folders, folder) / name).write_bytes(data)

    return spoil


def pickled(folder: str, name: str, drop: str | None = None) -> Callable[[Folders], Any]:
    def spoil(folders: Folders) -> None:
        place = getattr(folders, folder)
        held = {k: v.clone() for k, v in load_file(place / FILE).items()}  # not mapped
        if drop is not None:
            (place / drop).unlink()
        torch.save(held, place / name)

    return spoil


def sharded(change: Callable[[Path, dict[str, Any]], Any]) -> Callable[[Folders], Any]:
    """A sharded base, with `change(folder, index)` applied to it."""

    def spoil(folders: Folders) -> None:
        shutil.rmtree(folders.base)
        base_folder(folders.base, max_shard_size="20KB")
        file = folders.base / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        change(folders.base, index)
        file.write_text(json.dumps(index))

    return spoil


def lose_a_shard(folder: Path, index: dict[str, Any]) -> None:
    (folder / sorted(set(index["weight_map"].values()))[1]).unlink()


def repeat_a_key(folder: Path, index: dict[str, Any]) -> None:
    names = sorted(set(index["weight_map"].values()))
    key, tensor = next(iter(load_file(folder / names[0]).items()))
    save_file(load_file(folder / names[1]) | {key: tensor}, folder / names[1])


def name_the_wrong_file(folder: Path, index: dict[str, Any]) -> None:
    names = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.norm.weight"] = next(
        name for name in names if name != index["weight_map"]["model.norm.weight"]
    )


def climb(folder: Path, index: dict[str, Any]) -> None:
    index["weight_map"]["model.norm.weight"] = "../memory/model.safetensors"


def all_cells_renamed(held: dict[str, torch.Tensor]) -> None:
    for key in [key for key in held if key.endswith(("a_proj.weight", "A_log", "dt_bias", ".D"))]:
        del held[key]


CASES = [
    # what is asked for
    Case("window 0", ("window must be at least 1, not 0",), options={"window": 0}),
    Case("window -1", ("window must be at least 1, not -1",), options={"window": -1}),
    Case("window 1.5", ("window must be a whole number",), options={"window": 1.5}),
    Case("sinks -1", ("sinks must be at least 0, not -1",), options={"sinks": -1}),
    Case("variant", ("variant 'rnn' is unknown", "no-write"), options={"variant": "rnn"}),
    Case("backend", ("backend 'cuda' is unknown", "chunked, fla"), options={"backend": "cuda"}),
    Case("backend number", ("backend 3 is unknown",), options={"backend": 3}),
    Case("no memory", ("needs memory weights", "--ahn"), memory=False),
    # types and places
    Case("dtype int8", ("dtype 'int8' is unknown", "bfloat16"), options={"dtype": torch.int8}),
    Case("dtype name", ("dtype 'half-ish' is unknown",), options={"dtype": "half-ish"}),
    Case("dtype complex", ("dtype 'complex64' is unknown",), options={"dtype": torch.complex64}),
    Case("device gpu", ("device 'gpu' is unknown", "cuda"), options={"device": "gpu"}),
    Case("device meta", ("device 'meta' is not supported",), options={"device": "meta"}),
    Case("device cuda:99", ("device 'cuda:99' is not here",), options={"device": "cuda:99"}),
    Case("device_map word", ("device_map", "'fast'"), options={"device_map": "fast"}),
    Case("device_map empty", ("device_map is empty",), options={"device_map": {}}),
    Case(
        "device_map disk",
        ("device_map puts weights on disk",),
        options={"device_map": {"": "cpu", "model.layers.0": "disk"}},
    ),
    Case("device twice", ("not both",), options={"device": "cpu", "device_map": "auto"}),
    # paths
    Case("no folder", ("/nowhere: no such folder",), base="/nowhere"),
    Case("empty path", ("is empty",), base=" "),
    Case("a file", ("is a file; pass the folder",), base=f"{{base}}/{FILE}"),
    Case(
        "hub id, offline", ("no such folder, and the hub", "Qwen/Qwen2.5-3"), base="Qwen/Qwen2.5-3"
    ),
    Case("empty folder", ("no config.json",), lambda f: (f.base / "config.json").unlink()),
    Case("AHN as base", ("holds AHN weights alone",), base="{memory}", memory=False),
    # config.json
    Case("no JSON", ("{base}/config.json: not JSON",), written("base", "config.json", b"{")),
    Case("no text", ("{base}/config.json: not JSON",), written("base", "config.json", b"\xff\xfe")),
    Case(
        "a list", ("{base}/config.json: not a JSON object",), written("base", "config.json", b"[]")
    ),
    Case("gemma", ("{base}: config.json: model_type 'gemma'",), config("base", model_type="gemma")),
    Case("qwen2_vl", ("model_type 'qwen2_vl' is not",), config("base", model_type="qwen2_vl")),
    Case("qwen2_moe", ("model_type 'qwen2_moe' is not",), config("base", model_type="qwen2_moe")),
    Case("no family", ("model_type None is not",), config("base", model_type=None)),
    Case("AHN's family", ("trained for qwen3",), config("memory", model_type="qwen3")),
    Case(
        "zero heads",
        ("{base}: config.json", "num_attention_heads"),
        config("base", num_attention_heads=0),
    ),
    Case(
        "text heads",
        ("{base}: config.json", "num_attention_heads"),
        config("base", num_attention_heads="4"),
    ),
    Case(
        "heads",
        ("num_attention_heads 4 is no multiple", "3"),
        config("base", num_key_value_heads=3),
    ),
    Case("layers", ("num_hidden_layers", "beyond every"), config("base", num_hidden_layers=10**30)),
    Case(
        "epsilon",
        ("{base}/config.json", "'rms_norm_eps'"),
        config("base", rms_norm_eps="small"),
        late=True,
    ),
    Case(
        "activation",
        ("{base}/config.json: hidden_act 'swish2' is unknown",),
        config("base", hidden_act="swish2"),
        late=True,
    ),
    Case(
        "padding",
        ("{base}/config.json: pad_token_id 101 is none of the 101 tokens",),
        config("base", pad_token_id=101),
        late=True,
    ),
    Case("no key heads", ("num_key_value_heads",), config("base", num_key_value_heads=0)),
    Case(
        "tied?",
        ("tie_word_embeddings must be true or false",),
        config("base", tie_word_embeddings="no"),
    ),
    Case(
        "own window",
        ("use_sliding_window", "--window"),
        config(
            "base", use_sliding_window=True, sliding_window=8, max_window_layers=1, layer_types=None
        ),
    ),
    # config.json of the memory
    Case("no cell", ("names no cell",), config("memory", _ahn_implementation=None)),
    Case(
        "cell",
        ("{memory}: config.json: cell 'LSTM' is unknown",),
        config("memory", _ahn_implementation="LSTM"),
    ),
    Case(
        "released window",
        ("{memory}: config.json: window must be at least 1",),
        config("memory", sliding_window=0),
    ),
    Case(
        "released sinks",
        ("{memory}: config.json: sinks must be",),
        config("memory", num_attn_sinks="4"),
    ),
    Case("fa word", ("fa_layer_ids: 'last' is not",), config("memory", fa_layer_ids="0,last")),
    Case("fa half", ("fa_layer_ids: 1.5 is not",), config("memory", fa_layer_ids=[1.5])),
    Case(
        "fa range", ("the model has no layer 3", "fa_layer_ids"), config("memory", fa_layer_ids="3")
    ),
    Case("fa negative", ("the model has no layer -1",), config("memory", fa_layer_ids="-1")),
    Case(
        "q_proj",
        ("{memory}: config.json: use_q_proj: true, which is not",),
        config("memory", use_q_proj=True),
    ),
    Case(
        "router flag",
        ("use_ahn_router: true, which is not",),
        config("memory", use_ahn_router=True),
    ),
    Case(
        "layer class", ("_layer_implementation: 'X'",), config("memory", _layer_implementation="X")
    ),
    Case("ours, unknown key", ("'ahn'", "speed"), config("memory", ahn={"speed": 3})),
    # tensors
    Case(
        "missing",
        ("{memory}: memory keys are missing", GATE),
        tensors("memory", lambda t: t.pop(GATE)),
    ),
    Case(
        "additional",
        ("unexpected memory keys", "fn.more"),
        tensors("memory", lambda t: t.update({"model.layers.0.ahn.fn.more": torch.ones(1)})),
    ),
    Case(
        "a layer too many",
        ("layers.7.ahn",),
        tensors("memory", lambda t: t.update({GATE.replace("1", "7"): torch.ones(1)})),
    ),
    Case(
        "unknown",
        ("{memory}: keys that no model here has: foo",),
        tensors("memory", lambda t: t.update(foo=torch.ones(1))),
    ),
    Case(
        "base's key",
        ("{memory}: holds weights of a base", "model.norm.weight"),
        tensors("memory", lambda t: t.update({"model.norm.weight": torch.ones(48)})),
    ),
    Case(
        "shape",
        ("{memory}: " + GATE + " has shape [5, 48], the model needs [4, 48]",),
        tensors("memory", lambda t: t.update({GATE: torch.ones(5, 48)})),
    ),
    Case(
        "another cell",
        ("names cell GatedDeltaNet", "those of DeltaNet"),
        tensors("memory", all_cells_renamed),
    ),
    Case(
        "router keys",
        ("position router", "ahn_router.alpha"),
        tensors("memory", lambda t: t.update({"model.layers.0.ahn_router.alpha": torch.ones(4)})),
    ),
    Case(
        "router in base",
        ("position router",),
        tensors("base", lambda t: t.update({"model.layers.0.ahn_router.beta": torch.ones(4)})),
        {"variant": "full"},
        memory=False,
    ),
    Case(
        "int8",
        ("stored as I8", GATE),
        tensors("memory", lambda t: t.update({GATE: t[GATE].to(torch.int8)})),
    ),
    Case(
        "base shape",
        ("{base}: model.norm.weight has shape [7], config.json says [48]",),
        tensors("base", lambda t: t.update({"model.norm.weight": torch.ones(7)})),
    ),
    Case(
        "base key",
        ("{base}: weights are missing: model.norm.weight",),
        tensors("base", lambda t: t.pop("model.norm.weight")),
    ),
    Case(
        "NaN",
        ("{memory}/" + FILE, "not finite", GATE),
        tensors("memory", lambda t: t[GATE][0, 0].fill_(torch.nan)),
        late=True,
    ),
    Case(
        "Inf",
        ("{memory}/" + FILE, "not finite", GATE),
        tensors("memory", lambda t: t[GATE][0, 0].fill_(-torch.inf)),
        late=True,
    ),
    Case(
        "base NaN",
        ("{base}: weights that are not finite", "model.norm.weight"),
        tensors("base", lambda t: t["model.norm.weight"][3].fill_(torch.nan)),
        late=True,
    ),
    # files
    Case(
        "pickle", ("pytorch_model.bin is a pickle",), pickled("memory", "pytorch_model.bin", FILE)
    ),
    Case("pickle .pt", ("ahn.pt is a pickle",), pickled("memory", "ahn.pt", FILE)),
    Case("pickle .pkl", ("ahn.pkl is a pickle",), pickled("memory", "ahn.pkl", FILE)),
    Case("renamed pickle", ("{memory}/" + FILE, "pickle"), pickled("memory", FILE)),
    Case("no weights", ("{base}: no .safetensors file",), lambda f: (f.base / FILE).unlink()),
    Case(
        "cut off",
        ("{memory}/" + FILE, "cut off?"),
        lambda f: (f.memory / FILE).write_bytes((f.memory / FILE).read_bytes()[:-9]),
    ),
    Case(
        "cut header",
        ("{memory}/" + FILE, "not a safetensors file"),
        lambda f: (f.memory / FILE).write_bytes((f.memory / FILE).read_bytes()[:99]),
    ),
    Case("lost shard", ("names files that are missing", "model-00002"), sharded(lose_a_shard)),
    Case(
        "key twice",
        ("is in another file of this checkpoint too", "model-00001"),
        sharded(repeat_a_key),
    ),
    Case("wrong shard", ("model.norm.weight is not in model-",), sharded(name_the_wrong_file)),
    Case("path in index", ("is not the name of a file of this folder",), sharded(climb)),
    Case("index", ("index.json: not JSON",), written("base", "model.safetensors.index.json", b"{")),
    Case(
        "empty index", ("no 'weight_map'",), written("base", "model.safetensors.index.json", b"{}")
    ),
]
