"""RULER's rows: the authors' own, byte for byte, and what must hold of any row."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from tasks.ruler import generators
from tasks.ruler import rows as ruler
from tasks.ruler.generators import (
    NIAH,
    Needles,
    WordPairs,
    common_words,
    frequent_words,
    niah,
    variable_tracking,
)
from tests.tasks.ruler import texts
from tests.tasks.ruler.texts import sentences, words_in

Rows = Callable[[int, int, int, generators.Count], Iterator[dict[str, Any]]]
NOISE = Needles("noise", "words", "numbers")
TASKS: dict[str, Rows] = {
    "niah_single_1": lambda *size: niah(NOISE, *size),
    "niah_multikey_2": lambda *size: niah(Needles("needle", "words", "numbers"), *size),
    "niah_multikey_3": lambda *size: niah(Needles("needle", "uuids", "uuids"), *size),
    "vt": variable_tracking,
    "cwe": common_words,
    "fwe": frequent_words,
}


@pytest.mark.shared
@pytest.mark.parametrize("task", [task for task in TASKS if task != "cwe"])
@pytest.mark.slow
def test_rows_are_the_authors_byte_for_byte(shared: Path, task: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "qwen2.5-tokenizer")
    given_rows = shared / "conformance" / "ruler" / f"{task}_4096_seed42.jsonl.gz"
    made = TASKS[task](4096, 4, 42, lambda text: len(tokenizer.tokenize(text)))
    lines = "".join(json.dumps(row) + "\n" for row in made)
    assert lines.encode() == gzip.decompress(given_rows.read_bytes())


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ruler.Files:
    """What the authors download, made up."""
    monkeypatch.setattr(generators, "_sentences", sentences)
    contents = {
        "essay": {"text": texts.essay()},
        "words": {str(n): f"word{n}" for n in range(60_000)},
        "squad": texts.squad(),
        "hotpotqa": texts.hotpotqa(),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return ruler.Files(**{name: tmp_path / f"{name}.json" for name in contents})


# The first 32 digits of the SHA-256 of what the authors' scripts (c3f5e3b) write of these texts,
# with `words_in` for a tokenizer: task, --max_seq_length, --random_seed, --model_template_token.
THEIRS = [
    ("niah_single_1", 1500, 3, 20, "1b884a5586ea4b5de6a77c753e09c936"),
    ("niah_single_2", 1500, 3, 0, "3758218d8806fee567b562fe8f5b371e"),
    ("niah_single_3", 4500, 42, 20, "528f1617c7f580d597c922cdb7f81daf"),
    ("niah_multikey_1", 1500, 7, 20, "263f26c39d7f9e71cd32a81ec346a1ab"),
    ("niah_multikey_2", 4500, 3, 0, "7bb8fa6c53c17d11951c33ad059639c2"),
    ("niah_multikey_3", 1500, 3, 20, "8b42b33cc42728dc4c72a101f2db97c5"),
    ("niah_multivalue", 1500, 3, 0, "612578aa0397ebc541ed9a331bd883f4"),
    ("niah_multiquery", 2000, 42, 20, "8515f0c3bf3a2a2d7a08c326b68b4b62"),
    ("vt", 1500, 3, 20, "2c8bc42d7ee05feada2dac9efb7a0b90"),
    ("vt", 4500, 42, 0, "11c54cc273ce3a8d924d1e8c3acb753d"),
    ("cwe", 1500, 3, 20, "1ea2e7a26eeaad4a048eb99a52417b20"),
    ("cwe", 4500, 42, 0, "7e0f6b3144ae8f52fcd027db7ad23cc4"),
    ("fwe", 1500, 3, 20, "b4e6ea98d5d39b3395e79e3c02723c20"),
    ("qa_1", 1500, 3, 20, "0441e468730cc915e6c961bd36064553"),
    ("qa_1", 4500, 42, 0, "8b7d42668fa8ba80e8503441fffb044a"),
    ("qa_2", 1500, 3, 0, "17410b73a922ff41b315b3582bfb9414"),
    ("qa_2", 4500, 42, 20, "b755579aedce87da3661fe21aaa7842b"),
]


@pytest.mark.parametrize(
    ("task", "length", "seed", "reserved", "digest"), THEIRS, ids=lambda value: str(value)[:16]
)
def test_rows_of_every_task_are_those_of_the_authors_scripts(
    files: ruler.Files, task: str, length: int, seed: int, reserved: int, digest: str
) -> None:
    made = ruler.rows(task, length, words_in, 3, seed, files, reserved)
    lines = "".join(json.dumps(row) + "\n" for row in made)
    assert hashlib.sha256(lines.encode()).hexdigest()[:32] == digest


def test_a_chat_template_takes_room_of_the_length(files: ruler.Files) -> None:
    for task in ruler.TASKS:
        (row,) = ruler.rows(task, 2000, words_in, 1, 42, files, 60)
        assert row["length"] <= 1940 and row["length_w_model_temp"] == row["length"] + 60


def test_questions_of_which_there_are_too_few_are_refused(files: ruler.Files) -> None:
    with pytest.raises(InputError, match="21 rows, but there are 20 questions"):
        list(ruler.rows("qa_2", 1500, words_in, 21, 42, files))


def test_a_question_of_more_documents_than_the_search_begins_with_is_refused() -> None:
    many = generators.Question("Who?", ["him"], list(range(11)))
    known = generators.QuestionSet([many], [f"text {n}" for n in range(40)])
    with pytest.raises(InputError, match="more than 10 documents belong to the question Who"):
        list(generators.question_answering(known, 3000, 1, 42, words_in))


@pytest.mark.slow
def test_a_length_that_the_chat_template_takes_too_much_of_is_told_as_asked_for(
    files: ruler.Files,
) -> None:
    for task in ruler.TASKS:
        with pytest.raises(InputError, match="of 400 tokens, of which 390 are the chat template's"):
            list(ruler.rows(task, 400, words_in, 1, 42, files, 390))


def test_the_solved_example_of_vt_must_fit_its_500_tokens() -> None:
    with pytest.raises(InputError, match="^the solved example has room for 440 of this"):
        list(variable_tracking(20_000, 1, 42, len, reserved=60))


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("length", [1000, 5000])
def test_a_row_has_the_length_asked_for_and_holds_its_answers(task: str, length: int) -> None:
    rows = list(TASKS[task](length, 3, 7, words_in))
    assert len(rows) == 3
    for row in rows:
        answer_tokens = {"vt": 30, "cwe": 120, "fwe": 50}.get(task, 128)
        assert row["length"] == words_in(row["input"] + row["answer_prefix"]) + answer_tokens
        assert 0.7 * length < row["length"] <= length
        assert row["outputs"] and all(answer in row["input"] for answer in row["outputs"])
        assert not row["answer_prefix"].startswith(row["input"][-1:])


@pytest.mark.parametrize("task", list(TASKS))
def test_a_seed_means_the_same_rows_and_another_one_others(task: str) -> None:
    def made(seed: int) -> list[dict[str, Any]]:
        return list(TASKS[task](1200, 2, seed, words_in))

    assert made(3) == made(3) != made(4)
    assert made(3)[0]["outputs"] != made(3)[1]["outputs"]
    before = random.getstate()
    made(3)
    assert random.getstate() == before  # the global generator is left alone


def test_the_asked_value_is_that_of_the_asked_key() -> None:
    for row in niah(Needles("needle", "words", "numbers"), 1500, 5, 1, words_in):
        (key,) = re.findall(r"magic number for ([\w-]+) mentioned", row["input"])
        values = re.findall(rf"for {re.escape(key)} is: (\d+)\.", row["input"])
        assert values == row["outputs"]
        assert row["token_position_answer"] == words_in(row["input"][: row["index"]])


def test_several_keys_values_and_queries() -> None:
    kind = Needles("noise", "words", "uuids", 4, values_of_a_key=2, queries=3)
    for row in niah(kind, 5000, 3, 1, words_in):
        keys = re.findall(r"uuids for ([\w-]+), ([\w-]+), and ([\w-]+) mentioned", row["input"])[0]
        hidden = re.findall(r"magic uuids for ([\w-]+) is: ([0-9a-f-]{36})\.", row["input"])
        assert len(hidden) == 8 and len(set(keys)) == 3
        assert Counter(row["outputs"]) == Counter(v for k, v in hidden if k in keys)
        assert row["input"].startswith("Some special magic uuids are hidden")


def test_more_needles_than_the_smallest_haystack_has_places_are_refused() -> None:
    with pytest.raises(InputError, match="8 needles in a haystack of 5"):
        list(niah(Needles("noise", "words", "numbers", 8), 1500, 1, 1, words_in))


def test_variables_are_followed_from_the_value_that_is_asked_for() -> None:
    for row in variable_tracking(1500, 4, 5, words_in):
        example, text = row["input"].rsplit("Memorize and track", 1)
        assigned = dict(re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w{5})", text))
        (value,) = re.findall(r"assigned the value (\d+) in the text", text)
        names = {name for name, of in assigned.items() if of == value}
        for _ in range(4):
            names |= {name for name, of in assigned.items() if of in names}
        assert names == set(row["outputs"]) and len(names) == 5
        assert "12345" not in example and "Answer: According to" in example


@pytest.mark.parametrize("task", list(TASKS))
def test_a_length_at_which_the_authors_loop_would_never_end_is_refused(task: str) -> None:
    with pytest.raises(InputError, match=r"a length of 150 tokens is too short"):
        list(TASKS[task](150, 1, 42, words_in))


def test_more_words_than_there_are_must_be_given() -> None:
    with pytest.raises(InputError, match="english_words.json"):
        list(common_words(90_000, 1, 42, words_in))
    many = [f"word{n}" for n in range(60_000)]
    (row,) = common_words(90_000, 1, 42, words_in, lambda: many)
    assert row["length"] > 80_000 and row["outputs"][0].startswith("word")


def test_frequent_words_are_as_often_as_the_law_says() -> None:
    (row,) = frequent_words(4096, 1, 42, words_in)
    counts = Counter(row["input"].split("Question:")[0].split()[24:])
    first, second, third = (counts[word] for word in row["outputs"])
    assert first > second > third
    # rank 1 is noise, so the answers' shares are those of ranks 2, 3 and 4
    assert second / first == pytest.approx((2 / 3) ** 2, rel=0.1)
    assert third / first == pytest.approx((2 / 4) ** 2, rel=0.1)


def test_space_around_an_essay_is_a_word_as_in_the_authors_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`re.sub(r'\\s+', " ", essay).split(" ")` of niah.py; a text file ends with a newline."""
    monkeypatch.setattr(generators, "_sentences", lambda text: [text])
    essay = "\n " + " ".join(f"Word{n} of it." for n in range(40)) + "\n"
    kind = Needles("essay", "words", "numbers")
    (row,) = niah(kind, 2000, 1, 3, words_in, essay)
    assert "Word39 of it.   Word0" in row["input"]  # two empty words where it is repeated
    with pytest.raises(InputError, match="essays needs a text"):
        next(niah(kind, 2000, 1, 3, words_in, " \n"))


