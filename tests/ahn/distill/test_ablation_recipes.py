"""The recipes of the paper's Table 4: each differs from its own in what is ablated alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ahn.distill.recipe import Recipe, load_recipe
from ahn.distill.run import train
from ahn.distill.student import draw_span, fitting_sinks, fitting_windows
from common import yaml
from tests.ahn.distill.processes import ON_CPU
from tests.ahn.distill.recipes import write_conversations

CONFIGS = Path("configs/train")
ABLATIONS = ("kl-random", "ce-random", "kl-fixed1024")
POCKET = {
    (name, seed): CONFIGS / f"pocket-ablation-{name}{'' if seed == 0 else f'-seed{seed}'}.yaml"
    for name in ABLATIONS
    for seed in (0, 1)
}
OF_7B = {name: CONFIGS / f"qwen2.5-7b-ablation-{name}.yaml" for name in ABLATIONS}
WHERE = "output_dir"
ABLATED = {
    "ce-random": {"loss_type": "ce"},
    "kl-fixed1024": {"sliding_window_type": "fixed"},
}


def options(path: Path) -> dict[str, Any]:
    """Every option of a recipe, those that it does not name among them."""
    return load_recipe(path).model_dump()


def differences(path: Path, other: Path) -> dict[str, Any]:
    """Options of `path` that differ from those of `other`."""
    mine, theirs = options(path), options(other)
    return {name: mine[name] for name in mine if mine[name] != theirs[name]}


def test_there_are_no_others() -> None:
    every = {*POCKET.values(), *OF_7B.values()}
    assert set(CONFIGS.glob("*ablation*.yaml")) == every


def test_the_papers_own_recipe_is_the_one_of_gdn() -> None:
    assert differences(OF_7B["kl-random"], CONFIGS / "qwen2.5-7b-gdn.yaml").keys() == {WHERE}


@pytest.mark.parametrize("name", ABLATED)
def test_of_7b_one_thing_differs(name: str) -> None:
    found = differences(OF_7B[name], OF_7B["kl-random"])
    expected = ABLATED[name] | ({"sliding_window": 1024} if name == "kl-fixed1024" else {})
    assert {key: value for key, value in found.items() if key != WHERE} == expected
    assert found[WHERE] == f"runs/train/qwen2.5-7b-ablation-{name}"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ABLATED)
def test_of_pocket_one_thing_differs(name: str, seed: int) -> None:
    found = differences(POCKET[name, seed], POCKET["kl-random", seed])
    choices = found.pop("sliding_window_choices", None)
    assert (choices is not None) == (name == "kl-fixed1024"), "fixed windows are not drawn"
    expected = ABLATED[name] | ({"sliding_window": 33} if name == "kl-fixed1024" else {})
    assert {key: value for key, value in found.items() if key != WHERE} == expected
    assert found[WHERE] == f"runs/pocket/ablation/{name}-seed{seed}"


@pytest.mark.parametrize("name", ABLATIONS)
def test_seeds_differ_in_the_seed(name: str) -> None:
    found = differences(POCKET[name, 1], POCKET[name, 0])
    assert found.keys() == {WHERE, "seed"} and found["seed"] == 1


def test_pockets_own_recipe_is_that_of_its_memory_over_half_of_the_short_texts() -> None:
    found = differences(POCKET["kl-random", 0], CONFIGS / "pocket-gdn.yaml")
    assert found.keys() == {WHERE, "model_name_or_path", "dataset", "max_steps"}
    assert found["dataset"] == "runs/pocket/data/student.jsonl"


def test_a_recipe_names_no_option_that_it_does_not_use() -> None:
    for path in (*POCKET.values(), *OF_7B.values()):
        named = yaml.read(path)
        if named["sliding_window_type"] == "fixed":
            assert "sliding_window_choices" not in named


def test_windows_and_sinks_are_those_that_the_recipes_say() -> None:
    drawn = {}
    for name in ABLATIONS:
        recipe = load_recipe(POCKET[name, 0])
        rng = random.Random(0)
        for length in (256, 512):
            spans = {draw_span(recipe, length, rng) for _ in range(200)}
            drawn[name, length] = {span for span in spans if span}
    sinks = (0, 4, 8)
    for length, windows in ((256, (48, 72, 132)), (512, (72, 132, 264))):
        assert drawn["kl-random", length] == {(w, s) for w in windows for s in sinks}
        assert drawn["ce-random", length] == drawn["kl-random", length]
        assert drawn["kl-fixed1024", length] == {(33, s) for s in sinks}
    fixed, own = load_recipe(OF_7B["kl-fixed1024"]), load_recipe(OF_7B["kl-random"])
    assert fitting_windows(fixed, 24_576) == [1024] and fitting_windows(own, 24_576) == [4096, 8192]
    assert fitting_windows(fixed, 1024) == [], "nothing beyond the window"
    assert fitting_sinks(fixed, 1024) == [0, 32, 64, 128, 512]


def test_the_small_fixed_window_is_to_the_largest_as_the_papers_is() -> None:
    of_7b, pocket = load_recipe(OF_7B["kl-random"]), load_recipe(POCKET["kl-random", 0])
    share = load_recipe(OF_7B["kl-fixed1024"]).sliding_window / max(of_7b.sliding_window_choices)
    assert share == 1 / 8
    small = load_recipe(POCKET["kl-fixed1024", 0]).sliding_window
    assert small == share * max(pocket.sliding_window_choices)


def test_recipes_draw_the_same_windows_from_the_same_seed() -> None:
    for seed in (0, 1):
        spans = []
        for name in ("kl-random", "ce-random"):
            recipe: Recipe = load_recipe(POCKET[name, seed])
            rng = random.Random(f"{recipe.seed}/0/17")
            spans.append([draw_span(recipe, 512, rng) for _ in range(20)])
        assert spans[0] == spans[1]


def test_each_pocket_recipe_trains(tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "chats.jsonl")
    losses = {}
    for name in ABLATIONS:
        given = {
            "dataset": str(data),
            "output_dir": str(tmp_path / name),
            "max_steps": 2,
            "tokens_per_batch": 256,
            "logging_steps": 1,
            "training_arguments": ON_CPU,
        }
        train(load_recipe(POCKET[name, 0], given))
        log = json.loads((tmp_path / name / "training.json").read_text())
        assert (log["steps"], log["skipped_batches"]) == (2, 0)
        assert log["recipe"]["model_name_or_path"] == "pocket", "not a folder of this machine"
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["loss_type"] == [name.split("-")[0]]
        assert config["num_attn_sinks"] == 4
        assert config["sliding_window"] == (29 if name == "kl-fixed1024" else 128)
        losses[name] = log["history"][0]["loss"]
    assert len(set(losses.values())) == 3, "each computes a loss of its own"
