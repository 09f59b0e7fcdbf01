"""What a memory cell says of itself: gates, states, parameters and cost. No torch.

Attention, cache, cache files, checkpoints, cost and the trainer read a `CellDeclaration`; none of
them knows a cell, a gate or a state by name.  So whatever can be said here can be added from
outside of this package (see `ahn.cells.registry`).

Sizes are named by letters: `D` hidden size, `H` query heads, `d` head dimension, `Hd` their
product.  A cell adds names of its own in `sizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, get_args

from common.errors import InputError, Problems

Dim = int | str
Dims = tuple[Dim, ...]
#: `model`: the model's dtype; `float32`: float32, or float64 in a float64 model
KeptType = Literal["model", "float32"]
Size = int | Callable[[Mapping[str, int]], int]

_LETTERS = ("D", "H", "d", "Hd")
#: buffers that every layer's cache has
_TAKEN = ("keys", "values")


@dataclass(frozen=True)
class Gate:
    """A tensor that is computed when a token enters, and kept until the token leaves the window.

    Attributes:
        dims: sizes behind batch and token; at least one, `("H",)` for one number per head.
        dtype: see `KeptType`.
        neutral: the value it gets at a step at which nothing is written.
    """

    dims: Dims = ("H",)
    dtype: KeptType = "model"
    neutral: float = 0.0


@dataclass(frozen=True)
class State:
    """A tensor that the memory is made of; it starts as zeros.

    Attributes:
        dims: sizes behind the batch.
        dtype: see `KeptType`.
    """

    dims: Dims
    dtype: KeptType = "float32"


@dataclass(frozen=True)
class CellDeclaration:
    """A memory cell, or any other way to treat what leaves the window.

    Attributes:
        name: in configurations and checkpoints (`_ahn_implementation`).
        implementation: the class, or where it is (`package.module:Class`) so that torch is
            imported only when a model is built. The class is called with hidden size, number of
            query heads and head dimension; see `ahn.cells.base`.
        gates: by name, kept with each token in the window.
        states: by name, of fixed size.
        parameters: dimensions of each stored tensor, by its name below `layers.N.ahn.fn.`.
        products_per_token: matrix products for each token that enters, as the sizes that are
            multiplied: `("D", "H")` is a projection of D to H numbers and counts `2 D H` FLOPs.
        products_per_read: matrix products for each query that reads, its write among them.
        sizes: further names for sizes: numbers, or functions of the letters' values.
        recurrence: of `ahn.ops` that the cell computes; None: one of its own.
    """

    name: str
    implementation: str | type
    gates: Mapping[str, Gate] = field(default_factory=dict)
    states: Mapping[str, State] = field(default_factory=dict)
    parameters: Mapping[str, Dims] = field(default_factory=dict)
    products_per_token: tuple[Dims, ...] = ()
    products_per_read: tuple[Dims, ...] = ()
    sizes: Mapping[str, Size] = field(default_factory=dict)
    recurrence: Literal["delta_rule", "outer_products"] | None = None

    def __post_init__(self) -> None:
        problems = Problems()
        if not isinstance(self.name, str) or not self.name.isidentifier():
            problems.add("its name must be a Python identifier")
        if isinstance(self.implementation, str) and self.implementation.count(":") != 1:
            problems.add(f"implementation {self.implementation!r} is not 'package.module:Class'")
        both = [*_TAKEN, *self.gates, *self.states]
        for name in dict.fromkeys(both):
            if not name.isidentifier():
                problems.add(f"{name!r}: names of gates and states are Python identifiers")
            if both.count(name) > 1:
                problems.add(f"{name!r} is the name of two tensors of a layer's cache")
        for name, gate in self.gates.items():
            if not gate.dims:
                problems.add(f"gate {name!r} needs at least one dimension behind batch and token")
        kept: dict[str, Gate | State] = {**self.gates, **self.states}
        for name, tensor in kept.items():
            if tensor.dtype not in get_args(KeptType):
                problems.add(f"{name!r}: dtype {tensor.dtype!r}; one of model, float32")
        if taken := [name for name in self.sizes if name in _LETTERS]:
            problems.add(f"sizes: {', '.join(taken)} already means a size of the model")
        everywhere: dict[str, Dims] = {name: tensor.dims for name, tensor in kept.items()}
        everywhere |= self.parameters
        everywhere |= {"products_per_token": sum(self.products_per_token, ())}
        everywhere |= {"products_per_read": sum(self.products_per_read, ())}
        for name, dims in everywhere.items():
            for dim in dims:
                if isinstance(dim, str) and dim not in _LETTERS and dim not in self.sizes:
                    problems.add(f"{name!r}: size {dim!r} is unknown; say it in 'sizes'")
        if self.recurrence not in (None, "delta_rule", "outer_products"):
            problems.add(f"recurrence {self.recurrence!r}: delta_rule, outer_products, or None")
        if problems:
            raise InputError(*(f"memory cell {self.name!r}: {problem}" for problem in problems))

    def sized(self, hidden_size: int, num_attention_heads: int, head_dim: int) -> SizedCell:
        """The declaration with a model's numbers for its letters.

        Raises:
            InputError: a size of the cell is not a positive whole number for this model.
        """
        heads, d = num_attention_heads, head_dim
        sizes = {"D": hidden_size, "H": heads, "d": d, "Hd": heads * d}
        for name, given in self.sizes.items():
            value: Any = given(sizes) if callable(given) else given
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(
                    f"memory cell {self.name!r}: size {name!r} is {value!r} with hidden size "
                    f"{hidden_size}, {heads} heads of {d} dimensions; it must be a positive whole "
                    "number"
                )
            sizes[name] = value
        return SizedCell(self, sizes)


class SizedCell:
    """A cell's declaration for one model: numbers instead of letters.

    Args:
        declaration: of the cell.
        sizes: value of each letter and name.
    """

    def __init__(self, declaration: CellDeclaration, sizes: Mapping[str, int]) -> None:
        self.declaration, self.sizes = declaration, sizes

    def shape(self, dims: Dims) -> tuple[int, ...]:
        """Numbers for letters."""
        return tuple(dim if isinstance(dim, int) else self.sizes[dim] for dim in dims)

    @property
    def gates(self) -> dict[str, tuple[int, ...]]:
        """Sizes behind batch and token of each gate."""
        return {name: self.shape(gate.dims) for name, gate in self.declaration.gates.items()}

    @property
    def states(self) -> dict[str, tuple[int, ...]]:
        """Sizes behind the batch of each state."""
        return {name: self.shape(state.dims) for name, state in self.declaration.states.items()}

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shape of each stored tensor of one layer."""
        return {name: self.shape(dims) for name, dims in self.declaration.parameters.items()}

    @property
    def flops_per_token(self) -> int:
        """FLOPs of a token that enters."""
        return self._flops(self.declaration.products_per_token)

    @property
    def flops_per_read(self) -> int:
        """FLOPs of a query that reads, and of the write before it."""
        return self._flops(self.declaration.products_per_read)

    def gate_bytes(self, dtype_bytes: int) -> int:
        """Bytes of the gates of one token, in a model whose elements take `dtype_bytes`."""
        return self._bytes(self.declaration.gates, dtype_bytes)

    def state_bytes(self, dtype_bytes: int) -> int:
        """Bytes of the states of one sequence."""
        return self._bytes(self.declaration.states, dtype_bytes)

    def _flops(self, products: tuple[Dims, ...]) -> int:
        return sum(2 * prod(self.shape(dims)) for dims in products)

    def _bytes(self, kept: Mapping[str, Gate] | Mapping[str, State], dtype_bytes: int) -> int:
        widths = {"model": dtype_bytes, "float32": max(dtype_bytes, 4)}
        return sum(prod(self.shape(tensor.dims)) * widths[tensor.dtype] for tensor in kept.values())
