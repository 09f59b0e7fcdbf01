"""Which cells a run counts for, and what is said of settings that differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from evaluation.paper.report.blocks import DifferenceTable, ScoreCell, ScoreTable
from evaluation.paper.report.claims import standings
from evaluation.paper.report.measured import Asked, Measurements
from evaluation.paper.report.sections import score_section
from evaluation.paper.report.tried import all_tried
from reports.run_folders import read_run
from tests.evaluation.paper.report.conftest import OF_7B

MakePaperRun = Callable[..., Path]
LONGBENCH = ("dureader", "hotpotqa", "musique", "narrativeqa", "qmsum", "triviaqa")
SWA = {"window": 8064}


def measured(*runs: Path) -> Measurements:
    return Measurements(all_tried([read_run(run) for run in runs]))


def score_table(name: str, found: Measurements, model: str = OF_7B) -> ScoreTable:
    (table,) = (
        block
        for block in score_section(name, found).blocks
        if isinstance(block, ScoreTable) and block.title.startswith(model)
    )
    return table


def cell(table: ScoreTable, row: str, column: str) -> ScoreCell:
    return dict(table.rows)[row][table.columns.index(column)]


def six(score: float) -> dict[str, list[float]]:
    return dict.fromkeys(LONGBENCH, [score, score, score + 0.02])


def with_one(run: MakePaperRun, kind: str, changes: Mapping[str, Any], **more: Any) -> Measurements:
    variants = {"any-name": (kind, {**SWA, **changes})}
    return measured(run("run", variants, {"any-name": six(0.5)}, **more))


@pytest.mark.parametrize(
    ("kind", "changes", "row"),
    [
        ("window", {}, "Sinks + SWA"),
        ("compressive", {"pooling": "max"}, "CT-Max"),
        ("compressive", {"pooling": "mean"}, "CT-Average"),
        ("ahn", {"cell": "Mamba2"}, "AHN-Mamba2"),
        ("ahn", {"cell": "DeltaNet"}, "AHN-DN"),
        ("ahn", {}, "AHN-GDN"),
    ],
)
def test_a_method_is_known_by_its_description_not_its_name(
    paper_run: MakePaperRun, kind: str, changes: dict[str, Any], row: str
) -> None:
    table = score_table("table3", with_one(paper_run, kind, changes))
    found = cell(table, row, "average")
    assert found.ours is not None and found.published is not None
    assert found.ours.mean == pytest.approx(0.5 + 0.02 / 3)
    assert found.ours.low < found.ours.mean < found.ours.high and found.ours.n == 18
    assert found.difference == pytest.approx(50 + 2 / 3 - found.published)
    assert found.sources == ("run/any-name",)
    assert not found.settings and not table.settings
    others = [c for name, cells in table.rows if name != row for c in cells]
    assert all(c.ours is None for c in others)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("window", {"window": 8192}),
        ("window", {"sinks": 4}),
        ("ahn", {"window": 32640}),
        ("ahn", {"full_attention_layers": [0]}),
        ("no-write", {"cell": "GatedDeltaNet"}),
        ("ahn", {"cell": "MyCell", "parameters": 7_615_616_512, "ahn": "/models/mine"}),
        ("window", {"parameters": 7_615_616_513}),
        ("window", {"layout": [{}] * 27}),
    ],
    ids=["window", "sinks", "other table", "full layers", "no-write", "cell", "size", "depth"],
)
def test_what_does_not_fit_is_in_no_cell(
    paper_run: MakePaperRun, kind: str, changes: dict[str, Any]
) -> None:
    changes = {"ahn": "/models/x", **changes} if changes.get("cell") else changes
    if changes.get("cell") == "MyCell":
        changes["cell"] = "GatedDeltaNet"
        run = paper_run("run", {"v": ("ahn", {**SWA, **changes})}, {"v": six(0.5)})
        info = (run / "run.json").read_text("utf-8").replace("GatedDeltaNet", "MyCell")
        (run / "run.json").write_text(info, encoding="utf-8")
        found = measured(run)
    else:
        found = with_one(paper_run, kind, changes)
    table = score_table("table3", found)
    assert all(c.ours is None for _, cells in table.rows for c in cells)
    assert not found.used


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "float32"}, "float32 (paper: bfloat16)"),
        ({"yarn_factor": 4.0}, "RoPE stretched (YaRN, factor 4.0); paper: not"),
        (
            {"path": "/models/mine"},
            "weights from mine, known as Qwen2.5-7B-Instruct by their shape",
        ),
        (
            {"ahn": "/AHN-GDN-for-Qwen-2.5-Instruct-7B/my-ahn"},
            "memory weights my-ahn (released: AHN-GDN-for-Qwen-2.5-",
        ),
        ({"path": "/x", "parameters": None}, "the model is known by its name alone"),
    ],
)
def test_a_variant_that_differs_counts_and_says_so(
    paper_run: MakePaperRun, change: dict[str, Any], said: str
) -> None:
    more = {} if change.get("path") != "/models/mine" else {"configuration": {"model": "mine"}}
    found = with_one(paper_run, "ahn", change, **more)
    table = score_table("table3", found)
    assert cell(table, "AHN-GDN", "average").settings == "a"
    ((letter, remarks),) = table.settings
    assert letter == "a" and len(remarks) == 1 and remarks[0].startswith(said)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"protocol": "official"}, "protocol official (paper: ahn)"),
        ({"max_length": 16000}, "prompts of at most 16,000 tokens (paper: 32,000)"),
        ({"configuration": {"limit": 3}}, "the first 3 examples of a data set"),
        ({"configuration": {"budget": "equal"}}, "sized to a budget (equal)"),
        (
            {"generation": {"any-name": {"do_sample": True, "temperature": 0.7}}},
            "sampled, temperature 0.7 (paper: greedy)",
        ),
        ({"generation": {"any-name": {"num_beams": 4}}}, "4 beams"),
    ],
)
def test_a_run_that_differs_counts_and_says_so(
    paper_run: MakePaperRun, more: dict[str, Any], said: str
) -> None:
    configuration = {"model": f"Qwen/{OF_7B}", **more.pop("configuration", {})}
    table = score_table(
        "table3", with_one(paper_run, "window", {}, configuration=configuration, **more)
    )
    assert table.settings == (("a", (said,)),)
    assert cell(table, "Sinks + SWA", "average").settings == "a"


@pytest.mark.parametrize("value", ["wide", [1], {"a": 1}, -5, 1e30, True, None])
@pytest.mark.parametrize(
    "key", ["window", "sinks", "cell", "pooling", "dtype", "yarn_factor", "layout", "path", "ahn"]
)
def test_a_description_of_any_content_is_read(
    paper_run: MakePaperRun, key: str, value: Any
) -> None:
    for kind in ("ahn", "compressive"):
        run = paper_run(kind, {"v": (kind, SWA)}, {"v": six(0.5)})
        info = json.loads((run / "run.json").read_text("utf-8"))
        info["models"]["v"][key] = value
        (run / "run.json").write_text(json.dumps(info), encoding="utf-8")
        found = measured(run)
        score_section("table3", found)
        found.windows(OF_7B, ("AHN-GDN", "CT-Average"), 128)


def test_a_snapshot_of_the_hub_is_the_released_weights(paper_run: MakePaperRun) -> None:
    hub = "/hub/models--{}/snapshots/0123abc"
    changes = {
        "path": hub.format("Qwen--Qwen2.5-7B-Instruct"),
        "ahn": hub.format("ByteDance-Seed--AHN-GDN-for-Qwen-2.5-Instruct-7B"),
    }
    table = score_table("table3", with_one(paper_run, "ahn", changes))
    assert cell(table, "AHN-GDN", "average").ours is not None and not table.settings


def test_a_limit_that_cuts_nothing_is_no_difference(paper_run: MakePaperRun) -> None:
    scores = {"v": dict.fromkeys(LONGBENCH, [0.5, 0.6] * 100)}
    run = paper_run("run", {"v": ("window", SWA)}, scores, configuration={"limit": 200})
    table = score_table("table3", measured(run))
    assert cell(table, "Sinks + SWA", "average").ours is not None
    assert not any("first" in text for _, remarks in table.settings for text in remarks)


def test_pooling_of_another_size_says_so(paper_run: MakePaperRun) -> None:
    table = score_table("table3", with_one(paper_run, "compressive", {"slots": 100, "rate": 8}))
    assert table.settings == (("a", ("slots 100 (paper: 448)", "rate 8 (paper: 4)")),)


def test_failed_and_missing_examples_are_said(paper_run: MakePaperRun) -> None:
    scores = {"v": {**six(0.5), "qmsum": [None, 0.5, 0.5]}}
    run = paper_run("run", {"v": ("window", SWA)}, scores)
    file = run / "v" / "musique.jsonl"
    file.write_text("".join(file.read_text("utf-8").splitlines(True)[:2]), encoding="utf-8")
    table = score_table("table3", measured(run))
    ((_, of_musique), (_, of_qmsum), (_, of_average)) = table.settings
    assert of_musique == ("musique: 2 of 3 answered",)
    assert of_qmsum == ("qmsum: 1 of 3 failed",)
    assert of_average == (*of_musique, *of_qmsum)
    assert not cell(table, "Sinks + SWA", "triviaqa").settings


def test_an_average_needs_every_data_set(paper_run: MakePaperRun) -> None:
    scores = {task: [0.5, 0.7] for task in LONGBENCH[:5]}
    table = score_table("table3", measured(paper_run("run", {"v": ("window", SWA)}, {"v": scores})))
    assert cell(table, "Sinks + SWA", "average").ours is None
    assert cell(table, "Sinks + SWA", "musique").ours is not None


def test_another_level_is_another_task(paper_run: MakePaperRun) -> None:
    scores = {"v": {"cmrc_mixup_64k": [0.5, 0.6]}, "w": {"cmrc_mixup_128k": [0.2, 0.4]}}
    run = paper_run("run", {"v": ("window", {}), "w": ("ahn", {})}, scores, "lveval")
    table = score_table("table2", measured(run))
    assert cell(table, "Sinks + SWA", "LV-Eval cmrc_mixup").ours is None
    found = cell(table, "AHN-GDN", "LV-Eval cmrc_mixup")
    assert found.ours is not None and found.ours.mean == pytest.approx(0.3)


def test_of_two_runs_the_one_nearer_to_the_setting_is_taken(paper_run: MakePaperRun) -> None:
    far = paper_run("far", {"v": ("window", {**SWA, "dtype": "float32"})}, {"v": six(0.9)})
    near = paper_run("near", {"v": ("window", SWA)}, {"v": six(0.4)})
    found = measured(far, near)
    table = score_table("table3", found)
    assert cell(table, "Sinks + SWA", "average").sources == ("near/v",)
    assert found.used == {"near/v"}


def test_differences_are_paired_and_stand_beside_the_published(paper_run: MakePaperRun) -> None:
    window = paper_run("w", {"v": ("window", SWA)}, {"v": dict.fromkeys(LONGBENCH, [0.1, 0.5])})
    memory = paper_run("m", {"v": ("ahn", SWA)}, {"v": dict.fromkeys(LONGBENCH, [0.2, 0.6])})
    blocks = score_section("table3", measured(window, memory)).blocks
    (table,) = (b for b in blocks if isinstance(b, DifferenceTable))
    assert table.columns == ("average",)
    ((name, ((published, ours),)),) = table.rows
    assert name == "AHN-GDN − Sinks + SWA"
    assert published == pytest.approx(40.59 - 38.52)
    assert ours is not None and ours.interval.mean == pytest.approx(0.1)
    assert ours.interval.low <= 0.1 <= ours.interval.high and ours.interval.n == 12


def test_trainings_are_told_apart_by_the_weights_names(paper_run: MakePaperRun) -> None:
    weights = {name: f"/out/{name}" for name in ("kl-fixed1024", "ce-random", "kl-random")}
    runs = [
        paper_run(name, {"v": ("ahn", {**SWA, "ahn": path})}, {"v": six(0.2 + 0.1 * i)})
        for i, (name, path) in enumerate(weights.items())
    ]
    found = measured(*runs)
    table = score_table("table4", found)
    shown = {name: cells[0].ours.mean for name, cells in table.rows if cells[0].ours is not None}
    assert shown == {
        "KL, window 1024 fixed": pytest.approx(0.2 + 0.02 / 3),
        "CE, random window": pytest.approx(0.3 + 0.02 / 3),
        "KL, random window": pytest.approx(0.4 + 0.02 / 3),
    }
    (table_of_3,) = [score_table("table3", found)]
    assert cell(table_of_3, "AHN-GDN", "average").ours is None, "Table 3 is of released weights"
    differences = [
        b for b in score_section("table4", found).blocks if isinstance(b, DifferenceTable)
    ]
    assert [name for name, _ in differences[0].rows] == [
        "KL, random window − KL, window 1024 fixed",
        "KL, random window − CE, random window",
    ]
    assert [c[0][0] for _, c in differences[0].rows] == [pytest.approx(2.06), pytest.approx(1.0)]


def test_released_weights_are_the_random_windows_of_table_4(paper_run: MakePaperRun) -> None:
    table = score_table("table4", with_one(paper_run, "ahn", {}))
    assert cell(table, "KL, random window", table.columns[0]).ours is not None
    assert cell(table, "CE, random window", table.columns[0]).ours is None


def test_two_seeds_count_as_one_training(paper_run: MakePaperRun) -> None:
    runs = []
    for training, scores in (("kl-random", (0.5, 0.7)), ("ce-random", (0.4, 0.2))):
        for seed, score in enumerate(scores):
            ahn = {**SWA, "ahn": f"/out/{training}-seed{seed}"}
            runs.append(paper_run(f"{training}{seed}", {"v": ("ahn", ahn)}, {"v": six(score)}))
    found = measured(*runs)
    tasks = [("longbench", name) for name in LONGBENCH]
    first, second = (
        Asked(OF_7B, "AHN-GDN", 8064, 128, training) for training in ("kl-random", "ce-random")
    )
    assert found.seeds(first) == ["0", "1"]
    difference = found.difference(first, second, tasks)
    assert difference is not None
    assert difference.mean == pytest.approx((0.1 + 0.5) / 2)
    assert difference.n == 18, "of each question the mean over its seeds"
    table = score_table("table4", found)
    mean = cell(table, "KL, random window", table.columns[0]).ours
    assert mean is not None and mean.mean == pytest.approx(0.6 + 0.02 / 3) and mean.n == 18
    assert table.settings == (("a", ("mean of 2 seeds",)),)


def test_the_pure_memory_has_no_window_of_its_own(paper_run: MakePaperRun) -> None:
    scores = {"longbook_qa_eng": [0.0, 0.1], "longbook_qa_chn": [0.0, 0.1]}
    found = measured(
        paper_run("run", {"v": ("memory-only", {})}, {"v": scores}, "infinitebench"),
    )
    table = score_table("table8", found)
    assert cell(table, "Pure RNN", "InfiniteBench average").ours is not None
    assert cell(table, "Sinks + SWA + RNN", "InfiniteBench average").ours is None


def test_ruler_counts_at_its_length_alone(paper_run: MakePaperRun) -> None:
    scores = {"v": {"niah_single_1_131072": [1.0, 0.0], "niah_single_2_65536": [1.0, 1.0]}}
    found = measured(
        paper_run("run", {"v": ("full", {})}, scores, "ruler", protocol="official"),
    )
    table = score_table("table5", found)
    one = cell(table, "Full Attn", "single_1")
    assert one.ours is not None and one.ours.mean == 0.5 and not one.settings
    assert cell(table, "Full Attn", "single_2").ours is None


def test_a_claim_on_the_pocket_model_stands_beside_what_is_printed_of_the_papers() -> None:
    found = [one for one in standings(Measurements([])) if one.where == "table3"]
    of = {one.model: one for one in found if one.claim.endswith("above CT-Average")}
    assert of["pocket"].published is None and of[OF_7B].of_paper == ()
    assert dict(of["pocket"].of_paper) == {m: of[m].published for m in of if m != "pocket"}
    assert len(of) == 4 and of[OF_7B].published == pytest.approx(40.59 - 38.5)
