"""The code that a metric consists of, as a digest: a run is not continued with another metric.

Comments, docstrings and layout do not count, nor does the version of Python.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
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

    It covers the module of the metric, the modules that it imports from its own package and from
    `tasks.metrics`, and how a prediction is cleaned (`TextCut`); other packages have versions.
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
    package = module.__name__.partition(".")[0]
    own = (_PREFIX,) if package == "tasks" else (_PREFIX, f"{package}.")
    while todo:
        one = todo.pop()
        if one is None or one.__name__ in found:
            continue
        found[one.__name__] = inspect.getsource(one)
        for name in _imported(one, found[one.__name__]):
            if name.startswith(own):
                todo.append(sys.modules.get(name))
    return list(found.values())


def _imported(module: ModuleType, source: str) -> Iterator[str]:
    """Names that the imports of a module may mean: of modules, and of what is in them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            name = importlib.util.resolve_name(base, module.__package__ or None)
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


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
