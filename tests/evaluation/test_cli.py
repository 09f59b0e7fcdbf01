"""`run_eval score | cost | tasks | report`, and what they do without."""

from __future__ import annotations

import gzip
import io
import json
import re

import pytest

from tasks.scoring import scored_file
from tests.evaluation.conftest import start_process


def predictions(folder, *scores: int):
    """A file in the authors' format; 1 stands for a right answer."""
    path = folder / "hotpotqa.jsonl"
    rows = [
        {"pred": "the Right one" if s else "no", "answers": ["right one"], "all_classes": None,
         "length": 3}
        for s in scores
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_score_writes_one_line_per_prediction_in_order(run_eval, tmp_path):
    file, out = predictions(tmp_path, 1, 0, 1), tmp_path / "scores.jsonl"
    result = run_eval(
        "score", file, "--benchmark", "longbench", "--task", "hotpotqa", "--per-example", out
    )
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"score": 1.0}, {"score": 0.0}, {"score": 1.0}
    ]  # fmt: skip
    assert "66.67" in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hotpotqa.jsonl", "scores.jsonl"]


def test_score_leaves_an_earlier_file_alone_when_the_input_is_bad(run_eval, tmp_path):
    file, out = predictions(tmp_path, 1), tmp_path / "scores.jsonl"
    earlier = '{"score": 0.5}\n'
    out.write_text(earlier)
    with file.open("a") as stream:
        stream.write('{"pred": "no answers here"}\n')
    result = run_eval(
        "score", file, "--benchmark", "longbench", "--task", "hotpotqa", "--per-example", out
    )
    assert result.exit_code == 2 and f"{file}:2" in result.stderr
    assert out.read_text() == earlier


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--benchmark", "longbench", "--task", "hotpotqq"], "hotpotqa"),
        (["--benchmark", "longbench", "--task", "longbench_paper"],
         "is a group of longbench, not a task: name one of dureader, hotpotqa"),
        (["--benchmark", "longbank", "--task", "hotpotqa"], "longbench"),
        (["--benchmark", "longbench", "--task", "hotpotqa", "--protocol", "mine"], "mine"),
        (["--benchmark", "longbench", "--task", "hotpotqa", "--per-example", "no/x"], "no/x"),
        (["--benchmark", "longbench", "--task", "hotpotqa", "--per-example", "."], "a folder"),
        (["--benchmark", "longbench", "--task", "lcc", "--metric", "code_similarity_levenstein"],
         "did you mean 'code_similarity_levenshtein'"),
    ],
)  # fmt: skip
def test_score_refuses_what_it_does_not_know(run_eval, tmp_path, monkeypatch, flags, said):
    monkeypatch.setattr(
        "evaluation.commands.score.scored_file", scored_before(["--per-example"], flags)
    )
    result = run_eval("score", predictions(tmp_path, 1), *flags)
    assert result.exit_code == 2
    assert said in result.stderr and "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def scored_before(late: list[str], flags: list[str]):
    """`scored_file`, unless one of `late` is given: what is wrong with it is told without it."""

    def scored(*arguments, **options):
        assert not set(late) & set(flags), "scored for nothing"
        return scored_file(*arguments, **options)

    return scored


def test_score_does_not_write_over_the_predictions(run_eval, tmp_path):
    file = predictions(tmp_path, 1)
    before, link = file.read_bytes(), tmp_path / "link.jsonl"
    link.symlink_to(file)
    for out in (file, link):
        result = run_eval(
            "score", file, "--benchmark", "longbench", "--task", "hotpotqa", "--per-example", out
        )
        assert result.exit_code == 2 and "is the file with the predictions" in result.stderr
        assert file.read_bytes() == before


