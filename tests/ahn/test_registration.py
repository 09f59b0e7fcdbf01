"""`import ahn` and transformers get on in any order, and stock model types stay what they are."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Every order in which people import the two, lm-evaluation-harness's way among them.
IMPORTS = [
    "import ahn; import lm_eval.models.huggingface",
    "import ahn; from transformers import Qwen2ForCausalLM",
    "import ahn; from transformers import AutoModelForCausalLM, LlamaForCausalLM",
    "import ahn; from transformers.models.auto import configuration_auto",
    "import ahn; from transformers import AutoTokenizer, pipeline, Trainer",
    "import ahn.models.causal_lm",
    "import ahn; ahn.register(); from transformers import AutoTokenizer, pipeline, Trainer",
    "import transformers; import ahn",
    "from transformers import AutoModelForCausalLM; import ahn",
    "import ahn; import ahn.models.causal_lm",
    "import ahn, ahn.cost.accounting; import transformers.models.qwen2.modeling_qwen2",
]

USE = """
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


def test_import_ahn_loads_neither_torch_nor_transformers() -> None:
    run("import ahn, sys; assert not {'torch', 'transformers'} & set(sys.modules)")


@pytest.mark.slow
def test_a_configuration_is_loaded_without_the_models_of_other_families() -> None:
    """And once the class is made, the auto classes have it, and nothing watches imports."""
    run(
        "import sys, ahn\n"
        "from transformers import AutoConfig, CONFIG_MAPPING\n"
        "assert 'ahn.models.causal_lm' not in sys.modules\n"
        "assert not any(type(f).__module__.startswith('ahn') for f in sys.meta_path)\n"
        "assert CONFIG_MAPPING['qwen3_ahn'].model_type == 'qwen3_ahn'\n"
        "assert 'ahn.models.causal_lm' not in sys.modules\n"
        "config = AutoConfig.for_model('mistral_ahn', ahn={'window': 5})\n"
        "assert type(config).__module__ == 'ahn.models.causal_lm' and config.ahn == {'window': 5}\n"
        "assert CONFIG_MAPPING['mistral_ahn'] is type(config)\n"
        "assert 'transformers.models.llama.modeling_llama' in sys.modules  # RoPE is Llama's\n"
        "assert 'transformers.models.qwen2.modeling_qwen2' not in sys.modules\n"
    )


def test_the_table_of_families_is_read_without_torch() -> None:
    run(
        "import sys; from ahn.families import families; assert len(list(families())) >= 4; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )


@pytest.mark.slow
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
        "assert CONFIG_MAPPING['mistral_ahn'] is type(config)\n"
    )
