"""Log-likelihoods and generic answers through lm-eval, against lm-eval's own `hf` model."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import ahn
from common.errors import InputError

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra 'lm-eval'")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from evaluation.lm_eval.plugin import AHNLM  # noqa: E402
from evaluation.lm_eval.scoring import LikelihoodScorer, cut_left  # noqa: E402

POCKET = str(ahn.POCKET_PATH)
WINDOW: dict[str, Any] = {"window": 24, "sinks": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "window": WINDOW,
    "ahn": {"ahn": "pocket", **WINDOW},
    "no-write": {"ahn": "pocket", **WINDOW},
}


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(
            request_type=kind,
            doc={},
            arguments=given,
            idx=0,
            metadata=("nobody's", number, 1),
        )
        for number, given in enumerate(arguments)
    ]


def texts(hf: HFLM, lengths: list[int], seed: int = 0) -> list[str]:
    """Texts of words the pocket tokenizer knows."""
    draw = random.Random(seed)
    ids = [i for i in range(20, len(hf.tokenizer)) if i not in hf.tokenizer.all_special_ids]
    return [hf.tokenizer.decode(draw.choices(ids, k=length)) for length in lengths]


@pytest.fixture(scope="module")
def hf() -> HFLM:
    """lm-eval's own model on the same weights."""
    return HFLM(pretrained=POCKET, device="cpu", dtype="float32", batch_size=1)


@pytest.fixture(scope="module")
def models() -> dict[str, AHNLM]:
    return {
        variant: AHNLM(pretrained="pocket", variant=variant, device="cpu", **options)
        for variant, options in VARIANTS.items()
    }


def pairs(hf: HFLM) -> list[tuple[str, str]]:
    contexts = texts(hf, [3, 60, 60, 40, 7])
    endings = [" " + text for text in texts(hf, [1, 5, 9, 2], seed=1)]
    return [(context, ending) for context in contexts for ending in endings]


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_full_scores_what_hf_scores(hf: HFLM, batch_size: int | str) -> None:
    ours = AHNLM(pretrained="pocket", variant="full", device="cpu", batch_size=batch_size)
    asked = [*pairs(hf), ("", texts(hf, [6])[0])]
    mine = ours.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    theirs = hf.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    assert len(mine) == len(asked)
    for (my_sum, my_greedy), (their_sum, their_greedy) in zip(mine, theirs, strict=True):
        assert my_sum == pytest.approx(their_sum, rel=1e-5, abs=1e-4)
        assert my_greedy == their_greedy


def test_what_is_greedy_is_said_to_be(hf: HFLM) -> None:
    """The continuation that greedy decoding gives is greedy, and with one token changed is not."""
    ours = AHNLM(pretrained="pocket", variant="full", device="cpu", batch_size=2)
    context = hf.tok_encode(texts(hf, [50])[0])
    greedy: list[int] = []
    with torch.no_grad():
        for _ in range(4):
            logits = hf.model(torch.tensor([context + greedy])).logits[0, -1]
            greedy.append(int(logits.argmax()))
    changed = [*greedy[:-1], (greedy[-1] + 1) % 500]
    asked: Any = [(None, context, greedy), (None, context, changed), (None, context[5:], greedy)]
    (_, first), (_, second), _ = ours._loglikelihood_tokens(asked, disable_tqdm=True)
    assert first and not second


def test_left_truncation_is_hfs(hf: HFLM) -> None:
    asked = [
        (text, " " + end) for text, end in zip(texts(hf, [90, 33]), texts(hf, [4, 8]), strict=True)
    ]
    options: dict[str, Any] = dict(device="cpu", max_length=32)
    theirs = HFLM(pretrained=POCKET, dtype="float32", **options)
    ours = AHNLM(pretrained="pocket", variant="full", **options)
    expected = theirs.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    found = ours.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    assert [s for s, _ in found] == pytest.approx([s for s, _ in expected], abs=1e-4)
    rolling = [(text,) for text in texts(hf, [100, 31, 5])]
    assert ours.loglikelihood_rolling(
        requests("loglikelihood_rolling", rolling), disable_tqdm=True
    ) == pytest.approx(
        theirs.loglikelihood_rolling(requests("loglikelihood_rolling", rolling), disable_tqdm=True),
        abs=1e-3,
    )


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_variant_scores_as_one_pass_over_each_text(
    hf: HFLM, models: dict[str, AHNLM], variant: str, batch_size: int
) -> None:
    """Batches, padding, streaming and forked contexts change nothing."""
    lm = models[variant]
    asked = [(hf.tok_encode(c), hf.tok_encode(e)) for c, e in pairs(hf)]
    items = [cut_left(n, c, e, 10_000) for n, (c, e) in enumerate(asked)]
    found = {r.index: r for r in LikelihoodScorer(lm.model, 0).score(items, batch_size)}
    assert sorted(found) == list(range(len(asked)))
    for number, (context, ending) in enumerate(asked):
        ids = torch.tensor([context + ending])
        with torch.no_grad():
            logits = lm.model(ids[:, :-1], use_cache=False).logits[0, len(context) - 1 :]
        chosen = torch.tensor(ending)
        expected = logits.log_softmax(-1).gather(1, chosen[:, None]).sum().item()
        assert found[number].log_probability == pytest.approx(expected, rel=1e-5, abs=2e-4)
        assert found[number].is_greedy == bool((logits.argmax(-1) == chosen).all())


