"""Where a model goes and in which type: what the user says, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import InputError
from common.quantities import dtype_name

DTYPES = ("float32", "bfloat16", "float16", "float64")
_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
#: how safetensors names the types
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


def resolve_dtype(dtype: Any, config: Mapping[str, Any], stored: str) -> Any:
    """The torch dtype that weights are loaded in.

    Args:
        dtype: a torch dtype or its name (also `bf16`); None or `auto`: what `config.json` says,
            else as stored.
        config: the base model's configuration.
        stored: type of the base's embedding as safetensors names it.

    Raises:
        InputError: not a floating-point type that models are computed in.
    """
    import torch

    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        said = config.get("dtype") or config.get("torch_dtype")
        name = said if said is not None else _STORED[stored]
    else:
        name = dtype
    name = dtype_name(str(name).removeprefix("torch."))
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is unknown; one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def resolve_device(device: Any) -> Any:
    """The `torch.device` that is meant; None: CPU; `auto`: a GPU where there is one.

    Raises:
        InputError: no such device, or it is not in this machine.
    """
    import torch

    if device is None:
        return torch.device("cpu")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device, int) and not isinstance(device, bool):
        device = f"cuda:{device}"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device {device!r} is unknown; cpu, cuda, cuda:1 or mps") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {str(found)!r} is not here: {torch.cuda.device_count()} CUDA devices found"
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' is not here")
    if found.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {str(found)!r} is not supported; cpu, cuda, cuda:1 or mps")
    return found


def resolve_device_map(device: Any, device_map: Any) -> Any:
    """What transformers' `from_pretrained` gets as `device_map`.

    Args:
        device: one device for the whole model; see `resolve_device`.
        device_map: `auto`, `balanced`, `balanced_low_0`, `sequential`, a device, or a mapping of
            module names to devices, as in transformers.

    Raises:
        InputError: both are given, a device that is not there, or `disk`.
    """
    if device_map is None:
        return {"": resolve_device(device)}
    if device is not None:
        raise InputError("give device or device_map, not both")
    if isinstance(device_map, Mapping):
        if not device_map:
            raise InputError("device_map is empty; {'': 'cpu'} puts all on the CPU")
        if "disk" in device_map.values():
            raise InputError(
                "device_map puts weights on disk, which is not supported: a memory's "
                "weights must lie where it computes"
            )
        return {k: resolve_device(v) for k, v in device_map.items()}
    if isinstance(device_map, str) and device_map in _AUTOMATIC:
        return device_map
    try:
        return {"": resolve_device(device_map)}
    except InputError as error:
        raise InputError(f"device_map: {error}; or {', '.join(_AUTOMATIC)}") from None
