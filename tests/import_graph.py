"""The import graph of the packages: entries of a folder, levels, arrows and circles.

    python -m tests.import_graph            # a table, and what lies on which level
    python -m tests.import_graph FOLDER     # of another checkout

An *entry* of a folder is a module or sub-package that lies directly in it. An *arrow* leads from an
entry to another one that it imports from; imports inside functions and under `TYPE_CHECKING` count
like any other. The *level* of an entry is the length of the longest chain of arrows below it. A
*circle* is a set of modules each of which imports, by way of others, itself.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ahn", "common", "evaluation", "tasks", "reports")

Graph = Mapping[str, frozenset[str]]
"""The names that each name imports from."""


@dataclass(frozen=True)
class Folder:
    """What the imports between the entries of one folder look like."""

    name: str
    levels: dict[str, int]
    """Of each entry, from 1."""
    arrows: int
    circles: list[list[str]]


def modules(root: Path) -> dict[str, Path]:
    """The file of every module of the packages, by its name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def module_graph(root: Path) -> Graph:
    """The modules that each module imports, wherever in its file."""
    files = modules(root)
    return {name: frozenset(_imported(name, path, files)) for name, path in files.items()}


def _imported(name: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        wanted: list[str] = []
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            wanted = [
                full if (full := f"{node.module}.{alias.name}") in files else node.module
                for alias in node.names
            ]
        yield from (module for module in wanted if module in files and module != name)


def folder_graph(graph: Graph, folder: str) -> Graph:
    """The imports between the entries that lie directly in `folder` (`ahn`, `ahn.models`)."""
    depth = folder.count(".") + 1

    def entry(module: str) -> str | None:
        if module == folder:
            return "__init__"
        return module.split(".")[depth] if module.startswith(f"{folder}.") else None

    found: dict[str, set[str]] = {}
    for module, imported in graph.items():
        own = entry(module)
        if own is not None:
            others = {other for name in imported if (other := entry(name)) not in (None, own)}
            found.setdefault(own, set()).update(others)
    return {name: frozenset(imported) for name, imported in found.items()}


def circles(graph: Graph) -> list[list[str]]:
    """Groups of two or more names that import one another (Tarjan's algorithm)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in graph.get(name, ()):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in number:
            visit(name)
    return found


def measured(graph: Graph, name: str) -> Folder:
    """Entries with their levels, arrows and circles of one folder."""
    inside = folder_graph(graph, name)
    groups = circles(inside)
    group_of = {entry: index for index, group in enumerate(groups) for entry in group}

    def same(a: str, b: str) -> bool:
        return a in group_of and group_of[a] == group_of.get(b)

    @cache
    def level(entry: str) -> int:
        members = groups[group_of[entry]] if entry in group_of else [entry]
        below = [o for m in members for o in inside[m] if not same(entry, o)]
        return 1 + max(map(level, below), default=0)

    levels = {entry: level(entry) for entry in sorted(inside)}
    return Folder(name, levels, sum(map(len, inside.values())), groups)


def folders(root: Path) -> list[str]:
    """All packages and sub-packages that hold more than one module."""
    names = modules(root)
    return [name for name in names if any(other.startswith(f"{name}.") for other in names)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", nargs="?", type=Path, default=ROOT)
    root = parser.parse_args().root
    graph = module_graph(root)
    print("| folder | entries | levels | arrows | circles |\n|---|---|---|---|---|")
    for name in folders(root):
        found = measured(graph, name)
        height = max(found.levels.values())
        print(
            f"| {name} | {len(found.levels)} | {height} | {found.arrows} | {len(found.circles)} |"
        )
    print(f"\ncircles of modules: {circles(graph) or 'none'}")


if __name__ == "__main__":
    main()
