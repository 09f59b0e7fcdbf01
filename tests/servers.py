"""Servers on this machine: one that answers, and fails, as it is told; transformers' own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: Any


Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the server's script."""

    server: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._reply()

    def do_POST(self) -> None:
        self._reply()

    def _reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.content = json.loads(body) if body else None
        seen = Seen(self.command, self.path, headers, self.content)
        reply = self.server.next_reply(seen)
        try:
            reply(self)
        except OSError:
            pass  # the other side has gone
        finally:
            self.close_connection = True
            self.server.finished()

    def send(self, status: int, body: bytes, kind: str = "application/json", **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


class FakeServer(ThreadingHTTPServer):
    """A context manager; `url` says where it is.

    Attributes:
        script: replies to the next posts, in order; then `usual` answers.
        usual: answers a post.
        pages: replies to GET, by path.
        seen: the posts that came.
        most_at_once: posts that were under way together.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, *script: Reply) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: deque[Reply] = deque(script)
        self.usual: Reply = answer("7")
        self.pages: dict[str, Reply] = {}
        self.seen: list[Seen] = []
        self.got: list[Seen] = []
        self.under_way = self.most_at_once = 0
        self.open = threading.Event()  # hanging replies end
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        pass

    def next_reply(self, seen: Seen) -> Reply:
        with self._lock:
            self.under_way += 1
            if seen.method == "GET":
                self.got.append(seen)
                return self.pages.get(seen.path, refusal(404, b'{"detail": "Not Found"}'))
            self.seen.append(seen)
            self.most_at_once = max(self.most_at_once, self.under_way)
            return self.script.popleft() if self.script else self.usual

    def finished(self) -> None:
        with self._lock:
            self.under_way -= 1


def completion(text: str, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    """What a server says."""
    choice = {"index": 0, "text": text, "finish_reason": finish, **more.pop("choice", {})}
    return {"object": "text_completion", "model": "served", "choices": [choice], **more}


def answer(text: str, finish: str | None = "stop", wait: float = 0, **more: Any) -> Reply:
    """One whole reply."""

    def reply(handler: Handler) -> None:
        time.sleep(wait)
        handler.send(200, json.dumps(completion(text, finish, **more)).encode())

    return reply


def refusal(status: int, body: bytes = b"", kind: str = "application/json", **more: str) -> Reply:
    """A reply of any status."""
    return lambda handler: handler.send(status, body, kind, **more)


def raw(*pieces: bytes, wait: float = 0.0, hang: bool = False) -> Reply:
    """Bytes as they are, then silence."""

    def reply(handler: Handler) -> None:
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(wait)
        if hang:
            handler.server.open.wait(60)
        else:
            handler.connection.shutdown(socket.SHUT_RDWR)

    return reply


def events(*values: Any, done: bool = True, wait: float = 0.0, whole: bool = True) -> Reply:
    """A stream (chunked), each value as an event; without its last chunk unless `whole`."""
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    lines = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    lines += [b"[DONE]"] if done else []
    chunks = [b"data: " + line + b"\n\n" for line in lines]
    pieces = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
    return raw(head, *pieces, b"0\r\n\r\n" if whole else b"", wait=wait)


def streamed(*texts: str, finish: str | None = "stop", **options: Any) -> Reply:
    """An answer in pieces, then its token counts, as vLLM sends them."""
    usage = options.pop("usage", {"prompt_tokens": 5, "completion_tokens": len(texts)})
    values = [completion(text, None) for text in texts]
    if finish is not None:
        values.append(completion("", finish))
    if usage is not None:
        values.append({"choices": [], "usage": usage})
    return events(*values, **options)


@contextmanager
def running_server(command: list[str]) -> Iterator[str]:
    """`python COMMAND` as a server on a free port of this machine; its URL.

    The command ends with arguments of `transformers serve`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=60).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, process.stdout and process.stdout.read()
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=60)
