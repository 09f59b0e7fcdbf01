"""Declarations that cannot be, names that are not known, and classes that are not as declared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ahn
from ahn import CellDeclaration, Gate, InputError, State
from ahn.cells import CELLS, Eviction, build_cell
from tests.ahn.conftest import tokens, variant_model

D, H, d = 24, 4, 6


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = set(CELLS.loaded())
    yield
    for name in set(CELLS.loaded()) - before:
        CELLS.unregister(name)


def declared(name: str = "Mine", **options: Any) -> CellDeclaration:
    return CellDeclaration(name, **{"implementation": "nowhere:Mine", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "my cell"}, "its name must be a Python identifier"),
        ({"implementation": "nowhere.Mine"}, "'nowhere.Mine' is not 'package.module:Class'"),
        ({"gates": {"keys": Gate()}}, "'keys' is the name of two tensors"),
        (
            {"gates": {"a": Gate()}, "states": {"a": State(("H",))}},
            "'a' is the name of two tensors",
        ),
        ({"gates": {"a.b": Gate()}}, "'a.b': names of gates and states are Python identifiers"),
        ({"gates": {"a": Gate(())}}, "gate 'a' needs at least one dimension"),
        ({"gates": {"a": Gate(dtype="half")}}, "dtype 'half'; one of model, float32"),  # type: ignore[arg-type]
        ({"states": {"s": State(("H", "k"))}}, "'s': size 'k' is unknown"),
        ({"parameters": {"w": ("Q",)}}, "'w': size 'Q' is unknown"),
        ({"products_per_read": (("H", "x"),)}, "'products_per_read': size 'x' is unknown"),
        ({"sizes": {"d": 3}}, "sizes: d already means a size of the model"),
        ({"recurrence": "delta"}, "recurrence 'delta'"),
    ],
)
def test_what_cannot_be_declared_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        declared(**options)


def test_all_that_is_wrong_with_a_declaration_is_said_at_once() -> None:
    with pytest.raises(InputError) as error:
        declared("no name", gates={"values": Gate(("x",))}, recurrence="y")
    assert len(error.value.problems) == 4
    assert all(line.startswith("memory cell 'no name': ") for line in error.value.problems)


@pytest.mark.parametrize("size", [0, -1, 2.5, "3", True, lambda sizes: sizes["d"] // 7])
def test_a_size_is_a_positive_whole_number_for_this_model(size: Any) -> None:
    cell = declared(states={"s": State(("k",))}, sizes={"k": size})
    with pytest.raises(InputError, match="size 'k' is .* with hidden size 24, 4 heads of 6"):
        cell.sized(D, H, d)


def test_sizes_are_numbers_for_letters() -> None:
    cell = declared(
        gates={"g": Gate(("H", 3)), "f": Gate(("k",), "float32")},
        states={"s": State(("H", "k", "Hd"), "model")},
        sizes={"k": lambda sizes: sizes["d"] + 1},
    ).sized(D, H, d)
    assert cell.gates == {"g": (4, 3), "f": (7,)} and cell.states == {"s": (4, 7, 24)}
    assert (cell.gate_bytes(2), cell.state_bytes(2)) == (12 * 2 + 7 * 4, 4 * 7 * 24 * 2)
    assert (cell.gate_bytes(8), cell.state_bytes(4)) == (12 * 8 + 7 * 8, 4 * 7 * 24 * 4)


def test_a_name_means_one_cell() -> None:
    first = ahn.register_cell(declared())
    assert ahn.register_cell(declared()) is not None and CELLS["Mine"] is first
    with pytest.raises(InputError, match="there is another memory cell 'Mine' already"):
        ahn.register_cell(declared(states={"s": State((1,))}))
    with pytest.raises(InputError, match="another memory cell 'Mamba2' already"):
        ahn.register_cell(declared("Mamba2"))
    with pytest.raises(InputError, match="takes a CellDeclaration, not str"):
        ahn.register_cell("Mine")  # type: ignore[arg-type]
    CELLS.unregister("Mamba2")
    assert list(CELLS)[:3] == ["GatedDeltaNet", "DeltaNet", "Mamba2"] == list(CELLS.builtin)


def test_unknown_names_say_what_is_known() -> None:
    ahn.register_cell(declared())
    with pytest.raises(InputError, match="'Min' is unknown; one of GatedDelta.*Mine; did you mean"):
        CELLS.find("Min")
    with pytest.raises(KeyError):
        CELLS["Min"]
    with pytest.raises(InputError, match="memory cell 'Mine': nowhere:Mine cannot be imported"):
        CELLS.implementation("Mine")


@pytest.mark.parametrize(
    ("value", "text", "message"),
    [
        ("absent_cells:ONE", "", "entry point absent_cells:ONE .* cannot be imported"),
        ("one_cell:TWO", "ONE = 1", "entry point one_cell:TWO .* cannot be imported"),
        ("one_cell:ONE", "ONE = 1", "must be the CellDeclaration of that name, not 1"),
    ],
)
def test_what_is_wrong_with_an_installed_cell_is_said_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, text: str, message: str
) -> None:
    before = set(CELLS)
    folder = tmp_path / "broken-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\n")
    (folder / "entry_points.txt").write_text(f"[ahn_bench.cells]\nBroken = {value}\n")
    (tmp_path / "one_cell.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "one_cell", raising=False)
    assert set(CELLS) - before == {"Broken"}  # other cells can be used nevertheless
    assert "Broken" in CELLS
    with pytest.raises(InputError, match=message):
        CELLS.find("Broken")


class Bare(Eviction):
    """Keeps nothing and adds nothing, but has a parameter that it forgets to initialise."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, q: Any, evicted: Any, states: Any, hidden: Any) -> Any:
        return self.answer(q, states)

    def answer(self, q: Any, states: Any) -> Any:
        return q * 0, states


