"""What `make peers` fetches, and how it judges; without network and without transformers' tests."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.peers import source
from tests.peers.expected import EXPECTED, KINDS, Expected, listed, verdict

FAMILIES = ("Qwen2", "Qwen3", "Llama", "Mistral")
SETTINGS = ("Full", "Window", "GatedDeltaNet", "DeltaNet", "Mamba2")
REFUSED = Expected("test_a|test_b.*", "refused", "cannot be", "a reason", classes="TestQwen2.*")


def test_a_listed_test_must_fail_as_it_is_listed() -> None:
    assert verdict(REFUSED, "failed", ["ValueError: it cannot be"]) is None
    assert verdict(REFUSED, "failed", ["ValueError: it cannot be", "KeyError: cannot be"]) is None
    for outcome in ("passed", "skipped"):
        assert f"but {outcome}: take it off the list" in str(verdict(REFUSED, outcome, []))
    other = verdict(REFUSED, "failed", ["ValueError: it cannot be", "AssertionError: 1 != 2"])
    assert other == "listed as refused with 'cannot be', but it raised AssertionError: 1 != 2"
    assert "but it raised nothing" in str(verdict(REFUSED, "failed", []))


def test_names_are_matched_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.peers.expected.EXPECTED", (REFUSED,))
    assert listed("test_a", "TestQwen2Full") is listed("test_bcd", "TestQwen2Full") is REFUSED
    assert listed("test_ab", "TestQwen2Full") is None
    assert listed("test_a", "TestQwen3Full") is None


def test_every_entry_has_a_reason_and_can_be_matched() -> None:
    owners = [f"Test{family}{name}" for family in FAMILIES for name in SETTINGS]
    for entry in EXPECTED:
        assert entry.kind in KINDS and entry.reason.strip() and entry.error, entry
        for pattern in (entry.tests, entry.error, entry.classes):
            re.compile(pattern)
        assert any(re.fullmatch(entry.classes, owner) for owner in owners), entry


def archive_of(folder: Path, files: dict[str, str]) -> Path:
    """A source distribution with these files of its `tests`."""
    root = folder / "transformers-9.9.9"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    path = folder / "transformers-9.9.9.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(root, root.name)
    return path


MIXINS = {
    "tests/test_modeling_common.py": "from tests.generation.test_utils import x\n",
    "tests/test_training_mixin.py": "",
    "tests/data.bin": "",
    "src/transformers/test_inside.py": "",
}


def test_the_tests_become_a_package_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "out" / source.PACKAGE
    source.unpack(archive_of(tmp_path, MIXINS), folder)
    assert sorted(file.name for file in folder.glob("*.*")) == [
        "__init__.py", "test_modeling_common.py", "test_training_mixin.py",
    ]  # fmt: skip
    text = (folder / "test_modeling_common.py").read_text()
    assert text == "from transformers_tests.generation.test_utils import x\n"
    assert "class GenerationTesterMixin:" in (folder / "generation/test_utils.py").read_text()
    less = {name: text for name, text in MIXINS.items() if "training" not in name}
    with pytest.raises(source.Unavailable, match="has no test_training_mixin.py"):
        source.unpack(archive_of(tmp_path / "less", less), tmp_path / "other")


def test_a_checkout_adds_the_generation_tests(tmp_path: Path) -> None:
    folder = tmp_path / "9.9.9"
    source.unpack(archive_of(tmp_path, MIXINS), folder / source.PACKAGE)
    checkout = tmp_path / "checkout"
    with pytest.raises(source.Unavailable, match="there is no tests/generation/test_utils.py"):
        source.with_generation(folder, checkout)
    file = checkout / "tests" / "generation" / "test_utils.py"
    file.parent.mkdir(parents=True)
    file.write_text("from tests.exporters.test_export import y\nclass GenerationTesterMixin: ...\n")
    made = source.with_generation(folder, checkout)
    text = (made / source.PACKAGE / "generation" / "test_utils.py").read_text()
    assert text.startswith("from transformers_tests.exporters") and "Mixin: ..." in text
    stand_in = (folder / source.PACKAGE / "generation" / "test_utils.py").read_text()
    assert "    pass" in stand_in, "what was fetched stays as it was"


def test_it_is_fetched_once_and_an_index_that_is_away_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        target = Path(command[command.index("--dest") + 1])
        if len(calls) == 1:
            text = "WARNING: Retrying\nERROR: No matching distribution found\n"
            return subprocess.CompletedProcess(command, 1, "", text)
        archive_of(target, MIXINS)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(source.subprocess, "run", pip)
    with pytest.raises(source.Unavailable, match=r"\(ERROR: No matching distribution found\)"):
        source.fetch("9.9.9", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    for _ in range(2):
        assert source.fetch("9.9.9", tmp_path / "cache") == tmp_path / "cache" / "9.9.9"
    assert len(calls) == 2 and calls[1][-1] == "transformers==9.9.9"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["9.9.9"]


def test_the_version_is_the_pinned_one(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# x\ntransformers-more==1\ntransformers==5.1.2\n")
    assert source.pinned_version(tmp_path / "constraints.txt") == "5.1.2"
    assert re.fullmatch(r"\d+\.\d+\.\d+", source.pinned_version())


def test_another_installed_version_is_not_tested_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.peers.source.pinned_version", lambda: "0.0.1")
    with pytest.raises(source.Unavailable, match=r"is installed, and constraints.txt pins 0\.0\.1"):
        source.load()
