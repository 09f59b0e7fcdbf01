"""Every layout in which people have rows gives the same rows; what is not whole is refused."""

import gzip
import hashlib
import json
import os
import shutil
import struct
import zipfile

import pytest

from common.errors import InputError
from tasks import jsonl, tables
from tasks.registry import find_task
from tasks.sources import load_examples

LONGBENCH = [
    {
        "_id": f"row{number}",
        "input": "",
        "context": f"News {number}.\u2028More, and \u4e2d\u6587.",
        "answers": ["A summary."],
        "length": 5 + number,
        "dataset": "multi_news",
        "language": "en",
        "all_classes": None,
    }
    for number in range(5)
]
LVEVAL = [
    {
        "input": "Who?",
        "context": f"Ann did, {number} times.",
        "answers": ["Ann"],
        "length": 4,
        "dataset": "hotpotwikiqa_mixup",
        "language": "en",
        "answer_keywords": "Ann",
    }
    for number in range(4)
]
INFINITE = [
    {
        "id": number,
        "context": f"The pass key is 7143{number}.",
        "input": "What is the pass key?",
        "answer": [f"7143{number}"],
        "options": [],
    }
    for number in range(4)
]
TASKS = {
    "longbench": ("multi_news", LONGBENCH),
    "lveval": ("hotpotwikiqa_mixup_16k", LVEVAL),
    "infinitebench": ("passkey", INFINITE),
}


def as_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def place(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def jsonl_file(path, rows):
    place(path).write_bytes(as_lines(rows))


def gzip_file(path, rows):
    place(path).write_bytes(gzip.compress(as_lines(rows)))


def zip_file(path, rows, member):
    with zipfile.ZipFile(place(path), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, as_lines(rows))


def parquet_file(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), place(path))


def saved(path, rows, splits=None):
    """As `datasets` saves: one split, or a dictionary of them."""
    import datasets

    data = datasets.Dataset.from_list(rows)
    if splits is None:
        data.save_to_disk(str(place(path)), num_shards=2)
    else:
        other = datasets.Dataset.from_list(rows[:1])
        found = {split: data if split in ("test", splits[0]) else other for split in splits}
        datasets.DatasetDict(found).save_to_disk(str(place(path)))


LAYOUTS = {
    "json lines": lambda at, task, rows: jsonl_file(at / f"{task}.jsonl", rows),
    "json lines in data": lambda at, task, rows: jsonl_file(at / "data" / f"{task}.jsonl", rows),
    "gzip": lambda at, task, rows: gzip_file(at / f"{task}.jsonl.gz", rows),
    "gzip in data": lambda at, task, rows: gzip_file(at / "data" / f"{task}.jsonl.gz", rows),
    "gzip by another name": lambda at, task, rows: gzip_file(at / f"{task}.jsonl", rows),
    "parquet": lambda at, task, rows: parquet_file(at / f"{task}.parquet", rows),
    "the hub's copy": lambda at, task, rows: parquet_file(
        at / "default" / task / "0000.parquet", rows
    ),
    "the hub's copy of a configuration": lambda at, task, rows: parquet_file(
        at / task / "test" / "0000.parquet", rows
    ),
    "the hub's copy in parts": lambda at, task, rows: [
        parquet_file(at / "default" / task / f"000{number}.parquet", [row])
        for number, row in enumerate(rows)
    ],
    "split of a configuration": lambda at, task, rows: parquet_file(
        at / "data" / task / "test-00000-of-00001.parquet", rows
    ),
    "split beside others": lambda at, task, rows: [
        parquet_file(at / "data" / task / f"{split}-00000-of-00001.parquet", rows[first:])
        for split, first in (("test", 0), ("train", 1))
    ],
    "parts": lambda at, task, rows: [
        parquet_file(at / "data" / f"{task}-0000{number}-of-0000{len(rows)}.parquet", [row])
        for number, row in enumerate(rows)
    ],
    "more than nine parts": lambda at, task, rows: [
        parquet_file(at / task / f"part-{number:02}.parquet", [rows[number]] if number < 3 else
                     rows[3:] if number == 11 else [])
        for number in (0, 1, 2, 11)
    ],  # fmt: skip
    "saved": lambda at, task, rows: saved(at / task, rows),
    "saved in data": lambda at, task, rows: saved(at / "data" / task, rows),
    "saved with splits": lambda at, task, rows: saved(at / task, rows, ("train", "test")),
    "saved with one split": lambda at, task, rows: saved(at / task, rows, ("validation",)),
    "lines of a split": lambda at, task, rows: jsonl_file(at / task / "test.jsonl", rows),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("benchmark", "below"),
    [("longbench", ""), ("longbench", "two words"), ("lveval", ""), ("infinitebench", "")],
)
def test_rows_are_the_same_in_every_layout(tmp_path, benchmark, layout, below):
    task, rows = TASKS[benchmark]
    LAYOUTS[layout](tmp_path / below, task, rows)
    found = load_examples(find_task(benchmark, task), str(tmp_path), None, 0)
    assert [example.row for example in found.examples] == rows
    assert [example.example_id for example in found.examples] == ids_of(benchmark, tmp_path)
    assert all(os.path.exists(str(file["path"])) for file in found.files)
    assert found.examples[-1].where.startswith(str(tmp_path))


