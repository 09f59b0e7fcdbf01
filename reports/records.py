"""The record schema: one example (`ExampleRecord`) and one run (`RunInfo`).

This file is the contract between the runner, which writes, and everything that reads
(`reports.run_folders`). A run folder holds ``run.json`` and, per variant, one append-only file per
task::

    <run>/run.json
    <run>/<variant>/<task>.jsonl      one ExampleRecord per line, UTF-8, lines end in "\\n"

Unknown fields are refused (``extra="forbid"``), so that a misspelt key cannot be lost in
silence, and ``schema_version`` says which definition of the fields a line was written under.
In the descriptions *measured* means clocked or counted on the machine that ran, *analytic*
means computed from the model's shape and the token counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

SCHEMA_VERSION = 4
"""1: the first one. 2: label, gold_ans, prompt_sha256, answer_removed; tasks in run.json say more.
3: starts in run.json; start and record_sha256 in records. 4: what is kept of the document and what
it took: document_tokens, budget_bytes, kept_tokens, document_bytes, cache_bytes_stored, peak_bytes.
Every earlier version can be read."""

OLDEST_CONTINUED = 2
"""Runs of earlier versions than this can be read and reported, but not continued."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _without_lone_surrogates(value: object) -> object:
    """Replace lone UTF-16 surrogates by U+FFFD: they are legal in JSON but not in UTF-8 files."""
    if isinstance(value, str) and _LONE_SURROGATE.search(value):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


_OF_DOCUMENTS = (
    "document_tokens",
    "budget_bytes",
    "kept_tokens",
    "document_bytes",
    "cache_bytes_stored",
    "peak_bytes",
)
"""Fields of schema 4 that a record without them does not name."""

