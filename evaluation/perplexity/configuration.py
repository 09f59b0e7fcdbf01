"""What `run_eval perplexity` is asked to do: the models of any run, and a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, model_validator

from common.settings import Flag, Seed, Tokens
from evaluation.plan.configuration import MOST_TOKENS, Benchmark, Name, RunConfiguration

OF_RUNS = (
    "benchmark",
    "endpoint",
    "tasks",
    "lengths",
    "essay",
    "words",
    "squad",
    "hotpotqa",
    "limit",
    "protocol",
    "max_length",
    "budget",
    "max_errors",
    "reuse_prefixes",
    "in_turns",
)
"""Fields of a run that this command does not have."""
Prefix = Literal["auto", "lm-eval", "none"]
POCKET = "pocket"
POCKET_TOKENS = 4000
_MOST_AT_ONCE = 512


class PerplexityConfiguration(RunConfiguration):
    """A text to be read by some variants. None means: the documented default."""

    groups: ClassVar[Mapping[str, str]] = {
        "model": "Models and variants",
        "data": "Text",
        "dtype": "Machine and seed",
        "output": "Output",
    }

    benchmark: Benchmark = "perplexity"
    variants: Annotated[list[str], Flag(("--variant",), metavar="NAME", own_form=True)] = Field(
        default_factory=list
    )
    """full, window, ahn, no-write, memory-only, compressive, hf, quantized; KIND:key=value,... has
    settings of its own (window:window=64,sinks=4,name=narrow). Of several AHN weights 'ahn' means
    each, 'ahn-gdn' one; repeatable. Variants can be added to a folder later. Default: full; with
    a window also window; with AHN weights also window and ahn."""
    data: Name | None = None
    """The text: a UTF-8 file, also packed by gzip; or 'pocket', which is generated. [required]"""
    max_tokens: Tokens | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """First tokens of the text that are scored (also 32k). Default: all; of 'pocket', 4,000."""
    prefix: Prefix = "auto"
    """What the first token is predicted from: auto, the tokenizer's BOS token or else its EOS
    token, which stands before the text once and is not scored; lm-eval: as loglikelihood_rolling
    has it, so that a BOS token that the tokenizer adds itself follows the prefix and is scored;
    none: nothing, so that the first token is not scored."""
    block_tokens: Tokens = Field(default=128, ge=1, le=MOST_TOKENS)
    """Tokens of a record: the grain of curves, intervals and resuming."""
    chunk_tokens: Tokens | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Tokens that are read at once, at most a block: so many times the vocabulary of logits are
    there at a time with hf and quantized. Default: a block, at most 512."""
    rolling_tokens: Tokens | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Tokens of the rolling mean. Default: a twentieth of the text, at least four blocks."""
    peak: StrictBool = True
    """Measure the peak of memory: on a GPU in every block; on a CPU by torch's profiler, which is
    slow, in some 24 blocks."""
    seed: Seed = 0
    """Seed of the text 'pocket', and of the bootstrap."""
    output: Annotated[Name | None, Flag(("--output", "-o"), metavar="DIR")] = None
    """Folder; continued if it is there. Default: runs/perplexity-<start of identity>."""
    overwrite: StrictBool = False
    """Delete the records of an earlier run in the folder first."""
    report: StrictBool = True
    """Write <output>/report.html at the end."""
    json_: StrictBool = Field(False, description="Print the results, or the plan, as JSON.")

    @model_validator(mode="after")
    def _chunks_fit(self) -> PerplexityConfiguration:
        if self.chunk_tokens is not None and self.chunk_tokens > self.block_tokens:
            raise ValueError(
                f"--chunk-tokens: {self.chunk_tokens} is more than a block (--block-tokens "
                f"{self.block_tokens})"
            )
        return self

    @property
    def chunk(self) -> int:
        """Tokens that are read at once."""
        return self.chunk_tokens or min(self.block_tokens, _MOST_AT_ONCE)

    def recorded(self) -> dict[str, Any]:
        """The settings that the command has, as JSON."""
        return self.model_dump(mode="json", exclude=set(OF_RUNS))
