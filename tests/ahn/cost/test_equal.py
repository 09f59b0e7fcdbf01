"""Equal bytes: what each way of keeping the past has room for, against figures worked by hand.

The expected figures are those of Qwen2.5-3B and 7B at 128,000 tokens, window 32,640, 128 sinks and
GatedDeltaNet: the budgets of the paper's setting, in its accounting and in bytes allocated.
"""

from __future__ import annotations

from typing import Any

import pytest

from ahn.config import CELLS, LayerLayout
from ahn.cost import zoo
from ahn.cost.accounting import ModelShape, cache_bytes, flops, layout_flops
from ahn.cost.equal import (
    DocumentSizes,
    EqualBytes,
    Method,
    equal_bytes,
    pyramid,
)
from common.errors import InputError

TINY = ModelShape(3, 64, 4, 2, 16, 96, 200, tie_word_embeddings=True)
PAPER: dict[str, Any] = {"window": 32_640, "sinks": 128, "cell": "GatedDeltaNet"}
SETTINGS = [
    ("qwen2.5-3b", "paper"),
    ("qwen2.5-3b", "exact"),
    ("qwen2.5-7b", "paper"),
    ("qwen2.5-7b", "exact"),
]


def of(model: str, accounting: str, tokens: int = 128_000, **changes: Any) -> EqualBytes:
    return equal_bytes(zoo.find(model).shape, tokens, accounting=accounting, **PAPER | changes)


def named(table: EqualBytes, name: str) -> Method:
    (found,) = [method for method in table.methods if method.name == name]
    return found


def held(method: Method) -> int:
    assert method.cache_bytes is not None, method.missing
    return method.cache_bytes


def gib(size: float) -> str:
    return f"{size / 2**30:.3f}"


FIGURES: dict[str, tuple[Any, Any, Any, Any]] = {
    "full": ("4.395", "4.395", "6.836", "6.836"),
    "ahn": ("1.143 26.00", "1.266 28.80", "1.774 25.95", "1.941 28.40"),
    "tokens": ("33280 0.74000", "36864 0.71200", "33216 0.74050", "36352 0.71600"),
    "streaming": (33_152, 36_736, 33_088, 36_224),
    "presses": (33_280, 36_864, 33_216, 36_352),
    "pyramid": ((64_896, 1_664), (71_885, 1_843), (64_771, 1_661), (70_886, 1_818)),
    "fp8": ("52.0", "57.6", "51.9", "56.8"),
    "4 bit": ("92.4", "100.0", "92.3", "100.0"),
    "2 bit": ("100.0 60", "100.0 54", "100.0 60", "100.0 55"),
    "same window": ((512, 2_048), (4_096, 16_384), (448, 1_792), (3_584, 14_336)),
    "all of T, rate 4": ((1_579, 31_573), (6_357, 30_379), (1_493, 31_595), (5_675, 30_549)),
    "all of T, rate 8": ((19_621, 13_531), (23_717, 13_019), (19_547, 13_541), (23_131, 13_093)),
}


def found_figures(table: EqualBytes) -> dict[str, Any]:
    shape, whole = table.shape, table.document_tokens
    ahn = named(table, "ahn GatedDeltaNet")
    two = named(table, "2 bit, group 64")
    same = named(table, "compressive 4x, same window")
    rates = [named(table, f"compressive {c}x, whole document") for c in (4, 8)]
    press = named(table, "SnapKV, KNorm, ExpectedAttention, TOVA")
    layers = named(table, "PyramidKV").settings["tokens_per_layer"]
    assert len(layers) == shape.num_hidden_layers

    def share(method: Method) -> str:
        return f"{100 * method.settings['share_of_tokens']:.1f}"

    return {
        "full": gib(held(named(table, "full attention"))),
        "ahn": f"{gib(held(ahn))} {100 * held(ahn) / table.full_bytes:.2f}",
        "tokens": f"{table.tokens} {table.compression_ratio:.5f}",
        "streaming": named(table, "StreamingLLM").settings["window"],
        "presses": press.kept_tokens,
        "pyramid": (layers[0], layers[-1]),
        "fp8": share(named(table, "fp8")),
        "4 bit": share(named(table, "4 bit, group 64")),
        "2 bit": f"{share(two)} {100 * held(two) / table.budget:.0f}",
        "same window": (same.settings["slots"], same.settings["reach"]),
        **{
            f"all of T, rate {c}": (m.settings["window"], m.settings["slots"])
            for c, m in zip((4, 8), rates, strict=True)
        },
        "_whole": whole,
    }


@pytest.mark.parametrize("number", range(4))
def test_the_table_of_equal_bytes_at_128000_tokens(number: int) -> None:
    found = found_figures(of(*SETTINGS[number]))
    assert found.pop("_whole") == 128_000
    assert found == {name: figures[number] for name, figures in FIGURES.items()}


def test_shares_of_the_budgets_named_model_at_131072_tokens() -> None:
    shares = [
        f"{100 * t.budget / t.full_bytes:.2f}"
        for t in (of(m, "exact", 131_072) for m in ("qwen2.5-3b", "qwen2.5-7b"))
    ]
    assert shares == ["28.12", "27.73"]


