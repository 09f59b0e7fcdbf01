"""The class of our tasks in lm-evaluation-harness 0.4.13: what its own would do wrong in silence.

Importing this module makes the model `ahn` known to the harness. Its own command looks for a model
after it has read the files, but before it has loaded the tasks, that `--tasks` names; hence
`tasks/ahn.yaml`.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import lm_eval.models  # noqa: F401 - its models are only known if they come before ours
from lm_eval.api.registry import model_registry
from lm_eval.api.task import ConfigurableTask

from common.errors import InputError
from tasks.lm_eval import PROTOCOL_MODELS, TaskDocument, document_of
from tasks.schema import TaskProtocol

MODEL = "ahn"
BY_PROTOCOL = "asked_by_protocol"
"""Attribute of a request that was asked as its document's protocol says."""

if MODEL not in model_registry:
    model_registry.register(MODEL, target="evaluation.lm_eval.plugin:AHNLM")

_log = logging.getLogger(__name__)


@lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    _log.warning(message)


def not_carried_out(rules: TaskProtocol) -> list[str]:
    """Which parts of a protocol the harness cannot carry out with another model, in words."""
    limit = rules.default_max_length
    longest = f"{limit:,} tokens" if limit else "the model's context less 500 tokens"
    kept = {
        "middle": f"a prompt of more than {longest} loses its middle",
        "middle_joined": f"a prompt of more than {longest} loses its middle",
        "left": f"of a prompt of more than {longest} the last are kept",
        "none": "a prompt is never cut",
    }[rules.truncation]
    template = "is used" if rules.chat_template else "is left out"
    parts = [
        f"{kept} (here the model cuts as it does)",
        f"the chat template {template} (here --apply_chat_template decides for all tasks)",
    ]
    if rules.system_message is not None:
        parts.append("a system message goes first")
    if rules.demonstration:
        parts.append("turns of a demonstration stand before the prompt")
    if rules.answer_prefix:
        parts.append(
            "the beginning of the answer stands behind the chat template's opening of it (here at "
            "the end of the prompt)"
        )
    if rules.turns is not None:
        parts.append("the turns of the conversation are put into the chat template one by one")
    if rules.turns is not None and rules.turns.new_tokens:
        parts.append(f"answers have at most {dict(rules.turns.new_tokens)} tokens")
    if rules.decode_uncut:
        parts.append("special tokens are taken out of the text")
    if "newline_eos" in rules.generation or "min_new_tokens" in rules.generation:
        parts.append("an answer ends at a newline, but not at once")
    others = {
        key: value
        for key, value in rules.generation.items()
        if key not in ("newline_eos", "min_new_tokens")
        and (key, value) not in (("do_sample", False), ("num_beams", 1), ("temperature", 1.0))
    }
    if others:
        parts.append(f"generate is called with {others}")
    return parts


class BenchmarkTask(ConfigurableTask):
    """A task of this package.

    It differs from the harness's own class in this:

    - Prompts are made anew for each run: the harness's cache of them knows tasks by name only, and
      the same task has other prompts under another protocol, or of other data.
    - Of a model other than `ahn` it says which parts of the protocol cannot be carried out, when
      it is loaded and, where that was not known then, when the answers are there; the results say
      it too (`configs: <task>: metadata: protocol_followed`).
    - The number of new tokens is the protocol's, not always that of `official`.
    """

    def __init__(
        self,
        data_dir: Any = None,
        cache_dir: Any = None,
        download_mode: Any = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        own = {key: value for key, value in (config or {}).items() if key != "class"}
        super().__init__(data_dir, cache_dir, download_mode, config=own)
        document = document_of(self.eval_docs[0])
        if document is None:
            raise InputError(f"{self.config.task}: its rows are none of tasks.lm_eval.rows")
        self._document: TaskDocument = document
        rules = document.task.protocol(document.protocol)
        self.config.generation_kwargs["max_gen_toks"] = rules.max_new_tokens
        self._warned = False
        if not PROTOCOL_MODELS:
            self._warn()

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **other: Any) -> None:
        """Make the documents, as the file and the user's `--metadata` say."""
        own, given = dataset_kwargs or {}, self.config.metadata or {}
        if both := sorted(own.keys() & given.keys()):
            raise InputError(f"--metadata: {', '.join(both)} is said by the task, not chosen")
        self.dataset = self.config.custom_dataset(**given, **own)

    def _warn(self) -> None:
        self._warned = True
        rules = self._document.task.protocol(self._document.protocol)
        parts = "; ".join(not_carried_out(rules))
        _warn_once(
            f"{self.config.task}: the protocol {self._document.protocol!r} is followed as a whole "
            f"by --model {MODEL} only. With another model lm-evaluation-harness cannot carry out "
            f"that {parts}. Wording, number of new tokens, cleaning of answers and metric are the "
            "protocol's. Do not compare such a score with one of this protocol."
        )

    def build_all_requests(self, **options: Any) -> None:
        """As the harness does, without its cache of prompts."""
        if options.get("cache_requests"):
            _warn_once(
                "--cache_requests: not for tasks of AHN-Bench: the harness's cache does not know "
                "the protocol and the data that their prompts depend on; they are made anew"
            )
        super().build_all_requests(
            **{**options, "cache_requests": False, "rewrite_requests_cache": False}
        )

    def apply_filters(self) -> Any:
        """As the harness does, when all answers are there."""
        followed = all(getattr(request, BY_PROTOCOL, False) for request in self.instances)
        self.config.metadata = {**(self.config.metadata or {}), "protocol_followed": followed}
        if not followed and not self._warned:
            self._warn()
        return super().apply_filters()
