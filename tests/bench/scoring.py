"""How fast are predictions scored? Measured through `score_file`, as `run_eval score` does it.

    python tests/bench/scoring.py
    python tests/bench/scoring.py --predictions 2000 --workers 8 --output scoring.json

Three tables:

- short answers: `--predictions` different lines a task, each against a gold answer of its own
  (no two lines share a text, so no cache helps), English and Chinese, one process, reading and
  checking the file included. Required: 10,000 of any of them in under 10 s (exit code 1 otherwise).
- long summaries: 500 words against 1,500, one process, per metric.
- summaries of the slowest of these tasks, as many as one process takes `--seconds` for, by one and
  by `--workers` processes; scores must be equal to the last bit.

All speeds are of wall time: on a busy machine they are lower than they could be; the CPU seconds of
the one process stand beside them.

Texts are drawn from a fixed vocabulary with a seed: lengths are those of the benchmarks (answers of
4 words, predictions of up to 64 tokens; summaries of 500 words). Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tasks.metrics.chinese import words
from tasks.registry import find_task
from tasks.scoring import score_file

REQUIRED_PER_SECOND = 1000.0
_ENGLISH = (
    "The river crosses a wide valley where old mills stand beside small stone bridges and "
    "people of many towns meet on market days to sell wool glass salt paper and copper lamps"
)
_CHINESE = (
    "河流 穿过 宽阔 的 山谷 北京 大学 教授 研究 长江 经济 发展 古老 磨坊 市场 人们 羊毛 玻璃 纸张 "
    "铜灯 会议 预算 委员会 批准 城市 学校 历史 文化 和 在 年"
)
ENGLISH, CHINESE = _ENGLISH.split(), _CHINESE.split()
SHORT = (
    ("longbench", "hotpotqa"),
    ("longbench", "multifieldqa_zh"),
    ("longbench", "trec"),
    ("longbench", "passage_retrieval_en"),
    ("longbench", "lcc"),
    ("lveval", "hotpotwikiqa_mixup"),
    ("lveval", "cmrc_mixup"),
    ("lveval", "factrecall_en"),
    ("lveval", "dureader_mixup"),
    ("infinitebench", "longbook_qa_eng"),
    ("infinitebench", "longbook_qa_chn"),
)
LONG = (
    ("longbench", "gov_report"),
    ("longbench", "vcsum"),
    ("infinitebench", "longbook_sum_eng"),
)


def text(language: str, count: int, random_: random.Random, sentence: int = 25) -> str:
    """So many words, a full stop after every `sentence`."""
    vocabulary = ENGLISH if language == "en" else CHINESE
    chosen = [random_.choice(vocabulary) for _ in range(count)]
    stop, between = (".", " ") if language == "en" else ("。", "")
    parts = [chosen[start : start + sentence] for start in range(0, count, sentence)]
    return between.join(between.join(part) + stop for part in parts)


def line(benchmark: str, task: str, number: int, words_: tuple[int, int]) -> dict[str, object]:
    """A line of a prediction file; its number makes prediction and answer unlike all others."""
    language = find_task(benchmark, task).language
    draw = random.Random(number)
    predicted, answer = (
        f"{text(language, count, draw)} {side}{number}"
        for side, count in zip("pa", words_, strict=True)
    )
    if task == "passage_retrieval_en":
        answer = f"Paragraph {number % 30}"
    if benchmark == "infinitebench":
        return {"id": number, "prediction": predicted, "ground_truth": [answer]}
    classes = [f"class {k}" for k in range(50)] if task == "trec" else None
    own = {"gold_ans": text(language, 2, draw)} if benchmark == "lveval" else {}
    if classes:
        answer = classes[number % 50]
    found: dict[str, object] = {
        "pred": predicted,
        "answers": [answer],
        "all_classes": classes,
        "length": 1,
    }
    return found | own


def write(path: Path, benchmark: str, task: str, count: int, words_: tuple[int, int]) -> Path:
    """A prediction file of `count` lines."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number in range(count):
            record = line(benchmark, task, number, words_)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def timed(path: Path, benchmark: str, task: str, workers: int) -> tuple[float, float, list[float]]:
    """Wall seconds, this process's CPU seconds, and the scores."""
    started, used = time.perf_counter(), time.process_time()
    scores = score_file(path, benchmark, task, "official", workers=workers)
    return time.perf_counter() - started, time.process_time() - used, scores


