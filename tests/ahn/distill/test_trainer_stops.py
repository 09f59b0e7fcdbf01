"""How a training ends: with numbers that are none, without a better loss, without room or network.

Whatever ends it, it is told in one message, and nothing is left that is not whole.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ahn
from ahn.distill import distillation, files, run, trainer
from ahn.distill.distillation import DistillTrainer
from ahn.distill.provenance import strict_json
from ahn.distill.recipe import Recipe
from ahn.distill.run import train
from ahn.distill.student import student_model
from ahn.distill.trainer import RecipeTrainer
from tests.ahn.distill.processes import ON_CPU, command, forked, in_processes, killed
from tests.ahn.distill.recipes import pocket_options, write_conversations


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "data.jsonl")


def stopped(options: dict[str, Any]) -> str:
    """What a training says that ends by itself; whatever it saved is finite."""
    with pytest.raises(ahn.InputError) as caught:
        train(Recipe(**options))
    output = Path(options["output_dir"])
    assert not (output / "model.safetensors").exists()
    for path in output.rglob("model.safetensors"):
        for name, tensor in load_file(path).items():
            assert bool(torch.isfinite(tensor).all()), (path, name)
    return str(caught.value)


class Poisoned:
    """Puts `value` into the n-th call's loss, or into all gradients of the n-th backward pass."""

    def __init__(self, value: float, call: int) -> None:
        self.value, self.call, self.calls = value, call, 0

    def loss(self, original: Any) -> Any:
        """A loss function whose n-th result has the value added, its gradient as it was."""

        def poisoned(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            loss = original(*arguments, **named)
            return loss + (self.value if self.calls == self.call else 0.0)

        return poisoned

    def model(self, original: Any) -> Any:
        """A model one of whose parameters has such a gradient."""

        def made(recipe: Recipe) -> Any:
            model = original(recipe)
            parameter = model.model.layers[1].ahn.fn.o_proj.weight

            def hook(gradient: torch.Tensor) -> torch.Tensor:
                self.calls += 1
                factor = self.value if self.calls == self.call else 1.0
                return gradient * factor

            parameter.register_hook(hook)
            return model

        return made


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_a_loss_that_is_no_number_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Its gradient is fine, and the Trainer alone would log 0 and go on."""
    poisoned = Poisoned(value, call=3)
    monkeypatch.setattr(distillation, "kl_loss", poisoned.loss(distillation.kl_loss))
    text = stopped(pocket_options(data, tmp_path / "out", max_steps=5, loss_type="kl+ce"))
    assert "stopped at step 3: the loss is not a finite number (kl)" in text
    assert "checkpoint-2 is as it was" in text and poisoned.calls == 3
    folders = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert folders == ["checkpoint-2"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30], ids=str)
def test_a_gradient_that_is_no_number_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Of 1e30 each number is finite and their norm is not: clipping would make all of them 0."""
    poisoned = Poisoned(value, call=2)
    monkeypatch.setattr(run, "student_model", poisoned.model(student_model))
    options = pocket_options(data, tmp_path / "out", max_steps=5, ahn_name_or_path="pocket")
    options |= {"gradient_accumulation_steps": 2}
    text = stopped(options)
    assert "stopped at step 1: the gradient's norm is" in text
    if value == float("inf"):  # clipping by NaN makes all of them NaN
        assert "(model.model.layers.1.ahn.fn.o_proj.weight" in text
    assert "No checkpoint was written before" in text
    assert not (tmp_path / "out").exists()


def test_without_clipping_too(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned = Poisoned(float("nan"), call=2)
    monkeypatch.setattr(run, "student_model", poisoned.model(student_model))
    options = pocket_options(data, tmp_path / "out", max_steps=5, max_grad_norm=0.0)
    assert "stopped at step 2: the gradient's norm is nan" in stopped(options)


@pytest.mark.parametrize("save_steps", [2, 9])
def test_weights_that_are_no_numbers_are_not_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_steps: int
) -> None:
    """The last step spoils them: no loss comes after it."""
    original = trainer.new_optimizer

    def spoiling(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = original(*arguments)
        steps: list[int] = []

        def spoil(*_: Any) -> None:
            steps.append(1)
            if len(steps) == 2:
                optimizer.param_groups[1]["params"][0].data[0] = float("inf")

        optimizer.register_step_post_hook(spoil)
        return optimizer

    monkeypatch.setattr(trainer, "new_optimizer", spoiling)
    extra = {**ON_CPU, "save_strategy": "no"} if save_steps == 9 else ON_CPU
    options = pocket_options(data, tmp_path / "out", max_steps=2, save_steps=save_steps)
    text = stopped({**options, "training_arguments": extra})
    assert "stopped at step 2: weights are not finite numbers (model.model.layers.0.ahn" in text
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_ends_where_it_does(data: Path, tmp_path: Path) -> None:
    options = pocket_options(data, tmp_path / "out", learning_rate=1e30, max_steps=9)
    text = stopped(options)
    assert "the training stopped at step" in text and "Lower learning_rate" in text
    (tmp_path / "recipe.json").write_text(json.dumps(options))
    again = ("--output_dir", str(tmp_path / "again"))
    ended = command(tmp_path, "train", str(tmp_path / "recipe.json"), *again)
    assert ended.code == 2 and "Traceback" not in ended.output
    assert ended.output.count("error: ") == 1 and "'loss': '0'" not in ended.output


def test_all_processes_end_where_one_has_no_number(data: Path, tmp_path: Path) -> None:
    options = pocket_options(data, tmp_path / "out", max_steps=5)

    def one_is_poisoned() -> None:
        if os.environ["RANK"] == "1":
            poisoned = Poisoned(float("inf"), call=3)
            distillation.kl_loss = poisoned.loss(distillation.kl_loss)
        try:
            train(Recipe(**options))
        except ahn.InputError as error:
            print(f"rank {os.environ['RANK']}: {error}")
            raise SystemExit(2) from None

    ended = forked(tmp_path, one_is_poisoned, ranks=2)
    assert ended.code == 2
    for rank in (0, 1):
        assert f"rank {rank}: the training stopped at step 3: the loss" in ended.output


def test_an_evaluation_that_is_no_number_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned = Poisoned(float("nan"), call=2)  # the first of an evaluation
    monkeypatch.setattr(distillation, "kl_loss", poisoned.loss(distillation.kl_loss))
    options = pocket_options(data, tmp_path / "out", eval_dataset=str(data), eval_steps=1)
    assert "step 1: the loss of eval_dataset is nan" in stopped(options)


def test_a_base_with_weights_that_are_no_numbers_is_named(data: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(ahn.POCKET_PATH, base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    options = pocket_options(data, tmp_path / "out", model_name_or_path=str(base))
    with pytest.raises(ahn.InputError, match="not finite numbers.*model.norm.weight"):
        train(Recipe(**options))
    assert not (tmp_path / "out").exists()


def test_the_log_is_strict_json() -> None:
    """fp16 leaves out steps with infinite gradients, by design, and logs their norm."""
    values = {"history": [{"loss": 1.5, "grad_norm": float("inf")}, {"x": (float("nan"), 2)}]}

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(strict_json(values), parse_constant=refuse)
    assert read == {"history": [{"loss": 1.5, "grad_norm": None}, {"x": [None, 2]}]}


# --- early stopping ---


def evaluating(data: Path, output: Path, **options: Any) -> dict[str, Any]:
    """A training whose evaluation gets better and worse again."""
    chosen: dict[str, Any] = {
        "eval_dataset": str(data),
        "eval_steps": 1,
        "early_stopping_patience": 2,
        "max_steps": 9,
        "save_steps": 100,
    }
    return pocket_options(data, output, **{**chosen, **options})


@pytest.fixture
def losses_of_evaluations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The losses that evaluations find, in their order, instead of what they are."""
    wanted = [5.0, 3.0, 2.0, 2.5, 2.0, 1.0, 0.5, 0.4, 0.3]
    original = DistillTrainer.evaluation_loop

    def evaluation_loop(self: Any, *arguments: Any, **named: Any) -> Any:
        output = original(self, *arguments, **named)
        output.metrics["eval_loss"] = wanted[self.state.global_step - 1]
        return output

    monkeypatch.setattr(DistillTrainer, "evaluation_loop", evaluation_loop)
    return wanted


@pytest.mark.slow
def test_early_stopping_saves_the_best_weights(
    data: Path, tmp_path: Path, losses_of_evaluations: list[float]
) -> None:
    """Two evaluations no better than the third: it stops at 5 and saves the weights of step 3."""
    folder = train(Recipe(**evaluating(data, tmp_path / "out")))
    log = json.loads((folder / "training.json").read_text())
    assert (log["steps"], log["saved_step"]) == (5, 3)
    card = (folder / "README.md").read_text()
    assert "those of step 3, with the lowest evaluation loss, 2" in card
    plain = evaluating(data, tmp_path / "plain", early_stopping_patience=None, save_steps=3)
    plain |= {"save_total_limit": 9}
    train(Recipe(**plain))
    third = load_file(tmp_path / "plain" / "checkpoints" / "checkpoint-3" / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(".fn.D"):
            assert torch.equal(third[f"model.{name}"], tensor), name
    log = json.loads((tmp_path / "plain" / "training.json").read_text())
    assert (log["steps"], log["saved_step"]) == (9, 9)


@pytest.mark.slow
def test_a_stopped_run_is_finished_and_a_killed_one_stops_at_the_same_step(
    data: Path, tmp_path: Path, losses_of_evaluations: list[float]
) -> None:
    options = evaluating(data, tmp_path / "out", save_steps=2)
    whole = load_file(train(Recipe(**options)) / "model.safetensors")
    before = (tmp_path / "out" / "training.json").read_bytes()
    train(Recipe(**options))  # it does not go on where it stopped
    assert (tmp_path / "out" / "training.json").read_bytes() == before
    # five passes of training and twelve of evaluation a step: killed in the fifth step
    options["output_dir"] = str(tmp_path / "killed")
    assert forked(tmp_path, killed, Recipe(**options), "pass", str(4 * 13 + 1)).code < 0
    moved = tmp_path / "moved"
    (tmp_path / "killed").rename(moved)  # the path of the best checkpoint is another one
    folder = train(Recipe(**{**options, "output_dir": str(moved)}))
    log = json.loads((folder / "training.json").read_text())
    assert (log["steps"], log["saved_step"]) == (5, 3)
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    # more patience: it goes on
    folder = train(Recipe(**{**options, "output_dir": str(moved), "early_stopping_patience": 5}))
    log = json.loads((folder / "training.json").read_text())
    assert (log["steps"], log["saved_step"]) == (9, 9)


@pytest.mark.slow
def test_two_processes_save_the_best_weights(data: Path, tmp_path: Path) -> None:
    """A learning rate of nearly nothing after a great one: the best is not the last."""
    options = evaluating(data, tmp_path / "two", max_steps=4, learning_rate=0.5)
    options |= {"lr_scheduler_type": "constant", "early_stopping_patience": 3}
    in_processes(tmp_path, 2, options)
    log = json.loads((tmp_path / "two" / "training.json").read_text())
    losses = {row["step"]: row["eval_loss"] for row in log["history"] if "eval_loss" in row}
    best = min(losses, key=lambda step: losses[step])
    assert log["saved_step"] == best < log["steps"]
    kept = tmp_path / "two" / "checkpoints" / f"checkpoint-{best}" / "model.safetensors"
    saved = load_file(tmp_path / "two" / "model.safetensors")
    assert all(
        torch.equal(saved[name.removeprefix("model.")], tensor)
        for name, tensor in load_file(kept).items()
    )


@pytest.mark.slow
def test_best_weights_that_are_gone_are_told(
    data: Path, tmp_path: Path, losses_of_evaluations: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_best = RecipeTrainer.load_best

    def gone(self: Any) -> Any:
        shutil.rmtree(Path(self.args.output_dir) / "checkpoint-3")
        return load_best(self)

    monkeypatch.setattr(RecipeTrainer, "load_best", gone)
    with pytest.raises(ahn.InputError, match="lowest evaluation loss is not there"):
        train(Recipe(**evaluating(data, tmp_path / "out")))


def test_the_last_step_is_evaluated(data: Path, tmp_path: Path) -> None:
    options = evaluating(data, tmp_path / "out", max_steps=3, eval_steps=500)
    log = json.loads((train(Recipe(**options)) / "training.json").read_text())
    assert [row["step"] for row in log["history"] if "eval_loss" in row] == [3]


# --- disks, modes, folders ---


@pytest.mark.parametrize(
    ("error", "free", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 10**9, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 10**9, True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 10**9, True),
        (RuntimeError("[enforce fail at inline_container.cc:664] file write failed"), 0, True),
        (OSError(errno.EFBIG, "File too large"), 10**9, False),
        (RuntimeError("something else"), 10**9, False),
    ],
)
def test_a_full_disk_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, free: int, full: bool
) -> None:
    class Usage:
        pass

    usage = Usage()
    usage.free = free  # type: ignore[attr-defined]
    monkeypatch.setattr("ahn.distill.files.shutil.disk_usage", lambda path: usage)
    text = files.why_not_written(error, tmp_path / "not" / "there")
    assert ("the disk is full" in text) is full and str(error.args[-1]) in text
    assert "\n" not in text


def test_a_checkpoint_on_a_full_disk_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(distillation, "save_file", full)
    options = pocket_options(data, tmp_path / "out")
    with pytest.raises(ahn.InputError, match="checkpoint cannot be written: the disk is full"):
        train(Recipe(**options))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr("ahn.distill.outputs._loss_curve", full)
    with pytest.raises(ahn.InputError, match="weights cannot be written: the disk is full"):
        train(Recipe(**options))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("mask", [0o027, 0o077, 0o002], ids=oct)
def test_files_have_the_mode_that_the_umask_gives(data: Path, tmp_path: Path, mask: int) -> None:
    """safetensors makes its files 0600, and then nobody else of the group can read them."""
    before = os.umask(mask)
    try:
        options = pocket_options(data, tmp_path / "out", save_ahn_only=mask != 0o002, max_steps=1)
        folder = train(Recipe(**options))
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert "model.safetensors" in modes and "checkpoints/checkpoint-1/model.safetensors" in modes
    assert set(modes.values()) == {0o666 & ~mask}, modes


@pytest.mark.parametrize(
    "changes",
    [
        {"training_arguments": {**ON_CPU, "optim": "grokadamw"}},  # a package that is not there
        {"training_arguments": {**ON_CPU, "optim": "stable_adamw"}},
        {"ahn_name_or_path": "pocket/dn"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_refused_training_leaves_no_folder(
    data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    output = tmp_path / "deep" / "out"
    with pytest.raises(ahn.InputError):
        train(Recipe(**pocket_options(data, output, **changes)))
    assert not (tmp_path / "deep").exists()
    # what was there before stays, though it is empty
    output.mkdir(parents=True)
    with pytest.raises(ahn.InputError):
        train(Recipe(**pocket_options(data, output, **changes)))
    assert list((tmp_path / "deep").iterdir()) == [output] and not list(output.iterdir())


@pytest.mark.slow
def test_ranks_wait_for_the_one_that_tokenises_longer_than_a_collective_may_take(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three seconds of tokenising, with two seconds for anything that processes do together."""
    monkeypatch.setenv("AHN_BENCH_CACHE", str(tmp_path / "cache"))
    extra = {**ON_CPU, "ddp_timeout": 2}
    options = pocket_options(data, tmp_path / "out", training_arguments=extra)

    def slowly() -> None:
        import time

        from ahn.distill.tokenising import EncodedRows

        original = EncodedRows.__iter__

        def encoded(self: Any) -> Any:
            time.sleep(4)
            return original(self)

        EncodedRows.__iter__ = encoded  # type: ignore[method-assign]
        logging.basicConfig(force=True)
        train(Recipe(**options))

    ended = forked(tmp_path, slowly, ranks=2)
    assert ended.code == 0, ended.output[-3000:]
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "waiting for another process" in ended.output
