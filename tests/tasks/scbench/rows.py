"""Rows in SCBench's format, made here: two contexts a task, three turns each."""

from __future__ import annotations

from typing import Any

CODE = {
    "python": "def add_{n}(first, second):\n    total = first + second + {n}\n    return total\n",
    "go": "func add_{n}(first int, second int) int {{\n    return first + second + {n}\n}}\n",
}


def turn(task: str, number: int, kind: str | None = None) -> dict[str, Any]:
    """A question and its answer."""
    asked = {"input": f"Question {number}: what is key k{number}?", "answer": f"value-{number}"}
    if kind is not None:
        return turn(kind, number) | {"task": kind}
    if task == "scbench_mf":
        rank = ("largest", "smallest", "third largest")[number % 3]
        return {"input": f"Find it. The {rank} number is", "answer": 10 + number}
    if task == "scbench_vt":
        return asked | {"answer": [f"VAR{number}", "XYZ", "QRS"]}
    if task == "scbench_many_shot":
        return asked | {"answer": f"({'ABC'[number % 3]})"}
    if task == "scbench_choice_eng":
        return asked | {"options": ["oak", "elm", "ash", f"value-{number}"]}
    if task == "scbench_passkey":
        return asked | {"answer": str(71432 + number)}
    if task == "scbench_repoqa":
        return asked | {"answer": CODE["python"].format(n=number), "name": f"add_{number}"}
    if task == "scbench_qa_chn":
        return {"input": f"第{number}个问题？", "answer": f"北京{number}"}
    return asked


def row(task: str, number: int, turns: int = 3) -> dict[str, Any]:
    """A context and its turns."""
    kinds = {
        "scbench_summary_with_needles": ("scbench_summary", "scbench_passkey"),
        "scbench_repoqa_and_kv": ("scbench_repoqa", "scbench_kv"),
    }.get(task, (None,))
    made: dict[str, Any] = {
        "id": number,
        "context": f"Text {number} of many keys. " + "It goes on and on. " * 5,
        "multi_turns": [
            turn(task, 10 * number + at, kinds[at % len(kinds)]) for at in range(turns)
        ],
    }
    if task == "scbench_mf":
        made["context"] = [number, 12, 7, 19]
    if "repoqa" in task:
        made |= {"lang": "python", "repo": f"owner/repo{number // 2}"}
    return made
