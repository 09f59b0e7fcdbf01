"""The text of a perplexity: read or generated, and made into tokens."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import InputError, shown
from common.files import open_unpacked, read_piece, size
from evaluation.backends.base import Ids
from evaluation.perplexity.configuration import POCKET, POCKET_TOKENS, Prefix
from tasks.pocket.documents import make_document

Mask = npt.NDArray[np.bool_]
MOST_BYTES = 1 << 28
"""Of a text, unpacked; a hundred times the longest novel."""
_MOST_LOST = 0.005
"""Share of characters that a tokenizer may leave out, or normalise away, without a word."""
_CHAPTER_TOKENS, _FACTS = 400, 4
_KINDS = ("qa", "passkey", "kv_retrieval", "number_string")


@dataclass(frozen=True)
class TokenText:
    """A text as tokens.

    Attributes:
        inputs: ids that are read `[n]`.
        targets: ids that are predicted from them and all before `[n]`.
        scored: which targets count `[n]`; None: all.
        prefix: `id` and `text` of the token before the text; None: there is none, and the first
            token is not scored.
        data: of the text, for perplexity.json.
        warnings: what people must be told of it.
    """

    inputs: Ids
    targets: Ids
    scored: Mask | None
    prefix: Mapping[str, Any] | None
    data: Mapping[str, Any]
    warnings: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """How many are predicted; all of them count, unless `scored` says which."""
        return len(self.targets)

    @property
    def sha256(self) -> str:
        """Digest (hex) of all ids, in order, and of which count."""
        ids = np.concatenate([self.inputs, self.targets[-1:]]).astype("<i4")
        digest = hashlib.sha256(ids.tobytes())
        if self.scored is not None:
            digest.update(self.scored.tobytes())
        return digest.hexdigest()


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


def pocket_book(tokens: int, seed: int = 0) -> tuple[str, list[tuple[int, int]]]:
    """A text of at least so many tokens of the pocket model: chapters with facts and questions.

    In each chapter facts stand among filler, and a question about each follows with its answer:
    what the answer says stood up to a chapter's length before.

    Returns:
        The text, and start and end (exclusive) of the answers in it, in characters.
    """
    draw = random.Random(seed)
    parts: list[str] = []
    answers: list[tuple[int, int]] = []
    at = words = 0

    def add(text: str) -> tuple[int, int]:
        nonlocal at, words
        parts.append(f" {text}")
        place = at + 1, at + 1 + len(text)
        at, words = place[1], words + len(text.split())
        return place

    for number in itertools.count():
        if words > tokens:
            break
        chapter = make_document(
            draw,
            _KINDS[number % len(_KINDS)],
            length=_CHAPTER_TOKENS,
            facts=_FACTS,
            questions=_FACTS,
            split="test",
        )
        add(chapter.context)
        for question in chapter.questions:
            add(question.question)
            answers.append(add(question.answer))
    return "".join(parts), answers


def make_text(
    data: str,
    tokenizer: Any,
    vocabulary: int | None,
    max_tokens: int | None = None,
    prefix: Prefix = "auto",
    seed: int = 0,
) -> TokenText:
    """The tokens of a text.

    The tokenizer adds nothing of its own (no BOS token), unless `prefix` is `lm-eval`: what stands
    before the text is the prefix alone. Of the text `pocket` the answers alone count:
    the pocket model was trained to predict nothing else.

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
    places: list[tuple[int, int]] | None = None
    if data == POCKET:
        text, places = pocket_book(max_tokens or POCKET_TOKENS, seed)
        max_tokens = max_tokens or POCKET_TOKENS
        source: dict[str, Any] = {"source": POCKET, "seed": seed, "scored": "answers"}
    else:
        text = read_book(data)
        source = {"path": str(data)}
    encoded = text.encode("utf-8")
    first = None if prefix == "none" else _prefix(tokenizer, vocabulary)
    added = _added(tokenizer)
    # lm-eval looks whether the text begins with the prefix already
    whole = prefix == "lm-eval" and not (first and text.startswith(tokenizer.decode(first["id"])))
    ids, counts = _encoded(text, places, tokenizer, whole)
    if not len(ids):
        raise InputError(f"--data: {shown(data)}: the tokenizer makes no tokens of it")
    if vocabulary is not None and int(ids.max()) >= vocabulary:
        raise InputError(
            f"--tokenizer: gives token id {int(ids.max())}, but the model's vocabulary ends at "
            f"{vocabulary - 1}"
        )
    warnings = _oddities(text, ids, tokenizer, len(added) if whole else 0)
    if added and prefix == "auto":
        warnings.append(
            f"the tokenizer adds {' '.join(added)} to a text; here the prefix stands before it, "
            "once, and is not scored (lm-eval scores what is added, after its prefix: --prefix "
            "lm-eval)"
        )
    source |= {
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "bytes": len(encoded),
        "characters": len(text),
        "tokens": len(ids),
    }
    if first is None and prefix != "none":
        warnings.append(
            "the tokenizer has neither a BOS nor an EOS token: nothing stands before the text, "
            "and its first token is not scored"
        )
    if first is not None:
        ids = np.concatenate([[first["id"]], ids])
        counts = None if counts is None else np.concatenate([[False], counts])
    scored = len(ids) - 1
    if not scored:
        raise InputError(
            f"--data: {shown(data)}: one token, from which nothing is predicted; a text has at "
            "least two (or --prefix auto)"
        )
    if max_tokens is not None and max_tokens > scored:
        warnings.append(f"--max-tokens: the text has {scored:,} tokens to be scored, all are read")
    number = min(scored, max_tokens or scored)
    read: Ids = ids[: number + 1].astype(np.int32)
    chosen = None if counts is None else counts[1 : number + 1]
    if chosen is not None and not chosen.any():
        raise InputError(f"--max-tokens: no answer stands in the first {number} tokens of 'pocket'")
    return TokenText(read[:-1], read[1:], chosen, first, source, warnings)


