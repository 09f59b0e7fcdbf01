"""A server may fail in every way: what may pass is tried again, all else is told as it is."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from common.errors import InputError
from evaluation.backends.endpoint import http_client
from evaluation.backends.endpoint.backend import Completion, _completion
from evaluation.backends.endpoint.http_client import Client, EndpointError, Key
from tests.servers import FakeServer, Reply, answer, completion, events, raw, refusal, streamed

SECRET = "sk-0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def client_of(server: FakeServer, tries: int = 3, timeout: float = 5.0, key: str = "") -> Client:
    return Client(f"{server.url}/v1", Key("K" if key else None, key), timeout, tries)


def ask(client: Client) -> Completion:
    return client.request("/completions", {"prompt": "a"}, _completion)


def head(status: bytes = b"200 OK", **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}".encode() for name, value in headers.items()]
    return b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", b""])


CUT = head(Content_Type="application/json", Content_Length="400") + b'{"choices": [{"text": "7'
PASSES: dict[str, Reply] = {
    "500": refusal(500, b"oh"),
    "502 page": refusal(502, b"<html><h1>Bad gateway</h1></html>", "text/html"),
    "503": refusal(503),
    "429": refusal(429, b"{}"),
    "408": refusal(408),
    "closed": raw(),
    "cut head": raw(b"HTTP/1.1 200 OK\r\nContent-"),
    "no http": raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "cut body": raw(CUT),
    "cut chunk": raw(head(Transfer_Encoding="chunked") + b"ff\r\n{"),
    "bad chunk": raw(head(Transfer_Encoding="chunked") + b"zz\r\n{}\r\n"),
    "empty": refusal(200, b""),
    "no json": refusal(200, b"{'text': 7}"),
    "html": refusal(200, b"<html>welcome</html>", "text/html"),
    "latin-1": refusal(200, '{"choices": [{"text": "é"}]}'.encode("latin-1")),
    "deep": refusal(200, b"[" * 100_000),
    "list": refusal(200, b"[]"),
    "number": refusal(200, b"7"),
    "null": refusal(200, b"null"),
    "no choices": refusal(200, b"{}"),
    "empty choices": refusal(200, b'{"choices": []}'),
    "choices of text": refusal(200, b'{"choices": ["7"]}'),
    "choices object": refusal(200, b'{"choices": {"text": "7"}}'),
    "null text": refusal(200, b'{"choices": [{"text": null}]}'),
    "chat": refusal(200, b'{"choices": [{"message": {"content": "7"}}]}'),
    "error in 200": refusal(200, b'{"error": {"message": "overloaded"}}'),
    "aborted": answer("seve", "abort"),
    "aborted stream": streamed("seve", finish="abort"),
    "cut stream": streamed("a", "b", finish=None, usage=None, done=False),
    "stream cut in an event": raw(
        head(Content_Type="text/event-stream"), b'data: {"choices": [{"text": "7"'
    ),
    "stream without its last chunk": streamed("7", done=False, whole=False),
    "stream without finish_reason": streamed("7", finish=None),
    "empty stream": events(done=False),
    "error in stream": events(completion("a", None), {"error": "out of memory"}, done=False),
    "stream of no json": events(b"seven"),
    "stream not UTF-8": events(b'{"choices": [{"text": "\xe9", "finish_reason": "stop"}]}'),
}  # fmt: skip


@pytest.mark.parametrize("failure", PASSES.values(), ids=PASSES)
def test_what_may_pass_is_tried_again(server: FakeServer, failure: Reply) -> None:
    server.script.extend([failure, failure])
    said = ask(client_of(server))
    assert said.text == "7" and len(server.seen) == 3
    assert all(seen.content == {"prompt": "a"} for seen in server.seen)


@pytest.mark.parametrize("failure", PASSES.values(), ids=PASSES)
def test_tries_are_bounded_and_the_reason_is_told_in_a_line(
    server: FakeServer, failure: Reply
) -> None:
    server.usual = failure
    with pytest.raises(EndpointError, match=r"^\S.*\S \(2 tries\)$") as caught:
        ask(client_of(server, tries=2))
    assert len(server.seen) == 2 and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (PASSES["error in 200"], "the server says: overloaded"),
        (PASSES["error in stream"], "out of memory"),
        (PASSES["502 page"], "502 Bad Gateway: Bad gateway"),
        (PASSES["cut body"], "the reply was cut off"),
        (PASSES["cut stream"], "the stream was cut off"),
        (PASSES["stream without its last chunk"], "the reply was cut off"),
        (PASSES["latin-1"], "not UTF-8"),
        (PASSES["html"], r"not JSON \(text/html\): <html>welcome"),
        (PASSES["closed"], "closed the connection without a reply"),
        (PASSES["no http"], "no reply of an HTTP server"),
        (PASSES["chat"], "choice has no text"),
    ],
)  # fmt: skip
def test_the_reason_says_what_came(server: FakeServer, failure: Reply, said: str) -> None:
    server.usual = failure
    with pytest.raises(EndpointError, match=said):
        ask(client_of(server, tries=1))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 301, 302, 307, 308, 204])
def test_what_will_not_change_is_not_tried_again(server: FakeServer, status: int) -> None:
    body = b"" if status == 204 else b'{"error": {"message": "no such\\nmodel"}}'
    server.usual = refusal(status, body, Location="http://example.invalid/v1/completions")
    with pytest.raises(EndpointError, match=str(status)) as caught:
        ask(client_of(server))
    assert len(server.seen) == 1 and caught.value.status == status
    if status >= 400:
        assert "no such model" in str(caught.value)


def test_a_redirect_is_not_followed(server: FakeServer) -> None:
    with FakeServer() as other:
        server.usual = refusal(307, Location=f"{other.url}/v1/completions")
        with pytest.raises(EndpointError, match="redirected to http://127.0.0.1:.*not followed"):
            ask(client_of(server, key=SECRET))
        assert not other.seen and not other.got


def test_a_proxy_of_the_environment_is_not_used(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ask(client_of(server, tries=1)).text == "7"


def test_nothing_listens(server: FakeServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{free.getsockname()[1]}", Key(), 5, 2)
        with pytest.raises(EndpointError, match=r"connection refused.*\(2 tries\)"):
            ask(client)


def test_a_server_that_speaks_no_tls() -> None:
    with FakeServer() as server:
        client = Client(server.url.replace("http:", "https:"), Key(), 5, 1)
        with pytest.raises(EndpointError):
            ask(client)


HANGING = {
    "no reply": raw(hang=True),
    "half a head": raw(b"HTTP/1.1 200 OK\r\n", hang=True),
    "half a body": raw(CUT, hang=True),
    "half a stream": raw(head(Content_Type="text/event-stream"), b"data: {", hang=True),
    "slow head": raw(*[b"H"] * 200, wait=0.05),
    "slow body": raw(CUT, *[b" "] * 200, wait=0.05),
    "slow stream": events(*[completion("a", None)] * 200, wait=0.05),
    "comments": raw(head(Content_Type="text/event-stream"), *[b": alive\n\n"] * 200, wait=0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("failure", HANGING.values(), ids=HANGING)
def test_a_whole_request_has_a_time(server: FakeServer, failure: Reply) -> None:
    server.usual = failure
    started = time.monotonic()
    with pytest.raises(EndpointError, match=r"no whole reply within 0\.3 s \(2 tries\)"):
        ask(client_of(server, tries=2, timeout=0.3))
    assert time.monotonic() - started < 3


def test_a_stream_in_time_may_be_slow(server: FakeServer) -> None:
    server.usual = streamed("a", "b", "c", wait=0.02)
    said = ask(client_of(server, tries=1))
    assert said.text == "abc" and said.generated_tokens == 3 and said.prompt_tokens == 5
    assert said.first_seconds is not None and said.decode_seconds is not None
    assert said.first_seconds >= 0.02 and said.decode_seconds >= 0.04


def test_a_huge_reply_is_not_read(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MOST_BYTES", 1 << 20)
    endless = itertools.repeat(b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16)), 1000)
    server.usual = raw(head(Transfer_Encoding="chunked"), *endless)
    with pytest.raises(EndpointError, match="longer than 1 MiB"):
        ask(client_of(server, tries=1))
    monkeypatch.setattr(http_client, "_MOST_EVENT_BYTES", 1 << 16)
    server.usual = raw(head(Content_Type="text/event-stream"), b"data: " + b"7" * (1 << 17))
    with pytest.raises(EndpointError, match="an event is longer than"):
        ask(client_of(server, tries=1))
    server.usual = refusal(500, b"x" * (1 << 20))
    with pytest.raises(EndpointError, match="500 Internal Server Error: x+[.]{3}$"):
        ask(client_of(server, tries=1))


def test_a_refusal_of_a_body_that_was_not_read_is_told(server: FakeServer) -> None:
    """As of a prompt that is too long: the server answers while it is still being sent."""
    listening = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(100)
            connection.sendall(head(b"413 Payload Too Large", Content_Length="0"))
            connection.shutdown(socket.SHUT_WR)
            time.sleep(0.2)

    threading.Thread(target=refuse, daemon=True).start()
    client = Client(f"http://127.0.0.1:{listening.getsockname()[1]}", Key(), 5, 1)
    with pytest.raises(EndpointError, match=r"413|connection|pipe|reset"):
        client.request("/completions", {"prompt": "a" * (1 << 24)}, _completion)


def pauses_of(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, first: float = 0.5, **headers: str
) -> list[float]:
    """The pauses that a client makes, which is not kept waiting."""
    monkeypatch.setattr(http_client, "FIRST_PAUSE_SECONDS", first)
    server.usual = refusal(429, b"", **headers)
    client, waited = client_of(server, tries=9), list[float]()
    monkeypatch.setattr(client._closed, "wait", lambda seconds: waited.append(seconds))
    with pytest.raises(EndpointError, match=r"429 Too Many Requests \(9 tries\)"):
        ask(client)
    return waited


def test_pauses_grow_and_differ(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = pauses_of(server, monkeypatch)
    assert len(waited) == 8 and max(waited) <= http_client.LONGEST_PAUSE_SECONDS
    for number, pause in enumerate(waited):
        assert 0.25 * 2**number <= pause <= 0.5 * 2**number
    assert pauses_of(server, monkeypatch) != waited


@pytest.mark.parametrize(
    ("said", "low", "high"),
    [
        ("7", 7, 7.1), ("0", 0, 0.1), ("1.5", 1.5, 1.6), ("-3", 0, 0.1), ("100000", 60, 60),
        ("soon", 0, 0.1), ("nan", 0, 0.1), ("inf", 0, 0.1), ("", 0, 0.1),
    ],
)  # fmt: skip
def test_retry_after_is_honoured_within_bounds(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, said: str, low: float, high: float
) -> None:
    waited = pauses_of(server, monkeypatch, first=0.001, Retry_After=said)
    assert all(low <= pause <= high for pause in waited[:3]), waited


def test_retry_after_may_be_a_date(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    waited = pauses_of(server, monkeypatch, first=0.001, Retry_After=then)
    assert all(20 < pause < 31 for pause in waited[:3])


def test_closing_ends_what_is_under_way_and_what_waits(server: FakeServer) -> None:
    server.usual = raw(hang=True)
    client, told = client_of(server, timeout=60), list[str]()

    def waits() -> None:
        try:
            ask(client)
        except EndpointError as error:
            told.append(str(error))

    threads = [threading.Thread(target=waits, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(server.seen) < 3:
        time.sleep(0.01)
    started = time.monotonic()
    client.close()
    for thread in threads:
        thread.join(10)
    assert told == ["the connection was given up"] * 3 and time.monotonic() - started < 5
    with pytest.raises(EndpointError, match="given up"):
        ask(client)
    assert len(server.seen) == 3


class TestKey:
    def test_it_is_shown_to_the_server_and_hidden_in_messages(self, server: FakeServer) -> None:
        server.usual = refusal(401, f'{{"error": {{"message": "no key {SECRET}"}}}}'.encode())
        with pytest.raises(EndpointError, match=r"401 Unauthorized: no key \*\*\*") as caught:
            ask(client_of(server, key=SECRET))
        assert server.seen[0].headers["authorization"] == f"Bearer {SECRET}"
        assert SECRET not in str(caught.value) and SECRET not in repr(Key("K", SECRET))

    def test_without_one_nothing_is_sent(self, server: FakeServer) -> None:
        ask(client_of(server))
        assert "authorization" not in server.seen[0].headers

    def test_a_made_up_one_may_stand_in_any_text(self) -> None:
        assert not Key("K", "EMPTY").is_in("is it EMPTY ?")

    @pytest.mark.parametrize(
        ("values", "variable", "secret"),
        [
            ({}, None, ""),
            ({"OPENAI_API_KEY": "b"}, "OPENAI_API_KEY", "b"),
            ({"OPENAI_API_KEY": "b", "AHN_BENCH_API_KEY": " a\n"}, "AHN_BENCH_API_KEY", "a"),
            ({"OPENAI_API_KEY": "b", "AHN_BENCH_API_KEY": ""}, "OPENAI_API_KEY", "b"),
        ],
    )
    def test_it_is_read_from_the_environment(
        self, monkeypatch: pytest.MonkeyPatch, values: Any, variable: str | None, secret: str
    ) -> None:
        for name in http_client.KEY_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        assert Key.from_environment() == Key(variable, secret)

    @pytest.mark.parametrize("secret", ["sk-secret\nX-More: 1", "sk secret", "sk-sécret"])
    def test_one_that_cannot_be_sent_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, secret: str
    ) -> None:
        monkeypatch.setenv("AHN_BENCH_API_KEY", secret)
        with pytest.raises(InputError, match="AHN_BENCH_API_KEY: holds") as caught:
            Key.from_environment()
        assert "cret" not in str(caught.value)


def test_a_plain_reply_to_a_client_that_asked_for_a_stream(server: FakeServer) -> None:
    server.usual = answer("7", usage={"prompt_tokens": 3, "completion_tokens": 1})
    said = ask(client_of(server))
    assert (said.text, said.prompt_tokens, said.generated_tokens) == ("7", 3, 1)
    assert said.first_seconds is None and said.decode_seconds is None
