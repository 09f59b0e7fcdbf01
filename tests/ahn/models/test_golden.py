"""The reference implementation's vectors (see the shared folder's golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import ahn
from ahn.cells import CELLS
from ahn.config import LayerLayout
from ahn.distill.distillation import distillation_loss
from ahn.distill.losses import beyond

pytestmark = pytest.mark.shared
FOLDERS = [
    *(
        f"{family}-{cell}"
        for family in ("qwen2", "qwen3")
        for cell in ("GatedDeltaNet", "DeltaNet", "Mamba2")
    ),
    "qwen3-hd24-GatedDeltaNet",
]


def cases(folder: Path, kind: str) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    meta = json.loads((folder / "meta.json").read_text())["files"]
    files = [f for f in sorted(folder.glob(f"{kind}_*.safetensors")) if ".f64." not in f.name]
    assert files
    return [(meta[file.name], load_file(file)) for file in files]


@pytest.mark.parametrize("name", FOLDERS)
@torch.no_grad()
def test_logits_of_prefill_and_decode_and_states(shared: Path, name: str) -> None:
    folder = shared / "golden" / name
    for meta, vectors in cases(folder, "infer"):
        window, sinks = meta["sliding_window"], meta["num_attn_sinks"]
        model = ahn.load_model(folder, window=window, sinks=sinks)
        cache = model.new_cache()

        def check_states(when: str, cache: Any = cache, vectors: Any = vectors) -> None:
            for index, layer in enumerate(cache.layers):
                expected = vectors.get(f"state_after_{when}.l{index}")
                if expected is not None:
                    # the reference keeps Mamba2's state with the value dimension first
                    state = layer.states["state"].mT if "Mamba2" in name else layer.states["state"]
                    torch.testing.assert_close(state, expected, rtol=0, atol=5e-5)

        prefill = model(vectors["input_ids"][None], past_key_values=cache).logits[0]
        expected = vectors["prefill_logits"]
        torch.testing.assert_close(prefill[-len(expected) :], expected, rtol=0, atol=2e-4)
        check_states("prefill")
        steps = [
            model(token.view(1, 1), past_key_values=cache).logits[0, -1]
            for token in vectors["decode_tokens"]
        ]
        torch.testing.assert_close(torch.stack(steps), vectors["decode_logits"], rtol=0, atol=2e-4)
        check_states("decode")


@pytest.mark.parametrize("variant,prefix", [("full", "plain"), ("window", "nomem")])
@torch.no_grad()
def test_baselines_of_the_same_checkpoint(shared: Path, variant: str, prefix: str) -> None:
    folder = shared / "golden" / "qwen2-GatedDeltaNet"
    compared = 0
    for meta, vectors in cases(folder, "infer"):
        model = ahn.load_model(
            folder, variant, window=meta["sliding_window"], sinks=meta["num_attn_sinks"]
        )
        ids = torch.cat([vectors["input_ids"], vectors["decode_tokens"]])[None]
        logits = model(ids).logits[0]
        decoded = vectors[f"{prefix}_decode_logits"]
        torch.testing.assert_close(logits[-len(decoded) :], decoded, rtol=0, atol=2e-4)
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize("name", FOLDERS)
@torch.no_grad()
def test_a_cell_alone(shared: Path, name: str) -> None:
    folder = shared / "golden" / name
    vectors = load_file(folder / "cell.safetensors")
    q = vectors["T50.q"]
    cell = CELLS.implementation(name.rsplit("-", 1)[1])(vectors["T50.h_ab"].shape[-1], *q.shape[2:])
    weights = {k.removeprefix("weight."): v for k, v in vectors.items() if k.startswith("weight.")}
    cell.load_state_dict(weights)
    transposed = name.endswith("Mamba2")
    for tokens in ("T50", "T70", "T1"):
        gates = cell.gates(vectors[f"{tokens}.h_ab"])
        q, k, v = (vectors[f"{tokens}.{x}"] for x in "qkv")
        for start in ("zero", "init"):
            state = vectors["initial_state"][: q.shape[0]]
            state = torch.zeros_like(state) if start == "zero" else state
            state = state.mT if transposed else state
            read, states = cell.scan(q, k, v, gates, {"state": state})
            final = states["state"]
            output = cell.readout(read, vectors[f"{tokens}.h_g"])
            names = [n for n in vectors if n.startswith(f"{tokens}.") and start in n]
            out = next(n for n in names if "out" in n)
            end = next(n for n in names if "state" in n)
            torch.testing.assert_close(output.flatten(2), vectors[out], rtol=0, atol=5e-5)
            final = final.mT if transposed else final
            torch.testing.assert_close(final, vectors[end], rtol=0, atol=5e-5)


def reference_cross_entropy(
    model: Any, vectors: dict[str, torch.Tensor], meta: dict[str, Any]
) -> torch.Tensor:
    """Cross-entropy in the reference's order: select labelled positions, then shift.

    Around a hole it pairs a position with a token that does not follow it, and it pairs the last
    position of a row with the first of the next. Ours shifts first; see `ahn.distill.losses`.
    """
    total, sinks = meta["dy_sliding_window"], meta["dy_num_attn_sinks"]
    layout = [LayerLayout(total - sinks, sinks, seen.cell) for seen in model.model.layout]
    hidden = model.model(vectors["input_ids"], layout=layout, use_cache=False).last_hidden_state
    valid = beyond(vectors["labels"], total)
    logits = model.lm_head(hidden[valid])[:-1].float()
    summed = F.cross_entropy(logits, vectors["labels"][valid][1:], reduction="sum")
    return summed / (meta["num_items_in_batch"] or len(logits))


@pytest.mark.parametrize("name", FOLDERS[:6])
@pytest.mark.slow
def test_training_losses_and_gradients(shared: Path, name: str) -> None:
    folder = shared / "golden" / name
    seen = set()
    for meta, vectors in cases(folder, "train"):
        model = ahn.load_model(folder, window=32, sinks=4)
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(".ahn.fn." in parameter_name)
        names = meta["loss_type"].split("+")
        loss = torch.zeros(())
        others = [n for n in names if n != "ce"]
        if others:
            ours = distillation_loss(
                model,
                {"input_ids": vectors["input_ids"]},
                vectors["labels"],
                (meta["dy_sliding_window"], meta["dy_num_attn_sinks"]),
                others,
                normalized=meta["use_normalized_l2"],
            )
            assert ours is not None
            loss = loss + ours
        if "ce" in names:
            loss = loss + reference_cross_entropy(model, vectors, meta)
        torch.testing.assert_close(loss[None], vectors["loss"], rtol=0, atol=1e-5)
        loss.backward()
        parameters = dict(model.named_parameters())
        for key, expected in vectors.items():
            if key.startswith("grad."):
                gradient = parameters[key.removeprefix("grad.")].grad
                allowed = 1e-3 * float(expected.abs().max())
                torch.testing.assert_close(gradient, expected, rtol=0, atol=allowed)
        seen.add(meta["loss_type"])
    assert seen == {"kl", "ce", "distill", "kl+ce", "kl+ce+distill"}


def test_without_holes_both_orders_of_cross_entropy_are_one(shared: Path) -> None:
    """One row, every token beyond the window labelled: one number; else they differ.

    Ours also takes the unlabelled token before an answer, which predicts its first token.
    """
    folder = shared / "golden" / FOLDERS[0]
    compared = 0
    for meta, vectors in cases(folder, "train"):
        if "ce" not in meta["loss_type"] or meta["num_items_in_batch"] is not None:
            continue
        model = ahn.load_model(folder, window=32, sinks=4)
        span = (meta["dy_sliding_window"], meta["dy_num_attn_sinks"])
        inputs = {"input_ids": vectors["input_ids"]}
        ours = distillation_loss(model, inputs, vectors["labels"], span, ["ce"])
        theirs = reference_cross_entropy(model, vectors, meta)
        assert ours is not None
        valid = beyond(vectors["labels"], span[0])
        whole = len(valid) == 1 and bool(valid[0, span[0] :].all())
        assert torch.allclose(ours, theirs, atol=1e-5) == whole, meta["loss_type"]
        compared += 1
    assert compared >= 3
