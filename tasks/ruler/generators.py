"""RULER's rows: the authors' constructions, equal to theirs byte for byte.

Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", arXiv
2404.06654; constructions as in NVIDIA/RULER c3f5e3b, `scripts/data/synthetic/` and
`scripts/synthetic.yaml`.

A row's length in tokens is part of the benchmark: each generator looks for the largest haystack
with which prompt and answer still fit, so rows belong to a tokenizer. Random numbers are drawn in
the authors' order, from Python's generator and numpy's, so that a seed means the same rows.

Where the authors' loop would never end (a row that does not fit even with the smallest haystack),
a length is refused.
"""

from __future__ import annotations

import random
import re
import string
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import resources
from typing import Any, overload

import numpy as np

from common.errors import InputError, shown

Count = Callable[[str], int]
"""Tokens of a text, without special tokens."""
Row = dict[str, Any]

SHORT = 4096
"""Below this length in tokens the authors take smaller steps, and shorter lists of words."""
_ATTEMPTS = 1000
"""Rows drawn with the smallest haystack before a length is given up."""
_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_NEEDLE = "One of the special magic {type_needle_v} for {key} is: {value}."
_ZETA_OF_2 = 1.6449340668482264
_PREFIX_SHOWN = 10
"""The answer prefix begins where the last occurrence of its first ten characters does."""


@dataclass(frozen=True)
class Construction:
    """One kind of row: prompt, answer prefix, and how much room an answer gets."""

    template: str
    answer_prefix: str
    answer_tokens: int

    @property
    def text(self) -> str:
        """The prompt's template with the answer prefix behind it."""
        return self.template + self.answer_prefix

    def split(self, text: str) -> tuple[str, str]:
        """Prompt and answer prefix of a row's text."""
        start = text.rfind(self.answer_prefix[:_PREFIX_SHOWN])
        return text[:start], text[start:]


NIAH = Construction(
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to "
    "memorize it. I will quiz you about the {type_needle_v} afterwards.\n{context}\nWhat are all "
    "the special magic {type_needle_v} for {query} mentioned in the provided text?",
    " The special magic {type_needle_v} for {query} mentioned in the provided text are",
    128,
)
VARIABLE_TRACKING = Construction(
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {query} in the text "
    "above.",
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v} "
    "variables are assigned the value {query}, they are: ",
    30,
)
COMMON_WORDS = Construction(
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\nQuestion: What are the 10 most common "
    "words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:",
    120,
)
FREQUENT_WORDS = Construction(
    "Read the following coded text and track the frequency of each coded word. Find the three "
    "most frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. "
    "Please ignore the dots '....'. What are the three most frequently appeared words in the above "
    "coded text?",
    " Answer: According to the coded text above, the three most frequently appeared words are:",
    50,
)

QUESTION_ANSWERING = Construction(
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question "
    "based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query}",
    " Answer:",
    32,
)


@dataclass
class Draws:
    """The two generators of random numbers that the authors seed, and the seed itself."""

    seed: int
    python: random.Random = field(init=False)
    numpy: np.random.RandomState = field(init=False)

    def __post_init__(self) -> None:
        self.python = random.Random(self.seed)
        self.numpy = np.random.RandomState(self.seed)

    def shuffled(self, values: list[Any]) -> None:
        """Shuffle as the authors do: with a generator of its own, the same each time."""
        random.Random(self.seed).shuffle(values)

    def five_digits(self) -> str:
        """A number from 10000 to 99998."""
        return str(self.numpy.randint(10_000, 99_999))

    def letters(self, alphabet: str, count: int) -> str:
        """So many letters, each drawn alone."""
        return "".join(self.python.choices(alphabet, k=count))


def _search(tokens: Callable[[int], int], low: int, high: int, limit: int) -> int:
    """The largest number of pieces, from `low` to `high`, whose row fits; `low` where none does.

    Each call of `tokens` draws a row of so many pieces and gives its length.
    """
    found = low
    while low <= high:
        middle = (low + high) // 2
        if tokens(middle) <= limit:
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return found


