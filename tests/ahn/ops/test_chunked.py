"""The chunked recurrence against the readable one: forward, backward, split, and at extremes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ahn.ops.recurrent
from ahn.ops.chunked import CHUNK, SEGMENT

# called with unpacked arguments, which mypy cannot count
recurrence: Any = ahn.ops.recurrence
chunked: Any = ahn.ops.chunked.chunked
recurrent: Any = ahn.ops.recurrent.recurrent

LENGTHS = [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5, SEGMENT, SEGMENT + 1]
DECAYS = ["none", "usual", "strong", "extreme"]


def inputs(length: int, seed: int, decay: str, dtype: torch.dtype = torch.float64) -> Any:
    """q, k, v, write, log_decay, state; keys of unit length, as the cells give them.

    `strong` decays reach exp(-1000) within a chunk; `extreme` ones are exactly 0 or 1 among usual
    ones, and so are the write strengths.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (random(2, length, 3, 8) for _ in range(3))
    q, k = torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
    write = random(2, length, 3).sigmoid()
    g: torch.Tensor | None = -random(2, length, 3).abs()
    assert g is not None
    if decay == "strong":
        g = g * torch.where(random(2, length, 3) > 1, 300.0, 1.0)
    elif decay == "extreme":
        choice = torch.randint(0, 3, (2, length, 3), generator=generator)
        g = torch.where(choice == 0, -torch.inf, torch.where(choice == 1, 0.0, g))
        choice = torch.randint(0, 3, (2, length, 3), generator=generator)
        write = torch.where(choice == 0, 1.0, torch.where(choice == 1, 0.0, write))
    state = random(2, 3, 8, 8).to(torch.promote_types(dtype, torch.float32))
    return (
        q.to(dtype),
        k.to(dtype),
        v.to(dtype),
        write.to(dtype),
        None if decay == "none" else g.to(torch.promote_types(dtype, torch.float32)),
        state,
    )


def differentiated(form: Any, given_: Any, delta_rule: bool) -> tuple[list[Any], list[Any]]:
    """Output and state, and the gradients of a sum over both with uneven weights."""
    leaves: Any = [x if x is None else x.clone().requires_grad_() for x in given_]
    results = form(*leaves, delta_rule=delta_rule)
    total = sum(
        (x * torch.linspace(-1, 1.5, x.numel(), dtype=x.dtype).view_as(x)).sum() for x in results
    )
    total.backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves if x is not None]
    return list(results), gradients


@given(
    length=st.one_of(st.sampled_from(LENGTHS), st.integers(0, 150)),
    seed=st.integers(0, 10_000),
    decay=st.sampled_from(DECAYS),
    delta_rule=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_chunked_equals_recurrent(length: int, seed: int, decay: str, delta_rule: bool) -> None:
    given_ = inputs(length, seed, decay)
    output, state = chunked(*given_, delta_rule=delta_rule)
    expected, expected_state = recurrent(*given_, delta_rule=delta_rule)
    assert output.shape == expected.shape == (2, length, 3, 8)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(state, expected_state, rtol=1e-9, atol=1e-10)


@given(
    length=st.sampled_from([0, 1, 2, 5, CHUNK - 1, CHUNK, CHUNK + 1, 100]),
    seed=st.integers(0, 1000),
    decay=st.sampled_from(DECAYS),
    delta_rule=st.booleans(),
)
@settings(max_examples=30, deadline=None)
@pytest.mark.slow
def test_gradients_equal(length: int, seed: int, decay: str, delta_rule: bool) -> None:
    # of queries, keys, values, write strengths, decays and the state before; at an infinite log
    # decay the gradient is zero and never NaN
    given_ = inputs(length, seed, decay)
    _, mine = differentiated(chunked, given_, delta_rule)
    _, oracle = differentiated(recurrent, given_, delta_rule)
    for gradient, expected in zip(mine, oracle, strict=True):
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-9)


