"""InfiniteBench: constants, prompts, rows and prediction files."""

import json
from typing import Any

import pytest

from common.errors import InputError
from tasks.averages import Scored, benchmark_tables
from tasks.infinitebench.adapter import ADAPTER
from tasks.registry import expand, find_task, group_names, task_names
from tasks.schema import Example
from tasks.scoring import score_file
from tasks.sources import load_examples

# task: first 16 digits of the official template's SHA-256, new tokens, metric, and the further
# families whose templates can be formatted. Source: OpenBMB/InfiniteBench 88b3daa.
CONSTANTS = {
    "code_debug": ("e485a37d7c9c193f", 5, "infinitebench_code_debug", "gpt4 claude2"),
    "code_run": ("8cfbec4288592e77", 5, "infinitebench_code_run", "gpt4 claude2 kimi"),
    "kv_retrieval": ("afa97419dd69cd74", 50, "infinitebench_kv_retrieval", "gpt4 claude2 kimi"),
    "longbook_choice_eng": ("fddf5d8b4293a275", 40, "infinitebench_choice", "gpt4 claude2"),
    "longbook_qa_chn": ("121d4332c1cc5ee0", 40, "infinitebench_character_f1", "gpt4 claude2"),
    "longbook_qa_eng": ("6f24f4abaf415845", 40, "qa_f1", "gpt4"),
    "longbook_sum_eng": ("897e95259c5b906a", 1200, "infinitebench_rouge_lsum", "gpt4 claude2"),
    "longdialogue_qa_eng": ("0483f9f01c709be7", 40, "infinitebench_dialogue", "gpt4 claude2 kimi"),
    "math_calc": ("ebf0b348e08e938f", 30000, "infinitebench_math_calc", "gpt4 claude2 kimi"),
    "math_find": ("df2334891e94023e", 3, "infinitebench_math_find", "gpt4 claude2 kimi"),
    "number_string": ("f519b51c90c40022", 12, "infinitebench_first_number", "gpt4 claude2 kimi"),
    "passkey": ("32a0f730f8746b1a", 6, "infinitebench_first_number", "gpt4 claude2 kimi"),
}
PROTOCOLS = ("official", "official-gpt4", "official-claude2", "official-kimi", "ahn")

TEXT_ROW: dict[str, Any] = {
    "id": 0,
    "context": "CONTEXT {x}",
    "input": "QUESTION",
    "answer": ["71432"],
    "options": [],
}
CALL = "Please give me the exact number of the return value of func_12(-3). Your response ..."
FIND = "You should answer with only one number, no other words. The second largest number of the "
CHOICE = {"options": ["w", "x", "y", "z"], "answer": ["y"]}
ROWS = dict.fromkeys(CONSTANTS, TEXT_ROW) | {
    "code_debug": TEXT_ROW | CHOICE,
    "longbook_choice_eng": TEXT_ROW | CHOICE,
    "code_run": TEXT_ROW | {"input": CALL, "answer": [4]},
    "math_find": TEXT_ROW | {"input": f"{FIND}list is: ", "answer": [48.0]},
    "math_calc": TEXT_ROW | {"answer": [[1, 2, 3]]},
}


def task_of(name):
    return find_task("infinitebench", name)


def render(name, protocol):
    return task_of(name).render(Example("0", ROWS[name], [], "", "here"), protocol)


# -- constants ----------------------------------------------------------------------------------


def test_there_are_12_tasks_and_no_constant_has_moved():
    found = {}
    for name in task_names("infinitebench"):
        task = task_of(name)
        official = task.protocol("official")
        families = [p.removeprefix("official-") for p in PROTOCOLS[1:4] if p in task.protocols]
        found[name] = (
            task.template_sha256("official")[:16],
            official.max_new_tokens,
            official.metric,
            " ".join(families),
        )
        assert task.lm_eval_name == f"ahnbench_infinitebench_{name}"
        assert ("ahn" in task.protocols) == name.startswith("longbook_qa")
        assert set(task.protocols) | set(task.unavailable) == set(PROTOCOLS)
    assert found == CONSTANTS and len(found) == 12


def test_protocols_cut_wrap_and_end_as_their_authors_do():
    for name in CONSTANTS:
        for protocol, rules in task_of(name).protocols.items():
            gpt4 = protocol == "official-gpt4"
            assert rules.truncation == ("left" if protocol == "ahn" else "middle_joined")
            assert rules.reserve_generation == (protocol == "ahn")
            assert rules.odd_token_in_tail == gpt4
            assert rules.chat_template == (protocol != "official")
            lengths = {"official": 131072, "official-gpt4": 127000, "ahn": 128000}
            assert rules.default_max_length == lengths.get(protocol)
            assert rules.stop == () and rules.generation["do_sample"] is False
            if name != "math_calc":
                system = "You are a helpful assistant" if gpt4 else None
                assert (rules.system_message, rules.demonstration) == (system, ())
            assert bool(rules.postprocess) == (protocol == "ahn")


