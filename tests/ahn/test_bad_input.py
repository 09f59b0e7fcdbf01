"""Every mistake is one message that names file and key, before any weight is loaded."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ahn
from ahn.checkpoints import load as checkpoints
from ahn.cli import main
from tests.ahn.checkpoints.broken import CASES, GATE, Case, Folders
from tests.ahn.checkpoints.makers import base_folder, edit_config, edit_tensors, memory_folder


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
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    if not case.late and not {"dtype", "device", "device_map", "backend"} & options.keys():
        problems = ahn.check_model(base, **{"variant": "ahn", **options})
        assert "\n".join(problems) == message, "a plan finds the same"


def test_all_problems_at_once(folders: Folders) -> None:
    edit_tensors(folders.memory, lambda t: t.pop(GATE))
    edit_tensors(folders.base, lambda t: t.update(foo=torch.ones(1)))
    problems = ahn.check_model(folders.base, "ahn", folders.memory)
    assert len(problems) == 2 and "foo" in problems[0] and GATE in problems[1]
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
        (
            "merge --base {base} --ahn {memory} -o {base}/x --window 0",
            "--window: must be at least",
        ),
        ("split --model {base} -o {base}/x", "no memory to take out"),
        ("generate --model {base}", "give either --prompt TEXT or --prompt-file"),
        ("generate --model {base} --prompt x --prompt-file y", "give either"),
        ("generate --model {base} --prompt-file {base}/y", "no such file"),
        ("generate --model {base} --prompt-file {base}/model.safetensors", "not UTF-8"),
        ("generate --model {base} --prompt x", "no tokenizer"),
        ("generate --model {base} --prompt x --max-new-tokens 0", "--max-new-tokens"),
        ("generate --model {base} --prompt x --temperature -1", "--temperature"),
        ("generate --model {base} --prompt x --variant ahn", "needs memory weights"),
        ("generate --model pocket --prompt x --dtype int4", "--dtype: must be 'auto', 'float32'"),
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
