"""SQuAD v2 and HotpotQA as RULER reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from tasks import hub
from tasks.ruler.generators import QuestionSet
from tasks.ruler.questions import SOURCES, hotpotqa, squad
from tasks.ruler.rows import Files, rows
from tests.tasks.ruler import texts
from tests.tasks.ruler.texts import words_in

Read = Callable[[Path], QuestionSet]
BOTH = pytest.mark.parametrize(
    ("read", "original", "on_the_hub"),
    [
        (squad, texts.squad, texts.squad_on_the_hub),
        (hotpotqa, texts.hotpotqa, texts.hotpotqa_on_the_hub),
    ],
    ids=["squad", "hotpotqa"],
)


@BOTH
def test_the_hubs_copies_are_read_like_the_originals(
    tmp_path: Path, read: Read, original: Any, on_the_hub: Any
) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "a.json").write_text(json.dumps(original()))
    lines = [json.dumps(row) + "\n" for row in on_the_hub()]
    (tmp_path / "b.jsonl").write_text("".join(lines))
    parquet.write_table(pyarrow.Table.from_pylist(on_the_hub()), tmp_path / "c.parquet")
    first = read(tmp_path / "a.json")
    assert first == read(tmp_path / "b.jsonl") == read(tmp_path / "c.parquet")
    assert first.documents == sorted(set(first.documents))


def test_squads_questions_have_the_other_paragraphs_of_their_article(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(texts.squad()))
    found = squad(tmp_path / "a.json")
    article = texts.squad()["data"][1]
    asked = [q for q in found.questions if q.query.endswith("of 2 in 1?")]
    assert [q.query for q in asked] == ["What is 1 of 2 in 1?", "What is 2 of 2 in 1?"]
    shown = [p["context"] for p in article["paragraphs"]]
    assert found.documents[asked[0].documents[0]] == shown[2]
    assert [found.documents[n] for n in asked[0].related] == [shown[0], shown[1], shown[3]]
    assert asked[0].answers == [shown[2].split()[1], shown[2].split()[-1]]


def test_hotpotqas_documents_begin_with_their_titles(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(texts.hotpotqa()))
    found = hotpotqa(tmp_path / "a.json")
    title, parts = texts.hotpotqa()[5]["context"][1]
    own = found.documents[found.questions[5].documents[1]]
    assert own == f"{title}\n{parts[0]}{parts[1]}{parts[2]}"


@pytest.mark.parametrize(
    ("read", "name", "content", "said"),
    [
        (squad, "a.json", {"data": []}, "'data'"),
        (squad, "a.json", [], "a.json: "),
        (squad, "a.json", "{", "is no JSON"),
        (squad, "a.jsonl", {"title": "t", "context": "c", "question": "q"}, "a.jsonl:1: field"),
        (squad, "a.txt", {}, "is not named as"),
        (squad, "b.json", None, "no such file"),
        (hotpotqa, "a.json", {}, "no list of HotpotQA's questions"),
        (hotpotqa, "a.json", [{"question": "q", "context": []}], "a.json:1: field 'answer'"),
        (hotpotqa, "a.json", [], "no question with an answer"),
        (
            hotpotqa,
            "a.jsonl",
            {"question": "q", "answer": "a", "context": {"title": ["t"], "sentences": []}},
            "a.jsonl:1: 'context' has not as many titles as texts",
        ),
        (
            squad,
            "a.jsonl",
            {"title": "t", "context": "c", "question": "q", "answers": {"text": []}},
            "no question with an answer",
        ),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, read: Read, name: str, content: Any, said: str
) -> None:
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read(tmp_path / name)


def test_without_a_file_of_the_users_the_hubs_copy_at_its_commit_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, file: str, repo_type: str, revision: str) -> str:
        asked.append((repository, file, repo_type, revision))
        (tmp_path / "a.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in texts.hotpotqa_on_the_hub())
        )
        return str(tmp_path / "a.jsonl")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    hub.forget_downloads()
    (row,) = rows("qa_2", 1500, words_in, 1, 42)
    source = SOURCES["hotpotqa"]
    assert asked == [(source.repository, source.file, "dataset", source.revision)]
    assert len(source.revision) == 40 and row["outputs"] == [texts.hotpotqa()[0]["answer"]]
    assert Files().question_file("hotpotqa")[1] == source.revision
    hub.forget_downloads()


def test_a_hub_that_cannot_be_had_says_where_the_file_may_be_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    hub.forget_downloads()
    with pytest.raises(InputError, match="no network|offline|OFFLINE") as error:
        rows("qa_1", 1500, words_in, 1, 42)
    assert "and give it with --squad." in error.value.problems[0]
    assert "resolve/3ffb306f725f7d2ce8394bc1873b24868140c412/squad_v2/validation" in str(
        error.value
    )
    hub.forget_downloads()
