"""Where a model goes and in which type: what the user says, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import InputError
from common.quantities import dtype_name

#: types that models are computed in, and the bytes of one number
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
#: how safetensors names the types
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


def resolve_dtype(dtype: Any, config: Mapping[str, Any], stored: str) -> str:
    """Name of the type that weights are loaded in: `float32` ...

    Args:
        dtype: a torch dtype or its name (also `bf16`); None or `auto`: what `config.json` says,
            else as stored.
        config: the base model's configuration.
        stored: type of the base's embedding as safetensors names it.

    Raises:
        InputError: not a floating-point type that models are computed in.
    """
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        said = config.get("dtype") or config.get("torch_dtype")
        dtype = said if said is not None else _STORED[stored]
    name = dtype_name(str(dtype).removeprefix("torch."))
    if name not in DTYPE_BYTES:
        raise InputError(f"dtype {name!r} is unknown; one of {', '.join(DTYPE_BYTES)}")
    return name


def resolve_device(device: Any) -> str:
    """Name of the device that is meant: `cpu`, `cuda`, `cuda:1`, `mps`.

    Args:
        device: a name, a number of a CUDA device, or a `torch.device`; None: CPU; `auto`: a GPU
            where there is one.

    Raises:
        InputError: no such device, or it is not in this machine.
    """
    if device is None or (isinstance(device, str) and device == "cpu"):
        return "cpu"
    import torch

    if isinstance(device, str) and device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
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
        raise InputError(f"device {str(found)!r} is not here")
    if found.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {str(found)!r} is not supported; cpu, cuda, cuda:1 or mps")
    return str(found)


def resolve_device_map(device: Any, device_map: Any) -> str | dict[str, str]:
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
