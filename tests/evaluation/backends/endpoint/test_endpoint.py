"""`--variant endpoint`: what is asked of a server, and what is made of its answers."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GenerationConfig

from common.errors import InputError
from evaluation.backends.base import Question, RunSettings
from evaluation.backends.endpoint import http_client
from evaluation.backends.endpoint.backend import (
    EndpointBackend,
    Options,
    _added_to_texts,
    sent_settings,
)
from evaluation.backends.requests import parse_request, server_url
from evaluation.cli import main
from tests.evaluation.conftest import ROOT, byte_tokenizer
from tests.processes import start_fork
from tests.servers import FakeServer, answer, completion, events, raw, refusal, streamed

PAGE = ROOT / "docs" / "servers.md"
SECRET = "sk-0123456789abcdef"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_PAUSE_SECONDS", 0.001)
    for name in http_client.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(byte_tokenizer(tmp_path_factory.mktemp("bytes")))


Run = Callable[..., Any]


@pytest.fixture
def asked(run_eval: Run, server: FakeServer, tiny: Path, data: Path, tmp_path: Path) -> Run:
    """`run_eval longbench` on eight questions about three documents, asked of the server."""

    def run(*words: object, variant: str = "endpoint", given: bool = True) -> Any:
        more = ["--endpoint", server.url, "--model", "served", "--tokenizer", tiny]
        return run_eval(
            "longbench", "--data", data, "--tasks", "hotpotqa", "--max-length", 600,
            "--variant", variant, "--no-report", "-o", tmp_path / "run",
            *(more if given else []), *words,
        )  # fmt: skip

    return run


def records(folder: Path, variant: str = "endpoint") -> list[dict[str, Any]]:
    return [json.loads(x) for f in sorted(folder.glob(f"{variant}/*.jsonl")) for x in f.open("rb")]


def info(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def questions(server: FakeServer) -> list[dict[str, Any]]:
    """The posts of a run without the first, which asks for one token."""
    assert server.seen[0].content["max_tokens"] == 1
    return [seen.content for seen in server.seen[1:]]


def test_a_run_is_asked_of_a_server(asked: Run, server: FakeServer, tmp_path: Path) -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 64}}
    server.usual = streamed(
        " 7", "!", usage={"prompt_tokens": 99, "completion_tokens": 3, **details}
    )
    server.pages["/v1/models"] = refusal(
        200, b'{"data": [{"id": "served", "max_model_len": 4096}, {"id": "other"}]}'
    )
    server.pages["/version"] = refusal(200, b'{"version": "0.99.1"}')
    result = asked()
    assert result.exit_code == 0, result.stderr
    found = records(tmp_path / "run")
    assert len(found) == 8 and {r["prediction"] for r in found} == {" 7!"}
    for record in found:
        assert (record["prompt_tokens"], record["generated_tokens"]) == (99, 3)
        assert record["reused_prefix_tokens"] == 64 and record["finish_reason"] == "eos"
        assert record["prefill_seconds"] > 0 and record["decode_seconds"] >= 0
        for unknown in ("flops", "cache_bytes_analytic", "cache_bytes_measured", "peak_bytes"):
            assert record.get(unknown) is None
    for content in questions(server):
        assert {k: v for k, v in content.items() if k != "prompt"} == {
            "model": "served", "max_tokens": 32, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
    said = info(tmp_path / "run")["models"]["endpoint"]
    assert said["variant"] == "endpoint" and said["weights"] == "unverified"
    assert said["models_listed"] == ["served", "other"] and said["max_model_len"] == 4096
    assert said["server_version"] == "0.99.1" and said["answered_as"] == "served"
    assert info(tmp_path / "run")["generation"]["endpoint"] == {
        "max_tokens": 32, "temperature": 0, "stop_tokens": "the server's own", "per_task": {
            "hotpotqa": {}
        },
    }  # fmt: skip
    assert "cannot be verified" in result.stderr


def test_the_prompts_are_the_runs(
    asked: Run, server: FakeServer, run_eval: Run, tiny: Path, data: Path, tmp_path: Path
) -> None:
    from ahn.checkpoints.tokenizer import load_tokenizer

    assert asked().exit_code == 0
    texts = {content["prompt"] for content in questions(server)}
    server.seen.clear()
    assert asked("-o", tmp_path / "ids", variant="endpoint:prompt=ids,name=ids").exit_code == 0
    ids = [content["prompt"] for content in questions(server)]
    tokenizer = load_tokenizer(tiny)
    assert len(texts) == len(ids) == 8
    assert {tuple(tokenizer(text).input_ids) for text in texts} == {tuple(each) for each in ids}
    assert all(text.startswith("<|user|>") and text.endswith("<|assistant|>") for text in texts)


def test_what_a_server_does_not_tell_is_not_made_up(
    asked: Run, server: FakeServer, tmp_path: Path
) -> None:
    server.usual = answer("7", None, usage={"prompt_tokens": "9", "completion_tokens": True})
    assert asked(variant="endpoint:stream=false,name=endpoint").exit_code == 0
    for record in records(tmp_path / "run"):
        for unknown in ("generated_tokens", "prefill_seconds", "decode_seconds", "finish_reason"):
            assert record[unknown] is None
        assert "reused_prefix_tokens" not in record
    assert not any("stream" in content for content in questions(server))
    assert info(tmp_path / "run")["models"]["endpoint"]["tells_token_counts"] is False


@pytest.mark.parametrize(
    ("finish", "choice", "stop", "told"),
    [
        ("length", {}, ["x"], "length"),
        ("stop", {}, [], "eos"),
        ("stop", {}, ["x"], None),
        ("stop", {"stop_reason": None}, ["x"], "eos"),
        ("stop", {"stop_reason": 4}, ["x"], "eos"),
        ("stop", {"stop_reason": "x"}, ["x"], "stop"),
        ("stop", {"matched_stop": "x"}, ["x"], "stop"),
        ("eos_token", {}, ["x"], "eos"),
        ("stop_sequence", {}, ["x"], "stop"),
        ("content_filter", {}, [], "content_filter"),
    ],
)
def test_why_an_answer_ended(
    server: FakeServer, tokenizer: Any, finish: str, choice: Any, stop: list[str], told: str | None
) -> None:
    server.usual = answer("7", finish, choice=choice)
    assert ask(server, tokenizer, stop=stop).finish_reason == told


def ask(
    server: FakeServer, tokenizer: Any, variant: str = "endpoint", stop: Any = (), **settings: Any
) -> Any:
    run = RunSettings(model="served", endpoint=server.url)
    backend = EndpointBackend(parse_request(variant), run)
    reader = backend.open(tokenizer, 0)
    ids = np.asarray(tokenizer("what is seven ?").input_ids, dtype=np.int32)
    config = GenerationConfig(max_new_tokens=5, eos_token_id=256, **settings)
    return reader.read(ids[:4]).ask(Question(ids[4:], config, stop, seed=11), last=True)


def test_an_answer_ends_before_the_first_stop_text(server: FakeServer, tokenizer: Any) -> None:
    server.usual = answer("seven\n\nWhat", "length")
    said = ask(server, tokenizer, stop=["\n", "W"])
    assert (said.text, said.finish_reason) == ("seven", "stop")
    assert server.seen[-1].content["stop"] == ["\n", "W"]
    assert ask(server, tokenizer, "endpoint:omit=stop", stop=["\n"]).text == "seven"
    assert "stop" not in server.seen[-1].content


def test_the_key_is_not_recorded_where_a_server_repeats_it(
    server: FakeServer, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server.script.append(answer("7"))
    server.usual = answer(f"you are {SECRET}")
    with pytest.raises(http_client.EndpointError, match="not recorded"):
        ask(server, tokenizer)


class TestSettings:
    """The protocol's generation settings as fields of a request."""

    @pytest.mark.parametrize(
        ("given", "sent"),
        [
            ({}, {"temperature": 0}),
            ({"temperature": 0.7, "top_p": 0.8}, {"temperature": 0}),
            (
                {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0},
                {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0},
            ),
            ({"do_sample": True}, {"temperature": 1.0}),
            ({"repetition_penalty": 1.05}, {"temperature": 0, "repetition_penalty": 1.05}),
            ({"repetition_penalty": 1.0}, {"temperature": 0}),
            ({"min_new_tokens": 1}, {"temperature": 0, "min_tokens": 1}),
        ],
    )
    def test_what_is_sent(self, tokenizer: Any, given: Any, sent: Any) -> None:
        config = GenerationConfig(max_new_tokens=5, eos_token_id=256)
        config.update(**given)
        assert sent_settings(config, [], tokenizer).fields == {"max_tokens": 5, **sent}

    @pytest.mark.parametrize(
        "given",
        [
            {"num_beams": 4}, {"no_repeat_ngram_size": 3}, {"bad_words_ids": [[3]]},
            {"suppress_tokens": [3]}, {"encoder_repetition_penalty": 1.2},
        ],
    )  # fmt: skip
    def test_what_no_field_stands_for_is_refused(self, tokenizer: Any, given: Any) -> None:
        config = GenerationConfig(max_new_tokens=5, **given)
        with pytest.raises(InputError, match=f"{next(iter(given))} .*cannot be asked of a server"):
            sent_settings(config, [], tokenizer)

    def test_extensions_are_told_and_can_be_left_out(self, tokenizer: Any) -> None:
        config = GenerationConfig(max_new_tokens=5, repetition_penalty=1.3, min_new_tokens=1)
        sent = sent_settings(config, [], tokenizer)
        assert [n for n in sent.notices if "repetition_penalty 1.3, min_tokens 1: sent" in n]
        sent = sent_settings(config, [], tokenizer, omit=["repetition_penalty", "top_k"])
        assert sent.fields == {"max_tokens": 5, "temperature": 0, "min_tokens": 1}
        assert [n for n in sent.notices if n.startswith("repetition_penalty: not sent")]

    def test_a_stop_token_of_the_protocol_is_sent_as_its_text(self, tokenizer: Any) -> None:
        newline = tokenizer("\n").input_ids[-1]
        config = GenerationConfig(max_new_tokens=5, eos_token_id=[256, newline])
        sent = sent_settings(config, ["Q:"], tokenizer)
        assert sent.fields["stop"] == sent.stop == ["Q:", "\n"]
        assert [n for n in sent.notices if r"at the token '\n'" in n]
        assert sent_settings(config, [], tokenizer, own_stops=[newline]).stop == []

    def test_a_seed_is_sent_where_something_is_drawn(
        self, server: FakeServer, tokenizer: Any
    ) -> None:
        ask(server, tokenizer, do_sample=True, temperature=0.5)
        assert server.seen[-1].content["seed"] == 11
        ask(server, tokenizer, "endpoint:omit=seed", do_sample=True, temperature=0.5)
        assert "seed" not in server.seen[-1].content