def _added(tokenizer: Any) -> list[str]:
    """The tokens that a tokenizer adds to a text of its own accord."""
    bare, whole = (
        tokenizer("a", add_special_tokens=wanted, verbose=False)["input_ids"]
        for wanted in (False, True)
    )
    extra = list(whole)
    for number in bare:
        if number in extra:
            extra.remove(number)
    return [str(token) for token in tokenizer.convert_ids_to_tokens(extra)]


def _encoded(
    text: str, places: Sequence[tuple[int, int]] | None, tokenizer: Any, special: bool
) -> tuple[npt.NDArray[np.int64], Mask | None]:
    """Ids of a text `[n]`, and which of them stand in one of some places `[n]`; None: no places.

    With `special` the tokenizer adds what it adds of its own accord.

    Raises:
        InputError: the tokenizer does not tell where its tokens stand.
    """
    if places is None:
        found = tokenizer(text, add_special_tokens=special, verbose=False)
        return np.asarray(found["input_ids"], dtype=np.int64), None
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("--data: pocket needs a tokenizer of the package tokenizers (a fast one)")
    found = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    inside = np.zeros(len(text) + 1, dtype=bool)
    for start, end in places:
        inside[start:end] = True
    # a token may begin with the blank before its word: its last character tells
    last = np.asarray([max(start, end - 1) for start, end in found["offset_mapping"]], dtype=int)
    return np.asarray(found["input_ids"], dtype=np.int64), inside[last]


def _prefix(tokenizer: Any, vocabulary: int | None) -> dict[str, Any] | None:
    """The BOS token, or else the EOS token; None: the tokenizer, or the model, has neither."""
    for name in ("bos_token_id", "eos_token_id"):
        number = getattr(tokenizer, name, None)
        if number is not None and (vocabulary is None or number < vocabulary):
            return {"id": int(number), "text": str(tokenizer.convert_ids_to_tokens(int(number)))}
    return None


def _oddities(text: str, ids: Any, tokenizer: Any, added: int) -> list[str]:
    """What makes the perplexity of a text something else than a reader takes it for.

    `added` are special tokens that the tokenizer added itself.
    """
    found = []
    unknown = getattr(tokenizer, "unk_token_id", None)
    count = 0 if unknown is None else int((ids == unknown).sum())
    if count:
        found.append(
            f"{count:,} of the text's {len(ids):,} tokens are the tokenizer's token for what it "
            "does not know: their perplexity says nothing of the text"
        )
    back = tokenizer.decode(ids[added:], clean_up_tokenization_spaces=False)
    kept, whole = (len("".join(one.split())) for one in (back, text))
    if kept < (1 - _MOST_LOST) * whole:
        found.append(
            f"the tokenizer leaves out {1 - kept / whole:.1%} of the text's characters, which it "
            "has no tokens for: the perplexity is that of another text"
        )
    special = [n for n in getattr(tokenizer, "all_special_ids", ()) if n != unknown]
    count = int(np.isin(ids, special).sum()) - added
    if count > 0:
        spelt = next((t for t in tokenizer.all_special_tokens if t in text), "")
        found.append(
            f"the text spells out {count:,} special tokens (as {spelt}), which the tokenizer takes "
            "for such, as it does in lm-eval"
        )
    return found