def test_no_logits_of_a_long_text_are_held(monkeypatch: pytest.MonkeyPatch, hf: HFLM) -> None:
    """A rolling likelihood of 3,000 tokens never makes more than a few hundred rows of logits."""
    lm = AHNLM(pretrained="pocket", variant="ahn", ahn="pocket", device="cpu", **WINDOW)
    rows: list[int] = []
    head = lm.model.lm_head
    handle = head.register_forward_hook(lambda *call: rows.append(call[2].numel() // 576))
    try:
        ids = hf.tok_encode(texts(hf, [3000])[0])
        list(LikelihoodScorer(lm.model, 0).score([cut_left(0, ids[:1], ids[1:], 4000)], 1))
    finally:
        handle.remove()
    assert sum(rows) == len(ids) - 1
    assert max(rows) <= 256


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("until", [[], [" the", "."]])
def test_full_generates_what_hf_generates(hf: HFLM, batch_size: int, until: list[str]) -> None:
    settings = {"until": until, "max_gen_toks": 12, "do_sample": False}
    asked = [(text, dict(settings)) for text in texts(hf, [50, 9, 31, 31])]
    ours = AHNLM(pretrained="pocket", variant="full", device="cpu", batch_size=batch_size)
    theirs = HFLM(pretrained=POCKET, device="cpu", dtype="float32", batch_size=batch_size)
    found = ours.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert found == theirs.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert any(found)


def test_generation_is_cut_on_the_left_as_hf_does(hf: HFLM) -> None:
    settings: dict[str, Any] = {"until": [], "max_gen_toks": 8, "do_sample": False}
    asked = [(text, dict(settings)) for text in texts(hf, [80])]
    options: dict[str, Any] = dict(device="cpu", max_length=40)
    ours = AHNLM(pretrained="pocket", variant="full", **options)
    theirs = HFLM(pretrained=POCKET, dtype="float32", **options)
    found = ours.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert found == theirs.generate_until(requests("generate_until", asked), disable_tqdm=True)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_variant_generates_as_its_model_does(
    hf: HFLM, models: dict[str, AHNLM], variant: str
) -> None:
    lm = models[variant]
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False}
    contexts = texts(hf, [70, 45])
    found = lm.generate_until(
        requests("generate_until", [(text, dict(settings)) for text in contexts]),
        disable_tqdm=True,
    )
    for text, answer in zip(contexts, found, strict=True):
        ids = torch.tensor([hf.tok_encode(text)])
        new = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )[0, ids.shape[1] :]
        assert answer == hf.tok_decode(new)


def test_the_chat_template_is_the_tokenizers(models: dict[str, AHNLM], hf: HFLM) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    lm = models["full"]
    chat = [{"role": "user", "content": "hello"}]
    before = lm.tokenizer.chat_template, hf.tokenizer.chat_template
    try:
        lm.tokenizer.chat_template = hf.tokenizer.chat_template = template
        assert lm.apply_chat_template(chat) == hf.apply_chat_template(chat)
        assert lm.apply_chat_template(chat) == "<user>hello<assistant>"
    finally:
        lm.tokenizer.chat_template, hf.tokenizer.chat_template = before


def test_yarn_takes_effect_and_stretches_the_context(hf: HFLM, models: dict[str, AHNLM]) -> None:
    asked = [(texts(hf, [200])[0], " " + texts(hf, [5], seed=1)[0])]
    stretched = AHNLM(pretrained="pocket", variant="full", device="cpu", yarn_factor=4)
    assert (models["full"].max_length, stretched.max_length) == (4096, 4 * 4096)
    ((plain, _),) = models["full"].loglikelihood(requests("loglikelihood", asked), True)
    ((other, _),) = stretched.loglikelihood(requests("loglikelihood", asked), True)
    assert abs(plain - other) > 1e-3


def test_what_it_is_says_variant_and_layout(models: dict[str, AHNLM]) -> None:
    info = models["ahn"].get_model_info()
    assert info["variant"] == "ahn"
    assert {layer["cell"] for layer in info["layout"]} == {"GatedDeltaNet"}
    assert all((layer["window"], layer["sinks"]) == (24, 2) for layer in info["layout"])
    assert models["full"].get_model_info()["layout"][0]["window"] is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"trust_remote_code": True}, "code from a checkpoint is never run"),
        ({"windw": 8}, "windw: unknown option"),
        ({"window": "8kb"}, "'8kb' is not a number of tokens"),
        ({"window": [8, 16]}, "takes one window, not 2; run_eval compares several"),
        ({"variant": "fulll"}, "did you mean 'full'"),
        ({"window": 0, "variant": "window"}, "window"),
        ({"variant": "ahn"}, "AHN|memory"),
        ({"peft": "x"}, "adapters are not supported"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], expected: str) -> None:
    errors = (InputError, ahn.InputError)
    with pytest.raises(errors, match=expected):
        AHNLM(pretrained="pocket", device="cpu", **options)
