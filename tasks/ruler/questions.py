"""SQuAD v2 and HotpotQA as RULER asks them (`qa.py`): `qa_1` and `qa_2`.

Read from the originals (`dev-v2.0.json`, `hotpot_dev_distractor_v1.json`), which the authors
download, or from the hub's copies in Parquet (also as JSON lines), whose rows stand in the same
order. Neither is part of this package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from common import json as strict
from common.errors import InputError, shown
from common.files import read_text
from common.validation import Model
from tasks.jsonl import Bad
from tasks.layouts import Part
from tasks.rows import Text, describe
from tasks.ruler.generators import Question, QuestionSet

_MOST_BYTES = 2**30


@dataclass(frozen=True)
class Source:
    """Where a set of questions is published on the hub, without a loading script."""

    title: str
    repository: str
    revision: str
    file: str
    read: Callable[[Path], QuestionSet]


class _Answer(BaseModel):
    text: Text


class _SquadQuestion(BaseModel):
    question: Text
    answers: list[_Answer]
    is_impossible: bool


class _Paragraph(BaseModel):
    context: Text
    qas: list[_SquadQuestion]


class _Article(BaseModel):
    paragraphs: list[_Paragraph]


class _Squad(BaseModel):
    data: Annotated[list[_Article], Field(min_length=1)]


class _HubAnswers(BaseModel):
    text: list[Text]


class _HubSquad(BaseModel):
    """A row of rajpurkar/squad_v2. A question that cannot be answered has no answers."""

    title: Text
    context: Text
    question: Text
    answers: _HubAnswers


class _HubContext(BaseModel):
    title: list[Text]
    sentences: list[list[Text]]


class _Hotpot(BaseModel):
    """A question of HotpotQA; its documents as pairs in the original, as columns on the hub."""

    question: Text
    answer: Text
    context: _HubContext | list[tuple[Text, list[Text]]]

    @property
    def documents(self) -> list[str]:
        """Each document as the authors write it: its title, and its sentences."""
        pairs = self.context
        if isinstance(pairs, _HubContext):
            pairs = list(zip(pairs.title, pairs.sentences, strict=True))
        return [f"{title}\n{''.join(sentences)}" for title, sentences in pairs]


def squad(path: Path) -> QuestionSet:
    """SQuAD v2: the questions that can be answered, each with the paragraphs of its article.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    # By article, its paragraphs; of each, its text and the questions with answers.
    articles: list[list[tuple[str, list[tuple[str, list[str]]]]]] = []
    if path.suffix == ".json":
        for article in _parsed(_Squad, _json(path), path).data:
            articles.append(
                [
                    (
                        paragraph.context,
                        [
                            (asked.question, [answer.text for answer in asked.answers])
                            for asked in paragraph.qas
                            if not asked.is_impossible
                        ],
                    )
                    for paragraph in article.paragraphs
                ]
            )
    else:
        read = (_parsed(_HubSquad, row, path, number) for number, row in _rows(path))
        for _, rows in groupby(read, key=lambda row: row.title):
            found_paragraphs = []
            for context, asked_of in groupby(rows, key=lambda row: row.context):
                found = [(row.question, row.answers.text) for row in asked_of if row.answers.text]
                found_paragraphs.append((context, found))
            articles.append(found_paragraphs)
    documents = sorted({context for article in articles for context, _ in article})
    place = {document: number for number, document in enumerate(documents)}
    questions = []
    for paragraphs in articles:
        of_article = [place[context] for context, _ in paragraphs]
        for context, asked_here in paragraphs:
            own = place[context]
            related = [number for number in of_article if number != own]
            questions += [Question(query, answers, [own], related) for query, answers in asked_here]
    return _whole(QuestionSet(questions, documents), path)


def hotpotqa(path: Path) -> QuestionSet:
    """HotpotQA, distractor setting: each question with its own documents.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    if path.suffix == ".json":
        content = _json(path)
        if not isinstance(content, list):
            raise InputError(f"{shown(path)}: is no list of HotpotQA's questions")
        numbered: Iterator[tuple[int, Any]] = iter(enumerate(content, 1))
    else:
        numbered = _rows(path)
    read = [_parsed(_Hotpot, row, path, number) for number, row in numbered]
    own = []
    for number, row in enumerate(read, 1):
        try:
            own.append(row.documents)
        except ValueError:
            raise InputError(
                f"{shown(path)}:{number}: 'context' has not as many titles as texts"
            ) from None
    documents = sorted({document for found in own for document in found})
    place = {document: number for number, document in enumerate(documents)}
    questions = [
        Question(row.question, [row.answer], [place[document] for document in found])
        for row, found in zip(read, own, strict=True)
    ]
    return _whole(QuestionSet(questions, documents), path)


SOURCES: Mapping[str, Source] = {
    "squad": Source(
        "SQuAD v2",
        "rajpurkar/squad_v2",
        "3ffb306f725f7d2ce8394bc1873b24868140c412",
        "squad_v2/validation-00000-of-00001.parquet",
        squad,
    ),
    "hotpotqa": Source(
        "HotpotQA",
        "hotpotqa/hotpot_qa",
        "1908d6afbbead072334abe2965f91bd2709910ab",
        "distractor/validation-00000-of-00001.parquet",
        hotpotqa,
    ),
}
"""By the authors' names of the data sets."""


def _json(path: Path) -> Any:
    try:
        return strict.loads(read_text(path, _MOST_BYTES))
    except InputError:
        raise
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{shown(path)}: is no JSON ({error})") from None


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a Parquet file, or of JSON lines, with their numbers."""
    if path.suffix not in (".parquet", ".jsonl", ".gz"):
        raise InputError(f"{shown(path)}: is not named as JSON, JSON lines or Parquet are")
    for line in Part(path).rows(hashlib.sha256()):
        if isinstance(line, Bad):
            raise InputError(f"{shown(path)}:{line.number}: {line.problem}")
        yield line.number, line.value


def _parsed(model: type[Model], value: Any, path: Path, number: int | None = None) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        where = shown(path) if number is None else f"{shown(path)}:{number}"
        raise InputError(f"{where}: {describe(error.errors()[0])}") from None


def _whole(found: QuestionSet, path: Path) -> QuestionSet:
    if not found.questions:
        raise InputError(f"{shown(path)}: has no question with an answer")
    return found
