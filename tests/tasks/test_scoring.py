"""Files of predictions: what is understood, what is refused, and how it is told."""

import gzip
import json
import random
import time
from types import SimpleNamespace

import pytest

from common.errors import InputError
from tasks.averages import Scored
from tasks.scoring import benchmark_score, score_file, score_per_length

GOOD = {"pred": "Paris", "answers": ["Paris", "paris"], "all_classes": None, "length": 3}


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "predictions.jsonl"


def score(path, task="hotpotqa", protocol="official"):
    return score_file(path, "longbench", task, protocol)


def problems(path, task="hotpotqa", protocol="official"):
    with pytest.raises(InputError) as caught:
        score(path, task, protocol)
    return [problem.removeprefix(str(path)) for problem in caught.value.problems]


# -- understood ---------------------------------------------------------------------------------


def test_the_authors_lines_and_ours_may_stand_in_one_file(path):
    ours = {"prediction": "London", "answers": ["Paris"], "task": "hotpotqa", "score": 0.5}
    assert score(write(path, GOOD, ours, GOOD | {"pred": "Paris London"})) == [1.0, 0.0, 2 / 3]


def test_a_gzipped_file_is_known_by_its_content(path):
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert score(path) == [1.0]


def test_lines_end_at_newlines_only(path):
    texts = ["Paris\u2028", "\u2028Paris", "Pa\u0085ris", "\u0085Paris\u2029"]
    rows = [GOOD | {"pred": text} for text in texts]
    assert score(write(path, *rows)) == [1.0, 1.0, 0.0, 1.0]


def test_a_byte_order_mark_windows_newlines_and_no_last_newline_are_fine(path):
    line = json.dumps(GOOD).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    assert score(path) == [1.0, 1.0]


def test_the_protocol_decides_what_is_scored(path):
    write(path, GOOD | {"pred": "Paris (Document 1) says so"})
    assert score(path, protocol="ahn") == [1.0]
    assert score(path)[0] < 1


def test_the_last_lines_classes_are_those_of_the_file(path):
    row = {"pred": "City", "answers": ["City"], "length": 1}
    write(path, row | {"all_classes": ["Food"]}, row | {"all_classes": ["City", "Cit"]})
    assert score(path, "trec") == [1.0, 1.0]
    write(path, row | {"all_classes": ["City"]}, row | {"all_classes": ["Food"]})
    assert score(path, "trec") == [0.0, 0.0]


def test_without_classes_in_the_last_line_each_line_has_its_own(path):
    row = {"pred": "City", "answers": ["City"], "length": 1}
    write(path, row | {"all_classes": ["City"]}, row | {"all_classes": None})
    assert score(path, "trec") == [1.0, 0.0]


def test_classes_may_be_left_out_where_they_are_not_needed(path):
    write(path, {"pred": "Paris", "answers": ["Paris"]})
    assert score(path) == [1.0]
    assert problems(path, "trec") == [":1: field 'all_classes' is missing"]


@pytest.mark.parametrize(
    ("benchmark", "task", "right", "wrong"),
    [
        ("longbench", "passage_count", "There are 7", "8"),
        ("longbench_e", "passage_count", "7", "71"),
        ("lveval", "cmrc_mixup", "7", "8"),
    ],
)
def test_numbers_as_answers_are_read_as_text(path, benchmark, task, right, wrong):
    write(path, {"pred": right, "answers": [7]}, {"pred": wrong, "answers": [7]})
    assert score_file(path, benchmark, task, "official") == [1.0, 0.0]
    as_text = path.with_name("text.jsonl")
    write(as_text, {"pred": right, "answers": ["7"]}, {"pred": wrong, "answers": ["7"]})
    assert score_file(as_text, benchmark, task, "official") == [1.0, 0.0]


@pytest.mark.parametrize("key", ["ground_truth", "label"])
@pytest.mark.parametrize("gold", [[True], [[1, False]], {"a": 1}, [None], [{"a": 1}]])
def test_what_equals_no_answer_is_no_gold(path, key, gold):
    """In Python True equals 1: a boolean would count as a right answer."""
    record = {"prediction": "1", key: gold} | ({"answers": ["1"]} if key == "label" else {})
    with pytest.raises(InputError, match=f"{path}:1: '{key}' "):
        score_file(write(path, record), "infinitebench", "code_run", "official")


def test_no_answers_score_0(path):
    assert score(write(path, GOOD | {"answers": []})) == [0.0]


