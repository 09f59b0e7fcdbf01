"""Several windows in one run: one variant each of every variant that has a window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from evaluation.backends.base import RunSettings
from evaluation.backends.registry import register_backend
from evaluation.backends.streaming import make_variant
from evaluation.plan.configuration import RunConfiguration, resolve_configuration
from evaluation.plan.identity import digest_of, run_info
from evaluation.plan.plan import make_plan
from evaluation.plan.planned import Plan
from evaluation.plan.variants import asked_variants
from tests.evaluation.conftest import SINKS, records_of

CELLS = {"gdn": "pocket/gdn", "dn": "pocket/dn"}


def plan_of(window: Any, *variants: str, **settings: Any) -> Plan:
    given: dict[str, Any] = {
        "benchmark": "pocket", "model": "pocket", "ahn": CELLS, "data": "pocket", "window": window,
        "sinks": 4, "tasks": ["pocket_qa@1"], "lengths": ["512"], "limit": 1, "dtype": "float32",
        "device": "cpu", "variants": list(variants),
    }  # fmt: skip
    return make_plan(RunConfiguration(**given | settings))


def sizes(plan: Plan) -> dict[str, Any]:
    """The window of each variant by name; None: it has none."""
    return {name: model.describe()["window"] for name, model in plan.models.items()}


def problems_of(*arguments: Any, **settings: Any) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        plan_of(*arguments, **settings)
    return caught.value.problems


# -- how they are written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [[1024, 2048], ["1k", "2k"], "1k,2k", "1024, 2048", ["1k,2k"], ("1k", 2048)]
)
def test_several_windows_can_be_written_in_every_way(value: Any) -> None:
    configuration, problems = resolve_configuration({"window": value})
    assert problems == [] and configuration.window == [1024, 2048]
    settings = RunSettings.of(configuration)
    assert (settings.window, settings.windows) == (None, (1024, 2048))


def test_a_file_may_hold_a_list_and_a_list_of_one_is_that_one(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for written, window in (
        ("[1k, 2048]", [1024, 2048]), ("1k,2k", [1024, 2048]), ("[1k]", 1024), ("1k", 1024),
    ):  # fmt: skip
        file.write_text(f"window: {written}\n")
        configuration, problems = resolve_configuration({}, str(file))
        assert problems == [] and configuration.window == window
        assert RunSettings.of(configuration).window == (window if window == 1024 else None)
    configuration, problems = resolve_configuration({"window": 64}, str(file))
    assert problems == [] and configuration.window == 64


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([64, 64], "--window: 64 is given twice"),
        ("1k,1024", "--window: 1,024 is given twice"),
        ([64, 0], "--window: must be at least 1, not 0"),
        ("64,-5", "--window: must be at least 1, not -5"),
        ([64, 10**12], "--window: must be at most 1,000,000,000, not 1000000000000"),
        ("64,,128", "--window: input should be a valid integer, not ''"),
        ("64,many", "--window: input should be a valid integer, not 'many'"),
        ([64, 1.5], "--window: input should be a valid integer, not 1.5"),
        ([64, True], "--window: input should be a valid integer, not True"),
        ([[64, 128]], "--window: input should be a valid integer, not [64, 128]"),
    ],
)
def test_what_is_no_list_of_windows_is_refused(value: Any, said: str) -> None:
    configuration, problems = resolve_configuration({"window": value})
    assert problems == [said] and configuration.window is None


def test_an_empty_list_in_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("window: []\n")
    _, problems = resolve_configuration({}, str(file))
    (problem,) = problems
    assert problem.endswith("run.yaml:1: window: the list names none")


# -- one window: as ever -----------------------------------------------------------------------


def test_with_one_window_all_is_what_it_was_before_there_were_several() -> None:
    """Digests of what `run_info` said before `--window` took several."""
    variants = [
        "full", "window", "ahn", "no-write-gdn", "memory-only-dn", "compressive:pooling=max",
        "window:window=32,name=narrow",
    ]  # fmt: skip
    infos = [run_info(plan_of(window, *variants)) for window in (64, [64])]
    for info in infos:
        assert list(info.models) == [
            "full", "window", "ahn-gdn", "ahn-dn", "no-write-gdn", "memory-only-dn",
            "compressive-poolingmax", "narrow",
        ]  # fmt: skip
        assert digest_of(info.identity_parts["variants"]) == (
            "cb53a33e31c545ba458dd186a5a3968761d83a13e8add22b7ea3080197c11f49"
        )
        told = {
            name: told | {key: told[key] and Path(told[key]).name for key in ("path", "ahn")}
            for name, told in info.models.items()
        }
        assert digest_of(told) == (
            "0471d1aeacdf6392672df510961e9f6bfdb63f7d119a0754bfe911835ae9f688"
        )
        assert info.configuration["window"] == 64
    assert infos[0].identity == infos[1].identity


# -- several -----------------------------------------------------------------------------------


def test_every_variant_with_a_window_is_one_for_each() -> None:
    plan = plan_of(
        [64, 128], "full", "window", "ahn", "no-write-gdn", "memory-only-dn",
        "compressive:pooling=max,name=compressive-max", "window:window=32,name=narrow",
    )  # fmt: skip
    assert sizes(plan) == {
        "full": None, "window-64": 64, "window-128": 128, "ahn-gdn-64": 64, "ahn-gdn-128": 128,
        "ahn-dn-64": 64, "ahn-dn-128": 128, "no-write-gdn-64": 64, "no-write-gdn-128": 128,
        "memory-only-dn": None, "compressive-max-64": 64, "compressive-max-128": 128, "narrow": 32,
    }  # fmt: skip
    assert not any("--window" in warning for warning in plan.warnings)
    assert run_info(plan).configuration["window"] == [64, 128]


def test_a_variant_of_several_windows_is_the_one_of_its_window_alone() -> None:
    alone = plan_of(64, "window", "ahn", "compressive", "full").models
    several = plan_of([64, 128], "window", "ahn", "compressive", "full").models
    for name, model in alone.items():
        of_sweep = several[name if name == "full" else f"{name}-64"]
        assert dict(of_sweep.identity()) == dict(model.identity())
        assert of_sweep.cost(300, 8) == model.cost(300, 8)


def test_the_memory_of_ct_is_swept_with_its_slots() -> None:
    variants = ["compressive:slots=16", "compressive:slots=32,pooling=max,name=ct-max"]
    models = plan_of([64, 128], *variants).models
    said = {name: model.describe() for name, model in models.items()}
    assert {name: (one["window"], one["slots"]) for name, one in said.items()} == {
        "compressive-slots16-64": (64, 16), "compressive-slots16-128": (128, 16),
        "ct-max-64": (64, 32), "ct-max-128": (128, 32),
    }  # fmt: skip


def test_what_is_compared_when_nothing_is_named_has_every_window() -> None:
    assert list(plan_of([64, 128]).models) == [
        "full", "window-64", "window-128", "ahn-gdn-64", "ahn-gdn-128", "ahn-dn-64", "ahn-dn-128",
    ]  # fmt: skip
    assert list(plan_of([64, 128], ahn={}).models) == ["full", "window-64", "window-128"]


def test_one_of_them_can_be_named() -> None:
    found = list(plan_of([64, 128], "window", "ahn-gdn-128").models)
    assert found == ["window-64", "window-128", "ahn-gdn-128"]
    names = [request.name for request, _ in asked_variants("window-128:sinks=2", of([64, 128]))]
    assert names == ["window-sinks2-128"]
    for unknown in ("window-32", "full-64", "ahn-64-gdn", "window-64:window=2"):
        with pytest.raises(InputError, match="unknown variant"):
            asked_variants(unknown, of([64, 128]))


def of(windows: list[int], **settings: Any) -> RunSettings:
    return RunSettings("pocket", CELLS, windows=tuple(windows), sinks=4, device="cpu", **settings)


def test_weights_that_are_called_so_come_before_a_window() -> None:
    settings = RunSettings("pocket", {"gdn": "a", "gdn-64": "b"}, windows=(64, 128))
    found = [(r.name, r.options["weights"]) for r, _ in asked_variants("ahn-gdn-64", settings)]
    assert found == [("ahn-gdn-64-64", "gdn-64"), ("ahn-gdn-64-128", "gdn-64")]


@pytest.mark.parametrize("sinks", [None, 64])
def test_a_window_of_several_that_is_smaller_than_the_sinks_is_refused(sinks: int | None) -> None:
    least = 128 if sinks is None else sinks
    (problem,) = problems_of([32, 512], "window", "compressive", ahn={}, sinks=sinks)
    assert problem.startswith(f"--window: 32 tokens are fewer than the {least} sinks; of several")
    assert list(plan_of([least, 512], "window", ahn={}, sinks=sinks).models)


def test_names_that_clash_are_refused() -> None:
    (problem,) = problems_of([64, 128], "window", "window:window=32,name=window-64")
    assert "two variants are called window-64" in problem
    (problem,) = problems_of([64, 128], "window:name=a", "compressive:name=a-64,window=9")
    assert "two variants are called a-64" in problem
    same = plan_of([64, 128], "window", "window-64", "window:window=64,name=window-64")
    assert list(same.models) == ["window-64", "window-128"], "the same under the same name"


def test_where_none_of_the_variants_has_a_window_that_is_told() -> None:
    plan = plan_of([64, 128], "full", "window:window=32", ahn={})
    assert plan.warnings == ["--window: several are given, and none of the variants takes one"]


def test_a_budget_sizes_windows_and_another_variants_window_can_be_the_budget() -> None:
    plan = plan_of([64, 128], "full", "window", "compressive", "ahn-gdn", budget="ahn-gdn-128")
    assert list(plan.models) == ["full", "window", "compressive", "ahn-gdn-64", "ahn-gdn-128"]
    assert plan.models["window"].sizable and sizes(plan)["window"] is None
    held = plan.models["ahn-gdn-128"].document_bytes(400)
    assert plan.budget is not None and plan.budget.of(400) == held
    unasked = plan_of([64, 128], "window", budget="ahn-gdn-128")
    assert unasked.budget is not None and unasked.budget.of(400) == held
    (problem,) = problems_of([64, 128], "window", budget="ahn-gdn")
    assert problem.endswith("name one of them: ahn-gdn-64, ahn-gdn-128")


def test_a_back_end_from_elsewhere_says_whether_the_window_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evaluation.backends.registry._KINDS", {
        "full": make_variant, "window": make_variant,
    })  # fmt: skip
    seen: list[int | None] = []

    def make(request: Any, settings: RunSettings) -> Any:
        seen.append(settings.window)
        model = make_variant(type(request)("full"), settings)
        model.name = request.name
        return model

    register_backend("mine", make)
    plan = plan_of([64, 128], "mine", "window", ahn={})
    assert list(plan.models) == ["mine", "window-64", "window-128"] and seen == [None]
    assert plan.warnings == [
        "--window: several are given, and mine is made once, without any of them (its back-end "
        "does not say has_window)"
    ]
    make.has_window = True  # type: ignore[attr-defined]
    plan = plan_of([64, 128], "mine", ahn={})
    assert list(plan.models) == ["mine-64", "mine-128"] and seen == [None, 64, 128]
    assert plan.warnings == []


# -- runs ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_of_several_windows_is_run_reported_and_continued(
    run_eval: Any, tiny: Path, memory: Path, data: Path, tmp_path: Path
) -> None:
    def words(folder: str, *more: Any) -> list[Any]:
        return [
            "longbench", "--model", tiny, "--ahn", memory, "--data", data, "--tasks", "hotpotqa",
            "--max-length", 200, "--dtype", "float32", "--device", "cpu", "--sinks", SINKS,
            "-o", tmp_path / folder, *more,
        ]  # fmt: skip

    several = ["--window", 24, "--window", "48", "--variant", "full,window,ahn"]
    for more in (["--limit", 1, "--no-report"], ["--limit", 2]):
        result = run_eval(*words("run", *several, *more))
        assert result.exit_code == 0, result.stderr
    one = run_eval(*words("one", "--window", 48, "--variant", "window,ahn,window:window=24,"
                          "name=window-24", "--limit", 1, "--no-report"))  # fmt: skip
    assert one.exit_code == 0, one.stderr
    found = records_of(tmp_path / "run")
    names = [f"{kind}-{window}" for kind in ("window", "ahn") for window in (24, 48)]
    assert {r["variant"] for r in found} == {"full", *names} and len(found) == 10
    info = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert list(info["models"]) == ["full", *names] and len(info["starts"]) == 2
    assert info["configuration"]["window"] == [24, 48]
    alone = {(r["variant"], r["example_id"]): r for r in records_of(tmp_path / "one")}
    for record in found:
        other = alone.pop((record["variant"].removesuffix("-48"), record["example_id"]), None)
        assert other is None or other | {"variant": ""} == record | {"variant": ""}
    assert not alone, "every one of them was compared"
    other = run_eval(*words("run", "--window", 24, "--limit", 2))
    assert other.exit_code == 2 and "variants.window-24 only in the folder" in other.stderr
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "[24, 48]" in page and "ahn-48" in page


@pytest.mark.parametrize("words", [["--window", "1k", "--window", "2048"], ["--window", "1k,2k"]])
def test_the_plan_shows_every_window(run_eval: Any, words: list[str]) -> None:
    result = run_eval(
        "longbench", "--model", "pocket", "--data", "pocket", "--tasks", "pocket_qa@1",
        "--limit", 1, "--device", "cpu", "--dry-run", *words,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert "window-1024" in said and "window-2048" in said and "2,048" in said
