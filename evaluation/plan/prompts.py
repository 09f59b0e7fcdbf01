"""From a row to the token ids that a model reads, by the benchmark's own procedure.

The order is the same in the authors' scripts and in AHN's: fill the template, tokenise it whole,
cut if it is too long, decode what is left to a *string* (InfiniteBench's authors, for open models,
also where nothing is cut: ``eval_yarn_mistral.py:26-45``), wrap that in the chat template, tokenise
again. So the cut is measured on the prompt without chat template, the template's tokens come on
top, and the length is not checked a second time. (LongBench ``pred.py:57-62``, AHN
``eval/longbench/pred.py:141-147``.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ahn.families import find_family
from common.errors import InputError
from evaluation.plan.conversations import TokenizedConversation, tokenize_conversation
from tasks.schema import Conversation, Example, Task, TaskProtocol

TAIL_CHARACTERS = 400
SMALLEST_SHARED_TOKENS = 32  # a shorter shared beginning is not worth a copy of the cache
_DIGITS = "0123456789"


@dataclass(frozen=True)
class Cut:
    """What truncation left of a prompt, and decoding made of it."""

    text: str
    tokens_before: int
    tokens_cut: int
    side: str  # "none" where nothing was cut, else the protocol's truncation


@dataclass(frozen=True)
class PreparedPrompt:
    """One example's prompt, ready for the model, and what was done to it."""

    ids: npt.NDArray[np.int32]  # [T]
    tokens_untruncated: int  # of the rendered template, before truncation and chat template
    tokens_cut: int
    truncation: str
    chat_template: bool
    answer_in_prompt: bool | None  # None: there is no reference answer to look for
    answer_removed: bool  # it stood in the whole prompt, and does not in the cut one
    tail: str  # last characters of the text that was tokenised
    document_tokens: int | None = None  # ids up to the end of the document; None: not looked for

    @property
    def tokens(self) -> int:
        """Tokens the model reads."""
        return len(self.ids)


def smallest_max_length(protocol: TaskProtocol) -> int:
    """Smallest ``max_length`` for which `truncate` keeps at least one token on each side."""
    if protocol.truncation in ("middle", "middle_joined"):
        return 2
    if protocol.truncation == "left" and protocol.reserve_generation:
        return protocol.max_new_tokens + 1
    return 1


def truncate(text: str, protocol: TaskProtocol, max_length: int, tokenizer: Any) -> Cut:
    """Cut `text` to about `max_length` tokens if it is longer.

    ``middle``: the first and the last ``int(max_length / 2)`` ids, decoded separately and
    concatenated with nothing in between. ``middle_joined``: the same ids, joined and decoded
    once; of an odd number the tail has one more where the protocol says so. ``left``: the last
    ``max_length`` ids, less the room for the answer where the protocol reserves it; a prompt of
    exactly `max_length` stays whole. Special tokens are dropped when decoding, so they do not
    reappear as text; those in the text itself are lost, too. Where the protocol decodes whole
    prompts as well, the same happens to them, and nothing counts as cut.
    """
    ids = tokenizer(text, truncation=False).input_ids
    if protocol.truncation == "none" or len(ids) <= max_length:
        if protocol.decode_uncut:
            text = tokenizer.decode(ids, skip_special_tokens=True)
        return Cut(text, len(ids), 0, "none")
    if protocol.truncation == "middle":
        half = int(max_length / 2)
        head = tokenizer.decode(ids[:half], skip_special_tokens=True)
        tail = tokenizer.decode(ids[-half:], skip_special_tokens=True)
        return Cut(head + tail, len(ids), len(ids) - 2 * half, "middle")
    if protocol.truncation == "middle_joined":
        half = max_length // 2
        tail_length = max_length - half if protocol.odd_token_in_tail else half
        kept = tokenizer.decode([*ids[:half], *ids[-tail_length:]], skip_special_tokens=True)
        return Cut(kept, len(ids), len(ids) - half - tail_length, "middle_joined")
    keep = max_length - (protocol.max_new_tokens if protocol.reserve_generation else 0)
    kept = tokenizer.decode(ids[-keep:], skip_special_tokens=True)
    return Cut(kept, len(ids), len(ids) - keep, "left")