def bare(**options: Any) -> CellDeclaration:
    Bare.declaration = CellDeclaration("Bare", Bare, **options)
    return ahn.register_cell(Bare.declaration)


def test_a_class_is_held_against_its_declaration() -> None:
    bare(parameters={"weight": (3,), "other": ("H",)})
    with pytest.raises(InputError) as error:
        build_cell("Bare", D, H, d)
    assert "parameter other is declared as [4], Bare has nothing" in str(error.value)
    assert "parameter weight is declared as [3], Bare has [2]" in str(error.value)
    Bare.declaration = declared("Other")
    with pytest.raises(InputError, match="Bare.declaration is not the declaration"):
        build_cell("Bare", D, H, d)


def test_a_parameter_that_is_never_initialised_is_refused() -> None:
    bare(parameters={"weight": (2,)})
    with pytest.raises(InputError, match="reset_parameters leaves weight without values"):
        variant_model("ahn", cell="Bare")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda q, states: (q[..., :1], states), r"must return \[B, n, H, d\]"),
        (lambda q, states: (q, {}), "must return the states it was given"),
        (
            lambda q, states: (q, {"s": states["s"][:, :1]}),
            r"the states it was given, \{'s': \[1, 2\]\}, not \{'s': \[1, 1\]\}",
        ),
    ],
)
@torch.no_grad()
def test_what_a_cell_must_not_return_is_refused(
    monkeypatch: pytest.MonkeyPatch, answer: Any, message: str
) -> None:
    bare(parameters={"weight": (2,)}, states={"s": State((2,))})
    monkeypatch.setattr(Bare, "reset_parameters", lambda self, *_: self.weight.zero_())
    model = variant_model("ahn", cell="Bare")
    monkeypatch.setattr(Bare, "answer", lambda self, q, states: answer(q, states))
    with pytest.raises(ValueError, match=message):
        model(tokens(40))


def test_parameters_get_gradients_of_zero_where_nothing_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # DDP waits for a gradient of each parameter, also of those that only a write would use
    bare(parameters={"weight": (2,)})
    monkeypatch.setattr(Bare, "reset_parameters", lambda self, *_: self.weight.zero_())
    model = variant_model("ahn", cell="Bare")
    model(tokens(5)).logits.sum().backward()
    for layer in model.model.layers:
        assert layer.ahn.fn.weight.grad is not None and not layer.ahn.fn.weight.grad.any()


def test_names_of_the_package_are_those_of_their_modules() -> None:
    import ahn.cells
    from ahn.cells import base, gated_delta_net

    assert ahn.cells.GatedDeltaNet is gated_delta_net.GatedDeltaNet
    assert ahn.cells.MemoryCell is base.MemoryCell
    with pytest.raises(AttributeError, match=r"^module 'ahn\.cells' has no attribute 'Gatd'$"):
        _ = ahn.cells.Gatd
