"""Which form of the recurrence runs, and what is refused."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import torch

from ahn.cells import CELLS
from ahn.config import BACKENDS, AHNConfig
from ahn.ops import recurrence, selector
from ahn.ops.selector import KERNELS, check, pick
from common.errors import InputError

CPU: dict[str, Any] = {
    "device": "cpu",
    "dtype": torch.float32,
    "head_dim": 16,
    "one_token": False,
    "delta_rule": True,
    "gradients": False,
}
HAS_FLA = importlib.util.find_spec("fla") is not None


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AHN_BACKEND", raising=False)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the forms that ran."""
    names: list[str] = []

    def watched(name: str, form: Any) -> Any:
        def call(*arguments: Any) -> Any:
            names.append(name)
            return form(*arguments)

        return call

    for name, form in list(selector.BACKENDS.items()):
        monkeypatch.setitem(selector.BACKENDS, name, watched(name, form))
    return names


def tensors(length: int) -> tuple[torch.Tensor, ...]:
    q, k, v = torch.randn(3, 2, length, 4, 16)
    return q, k, v, torch.rand(2, length, 4), -torch.rand(2, length, 4), torch.zeros(2, 4, 16, 16)


def run(length: int, **options: Any) -> None:
    recurrence(*tensors(length), delta_rule=True, **options)


def test_one_token_is_a_step_and_several_are_a_chunk(ran: list[str]) -> None:
    run(1)
    run(2)
    assert ran == ["recurrent", "chunked"]


def test_what_is_asked_for_runs(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run(5, backend="recurrent")
    monkeypatch.setenv("AHN_BACKEND", "recurrent")
    run(5)
    run(5, backend="chunked")  # who calls the function knows best
    monkeypatch.setenv("AHN_BACKEND", "")
    run(5)
    assert ran == ["recurrent", "recurrent", "chunked", "chunked"]


@pytest.mark.parametrize("cell", CELLS)
def test_the_environment_overrides_the_configuration(
    cell: str, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = CELLS.implementation(cell)(32, 4, 16)
    q, k, v, write, g, state = tensors(5)
    gates = {"write": write} | ({} if cell == "DeltaNet" else {"log_decay": g})
    made.scan(q, k, v, gates, {"state": state})
    made.use_backend("recurrent")
    made.scan(q, k, v, gates, {"state": state})
    monkeypatch.setenv("AHN_BACKEND", "chunked")
    made.scan(q, k, v, gates, {"state": state})
    assert ran == ["chunked", "recurrent", "chunked"]


def test_kernels_are_for_half_precision_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    # whether they can be imported is answered here as on a machine that has them
    monkeypatch.setattr(selector, "_installed", lambda package: True)
    monkeypatch.setattr(selector, "_load", lambda name: None)
    cuda = CPU | {"device": "cuda", "dtype": torch.bfloat16}
    assert pick(None, **cuda) == "fla"
    assert pick(None, **cuda | {"one_token": True, "gradients": True}) == "fla"
    assert pick(None, **cuda | {"head_dim": 512}) == "chunked"
    assert pick(None, **cuda | {"dtype": torch.float32}) == "chunked"
    assert pick(None, **cuda | {"dtype": torch.float32, "one_token": True}) == "recurrent"
    assert pick("fla", **cuda | {"dtype": torch.float32}) == "fla"
    assert pick(None, **CPU | {"dtype": torch.bfloat16}) == "chunked"
    monkeypatch.setattr(selector, "_installed", lambda package: package == "mamba_ssm")
    mamba = cuda | {"delta_rule": False}
    assert pick(None, **mamba) == "mamba_ssm"
    assert pick(None, **mamba | {"gradients": True}) == "chunked"
    assert pick(None, **cuda) == "chunked"


def test_a_package_that_does_not_import_is_named_and_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selector, "_installed", lambda package: package == "fla")
    monkeypatch.setattr(selector, "_load", lambda name: "ImportError: no libcuda.so")
    selector._warn.cache_clear()
    cuda = CPU | {"device": "cuda", "dtype": torch.bfloat16}
    with pytest.warns(UserWarning, match="fla is installed but does not import .*libcuda.so"):
        assert pick(None, **cuda) == "chunked"
    with pytest.raises(InputError, match="does not import: ImportError: no libcuda.so"):
        pick("fla", **cuda)


def test_an_unknown_name_is_refused_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown backend 'cuda'.*recurrent, chunked, fla"):
        run(5, backend="cuda")
    with pytest.raises(InputError, match="backend 'triton' is unknown; one of recurrent"):
        AHNConfig(backend="triton")
    monkeypatch.setenv("AHN_BACKEND", "flash")
    with pytest.raises(InputError, match="AHN_BACKEND=flash"):
        run(5)
    with pytest.raises(InputError, match="AHN_BACKEND=flash"):
        CELLS.implementation("DeltaNet")(32, 4, 16).use_backend(None)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_refused_on_a_cpu(name: str) -> None:
    with pytest.raises(InputError) as caught:
        run(5, backend=name)
    message = str(caught.value)
    assert "CUDA" in message and "on cpu" in message and "chunked" in message


@pytest.mark.skipif(HAS_FLA, reason="flash-linear-attention is installed here")
def test_an_absent_package_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="pip install 'flash-linear-attention"):
        check("fla")
    # a model that asks for it is refused when it is built, before any weight is read
    with pytest.raises(InputError, match="backend 'fla' cannot run"):
        CELLS.implementation("GatedDeltaNet")(32, 4, 16).use_backend("fla")
    monkeypatch.setenv("AHN_BACKEND", "fla")
    with pytest.raises(InputError, match="AHN_BACKEND=fla cannot run: fla is not installed"):
        CELLS.implementation("GatedDeltaNet")(32, 4, 16).use_backend("recurrent")


def test_mamba_ssm_is_refused_what_it_cannot_do() -> None:
    with pytest.raises(InputError, match=r"no delta rule.*computes no gradients"):
        pick("mamba_ssm", **CPU | {"gradients": True})


def test_a_configuration_names_its_backend_only_where_one_is_set() -> None:
    assert "backend" not in AHNConfig().to_dict()
    for name in BACKENDS:
        fields = AHNConfig(backend=name, full_attention_layers=(1, 3)).to_dict()
        assert fields["backend"] == name
        assert AHNConfig(**fields) == AHNConfig(backend=name, full_attention_layers=(1, 3))


@pytest.mark.slow
def test_importing_the_models_imports_no_kernels() -> None:
    code = (
        "import sys, ahn, ahn.ops\n"
        "found = {'fla', 'mamba_ssm'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@torch.no_grad()
def test_a_step_compiles_into_one_graph() -> None:
    cell = CELLS.implementation("GatedDeltaNet")(32, 4, 16)
    q, k, v, write, g, state = tensors(1)
    compiled = torch.compile(cell.scan, fullgraph=True, backend="eager")
    gates = {"write": write, "log_decay": g}
    read, states = compiled(q, k, v, gates, {"state": state})
    expected, after = cell.scan(q, k, v, gates, {"state": state})
    torch.testing.assert_close(read, expected)
    torch.testing.assert_close(states["state"], after["state"])
