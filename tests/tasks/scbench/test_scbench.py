"""SCBench: constants, turns as examples, metrics by the authors' formulas, files, averages."""

import hashlib
import json
import math
import re
import string
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from tasks.averages import benchmark_tables
from tasks.metrics import METRICS
from tasks.registry import benchmark_definition, expand, find_task, group_names, task_names
from tasks.schema import scored_example
from tasks.scoring import score_file, scored_file
from tasks.sources import load_examples
from tests.tasks.scbench.rows import CODE, row

FUNCTIONS = ("scbench_repoqa", "scbench_repoqa_and_kv")
PLAIN = [name for name in task_names("scbench") if name not in FUNCTIONS]
# task: first 16 digits of the SHA-256 of its templates, joined by "|" (first turn, follow-up
# without and with chat template, scdq), and new tokens. Source: microsoft/MInference fb56c91,
# scbench/eval_utils.py.
CONSTANTS = {
    "scbench_kv": ("4375c18be03bc402", 150),
    "scbench_prefix_suffix": ("f6d9e108b1e128c6", 150),
    "scbench_vt": ("f6d9e108b1e128c6", 30),
    "scbench_repoqa": ("738c112a3314d50f", 1024),
    "scbench_qa_eng": ("8c05c4b0b3184655", 40),
    "scbench_qa_chn": ("b4e579aacb053ce4", 40),
    "scbench_choice_eng": ("863628afa0ff7d0f", 40),
    "scbench_many_shot": ("f6d9e108b1e128c6", 10),
    "scbench_mf": ("ae9a10c6ad7bb738", 5),
    "scbench_summary": ("f6d9e108b1e128c6", 200),
    "scbench_summary_with_needles": (
        "f6d9e108b1e128c6",
        {"scbench_summary": 800, "scbench_passkey": 15},
    ),
    "scbench_repoqa_and_kv": ("f6d9e108b1e128c6", {"scbench_repoqa": 1024, "scbench_kv": 80}),
}


def task_of(name):
    return find_task("scbench", name)


def write(folder, name, rows):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(made) + "\n" for made in rows), "utf-8")
    return folder


def load(folder, name, limit=None):
    return load_examples(task_of(name), str(folder), limit, 0).examples


# -- constants ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), CONSTANTS.items())
def test_templates_and_new_tokens_are_the_authors(name, expected):
    digest, new_tokens = expected
    rules, alone = task_of(name).protocol("official"), task_of(name).protocol("official-scdq")
    assert rules.turns is not None and alone.turns is not None
    assert rules.turns.answered and not alone.turns.answered
    scdq = alone.template.replace("{first_input}", "{prefix}")
    if name in ("scbench_qa_eng", "scbench_qa_chn", "scbench_choice_eng"):
        scdq += f"|{alone.turns.follow_up}"
    in_chat = rules.turns.follow_up_in_chat.replace("{last_prefix}", "{prefix}")
    joined = "|".join([rules.template, rules.turns.follow_up, in_chat, scdq])
    assert hashlib.sha256(joined.encode()).hexdigest()[:16] == digest
    assert alone.turns.follow_up == alone.turns.follow_up_in_chat
    for protocol in (rules, alone):
        assert protocol.turns is not None
        if isinstance(new_tokens, dict):
            assert protocol.turns.new_tokens == new_tokens
            assert protocol.max_new_tokens == max(new_tokens.values())
        else:
            assert protocol.max_new_tokens == new_tokens and not protocol.turns.new_tokens
        assert (protocol.default_max_length, protocol.truncation) == (131_072, "middle")
        assert protocol.chat_template and protocol.generation == {"do_sample": False}
    assert (rules.turns.reserved, alone.turns.reserved) == (0, 1000)
    assert rules.turns.opening == ("This paper" if name == "scbench_summary" else "")


