"""Gradients at tokens outside of the window, held against differences and a dense oracle."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

import ahn
from ahn.checkpoints.tokenizer import load_tokenizer, token_texts
from ahn.config import LayerLayout
from ahn.distill.probe import gradient_norms
from ahn.models.layouts import places, span_of
from common.errors import InputError
from tests.ahn import equations
from tests.ahn.conftest import SINKS, WINDOW, stock_model, tokens, variant_model

LENGTH = 48
FIRST = WINDOW + SINKS  # the first position that does not see everything
IDS = tokens(LENGTH)[0].tolist()
LAYERS = 3


# as the equations, but with a gradient
by_the_equations = inspect.unwrap(equations.logits)


def in_float64(model: Any) -> Any:
    """All of a model; transformers' norms compute in float32 whatever the model's type is."""

    def norm(module: Any, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)

    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = partial(norm, module)
    return model


def wide(variant: str, cell: str = "GatedDeltaNet", **options: Any) -> Any:
    return in_float64(variant_model(variant, cell, **options))


def kl_at(teacher: Tensor, student: Tensor, positions: list[int]) -> Tensor:
    """`[..., L, V]` logits: the mean KL over positions."""
    p, q = (F.log_softmax(logits[..., positions, :], -1) for logits in (teacher, student))
    return (p.exp() * (p - q)).sum(-1).mean(-1)


@contextmanager
def embeddings(model: Any, values: Tensor) -> Iterator[None]:
    """The model's own embeddings replaced by `values [L, D]`."""
    handle = model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: values.expand_as(output)
    )
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
@pytest.mark.parametrize(
    "cell, positions",
    [("GatedDeltaNet", None), ("DeltaNet", [LENGTH - 1]), ("Mamba2", None)],
)
def test_the_norm_is_that_of_finite_differences(cell: str, positions: list[int] | None) -> None:
    model = wide("ahn", cell)
    found = gradient_norms(model, IDS, positions)
    chosen = positions or list(range(FIRST, LENGTH))
    embedded = model.model.embed_tokens(torch.tensor([IDS]))
    full = [LayerLayout()] * LAYERS
    teacher = model(inputs_embeds=embedded, layout=full, use_cache=False).logits
    width, h = embedded.shape[-1], 1e-5
    for token in (0, 20, LENGTH - 1):
        steps = h * torch.cat([torch.eye(width), -torch.eye(width)]).double()
        moved = embedded.repeat(2 * width, 1, 1)
        moved[:, token] += steps
        values = kl_at(teacher, model(inputs_embeds=moved, use_cache=False).logits, chosen)
        gradient = (values[:width] - values[width:]) / (2 * h)
        assert found.norms[token] == pytest.approx(float(gradient.norm()), rel=1e-6)
    student = model(inputs_embeds=embedded, use_cache=False).logits
    assert found.kl == pytest.approx(float(kl_at(teacher, student, chosen)), rel=1e-12)
    assert found.positions == len(chosen)


@pytest.mark.parametrize("positions", [None, [LENGTH - 1], [FIRST, 30]])
def test_every_norm_is_the_dense_oracles(positions: list[int] | None) -> None:
    model, stock = wide("ahn"), in_float64(stock_model())
    ids = torch.tensor(IDS)
    leaf = stock.model.embed_tokens(ids).detach().requires_grad_()
    with torch.no_grad():
        teacher = stock(inputs_embeds=leaf[None], use_cache=False).logits[0]
    with embeddings(model, leaf):
        student = by_the_equations(model, ids)
    kl = kl_at(teacher, student, positions or list(range(FIRST, LENGTH)))
    (gradient,) = torch.autograd.grad(kl, leaf)
    found = gradient_norms(model, IDS, positions)
    torch.testing.assert_close(torch.tensor(found.norms).double(), gradient.norm(dim=-1))


def test_without_writes_it_is_the_window_alone_and_zero_where_no_path_leads() -> None:
    last = [LENGTH - 1]
    reach = LAYERS * (WINDOW - 1)  # a layer looks so far back, sinks apart
    long = [*IDS, *IDS]
    off, window = wide("no-write"), wide("window")
    for ids, positions in ((long, [len(long) - 1]), (long, None), (IDS, last)):
        mine, theirs = gradient_norms(off, ids, positions), gradient_norms(window, ids, positions)
        assert mine == theirs
    norms = gradient_norms(off, long, [len(long) - 1]).norms
    far = len(long) - 1 - reach
    assert far > SINKS and all(norms[:SINKS]), "sinks stay visible"
    assert not any(norms[SINKS:far]) and all(norms[far:])
    kept = gradient_norms(wide("ahn"), long, [len(long) - 1]).norms
    assert all(kept), "a memory is a path from everywhere"


