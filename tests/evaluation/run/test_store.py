"""The run folder survives kills, refuses other runs, and never loses an acknowledged record."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from evaluation.plan.identity import digest_of
from evaluation.run.store import RunStore, check_folder
from reports.records import ExampleRecord, RunInfo
from reports.run_folders import read_run
from tests.evaluation.conftest import start_process

IDS = {"hotpotqa": {f"row{i}": f"hash{i}" for i in range(1000)}}


def record(example_id: str, **changes: Any) -> ExampleRecord:
    fields: dict[str, Any] = {
        "benchmark": "longbench",
        "task": "hotpotqa",
        "protocol": "official",
        "variant": "full",
        "example_id": example_id,
        "document_id": "d",
        "prediction": "a\nb \u2028 ü",
        "answers": ["a"],
        "score": 1.0,
        "metric": "qa_f1",
        "prompt_tokens": 10,
        "generated_tokens": 2,
        "prefill_seconds": 0.1,
        "decode_seconds": 0.1,
    }
    return ExampleRecord(**(fields | changes))


def info(**parts: Any) -> RunInfo:
    identity_parts = {"variants": {"full": {"window": None}}, "limit": 3} | parts
    return RunInfo(
        identity=digest_of(identity_parts),
        identity_parts=identity_parts,
        created="2025-01-01T00:00:00+00:00",
        updated="2025-01-01T00:00:00+00:00",
        command=["run_eval"],
        configuration={},
        generation={"full": {}},
        git=None,
        packages={},
        hardware={},
        models={"full": {"path": "m"}},
        tasks={"hotpotqa": {"examples": 3}},
        data_files=[],
        status="running",
    )


def file_of(folder: Path) -> Path:
    return folder / "full" / "hotpotqa.jsonl"


def filled(folder: Path, *ids: str) -> Path:
    with RunStore(folder, info(), IDS) as store:
        for example_id in ids:
            store.append(record(example_id))
    return folder


def test_records_are_read_back_and_noted_as_done(tmp_path):
    folder = filled(tmp_path / "run", "row0", "row1")
    assert [r.example_id for r in read_run(folder).records] == ["row0", "row1"]
    with RunStore(folder, info(), IDS) as store:
        assert store.done("full", "hotpotqa") == {"row0", "row1"}
        assert store.done("window", "hotpotqa") == set()
        assert store.warnings == []


KILLED_WRITER = """
import sys
from pathlib import Path
from evaluation.run.store import RunStore
from tests.evaluation.run.test_store import IDS, info, record
with RunStore(Path(sys.argv[1]), info(), IDS) as store:
    for example_id in IDS["hotpotqa"]:
        store.append(record(example_id, prediction="x" * 20000))
        print(example_id, flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_loses_nothing_it_acknowledged(tmp_path):
    folder = tmp_path / "run"
    process = start_process(folder, code=KILLED_WRITER)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(25)]
    process.send_signal(signal.SIGKILL)
    more, _ = process.communicate()
    acknowledged += more.split()
    with RunStore(folder, info(), IDS) as store:  # the lock died with the process
        done = store.done("full", "hotpotqa")
        assert set(acknowledged) <= done
        assert len(done) <= len(acknowledged) + 1
        for example_id in IDS["hotpotqa"]:
            if example_id not in done:
                store.append(record(example_id))
    ids = [r.example_id for r in read_run(folder).records]
    assert sorted(ids) == sorted(IDS["hotpotqa"])


@pytest.mark.parametrize("tear", [b'{"benchmark": "longb', b'{"benchmark": "longb\n', b"\xe4\xb8"])
def test_a_torn_last_line_is_dropped_with_a_warning(tmp_path, tear):
    folder = filled(tmp_path / "run", "row0", "row1")
    whole = file_of(folder).read_bytes()
    file_of(folder).write_bytes(whole + tear)
    with RunStore(folder, info(), IDS) as store:
        assert store.done("full", "hotpotqa") == {"row0", "row1"}
        assert len(store.warnings) == 1 and "hotpotqa.jsonl:3: torn last line" in store.warnings[0]
        assert file_of(folder).read_bytes() == whole
        store.append(record("row2"))
    assert len(read_run(folder).records) == 3


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_record_torn_anywhere_runs_again(tmp_path, cut):
    folder = filled(tmp_path / "run", "row0", "row1")
    whole = file_of(folder).read_bytes()
    file_of(folder).write_bytes(whole[:-cut])
    with RunStore(folder, info(), IDS) as store:
        missing = {"row0", "row1"} - store.done("full", "hotpotqa")
        assert missing == (set() if cut == 1 else {"row1"})  # only its newline was missing
        for example_id in missing:
            store.append(record(example_id))
    assert file_of(folder).read_bytes() == whole


