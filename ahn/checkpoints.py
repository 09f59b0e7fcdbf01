"""Loading models: base and memory weights from one folder or two, strictly.

Foreign key names are translated here and nowhere else.  Only safetensors are read; a checkpoint
is either used whole or refused with the names of what does not fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ahn.checkpoint_files import describe_model, local_folder, tensor_shapes, weight_files
from ahn.config import PAPER_SINKS, PAPER_WINDOW, AHNConfig, InputError
from ahn.shapes import ModelShape, memory_shapes

#: keys of the memory in a checkpoint; the module tree of `ahn.modeling` has the same names
_MEMORY_KEY = re.compile(r"^model\.layers\.(\d+)\.ahn\.fn\.(.+)$")
_ROUTER_KEY = re.compile(r"^model\.layers\.\d+\.ahn_router\.")
_FAMILIES = {"qwen2": "qwen2", "qwen2_ahn": "qwen2", "qwen3": "qwen3", "qwen3_ahn": "qwen3"}
_RELEASED_KEYS = {
    "_ahn_implementation",
    "_layer_implementation",
    "ahn_position",
    "fa_layer_ids",
    "is_causal",
    "loss_type",
    "num_attn_sinks",
    "sliding_window_type",
    "use_ahn_router",
    "use_layerwise_decay",
    "use_normalized_l2",
    "use_q_proj",
}


def _family(path_or_id: str | Path, config: Mapping[str, Any]) -> str:
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise InputError(
            f"{path_or_id}: model_type {config.get('model_type')!r} is not supported; "
            "Qwen2 (Qwen2.5) and Qwen3 are"
        )
    return family


def read_ahn_config(config: Mapping[str, Any], where: str | Path) -> AHNConfig | None:
    """The AHN settings of a `config.json`, ours or a released one; None when it has none.

    Raises:
        InputError: an unknown cell or a setting of a released configuration that this package
            does not compute (`use_q_proj`, `use_ahn_router`).
    """
    if config.get("ahn"):
        try:
            return AHNConfig(**config["ahn"])
        except TypeError as error:
            raise InputError(f"{where}: config.json, 'ahn': {error}") from error
    cell = config.get("_ahn_implementation")
    if cell is None:
        return None
    for key in ("use_q_proj", "use_ahn_router"):
        if config.get(key):
            raise InputError(f"{where}: config.json has {key}: true, which is not supported yet")
    layers = [int(x) for x in str(config.get("fa_layer_ids") or "").split(",") if x.strip()]
    try:
        return AHNConfig(
            cell=cell,
            window=config.get("sliding_window") or PAPER_WINDOW,
            sinks=config.get("num_attn_sinks", PAPER_SINKS),
            full_attention_layers=tuple(layers),
        )
    except InputError as error:
        raise InputError(f"{where}: config.json: {error}") from None


def released_config(base: Mapping[str, Any], ahn: AHNConfig, **training: Any) -> dict[str, Any]:
    """A `config.json` with the key names of released checkpoints, for AHN-only folders."""
    config = {k: v for k, v in base.items() if k not in ("ahn", "_name_or_path")}
    family = _FAMILIES[str(config["model_type"])]
    config.update(
        model_type=family,
        architectures=[{"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[family]],
        _layer_implementation={"qwen2": "Qwen2MemDecoderLayer", "qwen3": "Qwen3MemDecoderLayer"}[
            family
        ],
        _ahn_implementation=ahn.cell,
        sliding_window=ahn.window,
        num_attn_sinks=ahn.sinks,
        fa_layer_ids=",".join(map(str, ahn.full_attention_layers)),
        use_q_proj=False,
        use_ahn_router=False,
        **training,
    )
    return config


def _resolve(
    path_or_id: str | Path,
    variant: str,
    ahn: str | Path | None,
    window: int | None,
    sinks: int | None,
) -> tuple[dict[str, Any], str, AHNConfig, str | Path | None]:
    """Base configuration, family, AHN settings, and where the memory's weights are."""
    problems = AHNConfig.problems(variant, None, window, sinks)
    if problems:
        raise InputError("\n".join(problems))
    config = describe_model(path_or_id)
    family = _family(path_or_id, config)
    own = read_ahn_config(config, path_or_id)
    source: str | Path | None = None
    settings = own
    if AHNConfig(variant=variant).layer(0).cell is not None:
        source = ahn if ahn is not None else (path_or_id if own is not None else None)
        if source is None:
            raise InputError(
                f"variant {variant!r} needs memory weights: {path_or_id} has none, pass ahn= "
                "(--ahn) with a folder or hub id of AHN weights"
            )
    if ahn is not None:
        ahn_json = describe_model(ahn)
        settings = read_ahn_config(ahn_json, ahn)
        if settings is None:
            raise InputError(
                f"{ahn}: config.json names no cell (_ahn_implementation); not an AHN checkpoint"
            )
        if _family(ahn, ahn_json) != family:
            raise InputError(
                f"{ahn}: trained for {ahn_json.get('model_type')}, but {path_or_id} is "
                f"{config.get('model_type')}"
            )
    settings = settings or AHNConfig()
    settings = replace(
        settings,
        variant=variant,
        window=settings.window if window is None else window,
        sinks=settings.sinks if sinks is None else sinks,
    )
    layers = ModelShape.from_config(config).num_hidden_layers
    layer_problems = AHNConfig.problems(
        variant, None, None, None, settings.full_attention_layers, layers
    )
    if layer_problems:
        raise InputError("\n".join(layer_problems))
    return config, family, settings, source


