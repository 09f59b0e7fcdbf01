"""Synthetic InfiniteBench rows: every answer is found again in its context by other code."""

import hashlib
import json
import re
import statistics
import time
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from tasks.infinitebench.synthetic import (
    SYNTHETIC_TASKS,
    generate,
    parse_length,
    units_for,
)
from tasks.registry import benchmark_definition, find_task
from tasks.sources import load_examples

ROWS = {
    "passkey": 590,
    "number_string": 590,
    "kv_retrieval": 500,
    "math_find": 350,
    "math_calc": 50,
    "code_run": 400,
}


def made(task, length="4k", limit=9, seed=0):
    return list(generate(task, length, limit, seed))


# -- answers recomputed from what a model would read ---------------------------------------------


def groups(pattern, text, find=re.fullmatch):
    match = find(pattern, text)
    assert match is not None, text[:200]
    return match.groups()


def passkey_answer(context, question):
    assert question == "What is the pass key?"
    filler = (
        r"(?:The grass is green\. The sky is blue\. The sun is yellow\. Here we go\. There and back"
        r" again\. )*"
    )
    needle = r"The pass key is ([0-9]{5})\. Remember it\. \1 is the pass key\. "
    return list(groups(filler + needle + filler, context))


def number_string_answer(context, question):
    assert question == "What is the sequence of digits?"
    needle = r"The sequence of digits is ([0-9]{10})\. Remember it\. \1 is the sequence of digits\."
    (digits,) = re.findall(needle, context)
    runs = [len(run[0]) for run in re.finditer(r"(.)\1*", digits)]
    assert len(runs) <= 5  # five digits, of which some were repeated
    return [digits]


def kv_answer(context, question):
    (key,) = groups(
        r'\nKey: "([-0-9a-f]{36})"\nThe value associated with the specified key is: ', question
    )
    return [json.loads(context.removeprefix("JSON data:\n"))[key]]


def find_answer(context, question):
    numbers = json.loads(context)
    (kind,) = groups(
        r"You should answer with only one number, no other words\. "
        r"The (.+) number of the list is: ",
        question,
    )
    if kind == "median":
        return [statistics.median(numbers)]
    rank = {"second": 1, "third": 2}.get(kind.split()[0], 0)
    for _ in range(rank):
        extreme = max(numbers) if kind.endswith("largest") else min(numbers)
        numbers = [number for number in numbers if number != extreme]
    return [max(numbers) if kind.endswith("largest") else min(numbers)]


def calc_answer(context, question):
    first, *steps = re.findall(r"(?:^|[+-] )[0-9]+", context)
    assert "".join([first, *(f" {step}" for step in steps)]) == context
    values, value = [], int(first)
    for step in steps:
        value += int(step.replace(" ", ""))
        assert 0 <= value <= 99
        values.append(value)
    return [values]


def code_answer(context, question):
    functions = dict(re.findall(r"def (func_[0-9]+)\(x\):\n    return ([^\n]+)\n\n", context))
    head = "\nHere is the content of functions_module.py:\n\n"
    text = "".join(f"def {name}(x):\n    return {body}\n\n" for name, body in functions.items())
    assert context == head + text
    call = r"value of (func_[0-9]+)\((-?[0-9]+)\)\. Your"
    name, argument = groups(call, question, re.search)
    value = int(argument)
    while name != "x":
        body = r"(x|func_[0-9]+)(?:\(x\))?(?: ([+-]) ([0-9]+))?"
        name, sign, constant = groups(body, functions[name])
        value += int(f"{sign}{constant}") if sign else 0
    return [value]


ANSWERS = {
    "passkey": passkey_answer,
    "number_string": number_string_answer,
    "kv_retrieval": kv_answer,
    "math_find": find_answer,
    "math_calc": calc_answer,
    "code_run": code_answer,
}


@pytest.mark.parametrize("task", SYNTHETIC_TASKS)
@settings(max_examples=15, deadline=None)
@given(length=st.integers(1000, 9000), seed=st.integers(0, 2**40), limit=st.integers(1, 12))
def test_the_answer_follows_from_the_context(task, length, seed, limit):
    rows = made(task, length, limit, seed)
    assert len(rows) == limit
    for row, _ in rows:
        assert list(row) == ["id", "context", "input", "answer", "options"]
        expected = ANSWERS[task](row["context"], row["input"])
        assert row["answer"] == expected and row["options"] == []
        assert json.dumps(row["answer"]) == json.dumps(expected)  # 48 is not 48.0


@pytest.mark.parametrize("task", SYNTHETIC_TASKS)
def test_a_right_prediction_scores_1_under_every_protocol_and_a_wrong_one_less(task):
    found = load_examples(find_task("infinitebench", task), "synthetic", 7, 3, 3000)
    for example in found.examples:
        definition = find_task("infinitebench", task)
        answer = example.row["answer"]
        for protocol in definition.protocols:
            text = json.dumps(answer[0]) if task != "kv_retrieval" else answer[0]
            if task == "math_calc" and protocol == "official-gpt4":
                text = f"{example.row['context'].split()[0]}, {text}"
            assert definition.score(text, example, protocol) == 1.0
            assert definition.score("101, 5" + text, example, protocol) < 1.0
            assert definition.score("", example, protocol) == 0.0