def test_all_twelve_tasks_are_in_one_group_each():
    assert set(task_names("scbench")) == set(CONSTANTS)
    groups = ("string", "semantic", "global", "multi_task")
    members = [[t.name for t in expand("scbench", [f"scbench_{g}"], None)] for g in groups]
    assert [len(names) for names in members] == [3, 4, 3, 2]
    assert {name for names in members for name in names} == set(CONSTANTS)
    assert {t.name for t in expand("scbench", ["scbench_plain"], None)} == set(PLAIN)
    assert set(group_names("scbench")) == {"scbench", "scbench_plain"} | {
        f"scbench_{group}" for group in groups
    }
    hub = benchmark_definition("scbench").hub
    assert hub is not None and re.fullmatch("[0-9a-f]{40}", hub.revision)


# -- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_each_turn_is_an_example_of_the_shared_context(tmp_path, name):
    found = load(write(tmp_path, name, [row(name, 0), row(name, 1)]), name)
    assert [e.example_id for e in found] == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    assert [e.attributes["turn"] for e in found] == [1, 2, 3] * 2
    assert len({e.document_id for e in found[:3]}) == len({e.document_id for e in found[3:]}) == 1
    assert found[0].document_id != found[3].document_id
    assert [e.where.rpartition(":")[2] for e in found] == ["1"] * 3 + ["2"] * 3
    assert len(load(tmp_path, name, limit=4)) == 4


def test_labels_are_what_the_authors_compare_with(tmp_path):
    def labels(name):
        return [e.label for e in load(write(tmp_path, name, [row(name, 0, 2)]), name)]

    assert labels("scbench_kv") == ["value-0", "value-1"]
    assert labels("scbench_mf") == [10, 11]
    assert labels("scbench_qa_eng") == [["value-0"], ["value-1"]]
    assert labels("scbench_choice_eng") == [["value-0", "D"], ["value-1", "D"]]
    assert labels("scbench_many_shot") == ["(A)", "(B)"]
    assert labels("scbench_vt")[1] == ["VAR1", "XYZ", "QRS"]
    assert labels("scbench_summary_with_needles") == [
        {"task": "scbench_summary", "gold": "value-0"},
        {"task": "scbench_passkey", "gold": "71433"},
    ]


@pytest.mark.parametrize(
    ("first", "second", "asked"), [(7, 6, [5, 5]), (5, 7, [5, 7]), (3, 7, [3, 7]), (6, 2, [5, 2])]
)
def test_a_file_whose_first_row_has_over_five_turns_is_cut_to_five(tmp_path, first, second, asked):
    """run_scbench.py looks at the first row alone."""
    name = "scbench_kv"
    found = load(write(tmp_path, name, [row(name, 0, first), row(name, 1, second)]), name)
    assert list(Counter(e.document_id for e in found).values()) == asked
    assert {e.row["turns_of_first"] for e in found} == {min(first, 5)}


def test_rows_whose_context_is_called_input_are_read(tmp_path):
    made = row("scbench_vt", 0)
    made["input"] = made.pop("context")
    (example, *_) = load(write(tmp_path, "scbench_vt", [made]), "scbench_vt")
    assert task_of("scbench_vt").render(example, "official").startswith("Text 0 of many keys.")


@pytest.mark.parametrize("name", ["scbench_mf", "scbench_choice_eng", "scbench_vt"])
def test_parquet_as_on_the_hub_gives_the_same_examples(tmp_path, name):
    from pyarrow import Table, parquet

    rows = [row(name, 0), row(name, 1)]
    (tmp_path / "hub" / name).mkdir(parents=True)
    parquet.write_table(
        Table.from_pylist(rows), tmp_path / "hub" / name / "test-00000-of-00001.parquet"
    )
    lines, table = load(write(tmp_path / "lines", name, rows), name), load(tmp_path / "hub", name)
    assert [e.label for e in lines] == [e.label for e in table]
    rendered = task_of(name).render
    assert [rendered(e, "official") for e in lines] == [rendered(e, "official") for e in table]


