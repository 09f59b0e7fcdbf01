"""Every small change that mutmut's operators make to a source file, one at a time.

Only mutmut's operators are used (`mutmut.mutation.mutators`): its own runner leaves decorated
functions, class bodies and module constants alone, and wants all tests in one process. Left alone
here: annotations, which nothing evaluates (`from __future__ import annotations`), decorators,
imports, `__all__` and docstrings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import libcst as cst
from libcst.metadata import (
    MetadataWrapper,
    ParentNodeProvider,
    PositionProvider,
    WhitespaceInclusivePositionProvider,
)
from mutmut.mutation.mutators import mutation_operators


@dataclass(frozen=True)
class Mutant:
    """One change to one file.

    Attributes:
        path: of the file, relative to the root of the project.
        first: first line of the statement that is changed, from 1.
        last: its last line; of a compound statement the last line of its head.
        old: the lines that change, without indentation.
        new: what becomes of them.
        code: the whole changed file.
    """

    path: str
    first: int
    last: int
    old: str
    new: str
    code: str

    @property
    def key(self) -> str:
        """Names the changed file: the same change to another version of it is another mutant."""
        return hashlib.sha1(f"{self.path}\n{self.code}".encode()).hexdigest()[:12]


_LEFT_ALONE = (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom)


def mutants_of(root: Path, path: str) -> list[Mutant]:
    """All mutants of a file, in the order of the text."""
    source = (root / path).read_text(encoding="utf-8")
    wrapper = MetadataWrapper(cst.parse_module(source))
    lines = source.splitlines(keepends=True)
    starts = [0, *accumulate(map(len, lines))]
    places = wrapper.resolve(WhitespaceInclusivePositionProvider)
    positions = wrapper.resolve(PositionProvider)
    parents = wrapper.resolve(ParentNodeProvider)
    found: dict[str, Mutant] = {}
    for node in _nodes(wrapper.module):
        for kind, operator in mutation_operators:
            for changed in operator(node) if isinstance(node, kind) else ():
                place = places[node]
                start = starts[place.start.line - 1] + place.start.column
                end = starts[place.end.line - 1] + place.end.column
                text = wrapper.module.code_for_node(changed)
                if text == source[start:end]:
                    continue
                before = source[starts[place.start.line - 1] : start]
                after = source[end : starts[place.end.line]]
                mutant = Mutant(
                    path,
                    *_statement(node, parents, positions),
                    old=_one_line(before + source[start:end] + after),
                    new=_one_line(before + text + after),
                    code=source[:start] + text + source[end:],
                )
                found.setdefault(mutant.key, mutant)
    return list(found.values())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _nodes(module: cst.Module) -> Iterator[cst.CSTNode]:
    """All nodes in the order of the text, but for those that are left alone."""
    waiting: list[cst.CSTNode] = [module]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _LEFT_ALONE) or _is_docstring(node) or _is_all(node):
            continue
        yield node
        waiting += reversed(node.children)


def _is_docstring(node: cst.CSTNode) -> bool:
    """Whether a statement is a text alone: of a module, class, function or attribute."""
    return isinstance(node, cst.Expr) and isinstance(
        node.value, cst.SimpleString | cst.ConcatenatedString
    )


def _is_all(node: cst.CSTNode) -> bool:
    """Whether a statement says what `import *` imports, which is used nowhere."""
    names = [target.target for target in node.targets] if isinstance(node, cst.Assign) else []
    return any(isinstance(name, cst.Name) and name.value == "__all__" for name in names)


def _statement(node: cst.CSTNode, parents: Any, positions: Any) -> tuple[int, int]:
    """First and last line of the statement around a node; of a compound one, of its head."""
    while not isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement | cst.Module):
        node = parents[node]
    place = positions[node]
    if isinstance(node, cst.BaseCompoundStatement):
        body = positions[node.body]
        return place.start.line, max(place.start.line, body.start.line - 1)
    return place.start.line, place.end.line
