"""Models of any shape against the equations, in pieces of any size, padded or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import ahn.models.attention
from ahn.config import CELLS
from ahn.models.causal_lm import (
    Qwen2AHNConfig,
    Qwen2AHNForCausalLM,
    Qwen3AHNConfig,
    Qwen3AHNForCausalLM,
)
from tests.ahn.equations import logits as by_the_equations

#: in float64; transformers' RMSNorm and RoPE compute in float32
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
VOCABULARY = 31
#: query-key pairs under one mask, and queries in a block; None: as they are
BLOCKS = st.sampled_from([None, None, (1, 1), (16, 3), (64, 1024)])


@st.composite
def shapes(draw: Any) -> dict[str, Any]:
    kv = draw(st.sampled_from([1, 2, 3]))
    heads = kv * draw(st.sampled_from([1, 2, 3]))
    family = draw(st.sampled_from(["qwen2", "qwen3"]))
    head_dim = draw(st.sampled_from([2, 6, 8, 22]))
    layers = draw(st.integers(1, 3))
    return {
        "family": family,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": head_dim,
        "hidden_size": heads * head_dim if family == "qwen2" else 20,
        "num_hidden_layers": layers,
        "tie_word_embeddings": draw(st.booleans()),
        "ahn": {
            "cell": draw(st.sampled_from(tuple(CELLS))),
            "window": draw(st.integers(1, 12)),
            "sinks": draw(st.integers(0, 7)),
            "full_attention_layers": draw(st.lists(st.integers(0, layers - 1), max_size=1)),
            "variant": draw(st.sampled_from(["ahn", "ahn", "ahn", "window", "no-write", "full"])),
        },
    }


def build(shape: dict[str, Any], seed: int) -> Any:
    """A model of this shape whose every parameter says something."""
    family = shape["family"]
    sizes = {key: value for key, value in shape.items() if key != "family"}
    if family == "qwen2":
        del sizes["head_dim"]
    classes: dict[str, tuple[Any, Any]] = {
        "qwen2": (Qwen2AHNConfig, Qwen2AHNForCausalLM),
        "qwen3": (Qwen3AHNConfig, Qwen3AHNForCausalLM),
    }
    config, model_class = classes[family]
    torch.manual_seed(seed)
    model = (
        model_class(config(vocab_size=VOCABULARY, intermediate_size=24, **sizes)).double().eval()
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * 0.3
            parameter.copy_(1 + noise if "norm" in name else noise)
            if name.endswith("A_log"):
                parameter.sub_(1)
    return model


@contextmanager
def in_blocks(sizes: tuple[int, int] | None) -> Iterator[None]:
    """Masked attention in query blocks, as for chunks that are too long for one mask."""
    pairs, block = sizes or (ahn.models.attention._PAIRS, ahn.models.attention._QUERY_BLOCK)
    with (
        mock.patch.object(ahn.models.attention, "_PAIRS", pairs),
        mock.patch.object(ahn.models.attention, "_QUERY_BLOCK", block),
    ):
        yield


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.stack([F.pad(row, (longest - len(row), 0), value=1) for row in rows])
    mask = torch.stack([F.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
    return ids, mask


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=shapes(),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(max),
    steps=st.lists(st.sampled_from([1, 1, 2, 9]), max_size=5),
    chunk=st.sampled_from([1, 3, 8, 1024]),
    blocks=BLOCKS,
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_every_row_gets_what_the_equations_say(
    shape: dict[str, Any],
    lengths: list[int],
    steps: list[int],
    chunk: int,
    blocks: tuple[int, int] | None,
    seed: int,
) -> None:
    """A padded batch in chunks, then more tokens (each row's own) one by one and several."""
    model = build(shape, seed)
    model.prefill_chunk_size = chunk
    rows = [torch.randint(0, VOCABULARY, (n + sum(steps),)) for n in lengths]
    ids, mask = padded([row[:n] for row, n in zip(rows, lengths, strict=True)])
    later = torch.stack([row[n:] for row, n in zip(rows, lengths, strict=True)])
    cache = model.new_cache()
    with in_blocks(blocks):
        pieces = [model(ids, attention_mask=mask, past_key_values=cache).logits]
        for tokens in later.split(steps, 1) if steps else ():
            mask = F.pad(mask, (0, tokens.shape[1]), value=1)
            pieces.append(model(tokens, attention_mask=mask, past_key_values=cache).logits)
    found = torch.cat(pieces, 1)
    for row, logits in zip(rows, found, strict=True):
        if len(row):
            expected = by_the_equations(model, row)
            torch.testing.assert_close(logits[-len(row) :], expected, **CLOSE)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=shapes(),
    turns=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=1, max_size=5),
    right=st.booleans(),
    chunk=st.sampled_from([1, 4, 1024]),
    blocks=BLOCKS,
    seed=st.integers(0, 99),
)
@torch.no_grad()
@pytest.mark.slow
def test_rows_that_go_on_by_different_numbers_of_tokens(
    shape: dict[str, Any],
    turns: list[tuple[int, int]],
    right: bool,
    chunk: int,
    blocks: tuple[int, int] | None,
    seed: int,
) -> None:
    """Turn after turn each row gets its own number of new tokens, also none, padded on a side."""
    model = build(shape, seed)
    model.prefill_chunk_size = chunk
    lengths = [sum(row) for row in zip(*turns, strict=True)]
    rows = [torch.randint(0, VOCABULARY, (length,)) for length in lengths]
    found: list[list[Tensor]] = [[], []]
    cache, read = model.new_cache(), [0, 0]
    for turn in turns:
        pieces = [row[n : n + more] for row, n, more in zip(rows, read, turn, strict=True)]
        ids, mask = padded(pieces)
        if right:
            width = ids.shape[1]
            ids = torch.stack([F.pad(piece, (0, width - len(piece))) for piece in pieces])
            mask = mask.flip(1)
        with in_blocks(blocks):
            logits = model(ids, attention_mask=mask, past_key_values=cache).logits
        for row, more in enumerate(turn):
            found[row].append(logits[row][mask[row].bool()])
            read[row] += more
    for whole, parts in zip(rows, found, strict=True):
        if len(whole):
            torch.testing.assert_close(torch.cat(parts), by_the_equations(model, whole), **CLOSE)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_the_equations(cell: str) -> None:
    settings_ = {"cell": cell, "window": 5, "sinks": 2, "full_attention_layers": [1]}
    shape = {"family": "qwen3", "hidden_size": 20, "head_dim": 6, "num_attention_heads": 4}
    model = build({**shape, "num_key_value_heads": 2, "num_hidden_layers": 3, "ahn": settings_}, 0)
    row = torch.randint(0, VOCABULARY, (30,))
    found = []
    for logits in (
        model(row[None], use_cache=False).logits[0],
        by_the_equations.__wrapped__(model, row),  # type: ignore[attr-defined]
    ):
        model.zero_grad()
        F.cross_entropy(logits[:-1], row[1:]).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    ours, theirs = found
    assert ours.keys() == theirs.keys() and any(".ahn.fn." in name for name in ours)
    for name, expected in theirs.items():
        atol = 1e-3 * float(expected.abs().max())
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=atol, msg=name)
