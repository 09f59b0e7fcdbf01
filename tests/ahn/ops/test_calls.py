"""What `recurrence` asks the selector for, and what it gives to the form that was picked."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from ahn.ops import dispatch, recurrence, selector
from ahn.ops.chunked import SEGMENT
from ahn.ops.recurrent import recurrent
from common.errors import InputError

NAMES = ("q", "k", "v", "write", "log_decay", "state")


def given(tokens: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Inputs of a gated delta rule, all different."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, tokens, 3, 4).to(dtype)
    gates = torch.rand(2, 2, tokens, 3).to(dtype)
    state = torch.randn(2, 3, 4, 4)
    return {"q": q, "k": k, "v": v, "write": gates[0], "log_decay": -gates[1], "state": state}


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[selector.Case]:
    """What `pick` was called with."""
    monkeypatch.delenv("AHN_BACKEND", raising=False)
    cases: list[selector.Case] = []
    real = selector.pick

    def pick(name: str | None, *case: Any) -> str:
        cases.append(selector.Case(*case))
        return real(name, *case)

    monkeypatch.setattr(dispatch, "pick", pick)
    return cases


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("delta_rule", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_case_is_that_of_the_tensors(
    asked_for: list[selector.Case], tokens: int, delta_rule: bool, dtype: torch.dtype
) -> None:
    recurrence(**given(tokens, dtype), delta_rule=delta_rule)  # type: ignore[arg-type]
    expected = selector.Case("cpu", dtype, 4, tokens == 1, delta_rule, gradients=False)
    assert asked_for == [expected]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_wanted_where_any_tensor_asks_for_them(
    asked_for: list[selector.Case], name: str
) -> None:
    tensors: Any = given()
    tensors[name].requires_grad_()
    recurrence(**tensors, delta_rule=True)
    with torch.no_grad():
        recurrence(**tensors, delta_rule=True)
    if name != "log_decay":
        recurrence(**{**tensors, "log_decay": None}, delta_rule=True)
    wanted = [True, False, True][: len(asked_for)]
    assert [case.gradients for case in asked_for] == wanted


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("delta_rule", [True, False])
@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_every_tensor_reaches_the_form_with_and_without_autocast(
    monkeypatch: pytest.MonkeyPatch, autocast: bool, delta_rule: bool, backend: str
) -> None:
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: autocast)
    for decays in (True, False):
        tensors: Any = given()
        if not decays:
            tensors["log_decay"] = None
        found = recurrence(**tensors, delta_rule=delta_rule, backend=backend)
        expected = recurrent(**tensors, delta_rule=delta_rule)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("backend", "tokens"),
    [("recurrent", 1), ("recurrent", 3), ("chunked", 1), ("chunked", 5), ("chunked", SEGMENT + 3)],
)
@pytest.mark.parametrize("delta_rule", [True, False])
def test_on_another_device_nothing_is_made_elsewhere(
    backend: str, delta_rule: bool, tokens: int
) -> None:
    """The meta device computes shapes, and refuses tensors of any other device."""
    for decays in (True, False):
        tensors: Any = {name: x.to("meta") for name, x in given(tokens).items()}
        if not decays:
            tensors["log_decay"] = None
        output, state = recurrence(**tensors, delta_rule=delta_rule, backend=backend)
        assert output.device.type == state.device.type == "meta"
        assert output.shape == tensors["q"].shape and state.shape == tensors["state"].shape


def test_decays_are_taken_to_the_power_in_the_dtype_of_the_states() -> None:
    tensors: Any = {name: x.double() for name, x in given().items()}
    rounded = tensors["log_decay"].float()
    expected = recurrent(**{**tensors, "log_decay": rounded.double()}, delta_rule=True)
    found = recurrent(**{**tensors, "log_decay": rounded}, delta_rule=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All kernels are installed and import; gives the names of those that were imported."""
    loaded: list[str] = []
    monkeypatch.delenv("AHN_BACKEND", raising=False)
    monkeypatch.setattr(selector, "_installed", lambda package: True)
    monkeypatch.setattr(selector, "_load", lambda name: loaded.append(name))
    return loaded


CUDA: dict[str, Any] = {"device": "cuda", "one_token": False, "gradients": False}
CUDA |= {"dtype": torch.float16, "head_dim": 256}


def test_kernels_take_heads_of_up_to_256_dimensions(kernels: list[str]) -> None:
    assert selector.pick(None, **CUDA, delta_rule=True) == "fla"
    assert selector.pick(None, **CUDA | {"head_dim": 257}, delta_rule=True) == "chunked"
    for name in ("fla", "mamba_ssm"):
        assert selector.pick(name, **CUDA, delta_rule=False) == name
        with pytest.raises(InputError, match="its heads have at most 256 dimensions"):
            selector.pick(name, **CUDA | {"head_dim": 257}, delta_rule=False)
    assert set(kernels) == {"fla", "mamba_ssm"}


def test_a_refusal_says_all_that_is_wrong_and_nothing_else(kernels: list[str]) -> None:
    del kernels
    case = selector.Case("cpu", torch.float32, 300, False, delta_rule=True, gradients=True)
    with pytest.raises(InputError) as caught:
        selector.check("mamba_ssm", case)
    assert str(caught.value) == (
        "backend 'mamba_ssm' cannot run: it runs on CUDA devices, and these tensors are on cpu; "
        "it has no delta rule (DeltaNet, GatedDeltaNet), only Mamba2; it is for inference here "
        "and computes no gradients; its heads have at most 256 dimensions. backend chunked runs "
        "everywhere."
    )
    with pytest.raises(InputError) as caught:
        selector.check("fla", case)
    assert str(caught.value) == (
        "backend 'fla' cannot run: it runs on CUDA devices, and these tensors are on cpu; its "
        "heads have at most 256 dimensions. backend chunked runs everywhere."
    )


@pytest.mark.parametrize(
    ("name", "install"),
    [
        ("fla", "fla is not installed: pip install 'flash-linear-attention>=0.6'"),
        (
            "mamba_ssm",
            "mamba_ssm is not installed: pip install --no-build-isolation 'mamba-ssm>=2.2.5'",
        ),
    ],
)
def test_an_absent_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, name: str, install: str
) -> None:
    monkeypatch.setattr(selector, "_installed", lambda package: False)
    with pytest.raises(InputError) as caught:
        selector.check(name)
    told = f"backend {name!r} cannot run: {install}. backend chunked runs everywhere."
    assert str(caught.value) == told


def test_kernels_that_are_there_are_tables_of_this_package() -> None:
    for name, kernels_ in selector.KERNELS.items():
        assert importlib.util.find_spec(kernels_.module) is not None, name


def test_kernels_join_the_forms_when_they_are_first_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    def form(*arguments: Any) -> Any:
        return arguments

    module = types.ModuleType("kernels_of_somebody")
    module.fla = form  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    able = dataclasses.replace(selector.KERNELS["fla"], module=module.__name__)
    monkeypatch.setitem(selector.KERNELS, "fla", able)
    monkeypatch.setattr(selector, "BACKENDS", dict(selector.BACKENDS))
    selector._load.cache_clear()
    try:
        assert selector._load("fla") is None
        assert selector.BACKENDS["fla"] is form
    finally:
        selector._load.cache_clear()


def test_kernels_that_do_not_import_are_told_word_for_word() -> None:
    selector._warn.cache_clear()
    with pytest.warns(UserWarning) as caught:
        selector._warn("fla", "ImportError: no driver")
    assert [str(warning.message) for warning in caught] == [
        "fla is installed but does not import (ImportError: no driver); torch computes the memory, "
        "which is slower"
    ]
