"""A press chooses what stays of a document, which is then quantised."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

import ahn
from common.errors import InputError
from evaluation.backends.base import Ids, Question, RunSettings
from evaluation.backends.presses.backend import PressBackend
from evaluation.backends.quantized.backend import QuantizedBackend, QuantizedReader
from evaluation.backends.quantized.cache import states
from evaluation.backends.requests import parse_request
from evaluation.backends.stock import StockReader

MISSING = [name for name in ("kvpress", "hqq", "optimum") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
TOKENIZER = AutoTokenizer.from_pretrained(ahn.POCKET_PATH)
SNAPKV = "press=snapkv,window_size=8"


def settings(**own: Any) -> RunSettings:
    return RunSettings(**{"model": "pocket", "dtype": "float32", "device": "cpu", **own})


def backend(options: str, **own: Any) -> QuantizedBackend:
    return QuantizedBackend(parse_request(f"quantized:{options}"), settings(**own))


def reader(options: str, **own: Any) -> QuantizedReader:
    found = backend(options, **own).open(TOKENIZER, 0)
    assert isinstance(found, QuantizedReader)
    return found


def some_ids(count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(5, 500, count).astype(np.int32)


def question(ids: Ids) -> Question:
    chosen = GenerationConfig(
        max_new_tokens=4, do_sample=False, eos_token_id=[4], pad_token_id=0, num_beams=1
    )
    return Question(ids, chosen)


@pytest.mark.parametrize("options", ["bits=4", "bits=2", "bits=8", "bits=8,backend=fp8"])
@pytest.mark.parametrize("press", [SNAPKV, "press=knorm", "press=expectedattention"])
def test_what_the_press_keeps_is_quantised_once(press: str, options: str) -> None:
    document = some_ids(120)
    asked = reader(f"{options},{press},keep=50")
    alone = PressBackend(parse_request(f"kvpress:{press},keep=50"), settings())
    stock = alone.open(TOKENIZER, 0)
    assert isinstance(stock, StockReader)
    with torch.inference_mode():
        past, expected = asked.fill(document), stock.fill(document)
        for found, wanted in zip(past.cache.layers, expected.cache.layers, strict=True):
            layer = asked.backend.scheme.layer()
            layer.update(wanted.keys, wanted.values)
            for one, other in zip(states(found), states(layer), strict=True):
                assert torch.equal(one, other)
        assert past.seen == 120
        assert asked.kept(past, 120) == 50
        assert asked.used(past) == asked.backend.document_bytes(120)


def test_332_tokens_of_snapkv_in_4_bits_take_the_bytes_of_the_formula() -> None:
    # 332 tokens x 3 layers x 512 elements of 5 bits (4, and two float32 for 64)
    answer = (
        reader("bits=4,press=snapkv,keep=332").read(some_ids(484)).ask(question(some_ids(9)), True)
    )
    assert answer.document_bytes == 332 * 3 * 512 * 5 // 8 == 318_720
    assert answer.kept_tokens == 332 and answer.reused_tokens == 0


@pytest.mark.parametrize(
    "options",
    ["bits=4", "bits=2,axis_key=-1", "bits=8,backend=fp8", "bits=8,group=24", "bits=4,group=24"],
)
@pytest.mark.parametrize("press", [SNAPKV, "press=pyramidkv,window_size=4,beta=2"])
def test_a_budget_is_never_passed_and_filled_up_to_a_group(press: str, options: str) -> None:
    asked = reader(f"{options},{press}", budget="0.2")
    made = asked.backend
    assert made.sizable
    group = 16 if "axis_key=-1" in options else 2
    for tokens, budget in ((200, 60_001), (150, 40_000), (20, 1 << 20)):
        answer = asked.read(some_ids(tokens), budget).ask(question(some_ids(5)), True)
        assert answer.document_bytes is not None and answer.document_bytes <= budget
        assert answer.kept_tokens is not None
        if answer.kept_tokens < tokens:
            assert answer.kept_tokens == made.kept(tokens, budget)
            more = int(made.fit(tokens, budget).kept) + group
            assert made._bytes(more, 0) > budget
        else:
            assert answer.kept_tokens == tokens == 20


def test_no_split_among_layers_passes_a_budget() -> None:
    made = backend("bits=2,group=48,press=pyramidkv,window_size=4,beta=3", budget="0.2")
    for tokens in range(10, 60):
        budget = made._bytes(tokens, 0)
        layers = made._by_layer(200, budget)
        assert layers is not None
        assert made._bytes_by_layer(layers) <= budget
        assert budget - made._bytes_by_layer(layers) < 2 * made._bytes(1, 0)


def test_questions_share_a_pressed_document() -> None:
    asked = reader(f"bits=4,{SNAPKV},keep=30")
    document, asks = some_ids(90), [some_ids(n, n) for n in (3, 12, 3)]
    shared = asked.read(document)
    for number, ids in enumerate(asks):
        found = shared.ask(question(ids), number == 2)
        alone = asked.read(document).ask(question(ids), True)
        assert found.token_ids == alone.token_ids and found.cache_bytes == alone.cache_bytes
        cost = asked.backend.cost(90 + len(ids), found.generated_tokens or 0, 90)
        assert found.cache_bytes == cost.cache_bytes


def test_a_document_that_fits_is_not_pressed() -> None:
    document, ids = some_ids(40), some_ids(5)
    pressed = reader(f"bits=4,{SNAPKV},keep=64").read(document).ask(question(ids), True)
    plain = reader("bits=4").read(document).ask(question(ids), True)
    assert (pressed.token_ids, pressed.cache_bytes) == (plain.token_ids, plain.cache_bytes)
    assert pressed.kept_tokens == 40


@pytest.mark.parametrize(
    "press",
    [
        "press=simlayerkv,lazy_threshold=0.5,n_recent=16,n_initial=2",
        "press=chunkkv,inner=knorm,chunk_length=8,keep=30",
        "press=kvcompose,keep=30",
    ],
)
def test_what_depends_on_the_document_is_measured_and_not_guessed(press: str) -> None:
    made = backend(f"bits=4,{press}")
    assert not made.sizable and made.document_bytes(90) is None
    assert made.cost(95, 3, 90).cache_bytes is None
    asked = made.open(TOKENIZER, 0)
    answer = asked.read(some_ids(90)).ask(question(some_ids(5)), True)
    assert answer.kept_tokens is not None and answer.document_bytes is not None


@pytest.mark.parametrize("group", [64, 24])
@pytest.mark.parametrize(
    "press",
    [
        "press=pyramidkv,window_size=4,beta=3,keep=40",
        "press=perlayercompression,inner=knorm,compression_ratios=0.5/0.3/0.72",
        "press=chunk,inner=knorm,chunk_length=16,keep=40",
    ],
)
def test_layers_that_keep_different_numbers_are_counted_one_by_one(press: str, group: int) -> None:
    asked = reader(f"bits=2,group={group},{press}")
    made = asked.backend
    answer = asked.read(some_ids(101)).ask(question(some_ids(9)), True)
    cost = made.cost(110, answer.generated_tokens or 0, 101)
    assert answer.document_bytes == made.document_bytes(101)
    assert answer.cache_bytes == cost.cache_bytes
    stock = PressBackend(parse_request(f"kvpress:{press}"), settings())
    assert cost.flops == stock.cost(110, answer.generated_tokens or 0, 101).flops


def test_the_press_is_part_of_the_identity() -> None:
    seen: list[dict[str, Any]] = []
    for options in (
        "bits=4", f"bits=4,{SNAPKV},keep=30", f"bits=4,{SNAPKV},keep=31",
        f"bits=4,{SNAPKV},ratio=0.5",
        "bits=4,press=snapkv,window_size=9,keep=30", "bits=4,press=knorm,keep=30",
    ):  # fmt: skip
        found = dict(backend(options).identity())
        assert found not in seen
        seen.append(found)
    assert seen[1]["kvpress"] and seen[1]["press"]["window_size"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("bits=4,press=snapkv", "--variant quantized:bits=4,press=snapkv: how much is kept"),
        ("bits=4,press=snap", "no press 'snap'"),
        (f"bits=4,{SNAPKV},keep=4", "keep=4 is fewer than the 8 tokens that SnapKVPress"),
        (f"bits=4,{SNAPKV},keep=30,chunk=64", "chunk: a press reads a document in one piece"),
        (f"bits=4,{SNAPKV},keep=30,sinks=4", "sinks: the press chooses what stays"),
        (f"bits=4,{SNAPKV},keep=30,residul=4", "no option 'residul' .*bits.*residual"),
        ("bits=4,press=adakv,inner=snapkv,keep=99", "AdaKVPress frees no memory, quantised or not"),
        ("bits=4,press=keyrerotation,inner=snapkv,keep=99", "KeyRerotationPress moves keys"),
        (f"bits=3,{SNAPKV},keep=30", "bits: '3' is none of"),
        (f"{SNAPKV},keep=30", "how many bits"),
    ],
)
def test_what_does_not_go_together_is_refused(options: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        backend(options)


def test_a_budget_that_the_press_cannot_reach_is_refused_before_the_run() -> None:
    made = backend(f"bits=4,{SNAPKV}", budget="0.2")
    with pytest.raises(InputError, match="fewer than the 8 that it always keeps"):
        made.kept(100, made._bytes(7, 0))
    with pytest.raises(InputError, match="hold no token"):
        made.kept(100, 100)


def test_statistics_of_a_press_are_among_the_files_that_change_an_answer(tmp_path):
    (tmp_path / "model.safetensors").write_text("x", "utf-8")
    made = backend(f"bits=4,press=expectedattentionstats,keep=99,stats_folder={tmp_path}")
    assert tmp_path / "model.safetensors" in made.weight_files()
    assert str(tmp_path) not in str(made.identity())
    assert made.describe()["folders"] == [str(tmp_path)]
