"""Rows: from a folder in each layout, from the hub's file, and what is refused."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from typing import Any

import pytest

from common.errors import InputError
from tasks import hub as hub_files
from tasks.registry import find_task
from tasks.sources import load_examples

ROW: dict[str, Any] = {
    "input": "",
    "context": "Some news.\u2028More news.",
    "answers": ["A summary."],
    "length": 5,
    "dataset": "multi_news",
    "language": "en",
    "all_classes": None,
    "_id": "a",
}
ROWS = [ROW, ROW | {"_id": "b"}, ROW | {"_id": "c", "context": "Other news."}]


def lines(*rows):
    texts = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    return "".join(f"{text}\n" for text in texts).encode()


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def load(folder, limit=None, task="multi_news"):
    return load_examples(find_task("longbench", task), str(folder), limit, 0)


def problems(folder, task="multi_news"):
    with pytest.raises(InputError) as caught:
        load(folder, task=task)
    return list(caught.value.problems)


# -- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["multi_news.jsonl", "data/multi_news.jsonl"])
def test_json_lines_are_read_in_both_layouts(tmp_path, name):
    path = write(tmp_path, name, lines(*ROWS))
    found = load(tmp_path)
    assert [example.example_id for example in found.examples] == ["a", "b", "c"]
    first, second, third = found.examples
    assert first.row == ROW and first.answers == ["A summary."] and first.attributes == {}
    assert second.where == f"{path}:2"
    assert first.document_id == second.document_id != third.document_id
    assert first.document_id == hashlib.sha1(ROW["context"].encode()).hexdigest()[:16]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.files == [{"path": str(path), "sha256": digest, "revision": None}]


@pytest.mark.parametrize(
    "name",
    ["multi_news.parquet", "data/multi_news.parquet", "multi_news/test-00000.parquet",
     "data/multi_news-00000-of-00001.parquet", "multi_news/test/0000.parquet"],
)  # fmt: skip
def test_parquet_rows_equal_those_of_json_lines(tmp_path, name):
    import pyarrow
    from pyarrow import parquet

    path = write(tmp_path, name, b"")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    found = load(tmp_path)
    assert [example.row for example in found.examples] == ROWS
    assert found.examples[2].where == f"{path}:3"


def test_parquet_in_parts_is_one_file_after_another(tmp_path):
    import pyarrow
    from pyarrow import parquet

    names = [f"data/multi_news-0000{number}-of-00003.parquet" for number in range(3)]
    for name, row in zip(names, ROWS, strict=True):
        parquet.write_table(pyarrow.Table.from_pylist([row]), write(tmp_path, name, b""))
    found = load(tmp_path)
    assert [example.row for example in found.examples] == ROWS
    assert [file["path"] for file in found.files] == [str(tmp_path / name) for name in names]
    assert all(file["sha256"] for file in found.files)
    without = [{key: value for key, value in row.items() if key != "_id"} for row in ROWS]
    for name, row in zip(names, without, strict=True):
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / name)
    ids = [example.example_id for example in load(tmp_path).examples]
    assert ids == ["multi_news:1", "multi_news:2", "multi_news:3"]
    parquet.write_table(pyarrow.Table.from_pylist([ROWS[0]]), tmp_path / names[0])
    parquet.write_table(pyarrow.Table.from_pylist([ROWS[0], {"context": ""}]), tmp_path / names[2])
    first, second = tmp_path / names[0], tmp_path / names[2]
    told = problems(tmp_path)
    assert f"{second}:1: id 'a' is that of line {first}:1 too" in told
    assert f"{second}:2: 'context' is empty" in told


def test_the_hubs_zip_is_read_where_it_lies(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/multi_news.jsonl", lines(*ROWS))
        archive.writestr("data/multi_news_e.jsonl", lines(ROW))
    found = load(tmp_path)
    assert [example.row for example in found.examples] == ROWS
    assert found.files[0]["path"] == f"{tmp_path}/data.zip/data/multi_news.jsonl"
    assert problems(tmp_path, "trec") == [f"{tmp_path}/data.zip: has no member named trec.jsonl"]


def test_rows_of_longbench_e_have_their_own_file_in_the_same_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/multi_news.jsonl", lines(*ROWS))
        archive.writestr("__MACOSX/data/multi_news_e.jsonl", b"\x00")
        archive.writestr("data/multi_news_e.jsonl", lines(ROW | {"dataset": "multi_news_e"}))
    task = find_task("longbench_e", "multi_news")
    found = load_examples(task, str(tmp_path), None, 0)
    assert len(found.examples) == 1 and found.examples[0].example_id == "a"
    (tmp_path / "data.zip").unlink()
    write(tmp_path, "multi_news_e.jsonl", lines(ROW | {"dataset": "trec_e"}))
    with pytest.raises(InputError, match="'dataset' is 'trec_e'"):
        load_examples(task, str(tmp_path), None, 0)


def test_a_limit_takes_the_first_rows(tmp_path):
    write(tmp_path, "multi_news.jsonl", lines(*ROWS))
    assert [example.example_id for example in load(tmp_path, 2).examples] == ["a", "b"]
    assert len(load(tmp_path, 99).examples) == 3
    for limit in (0, -1):
        with pytest.raises(InputError, match="limit must be at least 1"):
            load(tmp_path, limit)


@pytest.mark.parametrize("task", ["multi_news", "pocket_qa@4"])
@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (10**9, "at most 100,000, not 1,000,000,000"),
        (10**30, "at most 100,000"),
        (True, "a number of rows, not True"),
        (2.0, "a number of rows, not 2.0"),
        ("2", "a number of rows, not '2'"),
    ],
)
def test_a_limit_that_nobody_means_is_refused(tmp_path, task, limit, told):
    write(tmp_path, "multi_news.jsonl", lines(*ROWS))
    data = str(tmp_path) if task == "multi_news" else None
    with pytest.raises(InputError, match=told):
        load_examples(find_task("longbench", task), data, limit, 0)


def test_numbers_as_answers_are_read_as_text(tmp_path):
    """The authors' `passage_count` compares with `str(ground_truth)`."""
    row = ROW | {"dataset": "passage_count", "answers": [7, 2.5, "eight"]}
    write(tmp_path, "passage_count.jsonl", lines(row))
    task = find_task("longbench", "passage_count")
    (example,) = load(tmp_path, task="passage_count").examples
    assert example.answers == example.label == ["7", "2.5", "eight"]
    assert task.score("There are 7.", example, "official") == 1.0
    assert task.score("There are 8.", example, "official") == 0.0


