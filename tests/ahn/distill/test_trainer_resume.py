"""A run goes on from a checkpoint of the same recipe, data and models only; what differs is named.

Length, logging, saving and devices may differ; each start is written down.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ahn
from ahn.distill.provenance import read_record
from ahn.distill.recipe import Recipe, load_recipe
from ahn.distill.run import train
from tests.ahn.distill.processes import ON_CPU, command, forked, in_processes, killed
from tests.ahn.distill.recipes import pocket_options, write_conversations


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps; without its log it is one that was interrupted."""
    options = pocket_options(data, tmp_path_factory.mktemp("begun") / "out", loss_type="kl+ce")
    return train(Recipe(**options))


def copied(begun: Path, tmp_path: Path, finished: bool) -> Path:
    """A copy of the run, finished or interrupted after its last checkpoint."""
    folder = Path(shutil.copytree(begun, tmp_path / "out"))
    if not finished:
        (folder / "model.safetensors").unlink()
        (folder / "training.json").unlink()
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(folder: Path, options: dict[str, Any]) -> str:
    """What a start says that goes not on; nothing in the folder changes."""
    before = files(folder)
    with pytest.raises(ahn.InputError) as caught:
        train(Recipe(**options))
    assert files(folder) == before
    text = str(caught.value)
    assert "--fresh" in text and "output_dir" in text
    return text


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 1e-3}, "learning_rate: 0.001 now, 0.01 before"),
    ({"seed": 1}, "seed: 1 now, 0 before"),
    ({"loss_type": "kl"}, 'loss_type: "kl" now, "kl+ce" before'),
    ({"loss_weights": {"ce": 0.5}}, 'loss_weights: {"ce": 0.5} now, {} before'),
    ({"ahn_implementation": "DeltaNet"}, "ahn_implementation"),
    ({"sliding_window": 40}, "sliding_window: 40 now, 32 before"),
    ({"sliding_window_choices": [32]}, "sliding_window_choices: [32] now, [32, 48] before"),
    ({"num_attn_sinks": 0}, "num_attn_sinks: 0 now, 4 before"),
    ({"weight_decay": 0.0}, "weight_decay"),
    ({"lr_scheduler_type": "linear"}, "lr_scheduler_type"),
    ({"warmup_steps": 1}, "warmup_steps"),
    ({"filter_len": 5}, "filter_len"),
    ({"cutoff_len": 100}, "cutoff_len"),
    ({"per_device_train_batch_size": 2}, "per_device_train_batch_size: 2 now, 1 before"),
    ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: 2 now, 1 before"),
    ({"bf16": True}, "bf16"),
    ({"save_ahn_only": False}, "save_ahn_only"),
    (
        {"training_arguments": {**ON_CPU, "optim": "sgd"}},
        'training_arguments.optim: "sgd" now, null before',
    ),
    ({"training_arguments": {**ON_CPU, "data_seed": 3}}, "training_arguments.data_seed: 3 now"),
]


@pytest.mark.parametrize("finished", [False, True], ids=["interrupted", "finished"])
@pytest.mark.parametrize(("changes", "line"), CHANGES, ids=[line[:24] for _, line in CHANGES])
def test_another_recipe_is_refused_and_what_differs_is_named(
    data: Path, begun: Path, tmp_path: Path, changes: dict[str, Any], line: str, finished: bool
) -> None:
    folder = copied(begun, tmp_path, finished)
    options = pocket_options(data, folder, **{"loss_type": "kl+ce", **changes})
    text = refused(folder, options)
    assert f"\n  {line}" in text
    assert len([row for row in text.splitlines() if row.startswith("  ")]) == 1
    if finished:  # also where its checkpoints are gone
        shutil.rmtree(folder / "checkpoints")
        assert "finished training of another recipe" in refused(folder, options)


def test_all_that_differs_is_named_at_once(data: Path, begun: Path, tmp_path: Path) -> None:
    folder = copied(begun, tmp_path, False)
    options = pocket_options(data, folder, seed=1, learning_rate=1.0, loss_type="ce")
    rows = [row for row in refused(folder, options).splitlines() if row.startswith("  ")]
    assert [row.split(":")[0].strip() for row in rows] == ["loss_type", "learning_rate", "seed"]


