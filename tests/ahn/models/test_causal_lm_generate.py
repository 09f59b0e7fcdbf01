"""Everything that `generate` offers, with a memory: the oracle is the plain way to do it."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

from ahn.models.cache import AHNCache
from tests.ahn.conftest import SINKS, SIZES, WINDOW, tokens

NEW = 12
VARIANTS_HERE = ["full", "window", "ahn"]


def options(ids: Tensor, **more: Any) -> dict[str, Any]:
    chosen = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return {"attention_mask": torch.ones_like(ids), **chosen, **more}


def padded(*lengths: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Rows of these lengths, padded on the left; the mask; and each row alone."""
    rows, longest = [tokens(n, seed=n) for n in lengths], max(lengths)
    ids = torch.cat([torch.nn.functional.pad(row, (longest - row.shape[1], 0)) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - n).long() for n in lengths])
    return ids, mask, rows


@pytest.fixture(scope="module")
def letters() -> Any:
    """A tokenizer of the tiny models' 101 tokens: printable ASCII, a letter each, and specials."""
    shown = {"Ġ" if n == 32 else chr(n): n - 32 for n in range(32, 127)}
    made = Tokenizer(BPE(shown, []))
    made.pre_tokenizer, made.decoder = ByteLevel(False, use_regex=False), decoders.ByteLevel()
    made.add_special_tokens([f"<{n}>" for n in range(95, SIZES["vocab_size"])])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<95>", eos_token="<96>")