def test_rows_without_id_are_named_by_their_line(tmp_path):
    anonymous = {key: value for key, value in ROW.items() if key != "_id"}
    write(tmp_path, "multi_news.jsonl", lines(ROW, anonymous))
    assert load(tmp_path).examples[1].example_id == "multi_news:2"


def test_further_fields_are_kept(tmp_path):
    write(tmp_path, "multi_news.jsonl", lines(ROW | {"topic": "news"}))
    assert load(tmp_path).examples[0].row["topic"] == "news"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("task", "documents"),
    [("multi_news", 200), ("multifieldqa_zh", 142), ("passage_retrieval_zh", 200)],
)
def test_the_published_rows_load_and_their_own_answers_score_1(shared, task, documents):
    found = load(shared / "data" / "longbench", task=task)
    assert len(found.examples) == 200
    assert len({example.document_id for example in found.examples}) == documents
    for example in found.examples:
        prompt = find_task("longbench", task).render(example, "official")
        assert example.row["context"] in prompt and example.row["input"] in prompt
        score = find_task("longbench", task).score(example.answers[0], example, "official")
        assert score == pytest.approx(1, abs=1e-6)


# -- refused ------------------------------------------------------------------------------------


def without(field):
    return {key: value for key, value in ROW.items() if key != field}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without("context"), "field 'context' is missing"),
        (without("input"), "field 'input' is missing"),
        (without("answers"), "field 'answers' is missing"),
        (ROW | {"context": " \n"}, "'context' is empty"),
        (ROW | {"context": None}, "'context': input should be a valid string"),
        (ROW | {"answers": []}, "'answers': list should have at least 1 item"),
        (ROW | {"answers": "one"}, "'answers': input should be a valid list"),
        (ROW | {"answers": ["one", True]}, "'answers.1': input should be a valid string"),
        (ROW | {"answers": ["one", None]}, "'answers.1': input should be a valid string"),
        (ROW | {"answers": ["one", ["two"]]}, "'answers.1': input should be a valid string"),
        (json.dumps(ROW | {"_id": "\ud800"}), "'_id' holds half a surrogate pair"),
        (ROW | {"dataset": "trec"}, "'dataset' is 'trec': a row of another task"),
        (ROW | {"length": "long"}, "'length': input should be a valid integer"),
        (ROW | {"length": True}, "'length': input should be a valid integer"),
        (ROW | {"length": "4"}, "'length': input should be a valid integer"),
        (ROW | {"length": 4.0}, "'length': input should be a valid integer"),
        (ROW | {"length": -1}, "'length': input should be greater than or equal to 0"),
        (ROW | {"length": 10**30}, "'length': input should be less than"),
        (ROW | {"length": float("nan")}, "is not usable JSON: NaN is no number"),
        (ROW | {"topic": [{"x": float("-inf")}]}, "is not usable JSON: -Infinity is no number"),
        (json.dumps(ROW)[:-1] + ', "score": 1e999}', "is not usable JSON: 1e999 is out of range"),
        (json.dumps(ROW)[:-1] + ', "_id": "b"}', "is not usable JSON: key '_id' is given twice"),
        (json.dumps(ROW)[:-1] + ', "meta": {"a": 1, "a": 1}}', "key 'a' is given twice"),
        pytest.param("[" * 100_000, "is not usable JSON", id="nested"),
        (ROW | {"_id": "a"}, "id 'a' is that of line 1 too"),
        ('{"context": "half \\ud800", "input": "", "answers": ["a"]}', "half a surrogate pair"),
        ("{", "is not JSON"),
        ("", "is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_an_error_and_never_skipped(tmp_path, row, message):
    path = write(tmp_path, "multi_news.jsonl", lines(ROW, row, ROW | {"_id": "z"}))
    found = problems(tmp_path)
    assert len(found) == 1 and found[0].startswith(f"{path}:2: ") and message in found[0]


def test_all_bad_rows_are_told_even_beyond_the_limit(tmp_path):
    bad = without("context") | {"answers": 3}
    path = write(tmp_path, "multi_news.jsonl", lines(ROW, bad, "x", ROW))
    with pytest.raises(InputError) as caught:
        load(tmp_path, limit=1)
    places = [problem.split(": ")[0] for problem in caught.value.problems]
    assert places == [f"{path}:2", f"{path}:2", f"{path}:3", f"{path}:4"]


def test_a_classification_row_needs_its_classes(tmp_path):
    row = ROW | {"dataset": "trec", "answers": ["City"]}
    write(tmp_path, "trec.jsonl", lines(row, row | {"_id": "b", "all_classes": ["City"]}))
    found = problems(tmp_path, "trec")
    assert len(found) == 1 and "trec.jsonl:1: 'all_classes'" in found[0]


def test_a_wrong_folder_is_told_with_what_was_looked_for(tmp_path):
    write(tmp_path, "other.jsonl", lines(ROW))
    assert problems(tmp_path) == [
        f"task 'multi_news': no rows in {tmp_path}; looked for multi_news.jsonl, "
        "multi_news.jsonl.gz, multi_news.parquet, multi_news-*.parquet, multi_news/test*.parquet, "
        "multi_news/*.parquet, multi_news/state.json (saved by datasets), the same in data/ or "
        "default/, data.zip, there and one folder below"
    ]
    assert problems(tmp_path / "none") == [f"data folder {tmp_path}/none does not exist"]
    (told,) = problems(tmp_path / "other.jsonl")
    assert f"{tmp_path}/other.jsonl is not named as its rows are, which is multi_news.j" in told
    assert problems("") == ["--data: the name of a folder is empty"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("multi_news.parquet", "is not a whole Parquet file"),
        ("data.zip", "is not a whole zip file"),
        ("multi_news.jsonl", "is empty: there are no rows"),
    ],
)
def test_an_empty_file_is_an_error(tmp_path, name, message):
    write(tmp_path, name, b"")
    assert message in problems(tmp_path)[0]


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_archive_is_told(tmp_path, share):
    write(tmp_path, "whole.jsonl", b"")
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/multi_news.jsonl", lines(*ROWS) * 50)
    content = (tmp_path / "data.zip").read_bytes()
    write(tmp_path, "data.zip", content[: int(len(content) * share)])
    assert problems(tmp_path)[0].startswith(f"{tmp_path}/data.zip: is not a whole zip file")
    write(tmp_path, "data.zip", content[:60] + b"\xff" * 9 + content[69:])
    told = f"{tmp_path}/data.zip/data/multi_news.jsonl: cannot be unpacked whole: "
    assert problems(tmp_path)[0].startswith(told)