@pytest.mark.parametrize(
    ("name", "changed", "turn", "said"),
    [
        ("scbench_kv", {"multi_turns": []}, {}, "'multi_turns'"),
        ("scbench_kv", {"context": None}, {}, "field 'context' is missing"),
        ("scbench_kv", {}, {"answer": ["a"]}, "multi_turns.1: 'answer' should be a text"),
        ("scbench_mf", {}, {"answer": "7"}, "multi_turns.1: 'answer' should be a number"),
        ("scbench_mf", {}, {"answer": True}, "'multi_turns.1.answer"),
        ("scbench_mf", {}, {"input": "Find it."}, "multi_turns.1: 'input' says no"),
        ("scbench_choice_eng", {}, {"options": ["a"]}, "'options' has 1 entries, not 4"),
        ("scbench_choice_eng", {}, {"answer": "yew"}, "'answer' 'yew' is none of the options"),
        ("scbench_summary_with_needles", {}, {"task": "scbench_kv"}, "'task' is 'scbench_kv', not"),
        ("scbench_kv", {}, {"input": 3}, "'multi_turns.1.input'"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path, name, changed, turn, said):
    wrong = row(name, 1) | changed
    if turn:
        wrong["multi_turns"][1] = wrong["multi_turns"][1] | turn
    with pytest.raises(InputError) as caught:
        load(write(tmp_path, name, [row(name, 0), wrong]), name)
    assert all(p.startswith(f"{tmp_path / name}.jsonl:2: ") for p in caught.value.problems)
    assert said in caught.value.problems[0]


# -- metrics ------------------------------------------------------------------------------------


def our(metric, prediction, label, answers=()):
    return METRICS[metric](prediction, scored_example(list(answers), label=label))


WORDS = st.lists(
    st.sampled_from(["Oak", "elm", "ASH", "(A)", "B", "北京", "，", "7", "88.5", "-3", " ", "\n"]),
    max_size=8,
).map("".join)


@given(WORDS, WORDS.filter(bool))
def test_texts_that_an_answer_holds(said, label):
    assert our("scbench_key", said, label) == float(said.find(label) >= 0)
    upper = said.strip().upper()
    assert our("scbench_any_of", said, [label]) == float(upper.count(label.upper()) > 0)
    hits = [character for character in label if character.upper() in upper]
    assert our("scbench_any_of", said, label) == float(bool(hits))
    meant = our("scbench_any_of_texts", said, label, [label])
    assert meant == float(label.upper() in upper)


@given(WORDS, st.lists(WORDS.filter(bool), min_size=1, max_size=4))
def test_the_share_of_texts_is_rounded_to_two_decimals(said, label):
    found = 0.0
    for entry in label:
        if entry.lower() in said.lower():
            found += 1.0
    assert our("scbench_all_of", said, label) == round(found / len(label), 2)


def characters_f1(said, wanted):
    """compute_scores.py, `qa_f1_score_zh`, for one gold text."""
    chinese = (
        "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"
    )
    chinese += "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
    bags = []
    for text in (said, wanted):
        kept = (c for c in text.lower() if c not in string.punctuation + chinese)
        bags.append(Counter("".join("".join(kept).split())))
    both = sum((bags[0] & bags[1]).values())
    if not both:
        return 0.0
    precision, recall = both / bags[0].total(), both / bags[1].total()
    return 2 * precision * recall / (precision + recall)


@given(WORDS, WORDS.filter(bool))
def test_characters_of_a_text_are_gold_answers_each(said, label):
    assert our("scbench_characters", said, label) == max(characters_f1(said, c) for c in label)
    assert our("scbench_characters", said, [label]) == characters_f1(said, label)


@given(WORDS, st.sampled_from([7, 88, 88.5, 3, 7.0]))
def test_numbers_are_cut_off_at_the_point_for_whole_ones(said, label):
    numbers = re.findall(r"\d+\.\d+|\d+", said)
    expected = False
    if numbers and isinstance(label, int):
        expected = int(float(numbers[0])) == label
    elif numbers:
        expected = float(numbers[0]) == label
    assert our("scbench_number", said, label) == float(expected)


@pytest.mark.parametrize(
    ("said", "label", "score"),
    [
        ("88.9", 88, 1.0),
        ("it is -3", 3, 1.0),
        ("12 or 88", 88, 0.0),
        ("9" * 400, 3, 0.0),  # the authors' code raises
        ("7", "7", 0.0),  # and here
        ("7", True, 0.0),
    ],
)
def test_some_numbers(said, label, score):
    assert our("scbench_number", said, label) == score


def test_empty_labels_score_nothing():
    for name in ("scbench_key", "scbench_any_of", "scbench_all_of", "scbench_characters"):
        assert our(name, "text", []) == 0.0, name
    assert our("scbench_summary_passkey", "text", None) == 0.0
    assert our("scbench_function", "text", None) == 0.0


def test_mixed_tasks_are_scored_by_the_kind_of_question():
    summary = {"task": "scbench_summary", "gold": "the lamp is red"}
    passkey = {"task": "scbench_passkey", "gold": "71432"}
    mixed = "scbench_summary_passkey"
    assert our(mixed, "the lamp is red", summary) == 1.0
    assert our(mixed, "the lamp", summary) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert our(mixed, "The key is 71432. Or 5.", passkey) == 1.0
    assert our(mixed, "5, or 71432", passkey) == 0.0
    kv = {"task": "scbench_kv", "gold": "ab-1"}
    assert our("scbench_function_or_key", "it is ab-1.", kv) == 1.0
    assert our("scbench_function_or_key", "it is ab-2.", kv) == 0.0


# -- functions ----------------------------------------------------------------------------------


def bleu_4(said, wanted):
    """NLTK's BLEU of two texts, smoothed by method 4 (Chen and Cherry, 2014), written again."""
    words, reference = said.split(), wanted.split()
    logs, misses = [], 0
    for size in range(1, 5):
        grams = [Counter(zip(*(t[i:] for i in range(size)), strict=False)) for t in (words, reference)]  # noqa: E501  # fmt: skip
        hits, total = sum((grams[0] & grams[1]).values()), max(1, sum(grams[0].values()))
        if size == 1 and not hits:
            return 0.0
        share = hits / total
        if not hits:
            if len(words) < 2:
                return None  # left to NLTK
            misses += 1
            share = 1 / (2**misses * 5 / math.log(len(words))) / total
        logs.append(math.log(share) / 4)
    short = len(words) < len(reference)
    brevity = math.exp(1 - len(reference) / len(words)) if short else 1.0
    return brevity * math.exp(sum(logs))


@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=2, max_size=12),
    st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=12),
)
def test_the_likeness_of_functions_is_smoothed_bleu(said, wanted):
    from tasks.metrics.scbench_function import similarity

    expected = bleu_4(" ".join(said), " ".join(wanted))
    assert similarity(" ".join(said), "\n".join(wanted)) == pytest.approx(expected)


