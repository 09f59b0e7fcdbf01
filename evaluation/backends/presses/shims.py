"""What kvpress 0.5.5 needs to work on the transformers of today.

kvpress asks for transformers below 5.3, whose attention layers were called differently, and changes
the library when it is imported. Everything here is undone when the press has done its work; nothing
of kvpress or transformers stays changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import Any

import torch
from torch import nn

_ROTARY = "rotary_emb"
_MASKED = "masked_key_indices"
_ABSENT = object()


def import_kvpress() -> Any:
    """The package, imported without what it does to transformers.

    On import kvpress wraps every attention function of transformers, for its presses that mask
    tokens of single heads. Here masks are given to attention as masks
    (`evaluation.backends.presses.masks`), so other models of the process need not pay for it.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    before = dict(functions)
    import kvpress

    for name in list(functions):
        if functions[name] is not before.get(name):
            del functions[name]  # the override of this instance, under which the original lies
        if name in before and functions.get(name) is not before[name]:
            functions[name] = before[name]
    return kvpress


def press_document(
    press: Any, model: Any, read: Callable[[], None], ids: torch.Tensor, seed: int
) -> dict[int, torch.Tensor]:
    """Read a document with `with press(model)`, on this transformers.

    Args:
        press: a press of kvpress.
        model: a stock model.
        read: reads the document, in one chunk, into an empty cache.
        ids: of the document, `[1, T]`.
        seed: of presses that draw: a document is pressed alike whenever it is read.

    Returns:
        What the press has masked for single heads rather than removed; see `masked_heads`.
    """
    text = text_model(model)
    layers = [layer.self_attn for layer in text.layers]
    with ExitStack() as undo:
        for attention in layers:
            # A press gives every layer the model's rotary embedding, and leaves it there.
            undo.callback(_put_back, attention, _ROTARY, attention._modules.get(_ROTARY, _ABSENT))
            # Presses that mask expect what kvpress' wrapped attention functions would have set.
            undo.callback(_put_back, attention, _MASKED, _ABSENT)
            attention.masked_key_indices = None
        for module in {id(part): part for part in (model.model, text)}.values():
            # KVzip, KVgrad and KVCompose replace `forward` and "restore" it as an attribute.
            undo.callback(_put_back, module, "forward", module.__dict__.get("forward", _ABSENT))
        undo.callback(_use_attention, model, model.config._attn_implementation)
        undo.enter_context(_positions(press))
        undo.enter_context(_head_dim(layers))
        undo.enter_context(quiet())
        undo.enter_context(torch.random.fork_rng(_cuda_devices(model)))
        torch.manual_seed(seed)
        with press(model):  # some presses do their work at its end
            _adapt_rotary(layers)
            _find_prefix(press, model, ids)
            read()
        return masked_heads(model, ids.shape[1])


@contextmanager
def preparing(model: Any) -> Iterator[None]:
    """Let a press load in the block what it needs for a model, with what it says of it unsaid."""
    layers = [layer.self_attn for layer in text_model(model).layers]
    with _head_dim(layers), quiet(), redirect_stdout(StringIO()):
        yield


def text_model(model: Any) -> Any:
    """The stack of decoder layers of a model for text, or of one for text and images."""
    return getattr(model.model, "language_model", model.model)


def masked_heads(model: Any, tokens: int) -> dict[int, torch.Tensor]:
    """What the press has masked, by layer: bool `[key/value heads, tokens]`, true where masked.

    Args:
        model: whose attention modules kvpress has marked, in `masked_key_indices`.
        tokens: of the document.
    """
    found: dict[int, torch.Tensor] = {}
    for attention in (layer.self_attn for layer in text_model(model).layers):
        indices = getattr(attention, _MASKED, None)
        if indices is None or not len(indices[0]):
            continue
        heads = attention.config.num_key_value_heads
        device = attention.o_proj.weight.device
        mask = torch.zeros(heads, tokens, dtype=torch.bool, device=device)
        _, head, position = (torch.as_tensor(part, device=device) for part in indices)
        mask[head, position] = True
        found[attention.layer_idx] = mask
    return found


@contextmanager
def _positions(press: Any) -> Iterator[None]:
    """Presses tell reading from decoding by `cache_position`, which is no longer passed to layers.

    It equals `position_ids` of a text that is read from its beginning. Only the press' hook sees
    it: attention functions would be given an argument that they do not know.
    """
    hook = press.forward_hook

    def with_positions(module: Any, inputs: Any, kwargs: dict[str, Any], output: Any) -> Any:
        positions = kwargs["position_ids"]
        return hook(module, inputs, {**kwargs, "cache_position": positions[0]}, output)

    press.forward_hook = with_positions
    try:
        yield
    finally:
        del press.forward_hook


@contextmanager
def _head_dim(layers: list[Any]) -> Iterator[None]:
    """Presses read `config.head_dim`, which Qwen2 and Phi3 have only where it is unusual."""
    config = layers[0].config
    missing = getattr(config, "head_dim", None) is None
    before = config.__dict__.get("head_dim", _ABSENT)
    if missing:
        config.head_dim = layers[0].head_dim
    try:
        yield
    finally:
        if missing:
            config.__dict__.pop("head_dim", None)
            if before is not _ABSENT:
                config.__dict__["head_dim"] = before


class _RotaryOfFullAttention(nn.Module):
    """Gemma 3 has one rotary embedding for two kinds of layers; presses know one kind."""

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self._rotary = (rotary,)  # not a submodule: it is the model's

    @property
    def inv_freq(self) -> torch.Tensor:
        """Of the layers with full attention, which are those that are pressed."""
        return self._rotary[0].full_attention_inv_freq

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cosines and sines at these positions."""
        return self._rotary[0](x, position_ids, "full_attention")


def _adapt_rotary(layers: list[Any]) -> None:
    for attention in layers:
        rotary = attention._modules.get(_ROTARY)
        if rotary is not None and hasattr(rotary, "full_attention_inv_freq"):
            attention.rotary_emb = _RotaryOfFullAttention(rotary)


def _find_prefix(press: Any, model: Any, ids: torch.Tensor) -> None:
    """KVzip never scores, and so drops, as many first tokens as the chat template begins with.

    Its documents always stand in the template; ours do in some protocols only.
    """
    length = getattr(press, "prefix_length", 0)
    if length and tuple(ids[0, :length].tolist()) != prefix_of_template(model.config.name_or_path):
        press.prefix_length = 0


@lru_cache(maxsize=4)
def prefix_of_template(name: str) -> tuple[int, ...]:
    """Ids that stand before a user's text in a tokenizer's chat template, as KVzip finds them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    text, mark = "dummy context", "\n" + "#" * 13
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": text + mark}],
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=False,
    )
    before = whole.split(mark)[0].split(text)[0]
    return tuple(tokenizer.encode(before, add_special_tokens=False))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence kvpress' warnings: what they tell is told elsewhere, and once."""
    logger = logging.getLogger("kvpress")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _put_back(module: nn.Module, name: str, value: Any) -> None:
    """Give an attribute the value it had; one that was absent is removed."""
    module._modules.pop(name, None)
    module.__dict__.pop(name, None)
    if value is not _ABSENT:
        setattr(module, name, value)


def _use_attention(model: Any, name: str) -> None:
    """KVCompose leaves eager attention behind where it fails."""
    if model.config._attn_implementation != name:
        model.config._attn_implementation = name


def _cuda_devices(model: Any) -> list[int]:
    """Numbers of the GPUs whose generators a press on this model may use."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return sorted(device.index or 0 for device in devices)
