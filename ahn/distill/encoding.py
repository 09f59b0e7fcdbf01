"""From a conversation to token ids with labels on assistant turns, by the chat template.

A conversation is a list of turns: a *source* (everything since the last answer, up to and with
the head of the next one) and the *answer* that follows it. Only answers carry labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ahn.distill.conversations import Messages
from common.errors import InputError

IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """One conversation: `input_ids [L]` and `labels [L]` (-100 outside assistant turns)."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Turn:
    """Token ids of what leads to an answer, and of the answer."""

    source: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.source) + len(self.answer)


def sample_of(turns: Sequence[Turn]) -> Sample:
    """All turns as one sample, with labels on the answers."""
    return Sample(
        list(chain.from_iterable(turn.source + turn.answer for turn in turns)),
        list(chain.from_iterable([IGNORED] * len(turn.source) + turn.answer for turn in turns)),
    )


def shortened(turns: Sequence[Turn], cutoff_len: int) -> list[Turn]:
    """Turns of at most `cutoff_len` tokens in all, by the rule of the paper's tool.

    Turns are taken in order; each may use what the ones before it have left, and turns for which
    nothing is left are dropped. In a turn that does not fit
    - the end of the source is cut and the answer kept whole where the answer is shorter than half
      of the room;
    - else the end of the answer is cut where the source is shorter than half of the room;
    - else both are cut, in proportion to their lengths.

    (`infer_seqlen` of LLaMA-Factory, which the paper's tool is made from.)
    """
    kept, room = [], cutoff_len
    for turn in turns:
        if room <= 0:
            break
        source, answer = len(turn.source), len(turn.answer)
        if answer * 2 < room:
            most = room
        elif source * 2 < room:
            most = room - source
        else:
            most = int(room * (answer / (source + answer)))
        answer = min(answer, most)
        kept.append(Turn(turn.source[: room - answer], turn.answer[:answer]))
        room -= len(kept[-1])
    return kept


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
    """Tokenise a conversation, up to its last assistant turn; see `encode_turns`."""
    return sample_of(encode_turns(tokenizer, messages))


def encode_turns(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[Turn]:
    """Tokenise a conversation with the chat template, turn by turn, up to its last answer.

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
        return []
    whole = _render(tokenizer, messages[: turns[-1] + 1], False)
    encoded: list[Turn] = []
    done = 0  # characters of `whole` that are tokenised
    for turn in turns:
        prompt = _render(tokenizer, messages[:turn], True)
        alone = whole if turn == turns[-1] else _render(tokenizer, messages[: turn + 1], False)
        answer = _answer(whole, prompt, alone, messages[turn]["content"])
        if answer is None or len(prompt) < done:
            raise InputError("the chat template rewrites earlier turns; cannot label answers")
        source = tokenizer(whole[done : len(prompt)], add_special_tokens=False)["input_ids"]
        target = tokenizer(answer, add_special_tokens=False)["input_ids"]
        encoded.append(Turn(list(source), list(target)))
        done = len(prompt) + len(answer)
    return encoded


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