@pytest.mark.parametrize("finished", [False, True], ids=["interrupted", "finished"])
def test_other_data_are_refused_by_content_not_by_name(
    data: Path, begun: Path, tmp_path: Path, finished: bool
) -> None:
    folder = copied(begun, tmp_path, finished)
    moved = Path(shutil.copy(data, tmp_path / "moved.jsonl"))
    changed = tmp_path / "changed" / "data.jsonl"
    changed.parent.mkdir()
    changed.write_text("\n".join(reversed(data.read_text().splitlines())) + "\n")
    loss: dict[str, Any] = {"loss_type": "kl+ce"}
    text = refused(folder, pocket_options(changed, folder, **loss))
    assert f'dataset: "{changed}" now, "{data}" before' in text
    before = data.read_bytes()
    try:
        data.write_bytes(changed.read_bytes())
        text = refused(folder, pocket_options(data, folder, **loss))
        assert f'dataset: "{data}" has another content now than before' in text
    finally:
        data.write_bytes(before)
    text = refused(folder, pocket_options(data, folder, eval_dataset=str(data), **loss))
    assert "eval_dataset" in text
    train(Recipe(**pocket_options(moved, folder, **loss)))  # the same data under another name


@pytest.mark.parametrize("finished", [False, True], ids=["interrupted", "finished"])
def test_another_base_or_tokenizer_is_refused(
    data: Path, begun: Path, tmp_path: Path, finished: bool
) -> None:
    folder = copied(begun, tmp_path, finished)
    base = Path(shutil.copytree(ahn.POCKET_PATH, tmp_path / "base"))
    options = pocket_options(data, folder, loss_type="kl+ce", model_name_or_path=str(base))
    train(Recipe(**options))  # the same base elsewhere
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 0.01
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    text = refused(folder, options)
    assert f'model_name_or_path: "{base}" ' in text
    shutil.copy(ahn.POCKET_PATH / "model.safetensors", base)
    template = tmp_path / "plain.jinja"
    template.write_text("{{ bos_token }}{% for m in messages %} {{ m.content }}{% endfor %} .")
    assert "  tokenizer" in refused(folder, {**options, "template": str(template)})


def test_length_logging_saving_and_devices_may_differ(
    data: Path, begun: Path, tmp_path: Path
) -> None:
    folder = copied(begun, tmp_path, False)
    options = pocket_options(data, folder, loss_type="kl+ce", max_steps=3)
    options |= {"logging_steps": 2, "save_steps": 5, "save_total_limit": 2, "threads": 2}
    options |= {"gradient_checkpointing": True, "preprocessing_num_workers": 0}
    extra = {**ON_CPU, "run_name": "mine", "dataloader_num_workers": 1, "disable_tqdm": True}
    train(Recipe(**{**options, "training_arguments": extra}))
    log = json.loads((folder / "training.json").read_text())
    assert log["steps"] == 3
    # what both starts were given stands in the log, and in the card
    first, second = log["starts"]
    assert (first["from_step"], first["to_step"]) == (0, 2)
    assert (second["from_step"], second["to_step"]) == (2, 3)
    assert first["options"]["max_steps"] == 2 and second["options"]["max_steps"] == 3
    assert second["options"]["training_arguments"]["run_name"] == "mine"
    assert "logging_steps: 2" not in str(first["options"]) and second["options"]["threads"] == 2
    for start in (first, second):
        assert start["seconds"] > 0 and start["machine"]["torch"] == torch.__version__
        assert start["time"].startswith("20") and start["processes"] == 1
    card = (folder / "README.md").read_text()
    assert "| 0 to 2 |" in card and "| 2 to 3 |" in card


