"""Details of the count of costs: edges of what is allowed, refusals word for word, defaults."""

from __future__ import annotations

from typing import Any

import pytest

from ahn.cost.accounting import BLOCK, CacheBytes, FlopCount, allocated_slots, cache_bytes, flops
from ahn.cost.shapes import ModelShape
from common.errors import InputError

SHAPE = ModelShape(
    num_hidden_layers=3,
    hidden_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=32,
    vocab_size=29,
)
AHN: dict[str, Any] = {"window": 9, "sinks": 4, "cell": "GatedDeltaNet"}


def test_a_prompt_that_no_run_can_have_is_refused_word_for_word() -> None:
    for prompt, generated, reused in ((0, 0, 0), (5, -1, 0), (5, 0, 5), (5, 0, -1), (-1, 2, 0)):
        with pytest.raises(InputError) as caught:
            flops(SHAPE, "full", prompt, generated, reused_tokens=reused)
        assert str(caught.value) == (
            f"a prompt of {prompt} tokens ({reused} of them reused) and {generated} generated "
            "ones: at least one prompt token must be processed, and no count is negative"
        )


def test_sizes_that_no_cache_can_have_are_refused_word_for_word() -> None:
    for tokens, dtype_bytes, batch_size in ((-1, 2, 1), (1, 0, 1), (1, 2, 0)):
        with pytest.raises(InputError) as caught:
            cache_bytes(SHAPE, "full", tokens, dtype_bytes=dtype_bytes, batch_size=batch_size)
        assert str(caught.value) == (
            f"tokens {tokens}, dtype_bytes {dtype_bytes}, batch_size {batch_size}: none may be "
            "negative, and the last two not 0"
        )


def test_settings_are_refused_all_at_once_word_for_word() -> None:
    functions: tuple[Any, ...] = (flops, cache_bytes)
    for refuse in functions:
        with pytest.raises(InputError) as caught:
            refuse(SHAPE, "ahn", 5, accounting="free")
        assert str(caught.value).splitlines() == [
            "variant 'ahn' needs a window",
            "variant 'ahn' needs a memory cell; one of GatedDeltaNet, DeltaNet, Mamba2",
            "accounting 'free' is unknown; one of exact, paper, paper-abstract, paper-free-lookup",
        ]
        with pytest.raises(InputError, match="window must be at least 1, not 0"):
            refuse(SHAPE, "window", 5, window=0)
        with pytest.raises(InputError, match="sinks must be at least 0, not -1"):
            refuse(SHAPE, "window", 5, window=3, sinks=-1)
        with pytest.raises(InputError, match="the model has no layer 3"):
            refuse(SHAPE, "full", 5, full_attention_layers=[3])


def test_the_least_that_is_allowed_is_counted() -> None:
    one = flops(SHAPE, "full", 1)
    assert one == flops(SHAPE, "full", 1, 0) == flops(SHAPE, "full", 1, 1)  # no step is needed
    assert one.decode == 0 < one.prefill == one.total == sum(one.parts.values())
    assert flops(SHAPE, "full", 5, reused_tokens=4).prefill > one.prefill  # it attends to five
    assert cache_bytes(SHAPE, "full", 0).total == 0
    assert cache_bytes(SHAPE, "full", 1, dtype_bytes=1).keys_values == 3 * BLOCK * 2 * 2 * 6


def test_one_token_by_hand() -> None:
    """q, k, v and o, a gated MLP, one pair of scores and values a head, and the head."""
    count = flops(SHAPE, "full", 1)
    width, kv = 4 * 6, 2 * 6
    assert count.parts == {
        "projections": 3 * 2 * (2 * 24 * width + 2 * 24 * kv),
        "mlp": 3 * 2 * 3 * 24 * 32,
        "attention": 3 * 4 * 6 * 4,
        "memory": 0,
        "lm_head": 2 * 24 * 29,
    }
    embedded = flops(SHAPE, "full", 1, accounting="paper").parts
    assert embedded["embedding"] == 2 * 24 * 29 == embedded["lm_head"]
    assert "embedding" not in flops(SHAPE, "full", 1, accounting="paper-free-lookup").parts


@pytest.mark.parametrize("cell", ["GatedDeltaNet", "DeltaNet", "Mamba2"])
def test_a_memorys_work_by_hand(cell: str) -> None:
    """Twenty tokens, window 9, sinks 4: seven queries write one token each and read."""
    H, d, D, layers = 4, 6, 24, 2
    gates = {"GatedDeltaNet": 2, "DeltaNet": 1, "Mamba2": 1}[cell]
    products = 4 if cell == "Mamba2" else 6
    expected = layers * (
        20 * gates * 2 * D * H + 7 * (2 * D * H + H * products * d * d + H * 2 * d * d)
    )
    options = AHN | {"cell": cell, "full_attention_layers": [1]}
    for variant in ("ahn", "no-write"):
        assert flops(SHAPE, variant, 20, **options).parts["memory"] == expected
    assert flops(SHAPE, "ahn", 13, **options).parts["memory"] == layers * 13 * gates * 2 * D * H
    decoded = flops(SHAPE, "ahn", 14, 7, **options)  # six steps make it twenty
    assert decoded.parts["memory"] == expected
    for other in ("window", "full"):
        assert flops(SHAPE, other, 20, **options).parts["memory"] == 0