Text = Annotated[str, BeforeValidator(_without_lone_surrogates)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def content_sha256(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a JSON object: of its canonical text, so that layout does not count."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ExampleRecord(BaseModel):
    """One example, answered by one variant: one line of ``<run>/<variant>/<task>.jsonl``.

    An example that failed is a record too: ``error`` holds the reason, ``score`` and whatever
    was not reached are None. Without an error the score and the prompt's tokens are present; what
    the model's back-end cannot know of its cost is None, never a guess.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(
        default=SCHEMA_VERSION, ge=1, description="Version of this schema; set by the writer."
    )
    benchmark: str = Field(
        min_length=1, description="Benchmark whose rows and rules were used, e.g. 'longbench'."
    )
    task: str = Field(
        min_length=1, description="Task within the benchmark, e.g. 'multifieldqa_zh'."
    )
    protocol: str = Field(
        min_length=1, description="Rules for prompt, truncation and scoring: 'official' or 'ahn'."
    )
    variant: str = Field(
        min_length=1, description="How the past is seen: 'full', 'window', 'ahn', 'no-write' ..."
    )
    example_id: str = Field(
        min_length=1, description="Identifier of the row, unique in its task; the same in variants."
    )
    document_id: str = Field(
        description="Hash of the row's context; rows about one document form one cluster."
    )
    prediction: Text = Field(
        description="Generated text, decoded without special tokens, before post-processing."
    )
    answers: list[Text] = Field(description="Reference answers; the best match over them counts.")
    score: float | None = Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Task metric after post-processing, 0 to 1; None only together with an error.",
    )
    metric: str = Field(description="Name of the metric that gave the score, e.g. 'qa_f1_zh'.")
    prompt_tokens: Count | None = Field(
        default=None,
        description="Tokens given to the model: after truncation and chat template (counted).",
    )
    prompt_tokens_untruncated: Count | None = Field(
        default=None, description="Tokens of the rendered prompt before truncation (counted)."
    )
    generated_tokens: Count | None = Field(
        default=None, description="Tokens the model produced, a stop token included (counted)."
    )
    truncated: bool = Field(default=False, description="Whether the prompt was cut to fit.")
    truncation: str = Field(
        default="none",
        description="Side that was cut by the protocol: 'none', 'middle' (halves decoded apart), "
        "'middle_joined' (halves decoded together), 'left'.",
    )
    tokens_cut: Count = Field(
        default=0, description="Tokens removed by truncation (counted); 0 when nothing was cut."
    )
    chat_template: bool = Field(
        default=False, description="Whether the prompt was wrapped in the chat template."
    )
    answer_in_prompt: bool | None = Field(
        default=None,
        description="Whether a reference answer occurs in the prompt as given to the model "
        "(string search); None when it was not looked for.",
    )
    answer_removed: bool = Field(
        default=False,
        description="Whether the cut removed the answer: a reference answer stood in the whole "
        "prompt, and none stands in what was left of it.",
    )
    prefill_seconds: Seconds | None = Field(
        default=None, description="Wall time for the prompt, in seconds (measured)."
    )
    decode_seconds: Seconds | None = Field(
        default=None, description="Wall time for the generated tokens, in seconds (measured)."
    )
    flops: Count | None = Field(
        default=None,
        description="Floating-point operations of prefill and decode together (analytic; a "
        "multiply-add counts two).",
    )
    cache_bytes_analytic: Count | None = Field(
        default=None, description="Bytes of keys, values, gates and state at the end (analytic)."
    )
    cache_bytes_measured: Count | None = Field(
        default=None, description="Bytes of the real cache tensors at the end (measured)."
    )
    document_tokens: Count | None = Field(
        default=None,
        description="Tokens of the prompt up to the end of the document, where it was read apart "
        "from the question; None: it was not.",
    )
    budget_bytes: Count | None = Field(
        default=None,
        description="Budget of the run for this document: variants whose size can be chosen were "
        "sized to keep so many bytes of it; None: no budget was given.",
    )
    kept_tokens: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Tokens of the document that were kept in a layer, mean over layers (counted).",
    )
    document_bytes: Count | None = Field(
        default=None,
        description="Bytes in use for the past when the document was read and the question was "
        "not (measured): what is equal in a comparison at equal bytes.",
    )
    cache_bytes_stored: Count | None = Field(
        default=None,
        description="Bytes of the storages behind cache_bytes_measured (measured): views may use "
        "less than what is kept for them.",
    )
    peak_bytes: Count | None = Field(
        default=None,
        description="Most bytes allocated at a time from the document to the end of the answer, "
        "weights not counted (measured; on a CPU for some examples only).",
    )
    start: Count | None = Field(
        default=None,
        description="Which start of the run answered it: index into run.json's 'starts'. None: "
        "written before starts were recorded (schema 2).",
    )
    error: Text | None = Field(
        default=None, description="Why this example failed, one line; None when it did not."
    )
    finish_reason: str | None = Field(
        default=None, description="Why generation ended: 'eos', 'length' ...; None if unknown."
    )
    prompt_tail: Text = Field(
        default="", description="Last characters of the prompt as given to the model, for reading."
    )
    reused_prefix_tokens: Count = Field(
        default=0,
        description="Prompt tokens taken from the cache of an earlier example (counted); their "
        "prefill time is not in prefill_seconds. Not there where it is not known.",
    )
    length: int | None = Field(
        default=None, description="The row's own 'length' field (words or characters), if any."
    )
    all_classes: list[Text] | None = Field(
        default=None, description="The row's own list of classes, for classification tasks."
    )
    label: Any = Field(
        default=None,
        description="The row's gold with its JSON types, where it is more than the answers' texts.",
    )
    gold_ans: Any = Field(
        default=None, description="The row's own answer_keywords, which gate LV-Eval's scores."
    )
    prompt_sha256: str | None = Field(
        default=None,
        description="Hash over the prompt's token ids, the answers and classes: two records of one "
        "example with the same hash answer the same question.",
    )
    attributes: dict[str, Any] = Field(
        default_factory=dict,
        description="What a generator knows about the row, e.g. 'facts' (stored facts) and "
        "'evidence_distance' (tokens from the evidence to the end of the prompt).",
    )
    record_sha256: str | None = Field(
        default=None,
        description="SHA-256 of the line's other fields (canonical JSON), set when it is written; "
        "run_eval check compares it. None: written before schema 3.",
    )

    @model_validator(mode="after")
    def _complete_unless_failed(self) -> ExampleRecord:
        if self.error is None:
            missing = [name for name in ("score", "prompt_tokens") if getattr(self, name) is None]
            if missing:
                raise ValueError(f"{', '.join(missing)}: may be empty only together with an error")
        return self

    def to_line(self) -> str:
        """The record as a line of a file, without its end, with its `record_sha256`.

        What only some benchmarks' rows have is left out where there is none.

        Raises:
            ValueError: a value that JSON in UTF-8 cannot hold: NaN, half a surrogate pair.
            TypeError: one that is nothing of JSON's.
        """
        optional = ("start", "label", "gold_ans", *_OF_DOCUMENTS)
        absent = {name for name in optional if getattr(self, name) is None}
        if self.error is None:  # where nobody knows, its default would be a claim
            absent |= {"reused_prefix_tokens"} - self.model_fields_set
        content = self.model_dump(exclude=absent | {"record_sha256"})
        content["record_sha256"] = content_sha256(content)
        line = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        line.encode("utf-8")  # raises what writing the file would
        return line


class Start(BaseModel):
    """One start of a run: what each of its records has in common with no other start's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: str = Field(description="When it was started, ISO 8601 with time zone.")
    command: list[str] = Field(description="Command line, one item per word.")
    configuration: dict[str, Any] = Field(
        description="The resolved configuration: file, then flags, then defaults."
    )
    git: dict[str, Any] | None = Field(
        description="'revision' and 'dirty' of the working tree; None outside a git checkout."
    )
    packages: dict[str, str] = Field(description="Versions of the packages that were in use.")
    hardware: dict[str, Any] = Field(
        description="Processor, cores, threads, memory, accelerator, operating system."
    )
    environment: dict[str, str] | None = Field(
        description="Environment variables that numerical libraries or ours read (AHN_BACKEND, "
        "OMP_NUM_THREADS ...), as far as they were set. None: not recorded."
    )
    backends: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="Per variant with a memory that was loaded, the form of its recurrence that "
        "ran: 'prefill' and 'decode'.",
    )
    reconstructed: bool = Field(
        default=False,
        description="Whether this stands for all starts of a folder of schema 2, which did not "
        "list them: 'time' is the first one's, everything else the latest one's.",
    )


class RunInfo(BaseModel):
    """What a run was: ``<run>/run.json``. Enough to repeat it and to tell it from another."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = Field(
        default=SCHEMA_VERSION, ge=1, description="Version of this schema; set by the writer."
    )
    identity: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 over identity_parts; a folder holds records of one identity only.",
    )
    identity_parts: dict[str, Any] = Field(
        description="What the identity is made of: weights, variants, prompts, truncation, "
        "decoding settings, data."
    )
    created: str = Field(description="When the run was first started, ISO 8601 with time zone.")
    updated: str = Field(description="When this file was last written, ISO 8601 with time zone.")
    starts: list[Start] = Field(
        default_factory=list,
        description="Every start that wrote into the folder, first to latest; the fields command, "
        "configuration, git, packages and hardware are the latest one's. Empty in schema 2.",
    )
    command: list[str] = Field(description="Command line of the latest start, one item per word.")
    configuration: dict[str, Any] = Field(
        description="The resolved configuration: file, then flags, then defaults."
    )
    generation: dict[str, dict[str, Any]] = Field(
        description="Per variant the effective generation settings, with what the checkpoint's "
        "generation_config adds (repetition_penalty, stop ids ...)."
    )
    git: dict[str, Any] | None = Field(
        description="'revision' and 'dirty' of the working tree; None outside a git checkout."
    )
    packages: dict[str, str] = Field(description="Versions of the packages that were in use.")
    hardware: dict[str, Any] = Field(
        description="Processor, cores, memory, accelerator, operating system."
    )
    models: dict[str, dict[str, Any]] = Field(
        description="Per variant: variant (its kind), path, ahn, window and sinks (tokens), cell, "
        "yarn_factor, dtype, device, parameters (count), layout."
    )
    tasks: dict[str, dict[str, Any]] = Field(
        description="Per task: benchmark, dataset, level, language, category, protocol, "
        "template_sha256, max_new_tokens, metric, and 'examples', the number of examples that "
        "were planned per variant."
    )
    data_files: list[dict[str, Any]] = Field(
        description="Per data file: path, sha256 and, where it has one, revision."
    )
    status: Literal["running", "interrupted", "finished"] = Field(
        description="'finished' only when every planned example has a record."
    )
