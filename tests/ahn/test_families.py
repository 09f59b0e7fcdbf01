"""The table of families: rows, what they mean for a `config.json`, and rows from outside."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ahn
from ahn import families
from ahn.checkpoints.keys import needed_base
from ahn.checkpoints.rope import rope_parameters, with_rope
from ahn.commands.info import checkpoint_info
from ahn.cost.shapes import ModelShape
from ahn.distill.recipe import Recipe
from ahn.distill.student import base_config
from ahn.families import Family, family_of, find_family, register_family
from common.errors import InputError
from tests.ahn.checkpoints.makers import base_folder, edit_config, memory_folder
from tests.ahn.conftest import FAMILIES, SINKS, WINDOW, stock_model, tokens

every_family = pytest.mark.parametrize("family", FAMILIES)
#: options that a family's `config.json` may have and that change its weights
KINDS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True, "tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True}),
    ("mistral", {"num_key_value_heads": 4}),
]
every_kind = pytest.mark.parametrize(("family", "options"), KINDS)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Family]]:
    """The table, which is as it was afterwards."""
    copy = dict(families._FAMILIES)
    monkeypatch.setattr(families, "_FAMILIES", copy)
    yield copy


def config_of(family: str, **options: Any) -> dict[str, Any]:
    """The `config.json` of a tiny stock model."""
    return json.loads(stock_model(family, **options).config.to_json_string(use_diff=False))


class TestRows:
    """What a row says is what transformers does."""

    @every_kind
    def test_the_shape_has_every_parameter_of_the_stock_model(
        self, family: str, options: dict[str, Any]
    ) -> None:
        stock = stock_model(family, **options)
        shape = ModelShape.from_config(config_of(family, **options))
        found = {name: tuple(p.shape) for name, p in stock.named_parameters()}
        assert needed_base(shape) == found
        assert shape.parameters == sum(p.numel() for p in stock.parameters())

    @every_family
    def test_a_key_that_is_left_out_means_what_transformers_says(self, family: str) -> None:
        """A hub's `config.json` leaves out what has the class's default, as `save_pretrained`."""
        from transformers import AutoConfig

        sizes = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
        given = {key: value for key, value in config_of(family).items() if key in sizes}
        given |= {"num_attention_heads": 32, "hidden_size": 4096}
        stock = AutoConfig.for_model(family, **given)
        shape = ModelShape.from_config(given | {"model_type": family})
        assert shape.num_key_value_heads == stock.num_key_value_heads
        assert shape.head_dim == getattr(stock, "head_dim", 4096 // 32)
        assert shape.tie_word_embeddings == stock.tie_word_embeddings
        row = family_of({"model_type": family})
        assert bool(row.sliding_layers(given)) == (
            getattr(stock, "sliding_window", None) is not None
        )

    @pytest.mark.parametrize(
        ("family", "said", "sliding"),
        [
            ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, [1, 2]),
            ("qwen2", {"use_sliding_window": False, "max_window_layers": 1}, []),
            ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, [1]),
            ("mistral", {"sliding_window": 8}, [0, 1, 2]),
            ("mistral", {"sliding_window": None}, []),
            ("mistral", {}, [0, 1, 2]),
            ("llama", {"sliding_window": 8, "use_sliding_window": True}, []),  # it ignores both
        ],
    )
    def test_windows_of_the_base_model(
        self, family: str, said: dict[str, Any], sliding: list[int]
    ) -> None:
        row = family_of({"model_type": family})
        config = {"num_hidden_layers": 3, **said}
        assert row.sliding_layers(config) == sliding
        left = row.without_own_window(config)
        assert row.sliding_layers(left) == [] and left["num_hidden_layers"] == 3
        if row.own_window is None:  # the check of families from outside sees what there is
            assert left == config

    @pytest.mark.parametrize(
        ("family", "key", "value"),
        [
            ("llama", "mlp_bias", "yes"),
            ("llama", "attention_bias", None),
            ("qwen3", "attention_bias", 1),
        ],
    )
    def test_a_bias_that_is_neither_true_nor_false(self, family: str, key: str, value: Any) -> None:
        with pytest.raises(InputError, match=f"{key} must be true or false, not {value!r}"):
            ModelShape.from_config(config_of(family) | {key: value})

    def test_a_theta_that_is_left_out_is_the_familys(self, table: dict[str, Family]) -> None:
        """What is stretched is the model's own RoPE."""
        register_family(Family("mine", "Mine", "Mine", defaults={"rope_theta": 5e5}))
        for family, theta in (("llama", 1e4), ("mine", 5e5), ("mine_ahn", 5e5)):
            config = {"model_type": family, "max_position_embeddings": 100}
            stretched = with_rope(config, None, yarn_factor=2.0)["rope_parameters"]
            assert stretched["rope_theta"] == rope_parameters(config)["rope_theta"] == theta
        assert rope_parameters({"rope_theta": 7.0, "model_type": "mine"})["rope_theta"] == 7.0

    def test_an_unknown_type_names_the_known_ones(self) -> None:
        known = "qwen2, qwen3, llama and mistral are"
        with pytest.raises(InputError, match=f"x: config.json: model_type 'gpt2' is not .*{known}"):
            family_of({"model_type": "gpt2"}, "x")
        assert find_family(None) is None and find_family("llama_ahn") is find_family("llama")


