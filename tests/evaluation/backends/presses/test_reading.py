"""Every press of kvpress on stock models: what is kept and seen, and what it leaves behind."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ahn import POCKET_PATH
from common.errors import InputError
from evaluation.backends.cache_bytes import held
from evaluation.backends.presses.library import (
    INSTALL,
    TRAITS,
    kvpress,
    press_names,
    read_request,
)
from evaluation.backends.presses.masks import PressedCache, chunk_mask
from evaluation.backends.presses.reading import PressedModel
from evaluation.backends.presses.room import Layers, bytes_held, kept_of
from evaluation.backends.presses.shims import prefix_of_template, text_model
from evaluation.backends.requests import parse_request

if find_spec("kvpress") is None:
    pytest.skip(f"kvpress is not installed: {INSTALL}", allow_module_level=True)

TOKENS, KEEP, ASKED = 310, 166, 9
SIZED = [
    "adakv,inner=snapkv",
    "block,inner=knorm",
    "cap",
    "chunk,inner=knorm,chunk_length=100",
    "chunkkv,inner=knorm",
    "compactor",
    "composed,inner=snapkv+think,think.key_channel_compression_ratio=0.5",
    "criticaladakv,inner=snapkv",
    "criticalkv,inner=snapkv",
    "cur",
    "entropygatedchunkkv,inner=snapkv",
    "expectedattention",
    "expectedattentionstats,stats_folder=FOLDER",
    "fastkvzip",
    "fastkvzip,layerwise=true",
    "keydiff",
    "keyrerotation,inner=streamingllm",
    "knorm",
    "kvcompose",
    "kvcompose,structured=false",
    "kvgrad",
    "kvgrad,layerwise=true",
    "kvzap",
    "kvzip",
    "kvzip,layerwise=true",
    "lagkv,lag_size=32",
    "leveragescore",
    "lukv",
    "merging,inner=knorm",
    "noncausalattn",
    "observedattention",
    "pyramidkv",
    "pyramidkv,window_size=16",
    "qfilter",
    "random",
    "random,seed=3",
    "snapkv",
    "streamingllm",
    "tova",
]
OWN_SIZE = {
    "dms,inner=knorm,threshold=-0.6": None,
    "duoattention,head_compression_ratio=0.5": None,
    "perlayercompression,inner=knorm,compression_ratios=0.5/0.6/0.7": (155 + 124 + 93) / 3,
    "simlayerkv,lazy_threshold=0.001,n_recent=64": 4 + 64 - 1,
    "think,key_channel_compression_ratio=0.5": TOKENS,
}
COARSE = {"chunk": 4, "chunkkv": 20, "kvcompose": 1, "lukv": 0.011 * TOKENS}
"""Tokens a layer by which a press may stay below what it may keep; all others by less than one."""

SIZES: dict[str, Any] = {
    "vocab_size": 576,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
}


def config_of(family: str) -> Any:
    if family == "gemma3":
        kinds = ["sliding_attention", "full_attention"] * 2
        text = SIZES | {"num_hidden_layers": 4, "head_dim": 16, "sliding_window": 32}
        vision = {
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        }  # fmt: skip
        return Gemma3Config(text_config=text | {"layer_types": kinds}, vision_config=vision)
    made: dict[str, Any] = {
        "llama": LlamaConfig, "mistral": MistralConfig, "phi3": Phi3Config,
        "qwen2": Qwen2Config, "qwen3": Qwen3Config,
    }  # fmt: skip
    more: dict[str, dict[str, Any]] = {
        "mistral": {"sliding_window": None},
        "qwen3": {"head_dim": 32},
    }
    return made[family](**SIZES, **more.get(family, {}))


def model_of(family: str = "qwen2", eager: bool = False) -> Any:
    torch.manual_seed(0)
    attention = "eager" if eager else "sdpa"
    model = AutoModelForCausalLM.from_config(config_of(family), attn_implementation=attention)
    model.config.name_or_path = str(POCKET_PATH)  # KVzip loads the tokenizer from there
    return model.eval()


def some(tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, SIZES["vocab_size"], (1, tokens), generator=generator)


DOCUMENT, QUESTION = some(TOKENS, 0), some(ASKED, 1)


def pressed(text: str, model: Any | None = None, seed: int = 0) -> tuple[PressedModel, Any]:
    spec, size = read_request(parse_request(f"kvpress:{text}"))
    model = model or model_of(eager=spec.eager)
    return PressedModel(spec, size, model, seed), model


def read(
    reader: PressedModel, budget: int | None = None, ids: torch.Tensor = DOCUMENT
) -> PressedCache:
    cache = reader.new_cache()
    reader.read(ids, cache, budget)
    return cache


@torch.inference_mode()
def answer(model: Any, cache: PressedCache, ids: torch.Tensor = QUESTION, after: int = 0) -> Any:
    start = (TOKENS if cache.next_position is None else cache.next_position) + after
    positions = torch.arange(start, start + ids.shape[1])[None]
    return model(input_ids=ids, past_key_values=cache, position_ids=positions).logits


@pytest.fixture(autouse=True)
def made_up_downloads(monkeypatch, tmp_path, request):
    """Statistics, filters, gates, patterns and curves as kvpress would load them."""
    from kvpress.presses import (
        duo_attention_press,
        expected_attention_with_stats,
        fastkvzip_press,
        kvzap_press,
        lukv_press,
        qfilter_press,
    )

    torch.manual_seed(1)
    layers, heads, head_dim = 3, 2, 16
    stats = expected_attention_with_stats.ExpectedAttentionStats(
        layers, 4, head_dim, "data", "model", 1, 1, 4
    )
    stats.query_mean.data.normal_()
    stats.query_cov.data.copy_(torch.eye(head_dim).expand_as(stats.query_cov))
    stats.save_pretrained(tmp_path / "stats")
    filters = torch.randn(layers, heads, head_dim)
    monkeypatch.setattr(
        qfilter_press.QFilterPress, "load_q_filters", staticmethod(lambda name: filters)
    )
    config = kvzap_press.KVzapConfig(input_dim=64, output_dim=2, n_modules=3, hidden_dim=8)
    surrogate = kvzap_press.KVzapModel(config)
    monkeypatch.setattr(
        kvzap_press.KVzapModel, "from_pretrained", classmethod(lambda cls, name: surrogate)
    )
    gates = [fastkvzip_press.FastKVzipGate(n, 64, 2, 2, torch.float32) for n in range(3)]
    monkeypatch.setattr(fastkvzip_press, "load_fastkvzip", lambda model_name, device: gates)
    pattern = np.arange(6.0).reshape(3, 2)
    monkeypatch.setattr(
        duo_attention_press.DuoAttentionPress,
        "load_attention_pattern",
        staticmethod(lambda model: (4, 60, pattern)),
    )
    steps = np.arange(1, 100).reshape(99, 1, 1) / 100
    curves = np.clip(steps + np.array([-0.004, 0.004]).reshape(1, 1, 2), 0, 1).repeat(3, 1)
    monkeypatch.setattr(lukv_press, "load_budget_curve", lambda url: curves)
    monkeypatch.setitem(
        lukv_press.BUDGET_CURVE_URLS, (str(POCKET_PATH), "ExpectedAttentionPress"), "url"
    )
    return tmp_path / "stats"


def test_every_press_of_the_library_is_tried_here_or_refused():
    tried = {text.split(",")[0] for text in [*SIZED, *OWN_SIZE]}
    names = press_names()
    assert set(names.values()) == set(TRAITS), "no press without a line of what is known about it"
    for name, cls in names.items():
        assert (name in tried) != bool(TRAITS[cls].refused), name


@pytest.mark.parametrize("name", sorted(n for n, c in press_names().items() if TRAITS[c].refused))
def test_a_press_that_cannot_work_here_is_refused_with_the_reason(name):
    with pytest.raises(InputError) as caught:
        read_request(parse_request(f"kvpress:{name},keep=9"))
    assert TRAITS[press_names()[name]].refused in str(caught.value)


@pytest.mark.parametrize("text", SIZED)
def test_a_press_keeps_what_it_may_and_answers(text, made_up_downloads):
    text = text.replace("FOLDER", str(made_up_downloads))
    reader, model = pressed(f"{text},keep={KEEP}")
    cache = read(reader)
    kept, less = reader.kept_tokens(cache), COARSE.get(text.split(",")[0], 0)
    assert KEEP - less - 1 < kept <= KEEP
    logits = answer(model, cache)
    assert logits.isfinite().all()
    whole = answer(model, reader_of_whole(model))
    assert not torch.allclose(logits, whole, atol=1e-3), "it dropped nothing that matters"


def reader_of_whole(model: Any) -> PressedCache:
    cache = PressedCache(model.config)
    with torch.inference_mode():
        model.model(input_ids=DOCUMENT, past_key_values=cache)
    return cache


@pytest.mark.parametrize(("text", "expected"), OWN_SIZE.items())
def test_a_press_with_a_size_of_its_own_keeps_what_its_settings_say(text, expected):
    reader, model = pressed(text)
    cache = read(reader)
    kept = reader.kept_tokens(cache)
    if expected is None:
        assert 0 < kept < TOKENS
    else:
        assert kept == pytest.approx(expected)
    logits = answer(model, cache)
    assert logits.isfinite().all()
    assert not torch.allclose(logits, answer(model, reader_of_whole(model)), atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "qwen3", "gemma3"])
@pytest.mark.parametrize(
    "text",
    ["snapkv", "pyramidkv,window_size=16", "expectedattention", "adakv,inner=knorm",
     "criticalkv,inner=snapkv", "keyrerotation,inner=knorm", "leveragescore", "tova"],
)  # fmt: skip
def test_families(family, text):
    model = model_of(family)
    reader, _ = pressed(f"{text},keep={KEEP}", model)
    cache = read(reader)
    layers = Layers.of(model.config, 4)
    sliding = 31 if family == "gemma3" else 0
    expected = KEEP if not sliding else (2 * KEEP + 2 * sliding) / 4
    assert expected - 1 < reader.kept_tokens(cache) <= expected
    assert predicted(reader, layers) == held(cache).used
    assert answer(model, cache).isfinite().all()


def predicted(reader: PressedModel, layers: Layers, budget: int | None = None) -> int | None:
    kept = kept_of(reader.spec, reader.size, layers, TOKENS, budget)
    return None if kept is None else bytes_held(kept, layers, TOKENS)


@pytest.mark.parametrize("text", [*SIZED, *OWN_SIZE])
def test_bytes_by_arithmetic_are_those_that_are_held(text, made_up_downloads):
    size = "" if text in OWN_SIZE else f",keep={KEEP}"
    reader, model = pressed(text.replace("FOLDER", str(made_up_downloads)) + size)
    bytes_held = held(read(reader)).used
    assert predicted(reader, Layers.of(model.config, 4)) in (None, bytes_held)


@pytest.mark.parametrize("text", ["snapkv", "pyramidkv,window_size=8", "knorm", "kvcompose"])
@pytest.mark.parametrize("budget", [40_000, 99_999, 100_001, 123_456])
def test_a_budget_of_bytes_is_filled_and_never_exceeded(text, budget):
    reader, model = pressed(f"{text},window_size=16" if text == "snapkv" else text)
    bytes_held = held(read(reader, budget)).used
    of_a_token = 3 * 2 * 2 * 16 * 4
    assert budget - of_a_token < bytes_held <= budget


def test_a_document_that_fits_is_kept_whole():
    reader, model = pressed(f"snapkv,keep={TOKENS}")
    cache = read(reader)
    assert (reader.kept_tokens(cache), cache.pressed) == (TOKENS, False)
    assert torch.equal(answer(model, cache), answer(model, reader_of_whole(model)))


@pytest.mark.parametrize("text", ["snapkv,ratio=0", "knorm,ratio=0.0"])
def test_nothing_dropped_is_stock_generation(text):
    model = AutoModelForCausalLM.from_pretrained(POCKET_PATH).eval()
    reader, _ = pressed(text, model)
    cache = read(reader)
    prompt = torch.cat([DOCUMENT, QUESTION], 1)
    with torch.inference_mode():
        expected = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    found, ids, after = [], QUESTION, 0
    for _ in range(8):
        logits = answer(model, cache, ids, after)
        after, ids = after + ids.shape[1], logits[:, -1:].argmax(-1)
        found.append(int(ids))
    assert found == expected[0, prompt.shape[1] :].tolist()


def by_hand(model: Any, cache: PressedCache) -> torch.Tensor:
    """The logits of the question by attention written out: each query over the slots it may see."""
    start = TOKENS if cache.next_position is None else cache.next_position
    positions = torch.arange(start, start + ASKED)[None]
    x = model.model.embed_tokens(QUESTION)
    cos, sin = model.model.rotary_emb(x, positions)
    for number, layer in enumerate(model.model.layers):
        attention, y = layer.self_attn, layer.input_layernorm(x)
        split = (1, ASKED, -1, attention.head_dim)
        q, k, v = (
            projection(y).view(split).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        held_k, held_v = cache.layers[number].keys, cache.layers[number].values
        outputs = []
        for head in range(q.shape[1]):
            kv = head // attention.num_key_value_groups
            seen = torch.ones(held_k.shape[2], dtype=torch.bool)
            if number in cache.masked:
                seen = ~cache.masked[number][kv]
            rows = []
            for i in range(ASKED):
                keys = torch.cat([held_k[0, kv][seen], k[0, kv, : i + 1]])
                values = torch.cat([held_v[0, kv][seen], v[0, kv, : i + 1]])
                weights = F.softmax(keys @ q[0, head, i] * attention.head_dim**-0.5, 0)
                rows.append(weights @ values)
            outputs.append(torch.stack(rows))
        joined = torch.stack(outputs, 1).reshape(1, ASKED, -1)
        x = x + attention.o_proj(joined)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.norm(x))


@pytest.mark.parametrize(
    "text",
    ["snapkv", "pyramidkv,window_size=16", "adakv,inner=snapkv", "kvzip", "kvcompose",
     "keyrerotation,inner=streamingllm", "observedattention", "kvcompose,structured=false"],
)  # fmt: skip
@torch.inference_mode()
def test_a_question_sees_exactly_the_slots_that_are_kept(text):
    reader, model = pressed(f"{text},keep={KEEP}")
    cache = read(reader)
    if text.startswith("pyramid"):
        assert len({layer.keys.shape[2] for layer in cache.layers}) == 3, "layers differ"
    expected = by_hand(model, cache)
    torch.testing.assert_close(answer(model, cache), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("text", ["pyramidkv,window_size=16", "adakv,inner=knorm"])
def test_a_question_read_token_by_token_is_read_alike(text):
    reader, model = pressed(f"{text},keep={KEEP}")
    at_once = answer(model, read(reader))
    cache = read(reader)
    one_by_one = [answer(model, cache, QUESTION[:, i : i + 1], i) for i in range(ASKED)]
    torch.testing.assert_close(torch.cat(one_by_one, 1), at_once, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "text", ["snapkv", "knorm", "expectedattention", "tova", "pyramidkv,window_size=16",
             "keydiff", "lagkv,lag_size=32", "streamingllm", "cur", "cap", "noncausalattn",
             "criticalkv,inner=snapkv", "chunkkv,inner=knorm", "entropygatedchunkkv,inner=knorm",
             "keyrerotation,inner=knorm", "merging,inner=knorm", "block,inner=knorm"]
)  # fmt: skip
def test_what_is_kept_is_what_kvpress_keeps_by_itself(text):
    """`with press(model)`, given the argument that kvpress expects and transformers passes on."""
    reader, model = pressed(f"{text},keep={KEEP}", model_of("llama"))
    ours = read(reader)
    press, theirs = reader._press, DynamicCache(config=model.config)
    assert press.compression_ratio > 0
    with torch.inference_mode(), press(model):
        positions = torch.arange(TOKENS)
        model.model(input_ids=DOCUMENT, past_key_values=theirs, cache_position=positions)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(mine.keys, other.keys)
        torch.testing.assert_close(mine.values, other.values)


@pytest.mark.parametrize("text", ["adakv,inner=snapkv", "kvzip", "criticaladakv,inner=knorm"])
def test_masked_tokens_are_those_that_kvpress_hides_with_keys_of_its_own(text):
    reader, model = pressed(f"{text},keep={KEEP}", model_of("llama"))
    document = DOCUMENT.clone()  # in the chat template, as kvpress expects it
    prefix = prefix_of_template(str(POCKET_PATH))
    assert len(prefix) > 0
    document[0, : len(prefix)] = torch.tensor(prefix)
    ours = answer(model, read(reader, None, document), QUESTION[:, :1])
    press, cache = reader._press, DynamicCache(config=model.config)
    before = dict(ALL_ATTENTION_FUNCTIONS)
    try:
        kvpress().patch_attention_functions()
        with torch.inference_mode():
            with press(model):
                positions = torch.arange(TOKENS)
                model.model(input_ids=document, past_key_values=cache, cache_position=positions)
            theirs = model(
                input_ids=QUESTION[:, :1],
                past_key_values=cache,
                position_ids=torch.tensor([[TOKENS]]),
            ).logits
    finally:
        for name in before:
            ALL_ATTENTION_FUNCTIONS.pop(name, None)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("in_template", [True, False])
def test_kvzip_scores_the_beginning_of_a_document_outside_of_the_chat_template(in_template):
    reader, _ = pressed(f"kvzip,n_sink=0,keep={KEEP}")
    prefix = prefix_of_template(str(POCKET_PATH))
    document = DOCUMENT.clone()
    if in_template:
        document[0, : len(prefix)] = torch.tensor(prefix)
    cache = read(reader, None, document)
    unscored = torch.stack([cache.masked[n][:, : len(prefix)] for n in range(3)])
    assert bool(unscored.all()) == in_template


@pytest.mark.parametrize("text", [*SIZED, *OWN_SIZE])
def test_a_press_leaves_nothing_behind(text, made_up_downloads):
    size = "" if text in OWN_SIZE else f",keep={KEEP}"
    functions = dict(ALL_ATTENTION_FUNCTIONS)
    reader, model = pressed(text.replace("FOLDER", str(made_up_downloads)) + size)

    def state() -> Any:
        modules = [(name, sorted(module.__dict__)) for name, module in model.named_modules()]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        settings = dict(text_model(model).config.__dict__)
        grads = [p.requires_grad for p in model.parameters()]
        return modules, hooks, settings, grads, torch.get_rng_state().tolist()

    before = state()
    first = read(reader)
    assert state() == before
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions
    again = read(reader)
    for one, other in zip(first.layers, again.layers, strict=True):
        assert torch.equal(one.keys, other.keys), "nor in the press"
    assert all(torch.equal(mask, again.masked[n]) for n, mask in first.masked.items())


def test_a_press_that_fails_leaves_nothing_behind(monkeypatch):
    reader, model = pressed(f"kvcompose,keep={KEEP}")
    forward = type(model.model).forward
    with monkeypatch.context() as patch:

        def fails(*args: Any, **kwargs: Any) -> Any:
            raise ValueError("it fails")

        patch.setattr(model.model.layers[1].mlp, "forward", fails)
        with pytest.raises((InputError, AttributeError)):
            read(reader)
    assert model.config._attn_implementation == "sdpa"
    assert model.model.forward.__func__ is forward
    assert not any(m._forward_hooks for m in model.modules())
    assert reader.kept_tokens(read(reader)) > KEEP - 1


@pytest.mark.parametrize("text", ["random", "leveragescore", "cur,use_random_leverage=true"])
def test_a_press_that_draws_draws_alike_for_each_document(text):
    reader, model = pressed(f"{text},keep={KEEP}")
    first = [layer.keys for layer in read(reader).layers]
    torch.rand(3)
    assert all(torch.equal(a, b.keys) for a, b in zip(first, read(reader).layers, strict=True))
    other, _ = pressed(f"{text},keep={KEEP}", model, seed=1)
    assert not torch.equal(first[0], read(other).layers[0].keys), "the run's seed decides"


def test_what_a_press_loads_is_loaded_with_what_it_asks_of_the_config(monkeypatch, capsys):
    from kvpress.presses import fastkvzip_press

    asked: list[int] = []

    def gates(model_name: str, device: Any) -> Any:
        asked.append(model.config.head_dim)
        print("load gate", model_name)
        return [fastkvzip_press.FastKVzipGate(n, 64, 2, 2, torch.float32) for n in range(3)]

    monkeypatch.setattr(fastkvzip_press, "load_fastkvzip", gates)
    model = model_of("qwen2")
    reader, _ = pressed(f"fastkvzip,keep={KEEP}", model)
    read(reader)
    assert asked == [16], "once, with a size that Qwen2's configuration does not say"
    assert getattr(model.config, "head_dim", None) is None
    assert capsys.readouterr().out == ""


def test_what_a_press_needs_and_cannot_be_had_is_said(monkeypatch):
    from kvpress.presses import qfilter_press

    def missing(name: str) -> Any:
        raise OSError("there is no such repository")

    monkeypatch.setattr(qfilter_press.QFilterPress, "load_q_filters", staticmethod(missing))
    with pytest.raises(InputError, match="filters trained for the model.*no such repository"):
        pressed("qfilter,keep=9")


@pytest.mark.parametrize(
    ("text", "budget", "said"),
    [
        ("snapkv", 20_000, "fewer than the 64 that it always keeps"),
        ("knorm", 700, "holds no token of this model: a token takes 768 bytes"),
        ("chunk,inner=snapkv,chunk_length=300", 200_000, "should be greater than the window size"),
        ("kvcompose,keep_token_lower_bound=200", 100_000, "keeps at least"),
    ],
)
def test_a_document_that_cannot_be_pressed_so_far_is_an_error_that_says_why(text, budget, said):
    reader, _ = pressed(text)
    with pytest.raises(InputError, match=said):
        read(reader, budget)


def test_the_mask_of_a_chunk():
    masked = torch.tensor([[True, False], [False, False]])
    least = torch.finfo(torch.float32).min
    mask = chunk_mask(3, 2, masked, 4, torch.float32, torch.device("cpu"))
    assert mask is not None
    assert mask.shape == (1, 4, 2, 5)
    assert mask[0, 0].tolist() == [[least, 0, 0, 0, least], [least, 0, 0, 0, 0]]
    assert torch.equal(mask[0, 0], mask[0, 1]), "two query heads share a key/value head"
    assert mask[0, 2].tolist() == [[0, 0, 0, 0, least], [0, 0, 0, 0, 0]]
    assert chunk_mask(3, 1, None, 4, torch.float32, torch.device("cpu")) is None
