"""Any causal language model of transformers: its answers, its bytes, its self-check."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from common.errors import InputError
from evaluation.backends.base import Question, RunSettings
from evaluation.backends.cache_bytes import held
from evaluation.backends.requests import parse_request
from evaluation.backends.stock import Past, StockBackend, StockReader, slots_of
from tests.evaluation.backends.architectures import MODELS, tiny
from tests.evaluation.conftest import byte_tokenizer, records_of

DOCUMENT = np.random.default_rng(0).integers(3, 63, 75).astype(np.int32)
QUESTIONS = [np.random.default_rng(n).integers(3, 63, 7).astype(np.int32) for n in (1, 2)]
GREEDY = GenerationConfig(
    max_new_tokens=5, do_sample=False, num_beams=1, eos_token_id=[2], pad_token_id=0
)


class Numbers:
    """A tokenizer whose texts are the ids."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def reader(name: str, **options: Any) -> StockReader:
    return StockReader(tiny(name), Numbers(), **options)


def generated(model: Any, question: Any, settings: GenerationConfig = GREEDY) -> list[int]:
    prompt = torch.from_numpy(np.concatenate([DOCUMENT, question]).astype(np.int64))[None]
    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
    )
    return output[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("name", list(MODELS))
def test_answers_are_those_of_generate_on_the_whole_prompt(name: str) -> None:
    stock = reader(name)
    document = stock.read(DOCUMENT)
    answers = [
        document.ask(Question(question, GREEDY), last=last)
        for question, last in zip([*QUESTIONS, QUESTIONS[0]], [False, False, True], strict=True)
    ]
    expected = [generated(stock.model, question) for question in QUESTIONS]
    assert [answer.token_ids for answer in answers] == [*expected, expected[0]]
    assert answers[0].reused_tokens == 0
    assert answers[1].reused_tokens == (len(DOCUMENT) if stock.reuses else 0)
    for answer in answers:
        assert answer.cache_bytes and answer.cache_stored
        assert answer.cache_stored >= answer.cache_bytes
        if stock.reuses:
            assert answer.document_bytes and answer.document_bytes <= answer.cache_bytes
        else:
            assert answer.document_bytes is None, "nothing was read yet"


def test_models_that_go_on_wrongly_are_found() -> None:
    """Mamba of transformers forgets what its convolution holds when several tokens come at once."""
    assert reader("llama").reading == "one chunk"
    assert reader("llama").fallback is None and "fallback" not in reader("llama").describe()
    stock = reader("mamba")
    assert stock.reading == "token by token"
    assert stock.differences["one chunk"] > 0.05
    assert stock.fallback and stock.describe()["fallback"] == stock.fallback
    assert stock.describe()["questions_read"] == stock.reading


def spoilt(name: str, when: Any) -> Any:
    """A model whose logits are off where `when(tokens of the pass, tokens before)` says so."""
    model = tiny(name)
    forward = model.forward

    def wrong(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        output = forward(*args, past_key_values=past_key_values, **kwargs)
        if when(kwargs["input_ids"].shape[1], before):
            output.logits = output.logits + torch.randn_like(output.logits)
        return output

    model.forward = wrong
    wrong.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return model


def test_a_question_is_read_token_by_token_where_a_chunk_is_wrong() -> None:
    stock = StockReader(spoilt("llama", lambda new, before: new > 1 and before), Numbers())
    assert stock.reading == "token by token" and stock.reuses
    answer = stock.read(DOCUMENT).ask(Question(QUESTIONS[0], GREEDY))
    assert answer.token_ids == generated(tiny("llama"), QUESTIONS[0])
    with pytest.raises(InputError, match="chunk=16: .* leave chunk out"):
        StockReader(spoilt("llama", lambda new, before: new > 1 and before), Numbers(), chunk=16)


def test_the_whole_prompt_is_read_where_no_continuation_is_right() -> None:
    def continued(new: int, before: int) -> bool:
        return 0 < before < 80  # decoding, beyond the prompts here, is right

    stock = StockReader(spoilt("llama", continued), Numbers())
    assert stock.reading == "whole prompt" and not stock.reuses
    document = stock.read(DOCUMENT)
    for question in QUESTIONS:
        answer = document.ask(Question(question, GREEDY), last=False)
        assert answer.token_ids == generated(tiny("llama"), question)
        assert (answer.reused_tokens, answer.document_bytes, answer.kept_tokens) == (0, None, None)
        assert answer.cache_bytes == (len(DOCUMENT) + 7 + 4) * 2 * 2 * 16 * 4 * 4


@pytest.mark.parametrize(
    "own",
    [
        {"repetition_penalty": 5.0},
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.01},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 5, "eos_token_id": list(range(40))},
        {"suppress_tokens": list(range(30))},
        {"max_new_tokens": 1},
    ],
)
def test_all_that_settings_ask_for_is_done(own: dict[str, Any]) -> None:
    settings = GenerationConfig(**(GREEDY.to_diff_dict() | {"pad_token_id": 0} | own))
    stock = reader("qwen2")
    torch.manual_seed(5)
    expected = generated(tiny("qwen2"), QUESTIONS[0], settings) if not settings.do_sample else None
    answer = stock.read(DOCUMENT).ask(Question(QUESTIONS[0], settings, seed=7))
    if expected is None:
        model = tiny("qwen2")
        torch.manual_seed(7)
        expected = generated(model, QUESTIONS[0], settings)
    assert answer.token_ids == expected


