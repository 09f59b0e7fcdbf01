"""Stock models with a quantised cache: what they keep, what it costs, and what they answer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer, DynamicCache, GenerationConfig

import ahn
from common.errors import InputError
from evaluation.backends.base import Ids, Question, RunSettings
from evaluation.backends.quantized import backend as quantized
from evaluation.backends.quantized.backend import Fit, QuantizedBackend, QuantizedReader, kv_shapes
from evaluation.backends.quantized.cache import KVShape, Scheme, states
from evaluation.backends.requests import parse_request
from evaluation.backends.stock import Past, StockBackend, StockReader
from tasks.pocket.synthetic import generate

NEEDED = {"hqq": "hqq", "quanto": "optimum"}
COMMON = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOKENIZER = AutoTokenizer.from_pretrained(ahn.POCKET_PATH)


def variant(options: str, backend: str) -> Any:
    missing = backend in NEEDED and importlib.util.find_spec(NEEDED[backend]) is None
    mark = pytest.mark.skipif(missing, reason="pip install 'ahn-bench[quantized]'")
    return pytest.param(options, id=options, marks=mark)


ALL = [
    variant("bits=8", "hqq"),
    variant("bits=8,backend=fp8", "fp8"),
    variant("bits=4", "quanto"),
    variant("bits=4,axis_key=-1", "quanto"),
    variant("bits=4,backend=hqq", "hqq"),
    variant("bits=2", "quanto"),
]


def backend(options: str, model: Path | str = "pocket", **settings: Any) -> QuantizedBackend:
    given = {"dtype": "float32", "device": "cpu", **settings}
    request = parse_request(f"quantized:{options}")
    return QuantizedBackend(request, RunSettings(model=str(model), **given))


def reader(options: str, model: Path | str = "pocket", **settings: Any) -> QuantizedReader:
    found = backend(options, model, **settings).open(TOKENIZER, 0)
    assert isinstance(found, QuantizedReader)
    return found


def full(model: Path | str = "pocket", dtype: str = "float32") -> StockReader:
    settings = RunSettings(model=str(model), dtype=dtype, device="cpu")
    found = StockBackend(parse_request("hf"), settings).open(TOKENIZER, 0)
    assert isinstance(found, StockReader)
    return found


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def saved(kind: str, **own: Any) -> Path:
        name = f"{kind}-{sorted(own.items())}"
        if name not in made:
            config = getattr(transformers, f"{kind}Config")(**(COMMON | own))
            torch.manual_seed(0)
            model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config)
            made[name] = tmp_path_factory.mktemp("model")
            model.save_pretrained(made[name])
            TOKENIZER.save_pretrained(made[name])
        return made[name]

    return saved


def question(ids: Ids, new: int = 6) -> Question:
    settings = GenerationConfig(
        max_new_tokens=new, do_sample=False, eos_token_id=[4], pad_token_id=0, num_beams=1
    )
    return Question(ids, settings)


def some_ids(count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(5, 90, count).astype(np.int32)


def pocket_rows(task: str, rows: int) -> list[tuple[Ids, Ids, str]]:
    """Document, question and answer, as the pocket suite asks them."""
    found = []
    for row, _ in generate(task, 400, rows):
        ids = [
            np.array(TOKENIZER(text, add_special_tokens=special).input_ids, np.int32)
            for text, special in ((f" {row['context']}", True), (f" {row['input']}", False))
        ]
        found.append((ids[0], ids[1], (row.get("answers") or row["answer"])[0]))
    return found


def first_logits(asked: StockReader, document: Ids, asks: Ids) -> torch.Tensor:
    with torch.inference_mode():
        past = asked.fill(document)
        return asked._pass(asked.as_batch(asks), past).float()


# -- what it holds ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [*ALL, variant("bits=4,chunk=30,residual=40", "quanto")])
def test_bytes_by_arithmetic_are_those_measured(options: str, dtype: str) -> None:
    made = backend(options, dtype=dtype)
    asked = made.open(TOKENIZER, 0)
    for tokens in (1, 77, 130):
        document = asked.read(some_ids(tokens))
        for ids, last in ((some_ids(3), False), (some_ids(150), True)):
            answer = document.ask(question(ids), last)
            assert answer.document_bytes == made.document_bytes(tokens)
            assert answer.generated_tokens
            cost = made.cost(tokens + len(ids), answer.generated_tokens, tokens)
            assert answer.cache_bytes == answer.cache_stored == cost.cache_bytes
            assert answer.kept_tokens == tokens


@pytest.mark.parametrize("options", ALL)
def test_no_length_of_a_document_is_refused(options: str, save: Callable[..., Path]) -> None:
    # one head of 24 channels: no length below 8 tokens fills groups of 64, hardly any bytes of 2
    model = save("Llama", head_dim=24, num_key_value_heads=1)
    plain = "fp8" in options
    for own in ("",) if plain else ("", ",group=64"):
        asked = reader(options + own, model)
        with torch.inference_mode():
            for tokens in [*range(1, 12), 33, 63, 64, 65, 127, 128, 199, 200]:
                past = asked.fill(some_ids(tokens))
                assert asked.kept(past, tokens) == tokens
                assert asked.used(past) == asked.backend.document_bytes(tokens)


def test_a_prompt_without_a_document_is_quantised_too() -> None:
    asked = reader("bits=8,backend=fp8")
    answer = asked.read(some_ids(0)).ask(question(some_ids(20)), True)
    made = asked.backend
    assert answer.cache_bytes == made.cost(20, answer.generated_tokens or 0, 0).cache_bytes
    assert answer.document_bytes is None and answer.kept_tokens is None


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("Llama", {}),
        ("Qwen3", {"head_dim": 32}),
        ("Phi3", {}),
        ("Mistral", {"sliding_window": None}),
    ],
)
def test_shapes_of_keys_and_values_are_found_without_weights(
    save: Callable[..., Path], kind: str, own: dict[str, Any]
) -> None:
    model = save(kind, **own)
    shapes = kv_shapes(RunSettings(model=str(model), device="cpu"))
    assert shapes == (KVShape(2, own.get("head_dim", 16), own.get("head_dim", 16)),) * 2
    asked = reader("bits=8,backend=fp8", model)
    with torch.inference_mode():
        assert asked.used(asked.fill(some_ids(9))) == asked.backend.document_bytes(9)


# -- how it is read ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", ALL)
def test_a_document_in_one_chunk_is_computed_unquantised(options: str) -> None:
    """The first layer's and the last layer's keys, quantised, are those of full precision."""
    document = some_ids(70)
    asked, whole = reader(options), full()
    with torch.inference_mode():
        past, expected = asked.fill(document), whole.fill(document)
        scheme = asked.backend.scheme
        for number in (0, -1):
            alone = scheme.layer()
            alone.update(expected.cache.layers[number].keys, expected.cache.layers[number].values)
            for found, wanted in zip(states(past.cache.layers[number]), states(alone), strict=True):
                assert torch.equal(found, wanted)


@pytest.mark.parametrize("options", ALL)
def test_the_question_sees_the_document_quantised(options: str) -> None:
    """The logits are those of a stock cache into which the quantised keys were put."""
    document, asks = some_ids(70), some_ids(9, 1)
    asked = reader(options)
    with torch.inference_mode():
        past = asked.fill(document)
        stock = DynamicCache()
        for number, layer in enumerate(past.cache.layers):
            stock.update(*states(layer), number)
        found = asked._pass(asked.as_batch(asks), past)
        expected = asked._pass(asked.as_batch(asks), Past(stock, 70))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_chunks_see_earlier_ones_quantised() -> None:
    document, asks = some_ids(90), some_ids(5, 1)
    whole = first_logits(reader("bits=8,backend=fp8"), document, asks)
    pieces = first_logits(reader("bits=8,backend=fp8,chunk=30"), document, asks)
    one = first_logits(reader("bits=8,backend=fp8,chunk=90"), document, asks)
    assert torch.equal(whole, one) and not torch.allclose(whole, pieces, atol=1e-4)

    asked = reader("bits=8,backend=fp8")
    with torch.inference_mode():
        past = Past(asked.backend.scheme.cache(asked.layers))
        for piece in np.split(document, 3):
            asked._pass(asked.as_batch(piece), past)
        by_hand = asked._pass(asked.as_batch(asks), past).float()
    assert torch.equal(pieces, by_hand)


@pytest.mark.slow
@pytest.mark.parametrize("options", [*ALL, variant("bits=4,residual=4", "quanto")])
def test_questions_of_a_document_are_answered_as_if_it_were_read_for_each(options: str) -> None:
    asked = reader(options)
    document, asks = some_ids(60), [some_ids(n, n) for n in (1, 9, 140, 9)]
    shared = asked.read(document)
    together = [
        shared.ask(question(ids), number == len(asks) - 1) for number, ids in enumerate(asks)
    ]
    for ids, answer in zip(asks, together, strict=True):
        alone = asked.read(document).ask(question(ids), True)
        assert answer.token_ids == alone.token_ids and answer.cache_bytes == alone.cache_bytes
    assert [answer.reused_tokens for answer in together] == [0, 60, 60, 60]


# -- what it answers --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fewer_bits_change_logits_more_and_8_bits_answer_as_full_does(dtype: str) -> None:
    if any(importlib.util.find_spec(module) is None for module in NEEDED.values()):
        pytest.skip("pip install 'ahn-bench[quantized]'")
    rows = pocket_rows("pocket_qa@4", 2)
    whole = full(dtype=dtype)
    expected = [first_logits(whole, document, asks) for document, asks, _ in rows]
    errors = []
    for bits in (8, 4, 2):
        asked = reader(f"bits={bits},backend=hqq", dtype=dtype)
        found = [first_logits(asked, document, asks) for document, asks, _ in rows]
        errors.append(
            np.mean([float((a - b).abs().mean()) for a, b in zip(found, expected, strict=True)])
        )
        if bits == 8:
            for document, asks, _ in rows:
                answers = [r.read(document).ask(question(asks), True) for r in (asked, whole)]
                assert answers[0].token_ids == answers[1].token_ids
    assert errors[0] * 3 < errors[1] < errors[2] / 2


@pytest.mark.parametrize("options", ALL)
def test_the_pocket_model_still_finds_facts(options: str) -> None:
    asked, whole = reader(options), full()
    for document, asks, answer in pocket_rows("pocket_qa@4", 3):
        found = [r.read(document).ask(question(asks), True).text.strip() for r in (asked, whole)]
        assert answer in found[1] and found[0] == found[1]


# -- budgets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [*ALL, variant("bits=4,chunk=30", "quanto")])
def test_a_budget_is_never_passed_and_filled_up_to_a_token(options: str) -> None:
    asked = reader(options, budget="0.2")
    made = asked.backend
    assert made.sizable
    step = 16 if "axis_key=-1" in options else 1  # 4 heads x 16 tokens share groups of 64
    for tokens, budget in ((100, 60_000), (100, 20_000), (33, 20_001), (7, 20_000), (50, 1 << 20)):
        answer = asked.read(some_ids(tokens), budget).ask(question(some_ids(5)), True)
        kept = made.kept(tokens, budget)
        assert answer.kept_tokens == kept
        assert answer.document_bytes is not None and answer.document_bytes <= budget
        if kept < tokens:
            assert made._bytes(int(kept) + step, 0) > budget
        cost = made.cost(tokens + 5, answer.generated_tokens or 0, tokens, budget)
        assert answer.cache_bytes == cost.cache_bytes


@pytest.mark.parametrize(
    "options",
    [variant("bits=8,backend=fp8", "fp8"), variant("bits=2,axis_key=-1,axis_value=-1", "quanto")],
)
def test_first_and_last_tokens_stay_where_others_are_dropped(options: str) -> None:
    document = some_ids(50)
    asked, whole = reader(f"{options},keep=10,sinks=3"), full()
    with torch.inference_mode():
        past, expected = asked.fill(document), whole.fill(document)
        kept = [0, 1, 2, *range(43, 50)]
        layer = asked.backend.scheme.layer()
        last = expected.cache.layers[-1]
        layer.update(last.keys[:, :, kept], last.values[:, :, kept])
        for found, wanted in zip(states(past.cache.layers[-1]), states(layer), strict=True):
            assert torch.equal(found, wanted)  # quantised once, after the others were dropped
        assert past.seen == 50  # the question stands where it stood
    assert asked.backend.fit(50, None) == Fit(10, 10, 0, again=True)
    assert asked.backend.fit(10, None) == Fit(10, 10, 0, again=False)


def test_dropped_tokens_of_a_document_in_chunks_were_read_quantised() -> None:
    document = some_ids(50)
    asked = reader("bits=8,backend=fp8,keep=10,chunk=20")
    every = reader("bits=8,backend=fp8,chunk=20")
    with torch.inference_mode():
        past, expected = asked.fill(document), every.fill(document)
        kept = [0, 1, 2, 3, *range(44, 50)]
        wanted = states(expected.cache.layers[1])[0][:, :, kept]
        torch.testing.assert_close(states(past.cache.layers[1])[0], wanted, rtol=0.07, atol=1e-3)


@pytest.mark.parametrize("sinks", [0, 2, 30])
def test_sinks_are_never_more_than_what_stays(sinks: int) -> None:
    asked = reader(f"bits=8,backend=fp8,sinks={sinks}", budget="0.2")
    places = asked._first_and_last(50, 5)
    wanted = [*range(min(sinks, 5)), *range(50 - 5 + min(sinks, 5), 50)]
    assert places is not None and places.tolist() == wanted
    assert asked._first_and_last(5, 5) is None


def test_tokens_that_wait_are_quantised_where_the_budget_wants_it() -> None:
    # 30 and 30 tokens: the second piece waits in full precision, which does not fit
    made = backend("bits=8,backend=hqq,chunk=30", budget="0.2")
    assert made.fit(60, made._bytes(60, 0)) == Fit(60, 60, 0, again=True)
    assert made.fit(60, made._bytes(30, 30)) == Fit(60, 30, 30, again=False)


def test_a_budget_below_a_token_is_refused_before_the_run() -> None:
    made = backend("bits=8,backend=fp8", budget="0.2")
    with pytest.raises(InputError, match=r"1,000 bytes hold no token: the first takes 1,632"):
        made.kept(10, 1000)


def test_a_chosen_size_is_not_the_budgets() -> None:
    made = backend("bits=8,backend=fp8,keep=10", budget="0.2")
    assert not made.sizable and made.document_bytes(50) == made._bytes(10, 0)
    assert made.fit(10, 5) == made.fit(10, None)
    assert made.cost(60, 1, 50, 5).cache_bytes == made._bytes(19, 0) + made._bytes(1, 0)


# -- cost -------------------------------------------------------------------------------------


def test_flops_are_full_attentions_less_what_is_not_seen() -> None:
    settings = RunSettings(model="pocket", dtype="float32", device="cpu")
    stock = StockBackend(parse_request("hf"), settings)
    assert backend("bits=8,backend=fp8").cost(60, 4, 50).flops == stock.cost(60, 4).flops
    dropped = backend("bits=8,backend=fp8,keep=10").cost(60, 4, 50).flops
    whole = stock.cost(60, 4).flops
    assert dropped is not None and whole is not None
    # 10 tokens of the question and 3 that were generated do not see 40 tokens; 3 layers, 4 heads
    assert whole - dropped == 13 * 40 * 4 * 4 * 64 * 3


# -- identity ---------------------------------------------------------------------------------


def test_everything_that_changes_an_answer_is_in_the_identity() -> None:
    plain = dict(backend("bits=8,backend=fp8").identity())
    assert plain["chunk"] == "whole" and plain["backend_version"]
    seen = [plain]
    for options in (
        "bits=8,backend=fp8,chunk=64", "bits=8,backend=fp8,keep=9", "bits=8,backend=fp8,sinks=9",
        "bits=8", "bits=8,group=32", "bits=8,axis_key=0", "bits=8,axis_value=0",
        "bits=8,residual=64", "bits=4", "bits=4,backend=hqq", "bits=2",
    ):  # fmt: skip
        name = "fp8" if "fp8" in options else "hqq" if "bits=8" in options else "quanto"
        if name in NEEDED and importlib.util.find_spec(NEEDED[name]) is None:
            continue
        found = dict(backend(options).identity())
        assert found not in seen, options
        seen.append(found)
    assert dict(backend("bits=8,backend=fp8,chunk=whole").identity()) == plain


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("backend=fp8", r"how many bits\? \(bits=8, bits=4 or bits=2\)"),
        ("bits=3", "bits: '3' is none of 8, 4, 2"),
        ("bits=4,backend=int4", "backend: 'int4' is none of hqq, quanto, fp8"),
        ("bits=4,backend=fp8", "fp8 has 8 bits; 4 bits: backend=hqq, quanto"),
        ("bits=8,backend=quanto", "quanto has 4, 2 bits; 8 bits: backend=hqq, fp8"),
        ("bits=8,backend=fp8,group=32", "group: fp8 has a scale for each token and head"),
        ("bits=8,backend=fp8,residual=0", "residual: fp8 has a scale"),
        ("bits=8,axis_key=-1", "axis_key: of hqq it is 0 or 1"),
        ("bits=4,axis_value=1", "axis_value: of quanto it is -1 or 0"),
        ("bits=4,axis_value=2", "axis_value: '2' is none of 0, 1"),
        ("bits=4,group=12", "group: '12' is no multiple of 8"),
        ("bits=4,group=0", "group: '0' is no multiple of 8"),
        ("bits=4,residual=-1", "residual: '-1' is below 0"),
        ("bits=4,keep=0", "keep: '0' is below 1"),
        ("bits=4,keep=3,sinks=4", "more sinks than tokens that are kept"),
        ("bits=4,chunk=0", "chunk: at least 1 token"),
        ("bits=4,chunk=all", "chunk: 'all' is not a number of tokens"),
        ("bits=4,bit=3", "quantized has no option 'bit' .*did you mean"),
        ("bits=4,window_size=3", r"no option 'window_size' \(known: .*keep, press\)"),
    ],
)
def test_what_cannot_be_is_refused(options: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        backend(options)


@pytest.mark.parametrize(
    ("options", "module", "package"),
    [("bits=8", "hqq", "hqq"), ("bits=4", "optimum.quanto", "optimum-quanto")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, options: str, module: str, package: str
) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(InputError) as caught:
        backend(options)
    assert f"needs {package}: pip install 'ahn-bench[quantized]'" in str(caught.value)


def test_a_package_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(scheme: Scheme) -> Any:
        raise ImportError("no module named termcolor")

    monkeypatch.setattr(Scheme, "layer", broken)
    with pytest.raises(InputError, match=r"fp8 cannot be used \(no module named termcolor\)"):
        backend("bits=8,backend=fp8")


@pytest.mark.parametrize(
    ("kind", "own", "message"),
    [
        ("Gemma3Text", {"sliding_window": 32, "sliding_window_pattern": 2},
         r"here 1 of 2 do not \(layer 0: DynamicSlidingWindowLayer\); ask it as hf"),
        ("Mistral", {"sliding_window": 32}, "here 2 of 2 do not"),
        ("Mamba", {"state_size": 8}, "mamba cannot be quantized|full attention"),
        ("Lfm2", {"full_attn_idxs": [1], "layer_types": ["conv", "full_attention"]},
         r"here 1 of 2 do not \(layer 0: LinearAttentionLayer\)"),
        ("Rwkv", {}, "rwkv cannot be quantized: it does not take transformers' cache"),
    ],
)  # fmt: skip
def test_models_that_do_not_keep_all_keys_are_refused_without_weights(
    tmp_path: Path, kind: str, own: dict[str, Any], message: str
) -> None:
    config = getattr(transformers, f"{kind}Config")(**(COMMON | own))
    config.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    settings = RunSettings(model=str(tmp_path), dtype="float32", device="cpu")
    with pytest.raises(InputError, match=message):
        kv_shapes(settings)


def test_layers_are_looked_at_before_the_model_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers.MistralConfig(**(COMMON | {"sliding_window": 32})).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    monkeypatch.setattr(quantized, "AutoModelForCausalLM", None)
    with pytest.raises(InputError, match="here 2 of 2 do not"):
        kv_shapes(RunSettings(model=str(tmp_path), dtype="float32", device="cpu"))
