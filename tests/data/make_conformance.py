"""Make `tests/data/conformance`: our own predictions with the scores of the authors' formulas.

    python -m tests.data.make_conformance

Texts are in `conformance_texts.py`, formulas in `tests/tasks/authors_formulas.py`; nothing of
`tasks` is used. What the files hold is in `tests/data/README.md`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from tests.data import conformance_texts as texts
from tests.data.conformance_texts import Pool
from tests.tasks.authors_formulas import RAISED, cleaned, levenshtein_score, score

FOLDER = Path(__file__).parent / "conformance"

#: which texts the tasks of LongBench are asked about
POOLS: dict[str, Pool] = {
    **dict.fromkeys(
        ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa"),
        texts.ENGLISH,
    ),
    "multifieldqa_zh": texts.CHINESE,
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), texts.ENGLISH_SUMMARIES),
    **dict.fromkeys(("dureader", "vcsum"), texts.CHINESE_SUMMARIES),
    "trec": texts.CLASSIFIED_EN,
    "lsht": texts.CLASSIFIED_ZH,
    "passage_count": texts.COUNTS,
    "passage_retrieval_en": texts.PARAGRAPHS,
    "passage_retrieval_zh": texts.PARAGRAPHS_ZH,
    **dict.fromkeys(("lcc", "repobench-p"), texts.CODE),
}
CLASSES = {"trec": texts.CLASSES_EN, "lsht": texts.CLASSES_ZH}
CODE_TASKS = ("lcc", "repobench-p")
CATEGORIES = {
    "single-doc QA": ("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"),
    "multi-doc QA": ("hotpotqa", "2wikimqa", "musique", "dureader"),
    "summarization": ("gov_report", "qmsum", "multi_news", "vcsum"),
    "few-shot learning": ("trec", "triviaqa", "samsum", "lsht"),
    "synthetic": ("passage_count", "passage_retrieval_en", "passage_retrieval_zh"),
    "code completion": CODE_TASKS,
}
CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")

#: what models add to an answer, which the AHN evaluation cuts off again
TAILS = (
    ".assistant\nSure",
    "\n\nQuestion: and then?",
    "</s></s>",
    " (Document 3)",
    "\n\nAnswer: nobody",
    "(Passage 12) says so",
    " \n 问题：还有呢",
    "\nnext line (Document 1)\n\nAnswer",
)

LONGBENCH_E = (
    "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec",
    "triviaqa", "samsum", "passage_count", "passage_retrieval_en", "lcc", "repobench-p",
)  # fmt: skip
#: around the borders of the three buckets
LENGTHS = (0, 3999, 4000, 7999, 8000, 120_000)

LEVELS = ("16k", "32k", "64k", "128k", "256k")
KEYED = {
    **dict.fromkeys(
        (
            "hotpotwikiqa_mixup",
            "loogle_SD_mixup",
            "loogle_CR_mixup",
            "loogle_MIR_mixup",
            "multifieldqa_en_mixup",
        ),
        texts.KEYED_EN,
    ),
    **dict.fromkeys(("multifieldqa_zh_mixup", "cmrc_mixup", "lic_mixup"), texts.KEYED_ZH),
}
PLAIN = {
    "factrecall_en": texts.ENGLISH,
    "factrecall_zh": texts.CHINESE,
    "dureader_mixup": texts.CHINESE_SUMMARIES,
}

Row = dict[str, Any]


def pairs(pool: Pool) -> list[tuple[list[str], str]]:
    """Each prediction with its answers."""
    return [(answers, text) for answers, predictions in pool for text in predictions]


def dealt(pool: Sequence[Any], tasks: Sequence[str], task: str) -> list[Any]:
    """What a task gets of what it shares with others."""
    return list(pool[tasks.index(task) :: len(tasks)])


def sharing(task: str, pools: dict[str, Any]) -> list[str]:
    """The tasks with the same texts."""
    return [other for other, pool in pools.items() if pool is pools[task]]


def longbench() -> Iterator[Row]:
    tasks = list(POOLS)
    for task, pool in POOLS.items():
        for number, (answers, text) in enumerate(dealt(pairs(pool), sharing(task, POOLS), task)):
            row: Row = {"benchmark": "longbench", "task": task, "model": "own", "prediction": text}
            row |= {"answers": answers, "all_classes": CLASSES.get(task), "length": 100 * number}
            yield row | {"protocol": "official"}
            ahn = row | {"protocol": "ahn"}
            if number % 4 == 0 or cleaned(ahn) != cleaned(row | {"protocol": "official"}):
                yield ahn
            if number < len(TAILS):
                tail = TAILS[(number + 3 * tasks.index(task)) % len(TAILS)]
                yield ahn | {"prediction": f" {text}{tail}"}
    nameless: Row = {"benchmark": "longbench", "protocol": "official", "task": "trec", "length": 1}
    nameless |= {"model": "no-classes", "prediction": "City", "answers": ["City"]}
    yield nameless | {"all_classes": None}


def longbench_e() -> Iterator[Row]:
    """Other texts of the same pools, twelve a task, their case changed in every third."""
    for task in LONGBENCH_E:
        found = pairs(POOLS[task])
        start = 3 * LONGBENCH_E.index(task)
        for number, (answers, text) in enumerate(islice(cycle(found), start, start + 12)):
            row: Row = {"benchmark": "longbench_e", "protocol": "official_e", "task": task}
            row |= {"model": "own", "prediction": text.swapcase() if number % 3 == 2 else text}
            row |= {"answers": answers, "all_classes": CLASSES.get(task)}
            yield row | {"length": LENGTHS[number % len(LENGTHS)]}


def lveval() -> Iterator[Row]:
    """Two shares of the texts for each task, spread over the levels."""
    for task, keyed in KEYED.items():
        every = [(a, keys, text) for a, keys, predictions in keyed for text in predictions]
        tasks = sharing(task, KEYED)
        twice = [*dealt(every, tasks, task), *dealt(every[1:], tasks, task)]
        yield from leveled(task, twice)
    for task, pool in PLAIN.items():
        found = [(answers, None, text) for answers, text in pairs(pool)]
        yield from leveled(task, found if task == "dureader_mixup" else found[::3])


def leveled(task: str, found: Sequence[tuple[list[str], str | None, str]]) -> Iterator[Row]:
    for (answers, keywords, text), level in zip(found, cycle(LEVELS), strict=False):
        row: Row = {"benchmark": "lveval", "task": task, "level": level, "model": "own"}
        row |= {"prediction": text, "answers": answers, "gold_ans": keywords, "length": 12_000}
        yield row | {"protocol": "official"}
        if level == "128k":
            yield row | {"protocol": "ahn"}


def infinitebench() -> Iterator[Row]:
    for task, entries in texts.INFINITEBENCH.items():
        for label, predictions in entries:
            for text in predictions:
                row: Row = {"benchmark": "infinitebench", "task": task, "prediction": text}
                yield row | {"protocol": "official", "model": "own", "label": label}
                if task == "math_calc":
                    yield row | {"protocol": "official-gpt4", "model": "gpt4", "label": label}
                if task in ("longbook_qa_eng", "longbook_qa_chn"):
                    yield row | {"protocol": "ahn", "model": "own", "answers": label}


def scored(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows with number and score; None where the authors' code raises."""
    for number, row in enumerate(rows):
        extra: dict[str, Any] = {}
        try:
            found: float | None = score(row)
        except RAISED as error:
            found = None
            extra["official_raises"] = f"{type(error).__name__}: {error}"
        text = cleaned(row)
        if text != row["prediction"]:
            extra["scored_text"] = text
        if row["benchmark"].startswith("longbench") and row["task"] in CODE_TASKS:
            extra["with_python_Levenshtein"] = levenshtein_score(row)
        yield {"id": number} | row | {"expected_score": found, "expected_extra": extra}