def test_the_groups_hold_all_tasks_and_the_two_of_the_ahn_evaluation():
    assert group_names("infinitebench") == ["infinitebench", "infinitebench_paper"]
    assert {t.name for t in expand("infinitebench", [], None)} == set(CONSTANTS)
    paper = [t.name for t in expand("infinitebench", ["infinitebench_paper"], None)]
    assert sorted(paper) == ["longbook_qa_chn", "longbook_qa_eng"]
    assert task_of("infinitebench_longbook_qa_eng").name == "longbook_qa_eng"
    assert task_of("ahnbench_infinitebench_passkey").name == "passkey"


def test_the_ahn_evaluation_scores_with_rouge_after_its_cuts():
    task = task_of("longbook_qa_eng")
    assert (task.protocol("ahn").metric, task.protocol("ahn").max_new_tokens) == ("rouge_l", 256)
    assert task_of("longbook_qa_chn").protocol("ahn").metric == "rouge_l_zh"
    assert task.postprocess(" Paris (Document 3)", "ahn") == "Paris"
    assert task.postprocess("Paris\n\nQuestion: x", "ahn") == "Paris"
    assert task.postprocess(" Paris\n\nQuestion: x", "official") == " Paris\n\nQuestion: x"


# -- prompts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", CONSTANTS)
def test_every_prompt_is_formatted_or_refused_with_a_reason(name, protocol):
    task = task_of(name)
    if protocol in task.protocols:
        text = render(name, protocol)
        assert text.count("CONTEXT {x}") == 1 and "{context}" not in text
    else:
        with pytest.raises(
            InputError, match=f"infinitebench/{name} has no protocol '{protocol}': "
        ):
            render(name, protocol)


@pytest.mark.parametrize(
    ("name", "protocol", "reason"),
    [
        ("longbook_qa_eng", "official-claude2", "KeyError: 'input'"),
        ("longbook_qa_eng", "official-kimi", "KeyError: 'file'"),
        ("code_debug", "official-kimi", "KeyError: 'fcontext'"),
        ("passkey", "ahn", "asks only longbook_qa_eng and longbook_qa_chn"),
    ],
)
def test_the_reason_is_that_of_the_authors_code(name, protocol, reason):
    with pytest.raises(InputError) as caught:
        task_of(name).protocol(protocol)
    assert reason in str(caught.value) and "(known: official, official-gpt4" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "protocol", "part"),
    [
        ("passkey", "official", "CONTEXT {x}\n\nQUESTION\n\nThe pass key is"),
        ("kv_retrieval", "official-kimi", "below.\n\nCONTEXT {x}\nQUESTION"),
        ("longbook_qa_eng", "official", "CONTEXT {x}\n\nQuestion: QUESTION\nAnswer:"),
        ("longbook_qa_chn", "official", "CONTEXT {x}\n\n问题：QUESTION\n答案："),
        ("longbook_qa_chn", "ahn", "Read the book below and answer a question.\n\nCONTEXT {x}\n\n"),
        (
            "longbook_choice_eng",
            "official",
            "\nA. w\nB. x\nC. y\nD. z\n\nThe letter of the correct",
        ),
        ("code_debug", "official-gpt4", "Which funtion has deliberate error?\nA. w\n"),
        ("longdialogue_qa_eng", "official", "replaced with $$MASK$$ is likely"),
        ("code_run", "official", "value of func_12(-3). The value of func_12(-3) is"),
        ("code_run", "official-gpt4", "There is a function called named func_12."),
        ("code_run", "official-claude2", "a function called $func_12."),
        ("code_run", "official-kimi", "return value of $func_12(-3). Your response should end"),
        (
            "math_find",
            "official",
            "What is the second largest number in the following list?\n\nCON",
        ),
        ("math_find", "official-gpt4", f"\n\nCONTEXT {{x}}\n\n{FIND}list is: "),
        ("math_calc", "official", "Expression: CONTEXT {x}\nValues:"),
    ],
)
def test_parts_of_prompts(name, protocol, part):
    assert part in render(name, protocol)


