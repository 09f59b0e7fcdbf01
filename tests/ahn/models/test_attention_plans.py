"""The index arithmetic of chunks, in query blocks too, against attention written out."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import ahn.models.attention
from ahn.config import LayerLayout
from ahn.models.attention import Chunk, take
from ahn.models.cache import LayerCache

HEADS, KV_HEADS, D = 4, 2, 4


def dense(q: Tensor, k: Tensor, v: Tensor, position: int, window: int | None, sinks: int) -> Tensor:
    """One query `[H, d]` over those of its row's keys `[n, K, d]` that it may see."""
    seen = [
        j
        for j in range(position + 1)
        if window is None or j < sinks or position - window < j <= position
    ]
    keys, values = (x[seen].repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))  # [n, H, d]
    return torch.einsum("hn,nhd->hd", torch.einsum("hd,nhd->hn", q, keys).softmax(-1), values)


@st.composite
def readings(draw: Any) -> dict[str, Any]:
    """Turns of some rows: new tokens of each, with padding on the left, on the right, or both."""
    rows = draw(st.integers(1, 3))
    window = draw(st.sampled_from([None, 1, 2, 3, 5, 9]))
    row = st.tuples(st.integers(0, 4), st.integers(0, 25), st.integers(0, 4))
    turn = st.lists(row, min_size=rows, max_size=rows)
    return {
        "window": window,
        "sinks": draw(st.sampled_from([0, 1, 4, 7])),
        "turns": draw(st.lists(turn, min_size=1, max_size=4)),
        "pairs": draw(st.sampled_from([1, 16, 64, 1 << 23])),
        "block": draw(st.sampled_from([1, 3, 8, 1024])),
        "seed": draw(st.integers(0, 99)),
    }


@pytest.mark.slow
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(case=readings())
def test_every_query_sees_its_own_sinks_and_window_however_the_text_comes(
    case: dict[str, Any],
) -> None:
    window, sinks, turns = case["window"], case["sinks"], case["turns"]
    layout = LayerLayout(window, sinks)
    rows = len(turns[0])
    generator = torch.Generator().manual_seed(case["seed"])
    total = max(sum(turn[row][1] for turn in turns) for row in range(rows))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (random(rows, total, n, D) for n in (HEADS, KV_HEADS, KV_HEADS))  # by position
    layer, seen, read = LayerCache(layout), 0, [0] * rows
    for turn in turns:
        # padding in front, tokens, padding behind; every row as wide as the widest
        width = max(sum(row) for row in turn)
        index = torch.full((rows, width), -1)
        for row, (front, count, _) in enumerate(turn):
            index[row, front : front + count] = torch.arange(read[row], read[row] + count)
        chunk = Chunk(width, seen, (index >= 0).long(), torch.device("cpu"))
        plan = chunk.plan(layout)
        each = torch.arange(rows)[:, None]
        at = index.clamp(min=0, max=max(total - 1, 0))
        if total:
            new = {"keys": k[each, at].transpose(1, 2), "values": v[each, at].transpose(1, 2)}
            queries = q[each, at].transpose(1, 2)
        else:
            new = {name: torch.zeros(rows, KV_HEADS, width, D) for name in ("keys", "values")}
            queries = torch.zeros(rows, HEADS, width, D)
        joined = {name: layer.joined(name, x, plan) for name, x in new.items()}
        with (
            mock.patch.object(ahn.models.attention, "_PAIRS", case["pairs"]),
            mock.patch.object(ahn.models.attention, "_QUERY_BLOCK", case["block"]),
        ):
            output = plan.attend(queries, joined["keys"], joined["values"], 1.0)
        step = plan.memory_step
        for row in range(rows):
            for column in range(width):
                position = int(index[row, column])
                writes = None
                if step is not None and column >= step.first_query:
                    number = column - step.first_query
                    if step.writes is None or bool(step.writes.expand(rows, -1)[row, number]):
                        evicted = take(joined["keys"], step.columns).expand(rows, -1, -1, -1)
                        writes = evicted[row, :, number]
                if position < 0:
                    assert writes is None  # padding takes nothing out of the window
                    continue
                expected = dense(q[row, position], k[row], v[row], position, window, sinks)
                torch.testing.assert_close(
                    output[row, :, column], expected, rtol=0, atol=1e-12, msg=f"{row}, {column}"
                )
                leaves = window is not None and position - window >= sinks
                assert leaves == (writes is not None), (row, column)
                if writes is not None:
                    assert torch.equal(writes, k[row, position - window])
        layer.store(new, plan)
        seen = chunk.after  # type: ignore[assignment]
        for row in range(rows):
            read[row] += turn[row][1]
