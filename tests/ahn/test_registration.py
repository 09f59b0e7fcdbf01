"""`import ahn` and transformers get on in any order, and stock model types stay what they are."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Every order in which people import the two, lm-evaluation-harness's way among them.
IMPORTS = [
    "import ahn; import lm_eval.models.huggingface",
    "import ahn; from transformers import Qwen2ForCausalLM",
    "import ahn; from transformers import AutoModelForCausalLM, Qwen3ForCausalLM",
    "import ahn; from transformers.models.auto import configuration_auto",
    "import ahn; from transformers import AutoTokenizer, pipeline, Trainer",
    "import transformers; import ahn",
    "from transformers import AutoModelForCausalLM; import ahn",
    "import ahn.models.causal_lm",
    "import ahn.cost.accounting; import transformers.models.qwen2.modeling_qwen2",
]

USE = """
from transformers import AutoConfig, AutoModelForCausalLM
shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
             intermediate_size=16, vocab_size=16, head_dim=8,
             ahn=dict(cell="DeltaNet", window=4, sinks=1))
for kind in ("qwen2", "qwen3"):
    ours = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind + "_ahn", **shape))
    assert type(ours).__module__ == "ahn.models.causal_lm", type(ours)
    shape_of_base = {key: value for key, value in shape.items() if key != "ahn"}
    stock = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape_of_base))
    assert type(stock).__module__.startswith("transformers.models." + kind), type(stock)
assert "no_such_type" not in __import__("transformers").CONFIG_MAPPING
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports", [IMPORTS[0], *(pytest.param(order, marks=pytest.mark.slow) for order in IMPORTS[1:])]
)
def test_any_order_of_imports(imports: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", imports + "\n" + USE], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_import_ahn_loads_neither_torch_nor_transformers() -> None:
    code = "import ahn, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