@pytest.mark.parametrize(
    ("model", "prefill", "window", "ahn", "steps"),
    [
        ("qwen2.5-3b", "3.126", "1.789", "1.797", ("43.9", "17.0", "15.9")),
        ("qwen2.5-7b", "4.959", "3.139", "3.150", ("65.5", "28.7", "27.4")),
    ],
)
def test_flops_of_prefill_and_of_a_step(
    model: str, prefill: str, window: str, ahn: str, steps: tuple[str, str, str]
) -> None:
    table = of(model, "exact")

    def petaflops(name: str) -> str:
        return f"{(named(table, name).prefill_flops or 0) / 1e15:.3f}"

    for name in (
        "full attention",
        "StreamingLLM",
        "SnapKV, KNorm, ExpectedAttention, TOVA",
        "PyramidKV",
        "fp8",
        "4 bit, group 64",
    ):
        assert petaflops(name) == prefill, name
    assert petaflops("window") == window
    assert petaflops("ahn GatedDeltaNet") == ahn
    presses = "SnapKV, KNorm, ExpectedAttention, TOVA"
    decoded = [
        f"{(named(table, name).decode_flops or 0) / 1e9:.1f}"
        for name in ("full attention", presses, "ahn GatedDeltaNet", "4 bit, group 64", "PyramidKV")
    ]
    full, press, memory = steps
    assert decoded == [full, press, memory, full, press]


@pytest.mark.parametrize(
    ("model", "peaks"),
    [
        ("qwen2.5-3b", ("11.23", "4.50", "8.22", "8.32", "8.22", "1.38")),
        ("qwen2.5-7b", ("18.68", "7.03", "14.03", "14.25", "14.03", "2.13")),
    ],
)
def test_peaks_beside_the_weights(model: str, peaks: tuple[str, ...]) -> None:
    table = of(model, "exact")
    full, ahn = named(table, "full attention"), named(table, "ahn GatedDeltaNet")
    press, four = (
        named(table, "SnapKV, KNorm, ExpectedAttention, TOVA"),
        named(table, "4 bit, group 64"),
    )
    found = (
        full.peak_whole, full.peak_chunked, press.peak_whole, four.peak_whole,
        ahn.peak_whole, ahn.peak_chunked,
    )  # fmt: skip
    assert tuple(f"{(size or 0) / 2**30:.2f}" for size in found) == peaks
    assert press.peak_chunked is None and four.peak_chunked is None


def test_two_accountings_are_two_budgets() -> None:
    paper, exact = of("qwen2.5-3b", "paper"), of("qwen2.5-3b", "exact")
    assert exact.budget / paper.budget == pytest.approx(1.108, abs=5e-4)
    shape = zoo.find("qwen2.5-3b").shape
    for table, accounting in ((paper, "paper"), (exact, "exact")):
        counted = cache_bytes(shape, "ahn", 128_000, accounting=accounting, **PAPER)
        assert (table.accounting, table.budget) == (accounting, counted.total)


def test_every_cell_stands_with_its_own_bytes_and_one_is_the_budget() -> None:
    table = of("qwen2.5-3b", "exact", cell="Mamba2")
    sizes = {cell: held(named(table, f"ahn {cell}")) for cell in CELLS}
    assert sizes["Mamba2"] == table.budget
    assert sizes["DeltaNet"] < sizes["GatedDeltaNet"]


@pytest.mark.parametrize("accounting", ["paper", "exact"])
def test_what_can_be_sized_is_within_the_budget(accounting: str) -> None:
    """Room for waiting tokens of the compressive rows comes on top."""
    table = of("qwen2.5-7b", accounting)
    for method in table.methods:
        if method.sized:
            over = 0
            if method.name.startswith("compressive"):
                over = (method.settings["rate"] - 1) * table.token_bytes
            assert held(method) <= table.budget + over * table.shape.num_hidden_layers, method
            nearly = method.name in ("8 bit, group 64", "fp8", "PyramidKV") or "bit" in method.name
            if method.settings.get("share_of_tokens", 0) < 1 and not nearly:
                assert held(method) >= 0.9999 * table.budget, method.name


def test_a_window_at_equal_bytes_holds_what_its_cost_says() -> None:
    table = of("qwen2.5-3b", "exact")
    method = named(table, "window at equal bytes")
    shape = zoo.find("qwen2.5-3b").shape
    counted_bytes = cache_bytes(
        shape, "window", 128_000, window=method.settings["window"], sinks=128
    ).total
    assert method.cache_bytes == counted_bytes <= table.budget
    counted = flops(shape, "window", 128_000, 2, window=method.settings["window"], sinks=128)
    assert (method.prefill_flops, method.decode_flops) == (counted.prefill, counted.decode)