def test_what_a_variant_does_not_look_at_is_ignored() -> None:
    plain = flops(SHAPE, "full", 40, 3)
    assert flops(SHAPE, "full", 40, 3, window=-5, sinks=-1, cell="Mamba2") == plain
    window = flops(SHAPE, "window", 40, 3, window=9)
    assert flops(SHAPE, "window", 40, 3, window=9, sinks=0, cell="DeltaNet") == window
    assert window.total < plain.total
    assert cache_bytes(SHAPE, "window", 40, window=9, cell="DeltaNet").state == 0


@pytest.mark.parametrize(
    ("tokens", "slots"),
    [(0, 0), (1, BLOCK), (BLOCK, BLOCK), (BLOCK + 1, 2 * BLOCK), (5 * BLOCK, 5 * BLOCK)],
)
def test_slots_come_in_blocks(tokens: int, slots: int) -> None:
    assert BLOCK == 256
    assert allocated_slots(tokens, 4, None) == slots
    assert allocated_slots(tokens, 4, 300) == min(slots, 304)


def test_totals_are_the_sums_of_their_fields() -> None:
    assert CacheBytes(1, 20, 300).total == 321
    assert FlopCount(4, 50, {"mlp": 54}).total == 54


def test_a_cache_by_hand() -> None:
    """Two layers with a memory, one with full attention; in the paper's count and the exact one."""
    H, K, d = 4, 2, 6
    options = AHN | {"full_attention_layers": [0], "dtype_bytes": 2}
    paper = cache_bytes(SHAPE, "ahn", 100, accounting="paper", batch_size=3, **options)
    assert paper.keys_values == 3 * 2 * 2 * K * d * (100 + 2 * 13)
    assert (paper.gates, paper.state) == (0, 3 * 2 * H * d * d * 2)
    exact = cache_bytes(SHAPE, "ahn", 100, batch_size=3, **options)
    assert exact.keys_values == 3 * 2 * 2 * K * d * (BLOCK + 2 * 13)
    assert exact.state == 3 * 2 * H * d * d * 4
    assert exact.gates == 3 * 2 * 13 * H * (2 + 4)
    few = cache_bytes(SHAPE, "ahn", 5, accounting="paper", **options)
    assert few.keys_values == 2 * 2 * K * d * 3 * 5
    without = cache_bytes(SHAPE, "ahn", 100, **options | {"cell": "DeltaNet"})
    assert without.gates == 2 * 13 * H * 2


def test_states_of_layers_with_unlike_settings_add_up() -> None:
    """Two layers have a memory, one of them with a window of its own; one layer has none."""
    layers: dict[int, dict[str, Any]] = {0: {"window": 5}, 2: {"cell": None}}
    for accounting, bytes_of_a_number in (("exact", 4), ("paper", 2)):
        held = cache_bytes(
            SHAPE, "ahn", 40, dtype_bytes=2, accounting=accounting, layers=layers, **AHN
        )
        assert held.state == 2 * (4 * 6 * 6) * bytes_of_a_number


@pytest.mark.parametrize(("cell", "gates"), [("GatedDeltaNet", 3), ("DeltaNet", 2), ("Mamba2", 2)])
def test_the_papers_count_is_table_1_with_the_memory(cell: str, gates: int) -> None:
    """Twenty tokens, thirteen of them lossless, in two layers; one layer keeps full attention."""
    H, K, d, D, L, N = 4, 2, 6, 24, 20, 13
    options = AHN | {"cell": cell, "full_attention_layers": [1], "accounting": "paper"}
    parts = flops(SHAPE, "ahn", L, **options).parts
    assert parts["projections"] == 3 * 4 * L * D * d * (H + K)
    assert parts["attention"] == 2 * d * H * (L**2 + 2 * (N**2 + 2 * (L - N) * N))
    assert parts["memory"] == 2 * 2 * (L - N) * (2 * d**2 * H + gates * D * H)
    assert parts["lm_head"] == parts["embedding"] == 2 * L * D * 29
    assert flops(SHAPE, "ahn", N, **options).parts["memory"] == 0, "nothing has left the window"
    decoded = flops(SHAPE, "ahn", 14, 7, **options).parts  # six steps make it twenty
    assert decoded == parts


def test_pooled_slots_are_counted_by_table_2_and_by_the_abstract() -> None:
    options: dict[str, Any] = {"window": 9, "sinks": 4, "rate": 4, "slots": 5}
    L, N, M = 40, 13, 5
    pairs = {"paper": N**2 + 2 * (L - N) * (N + M)}
    pairs["paper-abstract"] = (N + M) ** 2 + 2 * (L - N - M) * (N + M)
    for accounting, doubled in pairs.items():
        parts = flops(SHAPE, "compressive", L, accounting=accounting, **options).parts
        assert parts["attention"] == 3 * 2 * 4 * 6 * doubled
        assert parts["memory"] == 0


def test_the_abstracts_count_is_the_exact_memory_beside_the_papers_attention() -> None:
    paper, abstract, free, exact = (
        flops(SHAPE, "ahn", 40, accounting=accounting, **AHN).parts
        for accounting in ("paper", "paper-abstract", "paper-free-lookup", "exact")
    )
    assert abstract["memory"] == exact["memory"] > paper["memory"] > 0
    assert abstract | {"memory": paper["memory"]} == paper
    assert free == {name: count for name, count in abstract.items() if name != "embedding"}
