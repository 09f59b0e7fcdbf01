"""FSDP2: weights lie in parts on two processes; losses, checkpoints and results are as on one.

accelerate shards on accelerators only, so here it is told that a CPU is one. What shards, gathers
and saves is real, over gloo. Not tried: the same over NCCL on GPUs; DeepSpeed, except what happens
when it is not installed.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from ahn.distill.distillation import DistillTrainer
from ahn.distill.options import training_arguments
from ahn.distill.recipe import Recipe
from ahn.distill.run import train
from tests.ahn.distill.processes import ON_CPU, command, forked, killed
from tests.ahn.distill.recipes import pocket_options, write_conversations

FSDP2: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "data.jsonl")


def shard_on_cpu() -> None:
    """In a fork: accelerate takes CPU processes for devices that FSDP is for."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        plugin = options.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = plugin
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = init


def train_sharded(options: dict[str, Any]) -> None:
    """In a fork: train, and see that every parameter does lie in parts."""
    from torch.distributed.tensor import DTensor

    shard_on_cpu()
    step = DistillTrainer.training_step

    def checked(self: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor), name
            assert parameter.to_local().numel() < parameter.numel() or parameter.dim() == 0, name
        return step(self, model, *arguments, **named)

    DistillTrainer.training_step = checked  # type: ignore[method-assign]
    train(Recipe(**options))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "configuration", "tolerance"),
    [
        ({"loss_type": "kl+ce+distill", "gradient_checkpointing": True}, {}, 1e-5),
        # bfloat16 rounds sums that two processes form in another order
        ({"bf16": True, "save_ahn_only": False}, {"activation_checkpointing": True}, 2e-3),
    ],
)
def test_sharded_training_gives_what_one_process_gives(
    data: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    configuration: dict[str, Any],
    tolerance: float,
) -> None:
    options = pocket_options(data, tmp_path / "one", **changes, gradient_accumulation_steps=2)
    expected = load_file(train(Recipe(**options)) / "model.safetensors")
    fsdp = {"fsdp": True, "fsdp_config": {"version": 2, **configuration}}
    options = pocket_options(
        data, tmp_path / "two", **changes, training_arguments={**ON_CPU, **fsdp}
    )
    ended = forked(tmp_path, train_sharded, options, ranks=2)
    assert ended.code == 0, ended.output[-3000:]
    found = load_file(tmp_path / "two" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        if ".ahn.fn." in name:
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance)
        else:
            assert torch.equal(found[name], tensor), name
    assert (tmp_path / "two" / "README.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_a_killed_sharded_run_resumes_to_the_same_weights(
    data: Path, tmp_path: Path, kind: str
) -> None:
    fsdp = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": kind}}
    options = pocket_options(data, tmp_path / "whole", max_steps=3, gradient_accumulation_steps=2)
    train(Recipe(**options))  # in one process
    options |= {"output_dir": str(tmp_path / "killed"), "gradient_accumulation_steps": 1}
    options["training_arguments"] = {**ON_CPU, **fsdp}

    def dies() -> None:
        shard_on_cpu()
        killed(Recipe(**options), "pass", "3")

    assert forked(tmp_path, dies, ranks=2).code < 0
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    resumed = forked(tmp_path, train_sharded, options, ranks=2)
    assert resumed.code == 0, resumed.output[-3000:]
    whole, found = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "killed"))
    for name in whole:
        torch.testing.assert_close(whole[name], found[name], rtol=0, atol=1e-6)
    # one process without FSDP cannot read that checkpoint, and says so
    log = tmp_path / "recipe.json"
    log.write_text(json.dumps({**options, "training_arguments": ON_CPU, "max_steps": 4}))
    ended = command(tmp_path, "train", str(log))
    assert ended.code == 2 and "cannot go on from this checkpoint" in ended.output
    assert "--fresh" in ended.output and "Traceback" not in ended.output


@dataclass
class Recorded(TrainingArguments):
    """Holds what it is given, and needs no package for it."""

    def __post_init__(self) -> None:
        pass


def test_a_deepspeed_configuration_reaches_transformers_as_it_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zero2.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "train_batch_size": "auto"}))
    extra = {**ON_CPU, "deepspeed": str(path)}
    options = pocket_options(data, tmp_path / "out", training_arguments=extra)
    if importlib.util.find_spec("deepspeed") is None:
        (tmp_path / "recipe.json").write_text(json.dumps(options))
        ended = command(tmp_path, "train", str(tmp_path / "recipe.json"))
        assert ended.code == 2 and "pip install deepspeed" in ended.output, ended.output
        assert "Traceback" not in ended.output
    monkeypatch.setattr("ahn.distill.options.TrainingArguments", Recorded)
    assert training_arguments(Recipe(**options)).deepspeed == str(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_sharded_training_saves_the_best_weights_and_counts_what_it_skipped(
    data: Path, tmp_path: Path, kind: str
) -> None:
    """A rate that is far too high: the first evaluation is the best. Half of the rows have nothing
    to learn from; a sharded checkpoint keeps their number, too."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows[::2]:
        row["messages"] = [{"role": "user", "content": "00"}, *row["messages"][1:]]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = tmp_path / "few.jsonl"
    few.write_text("".join(data.read_text().splitlines(keepends=True)[:4]))
    chosen: dict[str, Any] = {"eval_dataset": str(few), "eval_steps": 1, "max_steps": 3}
    chosen |= {"early_stopping_patience": 2, "learning_rate": 0.5, "save_total_limit": 5}
    chosen |= {"lr_scheduler_type": "constant"}
    options = pocket_options(mixed, tmp_path / "one", **chosen, gradient_accumulation_steps=2)
    one = train(Recipe(**options))
    expected = load_file(one / "model.safetensors")
    fsdp = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": kind}}
    options = pocket_options(
        mixed, tmp_path / "two", **chosen, training_arguments={**ON_CPU, **fsdp}
    )

    def dies() -> None:
        shard_on_cpu()
        killed(Recipe(**options), "pass", "7")  # each step: a pass to train, two to evaluate

    assert forked(tmp_path, dies, ranks=2).code < 0
    ended = forked(tmp_path, train_sharded, options, ranks=2)
    assert ended.code == 0, ended.output[-3000:]
    logs = [json.loads((tmp_path / n / "training.json").read_text()) for n in ("one", "two")]
    assert logs[0]["saved_step"] == logs[1]["saved_step"] < logs[1]["steps"]
    assert logs[0]["skipped_batches"] == logs[1]["skipped_batches"] > 0
    found = load_file(tmp_path / "two" / "model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)
