"""Types and places of weights, as in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ahn
from tests.ahn.checkpoints.makers import base_folder, edit_config, edit_tensors, memory_folder
from tests.ahn.conftest import tokens


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("placement") / "base")


@pytest.fixture(scope="module")
def memory(base: Path) -> Path:
    return memory_folder(base.parent / "memory", base)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"device": "cpu"},
        {"device": torch.device("cpu")},
        {"device": "auto"},
        {"device_map": "cpu"},
        {"device_map": "auto"},
        {"device_map": {"": "cpu"}},
        {"device_map": {"model": "cpu", "lm_head": torch.device("cpu")}},
    ],
    ids=str,
)
def test_every_way_to_say_where_gives_the_same_model(
    base: Path, memory: Path, options: dict[str, Any]
) -> None:
    if torch.cuda.is_available():
        options = {key: "cpu" if value == "auto" else value for key, value in options.items()}
    model = ahn.load_model(base, ahn=memory, **options)
    assert model.device.type == "cpu" and not model.training
    assert torch.equal(
        model(tokens(40)).logits, ahn.load_model(base, ahn=memory)(tokens(40)).logits
    )


@pytest.mark.parametrize("given", ["bfloat16", torch.bfloat16, "torch.bfloat16"])
def test_dtypes_by_name_or_as_they_are(base: Path, memory: Path, given: Any) -> None:
    model = ahn.load_model(base, ahn=memory, dtype=given)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("said", ["float16", None])
def test_without_a_dtype_it_is_the_bases(tmp_path: Path, said: str | None, memory: Path) -> None:
    # config.json decides; where it is silent, what the weights are stored in; never the memory's
    base = base_folder(tmp_path / "base")
    edit_tensors(base, lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    edit_config(base, dtype=said)
    wanted = torch.float16 if said else torch.bfloat16
    for dtype in (None, "auto"):
        model = ahn.load_model(base, ahn=memory, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {wanted}


def test_a_number_too_large_for_the_type_is_named(tmp_path: Path, memory: Path) -> None:
    base = base_folder(tmp_path / "base")
    edit_tensors(base, lambda t: t["model.norm.weight"].fill_(1e30))
    with pytest.raises(ahn.InputError, match=r"not finite.*float16.*model\.norm\.weight"):
        ahn.load_model(base, ahn=memory, dtype="float16")


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, base: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ahn.load_model(base, ahn=memory)
    assert list(tmp_path.iterdir()) == []
