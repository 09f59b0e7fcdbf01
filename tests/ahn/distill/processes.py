"""Trainings in forks of the test process."""

from __future__ import annotations

import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState

from ahn.cli import main
from ahn.distill.distillation import DistillTrainer
from ahn.distill.recipe import Recipe
from ahn.distill.run import train
from tests.processes import start_fork

_LIMIT_SECONDS = 240
"""A busy machine takes its time; only a fork that hangs takes this long."""
#: a fork cannot use a GPU that its parent has used
ON_CPU = {"use_cpu": True, "dataloader_pin_memory": False}


@dataclass(frozen=True)
class Ended:
    """How a fork ended: exit code, or minus the signal that killed it; what it printed."""

    code: int
    output: str


def _forgetting_the_parent(function: Callable[..., Any], *arguments: Any) -> None:
    """Run the function as if there had been no training in the parent."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    function(*arguments)


def forked(tmp_path: Path, function: Callable[..., Any], *arguments: Any, ranks: int = 1) -> Ended:
    """Run the function in a fork, or in several that find each other as `torchrun`'s do.

    A fork of a process with threads may inherit a lock that nobody will open. One that hangs is
    ended and started again, once, and a warning shows where it stood.
    """
    ended = _forked(tmp_path, function, *arguments, ranks=ranks)
    if ended is None:
        text = (tmp_path / f"output-{len(list(tmp_path.glob('output-*'))) - 1}").read_text()
        warnings.warn(f"a fork hung and was started again:\n{text[-3000:]}", stacklevel=2)
        ended = _forked(tmp_path, function, *arguments, ranks=ranks)
    assert ended is not None, "a fork hung twice"
    return ended


def _forked(
    tmp_path: Path, function: Callable[..., Any], *arguments: Any, ranks: int
) -> Ended | None:
    """How the forks ended; None: one was still there after `_LIMIT_SECONDS`."""
    out = tmp_path / f"output-{len(list(tmp_path.glob('output-*')))}"
    out.touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        children.append(
            start_fork(
                _forgetting_the_parent,
                function,
                *arguments,
                output=out,
                environment=environment if ranks > 1 else {},
            )
        )
    hung = False
    for child in children:
        child.join(_LIMIT_SECONDS)
        if child.is_alive():
            hung = True
            child.kill()
            child.join()
    if hung:
        return None
    codes = [child.exitcode or 0 for child in children]
    text = out.read_text(errors="replace")
    return Ended(next((code for code in codes if code), 0), text)


def command(tmp_path: Path, *words: str, before: Callable[[], Any] | None = None) -> Ended:
    """`ahn WORDS` in a fork; `before` runs there first."""

    def run() -> None:
        if before is not None:
            before()
        sys.argv = ["ahn", *words]
        main()

    return forked(tmp_path, run)


def in_processes(tmp_path: Path, count: int, options: dict[str, Any]) -> None:
    """Train a recipe in so many processes over gloo."""
    ended = forked(tmp_path, lambda: train(Recipe(**options)), ranks=count)
    assert ended.code == 0, ended.output[-3000:]


def killed(options: Recipe, kind: str, number: str) -> None:
    """Train, and die in the forward pass of this number, or while this step is saved."""
    name = "compute_loss" if kind == "pass" else "_save_optimizer_and_scheduler"
    original, calls = getattr(DistillTrainer, name), []

    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if int(number) == (len(calls) if kind == "pass" else self.state.global_step):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments, **named)

    setattr(DistillTrainer, name, wrapped)
    train(options)