def test_the_recipe_beside_a_checkpoint_runs_again(data: Path, begun: Path, tmp_path: Path) -> None:
    recipe = begun / "checkpoints" / "checkpoint-2" / "recipe.yaml"
    assert (begun / "recipe.yaml").read_bytes() == recipe.read_bytes()
    again = load_recipe(recipe, {"output_dir": str(tmp_path / "again")})
    train(again)
    one, two = (load_file(f / "model.safetensors") for f in (begun, tmp_path / "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    written = yaml.safe_load(recipe.read_text())
    assert written["loss_type"] == "kl+ce" and written["weight_decay"] == 0.1  # defaults, too
    assert written.keys() == Recipe.model_fields.keys()


def test_a_finished_run_is_not_trained_again_without_its_checkpoints(
    data: Path, begun: Path, tmp_path: Path
) -> None:
    folder = copied(begun, tmp_path, True)
    shutil.rmtree(folder / "checkpoints")
    before = files(folder)
    options = pocket_options(data, folder, loss_type="kl+ce")
    train(Recipe(**options))
    assert files(folder) == before
    longer = {**options, "max_steps": 5}
    assert "cannot be made longer" in refused(folder, longer)
    train(Recipe(**longer), resume=False)
    assert json.loads((folder / "training.json").read_text())["steps"] == 5


def test_a_finished_run_that_names_the_embedded_models_folder_is_the_same_recipe(
    data: Path, begun: Path, tmp_path: Path
) -> None:
    """Earlier versions wrote the folder of that machine for the name."""
    folder = copied(begun, tmp_path, finished=True)
    shutil.rmtree(folder / "checkpoints")
    log = json.loads((folder / "training.json").read_text())
    assert log["recipe"]["model_name_or_path"] == "pocket"
    log["recipe"]["model_name_or_path"] = str(ahn.POCKET_PATH)
    del log["content"]
    (folder / "training.json").write_text(json.dumps(log))
    before = files(folder)
    train(Recipe(**pocket_options(data, folder, loss_type="kl+ce")))
    assert files(folder) == before, "nothing is trained again"


def test_a_checkpoint_of_an_older_version_is_gone_on_from_with_a_word(
    data: Path, begun: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They have no recipe; the log of a finished run, where there is one, has it."""
    folder = copied(begun, tmp_path, True)
    log = json.loads((folder / "training.json").read_text())
    for key in ("content", "starts", "saved_step"):
        del log[key]
    (folder / "training.json").write_text(json.dumps(log))
    last = folder / "checkpoints" / "checkpoint-2"
    for name in ("recipe.yaml", "run.json"):
        (last / name).unlink()
    loss: dict[str, Any] = {"loss_type": "kl+ce"}
    text = refused(folder, pocket_options(data, folder, **loss, seed=1))
    assert "seed: 1 now, 0 before" in text
    assert read_record(last) is None
    train(Recipe(**pocket_options(data, folder, **loss)))  # finished: nothing to do
    (folder / "training.json").unlink()
    caplog.clear()
    train(Recipe(**pocket_options(data, folder, **loss, max_steps=3)))
    assert "without its recipe" in caplog.text
    assert json.loads((folder / "training.json").read_text())["steps"] == 3


def test_a_damaged_record_is_told(data: Path, begun: Path, tmp_path: Path) -> None:
    folder = copied(begun, tmp_path, False)
    (folder / "checkpoints" / "checkpoint-2" / "run.json").write_text("{half")
    with pytest.raises(ahn.InputError, match="run.json: cannot be read"):
        train(Recipe(**pocket_options(data, folder, loss_type="kl+ce")))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_checkpoint_that_is_not_whole_is_told(
    data: Path, begun: Path, tmp_path: Path, name: str, damage: str
) -> None:
    """Without its optimiser the Trainer would go on with a fresh one, in silence."""
    folder = copied(begun, tmp_path, False)
    path = folder / "checkpoints" / "checkpoint-2" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20])
    options = pocket_options(data, folder, loss_type="kl+ce", max_steps=3)
    with pytest.raises(ahn.InputError, match="checkpoint-2: the run cannot go on"):
        train(Recipe(**options))
    assert not (folder / "model.safetensors").exists()


def test_a_folder_with_a_model_that_no_training_made_is_not_overwritten(
    data: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(ahn.POCKET_PATH, tmp_path / "base"))
    shutil.rmtree(base / "training")
    before = files(base)
    for resume in (True, False):
        options = pocket_options(data, base, model_name_or_path=str(base))
        with pytest.raises(ahn.InputError, match="which no training wrote"):
            train(Recipe(**options), resume=resume)
    assert files(base) == before


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_where_a_step_has_as_many_samples(
    data: Path, tmp_path: Path
) -> None:
    """One process that accumulates, two that do not: the same weights as without a break."""
    options = pocket_options(data, tmp_path / "whole", max_steps=3, gradient_accumulation_steps=2)
    whole = load_file(train(Recipe(**options)) / "model.safetensors")
    options["output_dir"] = str(tmp_path / "parts")
    assert forked(tmp_path, killed, Recipe(**options), "pass", "3").code < 0
    in_processes(tmp_path, 2, {**options, "gradient_accumulation_steps": 1})
    parts = load_file(tmp_path / "parts" / "model.safetensors")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=2e-6)
    log = json.loads((tmp_path / "parts" / "training.json").read_text())
    assert [start["processes"] for start in log["starts"]] == [1, 2]


def test_other_processes_without_that_are_told(data: Path, begun: Path, tmp_path: Path) -> None:
    folder = copied(begun, tmp_path, False)
    options = pocket_options(data, folder, loss_type="kl+ce", max_steps=3)

    def aloud() -> None:
        logging.basicConfig(force=True)  # to stderr: pytest's handlers are the parent's
        train(Recipe(**options))

    ended = forked(tmp_path, aloud, ranks=2)
    assert ended.code == 0, ended.output[-2000:]
    assert ended.output.count("made by 1 processes, now 2") == 1


@pytest.mark.slow
def test_a_streamed_run_resumes_in_its_second_pass(data: Path, tmp_path: Path) -> None:
    """Twelve samples, fifteen steps: it goes on with the third sample, not with the first."""
    options = pocket_options(data, tmp_path / "whole", streaming=True, max_steps=15, save_steps=14)
    whole = load_file(train(Recipe(**options)) / "model.safetensors")
    log = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert log["samples"]["read"] == log["samples"]["kept"] == 12
    options["output_dir"] = str(tmp_path / "parts")
    assert forked(tmp_path, killed, Recipe(**options), "pass", "15").code < 0
    parts = load_file(train(Recipe(**options)) / "model.safetensors")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    log = json.loads((tmp_path / "parts" / "training.json").read_text())
    assert log["samples"]["read"] == 12


@pytest.mark.slow
def test_streaming_with_data_workers_is_streaming_without(data: Path, tmp_path: Path) -> None:
    """Each row once, in its order, counted: the same weights, log and card."""
    found = []
    for workers in (0, 2):
        extra = {**ON_CPU, "dataloader_num_workers": workers}
        options = pocket_options(data, tmp_path / str(workers), streaming=True, max_steps=14)
        folder = train(Recipe(**{**options, "save_steps": 20, "training_arguments": extra}))
        log = json.loads((folder / "training.json").read_text())
        assert "| read | 12 |" in (folder / "README.md").read_text()
        losses = [row["loss"] for row in log["history"]]
        found.append((load_file(folder / "model.safetensors"), log["samples"], losses))
    assert found[0][1:] == found[1][1:] and found[0][1]["kept"] == 12
    assert all(torch.equal(tensor, found[1][0][name]) for name, tensor in found[0][0].items())


def test_tokens_are_batched_by_workers_where_they_are_asked_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ahn.distill.trainer import RecipeTrainer

    made: list[int] = []
    original = RecipeTrainer.get_train_dataloader

    def seen(self: Any) -> Any:
        loader = original(self)
        made.append(loader.num_workers)
        return loader

    monkeypatch.setattr(RecipeTrainer, "get_train_dataloader", seen)
    weights = []
    for workers in (0, 1):
        extra = {**ON_CPU, "dataloader_num_workers": workers}
        options = pocket_options(data, tmp_path / str(workers), tokens_per_batch=300)
        folder = train(Recipe(**{**options, "training_arguments": extra}))
        weights.append(load_file(folder / "model.safetensors"))
    assert made == [0, 1]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_secrets_are_written_nowhere(data: Path, tmp_path: Path) -> None:
    extra = {**ON_CPU, "hub_token": "hf_secret", "run_name": "mine"}
    options = pocket_options(data, tmp_path / "out", max_steps=1, training_arguments=extra)
    folder = train(Recipe(**options))
    text = b"".join(files(folder).values())
    assert b"hf_secret" not in text and b"mine" in text


def test_the_command_of_a_start_is_the_one_that_was_given(data: Path, tmp_path: Path) -> None:
    options = pocket_options(data, tmp_path / "a folder" / "out", max_steps=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options))
    ended = command(tmp_path, "train", str(tmp_path / "recipe.yaml"), "--logging_steps", "1")
    assert ended.code == 0, ended.output[-2000:]
    log = json.loads((tmp_path / "a folder" / "out" / "training.json").read_text())
    assert log["command"] == f"ahn train {tmp_path / 'recipe.yaml'} --logging_steps 1"
    train(Recipe(**{**options, "output_dir": str(tmp_path / "python")}))
    folder = tmp_path / "python"
    assert json.loads((folder / "training.json").read_text())["command"] is None
    assert "started from Python" in (folder / "README.md").read_text()