def test_score_prints_longbench_es_figures_by_length_as_their_script(run_eval, tmp_path):
    file = tmp_path / "hotpotqa.jsonl"
    lines = [(100, "x"), (3999, "Paris"), (4000, "Paris"), (9000, "Paris"), (9000, "x"), (None, "")]
    file.write_text(
        "".join(
            json.dumps({"pred": pred, "answers": ["Paris"], "all_classes": None, "length": length})
            + "\n"
            for length, pred in lines
        )
    )
    result = run_eval("score", file, "--benchmark", "longbench_e", "--task", "hotpotqa")
    assert result.stdout.strip() == (
        "hotpotqa (official, 6 predictions): 50.0 (0-4k: 50.0; 4-8k: 100.0; 8k+: 50.0)"
    )
    result = run_eval("score", file, "--benchmark", "longbench", "--task", "hotpotqa")
    assert result.stdout.strip() == "hotpotqa (official, 6 predictions): 50.0"


def test_tasks_that_this_version_does_not_know_are_reported_with_a_notice(run_eval, tmp_path):
    from tests.reports.conftest import write_run

    run = write_run(
        tmp_path / "run", {"full": {"hotpotqa": [1.0, 0.0], "later_task": [0.25, 0.25]}},
        record={"benchmark": "longbench", "protocol": "official"},
    )  # fmt: skip
    other = write_run(tmp_path / "other", {"full": {"qa": [1.0]}}, record={"benchmark": "later"})
    page = tmp_path / "page.html"
    result = run_eval("report", run, other, "-o", page)
    assert result.exit_code == 0, result.stderr
    text = page.read_text("utf-8")
    notice = text[text.index('id="notices"') : text.index("</section>")]
    assert "does not know longbench/later_task, later/qa" in notice
    assert "longbench/hotpotqa" not in notice
    assert text.count("later_task") > 1, "its scores are shown"
    known = run_eval("export", run, "--format", "longbench", "-o", tmp_path / "out")
    assert known.exit_code == 2 and "unknown task 'later_task'" in known.stderr


def test_score_by_another_metric_says_so(run_eval, tmp_path):
    file = tmp_path / "lcc.jsonl"
    line = {"pred": "x total a_sum a_sum + x", "answers": ["value return value - x )"]}
    file.write_text(json.dumps(line) + "\n")
    flags = ["--benchmark", "longbench", "--task", "lcc"]
    own, other = (
        run_eval("score", file, *flags, *more).stdout.strip()
        for more in ([], ["--metric", "code_similarity_levenshtein"])
    )
    assert own == "lcc (official, 1 predictions): 9.0"
    assert other == "lcc (official, but by code_similarity_levenshtein, 1 predictions): 43.0"


def test_score_needs_no_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from evaluation.cli import main; main()"
    )
    process = start_process(
        "score", predictions(tmp_path, 1, 0), "--benchmark", "longbench", "--task", "hotpotqa",
        code=code,
    )  # fmt: skip
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "50.0" in output


def test_report_cost_and_tasks_need_no_torch(tmp_path):
    for arguments in (["cost", "--model", "qwen2.5-3b"], ["tasks"], ["report", "x", "-o", "y"]):
        code = "import sys; sys.modules['torch'] = None; from evaluation.cli import main; main()"
        process = start_process(*arguments, code=code)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == (2 if arguments[0] == "report" else 0), errors
        assert "Traceback" not in errors


PAPER = [
    "cost", "--model", "qwen2.5-3b", "--length", 128000, "--window", 32640, "--sinks", 128,
    "--cell", "GatedDeltaNet",
]  # fmt: skip


def test_cost_prints_the_papers_figures(run_eval):
    result = run_eval(*PAPER)
    assert result.exit_code == 0
    assert "-74.0 %" in result.stdout and "-40.5 %" in result.stdout
    assert "GatedDeltaNet" in result.stdout
    rows = [line for line in result.stdout.splitlines() if "FLOPs, " in line or "cache, " in line]
    assert len(rows) == 6
    for row in rows:
        unit = r"[0-9.]+ PFLOP\b" if "FLOPs, " in row else r"[0-9.]+ GiB\b"
        assert len(re.findall(unit, row)) == 3, row


def test_cost_counts_the_tokens_that_are_in_the_cache(run_eval):
    """The first answer token comes out of the prompt, and the last is never read."""
    for generated, positions in ((0, 1), (1, 1), (3, 3)):
        result = run_eval(
            "cost", "--model", "qwen2.5-3b", "--length", 1, "--generate", generated, "--json"
        )
        full = json.loads(result.stdout)["variants"]["full"]
        assert full["cache_bytes"]["paper"]["total"] == 36 * positions * 2 * 2 * 128 * 2
        assert bool(full["flops"]["exact"]["decode"]) == (generated > 1)


