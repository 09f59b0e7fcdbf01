"""The code that a metric consists of, as a digest: a run is not continued with another metric.

Comments, docstrings and layout do not count, nor does the version of Python.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

from tasks.metrics import METRICS
from tasks.schema import TextCut

_PREFIX = "tasks.metrics."


def metric_sha256(name: str) -> str | None:
    """SHA-256 (hex) of the code of the metric `name`; None where its source cannot be read.

    It covers the module of the metric, the modules of this package that it uses, and how a
    prediction is cleaned (`TextCut`); other packages have versions.
    """
    module = inspect.getmodule(METRICS[name])
    if module is None:
        return None
    function = getattr(METRICS[name], "__qualname__", name)
    try:
        trees = [_tree(source) for source in sorted(_sources(module))]
    except (OSError, TypeError):
        return None
    text = "\n".join([function, *trees, _tree(inspect.getsource(TextCut))])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _sources(module: ModuleType) -> list[str]:
    """The source of `module` and of the metrics' modules that it imports from."""
    found: dict[str, str] = {}
    todo: list[ModuleType | None] = [module]
    while todo:
        one = todo.pop()
        if one is None or one.__name__ in found:
            continue
        found[one.__name__] = inspect.getsource(one)
        for node in ast.walk(ast.parse(found[one.__name__])):
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                todo += [sys.modules.get(str(n)) for n in names if str(n).startswith(_PREFIX)]
    return list(found.values())


@lru_cache(maxsize=64)
def _tree(source: str) -> str:
    """Source as text of its syntax tree, without docstrings and positions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            del body[0]
    return " ".join(_written(tree))


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _written(value: object) -> Iterator[str]:
    """`ast.dump` without fields that are empty, of which later versions of Python have more."""
    if isinstance(value, ast.AST):
        yield f"({type(value).__name__}"
        for name, content in ast.iter_fields(value):
            if content is not None and content != []:
                yield name
                yield from _written(content)
        yield ")"
    elif isinstance(value, list):
        yield "["
        for item in value:
            yield from _written(item)
        yield "]"
    else:
        yield repr(value)
