"""What each table and figure runs: parts, variants, weights and rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ahn.cost.paper import METHODS
from common.errors import InputError
from common.settings import settings
from evaluation.paper.experiments import experiments, parts
from evaluation.paper.needs import checkpoint_is_here, needs
from evaluation.paper.options import PaperRun
from evaluation.paper.study import configuration, examples_of, models_of, study, unread
from evaluation.paper.variants import variant, variants
from evaluation.plan.configuration import RunConfiguration, resolve_configuration
from evaluation.plan.tasks import resolve_tasks

RUN = [name for name, made in experiments().items() if made.parts]


def asked(**given: Any) -> PaperRun:
    return settings(PaperRun, given)


def test_tables_and_figures_of_scores_can_be_run_on_every_model_of_theirs_and_on_pocket() -> None:
    assert RUN == [
        "table2", "table3", "table4", "table5", "table6", "table8", "figure4", "figure7",
    ]  # fmt: skip
    for name in RUN:
        for model in models_of(name):
            made = study(name, asked(model=model))
            assert made.model == model and made.parts and made.variants
        assert models_of(name)[-1] == "pocket"


@pytest.mark.parametrize(
    ("name", "model", "names"),
    [
        ("table2", "qwen2.5-7b", [
            "full", "window-32640", "compressive-max-32640", "compressive-mean-32640",
            "ahn-mamba2-32640", "ahn-dn-32640", "ahn-gdn-32640",
        ]),
        ("table3", "qwen2.5-14b", [
            "window-8064", "compressive-max-8064", "compressive-mean-8064", "ahn-mamba2-8064",
            "ahn-dn-8064", "ahn-gdn-8064",
        ]),
        ("table4", "qwen2.5-7b", [
            "window-8064", "ahn-kl-random-8064", "ahn-ce-random-8064", "ahn-kl-fixed1024-8064",
        ]),
        ("table4", "pocket", [
            f"{kind}-{window}"
            for window in (128, 256)
            for kind in ("window", *(
                f"ahn-{row}-seed{seed}"
                for row in ("kl-random", "ce-random", "kl-fixed1024") for seed in (0, 1)
            ))
        ]),
        ("table5", "qwen2.5-7b", ["full", "window-32640", "ahn-gdn-32640"]),
        ("table8", "qwen2.5-7b", ["window-32640", "memory-only-gdn", "ahn-gdn-32640"]),
        ("table8", "pocket", ["window-128", "memory-only-gdn", "ahn-gdn-128"]),
        ("figure7", "pocket", [
            f"{kind}-{window}"
            for window in (32, 64, 128, 256)
            for kind in ("window", "compressive-mean", "ahn-gdn")
        ]),
    ],
)  # fmt: skip
def test_variants_have_one_name_in_all_tables(name: str, model: str, names: list[str]) -> None:
    assert [one.name for one in study(name, asked(model=model)).variants] == names


def test_a_figure_over_windows_asks_full_attention_once_and_shares_a_table_s_window() -> None:
    of_figure = [one.name for one in study("figure4", asked(model="qwen2.5-7b")).variants]
    assert of_figure.count("full") == 1 and len(of_figure) == 1 + 8 * 2
    of_table = [one.name for one in study("table2", asked(model="qwen2.5-7b")).variants]
    assert {"full", "window-32640", "ahn-gdn-32640"} <= {*of_figure} & {*of_table}
    lossless = [one + 128 for one in experiments()["figure4"].windows]
    assert lossless == [1024 * k for k in (1, 2, 4, 8, 16, 32, 64, 96)]


def test_a_variant_is_asked_for_by_all_that_decides_it() -> None:
    assert variant("Full Attn", 5, 1).request == "full"
    one = variant("CT-Max", 64, 4)
    assert one.request == "compressive:pooling=max,window=64,sinks=4,name=compressive-max-64"
    assert one.settings == {"variant": "compressive", "window": 64, "sinks": 4}
    ablated = variant("AHN-GDN", 8064, 128, "kl-random")
    assert (ablated.name, ablated.weights) == ("ahn-kl-random-8064", "kl-random")
    alone = variant("Pure RNN", 64, 4)
    assert alone.request == "memory-only:weights=gdn,name=memory-only-gdn"
    assert len(variants([*METHODS, "Pure RNN"], [1, 2], 0)) == 1 + 6 * 2 + 1
    with pytest.raises(InputError, match="did you mean 'CT-Max'"):
        variant("CT-Mx", 1, 0)


@pytest.mark.parametrize(
    ("name", "benchmark", "part", "model"),
    [
        pytest.param(*one, model, id=f"{one[1]}-{model}")
        for one in (
            ("table2", "lveval", "lveval-128k"),
            ("table2", "infinitebench", "infinitebench-qa"),
            ("table3", "longbench", "longbench-six"),
            ("table5", "ruler", "ruler-niah-128k"),
        )
        for model in experiments()[one[0]].models
    ],
)
def test_a_part_of_the_paper_is_run_as_its_preset_says(
    name: str, benchmark: str, part: str, model: str, tmp_path: Path
) -> None:
    preset, problems = resolve_configuration({"benchmark": benchmark}, f"paper-{benchmark}-{model}")
    assert not problems
    given = asked(model=model, dtype="bfloat16", device="cuda")
    made = study(name, given)
    ours = configuration(made, parts()[part], made.variants, given, tmp_path)
    for key in ("benchmark", "model", "protocol", "max_length", "allow_overlong", "dtype", "limit"):
        assert getattr(ours, key) == getattr(preset, key), key
    assert {one.name for one in resolve_tasks(ours).tasks} == {
        one.name for one in resolve_tasks(preset).tasks
    }
    for name, place in ours.ahn.items():
        assert place == preset.ahn[name]
    assert {one.settings.get("window") for one in made.variants} - {None} == {preset.window}
    assert {one.settings.get("sinks") for one in made.variants} - {None} == {preset.sinks}


@pytest.mark.parametrize("name", [name for name, part in parts().items() if part.stands_for])
def test_a_miniature_s_examples_are_as_many_as_its_tasks_have(name: str) -> None:
    part = parts()[name]
    assert part.limit and examples_of(part, part.limit) == part.examples
    assert examples_of(part, 2) == 2 * part.examples // part.limit
    configured = settings(RunConfiguration, part.run)
    for task in resolve_tasks(configured).tasks:
        assert task.name.endswith(f"_{part.tokens}")


def test_a_limit_asks_no_more_than_there_is() -> None:
    lveval = parts()["lveval-128k"]
    assert examples_of(lveval, None) == 1729 == examples_of(lveval, 1000)
    assert examples_of(lveval, 3) == 33


def test_given_weights_and_rows_take_the_place_of_the_hubs(tmp_path: Path) -> None:
    given = asked(
        model="Qwen/Qwen2.5-3B-Instruct", base="weights", ahn=["gdn=here"], data="longbench=rows"
    )
    made = study("table3", given)
    assert (made.model, made.base) == ("qwen2.5-3b", "weights")
    assert made.ahn["gdn"] == "here" and made.ahn["dn"].startswith("ByteDance-Seed/AHN-DN-")
    part = made.parts["longbench-six"]
    ours = configuration(made, part, made.variants[:1], given, tmp_path)
    assert (ours.data, ours.ahn, ours.model) == ("rows", {}, "weights")
    assert study("table3", asked(model="qwen2.5-3b", data="rows")).data == {"longbench": "rows"}


def test_what_nothing_reads_is_said() -> None:
    given = asked(model="qwen2.5-7b", ahn=["dn=x"], data=["lveval=y"], essay="z")
    told = unread(study("table5", given), given)
    assert told == ["--ahn: nothing of table5 reads dn", "--data: nothing of table5 reads lveval"]
    assert unread(study("table3", given), given)[-1].startswith("--essay")
    assert unread(study("table2", asked(model="qwen2.5-7b")), given)[0].startswith("--essay")


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("table3", {}, "--model: needed by table3; one of qwen2.5-3b"),
        ("table5", {"model": "qwen2.5-3b"}, "table5 has no 'qwen2.5-3b'"),
        ("table3", {"model": "qwen2.5-7"}, "did you mean 'qwen2.5-7b'"),
        ("table3", {"model": "pocket", "variants": ["ahn-gnd-128"]}, "did you mean 'ahn-gdn-128'"),
        ("table3", {"model": "pocket", "ahn": ["gnd=x"]}, "did you mean 'gdn'"),
        ("table3", {"model": "pocket", "ahn": ["x"]}, "weights are called gdn, dn, mamba2"),
        ("table3", {"model": "pocket", "data": ["x"]}, "rows are generated here"),
        ("table2", {"model": "qwen2.5-3b", "data": ["x"]}, "say whose rows these are"),
        ("table2", {"model": "qwen2.5-3b", "data": ["lvevl=x"]}, "did you mean 'lveval'"),
    ],
)
def test_what_a_table_has_not_is_refused(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        study(name, asked(**given))


def test_a_checkpoint_is_here_where_all_its_files_are(tmp_path: Path) -> None:
    assert checkpoint_is_here("pocket") and checkpoint_is_here("pocket/gdn")
    assert not checkpoint_is_here("pocket/none") and not checkpoint_is_here("none/such")
    assert not checkpoint_is_here(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert not checkpoint_is_here(str(tmp_path))
    index = '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path / "one.safetensors").touch()
    assert not checkpoint_is_here(str(tmp_path))
    (tmp_path / "two.safetensors").touch()
    assert checkpoint_is_here(str(tmp_path))


def test_rows_are_here_where_a_folder_has_all_of_them(tmp_path: Path) -> None:
    made = study("table3", asked(model="qwen2.5-3b", data=f"longbench={tmp_path}"))
    assert [need.here for need in needs(made) if need.kind == "rows"] == [False]
    for task in ("dureader", "hotpotqa", "musique", "narrativeqa", "qmsum", "triviaqa"):
        (tmp_path / f"{task}.jsonl").write_text("{}\n")
    assert [need.here for need in needs(made) if need.kind == "rows"] == [True]
    ruler = study("table5", asked(model="qwen2.5-7b"))
    for essay in (False, True):
        assert [need.here for need in needs(ruler, essay) if need.kind == "rows"] == [essay]