def test_essays_are_repeated_and_cut_into_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "_sentences", sentences)
    essay = "  ".join(f"This is sentence {n} of an\nessay." for n in range(40))
    kind = Needles("essay", "words", "numbers", number_of_keys=4)
    (row,) = niah(kind, 2000, 1, 3, words_in, essay)
    assert len(re.findall(r"magic numbers for [\w-]+ is: \d{7}\.", row["input"])) == 4
    assert row["input"].count("sentence 7 of an essay.") > 1
    with pytest.raises(InputError, match="essays needs a text"):
        list(niah(kind, 2000, 1, 3, words_in, "  \n"))


letters = st.text("ab-", min_size=1, max_size=4)


@given(st.lists(letters, max_size=12), st.lists(letters, max_size=12))
def test_pairs_of_words_are_the_sorted_list_that_is_never_made(
    first: list[str], second: list[str]
) -> None:
    whole = sorted({f"{a}-{b}" for a in first for b in second})
    pairs = WordPairs(first, second)
    assert list(pairs) == whole and len(pairs) == len(whole)
    for index in (-1, len(whole)):
        with pytest.raises(IndexError):
            pairs[index]
    assert pairs[1:5] == whole[1:5]


def test_the_prompt_says_one_where_one_is_hidden() -> None:
    (row,) = niah(NOISE, 800, 1, 42, words_in)
    assert row["input"].startswith("A special magic number is hidden")
    assert "What is the special magic number for" in row["input"]
    assert row["answer_prefix"].endswith("mentioned in the provided text is")
    assert NIAH.answer_prefix.endswith("text are")