def apply_chat_template(
    text: str,
    tokenizer: Any,
    model_type: str | None,
    system_message: str | None = None,
    demonstration: Sequence[tuple[str, str]] = (),
) -> str:
    """`text` as the user's message, followed by the opening of the assistant's turn.

    A system message, and turns (role, text) of a demonstration, stand before it where the protocol
    has them; without the former, Qwen2.5's template adds its own. What else the template is told
    (Qwen3: not to think) is a matter of the model's family, by its configuration, not by its name.
    """
    turns = [("system", system_message)] if system_message is not None else []
    turns += [*demonstration, ("user", text)]
    family = find_family(model_type)
    options = {} if family is None else family.chat_template_options
    return tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=False,
        add_generation_prompt=True,
        **options,
    )


def contains_answer(text: str, answers: list[str]) -> bool | None:
    """Whether one of `answers` stands in `text`, letter by letter; None if there is none.

    Space around an answer and a full stop at its end are not looked for. A number must stand
    whole: 4 is not in "48", nor in "3.4".
    """
    wanted = [answer.strip().rstrip(".。") for answer in answers]
    wanted = [answer for answer in wanted if answer]
    return any(_occurs(answer, text) for answer in wanted) if wanted else None


def _occurs(answer: str, text: str) -> bool:
    if answer not in text:
        return False
    before = r"(?<![0-9])(?<![0-9]\.)" if answer[0] in _DIGITS else ""
    after = r"(?!\.?[0-9])" if answer[-1] in _DIGITS else ""
    return re.search(before + re.escape(answer) + after, text) is not None


def prepare(
    task: Task,
    example: Example,
    protocol: str,
    tokenizer: Any,
    max_length: int,
    model_type: str | None = None,
    with_boundary: bool = False,
) -> PreparedPrompt:
    """Render, truncate, wrap and tokenise one example under `protocol` ("official", "ahn" ...).

    A tokenizer without chat template gets the bare text, as the authors' scripts do.

    Args:
        task: whose example it is.
        example: the row.
        protocol: whose procedure.
        tokenizer: of the run.
        max_length: tokens above which it is cut.
        model_type: of the model, for its chat template.
        with_boundary: whether to look for the end of the document, which is tokenised once more.

    Raises:
        InputError: the end of the document is wanted, and cannot be found.
    """
    rules = task.protocol(protocol)
    conversation = task.conversation(example, protocol)
    if conversation is not None:
        return _prepare_conversation(
            conversation, example, rules, tokenizer, max_length, model_type, with_boundary
        )
    whole = task.render(example, protocol)
    cut = truncate(whole, rules, max_length, tokenizer)
    text = cut.text
    found = contains_answer(text, example.answers)
    removed = found is False and text != whole and contains_answer(whole, example.answers)
    wrapped = rules.chat_template and bool(getattr(tokenizer, "chat_template", None))
    if wrapped:
        text = apply_chat_template(
            text, tokenizer, model_type, rules.system_message, rules.demonstration
        )
    text += task.render_answer_prefix(example, protocol)
    ids = np.asarray(tokenizer(text, truncation=False).input_ids, dtype=np.int32)
    document_tokens = None
    if with_boundary:
        end = _end_of_document(text, cut, task.after_document(example, protocol), example.where)
        document_tokens = _tokens_before(text[:end], ids, tokenizer)
    return PreparedPrompt(
        ids=ids,
        tokens_untruncated=cut.tokens_before,
        tokens_cut=cut.tokens_cut,
        truncation=cut.side,
        chat_template=wrapped,
        answer_in_prompt=found,
        answer_removed=bool(removed),
        tail=text[-TAIL_CHARACTERS:],
        document_tokens=document_tokens,
    )


