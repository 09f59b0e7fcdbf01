"""Which form of a recurrence runs: the one that was asked for, else the fastest that fits.

A form that needs a package is imported when it is first picked, never by `import ahn`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ahn.ops.chunked import chunked
from ahn.ops.names import BACKENDS as NAMES
from ahn.ops.recurrent import recurrent
from common.errors import InputError

#: Asks for a form, over what a configuration says.
VARIABLE = "AHN_BACKEND"

Form = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, bool], tuple[Tensor, Tensor]
]

#: Forms that are ready to run; those of `KERNELS` join when they are first picked.
BACKENDS: dict[str, Form] = {"recurrent": recurrent, "chunked": chunked}

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Kernels:
    """A form that another package computes, on CUDA devices only.

    Attributes:
        module: of this package; holds a function of the form's name; importing it imports the
            other package.
        package: what is imported.
        install: how a person gets it.
        delta_rule: whether it has the delta rule, too.
        gradients: whether it differentiates.
        head_dim: largest d.
    """

    module: str
    package: str
    install: str
    delta_rule: bool
    gradients: bool
    head_dim: int


KERNELS: dict[str, Kernels] = {
    "fla": Kernels(
        "ahn.ops.fla_kernels", "fla", "pip install 'flash-linear-attention>=0.6'", True, True, 256
    ),
    "mamba_ssm": Kernels(
        "ahn.ops.mamba_kernels",
        "mamba_ssm",
        "pip install --no-build-isolation 'mamba-ssm>=2.2.5'",
        False,
        False,
        256,
    ),
}


@dataclass(frozen=True)
class Case:
    """What a form is wanted for.

    Attributes:
        device: type of the tensors' device, `cpu` or `cuda`.
        dtype: of the values, the model's dtype.
        head_dim: d.
        one_token: whether T is 1.
        delta_rule: see `ahn.ops.recurrence`.
        gradients: whether a backward pass may follow.
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    one_token: bool
    delta_rule: bool
    gradients: bool


@torch.compiler.assume_constant_result
def asked(configured: str | None = None) -> str | None:
    """The form that `AHN_BACKEND` names, else `configured`; None: nobody asks."""
    return os.environ.get(VARIABLE) or configured


def check(name: str | None, case: Case | None = None) -> None:
    """Refuse a form that cannot run, before anything is computed.

    Args:
        name: a form that was asked for; None: nothing was, and nothing is checked.
        case: what for; None: not known yet, as when a model is built.

    Raises:
        InputError: unknown, not installed, or not able to do this; says what to do.
    """
    if name is None:
        return
    origin = f"{VARIABLE}={name}" if os.environ.get(VARIABLE) == name else f"backend {name!r}"
    if name not in NAMES:
        raise InputError(
            f"unknown backend {name!r} ({origin}); one of {', '.join(NAMES)}, or none at all for "
            "the fastest that fits"
        )
    if name not in KERNELS:
        return
    kernels = KERNELS[name]
    problems = []
    if not _installed(kernels.package):
        problems.append(f"{kernels.package} is not installed: {kernels.install}")
    elif case is not None and case.device == "cuda" and (failure := _load(name)) is not None:
        problems.append(f"{kernels.package} is installed but does not import: {failure}")
    if case is not None:
        if case.device != "cuda":
            problems.append(f"it runs on CUDA devices, and these tensors are on {case.device}")
        if case.delta_rule and not kernels.delta_rule:
            problems.append("it has no delta rule (DeltaNet, GatedDeltaNet), only Mamba2")
        if case.gradients and not kernels.gradients:
            problems.append("it is for inference here and computes no gradients")
        if case.head_dim > kernels.head_dim:
            problems.append(f"its heads have at most {kernels.head_dim} dimensions")
    if problems:
        raise InputError(
            f"{origin} cannot run: {'; '.join(problems)}. backend chunked runs everywhere."
        )


@torch.compiler.assume_constant_result
def pick(
    name: str | None,
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    one_token: bool,
    delta_rule: bool,
    gradients: bool,
) -> str:
    """The form to run, ready in `BACKENDS`; the arguments are those of `Case`.

    A compiled graph sees only the answer.

    Without a name: kernels for half-precision tensors on a CUDA device (they round what they
    multiply to the model's dtype, so float32 models keep torch's exact products), else
    `recurrent` for one token and `chunked` for several.

    Raises:
        InputError: see `check`.
    """
    case = Case(device, dtype, head_dim, one_token, delta_rule, gradients)
    if name is not None:
        check(name, case)
        return name
    if case.device == "cuda" and case.dtype in HALF:
        for kernel, able in KERNELS.items():
            if (
                (able.delta_rule or not case.delta_rule)
                and (able.gradients or not case.gradients)
                and case.head_dim <= able.head_dim
                and _installed(able.package)
            ):
                failure = _load(kernel)
                if failure is None:
                    return kernel
                _warn(able.package, failure)
    return "recurrent" if case.one_token else "chunked"


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@functools.cache
def _load(name: str) -> str | None:
    """Import the kernels into `BACKENDS`; what went wrong, if anything did."""
    try:
        module = importlib.import_module(KERNELS[name].module)
    except Exception as error:  # whatever a foreign package raises when its driver is missing
        return f"{type(error).__name__}: {error}"
    BACKENDS[name] = getattr(module, name)
    return None


@functools.cache
def _warn(package: str, failure: str) -> None:
    warnings.warn(
        f"{package} is installed but does not import ({failure}); torch computes the memory, which "
        "is slower",
        stacklevel=3,
    )
