"""Whether a family from outside this package computes here what it computes in transformers.

A row of `ahn.families` can be wrong without any error: of the right names and shapes, but with
another RoPE, say, or with factors on its embeddings. So a small random model with the checkpoint's
own options is built twice, and their logits are compared before the real one is loaded.
"""

from __future__ import annotations

from typing import Any

import torch

from ahn.families import Family
from ahn.models.causal_lm import FamilyClasses
from common.errors import InputError

#: sizes that replace a checkpoint's; every other option of its configuration stays
_SMALL = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "vocab_size": 64}
_LAYERS, _HEADS, _TOKENS = 8, 4, 24
#: of a sliding window that the row says nothing of, so that it is felt
_WINDOW = 6
_TOLERANCE = 1e-8  # float64; the two are equal to the last bit as a rule


def check_family(family: Family, classes: FamilyClasses, config: Any) -> None:
    """Refuse a family whose `full` model is not transformers' model.

    Args:
        family: its row.
        classes: ours, of this row.
        config: of the model that is to be loaded, of our configuration class.

    Raises:
        InputError: the two give different logits, or one of them cannot be built or run.
    """
    stock_class = classes.stock
    options = _small_options(config.to_dict())
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
            torch.manual_seed(0)
            stock = stock_class(stock_class.config_class(**options))
            for parameter in stock.parameters():
                parameter.normal_(std=0.3)
            ours = classes.causal_lm(classes.config(ahn={"variant": "full"}, **options))
            ours.load_state_dict(stock.state_dict())
            ids = torch.randint(0, _SMALL["vocab_size"], (2, _TOKENS))
            expected = stock.double().eval()(ids, use_cache=False).logits
            found = ours.double().eval()(ids, use_cache=False).logits
    except Exception as error:  # whatever classes of another package raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"family {family.model_type!r}: a small model with this configuration cannot be "
            f"compared with transformers' {family.stock_class}: {type(error).__name__}: {reason}"
        ) from error
    worst = float((found - expected).abs().max())
    if not worst <= _TOLERANCE * float(expected.abs().max()):
        raise InputError(
            f"family {family.model_type!r}: with full attention, a small model with this "
            f"configuration gives other logits than transformers' {family.stock_class} (by up to "
            f"{worst:.3g}): it is not of Llama's shape, or its row in ahn.families is wrong"
        )


def _small_options(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the same options and small sizes; lists of layers are cut."""
    layers = config["num_hidden_layers"]
    few = min(layers, _LAYERS)
    grouped = config["num_key_value_heads"] < config["num_attention_heads"]
    left_out = ("ahn", "model_type", "architectures", "dtype", "transformers_version")
    kept = {
        key: value[:few] if isinstance(value, list) and len(value) == layers else value
        for key, value in config.items()
        if key not in left_out and not key.endswith("_token_id")
    }
    if isinstance(kept.get("sliding_window"), int):
        kept["sliding_window"] = _WINDOW
    return (
        kept
        | _SMALL
        | {
            "num_hidden_layers": few,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS // 2 if grouped else _HEADS,
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        }
    )
