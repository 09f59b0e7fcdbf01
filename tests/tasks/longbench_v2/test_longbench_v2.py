"""LongBench v2: constants, the list that the rows lie in, the letter that is scored, averages."""

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from tasks.averages import Scored, benchmark_tables
from tasks.metrics import METRICS
from tasks.metrics.longbench_v2 import chosen_letter
from tasks.registry import benchmark_definition, expand, find_task, group_names, task_names
from tasks.schema import scored_example
from tasks.scoring import score_file, score_per_length, scored_file
from tasks.sources import as_example, load_examples
from tests.tasks.longbench_v2.rows import DOMAINS, row

ALL = find_task("longbench_v2", "longbench_v2_all")
CODE = find_task("longbench_v2", "longbench_v2_code_repository")
# The authors' files with their marks as fields. Source: THUDM/LongBench 2e00731, prompts/.
TEMPLATES = {"official": "e6ea2750f5810f87", "official-no-context": "dd6906a52b95aaf7"}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows, indent=1), "utf-8")
    return path.parent


def load(folder, task=ALL, limit=None):
    return load_examples(task, str(folder), limit, 0)


def problems(folder, task=ALL):
    with pytest.raises(InputError) as caught:
        load(folder, task)
    return list(caught.value.problems)


# -- constants ----------------------------------------------------------------------------------


def test_the_protocol_is_the_authors():
    rules = ALL.protocol("official")
    assert (rules.max_new_tokens, rules.default_max_length) == (128, 120_000)
    assert (rules.truncation, rules.odd_token_in_tail) == ("middle_joined", True)
    assert rules.chat_template and not rules.reserve_generation and not rules.decode_uncut
    assert rules.generation["do_sample"] is True and rules.generation["temperature"] == 0.1
    assert ALL.chance == 0.25
    for task in map(find_task, ["longbench_v2"] * 7, [*task_names("longbench_v2"), *domains()]):
        found = {name: task.template_sha256(name)[:16] for name in task.protocols}
        assert found == TEMPLATES


def domains():
    return [task.name for task in expand("longbench_v2", ["longbench_v2_domains"], None)]


def test_all_questions_are_one_task_and_six():
    assert task_names("longbench_v2") == ["longbench_v2_all"]
    assert len(domains()) == 6 and "longbench_v2_all" not in domains()
    assert group_names("longbench_v2") == ["longbench_v2", "longbench_v2_domains"]
    assert ALL.lm_eval_name == "ahnbench_longbench_v2_all"
    hub = benchmark_definition("longbench_v2").hub
    assert hub is not None and re.fullmatch("[0-9a-f]{40}", hub.revision)


def test_who_asks_for_cot_is_told_why_not():
    with pytest.raises(InputError, match="it asks twice"):
        ALL.protocol("official-cot")


# -- prompts ------------------------------------------------------------------------------------

MARKS = ("$DOC$", "$Q$", "$C_A$", "$C_B$", "$C_C$", "$C_D$")
KEYS = ("context", "question", "choice_A", "choice_B", "choice_C", "choice_D")


def authors_prompt(made):
    """pred.py: each mark is replaced in the whole prompt, one after another."""
    template = ALL.protocol("official").template.format(**dict(zip(KEYS, MARKS, strict=True)))
    for mark, key in zip(MARKS, KEYS, strict=True):
        template = template.replace(mark, made[key].strip())
    return template


@given(st.lists(st.sampled_from([*MARKS, "x", " ", "{context}"]), min_size=6, max_size=12))
def test_prompts_are_filled_as_the_authors_fill_them(parts):
    made = row(1)
    for place, part in enumerate(parts):
        made[KEYS[place % 6]] += part
    example = as_example(ALL, made, "x", "here")
    assert ALL.render(example, "official") == authors_prompt(made)


def test_without_context_the_text_is_not_in_the_prompt():
    prompt = ALL.render(as_example(ALL, row(1), "x", "here"), "official-no-context")
    assert "tells of lamps" not in prompt and "Which lamp is number 1?\nChoices:" in prompt


# -- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.json", "data/data.json"])
def test_the_authors_list_is_read(tmp_path, name):
    write(tmp_path / name, [row(i) for i in range(12)])
    found = load(tmp_path)
    assert [e.example_id for e in found.examples] == [f"row{i}" for i in range(12)]
    assert [e.answers for e in found.examples[:4]] == [["A"], ["B"], ["C"], ["D"]]
    assert found.examples[0].document_id == found.examples[1].document_id
    assert found.examples[1].document_id != found.examples[2].document_id
    assert found.examples[3].attributes == {
        "domain": DOMAINS[3], "sub_domain": "Made", "difficulty": "hard", "length_group": "short"
    }  # fmt: skip
    assert found.examples[3].where.endswith("data.json:4")


