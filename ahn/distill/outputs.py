"""What a training leaves beside its weights: a log, a loss curve, a model card."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from ahn.config import InputError
from ahn.distill.options import CHECKPOINTS
from ahn.distill.recipe import Recipe

#: What a training leaves in its folder under a name that others use, too.
_NAMES = ("README.md", "config.json", "loss.png", "model.safetensors", "tokenizer.json")
_HISTORY = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")


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
    foreign = [name for name in _NAMES if (output / name).exists()]
    if foreign:
        raise InputError(
            f"output_dir: {output} holds {', '.join(foreign)}, which no training wrote and which "
            "the finished one would replace; name another folder"
        )


def write_outputs(
    recipe: Recipe,
    state: transformers.TrainerState,
    *,
    samples: dict[str, int],
    skipped: int | None,
    seconds: float,
    processes: int,
    trained_parameters: int,
    output: Path,
) -> None:
    """Write `training.json`, `loss.png` and `README.md` (the model card) into `output`.

    Args:
        recipe: what was trained.
        state: the Trainer's, with its log history.
        samples: how many were read, kept, left out and cut.
        skipped: batches with nothing to learn from; None where that cannot be.
        seconds: wall time of the training, in this start of it.
        processes: that trained together.
        trained_parameters: numbers that were trained.
        output: an existing folder.
    """
    history = [
        {key: row[key] for key in _HISTORY if key in row}
        for row in state.log_history
        if "loss" in row or "eval_loss" in row
    ]
    log = {
        "command": "ahn " + " ".join(sys.argv[1:]),
        "recipe": recipe.model_dump(exclude_defaults=True),
        "samples": samples,
        "steps": state.global_step,
        "skipped_batches": skipped,
        "seconds": round(seconds, 1),
        "processes": processes,
        "trained_parameters": trained_parameters,
        "machine": machine(),
        "history": history,
    }
    (output / "training.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    _draw(recipe, history, output / "loss.png")
    (output / "README.md").write_text(_card(recipe, log), encoding="utf-8")


def _draw(recipe: Recipe, history: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), dpi=100)
    for key, label in (("loss", "training"), ("eval_loss", "evaluation")):
        rows = [row for row in history if key in row]
        if rows:
            steps, losses = zip(*((row["step"], row[key]) for row in rows), strict=True)
            axes.plot(steps, losses, label=label, marker="." if len(rows) < 20 else None)
    name = recipe.loss_type if recipe.stage == "distill" else "ce"
    axes.set(xlabel="step", ylabel=f"loss ({name})")
    if all(row.get("loss", 1) > 0 for row in history):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if any("eval_loss" in row for row in history):
        axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _card(recipe: Recipe, log: dict[str, Any]) -> str:
    """The model card, as the hub reads it: YAML front matter, then Markdown."""
    base = recipe.model_name_or_path
    front: dict[str, Any] = {"library_name": "ahn-bench", "tags": ["ahn", "long-context"]}
    on_hub = base is not None and not Path(base).exists()
    if on_hub:
        front["base_model"] = base
    named = base if on_hub else f"`{Path(base).name}`" if base else "a new base model"
    if recipe.stage == "distill":
        title = f"{recipe.ahn_implementation} memory for {named}"
        what = (
            f"Artificial Hippocampus Network (arXiv 2510.07318), cell "
            f"`{recipe.ahn_implementation}`, {log['trained_parameters']:,} parameters, distilled "
            f"from {named} with full attention. Saved for a window of "
            f"{recipe.sliding_window - recipe.num_attn_sinks:,} tokens and "
            f"{recipe.num_attn_sinks:,} attention sinks.\n\n"
            "```python\nimport ahn\n\n"
            f'model = ahn.load_model("{base}", ahn="PATH_OF_THIS_FOLDER")\n```\n'
        )
    else:
        title = "Base model"
        what = f"A Qwen2 with {log['trained_parameters']:,} trained parameters.\n"
    losses = [row["loss"] for row in log["history"] if "loss" in row]
    a_step = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    figures = {
        "steps": f"{log['steps']:,}",
        "samples a step": f"{a_step * log['processes']:,}"
        if recipe.tokens_per_batch is None
        else f"about {recipe.tokens_per_batch * log['processes']:,} tokens of them",
        "first logged loss": f"{losses[0]:.4g}" if losses else "-",
        "last logged loss": f"{losses[-1]:.4g}" if losses else "-",
        "wall time (this start)": f"{log['seconds']:,.0f} s",
        "processes": log["processes"],
        "device": log["machine"]["gpu"] or f"CPU, {log['machine']['torch_threads']} thread(s)",
        "batches skipped (nothing beyond the window)": log["skipped_batches"],
    }
    samples = {
        "read": "read",
        "kept": "trained on",
        "too_short": f"left out: at most {recipe.filter_len} tokens (`filter_len`)",
        "cut": f"cut at {recipe.cutoff_len:,} tokens (`cutoff_len`)",
        "no_label": "left out: no assistant token",
    }
    data = recipe.dataset if isinstance(recipe.dataset, str) else ", ".join(recipe.dataset)
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
            *_table(figures),
            "",
            f"Data: `{data}`",
            "",
            *_table({samples[key]: f"{log['samples'][key]:,}" for key in samples}),
            "",
            "![loss over steps](loss.png)",
            "",
            "Recipe (what is not named is the default):",
            "",
            "```yaml",
            recipe_yaml.strip(),
            "```",
            "",
            f"Made with torch {log['machine']['torch']}, transformers "
            f"{log['machine']['transformers']}: `{log['command']}`. Everything above stands in "
            "`training.json` too.",
            "",
        ]
    )


def _table(rows: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
