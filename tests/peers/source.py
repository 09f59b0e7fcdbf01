"""Fetches transformers' own test mixins, of the version that is pinned in constraints.txt.

They come from the source distribution of the package index, into `.cache/peers/VERSION` (ignored by
git), and are used from there afterwards, without network:

    python -m tests.peers.source

That distribution holds `tests/test_*.py` alone. `GenerationTesterMixin` is in `tests/generation`,
which only transformers' repository has: `PEERS_CHECKOUT=/path/to/transformers` adds it.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: what their package is called here: `tests` is ours
PACKAGE = "transformers_tests"
#: what the common mixins import and the source distribution has not: its tests are not run
_ABSENT = {
    "generation/test_utils.py": ("GenerationTesterMixin",),
    "exporters/test_export.py": ("ExportTesterMixin", "ExportGenerateTesterMixin"),
}
_WANTED = ("test_modeling_common.py", "test_training_mixin.py")


class Unavailable(Exception):
    """Why the mixins cannot be had."""


def pinned_version(constraints: Path = ROOT / "constraints.txt") -> str:
    """The version of transformers that constraints.txt pins."""
    found = re.search(r"^transformers==(\S+)$", constraints.read_text("utf-8"), re.MULTILINE)
    assert found is not None, f"{constraints}: transformers is not pinned"
    return found[1]


def fetch(version: str, cache: Path = ROOT / ".cache" / "peers") -> Path:
    """The folder of transformers' tests of this version; downloaded the first time.

    Raises:
        Unavailable: the index does not give it.
    """
    folder = cache / version
    if (folder / PACKAGE).is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:
        place = Path(made)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--no-build-isolation", "--dest", made]
        done = subprocess.run(
            [*command, f"transformers=={version}"], capture_output=True, text=True, check=False
        )
        archives = list(place.glob("*.tar.gz"))
        if done.returncode or not archives:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = lines[-1] if lines else f"pip ended with {done.returncode}"
            raise Unavailable(
                f"the package index did not give transformers {version}'s source distribution "
                f"({reason})"
            )
        unpack(archives[0], place / "new" / PACKAGE)
        (place / "new").rename(folder)
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Write the Python files of an archive's `tests` to `folder`, as a package of its own.

    Raises:
        Unavailable: the archive has not the mixins.
    """
    folder.mkdir(parents=True)
    with tarfile.open(archive) as opened:
        for member in opened:
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                file = opened.extractfile(member)
                assert file is not None
                (folder / parts[2]).write_text(_own_imports(file.read().decode()))
    absent = [name for name in _WANTED if not (folder / name).is_file()]
    if absent:
        raise Unavailable(f"{archive.name} has no {' and no '.join(absent)} in its tests")
    (folder / "__init__.py").touch()
    for name, classes in _ABSENT.items():
        _stand_in(folder / name, classes)


def _own_imports(text: str) -> str:
    return re.sub(r"^from tests\.", f"from {PACKAGE}.", text, flags=re.MULTILINE)


def _stand_in(path: Path, classes: tuple[str, ...]) -> None:
    """A module with empty mixins in the place of one that is not there."""
    path.parent.mkdir(exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text("".join(f"class {name}:\n    pass\n\n\n" for name in classes))


def with_generation(folder: Path, checkout: Path) -> Path:
    """A copy of fetched tests with `tests/generation` of a checkout of transformers.

    Raises:
        Unavailable: it is no such checkout.
    """
    name = "generation/test_utils.py"
    file = checkout / "tests" / name
    if not file.is_file():
        raise Unavailable(f"PEERS_CHECKOUT={checkout}: there is no tests/{name}")
    copy = folder.with_name(f"{folder.name}-with-generation")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / PACKAGE / name).write_text(_own_imports(file.read_text("utf-8")))
    return copy


def load() -> tuple[dict[str, Any], list[str]]:
    """The mixins by name, and what is to be said of those that are not there.

    Raises:
        Unavailable: they cannot be fetched, or not be used here.
    """
    import transformers

    version = pinned_version()
    if transformers.__version__ != version:
        raise Unavailable(
            f"transformers {transformers.__version__} is installed, and constraints.txt pins "
            f"{version}, whose tests would be run"
        )
    folder, notes = fetch(version), []
    if checkout := os.environ.get("PEERS_CHECKOUT"):
        folder = with_generation(folder, Path(checkout))
    else:
        notes.append(
            f"GenerationTesterMixin was not run: the source distribution of transformers {version} "
            "holds tests/test_*.py alone; PEERS_CHECKOUT=/path/to/transformers (a checkout of "
            f"v{version}) adds it"
        )
    sys.path.insert(0, str(folder))
    try:
        common: ModuleType = importlib.import_module(f"{PACKAGE}.test_modeling_common")
        training = importlib.import_module(f"{PACKAGE}.test_training_mixin")
        generation = importlib.import_module(f"{PACKAGE}.generation.test_utils")
    except ModuleNotFoundError as error:
        raise Unavailable(f"transformers' tests need the package {error.name!r}") from error
    finally:
        sys.path.remove(str(folder))
    found = {
        "ModelTesterMixin": common.ModelTesterMixin,
        "TrainingTesterMixin": training.TrainingTesterMixin,
        "GenerationTesterMixin": generation.GenerationTesterMixin,
    }
    return found, notes


if __name__ == "__main__":
    try:
        print(f"transformers' tests: {fetch(pinned_version())}")
    except Unavailable as reason:
        print(f"peers: {reason}", file=sys.stderr)
