"""`run_eval rows`: generated rows as files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import ahn
from tests.tasks.ruler import texts


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.shared
@pytest.mark.slow
def test_rulers_files_are_the_authors_byte_for_byte(
    shared: Path, run_eval: Any, tmp_path: Path
) -> None:
    names = ["niah_multikey_2", "vt", "fwe"]
    result = run_eval(
        "rows", "ruler", "--tasks", ",".join(names), "--length", "4k", "--limit", 4,
        "--tokenizer", shared / "data" / "qwen2.5-tokenizer", "-o", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for name in names:
        theirs = shared / "conformance" / "ruler" / f"{name}_4096_seed42.jsonl.gz"
        assert (tmp_path / f"{name}.jsonl").read_bytes() == gzip.decompress(theirs.read_bytes())


def test_rulers_rows_with_the_users_own_essay_and_words(run_eval: Any, tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(json.dumps({"a": "aa", "b": "bb"}))
    result = run_eval(
        "rows", "ruler", "--task", "cwe", "--length", 1500, "--limit", 2, "--seed", 3,
        "--tokenizer", ahn.POCKET_PATH, "--words", tmp_path / "words.json", "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = lines(tmp_path / "out" / "cwe.jsonl")
    assert len(rows) == 2 and all(row["length"] <= 1500 for row in rows)


def test_a_tokenizer_that_cannot_write_rulers_texts_is_told(run_eval: Any, tmp_path: Path) -> None:
    """The authors' generator takes it; a run on such rows would ask for what nobody could read."""
    result = run_eval(
        "rows", "ruler", "--tasks", "fwe", "--length", 5000, "--limit", 1,
        "--tokenizer", ahn.POCKET_PATH, "-o", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0 and len(lines(tmp_path / "fwe.jsonl")) == 1
    (told,) = (line for line in result.stderr.splitlines() if "warning" in line)
    assert told.startswith("warning: --tokenizer: cannot write RULER's texts: of 'One of the spec")
    assert "Token indices" not in result.stderr  # transformers' warning: rows of the search


@pytest.mark.parametrize(
    ("benchmark", "task", "key"),
    [("infinitebench", "passkey", "answer"), ("pocket", "pocket_qa@4", "answers")],
)
def test_other_generated_rows_are_those_of_a_run(
    run_eval: Any, tmp_path: Path, benchmark: str, task: str, key: str
) -> None:
    from tasks.registry import find_task
    from tasks.sources import load_examples

    result = run_eval(
        "rows", benchmark, "--tasks", task, "--length", "1k", "--limit", 3, "-o", tmp_path
    )
    assert result.exit_code == 0, result.output
    rows = lines(tmp_path / f"{task}.jsonl")
    examples = load_examples(find_task(benchmark, task), "synthetic", 3, 0, 1024).examples
    assert rows == [json.loads(json.dumps(dict(example.row))) for example in examples]
    assert all(key in row for row in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ruler", "--tasks", "niah_singel_1"], "did you mean 'niah_single_1'"),
        (["ruler", "--tasks", "niah_single_2"], "--essay: niah_single_2 needs the authors' essays"),
        (["ruler"], "--tokenizer: needed"),
        (["ruler", "--tokenizer", ahn.POCKET_PATH], "--length: needed"),
        (["ruler", "--tokenizer", "/nowhere", "--length", "4k"], "--tokenizer: "),
        (["ruler", "--tasks", "vt", "--tokenizer", ahn.POCKET_PATH, "--length", 60], "too short"),
        (["rulr"], "unknown benchmark 'rulr'; did you mean 'ruler'?"),
        (["longbench"], "rows of longbench are not generated"),
        (["infinitebench", "--tasks", "longbook_qa_eng"], "cannot be generated"),
        (["pocket", "--words", "x.json"], "--words: of ruler's rows only"),
        (["ruler", "--length", "nan"], "--length"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_made_is_refused_and_nothing_is_written(
    run_eval: Any, tmp_path: Path, words: list[Any], said: str
) -> None:
    result = run_eval("rows", *words, "-o", tmp_path / "out")
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert not (tmp_path / "out").exists()


def test_files_that_are_there_are_replaced_only_by_force(run_eval: Any, tmp_path: Path) -> None:
    place = tmp_path / "pocket_qa@1.jsonl"
    place.write_text("mine\n")
    words = ["rows", "pocket", "--tasks", "pocket_qa@1", "--limit", 1, "-o", tmp_path]
    result = run_eval(*words)
    assert result.exit_code == 2 and "is there already (--force replaces it)" in result.stderr
    assert place.read_text() == "mine\n"
    assert run_eval(*words, "--force").exit_code == 0 and len(lines(place)) == 1


def test_every_generated_task_is_written_to_a_file_of_its_name(
    run_eval: Any, tmp_path: Path
) -> None:
    from tasks.registry import benchmark_definition, benchmark_tasks

    wanted = {
        "infinitebench": benchmark_definition("infinitebench").synthetic,
        "pocket": [task.name for task in benchmark_tasks("pocket")],
    }
    for benchmark, names in wanted.items():
        folder = tmp_path / benchmark
        flags = ["--tasks", ",".join(names), "--length", "1k", "--limit", 1, "-o", folder]
        result = run_eval("rows", benchmark, *flags)
        assert result.exit_code == 0, result.output
        assert {path.name for path in folder.iterdir()} == {f"{name}.jsonl" for name in names}
        for name in names:
            (row,) = lines(folder / f"{name}.jsonl")
            assert "context" in row and "input" in row


def test_pockets_rows_at_a_length_are_those_of_a_run_at_it(run_eval: Any, tmp_path: Path) -> None:
    from tasks.registry import at_length, find_task
    from tasks.sources import load_examples

    words = ["rows", "pocket", "--tasks", "pocket_two_hop@2", "--limit", 3, "-o", tmp_path]
    assert run_eval(*words, "--length", 2048, "--seed", 5).exit_code == 0
    of_a_run = at_length(find_task("pocket", "pocket_two_hop@2"), 2048)
    examples = load_examples(of_a_run, "pocket", 3, 5).examples
    assert lines(tmp_path / "pocket_two_hop@2.jsonl") == [
        json.loads(json.dumps(dict(example.row))) for example in examples
    ]
    result = run_eval(*words, "--length", 777, "--force")
    assert result.exit_code == 2 and "no pocket tasks of 777 tokens" in result.stderr


@pytest.mark.slow
def test_rulers_groups_and_files_are_understood(run_eval: Any, tmp_path: Path) -> None:
    squad = texts.squad()
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    words = ["rows", "ruler", "--length", "1500", "--tokenizer", ahn.POCKET_PATH, "--limit", 1]
    result = run_eval(
        *words, "--tasks", "qa_1,fwe", "--squad", tmp_path / "squad.json", "-o", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    (row,) = lines(tmp_path / "out" / "qa_1.jsonl")
    asked = [q["question"] for a in squad["data"] for p in a["paragraphs"] for q in p["qas"]]
    assert row["input"].rsplit("Question: ", 1)[1] in asked
    assert len(lines(tmp_path / "out" / "fwe.jsonl")) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "ruler_niah"], "--essay: niah_single_2, niah_single_3, niah_multikey_1"),
        (["--tasks", "fwe", "--squad", "x"], "--squad: none of these tasks reads it"),
        (["--tasks", "fwe_4096"], "--tasks: fwe_4096 says a length"),
        (["--tasks", "qa_2", "--hotpotqa", "/nowhere.json"], "qa_2: /nowhere.json: no such file"),
    ],
)
def test_what_ruler_lacks_is_said_before_anything_is_written(
    run_eval: Any, tmp_path: Path, words: list[Any], said: str
) -> None:
    given = ["--length", "4k", "--tokenizer", ahn.POCKET_PATH, "-o", tmp_path / "out"]
    result = run_eval("rows", "ruler", *words, *given)
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert not (tmp_path / "out").exists()


def test_template_tokens_are_of_rulers_rows_only(run_eval: Any, tmp_path: Path) -> None:
    result = run_eval("rows", "pocket", "--template-tokens", 9, "-o", tmp_path)
    assert result.exit_code == 2 and "--template-tokens: of ruler's rows only" in result.stderr
