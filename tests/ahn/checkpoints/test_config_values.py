"""Numbers in config.json and generation_config.json that nothing can be computed with.

Python's JSON reader takes `NaN`, and transformers passes over a `generation_config.json` that it
cannot read, and with it over the tokens that end an answer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import ahn
from ahn.checkpoints.config_values import non_finite, stop_problems
from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.tokenizer import load_tokenizer
from ahn.cli import app
from ahn.commands.info import checkpoint_info
from ahn.commands.prompting import Sampling, generate_text
from common.errors import InputError

#: text of config.json's place, with `{}` for what is there; what the message must say
NUMBERS = [
    ('"rope_theta": NaN', "rope_theta: NaN is not a finite number"),
    ('"rope_theta": Infinity', "rope_theta: Infinity is not a finite number"),
    ('"rope_theta": 1e999', "rope_theta: Infinity is not a finite number"),
    ('"rope_theta": -Infinity', "rope_theta: -Infinity is not a finite number"),
    ('"rope_theta": 0', "rope_theta must be a number above 0, not 0"),
    ('"rope_theta": -1e6', "rope_theta must be a number above 0, not -1000000.0"),
    ('"rope_theta": "1e6"', "rope_theta must be a number above 0, not '1e6'"),
    ('"rope_theta": true', "rope_theta must be a number above 0, not True"),
    ('"rope_theta": 1e6, "rope_theta": 1e4', "key 'rope_theta' stands twice"),
    (
        '"rope_theta": 1e4, "rope_parameters": {"rope_theta": NaN, "rope_type": "default"}',
        "rope_parameters.rope_theta: NaN is not a finite number",
    ),
    (
        '"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}',
        "rope_theta 10000.0 contradicts 1000000.0",
    ),
    ('"rope_theta": 1e4, "rms_norm_eps": NaN', "rms_norm_eps: NaN is not a finite number"),
    ('"rope_theta": 1e4, "rms_norm_eps": -1e-6', "rms_norm_eps must be above 0, not -1e-06"),
    ('"rope_theta": 1e4, "attention_dropout": NaN', "attention_dropout: NaN is not a finite"),
    ('"rope_theta": 1e4, "further": [0, {"a": NaN}]', "further[1].a: NaN is not a finite number"),
    (
        '"rope_theta": 1e4, "max_position_embeddings": 0',
        "max_position_embeddings must be a positive integer, not 0",
    ),
]

GENERATION = [
    ("{", "not JSON"),
    ("", "not JSON"),
    ("[4]", "not a JSON object"),
    ('{"eos_token_id": "4"}', 'eos_token_id: "4" is none of the model\'s 576 tokens'),
    ('{"eos_token_id": [4, 576]}', "eos_token_id: 576 is none of the model's 576 tokens"),
    ('{"eos_token_id": -1}', "eos_token_id: -1 is none of the model's 576 tokens"),
    ('{"eos_token_id": []}', "eos_token_id: names no token"),
    ('{"eos_token_id": 4, "temperature": NaN}', "temperature: NaN is not a finite number"),
    ('{"eos_token_id": 4, "eos_token_id": 5}', "key 'eos_token_id' stands twice"),
]


@pytest.fixture
def pocket(tmp_path: Path) -> Path:
    """The embedded model, to be broken."""
    folder = tmp_path / "pocket"
    folder.mkdir()
    for file in ahn.POCKET_PATH.iterdir():
        if file.suffix == ".json":
            shutil.copyfile(file, folder / file.name)
    (folder / "model.safetensors").symlink_to(ahn.POCKET_PATH / "model.safetensors")
    return folder


def with_text(folder: Path, text: str) -> None:
    """Write a config.json in which `text` replaces what it says of RoPE."""
    file = folder / "config.json"
    given = json.loads("{" + text.split(", ")[0].replace("NaN", "0") + "}").keys()
    kept = json.loads(file.read_text())
    for key in {"rope_parameters", *given, *(name for name in kept if f'"{name}"' in text)}:
        kept.pop(key, None)
    file.write_text(json.dumps(kept)[:-1] + f", {text}}}")


def consumers(folder: Path) -> dict[str, Callable[[], Any]]:
    """Everything that reads a base model's settings before it computes with it."""
    memory = ahn.POCKET_PATH / "gdn"
    return {
        "load": lambda: ahn.load_model(folder, "full"),
        "load with memory": lambda: ahn.load_model(folder, ahn=memory),
        "info": lambda: checkpoint_info(folder),
        "merge": lambda: ahn.merge_checkpoint(folder, memory, folder.parent / "merged"),
    }