def _fitting(
    make: Callable[[int], tuple[str, list[str]]],
    tokens: Callable[[str], int],
    pieces: int,
    step: int,
    limit: int,
    too_short: str,
) -> tuple[str, list[str], int]:
    """A row of at most `limit` tokens with its answers and length; fewer pieces where it must be.

    Raises:
        InputError: no row fits, in the words of `too_short`.
    """
    for _ in range(_ATTEMPTS + pieces):
        try:
            text, answers = make(pieces)
        except ValueError:  # fewer places than needles
            text, answers, length = "", [], limit + 1
        else:
            length = tokens(text)
        if length <= limit:
            return text, answers, length
        if pieces > step:
            pieces -= step
    raise InputError(f"{too_short}: not even the smallest row fits")


def _too_short(length: int, reserved: int) -> str:
    """What to say of a length that is too short."""
    template = f", of which {reserved} are the chat template's," if reserved else ""
    return f"a length of {length} tokens{template} is too short"


# -- needles in a haystack -------------------------------------------------------------------------


@dataclass(frozen=True)
class Needles:
    """What is hidden and in what: `scripts/synthetic.yaml`."""

    haystack: str
    """`noise`: five sentences again and again; `needle`: other needles; `essay`: a text."""
    keys: str
    """`words`, `numbers` or `uuids`."""
    values: str
    number_of_keys: int = 1
    values_of_a_key: int = 1
    queries: int = 1


def niah(
    kind: Needles,
    length: int,
    rows: int,
    seed: int,
    count: Count,
    essay: str | None = None,
    reserved: int = 0,
) -> Iterator[Row]:
    """Rows of a needle task (`niah.py`).

    Args:
        kind: what is hidden.
        length: of prompt and answer, in tokens.
        rows: how many.
        seed: of the random numbers.
        count: tokens of a text.
        essay: the text of an `essay` haystack.
        reserved: tokens of `length` that are left to a chat template (`model_template_token`).

    Raises:
        InputError: no row is so short; a haystack of essays without a text.
    """
    draws = Draws(seed)
    step = {"essay": 500, "noise": 25, "needle": 25}[kind.haystack]
    if kind.haystack != "essay" and length < SHORT:
        step = 5
    words = _words_of(essay) if kind.haystack == "essay" else []
    room, told = length - reserved, _too_short(length, reserved)
    needles = max(kind.number_of_keys, kind.queries) * kind.values_of_a_key
    if kind.haystack != "essay" and needles > step:
        raise InputError(f"{needles} needles in a haystack of {step} sentences at this length")

    def make(pieces: int) -> tuple[str, list[str]]:
        return _needle_row(kind, draws, pieces, words)

    def tokens(text: str) -> int:
        return count(text) + NIAH.answer_tokens

    of_one = count(make(step)[0]) / step
    highest = max(int(room / of_one * 3), step * 2)
    pieces = _search(lambda n: tokens(make(n)[0]), step, highest, room)
    for _ in range(rows):
        text, answers, size = _fitting(make, tokens, pieces, step, room, told)
        prompt, prefix = NIAH.split(text)
        place = prompt.find(answers[0])
        yield {
            "index": place,  # the authors overwrite the row's number by the answer's place
            "input": prompt,
            "outputs": answers,
            "length": size,
            "length_w_model_temp": size + reserved,
            "answer_prefix": prefix,
            "token_position_answer": count(prompt[:place]),
        }