def test_a_domains_task_takes_its_rows_of_the_list(tmp_path):
    write(tmp_path / "data.json", [row(i) for i in range(12)])
    assert [e.example_id for e in load(tmp_path, CODE).examples] == ["row4", "row10"]
    assert len(load(tmp_path, CODE, limit=1).examples) == 1
    tasks = [find_task("longbench_v2", name) for name in domains()]
    every = [e.example_id for task in tasks for e in load(tmp_path, task).examples]
    assert sorted(every) == sorted(f"row{i}" for i in range(12))


def test_a_domain_without_rows_is_said(tmp_path):
    write(tmp_path / "data.json", [row(0)])
    assert problems(tmp_path, CODE) == [
        f"{tmp_path / 'data.json'}: it has no rows of longbench_v2_code_repository"
    ]


def test_a_file_of_one_task_holds_no_rows_of_another(tmp_path):
    lines = "".join(json.dumps(row(i)) + "\n" for i in (4, 5))
    write(tmp_path / "longbench_v2_code_repository.jsonl", lines)
    (problem,) = problems(tmp_path, CODE)
    assert problem.endswith("repository.jsonl:2: is a row of another task than "
                            "'longbench_v2_code_repository'")  # fmt: skip


@pytest.mark.parametrize("name", ["data.jsonl", "longbench_v2_all.jsonl"])
def test_lines_and_tables_are_read_too(tmp_path, name):
    from pyarrow import Table, parquet

    made = [row(i) for i in range(3)]
    write(tmp_path / "lines" / name, "".join(json.dumps(r) + "\n" for r in made))
    (tmp_path / "table").mkdir()
    parquet.write_table(Table.from_pylist(made), tmp_path / "table" / "data.parquet")
    of_lines, of_table = load(tmp_path / "lines"), load(tmp_path / "table" / "data.parquet")
    assert [e.row for e in of_lines.examples] == [e.row for e in of_table.examples] == made


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answer": "E"}, "'answer': input should be 'A', 'B', 'C' or 'D'"),
        ({"difficulty": "middling"}, "'difficulty': input should be 'easy' or 'hard'"),
        ({"length": 12}, "'length': input should be 'short', 'medium' or 'long'"),
        ({"domain": "Poems"}, "'domain': input should be"),
        ({"choice_C": None}, "'choice_C': input should be a valid string"),
        ({"context": "  "}, "'context' is empty"),
        ({"_id": "row0"}, "id 'row0' is that of line"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_entry(tmp_path, changed, said):
    write(tmp_path / "data.json", [row(0), row(1, **changed), row(2)])
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{tmp_path / 'data.json'}:2: ") and said in problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"_id": "a"}', "is no JSON list"),
        ("", "is no JSON list"),
        ("[", "data.json:1: is not JSON"),
        ('[{"_id": "a"} {"_id": "b"}]', "data.json:2: is not JSON: no comma"),
        ('[{"_id": "a", "_id": "b"}]', "key '_id' is given twice"),
        ('[{"a": NaN}]', "NaN is no number of JSON"),
        ("[1]", "data.json:1: is a JSON int, not an object"),
        ('[{"_id": 1', "data.json:1: is not JSON"),
        ("[]", "is empty: there are no rows"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(tmp_path, text, said):
    write(tmp_path / "data.json", text)
    assert any(said in problem for problem in problems(tmp_path))


def test_what_stands_behind_the_list_is_refused(tmp_path):
    write(tmp_path / "data.json", json.dumps([row(0)]) + " x")
    assert "data.json:2: 'x' stands after the end" in problems(tmp_path)[0]


def test_a_list_of_any_size_is_read_in_pieces(tmp_path, monkeypatch):
    """Entries, escapes and letters of several bytes are cut anywhere; the digest is the file's."""
    monkeypatch.setattr("tasks.jsonl._PIECE", 7)
    made = [row(i, context='é"\\ \U0001f600\n' * 20) for i in range(4)]
    path = tmp_path / "data.json"
    write(path, json.dumps(made, ensure_ascii=False))
    found = load(tmp_path)
    assert [e.row for e in found.examples] == made
    assert found.files[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("content", [b'[{"_id": "\xff"}]', b"[]\xc3"])
def test_bytes_that_are_no_utf8_are_refused(tmp_path, content):
    (tmp_path / "data.json").write_bytes(content)
    assert "is not UTF-8" in problems(tmp_path)[0]


# -- the letter ---------------------------------------------------------------------------------


def authors_letter(response):
    """pred.py, `extract_answer`, by hand: no regular expressions."""
    text = response.replace("*", "")
    for opening, closing in (("(", ")"), ("", "")):
        start = 0
        while (at := text.find(f"The correct answer is {opening}", start)) >= 0:
            rest = text[at + len(f"The correct answer is {opening}") :]
            if rest[:1] in ("A", "B", "C", "D") and rest[:1] and rest[1:].startswith(closing):
                return rest[0]
            start = at + 1
    return None


SAID = st.lists(
    st.sampled_from(["The correct answer is ", "the correct answer is ", "(", ")", "A", "B", "D",
                     "E", "**", "\n", " ", "."]),
    max_size=14,
)  # fmt: skip


@given(SAID)
def test_the_letter_is_found_as_the_authors_find_it(parts):
    said = "".join(parts)
    assert chosen_letter(said) == authors_letter(said.strip())


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("The correct answer is (B).", "B"),
        ("**The correct answer is (C)**", "C"),
        ("The correct answer is **D**", "D"),
        ("The correct answer is A, or so. The correct answer is (B)", "B"),
        ("The correct answer is (insert answer here)", None),
        ("the correct answer is (B)", None),
        ("(B)", None),
        ("", None),
    ],
)
def test_some_answers_and_their_letters(said, letter):
    assert chosen_letter(said) == letter
    for wanted in "ABCD":
        gold = scored_example([wanted])
        assert METRICS["longbench_v2_choice"](said, gold) == (letter == wanted)
        compensated = 0.25 if letter is None else float(letter == wanted)
        assert METRICS["longbench_v2_choice_compensated"](said, gold) == compensated


# -- prediction files and averages --------------------------------------------------------------


def prediction(number, letter, **changed):
    """A line of results/<model>.jsonl."""
    made = row(number)
    response = "no idea" if letter is None else f"The correct answer is ({letter})"
    judge = letter == made["answer"]
    return made | {"response": response, "pred": letter, "judge": judge} | changed


def test_the_authors_files_are_scored_and_averaged_as_result_py_does(tmp_path):
    lines = [prediction(i, (None, "A", "B", "C", "D")[i % 5]) for i in range(30)]
    path = tmp_path / "model.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = score_file(path, "longbench_v2", ALL.name, "official")
    assert found == [float(line["judge"]) for line in lines] and 0 < sum(found) < 30

    def accuracy(key=None, value=None):  # result.py
        kept = [line["judge"] for line in lines if key is None or line[key] == value]
        return round(100 * sum(kept) / len(kept), 1)

    expected = {
        "Overall": accuracy(),
        "Easy": accuracy("difficulty", "easy"),
        "Hard": accuracy("difficulty", "hard"),
        "Short": accuracy("length", "short"),
        "Medium": accuracy("length", "medium"),
        "Long": accuracy("length", "long"),
    }
    scored = scored_file(path, "longbench_v2", ALL.name, "official")
    assert score_per_length("longbench_v2", ALL.name, scored) == expected
    line, by_domain = benchmark_tables("longbench_v2", {ALL.name: scored})
    assert dict(zip(line.columns, line.rows[0][1], strict=True)) == expected
    means = dict(by_domain.rows)
    assert means == {domain: (accuracy("domain", domain),) for domain in DOMAINS}
    compensated = score_file(path, "longbench_v2", ALL.name, "official",
                             metric="longbench_v2_choice_compensated")  # fmt: skip
    silent = sum(line["pred"] is None for line in lines)
    assert sum(compensated) == sum(found) + silent / 4


def test_a_figure_of_no_examples_is_no_figure():
    (line,) = benchmark_tables("longbench_v2", {ALL.name: [Scored(1.0, None, {})]})
    assert line.rows[0][1] == (100.0, None, None, None, None, None)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answer": "F"}, "'answer': input should be"),
        ({"response": None}, "'response': should be text"),
        ({"domain": DOMAINS[0]}, "is being scored"),
    ],
)
def test_a_wrong_line_is_refused(tmp_path, changed, said):
    path = tmp_path / "model.jsonl"
    path.write_text(json.dumps(prediction(4, "A", **changed)) + "\n")
    with pytest.raises(InputError, match=re.escape(said)):
        score_file(path, "longbench_v2", CODE.name, "official")
