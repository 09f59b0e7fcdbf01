"""The tokenizer of a model: found, loaded, and not an empty one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahn.checkpoints.locate import CheckpointFiles
from ahn.families import find_family
from common.errors import InputError

_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
"""Files that hold a vocabulary; without one transformers makes an empty tokenizer up."""


def load_tokenizer(source: str | Path | CheckpointFiles) -> Any:
    """The tokenizer in a model's folder or on the hub; code from there is never run.

    Args:
        source: folder, hub id, or a name of the embedded model.

    Raises:
        InputError: no such folder, no tokenizer in it, or one that cannot be loaded or is empty.
    """
    files = source if isinstance(source, CheckpointFiles) else CheckpointFiles(source)
    folder = files.folder(weights=False)
    if not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        raise InputError(f"{files}: no tokenizer here ({_VOCABULARIES[0]}); name another place")
    from transformers import AutoTokenizer

    options = _options(files, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # what is wrong with the files decides of which class it is
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{files}: no tokenizer that can be loaded ({reason})") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError(f"{files}: the tokenizer here has no tokens; name another place")
    return tokenizer


def _options(files: CheckpointFiles, folder: Path) -> dict[str, Any]:
    """Further arguments of `AutoTokenizer.from_pretrained`.

    transformers chooses the class of a tokenizer by the model type. A merged folder's tokenizer is
    read as its base model's, so that both give the same tokens.

    Raises:
        InputError: a `config.json` that cannot be read.
    """
    if not (folder / "config.json").is_file():  # a tokenizer alone
        return {}
    model_type = files.config.get("model_type")
    family = find_family(model_type)
    if family is None or model_type == family.model_type:
        return {}
    from transformers import AutoConfig

    try:
        return {"config": AutoConfig.for_model(family.model_type)}
    except ValueError:  # a family of another package, whose type transformers does not know
        return {}


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; a character of several tokens stands with the last of them."""
    found: list[str] = []
    start = 0  # of what a piece is decoded with: the piece before it, for its blank
    pending = 0  # first token of a character that goes on
    for end in range(1, len(ids) + 1):
        before = _decoded(tokenizer, ids[start:pending])
        text = _decoded(tokenizer, ids[start:end])[len(before) :]
        if text.endswith("\ufffd") and end - pending < 4 and end < len(ids):
            found.append("")
            continue
        found.append(text)
        start, pending = pending, end
    return found


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(list(ids), **options)) if ids else ""
