"""How transformers is asked for the tokenizer in a merged folder, whose model type is ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ahn.checkpoints.locate import describe_model
from ahn.families import find_family


def tokenizer_options(source: str | Path) -> dict[str, Any]:
    """Further arguments of `AutoTokenizer.from_pretrained`.

    transformers chooses the class of a tokenizer by the model type. A merged folder's tokenizer is
    read as its base model's, so that both give the same tokens.

    Args:
        source: folder of a model or of a tokenizer alone; of a hub id nothing is known here.

    Raises:
        InputError: a `config.json` that cannot be read.
    """
    if not (Path(source) / "config.json").is_file():
        return {}
    model_type = describe_model(source).get("model_type")
    family = find_family(model_type)
    if family is None or model_type == family.model_type:
        return {}
    from transformers import AutoConfig

    try:
        return {"config": AutoConfig.for_model(family.model_type)}
    except ValueError:  # a family of another package, whose type transformers does not know
        return {}
