"""The recipe of a family, carried out as written: a package outside this one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "docs" / "recipes" / "family.md"
BLOCKS = dict(
    re.findall(r"```\w+\n# (\S+)\n(.*?)```", RECIPE.read_text(encoding="utf-8"), re.DOTALL)
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe's files, and its package in `site` as pip installs it."""
    folder = tmp_path_factory.mktemp("recipe")
    for name in ("small_model.py", "compare.py"):
        (folder / name).write_text(BLOCKS[name])
    information = folder / "site" / "seed_oss_family-1.dist-info"
    information.mkdir(parents=True)
    (folder / "site" / "seed_oss_family.py").write_text(BLOCKS["seed_oss_family.py"])
    project = tomllib.loads(BLOCKS["pyproject.toml"])["project"]
    (points,) = project["entry-points"].items()
    lines = [f"[{points[0]}]", *(f"{name} = {value}" for name, value in points[1].items())]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\n")
    return folder


def run(folder: Path, words: list[str], package: bool = True) -> subprocess.CompletedProcess[str]:
    """A command of the recipe; `python` and `ahn` are this environment's."""
    tools = {"python": [sys.executable], "ahn": [sys.executable, "-m", "ahn.cli"]}
    paths = [str(ROOT), *([str(folder / "site")] if package else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [*tools[words[0]], *words[1:]], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_recipe_is_carried_out_as_written(installed: Path) -> None:
    outputs = []
    for line in BLOCKS["commands"].splitlines():
        done = run(installed, shlex.split(line))
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append(done.stdout)
    _, info, compared = outputs
    # 3 layers of q and o (each 48 x 64), k and v (each 48 x 32), and biases 64 + 2 * 32 + 48
    attention = 3 * (2 * 48 * 64 + 2 * 48 * 32 + 64 + 2 * 32 + 48)
    assert "seed_oss, 3 layers" in info and f"({attention:,})" in info
    found = {name: float(value) for name, value in re.findall(r"(\w+):\s+(\S+)", compared)}
    assert found["full"] < 1e-5 < 1e-3 < found["window"]
    without = run(installed, ["ahn", "info", "small-seed-oss"], package=False)
    assert without.returncode == 2 and "model_type 'seed_oss' is not supported" in without.stderr


def test_the_row_is_registered_by_hand_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file without installing it: merged, split and known to transformers."""
    import torch
    from transformers import AutoConfig

    import ahn
    from ahn import families
    from ahn.models.causal_lm import family_classes
    from tests.ahn.checkpoints.makers import save_memory

    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    made: dict[str, ahn.Family] = {}
    exec(BLOCKS["seed_oss_family.py"], made)
    row = made["SEED_OSS"]
    ahn.register_family(row)
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS["small_model.py"], {})
    settings = {"cell": "Mamba2", "window": 16, "sinks": 2}
    base = ahn.describe_model("small-seed-oss")
    torch.manual_seed(1)
    shape = {key: base[key] for key in base.keys() - {"model_type", "architectures"}}
    student = family_classes(row).causal_lm(family_classes(row).config(ahn=settings, **shape))
    save_memory(student, tmp_path / "memory", base)
    ahn.merge_checkpoint("small-seed-oss", "memory", "merged")
    model = ahn.load_model("merged")
    assert type(model).__name__ == "SeedOssAHNForCausalLM"
    assert model.generate(torch.arange(3, 40)[None], max_new_tokens=3).shape[1] > 37
    ahn.split_checkpoint("merged", "split")
    for name in ("config.json", "model.safetensors"):
        assert Path("split", name).read_bytes() == Path("memory", name).read_bytes()
    assert AutoConfig.from_pretrained("merged").ahn["window"] == 16
