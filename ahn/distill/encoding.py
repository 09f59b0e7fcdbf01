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
    """Tokenise a conversation with the chat template, up to its last assistant turn.

    The template is rendered up to each assistant turn; what the turn adds is labelled.  This
    asks nothing of the template but that a longer conversation begins like a shorter one, but for
    the head of earlier answers, which it may drop (Qwen3's leaves out their thoughts).

    Raises:
        InputError: the tokenizer has no chat template, it refuses the conversation, or
            rendering a turn changes the text before it in another way.
    """
    if not tokenizer.chat_template:
        raise InputError("the tokenizer has no chat template")
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return Sample([], [])
    whole = _render(tokenizer, messages[: turns[-1] + 1], False)
    ids: list[int] = []
    labels: list[int] = []
    done = 0  # characters of `whole` that are tokenised
    for turn in turns:
        prompt = _render(tokenizer, messages[:turn], True)
        alone = whole if turn == turns[-1] else _render(tokenizer, messages[: turn + 1], False)
        answer = _answer(whole, prompt, alone, messages[turn]["content"])
        if answer is None or len(prompt) < done:
            raise InputError("the chat template rewrites earlier turns; cannot label answers")
        more = tokenizer(whole[done : len(prompt)], add_special_tokens=False)["input_ids"]
        ids += more
        labels += [IGNORED] * len(more)
        more = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids += more
        labels += more
        done = len(prompt) + len(answer)
    return Sample(ids, labels)


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"the chat template refuses it: {error}") from None
    return str(text)


def _answer(whole: str, prompt: str, alone: str, content: str) -> str | None:
    """What an assistant turn is in the whole conversation; None: it is not to be found.

    Args:
        whole: the conversation.
        prompt: it, up to the turn.
        alone: it, with the turn and nothing after.
        content: the turn's own text.
    """
    if not whole.startswith(prompt) or not alone.startswith(prompt):
        return None
    added = alone[len(prompt) :]
    if whole.startswith(added, len(prompt)):
        return added
    said = content.rsplit("</think>", 1)[-1].strip()
    last = added.rfind(said) if said else -1  # what remains begins there at the latest
    return next(
        (added[i:] for i in range(1, last + 1) if whole.startswith(added[i:], len(prompt))), None
    )
