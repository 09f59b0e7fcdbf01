"""Read a document once, keep what the model knows of it on disk, and ask it later.

    python examples/ask_a_saved_document.py read story.txt story.safetensors
    python examples/ask_a_saved_document.py ask story.safetensors "who is there ?" "and where ?"

The file holds sinks, window and memory, of the same size however long the document was.  A question
costs one copy of the cache and its own tokens, no second reading.  Only the model that read can
be asked: `--model`, `--ahn`, `--window` and `--sinks` are those of both calls (default: the pocket
model).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

import ahn


def load(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    memory = "pocket" if options.ahn is None and options.model == "pocket" else options.ahn
    model = ahn.load_model(
        options.model,
        ahn=memory,
        window=options.window,
        sinks=options.sinks,
        device=options.device,
    )
    return model, ahn.load_tokenizer(options.model)


@torch.no_grad()
def read(model: Any, tokenizer: Any, text: str, path: Path) -> None:
    """Stream the document through the model and save the cache."""
    ids = tokenizer(" " + text.strip(), return_tensors="pt")["input_ids"].to(model.device)
    cache = model.new_cache()
    start = time.perf_counter()
    model(ids, past_key_values=cache, logits_to_keep=1)
    seconds = time.perf_counter() - start
    cache.save(path)
    print(
        f"read {ids.shape[1]:,} tokens in {seconds:.2f} s; {path}: {path.stat().st_size:,} bytes",
        file=sys.stderr,
    )


@torch.no_grad()
def ask(model: Any, tokenizer: Any, cache: Any, question: str, tokens: int) -> str:
    """Answer greedily from a fork of the cache."""
    ids = tokenizer(" " + question, return_tensors="pt", add_special_tokens=False)["input_ids"]
    ids = ids.to(model.device)
    # generate() wants the whole prompt and looks only at what the cache has not seen of it
    seen = torch.zeros(1, cache.get_seq_length(), dtype=ids.dtype, device=ids.device)
    prompt = torch.cat([seen, ids], 1)
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=cache.copy(),
        max_new_tokens=tokens,
        do_sample=False,
    )
    return tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()


def main(arguments: list[str] | None = None) -> int:
    """Read or ask."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    reading = commands.add_parser("read", help="read a document, save the cache")
    reading.add_argument("document", type=Path)
    asking = commands.add_parser("ask", help="ask a saved cache")
    for command in (reading, asking):
        command.add_argument("cache", type=Path)
        command.add_argument("--model", default="pocket", help="folder, hub id, or pocket")
        command.add_argument("--ahn", help="AHN weights, where they are not merged")
        command.add_argument("--window", type=int, default=128)
        command.add_argument("--sinks", type=int, default=4)
        command.add_argument("--device")
    asking.add_argument("questions", nargs="+")
    asking.add_argument("--max-new-tokens", type=int, default=8)
    options = parser.parse_args(arguments)
    try:
        text = options.document.read_text(encoding="utf-8") if options.command == "read" else ""
        model, tokenizer = load(options)
        if options.command == "read":
            read(model, tokenizer, text, options.cache)
            return 0
        cache = ahn.AHNCache.load(options.cache, model)
        for question in options.questions:
            answer = ask(model, tokenizer, cache, question, options.max_new_tokens)
            print(f"{question} {answer}")
    except ahn.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except UnicodeDecodeError:
        print(f"error: {options.document}: not UTF-8 text", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
