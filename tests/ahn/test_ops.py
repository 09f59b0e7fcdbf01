"""The chunked recurrence against the readable one, forward, backward and with state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ahn.ops import recurrence
from ahn.ops.chunked import CHUNK, chunked
from ahn.ops.recurrent import recurrent

LENGTHS = [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]


def inputs(
    length: int, seed: int, decay: str, dtype: torch.dtype = torch.float64
) -> tuple[Any, ...]:
    """q, k, v, write, log_decay, state; keys of unit length, as the cells give them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (random(2, length, 3, 8) for _ in range(3))
    q, k = torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
    write = random(2, length, 3).sigmoid()
    g: torch.Tensor | None = -random(2, length, 3).abs()
    if decay == "none":
        g = None
    elif decay == "extreme":  # decay factors of exactly 0 and 1, write strengths 0 and 1
        choice = torch.randint(0, 3, (2, length, 3), generator=generator)
        assert g is not None
        g = torch.where(choice == 0, -torch.inf, torch.where(choice == 1, 0.0, g))
        write = torch.where(choice == 2, 1.0, torch.where(choice == 1, 0.0, write))
    state = random(2, 3, 8, 8).to(torch.promote_types(dtype, torch.float32))
    return (
        q.to(dtype),
        k.to(dtype),
        v.to(dtype),
        write.to(dtype),
        None if g is None else g.to(torch.promote_types(dtype, torch.float32)),
        state,
    )


def run(form: Any, given_: Any, delta_rule: bool) -> Any:
    """`form` on what `inputs` made."""
    return form(*given_, delta_rule=delta_rule)


@given(
    length=st.one_of(st.sampled_from(LENGTHS), st.integers(0, 150)),
    seed=st.integers(0, 10_000),
    decay=st.sampled_from(["none", "usual", "extreme"]),
    delta_rule=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_chunked_equals_recurrent(length: int, seed: int, decay: str, delta_rule: bool) -> None:
    given_ = inputs(length, seed, decay)
    output, state = run(chunked, [*given_], delta_rule)
    expected, expected_state = run(recurrent, [*given_], delta_rule)
    assert output.shape == expected.shape
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(state, expected_state, rtol=1e-9, atol=1e-10)


@given(
    length=st.sampled_from([1, 5, CHUNK, CHUNK + 1, 100]),
    seed=st.integers(0, 1000),
    decay=st.sampled_from(["none", "usual"]),
    delta_rule=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_gradients_equal(length: int, seed: int, decay: str, delta_rule: bool) -> None:
    gradients = []
    for form in (chunked, recurrent):
        leaves: Any = [
            x if x is None else x.clone().requires_grad_() for x in inputs(length, seed, decay)
        ]
        output, state = run(form, [*leaves], delta_rule)
        weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype)
        ((output.flatten() * weights).sum() + state.pow(2).sum()).backward()
        gradients.append([x.grad for x in leaves if x is not None])
    for mine, oracle in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, oracle, rtol=1e-8, atol=1e-9)


@given(split=st.integers(0, 100), seed=st.integers(0, 1000), delta_rule=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_sequence_may_be_split_anywhere(split: int, seed: int, delta_rule: bool) -> None:
    q, k, v, write, g, state = inputs(100, seed, "usual")
    whole, end = chunked(q, k, v, write, g, state, delta_rule)
    begin: Any = [x[:, :split] for x in (q, k, v, write, g)]
    rest: Any = [x[:, split:] for x in (q, k, v, write, g)]
    first, middle = run(recurrence, [*begin, state], delta_rule)
    second, last = run(recurrence, [*rest, middle], delta_rule)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(last, end, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("delta_rule", [True, False])
def test_bfloat16_inputs_are_computed_in_float32(delta_rule: bool) -> None:
    # the inputs are rounded once; from then on the error is float32's
    given_ = inputs(130, 7, "usual", torch.bfloat16)
    output, state = run(chunked, [*given_], delta_rule)
    wide: Any = [None if x is None else x.double() for x in given_]
    exact, exact_state = run(recurrent, [*wide], delta_rule)
    assert output.dtype == state.dtype == torch.float32
    torch.testing.assert_close(output.double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.double(), exact_state, rtol=1e-4, atol=1e-5)


def test_shapes_that_do_not_fit_are_named() -> None:
    q, k, v, write, g, state = inputs(5, 0, "usual")
    with pytest.raises(ValueError, match=r"\(2, 4, 3, 8\)"):
        recurrence(q, k[:, :4], v, write, g, state, delta_rule=True)
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        recurrence(q, k, v, write, g, state, delta_rule=True, backend="cuda")
