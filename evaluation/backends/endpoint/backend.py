"""A model behind an OpenAI-compatible server: vLLM, SGLang, TGI, `transformers serve`, a provider.

`/v1/completions` is asked, because the protocols' prompts carry the chat template already; a
`/v1/chat/completions` would put its own around them. A prompt is sent as text, made of the run's
token ids, which the server tokenises again (or as ids, where it takes them). What a tokenizer adds
to every text, as `<bos>`, is left out of that text. Token counts are the server's. Its weights
cannot be verified and its cache not be seen: bytes and FLOPs stay unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from common.errors import InputError, Problems
from evaluation.backends.base import (
    Answer,
    Backend,
    Document,
    Generation,
    Ids,
    Question,
    Reader,
    RunSettings,
)
from evaluation.backends.endpoint.http_client import (
    BadReply,
    Client,
    EndpointError,
    Exchange,
    Key,
    error_text,
)
from evaluation.backends.generation import load_generation_config, stop_ids
from evaluation.backends.local import before_stop
from evaluation.backends.requests import VariantRequest, server_url
from evaluation.backends.streaming import StreamingModels

EXTENSIONS = ("top_k", "min_p", "repetition_penalty", "min_tokens")
"""Fields that are no part of OpenAI's API; vLLM and SGLang take them by these names."""
OMITTABLE = (*EXTENSIONS, "top_p", "seed", "stop", "stream_options")
_PROBE_SECONDS = 10.0
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "diversity_penalty": (0.0,),
    "length_penalty": (1.0,),  # of beams
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "token_healing": (False,),
    "early_stopping": (False,),
}
"""Settings that change an answer and cannot be sent, each with the values that change nothing."""
_UNSENDABLE = (
    *_NEUTRAL,
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id"),
    *("forced_eos_token_id", "force_words_ids", "sequence_bias", "constraints", "penalty_alpha"),
    *("exponential_decay_length_penalty", "watermarking_config", "max_time", "stop_strings"),
    *("top_h", "dola_layers"),
)


@dataclass(frozen=True)
class Sent:
    """A protocol's generation settings, as a server is told them.

    Attributes:
        fields: of the request.
        stop: texts that end an answer, whether or not the server is told them.
        notices: what people must know.
    """

    fields: dict[str, Any]
    stop: list[str]
    notices: list[str]


def sent_settings(
    settings: Any,
    stop: Sequence[str],
    tokenizer: Any,
    own_stops: Collection[int] = (),
    omit: Sequence[str] = (),
) -> Sent:
    """A protocol's generation settings as fields of a request.

    Args:
        settings: transformers' `GenerationConfig` of the task.
        stop: texts that end an answer.
        tokenizer: of the prompts; tells which stop ids are plain text.
        own_stops: ids at which the model ends by itself, wherever it runs.
        omit: fields that are not to be sent.

    Raises:
        InputError: settings that no field stands for.
    """
    refused = [
        name
        for name in _UNSENDABLE
        if (value := getattr(settings, name, None)) not in (None, *_NEUTRAL.get(name, ()))
        and value != []
    ]
    if refused:
        given = ", ".join(f"{name} {getattr(settings, name)}" for name in refused)
        raise InputError(f"{given}: cannot be asked of a server; run it with a local variant")
    fields: dict[str, Any] = {"max_tokens": settings.max_new_tokens}
    if settings.do_sample:
        given_temperature = settings.temperature
        fields["temperature"] = 1.0 if given_temperature is None else given_temperature
        for name in ("top_p", "top_k", "min_p"):
            if getattr(settings, name, None) is not None:
                fields[name] = getattr(settings, name)
    else:
        fields["temperature"] = 0
    penalty = getattr(settings, "repetition_penalty", None)
    if penalty is not None and penalty != 1:
        fields["repetition_penalty"] = penalty
    if getattr(settings, "min_new_tokens", None):
        fields["min_tokens"] = settings.min_new_tokens
    texts = [text for text in stop if text]
    foreign = [i for i in stop_ids(settings) if i not in own_stops]
    plain = [tokenizer.decode([i], skip_special_tokens=True) for i in foreign]
    notices = []
    for text in dict.fromkeys(filter(None, plain)):
        texts.append(text)
        notices.append(
            f"the protocol ends an answer at the token {text!r}; the server is told to end it at "
            "that text, which other tokens may hold, too"
        )
    texts = list(dict.fromkeys(texts))
    if texts:
        fields["stop"] = texts
    left_out = [name for name in omit if fields.pop(name, None) is not None]
    if left_out:
        notices.append(f"{', '.join(left_out)}: not sent, as omit asks; the server's own holds")
    extensions = [f"{name} {fields[name]}" for name in EXTENSIONS if name in fields]
    if extensions:
        notices.append(
            f"{', '.join(extensions)}: sent, but no part of OpenAI's API; vLLM and SGLang follow "
            "it, another server may refuse or ignore it (omit=NAME leaves it out)"
        )
    return Sent(fields, texts, notices)


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text[:12]) <= most:
            raise ValueError(f"{text!r} is not a whole number from {least} to {most:,}")
        return int(text)

    return read


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 86_400:
        raise ValueError(f"{text!r} is not a number of seconds above 0, up to 86400")
    return value