def test_a_truncated_parquet_file_is_told(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = write(tmp_path, "multi_news.parquet", b"")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert problems(tmp_path)[0].startswith(f"{path}: is not a whole Parquet file")


@pytest.mark.parametrize(
    ("benchmark", "task", "row", "message"),
    [
        ("longbench", "multi_news", "infinitebench", "'answer' is a key of infinitebench"),
        ("longbench", "multi_news", "lveval", "'answer_keywords' is a key of lveval"),
        ("lveval", "hotpotwikiqa_mixup_16k", "infinitebench", "'answer' is a key of infinite"),
        ("lveval", "hotpotwikiqa_mixup_16k", "longbench", "'_id' is a key of longbench"),
        ("infinitebench", "passkey", "longbench", "'_id' is a key of longbench"),
        ("infinitebench", "passkey", "lveval", "is a key of lveval"),
    ],
)
def test_rows_of_another_benchmark_are_told_as_such(tmp_path, benchmark, task, row, message):
    content = {"infinitebench": INFINITEBENCH_ROW, "lveval": LVEVAL_ROW, "longbench": ROW}[row]
    path = write(tmp_path, f"{task}.jsonl", lines(content))
    with pytest.raises(InputError) as caught:
        load_examples(find_task(benchmark, task), str(tmp_path), None, 0)
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"{path}:1: ") and message in str(caught.value)