def test_cost_as_json(run_eval):
    result = run_eval(*PAPER, "--json")
    costs = json.loads(result.stdout)
    ahn, full = costs["variants"]["ahn"], costs["variants"]["full"]
    assert round(ahn["cache_bytes"]["paper"]["change_percent"], 1) == -74.0
    assert round(100 + ahn["flops"]["paper"]["change_percent"], 1) == 59.4
    assert round(ahn["flops"]["paper-abstract"]["change_percent"], 1) == -40.5
    assert set(ahn["flops"]) == set(costs["accountings"]["flops"])
    assert -41.5 <= ahn["flops"]["paper-free-lookup"]["change_percent"] <= -41.0
    # 36 layers, 2 key/value heads of 128, keys and values, bfloat16
    assert full["cache_bytes"]["paper"]["total"] == 36 * 128000 * 2 * 2 * 128 * 2
    assert full["cache_bytes"]["exact"]["total"] == full["cache_bytes"]["paper"]["total"]
    assert ahn["cache_bytes"]["exact"]["total"] > ahn["cache_bytes"]["paper"]["total"]
    assert full["flops"]["exact"]["change_percent"] == 0
    assert costs["parameters"]["ahn"] == pytest.approx(13.0e6, rel=0.01)


def test_cost_lists_all_problems(run_eval):
    result = run_eval("cost", "--model", "qwen2.5-3b", "--length", 0, "--window", 0, "--cell", "X")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dtype", "int4"], "--dtype: must be 'float32', 'bfloat16' or 'float16', not 'int4'"),
        (["--dtype", "auto"], "--dtype: must be 'float32', 'bfloat16' or 'float16', not 'auto'"),
        (["--length", 10**20], "--length"),
        (["--generate", 10**20], "--generate"),
        (["--window", 10**20], "--window: must be at most 1,000,000,000,000, not"),
        (["--sinks", 10**20], "--sinks: must be at most 1,000,000,000,000, not"),
        (["--model", ""], "--model: string should have at least 1 character"),
    ],
)
def test_cost_refuses_what_makes_no_sense(run_eval, flags, said):
    result = run_eval("cost", "--model", "qwen2.5-3b", *flags)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error: {said}")


