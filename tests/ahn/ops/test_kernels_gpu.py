"""Kernels of other packages against the oracle in float64; on a GPU only.

Tolerances are relative errors in the Euclidean norm. Inputs are rounded to bfloat16 before both
sides see them, so what remains is what the kernels round inside: each product's operands, by at
most 2^-9 = 0.2 % relative. Errors of independent roundings stay of that order; five times as
much is allowed. One token is computed in float32 throughout.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ahn.cells import CELLS
from ahn.ops import recurrence, selector
from ahn.ops.recurrent import recurrent as oracle
from common.errors import InputError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

recurrent: Any = oracle  # called with unpacked arguments, which mypy cannot count

HALF_PRECISION, SINGLE_PRECISION = 1e-2, 1e-5
LENGTHS = [0, 1, 2, 63, 64, 65, 200]
DECAYS = ["none", "usual", "strong", "extreme"]


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AHN_BACKEND", raising=False)


@pytest.fixture
def fla() -> None:
    pytest.importorskip("fla", reason="flash-linear-attention is not installed")


def inputs(length: int, decay: str, head_dim: int = 128, dtype: Any = torch.bfloat16) -> Any:
    """q, k, v, write, log_decay, state on the GPU; as `test_ops.inputs`, in a model's shapes."""
    generator = torch.Generator().manual_seed(length)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).cuda()

    q, k, v = (random(2, length, 3, head_dim) for _ in range(3))
    write, g = random(2, length, 3).sigmoid(), -random(2, length, 3).abs()
    if decay == "strong":
        g = g * torch.where(random(2, length, 3) > 1, 300.0, 1.0)
    elif decay == "extreme":
        choice = torch.randint(0, 3, (2, length, 3), generator=generator).cuda()
        g = torch.where(choice == 0, -torch.inf, torch.where(choice == 1, 0.0, g))
        choice = torch.randint(0, 3, (2, length, 3), generator=generator).cuda()
        write = torch.where(choice == 0, 1.0, torch.where(choice == 1, 0.0, write))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    state = random(2, 3, head_dim, head_dim)
    rounded = [x.to(dtype) for x in (q, k, v, write)]
    return [*rounded, None if decay == "none" else g, state]