def test_gpt4_is_sent_a_bare_sum_after_a_demonstration():
    rules = task_of("math_calc").protocol("official-gpt4")
    assert render("math_calc", "official-gpt4") == "CONTEXT {x}"
    assert rules.demonstration == (("user", "1 + 2 - 4 - 10"), ("system", "[1, 3, -1, -11]"))
    assert rules.system_message is not None
    assert rules.system_message.startswith("You are a calculator does nothing but")
    assert rules.metric == "infinitebench_math_calc_gpt4"


# -- rows ---------------------------------------------------------------------------------------


def problems(name, **changes):
    row = {k: v for k, v in (ROWS[name] | changes).items() if v is not ...}
    return ADAPTER.check(row, task_of(name))


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_good_row_has_no_problems_in_todays_form_nor_in_that_of_2023(name):
    row = ROWS[name]
    assert problems(name) == []
    bare = row["answer"][0]
    assert problems(name, answer=bare) == []
    if name != "math_calc":  # there the authors' scorer takes either
        assert ADAPTER.label(row, task_of(name)) == ADAPTER.label(
            row | {"answer": bare}, task_of(name)
        )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("passkey", {"context": ...}, "field 'context' is missing"),
        ("passkey", {"context": " "}, "'context' is empty"),
        ("passkey", {"answer": ...}, "field 'answer' is missing"),
        ("passkey", {"answer": []}, "'answer' should be a text, or a list of texts"),
        ("passkey", {"answer": [71432]}, "'answer' should be a text, or a list of texts"),
        ("passkey", {"answer": None}, "'answer' should be a text, or a list of texts"),
        ("code_run", {"answer": ["four"]}, "'answer' should be a number, or a list of one"),
        ("math_find", {"answer": [1, 2]}, "'answer' should be a number, or a list of one"),
        ("math_calc", {"answer": "1"}, "'answer' should be a list of integers"),
        ("code_run", {"input": "What?"}, "'input' names no call such as func_1(2)"),
        ("math_find", {"input": "What?"}, "'input' asks for no 'The ... of' the list"),
        ("code_debug", {"options": ["y"]}, "'options' has 1 entries, not 4"),
        ("code_debug", {"answer": ["q"]}, "'answer' 'q' is none of the options"),
        ("code_debug", {"answer": ["y", "E"]}, "should be an option, or an option and its letter"),
    ],
)
def test_a_bad_row_is_told(name, changes, message):
    found = problems(name, **changes)
    assert len(found) == 1 and message in found[0]


@pytest.mark.parametrize(
    ("name", "answer", "label"),
    [
        ("passkey", ["71432"], ["71432"]),
        ("kv_retrieval", ["ab-1"], "ab-1"),  # the authors' scorer does not unwrap a list
        ("code_debug", ["y"], ["y", "C"]),
        ("longbook_choice_eng", ["y", "C"], ["y", "C"]),
        ("longdialogue_qa_eng", ["ACE", "ACE R."], ["ACE", "ACE R."]),
        ("code_run", [4], [4]),
        ("code_run", ["-4"], [-4]),  # as datasets casts it
        ("math_find", ["48.0"], [48.0]),
        ("math_find", ["48"], [48]),
        ("math_calc", [[1, 2]], [[1, 2]]),
    ],
)
def test_labels_keep_the_json_types_that_the_scorers_need(name, answer, label):
    found = ADAPTER.label(ROWS[name] | {"answer": answer}, task_of(name))
    assert json.dumps(found) == json.dumps(label)


@pytest.mark.parametrize(
    "file", ["code_run.jsonl", "data/code_run.jsonl", "code_run.parquet", "code_run/0000.parquet"]
)
def test_rows_are_read_from_folders_and_score_their_own_answer(tmp_path, file):
    rows = [ROWS["code_run"] | {"id": n, "answer": [n]} for n in range(3)]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow
        from pyarrow import parquet

        texts = [row | {"answer": [str(n)]} for n, row in enumerate(rows)]  # the hub's own cast
        parquet.write_table(pyarrow.Table.from_pylist(texts), path)
    found = load_examples(task_of("code_run"), str(tmp_path), None, 0)
    assert [example.label for example in found.examples] == [[0], [1], [2]]
    for number, example in enumerate(found.examples):
        assert example.answers == [str(number)] and example.example_id.startswith(f"{number}-")
        assert task_of("code_run").score(f"so {number}.", example, "official") == 1.0
        assert task_of("code_run").score("so 7.", example, "official") == 0.0