def function_label(*names, wanted=0, language="python"):
    needles = [{"name": f"add_{n}", "needle": CODE[language].format(n=n)} for n in names]
    return {"name": needles[wanted]["name"], "lang": language, "needles": needles}


@pytest.fixture(scope="session")
def parsers():
    for name in ("", "_python", "_java", "_typescript", "_rust", "_cpp", "_go"):
        pytest.importorskip(f"tree_sitter{name}", reason="needs ahn-bench[scbench]")


BLOCKS = {
    "python": "x = 1\n\ndef one(a):\n    def two():\n        pass\n    return a\n",
    "go": "package x\n\nfunc one(a int) int { return a }\n",
    "java": "class X { int one(int a) { return a; } int two() { return 1; } }\n",
    "rust": "// a\nfn one(a: u8) -> u8 { a }\n",
    "typescript": "let x = 1;\nfunction one(a: number) { return a; }\n",
    "cpp": "int x;\nint one(int a) { return a; }\n",
}
FIRST = {
    "python": "def one(a):\n    def two():\n        pass\n    return a",
    "go": "func one(a int) int { return a }",
    "java": "int one(int a) { return a; }",
    "rust": "fn one(a: u8) -> u8 { a }",
    "typescript": "function one(a: number) { return a; }",
    "cpp": "int one(int a) { return a; }",
}