@pytest.mark.parametrize(("text", "says"), NUMBERS, ids=[says for _, says in NUMBERS])
def test_numbers_that_are_none(pocket: Path, text: str, says: str) -> None:
    with_text(pocket, text)
    for name, consume in consumers(pocket).items():
        with pytest.raises(ahn.InputError) as caught:
            consume()
        assert says in str(caught.value) and "config.json" in str(caught.value), name
        assert str(pocket) in str(caught.value), name
    assert not (pocket.parent / "merged").exists()


@pytest.mark.parametrize(
    ("text", "says"), GENERATION, ids=[text or "nothing" for text, _ in GENERATION]
)
def test_stop_tokens_are_never_lost(pocket: Path, text: str, says: str) -> None:
    (pocket / "generation_config.json").write_text(text)
    for name, consume in consumers(pocket).items():
        with pytest.raises(ahn.InputError) as caught:
            consume()
        assert f"{pocket}/generation_config.json: " in str(caught.value), name
        assert says in str(caught.value), name


def test_without_the_file_config_json_says_what_ends_an_answer(pocket: Path) -> None:
    (pocket / "generation_config.json").unlink()
    assert ahn.load_model(pocket, "full").generation_config.eos_token_id == 4
    config = json.loads((pocket / "config.json").read_text())
    (pocket / "config.json").write_text(json.dumps(config | {"eos_token_id": 7000}))
    with pytest.raises(ahn.InputError, match="config.json: eos_token_id: 7000 is none"):
        ahn.load_model(pocket, "full")


def test_a_link_to_nowhere_is_not_as_if_absent(pocket: Path) -> None:
    (pocket / "generation_config.json").unlink()
    (pocket / "generation_config.json").symlink_to("nowhere.json")
    with pytest.raises(ahn.InputError, match=r"generation_config\.json: cannot be read: No such"):
        ahn.load_model(pocket, "full")


def test_the_memorys_own_configuration_is_read_as_strictly(tmp_path: Path) -> None:
    shutil.copytree(ahn.POCKET_PATH / "gdn", tmp_path / "gdn")
    file = tmp_path / "gdn" / "config.json"
    file.write_text(file.read_text().replace('"num_attn_sinks": 4', '"num_attn_sinks": NaN'))
    with pytest.raises(ahn.InputError, match="gdn/config.json: num_attn_sinks: NaN"):
        ahn.load_model(ahn.POCKET_PATH, ahn=tmp_path / "gdn")


def test_generate_ends_with_the_tokenizers_token_where_no_file_names_one(pocket: Path) -> None:
    (pocket / "generation_config.json").write_text("{}")
    model, tokenizer = ahn.load_model(pocket, "full"), load_tokenizer(pocket)
    assert model.generation_config.eos_token_id is None
    ids = torch.tensor([tokenizer("the key of carbon is 72 17 .")["input_ids"]])
    new = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
    end = next(i for i, token in enumerate(new) if i and token not in new[:i])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(new[end])
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    generate_text(model, tokenizer, ids[0].tolist(), Sampling(6))
    assert len(passes) - 1 == end + 1 < 6  # the first one read the prompt


def test_the_commands_end_with_one_line(pocket: Path) -> None:
    (pocket / "generation_config.json").write_text("{")
    for words in (["info", str(pocket)], ["generate", "--model", str(pocket), "--prompt", "x"]):
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 2 and "generation_config.json: not JSON" in result.stderr


def test_places_in_a_document() -> None:
    assert non_finite({"a": 1.5, "b": [1, 2], "c": None, "d": "NaN"}) == []
    assert non_finite(float("nan")) == ["the document: NaN is not a finite number"]
    assert stop_problems(None, 5) == stop_problems(4, 5) == stop_problems([0, 4], 5) == []
    assert len(stop_problems([5, True, None, 1], 5)) == 3


def test_an_infinite_limit_of_mamba2_is_read(tmp_path: Path) -> None:
    """transformers writes it so; nothing else may be infinite."""
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert CheckpointFiles(tmp_path).config["time_step_limit"][1] == float("inf")
    (tmp_path / "config.json").write_text('{"time_step_limits": [0.0, Infinity]}')
    with pytest.raises(InputError, match="not a finite number"):
        _ = CheckpointFiles(tmp_path).config