def _one_of(*names: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text!r} is none of {', '.join(names)}")
        return text

    return read


def _api(text: str) -> str:
    if text != "completions":
        raise ValueError(
            f"{text!r}: only completions can be asked, since the protocol's prompts carry the chat "
            "template already"
        )
    return text


def _omitted(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name for name in text.split("+") if name))
    unknown = [name for name in names if name not in OMITTABLE]
    if unknown or not names:
        raise ValueError(
            f"{(unknown or [text])[0]!r} is none of {', '.join(OMITTABLE)} (joined by +)"
        )
    return names


@dataclass(frozen=True)
class Options:
    """How a server is asked.

    Attributes:
        url: with the path to `/v1`.
        model: its name for the model.
        prompt: `text`, or `ids` where the server takes token ids.
        concurrency: questions in flight at once.
        timeout: seconds for a whole answer.
        tries: how often one is asked at most.
        stream: the answer comes token by token, so that the time to its first is known.
        omit: fields of a request that are not sent.
    """

    url: str
    model: str
    prompt: str = "text"
    concurrency: int = 4
    timeout: float = 600.0
    tries: int = 5
    stream: bool = True
    omit: tuple[str, ...] = ()


class EndpointBackend(Backend):
    """`--variant endpoint[:url=URL,model=NAME,...]`: a server's model.

    Args:
        request: with any of `Options`; `api` may only be `completions`.
        settings: `endpoint` and `model` are the defaults of `url` and `model`.

    Raises:
        InputError: no URL, no model, an option or a key that cannot be used.
    """

    parameters = 0  # nothing computes on this machine
    reads_model = False

    def __init__(self, request: VariantRequest, settings: RunSettings) -> None:
        self.name = request.name
        problems = Problems()
        own: dict[str, Any] = {}
        with problems.collecting():
            own = request.take(
                url=server_url,
                model=str,
                prompt=_one_of("text", "ids"),
                api=_api,
                concurrency=_whole(1, 1024),
                timeout=_seconds,
                tries=_whole(1, 100),
                stream=_one_of("true", "false"),
                omit=_omitted,
            )
        own.pop("api", None)
        if "url" not in request.options and settings.endpoint is None:
            problems.add(f"--endpoint: needed by {self.name}: the server's URL")
        if "url" not in own and settings.endpoint is not None:
            try:
                own["url"] = server_url(settings.endpoint)
            except ValueError as error:
                problems.add(f"--endpoint: {error}")
        own.setdefault("model", settings.model)
        if own["model"] is None:
            problems.add(
                f"--model: needed by {self.name}: the server's name for the model "
                "(or endpoint:model=NAME)"
            )
        if "stream" in own:
            own["stream"] = own["stream"] == "true"
        key = Key()
        with problems.collecting():
            key = Key.from_environment()
        problems.check()
        self.options = Options(**own)
        self._own_stops = _own_stops(settings)
        self._extensions: dict[str, Any] = {}  # that the planned tasks need
        self.key = key
        self.notices = tuple(self._notices())

    def _notices(self) -> list[str]:
        notices = [
            f"{self.name}: the server's weights cannot be verified, and it tokenises the prompts "
            "itself"
        ]
        parts = urlsplit(self.options.url)
        if self.key.variable is not None:
            notices.append(f"{self.name}: the key of {self.key.variable} is sent to {parts.netloc}")
            if parts.scheme == "http" and not _is_local(parts.hostname or ""):
                notices.append(f"{self.name}: http:// sends the key unencrypted; use https://")
        return notices

    def identity(self) -> Mapping[str, Any]:
        """See `Backend`: not where the server is, so that it may move; nor how fast it is asked."""
        return {
            "kind": "endpoint",
            "model": self.options.model,
            "api": "completions",
            "prompt": self.options.prompt,
            "omit": sorted(self.options.omit),
            "weights": "unverified",
        }

    def describe(self) -> Mapping[str, Any]:
        """See `Backend`."""
        options = self.options
        return {
            "name": self.name,
            "variant": "endpoint",
            **self.identity(),
            "path": options.model,
            "url": options.url,
            "concurrency": options.concurrency,
            "timeout": options.timeout,
            "tries": options.tries,
            "stream": options.stream,
        }

    def generation(self, settings: Any, stop: Sequence[str], tokenizer: Any) -> Generation:
        """See `Backend`: the fields that are sent with every prompt of a task."""
        sent = sent_settings(settings, stop, tokenizer, self._own_stops, self.options.omit)
        self._extensions |= {key: sent.fields[key] for key in EXTENSIONS if key in sent.fields}
        seeded = settings.do_sample and "seed" not in self.options.omit
        more = {"seed": "of each example"} if seeded else {}
        return Generation({**sent.fields, **more, "stop_tokens": "the server's own"}, sent.notices)

    def open(self, tokenizer: Any, seed: int) -> Reader:
        """See `Backend`: asks which models there are, and for one token.

        Raises:
            InputError: the server does not answer, or not for this model.
        """
        options = self.options
        client = Client(options.url, self.key, options.timeout, options.tries)
        reader = EndpointReader(options, client, tokenizer, self._own_stops)
        try:
            reader.greet(self._extensions)
        except BaseException:
            reader.close()
            raise
        return reader