def answered(model: Any, letters: Any, **more: Any) -> str:
    """The answer to a prompt that is longer than sinks and window."""
    ids = letters("The keeper wrote down every ship.", return_tensors="pt")["input_ids"]
    assert ids.shape[1] > SINKS + WINDOW
    output = model.generate(ids, **options(ids, **{"max_new_tokens": 20, **more}))
    return str(letters.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def test_streamers_give_the_same_text(
    models: Any, letters: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, answer = models("ahn"), answered(models("ahn"), letters)
    assert len(answer) > 8
    streamer = TextStreamer(letters, skip_prompt=True, skip_special_tokens=True)
    answered(model, letters, streamer=streamer)
    assert capsys.readouterr().out == answer + "\n"
    pieces = TextIteratorStreamer(letters, skip_prompt=True, skip_special_tokens=True)
    thread = Thread(target=answered, args=(model, letters), kwargs={"streamer": pieces})
    thread.start()
    assert "".join(pieces) == answer
    thread.join()


def test_a_stop_string_ends_the_answer(models: Any, letters: Any) -> None:
    model, answer = models("ahn"), answered(models("ahn"), letters)
    stop = answer[6:8]
    ended = answered(model, letters, stop_strings=[stop], tokenizer=letters)
    assert ended == answer[: answer.index(stop) + 2] != answer


class Last(StoppingCriteria):
    """Ends a row when a token has come out."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return input_ids[:, -1] == self.token


def test_stopping_criteria_and_least_lengths(models: Any) -> None:
    model, ids = models("ahn"), tokens(45)
    whole = model.generate(ids, **options(ids))[0, 45:]
    first = next(n for n in range(1, NEW) if whole[n] not in whole[:n])
    token = int(whole[first])
    criteria = StoppingCriteriaList([Last(token)])
    ended = model.generate(ids, stopping_criteria=criteria, **options(ids))
    assert ended[0, 45:].tolist() == whole[: first + 1].tolist()
    ended = model.generate(ids, eos_token_id=token, **options(ids))
    assert ended[0, 45:].tolist() == whole[: first + 1].tolist()
    longer = model.generate(ids, eos_token_id=token, min_new_tokens=first + 3, **options(ids))
    assert longer.shape[1] >= 45 + first + 3 and token not in longer[0, 45 : 45 + first + 2]
    uncached = options(ids, use_cache=False, min_new_tokens=first + 3, eos_token_id=token)
    assert torch.equal(longer, model.generate(ids, **uncached))


def test_a_row_that_ended_is_padded_and_disturbs_nobody(models: Any) -> None:
    model = models("ahn")
    ids, mask, rows = padded(50, 31)
    alone = [model.generate(row, **options(row))[0, row.shape[1] :].tolist() for row in rows]
    stop = alone[1][2]
    together = model.generate(ids, eos_token_id=stop, **options(ids, attention_mask=mask))[:, 50:]
    for got, expected in zip(together.tolist(), alone, strict=True):
        ended = expected[: expected.index(stop) + 1] if stop in expected else expected
        assert got == ended + [0] * (len(got) - len(ended))


@pytest.mark.parametrize("variant", VARIANTS_HERE)
def test_sampling_in_a_padded_batch_draws_what_each_row_draws_alone(
    models: Any, variant: str
) -> None:
    # one draw serves all rows of a step, so rows are compared by what they may draw from
    model = models(variant)
    ids, mask, rows = padded(50, 31, 7)
    chosen = {"do_sample": True, "top_k": 5, "temperature": 0.7, "return_dict_in_generate": True}
    chosen |= {"output_logits": True, "max_new_tokens": 6}
    torch.manual_seed(5)
    first = model.generate(ids, **options(ids, attention_mask=mask, **chosen))
    torch.manual_seed(5)
    again = model.generate(ids, **options(ids, attention_mask=mask, **chosen))
    assert torch.equal(first.sequences, again.sequences)
    for row, own in enumerate(rows):
        drawn = first.sequences[row, 50:]
        with torch.no_grad():
            expected = model(torch.cat([own[0], drawn])[None, :-1], use_cache=False).logits
        logits = torch.stack([step[row] for step in first.logits])
        torch.testing.assert_close(logits, expected[0, -6:], rtol=0, atol=1e-4)


def test_a_seed_draws_the_same_alone_and_in_chunks(models: Any) -> None:
    model, ids = models("ahn"), tokens(60)
    drawn = []
    for size in (1024, 7):
        model.prefill_chunk_size = size
        torch.manual_seed(11)
        drawn.append(model.generate(ids, **options(ids, do_sample=True, top_p=0.9)))
    del model.prefill_chunk_size
    assert torch.equal(*drawn)


@pytest.mark.parametrize("variant", VARIANTS_HERE)
def test_beams_of_a_padded_batch_equal_those_of_each_row(models: Any, variant: str) -> None:
    model = models(variant)
    ids, mask, rows = padded(50, 31, SINKS - 1)
    chosen = {"num_beams": 3, "num_return_sequences": 2}
    together = model.generate(ids, **options(ids, attention_mask=mask, **chosen))
    for row, own in enumerate(rows):
        alone = model.generate(own, **options(own, **chosen))
        assert torch.equal(together[2 * row : 2 * row + 2, 50:], alone[:, own.shape[1] :])


@pytest.mark.parametrize("given", ["whole", "new"])
def test_a_conversation_goes_on_in_one_cache(models: Any, given: str) -> None:
    model = models("ahn")
    ids, cache = tokens(50), model.new_cache()
    for turn in range(3):
        mask = torch.ones_like(ids)
        passed = ids if given == "whole" or not turn else ids[:, cache.get_seq_length() :]
        chosen = options(ids, attention_mask=mask, past_key_values=cache)
        answer = model.generate(passed, **chosen)[:, -NEW:]
        expected = model.generate(ids, **options(ids))[:, -NEW:]
        assert torch.equal(answer, expected), turn
        ids = torch.cat([ids, answer, tokens(5, seed=turn)], 1)  # the next question
    assert cache.nbytes == sum(layer.nbytes for layer in cache.layers)


@pytest.mark.parametrize(
    "chosen",
    [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True, "top_k": 4}],
    ids=str,
)
@torch.no_grad()
def test_a_cache_is_asked_for_several_answers(models: Any, chosen: dict[str, Any]) -> None:
    model, ids = models("ahn"), tokens(50)
    cache = model.new_cache()
    model(ids[:, :45], past_key_values=cache)
    torch.manual_seed(0)
    answers = model.generate(ids, **options(ids, past_key_values=cache.copy(), **chosen))
    torch.manual_seed(0)
    assert torch.equal(answers, model.generate(ids, **options(ids, **chosen)))


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"assistant_model": "full"}, "not supported with stateful models"),
        ({"prompt_lookup_num_tokens": 3}, "not supported with stateful models"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "Contrastive Search requires"),
        ({"cache_implementation": "quantized"}, "cache_implementation is refused"),
        ({"past_key_values": ((torch.zeros(1),),)}, "must be an AHNCache"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "attention weights"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_memory_cannot_do_is_refused(models: Any, chosen: dict[str, Any], says: str) -> None:
    ids = tokens(30)
    if "assistant_model" in chosen:
        chosen = {"assistant_model": models(chosen["assistant_model"])}
    with pytest.raises(ValueError, match=says):
        models("ahn").generate(ids, **options(ids, **chosen))


@torch.no_grad()
def test_nothing_is_read_twice(models: Any) -> None:
    model, ids = models("ahn"), tokens(45)
    cache = model.new_cache()
    model(ids, past_key_values=cache)
    for passed in (ids, ids[:, :30], ids[:, 40:]):
        with pytest.raises(ValueError, match="at least one token that was not read yet"):
            model.generate(passed, **options(passed, past_key_values=cache))
    assert cache.get_seq_length() == 45
    with pytest.raises(ValueError, match="holds 1 rows, the input has 2"):
        model(tokens(1, rows=2), past_key_values=cache)


@pytest.mark.parametrize("length", [SINKS, SINKS + WINDOW + 30])
def test_generation_config_defaults_and_logits_processors(models: Any, length: int) -> None:
    model, ids = models("ahn"), tokens(length, rows=2)
    chosen = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "guidance_scale": 1.2}
    cached = model.generate(ids, **options(ids, **chosen))
    assert torch.equal(cached, model.generate(ids, **options(ids, use_cache=False, **chosen)))
    output = model.generate(ids, **options(ids, return_dict_in_generate=True))
    assert isinstance(output.past_key_values, AHNCache)
    assert output.past_key_values.get_seq_length() == length + NEW - 1
