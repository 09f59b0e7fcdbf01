"""Training data: every form people have it in, tokenised once, counted, refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from transformers import AutoTokenizer

import ahn
from ahn.distill.conversations import NAMED_DATA, find_sources, messages_of, read_rows
from ahn.distill.data import Conversations, StreamedConversations
from ahn.distill.encoding import IGNORED, encode
from ahn.distill.recipe import Recipe

MESSAGES = [
    {"role": "user", "content": "what is table ? table :"},
    {"role": "assistant", "content": "17 42 ."},
]
SHAREGPT = [
    {"from": "human", "value": "what is table ? table :"},
    {"from": "gpt", "value": "17 42 ."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ahn.POCKET_PATH)


def recipe(dataset: Any, **options: Any) -> Recipe:
    return Recipe(
        model_name_or_path=str(ahn.POCKET_PATH), output_dir="unused", dataset=dataset, **options
    )


def write(path: Path, rows: list[Any]) -> str:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("row", [{"messages": MESSAGES}, {"conversations": SHAREGPT}])
def test_all_forms_give_the_same_samples(
    tmp_path: Path, tokenizer: Any, suffix: str, row: dict[str, Any]
) -> None:
    data = Conversations(recipe(write(tmp_path / f"data{suffix}", [row, row])), tokenizer)
    assert len(data) == 2 and data.counts["read"] == data.counts["kept"] == 2
    words = tokenizer.convert_ids_to_tokens(data[1]["input_ids"])
    labelled = [w.strip() for w, x in zip(words, data[1]["labels"], strict=True) if x != IGNORED]
    assert labelled == ["17", "42", "."]


def test_chatqa2_rows_become_conversations() -> None:
    row = {
        "document": "A long text.",
        "messages": [{"role": "user", "content": "What?"}],
        "answers": ["This.", "That."],
    }
    assert messages_of(row, "here") == [
        {"role": "user", "content": "A long text.\n\nWhat?"},
        {"role": "assistant", "content": "This."},
    ]
    assert "chatqa2" in NAMED_DATA and find_sources("chatqa2")[0].hub == NAMED_DATA["chatqa2"]


def test_folders_lists_and_hub_ids_are_sources(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [{"messages": MESSAGES}])
    write(tmp_path / "a.parquet", [{"messages": MESSAGES}])
    (source,) = find_sources(str(tmp_path))
    assert [path.name for path in source.files] == ["a.parquet", "b.jsonl"]
    assert len(list(read_rows(source))) == 2
    hub = find_sources(["owner/name:configuration:validation"])[0].hub
    assert hub is not None
    assert (hub.repository, hub.name, hub.split) == ("owner/name", "configuration", "validation")


def test_tokenised_once_and_again_when_anything_changes(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AHN_BENCH_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "data.jsonl", [{"messages": MESSAGES}] * 3)
    first = Conversations(recipe(path), tokenizer)
    again = Conversations(recipe(path), tokenizer)
    assert not first.from_cache and again.from_cache
    assert [first[i] for i in range(3)] == [again[i] for i in range(3)]
    assert again.counts == first.counts
    assert not Conversations(recipe(path, cutoff_len=20), tokenizer).from_cache
    moved = write(tmp_path / "moved.jsonl", [{"messages": MESSAGES}] * 3)
    assert Conversations(recipe(moved), tokenizer).from_cache  # by content, not by name
    write(tmp_path / "data.jsonl", [{"messages": MESSAGES}] * 4)
    assert len(Conversations(recipe(path), tokenizer)) == 4
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_streaming_gives_the_same_samples(tmp_path: Path, tokenizer: Any) -> None:
    other = [{"role": "user", "content": "what is lamp ? lamp :"}, MESSAGES[1]]
    rows = [{"messages": MESSAGES}, {"messages": other}, {"messages": other[:1]}]
    path = write(tmp_path / "data.jsonl", rows)
    whole = Conversations(recipe(path), tokenizer)
    streamed = StreamedConversations(recipe(path, streaming=True, max_steps=1), tokenizer)
    assert list(streamed) == [whole[i] for i in range(len(whole))]
    assert streamed.counts == whole.counts and streamed.counts["no_label"] == 1


def test_a_template_of_ones_own(tmp_path: Path, tokenizer: Any) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %} {{ m.content }}{% endfor %}")
    path = write(tmp_path / "data.jsonl", [{"messages": MESSAGES}])
    before = tokenizer.chat_template
    try:
        data = Conversations(recipe(path, template=str(template)), tokenizer)
    finally:
        tokenizer.chat_template = before
    text = tokenizer.decode(data[0]["input_ids"])
    assert text.split() == ["what", "is", "table", "?", "table", ":", "17", "42", "."]


#: drops the thoughts of answers that a later question follows, as Qwen3's template does
FORGETS_THOUGHTS = """
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' and loop.index0 > ns.last -%}
{{ ' answer :' }} <think>

