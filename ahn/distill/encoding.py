"""From a conversation to token ids with labels on assistant turns, by the chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ahn.config import InputError
from ahn.distill.conversations import Messages

IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """One conversation: `input_ids [L]` and `labels [L]` (-100 outside assistant turns)."""

    input_ids: list[int]
    labels: list[int]


def set_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Make the tokenizer use `template`: `default` (its own), or a Jinja file.

    Raises:
        InputError: there is no such file, or the tokenizer has no template of its own.
    """
    if template != "default":
        path = Path(template)
        if not path.is_file():
            raise InputError(
                f"template: {template!r} is neither 'default' (the tokenizer's own) nor a file"
            )
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise InputError("the tokenizer has no chat template; give a Jinja file as template")


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Sample:
    """Tokenise a conversation with the chat template.

    The template is rendered up to each assistant turn; what the turn adds is labelled.  This
    asks nothing of the template but that a longer conversation begins like a shorter one.

    Raises:
        InputError: the tokenizer has no chat template, it refuses the conversation, or
            rendering a turn changes the text before it.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise InputError("the tokenizer has no chat template")
    ids: list[int] = []
    labels: list[int] = []
    done = ""
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            prompt = tokenizer.apply_chat_template(
                messages[:turn], tokenize=False, add_generation_prompt=True
            )
            full = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
        except (TemplateError, IndexError, TypeError, ValueError) as error:
            raise InputError(f"the chat template refuses it: {error}") from None
        if not prompt.startswith(done) or not full.startswith(prompt):
            raise InputError("the chat template rewrites earlier turns; cannot label answers")
        more = tokenizer(prompt[len(done) :], add_special_tokens=False)["input_ids"]
        ids += more
        labels += [IGNORED] * len(more)
        more = tokenizer(full[len(prompt) :], add_special_tokens=False)["input_ids"]
        ids += more
        labels += more
        done = full
    return Sample(ids, labels)
