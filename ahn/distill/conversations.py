"""Conversations from files or a hub data set, in the forms that people have them in.

A row is one of
- `messages`: a list of `{"role", "content"}`; with `answers` beside user messages (and perhaps a
  `document`), as ChatQA2's long SFT data, the first answer becomes the assistant's turn;
- `conversations` (ShareGPT): a list of `{"from", "value"}`, from `human`, `gpt` or `system`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahn.config import InputError

Messages = list[dict[str, str]]

#: ShareGPT's speakers in the words of chat templates.
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
}
_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class HubData:
    """A data set on the hub; `revision` None: the newest, whose commit is recorded."""

    repository: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None


#: Names that stand for hub data sets. chatqa2 is what the paper trains on (arXiv 2510.07318, 4.1).
NAMED_DATA = {"chatqa2": HubData("nvidia/ChatQA2-Long-SFT-data", "long_sft", "train")}


@dataclass(frozen=True)
class Source:
    """One data set: where its rows come from."""

    name: str
    files: tuple[Path, ...] = ()
    hub: HubData | None = None

    def identity(self, loaded: Any = None) -> str:
        """A text that changes with the content: hashes of files, or the hub's fingerprint."""
        if self.hub is not None:
            return f"{self.hub} {getattr(loaded, '_fingerprint', '')}"
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def find_sources(dataset: str | Sequence[str]) -> list[Source]:
    """The data sets that `dataset` names: files, folders of files, named sets or hub ids.

    A hub id may carry a configuration and a split: `owner/name:configuration:split`.

    Raises:
        InputError: one line for each name that stands for nothing.
    """
    names = [dataset] if isinstance(dataset, str) else list(dataset)
    names = [part.strip() for name in names for part in name.split(",") if part.strip()]
    found, problems = [], []
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = tuple(sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES))
            if files:
                found.append(Source(name, files))
            else:
                problems.append(f"{name}: no {', '.join(_SUFFIXES)} file in this folder")
        elif path.is_file():
            if path.suffix in _SUFFIXES:
                found.append(Source(name, (path,)))
            else:
                problems.append(f"{name}: give a file that ends in {', '.join(_SUFFIXES)}")
        elif name in NAMED_DATA:
            found.append(Source(name, hub=NAMED_DATA[name]))
        elif path.suffix in _SUFFIXES or name.startswith((".", "/")) or name.count("/") != 1:
            known = ", ".join(NAMED_DATA)
            problems.append(f"{name}: no such data set (a file, {known}, or owner/name on the hub)")
        else:
            repository, *rest = name.split(":")
            parts = [*rest, "", ""][:2]
            found.append(
                Source(name, hub=HubData(repository, parts[0] or None, parts[1] or "train"))
            )
    if not found and not problems:
        problems.append("dataset: no name is given")
    if problems:
        raise InputError("\n".join(problems))
    return found


def open_hub(source: Source, streaming: bool) -> Any:
    """The `datasets` object of a hub source.

    Raises:
        InputError: it is not in the cache and the hub cannot be reached, or has no such data.
    """
    import datasets

    hub = source.hub
    assert hub is not None
    try:
        return datasets.load_dataset(
            hub.repository,
            hub.name,
            split=hub.split,
            revision=hub.revision,
            streaming=streaming,
        )
    except Exception as error:  # the library raises many kinds, each with its own text
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{source.name}: the data set {hub.repository} cannot be had: {reason}. On a machine "
            "with network, save it as JSONL or Parquet and give the file as dataset"
        ) from None


def read_rows(source: Source, hub: Any = None) -> Iterator[tuple[str, Any]]:
    """Place (`file:line` or `name:row`) and row of every row of a source.

    Raises:
        InputError: a file that cannot be read, a line that is no JSON; names file and line.
    """
    if source.hub is not None:
        for number, row in enumerate(hub, 1):
            yield f"{source.name}:{number}", row
        return
    for path in source.files:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
        elif path.suffix == ".json":
            yield from _json_rows(path)
        else:
            yield from _jsonl_rows(path)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield f"{path}:{number}", json.loads(line)
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: not UTF-8: {error}") from None
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not JSON: {error}") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: should be a list of conversations (or JSONL: one a line)")
    for number, row in enumerate(rows, 1):
        yield f"{path}:{number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file: {error}") from None


def messages_of(row: Any, where: str) -> Messages:
    """The conversation in a row.

    Raises:
        InputError: the row has none of the forms above; names the place and what is wrong.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: should be an object with 'messages' or 'conversations'")
    if row.get("messages") is not None:
        messages = _checked(row["messages"], where, "messages", "role", "content")
        if row.get("answers") and all(m["role"] != "assistant" for m in messages):
            return _with_answer(row, messages, where)
        return messages
    if row.get("conversations") is not None:
        turns = _checked(row["conversations"], where, "conversations", "from", "value")
        unknown = sorted({turn["from"] for turn in turns} - SHAREGPT_ROLES.keys())
        if unknown:
            raise InputError(
                f"{where}: speaker {unknown[0]!r} is not one of {', '.join(SHAREGPT_ROLES)}"
            )
        return [{"role": SHAREGPT_ROLES[t["from"]], "content": t["value"]} for t in turns]
    raise InputError(f"{where}: 'messages' (or 'conversations') is missing; it has {sorted(row)}")


def _checked(turns: Any, where: str, name: str, speaker: str, text: str) -> Messages:
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where}: '{name}' is missing or empty")
    for turn in turns:
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(key), str) for key in (speaker, text)
        ):
            raise InputError(f"{where}: each message needs '{speaker}' and '{text}', both texts")
    return turns


def _with_answer(row: dict[str, Any], messages: Messages, where: str) -> Messages:
    answers = row["answers"]
    if not isinstance(answers, list) or not isinstance(answers[0], str):
        raise InputError(f"{where}: 'answers' should be a list of texts")
    document = row.get("document")
    if isinstance(document, str) and document:
        first = next((m for m in messages if m["role"] == "user"), messages[0])
        messages = [
            {**m, "content": f"{document}\n\n{m['content']}"} if m is first else m for m in messages
        ]
    return [*messages, {"role": "assistant", "content": answers[0]}]
