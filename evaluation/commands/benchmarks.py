"""The benchmarks that have a command of their own: what its help says that is theirs alone.

`run_eval run NAME` runs any benchmark; an entry here makes `run_eval NAME` the same, with a help of
its own. All take the fields of `evaluation.plan.configuration.RunConfiguration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BenchmarkCommand:
    """A benchmark's own command.

    Attributes:
        benchmark: its name, and the command's.
        summary: what the command does.
        helps: help of fields that mean something of their own here.
        without: fields that mean nothing here.
        example: flags of the example in its help.
    """

    benchmark: str
    summary: str
    helps: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    example: str = "--model pocket --ahn pocket"


COMMANDS = (
    BenchmarkCommand(
        benchmark="longbench",
        summary="Run LongBench or LongBench-E on variants of a model, record and score every "
        "answer.",
        helps={
            "protocol": "official (the authors'; default) or ahn.",
            "max_length": "Longest prompt, in tokens. Default: official, the model's context - "
            "500; ahn, 32000.",
            "tasks": "Tasks or groups (longbench_paper, longbench_en, longbench_zh, longbench_e), "
            "joined by commas or repeated. Default: the 21 tasks. See run_eval tasks longbench.",
            "data": "Folder with <task>.jsonl[.gz], Parquet or saved data sets, such a file or "
            "data.zip itself, or 'pocket'. Default: the hub.",
        },
        without=("lengths",),
    ),
    BenchmarkCommand(
        benchmark="lveval",
        summary="Run LV-Eval at its five lengths on variants of a model, record and score every "
        "answer.",
        helps={
            "protocol": "official (the authors'; default) or ahn.",
            "max_length": "Longest prompt, in tokens. Default: official, the model's context - "
            "500; ahn, 256000.",
            "tasks": "Data sets (hotpotwikiqa_mixup), single tasks (hotpotwikiqa_mixup_16k) or "
            "groups, joined by commas or repeated. Default: all 11. See run_eval tasks lveval.",
            "data": "Folder with <task>_<length>.jsonl[.gz], Parquet or saved data sets, or a data "
            "set's zip. Default: the hub.",
            "lengths": "16k, 32k, 64k, 128k, 256k; joined by commas or repeated. Default: all "
            "five.",
        },
    ),
    BenchmarkCommand(
        benchmark="infinitebench",
        summary="Run InfiniteBench on variants of a model, record and score every answer.",
        helps={
            "protocol": "official (the authors' for open models; default), another family of "
            "theirs (official-gpt4 ...), or ahn (book questions only).",
            "max_length": "Longest prompt, in tokens. Default: the protocol's (official, 131072; "
            "ahn, 128000).",
            "tasks": "Tasks or groups (infinitebench_paper), joined by commas or repeated. "
            "Default: all 12. See run_eval tasks infinitebench.",
            "data": "Folder with <task>.jsonl[.gz], Parquet or saved data sets; 'synthetic' for "
            "rows generated here (passkey, number_string, kv_retrieval, math_find, math_calc, "
            "code_run). Default: the hub.",
            "lengths": "Of generated rows: 128k, 1m, or a number of tokens.",
        },
    ),
    BenchmarkCommand(
        benchmark="ruler",
        summary="Run RULER at any lengths on variants of a model, record and score every answer. "
        "Rows are made for the run's tokenizer, or read from --data.",
        helps={
            "protocol": "official (the authors').",
            "tasks": "Tasks or groups (ruler_niah, ruler_no_download), joined by commas or "
            "repeated. Default: all 13. See run_eval tasks ruler.",
            "data": "Folder with <task>.jsonl or <task>/validation.jsonl as the authors write "
            "them; with --lengths, in a folder of each length (4096). Default: rows are made.",
            "lengths": "Tokens of chat template, prompt and answer: 4096, 8k, 128k ...; joined by "
            "commas or repeated.",
            "limit": "Rows per task. A finished run can be raised later. Default: 500, as the "
            "authors.",
            "seed": "Seed of the rows, and of sampling. Default: 42, as the authors.",
            "essay": "Haystack of the five essay tasks: the authors' PaulGrahamEssays.json, or a "
            "text file of your own, which the record then names.",
            "words": "The authors' english_words.json, for rows of cwe beyond about 128k, which "
            "take more words than wonderwords has.",
            "squad": "SQuAD v2's validation questions for qa_1 (dev-v2.0.json, JSON lines, "
            "Parquet). Default: the hub's.",
            "hotpotqa": "HotpotQA's validation questions, distractor setting, for qa_2. Default: "
            "the hub's.",
        },
        example="--model Qwen/Qwen2.5-3B-Instruct --tasks ruler_no_download --lengths 4k",
    ),
    BenchmarkCommand(
        benchmark="longbench_v2",
        summary="Run LongBench v2, 503 questions of four choices, on variants of a model, record "
        "and score every answer.",
        helps={
            "protocol": "official (the authors', 0-shot; default) or official-no-context.",
            "max_length": "Longest prompt, in tokens. Default: 120000.",
            "tasks": "longbench_v2_all, or domains (longbench_v2_domains names all six), joined by "
            "commas or repeated. Default: all questions. See run_eval tasks longbench_v2.",
            "data": "Folder with data.json, or that file; <task>.jsonl[.gz] and Parquet are read, "
            "too. Default: the hub.",
        },
        without=("lengths",),
    ),
    BenchmarkCommand(
        benchmark="scbench",
        summary="Run SCBench, several questions about one context, on variants of a model, record "
        "and score every answer.",
        helps={
            "protocol": "official (multi-turn, reference answers of earlier turns in the prompt; "
            "default) or official-scdq (each question alone behind the context).",
            "max_length": "Longest prompt with the room for all answers, in tokens. Default: "
            "131072.",
            "tasks": "Tasks or groups (scbench_string, scbench_plain ...), joined by commas or "
            "repeated. Default: all 12. See run_eval tasks scbench.",
            "data": "Folder with <task>.jsonl[.gz], Parquet as on the hub, or saved data sets. "
            "Default: the hub.",
        },
        without=("lengths",),
    ),
    BenchmarkCommand(
        benchmark="pocket",
        summary="Run the pocket suite: small generated tasks, the embedded model by default. "
        "How much does each memory hold, and how fast does it forget? Defaults: the preset "
        "configs/eval/pocket.yaml.",
        helps={
            "protocol": "official.",
            "max_length": "Longest prompt, in tokens. Default: the suite's.",
            "tasks": "Pocket tasks, joined by commas or repeated. Default: all. See run_eval "
            "tasks pocket.",
            "data": "'pocket': the rows are generated here.",
            "lengths": "Tokens of a text (512, 1k ...), joined by commas or repeated.",
        },
    ),
)
