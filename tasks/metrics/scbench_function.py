"""SCBench: whether the function that was asked for is repeated (RepoQA).

Source: microsoft/MInference fb56c91, scbench/repo_qa_utils.py (after evalplus/repoqa) and
scbench/compute_scores.py, which takes the share at the threshold 0.8.

Of an answer the first function of its first fenced block with one counts, as tree-sitter parses it;
without one the first block; without a block all of it. Its BLEU with every function asked for of
the same repository is taken, and the best one must be the right one and reach the threshold.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from typing import Any

from common.errors import InputError
from tasks.metrics.scbench import key
from tasks.schema import Example, scored_example

THRESHOLD = 0.8
# language: the package with its grammar, the function there, and the query for its functions
_GRAMMARS = {
    "python": ("tree_sitter_python", "language", "(function_definition name: (_)) @fdef"),
    "java": ("tree_sitter_java", "language", "(method_declaration name: (_)) @fdef"),
    "typescript": (
        "tree_sitter_typescript",
        "language_typescript",
        "(function_declaration name: (_)) @fdef",
    ),
    "rust": ("tree_sitter_rust", "language", "(function_item name: (_)) @fdef"),
    "cpp": (
        "tree_sitter_cpp",
        "language",
        "(function_definition declarator: (function_declarator declarator: (identifier))) @fdef",
    ),
    "go": ("tree_sitter_go", "language", "(function_declaration name: (_)) @fdef"),
}
LANGUAGES = tuple(_GRAMMARS)
_BLOCK = re.compile(r"^```(?:\w+)?\s*\n(.*?)(?=^```)```", re.DOTALL | re.MULTILINE)
_BLANK = re.compile(r"\s+")


def check_available() -> None:
    """InputError, with the remedy, where the packages that parse functions are not installed."""
    for language in LANGUAGES:
        _parser(language)


@lru_cache(maxsize=len(_GRAMMARS))
def _parser(language: str) -> tuple[Any, Any]:
    """A parser, and the query for functions."""
    package, function, query = _GRAMMARS[language]
    try:
        tree_sitter, grammar = import_module("tree_sitter"), import_module(package)
    except ImportError as error:
        raise InputError(
            f"scoring SCBench's functions needs tree-sitter and six grammars ({error}): "
            'pip install "ahn-bench[scbench]", or leave scbench_repoqa and scbench_repoqa_and_kv '
            "out"
        ) from error
    made = tree_sitter.Language(getattr(grammar, function)())
    return tree_sitter.Parser(made), tree_sitter.QueryCursor(tree_sitter.Query(made, query))


def said_function(prediction: str, language: str) -> str:
    """The function that an answer gives, see above."""
    text = prediction.strip()
    blocks: list[str] = _BLOCK.findall(text)
    for block in blocks:
        if (found := _first_function(block, language)) is not None:
            return found
    return blocks[0] if blocks else text


def _first_function(block: str, language: str) -> str | None:
    parser, functions = _parser(language)
    content = block.encode("utf-8", "surrogatepass")
    nodes = functions.captures(parser.parse(content).root_node).get("fdef", [])
    if not nodes:
        return None
    node = min(nodes, key=lambda node: (node.start_byte, -node.end_byte))
    try:
        return content[node.start_byte : node.end_byte].decode()
    except UnicodeDecodeError:  # half a surrogate pair: the authors' code goes on, too
        return None


def similarity(said: str, wanted: str) -> float:
    """BLEU of two functions over words, smoothed by NLTK's method 4."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    words, reference = _BLANK.split(said.strip()), _BLANK.split(wanted.strip())
    found = sentence_bleu([reference], words, smoothing_function=SmoothingFunction().method4)
    return float(found)


def function(prediction: str, example: Example) -> float:
    """1 if the answer is most like the right function of the repository's, by 0.8 or more, else 0.

    The label holds `name`, `lang` and `needles`: name and text of all functions asked for of the
    repository, in the order of the file. Of equally like ones the first counts.
    """
    label = example.label
    if not isinstance(label, dict):
        return 0.0
    said = said_function(prediction, label["lang"])
    best_name, best = None, 0.0
    for needle in label["needles"]:
        found = similarity(said, needle["needle"])
        if found > best:
            best_name, best = needle["name"], found
    return float(best_name == label["name"] and best >= THRESHOLD)


def function_or_key(prediction: str, example: Example) -> float:
    """Functions as `function`, values of keys as `key`: as the label's `task` says."""
    label = example.label
    if isinstance(label, dict) and label.get("task") == "scbench_kv":
        return key(prediction, scored_example([], label=label.get("gold")))
    return function(prediction, example)
