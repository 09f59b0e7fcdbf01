"""The examples run as their docstrings say, and what they show is so."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STORY = (
    "read the story : "
    + "the sun is warm . " * 12
    + "the job of frank is driver . "
    + "it rains for a while . " * 30
)
QUESTION = "what is the job of frank ? the job of frank is"


def test_the_memory_holds_what_the_window_does_not(capsys: Any) -> None:
    runpy.run_path(str(EXAMPLES / "what_the_memory_stores.py"))["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert "window 128, sinks 4, memory GatedDeltaNet" in lines[0]
    answers = dict(line.split() for line in lines[-2:])
    assert answers["ahn"] == "driver" and answers["window"] != "driver"


def test_a_document_is_read_once_and_asked_from_disk(tmp_path: Path, capsys: Any) -> None:
    main = runpy.run_path(str(EXAMPLES / "ask_a_saved_document.py"))["main"]
    document, cache = tmp_path / "story.txt", tmp_path / "story.safetensors"
    document.write_text(STORY, encoding="utf-8")
    assert main(["read", str(document), str(cache)]) == 0
    document.unlink()
    assert main(["ask", str(cache), QUESTION]) == 0
    assert capsys.readouterr().out.startswith(f"{QUESTION} driver")
    assert main(["ask", str(cache), QUESTION, "--window", "64"]) == 2
    assert "another layout" in capsys.readouterr().err


def test_a_document_that_is_no_text_is_named(tmp_path: Path, capsys: Any) -> None:
    main = runpy.run_path(str(EXAMPLES / "ask_a_saved_document.py"))["main"]
    document, cache = tmp_path / "story.txt", tmp_path / "story.safetensors"
    for content, reason in ((None, "No such file or directory"), (b"\xff\xfe", "not UTF-8 text")):
        if content is not None:
            document.write_bytes(content)
        assert main(["read", str(document), str(cache)]) == 2
        assert capsys.readouterr().err == f"error: {document}: {reason}\n"
        assert not cache.exists()
