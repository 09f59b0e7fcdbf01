"""Table 4's trainings: what they cost, where their weights are, and whether these are theirs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import ahn
from ahn.checkpoints.names import embedded_memories, model_path
from ahn.cost import zoo
from common.errors import InputError
from evaluation.paper.costs import paper_table
from evaluation.paper.training import ROWS, Training, sizes, trainings, trainings_table, unlike


def of(model: str, **given: str) -> dict[str, Training]:
    names = {name.replace("_", "-"): place for name, place in given.items()}
    return {training.name: training for training in trainings(model, names)}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without trainings of one's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def memory(folder: Path, changes: dict[str, Any] | None = None, **config: Any) -> Path:
    """A copy of an embedded memory whose configuration, or log, says something else."""
    shutil.copytree(model_path("pocket/ablation/kl-random-seed0"), folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if changes is not None:
        log = json.loads((folder / "training.json").read_text())
        log["recipe"] |= changes
        (folder / "training.json").write_text(json.dumps(log))
    return folder


@pytest.mark.shared
def test_a_training_of_7b_is_as_long_as_the_papers(shared: Path) -> None:
    paper = json.loads((shared / "protocol" / "ahn-paper.json").read_text())["training"]
    size = sizes()["qwen2.5-7b"]
    assert (size.steps, size.sequences) == (paper["steps"], paper["batch"])


def test_a_step_of_7b_is_table_7s(elsewhere: Path) -> None:
    table = paper_table("table7", "qwen2.5-7b")
    [rows] = table.ours.values()
    found = of("qwen2.5-7b")
    assert list(found) == list(ROWS)
    for name in ("kl-random", "ce-random"):
        assert found[name].flops / 740 / 1e17 == pytest.approx(rows["AHN-GDN"][0])
        assert found[name].window == 8192
    full = rows["Full attention"][0]
    assert found["kl-random"].teacher_flops / 740 / 1e17 == pytest.approx(full / 2)
    assert found["ce-random"].teacher_flops == 0
    fixed = found["kl-fixed1024"]
    assert fixed.window == 1024 and fixed.flops < found["kl-random"].flops
    assert fixed.tokens == 740 * 128 * 24_000


def test_the_small_trainings_are_as_long_as_their_recipes_say(elsewhere: Path) -> None:
    size = sizes()["pocket"]
    for training in of("pocket").values():
        assert training.recipe.max_steps == training.steps == size.steps
        assert training.recipe.tokens_per_batch == size.sequences * size.length
        assert training.tokens == size.steps * 2048
        assert training.window == (33 if training.row == "kl-fixed1024" else 264)
        assert Path(ahn.__file__).parents[1].joinpath(training.file).is_file()


def test_two_seeds_of_each_are_embedded(elsewhere: Path) -> None:
    found = of("pocket")
    assert list(found) == [f"{row}-seed{seed}" for row in ROWS for seed in (0, 1)]
    assert {f"ablation/{name}" for name in found} <= set(embedded_memories())
    for name, training in found.items():
        assert (training.weights, training.found) == (f"pocket/ablation/{name}", "embedded")
        assert training.log["steps"] == 600 and training.log["skipped_batches"] == 0
    assert not list(unlike(found.values())), "trained as their recipes say, on the same data"


def test_weights_that_are_given_come_first_then_those_trained_here(elsewhere: Path) -> None:
    own = memory(elsewhere / "runs/pocket/ablation/kl-random-seed0")
    assert of("pocket")["kl-random-seed0"].found == "trained here"
    (own / "training.json").unlink()
    assert of("pocket")["kl-random-seed0"].found == "embedded", "a training that is not finished"
    given = memory(elsewhere / "mine")
    found = of("pocket", kl_random_seed0=str(given))["kl-random-seed0"]
    assert (found.weights, found.found) == (str(given), "given")


def test_weights_of_a_large_model_are_missing_until_they_are_given(elsewhere: Path) -> None:
    found = of("qwen2.5-7b")
    assert not any(training.weights for training in found.values())
    released = zoo.find("qwen2.5-7b").released_ahn["GatedDeltaNet"]
    assert "AHN-GDN" in released
    for row, training in found.items():
        assert training.command == (
            "torchrun --nproc_per_node 8 -m ahn.cli train "
            f"configs/train/qwen2.5-7b-ablation-{row}.yaml"
        )


def test_a_further_seed_has_a_command_too(elsewhere: Path) -> None:
    given = memory(elsewhere / "mine", {"seed": 7})
    found = of("pocket", kl_random_seed7=str(given))
    assert list(found)[:3] == ["kl-random-seed0", "kl-random-seed1", "kl-random-seed7"]
    training = found["kl-random-seed7"]
    assert training.recipe.seed == 7 and not list(unlike([training]))
    assert training.command == (
        "ahn train configs/train/pocket-ablation-kl-random.yaml --seed 7 "
        "--output_dir runs/pocket/ablation/kl-random-seed7"
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("kl-randon-seed0", "did you mean 'kl-random-seed0'"),
        ("kl-random", "not 'kl-random'"),
        ("kl-random-seed-1", "not 'kl-random-seed-1'"),
        ("kl-random-seedx", "not"),
        ("gdn", "weights of table4 are called ce-random-seed0"),
        ("", "not ''"),
    ],
)
def test_weights_of_no_row_are_refused(elsewhere: Path, name: str, told: str) -> None:
    with pytest.raises(InputError, match="--ahn") as caught:
        trainings("pocket", {name: "pocket/gdn"})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"loss_type": ["ce"]}, "loss_type ce"),
        ({"loss_type": "kl+ce"}, "loss_type kl+ce"),
        ({"sliding_window_type": "fixed"}, "sliding_window_type fixed"),
        ({"_ahn_implementation": "DeltaNet"}, "_ahn_implementation DeltaNet"),
    ],
)
def test_weights_of_another_row_are_refused(
    elsewhere: Path, config: dict[str, Any], told: str
) -> None:
    place = memory(elsewhere / "mine", **config)
    with pytest.raises(InputError, match="were trained otherwise") as caught:
        of("pocket", kl_random_seed0=str(place))
    assert told in str(caught.value) and str(place) in str(caught.value)


def test_weights_that_say_less_are_taken_at_their_word(elsewhere: Path) -> None:
    place = memory(elsewhere / "mine")
    config = json.loads((place / "config.json").read_text())
    del config["loss_type"], config["sliding_window_type"]
    (place / "config.json").write_text(json.dumps(config))
    (place / "training.json").write_text("no JSON")
    found = of("pocket", ce_random_seed0=str(place))["ce-random-seed0"]
    assert found.weights == str(place) and found.log == {}


def test_what_is_not_there_is_told(elsewhere: Path) -> None:
    with pytest.raises(InputError, match="^--ahn kl-random-seed0: .*nowhere"):
        of("pocket", kl_random_seed0=str(elsewhere / "nowhere"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_steps": 300}, "kl-random-seed0 was trained with max_steps 300; "),
        ({"seed": 3}, "seed 3; configs/train/pocket-ablation-kl-random.yaml has 0"),
        ({"learning_rate": 0.1}, "learning_rate 0.1"),
        ({"sliding_window_choices": [48]}, "sliding_window_choices [48]"),
    ],
)
def test_another_training_is_told(elsewhere: Path, changes: dict[str, Any], told: str) -> None:
    place = memory(elsewhere / "mine", changes)
    [notice] = unlike(of("pocket", kl_random_seed0=str(place)).values())
    assert told in notice


def test_other_data_are_told_and_another_place_is_not(elsewhere: Path) -> None:
    place = memory(elsewhere / "mine", {"dataset": "moved.jsonl", "threads": 2})
    assert not list(unlike(of("pocket", kl_random_seed0=str(place)).values()))
    log = json.loads((place / "training.json").read_text())
    log["content"]["dataset"] = "0" * 64
    (place / "training.json").write_text(json.dumps(log))
    notices = list(unlike(of("pocket", ce_random_seed0=str(memory_of_ce(place))).values()))
    assert notices == ["ce-random-seed0 was trained on other data than kl-random-seed0"]


def memory_of_ce(place: Path) -> Path:
    """A log with other data, beside a memory of the other row."""
    folder = place.with_name("ce")
    shutil.copytree(model_path("pocket/ablation/ce-random-seed0"), folder)
    log = json.loads((folder / "training.json").read_text())
    log["content"]["dataset"] = "0" * 64
    (folder / "training.json").write_text(json.dumps(log))
    return folder


def test_the_table_says_what_is_missing(elsewhere: Path) -> None:
    console = Console(width=200, record=True)
    console.print(trainings_table(list(of("qwen2.5-7b").values())))
    text = console.export_text()
    assert text.count("missing") == 3
    assert "up to 8,192" in text and " 1,024 " in text
    assert "2,273,280,000" in text and "none" in text
