"""`run_eval export`: the authors' formats, and the same scores when they are scored again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reports.records import ExampleRecord
from tasks.registry import find_task
from tests.reports.conftest import build_info


def record(task: str, number: int, prediction: str, variant: str, **row) -> ExampleRecord:
    """A record whose score is what the task's metric says of its prediction."""
    benchmark = row.pop("benchmark")
    protocol = row.pop("protocol", "official")
    found = find_task(benchmark, task)
    fields = {"answers": ["a lamp"], "label": None, "gold_ans": None, "length": 10} | row
    from tasks.schema import scored_example

    example = scored_example(
        fields["answers"], fields.get("all_classes"), label=fields["label"],
        answer_keywords=fields["gold_ans"], length=fields["length"],
    )  # fmt: skip
    return ExampleRecord(
        benchmark=benchmark, task=found.name, protocol=protocol, variant=variant,
        example_id=f"{number}-abcdef", document_id="d", prediction=prediction,
        score=found.score(prediction, example, protocol),
        metric=found.protocol(protocol).metric, prompt_tokens=3, generated_tokens=1,
        prefill_seconds=0.1, decode_seconds=0.1, **fields,
    )  # fmt: skip


def run_of(folder: Path, records: list[ExampleRecord], **info) -> Path:
    tasks = {r.task: 1 for r in records}
    variants = list(dict.fromkeys(r.variant for r in records))
    folder.mkdir(parents=True)
    models = {v: {"path": "org/Model-3B"} for v in variants}
    described = build_info(variants, tasks, **{"models": models, **info})
    (folder / "run.json").write_text(described.model_dump_json())
    for r in records:
        path = folder / r.variant / f"{r.task}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(r.to_line() + "\n")
    return folder


def longbench(variant: str = "ahn-gdn") -> list[ExampleRecord]:
    of = {"benchmark": "longbench"}
    classes = ["lamp", "table lamp", "chair"]
    return [
        record("hotpotqa", 1, "the lamp, a big one", variant, **of),
        record("hotpotqa", 2, "\u2028 nothing", variant, **of),
        record("trec", 1, "table lamp", variant, answers=["table lamp"], all_classes=classes, **of),
        record("hotpotqa_e", 1, "a lamp", variant, **(of | {"benchmark": "longbench_e"})),
    ]


