"""The form of the recurrence that is asked for at load: by argument, environment, configuration."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import ahn
from tests.ahn.checkpoints.broken import Folders
from tests.ahn.checkpoints.makers import base_folder, edit_config, memory_folder


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    base = base_folder(tmp_path / "base")
    return Folders(base, memory_folder(tmp_path / "memory", base))


@pytest.mark.parametrize("way", ["argument", "environment", "configuration"])
def test_a_backend_that_is_absent_says_how_to_install_it(
    folders: Folders, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ahn.ops.selector._installed", lambda package: False)
    options: dict[str, Any] = {"ahn": folders.memory, "backend": "fla"}
    if way != "argument":
        del options["backend"]
    if way == "environment":
        monkeypatch.setenv("AHN_BACKEND", "fla")
    if way == "configuration":
        settings = {"cell": "GatedDeltaNet", "window": 16, "sinks": 3, "backend": "fla"}
        edit_config(folders.memory, ahn=settings)
    with pytest.raises(ahn.InputError) as caught:
        ahn.load_model(folders.base, **options)
    message = str(caught.value)
    assert message.startswith("AHN_BACKEND=fla" if way == "environment" else "backend 'fla'")
    assert "fla is not installed: pip install 'flash-linear-attention>=0.6'" in message
    ahn.load_model(folders.base, "window", ahn=folders.memory)  # no memory, no recurrence


def test_what_the_model_itself_refuses_is_not_blamed_on_the_device(folders: Folders) -> None:
    from ahn.checkpoints.build import build_model

    config = ahn.describe_model(folders.base)
    for backend in ("fla", "mamba_ssm"):
        if importlib.util.find_spec(backend) is None:
            settings = ahn.AHNConfig(backend=backend)
            with pytest.raises(ahn.InputError, match=f"^backend '{backend}'"):
                build_model(folders.base, "qwen2", config, settings, "auto", device_map={"": "cpu"})


@torch.no_grad()
def test_a_backend_that_is_asked_for_computes(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ahn.ops.selector import BACKENDS

    called = []
    for name, form in dict(BACKENDS).items():

        def noted(*arguments: Any, name: str = name, form: Any = form) -> Any:
            called.append(name)
            return form(*arguments)

        monkeypatch.setitem(BACKENDS, name, noted)
    ids, found = torch.arange(60)[None], {}
    for backend in (None, "recurrent", "chunked"):
        called.clear()
        model = ahn.load_model(folders.base, ahn=folders.memory, backend=backend)
        found[backend] = model(ids).logits
        assert set(called) == {backend or "chunked"}
        assert model.config.ahn.get("backend") == backend
    torch.testing.assert_close(found["recurrent"], found["chunked"], rtol=0, atol=1e-4)