</think>{{ ' ' + m.content.split('</think>')[-1].strip() }}{{ ' .' }}
{%- elif m.role == 'assistant' -%}
{{ ' answer : ' }}{{ m.content.split('</think>')[-1].strip() }}{{ ' .' }}
{%- else -%}{{ ' ' + m.content }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ' answer :' }}{%- endif -%}
"""


def test_answers_are_labelled_where_a_template_drops_earlier_thoughts(tokenizer: Any) -> None:
    turns = [
        {"role": "user", "content": "what is table ?"},
        {"role": "assistant", "content": "<think> lamp </think> 17 42"},
        {"role": "user", "content": "what is 17 42 ?"},
        {"role": "assistant", "content": "05 06"},
    ]
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = FORGETS_THOUGHTS
        sample = encode(tokenizer, turns)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        tokenizer.chat_template = "{% for m in messages %}{{ messages | length }}{% endfor %}"
        with pytest.raises(ahn.InputError, match="rewrites earlier turns"):
            encode(tokenizer, turns)
    finally:
        tokenizer.chat_template = before
    assert whole.count("<think>") == 1 and "lamp" not in whole
    assert sample.input_ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
    words = tokenizer.convert_ids_to_tokens(sample.input_ids)
    labelled = [w.strip() for w, x in zip(words, sample.labels, strict=True) if x != IGNORED]
    assert labelled[:3] == ["17", "42", "."] and labelled[-3:] == ["05", "06", "."]
    assert labelled.count("17") == 1  # the one that was asked about carries no loss


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "no sample left to train on: there are no rows"),
        ([{"messages": MESSAGES[:1]}], {}, "no turn is an assistant's"),
        ([{"messages": MESSAGES}], {"filter_len": 500}, "at most filter_len = 500"),
        ([{"messages": MESSAGES}], {"template": "qwen9"}, "neither 'default'"),
        ([[1]], {}, "data.jsonl:1: should be an object"),
        ([{"text": "x"}], {}, "data.jsonl:1: 'messages'.*it has \\['text'\\]"),
        ([{"conversations": [{"from": "me", "value": "x"}]}], {}, "speaker 'me'"),
        ([{"messages": []}], {}, "data.jsonl:1: 'messages' is missing or empty"),
    ],
)
def test_bad_data_is_refused(
    tmp_path: Path, tokenizer: Any, rows: list[Any], options: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "data.jsonl", rows)
    with pytest.raises(ahn.InputError, match=message):
        Conversations(recipe(path, **options), tokenizer)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path, tokenizer: Any) -> None:
    good = json.dumps({"messages": MESSAGES}).encode()
    (tmp_path / "data.jsonl").write_bytes(good + b"\n\xff\xfe\n")
    with pytest.raises(ahn.InputError, match="data.jsonl:2: not UTF-8"):
        Conversations(recipe(str(tmp_path / "data.jsonl")), tokenizer)
    (tmp_path / "data.parquet").write_bytes(b"no parquet")
    with pytest.raises(ahn.InputError, match="not a Parquet file"):
        Conversations(recipe(str(tmp_path / "data.parquet")), tokenizer)


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "chatqa3", "a/b/c", "", "data.txt"])
def test_names_that_stand_for_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ahn.InputError, match="no such data set|no name is given"):
        find_sources(name)


def test_a_hub_that_cannot_be_reached_is_told_once(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ahn.InputError, match="owner/name cannot be had.*save it as JSONL"):
        Conversations(recipe("owner/name"), tokenizer)
