"""RULER as a benchmark: names, lengths, rows made and given, metrics, files and averages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from tasks.averages import Scored, benchmark_tables
from tasks.lm_eval import rows as lm_eval_rows
from tasks.making import Making
from tasks.predictions import read_predictions
from tasks.registry import at_length, expand, find_task, group_names, task_names
from tasks.ruler import generators
from tasks.ruler import rows as ruler
from tasks.ruler.synthetic import problems
from tasks.scoring import benchmark_score, score_file
from tasks.sources import load_examples
from tests.tasks.authors_formulas import ruler_score
from tests.tasks.ruler import texts
from tests.tasks.ruler.texts import words_in

MAKING = Making(words_in, str, "0" * 64)


@pytest.fixture
def essay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(generators, "_sentences", texts.sentences)
    (tmp_path / "essay.txt").write_text(texts.essay())
    return tmp_path / "essay.txt"


# -- names -----------------------------------------------------------------------------------------


def test_all_tasks_of_the_authors_are_there_with_their_groups() -> None:
    assert set(task_names("ruler")) == set(ruler.TASKS) and len(ruler.TASKS) == 13
    assert group_names("ruler") == ["ruler", "ruler_niah", "ruler_no_download"]
    members = {
        group: {task.name for task in expand("ruler", [group], None)}
        for group in group_names("ruler")
    }
    assert members["ruler_niah"] == set(ruler.NEEDLES) and len(ruler.NEEDLES) == 8
    assert members["ruler_no_download"] == set(ruler.WITHOUT_FILES)


def test_new_tokens_are_those_that_a_row_leaves_room_for() -> None:
    for name in ruler.TASKS:
        rules = find_task("ruler", name).protocols["official"]
        of = {
            "vt": generators.VARIABLE_TRACKING,
            "cwe": generators.COMMON_WORDS,
            "fwe": generators.FREQUENT_WORDS,
            "qa_1": generators.QUESTION_ANSWERING,
            "qa_2": generators.QUESTION_ANSWERING,
        }.get(name, generators.NIAH)
        assert rules.max_new_tokens == of.answer_tokens
        assert rules.metric == ("string_match_part" if "qa_" in name else "string_match_all")
        assert rules.seed == ruler.SEED and rules.truncation == "none" and not rules.postprocess


@pytest.mark.parametrize("name", ["vt_4096", "vt@4k", "ruler/vt_4k", "vt_5000"])
def test_a_task_has_any_length_that_is_named(name: str) -> None:
    task = find_task("ruler", name)
    assert task.length == (5000 if "5000" in name else 4096)
    assert task.name == f"vt_{task.length}" and task.dataset == "vt"
    assert at_length(task, 8192).name == "vt_8192"
    assert find_task("ruler", "vt").length is None


@pytest.mark.parametrize("name", ["vt_", "vt_0", "vt_many", "niah_single_4", "vt_99999999999"])
def test_what_is_no_length_is_no_task(name: str) -> None:
    with pytest.raises(InputError, match="unknown task"):
        find_task("ruler", name)


# -- rows that are made ----------------------------------------------------------------------------


def test_rows_are_the_generators_and_name_what_made_them(essay: Path) -> None:
    making = Making(words_in, str, "ab" * 32, 25, {"essay": essay})
    source = load_examples(find_task("ruler", "niah_single_2_2000"), None, 2, 7, making=making)
    files = ruler.Files(essay=essay)
    made = list(ruler.rows("niah_single_2", 2000, words_in, 2, 7, files, 25))
    assert [example.row for example in source.examples] == made
    assert [example.example_id for example in source.examples] == [
        "niah_single_2_2000:1",
        "niah_single_2_2000:2",
    ]
    digest = generators_digest(essay)
    assert source.made_of == {
        "length": 2000,
        "seed": 7,
        "tokenizer_sha256": "ab" * 32,
        "chat_template_tokens": 25,
        "files": {"essay": digest},
    }
    assert source.files[1] == {"path": str(essay), "sha256": digest, "revision": None}
    assert "length=2000&seed=7&tokenizer_sha256=abab" in str(source.files[0]["path"])


def generators_digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_distance_of_a_single_needle_is_known() -> None:
    task = find_task("ruler", "niah_single_1_1500")
    (example,) = load_examples(task, None, 1, 42, making=MAKING).examples
    text = example.row["input"] + example.row["answer_prefix"]
    place = text.find(example.answers[0])
    behind = words_in(text) - words_in(text[:place])
    assert example.attributes == {"length": 1500, "evidence_distance": behind}


def test_a_shorter_list_is_the_beginning_of_a_longer_one() -> None:
    task = find_task("ruler", "fwe_1500")
    longer = load_examples(task, "synthetic", 3, 42, making=MAKING).examples
    shorter = load_examples(task, None, 2, 42, making=MAKING).examples
    assert shorter == longer[:2]


def test_without_a_tokenizer_or_a_length_there_are_no_rows() -> None:
    with pytest.raises(InputError, match="run_eval rows ruler --tokenizer MODEL"):
        load_examples(find_task("ruler", "vt_4096"), None, 1, 42)
    with pytest.raises(InputError, match="--lengths: needed"):
        load_examples(find_task("ruler", "vt"), None, 1, 42, making=MAKING)


def test_what_is_wrong_is_known_before_anything_is_made(tmp_path: Path, essay: Path) -> None:
    tasks = ["niah_single_2", "niah_multivalue", "vt"]
    (told,) = problems(tasks, MAKING)
    assert told.startswith("--essay: needed by niah_single_2, niah_multivalue: the authors'")
    assert "--tasks ruler_no_download needs none" in told
    assert problems(tasks, Making(words_in, str, "", 0, {"essay": essay})) == []
    (told,) = problems(["vt"], Making(words_in, str, "", 0, {"squad": essay}))
    assert told == "--squad: none of these tasks reads it"
    missing = Making(words_in, str, "", 0, {"essay": tmp_path / "missing.txt"})
    (told,) = problems(tasks, missing)
    assert told == f"--essay: {tmp_path}/missing.txt: no such file"
    (told,) = problems(["vt"], Making(words_in, lambda text: text.replace("7", ""), ""))
    assert told.startswith("--tokenizer: cannot write RULER's texts")
    assert problems(["vt"], Making(words_in, lambda text: f" {text}".replace(": ", ":"), "")) == []


def test_missing_data_of_nltk_is_said_once(monkeypatch: pytest.MonkeyPatch, essay: Path) -> None:
    def missing(text: str) -> list[str]:
        raise InputError("NLTK's data is not here")

    monkeypatch.setattr(generators, "_sentences", missing)
    making = Making(words_in, str, "", 0, {"essay": essay})
    assert problems(list(ruler.NEEDLES), making) == ["NLTK's data is not here"]


# -- rows that are given ---------------------------------------------------------------------------


def written(folder: Path, name: str, length: int = 1500, rows: int = 2) -> list[dict[str, Any]]:
    made = list(ruler.rows(name.split("/")[0], length, words_in, rows))
    path = folder / (name if name.endswith("jsonl") else f"{name}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return made


def test_files_of_the_authors_are_read(tmp_path: Path) -> None:
    flat = written(tmp_path / "flat", "vt")
    theirs = written(tmp_path / "theirs", "fwe/validation.jsonl")
    by_length = written(tmp_path / "run" / "1200" / "data", "vt/validation.jsonl", 1200)
    source = load_examples(find_task("ruler", "vt"), str(tmp_path / "flat"), None, 0)
    assert [example.row for example in source.examples] == flat and source.made_of is None
    assert source.examples[0].attributes == {}
    source = load_examples(find_task("ruler", "fwe"), str(tmp_path / "theirs"), None, 0)
    assert [example.row for example in source.examples] == theirs
    source = load_examples(find_task("ruler", "vt_1200"), str(tmp_path / "run"), None, 0)
    assert [example.row for example in source.examples] == by_length
    assert source.examples[0].attributes == {"length": 1200}
    with pytest.raises(InputError, match="has no folder 4096"):
        load_examples(find_task("ruler", "vt_4096"), str(tmp_path / "run"), None, 0)


def test_rows_longer_than_their_folder_says_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "1000", "vt", 1500)
    with pytest.raises(InputError, match=r"'length' is 1\d\d\d, more than the 1000 tokens"):
        load_examples(find_task("ruler", "vt_1000"), str(tmp_path), None, 0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"outputs": ["a"]}, "field 'input' is missing"),
        ({"input": "a", "outputs": []}, "'outputs'"),
        ({"input": "a", "outputs": "a"}, "'outputs'"),
        ({"input": "a", "outputs": ["a"], "answer_prefix": 1}, "'answer_prefix'"),
        ({"context": "a", "input": "b", "answers": ["a"]}, "field 'outputs' is missing"),
    ],
)
def test_rows_that_lack_something_are_refused(tmp_path: Path, row: Any, said: str) -> None:
    (tmp_path / "vt.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=said):
        load_examples(find_task("ruler", "vt"), str(tmp_path), None, 0)


@pytest.mark.parametrize("name", ruler.TASKS)
def test_the_document_ends_where_the_question_begins(
    essay: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "squad.json").write_text(json.dumps(texts.squad()))
    (tmp_path / "hotpotqa.json").write_text(json.dumps(texts.hotpotqa()))
    files = ruler.Files(essay, None, tmp_path / "squad.json", tmp_path / "hotpotqa.json")
    (row,) = ruler.rows(name, 2500, words_in, 1, 42, files)
    task = find_task("ruler", name)
    document = task.adapter.context(row)
    fields = task.adapter.fields(row, task, "official")
    assert fields["context"] == document and document + fields["question"] == row["input"]
    asked = {"vt": "Find all variables", "cwe": "the 10 most common", "fwe": "Do not provide"}
    begin = "Who is" if name == "qa_2" else "What is" if name == "qa_1" else "What "
    assert asked.get(name, begin) in fields["question"][:40]
    assert len(fields["question"]) < 260


# -- metrics ---------------------------------------------------------------------------------------


ANSWERS = {
    "niah_single_1": ["7402184"],
    "niah_multivalue": ["7402184", "1234567", "9999999", "5550000"],
    "niah_multikey_3": ["0b9e1c1e-7c2f-4a6e-9a8e-5f0d7f1f3a10"],
    "vt": ["ABCDE", "FGHIJ", "KLMNO", "PQRST", "UVWXY"],
    "cwe": ["apple", "pear", "fig", "plum", "kiwi", "lime", "date", "nut", "bean", "pea"],
    "fwe": ["abcdef", "ghijkl", "mnopqr"],
    "qa_1": ["Denver Broncos", "The Denver Broncos", "Broncos"],
    "qa_2": ["3,677 seated"],
}


def predictions_of(answers: list[str]) -> list[str]:
    """Right, partly right, in another case, a list of everything, in other words, and odd ones."""
    half = answers[: (len(answers) + 1) // 2]
    return [
        ", ".join(answers),
        ", ".join(half),
        ", ".join(answers).upper(),
        "   " + "\n".join(answers).lower() + " \n",
        " ".join(f"{n}" for n in range(200)) + " ".join(answers),
        "x".join(answers),
        "\t".join(" ".join(answers).split()),
        "3677 seats",
        "the broncos of Denver",
        answers[0][:-1],
        answers[-1] + "0",
        "\x00" + answers[0] + "\x1f",
        "".join(f"{letter}\x0b" for letter in answers[0]),
        "",
        " \n\t ",
    ]


@pytest.mark.parametrize("name", ANSWERS)
def test_prediction_files_score_as_the_authors_do(tmp_path: Path, name: str) -> None:
    answers = ANSWERS[name]
    predictions = predictions_of(answers)
    path = tmp_path / f"{name}.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "index": n,
                    "pred": text,
                    "input": "A special magic number ...",
                    "outputs": answers,
                    "others": {},
                    "truncation": -1,
                    "length": -1,
                }
            )
            + "\n"
            for n, text in enumerate(predictions)
        )
    )
    scores = score_file(path, "ruler", name, "official")
    wanted = ruler_score(name, predictions, [answers] * len(predictions))
    assert benchmark_score(scores) == wanted
    assert scores == score_file(path, "ruler", f"{name}_4096", "official")
    one_by_one = [ruler_score(name, [text], [answers]) for text in predictions]
    assert [round(100 * score, 2) for score in scores] == one_by_one
    assert scores[0] == 1.0 and scores[-1] == 0.0 and 0 < sum(scores) < len(scores)


def test_a_number_within_a_number_and_a_list_of_all_keys_count_as_found() -> None:
    from tasks.metrics import find_metric
    from tasks.schema import scored_example

    match_all, match_part = find_metric("string_match_all"), find_metric("string_match_part")
    assert match_all("141", scored_example(["41"])) == 1.0
    assert match_all("a b c d", scored_example(["a", "x"])) == 0.5
    assert match_part("a b c d", scored_example(["a", "x"])) == 1.0
    assert match_all("a", scored_example([])) == match_part("a", scored_example([])) == 0.0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"pred": "a"}, "field 'outputs' \\(or 'answers'\\) is missing"),
        ({"pred": "a", "outputs": "a"}, "'outputs'"),
        ({"pred": "a", "outputs": ["a"], "task": "fwe"}, "'task' is 'fwe'"),
        ({"outputs": ["a"]}, "field 'pred'"),
        ({"pred": "a", "answers": [None]}, "'answers"),
    ],
)
def test_lines_that_cannot_be_scored_are_named(tmp_path: Path, line: Any, said: str) -> None:
    (tmp_path / "vt.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=said):
        read_predictions(tmp_path / "vt.jsonl", find_task("ruler", "vt"))


def test_rulers_files_are_not_taken_for_anothers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"pred": "a", "outputs": ["a"], "index": 0}\n')
    with pytest.raises(InputError, match="'outputs' is a key of ruler"):
        score_file(tmp_path / "a.jsonl", "longbench", "hotpotqa", "official")


# -- averages --------------------------------------------------------------------------------------


def test_averages_are_the_authors() -> None:
    lengths = (4096, 8192, 16384, 32768, 65536, 131072)
    # Llama3.1 8B in the authors' table: a figure for each length and three over all of them.
    figures = (95.5, 93.8, 91.6, 87.4, 84.7, 77.0)
    scores = {
        f"{name}_{length}": [Scored(figure / 100)]
        for length, figure in zip(lengths, figures, strict=True)
        for name in ruler.TASKS
    }
    (table,) = benchmark_tables("ruler", scores)
    assert table.columns == (*map(str, lengths), "Avg.", "wAvg. (inc)", "wAvg. (dec)")
    cells = dict(table.rows)["mean of all 13"]
    assert cells[:6] == figures
    assert [round(cell, 1) for cell in cells[6:] if cell] == [88.3, 85.4, 91.3]
    assert dict(table.rows)["mean of the 8 NIAH"] == cells and table.note == ""


def test_a_mean_that_lacks_a_task_or_a_length_is_none() -> None:
    scores = {f"{name}_4096": [Scored(1.0), Scored(0.5)] for name in ruler.NEEDLES}
    scores["vt_8192"] = [Scored(0.25)]
    (table,) = benchmark_tables("ruler", scores)
    assert table.columns == ("4096", "8192")
    rows = dict(table.rows)
    assert rows["niah_single_1"] == (75.0, None) and rows["vt"] == (None, 25.0)
    assert rows["mean of the 8 NIAH"] == (75.0, None) and rows["mean of all 13"] == (None, None)
    assert "fwe" not in rows and "qa_1_4096" in table.note and "vt_4096" in table.note
    (table,) = benchmark_tables("ruler", {"vt": [Scored(0.5)]})
    assert table.columns == ("rows given",) and dict(table.rows)["vt"] == (50.0,)


# -- lm-evaluation-harness -------------------------------------------------------------------------


def test_lm_evals_documents_come_from_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    made = written(tmp_path / "1200", "vt", 1200)
    found = lm_eval_rows("ruler", "vt", data=str(tmp_path), length="1200")["test"]
    assert found["name"] == ["vt_1200"] * 2
    assert found["prompt"] == [row["input"] + row["answer_prefix"] for row in made]
    with pytest.raises(InputError, match="run_eval rows ruler"):
        lm_eval_rows("ruler", "vt", length="1200")