# -- the hub ------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub cache that holds the file, and the calls made for it."""
    import huggingface_hub

    path = tmp_path / "datasets--THUDM--LongBench" / "snapshots" / "0123abc" / "data.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/multi_news.jsonl", lines(*ROWS))
    calls = []

    def hf_hub_download(repository, file, **options):
        calls.append((repository, file, options))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    hub_files.forget_downloads()
    yield calls
    hub_files.forget_downloads()


def from_hub():
    return load_examples(find_task("longbench", "multi_news"), None, None, 0)


def test_the_commit_that_the_hub_gave_is_recorded(hub):
    found = from_hub()
    assert [example.row for example in found.examples] == ROWS
    assert found.files[0]["revision"] == "0123abc"
    assert hub == [("THUDM/LongBench", "data.zip", {"repo_type": "dataset", "revision": "main"})]


def test_the_revision_can_be_pinned(hub, monkeypatch):
    monkeypatch.setenv(hub_files.REVISION_VARIABLE, "0123abc")
    from_hub()
    assert hub[0][2]["revision"] == "0123abc"


@pytest.fixture
def moving_hub(monkeypatch, tmp_path):
    """A hub whose branch `main` moves with every file that is asked of it by that name."""
    import huggingface_hub

    calls = []

    def hf_hub_download(repository, file, repo_type, revision):
        calls.append((file, revision))
        commit = f"{len(calls):040x}" if revision == "main" else revision
        path = tmp_path / repository.replace("/", "--") / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        row = INFINITEBENCH_ROW | {"context": f"At {commit} the pass key is 71432."}
        path.write_bytes(lines(row))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    hub_files.forget_downloads()
    yield calls
    hub_files.forget_downloads()


def test_all_files_of_a_repository_are_of_one_commit(moving_hub):
    names = ["passkey", "number_string", "passkey", "kv_retrieval"]
    found = [load_examples(find_task("infinitebench", name), None, None, 0) for name in names]
    commit = f"{1:040x}"
    assert moving_hub == [
        ("passkey.jsonl", "main"),
        ("number_string.jsonl", commit),
        ("kv_retrieval.jsonl", commit),
    ]
    assert {file["revision"] for source in found for file in source.files} == {commit}
    assert {e.row["context"] for source in found for e in source.examples} == {
        f"At {commit} the pass key is 71432."
    }


def test_a_file_that_the_commit_of_the_others_lacks_is_told_with_it(moving_hub, monkeypatch):
    import huggingface_hub

    load_examples(find_task("infinitebench", "passkey"), None, None, 0)

    def absent(repository, file, repo_type, revision):
        raise FileNotFoundError(f"no {file} there")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    with pytest.raises(InputError) as caught:
        load_examples(find_task("infinitebench", "math_calc"), None, None, 0)
    assert f"(revision main, commit {1:040x}, as its other files)" in str(caught.value)