def measure(
    folder: Path, tasks: tuple[tuple[str, str], ...], count: int, words_: tuple[int, int]
) -> list[dict[str, object]]:
    """Each task's file in one process."""
    found = []
    for benchmark, task in tasks:
        path = write(folder / "predictions.jsonl", benchmark, task, count, words_)
        wall, seconds, scores = timed(path, benchmark, task, workers=1)
        found.append(
            {
                "benchmark": benchmark,
                "task": task,
                "metric": find_task(benchmark, task).protocol("official").metric,
                "predictions": len(scores),
                "seconds": round(wall, 3),
                "cpu_seconds": round(seconds, 3),
                "per_second": round(len(scores) / wall, 1),
            }
        )
    return found


def show(console: Console, title: str, rows: list[dict[str, object]]) -> None:
    """Rows side by side, each with its ratio to the first one's speed."""
    table = Table(title=title)
    for heading in ("task", "metric"):
        table.add_column(heading)
    for heading in ("predictions", "seconds", "CPU s", "a second", "against the first"):
        table.add_column(heading, justify="right")
    first = float(str(rows[0]["per_second"]))
    for row in rows:
        speed = float(str(row["per_second"]))
        name = f"{row['benchmark']}/{row['task']}"
        cells = (
            row["predictions"],
            row["seconds"],
            row["cpu_seconds"],
            f"{speed:,.0f}",
            f"{speed / first:.2f}",
        )
        table.add_row(name, str(row["metric"]), *map(str, cells))
    console.print(table)


def compare_workers(
    folder: Path, long: list[dict[str, object]], seconds: float, workers: int
) -> dict[str, object]:
    """Summaries by one process, which takes about `seconds`, and by several.

    `long` are the speeds of one process, by which the slowest task is chosen.
    """
    slowest = min(long, key=lambda row: float(str(row["per_second"])))
    benchmark, task = str(slowest["benchmark"]), str(slowest["task"])
    count = round(seconds * float(str(slowest["per_second"])))
    path = write(folder / "predictions.jsonl", benchmark, task, count, (500, 1500))
    alone, _, expected = timed(path, benchmark, task, workers=1)
    together, _, scores = timed(path, benchmark, task, workers=workers)
    return {
        "task": f"{benchmark}/{task}",
        "predictions": count,
        "workers": workers,
        "seconds_alone": round(alone, 2),
        "seconds_together": round(together, 2),
        "ratio": round(alone / together, 2),
        "equal": scores == expected,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--summaries", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    console = Console(width=110)
    words("中文")  # jieba's dictionary is read once a process, whatever is scored
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short = measure(folder, SHORT, asked.predictions, (12, 4))
        show(console, "Short answers, one process", short)
        long = measure(folder, LONG, asked.summaries, (500, 1500))
        show(console, "Long summaries, one process", long)
        workers = compare_workers(folder, long, asked.seconds, asked.workers)
    console.print(
        f"{workers['predictions']} summaries of {workers['task']}: {workers['seconds_alone']} s by "
        f"one process, {workers['seconds_together']} s by {workers['workers']} "
        f"({workers['ratio']} times as fast), scores {'equal' if workers['equal'] else 'DIFFER'}"
    )
    slow = [row for row in short if float(str(row["per_second"])) < REQUIRED_PER_SECOND]
    for row in slow:
        console.print(f"too slow: {row['task']}, {row['per_second']} a second (1,000 required)")
    result = {"short": short, "long": long, "workers": workers}
    if asked.output:
        asked.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return int(bool(slow) or not workers["equal"])


if __name__ == "__main__":
    sys.exit(main())
