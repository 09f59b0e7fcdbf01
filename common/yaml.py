"""YAML as a person means it: each key once, plain values, and no more than a settings file holds.

PyYAML alone keeps the last of two equal keys, reads 010 as 8 and 1:30 as 90, and follows aliases
that stand for billions of values. Here these are errors, which name the line.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from common.errors import InputError, shown
from common.files import Path, read_text

MOST_BYTES = 2**20
"""Longest file."""
MOST_NESTED = 32
"""Lists and mappings within one another."""
MOST_VALUES = 100_000
"""Values of a file when every alias is written out."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "seq", "map")}
_MERGE = _TAG + "merge"
# YAML 1.1 reads these as numbers to the base 8 and 60.
_ODD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")

_Base: type = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class _Loader(_Base):
    """PyYAML's, which leaves the text of `!function`, lm-evaluation-harness's tag, as it is."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def read(path: Path, tags: tuple[str, ...] = ()) -> Any:
    """The content of a YAML file, as of `parse`; InputError, too, where it cannot be read."""
    return parse(read_text(path, MOST_BYTES), shown(path), tags)


def parse(text: str, name: str, tags: tuple[str, ...] = ()) -> Any:
    """The value that `text` is.

    Args:
        text: one YAML document.
        name: of the file, for messages.
        tags: tags of scalars beyond YAML's own that are allowed; their text is the value.

    Returns:
        Mappings with texts as keys, lists, texts, numbers, booleans and None.

    Raises:
        InputError: it is not YAML, is nested too deeply or too long when written out, has a key
            twice, or a value that could be misread; with file and line.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise InputError(f"{name}: is longer than a YAML file may be ({MOST_BYTES:,} bytes)")
    try:
        _check_depth(text, name)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _Check(name, {*_PLAIN, *tags}).visit(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{name}{where}: is not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: is not valid YAML: {reason}") from None


def _check_depth(text: str, name: str) -> None:
    """Before anything recursive sees it: composing follows the nesting."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MOST_NESTED:
                line = event.start_mark.line + 1 if event.start_mark else "?"
                raise InputError(f"{name}:{line}: is nested more than {MOST_NESTED} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def key_lines(text: str) -> dict[str, int]:
    """The line, counted from 1, of each key of the mapping that a whole YAML text is."""
    node = yaml.compose(text, _Loader)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return {key.value: key.start_mark.line + 1 for key, _ in pairs}


class _Check:
    """Walks the nodes of a document, each once, before values are made of them."""

    def __init__(self, name: str, tags: set[str]) -> None:
        self._name = name
        self._tags = tags
        self._written_out: dict[int, tuple[int, int]] = {}  # values and depth, by node
        self._above: set[int] = set()

    def visit(self, node: yaml.Node) -> tuple[int, int]:
        """Values and depth of a node with its aliases written out."""
        known = self._written_out.get(id(node))
        if known is not None:
            return known
        if id(node) in self._above:
            raise self._error(node, "holds an alias of itself")
        self._above.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
        elif node.tag not in self._tags:
            raise self._error(node, f"the tag {node.tag} is not known here")
        below = [self.visit(child) for child in self._children(node)]
        values = 1 + sum(count for count, _ in below)
        depth = 1 + max((deep for _, deep in below), default=0)
        if values > MOST_VALUES:
            raise self._error(node, f"stands for more than {MOST_VALUES:,} values")
        if depth > MOST_NESTED + 1:  # the innermost scalar counts
            raise self._error(node, f"is nested more than {MOST_NESTED} deep")
        self._above.discard(id(node))
        self._written_out[id(node)] = values, depth
        return values, depth

    def _children(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            return [part for pair in node.value for part in pair]
        return []

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a key must be a name")
            if key.tag not in (_MERGE, _TAG + "str"):
                kind = key.tag.removeprefix(_TAG)
                raise self._error(
                    key, f"the key {key.value} would be read as a value ({kind}): quote it"
                )
            if (key.tag, key.value) in seen:
                raise self._error(key, f"key {key.value!r} is given twice")
            seen.add((key.tag, key.value))

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        text = node.value
        if node.tag not in self._tags and node.tag != _MERGE:
            kind = node.tag.removeprefix(_TAG)
            raise self._error(node, f"{text} would be read as {kind}, which is not known: quote it")
        number = node.tag in (_TAG + "int", _TAG + "float")
        if number and _ODD_NUMBER.fullmatch(text):
            raise self._error(
                node, f"{text} would be read to the base 8 or 60: quote it, or write the number"
            )
        if node.tag == _TAG + "float" and not math.isfinite(_float(text)):
            raise self._error(node, f"{text} is no finite number")

    def _error(self, node: yaml.Node, message: str) -> InputError:
        return InputError(f"{self._name}:{node.start_mark.line + 1}: {message}")


def _float(text: str) -> float:
    plain = text.replace("_", "").lower()
    return math.nan if plain.lstrip("+-") in (".nan", ".inf") else float(plain)