def run_offline(home, code):
    """What `code` prints in a new process that may use the hub's cache in `home` only."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    environment.pop(hub_files.REVISION_VARIABLE, None)
    start = (
        "import json\n"
        "from tasks.registry import find_task\n"
        "from tasks.sources import load_examples\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start + code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


INFINITEBENCH_ROW = {
    "id": 0,
    "context": "The pass key is 71432.",
    "input": "What is the pass key?",
    "answer": ["71432"],
    "options": [],
}
LVEVAL_ROW = {
    "input": "Who?",
    "context": "Ann did.",
    "answers": ["Ann"],
    "length": 2,
    "dataset": "hotpotwikiqa_mixup",
    "language": "en",
    "answer_keywords": "Ann",
    "confusing_facts": ["Bo did."],
}
IN_CACHE = [
    ("longbench", "multi_news", "THUDM--LongBench", "data.zip", "data/multi_news.jsonl", ROW),
    ("longbench_e", "multi_news", "THUDM--LongBench", "data.zip", "data/multi_news_e.jsonl", ROW),
    (
        "lveval",
        "hotpotwikiqa_mixup_16k",
        "Infinigence--LVEval",
        "hotpotwikiqa_mixup.zip",
        "hotpotwikiqa_mixup/hotpotwikiqa_mixup_16k.jsonl",
        LVEVAL_ROW,
    ),
    (
        "infinitebench",
        "passkey",
        "xinrongzhang2022--InfiniteBench",
        "passkey.jsonl",
        None,
        INFINITEBENCH_ROW,
    ),
]


def test_the_files_of_every_benchmark_are_read_from_the_hubs_cache(tmp_path):
    """As huggingface_hub lays it out: `main` stands for a commit, under which the file lies."""
    commits = {repository: f"{n:x}" * 40 for n, (_, _, repository, *_) in enumerate(IN_CACHE)}
    for _, _, repository, file, member, row in IN_CACHE:
        place, commit = tmp_path / "hub" / f"datasets--{repository}", commits[repository]
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text(commit)
        path = place / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if member is None:
            path.write_bytes(lines(row))
            continue
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(member, lines(row))
    asked = [(benchmark, task) for benchmark, task, *_ in IN_CACHE]
    printed = run_offline(
        tmp_path,
        f"for benchmark, task in {asked}:\n"
        "    found = load_examples(find_task(benchmark, task), None, None, 0)\n"
        "    print(json.dumps([found.examples[0].row, found.files[0]]))\n",
    )
    assert len(printed) == len(IN_CACHE)
    for line, (_, _, repository, _, _, row) in zip(printed, IN_CACHE, strict=True):
        found, file = json.loads(line)
        assert found == row and f"--{repository}/snapshots/{file['revision']}/" in file["path"]
        assert file["revision"] == commits[repository]
        assert file["sha256"] == hashlib.sha256(lines(row)).hexdigest()


def test_offline_without_the_file_tells_what_to_place_where(tmp_path):
    asked = [
        ("longbench", "trec"),
        ("longbench_e", "lcc"),
        ("lveval", "cmrc_mixup_64k"),
        ("infinitebench", "passkey"),
    ]
    printed = run_offline(
        tmp_path,
        f"for benchmark, task in {asked}:\n"
        "    try:\n"
        "        load_examples(find_task(benchmark, task), None, None, 0)\n"
        "    except ValueError as error:\n"
        "        print(error)\n",
    )
    assert len(printed) == 4
    assert printed[0] == printed[1]  # one for all tasks in the file, so that it is told once
    files = [
        ("THUDM/LongBench", "data.zip", " (or unpack it to FOLDER/data/<task>.jsonl)"),
        (
            "Infinigence/LVEval",
            "cmrc_mixup.zip",
            " (or unpack it to FOLDER/cmrc_mixup/cmrc_mixup_<level>.jsonl)",
        ),
        ("xinrongzhang2022/InfiniteBench", "passkey.jsonl", ""),
    ]
    for message, (repository, file, unpacked) in zip(printed[1:], files, strict=True):
        assert message.startswith(f"{file} of the data set {repository} (revision main)")
        assert "HF_HUB_OFFLINE is set and it is not in the local cache" in message
        assert f"/{repository}/resolve/main/{file}, " in message
        assert f"place it here as FOLDER/{file}{unpacked}, and give --data FOLDER." in message


@pytest.mark.parametrize("data", ["elsewhere", "longbench"])
def test_rows_of_pocket_tasks_are_not_read_from_elsewhere(data):
    task = find_task("longbench", "pocket_qa@4")
    with pytest.raises(InputError, match=f"are generated here; leave --data {data} out"):
        load_examples(task, data, 2, 0)
    assert load_examples(task, None, 2, 0) == load_examples(task, "pocket", 2, 0)
