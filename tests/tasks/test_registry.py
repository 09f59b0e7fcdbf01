"""Finding tasks by name, and what a benchmark's YAML files may say."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tasks
from common.errors import InputError
from tasks.definitions import read_benchmark
from tasks.registry import (
    at_length,
    expand,
    find_task,
    group_names,
    protocol_name,
    task_names,
)
from tasks.sources import load_examples

LONGBENCH = Path(tasks.__file__).parent / "longbench"


def names(*given, data="folder", of="longbench"):
    return [task.name for task in expand(of, given, data)]


def test_a_task_is_found_with_and_without_its_benchmark():
    task = find_task("longbench", "multifieldqa_zh")
    assert find_task("longbench", "longbench/multifieldqa_zh") is task
    assert (task.name, task.benchmark, task.language) == ("multifieldqa_zh", "longbench", "zh")


@pytest.mark.parametrize(
    "name", ["longbench_hotpotqa", "ahnbench_longbench_hotpotqa", "longbench/hotpotqa", "hotpotqa "]
)
def test_other_spellings_of_a_name(name):
    assert find_task("longbench", name) is find_task("longbench", "hotpotqa")


@pytest.mark.parametrize(
    ("benchmark", "name"),
    [
        ("longbench_e", "hotpotqa_e"),
        ("longbench_e", "hotpotqa"),
        ("longbench_e", "longbench_e/hotpotqa"),
        ("longbench_e", "ahnbench_longbench_e_hotpotqa"),
        ("longbench", "hotpotqa_e"),
    ],
)
def test_tasks_of_longbench_e_are_found_with_and_without_e(benchmark, name):
    task = find_task(benchmark, name)
    assert (task.benchmark, task.name, task.dataset) == ("longbench_e", "hotpotqa_e", "hotpotqa")
    assert protocol_name("longbench_e", "official_e") == "official"


def test_longbench_knows_the_tasks_of_longbench_e_by_their_group():
    found = expand("longbench", ["longbench_e", "hotpotqa"], "folder")
    assert len(found) == 14 and {task.benchmark for task in found[:13]} == {"longbench_e"}
    assert len({task.name for task in found}) == 14  # so both can be in one run


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("hotpot_qa", "hotpotqa"), ("TREC", "trec"), ("lc", "lcc"), ("RepoBench_P", "repobench-p")],
)
def test_an_unknown_task_is_told_with_the_nearest_names(name, nearest):
    with pytest.raises(InputError, match=f"unknown task '{name}'.*did you mean.*'{nearest}'"):
        find_task("longbench", name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("loogle-MR-mixup", "loogle_MIR_mixup"), ("cmrc_mixup@17k", "cmrc_mixup_16k")],
)
def test_the_readmes_names_and_unknown_lengths_are_told_with_the_nearest(name, nearest):
    with pytest.raises(InputError, match=f"unknown task '{name}'.*did you mean '{nearest}'"):
        find_task("lveval", name)


def test_levels_of_lveval_are_named_in_two_ways_and_together():
    task = find_task("lveval", "cmrc_mixup_64k")
    assert find_task("lveval", "cmrc_mixup@64k") is task
    assert find_task("lveval", "lveval_cmrc_mixup_64k") is task and task.level == "64k"
    whole = find_task("lveval", "cmrc_mixup")
    assert (whole.name, whole.level, whole.protocols) == ("cmrc_mixup", None, task.protocols)
    levels = [t.level for t in expand("lveval", ["cmrc_mixup"], None)]
    assert levels == ["16k", "32k", "64k", "128k", "256k"]
    assert {t.level for t in expand("lveval", ["lveval_32k"], None)} == {"32k"}
    assert len(expand("lveval", [], None)) == 55


def test_a_group_where_one_task_is_asked_for_is_told_with_its_tasks():
    with pytest.raises(InputError, match="'lveval_32k' is a group of lveval, not a task") as caught:
        find_task("lveval", "lveval_32k")
    (message,) = caught.value.problems
    assert message.endswith("name one of " + ", ".join(names("lveval_32k", of="lveval")))


def test_groups_of_one_level_come_last_and_short_levels_first():
    found = group_names("lveval")
    assert found[0] == "lveval"
    assert found[-5:] == [f"lveval_{level}" for level in ("16k", "32k", "64k", "128k", "256k")]


def test_a_name_like_no_other_is_told_with_all_names():
    with pytest.raises(InputError, match=r"known: 2wikimqa, .*, vcsum"):
        find_task("longbench", "???")


def test_an_unknown_benchmark_and_an_unknown_protocol_are_errors():
    with pytest.raises(InputError, match="unknown benchmark 'longbnch'; did you mean 'longbench'"):
        find_task("longbnch", "trec")
    with pytest.raises(InputError, match="unknown protocol 'ours' for longbench/trec"):
        find_task("longbench", "trec").protocol("ours")


def test_names_may_be_joined_repeated_and_grouped():
    assert names("trec,lcc", " trec ", "hotpotqa") == ["trec", "lcc", "hotpotqa"]
    assert len(names("longbench_paper")) == 6
    assert names("longbench") == names() == task_names("longbench")
    assert names("longbench_paper,trec,musique")[-1] == "trec"


@pytest.mark.parametrize(
    ("benchmark", "name"),
    [
        ("longbench", "ahnbench_longbench_hotpotqa"),
        ("longbench", "ahnbench_longbench_e_hotpotqa"),
        ("longbench_e", "ahnbench_longbench_e_hotpotqa"),
        ("longbench", "ahnbench_longbench"),
        ("longbench", "ahnbench_longbench_paper"),
        ("longbench", "ahnbench_longbench_e"),
        ("lveval", "ahnbench_lveval_cmrc_mixup_16k"),
        ("lveval", "ahnbench_lveval_128k"),
        ("infinitebench", "ahnbench_infinitebench_paper"),
    ],
)
def test_the_names_in_lm_eval_are_understood_here_too(benchmark, name):
    found = expand(benchmark, [name], None)
    plain = name.removeprefix("ahnbench_")
    owner = "longbench_e" if plain.startswith("longbench_e") else benchmark
    if plain in group_names(owner):
        assert found == expand(owner, [plain], None)
    else:
        assert [task.lm_eval_name for task in found] == [name]


def test_all_unknown_names_are_told_at_once():
    with pytest.raises(InputError) as caught:
        names("hotpot,trec", "lccc")
    assert len(caught.value.problems) == 2
    assert "'hotpot'" in str(caught.value) and "'lccc'" in str(caught.value)


def test_pocket_tasks_are_found_in_their_own_benchmark_and_by_longbenchs_command():
    task = find_task("pocket", "pocket_qa@4")
    assert (task.benchmark, task.name, task.length) == ("pocket", "pocket_qa@4", 512)
    for name in ("pocket_qa@4", "ahnbench_pocket_qa_4", "pocket/pocket_qa@4"):
        assert find_task("pocket", name) is task
    assert find_task("longbench", "pocket_qa@4") is task
    assert names("pocket_qa@4,trec", data="folder") == ["pocket_qa@4", "trec"]
    assert names("pocket") == names(data="pocket") == task_names("pocket")
    assert "pocket_qa@4" not in names(data="folder")


def test_a_task_at_another_length_differs_in_name_and_longest_prompt_only():
    task, longer = find_task("pocket", "pocket_qa@4"), find_task("pocket", "pocket_qa@4_4096")
    assert longer == at_length(task, 4096) == at_length(at_length(task, 1024), 4096)
    assert at_length(longer, 512) is task
    assert longer.protocol("ahn").default_max_length == 4096
    assert find_task("pocket", "pocket_qa@4_1024").protocol("ahn").default_max_length == 2048
    with pytest.raises(InputError, match="no pocket tasks of 600 tokens"):
        at_length(task, 600)


def test_pocket_rows_are_generated():
    task = find_task("pocket", "pocket_qa@4_1024")
    found = load_examples(task, None, 2, 7)
    for data in ("pocket", "synthetic"):
        assert load_examples(task, data, 2, 7) == found
    assert found.files == [
        {"path": "generated:pocket_qa@4_1024?seed=7", "sha256": None, "revision": None}
    ]
    with pytest.raises(InputError, match="rows of pocket tasks are generated here"):
        load_examples(task, "folder", 2, 7)


def test_published_tasks_have_no_pocket_rows():
    with pytest.raises(InputError, match=r"'trec' has no pocket rows.*pocket_qa@1, pocket_qa@4"):
        names("trec", data="pocket")
    with pytest.raises(InputError, match="'trec' has no pocket rows"):
        load_examples(find_task("longbench", "trec"), "pocket", None, 0)


def test_tasks_and_errors_cross_process_borders():
    task = find_task("longbench", "samsum")
    assert pickle.loads(pickle.dumps(task)) == task
    error = pickle.loads(pickle.dumps(InputError("first", "second")))
    assert error.problems == ("first", "second") and str(error) == "first\nsecond"


def test_importing_the_wing_loads_no_heavy_package():
    code = (
        "import sys, tasks.registry, tasks.scoring, tasks.sources\n"
        "tasks.registry.task_names('longbench')\n"
        "heavy = {'torch', 'transformers', 'jieba', 'pandas', 'pyarrow', 'numpy',"
        " 'huggingface_hub', 'ahn', 'reports', 'evaluation'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- the YAML files -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A benchmark of one task and one group."""
    shutil.copy(LONGBENCH.parent / "_lm_eval.yaml", tmp_path)
    place = tmp_path / "longbench"
    place.mkdir()
    for name in ("_benchmark", "trec"):
        shutil.copy(LONGBENCH / f"{name}.yaml", place)
    group = {
        "group": "ahnbench_longbench_few",
        "task": ["ahnbench_longbench_trec"],
        "aggregate_metric_list": [{"metric": "score", "aggregation": "mean"}],
        "metadata": {"version": 1.0},
    }
    (place / "groups").mkdir()
    (place / "groups" / "longbench_few.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    return place


def change(path, edit):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


def refused(folder, message):
    with pytest.raises(InputError, match=message):
        read_benchmark(folder)


def test_a_new_task_is_one_more_file(folder):
    shutil.copy(folder / "trec.yaml", folder / "trek.yaml")
    new = {"benchmark": "longbench", "name": "trek"}
    edit = {"task": "ahnbench_longbench_trek", "dataset_kwargs": new}
    change(folder / "trek.yaml", lambda task: task.update(edit))
    read = read_benchmark(folder)
    assert list(read.tasks) == ["trec", "trek"] and read.groups == {"longbench_few": ("trec",)}
    assert read.tasks["trek"].lm_eval_name == "ahnbench_longbench_trek"


def test_a_file_may_build_on_another(folder):
    (folder / "trek.yaml").write_text(
        "include: trec.yaml\ntask: ahnbench_longbench_trek\n"
        "dataset_kwargs: {benchmark: longbench, name: trek}\n",
        encoding="utf-8",
    )
    trec, trek = read_benchmark(folder).tasks.values()
    assert trek.name == "trek" and trek.protocols == trec.protocols


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update(max_new_token=3), r"trec\.yaml: max_new_token: there is no such key"),
        (
            lambda t: t["metadata"]["protocols"]["ahn"].update(strips=True),
            r"trec\.yaml: metadata\.protocols\.ahn\.strips: there is no such key",
        ),
        (lambda t: t["metadata"]["protocols"]["ahn"].update(metric="f1"), "unknown metric 'f1'"),
        (lambda t: t["metadata"].update(metric="f1"), r"metadata\.metric: unknown metric 'f1'"),
        (lambda t: t["generation_kwargs"].update(max_gen_toks=0), "must be more than 0"),
        (lambda t: t["generation_kwargs"].update(max_gen_toks=True), "max_gen_toks: .*integer"),
        (lambda t: t["generation_kwargs"].update(max_gen_toks="64"), "max_gen_toks: .*integer"),
        (lambda t: t["generation_kwargs"].update(do_sample=0), "do_sample: .*boolean"),
        (lambda t: t["metadata"].update(version=True), r"metadata\.version: .*number"),
        (lambda t: t["metadata"].update(chat_template="no"), "chat_template: .*boolean"),
        (
            lambda t: t["metadata"]["protocols"]["ahn"].update(max_new_tokens=0),
            r"protocols\.ahn\.max_new_tokens: .*must be more than 0",
        ),
        (lambda t: t["metadata"]["protocols"].pop("official"), "must be official and any of"),
        (lambda t: t["metadata"]["protocols"].update(ours={}), "must be official and any of"),
        (lambda t: t["metadata"].pop("citation"), r"metadata\.citation: is missing"),
        (lambda t: t["metadata"].pop("chat_template"), r"official\.chat_template: is not given"),
        (lambda t: t["metadata"].update(prompt="{context} {question}"), "'question'"),
        (
            lambda t: t["metadata"]["protocols"]["ahn"].update(prompt="{question}"),
            r"metadata\.protocols\.ahn\.prompt: uses \['question'\]",
        ),
        (
            lambda t: t.update(task="longbench_trec"),
            "task: is 'longbench_trec', not 'ahnbench_longbench_trec', as all tasks are named",
        ),
        (lambda t: t["dataset_kwargs"].update(name="other"), "name: .*file's name says otherwise"),
        (lambda t: t["dataset_kwargs"].update(benchmark="other"), "is not 'longbench'"),
        (lambda t: t["dataset_kwargs"].update(level="16k"), r"level: is '16k', known: \[\]"),
        (lambda t: t.update(doc_to_text="{{prompt}}"), r"trec\.yaml: doc_to_text"),
        (lambda t: t.update(include="trec.yaml"), "includes this file"),
        (lambda t: t.update(include="none.yaml"), r"none\.yaml: no such file"),
    ],
)
def test_a_mistake_in_a_task_file_is_told_with_file_and_key(folder, edit, message):
    change(folder / "trec.yaml", edit)
    refused(folder, message)


