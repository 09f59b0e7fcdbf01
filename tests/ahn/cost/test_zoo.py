"""The model zoo: sizes against published parameter counts, names, and broken files."""

from __future__ import annotations

import pytest
import yaml

from ahn.cost import zoo
from common.errors import InputError


# Parameters in the published checkpoints (tied embeddings counted once).
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("mistral-7b-v0.3", 7_248_023_552),
    ],
)
def test_sizes_give_the_published_parameter_count(name, parameters):
    assert zoo.find(name).shape.parameters == parameters


def test_names_are_sorted_by_family_and_size():
    names = zoo.names()
    assert names[:4] == ["llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b", "mistral-7b-v0.3"]
    assert names[4:9] == ["qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "qwen2.5-14b"]
    assert all(name.startswith("qwen3-") for name in names[9:])


@pytest.mark.parametrize(
    "spelling",
    ["qwen2.5-3b", "Qwen2.5-3B", "Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct"],
)
def test_a_model_is_found_by_name_and_by_hub_id(spelling):
    assert zoo.find(spelling).name == "qwen2.5-3b"


@pytest.mark.parametrize("spelling", ["mistralai/Mistral-7B-v0.3", "Mistral-7B-Instruct-v0.3"])
def test_instruct_may_stand_inside_a_name(spelling):
    assert zoo.find(spelling).name == "mistral-7b-v0.3"


def test_released_checkpoints_are_named_by_cell():
    released = zoo.find("qwen2.5-3b").released_ahn
    assert released["GatedDeltaNet"] == "ByteDance-Seed/AHN-GDN-for-Qwen-2.5-Instruct-3B"
    assert zoo.find("qwen2.5-0.5b").released_ahn == {}


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(InputError, match=r"did you mean 'qwen2\.5-3b'"):
        zoo.find("qwen-2.5-3b")
    with pytest.raises(InputError, match="known: llama-3.1-8b"):
        zoo.find("zzz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 4}, "unknown key 'heads'"),
        ({"hub_id": None}, "'hub_id' must be a string"),
        ({"max_position_embeddings": "many"}, "'max_position_embeddings'"),
        ({"released_ahn": {"LSTM": "x/y"}}, "cell 'LSTM' is unknown"),
        ({"shape": {"num_layers": 3}}, "unknown key 'shape.num_layers'"),
        ({"shape": [1]}, "a mapping with a 'shape'"),
        ({"rope_scaling": "yarn"}, "'rope_scaling' must be a mapping"),
        ({"rope": {}, "hub_id": 3}, "unknown key 'rope'"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path, change, message):
    good = {
        "hub_id": "someone/model",
        "max_position_embeddings": 4096,
        "shape": {
            "model_type": "qwen2",
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 96,
            "vocab_size": 200,
            "tie_word_embeddings": True,
        },
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(good))
    assert zoo.read(file).name == "mine"
    file.write_text(yaml.safe_dump(good | change))
    with pytest.raises(InputError, match=message) as refusal:
        zoo.read(file)
    assert "mine.yaml" in str(refusal.value)


def test_a_folder_is_sent_to_where_folders_are_read(tmp_path):
    with pytest.raises(InputError, match=f"`ahn info {tmp_path}`"):
        zoo.find(str(tmp_path))
