"""What a probe of gradients found, as a file: written by `ahn probe`, read by reports.

`probe.json` holds, for each token of one or several texts, the L2 norm of the gradient of
KL(teacher || student) with respect to the token's embedding; see `ahn.distill.probe`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.errors import InputError
from common.files import read_text
from common.json import loads
from common.validation import validated
from common.writing import write_whole

SCHEMA: Literal["ahn-bench probe 1"] = "ahn-bench probe 1"
NAME = "probe.json"
MOST_BYTES = 2**28
"""Largest file that is read."""

Place = Literal["sink", "outside", "window"]
"""What the last position sees of a token: it is a sink; nothing; it is in the window."""
Norm = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=()
    )


class ProbedToken(_Strict):
    """A token of a text.

    Attributes:
        position: from 0.
        text: what it stands for, with the blanks before it; empty where a character goes on.
        place: what the last position sees of it.
        norm: of the gradient at its embedding, in nats per unit of the embedding.
        group: what it belongs to, `fact` or `filler`, where that is known.
    """

    position: Count
    text: str
    place: Place
    norm: Norm
    group: str | None = None


class ProbedDocument(_Strict):
    """A text, and its tokens or those of them that were recorded, in their order.

    Attributes:
        id: names it among the others; `text#question` where a text is asked several questions.
        length: tokens in all.
        kl: mean of KL(teacher || student) over the compared positions, in nats.
        positions: how many these are.
        tokens: with their gradients.
        recalled: whether the student's own answer was right, where a question was asked.
    """

    id: str
    length: Count
    kl: Annotated[float, Field(allow_inf_nan=False)]
    positions: Count
    tokens: tuple[ProbedToken, ...]
    recalled: bool | None = None


class Effect(_Strict):
    """How two groups of tokens, or of documents, differ in the norm of their gradients.

    Attributes:
        title: what is compared, in words.
        first: the one group.
        second: the other.
        documents: texts in which both occur.
        delta: mean over documents of Cliff's delta: the share of pairs (a token of either group) in
            which the first one's norm is larger, less the share in which it is smaller.
        low: end of the 95 % interval of `delta`.
        high: the other end.
        method: of the interval, in words.
        ratio: geometric mean of first over second, of the documents' mean logarithms; None where
            a norm is 0.
    """

    title: str
    first: str
    second: str
    documents: Count
    delta: float
    low: float
    high: float
    method: str
    ratio: float | None = None


class Probe(_Strict):
    """What a probe of one student found.

    Attributes:
        format: of the file.
        model: base model, as it was named.
        ahn: memory weights, as they were named; None: merged into the model, or none.
        variant: the student's.
        cell: of the student's memory.
        window: of the student in tokens, sinks not counted.
        sinks: likewise, its sinks.
        dtype: that it was computed in.
        compared: positions at which teacher and student are compared: `beyond` (all from which on
            something lies outside of the window), `last` (the last one), `answer` (those that
            predict the answer).
        documents: the texts.
        effects: what was found over all of them.
        notes: what a reader must know.
        weights: SHA-256 of the weight files, sorted; empty: not known.
    """

    format: Literal["ahn-bench probe 1"] = Field(
        default=SCHEMA, validation_alias="schema", serialization_alias="schema"
    )
    model: str
    ahn: str | None = None
    variant: str
    cell: str | None = None
    window: Count
    sinks: Count
    dtype: str
    compared: Literal["beyond", "last", "answer"]
    documents: tuple[ProbedDocument, ...] = Field(min_length=1)
    effects: tuple[Effect, ...] = ()
    notes: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


def as_json(probe: Probe) -> dict[str, Any]:
    """The content of the file; what is not known is left out."""
    return probe.model_dump(by_alias=True, exclude_none=True)


def read_probe(path: str | Path) -> Probe:
    """The probe in a file, or in `probe.json` of a folder.

    Raises:
        InputError: it cannot be read, or is no probe.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    text = read_text(path, MOST_BYTES)
    try:
        content = loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{path}: is no probe of gradients (schema {SCHEMA!r})")
    return validated(Probe, content, str(path))


def write_probe(folder: Path, probe: Probe) -> Path:
    """Write `probe.json` into a folder, which is there; an older probe is replaced.

    Raises:
        InputError: the file is there and is no probe, or it cannot be written.
    """
    path = folder / NAME
    check_probe_target(path)
    write_whole(path, json.dumps(as_json(probe), ensure_ascii=False, separators=(",", ":")) + "\n")
    return path


def check_probe_target(path: Path) -> None:
    """Refuse to replace a file that is no probe."""
    if not path.exists():
        return
    try:
        read_probe(path)
    except InputError as error:
        raise InputError(f"{error}; it is not replaced: name another folder (-o)") from None
