"""A recipe of docs/recipes, read: its blocks, its commands, and its package as pip installs it."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "recipes"


def blocks(name: str) -> dict[str, str]:
    """The content of each block of a recipe, by the file that its first line names."""
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    return dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", text, re.DOTALL))


def commands(name: str) -> list[list[str]]:
    """The arguments of `run_eval` in each line of a recipe's commands."""
    lines = blocks(name)["commands"].splitlines()
    return [shlex.split(line)[1:] for line in lines if line]


def write(folder: Path, files: dict[str, str]) -> None:
    """Write the files of a recipe, in the folders that it names, below `folder`."""
    for file, content in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def install(site: Path, project: str) -> None:
    """Make `site` hold what pip leaves of a package: the entry points that it declares."""
    described = tomllib.loads(project)["project"]
    information = site / f"{described['name'].replace('-', '_')}-{described['version']}.dist-info"
    information.mkdir(parents=True)
    lines = []
    for group, points in described["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {described['name']}\n")
