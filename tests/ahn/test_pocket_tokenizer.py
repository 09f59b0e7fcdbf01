"""The embedded tokenizer survives what `AutoTokenizer` makes of a qwen2 folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ahn
from tasks.pocket.vocabulary import WORDS


def test_every_word_is_one_token_also_after_saving_again(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ahn.POCKET_PATH)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((ahn.POCKET_PATH / "config.json").read_text())
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        text = "".join(f" {word}" for word in WORDS[4:])
        ids = loaded(text)["input_ids"]
        assert ids == [1, *range(4, len(WORDS))]
        assert loaded.decode(ids, skip_special_tokens=True) == text
        assert loaded("")["input_ids"] == [1] and len(loaded) == len(WORDS)


@torch.no_grad()
def test_the_base_model_is_a_plain_qwen2() -> None:
    stock = AutoModelForCausalLM.from_pretrained(ahn.POCKET_PATH).eval()
    assert type(stock).__name__ == "Qwen2ForCausalLM" and stock.config.use_cache
    ids = torch.randint(4, len(WORDS), (1, 300), generator=torch.Generator().manual_seed(0))
    ours = ahn.load_model(ahn.POCKET_PATH, "full")
    torch.testing.assert_close(ours(ids).logits, stock(ids).logits, rtol=0, atol=1e-3)