def _own_stops(settings: RunSettings) -> frozenset[int]:
    """Stop ids of `--model` by its own files, which the server's copy has, too; none if not here.

    What the plan has to say of files that are missing or wrong, it says itself.
    """
    with suppress(InputError):
        base = settings.once(StreamingModels).base
        config = base.config
        return frozenset(stop_ids(load_generation_config(base.folder(weights=False), config)))
    return frozenset()


def _is_local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class EndpointReader(Reader):
    """A server that is there.

    Args:
        options: how it is asked.
        client: asks it.
        tokenizer: of the prompts.
        own_stops: ids at which the model ends by itself.
    """

    def __init__(
        self, options: Options, client: Client, tokenizer: Any, own_stops: Collection[int] = ()
    ) -> None:
        self.options = options
        self.client = client
        self.tokenizer = tokenizer
        self.concurrency = options.concurrency
        self._own_stops = own_stops
        self._added = _added_to_texts(tokenizer)
        self._found: dict[str, Any] = {}

    def describe(self) -> Mapping[str, Any]:
        """See `Reader`: what the server says of itself."""
        return self._found

    def read(self, ids: Ids, budget: int | None = None) -> EndpointDocument:
        """See `Reader`. Every prompt is sent whole; a server may keep what it has read."""
        return EndpointDocument(self, ids)

    def close(self) -> None:
        """See `Reader`: ends requests that are under way."""
        self.client.close()

    def greet(self, extensions: Mapping[str, Any]) -> None:
        """Ask which models the server has, and for one token of ours.

        Args:
            extensions: fields that questions will have and the server may not know.

        Raises:
            InputError: it does not answer, or not for this model.
        """
        name, url = self.options.model, self.options.url
        listed, why_not = self._models()
        hidden = self.client.key.hidden
        known = [hidden(str(model["id"]))[:200] for model in listed]
        there = f" (it has: {', '.join(known[:20])})" if known else ""
        most = extensions.get("min_tokens", 1)
        probe = {"max_tokens": most, "temperature": 0, **extensions}
        try:
            word = _some_word(self.tokenizer)
            prompt = word if self.options.prompt == "text" else self.tokenizer(word).input_ids
            said = self.client.request("/completions", self._body(prompt, probe), _completion)
        except EndpointError as error:
            wanted = f"--endpoint: {url}: the model {name!r} does not answer{there}: {error}"
            if error.status in (401, 403):
                variable = self.client.key.variable
                held = f"the key of {variable}" if variable else "no key (set AHN_BENCH_API_KEY)"
                wanted += f"; it was shown {held}"
            if error.status in (400, 422) and self.options.prompt == "ids":
                wanted += "; does it take token ids? endpoint:prompt=text sends text"
            if error.status in (400, 422) and extensions:
                names = "+".join(extensions)
                wanted += f"; endpoint:omit={names} leaves out what is no part of OpenAI's API"
            raise InputError(wanted) from None
        # transformers serve lists what the hub's cache holds, and serves folders, too
        if known and name not in known and said.model != f"{name}@main":
            raise InputError(
                f"--endpoint: {url}: has no model {name!r}{there}; give its name with --model, or "
                "endpoint:model=NAME"
            )
        own = next((model for model in listed if model["id"] == name), {})
        self._found = {
            "models_listed": known[:20] if known else f"not told: {why_not}",
            "max_model_len": _count(own, "max_model_len"),
            "answered_as": said.model and hidden(said.model),
            "system_fingerprint": said.fingerprint and hidden(said.fingerprint),
            "server": said.server and hidden(said.server),
            "server_version": self._version(),
            "tells_token_counts": said.generated_tokens is not None,
        }

    def _models(self) -> tuple[list[Mapping[str, Any]], str]:
        """What `/v1/models` lists, or why it does not."""

        def read(exchange: Exchange) -> list[Mapping[str, Any]]:
            told = exchange.first
            data = told.get("data") if isinstance(told, Mapping) else None
            if not isinstance(data, list):
                raise BadReply("no list of models", again=False)
            return [m for m in data if isinstance(m, Mapping) and isinstance(m.get("id"), str)]

        patience = min(self.options.timeout, _PROBE_SECONDS)
        try:
            return self.client.request("/models", None, read, 1, patience), "none is listed"
        except EndpointError as error:
            return [], str(error)

    def _version(self) -> str | None:
        """The version that vLLM (`/version`), SGLang or TGI (`/info`) tell; None: none."""

        def read(exchange: Exchange) -> str:
            told = exchange.first
            version = told.get("version") if isinstance(told, Mapping) else None
            if not isinstance(version, str):
                raise BadReply("no version", again=False)
            return self.client.key.hidden(version)[:100]

        patience = min(self.options.timeout, _PROBE_SECONDS)
        for path in ("/version", "/info", "/server_info"):
            try:
                return self.client.request(path, None, read, 1, patience, root=True)
            except EndpointError:
                continue
        return None

    def _body(self, prompt: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
        body = {"model": self.options.model, "prompt": prompt, **fields}
        if self.options.stream:
            body["stream"] = True
            if "stream_options" not in self.options.omit:
                body["stream_options"] = {"include_usage": True}
        return body

    def prompt_of(self, ids: Ids) -> Any:
        """A prompt as it is sent: its ids, or the text that the server's tokenizer makes them of.

        What that adds to every text before or after it must not be there twice.
        """
        if self.options.prompt == "ids":
            return ids.tolist()
        before, after = self._added
        given = ids.tolist()
        if before and given[: len(before)] == before:
            given = given[len(before) :]
        if after and given[-len(after) :] == after:
            given = given[: -len(after)]
        return self.tokenizer.decode(
            given, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def complete(self, ids: Ids, question: Question) -> Answer:
        """The server's answer to a whole prompt.

        Args:
            ids: of document and question `[T]`.
            question: how it is answered.

        Raises:
            EndpointError: there is none.
        """
        sent = sent_settings(
            question.settings, question.stop, self.tokenizer, self._own_stops, self.options.omit
        )
        if question.seed is not None and "seed" not in self.options.omit:
            sent.fields["seed"] = question.seed
        body = self._body(self.prompt_of(ids), sent.fields)
        said = self.client.request("/completions", body, _completion)
        if self.client.key.is_in(f"{said.text}\n{said.finish_reason}"):
            raise EndpointError("the answer holds the key of this server; it is not recorded")
        text = before_stop(said.text, sent.stop)
        return Answer(
            text=text,
            finish_reason="stop" if text != said.text else said.finish(bool(sent.stop)),
            prompt_tokens=said.prompt_tokens,
            generated_tokens=said.generated_tokens,
            prefill_seconds=said.first_seconds,
            decode_seconds=said.decode_seconds,
            reused_tokens=said.cached_tokens,
        )


class EndpointDocument(Document):
    """The beginning of some prompts. It is sent with each question."""

    def __init__(self, reader: EndpointReader, ids: Ids) -> None:
        self._reader = reader
        self._ids = ids

    def ask(self, question: Question, last: bool = True) -> Answer:
        """See `Document`."""
        return self._reader.complete(np.concatenate([self._ids, question.ids]), question)


def _some_word(tokenizer: Any) -> str:
    """A short text that a tokenizer makes tokens of; small vocabularies have few words."""
    own = (tokenizer.decode([i], skip_special_tokens=True) for i in range(len(tokenizer)))
    texts = (text for text in chain(["Hello", "a", "1"], own) if text.strip())
    return next((t for t in texts if tokenizer(t, add_special_tokens=False).input_ids), "Hello")


def _added_to_texts(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer adds before and after every text."""
    word = _some_word(tokenizer)
    with_added = list(tokenizer(word).input_ids)
    plain = list(tokenizer(word, add_special_tokens=False).input_ids)
    for at in range(len(with_added) - len(plain) + 1):
        if plain and with_added[at : at + len(plain)] == plain:
            return with_added[:at], with_added[at + len(plain) :]
    return [], []


@dataclass(frozen=True)
class Completion:
    """What a server answered. None: it did not say.

    Attributes:
        text: of the answer.
        finish_reason: in the server's words.
        stop_reason: vLLM's, or SGLang's `matched_stop`: the text or id that ended it; `...`: the
            server knows no such field.
        first_seconds: from the request to the first piece of text.
        decode_seconds: from there to the end.
    """

    text: str
    finish_reason: str | None
    stop_reason: Any
    prompt_tokens: int | None
    generated_tokens: int | None
    cached_tokens: int | None
    first_seconds: float | None
    decode_seconds: float | None
    model: str | None
    fingerprint: str | None
    server: str | None

    def finish(self, stops_were_sent: bool) -> str | None:
        """Why it ended, in our words; None where `stop` may mean the end token or a stop text."""
        reason = self.finish_reason
        if reason in ("eos_token", "eos"):
            return "eos"
        if reason == "stop_sequence":
            return "stop"
        if reason != "stop":
            return reason
        if self.stop_reason is None or isinstance(self.stop_reason, int):
            return "eos"
        if isinstance(self.stop_reason, str):
            return "stop"
        return None if stops_were_sent else "eos"


def _completion(exchange: Exchange) -> Completion:
    """A reply of `/completions`, whole or as a stream.

    Raises:
        BadReply: it is none, or a stream that ended before its end.
    """
    text, first, last = [], None, exchange.seconds
    reason: str | None = None
    stop_reason: Any = ...
    usage: Mapping[str, Any] = {}
    found: dict[str, str | None] = {"model": None, "system_fingerprint": None}
    for seconds, value in exchange.values:
        if not isinstance(value, Mapping):
            raise BadReply(f"the reply is a {type(value).__name__} where an object was expected")
        if value.get("error"):
            raise BadReply(f"the server says: {error_text(value)}")
        choices = value.get("choices")
        if isinstance(value.get("usage"), Mapping):
            usage = value["usage"]
        for key in found:
            if isinstance(value.get(key), str):
                found[key] = value[key][:200]
        if exchange.streamed and (choices is None or choices == []):
            continue  # the token counts come by themselves
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise BadReply("the reply has no choices")
        choice = choices[0]
        piece = choice.get("text")
        if piece is None and exchange.streamed:
            piece = ""
        if not isinstance(piece, str):
            raise BadReply("the reply's choice has no text")
        text.append(piece)
        if first is None and (piece or choice.get("finish_reason")):
            first = seconds
        if isinstance(choice.get("finish_reason"), str):
            reason, last = choice["finish_reason"][:40], seconds
        for key in ("stop_reason", "matched_stop"):
            stop_reason = choice.get(key, stop_reason)
    if exchange.streamed and reason is None:
        raise BadReply("the stream was cut off: it told no finish_reason")
    if reason in ("abort", "error"):
        raise BadReply(f"the server gave the answer up (finish_reason {reason})")
    split = exchange.streamed and first is not None
    details = usage.get("prompt_tokens_details")
    return Completion(
        text="".join(text),
        finish_reason=reason,
        stop_reason=stop_reason,
        prompt_tokens=_count(usage, "prompt_tokens"),
        generated_tokens=_count(usage, "completion_tokens"),
        cached_tokens=_count(details, "cached_tokens"),
        first_seconds=first if split else None,
        decode_seconds=last - first if split and first is not None else None,
        model=found["model"],
        fingerprint=found["system_fingerprint"],
        server=exchange.headers.get("server", "")[:200] or None,
    )


def _count(said: Any, key: str) -> int | None:
    value = said.get(key) if isinstance(said, Mapping) else None
    return value if type(value) is int and value >= 0 else None