def test_several_beams_are_refused() -> None:
    settings = GenerationConfig(max_new_tokens=3, num_beams=2, eos_token_id=2, pad_token_id=0)
    with pytest.raises(ValueError, match="only one beam"):
        reader("llama").read(DOCUMENT).ask(Question(QUESTIONS[0], settings))


def test_a_document_in_chunks_gives_the_same() -> None:
    whole = reader("gemma3").read(DOCUMENT).ask(Question(QUESTIONS[0], GREEDY))
    pieces = reader("gemma3", chunk=16).read(DOCUMENT).ask(Question(QUESTIONS[0], GREEDY))
    assert pieces.token_ids == whole.token_ids
    assert pieces.document_bytes is not None and whole.document_bytes is not None


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3-next", "mamba2", "falcon-h1"])
def test_bytes_are_those_of_the_tensors(name: str) -> None:
    stock = reader(name)
    with torch.inference_mode():
        past = stock.fill(DOCUMENT)
        copied = stock.copy(past)
    assert stock.used(past) == held(past.cache).used == stock.used(copied)
    places = {t.untyped_storage().data_ptr() for t in tensors_of(past.cache)}
    assert not places & {t.untyped_storage().data_ptr() for t in tensors_of(copied.cache)}
    answer = stock.read(DOCUMENT).ask(Question(QUESTIONS[0], GREEDY))
    assert answer.document_bytes == stock.used(past)


def tensors_of(cache: Any) -> list[torch.Tensor]:
    from evaluation.backends.cache_bytes import _tensors

    return [tensor for _, tensor in _tensors(cache) if tensor.numel()]


def test_kept_tokens_are_the_slots_of_layers_with_keys() -> None:
    with torch.inference_mode():
        past = reader("llama").fill(DOCUMENT)
        assert slots_of(past.cache) == [75] * 4
        assert reader("llama").kept(past, 75) == 75.0
        sliding = reader("gemma3").fill(DOCUMENT)
        assert reader("gemma3").kept(sliding, 75) == (3 * 31 + 75) / 4
        states = reader("mamba2").fill(DOCUMENT)
        assert slots_of(states.cache) is None and slots_of(None) is None
    assert reader("llama").used(Past()) is None


def test_the_peak_is_above_what_is_held() -> None:
    stock = reader("llama")
    peak = stock.peak(DOCUMENT, Question(QUESTIONS[0], GREEDY))
    answer = stock.read(DOCUMENT).ask(Question(QUESTIONS[0], GREEDY))
    assert answer.peak_bytes is None, "on a CPU it takes a pass of its own"
    assert peak and answer.cache_bytes and answer.cache_bytes < peak < 50 * answer.cache_bytes


# -- before anything is loaded ---------------------------------------------------------------


def backend(folder: Path, text: str = "hf") -> StockBackend:
    return StockBackend(parse_request(text), RunSettings(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def save(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            MODELS[name][1].setdefault("vocab_size", 259)
            tiny(name).save_pretrained(made[name])
            byte_tokenizer(made[name])
        return made[name]

    return save


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "recurrent_gemma"}, "keeps its state inside its modules"),
        ({"model_type": "lama"}, "no model_type 'lama'.*did you mean"),
        ({"model_type": "own", "auto_map": {}}, r"code that comes with a model is not run"),
        ({"model_type": "vit"}, "vit is no causal language model"),
        ({}, "no model_type None"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is_loaded(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        backend(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf:chunk=0", "at least 1 token"),
        ("hf:chunk=many", "'many' is not a number of tokens"),
        ("hf:atention=sdpa", "no option 'atention'.*did you mean"),
    ],
)
def test_wrong_options_are_refused(saved: Any, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        backend(saved("llama"), text)


def test_its_cost_is_full_attentions_where_the_shape_is_known(saved: Any) -> None:
    known, sliding, other = (backend(saved(n)) for n in ("llama", "mistral-sliding", "mamba2"))
    assert known.document_bytes(75) == 75 * 2 * 2 * 16 * 4 * 4
    cost = known.cost(75, 5)
    assert cost.flops and cost.cache_bytes == known.document_bytes(79)
    for unknown in (sliding, other):
        assert unknown.document_bytes(75) is None
        assert (unknown.cost(75, 5).flops, unknown.cost(75, 5).cache_bytes) == (None, None)


def test_an_attention_that_is_not_here_is_an_input_error(saved: Any) -> None:
    with pytest.raises(InputError, match="hf-attentionflash_attention_9"):
        backend(saved("llama"), "hf:attention=flash_attention_9").open(Numbers(), 0)


def test_weights_that_are_not_the_models_are_refused(saved: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in saved("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"missing keys: model\.layers\.1\.mlp\.up_proj\.weight"):
        backend(tmp_path).open(Numbers(), 0)


@pytest.mark.parametrize("name", ["mamba2", "gemma3"])
@pytest.mark.slow
def test_a_model_of_no_family_of_ours_is_asked_as_it_is(
    name: str, saved: Any, data: Path, run_eval: Any, tmp_path: Path
) -> None:
    result = run_eval(
        "longbench", "--model", saved(name), "--data", data, "--tasks", "hotpotqa", "--limit", 4,
        "--max-length", 200, "--dtype", "float32", "--device", "cpu", "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    records = records_of(tmp_path / "run")
    assert {r["variant"] for r in records} == {"hf"} and len(records) == 4
    assert all(r["error"] is None and r["cache_bytes_measured"] > 0 for r in records)
    assert {r["flops"] for r in records} == {r["cache_bytes_analytic"] for r in records} == {None}
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["models"]["hf"]["class"] == type(tiny(name)).__name__
