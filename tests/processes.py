"""Forks of the test process: a start of Python and torch would cost seconds of every test."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_HANGS_SECONDS = 150
"""Forks that take this long say where they stand."""


def _child(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    output: str,
    environment: Mapping[str, str],
) -> None:
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    faulthandler.dump_traceback_later(_HANGS_SECONDS, file=sys.stderr)
    if "torch" in sys.modules:
        # A fork has none of its parent's OpenMP threads and would wait for them.
        sys.modules["torch"].set_num_threads(1)
    function(*arguments)


def start_fork(
    function: Callable[..., Any],
    *arguments: Any,
    output: Path,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start `function(*arguments)` in a fork of this process.

    Args:
        output: file to which standard output and standard error are appended.
        environment: variables that are set in the fork.

    Returns:
        The process; its `exitcode` is that of `sys.exit`, or minus the signal that ended it.
    """
    given = (function, arguments, str(output), environment or {})
    process = multiprocessing.get_context("fork").Process(target=_child, args=given)
    process.start()
    return process