def test_a_file_of_nothing_but_a_torn_line_becomes_empty(tmp_path):
    folder = filled(tmp_path / "run", "row0")
    file_of(folder).write_bytes(b'{"ben')
    with RunStore(folder, info(), IDS) as store:
        assert store.done("full", "hotpotqa") == set()
        store.append(record("row0"))
    assert len(read_run(folder).records) == 1


def test_two_torn_last_lines_are_dropped_and_kept_beside(tmp_path):
    folder = filled(tmp_path / "run", "row0", "row1")
    whole = file_of(folder).read_bytes()
    file_of(folder).write_bytes(whole + b'{"benchmark": "longb\n{"bench')
    with RunStore(folder, info(), IDS) as store:
        assert store.done("full", "hotpotqa") == {"row0", "row1"}
        assert [w.split(" torn last line dropped")[0] for w in store.warnings] == [
            f"{file_of(folder)}:3:", f"{file_of(folder)}:4:"
        ]  # fmt: skip
        assert file_of(folder).read_bytes() == whole
        store.append(record("row2"))
    rejected = file_of(folder).with_name("hotpotqa.jsonl.rejected")
    assert rejected.read_bytes() == b'{"benchmark": "longb\n{"bench\n'
    assert len(read_run(folder).records) == 3
    with RunStore(folder, info(), IDS) as store:
        assert store.warnings == []


def test_a_file_of_other_content_is_refused_and_not_emptied(tmp_path):
    folder = filled(tmp_path / "run", "row0", "row1")
    file_of(folder).write_bytes(b"three lines\nof something\nelse\n")
    with pytest.raises(InputError, match=r"hotpotqa.jsonl:1: not JSON"):
        RunStore(folder, info(), IDS).__enter__()
    assert file_of(folder).read_bytes() == b"three lines\nof something\nelse\n"


def test_nothing_is_mended_in_a_folder_that_is_refused(tmp_path):
    folder = filled(tmp_path / "run", "row0")
    torn = file_of(folder).read_bytes() + b'{"ben'
    file_of(folder).write_bytes(torn)
    (folder / "full" / "stranger.jsonl").write_text(record("row1").to_line() + "\n")
    with pytest.raises(InputError, match="not of this run"):
        RunStore(folder, info(), IDS).__enter__()
    assert file_of(folder).read_bytes() == torn


def test_other_files_of_json_lines_in_the_folder_are_no_concern(tmp_path):
    folder = tmp_path / "run"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "rows.jsonl").write_text('{"context": "c"}\n')
    check_folder(folder, {})
    for example in ("row0", "row1"):
        with RunStore(folder, info(), IDS) as store:
            store.append(record(example))
    assert (folder / "data" / "rows.jsonl").read_text() == '{"context": "c"}\n'
    assert len(read_run(folder).records) == 2


def test_whatever_ends_a_start_leaves_no_run_that_calls_itself_running(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), RunStore(folder, info(), IDS):
        raise KeyboardInterrupt
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    with RunStore(folder, info(), IDS) as store:
        store.set_status("finished")
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_what_a_killed_writer_left_beside_its_files_is_removed(tmp_path):
    folder = filled(tmp_path / "run", "row0")
    left = [folder / ".run.json.123.tmp", folder / "full" / ".hotpotqa.jsonl.123.tmp"]
    others = [folder / ".report.html.123.tmp", folder / "full" / "notes.tmp"]
    for path in left + others:
        path.write_text("x")
    with RunStore(folder, info(), IDS):
        pass
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)


