"""`run_eval lm-eval`: lm-evaluation-harness with our model and our task files registered."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.problems import InputError, input_error_types, messages

VERSION = "0.4.13"
INSTALL = f"pip install 'ahn-bench[lm-eval]' (lm-eval {VERSION})"

_ROWS = """with lm-eval, --data FOLDER is --metadata '{"data": "FOLDER"}'"""


def _as_input_error(error: ValueError) -> ValueError:
    """What the user can mend, in one line per problem; any other error as it is."""
    if isinstance(error, input_error_types()):
        told = messages(error)
        return InputError([*told, _ROWS] if any("--data" in line for line in told) else told)
    if str(error).startswith("Tasks not found: "):  # lm_eval.config.evaluate_config
        listing = "`run_eval lm-eval ls tasks` lists all, ours begin with ahnbench_ or lveval"
        return InputError(f"--tasks: {str(error)[0].lower()}{str(error)[1:]} ({listing})")
    return error


def task_folder() -> Path:
    """The folder of our task files, what lm-eval calls an include path."""
    import tasks

    return Path(str(tasks.__file__)).parent


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

    import evaluation.lm_eval_plugin  # noqa: F401 - registers the model

    before = sys.argv
    sys.argv = ["run_eval lm-eval", *arguments]
    try:
        setup_logging()
        harness = HarnessCLI()
        parsed = harness.parse_args()
        if hasattr(parsed, "include_path"):
            given = parsed.include_path.split(os.pathsep) if parsed.include_path else []
            missing = [path for path in given if not Path(path).is_dir()]
            if missing:
                raise InputError([f"--include_path: {path} is not a folder" for path in missing])
            parsed.include_path = [str(task_folder()), *given]
        harness.execute(parsed)
    except ValueError as error:
        raise _as_input_error(error) from error
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
    return 0
