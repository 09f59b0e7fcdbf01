"""What `generate` is called with, and that a shared beginning changes nothing but the time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

import ahn
from common.errors import InputError
from evaluation.backends.base import Answer, Question
from evaluation.backends.generation import (
    generation_settings,
    load_generation_config,
    settings_as_dict,
    stop_ids,
)
from evaluation.backends.streaming import StreamingReader
from tests.evaluation.conftest import SINKS, WINDOW

QWEN_INSTRUCT = {  # as Qwen2.5-Instruct ships it
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.05,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
}


class NewlineTokenizer:
    eos_token_id = 9

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert text == "\n" and not add_special_tokens
        return [3, 4]


def settings(
    checkpoint: dict[str, Any],
    protocol: str = "official",
    model_type: str = "qwen2",
    benchmark: str = "longbench",
    **own: Any,
) -> dict[str, Any]:
    tokenizer = NewlineTokenizer()
    return settings_as_dict(
        generation_settings(
            GenerationConfig(**checkpoint), protocol, own, 64, tokenizer, model_type, benchmark
        )
    )


def test_greedy_decoding_keeps_the_checkpoints_penalty_and_stop_ids():
    found = settings(QWEN_INSTRUCT, do_sample=False, num_beams=1, temperature=1.0)
    assert found["do_sample"] is False and found["num_beams"] == 1
    assert found["repetition_penalty"] == 1.05
    assert found["eos_token_id"] == [151645, 151643]
    assert found["max_new_tokens"] == 64
    assert [found[key] for key in ("temperature", "top_p", "top_k")] == [None] * 3


def test_what_a_checkpoint_leaves_open_is_recorded_with_its_default():
    found = settings({})
    assert found["repetition_penalty"] == 1.0
    assert found["eos_token_id"] == [9]  # the tokenizer's


def test_samsum_ends_at_a_newline_but_not_before_one_token():
    found = settings(QWEN_INSTRUCT, newline_eos=True, min_new_tokens=1)
    assert found["eos_token_id"] == [9, 4]
    assert found["min_new_tokens"] == 1


def test_ahn_samples_with_qwen3_only():
    assert settings(QWEN_INSTRUCT, "ahn", "qwen2")["do_sample"] is False
    assert settings(QWEN_INSTRUCT, "official", "qwen3")["do_sample"] is False
    found = settings(QWEN_INSTRUCT, "ahn", "qwen3")
    assert found["do_sample"] is True
    assert [found[k] for k in ("temperature", "top_p", "top_k", "min_p")] == [0.7, 0.8, 200, 0.0]


@pytest.mark.parametrize(
    ("benchmark", "samples"),
    [("longbench", True), ("longbench_e", True), ("infinitebench", True), ("lveval", False)],
)
def test_ahn_has_its_own_scripts_for_lveval_which_never_sample(benchmark, samples):
    assert settings({}, "ahn", "qwen3", benchmark)["do_sample"] is samples
    assert settings({}, "ahn", "qwen2", benchmark)["do_sample"] is False


def test_unknown_settings_of_a_task_are_refused():
    with pytest.raises(InputError, match="temprature"):
        settings({}, temprature=1.0)


def test_settings_come_from_the_file_or_from_config_json(tiny, tmp_path):
    assert load_generation_config(tiny, {}).repetition_penalty == 1.3
    bare = load_generation_config(tmp_path, {"eos_token_id": 5})
    assert stop_ids(bare) == [5]
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(InputError, match="generation_config.json"):
        load_generation_config(tmp_path, {"eos_token_id": 5})


# -- with a model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["full", "window"])
def model(request: pytest.FixtureRequest, tiny: Path) -> Any:
    window: dict[str, Any] = {} if request.param == "full" else {"window": WINDOW, "sinks": SINKS}
    return ahn.load_model(str(tiny), variant=request.param, dtype="float32", device="cpu", **window)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


def greedy(tokens: int) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False, max_new_tokens=tokens, eos_token_id=256, pad_token_id=0
    )


def prompts() -> list[Any]:
    document = np.arange(200, dtype=np.int32) % 250
    ends = ([1, 2, 3], [9], [4, 5, 6, 7, 8, 9, 10])
    return [np.concatenate([document, np.asarray(end, dtype=np.int32)]) for end in ends]


def answered(
    model: Any, tokenizer: Any, prompt: Any, settings: Any, stop: Sequence[str] = ()
) -> Any:
    """The answer to a prompt that shares nothing with others."""
    document = StreamingReader(model, tokenizer).read(prompt[:0])
    return document.ask(Question(prompt, settings, stop))


def test_answers_are_those_of_plain_greedy_decoding(model, tokenizer):
    """Prefill here, one token at a time there: the same tokens."""
    prompt = prompts()[0]
    answer = answered(model, tokenizer, prompt, greedy(8))
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    with torch.inference_mode():
        for _ in range(8):
            logits = model(input_ids=ids, past_key_values=model.new_cache()).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert answer.token_ids == ids[0, len(prompt) :].tolist()


def test_an_answer_ends_before_a_stop_text(model, tokenizer):
    whole = answered(model, tokenizer, prompts()[0], greedy(12))
    stop = next(letter for letter in whole.text[1:-1] if "!" <= letter <= "~")
    end = whole.text.index(stop)
    cut = answered(model, tokenizer, prompts()[0], greedy(12), stop=["never", stop])
    assert (cut.text, cut.finish_reason) == (whole.text[:end], "stop")
    assert len(cut.token_ids) < len(whole.token_ids), "nothing is generated beyond it"
    same = answered(model, tokenizer, prompts()[0], greedy(12), stop=["never"])
    assert (same.text, same.finish_reason) == (whole.text, whole.finish_reason)


def test_a_shared_beginning_changes_nothing_but_the_work(model, tokenizer):
    alone = [answered(model, tokenizer, p, greedy(6)) for p in prompts()]
    document = StreamingReader(model, tokenizer).read(prompts()[0][:200])
    together = [
        document.ask(Question(p[200:], greedy(6)), last=i == 2) for i, p in enumerate(prompts())
    ]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [a.cache_bytes for a in together] == [a.cache_bytes for a in alone]
    assert [a.reused_tokens for a in together] == [0, 200, 200]
    assert [a.reused_tokens for a in alone] == [0, 0, 0]


def test_a_document_that_was_given_up_is_read_again(model, tokenizer, monkeypatch):
    """After its last question, or an error, nothing of its cache is left to be used wrongly."""
    document = StreamingReader(model, tokenizer).read(prompts()[0][:200])
    first = document.ask(Question(prompts()[0][200:], greedy(4)), last=True)
    again = document.ask(Question(prompts()[1][200:], greedy(4)), last=False)
    assert (first.reused_tokens, again.reused_tokens) == (0, 0)
    assert again.token_ids == answered(model, tokenizer, prompts()[1], greedy(4)).token_ids
    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", None)
        with pytest.raises(TypeError):
            document.ask(Question(prompts()[0][200:], greedy(4)), last=False)
    last = document.ask(Question(prompts()[0][200:], greedy(4)), last=True)
    assert last.reused_tokens == 0 and last.token_ids == first.token_ids


def test_a_prompt_of_one_token_and_one_without(model, tokenizer):
    single = answered(model, tokenizer, np.asarray([5], dtype=np.int32), greedy(2))
    assert single.token_ids is not None and len(single.token_ids) == 2
    with pytest.raises(ValueError, match="at least one token"):
        answered(model, tokenizer, prompts()[0][:0], greedy(2))


def test_an_answer_says_why_it_ended(model, tokenizer):
    prompt = prompts()[0]
    free = answered(model, tokenizer, prompt, greedy(4))
    assert free.finish_reason == "length" and len(free.token_ids) == 4
    stop = greedy(4)
    stop.eos_token_id = [free.token_ids[0]]
    stopped = answered(model, tokenizer, prompt, stop)
    assert stopped.finish_reason == "eos" and stopped.token_ids == free.token_ids[:1]


def test_a_seeded_sample_does_not_depend_on_what_came_before(model, tokenizer):
    sampling = greedy(6)
    sampling.do_sample, sampling.temperature = True, 5.0
    reader = StreamingReader(model, tokenizer)

    def sampled(prompt: Any, seed: int) -> Answer:
        return reader.read(prompt[:0]).ask(Question(prompt, sampling, seed=seed))

    first = sampled(prompts()[0], 11)
    sampled(prompts()[1], 12)
    again = sampled(prompts()[0], 11)
    assert again.token_ids == first.token_ids
    other = sampled(prompts()[0], 13)
    assert other.token_ids != first.token_ids


def test_clocks_and_bytes_are_measured(model, tokenizer):
    answer = answered(model, tokenizer, prompts()[0], greedy(3))
    assert answer.prefill_seconds > 0 and answer.decode_seconds > 0
    assert answer.cache_bytes > 0