# -- the published construction ------------------------------------------------------------------


def test_without_a_length_rows_have_the_published_size_and_number():
    for task, rows in ROWS.items():
        assert sum(1 for _ in generate(task, "1k")) == rows
    row, known = next(generate("passkey"))
    assert known == {"units": 5220, "length": None, "evidence_depths": [0.0]}
    assert row["context"].count("The grass is green.") == 5220
    assert len(json.loads(next(generate("kv_retrieval"))[0]["context"][11:])) == 2500
    assert len(json.loads(next(generate("math_find"))[0]["context"])) == 30000
    assert len(next(generate("math_calc"))[0]["answer"][0]) == 14999
    assert next(generate("code_run"))[0]["context"].count("def ") == 4400


@pytest.mark.parametrize(
    ("task", "megabytes"),
    [("kv_retrieval", 105), ("math_find", 41.3), ("math_calc", 6.31), ("code_run", 83.4)],
)
def test_the_files_would_have_the_published_sizes(task, megabytes):
    rows = [row for row, _ in generate(task, limit=20)]
    size = sum(len(json.dumps(row)) + 1 for row in rows) / len(rows) * ROWS[task] / 1e6
    assert size == pytest.approx(megabytes, rel=0.005)


def test_passkey_rows_run_through_59_depths_ten_times_each():
    rows = [row["context"] for row, _ in generate("passkey", 5000)]
    before = [text.index("The pass key") // 90 for text in rows]
    assert before == sorted(before) and len(set(before)) == 59
    assert before[0] == 0 and before[-1] == rows[0].count("The grass is green.")
    assert all(before.count(place) == 10 for place in before)
    assert len(set(rows)) > 580  # the ten differ in their key


def test_code_chains_have_the_published_lengths_and_constants():
    ranges = {2: (-8, 12), 4: (-10, 10), 6: (-8, 16), 8: (-10, 12), 10: (-12, 17)}
    for number, (row, known) in enumerate(generate("code_run", "8k", 400)):
        depth = (2, 4, 6, 8, 10)[number // 80]
        assert known["calls"] == len(known["evidence_depths"]) == depth
        constants = [int(f"{s}{n}") for s, n in re.findall(r" ([+-]) ([0-9]+)\n", row["context"])]
        assert 0 not in constants
        low, high = ranges[depth]
        assert low <= min(constants) < low + 3 and high - 3 < max(constants) <= high


def test_number_strings_repeat_digits_as_the_authors_insert_them():
    digits = [row["answer"][0] for row, _ in generate("number_string", "1k")]
    assert all(re.fullmatch("[0-9]{10}", text) for text in digits)
    assert len(set(digits)) == 590
    # Every first digit is equally likely, and on average a digit stands twice.
    runs = [len(list(re.finditer(r"(.)\1*", text))) for text in digits]
    assert statistics.mean(runs) == pytest.approx(4.6, abs=0.1)


# -- lengths, limits, seeds ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("128k", 131072), ("1m", 1048576), ("131072", 131072), (4096, 4096), (" 2 K", 2048)],
)
def test_lengths_are_read(text, tokens):
    assert parse_length(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5k", "128kb", "0", "0k", "17m", "9" * 30, None])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(InputError, match="--length"):
        parse_length(text)


@pytest.mark.parametrize("task", SYNTHETIC_TASKS)
def test_a_length_that_is_too_short_says_how_long_it_must_be(task):
    with pytest.raises(InputError, match="needs at least") as caught:
        generate(task, 60)
    least = int(groups(r"at least ([0-9]+) tokens", str(caught.value), re.search)[0])
    for index in (0, ROWS[task] - 1):
        assert units_for(task, least + 60, index) >= 1
    assert len(made(task, least + 60, 3)) == 3


def test_other_tasks_and_senseless_limits_are_refused_at_once():
    with pytest.raises(InputError, match="no synthetic rows"):
        generate("longbook_qa_eng", "4k")
    with pytest.raises(InputError, match="limit must be at least 1"):
        generate("passkey", "4k", 0)


@pytest.mark.parametrize("task", ["passkey", "number_string", "kv_retrieval"])
@pytest.mark.parametrize("limit", [2, 5, 11, 59])
def test_depths_are_spaced_evenly_for_any_limit(task, limit):
    depths = [known["evidence_depths"][0] for _, known in made(task, "32k", limit)]
    assert depths[0] < 0.01 and depths[-1] > 0.98
    for place, depth in enumerate(depths):
        assert depth == pytest.approx(place / (limit - 1), abs=0.02)


def test_one_row_has_its_evidence_in_the_middle():
    for task in ("passkey", "number_string", "kv_retrieval"):
        ((_, known),) = made(task, "32k", 1)
        assert known["evidence_depths"][0] == pytest.approx(0.5, abs=0.02)


def test_few_rows_ask_every_kind_of_question():
    assert len({known["target"] for _, known in made("math_find", "1k", 7)}) == 7
    assert [known["calls"] for _, known in made("code_run", "4k", 5)] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("task", SYNTHETIC_TASKS)
def test_a_row_depends_on_task_length_seed_and_id_only(task):
    assert made(task) == made(task)
    whole = {row["id"]: row for row, _ in generate(task, "2k")}
    assert sorted(whole) == list(range(ROWS[task]))
    for row, _ in made(task, "2k", 6):
        assert row == whole[row["id"]]
    assert made(task, seed=1) != made(task, seed=2)
    assert made(task, "4k") != made(task, "8k")


@pytest.mark.parametrize("task", SYNTHETIC_TASKS)
def test_rows_are_those_of_runs_that_were_made_before(task):
    """A run names its rows by length and seed: with other rows it could not be continued."""
    rows = [row for length in ("4k", "20k") for row in made(task, length, 3)]
    text = json.dumps(rows, sort_keys=True)
    assert (
        hashlib.sha256(text.encode()).hexdigest()[:16]
        == {
            "passkey": "42a6377931c56410",
            "number_string": "f5074d1a93f940c4",
            "kv_retrieval": "9746cc5282a85f99",
            "math_find": "a2587a418b0b3eb7",
            "math_calc": "10f1bdae5262964a",
            "code_run": "5d6fccf3f4685705",
        }[task]
    )


@pytest.mark.parametrize("limit", [2, 3, 5, 26])
def test_twice_the_limit_less_one_keeps_the_rows(limit):
    few = {row["id"] for row, _ in made("passkey", "1k", limit)}
    assert few < {row["id"] for row, _ in made("passkey", "1k", 2 * limit - 1)}


def test_more_rows_than_published_go_through_the_design_again():
    rows = made("math_calc", "1k", 120)
    assert [row["id"] for row, _ in rows[:100]] == list(range(100))
    assert len({row["context"] for row, _ in rows}) == 120
    ids = [row["id"] for row, _ in rows[100:]]
    assert ids[0] == 100 and ids[-1] == 149 and ids == sorted(set(ids))


@pytest.mark.parametrize("task", SYNTHETIC_TASKS)
def test_a_million_tokens_are_made_in_seconds_and_one_row_at_a_time(task):
    started = time.process_time()  # of this process: others may be busy on the machine
    rows = list(islice(generate(task, "1m"), 2))  # all 590 passkeys would be 2.3 GB
    assert time.process_time() - started < 10
    assert all(len(row["context"]) > 10**6 for row, _ in rows)


@pytest.fixture(scope="module")
def tokenizer(shared):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(shared / "data" / "qwen2.5-tokenizer" / "tokenizer.json"))


@pytest.mark.shared
@pytest.mark.parametrize("task", SYNTHETIC_TASKS)
def test_prompts_come_close_to_the_length_asked_for(tokenizer, task):
    definition = find_task("infinitebench", task)
    for length, limit in ((16384, 5), (131072, 1)):
        for example in load_examples(definition, "synthetic", limit, 0, length).examples:
            prompt = definition.render(example, "official")
            tokens = len(tokenizer.encode(prompt).ids)
            assert 0.96 * length <= tokens <= 1.003 * length  # chance may add a little


# -- as a source of rows --------------------------------------------------------------------------


def test_the_benchmark_names_the_tasks_that_can_be_generated():
    assert set(benchmark_definition("infinitebench").synthetic) == set(SYNTHETIC_TASKS) == set(ROWS)


def test_generated_rows_are_examples_that_know_where_their_evidence_is():
    found = load_examples(find_task("infinitebench", "passkey"), "synthetic", 3, 5, 2048)
    assert found.files == [
        {
            "path": "generated:infinitebench/passkey?length=2048&seed=5",
            "sha256": None,
            "revision": None,
        }
    ]
    first, middle, last = found.examples
    assert first.attributes["evidence_depths"] == [0.0]
    assert middle.attributes["length"] == 2048 and last.attributes["evidence_depths"][0] > 0.9
    assert first.answers == first.label == first.row["answer"]
    assert len({example.example_id for example in found.examples}) == 3


def test_whoever_waits_for_generated_rows_is_told_how_many_are_made():
    told = []
    load_examples(
        find_task("infinitebench", "math_find"), "synthetic", 3, 0, 2048,
        watch=lambda *counts: told.append(counts),
    )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_task_that_cannot_be_generated_says_which_can():
    task = find_task("infinitebench", "longbook_qa_eng")
    with pytest.raises(InputError, match=r"cannot be generated \(only code_run, kv_retrieval"):
        load_examples(task, "synthetic", 1, 0)
