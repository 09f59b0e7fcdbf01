"""A merged folder in the hands of transformers: auto classes, pipelines and its server."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import ahn
from ahn.commands.serve import check_servable
from tests.ahn.checkpoints.makers import base_folder, edit_config, memory_folder
from tests.ahn.conftest import FAMILIES, tokens
from tests.servers import running_server

SERVER = "transformers.cli.transformers"


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model and its memory in one folder."""
    folder = tmp_path_factory.mktemp("merged") / "pocket"
    ahn.merge_checkpoint(ahn.POCKET_PATH, ahn.POCKET_PATH / "gdn", folder, window=24, sinks=2)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cell", ahn.CELLS)
def test_auto_model_is_the_stack_with_every_weight(tmp_path: Path, family: str, cell: str) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    base = base_folder(tmp_path / "base", family)
    memory = memory_folder(tmp_path / "memory", base, cell, family)
    ahn.merge_checkpoint(base, memory, tmp_path / "merged")
    stack, info = AutoModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert type(stack).__name__ == f"{family.capitalize()}AHNModel"
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert set(info["unexpected_keys"]) <= {"lm_head.weight"}
    whole = ahn.load_model(tmp_path / "merged")
    ids = tokens(60)
    expected = whole.model(ids).last_hidden_state
    assert torch.equal(stack.eval()(ids).last_hidden_state, expected)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(stack.get_parameter(name), parameter), name

    stack.save_pretrained(tmp_path / "stack")  # without the prefix `model.`
    again, info = AutoModel.from_pretrained(tmp_path / "stack", output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(again.eval()(ids).last_hidden_state, expected)
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(causal(ids).logits, whole(ids).logits)


@torch.no_grad()
def test_feature_extraction_gives_the_hidden_states(merged: Path) -> None:
    from transformers import AutoTokenizer, pipeline

    text = "the key of carbon is 72 17 . " * 8
    extract = pipeline("feature-extraction", model=str(merged))
    ids = AutoTokenizer.from_pretrained(merged)(text, return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 24 + 2, "something leaves the window"
    expected = ahn.load_model(merged).model(ids).last_hidden_state
    assert torch.equal(extract(text, return_tensors=True), expected)
    rows = extract([text, "carbon"], batch_size=2, return_tensors=True)  # padded
    torch.testing.assert_close(rows[0][:, : ids.shape[1]], expected, rtol=0, atol=1e-5)


def test_a_text_generation_pipeline_answers_as_ours(merged: Path) -> None:
    from transformers import pipeline

    text = "the key of carbon is 72 17 . " * 8
    generate = pipeline("text-generation", model=str(merged))
    assert type(generate.model).__name__ == "Qwen2AHNForCausalLM"
    answer = generate(text, max_new_tokens=5, do_sample=False, return_full_text=False)
    assert answer[0]["generated_text"] == greedy(merged, text, 5)


def greedy(folder: Path, text: str, new: int) -> str:
    """What `ahn.load_model` answers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    output = ahn.load_model(folder).generate(ids, max_new_tokens=new, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
def test_names_are_found_in_every_module_object_of_transformers(merged: Path) -> None:
    """`transformers.processing_utils` makes a second one, and who came first holds the first."""
    script = f"""
import ahn, sys
import transformers as first
ahn.register()
from transformers import AutoConfig
config = AutoConfig.from_pretrained({str(merged)!r})
import transformers.processing_utils
for module in (first, sys.modules["transformers"]):
    found = getattr(module, config.architectures[0])
    assert found.__module__ == "ahn.models.causal_lm", found
    assert module.Qwen3AHNModel and module.Qwen2AHNConfig is type(config)
    assert not hasattr(module, "Qwen4AHNModel")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


class TestServing:
    """`ahn serve`, and `transformers serve` after `import ahn`."""

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["/nowhere"], "/nowhere: no such folder"),
            (["--port", "1"], "name the model first"),
            (["{base}"], "model_type 'qwen2': transformers would serve it without a memory"),
            (["{memory}"], "write one folder with 'ahn merge' first"),
            (["{merged}", "--continuous-batching"], "--continuous-batching is not supported"),
        ],
    )
    def test_what_would_be_served_wrongly_is_refused(
        self, merged: Path, words: list[str], says: str
    ) -> None:
        names = {"base": ahn.POCKET_PATH, "memory": ahn.POCKET_PATH / "gdn", "merged": merged}
        model, *options = [word.format(**names) for word in words]
        with pytest.raises(ahn.InputError, match=says):
            check_servable(model, options)

    def test_a_merged_folder_with_released_names_is_refused(self, tmp_path: Path) -> None:
        """transformers would take it for a stock Qwen2."""
        folder = tmp_path / "released"
        ahn.merge_checkpoint(ahn.POCKET_PATH, ahn.POCKET_PATH / "gdn", folder)
        check_servable(folder, ["--port", "1"])
        config = json.loads((ahn.POCKET_PATH / "gdn" / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ahn.InputError, match="without a memory"):
            check_servable(folder)

    def test_bad_values_are_found_before_the_server_starts(
        self, tmp_path: Path, merged: Path
    ) -> None:
        for file in merged.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        edit_config(tmp_path, rms_norm_eps=-1.0)
        with pytest.raises(ahn.InputError, match="rms_norm_eps must be above 0"):
            check_servable(tmp_path)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "command",
        [
            ["-m", "ahn.cli"],
            ["-c", f"import ahn; from {SERVER} import main; main()"],
        ],
        ids=["ahn", "transformers"],
    )
    def test_a_merged_model_is_served(self, merged: Path, command: list[str]) -> None:
        for name in ("fastapi", "uvicorn", "openai"):
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"the server's packages are not installed ({name})")
        text = "the key of carbon is 72 17 . " * 8
        asked = {"model": str(merged), "prompt": text, "max_tokens": 5, "temperature": 0}
        with served([*command, "serve", str(merged)]) as ask:
            answer = ask("/v1/completions", asked)
        assert answer["choices"][0]["text"] == greedy(merged, text, 5)


@contextmanager
def served(command: list[str]) -> Iterator[Any]:
    """A server on a free port of this machine; called with a path and what is posted there."""
    with running_server(command) as url:

        def ask(path: str, content: Any = None) -> Any:
            data = None if content is None else json.dumps(content).encode()
            kind = {"Content-Type": "application/json"}
            request = urllib.request.Request(url + path, data, kind)
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)

        yield ask
