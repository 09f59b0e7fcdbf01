"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
import random
import sys
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before anything imports torch: the suite runs in several processes and asks no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The same examples in every run, however slow the machine is. Others are drawn with
# `pytest --hypothesis-profile=search`.
hypothesis.settings.register_profile(
    "same-each-time",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile("same-each-time")


def pytest_collection_finish() -> None:
    """Keep imported modules out of garbage collection: a full pass over them takes 0.2 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_draws_each_time() -> None:
    """Seed the global generators before each test, so that no result depends on the order."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference vectors, conformance records and real rows.

    `AHN_BENCH_SHARED`, else `shared` beside the checkout; without it the test is skipped.
    """
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("AHN_BENCH_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"reference data not here: {folder} (set AHN_BENCH_SHARED)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokenised training data goes to a folder of the tests, not to the user's."""
    os.environ["AHN_BENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
