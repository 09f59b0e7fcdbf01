"""Training data: every form people have it in, tokenised once, counted, refused by name."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

import ahn
from ahn.distill.conversations import NAMED_DATA, find_sources, messages_of, read_rows
from ahn.distill.data import Conversations, StreamedConversations
from ahn.distill.encoding import IGNORED, Turn, encode, shortened
from ahn.distill.recipe import Recipe
from ahn.distill.tokenising import EncodedRows, tokenising_processes

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


def test_chatqa2_is_the_data_set_of_the_papers_tool() -> None:
    hub = find_sources("chatqa2")[0].hub
    assert hub == NAMED_DATA["chatqa2"]
    assert hub is not None and (hub.name, hub.split) == (None, "train")
    assert hub.repository == "Seerkfang/ChatQA2-Long-SFT-data-long_sft_train_filtered"
    # plain messages with role tags, a system message among them
    turns = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    assert messages_of({"messages": turns}, "here") == turns


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
        (
            [{"messages": [{"role": "human", "content": "x"}, MESSAGES[1]]}],
            {},
            "data.jsonl:1: role 'human' \\('role'\\) is not one of system, user, assistant, tool",
        ),
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
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ahn.InputError, match="owner/name cannot be had.*save it as JSONL"):
        Conversations(recipe("owner/name"), tokenizer)


@pytest.mark.parametrize(
    ("source", "answer", "room", "kept"),
    [
        (300, 50, 1000, (300, 50)),  # fits
        (950, 50, 1000, (950, 50)),  # just fits
        (10_000, 50, 1000, (950, 50)),  # the end of the source goes, the answer stays
        (10_000, 499, 1000, (501, 499)),
        (100, 10_000, 1000, (100, 900)),  # an answer beyond half of the room, a short source
        (6000, 4000, 1000, (600, 400)),  # both are long: in proportion
        (600, 500, 1000, (546, 454)),  # 1000 * 500 / 1100 = 454.5
        (500, 500, 1000, (500, 500)),
        (9000, 1, 2, (2, 0)),  # 2 * 1 / 9001 < 1: nothing of the answer
    ],
)
def test_over_long_turns_are_shortened_as_by_the_papers_tool(
    source: int, answer: int, room: int, kept: tuple[int, int]
) -> None:
    turn = Turn(list(range(source)), list(range(-answer, 0)))
    (short,) = shortened([turn], room)
    assert (len(short.source), len(short.answer)) == kept
    # of both it is the end that goes
    assert short.source == turn.source[: kept[0]] and short.answer == turn.answer[: kept[1]]


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=5),
    room=st.integers(2, 200),
)
def test_shortened_turns_fill_the_room_and_keep_short_answers(
    lengths: list[tuple[int, int]], room: int
) -> None:
    turns = [Turn([1] * source, [2] * answer) for source, answer in lengths]
    kept = shortened(turns, room)
    total = sum(map(len, turns))
    assert sum(map(len, kept)) == min(total, room)
    if total <= room:
        assert kept == turns
    left = room
    for turn, short in zip(turns, kept, strict=False):
        if 2 * len(turn.answer) < left:
            assert short.answer == turn.answer
        left -= len(short)


def test_over_long_samples_keep_their_answers_and_are_counted(
    tmp_path: Path, tokenizer: Any
) -> None:
    """Cutting the tail would leave 60 tokens of a text, and nothing to learn."""
    text = {"role": "user", "content": " ".join(f"{n % 100:02d}" for n in range(200))}
    long_answer = {"role": "assistant", "content": " ".join(["17"] * 90)}
    rows = [[text, MESSAGES[1]], MESSAGES, [*MESSAGES, text, MESSAGES[1]], [text, long_answer]]
    path = write(tmp_path / "data.jsonl", [{"messages": row} for row in rows])
    data = Conversations(recipe(path, cutoff_len=60), tokenizer)
    assert data.counts == {
        "read": 4,
        "kept": 4,
        "too_short": 0,
        "cut": 3,
        "answers_cut": 1,
        "no_label": 0,
    }
    assert list(data.lengths) == [60, len(encode(tokenizer, MESSAGES).input_ids), 60, 60]

    def learnt(number: int) -> list[str]:
        words = tokenizer.convert_ids_to_tokens(data[number]["input_ids"])
        labels = data[number]["labels"]
        return [w.strip() for w, x in zip(words, labels, strict=True) if x != IGNORED]

    assert learnt(0) == learnt(1) == ["17", "42", "."]
    assert learnt(2) == ["17", "42", "."] * 2
    assert set(learnt(3)) == {"17"} and 0 < len(learnt(3)) < 60
    ids = encode(tokenizer, [text, MESSAGES[1]]).input_ids
    assert data[0]["input_ids"] == ids[:57] + ids[-3:]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loaders_workers_share_streamed_rows(
    tmp_path: Path, tokenizer: Any, workers: int
) -> None:
    path = write(tmp_path / "data.jsonl", [{"messages": MESSAGES}] * 7)
    data = StreamedConversations(recipe(path, streaming=True, max_steps=1), tokenizer)
    loader = DataLoader(data, batch_size=None, num_workers=workers)
    assert sorted(int(row["index"]) for row in loader) == list(range(7))


def mixed_rows() -> list[dict[str, Any]]:
    """Kept, too short for a `filter_len` of 9, without a label, long."""
    rows = []
    for number in range(40):
        text = " ".join([f"{number:02d}"] * (number % 7 * 9 + 1))
        turns = [{"role": "user", "content": text}, MESSAGES[1]]
        rows.append({"messages": turns[: 1 if number % 11 == 5 else 2]})
    return rows


@pytest.mark.parametrize("streaming", [False, True])
def test_several_processes_tokenise_to_the_same_samples_in_the_same_order(
    tmp_path: Path, tokenizer: Any, streaming: bool
) -> None:
    path = write(tmp_path / "data.jsonl", mixed_rows())
    options: dict[str, Any] = {"filter_len": 9, "cutoff_len": 40, "max_samples": 21}
    found = []
    for processes in (0, 2):
        if streaming:
            options |= {"streaming": True, "max_steps": 1}
            stream = StreamedConversations(recipe(path, **options), tokenizer, None, processes)
            found.append((list(stream), stream.counts))
        else:
            (tmp_path / str(processes)).mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("AHN_BENCH_CACHE", str(tmp_path / str(processes)))
                chosen = {**options, "preprocessing_num_workers": processes}
                data = Conversations(recipe(path, **chosen), tokenizer)
                assert not data.from_cache
                found.append(([data[i] for i in range(len(data))], data.counts))
    assert found[0] == found[1] and len(found[0][0]) == 21
    counts = found[0][1]
    assert counts["kept"] == 21 and min(counts.values()) >= 0
    assert counts["too_short"] and counts["cut"] and counts["no_label"]
    assert counts["read"] == counts["kept"] + counts["too_short"] + counts["no_label"]


def test_a_bad_row_is_named_by_whatever_process_reads_it(tmp_path: Path, tokenizer: Any) -> None:
    rows = [*mixed_rows(), {"messages": [{"role": "narrator", "content": "x"}]}]
    path = write(tmp_path / "data.jsonl", rows)
    for processes in (0, 2):
        options = recipe(path, preprocessing_num_workers=processes)
        with pytest.raises(ahn.InputError, match="^[^\n]*data.jsonl:41: role 'narrator'[^\n]*$"):
            Conversations(options, tokenizer)
    # rows after those that are wanted are read ahead, but not looked at
    assert len(Conversations(recipe(path, max_samples=5), tokenizer)) == 5


def test_large_data_are_shared_out_and_small_ones_are_not(tmp_path: Path) -> None:
    small = find_sources(write(tmp_path / "small.jsonl", [{"messages": MESSAGES}]))
    assert tokenising_processes(recipe("x"), small) == 0
    assert tokenising_processes(recipe("x", preprocessing_num_workers=3), small) == 3
    with (tmp_path / "large.jsonl").open("wb") as file:
        file.truncate(5 << 20)
    large = find_sources(str(tmp_path / "large.jsonl"))
    cores = len(os.sched_getaffinity(0))
    assert tokenising_processes(recipe("x"), large) == (min(cores, 16) if cores > 1 else 0)
    assert tokenising_processes(recipe("x", preprocessing_num_workers=0), large) == 0


@pytest.mark.slow
def test_processes_that_want_the_same_data_wait_for_one_that_tokenises(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three at a time: one tokenises, however long it takes, and the others read what it wrote."""
    monkeypatch.setenv("AHN_BENCH_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "data.jsonl", mixed_rows())
    slow = EncodedRows.__iter__

    def slowly(self: Any) -> Any:
        time.sleep(1)
        return slow(self)

    monkeypatch.setattr(EncodedRows, "__iter__", slowly)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def work() -> None:
        data = Conversations(recipe(path), tokenizer)
        results.put((data.from_cache, len(data)))

    children = [context.Process(target=work) for _ in range(3)]
    for child in children:
        child.start()
    found = sorted(results.get() for _ in children)
    for child in children:
        child.join()
    assert [from_cache for from_cache, _ in found] == [False, True, True]
    assert len({count for _, count in found}) == 1
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize("place", ["file/cache", "/proc/cache"])
def test_a_cache_that_cannot_be_written_is_told_in_one_line(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").touch()
    path = write(tmp_path / "data.jsonl", [{"messages": MESSAGES}])
    monkeypatch.setenv("AHN_BENCH_CACHE", str(tmp_path / place))
    with pytest.raises(ahn.InputError, match="^[^\n]*cannot be written.*AHN_BENCH_CACHE[^\n]*$"):
        Conversations(recipe(path), tokenizer)


def test_a_cache_on_a_full_disk_and_a_damaged_one_are_told(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AHN_BENCH_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "data.jsonl", [{"messages": MESSAGES}])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("ahn.distill.data.os.replace", full)
        with pytest.raises(ahn.InputError, match="the disk is full"):
            Conversations(recipe(path), tokenizer)
    assert not list((tmp_path / "cache").rglob("*.part"))
    Conversations(recipe(path), tokenizer)
    (kept,) = (tmp_path / "cache").rglob("*.arrow")
    kept.write_bytes(b"nothing")
    with pytest.raises(ahn.InputError, match="cannot be read.*remove this file"):
        Conversations(recipe(path), tokenizer)


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "data.jsonl", [{"messages": MESSAGES}])

    def refused(self: Path, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ahn.InputError, match="data.jsonl: cannot be read: Permission denied"):
        Conversations(recipe(path), tokenizer)


def test_what_a_file_is_called_decides_how_it_is_read(tmp_path: Path, tokenizer: Any) -> None:
    """The same bytes as JSON and as JSON lines are other data."""
    text = json.dumps([{"messages": MESSAGES}])
    (tmp_path / "data.json").write_text(text)
    (tmp_path / "data.jsonl").write_text(text)
    assert len(Conversations(recipe(str(tmp_path / "data.json")), tokenizer)) == 1
    with pytest.raises(ahn.InputError, match="data.jsonl:1: should be an object"):
        Conversations(recipe(str(tmp_path / "data.jsonl")), tokenizer)


def test_the_commit_of_hub_data_is_its_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load(repository: str, name: Any, **options: Any) -> list[Any]:
        asked.update(options)
        return [{"messages": MESSAGES}]

    class Api:
        sha = "a" * 40

        def dataset_info(self, repository: str) -> Any:
            return self

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    (source,) = find_sources("owner/name")
    assert [row for _, row in read_rows(source)] == [{"messages": MESSAGES}]
    assert asked["revision"] == Api.sha and Api.sha in source.identity
    before = source.identity
    monkeypatch.setattr(Api, "sha", "b" * 40)
    assert find_sources("owner/name")[0].identity != before
    assert source.identity == before  # one commit for the whole of a run