def _needle_row(
    kind: Needles, draws: Draws, pieces: int, words: list[str]
) -> tuple[str, list[str]]:
    """One row with a haystack of so many pieces (sentences; words of an essay), and its answers."""
    keys: list[str] = []
    values: list[list[str]] = []
    needles: list[str] = []
    for _ in range(max(kind.number_of_keys, kind.queries)):
        keys.append(_drawn(kind.keys, draws))
        values.append([_drawn(kind.values, draws) for _ in range(kind.values_of_a_key)])
        needles += [
            _NEEDLE.format(type_needle_v=kind.values, key=keys[-1], value=value)
            for value in values[-1]
        ]
    draws.shuffled(needles)
    if kind.haystack == "essay":
        repeated = words * -(-pieces // len(words))
        sentences = _sentences(" ".join(repeated[:pieces]).strip())
        context = " ".join(_inserted(sentences, needles, draws))
    else:
        hay = [_NOISE] * pieces
        if kind.haystack == "needle":
            hay = [
                _NEEDLE.format(
                    type_needle_v=kind.values,
                    key=_drawn(kind.keys, draws),
                    value=_drawn(kind.values, draws),
                )
                for _ in range(pieces)
            ]
        places = sorted(draws.python.sample(range(pieces), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            hay.insert(place, needle)
        context = "\n".join(hay)
    asked = draws.python.sample(range(len(keys)), kind.queries)
    queries = [keys[i] for i in asked]
    query = ", ".join(queries[:-1]) + ", and " + queries[-1] if len(queries) > 1 else queries[0]
    template, noun = NIAH.text, kind.values
    if kind.queries * kind.values_of_a_key == 1:
        # As the authors make a singular: everywhere, in "hidden" sentences too.
        template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
        template, noun = template.replace("answers", "answer"), noun[:-1]
    text = template.format(type_needle_v=noun, context=context, query=query)
    return text, [value for i in asked for value in values[i]]


def _drawn(kind: str, draws: Draws) -> str:
    """A key or a value."""
    if kind == "words":
        return draws.python.choice(_pairs_of_words())
    if kind == "uuids":
        return str(uuid.UUID(int=draws.python.getrandbits(128), version=4))
    return str(draws.python.randint(1_000_000, 9_999_999))


def _inserted(sentences: list[str], pieces: list[str], draws: Draws) -> Iterator[str]:
    """An essay's sentences with pieces between them, at depths drawn from 40."""
    depths = [int(depth) for depth in np.round(np.linspace(0, 100, num=40, endpoint=True))]
    chosen = draws.python.sample(depths, len(pieces))
    places = sorted(int(len(sentences) * (depth / 100)) for depth in chosen)
    for start, end, piece in zip([0, *places], places, pieces, strict=False):
        yield " ".join(sentences[start:end])
        yield piece
    yield " ".join(sentences[places[-1] :])


def _words_of(essay: str | None) -> list[str]:
    """An essay's words; it is repeated where it is too short.

    White space at its beginning or end is an empty word, which counts, as in the authors' code.
    """
    words = re.sub(r"\s+", " ", essay or "").split(" ")
    if not any(words):
        raise InputError("a haystack of essays needs a text; give the authors' essays")
    return words


def check_sentences() -> None:
    """InputError where NLTK's data, which essays are cut with, is not installed."""
    _sentences("One. Two.")


def _sentences(text: str) -> list[str]:
    """NLTK's sentences of an English text, as the authors cut an essay.

    Raises:
        InputError: NLTK's data `punkt_tab` is not installed here.
    """
    from nltk.tokenize import sent_tokenize

    try:
        found: list[str] = sent_tokenize(text)
    except LookupError:
        raise InputError(
            "RULER's essays are cut into sentences by NLTK, whose data 'punkt_tab' is not here: "
            "python -m nltk.downloader punkt_tab"
        ) from None
    return found


@cache
def _word_list(name: str) -> list[str]:
    """A list of the package wonderwords, which the authors draw words from."""
    text = resources.files("wonderwords.assets").joinpath(f"{name}list.txt").read_text("utf-8")
    return [line.rstrip() for line in text.splitlines()]


class WordPairs(Sequence[str]):
    """`sorted({f"{a}-{b}" for a in first for b in second})`, without making the list.

    It would have eight million entries. Pairs that begin with one first word stand together in the
    sorted list, unless another first word goes on where that one has its hyphen (`far` and
    `far-flung`); only such families are written out.
    """

    def __init__(self, first: Iterable[str], second: Iterable[str]) -> None:
        self._second = sorted(set(second))
        self._blocks: list[tuple[str, list[str] | None]] = []
        """A beginning, and all pairs of its family, or None: it with each second word."""
        self._ends: list[int] = []
        families: list[list[str]] = []
        for word in sorted(f"{one}-" for one in set(first)):
            if families and word.startswith(families[-1][0]):
                families[-1].append(word)
            else:
                families.append([word])
        end = 0
        for family in families:
            pairs = None
            if len(family) > 1:
                pairs = sorted({begin + word for begin in family for word in self._second})
            end += len(self._second) if pairs is None else len(pairs)
            self._blocks.append((family[0], pairs))
            self._ends.append(end)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        block = bisect_right(self._ends, index)
        begin, pairs = self._blocks[block]
        place = index - (self._ends[block - 1] if block else 0)
        return begin + self._second[place] if pairs is None else pairs[place]


@cache
def _pairs_of_words() -> WordPairs:
    """Every adjective with every noun, `adjective-noun`."""
    return WordPairs(_word_list("adjective"), _word_list("noun"))


# -- variable tracking -----------------------------------------------------------------------------


def variable_tracking(
    length: int,
    rows: int,
    seed: int,
    count: Count,
    chains: int = 1,
    hops: int = 4,
    reserved: int = 0,
) -> Iterator[Row]:
    """Rows of `vt` (`variable_tracking.py`): chains of assignments in noise.

    Args:
        length: of prompt and answer, in tokens.
        rows: how many.
        seed: of the random numbers.
        count: tokens of a text.
        chains: of assignments; the first one is asked for.
        hops: assignments after a chain's first.
        reserved: tokens of `length` that are left to a chat template.

    Raises:
        InputError: no row is so short.
    """
    draws = Draws(seed)

    def example(pieces: int) -> tuple[str, list[str]]:
        return _chain_row(draws, pieces, chains, min(10, hops), shown=True, hops_asked=hops)

    def row(pieces: int) -> tuple[str, list[str]]:
        return _chain_row(draws, pieces, chains, hops, shown=False, hops_asked=hops)

    # A solved example stands before each row; it is searched for like a row of 500 tokens.
    pieces = _chain_pieces(example, count, 0, 5, 500 - reserved)
    too_short = f"the solved example has room for {500 - reserved} of this tokenizer's tokens"
    if length < 500:
        too_short = _too_short(length, reserved)
    text, answers, _ = _fitting(example, count, pieces, 5, 500 - reserved, too_short)
    solved = f"{text} {' '.join(answers)}\n"

    step = 5 if length < SHORT else 10
    room, told = length - reserved, _too_short(length, reserved)
    beside = count(solved) + VARIABLE_TRACKING.answer_tokens
    pieces = _chain_pieces(row, count, beside, step, room)

    def make(pieces: int) -> tuple[str, list[str]]:
        text, answers = row(pieces)
        return _renamed(solved, hops, draws) + "\n" + text, answers

    def tokens(text: str) -> int:
        return count(text) + VARIABLE_TRACKING.answer_tokens

    for index in range(rows):
        text, answers, size = _fitting(make, tokens, pieces, step, room, told)
        yield _row(index, VARIABLE_TRACKING, text, answers, size, reserved)


def _chain_pieces(
    make: Callable[[int], tuple[str, list[str]]], count: Count, beside: int, step: int, limit: int
) -> int:
    of_one = count(make(step)[0]) / step
    highest = max(int(limit / of_one * 3), step * 2)
    return _search(lambda n: count(make(n)[0]) + beside, step, highest, limit)


def _chain_row(
    draws: Draws, pieces: int, chains: int, hops: int, *, shown: bool, hops_asked: int
) -> tuple[str, list[str]]:
    """A row with chains in so many pieces of noise; the example that is `shown` has short names."""
    letters = 3 if shown else 5
    wanted = (hops + 1) * chains
    names = [draws.letters(string.ascii_uppercase, letters) for _ in range(wanted)]
    while len(set(names)) < wanted:
        names.append(draws.letters(string.ascii_uppercase, letters))
    groups = [names[start : start + hops + 1] for start in range(0, len(names), hops + 1)]
    written = []
    for group in groups:
        value = "12345" if shown else draws.five_digits()
        written.append(
            [f"VAR {group[0]} = {value}"]
            # the blank at the end is the authors'
            + [f"VAR {group[j + 1]} = VAR {group[j]} " for j in range(hops)]
        )
    sentences = [_NOISE] * pieces
    for chain in written:
        places = sorted(draws.python.sample(range(len(sentences)), len(chain)))
        for moved, (place, line) in enumerate(zip(places, chain, strict=True)):
            sentences.insert(place + moved, line)
    context = "\n".join(sentences).replace(". \n", ".\n")
    value = written[0][0].split("=")[-1].strip()
    text = VARIABLE_TRACKING.text.format(context=context, query=value, num_v=hops_asked + 1)
    return text, groups[0]


def _renamed(solved: str, hops: int, draws: Draws) -> str:
    """The solved example with other names and another value."""
    for name in solved.strip().split()[-hops - 1 :]:
        solved = solved.replace(name, draws.letters(string.ascii_uppercase, len(name)))
    return solved.replace("12345", draws.five_digits())


def _row(
    index: int, of: Construction, text: str, answers: list[str], size: int, reserved: int
) -> Row:
    prompt, prefix = of.split(text)
    return {
        "index": index,
        "input": prompt,
        "outputs": answers,
        "length": size,
        "length_w_model_temp": size + reserved,
        "answer_prefix": prefix,
    }


# -- common and frequent words ---------------------------------------------------------------------


def common_words(
    length: int,
    rows: int,
    seed: int,
    count: Count,
    more_words: Callable[[], list[str]] | None = None,
    reserved: int = 0,
) -> Iterator[Row]:
    """Rows of `cwe` (`common_words_extraction.py`): which ten words of a long list are common.

    Args:
        length: of prompt and answer, in tokens.
        rows: how many.
        seed: of the random numbers.
        count: tokens of a text.
        more_words: the authors' `english_words.json` (its values), from which they draw where the
            words of wonderwords are too few; only called then.
        reserved: tokens of `length` that are left to a chat template.

    Raises:
        InputError: no row is so short; it takes more words than there are, and none were given.
    """
    draws = Draws(seed)
    words = sorted({*_word_list("noun"), *_word_list("adjective"), *_word_list("verb")})
    draws.shuffled(words)
    short = length < SHORT

    def listed(number: int, common: int, uncommon: int) -> tuple[str, list[str]]:
        known = words
        if number > len(words):
            if more_words is None:
                raise InputError(
                    f"rows of {length} tokens need a list of {number:,} words, and wonderwords has "
                    f"{len(words):,}; give the authors' english_words.json"
                )
            known = more_words()
        chosen = draws.python.sample(known, number)
        found = chosen[:10] * common + chosen[10:] * uncommon
        draws.shuffled(found)
        return " ".join(f"{n}. {word}" for n, word in enumerate(found, 1)), chosen[:10]

    def make(number: int) -> tuple[str, list[str]]:
        shown, answers = listed(20, 3, 1) if short else listed(40, 10, 3)
        context, asked = listed(number, 6, 1) if short else listed(number, 30, 3)
        solved = " ".join(f"{n}. {word}" for n, word in enumerate(answers, 1))
        template = COMMON_WORDS.text
        example = template.format(context=shown) + " " + solved
        return example + "\n" + template.format(context=context), asked

    def tokens(text: str) -> int:
        return count(text) + COMMON_WORDS.answer_tokens

    of_one = count(make(4096)[0]) / 4096
    room, told = length - reserved, _too_short(length, reserved)
    highest = max(int(room // of_one) * 2, 20)
    number = _search(lambda n: tokens(make(n)[0]), 10, highest, room)
    for index in range(rows):
        text, answers, size = _fitting(make, tokens, number, 10, room, told)
        yield _row(index, COMMON_WORDS, text, answers, size, reserved)


def frequent_words(
    length: int, rows: int, seed: int, count: Count, letters: int = 6, reserved: int = 0
) -> Iterator[Row]:
    """Rows of `fwe` (`freq_words_extraction.py`): made-up words, as often as a zeta law says.

    Args:
        length: of prompt and answer, in tokens.
        rows: how many.
        seed: of the random numbers.
        count: tokens of a text.
        letters: of a word.
        reserved: tokens of `length` that are left to a chat template.

    Raises:
        InputError: no row is so short.
    """
    draws = Draws(seed)
    room = length - reserved - FREQUENT_WORDS.answer_tokens
    vocabulary, step = room // 50, room // 32
    if vocabulary < 4 or step < 1:  # three answers, and the dots before them
        raise InputError(f"{_too_short(length, reserved)}: at least 250 are needed")

    def coded() -> list[str]:
        words = [draws.letters(string.ascii_lowercase, letters) for _ in range(vocabulary)]
        while len(set(words)) < vocabulary:
            words.append(draws.letters(string.ascii_lowercase, letters))
        found = sorted(set(words))
        draws.shuffled(found)
        return ["...", *found[1:]]  # the most frequent one is noise

    def text_of(words: list[str], number: int) -> str:
        ranks = np.arange(1, len(words) + 1)
        times = (number * (ranks**-2.0) / _ZETA_OF_2).astype(int)
        drawn = [word for word, often in zip(words, times, strict=True) for _ in range(often)]
        draws.shuffled(drawn)
        return FREQUENT_WORDS.text.format(context=" ".join(drawn))

    words, number = coded(), room // letters
    while count(text_of(words, number)) < room:
        number += step
    number -= step
    for index in range(rows):
        words, fitting = coded(), number
        while count(text := text_of(words, fitting)) > room:
            fitting -= step
            if fitting <= 0:
                raise InputError(f"{_too_short(length, reserved)}: no row fits")
        size = count(text) + FREQUENT_WORDS.answer_tokens
        yield _row(index, FREQUENT_WORDS, text, words[1:4], size, reserved)


# -- questions about documents ---------------------------------------------------------------------

_LEAST_DOCUMENTS = 10
"""The smallest number of documents, and the step, of the authors' search."""


@dataclass(frozen=True)
class Question:
    """A question with its answers."""

    query: str
    answers: list[str]
    documents: list[int]
    """Of all documents, those that are always shown."""
    related: list[int] = field(default_factory=list)
    """Those that are shown next: the others of the same article."""


@dataclass(frozen=True)
class QuestionSet:
    """Questions, and the documents that rows are filled with, sorted, each once."""

    questions: list[Question]
    documents: list[str]


def question_answering(
    known: QuestionSet, length: int, rows: int, seed: int, count: Count, reserved: int = 0
) -> Iterator[Row]:
    """Rows of `qa_1` and `qa_2` (`qa.py`): a question about one of many documents.

    Args:
        known: questions, asked in their order, and documents.
        length: of prompt and answer, in tokens.
        rows: how many.
        seed: of the random numbers.
        count: tokens of a text.
        reserved: tokens of `length` that are left to a chat template.

    Raises:
        InputError: no row is so short; there are fewer questions than rows.
    """
    draws = Draws(seed)
    if rows > len(known.questions):
        raise InputError(f"{rows:,} rows, but there are {len(known.questions):,} questions")
    if many := [q.query for q in known.questions[:rows] if len(q.documents) > _LEAST_DOCUMENTS]:
        raise InputError(
            f"more than {_LEAST_DOCUMENTS} documents belong to the question {shown(many[0])}"
        )

    def make(index: int, number: int) -> tuple[str, list[str]]:
        return _documents_row(known, draws, index, number)

    def tokens(text: str) -> int:
        return count(text) + QUESTION_ANSWERING.answer_tokens

    step, room = _LEAST_DOCUMENTS, length - reserved
    told = _too_short(length, reserved)
    of_one = count(make(0, step)[0]) / step
    highest = max(int(room / of_one * 3), step * 2)
    number = _search(lambda n: tokens(make(0, n)[0]), step, highest, room)
    for index in range(rows):
        text, answers, size = _fitting(partial(make, index), tokens, number, step, room, told)
        yield _row(index, QUESTION_ANSWERING, text, answers, size, reserved)


def _documents_row(
    known: QuestionSet, draws: Draws, index: int, number: int
) -> tuple[str, list[str]]:
    """A row of one question with so many documents; ValueError where it has more of its own."""
    asked, total = known.questions[index], len(known.documents)
    own, related = asked.documents, asked.related
    if number < total:
        if number - len(own) > len(related):
            known_ones = {*own, *related}
            others = [place for place in range(total) if place not in known_ones]
            more = max(0, number - len(own) - len(related))
            places = own + related + draws.python.sample(others, more)
        else:
            places = own + draws.python.sample(related, number - len(own))
        shown = [known.documents[place] for place in places]
    else:
        shown = (known.documents * -(-number // total))[:number]
    draws.shuffled(shown)
    context = "\n\n".join(f"Document {n}:\n{text}" for n, text in enumerate(shown, 1))
    text = QUESTION_ANSWERING.text.format(context=context, query=asked.query)
    return text, list(asked.answers)