class TestRowsFromOutside:
    """`register_family` and entry points."""

    def test_a_row_is_registered_once(self, table: dict[str, Family]) -> None:
        row = Family("my_model", "Mine", "Mine")
        register_family(row)
        register_family(replace(row))
        assert find_family("my_model_ahn") is row and len(table) == len(FAMILIES) + 1
        assert row.modeling == "transformers.models.my_model.modeling_my_model"
        for other in (replace(row, title="Other"), Family("llama2", "", "Llama")):
            with pytest.raises(InputError, match="the table has '(my_model|llama)'"):
                register_family(other)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"model_type": "my model"}, "model_type must be a name"),
            ({"model_type": "mine_ahn"}, "names that end with _ahn are those of merged models"),
            ({"prefix": 3}, "prefix must be a name of letters, digits and _, not 3"),
            ({"qkv_bias": None}, "qkv_bias must be True, False or a configuration's key, not None"),
            ({"qk_norm": "yes"}, "qk_norm must be True or False, not 'yes'"),
            ({"own_window": "always"}, "own_window must be 'switch', 'size' or None"),
        ],
    )
    def test_a_wrong_row_is_refused(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(InputError, match=says):
            Family(**{"model_type": "mine", "title": "Mine", "prefix": "Mine"} | options)
        with pytest.raises(InputError, match="a family is an ahn.Family, not dict"):
            register_family({})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("modeling", "says"),
        [
            ("no.such.module", "family 'mine': No module named 'no'"),
            ("transformers.models.llama.modeling_llama", "has no attribute 'MineAttention'"),
        ],
    )
    def test_classes_that_are_not_there(self, modeling: str, says: str) -> None:
        from ahn.models.causal_lm import family_classes

        with pytest.raises(InputError, match=says):
            family_classes(Family("mine", "Mine", "Mine", modeling))

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            ("no_such_package:ROW", "cannot be imported: No module named 'no_such_package'"),
            ("json:ROW", "cannot be imported: module 'json' has no attribute 'ROW'"),
            ("json:dumps", "must be the ahn.Family of that model type, not <function"),
            ("ahn.families:_BUILT_IN", "must be the ahn.Family of that model type"),
        ],
    )
    def test_a_broken_entry_point_is_named_and_harms_no_other_family(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        table: dict[str, Family],
        value: str,
        says: str,
    ) -> None:
        folder = tmp_path / "package-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: package\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(
            f"[ahn_bench.families]\nbroken = {value}\nllama = {value}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        assert find_family("llama") is table["llama"]
        with pytest.raises(InputError, match="and broken are"):
            family_of({"model_type": "gpt2"})
        for ask in (lambda: find_family("broken"), lambda: list(families.families())):
            with pytest.raises(InputError, match=f"family 'broken': entry point {value} .*{says}"):
                ask()