def ids_of(benchmark, tmp_path):
    """The identifiers that plain lines give."""
    task, rows = TASKS[benchmark]
    jsonl_file(tmp_path / "elsewhere" / "deep" / f"{task}.jsonl", rows)
    deep = str(tmp_path / "elsewhere" / "deep")
    return [e.example_id for e in load_examples(find_task(benchmark, task), deep, None, 0).examples]


def test_digests_are_those_of_the_content_however_it_is_packed(tmp_path):
    digest = hashlib.sha256(as_lines(LONGBENCH)).hexdigest()
    jsonl_file(tmp_path / "a" / "multi_news.jsonl", LONGBENCH)
    gzip_file(tmp_path / "b" / "multi_news.jsonl.gz", LONGBENCH)
    zip_file(tmp_path / "c" / "data.zip", LONGBENCH, "data/multi_news.jsonl")
    for folder in "abc":
        assert [file["sha256"] for file in load(tmp_path / folder).files] == [digest]


def load(data, task="multi_news", limit=None):
    return load_examples(find_task("longbench", task), str(data), limit, 0)


def problem(data, task="multi_news"):
    with pytest.raises(InputError) as caught:
        load(data, task)
    (told,) = caught.value.problems
    return told


def rows_of(data, task="multi_news"):
    return [example.row for example in load(data, task).examples]


# -- a file, an archive or a task's own folder, given itself ------------------------------------


def test_the_archive_itself_may_be_given(tmp_path):
    zip_file(tmp_path / "anything.zip", LONGBENCH, "LongBench/data/multi_news.jsonl")
    assert rows_of(tmp_path / "anything.zip") == LONGBENCH
    assert problem(tmp_path / "anything.zip", "trec").endswith("has no member named trec.jsonl")
    zip_file(tmp_path / "lv.zip", LVEVAL, "hotpotwikiqa_mixup/hotpotwikiqa_mixup_16k.jsonl")
    task = find_task("lveval", "hotpotwikiqa_mixup_16k")
    assert len(load_examples(task, str(tmp_path / "lv.zip"), None, 0).examples) == 4


@pytest.mark.parametrize("name", ["multi_news.jsonl", "multi_news.jsonl.gz", "multi_news.parquet",
                                  "multi_news/test-00000-of-00001.parquet", "multi_news/x.jsonl",
                                  "multi_news-00000-of-00001.parquet"])  # fmt: skip
def test_a_file_itself_may_be_given(tmp_path, name):
    write = {"jsonl": jsonl_file, "gz": gzip_file, "parquet": parquet_file}[name.split(".")[-1]]
    write(tmp_path / name, LONGBENCH)
    assert rows_of(tmp_path / name) == LONGBENCH


def test_a_file_of_another_name_is_refused_and_its_own_task_named(tmp_path):
    jsonl_file(tmp_path / "trec.jsonl", LONGBENCH)
    told = problem(tmp_path / "trec.jsonl")
    assert "trec.jsonl is not named as its rows are" in told and "multi_news.jsonl" in told


