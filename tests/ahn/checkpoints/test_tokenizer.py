"""One loader of tokenizers, which refuses what transformers would make up."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import ahn
from ahn.checkpoints.tokenizer import load_tokenizer


def without_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def empty_vocabulary(folder: Path) -> None:
    without_vocabulary(folder)
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("#version: 0.2\n")


def cut_off(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[: len(text) // 2])


def of_code_in_the_folder(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    path.write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('code of a checkpoint was run')\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ahn.POCKET_PATH / name, tmp_path / name)
    return tmp_path


def test_a_folder_and_the_embedded_model_have_one(folder: Path) -> None:
    ids = load_tokenizer("pocket")("a lamp")["input_ids"]
    assert ids == load_tokenizer(folder)("a lamp")["input_ids"] != []


@pytest.mark.parametrize("spoil", [without_vocabulary, empty_vocabulary, cut_off])
def test_a_tokenizer_that_is_none_is_refused(folder: Path, spoil: Any) -> None:
    spoil(folder)
    with pytest.raises(ahn.InputError, match="token") as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)


def test_code_of_a_checkpoint_is_never_run(folder: Path) -> None:
    of_code_in_the_folder(folder)
    with contextlib.suppress(ahn.InputError):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/nowhere", "no such folder"),
        (" ", "is empty"),
        ("pocket/gnd", "no embedded memory"),
        ("Nobody/nothing", "hub"),
    ],
)
def test_a_place_without_files_is_refused(source: str, said: str) -> None:
    with pytest.raises(ahn.InputError, match=said):
        load_tokenizer(source)
