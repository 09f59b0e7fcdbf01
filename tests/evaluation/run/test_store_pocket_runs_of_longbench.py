"""Runs from before the pocket suite was a benchmark of its own, which filed it under LongBench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reports.records import content_sha256
from reports.run_folders import read_run

TASKS = ("pocket_qa@1", "pocket_qa@4_1024")


def as_before(folder: Path) -> None:
    """Rewrite a run folder as the earlier code wrote it, digests included."""
    for path in folder.glob("*/*.jsonl"):
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert record["benchmark"] == "pocket"
            record["benchmark"] = "longbench"
            del record["record_sha256"]
            record["record_sha256"] = content_sha256(record)
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        path.write_text("".join(lines), encoding="utf-8")
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for name, task in info["tasks"].items():
        task |= {"benchmark": "longbench", "dataset": name}
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")


def benchmarks_on_disk(folder: Path) -> list[str]:
    lines = [line for path in sorted(folder.glob("*/*.jsonl")) for line in path.open("rb")]
    return [json.loads(line)["benchmark"] for line in lines]


@pytest.mark.parametrize("command", ["pocket", "longbench"])
def test_they_are_read_checked_reported_exported_and_continued(
    run_eval: Any, tmp_path: Path, command: str
) -> None:
    folder = tmp_path / "run"
    asked = [
        command, "--model", "pocket", "--data", "pocket", "--tasks", ",".join(TASKS),
        "--variant", "full", "--window", 128, "--sinks", 4, "--device", "cpu", "--output", folder,
        "--dtype", "float32",
    ]  # fmt: skip
    if command == "pocket":  # its preset names weights and lengths
        (tmp_path / "none.yaml").write_text("data: pocket\n")
        asked += ["--config", tmp_path / "none.yaml"]
    assert run_eval(*asked, "--limit", 2).exit_code == 0
    as_before(folder)
    assert {record.benchmark for record in read_run(folder).records} == {"pocket"}
    checked = run_eval("check", folder)
    assert checked.exit_code == 0 and "nothing is wrong" in checked.stdout
    for name in ("pocket", "longbench"):
        exported = run_eval("export", folder, "--format", name, "--output", tmp_path / name)
        assert exported.exit_code == 0 and exported.stdout.count(".jsonl") == 2
    continued = run_eval(*asked, "--limit", 3)
    assert continued.exit_code == 0 and "continuing: 4 of 6" in continued.stderr
    assert benchmarks_on_disk(folder) == ["longbench", "longbench", "pocket"] * 2, "as written"
    assert run_eval("check", folder).exit_code == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "does not know" not in page and "longbench/" not in page