def error(mine: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative error; 0 beside 0."""
    assert mine.isfinite().all()
    return float((mine.double() - exact).norm() / (exact.norm() + 1e-6))


def double(given_: Any) -> Any:
    """The same in float64, for the oracle."""
    return [None if x is None else x.double() for x in given_]


@pytest.mark.parametrize("head_dim", [64, 128, 24])
@pytest.mark.parametrize("delta_rule", [True, False])
@pytest.mark.parametrize("decay", DECAYS)
@torch.no_grad()
def test_fla_equals_the_oracle(fla: None, decay: str, delta_rule: bool, head_dim: int) -> None:
    for length in LENGTHS:
        given_ = inputs(length, decay, head_dim)
        output, state = recurrence(*given_, delta_rule=delta_rule, backend="fla")
        expected, expected_state = recurrent(*double(given_), delta_rule)
        assert output.dtype == state.dtype == torch.float32
        assert output.shape == expected.shape and state.shape == expected_state.shape
        allowed = SINGLE_PRECISION if length == 1 else HALF_PRECISION
        assert error(output, expected) < allowed, length
        assert error(state, expected_state) < allowed, length


@pytest.mark.parametrize("delta_rule", [True, False])
@pytest.mark.parametrize("decay", DECAYS)
def test_gradients_of_fla_equal_the_oracles(fla: None, decay: str, delta_rule: bool) -> None:
    names = ["q", "k", "v", "write", "log_decay", "state"]
    for length in LENGTHS:
        given_ = inputs(length, decay)
        gradients = []
        for form, tensors in (("fla", given_), (None, double(given_))):
            leaves: Any = [x if x is None else x.clone().requires_grad_() for x in tensors]
            results: Any = (
                recurrent(*leaves, delta_rule)
                if form is None
                else recurrence(*leaves, delta_rule=delta_rule, backend=form)
            )
            generator = torch.Generator().manual_seed(9)
            sum(
                (x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in results
            ).backward()
            gradients.append([None if x is None else x.grad for x in leaves])
        for name, mine, exact in zip(names, *gradients, strict=True):
            if exact is None or (mine is None and not exact.any()):
                continue  # no such gate; no token
            assert error(mine, exact) < 2 * HALF_PRECISION, (name, length)


@pytest.mark.parametrize("delta_rule", [True, False])
@torch.no_grad()
def test_fla_splits_anywhere(fla: None, delta_rule: bool) -> None:
    given_ = inputs(150, "usual")
    whole, end = recurrence(*given_, delta_rule=delta_rule, backend="fla")
    for split in (1, 64, 100, 149):
        begin: Any = [*(x[:, :split] for x in given_[:5]), given_[5]]
        first, middle = recurrence(*begin, delta_rule=delta_rule, backend="fla")
        rest: Any = [*(x[:, split:] for x in given_[:5]), middle]
        second, last = recurrence(*rest, delta_rule=delta_rule, backend="fla")
        assert error(torch.cat([first, second], 1), whole.double()) < HALF_PRECISION
        assert error(last, end.double()) < HALF_PRECISION


@torch.no_grad()
def test_wider_inputs_are_rounded_to_bfloat16_when_fla_is_asked_for(fla: None) -> None:
    for dtype in (torch.float32, torch.float16):
        given_ = inputs(130, "usual", dtype=dtype)
        for delta_rule in (True, False):
            output, state = recurrence(*given_, delta_rule=delta_rule, backend="fla")
            expected, expected_state = recurrent(*double(given_), delta_rule)
            assert error(output, expected) < HALF_PRECISION
            assert error(state, expected_state) < HALF_PRECISION


@torch.no_grad()
def test_the_selector_takes_fla_for_half_precision(
    fla: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recurrence(*inputs(5, "usual"), delta_rule=True, backend="fla")  # now in BACKENDS
    kernels, ran = selector.BACKENDS["fla"], []

    def watched(*arguments: Any) -> Any:
        ran.append(arguments[0].shape[1])
        return kernels(*arguments)

    monkeypatch.setitem(selector.BACKENDS, "fla", watched)
    for length in (1, 70):
        recurrence(*inputs(length, "usual"), delta_rule=True)
        recurrence(*inputs(length, "usual", dtype=torch.float32), delta_rule=True)
    assert ran == [1, 70]


@pytest.mark.parametrize("name", CELLS)
@torch.no_grad()
def test_a_cell_decodes_what_it_would_have_prefilled(fla: None, name: str) -> None:
    torch.manual_seed(0)
    cell = CELLS.implementation(name)(64, 3, 128).cuda().bfloat16()
    cell.reset_parameters(std=0.3)
    cell.use_backend("fla")
    q, k, v, _, _, state = inputs(90, "usual")
    hidden = torch.randn(2, 90, 64, device="cuda", dtype=torch.bfloat16)
    states = {"state": state}
    whole, end = cell.scan(q, k, v, cell.gates(hidden), states)
    first = (x[:, :80] for x in (q, k, v))
    reads, states = cell.scan(*first, cell.gates(hidden[:, :80]), states)
    steps = [reads]
    for t in range(80, 90):
        now = slice(t, t + 1)
        token = (x[:, now] for x in (q, k, v))
        read, states = cell.scan(*token, cell.gates(hidden[:, now]), states)
        steps.append(read)
    assert error(torch.cat(steps, 1), whole.double()) < HALF_PRECISION
    assert error(states["state"], end["state"].double()) < HALF_PRECISION


@pytest.mark.parametrize("decay", DECAYS)
@torch.no_grad()
def test_mamba_ssm_equals_the_oracle(decay: str) -> None:
    pytest.importorskip("mamba_ssm", reason="mamba-ssm is not installed")
    for length in [*LENGTHS, 300]:
        given_ = inputs(length, decay)
        if decay == "extreme":  # Mamba2 writes nothing where nothing decays
            given_[3] = given_[3].masked_fill(given_[4] == 0, 0.0)
        output, state = recurrence(*given_, delta_rule=False, backend="mamba_ssm")
        expected, expected_state = recurrent(*double(given_), False)
        assert error(output, expected) < HALF_PRECISION, length
        assert error(state, expected_state) < HALF_PRECISION, length
    with pytest.raises(InputError, match="no gradients"), torch.enable_grad():
        leaves: Any = [x if x is None else x.requires_grad_() for x in inputs(5, "usual")]
        recurrence(*leaves, delta_rule=False, backend="mamba_ssm")


@pytest.mark.parametrize("delta_rule", [True, False])
@pytest.mark.parametrize("decay", DECAYS)
@torch.no_grad()
def test_chunked_equals_the_oracle_on_a_gpu(decay: str, delta_rule: bool) -> None:
    for length in LENGTHS:
        given_ = double(inputs(length, decay))
        mine = recurrence(*given_, delta_rule=delta_rule, backend="chunked")
        for result, expected in zip(mine, recurrent(*given_, delta_rule), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-10)