RUNS = {
    "longbench": (
        longbench,
        {"pred/Model-3B-ahn-gdn/hotpotqa.jsonl": ("longbench", "hotpotqa"),
         "pred/Model-3B-ahn-gdn/trec.jsonl": ("longbench", "trec"),
         "pred_e/Model-3B-ahn-gdn/hotpotqa.jsonl": ("longbench_e", "hotpotqa_e")},
    ),
    "infinitebench": (
        lambda: [
            record("kv_retrieval", 1, "the value is ab-1", "full", benchmark="infinitebench",
                   answers=["ab-1"], label="ab-1"),
            record("math_calc", 1, "1 2 4", "full", benchmark="infinitebench",
                   answers=[], label=[1, 2, 3]),
            record("longbook_qa_eng", 1, "the lamp", "full", benchmark="infinitebench",
                   answers=["a lamp", "lamp"], label=["a lamp", "lamp"]),
        ],
        {"results/Model-3B-full/preds_kv_retrieval.jsonl": ("infinitebench", "kv_retrieval"),
         "results/Model-3B-full/preds_math_calc.jsonl": ("infinitebench", "math_calc"),
         "results/Model-3B-full/preds_longbook_qa_eng.jsonl":
             ("infinitebench", "longbook_qa_eng")},
    ),
    "lveval": (
        lambda: [
            record("hotpotwikiqa_mixup_16k", 1, "a lamp of brass", "full", benchmark="lveval",
                   gold_ans="brass lamp"),
            record("hotpotwikiqa_mixup_16k", 2, "a lamp", "full", benchmark="lveval",
                   answers=["a chair"], gold_ans="chair"),
        ],
        {"outputs/Model-3B-full/hotpotwikiqa_mixup_16k.jsonl":
             ("lveval", "hotpotwikiqa_mixup_16k")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", RUNS)
def test_what_is_exported_scores_as_the_run_did(run_eval, tmp_path, form):
    records, files = RUNS[form]
    run = run_of(tmp_path / "run", records())
    result = run_eval("export", run, "--format", form, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    written = {p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/*/*/*")}
    assert written == set(files)
    assert all(name in result.stdout.replace("\n", "") for name in files)
    for name, (benchmark, task) in files.items():
        scores = tmp_path / "scores.jsonl"
        result = run_eval(
            "score", tmp_path / "out" / name, "--benchmark", benchmark, "--task", task,
            "--per-example", scores,
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        again = [json.loads(line)["score"] for line in scores.read_text().splitlines()]
        wanted = [r.score for r in records() if (r.benchmark, r.task) == (benchmark, task)]
        assert again == wanted
        ours = run_eval(
            "score", run / records()[0].variant / f"{task}.jsonl", "--benchmark", benchmark,
            "--task", task, "--per-example", scores,
        )  # fmt: skip
        assert ours.exit_code == 0, ours.stderr
        assert [json.loads(line)["score"] for line in scores.read_text().splitlines()] == wanted


def test_lines_have_the_authors_keys(run_eval, tmp_path):
    run = run_of(tmp_path / "run", longbench())
    assert run_eval("export", run, "--format", "longbench").exit_code == 0
    (line, _) = (run / "export/pred/Model-3B-ahn-gdn/hotpotqa.jsonl").read_bytes().split(b"\n")[:2]
    assert json.loads(line) == {
        "pred": "the lamp, a big one", "answers": ["a lamp"], "all_classes": None, "length": 10
    }  # fmt: skip
    assert run_eval("report", run, "-o", tmp_path / "page.html").exit_code == 0, (
        "exports in the run folder are no records"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--format", "longbunch"], "unknown format 'longbunch'"),
        (["--format", "lveval"], "lveval cannot hold longbench's hotpotqa, trec"),
        (["--format", "longbench", "--variant", "window"], "no variant 'window'"),
        (["--format", "longbench", "--model-name", "../x"], "cannot name a folder"),
    ],
)
def test_what_cannot_be_exported_is_refused(run_eval, tmp_path, flags, said):
    run = run_of(tmp_path / "run", longbench())
    result = run_eval("export", run, *flags)
    assert result.exit_code == 2 and said in result.stderr
    assert not (run / "export").exists()


def test_files_are_replaced_only_by_force(run_eval, tmp_path):
    run = run_of(tmp_path / "run", longbench())
    assert run_eval("export", run, "--format", "longbench").exit_code == 0
    one = run / "export/pred/Model-3B-ahn-gdn/hotpotqa.jsonl"
    one.write_text("mine")
    refused = run_eval("export", run, "--format", "longbench")
    assert refused.exit_code == 2 and "--force" in refused.stderr and one.read_text() == "mine"
    assert run_eval("export", run, "--format", "longbench", "--force").exit_code == 0
    assert one.read_text() != "mine"
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []


def test_one_variant_under_a_chosen_name_and_what_is_incomplete_is_said(run_eval, tmp_path):
    failed = longbench("full")[0].model_copy(
        update={"example_id": "9", "error": "out of memory", "score": None, "prediction": ""}
    )
    run = run_of(tmp_path / "run", [*longbench("full"), failed, *longbench()], status="interrupted")
    result = run_eval(
        "export", run, "--format", "longbench", "--variant", "full", "--model-name", "chatglm3",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "1 failed examples" in result.stderr and "not finished" in result.stderr
    assert [p.name for p in (run / "export" / "pred").iterdir()] == ["chatglm3"]
    lines = (run / "export/pred/chatglm3/hotpotqa.jsonl").read_bytes().split(b"\n")[:-1]
    assert len(lines) == 3 and json.loads(lines[-1])["pred"] == ""


def test_a_place_that_cannot_be_written_leaves_nothing(run_eval, tmp_path):
    run = run_of(tmp_path / "run", longbench())
    (tmp_path / "file").write_text("")
    result = run_eval("export", run, "--format", "longbench", "-o", tmp_path / "file" / "out")
    assert result.exit_code == 2 and "cannot be written" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "run"]