@pytest.mark.parametrize("language", BLOCKS)
def test_the_first_function_of_the_first_block_with_one_counts(parsers, language):
    from tasks.metrics.scbench_function import LANGUAGES, said_function

    assert set(LANGUAGES) == set(BLOCKS)
    block = f"```{language}\n{BLOCKS[language]}```"
    assert said_function(f"Here:\n{block}\n", language) == FIRST[language]
    assert said_function(f"```\nno code\n```\n{block}", language) == FIRST[language]
    assert said_function("```\nno code\n```\n```\nnone\n```", language) == "no code\n"
    assert said_function(f" {BLOCKS[language]} ", language) == BLOCKS[language].strip()


def test_the_best_of_the_repositorys_functions_must_be_the_right_one(parsers):
    right, other = CODE["python"].format(n=1), CODE["python"].format(n=2)
    label = function_label(1, 2)
    assert our("scbench_function", f"```python\n{right}```", label) == 1.0
    assert our("scbench_function", right, label) == 1.0
    assert our("scbench_function", other, label) == 0.0
    assert our("scbench_function", "def add_1(first): pass", label) == 0.0, "below 0.8"
    twins = function_label(1, 1, wanted=1)
    twins["needles"][0]["name"] = "twin"
    assert our("scbench_function", right, twins | {"name": "twin"}) == 1.0
    assert our("scbench_function", right, twins) == 0.0, "of equally like ones the first counts"


def test_functions_of_one_repository_are_compared_over_the_whole_file(parsers, tmp_path):
    """Rows 0 and 1 are of one repository, 2 of another; a limit changes nothing."""
    name = "scbench_repoqa"
    folder = write(tmp_path, name, [row(name, n, 2) for n in range(3)])
    found = load(folder, name)
    assert [needle["name"] for needle in found[0].label["needles"]] == [
        "add_0", "add_1", "add_10", "add_11"
    ]  # fmt: skip
    assert found[0].label["needles"] == found[3].label["needles"] != found[4].label["needles"]
    assert [e.label for e in load(folder, name, limit=1)] == [found[0].label]


def test_without_the_parsers_the_task_is_refused_with_the_remedy(monkeypatch, tmp_path):
    from tasks.metrics import scbench_function

    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(scbench_function, "import_module", absent)
    scbench_function._parser.cache_clear()
    name = "scbench_repoqa"
    with pytest.raises(InputError, match=re.escape('pip install "ahn-bench[scbench]"')) as caught:
        load(write(tmp_path, name, [row(name, 0)]), name)
    assert len(caught.value.problems) == 1
    scbench_function._parser.cache_clear()


@pytest.mark.parametrize(
    ("changed", "turn", "said"),
    [
        ({"lang": "cobol"}, {}, "'lang' is 'cobol', not python"),
        ({"repo": None}, {}, "field 'repo' is missing"),
        ({}, {"name": None}, "multi_turns.0: 'name', of the function, is missing"),
    ],
)
def test_a_wrong_row_of_functions_is_named(parsers, tmp_path, changed, turn, said):
    name = "scbench_repoqa"
    wrong = row(name, 0) | changed
    wrong["multi_turns"][0] |= turn
    with pytest.raises(InputError, match=re.escape(said)):
        load(write(tmp_path, name, [wrong]), name)


# -- prediction files and averages --------------------------------------------------------------


def predictions(name, rows=3):
    """Lines as run_scbench.py writes them: every second answer is the gold one."""
    lines = []
    for number in range(rows):
        made = row(name, number)
        for at, turn in enumerate(made["multi_turns"]):
            gold = turn["answer"]
            said = str(gold[0] if isinstance(gold, list) else gold)
            line = {"id": number, "turn_idx": at, "prediction": said if (number + at) % 2 else "no"}
            if name == "scbench_choice_eng":
                gold = [gold, "ABCD"[turn["options"].index(gold)]]
            if name == "scbench_qa_eng":
                gold = [gold]
            line["ground_truth"] = gold
            if "task" in turn:
                line["task"] = turn["task"]
            if "lang" in made:
                line |= {"lang": made["lang"], "repo": made["repo"]}
            if "name" in turn:
                line["func_name"] = turn["name"]
            lines.append(line)
    return lines


