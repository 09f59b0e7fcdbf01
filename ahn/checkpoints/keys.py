"""Which tensors a model must have, and what does not fit in a checkpoint: names and shapes only."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ahn.cells.registry import CELLS
from ahn.checkpoints.safetensors_files import FLOAT_TYPES, StoredTensor
from ahn.config import AHNConfig
from ahn.cost.shapes import ModelShape, memory_shapes

#: keys of the memory in a checkpoint; the modules of `ahn.models.causal_lm` have the same names
MEMORY_KEY = re.compile(r"^model\.layers\.(\d+)\.ahn\.fn\.(.+)$")
_ROUTER_KEY = re.compile(r"^model\.layers\.\d+\.ahn_router\.")

Shapes = Mapping[str, tuple[int, ...]]


def listed(keys: Iterable[str]) -> str:
    """The first six, and how many more."""
    keys = sorted(keys)
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def needed_memory(shape: ModelShape, ahn: AHNConfig) -> dict[str, tuple[int, ...]]:
    """Key and shape of every memory tensor that the model needs.

    Raises:
        InputError: settings of layers that the model does not have.
    """
    return {
        f"model.layers.{layer}.ahn.fn.{name}": size
        for layer, layout in enumerate(ahn.layouts(shape.num_hidden_layers))
        if layout.cell is not None
        for name, size in memory_shapes(shape, layout.cell).items()
    }


def idle_memory(shape: ModelShape, ahn: AHNConfig, tensors: Mapping[str, StoredTensor]) -> set[str]:
    """Keys of a memory that fits, in layers that keep full attention."""
    found = set()
    for layer in ahn.full_attention_layers:
        for name, size in memory_shapes(shape, ahn.cell).items():
            key = f"model.layers.{layer}.ahn.fn.{name}"
            if key in tensors and tensors[key].shape == size:
                found.add(key)
    return found


def needed_base(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Key and shape of every tensor of the base model; a tied output head is not among them."""
    hidden, inner, d = shape.hidden_size, shape.intermediate_size, shape.head_dim
    queries, keys = shape.num_attention_heads * d, shape.num_key_value_heads * d
    layer_shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if shape.attention_bias:
        layer_shapes |= {
            "self_attn.q_proj.bias": (queries,),
            "self_attn.k_proj.bias": (keys,),
            "self_attn.v_proj.bias": (keys,),
        }
    if shape.output_bias:
        layer_shapes["self_attn.o_proj.bias"] = (hidden,)
    if shape.mlp_bias:
        layer_shapes |= {
            "mlp.gate_proj.bias": (inner,),
            "mlp.up_proj.bias": (inner,),
            "mlp.down_proj.bias": (hidden,),
        }
    if shape.qk_norm:
        layer_shapes |= {"self_attn.q_norm.weight": (d,), "self_attn.k_norm.weight": (d,)}
    wanted: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(shape.num_hidden_layers):
        wanted |= {f"model.layers.{layer}.{name}": size for name, size in layer_shapes.items()}
    if not shape.tie_word_embeddings:
        wanted["lm_head.weight"] = (shape.vocab_size, hidden)
    return wanted


def memory_problems(
    source: str | Path,
    tensors: Mapping[str, StoredTensor],
    needed: Shapes,
    cells: Collection[str],
) -> list[str]:
    """What does not fit between a checkpoint's memory tensors and the model's.

    Args:
        source: folder or hub id, for messages.
        tensors: of the checkpoint, by key.
        needed: shape of each memory tensor of the model, by key.
        cells: that the model's layers have.
    """
    held = {key: tensor for key, tensor in tensors.items() if MEMORY_KEY.match(key)}
    problems = router_problems(source, tensors)
    missing, extra = needed.keys() - held.keys(), held.keys() - needed.keys()
    actual = cells_of(held) if missing or extra else []
    if actual and not set(cells) & set(actual):
        problems.append(
            f"{source}: config.json names cell {' and '.join(cells)} (_ahn_implementation), but "
            f"the tensors are those of {' or '.join(actual)}"
        )
    if missing:
        problems.append(f"{source}: memory keys are missing: {listed(missing)}")
    if extra:
        problems.append(f"{source}: unexpected memory keys: {listed(extra)}")
    problems += [
        f"{source}: {key} has shape {list(held[key].shape)}, the model needs {list(needed[key])}"
        for key in sorted(needed.keys() & held.keys())
        if held[key].shape != needed[key]
    ]
    return problems + _type_problems(source, held)


