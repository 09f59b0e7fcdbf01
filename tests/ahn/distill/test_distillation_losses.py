"""Terms of the loss: weighed, logged each on its own, and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from ahn.distill.distillation import (
    Distillation,
    distillation_loss,
    distillation_terms,
    weighted,
)
from ahn.distill.recipe import Recipe
from ahn.distill.run import train
from ahn.distill.student import student_model
from tests.ahn.conftest import tokens, variant_model
from tests.ahn.distill.processes import in_processes
from tests.ahn.distill.recipes import pocket_options, write_conversations

LOSSES = ["kl", "ce", "distill"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "data.jsonl")


def test_a_loss_of_several_terms_is_the_sum_of_each_alone() -> None:
    model, ids = variant_model("ahn"), tokens(60, rows=2)
    inputs, span = {"input_ids": ids}, (16, 4)
    terms = distillation_terms(model, inputs, ids, span, LOSSES)
    assert terms is not None and list(terms) == LOSSES
    for name in LOSSES:
        alone = distillation_loss(model, inputs, ids, span, [name])
        assert alone is not None and torch.equal(alone, terms[name])
    whole = distillation_loss(model, inputs, ids, span, LOSSES)
    assert whole is not None and torch.equal(whole, terms["kl"] + terms["ce"] + terms["distill"])
    found = weighted(terms, {"kl": 0.5, "ce": 2.0, "distill": 10.0})
    expected = 0.5 * terms["kl"] + 2 * terms["ce"] + 10 * terms["distill"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("losses", [["ce"], ["kl"], ["distill"], ["kl", "ce"]])
def test_the_teacher_runs_where_a_loss_looks_at_it(losses: list[str]) -> None:
    """A batch that is skipped has as many passes as any, or processes that share weights part."""
    model, ids = variant_model("ahn"), tokens(60, rows=2)
    passes: list[bool] = []
    model.model.register_forward_pre_hook(
        lambda module, given, named: passes.append(torch.is_grad_enabled()), with_kwargs=True
    )
    expected = [True] if losses == ["ce"] else [False, True]
    assert distillation_terms(model, {"input_ids": ids}, ids, (16, 4), losses) is not None
    assert passes == expected
    given = {"model_name_or_path": "x", "dataset": "x", "output_dir": "x"}
    recipe = Recipe.model_validate(given | {"loss_type": "+".join(losses)})
    module = Distillation(model, recipe)
    module.sharded = True
    passes.clear()
    assert module(input_ids=ids, labels=ids, span=None)["skipped"]
    assert passes == expected


def test_weights_reach_the_gradient(data: Path, tmp_path: Path) -> None:
    """Twice the weight of the only term: twice the gradient; what is not given counts 1."""
    ids = torch.randint(20, 500, (1, 80), generator=torch.Generator().manual_seed(0))
    gradients = []
    for weights in ({}, {"kl": 2.0}, {"kl": 2.0, "ce": 2.0}):
        options = pocket_options(data, tmp_path, loss_weights=weights)
        recipe = Recipe(**{**options, "loss_type": "kl+ce" if "ce" in weights else "kl"})
        model = student_model(recipe)
        with torch.no_grad():  # a fresh memory changes nothing, and then KL has no gradient
            for layer in model.model.layers:
                layer.ahn.fn.o_proj.weight.normal_(std=0.1, generator=torch.Generator())
        module = Distillation(model, recipe)
        output = module(input_ids=ids, labels=ids, span=(32, 4))
        output["loss"].backward()
        gradients.append(model.model.layers[0].ahn.fn.o_proj.weight.grad.clone())
        assert output["terms"].keys() == set(recipe.losses)
        assert not any(term.requires_grad for term in output["terms"].values())
    torch.testing.assert_close(gradients[1], 2 * gradients[0])
    assert not torch.allclose(gradients[2], gradients[1])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"ce": 1.0}, "loss_weights: ce is not in loss_type kl"),
        ({"kl": 0.0}, "greater than 0"),
        ({"kl": -1.0}, "greater than 0"),
        ({"kl": float("inf")}, "finite"),
        ({"mse": 1.0}, "'kl', 'ce' or 'distill'"),
    ],
)
def test_weights_that_say_nothing_are_refused(
    data: Path, tmp_path: Path, weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe(**pocket_options(data, tmp_path, loss_weights=weights))


@pytest.mark.slow
def test_each_term_is_logged_and_they_make_up_the_loss(data: Path, tmp_path: Path) -> None:
    """Over lines of two steps, two passes a step, one of which has nothing to learn from."""
    weights = {"ce": 0.25, "distill": 3.0}
    options = pocket_options(data, tmp_path / "out", loss_type="kl+ce+distill", max_steps=4)
    options |= {"loss_weights": weights, "logging_steps": 2, "gradient_accumulation_steps": 2}
    options |= {"eval_dataset": str(data), "eval_steps": 2, "sliding_window_choices": [48, 64]}
    folder = train(Recipe(**options))
    log = json.loads((folder / "training.json").read_text())
    trained = [row for row in log["history"] if "loss" in row]
    evaluated = [row for row in log["history"] if "eval_loss" in row]
    assert [row["step"] for row in trained] == [row["step"] for row in evaluated] == [2, 4]
    for rows, prefix in ((trained, ""), (evaluated, "eval_")):
        for row in rows:
            terms = {name: row[f"{prefix}{name}"] for name in LOSSES}
            assert all(value > 0 for value in terms.values())
            total = sum(weights.get(name, 1.0) * value for name, value in terms.items())
            assert row[f"{prefix}loss"] == pytest.approx(total, rel=1e-4)


def test_a_single_term_is_the_loss_and_is_not_logged_twice(data: Path, tmp_path: Path) -> None:
    folder = train(Recipe(**pocket_options(data, tmp_path / "out")))
    log = json.loads((folder / "training.json").read_text())
    assert not any(name in row for row in log["history"] for name in LOSSES)


@pytest.mark.slow
def test_two_processes_log_the_terms_of_both(data: Path, tmp_path: Path) -> None:
    options = pocket_options(data, tmp_path / "one", loss_type="kl+ce", logging_steps=2)
    train(Recipe(**{**options, "gradient_accumulation_steps": 2}))
    options["output_dir"] = str(tmp_path / "two")
    in_processes(tmp_path, 2, options)
    one, two = (
        json.loads((tmp_path / name / "training.json").read_text())["history"][0]
        for name in ("one", "two")
    )
    for name in ("loss", "kl", "ce"):
        assert two[name] == pytest.approx(one[name], rel=1e-3)
    assert one["loss"] == pytest.approx(one["kl"] + one["ce"], rel=1e-4)
