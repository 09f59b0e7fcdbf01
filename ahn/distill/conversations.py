"""Conversations from files or a hub data set, in the forms that people have them in.

A row is one of
- `messages`: a list of `{"role", "content"}`; with `answers` beside user messages (and perhaps a
  `document`), as in NVIDIA's ChatQA2 files, the first answer becomes the assistant's turn;
- `conversations` (ShareGPT): a list of `{"from", "value"}`, from `human`, `gpt` or `system`.

A role or speaker outside `ROLES` and `SHAREGPT_ROLES` is refused by name: a chat template would
write it down as if it knew it, and nothing would be learnt from the row.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import InputError

Messages = list[dict[str, str]]

#: Roles of `messages`, those that chat templates of Qwen know.
ROLES = ("system", "user", "assistant", "tool")
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
_END = 1 << 20  # bytes of a file's beginning and end that stand for a streamed file


@dataclass(frozen=True)
class HubData:
    """A data set on the hub; `revision` None: the newest, whose commit is recorded."""

    repository: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None


#: Names that stand for hub data sets. chatqa2 is what the paper trains on (arXiv 2510.07318, 4.1),
#: under the name that the paper's tool gives it (data/dataset_info.json of ByteDance-Seed/AHN).
NAMED_DATA = {"chatqa2": HubData("Seerkfang/ChatQA2-Long-SFT-data-long_sft_train_filtered")}


@dataclass(frozen=True)
class OpenedHub:
    """A hub data set that can be read.

    Attributes:
        rows: the `datasets` object.
        identity: the commit that it was made from, or another text that changes with it.
    """

    rows: Any
    identity: str


@dataclass(frozen=True)
class Source:
    """One data set: where its rows come from.

    Attributes:
        name: as it was given.
        files: in the order in which they are read.
        hub: instead of files.
        streaming: rows are read while training, not before.
    """

    name: str
    files: tuple[Path, ...] = ()
    hub: HubData | None = None
    streaming: bool = False

    @cached_property
    def opened(self) -> OpenedHub:
        """The hub's data set, opened once."""
        return _open_hub(self)

    @cached_property
    def identity(self) -> str:
        """A text that changes with the content: commit of a hub data set, hash of files.

        Of streamed files, which may be too large to be read for this alone, size and both ends
        are hashed.

        Raises:
            InputError: a file that cannot be read, a hub that does not give the data.
        """
        if self.hub is not None:
            return f"{self.hub} {self.opened.identity}"
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(path.suffix.encode())  # decides how the bytes are read
            try:
                digest.update(_ends_digest(path) if self.streaming else file_digest(path))
            except OSError as error:
                raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        return digest.hexdigest()


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _ends_digest(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_END)
        file.seek(max(0, size - _END))
        return hashlib.sha256(b"%d " % size + first + file.read(_END)).digest()


def find_sources(dataset: str | Sequence[str], streaming: bool = False) -> list[Source]:
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
                found.append(Source(name, files, streaming=streaming))
            else:
                problems.append(f"{name}: no {', '.join(_SUFFIXES)} file in this folder")
        elif path.is_file():
            if path.suffix in _SUFFIXES:
                found.append(Source(name, (path,), streaming=streaming))
            else:
                problems.append(f"{name}: give a file that ends in {', '.join(_SUFFIXES)}")
        elif name in NAMED_DATA:
            found.append(Source(name, hub=NAMED_DATA[name], streaming=streaming))
        elif path.suffix in _SUFFIXES or name.startswith((".", "/")) or name.count("/") != 1:
            known = ", ".join(NAMED_DATA)
            problems.append(f"{name}: no such data set (a file, {known}, or owner/name on the hub)")
        else:
            repository, *rest = name.split(":")
            parts = [*rest, "", ""][:2]
            hub = HubData(repository, parts[0] or None, parts[1] or "train")
            found.append(Source(name, hub=hub, streaming=streaming))
    if not found and not problems:
        problems.append("dataset: no name is given")
    if problems:
        raise InputError(*problems)
    return found


def _open_hub(source: Source) -> OpenedHub:
    """Open a hub source.

    Raises:
        InputError: it is not in the cache and the hub cannot be reached, or has no such data.
    """
    import datasets

    hub = source.hub
    assert hub is not None
    hub = replace(hub, revision=hub.revision or _newest(hub.repository))
    try:
        rows = datasets.load_dataset(
            hub.repository,
            hub.name,
            split=hub.split,
            revision=hub.revision,
            streaming=source.streaming,
        )
    except Exception as error:  # the library raises many kinds, each with its own text
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{source.name}: the data set {hub.repository} cannot be had: {reason}. On a machine "
            "with network, save it as JSONL or Parquet and give the file as dataset"
        ) from None
    return OpenedHub(rows, hub.revision or _commit(rows) or str(getattr(rows, "_fingerprint", "")))


def _newest(repository: str) -> str | None:
    """The newest commit of a data set; None where the hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(repository).sha
    except Exception:  # offline, unknown or private: loading it says which
        return None


def _commit(rows: Any) -> str | None:
    """The commit that a data set in the local cache was made from, if it says so."""
    places: Iterable[str] = getattr(getattr(rows, "info", None), "download_checksums", None) or ()
    found = {match.group(1) for place in places if (match := re.search(r"@([0-9a-f]{40})", place))}
    return found.pop() if len(found) == 1 else None


def read_rows(source: Source) -> Iterator[tuple[str, Any]]:
    """Place (`file:line` or `name:row`) and row of every row of a source.

    Raises:
        InputError: a file that cannot be read, a line that is no JSON; names file and line.
    """
    if source.hub is not None:
        for number, row in enumerate(source.opened.rows, 1):
            yield f"{source.name}:{number}", row
        return
    read = {".parquet": _parquet_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}
    for path in source.files:
        try:
            yield from read[path.suffix](path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


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
        messages = _checked(row["messages"], where, "messages", "role", "content", ROLES)
        if row.get("answers") and all(m["role"] != "assistant" for m in messages):
            return _with_answer(row, messages, where)
        return messages
    if row.get("conversations") is not None:
        turns = _checked(
            row["conversations"], where, "conversations", "from", "value", SHAREGPT_ROLES
        )
        return [{"role": SHAREGPT_ROLES[t["from"]], "content": t["value"]} for t in turns]
    raise InputError(f"{where}: 'messages' (or 'conversations') is missing; it has {sorted(row)}")


def _checked(
    turns: Any, where: str, name: str, speaker: str, text: str, known: Iterable[str]
) -> Messages:
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where}: '{name}' is missing or empty")
    for turn in turns:
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(key), str) for key in (speaker, text)
        ):
            raise InputError(f"{where}: each message needs '{speaker}' and '{text}', both texts")
        if turn[speaker] not in known:
            what = "role" if speaker == "role" else "speaker"
            raise InputError(
                f"{where}: {what} {turn[speaker]!r} ('{speaker}') is not one of {', '.join(known)}"
            )
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
