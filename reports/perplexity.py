"""Folders of `run_eval perplexity`: their format, and reading them. No torch.

::

    <folder>/perplexity.json      what was read, by which variants (`PerplexityInfo`)
    <folder>/<variant>.jsonl      a line for each block of tokens (`BlockRecord`), in order

A block is a stretch of `block_tokens` tokens of the text, the last one what is left. A loss is
minus the natural logarithm of the probability that a token had, given all tokens before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common import json as strict
from common.errors import InputError, shown
from common.files import read_bytes
from common.validation import messages
from reports.records import Count, Seconds, Start, Text, content_sha256

SCHEMA_VERSION = 1
INFO_FILE = "perplexity.json"
_MOST_BYTES = 1 << 28
Floats = npt.NDArray[np.float64]


class PerplexityInfo(BaseModel):
    """``perplexity.json``: what was read, and how."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    identity: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 over identity_parts without 'variants': a folder holds one text, read "
        "in one way.",
    )
    identity_parts: dict[str, Any] = Field(
        description="What makes two losses comparable: tokens, prefix, blocks, chunks; and what "
        "each of 'variants' is, its weights included."
    )
    created: str = Field(description="When it was first started, ISO 8601 with time zone.")
    updated: str = Field(description="When this file was last written.")
    starts: list[Start] = Field(description="Every start; each record names its own.")
    command: list[str] = Field(description="Command line of the latest start.")
    configuration: dict[str, Any] = Field(description="Settings of the latest start.")
    model: Text = Field(description="The base model as it was named.")
    model_settings: dict[str, Any] = Field(description="Its config.json.")
    data: dict[str, Any] = Field(
        description="The text: 'path' (of a file) or 'source' ('pocket': generated), 'sha256' of "
        "the text in UTF-8, 'bytes', 'characters', 'tokens' (of all of it); 'scored': which tokens "
        "count, where it is not all."
    )
    tokens: int = Field(ge=1, description="Tokens whose loss is asked of every variant.")
    tokens_sha256: str = Field(description="SHA-256 of their ids (int32, little-endian).")
    prefix: dict[str, Any] | None = Field(
        description="Token that stands before the text and is not scored: 'id' and 'text'. None: "
        "the text's own first token, which is not scored."
    )
    context: int | None = Field(description="Positions that model and variants were made for.")
    block_tokens: int = Field(ge=1, description="Tokens of a record.")
    chunk_tokens: int = Field(ge=1, description="Tokens that are read at once.")
    peak: Text | None = Field(description="How the peak of memory was measured; None: not at all.")
    variants: dict[str, dict[str, Any]] = Field(
        description="Per variant: variant (its kind), path, ahn, window, sinks, cell, dtype "
        "... as run.json of a run says it."
    )
    failures: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Per variant that did not get through the text: 'token' (index) and 'error'.",
    )
    warnings: list[Text] = Field(default_factory=list, description="What people were told.")
    status: Literal["running", "interrupted", "failed", "finished"] = Field(
        description="'finished' only when every variant has read all tokens."
    )