@pytest.mark.parametrize("splits", [None, ("train", "test")])
def test_a_tasks_own_folder_may_be_given(tmp_path, splits, monkeypatch):
    saved(tmp_path / "multi_news", LONGBENCH, splits)
    assert rows_of(tmp_path / "multi_news") == LONGBENCH
    monkeypatch.chdir(tmp_path / "multi_news")
    assert rows_of(".") == LONGBENCH


# -- several places -----------------------------------------------------------------------------


def test_the_same_rows_in_several_places_are_no_question(tmp_path):
    zip_file(tmp_path / "data.zip", LONGBENCH, "data/multi_news.jsonl")
    jsonl_file(tmp_path / "data" / "multi_news.jsonl", LONGBENCH)
    gzip_file(tmp_path / "multi_news.jsonl.gz", LONGBENCH)
    assert rows_of(tmp_path) == LONGBENCH


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("json lines", "gzip"),
        ("json lines", "json lines in data"),
        ("parquet", "json lines"),
        ("saved", "the hub's copy"),
        ("saved", "lines of a split"),
    ],
)
@pytest.mark.parametrize("below", [False, True])
def test_different_rows_in_several_places_are_refused_with_their_names(
    tmp_path, first, second, below
):
    one, two = (tmp_path / "one", tmp_path / "two") if below else (tmp_path, tmp_path)
    LAYOUTS[first](one, "multi_news", LONGBENCH)
    LAYOUTS[second](two, "multi_news", LONGBENCH[:-1])
    told = problem(tmp_path)
    assert "there are rows in 2 places, and not the same: " in told
    assert told.count(f"{tmp_path}/") == 2 and told.endswith("give the one that is meant as --data")


def test_an_archive_without_the_task_does_not_hinder(tmp_path):
    zip_file(tmp_path / "a" / "data.zip", LONGBENCH, "data/trec.jsonl")
    jsonl_file(tmp_path / "b" / "multi_news.jsonl", LONGBENCH)
    assert rows_of(tmp_path) == LONGBENCH
    zip_file(tmp_path / "b" / "data.zip", LONGBENCH, "data/trec.jsonl")
    assert rows_of(tmp_path) == rows_of(tmp_path / "b") == LONGBENCH


def test_rows_at_hand_go_before_folders_below_and_hidden_ones_are_left_alone(tmp_path):
    jsonl_file(tmp_path / "older" / "multi_news.jsonl", LONGBENCH[:2])
    jsonl_file(tmp_path / ".cache" / "multi_news.jsonl", LONGBENCH[:3])
    assert rows_of(tmp_path) == LONGBENCH[:2]
    jsonl_file(tmp_path / "multi_news.jsonl", LONGBENCH)
    assert rows_of(tmp_path) == LONGBENCH
    jsonl_file(tmp_path / "deep" / "er" / "trec.jsonl", LONGBENCH)
    assert "no rows in" in problem(tmp_path, "trec")


def test_two_members_of_the_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("a/multi_news.jsonl", as_lines(LONGBENCH))
        archive.writestr("b/multi_news.jsonl", as_lines(LONGBENCH))
    assert problem(tmp_path).endswith("has 2 members named multi_news.jsonl, not one")


# -- not whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data/multi_news-{}.parquet", "multi_news/test-{}.parquet"])
def test_a_missing_part_is_named(tmp_path, name):
    for number in (0, 2):
        parquet_file(tmp_path / name.format(f"0000{number}-of-00003"), LONGBENCH[number:][:1])
    assert "part 1 is missing beside " in problem(tmp_path)
    parquet_file(tmp_path / name.format("00001-of-00003"), LONGBENCH[1:2])
    assert rows_of(tmp_path) == LONGBENCH[:3]
    parquet_file(tmp_path / name.format("00000-of-00002"), LONGBENCH[3:4])
    assert "parts of several sets" in problem(tmp_path)


def test_a_missing_part_of_the_hubs_copy_is_named(tmp_path):
    parquet_file(tmp_path / "default" / "multi_news" / "0000.parquet", LONGBENCH[:1])
    parquet_file(tmp_path / "default" / "multi_news" / "0002.parquet", LONGBENCH[1:])
    assert "part 1 is missing beside 0000.parquet, 0002.parquet" in problem(tmp_path)