def test_score_does_not_write_over_a_folder(run_eval, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = predictions(tmp_path, 1)
    for place in (".", "..", tmp_path, "/"):
        result = run_eval(
            "score", file, "--benchmark", "longbench", "--task", "hotpotqa", "--per-example", place
        )
        assert result.exit_code == 2
        assert "cannot be written" in result.stderr
    assert list(tmp_path.iterdir()) == [file]


def test_cost_of_a_folder(run_eval, tiny):
    result = run_eval("cost", "--model", tiny, "--length", 1000, "--window", 64, "--sinks", 4)
    assert result.exit_code == 0, result.stderr


def test_tasks_lists_every_task(run_eval):
    from tasks.registry import task_names

    result = run_eval("tasks")
    assert result.exit_code == 0
    for name in task_names("longbench"):
        assert name in result.stdout
    assert "qa_f1_zh" in result.stdout and "512 / ahn 500" in result.stdout
    for name in task_names("longbench_e"):
        assert name in result.stdout, "without a benchmark all of them are listed"
    refused = run_eval("tasks", "longbank")
    assert refused.exit_code == 2 and "longbench" in refused.stderr


@pytest.mark.parametrize(
    "benchmark", ["longbench", "longbench_e", "longbench_v2", "lveval", "infinitebench", "scbench"]
)
@pytest.mark.parametrize("width", [80, 140])
def test_tasks_breaks_no_name_in_a_narrow_terminal(benchmark, width):
    from rich.console import Console

    from evaluation.commands.tasks import describe_tasks, task_tables

    described = describe_tasks(benchmark, None)
    terminal = Console(width=width, record=True, file=io.StringIO())
    terminal.print(task_tables(described, width))
    lines = terminal.export_text().splitlines()
    assert max(map(len, lines)) <= width
    shown = " ".join(lines).split()
    for task in described[0]["tasks"]:
        names = [task["dataset"] if task["level"] else task["name"], *task["category"].split()]
        names += [rules["metric"] for rules in task["protocols"].values()]
        assert set(names) <= set(shown), set(names) - set(shown)
    ends = {
        line.rstrip(" │").split()[-1] for line in lines if line.strip(" │").startswith(names[0])
    }
    assert ends <= {"no", "yes", "*"}, "the last column is there"


def test_tasks_says_where_the_rows_are(run_eval, tmp_path, data):
    described = json.loads(run_eval("tasks", "longbench", "--data", data, "--json").stdout)
    (benchmark,) = described
    here = {task["name"] for task in benchmark["tasks"] if task["rows"]["here"]}
    assert here == {"hotpotqa", "samsum"}
    assert "hotpotqa" in benchmark["groups"]["longbench_paper"]
    of = {task["name"]: task for task in benchmark["tasks"]}
    assert of["gov_report"]["protocols"]["ahn"] == {"metric": "rouge_l", "max_new_tokens": 500}
    assert of["samsum"]["rows"]["file"] == "samsum.jsonl"
    (itself,) = json.loads(
        run_eval("tasks", "longbench", "--data", data / "samsum.jsonl", "--json").stdout
    )
    assert [task["name"] for task in itself["tasks"] if task["rows"]["here"]] == ["samsum"]
    refused = run_eval("tasks", "longbench", "--data", tmp_path / "nowhere")
    assert refused.exit_code == 2 and "nowhere" in refused.stderr
    assert "pocket_qa@4" in run_eval("tasks", "pocket").stdout


def test_importing_the_command_line_is_quick_and_without_torch():
    code = (
        "import sys, evaluation.cli\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'numpy', 'jinja2'} & set(sys.modules)))"
    )
    output, errors = start_process(code=code).communicate(timeout=600)
    assert output.strip() == "[]", errors


@pytest.mark.shared
@pytest.mark.parametrize("protocol", ["official", "ahn"])
def test_score_gives_the_authors_scores_in_their_format(run_eval, shared, tmp_path, protocol):
    """The authors' own files, through the command: as `pred` lines, score by score."""
    wanted, rows = [], []
    with gzip.open(
        shared / "conformance" / f"longbench_{protocol}.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        for line in file:
            entry = json.loads(line)
            if entry["task"] != "multifieldqa_zh" or entry["expected_score"] is None:
                continue
            wanted.append(entry["expected_score"])
            rows.append(
                {"pred": entry["prediction"], "answers": entry["answers"],
                 "all_classes": entry["all_classes"], "length": entry["length"]}
            )  # fmt: skip
            if len(rows) == 60:
                break
    assert rows
    file, out = tmp_path / "multifieldqa_zh.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_eval(
        "score", file, "--benchmark", "longbench", "--task", "multifieldqa_zh",
        "--protocol", protocol, "--per-example", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    scores = [json.loads(line)["score"] for line in out.read_text().splitlines()]
    assert scores == pytest.approx(wanted, abs=1e-9)


def test_run_takes_any_benchmark_by_its_name(run_eval):
    flags = ["--data", "pocket", "--tasks", "pocket_qa@4", "--limit", 1, "--dry-run"]
    flags += ["--model", "pocket"]
    by_name = run_eval("run", "longbench", *flags)
    assert by_name.exit_code == 0, by_name.output
    assert by_name.stdout == run_eval("longbench", *flags).stdout
    own = run_eval("run", "pocket", "--tasks", "pocket_qa@4", "--limit", 1, "--dry-run")
    assert "11 variants" in own.stdout, "the preset of its name"
    for words, told in (
        (["run"], "error: name a benchmark: run_eval run BENCHMARK"),
        (["run", "lngbench"], "error: unknown benchmark 'lngbench'; did you mean 'longbench'"),
    ):
        refused = run_eval(*words, *flags)
        assert refused.exit_code == 2 and refused.stderr.startswith(told), refused.stderr


def test_the_pocket_data_command_is_there(run_eval):
    assert "pocket-data" in run_eval("--help").stdout