@given(
    split=st.integers(0, 100),
    seed=st.integers(0, 1000),
    decay=st.sampled_from(DECAYS),
    delta_rule=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_sequence_may_be_split_anywhere(
    split: int, seed: int, decay: str, delta_rule: bool
) -> None:
    given_ = inputs(100, seed, decay)
    whole, end = chunked(*given_, delta_rule)
    tokens, state = given_[:5], given_[5]
    begin: Any = [None if x is None else x[:, :split] for x in tokens]
    rest: Any = [None if x is None else x[:, split:] for x in tokens]
    first, middle = recurrence(*begin, state, delta_rule=delta_rule)
    second, last = recurrence(*rest, middle, delta_rule=delta_rule)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(last, end, rtol=1e-9, atol=1e-10)


@given(chunk=st.integers(2, 80), seed=st.integers(0, 1000), delta_rule=st.booleans())
@settings(max_examples=15, deadline=None)
def test_any_chunk_gives_the_same(chunk: int, seed: int, delta_rule: bool) -> None:
    given_ = inputs(77, seed, "extreme")
    output, state = chunked(*given_, delta_rule=delta_rule, chunk=chunk)
    expected, expected_state = recurrent(*given_, delta_rule=delta_rule)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(state, expected_state, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("delta_rule", [True, False])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [1, 5, 130])
def test_bfloat16_inputs_are_computed_in_float32(length: int, decay: str, delta_rule: bool) -> None:
    # the inputs are rounded once; from then on the error is float32's
    given_ = inputs(length, 7, decay, torch.bfloat16)
    output, state = recurrence(*given_, delta_rule=delta_rule)
    wide: Any = [None if x is None else x.double() for x in given_]
    exact, exact_state = recurrent(*wide, delta_rule)
    assert output.dtype == state.dtype == torch.float32
    torch.testing.assert_close(output.double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.double(), exact_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("delta_rule", [True, False])
def test_rounding_inputs_to_bfloat16_costs_one_percent(delta_rule: bool) -> None:
    # what a bfloat16 model gives up: 2^-9 relative for each of q, k, v and the write strength
    given_ = inputs(300, 3, "usual")
    rounded: Any = [*(x.bfloat16() for x in given_[:4]), *given_[4:]]
    for mine, exact in zip(
        recurrence(*rounded, delta_rule=delta_rule),
        recurrent(*given_, delta_rule=delta_rule),
        strict=True,
    ):
        error = float((mine - exact).norm() / exact.norm())
        assert 1e-5 < error < 1e-2  # and the rounding is there at all


def test_autocast_leaves_the_recurrence_alone() -> None:
    # a trainer's autocast would round the products of states, and mixes dtypes in the solve
    for length in (1, 70):
        given_ = inputs(length, 5, "usual", torch.float32)
        expected = recurrence(*given_, delta_rule=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = recurrence(*given_, delta_rule=True)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


class Written(TorchDispatchMode):
    """Counts the numbers that operations write, which says more than seconds of a busy machine."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.numbers += sum(x.numel() for x in made if x._base is None)  # a view writes nothing
        return result


def test_the_backward_pass_grows_linearly() -> None:
    # a gradient as long as the sequence for every chunk, or every segment, would be quadratic
    def written(length: int) -> int:
        given_: Any = [
            x.repeat(1, length // 16, *[1] * (x.dim() - 2)).requires_grad_()
            for x in inputs(16, 0, "usual", torch.float32)[:5]
        ]
        state = torch.zeros(2, 3, 8, 8)
        output, last = chunked(*given_, state=state, delta_rule=True, chunk=8)
        with Written() as count:
            (output.sum() + last.sum()).backward()
        return count.numbers

    # per token; the longer one also crosses borders of segments, which adds a few
    assert 0 < written(2048) / 2048 < 1.1 * written(256) / 256


def test_shapes_that_do_not_fit_are_named() -> None:
    q, k, v, write, g, state = inputs(5, 0, "usual")
    with pytest.raises(ValueError, match=r"k \(2, 4, 3, 8\)"):
        recurrence(q, k[:, :4], v, write, g, state, delta_rule=True)
    with pytest.raises(ValueError, match=r"write \(2, 4, 3\)"):
        recurrence(q, k, v, write[:, :4], g, state, delta_rule=True)
    with pytest.raises(ValueError, match=r"log_decay \(2, 4, 3\) .* \(2, 5, 3\)"):
        recurrence(q, k, v, write, g[:, :4], state, delta_rule=True)
    with pytest.raises(ValueError, match=r"state \(1, 3, 8, 8\) .* \(2, 3, 8, 8\)"):
        recurrence(q, k, v, write, g, state[:1], delta_rule=True)