def test_a_record_of_an_error_counts_as_an_empty_prediction(path):
    record = {"prediction": None, "error": "CUDA out of memory", "answers": ["Paris"]}
    assert score(write(path, GOOD, record)) == [1.0, 0.0]
    assert problems(write(path, record | {"error": None})) == [
        ":1: 'prediction': should be text, is a JSON NoneType"
    ]


def test_the_printed_figure_is_a_percentage_with_two_decimals():
    assert benchmark_score([1.0, 0.0, 0.0]) == 33.33
    with pytest.raises(InputError):
        benchmark_score([])


@pytest.mark.parametrize(
    ("task", "count", "seconds"), [("hotpotqa", 10_000, 10), ("multifieldqa_zh", 2_000, 4)]
)
@pytest.mark.slow
def test_ten_thousand_answers_are_scored_in_under_ten_seconds(path, task, count, seconds):
    draw = random.Random(0)
    words = ["北京", "厦门大学", "在", "第十八届", "年会", "举办", "，", "2019年", "the ", " cat "]
    rows = [
        GOOD | {"pred": "".join(draw.choices(words, k=30)), "answers": [words[n % 10] * 2]}
        for n in range(count)
    ]
    write(path, *rows)
    started = time.process_time()  # of this process: others may be busy on the machine
    assert len(score_file(path, "longbench", task, "official", workers=1)) == count
    assert time.process_time() - started < seconds + 2  # jieba reads its dictionary


# -- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes (column 2)"),
        ("", "is empty"),
        ("[1]", "is a JSON list, not an object"),
        ("[" * 100_000, "is not usable JSON"),
        ('{"answers": ["a"]}', "field 'pred' (or 'prediction') is missing"),
        ('{"pred": "a"}', "field 'answers' is missing"),
        ('{"pred": 1, "answers": ["a"]}', "'pred': should be text, is a JSON int"),
        ('{"pred": "a", "answers": "a"}', "'answers': input should be a valid list"),
        ('{"pred": "a", "answers": [true]}', "'answers.0': input should be a valid string"),
        ('{"pred": "a", "answers": [null]}', "'answers.0': input should be a valid string"),
        ('{"pred": "a", "answers": ["a"], "pred": "b"}', "key 'pred' is given twice"),
        ('{"pred": "a", "answers": ["a"], "length": true}', "'length': input should be a valid in"),
        ('{"pred": "a", "answers": ["a"], "length": "4"}', "'length': input should be a valid in"),
        ('{"pred": "a", "answers": ["a"], "length": 4.0}', "'length': input should be a valid in"),
        ('{"pred": "a", "answers": ["a"], "length": -4}', "'length': input should be greater"),
        ('{"pred": "a", "answers": ["a"], "length": NaN}', "NaN is no number of JSON"),
        ('{"pred": "a", "prediction": "b", "answers": ["a"]}', "both given and differ"),
        (
            '{"pred": "a", "answers": ["a"], "task": "trec"}',
            "'task' is 'trec', but 'hotpotqa' is being scored",
        ),
        (
            '{"pred": "a", "answers": ["a"], "dataset": "musique"}',
            "'dataset' is 'musique', but 'hotpotqa' is being scored",
        ),
        (
            '{"pred": "a", "answers": ["a"], "benchmark": "lveval"}',
            "'benchmark' is 'lveval', but 'longbench' is being scored",
        ),
    ],
)
def test_a_bad_line_is_named(path, line, message):
    found = problems(write(path, GOOD, line, GOOD))
    assert len(found) == 1 and found[0].startswith(":2: ") and message in found[0]


def test_every_bad_line_is_told_in_the_order_of_the_file(path):
    write(path, {"pred": "a"}, "{", GOOD, {"pred": 1, "answers": [[]]}, "7")
    assert [problem.split(": ")[0] for problem in problems(path)] == [":1", ":2", ":4", ":4", ":5"]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(GOOD, indent=1).encode(),
        (json.dumps(GOOD) + "\n" + json.dumps(GOOD)).encode("utf-16"),
        b"pred,answers\nParis,Paris\n",
        json.dumps([GOOD, GOOD], indent=1).encode(),
    ],
)
def test_a_file_that_is_something_else_is_one_problem(path, content):
    path.write_bytes(content)
    (problem,) = problems(path)
    assert problem.startswith(":1: is not ") or problem.startswith(":1: is a JSON")
    assert problem.endswith("; no line is a JSON object, as each should be")


