"""The pocket model's tokenizer files: one word, one token, `<bos>` first.

Written as plain JSON, the format of the `tokenizers` library, so that this package needs neither
torch nor transformers.

`AutoTokenizer` loads every folder whose config says `qwen2` as a `Qwen2Tokenizer`, whatever the
folder's own tokenizer class, and rebuilds it as byte-level BPE.  A word-level tokenizer would be
replaced in silence.  So this one *is* a `Qwen2Tokenizer`: its BPE has no merges, and each word,
with the space before it, is an added token, which is matched before BPE.  Text therefore begins
with a space.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.pocket.vocabulary import BOS, EOS, PAD, UNK, WORDS

_SPECIAL = (PAD, BOS, EOS, UNK)
#: Contents one after another, `<bos>` first: a conversation reads like the running text it is.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ ' ' + message['content'] }}{% endfor %}"
)


def _token(word: str) -> str:
    """A word as it stands in the vocabulary: with the space before it, unless special."""
    return word if word in _SPECIAL else f" {word}"


def tokenizer_files() -> dict[str, dict[str, Any]]:
    """`tokenizer.json` and `tokenizer_config.json`."""
    added = [
        {
            "id": index,
            "content": _token(word),
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": word in _SPECIAL,
        }
        for index, word in enumerate(WORDS)
    ]
    first = {"SpecialToken": {"id": BOS, "type_id": 0}}
    sequences = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    byte_level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "ByteLevel", **byte_level},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [first, sequences[0]],
                "pair": [first, *sequences],
                "special_tokens": {BOS: {"id": BOS, "ids": [WORDS.index(BOS)], "tokens": [BOS]}},
            },
            "decoder": {"type": "ByteLevel", **byte_level},
            "model": {
                "type": "BPE",
                "vocab": {_token(word): index for index, word in enumerate(WORDS)},
                "merges": [],
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": UNK,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
            "chat_template": CHAT_TEMPLATE,
        },
    }


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer_files().items():
        (folder / name).write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