def test_a_full_disk_is_told_and_the_run_can_go_on(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    write = os.write

    def full(descriptor: int, content: Any) -> int:
        if len(content) > 100:
            return write(descriptor, content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunStore(folder, info(), IDS) as store:
        store.append(record("row0"))
        with monkeypatch.context() as patch:
            patch.setattr("evaluation.run.store.os.write", full)
            with pytest.raises(InputError, match="No space left on device"):
                store.append(record("row1"))
    with RunStore(folder, info(), IDS) as store:
        assert store.done("full", "hotpotqa") == {"row0"}
        store.append(record("row1"))
    assert len(read_run(folder).records) == 2


def test_a_bad_line_that_is_not_the_last_is_an_error(tmp_path):
    folder = filled(tmp_path / "run", "row0", "row1")
    lines = file_of(folder).read_bytes().splitlines(keepends=True)
    file_of(folder).write_bytes(lines[0][:30] + b"\n" + lines[1])
    with pytest.raises(ValueError, match=r"hotpotqa.jsonl:1: not JSON"):
        RunStore(folder, info(), IDS).__enter__()


def test_another_identity_is_refused_and_nothing_is_touched(tmp_path):
    folder = filled(tmp_path / "run", "row0")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    other = info(variants={"full": {"window": 64}}, protocol="ahn")
    with pytest.raises(InputError) as refusal:
        RunStore(folder, other, IDS).__enter__()
    assert "variants.full.window None there, 64 here" in str(refusal.value)
    assert "protocol only in this run" in str(refusal.value)
    assert all(path.read_bytes() == content for path, content in before.items())
    with RunStore(folder, info(), IDS):  # the refusal let go of the lock
        pass


def test_overwrite_replaces_an_earlier_run_but_only_its_records(tmp_path):
    folder = filled(tmp_path / "run", "row0")
    (folder / "notes.txt").write_text("mine")
    with RunStore(folder, info(limit=9), IDS, overwrite=True) as store:
        assert store.done("full", "hotpotqa") == set()
    assert not file_of(folder).exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_records_without_a_description_are_not_mixed_with(tmp_path):
    folder = filled(tmp_path / "run", "row0")
    (folder / "run.json").unlink()
    with pytest.raises(InputError, match="no run.json"):
        RunStore(folder, info(), IDS).__enter__()


@pytest.mark.slow
def test_two_processes_do_not_write_to_one_folder(tmp_path):
    folder = tmp_path / "run"
    with RunStore(folder, info(), IDS):
        second = start_process(folder, code=KILLED_WRITER)
        _, complaint = second.communicate(timeout=600)
        assert second.returncode != 0 and "written by another process" in complaint
        with pytest.raises(InputError, match="written by another process"):
            RunStore(folder, info(), IDS).__enter__()


def test_failed_examples_run_again_and_leave_one_record(tmp_path):
    folder = filled(tmp_path / "run", "row0")
    with RunStore(folder, info(), IDS) as store:
        store.append(record("row1", error="OutOfMemoryError: x", score=None))
        assert store.done("full", "hotpotqa") == {"row0"}
    with RunStore(folder, info(), IDS) as store:
        assert store.done("full", "hotpotqa") == {"row0"}
        assert any("1 failed examples run again" in w for w in store.warnings)
        store.append(record("row1"))
    assert [r.error for r in read_run(folder).records] == [None, None]


def test_records_that_are_not_of_the_plan_are_refused(tmp_path):
    folder = filled(tmp_path / "run", "row0")
    with file_of(folder).open("a") as file:
        file.write(record("stranger").model_dump_json() + "\n")
    with pytest.raises(InputError, match="stranger"):
        RunStore(folder, info(), IDS).__enter__()


def test_what_was_learnt_of_a_model_outlives_a_restart(tmp_path):
    folder = tmp_path / "run"
    with RunStore(folder, info(), IDS) as store:
        store.describe_model("full", {"parameters": 17})
        store.append(record("row0"))
        store.set_status("interrupted")
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    with RunStore(folder, info(), IDS):
        stored = json.loads((folder / "run.json").read_text())
    assert stored["status"] == "running"
    assert stored["models"]["full"] == {"path": "m", "parameters": 17}


def test_a_refused_new_folder_is_not_left_behind(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        RunStore(blocked / "run", info(), IDS).__enter__()
    assert blocked.read_text() == ""
