"""The losses of a text that is read on, against plain forward passes and lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import ahn
from ahn.checkpoints.tokenizer import load_tokenizer
from evaluation.backends.base import Backend, RunSettings
from evaluation.backends.registry import find_backend
from evaluation.backends.requests import parse_request
from evaluation.perplexity.streams import cannot_read_on, stream_of
from evaluation.perplexity.text import TokenText, make_text
from tests.evaluation.conftest import SINKS, WINDOW

BOOK = "It was the best of times, it was the worst of times. \u00e4\u00f6\u00fc 1859. " * 7
AHN_KINDS = ("full", "window", "ahn", "no-write", "compressive", "memory-only")


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def text(tiny: Path, book: Path) -> TokenText:
    return make_text(str(book), load_tokenizer(tiny), 259)


def backend(kind: str, tiny: Path, memory: Path) -> Backend:
    settings = RunSettings(
        model=str(tiny),
        ahn={"": str(memory)},
        window=WINDOW,
        sinks=SINKS,
        dtype="float32",
        device="cpu",
    )
    request = parse_request(kind)
    return find_backend(request.kind)(request, settings)


def losses(backend: Backend, text: TokenText, steps: Sequence[int]) -> np.ndarray[Any, Any]:
    stream = stream_of(backend.open(None, 0))
    found: list[Any] = []
    at = 0
    while at < text.tokens:
        step = steps[len(found) % len(steps)]
        found.append(stream.losses(text.inputs[at : at + step], text.targets[at : at + step]))
        at += step
    assert stream.seen == text.tokens
    return np.concatenate(found)


def plain(model: Any, text: TokenText) -> np.ndarray[Any, Any]:
    """One forward pass over the whole text, log-softmax in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(text.inputs.astype(np.int64))[None]).logits[0]
    logs = logits.double().log_softmax(-1)
    return -logs[torch.arange(text.tokens), torch.from_numpy(text.targets.astype(np.int64))].numpy()


@pytest.mark.parametrize("kind", ["full", "hf"])
@pytest.mark.parametrize("steps", [[10_000], [64], [7, 1, 30]])
def test_full_attention_is_a_plain_forward_pass_of_transformers(
    tiny: Path, memory: Path, text: TokenText, kind: str, steps: list[int]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64).eval()
    found = losses(backend(kind, tiny, memory), text, steps)
    assert np.abs(found - plain(model, text)).max() < 1e-4
    assert found.dtype == np.float64 and found.std() > 0.5


@pytest.mark.parametrize("kind", AHN_KINDS[1:])
def test_in_chunks_as_in_one_pass(tiny: Path, memory: Path, text: TokenText, kind: str) -> None:
    variant = backend(kind, tiny, memory)
    whole = plain(variant.open(None, 0).model.eval(), text)  # type: ignore[attr-defined]
    for steps in ([37], [5, 64, 1]):
        assert np.abs(losses(variant, text, steps) - whole).max() < 2e-4
    everything = losses(backend("full", tiny, memory), text, [64])
    inside = SINKS + WINDOW - 1
    if kind != "memory-only":
        assert np.allclose(everything[:inside], whole[:inside], atol=1e-4)
    assert np.abs(everything - whole)[inside + 2 :].max() > 0.05, "the window decides nothing"


def test_a_quantised_cache_is_read_on(tiny: Path, memory: Path, text: TokenText) -> None:
    found = losses(backend("quantized:bits=8,backend=fp8", tiny, memory), text, [32])
    exact = losses(backend("full", tiny, memory), text, [32])
    assert np.allclose(found[:32], exact[:32], atol=1e-4), "the first chunk sees no cache"
    off = np.abs(found - exact)[33:]
    assert 1e-4 < off.mean() < 0.3


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ("quantized:bits=8,backend=fp8,keep=64", "its option keep"),
        ("hf:chunk=8", "--chunk-tokens"),
    ],
)
def test_what_needs_an_end_is_refused(tiny: Path, memory: Path, variant: str, reason: str) -> None:
    assert reason in str(cannot_read_on(backend(variant, tiny, memory)))


def test_presses_are_refused_before_weights_are_loaded(tiny: Path, memory: Path) -> None:
    pytest.importorskip("kvpress", reason="needs the extra 'kvpress'")
    press = backend("kvpress:knorm,ratio=0.5", tiny, memory)
    assert "no such end" in str(cannot_read_on(press))


def test_a_back_end_of_somebody_else_is_refused_until_it_says_how() -> None:
    class Foreign(Backend):
        name = "foreign"

        def identity(self) -> Any: ...

        def open(self, tokenizer: Any, seed: int) -> Any: ...

    assert "Foreign does not say how" in str(cannot_read_on(Foreign()))


def test_losses_of_bfloat16_are_computed_in_float32() -> None:
    from evaluation.perplexity.streams import _of_logits

    logits = torch.randn(70, 300).bfloat16() * 4
    targets = torch.randint(0, 300, (70,))
    found = _of_logits(logits, targets)
    wanted = -logits.double().log_softmax(-1)[torch.arange(70), targets]
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), wanted, atol=1e-5)
    assert _of_logits(logits.double(), targets).dtype == torch.float64


def test_the_sum_is_what_lm_eval_gives(book: Path) -> None:
    """Texts within the model's context: both condition every token on all before it."""
    pytest.importorskip("lm_eval", reason="needs the extra 'lm-eval'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from evaluation.lm_eval.plugin import AHNLM

    pocket = load_tokenizer("pocket")
    words = [w for w in sorted(pocket.get_vocab()) if w not in pocket.all_special_tokens][40:]
    content = pocket.convert_tokens_to_string(words[:400:2] + words[1:200:3])
    asked = [
        Instance(
            request_type="loglikelihood_rolling", doc={}, arguments=(content,), idx=0,
            metadata=("", 0, 1),
        )
    ]  # fmt: skip
    path = book.with_name("words.txt")
    path.write_text(content, encoding="utf-8")
    given = make_text(str(path), pocket, 576)
    assert given.prefix == {"id": pocket.bos_token_id, "text": "<bos>"}
    as_theirs = make_text(str(path), pocket, 576, prefix="lm-eval")
    assert any("adds <bos>" in warning for warning in given.warnings)
    model: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    for variant in ("full", "ahn"):
        settings = RunSettings(model="pocket", ahn={"": "pocket"}, window=40, sinks=4, **model)
        made = find_backend(variant)(parse_request(variant), settings)
        options: dict[str, Any] = (
            {"ahn": "pocket", "window": 40, "sinks": 4} if variant == "ahn" else {}
        )
        asks: list[tuple[TokenText, dict[str, Any]]]
        asks = [(given, {"add_bos_token": False}), (as_theirs, {})]
        for text, adds in asks:
            ours = losses(made, text, [64])
            plugin = AHNLM(pretrained="pocket", variant=variant, **model, **options, **adds)
            (theirs,) = plugin.loglikelihood_rolling(asked, disable_tqdm=True)
            assert -ours.sum() == pytest.approx(theirs, rel=1e-5)
            if variant == "full":
                hf = HFLM(pretrained=str(ahn.POCKET_PATH), **model, **adds)
                assert text.tokens == len(hf.tok_encode(content)) > 200
                (stock,) = hf.loglikelihood_rolling(asked, disable_tqdm=True)
                assert -ours.sum() == pytest.approx(stock, rel=1e-5)