def test_a_limit_of_one_new_token_is_a_limit(folder):
    change(
        folder / "trec.yaml", lambda t: t["metadata"]["protocols"]["ahn"].update(max_new_tokens=1)
    )
    assert read_benchmark(folder).tasks["trec"].protocol("ahn").max_new_tokens == 1


@pytest.mark.parametrize("level", ["17k", None])
def test_a_level_that_the_benchmark_does_not_have_is_told(tmp_path, level):
    shutil.copy(LONGBENCH.parent / "_lm_eval.yaml", tmp_path)
    place = shutil.copytree(LONGBENCH.parent / "lveval", tmp_path / "lveval")
    path = place / "cmrc_mixup" / "cmrc_mixup_16k.yaml"
    text = path.read_text("utf-8")
    path.write_text(text.replace(", level: 16k", f", level: {level}" if level else ""), "utf-8")
    refused(place, rf"cmrc_mixup_16k\.yaml: dataset_kwargs\.level: is {level!r}, known: \['16k'")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda g: g["task"].append("trek"), r"few\.yaml: task: no task or group 'trek'"),
        (
            lambda g: g["task"].append("ahnbench_longbench_few"),
            "no task or group 'ahnbench_longbench_few'",
        ),
        (lambda g: g.update(group="longbench_few"), "not 'ahnbench_longbench_few', as its file"),
        (
            lambda g: g.update(tasks=[]),
            r"few\.yaml: tasks: there is no such key; did you mean 'task'",
        ),
    ],
)
def test_a_mistake_in_a_groups_file_is_told(folder, edit, message):
    change(folder / "groups" / "longbench_few.yaml", edit)
    refused(folder, message)