def test_a_part_alone_is_not_the_whole(tmp_path):
    parquet_file(tmp_path / "multi_news-00000-of-00002.parquet", LONGBENCH)
    assert "part 1 is missing" in problem(tmp_path / "multi_news-00000-of-00002.parquet")


def test_parquet_files_that_do_not_belong_together_are_refused(tmp_path):
    parquet_file(tmp_path / "multi_news" / "train.parquet", LONGBENCH)
    parquet_file(tmp_path / "multi_news" / "validation.parquet", LONGBENCH)
    assert "several sets (train.parquet, validation.parquet)" in problem(tmp_path)


def test_a_saved_folder_that_is_not_whole_is_told(tmp_path):
    saved(tmp_path / "multi_news", LONGBENCH)
    arrow = sorted((tmp_path / "multi_news").glob("*.arrow"))[1]
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[: len(whole) // 2])
    assert f"{arrow}: is not a whole Arrow file" in problem(tmp_path)
    arrow.unlink()
    assert problem(tmp_path) == f"{arrow}: no such file"


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("state.json", "{", "is not JSON"),
        ("state.json", "[]", "is not a JSON object"),
        ("state.json", "{}", "names no files with rows"),
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "names no files with rows"),
        ("state.json", '{"_data_files": 1, "_data_files": 2}', "given twice"),
        (
            "state.json",
            '{"_data_files": [{"filename": "x.arrow"}], "_indices_data_files": [{}]}',
            "by an index of an old version of datasets",
        ),
        ("dataset_dict.json", '{"splits": ["train", "validation"]}', "none of them is 'test'"),
        ("dataset_dict.json", '{"splits": "test"}', "names no splits"),
        ("dataset_dict.json", '{"splits": ["../test"]}', "names no splits"),
    ],
)
def test_what_a_saved_folder_says_of_itself_is_checked(tmp_path, file, content, told):
    place(tmp_path / "multi_news" / file).write_text(content)
    assert told in problem(tmp_path)


