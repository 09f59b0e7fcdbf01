"""The memory cells that can be named: the built-in ones, registered ones, installed ones. No torch.

A package adds a cell by `ahn.register_cell(declaration)`, or without being imported first by an
entry point of the group `ahn_bench.cells` that names its declaration:

    [project.entry-points."ahn_bench.cells"]
    MyCell = "my_package.my_cell:DECLARATION"
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ahn.cells.builtin import DELTA_NET, GATED_DELTA_NET, MAMBA2
from ahn.cells.declaration import CellDeclaration
from common.errors import InputError
from common.plugins import installed, load, where
from common.suggestions import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "ahn_bench.cells"


class CellRegistry(Mapping[str, CellDeclaration]):
    """Declarations by name.

    Installed cells are known by the names of their entry points; one is imported when it is first
    asked for.
    """

    def __init__(self, *builtin: CellDeclaration) -> None:
        self._known = {declaration.name: declaration for declaration in builtin}
        #: names of the cells of this package
        self.builtin = tuple(self._known)

    def register(self, declaration: CellDeclaration) -> None:
        """Make a cell known in this process.

        Raises:
            InputError: another cell has this name.
        """
        if not isinstance(declaration, CellDeclaration):
            raise InputError(
                f"register_cell takes a CellDeclaration, not {type(declaration).__name__}"
            )
        if self._known.setdefault(declaration.name, declaration) != declaration:
            raise InputError(
                f"there is another memory cell {declaration.name!r} already; give this one a name "
                f"of its own, or CELLS.unregister({declaration.name!r}) first"
            )

    def unregister(self, name: str) -> None:
        """Forget a registered cell; the built-in ones stay."""
        if name not in self.builtin:
            self._known.pop(name, None)

    def loaded(self) -> dict[str, CellDeclaration]:
        """Those that need no further import: built in, registered, or asked for before."""
        return dict(self._known)

    def find(self, name: str) -> CellDeclaration:
        """The cell of this name.

        Raises:
            InputError: there is none; the message says which there are. Or it is installed and
                cannot be imported.
        """
        if (problem := self.problem(name)) is not None:
            raise InputError(problem)
        return self[name]

    def problem(self, name: Any) -> str | None:
        """Why no cell can be called this; None: there is one of this name."""
        if isinstance(name, str) and name in self:
            return None
        hint = did_you_mean(str(name), self)
        return f"cell {name!r} is unknown; one of {', '.join(self)}{hint}"

    def implementation(self, name: str) -> Any:
        """The class of the cell of this name; this imports torch.

        Raises:
            InputError: as `find`; or there is no such class where the declaration says.
        """
        declaration = self.find(name)
        if not isinstance(declaration.implementation, str):
            return declaration.implementation
        module, _, attribute = declaration.implementation.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"memory cell {name!r}: {declaration.implementation} cannot be imported: {error}"
            ) from error

    def __getitem__(self, name: str) -> CellDeclaration:
        if name not in self._known:
            self._known[name] = _load(installed(ENTRY_POINTS)[name])
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._known or name in installed(ENTRY_POINTS)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._known, **installed(ENTRY_POINTS)})

    def __len__(self) -> int:
        return len({**self._known, **installed(ENTRY_POINTS)})


def _load(entry: EntryPoint) -> CellDeclaration:
    declaration = load(entry, "memory cell")
    if not isinstance(declaration, CellDeclaration) or declaration.name != entry.name:
        raise InputError(
            f"{where(entry, 'memory cell')} must be the CellDeclaration of that name, not "
            f"{declaration!r}"
        )
    return declaration


#: every memory cell by name
CELLS = CellRegistry(GATED_DELTA_NET, DELTA_NET, MAMBA2)


def register_cell(declaration: CellDeclaration) -> CellDeclaration:
    """Make a memory cell known, so that configurations and checkpoints may name it.

    Args:
        declaration: its gates, states, parameters, cost and class.

    Returns:
        The declaration.

    Raises:
        InputError: another cell has this name.
    """
    CELLS.register(declaration)
    return declaration