def _prepare_conversation(
    conversation: Conversation,
    example: Example,
    rules: TaskProtocol,
    tokenizer: Any,
    max_length: int,
    model_type: str | None,
    with_boundary: bool,
) -> PreparedPrompt:
    """The prompt of one turn of a conversation, with all turns before it."""
    wrapped = rules.chat_template and bool(getattr(tokenizer, "chat_template", None))
    made = tokenize_conversation(
        conversation, tokenizer, max_length, model_type, wrapped, example.where
    )
    ids = np.asarray(made.ids, dtype=np.int32)
    whole = made.first + made.rest
    text = whole if made.kept is None else tokenizer.decode(ids, skip_special_tokens=True)
    found = contains_answer(text, example.answers)
    removed = found is False and made.tokens_cut and contains_answer(whole, example.answers)
    document_tokens = None
    if with_boundary:
        document_tokens = _end_in_conversation(conversation, made, tokenizer, example.where)
    return PreparedPrompt(
        ids=ids,
        tokens_untruncated=len(made.first_ids) + len(made.rest_ids),
        tokens_cut=made.tokens_cut,
        truncation="none" if made.kept is None else rules.truncation,
        chat_template=wrapped,
        answer_in_prompt=found,
        answer_removed=bool(removed),
        tail=whole[-TAIL_CHARACTERS:],
        document_tokens=document_tokens,
    )


def _end_in_conversation(
    conversation: Conversation, made: TokenizedConversation, tokenizer: Any, where: str
) -> int:
    """Ids of a conversation up to the end of its document."""
    if not conversation.answered:  # the first turn is the document alone, up to its last token
        return len(made.ids) - len(made.rest_ids)
    uncut = Cut(conversation.first, len(made.first_ids), 0, "none")
    end = _end_of_document(made.first, uncut, conversation.after, where)
    before = _tokens_before(made.first[:end], np.asarray(made.first_ids), tokenizer)
    return made.place(before, where)


def _end_of_document(text: str, cut: Cut, after: str | None, where: str) -> int:
    """Characters of a prompt up to the end of its document.

    Args:
        text: the whole prompt, chat template included.
        cut: what truncation left of it.
        after: what follows the document before truncation and chat template; None: there is none.
        where: of the row, for the message.

    Raises:
        InputError: what follows the document is not in the prompt: it was cut, or decoding what
            was cut changed it.
    """
    if after is None:
        return 0
    # decoding and chat templates may strip white space at the ends
    turn, question = cut.text.strip(), after.strip()
    start = text.rfind(turn)
    if start < 0 or not turn.endswith(question):
        raise InputError(
            f"{where}: the end of the document cannot be found in the prompt: what follows it was "
            "cut, or decoding changed it (a variant that treats the document apart needs it)"
        )
    end = start + len(turn) - len(question)
    space = after[: len(after) - len(after.lstrip())]
    return end - len(space) if question and text[:end].endswith(space) else end


def _tokens_before(text: str, ids: npt.NDArray[np.int32], tokenizer: Any) -> int:
    """Leading ids that are of the text before a place; one id at least is left after them.

    A token that spans the place belongs to what follows.
    """
    before = np.asarray(tokenizer(text, truncation=False).input_ids, dtype=np.int32)
    return max(0, min(common_prefix(before, ids), len(ids) - 1))


def common_prefix(first: npt.NDArray[np.int32], second: npt.NDArray[np.int32]) -> int:
    """Number of leading ids that two prompts share."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def shared_tokens(prompts: Sequence[PreparedPrompt]) -> int:
    """Leading ids that all of `prompts` share and that are worth reading once.

    At least one token of each is left to read; 0 where it is not worth a copy of the cache.
    """
    if len(prompts) < 2:
        return 0
    shared = min(common_prefix(prompts[0].ids, prompt.ids) for prompt in prompts)
    shared = min(shared, min(prompt.tokens for prompt in prompts) - 1)
    return shared if shared >= SMALLEST_SHARED_TOKENS else 0
