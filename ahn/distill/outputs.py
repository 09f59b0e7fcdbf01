"""What a training leaves beside its weights: a log, a loss curve, a model card."""

from __future__ import annotations

import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from ahn.checkpoints.names import name_of
from ahn.distill.options import CHECKPOINTS
from ahn.distill.provenance import RunRecord, strict_json, without_secrets
from ahn.distill.recipe import Recipe
from common.charts import line_chart, standalone
from common.errors import InputError
from common.writing import write_whole

_TERMS = ("kl", "ce", "distill", "key_overlap")
_HISTORY = ("step", "loss", *_TERMS, "eval_loss", *(f"eval_{term}" for term in _TERMS))
_HISTORY += ("learning_rate", "grad_norm")
#: The picture of the losses; trainings before this was drawn here left a loss.png.
LOSS_CURVE = "loss.svg"
#: What a training leaves in its folder under a name that others use, too.
_NAMES = ("README.md", "config.json", LOSS_CURVE, "model.safetensors", "tokenizer.json")


def command_line() -> str | None:
    """The command that runs, as it can be given again; None: a training started from Python."""
    program, *words = sys.argv
    if Path(program).name not in ("ahn", "cli.py"):
        return None
    return shlex.join(["ahn", *words])


def machine() -> dict[str, Any]:
    """What the training ran on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def check_output(output: Path) -> None:
    """Refuse a folder in which files that no training wrote would be replaced.

    Raises:
        InputError: which files.
    """
    if (output / "training.json").exists() or (output / CHECKPOINTS).is_dir():
        return
    weights = {path.name for path in output.glob("*.safetensors")}
    foreign = sorted(weights.union(name for name in _NAMES if (output / name).exists()))
    if foreign:
        raise InputError(
            f"output_dir: {output} holds {', '.join(foreign)}, which no training wrote and which "
            "the finished one would replace; name another folder"
        )


def write_outputs(
    recipe: Recipe,
    state: transformers.TrainerState,
    *,
    record: RunRecord,
    samples: dict[str, int],
    best_step: int | None,
    trained_parameters: int,
    output: Path,
) -> None:
    """Write `training.json`, `recipe.yaml`, `loss.svg` and `README.md` (the card) into `output`.

    Args:
        recipe: what was trained.
        state: the Trainer's, with its log history.
        record: of the run, up to its end.
        samples: how many were read, kept, left out and cut.
        best_step: whose weights are saved, where that is the best one; None: the last one.
        trained_parameters: numbers that were trained.
        output: an existing folder.
    """
    history = [
        {key: row[key] for key in _HISTORY if key in row}
        for row in state.log_history
        if "loss" in row or "eval_loss" in row
    ]
    log: dict[str, Any] = {
        "command": command_line(),
        "recipe": without_secrets(recipe.model_dump(exclude_defaults=True)),
        "content": record.content,
        "samples": samples,
        "steps": state.global_step,
        "saved_step": state.global_step if best_step is None else best_step,
        "skipped_batches": record.skipped_batches,
        "seconds": record.starts[-1]["seconds"],
        "processes": record.processes,
        "trained_parameters": trained_parameters,
        "machine": machine(),
        "starts": record.starts,
        "history": history,
    }
    (output / "training.json").write_text(strict_json(log), encoding="utf-8")
    record.write_recipe(output)
    write_whole(output / LOSS_CURVE, _loss_curve(recipe, history))
    (output / "README.md").write_text(_card(recipe, log), encoding="utf-8")


def _loss_curve(recipe: Recipe, history: list[dict[str, Any]]) -> str:
    """An SVG file: the losses over the steps, logarithmic where all are above 0."""
    keys = {"loss": "training", "eval_loss": "evaluation"}
    keys |= {term: f"training, {term}" for term in _TERMS}
    keys |= {f"eval_{term}": f"evaluation, {term}" for term in _TERMS}
    series = [
        (name, [(row["step"], row[key]) for row in history if row.get(key) is not None])
        for key, name in keys.items()
    ]
    drawn = [(name, points) for name, points in series if points]
    loss = recipe.loss_type if recipe.stage == "distill" else "ce"
    log = all(value > 0 for _, points in drawn for _, value in points)
    return standalone(line_chart("Loss over steps", drawn, "step", f"loss ({loss})", log))


def _card(recipe: Recipe, log: dict[str, Any]) -> str:
    """The model card, as the hub reads it: YAML front matter, then Markdown."""
    base = recipe.model_name_or_path
    front: dict[str, Any] = {"library_name": "ahn-bench", "tags": ["ahn", "long-context"]}
    on_hub = base is not None and not Path(base).exists()
    if on_hub:
        front["base_model"] = base
    base = base and name_of(base)
    named = base if on_hub else f"`{Path(base).name}`" if base else "a new base model"
    if recipe.stage == "distill":
        title = f"{recipe.ahn_implementation} memory for {named}"
        start = recipe.ahn_name_or_path
        start = start and name_of(start)
        start = start and (Path(start).name if Path(start).exists() else start)
        what = (
            f"Artificial Hippocampus Network (arXiv 2510.07318), cell "
            f"`{recipe.ahn_implementation}`, {log['trained_parameters']:,} parameters, distilled "
            f"from {named} with full attention{f', starting from `{start}`' if start else ''}. "
            f"Saved for a window of {recipe.sliding_window - recipe.num_attn_sinks:,} tokens and "
            f"{recipe.num_attn_sinks:,} attention sinks.\n\n"
            "```python\nimport ahn\n\n"
            f'model = ahn.load_model("{base}", ahn="PATH_OF_THIS_FOLDER")\n```\n'
        )
    else:
        title = "Base model"
        what = f"A Qwen2 with {log['trained_parameters']:,} trained parameters.\n"
    samples = {
        "read": "read",
        "kept": "kept",
        "too_short": f"left out: at most {recipe.filter_len} tokens (`filter_len`)",
        "cut": f"longer than {recipe.cutoff_len:,} tokens (`cutoff_len`), and shortened",
        "answers_cut": "of these: an answer lost tokens, too",
        "no_label": "left out: no assistant token",
    }
    data = recipe.dataset if isinstance(recipe.dataset, str) else ", ".join(recipe.dataset)
    command = f"`{log['command']}`" if log["command"] else "started from Python"
    recipe_yaml = yaml.safe_dump(log["recipe"], sort_keys=False, allow_unicode=True)
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# {title}",
            "",
            what,
            "## Training",
            "",
            *_table(_figures(recipe, log)),
            "",
            *_starts(log["starts"]),
            f"Data: `{data}`",
            "",
            *_table({samples[key]: f"{log['samples'][key]:,}" for key in samples}),
            "",
            f"![loss over steps]({LOSS_CURVE})",
            "",
            "Recipe (what is not named is the default; all of it, to run again: `recipe.yaml`):",
            "",
            "```yaml",
            recipe_yaml.strip(),
            "```",
            "",
            f"Made with torch {log['machine']['torch']}, transformers "
            f"{log['machine']['transformers']}: {command}. Everything above stands in "
            "`training.json` too.",
            "",
        ]
    )


def _figures(recipe: Recipe, log: dict[str, Any]) -> dict[str, Any]:
    losses = [row["loss"] for row in log["history"] if "loss" in row]
    evaluated = [row for row in log["history"] if "eval_loss" in row]
    batches = recipe.gradient_accumulation_steps * log["processes"]
    figures = {
        "steps": f"{log['steps']:,}",
        "samples a step": f"{recipe.per_device_train_batch_size * batches:,}"
        if recipe.tokens_per_batch is None
        else f"about {recipe.tokens_per_batch * batches:,} tokens of them",
        "first logged loss": f"{losses[0]:.4g}" if losses else "-",
        "last logged loss": f"{losses[-1]:.4g}" if losses else "-",
    }
    if evaluated:
        saved = [row for row in evaluated if row["step"] == log["saved_step"]]
        figures["last evaluation loss"] = f"{evaluated[-1]['eval_loss']:.4g}"
        if log["saved_step"] != log["steps"] and saved:
            figures["weights saved"] = (
                f"those of step {log['saved_step']:,}, with the lowest evaluation loss, "
                f"{saved[-1]['eval_loss']:.4g}"
            )
    return figures | {
        "wall time (this start)": f"{log['seconds']:,.0f} s",
        "processes": log["processes"],
        "device": log["machine"]["gpu"] or f"CPU, {log['machine']['torch_threads']} thread(s)",
        "batches skipped (nothing beyond the window)": log["skipped_batches"],
    }


def _starts(starts: list[dict[str, Any]]) -> list[str]:
    """The starts of a run that was interrupted, each with what it was given."""
    if len(starts) < 2:
        return []
    rows = [
        f"| {start['from_step']} to {start['to_step']} | {start['time']} | {start['seconds']} s | "
        f"{start['processes']} | `{start['options']}` |"
        for start in starts
    ]
    return [
        "The run was interrupted. Its starts (the seconds of one that was interrupted end at its "
        "last checkpoint):",
        "",
        "| steps | time (UTC) | seconds | processes | length, logging, saving, devices |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _table(rows: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
