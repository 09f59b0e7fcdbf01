"""Reading records: what is kept, what is dropped with a word, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.errors import InputError
from reports.records import SCHEMA_VERSION, ExampleRecord, RunInfo
from reports.run_folders import holds_records, read_jsonl, read_run, scan_jsonl

Make = Callable[..., ExampleRecord]


def line(record: ExampleRecord) -> str:
    return record.model_dump_json() + "\n"


def test_every_field_is_described() -> None:
    for model in (ExampleRecord, RunInfo):
        bare = [name for name, field in model.model_fields.items() if not field.description]
        assert bare == []


def test_records_survive_the_round_trip(tmp_path: Path, make_record: Make) -> None:
    records = [
        make_record(example_id="a", prediction="line\u2028separator\x85and\r\n北京"),
        make_record(example_id="b", score=None, error="out of memory", prompt_tokens=None),
        make_record(example_id="c", score=0.25, attributes={"facts": 4, "nested": {"x": [1]}}),
    ]
    file = tmp_path / "qa.jsonl"
    file.write_text("".join(map(line, records)), encoding="utf-8")
    assert read_jsonl(file) == (records, [])


def test_an_empty_file_holds_no_records(tmp_path: Path) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_bytes(b"")
    assert read_jsonl(file) == ([], [])


def test_unknown_fields_are_refused(make_record: Make) -> None:
    with pytest.raises(ValidationError, match="prefil_seconds"):
        make_record(prefil_seconds=1.0)


@pytest.mark.parametrize("score", [-0.01, 1.01, math.nan, math.inf, None])
def test_a_score_lies_between_0_and_1_unless_there_is_an_error(
    make_record: Make, score: float | None
) -> None:
    with pytest.raises(ValidationError, match="score"):
        make_record(score=score)
    assert make_record(score=None, error="failed").score is None


def test_lone_surrogates_do_not_reach_the_file(make_record: Make) -> None:
    record = make_record(prediction="a\ud800b", answers=["\udc00"])
    assert record.prediction == "a\N{REPLACEMENT CHARACTER}b"
    line(record).encode("utf-8")


@pytest.mark.parametrize("cut", [1, 2, 40, 150])
def test_a_torn_last_line_is_dropped_with_a_warning(
    tmp_path: Path, make_record: Make, cut: int
) -> None:
    file = tmp_path / "qa.jsonl"
    whole = line(make_record(example_id="a")) + line(make_record(example_id="b", prediction="é中"))
    content = whole.encode()[: -1 - cut]
    file.write_bytes(content)
    records, warnings = read_jsonl(file)
    assert [r.example_id for r in records] == ["a"]
    assert len(warnings) == 1
    assert f"{file}:2" in warnings[0]
    assert file.read_bytes() == content, "reading must not write"


def test_several_torn_last_lines_are_each_dropped_with_a_warning(
    tmp_path: Path, make_record: Make
) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_bytes(line(make_record()).encode() + b'{"schema\n\0\0\n{"sche')
    records, warnings = read_jsonl(file)
    assert len(records) == 1
    assert [w.split(": ")[0] for w in warnings] == [f"{file}:{n}" for n in (2, 3, 4)]


def test_a_file_without_any_json_is_damaged_and_not_torn(tmp_path: Path) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_text("a\nb\nc\n")
    with pytest.raises(InputError, match=r"qa\.jsonl:1: not JSON"):
        read_jsonl(file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"score":1.0', '"score":NaN', "NaN is no number of JSON"),
        ('"score":1.0', '"score":"1.0"', "score"),
        ('"score":1.0', '"score":true', "score"),
        ('"generated_tokens":3', '"generated_tokens":3.0', "generated_tokens"),
        ('"task":"qa"', '"task":"qb","task":"qa"', "key 'task' is given twice"),
        ('{"schema_version"', '\ufeff{"schema_version"', "not JSON"),
    ],
)
def test_what_the_writer_never_writes_is_damage(
    tmp_path: Path, make_record: Make, old: str, new: str, message: str
) -> None:
    file = tmp_path / "qa.jsonl"
    bad = line(make_record(example_id="b"))
    assert old in bad
    file.write_text(line(make_record()) + bad.replace(old, new) + line(make_record(example_id="c")))
    with pytest.raises(InputError, match=message) as caught:
        read_jsonl(file)
    assert f"{file}:2: " in str(caught.value)


def test_a_record_is_written_with_the_digest_of_its_other_fields(make_record: Make) -> None:
    record = make_record(prediction="ü \ud800", start=2)
    content = json.loads(record.to_line())
    assert list(content)[-1] == "record_sha256" and content["start"] == 2
    digest = content.pop("record_sha256")
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert digest == hashlib.sha256(canonical.encode()).hexdigest()
    again = ExampleRecord.model_validate(json.loads(record.to_line()), strict=True)
    assert again.to_line() == record.to_line()


@pytest.mark.parametrize(
    "fields", [{"label": math.nan}, {"gold_ans": "\ud800"}, {"attributes": {"x": math.inf}}]
)
def test_what_a_line_cannot_hold_is_refused_when_it_is_written(
    make_record: Make, fields: dict[str, object]
) -> None:
    with pytest.raises(ValueError):
        make_record(**fields).to_line()


def test_a_whole_last_line_without_newline_is_kept(tmp_path: Path, make_record: Make) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_text(line(make_record()).rstrip("\n"))
    records, warnings = read_jsonl(file)
    assert len(records) == 1
    assert warnings == []


def test_all_bad_lines_are_named_at_once(tmp_path: Path, make_record: Make) -> None:
    without_task = json.loads(line(make_record(example_id="b")))
    del without_task["task"]
    file = tmp_path / "qa.jsonl"
    file.write_bytes(
        b"".join(
            [
                line(make_record(example_id="a")).encode(),
                b'{"broken": \n',
                b"[1, 2]\n",
                json.dumps(without_task).encode() + b"\n",
                b"\xff\xfe\n",
                b"\n",
                line(make_record(example_id="c")).encode(),
            ]
        )
    )
    with pytest.raises(InputError) as caught:
        read_jsonl(file)
    message = str(caught.value)
    for number, what in ((2, "not JSON"), (3, "object"), (4, "task"), (5, ""), (6, "empty line")):
        assert f"{file}:{number}: " in message
        assert what in message
    assert f"{file}:1" not in message
    assert f"{file}:7" not in message


def test_a_whole_but_wrong_last_line_is_not_taken_for_torn(
    tmp_path: Path, make_record: Make
) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_text(line(make_record()) + '{"benchmark": "longbench"}')
    with pytest.raises(InputError, match=r"qa\.jsonl:2: "):
        read_jsonl(file)


def test_a_second_record_of_an_example_is_refused(tmp_path: Path, make_record: Make) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_text(line(make_record()) * 2)
    with pytest.raises(InputError, match=r"qa\.jsonl:2: .*'row-1'.* line 1"):
        read_jsonl(file)


def test_a_retry_replaces_the_failed_record(tmp_path: Path, make_record: Make) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_text(line(make_record(score=None, error="out of memory")) + line(make_record()))
    records, _ = read_jsonl(file)
    assert [r.error for r in records] == [None]


def test_a_record_of_a_newer_schema_is_refused_by_its_version(
    tmp_path: Path, make_record: Make
) -> None:
    newer = json.loads(line(make_record())) | {"schema_version": SCHEMA_VERSION + 1, "new": 1}
    file = tmp_path / "qa.jsonl"
    file.write_text(json.dumps(newer) + "\n")
    with pytest.raises(InputError, match=f"schema version {SCHEMA_VERSION + 1}") as caught:
        read_jsonl(file)
    assert "new:" not in str(caught.value)


def test_a_run_is_read_in_the_order_of_its_description(pocket_run: Path) -> None:
    run = read_run(pocket_run)
    assert list(dict.fromkeys(r.variant for r in run.records)) == [
        "full",
        "window",
        "ahn",
        "no-write",
    ]
    assert len(run.records) == 80
    assert run.warnings == []


def test_what_is_no_run_is_refused_with_its_reason(tmp_path: Path, pocket_run: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        read_run(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no run\.json"):
        read_run(tmp_path / "empty")
    for file in pocket_run.glob("*/*.jsonl"):
        file.unlink()
    with pytest.raises(InputError, match="no records"):
        read_run(pocket_run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "not a JSON object"),
        ('{"schema_version": 99, "other": 1}', "schema version 99"),
        ("{}", "identity"),
    ],
)
def test_a_damaged_description_is_refused(pocket_run: Path, content: str, message: str) -> None:
    (pocket_run / "run.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_run(pocket_run)
    assert "run.json" in str(caught.value)


def test_a_misfiled_record_is_refused(pocket_run: Path) -> None:
    (pocket_run / "window" / "pocket_qa@1.jsonl").replace(pocket_run / "ahn" / "pocket_qa@1.jsonl")
    with pytest.raises(InputError, match="holds records of variant 'window'"):
        read_run(pocket_run)


def test_a_variant_that_the_description_lacks_is_left_out_with_a_warning(pocket_run: Path) -> None:
    (pocket_run / "ahn").rename(pocket_run / "other")
    run = read_run(pocket_run)
    assert "ahn" not in {r.variant for r in run.records}
    assert any("other" in warning for warning in run.warnings)


def test_a_pipe_in_the_place_of_a_record_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe blocks whoever opens it."""
    os.mkfifo(tmp_path / "qa.jsonl")
    with pytest.raises(InputError, match=r"qa\.jsonl: is a named pipe, not a file"):
        scan_jsonl(tmp_path / "qa.jsonl")
    assert not holds_records(tmp_path / "qa.jsonl")
    with pytest.raises(InputError, match=r"gone\.jsonl: no such file"):
        scan_jsonl(tmp_path / "gone.jsonl")
    assert not holds_records(tmp_path / "gone.jsonl")
