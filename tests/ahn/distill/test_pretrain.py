"""`stage: pretrain`: a base model from scratch, Muon beside AdamW, and what is decayed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

import ahn
from ahn.distill.optim import MuonAdamW
from ahn.distill.options import new_optimizer
from ahn.distill.pretrain import new_base_model
from ahn.distill.recipe import BaseModelRecipe, Recipe
from ahn.distill.run import train
from ahn.distill.student import student_model
from tasks.pocket.tokenizer import write_tokenizer
from tasks.pocket.training import conversations
from tests.ahn.distill.processes import ON_CPU, forked
from tests.ahn.distill.recipes import pocket_options

SIZES: dict[str, Any] = {
    "vocab_size": 576,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 4,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and conversations of the first phase of the pocket model."""
    made = tmp_path_factory.mktemp("pretrain")
    write_tokenizer(made / "tokenizer")
    rows = [json.dumps(row) for row in conversations("teacher-a", 0.004)]
    (made / "data.jsonl").write_text("\n".join(rows) + "\n")
    return made


def options(folder: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The recipe of configs/train/pocket-teacher-a.yaml, for a smaller model and fewer steps."""
    chosen: dict[str, Any] = {
        "stage": "pretrain",
        "base": {"tokenizer": str(folder / "tokenizer"), "config": SIZES},
        "output_dir": str(output),
        "dataset": str(folder / "data.jsonl"),
        "tokens_per_batch": 1024,
        "optimizer": "muon",
        "learning_rate": 2e-3,
        "muon_learning_rate": 0.02,
        "weight_decay": 0.05,
        "adam_beta2": 0.98,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 2,
        "max_steps": 30,
        "logging_steps": 1,
        "save_steps": 100,
        "key_spread": 1.0,
        "threads": 1,
        "training_arguments": ON_CPU,
    }
    return {**chosen, **changes}


@pytest.mark.slow
def test_a_base_model_learns(folder: Path, tmp_path: Path) -> None:
    """Loss and likeness of keys go down, and the folder is a Qwen2 that transformers loads."""
    output = train(Recipe(**options(folder, tmp_path / "out", num_train_epochs=9)))
    log = json.loads((output / "training.json").read_text())
    rows = log["history"]
    assert log["steps"] == len(rows) == 30 and log["skipped_batches"] is None

    def mean(name: str, chosen: list[Any]) -> float:
        return sum(row[name] for row in chosen) / len(chosen)

    first, last = rows[:3], rows[-3:]
    assert mean("ce", first) > 4 and mean("ce", last) < 0.75 * mean("ce", first)
    assert mean("key_overlap", last) < mean("key_overlap", first)
    for row in rows:
        assert row["loss"] == pytest.approx(row["ce"] + 1.0 * row["key_overlap"], rel=1e-5)
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.config.model_type == "qwen2" and model.config.use_cache
    assert log["trained_parameters"] == sum(p.numel() for p in model.parameters())
    assert (output / "tokenizer.json").exists() and (output / "loss.svg").exists()
    assert "A Qwen2 with" in (output / "README.md").read_text()


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bytes_also_in_two_parts(
    folder: Path, tmp_path: Path
) -> None:
    """Both optimisers go on where they were."""
    whole = train(Recipe(**options(folder, tmp_path / "whole", max_steps=4)))
    train(Recipe(**options(folder, tmp_path / "parts", max_steps=2)))
    parts = train(Recipe(**options(folder, tmp_path / "parts", max_steps=4)))
    one, two = (path / "model.safetensors" for path in (whole, parts))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_a_second_phase_starts_from_the_first(folder: Path, tmp_path: Path) -> None:
    first = train(Recipe(**options(folder, tmp_path / "a", max_steps=12)))
    named = {"model_name_or_path": str(first), "base": None, "position_gap": 64, "max_steps": 2}
    second = train(Recipe(**options(folder, tmp_path / "b", **named)))
    one, two = (json.loads((f / "training.json").read_text())["history"] for f in (first, second))
    assert two[0]["loss"] < 0.9 * one[0]["loss"]


def test_the_loss_is_the_next_tokens_of_answers(folder: Path, tmp_path: Path) -> None:
    """By hand, from whole logits: shifted by one, on labelled tokens alone."""
    output = train(
        Recipe(**options(folder, tmp_path / "out", max_steps=1, key_spread=0.0, warmup_steps=0))
    )
    logged = json.loads((output / "training.json").read_text())["history"][0]
    assert "ce" not in logged  # the only term
    from transformers import AutoTokenizer

    from ahn.distill.data import Collator, Conversations, TokenBudgetBatches

    recipe = Recipe(**options(folder, tmp_path / "out", max_steps=1, key_spread=0.0))
    data = Conversations(recipe, AutoTokenizer.from_pretrained(folder / "tokenizer"))
    batch = Collator(0)([data[i] for i in next(iter(TokenBudgetBatches(data.lengths, 1024)))])
    assert recipe.base is not None
    model = new_base_model(recipe.base, recipe.seed)
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    total, count = 0.0, 0
    for row, labels in zip(logits, batch["labels"], strict=True):
        for position in range(1, len(labels)):
            if labels[position] != -100:
                total -= float(row[position - 1].log_softmax(-1)[labels[position]])
                count += 1
    assert logged["loss"] == pytest.approx(total / count, rel=1e-4)


def test_bf16_is_computed_with_where_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    """Nearly the same loss, but not the same; weights stay in float32."""
    losses = []
    for bf16 in (False, True):
        chosen = options(folder, tmp_path / str(bf16), max_steps=1, bf16=bf16)
        output = train(Recipe(**chosen))
        losses.append(json.loads((output / "training.json").read_text())["history"][0]["loss"])
        weights = load_file(output / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)


# --- a new model ---


def base_recipe(**changes: Any) -> BaseModelRecipe:
    return BaseModelRecipe(config=SIZES, tokenizer="x", **changes)


def test_a_seed_makes_a_model() -> None:
    one, two, other = (new_base_model(base_recipe(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_first_layer_heads_of_a_structured_start_look_at_their_offsets() -> None:
    """Head h attends to the token h + 1 places back, whatever the tokens are."""
    model = new_base_model(base_recipe(offset_logit=60.0), 0)
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 576, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention = model(ids, output_attentions=True).attentions[0]
    for head in range(4):
        for position in range(10, 40):
            weights = attention[:, head, position]
            assert (weights.argmax(-1) == position - (head + 1)).all(), (head, position)
            assert (weights.max(-1).values > 0.5).all()
    plain = new_base_model(base_recipe(structured_start=False), 0)
    assert not plain.model.layers[0].self_attn.q_proj.bias.any()


def test_later_layers_of_a_structured_start_match_equal_contents() -> None:
    model = new_base_model(base_recipe(), 0)
    attention = model.model.layers[1].self_attn
    query = attention.q_proj.weight.view(4, 16, 64)
    key = attention.k_proj.weight.view(2, 16, 64)
    value = attention.v_proj.weight.view(2, 16, 64)
    output = attention.o_proj.weight.view(64, 4, 16)
    for head in range(4):
        likeness = F.cosine_similarity(query[head].flatten(), key[head // 2].flatten(), dim=0)
        assert likeness > 0.9
        assert F.cosine_similarity(query[head].flatten(), key[1 - head // 2].flatten(), dim=0) < 0.2
        back = F.cosine_similarity(output[:, head].T.flatten(), value[head // 2].flatten(), dim=0)
        assert back > 0.5


# --- refusals ---


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hiden_size": 64}, "Qwen2 has no option 'hiden_size'"),
        ({"num_attention_heads": "four"}, "base.config: "),
        ({"vocab_size": 100}, "knows 100 tokens \\(vocab_size\\), the tokenizer 576"),
    ],
)
def test_a_base_that_cannot_be_made_is_told(
    folder: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    base = {"tokenizer": str(folder / "tokenizer"), "config": {**SIZES, **config}}
    with pytest.raises(ahn.InputError, match=message):
        train(Recipe(**options(folder, tmp_path / "out", base=base)))
    assert not (tmp_path / "out").exists()


def test_a_base_with_missing_weights_or_of_another_family_is_told(
    folder: Path, tmp_path: Path
) -> None:
    """transformers would start what is missing at random."""
    base = tmp_path / "base"
    shutil.copytree(ahn.POCKET_PATH, base)
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    named = {"model_name_or_path": str(base), "base": None}
    with pytest.raises(ahn.InputError, match="model.layers.1.mlp.up_proj.weight"):
        train(Recipe(**options(folder, tmp_path / "out", **named)))
    small = {k: v for k, v in SIZES.items() if not k.endswith("_id")}
    Qwen3ForCausalLM(Qwen3Config(**small)).save_pretrained(tmp_path / "qwen3")
    named["model_name_or_path"] = str(tmp_path / "qwen3")
    with pytest.raises(ahn.InputError, match="goes on with Qwen2 models only"):
        train(Recipe(**options(folder, tmp_path / "out", **named)))
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(folder: Path, tmp_path: Path) -> None:
    def told() -> None:
        with pytest.raises(ahn.InputError, match="in one process"):
            train(Recipe(**options(folder, tmp_path / "out")))

    ended = forked(tmp_path, told, ranks=2)
    assert ended.code == 0, ended.output[-2000:]


# --- optimisers ---


def muon(model: nn.Module, **changes: Any) -> MuonAdamW:
    chosen: dict[str, Any] = {"learning_rate": 0.5, "muon_learning_rate": 0.1, "weight_decay": 0.0}
    return MuonAdamW(model, **{**chosen, "betas": (0.9, 0.99), **changes})


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 48),
    columns=st.integers(2, 48),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_muons_step_is_orthogonal_whatever_the_gradient(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    """All singular values near one size, sqrt(max(1, rows / columns)) times the learning rate."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(columns, rows)  # the bias is AdamW's
    before = layer.weight.detach().clone()
    gradient = torch.randn(rows, columns, generator=generator)
    layer.weight.grad = gradient * scale
    muon(layer).step()
    step = (before - layer.weight.detach()) / 0.1
    wanted = math.sqrt(max(1.0, rows / columns))
    values = torch.linalg.svdvals(step.double()) / wanted
    assert values.max() < 1.4
    size = torch.linalg.svdvals(gradient.double())
    large = int((size > 0.1 * size.max()).sum())  # five iterations do not lift the smallest ones
    assert values[:large].min() > 0.4, values
    # it is near the orthogonal matrix that is nearest to the gradient
    left, _, right = torch.linalg.svd(gradient.double(), full_matrices=False)
    likeness = F.cosine_similarity(step.double().flatten(), (left @ right).flatten(), dim=0)
    assert likeness > 0.7


class Parts(nn.Module):
    """Parameters of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 5, bias=False)
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)


def decayed(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    """Parameters that a step without a gradient makes smaller."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    found = set()
    for name, parameter in model.named_parameters():
        if not torch.equal(parameter, before[name]):
            factor = (parameter / before[name]).detach()
            assert ((factor < 1) & (factor > 0)).all(), name
            found.add(name)
    return found


def shaken(model: nn.Module) -> nn.Module:
    """No parameter is zero, so that what is decayed is seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5)
    return model


def test_muon_takes_and_decays_matrices_of_layers_alone() -> None:
    model = shaken(Parts())
    optimizer = muon(model, weight_decay=0.3)
    names = {id(p): name for name, p in model.named_parameters()}
    taken = {names[id(p)] for group in optimizer.muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in optimizer.adamw.param_groups for p in group["params"]}
    assert taken == {"linear.weight"}
    assert rest == {
        "embed_tokens.weight",
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "lm_head.weight",
    }
    before = model.get_parameter("linear.weight").detach().clone()
    assert decayed(model, optimizer) == {"linear.weight"}
    torch.testing.assert_close(model.get_parameter("linear.weight"), before * (1 - 0.1 * 0.3))


def test_a_schedule_sees_one_optimiser_and_its_state_goes_on() -> None:
    torch.manual_seed(0)
    one, two = Parts(), Parts()
    two.load_state_dict(one.state_dict())
    first, second = muon(one), muon(two)
    schedule = torch.optim.lr_scheduler.LambdaLR(first, lambda step: 0.5**step)
    for optimizer, model in ((first, one), (second, two)):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    schedule.step()
    assert [g["lr"] for g in first.muon.param_groups] == [0.05]
    assert [g["lr"] for g in first.adamw.param_groups] == [0.25]
    state = first.state_dict()
    again = muon(two)
    again.load_state_dict(state)
    assert [g["lr"] for g in again.param_groups] == [0.05, 0.25]
    for optimizer in (first, again):
        optimizer.step()
    for (name, mine), theirs in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("cell", ahn.CELLS)
def test_distillation_decays_matrices_and_no_vectors(tmp_path: Path, cell: str) -> None:
    """A decayed A_log, dt_bias or norm would pull how fast a memory forgets towards 1."""
    recipe = Recipe(
        **pocket_options(
            tmp_path, tmp_path, ahn_implementation=cell, weight_decay=0.5, learning_rate=0.1
        )
    )
    model: Any = student_model(recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.uniform_(0.5, 1.5)
    found = decayed(model, new_optimizer(model, recipe))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert found == {name for name, p in trained.items() if p.dim() > 1}
    assert {name.rpartition(".fn.")[2] for name in trained.keys() - found} >= {
        "GatedDeltaNet": {"A_log", "dt_bias", "o_norm.weight"},
        "DeltaNet": {"o_norm.weight"},
        "Mamba2": {"A_log", "dt_bias", "norm.weight", "g_proj.bias", "dt_proj.bias"},
    }[cell]
