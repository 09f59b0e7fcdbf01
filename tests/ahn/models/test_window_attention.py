"""Pieces without a mask, merged, are attention under the mask; on a GPU flash attention is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ahn.models.attention
from ahn.config import LayerLayout
from ahn.models.attention import Chunk, _attention, repeats_heads
from ahn.models.window_attention import flash_piece, mask_free, merge, split_attention

D, H, K = 16, 4, 2


def written_out(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, causal: bool, window: int | None
) -> tuple[Tensor, Tensor]:
    """What a piece is, in plain torch: the last query and the last key stand side by side."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    distance = (torch.arange(q.shape[2])[:, None] - q.shape[2]) - (
        torch.arange(k.shape[2]) - k.shape[2]
    )
    hidden = (distance < 0) & causal
    if window is not None:
        hidden |= distance >= window
    scores = (q @ k.mT * scaling).masked_fill(hidden.to(q.device), -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def columns(plan_keys: int, rows: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, K, plan_keys, D, generator=generator) * 2 for _ in range(2)]


@pytest.mark.parametrize(("window", "sinks"), [(5, 0), (5, 3), (1, 1), (3, 8), (16, 4), (None, 0)])
@pytest.mark.parametrize("seen", [0, 1, 4, 8, 9, 20, 33])
@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_pieces_equal_attention_under_the_mask(
    window: int | None, sinks: int, seen: int, size: int
) -> None:
    plan = Chunk(size, seen, None, torch.device("cpu")).plan(LayerLayout(window, sinks))
    k, v = columns(plan.cached + size)
    q = torch.randn(2, H, size, D, generator=torch.Generator().manual_seed(1))
    expected = _attention(q, k, v, plan.visible(0, size, slice(None)), 0.3)
    output = split_attention(q, k, v, seen, window, sinks, 0.3, piece=written_out)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(plan.attend(q, k, v, 0.3), expected, rtol=0, atol=1e-5)


def test_merging_survives_scores_of_any_size() -> None:
    first, second = torch.randn(2, 1, 1, 3, D).unbind()
    for gap, expected in ((200.0, second), (-200.0, first), (0.0, (first + second) / 2)):
        sums = torch.zeros(1, 1, 3)
        torch.testing.assert_close(merge(first, sums, second, sums + gap), expected)


def test_what_flash_attention_does_not_take_goes_the_other_way() -> None:
    assert not mask_free(torch.zeros(1, 1, 1, 64))
    assert not mask_free(torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16))


HALF, AMPERE, VOLTA = (torch.bfloat16, torch.float16), (8, 0), (7, 0)


@pytest.mark.parametrize(
    ("groups", "masked", "dtype", "head_dim", "capability", "repeated"),
    [
        # flash attention knows grouped heads
        *((8, False, dtype, 128, AMPERE, False) for dtype in HALF),
        (8, False, torch.bfloat16, 80, (9, 0), False),
        # nothing else on a GPU does
        (8, False, torch.float32, 128, AMPERE, True),
        (2, False, torch.float32, 64, (9, 0), True),
        (8, True, torch.float32, 128, AMPERE, True),
        *((8, True, dtype, 128, AMPERE, True) for dtype in HALF),
        *((8, False, dtype, 128, VOLTA, True) for dtype in HALF),
        (8, False, torch.bfloat16, 512, AMPERE, True),
        # nothing to repeat, and a CPU, whose kernels need it not
        (1, False, torch.float32, 128, AMPERE, False),
        (1, True, torch.bfloat16, 128, VOLTA, False),
        (8, False, torch.float32, 128, None, False),
        (8, True, torch.float32, 128, None, False),
    ],
)
def test_heads_are_repeated_where_no_fused_kernel_knows_groups(
    groups: int,
    masked: bool,
    dtype: torch.dtype,
    head_dim: int,
    capability: tuple[int, int] | None,
    repeated: bool,
) -> None:
    assert repeats_heads(groups, masked, dtype, head_dim, capability) == repeated


@pytest.mark.parametrize("masked", [False, True])
def test_repeated_heads_change_nothing_and_reach_torch_as_equal_ones(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 9
    k, v = columns(size)
    q = torch.randn(2, H, size, D, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(size, size, dtype=torch.bool).tril(-2) if masked else None
    if mask is not None:
        mask[:2] = True
    expected = _attention(q, k, v, mask, 0.3)
    seen: list[Any] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(*given: Any, **options: Any) -> Any:
        seen.append(([x.shape[1] for x in given], options["enable_gqa"]))
        return original(*given, **options)

    monkeypatch.setattr(ahn.models.attention.F, "scaled_dot_product_attention", watched)
    for repeated in (False, True):
        monkeypatch.setattr(ahn.models.attention, "repeats_heads", lambda *_, is_so=repeated: is_so)
        output = _attention(q, k, v, mask, 0.3)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    assert seen == [([H, K, K], True), ([H, H, H], False)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("window", "sinks", "seen"), [(512, 4, 700), (512, 128, 0), (512, 128, 300), (None, 0, 900)]
)
def test_flash_pieces_equal_the_written_ones(window: int | None, sinks: int, seen: int) -> None:
    size, dtype = 1024, torch.bfloat16
    plan = Chunk(size, seen, None, torch.device("cpu")).plan(LayerLayout(window, sinks))
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, H, size, 128)] + [(2, K, plan.cached + size, 128)] * 2
    q, k, v = (torch.randn(s, generator=generator).to("cuda", dtype) for s in shapes)
    assert mask_free(q)
    output = split_attention(q, k, v, seen, window, sinks, 128**-0.5, piece=flash_piece)
    mask = plan.visible(0, size, slice(None)).cuda()
    expected = _attention(q.float(), k.float(), v.float(), mask, 128**-0.5)
    # bf16 has 8 bits: outputs of size about 1 are off by up to 2^-8, twice after merging
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=2e-2)


def fake_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: None,
    cum_seq_k: None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int | None,
    window_size_right: int | None,
) -> tuple[Tensor, ...]:
    """`aten::_flash_attention_forward` in plain torch: heads `[B, T, H, d]`, ends aligned."""
    assert cum_seq_q is None and cum_seq_k is None and dropout_p == 0.0
    assert return_debug_mask is False
    assert (max_q, max_k) == (query.shape[1], key.shape[1])
    assert key.shape == value.shape and query.shape[2] % key.shape[2] == 0
    window = None
    if window_size_left is not None:
        assert window_size_right == 0 and not is_causal
        window = window_size_left + 1
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    causal = is_causal or window is not None
    output, log_sum = written_out(q, k, v, scale, causal, window)
    return output.transpose(1, 2), log_sum, torch.empty(0)


@pytest.mark.parametrize(
    ("window", "sinks", "seen"), [(5, 3, 0), (5, 3, 20), (4, 0, 9), (None, 0, 7)]
)
def test_flash_attention_is_called_as_it_is_declared(
    window: int | None, sinks: int, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is needed to see that its arguments are in their places."""
    declared = torch.ops.aten._flash_attention_forward.default._schema
    names = [argument.name for argument in declared.arguments]
    assert names[:10] == list(fake_flash.__code__.co_varnames[:10])
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", fake_flash)
    size = 11
    plan = Chunk(size, seen, None, torch.device("cpu")).plan(LayerLayout(window, sinks))
    k, v = columns(plan.cached + size)
    q = torch.randn(2, H, size, D, generator=torch.Generator().manual_seed(1))
    expected = _attention(q, k, v, plan.visible(0, size, slice(None)), 0.3)
    output = split_attention(q, k, v, seen, window, sinks, 0.3, piece=flash_piece)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