def percent(scores: Sequence[float]) -> float:
    return round(100 * sum(scores) / len(scores), 2)


def means(figures: Sequence[float]) -> float:
    return sum(figures) / len(figures)


def longbench_figures(of_task: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The leaderboard: categories and their mean in each language; code counts in both."""
    board = {}
    for language in ("English", "Chinese"):
        row = {}
        for category, tasks in CATEGORIES.items():
            own = [t for t in tasks if (t in CHINESE) == (language == "Chinese") or t in CODE_TASKS]
            row[category] = means([percent(of_task[task]) for task in own])
        board[language] = row | {"Avg": means(list(row.values()))}
    return board


def bucket(length: int) -> str:
    return "0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+"


def aggregates(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures that the authors' scripts and tables would show for these rows.

    Rows on which their code raises are left out.
    """
    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    buckets: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["expected_score"] is None or row["model"] == "no-classes":
            continue
        task = row["task"] + (f"_{row['level']}" if "level" in row else "")
        scores[row["benchmark"], row["protocol"]][task].append(row["expected_score"])
        if row["benchmark"] == "longbench_e":
            buckets[row["task"]][bucket(row["length"])].append(row["expected_score"])
    tasks = {
        f"{benchmark}/{protocol}": {task: percent(found) for task, found in of_task.items()}
        for (benchmark, protocol), of_task in scores.items()
        if benchmark != "longbench_e"
    }
    levels = tasks["lveval/official"]
    datasets = [*KEYED, *PLAIN]
    return {
        "tasks": tasks,
        "longbench_leaderboard": longbench_figures(scores["longbench", "official"]),
        "longbench_e_buckets": {
            task: {name: round(100 * float(np.mean(found)), 2) for name, found in own.items()}
            for task, own in buckets.items()
        },
        "lveval_levels": {
            level: means([levels[f"{dataset}_{level}"] for dataset in datasets]) for level in LEVELS
        },
        "lveval_datasets": {
            dataset: means([levels[f"{dataset}_{level}"] for level in LEVELS])
            for dataset in datasets
        },
    }


def make() -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """The rows of each file, and the figures of all of them."""
    files = {
        made.__name__: list(scored(made()))
        for made in (longbench, longbench_e, lveval, infinitebench)
    }
    return files, aggregates([row for rows in files.values() for row in rows])


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    files, figures = make()
    for name, rows in files.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (FOLDER / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
        print(f"{name}: {len(rows)} rows")
    (FOLDER / "aggregates.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