def test_where_all_is_seen_there_is_no_difference_and_none_is_looked_for() -> None:
    model = wide("ahn")
    with pytest.raises(ValueError, match=f"from {FIRST} to"):
        gradient_norms(model, IDS, [FIRST - 1])
    with pytest.raises(ValueError):
        gradient_norms(model, IDS, [LENGTH])
    with pytest.raises(ValueError):
        gradient_norms(model, IDS, [])
    assert gradient_norms(model, IDS[: FIRST + 1]).positions == 1
    with pytest.raises(InputError, match=f"{FIRST} tokens, and all of them are seen"):
        gradient_norms(model, IDS[:FIRST])


def test_the_model_is_left_as_it_was() -> None:
    model = variant_model("ahn")
    before = deepcopy(model.state_dict())
    flags = {
        name: (m.training, getattr(m, "gradient_checkpointing", None))
        for name, m in model.named_modules()
    }
    needed = [name for name, p in model.named_parameters() if p.requires_grad]
    with torch.inference_mode(False), torch.no_grad():  # whatever the caller has switched off
        gradient_norms(model, IDS)
    assert all(p.grad is None for p in model.parameters())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == needed
    assert flags == {
        name: (m.training, getattr(m, "gradient_checkpointing", None))
        for name, m in model.named_modules()
    }
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_layers_are_run_again_and_keep_only_their_input() -> None:
    model = variant_model("ahn")
    calls: list[int] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    gradient_norms(model, IDS)
    assert len(calls) == 3 * LAYERS, "teacher, student, and the student again going backward"


@pytest.mark.parametrize("variant", ["window", "compressive", "memory-only"])
def test_other_students_are_probed_with_their_own_layout(variant: str) -> None:
    options: dict[str, Any] = {"rate": 4, "slots": 2} if variant == "compressive" else {}
    model = wide(variant, **options)
    window, sinks = span_of(model.layout)
    found = gradient_norms(model, IDS)
    embedded = model.model.embed_tokens(torch.tensor([IDS])).detach().requires_grad_()
    full = [LayerLayout()] * LAYERS
    teacher = model(inputs_embeds=embedded, layout=full, use_cache=False).logits.detach()
    student = model(inputs_embeds=embedded, use_cache=False).logits
    kl = kl_at(teacher, student, list(range(window + sinks, LENGTH)))
    (gradient,) = torch.autograd.grad(kl.sum(), embedded)
    torch.testing.assert_close(torch.tensor(found.norms).double(), gradient[0].norm(dim=-1))


def test_places_are_what_the_last_position_sees() -> None:
    ahn_layers = [LayerLayout(window=4, sinks=2, cell="DeltaNet"), LayerLayout()]
    assert places(9, ahn_layers) == [*["sink"] * 2, *["outside"] * 3, *["window"] * 4]
    pooled = [LayerLayout(window=4, sinks=2, rate=4, slots=1)]
    waiting = ["sink", "sink", *["window"] * 7]
    assert places(9, pooled) == waiting, "three that wait for a fourth are seen as they are"
    assert places(10, pooled).count("outside") == 4
    assert set(places(5, [LayerLayout(window=0, cell="DeltaNet")])) == {"outside"}


def test_layers_with_other_windows_and_none_at_all_are_refused() -> None:
    with pytest.raises(InputError, match="give --window"):
        span_of([LayerLayout()])
    with pytest.raises(InputError, match=r"different windows and sinks \(4 \+ 0, 8 \+ 2\)"):
        span_of([LayerLayout(window=8, sinks=2), LayerLayout(window=4)])
    assert span_of([LayerLayout(), LayerLayout(window=4, sinks=1)]) == (4, 1)


def test_a_gradient_that_is_no_number_is_told() -> None:
    model = variant_model("ahn")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(InputError, match="no finite number in float32"):
        gradient_norms(model, IDS)


def byte_level(text: str) -> tuple[Any, list[int]]:
    """A tokenizer whose tokens are bytes, and a text in it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    return tokenizer, tokenizer(text)["input_ids"]


def test_pieces_join_to_the_text_and_characters_stand_whole() -> None:
    text = "a  b\n记 🦛! "
    tokenizer, ids = byte_level(text)
    found = token_texts(tokenizer, ids)
    assert len(found) == len(ids) == len(text.encode())
    assert "".join(found) == text and "\ufffd" not in "".join(found)
    assert found[5:8] == ["", "", "记"] and found[9:13] == ["", "", "", "🦛"]
    cut = token_texts(tokenizer, ids[:-4])
    assert len(cut) == len(ids) - 4 and cut[-1].endswith("\ufffd"), "the last character is cut"


def test_pieces_of_words_and_of_a_broken_text() -> None:
    pocket = load_tokenizer(ahn.POCKET_PATH)
    ids = pocket(" the sky is wide .")["input_ids"]
    assert token_texts(pocket, ids) == ["<bos>", " the", " sky", " is", " wide", " ."]
    tokenizer, _ = byte_level("")
    rng = random.Random(0)
    broken = [rng.randrange(256) for _ in range(300)]
    found = token_texts(tokenizer, broken)
    assert len(found) == 300
    assert "".join(found).replace("\ufffd", "")
    plain = [token for token in tokenizer("x" * 5)["input_ids"]]
    assert token_texts(tokenizer, plain) == ["x"] * 5
