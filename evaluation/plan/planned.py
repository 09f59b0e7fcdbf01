"""What a run will do: its tasks with their prompts, its variants, and the settings of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from evaluation.backends.base import Backend, Cost
from evaluation.plan.budget import Budget
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.prompts import PreparedPrompt
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
    settings: Any  # transformers.GenerationConfig: how answers are generated
    made_of: Mapping[str, Any] | None = None  # what decided rows that were made for the tokenizer

    @property
    def rules(self) -> TaskProtocol:
        """The task's constants under the protocol of the run."""
        return self.task.protocols[self.protocol]


@dataclass(frozen=True)
class Plan:
    """A run that can be started.

    Attributes:
        configuration: what was asked for.
        models: the variants that answer, by name, in the order asked for.
        model_config: the base model's `config.json`, positions stretched where that is asked;
            empty without a base model.
        context: positions that all variants were made for; None: none of them says.
        tokenizer: of the prompts.
        tasks: what is asked.
        seed: of sampling and of generated rows.
        warnings: what people must be told before it starts.
        budget: bytes that sizable variants may keep of a document; None: there are none.
        at_boundary: whether every document is read apart from its questions, up to its end; else
            what the prompts about a document share is read once.
    """

    configuration: RunConfiguration
    models: dict[str, Backend]
    model_config: Mapping[str, Any]
    context: int | None
    tokenizer: Any
    tasks: list[PlannedTask]
    seed: int
    warnings: list[str] = field(default_factory=list)
    budget: Budget | None = None
    at_boundary: bool = False

    @property
    def examples_per_variant(self) -> int:
        """Examples that each variant answers."""
        return sum(len(task.examples) for task in self.tasks)

    def only(self, variant: str, configuration: RunConfiguration) -> Plan:
        """The run of one of the variants alone, with the prompts that were made for all of them.

        Args:
            variant: its name.
            configuration: what asks for it alone, and its folder.
        """
        return replace(self, configuration=configuration, models={variant: self.models[variant]})

    def budget_of(self, document_tokens: int | None) -> int | None:
        """Bytes that sizable variants may keep of a document; None: there is no budget."""
        if self.budget is None or not document_tokens:
            return None
        return self.budget.of(document_tokens)

    def cost_of(self, variant: str, prompt: PreparedPrompt, generated: int) -> Cost:
        """What a prompt costs a variant by arithmetic, with so many generated tokens."""
        model, document = self.models[variant], prompt.document_tokens
        if not (model.needs_boundary or model.sizable):
            return model.cost(prompt.tokens, generated)
        budget = self.budget_of(document) if model.sizable else None
        return model.cost(prompt.tokens, generated, document, budget)
