"""What a run will do: its tasks with their prompts, its models, and the settings of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ahn.cost.accounting import ModelShape
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.prompts import PreparedPrompt
from evaluation.plan.variants import ModelSpec
from tasks.schema import Example, Task, TaskProtocol


@dataclass(frozen=True)
class PlannedTask:
    """One task with its rows and the prompts made of them (same order)."""

    task: Task
    protocol: str
    max_length: int
    examples: list[Example]
    prompts: list[PreparedPrompt]
    files: list[dict[str, Any]]
    settings: Any  # transformers.GenerationConfig: what `generate` is called with

    @property
    def rules(self) -> TaskProtocol:
        """The task's constants under the protocol of the run."""
        return self.task.protocols[self.protocol]


@dataclass(frozen=True)
class Plan:
    """A run that can be started."""

    configuration: RunConfiguration
    models: dict[str, ModelSpec]  # by variant, in the order asked for
    shape: ModelShape
    model_config: Mapping[str, Any]
    context: int  # tokens the model was made for
    tokenizer: Any
    tasks: list[PlannedTask]
    seed: int
    warnings: list[str] = field(default_factory=list)

    @property
    def examples_per_variant(self) -> int:
        """Examples that each variant answers."""
        return sum(len(task.examples) for task in self.tasks)