class TestCheckpoints:
    """Loading, merging, splitting, looking at, and training: every family alike."""

    @torch.no_grad()
    @pytest.mark.parametrize(
        ("family", "options", "cell"),
        [
            *((family, {}, cell) for family in FAMILIES for cell in ahn.CELLS),
            *((family, options, "Mamba2") for family, options in KINDS if options),
        ],
    )
    def test_merged_and_split_weights_are_the_same(
        self, tmp_path: Path, family: str, options: dict[str, Any], cell: str
    ) -> None:
        stock = stock_model(family, **options)
        stock.save_pretrained(tmp_path / "base")
        memory = memory_folder(tmp_path / "memory", tmp_path / "base", cell, family)
        ids = tokens(60)
        given: dict[str, Any] = {"ahn": memory, "window": WINDOW, "sinks": SINKS}
        two = ahn.load_model(tmp_path / "base", **given)
        full = ahn.load_model(tmp_path / "base", variant="full")
        torch.testing.assert_close(full(ids).logits, stock(ids).logits, rtol=0, atol=1e-4)
        ahn.merge_checkpoint(
            tmp_path / "base", memory, tmp_path / "merged", window=WINDOW, sinks=SINKS
        )
        merged = ahn.load_model(tmp_path / "merged")
        assert torch.equal(merged(ids).logits, two(ids).logits)
        assert not torch.equal(merged(ids).logits, full(ids).logits)
        ahn.split_checkpoint(tmp_path / "merged", tmp_path / "split")
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "split" / name).read_bytes() == (memory / name).read_bytes()
        merged.save_pretrained(tmp_path / "saved")
        again = ahn.load_model(tmp_path / "saved")
        assert torch.equal(again(ids).logits, merged(ids).logits)
        info = checkpoint_info(tmp_path / "merged")
        assert (info.model_type, info.cell) == (f"{family}_ahn", cell)
        assert info.parameters_total == merged.num_parameters()

    def test_memories_of_another_family_are_refused(self, tmp_path: Path) -> None:
        llama = base_folder(tmp_path / "llama", "llama")
        mistral = base_folder(tmp_path / "mistral", "mistral")
        memory = memory_folder(tmp_path / "memory", llama, family="llama")
        with pytest.raises(InputError, match="trained for llama, but .* is mistral"):
            ahn.load_model(mistral, ahn=memory)
        edit_config(memory, _layer_implementation="MistralMemDecoderLayer")
        with pytest.raises(InputError, match="but model_type 'llama' has 'LlamaMemDecoderLayer'"):
            ahn.load_model(llama, ahn=memory)

    @pytest.mark.parametrize("kind", ["dynamic", "longrope"])
    def test_rope_that_depends_on_the_length_is_refused(self, tmp_path: Path, kind: str) -> None:
        base = base_folder(tmp_path / "base", "llama")
        scaling = {"rope_type": kind, "factor": 2.0}
        edit_config(base, rope_parameters={**scaling, "rope_theta": 1e4})
        with pytest.raises(InputError, match=f"rope_type '{kind}' is not supported"):
            ahn.load_model(base, variant="full")

    @torch.no_grad()
    def test_mistrals_own_window_must_be_replaced(self, tmp_path: Path) -> None:
        """No variant computes both; `full` would be another model."""
        stock = stock_model("mistral", sliding_window=WINDOW)
        stock.save_pretrained(tmp_path / "base")
        memory = memory_folder(tmp_path / "memory", tmp_path / "base", family="mistral")
        for given in ({"variant": "full", "window": 9}, {"variant": "window"}, {"ahn": memory}):
            says = f"sliding_window: {WINDOW}: 3 of its layers .* or set sliding_window to null"
            with pytest.raises(InputError, match=says):
                ahn.load_model(tmp_path / "base", **given)
        model = ahn.load_model(tmp_path / "base", variant="window", window=WINDOW, sinks=0)
        assert model.config.sliding_window is None
        ids = tokens(60)
        torch.testing.assert_close(model(ids).logits, stock(ids).logits, rtol=0, atol=1e-4)
        ahn.merge_checkpoint(tmp_path / "base", memory, tmp_path / "merged", window=9, sinks=1)
        config = json.loads((tmp_path / "merged" / "config.json").read_text())
        assert config["sliding_window"] is None and config["ahn"]["window"] == 9
        ahn.load_model(tmp_path / "merged", variant="full")  # it has been replaced
        # what `config.json` leaves out is 4096
        text = (tmp_path / "base" / "config.json").read_text()
        less = {k: v for k, v in json.loads(text).items() if k != "sliding_window"}
        (tmp_path / "base" / "config.json").write_text(json.dumps(less))
        with pytest.raises(InputError, match="sliding_window: 4096: 3 of its layers"):
            ahn.load_model(tmp_path / "base", variant="full")

    def test_a_teacher_with_a_window_of_its_own_is_refused(self, tmp_path: Path) -> None:
        base = base_folder(tmp_path / "base", "mistral")
        edit_config(base, sliding_window=64)
        options = {"model_name_or_path": str(base), "output_dir": "out", "dataset": "unused"}
        recipe = Recipe(**options)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="the teacher, .*; set sliding_window to null"):
            base_config(recipe)

    def test_a_configuration_of_ours_has_no_window_of_the_base(self) -> None:
        from ahn.models.causal_lm import family_classes

        config = family_classes(family_of({"model_type": "mistral"})).config
        assert config().sliding_window is None
        with pytest.raises(InputError, match="sliding_window: 64: the layers of this model see"):
            config(ahn={"window": 5}, sliding_window=64)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "sliding_window" not in config(ahn={"window": 5}).to_diff_dict()["ahn"]