def test_of_a_line_of_another_task_nothing_else_is_told(path):
    write(path, {"answers": 1, "dataset": "trec", "benchmark": "lveval"})
    assert problems(path) == [
        ":1: 'benchmark' is 'lveval', but 'longbench' is being scored",
        ":1: 'dataset' is 'trec', but 'hotpotqa' is being scored",
    ]


@pytest.mark.parametrize(
    ("benchmark", "task", "line", "told"),
    [
        ("longbench", "hotpotqa", {"ground_truth": ["a"]}, "'ground_truth' is a key of infinite"),
        ("longbench", "hotpotqa", GOOD | {"gold_ans": "a"}, "'gold_ans' is a key of lveval"),
        ("longbench_e", "hotpotqa", GOOD | {"gold_ans": None}, "'gold_ans' is a key of lveval"),
        ("infinitebench", "passkey", GOOD | {"gold_ans": "a"}, "'gold_ans' is a key of lveval"),
        ("lveval", "cmrc_mixup", {"ground_truth": "a"}, "'ground_truth' is a key of infinite"),
        ("longbench", "hotpotqa", GOOD | {"task": "hotpotqa_e"}, "'task' is 'hotpotqa_e'"),
        ("longbench_e", "hotpotqa", GOOD | {"benchmark": "longbench"}, "'benchmark' is 'longb"),
    ],
)
def test_a_file_of_another_benchmark_is_given_away(path, benchmark, task, line, told):
    with pytest.raises(InputError) as caught:
        score_file(write(path, {"prediction": "a"} | line), benchmark, task, "official")
    assert len(caught.value.problems) == 1 and caught.value.problems[0].startswith(f"{path}:1: ")
    assert told in caught.value.problems[0]


@pytest.mark.parametrize("name", ["hotpotqa", "hotpotqa_e", "longbench_e_hotpotqa"])
def test_a_line_may_spell_its_task_in_other_ways(path, name):
    write(path, GOOD | {"task": name, "dataset": "hotpotqa"})
    assert score_file(path, "longbench_e", "hotpotqa", "official_e") == [1.0]


@pytest.mark.parametrize("key", ["example_id", "_id", "id"])
def test_an_example_may_be_there_once(path, key):
    write(path, GOOD | {key: 7}, GOOD | {key: 8}, GOOD | {key: 7})
    assert problems(path) == [":3: example 7 is that of line 1 too"]


def test_an_example_may_be_tried_again_and_answered_by_other_variants(path):
    mine = GOOD | {"example_id": "a"}
    failed = mine | {"pred": None, "error": "out of memory"}
    write(path, failed, mine, mine | {"variant": "window"})
    assert score(path) == [0.0, 1.0, 1.0]


def rows_file(folder, count):
    row = {"input": "?", "context": "c", "answers": ["Paris"]}
    folder.mkdir(exist_ok=True)
    return write(folder / "hotpotqa.jsonl", *[row] * count)


def test_a_file_must_be_as_long_as_the_data(path, tmp_path):
    write(path, GOOD, GOOD)
    data = tmp_path / "rows"

    def score_with(count):
        rows_file(data, count)
        return score_file(path, "longbench", "hotpotqa", "official", data=str(data))

    assert score_with(2) == [1.0, 1.0]
    with pytest.raises(InputError) as caught:
        score_with(5)
    expected = f"{path}:3: ends after 2 predictions, but {data}/hotpotqa.jsonl has 5 rows"
    assert str(caught.value) == expected
    with pytest.raises(InputError) as caught:
        score_with(1)
    assert str(caught.value).startswith(f"{path}:2: is one prediction too many: ")


# -- in several processes -----------------------------------------------------------------------


def summaries(count, words):
    draw = random.Random(1)
    stock = [f"word{number}" for number in range(words)]
    return [
        GOOD | {"pred": " ".join(draw.choices(stock, k=words)), "answers": [" ".join(stock)]}
        for _ in range(count)
    ]


def test_workers_give_the_same_scores_in_the_same_order(path):
    write(path, *summaries(37, 60))
    told = []
    alone = score_file(path, "longbench", "gov_report", "official", workers=1)
    assert len(set(alone)) > 20
    together = score_file(
        path,
        "longbench",
        "gov_report",
        "official",
        workers=2,
        watch=lambda *done: told.append(done),
    )
    assert together == alone
    assert told[-1] == (37, 37) and told == sorted(told)