def test_a_row_that_comes_twice_is_an_error_and_a_number_that_comes_twice_is_not(tmp_path):
    path = tmp_path / "passkey.jsonl"
    row = json.dumps(TEXT_ROW)
    path.write_text(f"{row}\n{json.dumps(TEXT_ROW | {'context': 'other'})}\n")
    assert len(load_examples(task_of("passkey"), str(tmp_path), None, 0).examples) == 2
    path.write_text(f"{row}\n{row}\n")
    with pytest.raises(InputError, match=r"passkey.jsonl:2: id '0-[0-9a-f]{6}' is that of line 1"):
        load_examples(task_of("passkey"), str(tmp_path), None, 0)


def test_rows_of_another_benchmark_are_told_as_such(tmp_path):
    row = {"context": "c", "input": "q", "answers": ["a"], "_id": "x", "all_classes": None}
    (tmp_path / "passkey.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="passkey.jsonl:1: "):
        load_examples(task_of("passkey"), str(tmp_path), None, 0)


# -- prediction files ----------------------------------------------------------------------------


def scores(tmp_path, task, *lines, protocol="official"):
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return score_file(path, "infinitebench", task, protocol, workers=1)


def test_predictions_are_read_in_the_authors_form_the_ahn_form_and_ours(tmp_path):
    authors = {"id": 0, "prediction": "4", "ground_truth": [4]}
    bare = {"id": 1, "prediction": "so 4", "ground_truth": 4}
    ours = {"example_id": "2-ab", "prediction": "4.", "answers": ["4"], "label": [4]}
    assert scores(tmp_path, "code_run", authors, bare, ours) == [1.0, 1.0, 1.0]
    ahn = {"pred": "Paris (Document 1)", "answers": ["Paris"], "all_classes": None, "length": None}
    found = scores(tmp_path, "infinitebench_longbook_qa_eng", ahn, protocol="ahn")
    assert found == pytest.approx([1.0], abs=1e-7)
    assert scores(tmp_path, "longbook_qa_eng", ahn) == pytest.approx([0.5])  # no cut, F1
    one = {"prediction": "Paris", "ground_truth": "Paris"}
    assert scores(tmp_path, "longbook_qa_eng", one) == [1.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prediction": "4"}, "field 'ground_truth' (or 'answers') is missing"),
        (
            {"prediction": "4", "ground_truth": None},
            "should be a text, a number or a list, is null",
        ),
        ({"prediction": "4", "ground_truth": {}}, "a number or a list, is an object"),
        ({"prediction": "4", "answers": "4"}, "'answers': input should be a valid list"),
        ({"ground_truth": 4}, "field 'pred' (or 'prediction') is missing"),
        ({"prediction": "4", "ground_truth": 4, "gold_ans": "4"}, "'gold_ans' is a key of lveval"),
    ],
)
def test_a_line_that_cannot_be_scored_is_told(tmp_path, line, message):
    if "gold_ans" in line:
        pytest.importorskip("tasks.lveval.adapter")
    with pytest.raises(InputError) as caught:
        scores(tmp_path, "code_run", {"prediction": "4", "ground_truth": 4}, line)
    assert len(caught.value.problems) == 1
    assert ":2: " in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("name", CONSTANTS)
def test_an_exported_line_scores_as_the_run_did(tmp_path, name):
    task, row = task_of(name), ROWS[name]
    label, answers = ADAPTER.label(row, task), ADAPTER.answers(row)
    prediction = {"math_calc": "1, 2, 4", "code_debug": "C.", "longbook_choice_eng": "C"}.get(
        name, answers[0] if answers else ""
    )
    record = {
        "example_id": ADAPTER.example_id(row, task, 1),
        "prediction": prediction,
        "answers": answers,
        "label": None if label == answers else label,
    }
    line = ADAPTER.export(record, task)
    assert line == {"id": 0, "prediction": prediction, "ground_truth": label}
    assert ADAPTER.export_name(task) == f"preds_{name}.jsonl"
    example = Example("0", row, answers, "", "here", label=label)
    expected = task.score(prediction, example, "official")
    assert scores(tmp_path, name, line) == scores(tmp_path, name, record) == [expected]
    assert expected == (2 / 3 if name == "math_calc" else 1.0)


def test_an_example_that_failed_is_exported_as_an_empty_prediction():
    record = {"example_id": "passkey:3", "prediction": None, "answers": ["7"], "label": None}
    line = ADAPTER.export(record, task_of("passkey"))
    assert line == {"id": "passkey:3", "prediction": "", "ground_truth": ["7"]}


def test_there_is_one_mean_per_task_and_no_other():
    (table,) = benchmark_tables(
        "infinitebench",
        {
            "passkey": [Scored(1.0), Scored(0.0), Scored(0.0)],
            "infinitebench_math_calc": [Scored(0.5)],
        },
    )
    assert dict(table.rows) == {"passkey": (33.33,), "math_calc": (50.0,)}