def test_a_step_over_kept_tokens_costs_what_full_attention_over_as_many_does() -> None:
    shape = zoo.find("qwen2.5-3b").shape
    press = named(of("qwen2.5-3b", "exact"), "SnapKV, KNorm, ExpectedAttention, TOVA")
    assert press.decode_flops == flops(shape, "full", 36_864, 2).decode


def test_layers_of_the_pyramid_keep_the_mean() -> None:
    layers = pyramid(128_000, 36_864, 36)
    assert layers == sorted(layers, reverse=True)
    assert sum(layers) / 36 == pytest.approx(36_864, abs=0.5)


def test_the_pyramid_is_flat_where_its_last_layer_would_keep_less_than_its_window() -> None:
    assert pyramid(500, 166, 3) == [166, 166, 166]
    assert pyramid(128_000, 36_864, 1) == [71_885]


def test_the_pyramids_first_layer_keeps_no_more_than_the_document() -> None:
    layers = pyramid(10_000, 8_000, 4)
    assert layers[0] == 10_000 - 64 and sum(layers) / 4 == pytest.approx(8_000, abs=1)


def test_a_short_document_is_kept_by_all() -> None:
    """The budget holds all of it: nothing is left to be dropped."""
    table = equal_bytes(TINY, 100, window=64, sinks=4, cell="GatedDeltaNet")
    assert (table.tokens, table.compression_ratio) == (100, 0.0)
    press = named(table, "SnapKV, KNorm, ExpectedAttention, TOVA")
    assert press.kept_tokens == 100
    assert named(table, "compressive 4x, whole document").missing
    assert named(table, "window at equal bytes").kept_tokens == 100
    shorter = equal_bytes(TINY, 3, window=64, sinks=4, cell="GatedDeltaNet")
    for name in ("window at equal bytes", "StreamingLLM"):
        assert named(shorter, name).settings["window"] == 1, name
    assert "window holds" in named(shorter, "compressive 4x, same window").missing


def test_a_memory_smaller_than_a_token_leaves_no_slots() -> None:
    shape = ModelShape(3, 64, 4, 4, 2, 96, 200)  # a state of 4 x 2 x 2, a token of 2 x 4 x 2
    table = equal_bytes(
        shape, 1_000, window=10, sinks=100, cell="GatedDeltaNet", accounting="paper", cells=()
    )
    assert table.tokens == 111
    assert named(table, "compressive 4x, same window").settings["slots"] == 1
    wide = ModelShape(3, 64, 4, 4, 1, 96, 200)
    none = equal_bytes(
        wide, 1_000, window=10, sinks=100, cell="GatedDeltaNet", accounting="paper", cells=()
    )
    assert none.tokens == 110
    assert "less than one token" in named(none, "compressive 4x, same window").missing
    assert named(none, "StreamingLLM").settings == {"n_sink": 100, "window": 10}


def test_a_budget_that_is_too_small_for_a_rate_is_a_gap_with_a_reason() -> None:
    table = equal_bytes(TINY, 100_000, window=64, sinks=4, cell="GatedDeltaNet")
    gap = named(table, "compressive 4x, whole document")
    assert gap.cache_bytes is None and gap.prefill_flops is None
    assert "rate" in gap.missing
    assert named(table, "compressive 4x, same window").cache_bytes


def test_a_compressive_cache_costs_what_its_layout_says() -> None:
    """S + W + c - 1 + M slots are allocated; in the paper's accounting nothing waits."""
    for accounting, waiting in (("exact", 3), ("paper", 0)):
        table = of("qwen2.5-3b", accounting)
        method = named(table, "compressive 4x, same window")
        slots = 32_768 + waiting + method.settings["slots"]
        assert held(method) == 36 * 1_024 * slots
    layouts = [LayerLayout(32_640, 128, rate=4, slots=512)] * 36
    counted = layout_flops(zoo.find("qwen2.5-3b").shape, layouts, 128_000, 2)
    assert (method.prefill_flops, method.decode_flops) == (counted.prefill, counted.decode)


def test_bytes_of_a_token_and_scales_follow_the_type() -> None:
    assert DocumentSizes(TINY, 2).token == 2 * 2 * 16 * 2
    sizes = DocumentSizes(TINY, 4)
    # 4 bits, and a scale and a zero of 32 bits for 64 elements: 5 bits an element
    assert sizes.quantized(4, 64) == 2 * 2 * 16 * 5 / 8
    assert DocumentSizes(TINY, 2).quantized(4, 64) == 2 * 2 * 16 * 4.5 / 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"accounting": "paper-free-lookup"}, "accounting"),
        ({"cell": "None"}, "cell"),
        ({"window": 0}, "window"),
    ],
)
def test_what_has_no_table_is_refused(changes: dict[str, Any], said: str) -> None:
    settings: dict[str, Any] = {"window": 64, "sinks": 4, "cell": "Mamba2"} | changes
    with pytest.raises(InputError, match=said):
        equal_bytes(TINY, 1000, **settings)


def test_tokens_must_be_positive() -> None:
    with pytest.raises(InputError, match="0 tokens"):
        equal_bytes(TINY, 0, window=64, sinks=4, cell="Mamba2")