def test_slow_files_go_to_workers_and_quick_ones_do_not(path, monkeypatch):
    from tasks import workers

    handed = []

    def together(predictions, task, protocol, progress, count):
        handed.append(len(predictions))
        return [0.5] * len(predictions)

    monkeypatch.setattr(workers, "_together", together)
    monkeypatch.setattr(workers, "_processors", lambda: 2)
    write(path, *summaries(20, 30))
    assert 0.5 not in score(path, "gov_report") and not handed
    monkeypatch.setattr(workers, "ALONE_SECONDS", 0)
    monkeypatch.setattr(workers, "WORTH_SECONDS", 0)
    scores = score(path, "gov_report")
    assert scores[0] != 0.5 and scores[1:] == [0.5] * 19 and handed == [19]


def test_a_worker_that_dies_is_made_up_for(path, monkeypatch):
    from concurrent.futures import BrokenExecutor, Future

    from tasks import workers

    class Dying:
        """A pool whose process answers once and is then killed."""

        def __init__(self, *arguments, **options):
            self.answered = False

        def submit(self, function, *arguments):
            future: Future = Future()
            if self.answered:
                future.set_exception(BrokenExecutor())
            else:
                future.set_result(function(*arguments))
            self.answered = True
            return future

        def shutdown(self, **options):
            pass

    write(path, *summaries(9, 20))
    alone = score(path, "gov_report")
    monkeypatch.setattr(workers, "ProcessPoolExecutor", Dying)
    told = []
    scores = score_file(
        path,
        "longbench",
        "gov_report",
        "official",
        workers=2,
        watch=lambda *done: told.append(done),
    )
    assert scores == alone and told[-1] == (9, 9)


def test_processes_are_as_many_as_the_processors_that_may_be_used(monkeypatch):
    from tasks import workers

    allowed = {0, 3, 5}
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda process: allowed, raising=False)
    assert workers._processors() == 3
    monkeypatch.delattr(workers.os, "sched_getaffinity")
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 7)
    assert workers._processors() == 7
    daemon = SimpleNamespace(daemon=True)  # such a process may have none of its own
    monkeypatch.setattr(workers.multiprocessing, "current_process", lambda: daemon)
    assert workers._processors() == 1


def test_figures_by_length_are_those_of_the_task_alone():
    lines = [Scored(0.2, 10), Scored(0.4, 10), Scored(1.0, 9000)]
    expected = {"0-4k": 30.0, "8k+": 100.0}
    for name in ("hotpotqa_e", "hotpotqa"):
        assert score_per_length("longbench_e", name, lines) == expected
    assert score_per_length("longbench", "hotpotqa", lines) == {}


def test_no_workers_at_all_are_refused(path):
    with pytest.raises(InputError, match="workers must be at least 1, not 0"):
        score_file(write(path, GOOD), "longbench", "hotpotqa", "official", workers=0)


@pytest.mark.slow
def test_a_file_wrong_in_every_line_is_told_in_brief(path):
    found = problems(write(path, *[{"pred": "a"}] * 1000))
    assert found == [":1: field 'answers' is missing (also of lines 2, 3, and of 997 more)"]
    keys = ({"pred": "a", "dataset": f"task{number}"} for number in range(1000))
    found = problems(write(path, *keys))
    assert len(found) == 51 and found[-1] == ": 950 further problems"


def test_bytes_that_are_not_utf8_are_named(path):
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"pred": "\xff"}\n')
    assert problems(path) == [":2: is not UTF-8 (byte 11 of the line)"]


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_an_error(path, content):
    path.write_bytes(content)
    assert problems(path) == [": is empty: there are no predictions to score"]


@pytest.mark.parametrize("cut", [12, -6])
def test_a_torn_gzip_file_is_an_error(path, cut):
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 50)[:cut])
    assert "is not a whole gzip file" in problems(path)[0]


def test_a_file_that_is_not_there_and_a_folder_are_errors(path, tmp_path):
    assert problems(path) == [": no such file"]
    assert problems(tmp_path)[0].endswith("is a folder, not a file")


def test_an_unknown_task_or_protocol_is_told_before_the_file_is_read(path):
    with pytest.raises(InputError, match="did you mean 'hotpotqa'"):
        score(path, "hotpotQA")
    with pytest.raises(InputError, match="unknown protocol 'paper'"):
        score(path, protocol="paper")
