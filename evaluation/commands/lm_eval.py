"""`run_eval lm-eval`: lm-evaluation-harness with our model and our task files registered."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError, shown
from common.files import kind_of
from common.suggestions import did_you_mean
from tasks.definitions import LM_EVAL_PREFIX as PREFIX

VERSION = "0.4.13"
INSTALL = f"pip install 'ahn-bench[lm-eval]' (lm-eval {VERSION})"

_ROWS = """with lm-eval, --data FOLDER is --metadata '{"data": "FOLDER"}'"""


def _as_input_error(error: ValueError) -> ValueError:
    """What the user can mend, in one line per problem; any other error as it is."""
    if isinstance(error, InputError):
        about_data = any("--data" in line for line in error.problems)
        return InputError(*error.problems, _ROWS) if about_data else error
    if str(error).startswith("Tasks not found: "):  # lm_eval.config.evaluate_config
        return InputError(*_unknown_tasks(str(error).partition(": ")[2].split(", ")))
    return error


def _unknown_tasks(names: Sequence[str]) -> list[str]:
    """A message for each name that nobody has, with ours that is nearest to it."""
    known = our_names()
    problems = []
    for name in names:
        close = f"; did you mean {PREFIX + name!r}?" if PREFIX + name in known else ""
        close = close or did_you_mean(name, known, cutoff=0.5)
        problems.append(f"--tasks: task not found: {name}{close}")
    ours = f"`run_eval lm-eval ls tasks` lists all; ours begin with {PREFIX}"
    return [*problems[:-1], f"{problems[-1]} ({ours})"]


def our_names() -> list[str]:
    """All names in lm-eval of the tasks and groups of this package."""
    from tasks.registry import benchmark_names, benchmark_tasks, group_names

    names: list[str] = []
    for benchmark in benchmark_names():
        tasks = benchmark_tasks(benchmark)
        implied = {task.dataset for task in tasks}
        names += [task.lm_eval_name for task in tasks if task.lm_eval_name]
        names += [PREFIX + group for group in group_names(benchmark) if group not in implied]
    return names


def task_folder() -> Path:
    """The folder of our task files, what lm-eval calls an include path."""
    import tasks

    return Path(str(tasks.__file__)).parent


def _task_files_of_others(given: Sequence[str], data: object, folder: Path) -> list[str]:
    """Write task files of benchmarks outside this package into `folder`, as lm-eval needs them.

    Their own files may leave out what lm-eval alone reads. A folder that defines a benchmark may be
    an include path or the `data` of `--metadata`; it is made known, and its own files are not read
    by lm-eval, which would run the functions that they name.

    Returns:
        The include paths that are left.
    """
    from tasks.registry import (
        benchmark_names,
        benchmark_tasks,
        is_benchmark_folder,
        is_own,
        register_benchmark,
    )

    places = [*given, *([data] if isinstance(data, str) else [])]
    for place in filter(is_benchmark_folder, places):
        register_benchmark(Path(place))
    common = {"include": str(task_folder() / "_lm_eval.yaml"), "metadata": {"version": 1.0}}
    for name in benchmark_names():
        for task in () if is_own(name) else benchmark_tasks(name):
            rules = task.protocols["official"]
            asked = {"benchmark": name, "name": task.name}
            generation = {"max_gen_toks": rules.max_new_tokens, "do_sample": False}
            content = common | {
                "task": task.lm_eval_name,
                "dataset_kwargs": asked,
                "generation_kwargs": generation | {"until": list(rules.stop)},
            }
            path = folder / f"{task.lm_eval_name}.yaml"
            path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return [str(folder), *(path for path in given if not is_benchmark_folder(path))]


def run(arguments: Sequence[str]) -> int:
    """Run lm-eval with `arguments`, those of its own command line, and return the exit code.

    The model `ahn` and the tasks of this package are registered first; `--include_path` of the
    user's adds to them (several folders are joined by colons). Raises `InputError` where lm-eval
    is not installed, and for what the model or the tasks refuse.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from lm_eval._cli import HarnessCLI
        from lm_eval.utils import setup_logging
    except ImportError:
        raise InputError(f"lm-eval is not installed; {INSTALL}") from None

    from evaluation.lm_eval.plugin import NO_ANSWER_CACHE  # and registers the model

    before = sys.argv
    sys.argv = ["run_eval lm-eval", *arguments]
    written = tempfile.mkdtemp(prefix="ahn-bench-tasks-")
    try:
        setup_logging()
        harness = HarnessCLI()
        parsed = harness.parse_args()
        if getattr(parsed, "use_cache", None) and getattr(parsed, "model", None) == "ahn":
            raise InputError(NO_ANSWER_CACHE)  # before there is a file for it
        if hasattr(parsed, "include_path"):
            given = parsed.include_path.split(os.pathsep) if parsed.include_path else []
            missing = [path for path in given if kind_of(path) != "a folder"]
            if missing:
                raise InputError(
                    *(f"--include_path: {shown(path)} is not a folder" for path in missing)
                )
            metadata = getattr(parsed, "metadata", None)
            data = metadata.get("data") if isinstance(metadata, dict) else None
            others = _task_files_of_others(given, data, Path(written))
            parsed.include_path = [str(task_folder()), *others]
        harness.execute(parsed)
    except ValueError as error:
        raise _as_input_error(error) from error
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
        shutil.rmtree(written, ignore_errors=True)
    return 0
