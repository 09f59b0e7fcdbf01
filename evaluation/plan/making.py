"""What rows are made with that belong to the tokenizer of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from evaluation.plan.configuration import MADE_OF, RunConfiguration
from evaluation.plan.prompts import apply_chat_template
from tasks.making import Making
from tasks.schema import TaskProtocol

_PLACE = "{task_template}"
"""What the authors of RULER count in place of the prompt (`prepare.py --prepare_for_ns`)."""


def making_of(
    configuration: RunConfiguration, tokenizer: Any, rules: TaskProtocol, model_type: str | None
) -> Making:
    """The tokenizer and the user's files, for generators of rows.

    Args:
        configuration: names the files.
        tokenizer: of the prompts.
        rules: of the tasks, which say whether there is a chat template, and what stands in it.
        model_type: of the model; its family tells the chat template more.
    """
    reserved = 0
    if rules.chat_template and getattr(tokenizer, "chat_template", None):
        wrapped = apply_chat_template(
            _PLACE, tokenizer, model_type, rules.system_message, rules.demonstration
        )
        reserved = len(tokenizer.tokenize(wrapped))

    def count(text: str) -> int:
        return len(tokenizer.tokenize(text, verbose=False))

    def read_back(text: str) -> str:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    given = {name: getattr(configuration, name) for name in MADE_OF}
    return Making(
        count,
        read_back,
        tokenizer_sha256(tokenizer),
        reserved,
        {name: Path(path) for name, path in given.items() if path is not None},
    )


def tokenizer_sha256(tokenizer: Any) -> str:
    """Digest (hex) of a tokenizer's vocabulary: its tokens in the order of their ids."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