def saved(tmp_path, lines):
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.mark.parametrize("name", CONSTANTS)
def test_the_authors_files_are_scored_by_task_and_turn(request, tmp_path, name):
    if name in FUNCTIONS:
        request.getfixturevalue("parsers")
    lines = predictions(name)
    path = saved(tmp_path, lines)
    scored = scored_file(path, "scbench", name, "official")
    right = [float((line["id"] + line["turn_idx"]) % 2) for line in lines]
    found = [one.score for one in scored]
    if name == "scbench_vt":  # one of three texts is said
        right = [round(score / 3, 2) for score in right]
    if name == "scbench_qa_chn":  # each character of "北京10" is compared with all four
        wanted = [max(characters_f1(line["prediction"], c) for c in line["ground_truth"])
                  for line in lines]  # fmt: skip
        right = wanted
    assert found == pytest.approx(right) and 0 < sum(found) < len(found)
    per_task, per_turn = benchmark_tables("scbench", {name: scored})
    means = defaultdict(list)
    for line, score in zip(lines, right, strict=True):
        part = f": {line['task']}" if "task" in line else ""
        means[name + part].append(score)
        means[name + part, line["turn_idx"]].append(score)
    figures = {key: round(100 * sum(found) / len(found), 3) for key, found in means.items()}
    for row_name, (figure,) in per_task.rows:
        assert figure == pytest.approx(figures[row_name], abs=0.001)
    assert per_turn.columns == ("turn 1", "turn 2", "turn 3")
    for row_name, by_turn in per_turn.rows:
        for turn, figure in enumerate(by_turn):
            expected = figures.get((row_name, turn))
            assert figure is None if expected is None else figure == pytest.approx(
                expected, abs=0.001
            )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("scbench_kv", {"ground_truth": ["a"]}, "'ground_truth' should be a text"),
        ("scbench_kv", {"turn_idx": None}, "'turn_idx'"),
        ("scbench_mf", {"ground_truth": True}, "'ground_truth' is a boolean"),
        ("scbench_vt", {"ground_truth": [3]}, "'ground_truth' should hold texts"),
        ("scbench_choice_eng", {"ground_truth": ["a"]}, "should be a list of 2 texts"),
        ("scbench_qa_eng", {"ground_truth": "a"}, "should be a list of 1 texts"),
        ("scbench_summary_with_needles", {"task": None}, "'task' is None, not scbench_summary"),
        ("scbench_summary_with_needles", {"task": "scbench_kv"}, "'task' is 'scbench_kv'"),
        ("scbench_kv", {"task": "scbench_vt"}, "is being scored"),
        ("scbench_kv", {}, "field 'ground_truth' (or 'answers') is missing"),
        ("scbench_kv", {"turn_idx": 1}, "example '0-1' is that of line 2 too"),
    ],
)
def test_a_wrong_line_is_refused(tmp_path, name, changed, said):
    lines = predictions(name, 1)
    lines[2 if changed.get("turn_idx") else 0] |= changed
    if not changed:
        del lines[0]["ground_truth"]
    with pytest.raises(InputError) as caught:
        score_file(saved(tmp_path, lines), "scbench", name, "official")
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize("name", ["scbench_mf", "scbench_summary_with_needles"])
def test_documents_of_lm_eval_are_asked_and_scored_the_same(tmp_path, name):
    pytest.importorskip("datasets")
    from tasks.lm_eval import document_of, rows, score

    folder = write(tmp_path, name, [row(name, 0), row(name, 1)])
    task, found = task_of(name), load(folder, name)
    documents = list(rows("scbench", name, data=str(folder))["test"])
    for example, document in zip(found, documents, strict=True):
        assert document["prompt"] == task.render(example, "official")
        meant = document_of(document)
        assert meant is not None and meant.example.label == example.label
        assert task.conversation(meant.example, "official") == task.conversation(
            example, "official"
        )
        assert task.new_tokens(meant.example, "official") == task.new_tokens(example, "official")
        assert score(document, [example.answers[0]]) == {"score": 1.0}
