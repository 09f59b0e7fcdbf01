"""Every mistake is one message that names file and key, before any weight is loaded."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ahn
from ahn import checkpoints
from ahn.cli import main
from tests.ahn.checkpoint_makers import base_folder, edit_config, edit_tensors, memory_folder

_GATE = "model.layers.1.ahn.fn.g_proj.weight"
_FILE = "model.safetensors"


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
        held = {k: v.clone() for k, v in load_file(place / _FILE).items()}  # not mapped
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
    Case("window 0", ("window must be at least 1 token, not 0",), options={"window": 0}),
    Case("window -1", ("window must be at least 1 token, not -1",), options={"window": -1}),
    Case("window 1.5", ("window must be a whole number",), options={"window": 1.5}),
    Case("sinks -1", ("sinks must be 0 or more tokens, not -1",), options={"sinks": -1}),
    Case("variant", ("variant 'rnn' is unknown", "no-write"), options={"variant": "rnn"}),
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
    Case("a file", ("is a file; pass the folder",), base=f"{{base}}/{_FILE}"),
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
    Case("llama", ("{base}: config.json: model_type 'llama'",), config("base", model_type="llama")),
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
        ("{memory}: memory keys are missing", _GATE),
        tensors("memory", lambda t: t.pop(_GATE)),
    ),
    Case(
        "additional",
        ("has not", "fn.more"),
        tensors("memory", lambda t: t.update({"model.layers.0.ahn.fn.more": torch.ones(1)})),
    ),
    Case(
        "a layer too many",
        ("layers.7.ahn",),
        tensors("memory", lambda t: t.update({_GATE.replace("1", "7"): torch.ones(1)})),
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
        ("{memory}: " + _GATE + " has shape [5, 48], the model needs [4, 48]",),
        tensors("memory", lambda t: t.update({_GATE: torch.ones(5, 48)})),
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
        ("stored as I8", _GATE),
        tensors("memory", lambda t: t.update({_GATE: t[_GATE].to(torch.int8)})),
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
        ("{memory}/" + _FILE, "not finite", _GATE),
        tensors("memory", lambda t: t[_GATE][0, 0].fill_(torch.nan)),
        late=True,
    ),
    Case(
        "Inf",
        ("{memory}/" + _FILE, "not finite", _GATE),
        tensors("memory", lambda t: t[_GATE][0, 0].fill_(-torch.inf)),
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
        "pickle", ("pytorch_model.bin is a pickle",), pickled("memory", "pytorch_model.bin", _FILE)
    ),
    Case("pickle .pt", ("ahn.pt is a pickle",), pickled("memory", "ahn.pt", _FILE)),
    Case("renamed pickle", ("{memory}/" + _FILE, "pickle"), pickled("memory", _FILE)),
    Case("no weights", ("{base}: no .safetensors file",), lambda f: (f.base / _FILE).unlink()),
    Case(
        "cut off",
        ("{memory}/" + _FILE, "cut off?"),
        lambda f: (f.memory / _FILE).write_bytes((f.memory / _FILE).read_bytes()[:-9]),
    ),
    Case(
        "cut header",
        ("{memory}/" + _FILE, "not a safetensors file"),
        lambda f: (f.memory / _FILE).write_bytes((f.memory / _FILE).read_bytes()[:99]),
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


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    place = tmp_path_factory.mktemp("originals")
    base = base_folder(place / "base")
    return Folders(base, memory_folder(place / "memory", base))


@pytest.fixture
def folders(tmp_path: Path, originals: Folders, monkeypatch: pytest.MonkeyPatch) -> Folders:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("base", "memory"):
        shutil.copytree(getattr(originals, name), tmp_path / name)
    return Folders(tmp_path / "base", tmp_path / "memory")


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_folders_are_fine_before_they_are_broken(folders: Folders) -> None:
    assert ahn.check_model(folders.base, "ahn", folders.memory) == []
    ahn.load_model(folders.base, ahn=folders.memory)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_mistake_is_named_and_nothing_is_loaded(
    folders: Folders, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.spoil(folders)
    names = {"base": str(folders.base), "memory": str(folders.memory)}
    base = case.base.format(**names) if case.base is not None else str(folders.base)
    options: dict[str, Any] = {"ahn": folders.memory if case.memory else None, **case.options}
    if not case.late:

        def never(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("weights were loaded")

        monkeypatch.setattr(checkpoints, "build_model", never)
    with pytest.raises(ahn.InputError) as caught:
        ahn.load_model(base, **options)
    message = str(caught.value)
    for part in case.says:
        assert part.replace("{base}", names["base"]).replace("{memory}", names["memory"]) in message
    if not case.late and not {"dtype", "device", "device_map"} & options.keys():
        problems = ahn.check_model(base, **{"variant": "ahn", **options})
        assert "\n".join(problems) == message, "a plan finds the same"


def test_all_problems_at_once(folders: Folders) -> None:
    edit_tensors(folders.memory, lambda t: t.pop(_GATE))
    edit_tensors(folders.base, lambda t: t.update(foo=torch.ones(1)))
    problems = ahn.check_model(folders.base, "ahn", folders.memory)
    assert len(problems) == 2 and "foo" in problems[0] and _GATE in problems[1]
    edit_config(folders.memory, sliding_window=-1, use_q_proj=True, fa_layer_ids="x")
    assert len(ahn.check_model(folders.base, "ahn", folders.memory)) == 3


@torch.no_grad()
def test_more_sinks_than_window_are_computed(folders: Folders) -> None:
    # nothing is senseless about it: the golden vectors have 128 sinks and a window of 64
    model = ahn.load_model(folders.base, ahn=folders.memory, window=1, sinks=40)
    assert torch.isfinite(model(torch.arange(60)[None]).logits).all()


@torch.no_grad()
def test_the_bases_own_window_is_replaced_only_by_a_given_one(folders: Folders) -> None:
    expected = ahn.load_model(folders.base, ahn=folders.memory, window=9)
    edit_config(
        folders.base,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
        layer_types=None,
    )
    with pytest.raises(ahn.InputError, match="2 of its layers have a window"):
        ahn.load_model(folders.base, "full", window=9)
    model = ahn.load_model(folders.base, ahn=folders.memory, window=9)
    ids = torch.arange(60)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)
    edit_config(folders.base, max_window_layers=28)  # then no layer slides
    assert ahn.check_model(folders.base, "full") == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("info /nowhere", "/nowhere: no such folder"),
        ("info", "give one of PATH, --model NAME and --list"),
        ("info --model qwen9", "no model 'qwen9' in the zoo"),
        ("info --model qwen2.5-3b --cell LSTM", "cell 'LSTM' is unknown"),
        ("info {base} --cell Mamba2", "go with --model"),
        ("merge --base {base} --ahn {base} -o {base}/x", "names no cell"),
        ("merge --base {base} --ahn {memory} -o {base}", "holds what is read"),
        ("merge --base {base} --ahn {memory} -o {base}/x --window 0", "window must be at least 1"),
        ("split --model {base} -o {base}/x", "no memory to take out"),
        ("generate --model {base}", "give either --prompt TEXT or --prompt-file"),
        ("generate --model {base} --prompt x --prompt-file y", "give either"),
        ("generate --model {base} --prompt-file {base}/y", "No such file"),
        ("generate --model {base} --prompt-file {base}/model.safetensors", "not UTF-8"),
        ("generate --model {base} --prompt x", "no tokenizer"),
        ("generate --model {base} --prompt x --max-new-tokens 0", "--max-new-tokens"),
        ("generate --model {base} --prompt x --temperature -1", "--temperature"),
        ("generate --model {base} --prompt x --variant ahn", "needs memory weights"),
        ("generate --model pocket --prompt x --dtype int4", "dtype 'int4' is unknown"),
        ("generate --model pocket --prompt x --device gpu", "device 'gpu' is unknown"),
    ],
)
def test_the_command_ends_with_2_and_no_traceback(
    folders: Folders,
    arguments: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments.format(base=folders.base, memory=folders.memory).split()
    monkeypatch.setattr(sys, "argv", ["ahn", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert says in shown.err and shown.err.startswith("error: ") and shown.out == ""
    assert not (folders.base / "x").exists()
