"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the suite runs in two processes


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
