"""The trainer: only memories learn, batches with nothing to learn are counted, runs resume."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import ahn
from ahn.distill.data import Collator, Conversations, TokenBudgetBatches
from ahn.distill.distillation import distillation_loss
from ahn.distill.encoding import IGNORED, encode
from ahn.distill.gaps import PositionGaps
from ahn.distill.losses import POSITIONS, ce_loss, kl_loss
from ahn.distill.recipe import Recipe, load_recipe
from ahn.distill.run import train
from ahn.distill.student import draw_span, student_model
from tasks.pocket.tokenizer import write_tokenizer
from tasks.pocket.training import conversations
from tests.ahn.conftest import tokens, variant_model
from tests.ahn.distill.processes import ON_CPU, command, forked, killed


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base model over the pocket vocabulary, and conversations."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("pocket")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=576,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    )
    model.save_pretrained(folder / "base")
    write_tokenizer(folder / "base")
    rows = [json.dumps(row) for row in conversations("student", 0.004)]
    (folder / "data.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def recipe(pocket: Path, output: Path, **options: Any) -> Recipe:
    values: dict[str, Any] = {
        "model_name_or_path": str(pocket / "base"),
        "output_dir": str(output),
        "dataset": str(pocket / "data.jsonl"),
        "sliding_window_type": "random",
        "sliding_window_choices": [48, 64],
        "ahn_position": "random",
        "num_attn_sinks_choices": [0, 4],
        "sliding_window": 64,
        "num_attn_sinks": 4,
        "tokens_per_batch": 1024,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "logging_steps": 1,
        "save_steps": 2,
        "threads": 1,
        "position_gap": 512,
    }
    return Recipe(**{**values, **options})


#: batches as the Trainer makes them, instead of by tokens
BY_SAMPLE: dict[str, Any] = {"tokens_per_batch": None, "position_gap": 0}


def run(pocket: Path, output: Path, **options: Any) -> dict[str, torch.Tensor]:
    return load_file(train(recipe(pocket, output, **options)) / "model.safetensors")


def test_training_changes_memories_only_and_says_what_it_did(pocket: Path, tmp_path: Path) -> None:
    before = (pocket / "base" / "model.safetensors").read_bytes()
    weights = run(pocket, tmp_path / "out")
    assert before == (pocket / "base" / "model.safetensors").read_bytes()
    assert all(".ahn.fn." in name for name in weights)
    assert weights["model.layers.0.ahn.fn.o_proj.weight"].any()
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert log["steps"] == 6 and len(log["history"]) == 6 and log["seconds"] > 0
    assert log["machine"]["torch"] == torch.__version__
    assert (tmp_path / "out" / "loss.svg").read_text().startswith("<svg xmlns=")
    model = ahn.load_model(pocket / "base", ahn=tmp_path / "out")
    assert (model.layout[0].window, model.layout[0].sinks) == (60, 4)
    base = load_file(pocket / "base" / "model.safetensors")
    for name, parameter in model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name])


def test_only_memories_get_gradients(pocket: Path, tmp_path: Path) -> None:
    model = student_model(recipe(pocket, tmp_path))
    for name, parameter in model.named_parameters():
        used = ".ahn.fn." in name and not name.endswith(".fn.D")  # D is read by nothing
        assert parameter.requires_grad == used, name


@pytest.mark.parametrize(
    ("changes", "killed_at"),
    [
        pytest.param({}, ["pass 1", "pass 3", "saving 4", "pass 6"], marks=pytest.mark.slow),
        ({**BY_SAMPLE, "gradient_accumulation_steps": 2, "max_steps": 3}, ["pass 6"]),
        ({**BY_SAMPLE, "streaming": True}, ["pass 4"]),
    ],
)
def test_a_killed_run_resumes_to_the_same_weights(
    pocket: Path, tmp_path: Path, changes: dict[str, Any], killed_at: list[str]
) -> None:
    """Killed before there is a checkpoint, between two, while one is written, in the last step."""
    changes = {**changes, "training_arguments": ON_CPU}
    whole = run(pocket, tmp_path / "whole", **changes)
    for number, moment in enumerate(killed_at):
        options = recipe(pocket, tmp_path / str(number), **changes)
        ended = forked(tmp_path, killed, options, *moment.split())
        assert ended.code == -signal.SIGKILL, ended.output[-2000:]
        assert not (tmp_path / str(number) / "model.safetensors").exists()
        resumed = run(pocket, tmp_path / str(number), **changes)
        assert whole.keys() == resumed.keys()
        for name in whole:
            assert torch.equal(whole[name], resumed[name]), (moment, name)


def test_batches_with_nothing_to_learn_are_skipped() -> None:
    model, ids = variant_model("ahn"), tokens(60, rows=2)
    labels = ids.clone()
    inputs = {"input_ids": ids}
    assert distillation_loss(model, inputs, labels, (60, 4), ["kl"]) is None
    assert distillation_loss(model, inputs, labels, (80, 4), ["kl", "distill"]) is None
    nothing = torch.full_like(labels, IGNORED)
    assert distillation_loss(model, inputs, nothing, (16, 4), ["kl", "ce"]) is None
    loss = distillation_loss(model, inputs, labels, (16, 4), ["kl", "ce", "distill"])
    assert loss is not None and torch.isfinite(loss)


def test_padding_does_not_enter_the_attention_loss() -> None:
    model, ids = variant_model("ahn"), tokens(60)
    alone = distillation_loss(model, {"input_ids": ids}, ids, (16, 4), ["distill"])
    padded = F.pad(ids, (0, 40))
    inputs = {"input_ids": padded, "attention_mask": (torch.arange(100) < 60).long()[None]}
    together = distillation_loss(model, inputs, padded, (16, 4), ["distill"])
    assert alone is not None and together is not None
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_accumulated_batches_are_averaged(pocket: Path, tmp_path: Path) -> None:
    losses = []
    for accumulation in (1, 4):
        options = {"max_steps": 1, "gradient_accumulation_steps": accumulation}
        run(pocket, tmp_path / str(accumulation), **options)
        log = json.loads((tmp_path / str(accumulation) / "training.json").read_text())
        losses.append(log["history"][0]["loss"])
    assert losses[1] < 2 * losses[0]  # a sum of four would be about four times as much


def test_kl_of_a_model_with_itself_is_zero_and_positive_otherwise() -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False)
    hidden = torch.randn(2 * POSITIONS + 3, 16, generator=generator)
    other = hidden + 0.1 * torch.randn(hidden.shape, generator=generator)
    assert kl_loss(hidden, hidden, head).abs() < 1e-6
    assert kl_loss(other, hidden, head) > 1e-4


def test_losses_in_chunks_equal_whole_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(2 * POSITIONS + 3, 16, generator=generator)
    teacher = torch.randn(hidden.shape, generator=generator)
    targets = torch.randint(0, 50, (len(hidden),), generator=generator)
    gradients = []
    for chunked in (True, False):
        student = hidden.clone().requires_grad_()
        if chunked:
            loss = kl_loss(student, teacher, head) + ce_loss(student, targets, head)
        else:
            logits, wanted = head(student), head(teacher)
            loss = F.kl_div(
                logits.log_softmax(-1),
                wanted.log_softmax(-1),
                log_target=True,
                reduction="batchmean",
            ) + F.cross_entropy(logits, targets)
        loss.backward()
        gradients.append((loss.detach(), student.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


def test_spans_follow_the_recipe(pocket: Path, tmp_path: Path) -> None:
    drawn = recipe(
        pocket,
        tmp_path,
        sliding_window_choices=[32, 64, 128, 256],
        num_attn_sinks_choices=[0, 32, 64, 128],
    )
    rng = random.Random(0)
    spans = {draw_span(drawn, 300, rng) for _ in range(300)}
    assert {span[0] for span in spans if span} == {64, 128, 256}  # L/8 < W_total < L
    assert all(span and span[1] <= span[0] / 2 for span in spans)
    assert draw_span(drawn, 32, rng) is None
    fixed = recipe(pocket, tmp_path, sliding_window_type="fixed", ahn_position="prefix")
    assert draw_span(fixed, 300, rng) == (64, 0)  # prefix: no sinks
    linear = recipe(pocket, tmp_path, sliding_window_type="linear", ahn_position="prefix")
    assert draw_span(linear, 8000, rng) == (2000, 0) and draw_span(linear, 513, rng) == (512, 0)


def test_labels_stand_on_assistant_turns_only(pocket: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket / "base")
    sample = encode(
        tokenizer,
        [
            {"role": "user", "content": "what is table ? table :"},
            {"role": "assistant", "content": "17 42 ."},
            {"role": "user", "content": "what is lamp ? lamp :"},
            {"role": "assistant", "content": "05 06 ."},
        ],
    )
    words = tokenizer.convert_ids_to_tokens(sample.input_ids)
    labelled = [w.strip() for w, x in zip(words, sample.labels, strict=True) if x != IGNORED]
    assert labelled == ["17", "42", ".", "05", "06", "."]
    assert words[0] == "<bos>" and words.count("<bos>") == 1


def test_samples_are_filtered_cut_and_counted(pocket: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket / "base")
    kept = Conversations(recipe(pocket, tmp_path, filter_len=300, cutoff_len=350), tokenizer)
    assert kept.counts["too_short"] > 0 and kept.counts["cut"] > 0
    lengths = [len(kept[i]["input_ids"]) for i in range(len(kept))]
    assert lengths == list(kept.lengths)
    assert all(300 < length <= 350 for length in lengths)
    batches = list(TokenBudgetBatches(kept.lengths, 1024))
    assert [i for batch in batches for i in batch] == list(range(len(kept)))
    assert all(len(b) * max(lengths[i] for i in b) <= 1024 for b in batches)
    batch = Collator(0)([kept[0], kept[1]])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape


def test_position_gaps_only_stretch_and_are_the_same_each_time() -> None:
    samples = [300] * 40
    batches = [[i, i + 1] for i in range(0, 40, 2)]
    gaps, again = (PositionGaps(samples, batches, 1000, seed=3) for _ in range(2))
    drawn = [gaps.position_ids(batch[0], 2, 300) for batch in batches]
    assert 0 < sum(positions is not None for positions in drawn) < len(batches)
    for batch, positions in zip(batches, drawn, strict=True):
        if positions is not None:
            steps = positions.diff(dim=1)
            assert (steps >= 1).all() and (steps > 1).any() and positions.max() < 300 + 2000
            repeated = again.position_ids(batch[0], 2, 300)
            assert repeated is not None and torch.equal(positions, repeated)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"ahn_implementation": "LSTM"}, "cell 'LSTM' is unknown"),
        ({"loss_type": "mse"}, "is not kl, ce and distill"),
        ({"sliding_windov": 3}, "sliding_windov"),
        ({"num_attn_sinks": 64}, "must exceed num_attn_sinks"),
        ({"model_name_or_path": None}, "exactly one of"),
    ],
)
def test_bad_recipes_are_named(
    pocket: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    values = recipe(pocket, tmp_path).model_dump(exclude_defaults=True) | changes
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    with pytest.raises(ahn.InputError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "line,message",
    [
        ("{", "data.jsonl:2: not JSON"),
        ("{}", "data.jsonl:2: 'messages' (or 'conversations') is missing"),
        ('{"messages": [{"role": "user"}]}', "data.jsonl:2: each message needs"),
    ],
)
def test_bad_data_is_named_by_line(pocket: Path, tmp_path: Path, line: str, message: str) -> None:
    good = (pocket / "data.jsonl").read_text().splitlines()[0]
    (tmp_path / "data.jsonl").write_text(f"{good}\n{line}\n")
    values = recipe(
        pocket, tmp_path, dataset=str(tmp_path / "data.jsonl"), training_arguments=ON_CPU
    )
    (tmp_path / "recipe.yaml").write_text(json.dumps(values.model_dump(exclude_defaults=True)))
    ended = command(tmp_path, "train", str(tmp_path / "recipe.yaml"))
    assert ended.code == 2 and message in ended.output
    assert "Traceback" not in ended.output and not (tmp_path / "model.safetensors").exists()
