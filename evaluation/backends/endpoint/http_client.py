"""A client of HTTP servers that may fail in every way: bounded, patient, and discreet.

Every request has a connection of its own, a time in which all of it must be done, and a bound on
what is read. What may be better the next time (no connection, 408, 429, 5xx, a reply that is cut or
no reply at all) is tried again, each time after a longer pause. Redirects are not followed and
proxies are not used: either would hand the key and the prompts to somebody else. The key is read
from the environment and stands in no message.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from common.errors import InputError

T = TypeVar("T")

KEY_VARIABLES = ("AHN_BENCH_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first that is set counts."""
CONNECT_SECONDS = 30.0
"""The longest that a connection may take to be made."""
FIRST_PAUSE_SECONDS = 0.5
"""Before the second try, at most; twice as long before each further one."""
LONGEST_PAUSE_SECONDS = 60.0
"""Between two tries, also where the server asks for a longer one."""
MOST_BYTES = 32 << 20
"""Of a reply."""
_MOST_EVENT_BYTES = 4 << 20
_MOST_ERROR_BYTES = 1 << 16
_SHORTEST_SECRET = 8
"""Shorter keys, as `EMPTY`, are made up for servers without any; they may stand in any answer."""
_SHORTEST_HIDDEN = 4


class EndpointError(RuntimeError):
    """A request failed for good.

    Attributes:
        status: of the server's last reply; None: there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class BadReply(Exception):
    """What came back cannot be used.

    Args:
        reason: for people.
        status: of the reply.
        again: another try may help.
        pause: the server asks for, seconds.
    """

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        again: bool = True,
        pause: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.again = again
        self.pause = pause


@dataclass(frozen=True)
class Key:
    """What a server is shown to let us in.

    Attributes:
        variable: the environment variable that held it; None: none is set.
    """

    variable: str | None = None
    secret: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls) -> Key:
        """The key of the first of `KEY_VARIABLES` that is set.

        Raises:
            InputError: it cannot be sent.
        """
        for variable in KEY_VARIABLES:
            secret = os.environ.get(variable, "").strip()
            if not secret:
                continue
            if not re.fullmatch(r"[!-~]+", secret):
                raise InputError(
                    f"{variable}: holds a space, a line break or a character beyond ASCII, "
                    "which no key has"
                )
            return cls(variable, secret)
        return cls()

    def hidden(self, text: str) -> str:
        """What a server says, without the key."""
        return text.replace(self.secret, "***") if len(self.secret) >= _SHORTEST_HIDDEN else text

    def is_in(self, text: str) -> bool:
        """Whether a key that is not made up stands in `text`."""
        return len(self.secret) >= _SHORTEST_SECRET and self.secret in text


@dataclass
class Exchange:
    """A reply that was read: its JSON values, one of a plain reply, several of a stream.

    Attributes:
        values: each with the seconds from the start of the request to its arrival.
        streamed: whether it came as a stream of events.
        done: whether a stream said that it was at its end.
        headers: of the reply, names in small letters.
        seconds: from the start of the request to the end of the reply.
    """

    values: list[tuple[float, Any]]
    streamed: bool
    done: bool
    headers: Mapping[str, str]
    seconds: float

    @property
    def first(self) -> Any:
        """The first value.

        Raises:
            BadReply: there is none.
        """
        if not self.values:
            raise BadReply("the reply is empty")
        return self.values[0][1]


class Client:
    """Asks one server. Can be used from several threads at once.

    Args:
        url: as `requests.server_url` gives it.
        key: is sent with every request.
        timeout: seconds for a whole request.
        tries: how often a request is made at most.
    """

    def __init__(self, url: str, key: Key, timeout: float, tries: int) -> None:
        parts = urlsplit(url)
        self.url = url
        self.key = key
        self.timeout = timeout
        self.tries = tries
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port
        self._path = parts.path
        self._tls = ssl.create_default_context() if self._secure else None
        self._random = random.Random()  # pauses are not to follow from the run's seed
        self._closed = threading.Event()
        self._calls: set[_Call] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """End all requests that are under way, and refuse others."""
        self._closed.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.end()

    def request(
        self,
        path: str,
        content: Mapping[str, Any] | None,
        read: Callable[[Exchange], T],
        tries: int | None = None,
        timeout: float | None = None,
        root: bool = False,
    ) -> T:
        """Ask until there is an answer.

        Args:
            path: below the server's URL, `/completions`.
            content: is posted as JSON; None: GET.
            read: what is made of a reply; raises `BadReply` where nothing can be.
            tries: default: the client's.
            timeout: seconds of each try; default: the client's.
            root: the path is the host's, not below the URL's.

        Raises:
            EndpointError: there is none; the text says why, and after how many tries.
        """
        most = self.tries if tries is None else tries
        body = None if content is None else json.dumps(content).encode("utf-8")
        for number in range(1, most + 1):
            if self._closed.is_set():
                raise EndpointError("the connection was given up")
            try:
                return read(self._once(path if root else self._path + path, body, timeout))
            except BadReply as failed:
                if not failed.again or number == most:
                    after = f" ({number} tries)" if number > 1 else ""
                    reason = self.key.hidden(f"{failed}")
                    raise EndpointError(f"{reason}{after}", failed.status) from None
                self._closed.wait(self._pause(number, failed.pause))
        raise AssertionError("at least one try")

    def _pause(self, number: int, asked: float | None) -> float:
        """Seconds before the next try; requests that failed together do not come back together."""
        own = FIRST_PAUSE_SECONDS * 2 ** min(number - 1, 30) * self._random.uniform(0.5, 1)
        return min(LONGEST_PAUSE_SECONDS, own if asked is None else asked + own / 4)

    def _once(self, path: str, body: bytes | None, timeout: float | None) -> Exchange:
        """One try.

        Raises:
            BadReply: whatever went wrong.
        """
        seconds = self.timeout if timeout is None else timeout
        call = _Call(self._connection(min(seconds, CONNECT_SECONDS)), seconds)
        with self._lock:
            self._calls.add(call)
        if self._closed.is_set():
            call.end()
        try:
            with call:
                return call.exchange(path or "/", body, self._headers(body is not None))
        except (BadReply, OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            if self._closed.is_set():
                raise BadReply("the connection was given up", again=False) from None
            if isinstance(error, BadReply) and error.status is not None:
                raise
            if call.is_late:
                raise BadReply(f"no whole reply within {seconds:g} s") from None
            raise error if isinstance(error, BadReply) else BadReply(_reason(error)) from None
        finally:
            with self._lock:
                self._calls.discard(call)

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout, context=self._tls
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)

    def _headers(self, posts: bool) -> dict[str, str]:
        headers = {
            "Accept": "application/json, text/event-stream",
            "Accept-Encoding": "identity",
            "Connection": "close",
            "User-Agent": "ahn-bench",
        }
        if posts:
            headers["Content-Type"] = "application/json"
        if self.key.secret:
            headers["Authorization"] = f"Bearer {self.key.secret}"
        return headers


class _Call:
    """One request. Another thread can end it at any time, and a clock does when time is up."""

    def __init__(self, connection: http.client.HTTPConnection, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._socket: socket.socket | None = None
        self._ended = False
        self._clock = threading.Timer(seconds, self.end)
        self._clock.daemon = True
        self._started = 0.0

    @property
    def is_late(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() - self._started >= self._seconds

    def __enter__(self) -> _Call:
        self._started = time.monotonic()
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._clock.cancel()
        self._connection.close()
        if self._socket is not None:
            self._socket.close()

    def end(self) -> None:
        """Whoever waits for this connection finds it closed."""
        self._ended = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # the plain socket's: TLS would first wait for the other side
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def exchange(self, path: str, body: bytes | None, headers: Mapping[str, str]) -> Exchange:
        """Send the request and read the whole reply."""
        connection = self._connection
        connection.connect()
        self._socket = connection.sock
        self._socket.settimeout(self._seconds)
        if self._ended:
            raise ConnectionAbortedError("ended")
        unsent: OSError | None = None
        try:
            connection.request("GET" if body is None else "POST", path, body, dict(headers))
        except (BrokenPipeError, ConnectionResetError) as error:
            unsent = error  # it may have answered without reading all, as 413 is
        try:
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise unsent or error from None
        with response:
            if response.status != 200:
                raise self._refusal(response)
            exchange = self._read(response)
        if self._ended:  # where nothing told the reply's length, that looks like its end
            raise ConnectionAbortedError("ended")
        return exchange

    def _refusal(self, response: http.client.HTTPResponse) -> BadReply:
        status = response.status
        said = f"{status} {http.client.responses.get(status, response.reason)}".strip()
        if 300 <= status < 400:
            place = _shown(response.headers.get("Location") or "elsewhere")
            return BadReply(
                f"{said}: redirected to {place}; redirects are not followed, give that URL if it "
                "is meant",
                status,
                again=False,
            )
        content = b""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            while len(content) < _MOST_ERROR_BYTES and (piece := response.read1(1 << 14)):
                content += piece
        reason = _message(content)
        again = status in (408, 429) or status >= 500
        pause = _asked_pause(response.headers.get("Retry-After")) if again else None
        return BadReply(f"{said}: {reason}" if reason else said, status, again, pause)

    def _read(self, response: http.client.HTTPResponse) -> Exchange:
        kind = (response.headers.get_content_type() or "").lower()
        headers = {name.lower(): value for name, value in response.headers.items()}
        if kind == "text/event-stream":
            values, done = [], False
            for data in _events(_pieces(response)):
                if data.strip() == b"[DONE]":
                    done = True
                    break
                values.append((time.monotonic() - self._started, _parsed(data, kind)))
            return Exchange(values, True, done, headers, time.monotonic() - self._started)
        content = b"".join(_pieces(response))
        seconds = time.monotonic() - self._started
        return Exchange([(seconds, _parsed(content, kind))], False, True, headers, seconds)


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body as it arrives.

    Raises:
        BadReply: it ends before its end, or is too long.
    """
    total = 0
    try:
        while piece := response.read1(1 << 16):
            total += len(piece)
            if total > MOST_BYTES:
                raise BadReply(f"the reply is longer than {MOST_BYTES >> 20} MiB")
            yield piece
    except http.client.IncompleteRead:
        raise BadReply("the reply was cut off") from None
    if response.length:
        raise BadReply("the reply was cut off")


