"""The presets that ship say what the AHN evaluation does, and resolve to real tasks and models.

Settings: ByteDance-Seed/AHN 3d2d174, eval/README.md.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ahn.checkpoints.keys import needed_base, needed_memory
from ahn.checkpoints.load import released_config
from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.safetensors_files import StoredTensor
from ahn.config import AHNConfig
from ahn.cost import zoo
from evaluation.backends.base import RunSettings
from evaluation.backends.streaming import StreamingModels, make_variant
from evaluation.plan.configuration import preset_names, resolve_configuration
from evaluation.plan.tasks import resolve_tasks
from evaluation.plan.variants import variant_requests

PAPER = {
    "longbench": (8064, 32000, {"dureader", "hotpotqa", "musique", "narrativeqa", "qmsum",
                                "triviaqa"}),
    "lveval": (32640, 256000, None),
    "infinitebench": (32640, 128000, {"longbook_qa_eng", "longbook_qa_chn"}),
}  # fmt: skip
SIZES = ("3b", "7b", "14b")
CELLS = {"gdn": "GatedDeltaNet", "dn": "DeltaNet", "mamba2": "Mamba2"}


def base_config(model: zoo.ZooModel) -> dict:
    """What the model's own config.json says, as far as the zoo knows it."""
    shape = dataclasses.asdict(model.shape)
    return shape | {"model_type": "qwen2", "max_position_embeddings": model.max_position_embeddings}


@pytest.fixture
def hub(monkeypatch):
    """Configurations and headers for the hub ids of the zoo, without network."""
    known, shapes = {}, {}
    for size in SIZES:
        model = zoo.find(f"qwen2.5-{size}")
        known[model.hub_id] = base_config(model)
        shapes[model.hub_id] = needed_base(model.shape)
        for cell, hub_id in model.released_ahn.items():
            known[hub_id] = released_config(base_config(model), AHNConfig(cell=cell))
            shapes[hub_id] = needed_memory(model.shape, AHNConfig(cell=cell))

    def tensors(files):
        return {
            key: StoredTensor(Path("model.safetensors"), "BF16", shape, 0, 0)
            for key, shape in shapes[str(files)].items()
        }

    monkeypatch.setattr(CheckpointFiles, "config", property(lambda files: known[str(files)]))
    monkeypatch.setattr(CheckpointFiles, "generation_config", None)
    monkeypatch.setattr(CheckpointFiles, "tensors", property(tensors))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)


def test_every_paper_preset_is_there():
    assert {n for n in preset_names() if n.startswith("paper-")} == {
        *(f"paper-{benchmark}-qwen2.5-{size}" for benchmark in PAPER for size in SIZES),
        "paper-ruler-qwen2.5-7b",
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("benchmark", PAPER)
def test_a_paper_preset_has_the_papers_settings(hub, benchmark, size):
    window, max_length, tasks = PAPER[benchmark]
    model = zoo.find(f"qwen2.5-{size}")
    configuration, problems = resolve_configuration(
        {"benchmark": benchmark}, f"paper-{benchmark}-qwen2.5-{size}"
    )
    asked = resolve_tasks(configuration)
    assert (problems, asked.problems, asked.protocol) == ([], (), "ahn")
    assert configuration.max_length == max_length
    assert configuration.allow_overlong is (max_length > model.max_position_embeddings)
    settings = RunSettings.of(configuration)
    texts = configuration.variants or settings.once(StreamingModels).default_kinds()
    requests = [r for text in texts for r in variant_requests(text, list(configuration.ahn))]
    made = [make_variant(request, settings) for request in requests]
    assert not any(backend.notices for backend in made)
    specs = {backend.name: backend.describe() for backend in made}
    pooled = {"compressive-max": "max", "compressive-mean": "mean"}
    assert list(specs) == ["full", "window", *pooled, "ahn-gdn", "ahn-dn", "ahn-mamba2"]
    assert {name: specs[name]["pooling"] for name in pooled} == pooled
    for name, cell in CELLS.items():
        spec = specs[f"ahn-{name}"]
        assert (spec["variant"], spec["cell"]) == ("ahn", cell)
        assert spec["ahn"] == model.released_ahn[cell]
    assert {(s["path"], s["dtype"], s["device"]) for s in specs.values()} == {
        (model.hub_id, "bfloat16", "cuda")
    }
    assert {(s["window"], s["sinks"]) for n, s in specs.items() if n != "full"} == {(window, 128)}
    assert specs["full"]["window"] is None
    found = asked.tasks
    if tasks is not None:
        assert {task.name for task in found} == tasks
    else:
        assert len(found) == 11 and {task.level for task in found} == {"128k"}
    for task in found:
        assert task.benchmark == benchmark
        assert task.protocol("ahn").default_max_length == max_length


def test_the_preset_of_the_papers_needles_is_its_table_5(hub):
    configuration, problems = resolve_configuration(
        {"benchmark": "ruler"}, "paper-ruler-qwen2.5-7b"
    )
    asked = resolve_tasks(configuration)
    assert (problems, asked.problems) == ([], ())
    assert len(asked.tasks) == 8 and {task.length for task in asked.tasks} == {131_072}
    settings = RunSettings.of(configuration)
    requests = [
        request
        for text in configuration.variants
        for request in variant_requests(text, list(configuration.ahn))
    ]
    specs = {request.name: make_variant(request, settings).describe() for request in requests}
    assert list(specs) == ["full", "window", "ahn-gdn"]
    assert {(s["window"], s["sinks"]) for n, s in specs.items() if n != "full"} == {(32640, 128)}


@pytest.mark.parametrize("benchmark", PAPER)
def test_a_folder_of_the_five_variants_of_earlier_presets_can_be_named(benchmark):
    configuration, problems = resolve_configuration(
        {"benchmark": benchmark, "variants": ["full", "window", "ahn"]},
        f"paper-{benchmark}-qwen2.5-3b",
    )
    assert (problems, configuration.variants) == ([], ["full", "window", "ahn"])


@pytest.mark.parametrize("name", [n for n in preset_names() if not n.startswith("paper-")])
def test_other_presets_resolve_to_tasks(name):
    configuration, problems = resolve_configuration({}, name)
    asked = resolve_tasks(configuration)
    tasks = asked.tasks
    assert problems == [] and asked.problems == () and tasks
    assert {task.benchmark for task in tasks} <= {configuration.benchmark, "pocket"}
