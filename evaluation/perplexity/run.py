"""A perplexity, planned and run: what `run_eval perplexity` does between its flags and its page."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError, Problems
from evaluation.backends.base import Backend
from evaluation.perplexity.configuration import PerplexityConfiguration
from evaluation.perplexity.reading import CHECKPOINT_SECONDS, Reading, Watch
from evaluation.perplexity.store import PerplexityStore, common_parts
from evaluation.perplexity.streams import cannot_read_on, peak_method
from evaluation.perplexity.text import TokenText, make_text
from evaluation.plan.environment import (
    environment_variables,
    git_state,
    hardware,
    now,
    package_versions,
)
from evaluation.plan.identity import digest_of, file_sha256
from evaluation.plan.plan import PlannedModels, plan_models
from reports.perplexity import PerplexityInfo, PerplexityRun, read_perplexity
from reports.records import Start


@dataclass(frozen=True)
class PerplexityPlan:
    """What is read by whom, with everything checked that can be without weights."""

    configuration: PerplexityConfiguration
    planned: PlannedModels
    text: TokenText
    warnings: list[str]

    @property
    def models(self) -> Mapping[str, Backend]:
        """The variants by name."""
        return self.planned.models

    def parts(self, weights: bool) -> dict[str, Any]:
        """What makes two losses comparable; with `weights` all weight files are read once."""
        asked, text = self.configuration, self.text
        config = {k: v for k, v in self.planned.model_config.items() if not k.startswith("_name")}
        hashes: dict[Path, str] = {}
        variants: dict[str, Any] = {}
        for name, model in self.models.items():
            variants[name] = dict(model.identity())
            if weights:
                for path in model.weight_files():
                    hashes[path] = hashes.get(path) or file_sha256(path)
                variants[name]["weights_sha256"] = sorted({hashes[p] for p in model.weight_files()})
        return {
            "data_sha256": text.data["sha256"],
            "tokens": text.tokens,
            "tokens_sha256": text.sha256,
            "prefix": None if text.prefix is None else text.prefix["id"],
            "block_tokens": asked.block_tokens,
            "chunk_tokens": asked.chunk,
            "model_config_sha256": digest_of(config),
            "variants": variants,
        }


def plan_perplexity(configuration: PerplexityConfiguration) -> PerplexityPlan:
    """Resolve and check what is asked for.

    Raises:
        InputError: everything that is wrong.
    """
    problems = Problems()
    if configuration.data is None:
        problems.add("--data: needed: a text file, or 'pocket'")
    with problems.collecting():
        planned = plan_models(configuration)
    problems.check()
    for name, model in planned.models.items():
        reason = cannot_read_on(model)
        if reason is not None:
            problems.add(f"--variant {name}: {reason}")
    text = None
    with problems.collecting():
        text = make_text(
            configuration.data or "",
            planned.tokenizer,
            planned.model_config.get("vocab_size"),
            configuration.max_tokens,
            configuration.prefix,
            configuration.seed,
        )
    warnings = list(planned.warnings)
    if text is not None:
        warnings += text.warnings
        if planned.context is not None and text.tokens > planned.context:
            said = (
                f"the text's {text.tokens:,} tokens are more than the model's "
                f"max_position_embeddings {planned.context:,}"
            )
            if configuration.allow_overlong:
                warnings.append(f"{said}: what comes after them, no variant was made for")
            else:
                problems.add(
                    f"--data: {said}; lower --max-tokens, stretch them with --yarn-factor, or give "
                    "--allow-overlong"
                )
    problems.check()
    assert text is not None
    return PerplexityPlan(configuration, planned, text, warnings)


def describe_plan(plan: PerplexityPlan) -> PerplexityInfo:
    """``perplexity.json`` of a run that starts now. Reads all weight files once."""
    asked, text = plan.configuration, plan.text
    parts = plan.parts(weights=True)
    devices = [model.device for model in plan.models.values() if model.device is not None]
    start = Start(
        time=now(),
        command=list(sys.argv),
        configuration=asked.recorded(),
        git=git_state(),
        packages=package_versions(),
        hardware=hardware(devices[0] if devices else None),
        environment=environment_variables(),
    )
    return PerplexityInfo(
        identity=digest_of(common_parts(parts)),
        identity_parts=parts,
        created=start.time,
        updated=start.time,
        starts=[start],
        command=start.command,
        configuration=start.configuration,
        model=asked.model or "",
        model_settings=dict(plan.planned.model_config),
        data=dict(text.data),
        tokens=text.tokens,
        tokens_sha256=text.sha256,
        prefix=None if text.prefix is None else dict(text.prefix),
        context=plan.planned.context,
        block_tokens=asked.block_tokens,
        chunk_tokens=asked.chunk,
        peak=peak_method(devices[0]) if asked.peak and devices else None,
        variants={name: dict(model.describe()) for name, model in plan.models.items()},
        warnings=plan.warnings,
        status="running",
    )


def default_folder(parts: Mapping[str, Any]) -> Path:
    """``runs/perplexity-<start of the identity>``: variants of one text share it."""
    return Path("runs") / f"perplexity-{digest_of(common_parts(parts))[:12]}"


def run_perplexity(
    plan: PerplexityPlan,
    folder: Path,
    watch: Watch | None = None,
    tell: Any = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> PerplexityRun:
    """Let every variant read the text; continue what is there.

    Args:
        plan: who reads what.
        folder: for the records.
        watch: is told how far a variant is.
        tell: is called with each warning of the folder; None: nobody.
        checkpoint_seconds: see `Reading`.

    Returns:
        The folder, read.

    Raises:
        InputError: the folder belongs to something else, or cannot be written.
    """
    asked = plan.configuration
    with PerplexityStore(folder, describe_plan(plan), asked.overwrite) as store:
        told = 0
        for model in plan.models.values():
            reading = Reading(
                model,
                plan.text,
                store,
                asked.chunk,
                asked.peak,
                watch,
                checkpoint_seconds,
            )
            for warning in store.warnings[told:] if tell is not None else ():
                tell(warning)
            told = len(store.warnings)
            try:
                reading.read(plan.planned.tokenizer, asked.seed)
            except InputError as error:
                raise error.prefixed(f"{model.name}: ") from None
        store.finish()
    return read_perplexity(folder)