def _events(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The data of each event of a stream (`text/event-stream`)."""
    rest, data = b"", list[bytes]()
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) + sum(map(len, data)) > _MOST_EVENT_BYTES:
            raise BadReply(f"an event is longer than {_MOST_EVENT_BYTES >> 20} MiB")
        for line in map(bytes.rstrip, lines):
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
    last = rest.rstrip()
    if last.startswith(b"data:"):  # some end without an empty line
        data.append(last[5:].removeprefix(b" "))
    if data:
        yield b"\n".join(data)


def _parsed(content: bytes, kind: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadReply("the reply is not UTF-8") from None
    except (ValueError, RecursionError):
        begin = _shown(content[:60].decode("utf-8", "replace")) or "nothing"
        raise BadReply(f"the reply is not JSON ({kind}): {begin}") from None


def _message(content: bytes) -> str:
    """What a server says of an error."""
    text = content.decode("utf-8", "replace")
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        found = re.sub(r"<[^>]*>", " ", text)
    return error_text(found)


def error_text(found: Any) -> str:
    """The text in what a server says of an error, in one line; '' where there is none."""
    for _ in range(4):
        if not isinstance(found, Mapping):
            break
        keys = (key for key in ("error", "message", "detail") if found.get(key))
        found = found.get(next(keys, ""), "")
    return _shown(found if isinstance(found, str) else json.dumps(found)[:2000])


def _shown(text: str) -> str:
    """A text of a stranger in one line of readable length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())
    return line if len(line) <= 300 else f"{line[:297]}..."


def _asked_pause(text: str | None) -> float | None:
    """Seconds that `Retry-After` asks for: a number, or a date."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            then = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError):
            return None
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        seconds = (then - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted ({error.verify_message})"
    if isinstance(error, socket.gaierror):
        return f"no such host ({error.strerror})"
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the server closed the connection without a reply"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    if isinstance(error, http.client.HTTPException):
        return f"this is no reply of an HTTP server ({type(error).__name__})"
    return f"no usable reply ({type(error).__name__})"
