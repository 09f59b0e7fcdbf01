"""The ids of a conversation: several questions about one document, as SCBench asks them.

Source: microsoft/MInference fb56c91, scbench/eval_utils.py (`create_multiturn_prompt`,
`create_scdq_prompt`, `GreedySearch`) and scbench/run_scbench.py (`truncate_by_tokens`). It differs
from other benchmarks in this: the chat template is put around the first turn *before* it is cut;
what is cut stays ids, and is not decoded; and every further turn is tokenised by itself, without
special tokens, and follows uncut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ahn.families import find_family
from common.errors import InputError
from tasks.schema import Conversation, FollowUp

_MARK = "[SEPSEPSEP]"
"""The authors' mark of the place behind the document."""


@dataclass(frozen=True)
class TokenizedConversation:
    """A conversation's ids, and the texts that they were made of."""

    first: str  # the first turn, chat template included
    first_ids: list[int]  # of it, before it is cut
    rest: str  # what follows the first turn
    rest_ids: list[int]
    kept: int | None  # ids that are kept at either end of the first turn; None: all of them

    @property
    def ids(self) -> list[int]:
        """What the model reads."""
        if self.kept is None:
            return [*self.first_ids, *self.rest_ids]
        return [*self.first_ids[: self.kept], *self.first_ids[-self.kept :], *self.rest_ids]

    @property
    def tokens_cut(self) -> int:
        """Ids that are left out."""
        return 0 if self.kept is None else len(self.first_ids) - 2 * self.kept

    def place(self, before: int, where: str) -> int:
        """Where a place in the first turn is once it is cut.

        Args:
            before: ids of the whole first turn before the place.
            where: of the row, for the message.

        Raises:
            InputError: the place was cut away.
        """
        if self.kept is None or before <= self.kept:
            return before
        if before <= len(self.first_ids) - self.kept:
            raise InputError(
                f"{where}: the end of the document cannot be found in the prompt: the question "
                "behind it was cut (a variant that treats the document apart needs it)"
            )
        return before - self.tokens_cut


def tokenize_conversation(
    conversation: Conversation,
    tokenizer: Any,
    max_length: int,
    model_type: str | None,
    wrapped: bool,
    where: str,
) -> TokenizedConversation:
    """The ids of a conversation, its first turn cut in the middle if it is too long.

    Args:
        conversation: its turns.
        tokenizer: of the run.
        max_length: tokens of prompt and answers; what `conversation` reserves is taken off.
        model_type: of the model, for its chat template.
        wrapped: whether turns are put into the tokenizer's chat template.
        where: of the row, for messages.

    Raises:
        InputError: the length leaves no room, or the chat template cannot continue a conversation.
    """
    longest = max_length - conversation.reserved
    if longest < 2:
        raise InputError(
            f"--max-length: {max_length} is too small: {conversation.reserved} tokens are kept "
            f"free for answers, and a prompt has 2 at least ({where})"
        )
    if wrapped:
        first, rest = _in_chat(conversation, tokenizer, model_type, where)
    else:
        first, rest = conversation.first, [turn.plain for turn in conversation.follow_ups]
    first_ids = list(tokenizer(first, truncation=False).input_ids)
    rest_ids = [
        token
        for text in rest
        for token in tokenizer(text, truncation=False, add_special_tokens=False).input_ids
    ]
    kept = longest // 2 if len(first_ids) > longest else None
    return TokenizedConversation(first, first_ids, "".join(rest), rest_ids, kept)


def _in_chat(
    conversation: Conversation, tokenizer: Any, model_type: str | None, where: str
) -> tuple[str, list[str]]:
    """The first turn and the further ones, each in the chat template."""
    family = find_family(model_type)
    options = {} if family is None else family.chat_template_options
    try:
        if not conversation.answered:
            whole = _rendered(tokenizer, options, ("user", conversation.first + _MARK))
            asked = (_query(tokenizer, options, turn) for turn in conversation.follow_ups)
            return whole.split(_MARK)[0], list(asked)
        first = _rendered(tokenizer, options, ("user", conversation.first))
        if not conversation.follow_ups:
            return first, []
        opening = _rendered(tokenizer, {}, ("system", ""))
        return first, [
            _further(tokenizer, options, turn, opening, where) + conversation.opening
            for turn in conversation.follow_ups
        ]
    except InputError:
        raise
    except Exception as error:  # whatever a template, which is a program, raises
        raise InputError(
            f"{where}: the tokenizer's chat template cannot put further questions: "
            f"{(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error


def _rendered(tokenizer: Any, options: Mapping[str, Any], *turns: tuple[str, str]) -> str:
    text: str = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=False,
        add_generation_prompt=True,
        **options,
    )
    return text


def _query(tokenizer: Any, options: Mapping[str, Any], turn: FollowUp) -> str:
    """A question and the end of the turn that the document began."""
    text = _rendered(tokenizer, options, ("system", ""), ("user", _MARK + turn.user))
    return text.split(_MARK)[1]


def _further(
    tokenizer: Any, options: Mapping[str, Any], turn: FollowUp, opening: str, where: str
) -> str:
    """The answer to the question before, and a question.

    The authors render a conversation of its own and take its `opening` out, the system's turn and
    the beginning of the assistant's, which stands in the prompt already.
    """
    turns = [("system", ""), ("assistant", turn.answer or ""), ("user", turn.user)]
    text = _rendered(tokenizer, options, *turns)
    if opening not in text:
        raise InputError(
            f"{where}: the tokenizer's chat template cannot put further questions: an empty "
            "system's turn and an opened answer are no beginning of a conversation in it"
        )
    return text.replace(opening, "")
