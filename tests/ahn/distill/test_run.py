"""Trainings as they are run: two processes, mixed precision, checkpointing, full disks, cards."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer

import ahn
from ahn.distill.distillation import Distillation, distillation_loss
from ahn.distill.encoding import encode
from ahn.distill.recipe import Recipe
from ahn.distill.run import train
from ahn.distill.student import student_model
from tests.ahn.conftest import tokens, variant_model
from tests.ahn.distill.processes import ON_CPU, command, forked, in_processes, killed
from tests.ahn.distill.recipes import pocket_options, write_conversations

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("batches", [{}, {"tokens_per_batch": 300}, {"streaming": True}])
def test_two_processes_give_what_one_with_accumulated_gradients_gives(
    data: Path, tmp_path: Path, batches: dict[str, Any]
) -> None:
    one = pocket_options(data, tmp_path / "one", gradient_accumulation_steps=2, **batches)
    two = pocket_options(data, tmp_path / "two", **batches)
    expected = load_file(train(Recipe(**one)) / "model.safetensors")
    in_processes(tmp_path, 2, two)
    found = load_file(tmp_path / "two" / "model.safetensors")
    assert found.keys() == expected.keys()
    moved = 0.0
    fresh = student_model(Recipe(**one)).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-6)
        moved = max(moved, float((tensor - fresh[name]).abs().max()))
    assert moved > 1e-3  # something was trained
    log = json.loads((tmp_path / "two" / "training.json").read_text())
    assert log["processes"] == 2 and log["steps"] == 2


@pytest.mark.slow
def test_torchrun_starts_the_command(data: Path, tmp_path: Path) -> None:
    """The launcher and a recipe of flags alone; what it computes is tested above."""
    words = [f"--{name}={value}" for name, value in pocket_options(data, tmp_path / "out").items()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node=2", "-m", "ahn.cli", "train"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*launcher, *words], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count(f"weights: {tmp_path / 'out'}") == 1
    assert json.loads((tmp_path / "out" / "training.json").read_text())["processes"] == 2


@pytest.mark.parametrize("cell", ahn.CELLS)
def test_qwen3_gets_memories_too(data: Path, tmp_path: Path, cell: str) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 20}
    base = Qwen3ForCausalLM(Qwen3Config(vocab_size=576, **sizes, **heads, initializer_range=0.2))
    base.save_pretrained(tmp_path / "base")
    for path in ahn.POCKET_PATH.glob("*token*.json"):
        shutil.copy(path, tmp_path / "base")
    named = {"model_name_or_path": str(tmp_path / "base"), "ahn_implementation": cell}
    folder = train(Recipe(**pocket_options(data, tmp_path / "out", **named, max_steps=3)))
    weights = load_file(folder / "model.safetensors")
    assert all(weights[f"model.layers.{n}.ahn.fn.o_proj.weight"].any() for n in range(2))
    model = ahn.load_model(tmp_path / "base", ahn=folder)
    assert model.config.model_type == "qwen3_ahn" and model.layout[0].cell == cell


def test_gradient_checkpointing_changes_nothing() -> None:
    """Losses that look inside the layers too (`distill` takes what stands before `o_proj`)."""
    gradients = []
    for checkpointing in (False, True):
        model, ids = variant_model("ahn"), tokens(60, rows=2)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".ahn.fn." in name)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        loss = distillation_loss(model, {"input_ids": ids}, ids, (16, 4), ["kl", "ce", "distill"])
        assert loss is not None
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-8)


def test_bf16_keeps_the_base_in_bfloat16_and_masters_in_float32(data: Path, tmp_path: Path) -> None:
    options = pocket_options(data, tmp_path / "out", bf16=True, gradient_checkpointing=True)
    model = student_model(Recipe(**options))
    kinds = {p.dtype for n, p in model.named_parameters() if ".ahn.fn." in n}
    assert kinds == {torch.float32}
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    weights = load_file(train(Recipe(**options)) / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert all(0 < row["loss"] < 100 for row in log["history"])
    assert ahn.load_model(ahn.POCKET_PATH, ahn=tmp_path / "out", dtype="bfloat16") is not None


def test_layers_that_keep_full_attention_get_no_memory(data: Path, tmp_path: Path) -> None:
    folder = train(Recipe(**pocket_options(data, tmp_path / "out", fa_layer_ids="0,2")))
    assert {name.split(".")[2] for name in load_file(folder / "model.safetensors")} == {"1"}
    model = ahn.load_model(ahn.POCKET_PATH, ahn=folder)
    assert [layer.cell for layer in model.layout] == [None, "GatedDeltaNet", None]
    with pytest.raises(ahn.InputError, match="fa_layer_ids.*layers 0 to 2"):
        student_model(Recipe(**pocket_options(data, tmp_path, fa_layer_ids=[7])))


def test_a_merged_folder_can_be_asked_for(data: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = train(
        Recipe(**pocket_options(data, tmp_path / "out", save_ahn_only=False, max_steps=1))
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "qwen2_ahn" and model.config.use_cache
    assert (folder / "tokenizer.json").exists()
    # what the trainer held in memory to the end: the base, bit by bit
    base, merged = (load_file(f / "model.safetensors") for f in (ahn.POCKET_PATH, folder))
    assert base.keys() == {name for name in merged if ".ahn.fn." not in name}
    assert all(torch.equal(merged[name], tensor.float()) for name, tensor in base.items())
    saved = torch.load(folder / "checkpoints" / "checkpoint-1" / "optimizer.pt", weights_only=True)
    trained = [n for n in merged if ".ahn.fn." in n and not n.endswith(".fn.D")]
    assert len(saved["state"]) == len(trained)


def test_streaming_trains_and_says_what_it_read(data: Path, tmp_path: Path) -> None:
    options = pocket_options(data, tmp_path / "out", streaming=True, max_steps=3)
    log = json.loads((train(Recipe(**options)) / "training.json").read_text())
    assert log["steps"] == 3 and log["samples"]["kept"] >= 3


@pytest.mark.slow
def test_evaluation_and_early_stopping(data: Path, tmp_path: Path) -> None:
    """A learning rate of nearly nothing: no evaluation is better than the first by much."""
    options = pocket_options(
        data,
        tmp_path / "out",
        eval_dataset=str(data),
        eval_steps=1,
        early_stopping_patience=1,
        learning_rate=1e-30,
        max_steps=8,
    )
    log = json.loads((train(Recipe(**options)) / "training.json").read_text())
    losses = [row["eval_loss"] for row in log["history"] if "eval_loss" in row]
    assert losses and log["steps"] == 2


def test_the_card_tells_recipe_data_and_curve(data: Path, tmp_path: Path) -> None:
    folder = train(Recipe(**pocket_options(data, tmp_path / "out", filter_len=60, cutoff_len=130)))
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "ahn-bench" and "base_model" not in front  # no hub id
    log = json.loads((folder / "training.json").read_text())
    assert log["samples"]["too_short"] > 0 and log["samples"]["cut"] > 0
    for part in ("GatedDeltaNet", "![loss over steps](loss.svg)", "filter_len: 60", "kl_positions"):
        assert part in card
    assert f"| read | {log['samples']['read']} |" in card and "| samples a step | 1 |" in card
    assert (folder / "loss.svg").stat().st_size > 1000
    assert f"{log['trained_parameters']:,} parameters" in card
    assert not (folder / ".unfinished").exists()


def test_nothing_longer_than_the_window_is_refused(data: Path, tmp_path: Path) -> None:
    options = pocket_options(data, tmp_path / "out", sliding_window_choices=[512])
    with pytest.raises(ahn.InputError, match="no sample is longer than the window"):
        train(Recipe(**options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fa_layer_ids": [7]}, "fa_layer_ids: \\[7\\] for a model with layers 0 to 2"),
        ({"model_name_or_path": "/no/where"}, "/no/where"),
        ({"report_to": "nonsense"}, "nonsense is not supported"),
        ({"lr_scheduler_type": "cosin"}, "'?cosin'? is not a valid SchedulerType"),
        ({"training_arguments": {**ON_CPU, "optim": "adamw_nine"}}, "adamw_nine"),
        ({"training_arguments": {**ON_CPU, "fsdp": True, "fsdp_config": "no.json"}}, "no.json"),
    ],
)
def test_what_is_wrong_is_told_before_data_are_tokenised(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    options = pocket_options(tmp_path / "not-there.jsonl", tmp_path / "out", **changes)
    with pytest.raises(ahn.InputError, match=message):
        train(Recipe(**options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_files_that_no_training_wrote_are_not_replaced(
    data: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_text("mine")
    with pytest.raises(ahn.InputError, match=f"holds {name}, which no training wrote"):
        train(Recipe(**pocket_options(data, output)))
    assert [path.name for path in output.iterdir()] == [name]
    assert (output / name).read_text() == "mine"


def test_an_evaluation_inside_the_window_is_refused(data: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "00"},
                    {"role": "assistant", "content": "01"},
                ]
            }
        )
    )
    options = pocket_options(data, tmp_path / "out", eval_dataset=str(short))
    with pytest.raises(ahn.InputError, match="short.jsonl: no sample is longer than the window"):
        train(Recipe(**options))


def test_an_optimiser_of_transformers_can_be_asked_for(data: Path, tmp_path: Path) -> None:
    """Plain SGD leaves no moments in its checkpoint."""
    extra = {**ON_CPU, "optim": "sgd"}
    options = pocket_options(data, tmp_path / "out", training_arguments=extra)
    train(Recipe(**options))
    saved = tmp_path / "out" / "checkpoints" / "checkpoint-2" / "optimizer.pt"
    state = torch.load(saved, weights_only=True)
    assert state["param_groups"] and not any("exp_avg" in s for s in state["state"].values())


def test_rows_without_any_label_are_skipped_not_nan(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Answers inside the window: every batch is skipped, counted, and the weights stay.

    The second answer is lost: too little room is left for it beside a long source.
    """
    tokenizer = AutoTokenizer.from_pretrained(ahn.POCKET_PATH)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        question, answer = row["messages"]
        short = {"role": "user", "content": "00"}
        row["messages"] = [short, answer, question, {"role": "assistant", "content": "."}]
    first = {len(encode(tokenizer, row["messages"][:2]).input_ids) for row in rows}
    assert len(first) == 1
    early = tmp_path / "early.jsonl"
    early.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = {"cutoff_len": min(first) + 2, "sliding_window_choices": [min(first) + 1]}
    options = pocket_options(early, tmp_path / "out", **lengths)
    folder = train(Recipe(**options))
    log = json.loads((folder / "training.json").read_text())
    assert log["skipped_batches"] == 2 and log["samples"]["answers_cut"] == 12
    assert "nothing was learnt: none of 2 batches" in caplog.text
    fresh = student_model(Recipe(**options)).state_dict()
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.isfinite(tensor).all()
        if tensor.dim() == 1:  # matrices are decayed
            assert torch.equal(tensor, fresh[name])


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_saved(data: Path, tmp_path: Path) -> None:
    """The second checkpoint cannot be written: one message, and the run goes on from the first."""
    options = pocket_options(data, tmp_path / "out", max_steps=3)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options))
    train(Recipe(**{**options, "output_dir": str(tmp_path / "whole")}))
    train(Recipe(**{**options, "max_steps": 1}))
    (tmp_path / "out" / "model.safetensors").unlink()
    weights = tmp_path / "out" / "checkpoints" / "checkpoint-1" / "model.safetensors"
    most = weights.stat().st_size // 2

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    ended = command(tmp_path, "train", str(tmp_path / "recipe.yaml"), before=small_files)
    assert ended.code == 2, ended.output[-2000:]
    assert "checkpoint cannot be written" in ended.output and "Traceback" not in ended.output
    assert "checkpoint-1" in ended.output
    assert weights.exists() and not (tmp_path / "out" / "checkpoints" / "checkpoint-2").exists()
    resumed = load_file(train(Recipe(**options)) / "model.safetensors")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_skipped_batches_are_counted_over_processes_and_resumptions(
    data: Path, tmp_path: Path
) -> None:
    """Half of the answers lie in the window: as many are skipped however the run went."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows[::2]:
        question, answer = row["messages"]
        row["messages"] = [{"role": "user", "content": "00"}, answer, question]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = pocket_options(mixed, tmp_path / "whole", max_steps=4, gradient_accumulation_steps=2)

    def skipped(name: str) -> Any:
        return json.loads((tmp_path / name / "training.json").read_text())["skipped_batches"]

    train(Recipe(**options))
    assert 0 < skipped("whole") < 8
    options["output_dir"] = str(tmp_path / "killed")
    assert forked(tmp_path, killed, Recipe(**options), "pass", "6").code < 0
    train(Recipe(**options))
    options |= {"output_dir": str(tmp_path / "two"), "gradient_accumulation_steps": 1}
    in_processes(tmp_path, 2, options)
    assert skipped("killed") == skipped("two") == skipped("whole")
    # evaluation: rows without a loss do not enter its mean, and windows stay the same
    options |= {"output_dir": str(tmp_path / "mixed"), "max_steps": 2, "learning_rate": 1e-30}
    losses = []
    for evaluated, left_out in ((mixed, 0), (tmp_path / "learnt.jsonl", 1)):
        (tmp_path / "learnt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        fixed = {"sliding_window_type": "fixed", "ahn_position": "prefix", "eval_steps": 1}
        kept = rows[1::2] if left_out else rows
        evaluated.write_text("".join(json.dumps(row) + "\n" for row in kept))
        train(Recipe(**{**options, **fixed, "eval_dataset": str(evaluated)}), resume=False)
        log = json.loads((tmp_path / "mixed" / "training.json").read_text())
        losses.append([row["eval_loss"] for row in log["history"] if "eval_loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][0] > 0
    assert losses[0][0] == losses[0][1]


@pytest.mark.slow
def test_weights_that_cannot_be_written_leave_the_last_checkpoint(
    data: Path, tmp_path: Path
) -> None:
    """Room for checkpoints, not for the merged model: nothing half-written, and it goes on."""
    options = pocket_options(data, tmp_path / "out", save_ahn_only=False)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options))

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    ended = command(tmp_path, "train", str(tmp_path / "recipe.yaml"), before=small_files)
    assert ended.code == 2 and "the weights cannot be written" in ended.output, ended.output
    assert "goes on from" in ended.output and "Traceback" not in ended.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoints"]
    folder = train(Recipe(**options))
    assert json.loads((folder / "training.json").read_text())["steps"] == 2
    assert (folder / "model.safetensors").stat().st_size > 1_000_000


@pytest.mark.slow
def test_a_finished_run_takes_no_step_more(data: Path, tmp_path: Path) -> None:
    options = pocket_options(data, tmp_path / "out", max_steps=3, save_total_limit=3)
    folder = train(Recipe(**options))
    files = [folder / "model.safetensors", folder / "training.json"]
    before = [path.read_bytes() for path in files]
    train(Recipe(**options))
    assert before == [path.read_bytes() for path in files]
    files[1].unlink()  # as when there was no room for it
    train(Recipe(**options))
    assert before[0] == files[0].read_bytes()
    assert json.loads(files[1].read_text())["history"] == json.loads(before[1])["history"]
    train(Recipe(**{**options, "max_steps": 4}))  # one that is asked for is taken
    assert json.loads(files[1].read_text())["steps"] == 4
    train(Recipe(**{**options, "max_steps": 1}), resume=False)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-1"]


def test_the_loss_is_a_forward_pass(data: Path, tmp_path: Path) -> None:
    """What DDP, FSDP and DeepSpeed wrap: one module, whose loss depends on all that trains."""
    recipe = Recipe(**pocket_options(data, tmp_path))
    module = Distillation(student_model(recipe), recipe)
    ids = torch.randint(20, 500, (1, 80))
    for span, skipped in (((32, 4), False), (None, True)):
        output = module(input_ids=ids, labels=ids, span=span)
        assert output["skipped"] is skipped
        output["loss"].backward()
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