def test_columns_and_numbers_of_tables_are_checked_as_keys_of_lines_are(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(LONGBENCH)
    twice = table.append_column("context", pyarrow.array(["else"] * 5))
    parquet.write_table(twice, tmp_path / "multi_news.parquet")
    assert "column 'context' is there twice" in problem(tmp_path)
    lengths = pyarrow.array([1.0, float("nan"), None, 4.0, 5.0])
    column = table.schema.get_field_index("length")
    parquet.write_table(
        table.set_column(column, "length", lengths), tmp_path / "multi_news.parquet"
    )
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    text = "\n".join(caught.value.problems)
    assert "multi_news.parquet:2: 'length': nan is no number" in text
    assert "multi_news.parquet:4: 'length': input should be a valid integer" in text
    assert "multi_news.parquet:3" not in text


# -- bounds -------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Bounds of a few hundred bytes."""
    for module in (jsonl, tables):
        for name, most in (("MOST_ROW_BYTES", 400), ("MOST_FILE_BYTES", 3000)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, most)


LONG = [row | {"context": "x" * 500} for row in LONGBENCH]
MANY = [LONGBENCH[0] | {"_id": str(number)} for number in range(90)]


@pytest.mark.parametrize("layout", ["json lines", "gzip", "parquet", "saved", "zip"])
@pytest.mark.parametrize(
    ("rows", "told"),
    [(LONG, "is longer than a"), (MANY, "holds more than the 2.93 KiB that are read of a file")],
    ids=["row", "file"],
)
def test_a_row_and_a_file_may_be_so_long(tmp_path, small, layout, rows, told):
    if layout == "zip":
        zip_file(tmp_path / "data.zip", rows, "data/multi_news.jsonl")
    else:
        LAYOUTS[layout](tmp_path, "multi_news", rows)
    assert told in problem(tmp_path)


@pytest.mark.parametrize("packed", ["gzip", "zip"])
def test_what_unpacks_to_more_than_is_read_is_stopped_by_its_real_size(
    tmp_path, monkeypatch, packed
):
    """A gigabyte of blanks packs into a megabyte: it is never held, and the header not believed."""
    import tracemalloc

    monkeypatch.setattr(jsonl, "MOST_ROW_BYTES", 2**20)
    content = b" " * 2**26
    if packed == "gzip":
        (tmp_path / "multi_news.jsonl.gz").write_bytes(gzip.compress(content, 1))
    else:
        path = tmp_path / "data.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("multi_news.jsonl", content)
    tracemalloc.start()
    told = problem(tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "multi_news.jsonl" in told and told.endswith("is longer than a line may be (1 MiB)")
    assert most < 2**24


@pytest.mark.parametrize("says", [10, 10**9])
def test_a_member_whose_header_lies_is_told(tmp_path, says):
    """The size in an archive's directory may be anything; the content decides."""
    content = as_lines(LONGBENCH)
    path = tmp_path / "data.zip"
    zip_file(path, LONGBENCH, "multi_news.jsonl")
    raw = bytearray(path.read_bytes())
    size = struct.pack("<I", len(content))
    at = [n for n in range(len(raw)) if raw[n : n + 4] == size]
    assert len(at) == 2  # before the member, and in the directory
    for place_of_size in at:
        raw[place_of_size : place_of_size + 4] = struct.pack("<I", says)
    path.write_bytes(bytes(raw))
    if says < len(content):
        assert "cannot be unpacked whole: Bad CRC-32" in problem(tmp_path)
    else:
        assert rows_of(tmp_path) == LONGBENCH


def test_an_archive_of_an_uncommon_method_or_with_a_password_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("multi_news.jsonl", as_lines(LONGBENCH))
    assert "cannot be unpacked: it is compressed by an uncommon method" in problem(tmp_path)
    zip_file(tmp_path / "data.zip", LONGBENCH, "multi_news.jsonl")
    raw = bytearray((tmp_path / "data.zip").read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + flags] |= 1
    (tmp_path / "data.zip").write_bytes(bytes(raw))
    assert "cannot be unpacked" in problem(tmp_path)


@pytest.mark.slow
def test_a_row_of_50_megabytes_is_read(tmp_path):
    context = "word " * 10_500_000
    gzip_file(tmp_path / "multi_news.jsonl.gz", [LONGBENCH[0] | {"context": context}])
    assert rows_of(tmp_path)[0]["context"] == context


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert problem(tmp_path / "pipe").endswith("is a named pipe, not a folder or file")
    assert problem("/dev/zero").endswith("is a device, not a folder or file")
    for name in ("multi_news.jsonl", "multi_news.jsonl.gz", "multi_news.parquet", "data.zip"):
        os.mkfifo(tmp_path / name)
        assert f"{name}: is a named pipe, not a file" in problem(tmp_path)
        (tmp_path / name).unlink()
    saved(tmp_path / "multi_news", LONGBENCH)
    arrow = next((tmp_path / "multi_news").glob("*.arrow"))
    arrow.unlink()
    os.mkfifo(arrow)
    assert f"{arrow.name}: is a named pipe, not a file" in problem(tmp_path)
    (tmp_path / "multi_news" / "state.json").unlink()
    os.mkfifo(tmp_path / "multi_news" / "state.json")
    assert "state.json: is a named pipe, not a file" in problem(tmp_path)
    shutil.rmtree(tmp_path / "multi_news")
    (tmp_path / "multi_news.jsonl").symlink_to("/dev/zero")
    assert "multi_news.jsonl: is a device, not a file" in problem(tmp_path)


def test_a_path_of_5000_characters_is_told(tmp_path):
    told = problem(tmp_path / ("x" * 5000))
    assert "does not exist" in told and len(told) < 400 and "characters)" in told


def test_a_limit_keeps_the_first_rows_and_checks_the_others(tmp_path):
    jsonl_file(tmp_path / "multi_news.jsonl", LONGBENCH)
    assert [e.row for e in load(tmp_path, limit=2).examples] == LONGBENCH[:2]
    jsonl_file(tmp_path / "multi_news.jsonl", [*LONGBENCH, {"context": ""}])
    with pytest.raises(InputError, match="multi_news.jsonl:6: "):
        load(tmp_path, limit=2)


def test_a_file_wrong_in_most_lines_is_read_no_further(tmp_path):
    jsonl_file(tmp_path / "multi_news.jsonl", [LONGBENCH[0], *[{"a": n} for n in range(5000)]])
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert any("reading stops here: too much is wrong" in told for told in caught.value.problems)