def test_two_files_of_one_name_are_told(folder):
    (folder / "more").mkdir()
    text = (folder / "trec.yaml").read_text("utf-8").replace("../_lm_eval", "../../_lm_eval")
    (folder / "more" / "trec.yaml").write_text(text, "utf-8")
    refused(folder, r"several files are named trec\.yaml")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda b: b.update(synthetic=["trek"]), "synthetic: there is no task 'trek'"),
        (lambda b: b.update(benchmark="Long Bench"), "benchmark: string should match pattern"),
        (lambda b: b.update(protocols={}), "protocols: dictionary should have at least 1 item"),
        (lambda b: b["protocols"].pop("official"), "must be official and any of"),
    ],
)
def test_a_wrong_value_in_the_benchmarks_file_is_told(folder, edit, message):
    change(folder / "_benchmark.yaml", edit)
    refused(folder, message)


def test_a_folder_without_tasks_is_told(folder):
    (folder / "trec.yaml").unlink()
    (folder / "groups" / "longbench_few.yaml").unlink()
    refused(folder, "has no file of a task")


def test_a_mistake_in_the_benchmarks_file_is_told(folder):
    change(folder / "_benchmark.yaml", lambda b: b.update(groups={}))
    refused(folder, r"_benchmark\.yaml: groups: there is no such key")


@pytest.mark.parametrize("seed", [True, "0", 1.0, -1, 2**32])
def test_a_benchmarks_seed_is_a_whole_number(folder, seed):
    change(folder / "_benchmark.yaml", lambda b: b["protocols"]["official"].update(seed=seed))
    refused(folder, r"_benchmark\.yaml: protocols\.official\.seed: (must|input should) be")


def test_a_file_that_is_no_yaml_is_told(folder):
    (folder / "trek.yaml").write_text("task: [", encoding="utf-8")
    refused(folder, r"trek\.yaml:2: is not valid YAML")
