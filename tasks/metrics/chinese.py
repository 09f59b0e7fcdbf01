"""Chinese words, by jieba with its own dictionary, whatever else the process does with jieba."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    with warnings.catch_warnings():
        # jieba 0.42.1 imports pkg_resources and has unescaped regular expressions.
        warnings.simplefilter("ignore")
        import jieba
    tokenizer = jieba.Tokenizer()  # not the shared one, to which others may add words
    # Read from the dictionary: as fast as jieba's cache in the temporary folder, which any user of
    # the machine or another version of jieba may have written.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


@lru_cache(maxsize=4096)
def words(text: str) -> tuple[str, ...]:
    """`jieba.cut(text, cut_all=False)`; the words joined are the text again."""
    return tuple(_tokenizer().cut(text, cut_all=False))