class BlockRecord(BaseModel):
    """One block of one variant: a line of ``<variant>.jsonl``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    variant: str = Field(min_length=1)
    first: Count = Field(description="Index of its first token among those that are scored.")
    tokens: int = Field(ge=1, description="How many tokens it has.")
    scored: Count = Field(
        description="How many of them count: all, unless the text's 'data' says which are scored."
    )
    loss: float = Field(
        allow_inf_nan=False,
        description="Sum of the losses of those, in nats (log-softmax in float32 or finer).",
    )
    peak_bytes: Count | None = Field(
        default=None,
        description="Most bytes allocated at a time while it was read, the cache included, weights "
        "not (measured). None: not measured in this block.",
    )
    cache_bytes: Count | None = Field(
        default=None, description="Bytes in use for the past once it was read (measured)."
    )
    seconds: Seconds | None = Field(
        default=None,
        description="Wall time to read it. None: measuring its peak slowed it down.",
    )
    start: Count = Field(description="Which start wrote it: index into 'starts'.")
    record_sha256: str | None = Field(
        default=None, description="SHA-256 of the other fields (canonical JSON)."
    )

    def to_line(self) -> str:
        """The record as a line, without its end, with its `record_sha256`."""
        content = self.model_dump(exclude={"record_sha256"})
        content["record_sha256"] = content_sha256(content)
        return json.dumps(content, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True)
class PerplexityRun:
    """A folder, read.

    Attributes:
        path: of the folder.
        info: its description.
        blocks: by variant, in the order of `info.variants`, its records from the first token on
            without a gap.
        warnings: what was odd about the files.
    """

    path: Path
    info: PerplexityInfo
    blocks: Mapping[str, Sequence[BlockRecord]]
    warnings: Sequence[str] = field(default_factory=list)

    def tokens(self, variant: str) -> int:
        """Tokens that a variant has read."""
        blocks = self.blocks[variant]
        return blocks[-1].first + blocks[-1].tokens if blocks else 0

    def losses(self, variant: str) -> Floats:
        """Sum of losses of each block `[n]`, nats."""
        return np.array([block.loss for block in self.blocks[variant]], dtype=np.float64)

    def sizes(self, variant: str) -> Floats:
        """Scored tokens of each block `[n]`."""
        return np.array([block.scored for block in self.blocks[variant]], dtype=np.float64)

    def log_perplexity(self, variant: str) -> float | None:
        """Mean loss over the scored tokens that the variant has read; None: none."""
        scored = float(self.sizes(variant).sum())
        return float(self.losses(variant).sum()) / scored if scored else None


def is_perplexity_folder(folder: str | Path) -> bool:
    """Whether a folder is one of `run_eval perplexity`."""
    return (Path(folder) / INFO_FILE).is_file()


def read_perplexity_info(folder: str | Path) -> PerplexityInfo:
    """``perplexity.json`` of a folder.

    Raises:
        InputError: there is none, or it is not as this version writes it.
    """
    path = Path(folder) / INFO_FILE
    if not path.is_file():
        raise InputError(f"{shown(Path(folder))}: no folder of run_eval perplexity: no {INFO_FILE}")
    try:
        content = strict.loads(read_bytes(path, _MOST_BYTES).decode("utf-8"))
        _check_version(content)
        return PerplexityInfo.model_validate(content)
    except ValidationError as error:
        found = [f"{path}: {'.'.join(place)}: {text}" for place, text in messages(error)]
        raise InputError(*found) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def read_perplexity(folder: str | Path) -> PerplexityRun:
    """A folder with its records.

    What a kill left unfinished at the end of a file is left out with a warning.

    Raises:
        InputError: it is no such folder, or a line is damaged.
    """
    folder = Path(folder)
    info = read_perplexity_info(folder)
    blocks: dict[str, list[BlockRecord]] = {}
    warnings = []
    for name in info.variants:
        path = record_path(folder, name)
        records, torn = read_blocks(path, name, info) if path.is_file() else ([], b"")
        blocks[name] = records
        if torn:
            warnings.append(f"{path}: its last line is not whole and was left out")
    return PerplexityRun(folder, info, blocks, warnings)


def record_path(folder: Path, variant: str) -> Path:
    """The record file of a variant."""
    return folder / f"{variant}.jsonl"


def read_blocks(path: Path, variant: str, info: PerplexityInfo) -> tuple[list[BlockRecord], bytes]:
    """The records of a file, and the bytes of a last line that is not whole.

    Args:
        path: of the file.
        variant: whose it is.
        info: of its folder.

    Raises:
        InputError: a line is no record, was changed, or is not the one that follows.
    """
    content = read_bytes(path, _MOST_BYTES)
    *lines, torn = content.split(b"\n")
    found: list[BlockRecord] = []
    at = 0
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        try:
            record = _parse(line)
        except ValidationError as error:
            texts = [": ".join(filter(None, (".".join(p), t))) for p, t in messages(error)]
            raise InputError(*(f"{where}: {text}" for text in texts)) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: is no record: {error}") from None
        due = min(info.block_tokens, info.tokens - at)
        if record.variant != variant:
            raise InputError(f"{where}: is a record of {record.variant!r}, not of {variant!r}")
        if (record.first, record.tokens) != (at, due):
            what = f"{due} tokens from {at} on" if due else "nothing more"
            raise InputError(
                f"{where}: {record.tokens} tokens from {record.first} on, where {what} should "
                "stand: a line is missing, doubled or of another run"
            )
        if record.scored > record.tokens:
            raise InputError(f"{where}: {record.scored} of {record.tokens} tokens are scored")
        if record.start >= len(info.starts):
            raise InputError(f"{where}: start {record.start} is not in {INFO_FILE}")
        found.append(record)
        at += record.tokens
    return found, torn


def _parse(line: bytes) -> BlockRecord:
    content = strict.loads(line.decode("utf-8"))
    _check_version(content)
    record = BlockRecord.model_validate(content, strict=True)
    rest = {key: value for key, value in content.items() if key != "record_sha256"}
    if record.record_sha256 != content_sha256(rest):
        raise ValueError("it was changed since it was written (record_sha256)")
    return record


def _check_version(content: object) -> None:
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ValueError(
            f"written with schema version {version}, this version of ahn-bench reads up to "
            f"{SCHEMA_VERSION}: update ahn-bench"
        )


def folders_below(folder: str | Path) -> Iterator[Path]:
    """Folders of `run_eval perplexity` at and below a folder, in the order of their names."""
    for path in sorted(Path(folder).rglob(INFO_FILE)):
        yield path.parent
