"""The text of a perplexity: read or generated, and made into tokens."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from common.errors import InputError, shown
from common.files import open_unpacked, read_piece, size
from evaluation.backends.base import Ids
from evaluation.perplexity.configuration import POCKET, POCKET_TOKENS
from tasks.pocket.documents import make_document

MOST_BYTES = 1 << 28
"""Of a text, unpacked; a hundred times the longest novel."""
_CHAPTER_TOKENS, _FACTS, _QUESTIONS = 640, 8, 6
_KINDS = ("qa", "passkey", "kv_retrieval", "number_string", "two_hop")


@dataclass(frozen=True)
class TokenText:
    """A text as tokens.

    Attributes:
        inputs: ids that are read `[n]`.
        targets: ids that are predicted from them and all before `[n]`.
        prefix: `id` and `text` of the token before the text; None: there is none, and the first
            token is not scored.
        data: of the text, for perplexity.json.
        warnings: what people must be told of it.
    """

    inputs: Ids
    targets: Ids
    prefix: Mapping[str, Any] | None
    data: Mapping[str, Any]
    warnings: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """How many are scored."""
        return len(self.targets)

    @property
    def sha256(self) -> str:
        """Digest (hex) of all ids, in order."""
        ids = np.concatenate([self.inputs, self.targets[-1:]]).astype("<i4")
        return hashlib.sha256(ids.tobytes()).hexdigest()


def read_book(path: str) -> str:
    """A UTF-8 text file, also packed by gzip.

    Raises:
        InputError: there is no such file, it is too long, empty, or no text.
    """
    name = f"--data: {shown(path)}"
    try:
        with open_unpacked(path) as file:
            content = read_piece(file, shown(path), MOST_BYTES + 1)
    except InputError as error:
        raise error.prefixed("--data: ") from None
    if len(content) > MOST_BYTES:
        raise InputError(f"{name}: is longer than the {size(MOST_BYTES)} that are read")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 text (byte {error.start + 1})") from None
    if "\0" in text:
        raise InputError(f"{name}: is no text: it holds null bytes")
    if not text.strip():
        raise InputError(f"{name}: is empty")
    return text


def pocket_book(tokens: int, seed: int = 0) -> str:
    """A text of at least so many tokens of the pocket model: chapters with facts and questions.

    In each chapter facts stand among filler, and questions with their answers follow: what the
    answers say stood up to a chapter's length before.
    """
    draw = random.Random(seed)
    words: list[str] = []
    for number in range(tokens // _CHAPTER_TOKENS + 2):
        chapter = make_document(
            draw,
            _KINDS[number % len(_KINDS)],
            length=_CHAPTER_TOKENS,
            facts=_FACTS,
            questions=_QUESTIONS,
            split="test",
        )
        words += chapter.context.split()
        for question in chapter.questions:
            words += [*question.question.split(), *question.answer.split()]
        if len(words) > tokens:
            break
    return " ".join(words)


def make_text(
    data: str,
    tokenizer: Any,
    vocabulary: int | None,
    max_tokens: int | None = None,
    prefix: Literal["auto", "none"] = "auto",
    seed: int = 0,
) -> TokenText:
    """The tokens of a text.

    The tokenizer adds nothing of its own (no BOS token): what stands before the text is the prefix
    alone, as in lm-eval's `loglikelihood_rolling`.

    Args:
        data: a file, or `pocket`.
        tokenizer: of the model.
        vocabulary: ids that the model has; None: not known.
        max_tokens: first tokens that are scored; None: all.
        prefix: see `PerplexityConfiguration`.
        seed: of a generated text.

    Raises:
        InputError: there is no text, or nothing of it can be scored.
    """
    if data == POCKET:
        text = pocket_book(max_tokens or POCKET_TOKENS, seed)
        max_tokens = max_tokens or POCKET_TOKENS
        source: dict[str, Any] = {"source": POCKET, "seed": seed}
    else:
        text = read_book(data)
        source = {"path": str(data)}
    encoded = text.encode("utf-8")
    ids = np.asarray(
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64
    )
    if not len(ids):
        raise InputError(f"--data: {shown(data)}: the tokenizer makes no tokens of it")
    if vocabulary is not None and int(ids.max()) >= vocabulary:
        raise InputError(
            f"--tokenizer: gives token id {int(ids.max())}, but the model's vocabulary ends at "
            f"{vocabulary - 1}"
        )
    warnings = _oddities(ids, tokenizer)
    source |= {
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "bytes": len(encoded),
        "characters": len(text),
        "tokens": len(ids),
    }
    first = _prefix(tokenizer, vocabulary) if prefix == "auto" else None
    if first is None and prefix == "auto":
        warnings.append(
            "the tokenizer has neither a BOS nor an EOS token: nothing stands before the text, "
            "and its first token is not scored"
        )
    if first is not None:
        ids = np.concatenate([[first["id"]], ids])
    scored = len(ids) - 1
    if not scored:
        raise InputError(
            f"--data: {shown(data)}: one token, from which nothing is predicted; a text has at "
            "least two (or --prefix auto)"
        )
    if max_tokens is not None and max_tokens > scored:
        warnings.append(f"--max-tokens: the text has {scored:,} tokens to be scored, all are read")
    read: Ids = ids[: min(scored, max_tokens or scored) + 1].astype(np.int32)
    return TokenText(read[:-1], read[1:], first, source, warnings)


def _prefix(tokenizer: Any, vocabulary: int | None) -> dict[str, Any] | None:
    """The BOS token, or else the EOS token; None: the tokenizer, or the model, has neither."""
    for name in ("bos_token_id", "eos_token_id"):
        number = getattr(tokenizer, name, None)
        if number is not None and (vocabulary is None or number < vocabulary):
            return {"id": int(number), "text": str(tokenizer.convert_ids_to_tokens(int(number)))}
    return None


def _oddities(ids: Any, tokenizer: Any) -> list[str]:
    """What makes the perplexity of a text something else than a reader takes it for."""
    found = []
    unknown = getattr(tokenizer, "unk_token_id", None)
    count = 0 if unknown is None else int((ids == unknown).sum())
    if count:
        found.append(
            f"{count:,} of the text's {len(ids):,} tokens are the tokenizer's token for what it "
            "does not know: their perplexity says nothing of the text"
        )
    special = [n for n in getattr(tokenizer, "all_special_ids", ()) if n != unknown]
    count = int(np.isin(ids, special).sum())
    if count:
        found.append(
            f"the text spells out {count:,} special tokens (as {tokenizer.all_special_tokens[0]}), "
            "which the tokenizer takes for such, as lm-eval does"
        )
    return found
