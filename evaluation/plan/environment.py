"""Where a run happened: working tree, package versions, hardware, environment variables.

Recorded for every start of a run and no part of its identity: where two starts differ, a run is
continued with a warning (`reports.run_folders.unlike_starts`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "ahn-bench",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "numpy",
    "triton",
    "jieba",
    "rouge",
    "rouge-score",
    "fuzzywuzzy",
    "rapidfuzz",
    "flash-linear-attention",
    "mamba-ssm",
    "causal-conv1d",
)

_VARIABLES = re.compile(
    r"AHN_BACKEND|PYTHONHASHSEED|(OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|DNNL|ONEDNN|ATEN|NVIDIA_TF32"
    r"|CUDA|CUBLAS|CUDNN|PYTORCH|TORCH|TORCHINDUCTOR|TRITON|FLA)_\w*"
)
"""Environment variables that our code or a numerical library reads."""
_NOT_RECORDED = re.compile("TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL|_(DIR|HOME|PATH)$")
"""Secrets, and places, which change no number."""


def now() -> str:
    """The time, ISO 8601 with time zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def git_state() -> dict[str, Any] | None:
    """Revision of the checkout that this file is tracked in; None for an installed package.

    ``dirty`` says whether tracked files were changed, ``diff_sha256`` then how.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    revision = _git("rev-parse", "HEAD")
    if revision is None:
        return None
    state: dict[str, Any] = {"revision": revision}
    state["dirty"] = bool(_git("status", "--porcelain", "-uno"))
    if state["dirty"]:
        difference = (_git("diff", "HEAD") or "").encode()
        state["diff_sha256"] = hashlib.sha256(difference).hexdigest()
    return state


def environment_variables() -> dict[str, str]:
    """The variables that can change a number or a time, as far as they are set."""
    return {
        name: value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        for name, value in sorted(os.environ.items())
        if _VARIABLES.fullmatch(name) and not _NOT_RECORDED.search(name)
    }


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number, where installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def hardware(device: str | None) -> dict[str, Any]:
    """The machine, and the accelerator if `device` is one; None: no variant computes on it."""
    import torch

    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": _memory_bytes(),
        "system": platform.platform(),
        "device": device,
    }
    if device is not None and device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        found["accelerator"] = properties.name
        found["accelerator_memory_bytes"] = properties.total_memory
        found["cuda"] = torch.version.cuda
    return found
