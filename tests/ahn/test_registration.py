"""`ahn.register()` works in any order of imports, and stock model types stay what they are."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Every order in which people import the two, lm-evaluation-harness's way among them.
IMPORTS = [
    "import ahn; import lm_eval.models.huggingface",
    "import ahn; from transformers import Qwen2ForCausalLM",
    "import ahn; from transformers import AutoModelForCausalLM, LlamaForCausalLM",
    "import ahn; ahn.register(); from transformers import AutoTokenizer, pipeline, Trainer",
    "import transformers; import ahn",
    "from transformers import AutoModelForCausalLM; import ahn",
    "import ahn; import ahn.models.causal_lm",
    "import ahn, ahn.cost.accounting; import transformers.models.qwen2.modeling_qwen2",
]

USE = """
ahn.register()
ahn.register()
from transformers import AutoConfig, AutoModelForCausalLM
shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
             intermediate_size=16, vocab_size=16, head_dim=8,
             ahn=dict(cell="DeltaNet", window=4, sinks=1))
for kind in ("qwen2", "qwen3", "llama", "mistral"):
    ours = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind + "_ahn", **shape))
    assert type(ours).__module__ == "ahn.models.causal_lm", type(ours)
    shape_of_base = {key: value for key, value in shape.items() if key != "ahn"}
    stock = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape_of_base))
    assert type(stock).__module__.startswith("transformers.models." + kind), type(stock)
assert "no_such_type" not in __import__("transformers").CONFIG_MAPPING
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("imports", IMPORTS)
def test_any_order_of_imports(imports: str) -> None:
    run(imports + "\n" + USE)


@pytest.mark.slow
def test_lm_evals_own_model_loads_merged_folders() -> None:
    run(
        "import evaluation.lm_eval.plugin; from transformers import CONFIG_MAPPING; "
        "assert {'qwen2_ahn', 'llama_ahn'} <= set(CONFIG_MAPPING)"
    )


def test_import_ahn_loads_neither_torch_nor_transformers_and_hooks_no_import() -> None:
    run(
        "import sys; before = list(sys.meta_path); import ahn; "
        "assert not {'torch', 'transformers'} & set(sys.modules); assert sys.meta_path == before"
    )


def test_the_table_of_families_is_read_without_torch() -> None:
    run(
        "import sys; from ahn.families import families; assert len(list(families())) >= 4; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )


def test_classes_are_made_when_they_are_named() -> None:
    """And a process that only has a pickle of a configuration finds its class."""
    run(
        "import pickle, sys, ahn.models.causal_lm as classes\n"
        "config = classes.MistralAHNConfig(ahn={'window': 5})\n"
        "assert type(config).__qualname__ == 'MistralAHNConfig'\n"
        "assert not hasattr(classes, 'Qwen4AHNConfig') and not hasattr(classes, 'LlamaConfig')\n"
        "again = pickle.loads(pickle.dumps(config))\n"
        "assert type(again) is type(config) and again.ahn == {'window': 5}\n"
        "from transformers import CONFIG_MAPPING\n"
        "assert 'mistral_ahn' in CONFIG_MAPPING and 'llama_ahn' not in CONFIG_MAPPING\n"
    )