def test_the_plan_says_what_a_server_is_told(
    asked: Run, server: FakeServer, tiny: Path, tmp_path: Path
) -> None:
    """The tiny model's own files have a repetition penalty, and samsum stops at a newline."""
    result = asked("--model", tiny, "--tasks", "samsum,hotpotqa", "--dry-run")
    assert result.exit_code == 0 and not server.seen and not server.got
    said = " ".join(result.stdout.split())
    assert re.search(r"repetition_penalty 1.3: sent, but .* \(hotpotqa\)", said)
    assert r"at the token '\n'" in said and "min_tokens 1" in said
    server.pages["/v1/models"] = refusal(200, json.dumps({"data": [{"id": str(tiny)}]}).encode())
    assert asked("--model", tiny, "--tasks", "samsum,hotpotqa").exit_code == 0
    told = info(tmp_path / "run")["generation"]["endpoint"]
    assert told["repetition_penalty"] == 1.3 and told["per_task"]["samsum"]["stop"] == ["\n"]
    sent = Counter(json.dumps(c.get("stop")) for c in questions(server))
    assert sent == {"null": 8, '["\\n"]': 2}


class TestRefused:
    """What can be known without the server is found by --dry-run."""

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--model", "m"], "--endpoint: needed by endpoint"),
            (["--endpoint", "http://h:1"], "--model: needed by endpoint"),
            (["--model", "m", "--endpoint", "localhost:8000"], "--endpoint: must be http://"),
            (["--model", "m", "--endpoint", "ftp://h"], "--endpoint: must be http://"),
            (["--model", "m", "--endpoint", "http://"], "--endpoint: must be http://"),
            (["--model", "m", "--endpoint", "http://h:port"], "--endpoint: this is no URL"),
            (["--model", "m", "--endpoint", "http://h:0"], "--endpoint: must be http://"),
            (["--model", "m", "--endpoint", "http://h h"], "--endpoint: a URL has no spaces"),
            (["--model", "m", "--endpoint", "http://h?key=7"], "without '?'"),
        ],
    )
    def test_urls_and_names(self, asked: Run, tiny: Path, words: list[str], said: str) -> None:
        result = asked(*words, "--tokenizer", tiny, "--dry-run", given=False)
        assert result.exit_code == 2 and said in result.stderr, result.output
        assert "Traceback" not in result.output

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ("concurrency=0", "concurrency: '0' is not a whole number from 1 to 1,024"),
            ("concurrency=many", "concurrency: 'many' is not a whole"),
            ("timeout=0", "timeout: '0' is not a number of seconds"),
            ("timeout=nan", "timeout: 'nan' is not a number of seconds"),
            ("tries=0", "tries: '0' is not"),
            ("stream=yes", "stream: 'yes' is none of true, false"),
            ("prompt=words", "prompt: 'words' is none of text, ids"),
            ("api=chat", "prompts carry the chat template already"),
            ("omit=temperature", "omit: 'temperature' is none of top_k"),
            ("url=ftp://h", "url: must be http://"),
            ("temprature=1", "has no option 'temprature' (known: url, model"),
        ],
    )
    def test_options(self, asked: Run, options: str, said: str) -> None:
        result = asked("--dry-run", variant=f"endpoint:{options},name=endpoint")
        assert result.exit_code == 2 and said in result.stderr, result.output

    @pytest.mark.parametrize(
        ("words", "variant"),
        [
            (["--endpoint", f"http://me:{SECRET}@h:1"], "endpoint"),
            ([], f"endpoint:url=http://me:{SECRET}@h:1"),
            ([], f"endpoint:api_key={SECRET}"),
            ([], f"endpoint:key={SECRET},concurrency=0"),
            (["--endpoint", f"http://h:1?api_key={SECRET}"], "endpoint"),
            (["--endpoint", f"http://me:{SECRET}@h:1"], "full"),
        ],
    )
    def test_a_key_that_is_written_down_is_not_repeated(
        self, asked: Run, tmp_path: Path, words: list[str], variant: str
    ) -> None:
        result = asked(*words, variant=variant)
        assert result.exit_code == 2 and SECRET not in result.output + result.stderr
        assert not (tmp_path / "run").exists()

    def test_a_key_that_cannot_be_sent(self, asked: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AHN_BENCH_API_KEY", "sk-se\ncret")
        result = asked("--dry-run")
        assert result.exit_code == 2 and "AHN_BENCH_API_KEY: holds a space" in result.stderr

    def test_a_model_that_is_not_here_needs_a_tokenizer(self, asked: Run, tmp_path: Path) -> None:
        words = ["--endpoint", "http://127.0.0.1:1", "--model", "served-name", "--dry-run"]
        result = asked(*words, given=False)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert "--tokenizer: needed, since nothing here tells that of --model served-name" in (
            result.stderr
        )

    def test_a_local_variant_still_needs_the_model(self, asked: Run) -> None:
        result = asked("--variant", "full", "--dry-run")
        assert result.exit_code == 2 and "served: no such folder" in result.stderr

    def test_a_server_that_no_variant_asks_is_told(self, asked: Run, tiny: Path) -> None:
        result = asked("--model", tiny, "--dry-run", variant="full")
        assert result.exit_code == 0 and "--endpoint: none of the variants asks it" in result.stdout


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("https://a.example/api/v1/", "https://a.example/api/v1"),
        ("https://a.example/v1/completions", "https://a.example/v1"),
        ("https://a.example/v1/chat/completions", "https://a.example/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_urls_as_people_write_them(given: str, url: str) -> None:
    assert server_url(given) == url


def test_the_server_alone_can_be_asked_without_naming_the_variant(
    run_eval: Run, server: FakeServer, tiny: Path, data: Path, tmp_path: Path
) -> None:
    result = run_eval(
        "longbench", "--data", data, "--tasks", "hotpotqa", "--max-length", 600, "--limit", 1,
        "--endpoint", server.url, "--model", "served", "--tokenizer", tiny, "--no-report",
        "-o", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0 and len(records(tmp_path / "run")) == 1


def test_two_servers_and_a_local_model_in_one_run(
    run_eval: Run, server: FakeServer, tiny: Path, data: Path, tmp_path: Path
) -> None:
    with FakeServer() as other:
        result = run_eval(
            "longbench", "--data", data, "--tasks", "hotpotqa", "--limit", 2, "--max-length", 600,
            "--model", tiny, "--endpoint", server.url, "--device", "cpu", "--no-report",
            "--variant", "full", "--variant", "endpoint:model=a,name=one",
            "--variant", f"endpoint:url={other.url},model=b,name=two", "-o", tmp_path / "run",
            "--in-turns",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert {seen.content["model"] for seen in server.seen} == {"a"}
        assert {seen.content["model"] for seen in other.seen} == {"b"}
    assert all(len(records(tmp_path / "run", name)) == 2 for name in ("full", "one", "two"))


class TestGreeting:
    """A wrong address, name or key is found before anything is asked."""

    def refused(self, asked: Run, server: FakeServer, tmp_path: Path, posts: int) -> str:
        result = asked()
        assert result.exit_code == 2 and "Traceback" not in result.output
        assert len(server.seen) == posts and not records(tmp_path / "run")
        text: str = result.stderr
        return text

    def test_a_model_that_the_server_does_not_have(
        self, asked: Run, server: FakeServer, tmp_path: Path
    ) -> None:
        server.pages["/v1/models"] = refusal(200, b'{"data": [{"id": "right"}]}')
        server.usual = refusal(404, b'{"error": {"message": "The model `served` does not exist."}}')
        said = self.refused(asked, server, tmp_path, 1)
        assert "'served' does not answer (it has: right): 404 Not Found: The model" in said

    def test_a_server_that_answers_by_another_model(
        self, asked: Run, server: FakeServer, tmp_path: Path
    ) -> None:
        server.pages["/v1/models"] = refusal(200, b'{"data": [{"id": "right"}]}')
        assert "has no model 'served' (it has: right)" in self.refused(asked, server, tmp_path, 1)

    def test_a_server_that_lists_other_models_than_it_serves(
        self, asked: Run, server: FakeServer
    ) -> None:
        server.pages["/v1/models"] = refusal(200, b'{"data": [{"id": "in/the-cache"}]}')
        server.usual = events({**completion("7"), "model": "served@main"}, done=False)
        assert asked().exit_code == 0

    @pytest.mark.parametrize(
        "page",
        [
            refusal(200, b"oh"), refusal(200, b"[]"), refusal(200, b'{"data": 7}'),
            refusal(200, b'{"data": [7, {}]}'), refusal(500), refusal(302), raw(), events(),
        ],
    )  # fmt: skip
    def test_a_list_of_models_that_cannot_be_had(
        self, asked: Run, server: FakeServer, tmp_path: Path, page: Any
    ) -> None:
        server.pages |= dict.fromkeys(("/v1/models", "/version", "/info"), page)
        assert asked().exit_code == 0
        told = info(tmp_path / "run")["models"]["endpoint"]["models_listed"]
        assert told.startswith("not told: ")

    @pytest.mark.parametrize("key", [None, SECRET])
    def test_a_key_that_is_not_accepted(
        self, asked: Run, server: FakeServer, tmp_path: Path, monkeypatch: Any, key: str | None
    ) -> None:
        if key:
            monkeypatch.setenv("OPENAI_API_KEY", key)
        server.usual = refusal(401, b"who ?", "text/plain")
        said = self.refused(asked, server, tmp_path, 1)
        assert "401 Unauthorized: who ?" in said
        assert ("the key of OPENAI_API_KEY" if key else "set AHN_BENCH_API_KEY") in said

    def test_ids_where_only_text_is_taken(self, asked: Run, server: FakeServer) -> None:
        server.usual = refusal(400, b'{"detail": "prompt must be a string."}')
        result = asked(variant="endpoint:prompt=ids,name=endpoint")
        assert result.exit_code == 2 and "endpoint:prompt=text sends text" in result.stderr

    def test_a_field_that_the_server_does_not_know(
        self, asked: Run, server: FakeServer, tiny: Path, tmp_path: Path
    ) -> None:
        """As transformers serve: found with the first request, not with every example."""

        def strict(handler: Any) -> None:
            unknown = {"repetition_penalty"} & handler.content.keys()
            reply = refusal(422, b'{"detail": "Unexpected fields"}') if unknown else answer("7")
            reply(handler)

        server.usual = strict
        result = asked("--model", tiny)
        assert result.exit_code == 2 and "422 Unprocessable Entity: Unexpected" in result.stderr
        assert "endpoint:omit=repetition_penalty leaves out" in result.stderr
        variant = "endpoint:omit=repetition_penalty,name=endpoint"
        assert asked("--model", tiny, "--overwrite", variant=variant).exit_code == 0
        assert "repetition_penalty" not in info(tmp_path / "run")["generation"]["endpoint"]

    def test_nobody_there(self, run_eval: Run, asked: Run, tmp_path: Path, server: Any) -> None:
        variant = "endpoint:tries=2,url=http://127.0.0.1:9,name=endpoint"
        result = asked(variant=variant)
        assert result.exit_code == 2 and "connection refused" in result.stderr
        assert info(tmp_path / "run")["status"] == "interrupted"
        assert asked(variant="endpoint:tries=2,name=endpoint").exit_code == 0, "it has moved"


def test_the_key_is_nowhere_in_the_run(
    asked: Run, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AHN_BENCH_API_KEY", SECRET)
    page = json.dumps({"data": [{"id": "served"}, {"id": SECRET}], "version": SECRET}).encode()
    server.pages |= {path: refusal(200, page) for path in ("/v1/models", "/version")}
    said: Any = {"system_fingerprint": SECRET, "model": SECRET}
    server.script.append(answer("7", **said))
    server.script.extend([refusal(500, f"bad key {SECRET}".encode(), Server=SECRET)] * 3)
    server.script.extend([answer(f"the key is {SECRET}")] * 3)
    result = asked(variant="endpoint:tries=1,name=endpoint")
    assert result.exit_code == 1 and SECRET not in result.output + result.stderr
    assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {SECRET}"}
    errors = [r["error"] for r in records(tmp_path / "run") if r["error"]]
    assert len(errors) == 6 and sum("bad key ***" in error for error in errors) == 3
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    assert "the key of AHN_BENCH_API_KEY is sent to 127.0.0.1" in result.stderr


@pytest.mark.parametrize(
    ("url", "warned"),
    [("http://h.example", True), ("https://h.example", False), ("http://[::1]:80", False)],
)
def test_a_key_that_would_be_sent_unencrypted_is_told(
    monkeypatch: pytest.MonkeyPatch, url: str, warned: bool
) -> None:
    monkeypatch.setenv("AHN_BENCH_API_KEY", SECRET)
    made = EndpointBackend(parse_request("endpoint"), RunSettings(model="m", endpoint=url))
    assert any("unencrypted" in notice for notice in made.notices) == warned


class TestFailures:
    def test_an_example_that_fails_is_recorded_and_tried_by_the_next_start(
        self, asked: Run, server: FakeServer, tmp_path: Path
    ) -> None:
        server.script.append(answer("7"))
        server.script.extend([refusal(503, b'{"error": "busy"}')] * 4)
        result = asked(variant="endpoint:tries=2,concurrency=1,name=endpoint")
        assert result.exit_code == 1
        errors = [r["error"] for r in records(tmp_path / "run") if r["error"]]
        assert errors == ["EndpointError: 503 Service Unavailable: busy (2 tries)"] * 2
        again = asked(variant="endpoint:tries=3,concurrency=8,name=endpoint")
        assert again.exit_code == 0 and "continuing: 6 of 8" in again.stderr
        assert not any(r["error"] for r in records(tmp_path / "run"))

    @pytest.mark.parametrize("concurrency", [1, 4])
    def test_a_server_that_dies_stops_the_run(
        self, asked: Run, server: FakeServer, tmp_path: Path, concurrency: int
    ) -> None:
        server.script.extend([answer("7")] * 3)
        server.usual = raw()
        variant = f"endpoint:tries=1,concurrency={concurrency},name=endpoint"
        result = asked("--max-errors", 1, variant=variant)
        assert result.exit_code == 1
        assert "stopped: endpoint: 2 examples failed, more than --max-errors 1" in result.stderr
        found = records(tmp_path / "run")
        whole = sum(r["error"] is None for r in found)  # one more answered the greeting
        assert whole == 2 if concurrency == 1 else whole <= 2, "what is under way is given up"
        assert info(tmp_path / "run")["status"] == "interrupted"
        server.usual = answer("7")
        assert asked(variant=variant).exit_code == 0
        assert len(records(tmp_path / "run")) == 8

    def test_what_was_asked_for_one_is_not_another_run(
        self, asked: Run, server: FakeServer
    ) -> None:
        assert asked().exit_code == 0
        result = asked(variant="endpoint:prompt=ids,name=endpoint")
        assert result.exit_code == 2 and "prompt text there, ids here" in result.stderr
        result = asked("--model", "other")
        assert result.exit_code == 2 and "model served there, other here" in result.stderr


class TestAtOnce:
    def test_as_many_as_are_allowed(self, asked: Run, server: FakeServer, tmp_path: Path) -> None:
        server.usual = answer("7", wait=0.05)
        assert asked(variant="endpoint:concurrency=5,name=endpoint").exit_code == 0
        assert server.most_at_once == 5
        found = records(tmp_path / "run")
        assert len({r["example_id"] for r in found}) == len(found) == 8
        assert not any(r["error"] for r in found)

    def test_one_by_one(self, asked: Run, server: FakeServer) -> None:
        server.usual = answer("7", wait=0.01)
        assert asked(variant="endpoint:concurrency=1,name=endpoint").exit_code == 0
        assert server.most_at_once == 1

    def test_every_question_has_its_own_answer(
        self, asked: Run, server: FakeServer, tmp_path: Path
    ) -> None:
        def usual(handler: Any) -> None:
            prompt = handler.content["prompt"]
            number = re.findall(r"What does paragraph (\d+) tell", prompt)
            time.sleep(0.01 * (int(number[0]) % 3) if number else 0)
            answer(f"paragraph {number}")(handler)

        server.usual = usual
        assert asked(variant="endpoint:concurrency=6,name=endpoint").exit_code == 0
        for record in records(tmp_path / "run"):
            number = record["example_id"].removeprefix("row")
            assert record["prediction"] == f"paragraph ['{number}']"

    def test_what_is_answered_when_a_run_is_interrupted_is_recorded(
        self, asked: Run, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: Any) -> None:
            while len(server.seen) < 9 or server.under_way:
                time.sleep(0.01)
            time.sleep(0.2)  # the last answer is on its way
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("evaluation.run.progress.RunProgress.example_done", interrupted)
            result = asked(variant="endpoint:concurrency=8,name=endpoint")
        assert result.exit_code == 130 and len(records(tmp_path / "run")) == 8
        assert info(tmp_path / "run")["status"] == "interrupted"
        assert asked(variant="endpoint:concurrency=8,name=endpoint").exit_code == 0
        assert len(server.seen) == 9, "nothing was left to ask"

    @pytest.mark.parametrize(
        ("number", "code", "concurrency"),
        [(signal.SIGINT, 130, 4), (signal.SIGTERM, 143, 4), (signal.SIGINT, 130, 1)],
    )
    def test_a_signal_ends_it_at_once_and_loses_nothing(
        self, asked: Run, server: FakeServer, tiny: Path, data: Path, tmp_path: Path,
        number: int, code: int, concurrency: int,
    ) -> None:  # fmt: skip
        server.script.extend([answer("7")] * 4)  # the greeting and three questions
        server.usual = raw(hang=True)
        words = [
            "longbench", "--data", data, "--tasks", "hotpotqa", "--max-length", 600,
            "--variant", f"endpoint:concurrency={concurrency},name=endpoint", "--no-report",
            "-o", tmp_path / "run", "--endpoint", server.url, "--model", "served",
            "--tokenizer", tiny,
        ]  # fmt: skip
        process = start_fork(run_in_fork, [str(word) for word in words], output=tmp_path / "said")
        deadline = time.monotonic() + 60
        while len(server.seen) < 4 + concurrency and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert process.pid is not None
        started = time.monotonic()
        os.kill(process.pid, number)
        process.join(30)
        said = (tmp_path / "said").read_text()
        assert process.exitcode == code and "Traceback" not in said, said
        assert time.monotonic() - started < 10
        found = records(tmp_path / "run")
        assert [r["prediction"] for r in found] == ["7"] * 3
        assert info(tmp_path / "run")["status"] == "interrupted"
        server.usual = answer("8")
        again = asked()
        assert again.exit_code == 0 and "continuing: 3 of 8" in again.stderr
        assert Counter(r["prediction"] for r in records(tmp_path / "run")) == {"7": 3, "8": 5}


def run_in_fork(arguments: list[str]) -> None:
    sys.argv = ["run_eval", *arguments]
    main()


def test_its_page_names_every_option_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    told = {name: default.strip("`") for name, default in rows}
    assert list(told) == [each.name for each in fields(Options)]
    for each in fields(Options):
        if each.name not in ("url", "model", "omit"):
            assert (
                told[each.name] == f"{each.default:g}"
                if each.name == "timeout"
                else (told[each.name] == str(each.default).lower())
            )


class TestTexts:
    """What the server's tokenizer adds to a text is not sent with it."""

    def test_nothing_is_added(self, tokenizer: Any) -> None:
        assert _added_to_texts(tokenizer) == ([], [])

    def test_a_first_token_of_a_small_vocabulary(self) -> None:
        """Most words are none of the embedded model's, so that nothing comes of them."""
        from ahn.checkpoints.tokenizer import load_tokenizer

        tokenizer = load_tokenizer("pocket")
        assert tokenizer("Hello").input_ids == [tokenizer.bos_token_id]
        assert _added_to_texts(tokenizer) == ([tokenizer.bos_token_id], [])

    def test_a_first_and_a_last_token(self, tmp_path: Path, server: FakeServer) -> None:
        from tokenizers.processors import TemplateProcessing
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer(tmp_path))
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|user|> $A <|end|>", special_tokens=[("<|user|>", 257), ("<|end|>", 256)]
        )
        assert _added_to_texts(tokenizer) == ([257], [256])
        ask(server, tokenizer)
        assert server.seen[-1].content["prompt"] == "what is seven ?"
        ask(server, tokenizer, "endpoint:prompt=ids")
        assert server.seen[-1].content["prompt"] == tokenizer("what is seven ?").input_ids