def cells_of(keys: Iterable[str]) -> list[str]:
    """Cells whose parameters have exactly these names."""
    names = {match.group(2) for key in keys if (match := MEMORY_KEY.match(key))}
    known = CELLS.loaded().items()
    return [name for name, cell in known if names and names == set(cell.parameters)]


def router_problems(source: str | Path, tensors: Iterable[str]) -> list[str]:
    """The keys of a position router, which no model here has."""
    routers = [key for key in tensors if _ROUTER_KEY.match(key)]
    if not routers:
        return []
    return [f"{source}: has a position router, which is not supported: {listed(routers)}"]


def strays(keys: Iterable[str], wanted: Mapping[str, Any]) -> set[str]:
    """Keys that are neither the base model's nor a memory's."""
    return {
        key
        for key in keys
        if key not in wanted
        and key != "lm_head.weight"  # the copy of a tied head
        and not key.endswith("rotary_emb.inv_freq")  # computed; old checkpoints hold it
        and not MEMORY_KEY.match(key)
        and not _ROUTER_KEY.match(key)
    }


def base_problems(
    path: str | Path, wanted: Shapes, tensors: Mapping[str, StoredTensor]
) -> list[str]:
    """Base tensors that are missing, unknown, or of a shape that contradicts the configuration."""
    problems = []
    missing = wanted.keys() - tensors.keys()
    if missing == wanted.keys() and any(MEMORY_KEY.match(key) for key in tensors):
        return [
            f"{path}: holds AHN weights alone, and no base model; give the base model here and "
            "this folder as ahn= (--ahn)"
        ]
    if missing:
        problems.append(f"{path}: weights are missing: {listed(missing)}")
    if unknown := strays(tensors, wanted):
        problems.append(f"{path}: unexpected keys: {listed(unknown)}")
    problems += [
        f"{path}: {key} has shape {list(tensors[key].shape)}, config.json says {list(size)}"
        for key, size in wanted.items()
        if key in tensors and tensors[key].shape != size
    ]
    held = {key: tensors[key] for key in wanted if key in tensors}
    return problems + _type_problems(path, held)


def _type_problems(path: str | Path, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Weights that are stored as something else than floating point (quantised ones)."""
    other = {key: t.dtype for key, t in tensors.items() if t.dtype not in FLOAT_TYPES}
    if not other:
        return []
    kinds = ", ".join(sorted(set(other.values())))
    return [f"{path}: weights stored as {kinds} are not supported: {listed(other)}"]


def two_sources_problems(
    path: str | Path,
    base: Iterable[str],
    source: str | Path,
    memory: Iterable[str],
    wanted: Mapping[str, Any],
) -> list[str]:
    """Keys that a base folder and an AHN folder must not both bring: nothing is chosen silently."""
    problems = []
    if any(MEMORY_KEY.match(key) for key in base):
        problems.append(
            f"{path}: has AHN weights of its own; load it alone, or give its base model "
            f"together with {source}"
        )
    own = [key for key in memory if key in wanted or key == "lm_head.weight"]
    if own:
        problems.append(
            f"{source}: holds weights of a base model too ({listed(own)}); load it alone, or take "
            "its AHN weights out with 'ahn split'"
        )
    if unknown := strays(memory, wanted) - {"lm_head.weight"}:
        problems.append(f"{source}: keys that no model here has: {listed(unknown)}")
    return problems
