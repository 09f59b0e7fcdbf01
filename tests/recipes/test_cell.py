"""The recipe of a memory cell, carried out as written: a package outside this one."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ahn
from ahn.cells import CELLS
from ahn.cost.accounting import cache_bytes, flops
from ahn.cost.shapes import ModelShape

ROOT = Path(__file__).resolve().parents[2]
GROUP = "ahn_bench.cells"


def blocks_of(recipe: str) -> dict[str, str]:
    """Contents of the recipe's code blocks by the file that the first line of each names."""
    text = (ROOT / "docs" / "recipes" / recipe).read_text(encoding="utf-8")
    return dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", text, re.DOTALL))


def install(blocks: dict[str, str], place: Path) -> str:
    """The recipe's package, as pip installs it, in the folder `site`; returns its module's name."""
    project = tomllib.loads(blocks["pyproject.toml"])["project"]
    ((name, value),) = project["entry-points"][GROUP].items()
    module = value.partition(":")[0]
    information = place / "site" / f"{module}-{project['version']}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\n")
    (information / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {value}\n")
    (place / "site" / f"{module}.py").write_text(blocks[f"{module}.py"])
    for file in set(blocks) - {f"{module}.py", "pyproject.toml", "commands"}:
        (place / file).write_text(blocks[file])
    return module


def installed(
    recipe: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """For a fixture: the recipe's blocks, its package on `sys.path`, its files in the folder."""
    blocks = blocks_of(recipe)
    module = install(blocks, place)
    monkeypatch.syspath_prepend(place / "site")
    monkeypatch.chdir(place)
    yield blocks
    for name in set(CELLS.loaded()) - set(CELLS.builtin):
        CELLS.unregister(name)
    sys.modules.pop(module, None)


def invoke(line: str) -> Any:
    """A command line of `ahn` or `run_eval`, in this process; a click `Result`."""
    from click.testing import CliRunner

    import ahn.cli
    import evaluation.cli

    program, *words = shlex.split(line)
    app = {"ahn": ahn.cli.app, "run_eval": evaluation.cli.app}[program]
    return CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    yield from installed("cell.md", tmp_path, monkeypatch)


@pytest.mark.slow
def test_the_recipe_is_carried_out_as_written(recipe: dict[str, str]) -> None:
    assert "LinearMemory" in list(CELLS) and "LinearMemory" not in CELLS.loaded()
    cost, *others = results = [invoke(line) for line in recipe["commands"].splitlines()]
    for result in results:
        assert result.exit_code == 0, result.output
    assert len(others) == 3 and re.search(r"memory cell\W+LinearMemory", others[1].output)
    trained = load_file("runs/linear/model.safetensors")
    assert all(x.any() for key, x in trained.items() if key.endswith("o_proj.weight"))
    records = [json.loads(x) for f in Path("runs/compared").glob("*/*.jsonl") for x in f.open()]
    found = {record["variant"] for record in records}
    assert len(records) == 4 and len(found) == 2 and not any(record["error"] for record in records)
    (of_memory,) = {r["cache_bytes_analytic"] for r in records if "ahn" in r["variant"]}
    (measured,) = {r["cache_bytes_measured"] for r in records if "ahn" in r["variant"]}
    assert of_memory == measured


def test_it_runs_and_costs_what_it_says(recipe: dict[str, str], tmp_path: Path) -> None:
    assert invoke(recipe["commands"].splitlines()[1]).exit_code == 0
    check_model(tmp_path)


@torch.no_grad()
def check_model(tmp_path: Path) -> None:
    """Pieces give what the whole gives; bytes and FLOPs are those counted here."""
    model = ahn.load_model(ahn.POCKET_PATH, ahn="runs/linear", window=20, sinks=4)
    ids, cache = torch.arange(8, 68)[None], model.new_cache()
    whole = model(ids).logits
    pieces = ids.split([30, 1, 1, 28], 1)
    found = torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], 1)
    torch.testing.assert_close(found, whole, rtol=0, atol=2e-4)
    cache.save(tmp_path / "cache")
    shape = ModelShape.from_config(ahn.describe_model(ahn.POCKET_PATH))
    options: dict[str, Any] = {"window": 20, "sinks": 4, "cell": "LinearMemory"}
    again = ahn.AHNCache.load(tmp_path / "cache", model)
    assert again.nbytes == cache_bytes(shape, "ahn", 60, dtype_bytes=4, **options).total
    H, d, D = shape.num_attention_heads, shape.head_dim, shape.hidden_size
    read = 2 * H * (2 * d * d + 2 * d * d + 2 * d + d * d)
    by_hand = shape.num_hidden_layers * (60 * 2 * D * H + (60 - 24) * read)
    assert flops(shape, "ahn", 60, **options).parts["memory"] == by_hand


def test_names_of_installed_cells_are_known_without_importing_them(
    recipe: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import sys, ahn\n"
        "assert 'LinearMemory' in ahn.CELLS and 'LinearMemory' in list(ahn.CELLS)\n"
        "try: ahn.AHNConfig(cell='LinearMemry')\n"
        "except ahn.InputError as error: print(error)\n"
        "print('linear_memory' in sys.modules, 'torch' in sys.modules)"
    )
    place = f"import sys; sys.path[:0] = [{str(tmp_path / 'site')!r}, {str(ROOT)!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", place + code], capture_output=True, text=True, check=True
    )
    said, modules = done.stdout.splitlines()
    assert said.endswith("did you mean 'LinearMemory'?") and modules == "False False"