def _memory_shapes(shape: ModelShape, ahn: AHNConfig) -> dict[str, tuple[int, ...]]:
    """Key and shape of every memory tensor that the model needs."""
    return {
        f"model.layers.{layer}.ahn.fn.{name}": size
        for layer in range(shape.num_hidden_layers)
        if ahn.layer(layer).cell is not None
        for name, size in memory_shapes(shape, ahn.cell).items()
    }


def _listed(keys: Iterable[str]) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def _memory_problems(
    source: str | Path, shapes: Mapping[str, tuple[int, ...]], needed: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What does not fit between a checkpoint's memory tensors and the model's."""
    held = {key: shape for key, shape in shapes.items() if _MEMORY_KEY.match(key)}
    routers = [key for key in shapes if _ROUTER_KEY.match(key)]
    problems = []
    if routers:
        problems.append(f"{source}: has a position router, not supported yet: {_listed(routers)}")
    if missing := needed.keys() - held.keys():
        problems.append(f"{source}: memory keys are missing: {_listed(missing)}")
    if extra := held.keys() - needed.keys():
        problems.append(f"{source}: memory keys that this cell or model has not: {_listed(extra)}")
    problems += [
        f"{source}: {key} has shape {list(held[key])}, the model needs {list(needed[key])}"
        for key in sorted(needed.keys() & held.keys())
        if held[key] != needed[key]
    ]
    return problems


def _base_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
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
        if shape.qk_norm:  # Qwen3's option covers the output too
            layer_shapes["self_attn.o_proj.bias"] = (hidden,)
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


def _strays(shapes: Mapping[str, Any], wanted: Mapping[str, Any]) -> set[str]:
    """Keys that are neither the base model's nor a memory's."""
    return {
        key
        for key in shapes
        if key not in wanted
        and key != "lm_head.weight"  # the copy of a tied head
        and not key.endswith("rotary_emb.inv_freq")  # computed; old checkpoints hold it
        and not _MEMORY_KEY.match(key)
        and not _ROUTER_KEY.match(key)
    }


def _base_problems(
    path: str | Path, wanted: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Base tensors that are missing, unknown, or of a shape that contradicts the configuration."""
    problems = []
    if missing := wanted.keys() - shapes.keys():
        problems.append(f"{path}: weights are missing: {_listed(missing)}")
    if strays := _strays(shapes, wanted):
        problems.append(f"{path}: keys that the model has not: {_listed(strays)}")
    problems += [
        f"{path}: {key} has shape {list(shapes[key])}, config.json says {list(size)}"
        for key, size in wanted.items()
        if key in shapes and shapes[key] != size
    ]
    return problems


def check_model(
    path_or_id: str | Path,
    variant: str,
    ahn: str | Path | None = None,
    window: int | None = None,
    sinks: int | None = None,
) -> list[str]:
    """Everything that can be known to be wrong before any weight is loaded, a line each.

    Reads `config.json` and the headers of the safetensors files.
    """
    try:
        config, _, settings, source = _resolve(path_or_id, variant, ahn, window, sinks)
        shape = ModelShape.from_config(config)
        wanted = _base_shapes(shape)
        problems = _base_problems(path_or_id, wanted, tensor_shapes(path_or_id))
        if source is not None:
            held = tensor_shapes(source)
            problems += _memory_problems(source, held, _memory_shapes(shape, settings))
            if source != path_or_id and (strays := _strays(held, wanted)):
                problems.append(f"{source}: keys that no model here has: {_listed(strays)}")
        return problems
    except InputError as error:
        return str(error).splitlines()


def load_model(
    path_or_id: str | Path,
    variant: str = "ahn",
    ahn: str | Path | None = None,
    window: int | None = None,
    sinks: int | None = None,
    dtype: Any = None,
    device: Any = None,
) -> Any:
    """Load a model in one of its variants.

    Args:
        path_or_id: folder or hub id of a Qwen2/Qwen3 checkpoint, or one with AHN weights merged in.
        variant: `full`, `window`, `ahn` or `no-write` (see `ahn.VARIANTS`).
        ahn: folder or hub id of AHN weights; not needed for `full` and `window`, nor when they
            are merged into the model.
        window: sliding window W in tokens, the current one included, sinks not; default: the AHN
            checkpoint's, else the paper's 32,640.
        sinks: attention sinks in tokens; default as for `window`, else 128.
        dtype: torch dtype or its name; default: the checkpoint's.
        device: where to put the model; default: CPU.

    Returns:
        A `PreTrainedModel` in eval mode; `forward` and `generate` work.

    Raises:
        InputError: paths, shapes, keys or settings that do not fit; the message names them.
    """
    problems = check_model(path_or_id, variant, ahn, window, sinks)
    if problems:
        raise InputError("\n".join(problems))
    config, family, settings, source = _resolve(path_or_id, variant, ahn, window, sinks)
    model = build_model(local_folder(path_or_id), family, config, settings, _dtype(dtype))
    if source is not None and source != path_or_id:
        _load_memory(model, source)
    _check_finite(model, path_or_id, source)
    model.eval()
    return model.to(device) if device is not None else model


def build_model(
    folder: Path, family: str, config: Mapping[str, Any], settings: AHNConfig, dtype: Any
) -> Any:
    """The model of `ahn.modeling` with the folder's weights; memories it lacks are fresh."""
    from ahn import modeling

    classes: dict[str, tuple[Any, Any]] = {
        "qwen2": (modeling.Qwen2AHNConfig, modeling.Qwen2AHNForCausalLM),
        "qwen3": (modeling.Qwen3AHNConfig, modeling.Qwen3AHNForCausalLM),
    }
    config_class, model_class = classes[family]
    values = {k: v for k, v in config.items() if k not in _RELEASED_KEYS | {"ahn", "model_type"}}
    if "_ahn_implementation" in config:  # a released configuration's window is the memory's
        values.pop("sliding_window", None)
        values.pop("use_sliding_window", None)
    own = config_class(ahn=settings.to_dict(), **values)
    own.architectures = [model_class.__name__]
    with _without_load_report():
        model, info = model_class.from_pretrained(
            folder,
            config=own,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
    stray = [k for k in info["unexpected_keys"] if not _MEMORY_KEY.match(k)]
    absent = [k for k in info["missing_keys"] if not _MEMORY_KEY.match(k)]
    if info["mismatched_keys"] or stray or absent:
        problems = []
        if stray:
            problems.append(f"{folder}: keys that the model has not: {_listed(stray)}")
        if absent:
            problems.append(f"{folder}: weights are missing: {_listed(absent)}")
        if info["mismatched_keys"]:
            problems.append(f"{folder}: shapes do not fit: {info['mismatched_keys']}")
        raise InputError("\n".join(problems))
    return model


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keys are accounted for here; transformers' table of them would only frighten."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _dtype(dtype: Any) -> Any:
    import torch

    if dtype is None or dtype == "auto":
        return "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype {dtype!r} is unknown; e.g. float32, bfloat16 or float16")
    return found


def _load_memory(model: Any, source: str | Path) -> None:
    """Copy the memory tensors of a checkpoint into the model; shapes were checked before."""
    import torch
    from safetensors import safe_open

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for file in weight_files(source):
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                    if _MEMORY_KEY.match(key):
                        parameters[key].copy_(tensors.get_tensor(key))


def _check_finite(model: Any, *sources: Any) -> None:
    import torch

    where = " + ".join(str(source) for source in sources if source is not None)
    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if bad:
        raise InputError(f"{where}: weights that are not finite numbers: {_listed(bad)}")


def save_memory(model: Any, folder: Path, base_config: Mapping[str, Any], **training: Any) -> None:
    """Write an AHN-only folder: `model.safetensors` with released key names, and `config.json`.

    Args:
        model: a model of `ahn.modeling` with memories.
        folder: made when absent.
        base_config: the base model's `config.json`.
        training: further keys of a released configuration (`loss_type` ...).
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: p.detach().cpu().contiguous()
        for name, p in model.named_parameters()
        if _MEMORY_KEY.match(name)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = released_config(base_config, AHNConfig(**model.config.ahn), **training)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
