"""What a model will be is decided once, and each file of a checkpoint is read once."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ahn
from ahn.checkpoints import locate
from ahn.checkpoints.locate import CheckpointFiles
from tests.ahn.checkpoints.makers import base_folder, edit_config, memory_folder

_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | os.PathLike):
        _opened.append(str(arguments[0]))


sys.addaudithook(_note)  # cannot be removed; does nothing outside `opened`


@pytest.fixture
def opened() -> Iterator[Callable[[], Counter[str]]]:
    """The files that Python opened since the fixture was made, and how often."""
    global _opened
    _opened = []
    yield lambda: Counter(os.path.realpath(path) for path in _opened or [])
    _opened = None


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("resolve") / "base")


@pytest.fixture(scope="module")
def memory(base: Path) -> Path:
    return memory_folder(base.parent / "memory", base)


def test_one_load_reads_each_configuration_and_each_header_once(
    base: Path, memory: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers: Counter[Path] = Counter()
    read = locate.read_header
    monkeypatch.setattr(locate, "read_header", lambda f: (headers.update([f]), read(f))[1])
    ahn.load_model(base, ahn=memory)
    found = opened()
    assert headers == {file: 1 for place in (base, memory) for file in place.glob("*.safetensors")}
    for place in (base, memory):
        assert found[str((place / "config.json").resolve())] == 1


def test_variants_that_share_their_files_read_them_once(
    base: Path, memory: Path, opened: Any
) -> None:
    files, weights = CheckpointFiles(base), CheckpointFiles(memory)
    resolved = [
        ahn.resolve_checkpoint(files, variant, weights, window=8, sinks=0)
        for variant in ahn.VARIANTS
    ]
    found = opened()
    assert {r.settings.variant for r in resolved} == set(ahn.VARIANTS)
    for place in (base, memory):
        for name in ("config.json", "model.safetensors"):
            assert found[str((place / name).resolve())] == 1, (place, name)


def test_a_resolved_checkpoint_says_what_the_model_is_then(base: Path, memory: Path) -> None:
    resolved = ahn.resolve_checkpoint(
        base, "ahn", memory, window=9, sinks=3, dtype="bfloat16", yarn_factor=2.0
    )
    model = ahn.load_resolved(resolved)
    assert list(resolved.layout) == list(model.layout)
    assert f"torch.{resolved.dtype}" == str(model.dtype) and resolved.device == "cpu"
    assert model.config.rope_parameters["factor"] == 2.0
    assert resolved.config["rope_parameters"]["factor"] == 2.0
    assert resolved.shape.num_hidden_layers == len(model.model.layers)
    assert resolved.weight_files == [base / "model.safetensors", memory / "model.safetensors"]
    assert set(resolved.tensors) == set(model.state_dict())


def test_a_base_alone_is_loaded_from_its_own_files(base: Path, memory: Path) -> None:
    resolved = ahn.resolve_checkpoint(base, "window", memory, window=9)
    assert resolved.weight_files == [base / "model.safetensors"]
    assert resolved.memory is None and not resolved.two_folders


def test_resolving_needs_no_torch(base: Path, memory: Path) -> None:
    import subprocess

    code = (
        "import sys, ahn; "
        f"ahn.resolve_checkpoint({str(base)!r}, 'ahn', {str(memory)!r}, device='cpu'); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_wrong_argument_is_named_at_once(base: Path) -> None:
    with pytest.raises(ahn.InputError) as caught:
        ahn.resolve_checkpoint(base, "full", window=0, sinks=-1, dtype="int4", device="abacus")
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for said in ("window", "sinks", "dtype 'int4'", "device 'abacus'"):
        assert said in text


def test_a_form_that_cannot_run_here_is_refused_before_the_weights(
    base: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ahn.InputError, match="mamba_ssm"):
        ahn.resolve_checkpoint(base, "ahn", memory, backend="mamba_ssm")
    monkeypatch.setenv("AHN_BACKEND", "abacus")
    for variant in ("ahn", "full"):
        with pytest.raises(ahn.InputError, match="unknown backend 'abacus'"):
            ahn.resolve_checkpoint(base, variant, memory)
    monkeypatch.setenv("AHN_BACKEND", "mamba_ssm")
    ahn.resolve_checkpoint(base, "full")  # it has nothing to compute with it


def test_names_of_the_embedded_model_are_known_everywhere() -> None:
    resolved = ahn.resolve_checkpoint("pocket", "ahn", "pocket/dn")
    assert resolved.settings.cell == "DeltaNet"
    assert ahn.describe_model("pocket") == ahn.describe_model(ahn.POCKET_PATH)


def test_layers_without_a_memory_are_said_and_not_loaded(base: Path, tmp_path: Path) -> None:
    folder = memory_folder(tmp_path / "memory", base)
    edit_config(folder, fa_layer_ids="1")
    resolved = ahn.resolve_checkpoint(base, "ahn", folder)
    assert resolved.idle and all(".layers.1.ahn." in key for key in resolved.idle)
    assert not set(resolved.idle) & set(resolved.tensors)
    (notice,) = resolved.notices
    assert "keep full attention" in notice and str(folder) in notice
    assert json.loads((folder / "config.json").read_text())["fa_layer_ids"] == "1"


@pytest.fixture
def hub(base: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub with `Some/base` and `Some/memory`; which files were asked of it."""
    asked: list[str] = []
    folders = {"Some/base": base, "Some/memory": memory}

    def from_hub(place: Any, patterns: list[str]) -> Path:
        asked.extend(patterns)
        return folders[str(place)]

    def headers(place: Any) -> Any:  # as the hub gives them: names, and bytes from 0
        found = CheckpointFiles(folders[str(place)]).tensors
        return {
            key: dataclasses.replace(t, file=Path(t.file.name), start=0, end=t.nbytes)
            for key, t in found.items()
        }

    monkeypatch.setattr(locate, "_from_hub", from_hub)
    monkeypatch.setattr(locate, "_remote_tensors", headers)
    return asked


@torch.no_grad()
def test_of_a_checkpoint_on_the_hub_only_headers_are_fetched_until_it_is_loaded(
    base: Path, memory: Path, hub: list[str]
) -> None:
    resolved = ahn.resolve_checkpoint("Some/base", "ahn", "Some/memory", window=8, sinks=0)
    assert not any("safetensors" in pattern for pattern in hub)
    assert resolved.path == "Some/base"
    model = ahn.load_resolved(resolved)
    assert any("safetensors" in pattern for pattern in hub)
    expected = ahn.load_model(base, ahn=memory, window=8, sinks=0)
    ids = torch.arange(40)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)


def test_what_does_not_fit_is_refused_from_the_hubs_headers(
    base: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ahn.InputError, match="Some/memory: holds AHN weights alone|no base model"):
        ahn.resolve_checkpoint("Some/memory", "full")
    assert not any("safetensors" in pattern for pattern in hub)


def test_it_can_be_sent_to_another_process(base: Path, memory: Path) -> None:
    resolved = ahn.resolve_checkpoint(base, "ahn", memory)
    again = pickle.loads(pickle.dumps(resolved))
    assert (again.settings, again.tensors, again.path) == (
        resolved.settings,
        resolved.tensors,
        resolved.path,
    )
