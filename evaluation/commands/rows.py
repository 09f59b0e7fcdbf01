"""`run_eval rows`: write generated rows as files, in the format of the benchmark's authors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import InputError, Problems, shown
from common.progress import ProgressBar
from common.suggestions import did_you_mean
from common.writing import check_folder_writable, write_whole
from evaluation.commands.options import Rows
from evaluation.commands.terminal import console
from reports.targets import check_no_run_file

RULER = "ruler"
_FILES = ("essay", "words", "squad", "hotpotqa")


def write_rows(asked: Rows) -> dict[Path, int]:
    """Write `<output>/<task>.jsonl` for each task.

    Returns:
        Rows by file.

    Raises:
        InputError: a benchmark or task whose rows are not generated, a length that is too short, a
            tokenizer that is needed and not given, or files that are there already, unless
            `force`. Nothing is written then.
    """
    makers = _ruler(asked) if asked.benchmark == RULER else _of_benchmark(asked)
    places = {task: asked.output / f"{task}.jsonl" for task in makers}
    problems = Problems()
    with problems.collecting("--output: "):
        check_folder_writable(asked.output)
    for place in places.values():
        if place.exists() and not asked.force:
            problems.add(f"--output: {shown(place)} is there already (--force replaces it)")
        with problems.collecting():
            check_no_run_file(place)
    problems.check()
    contents: dict[str, list[str]] = {}
    with ProgressBar(console(stderr=True), "generating rows") as bar:
        for number, (task, make) in enumerate(makers.items()):
            contents[task] = []
            for row in make():
                contents[task].append(row)
                bar.update(number, len(makers), f"{task}: {len(contents[task])} rows")
    asked.output.mkdir(parents=True, exist_ok=True)
    for task, lines in contents.items():
        write_whole(places[task], "".join(lines))
    return {places[task]: len(lines) for task, lines in contents.items()}


def _ruler(asked: Rows) -> dict[str, Callable[[], Iterator[str]]]:
    """By task, its lines as the authors write them."""
    from tasks.registry import expand
    from tasks.ruler import rows as ruler

    problems = Problems()
    tasks: list[str] = []
    with problems.collecting("--tasks: "):
        names = asked.tasks or list(ruler.WITHOUT_FILES)
        tasks = list(dict.fromkeys(task.dataset for task in expand(RULER, names, None)))
        if lengths := [name for name in asked.tasks if _has_length(name)]:
            raise InputError(f"{lengths[0]} says a length; give --length, for one at a time")
    files = ruler.Files(asked.essay, asked.words, asked.squad, asked.hotpotqa)
    if asked.essay is None and (essays := [name for name in tasks if name in ruler.ESSAY_TASKS]):
        problems.add(
            f"--essay: {', '.join(essays)} needs the authors' essays, or a text of your own"
        )
    read = {flag for name in tasks for flag in files.of(name)}
    for flag in _FILES:
        if tasks and getattr(asked, flag) is not None and flag not in read:
            problems.add(f"--{flag}: none of these tasks reads it")
    if asked.tokenizer is None:
        problems.add("--tokenizer: needed; a row's length is counted in its tokens")
    if asked.length is None:
        problems.add("--length: needed; RULER has no length of its own")
    problems.check()
    assert asked.length is not None and asked.tokenizer is not None
    count, length = _counter(asked.tokenizer), asked.length
    limit = ruler.ROWS if asked.limit is None else asked.limit
    seed, reserved = ruler.SEED if asked.seed is None else asked.seed, asked.template_tokens

    def lines(task: str) -> Iterator[str]:
        try:
            for row in ruler.rows(task, length, count, limit, seed, files, reserved):
                yield json.dumps(row) + "\n"
        except InputError as error:
            raise error.prefixed(f"{task}: ") from None

    return {task: partial(lines, task) for task in tasks}


def _has_length(name: str) -> bool:
    """Whether a name is one of a task at some length."""
    from tasks.registry import known_task

    task = known_task(RULER, name)
    return task is not None and task.length is not None


def _counter(place: str) -> Callable[[str], int]:
    """Tokens of a text, special ones not added; a tokenizer that cannot write the rows is told."""
    from ahn.checkpoints.tokenizer import load_tokenizer
    from tasks.ruler.synthetic import unwritten

    try:
        tokenizer = load_tokenizer(place)
    except InputError as error:
        raise error.prefixed("--tokenizer: ") from None

    def read_back(text: str) -> str:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    if (left := unwritten(read_back)) is not None:
        console(stderr=True).print(
            f"warning: --tokenizer: cannot write RULER's texts: {left}; the rows have the length "
            "asked for, but its model cannot read them (run_eval ruler refuses it)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    # Rows that are too long are drawn in the search, too: no warning of each.
    return lambda text: len(tokenizer.tokenize(text, verbose=False))


def _of_benchmark(asked: Rows) -> dict[str, Callable[[], Iterator[str]]]:
    """By task, the rows of a benchmark whose generator is its own."""
    from tasks.registry import SYNTHETIC, benchmark_definition, benchmark_names, expand
    from tasks.sources import load_examples

    problems = Problems()
    for flag in ("tokenizer", *_FILES):
        if getattr(asked, flag) is not None:
            problems.add(f"--{flag}: of ruler's rows only")
    if asked.template_tokens:
        problems.add("--template-tokens: of ruler's rows only")
    if asked.benchmark not in benchmark_names():
        known = [RULER, *(name for name in benchmark_names() if _generates(name))]
        hint = did_you_mean(asked.benchmark, known)
        problems.add(
            f"unknown benchmark {shown(repr(asked.benchmark))}{hint} (with generated rows: "
            f"{', '.join(known)})"
        )
    elif not _generates(asked.benchmark):
        problems.add(f"rows of {asked.benchmark} are not generated; --data names them in a run")
    problems.check()
    definition = benchmark_definition(asked.benchmark)
    tasks = expand(asked.benchmark, asked.tasks, SYNTHETIC)
    if not definition.generated:
        foreign = [task.name for task in tasks if task.name not in definition.synthetic]
        if foreign:
            raise InputError(
                f"--tasks: {', '.join(foreign)} cannot be generated (only "
                f"{', '.join(definition.synthetic)} can)"
            )

    def lines(task: Any) -> Iterator[str]:
        seed = 0 if asked.seed is None else asked.seed
        for example in load_examples(task, SYNTHETIC, asked.limit, seed, asked.length).examples:
            yield json.dumps(dict(example.row), ensure_ascii=False) + "\n"

    return {task.name: partial(lines, task) for task in tasks}


def _generates(benchmark: str) -> bool:
    from tasks.registry import benchmark_definition

    definition = benchmark_definition(benchmark)
    return definition.generated or bool(definition.synthetic)
