"""The protocol of back-ends: whatever can read a document and answer questions about it.

A run compares *variants*. Each is made from what the user asked (`--variant KIND[:key=value,...]`)
into a `Backend`: checked, named, priced and told apart from others, with no weights loaded. When it
is its turn it is opened, which gives a `Reader`; a reader reads a document once (`Document`) and
answers the questions about it.

    backend = make(request, settings)         # InputError: what is wrong with the request
    reader = backend.open(tokenizer, seed)    # weights are loaded, a connection is made
    document = reader.read(ids)
    answer = document.ask(question, last=True)
    reader.close()

Nothing here knows a model. Kinds are registered in `evaluation.backends.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from evaluation.backends.requests import VariantRequest

Ids = npt.NDArray[np.int32]
T = TypeVar("T")


@dataclass(frozen=True)
class RunSettings:
    """What a run says about its models. Each back-end takes from it what concerns it.

    Attributes:
        model: `--model`: folder, hub id, or `pocket`.
        ahn: `--ahn`: AHN weights by name; the one without a name is ''.
        window: `--window`, tokens; None also where several are given.
        sinks: `--sinks`, tokens.
        dtype: `--dtype`, or `auto`.
        device: `--device`, or `auto`.
        yarn_factor: `--yarn-factor`.
        endpoint: `--endpoint`, the URL of a server.
        budget: `--budget`, as given: what sizable variants may keep of a document.
        windows: several of `--window`, tokens, in the order given; empty where one or none is.
    """

    model: str | None = None
    ahn: Mapping[str, str] = field(default_factory=dict)
    window: int | None = None
    sinks: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    yarn_factor: float | None = None
    endpoint: str | None = None
    budget: str | None = None
    windows: tuple[int, ...] = ()
    _made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, configuration: Any) -> RunSettings:
        """The settings of the same names of a `RunConfiguration`."""
        names = [f.name for f in fields(cls) if f.repr and f.name != "windows"]
        given = {name: getattr(configuration, name) for name in names}
        if isinstance(given["window"], list):
            given |= {"window": None, "windows": tuple(given["window"])}
        return cls(**given)

    def at(self, window: int) -> RunSettings:
        """The same with one window; what variants share (`once`) is shared with it."""
        return replace(self, window=window, windows=())

    def once(self, make: Callable[[RunSettings], T]) -> T:
        """`make(self)`, called once in a run: what several variants share."""
        if make not in self._made:
            self._made[make] = make(self)
        found: T = self._made[make]
        return found


@dataclass(frozen=True)
class Cost:
    """What an example costs by arithmetic. None: this back-end cannot know; never a guess.

    Attributes:
        flops: operations of prompt and answer, nothing reused (a multiply-add counts two).
        cache_bytes: bytes kept of the past at the end of the answer.
    """

    flops: int | None = None
    cache_bytes: int | None = None


@dataclass(frozen=True)
class Generation:
    """What a back-end makes of the generation settings of a task that it cannot follow to the word.

    Attributes:
        settings: what it is told, as JSON, for run.json.
        notices: what people must know of it.
    """

    settings: Mapping[str, Any]
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class Question:
    """What follows a document in one prompt, and how it is answered.

    Attributes:
        ids: token ids `[T]`, T at least 1.
        settings: transformers' `GenerationConfig` of the protocol: `max_new_tokens`,
            `eos_token_id`, `do_sample` ...
        stop: the answer ends before the first of these texts.
        seed: of a sampled answer; None: nothing is drawn.
    """

    ids: Ids
    settings: Any
    stop: Sequence[str] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Answer:
    """One answer and what was measured. None: this back-end cannot know.

    Attributes:
        text: decoded, without special tokens.
        finish_reason: `eos`, `length`, or `stop` where a stop text ended it; None: not told.
        generated_tokens: tokens it produced, a stop token included.
        prefill_seconds: wall time for what was read of the prompt.
        decode_seconds: wall time for the generated tokens.
        reused_tokens: tokens of the prompt that an earlier question had paid for.
        cache_bytes: bytes in use for the past at the end of the answer.
        token_ids: the generated ids.
        prompt_tokens: tokens of the prompt, as whoever read them counted: a server, which makes
            tokens of its own. None: those of the run.
        kept_tokens: tokens of the document that are kept in a layer, mean over the layers.
        document_bytes: bytes in use for the past once the document was read, before the question.
        cache_stored: bytes of the storages in which `cache_bytes` lie.
        peak_bytes: most bytes that were allocated at a time, from the document to the end of the
            answer, weights not counted.
    """

    text: str
    finish_reason: str | None = None
    generated_tokens: int | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    reused_tokens: int | None = None
    cache_bytes: int | None = None
    token_ids: Sequence[int] | None = None
    prompt_tokens: int | None = None
    kept_tokens: float | None = None
    document_bytes: int | None = None
    cache_stored: int | None = None
    peak_bytes: int | None = None


class Document(ABC):
    """A document that was read, or will be with its first question."""

    @abstractmethod
    def ask(self, question: Question, last: bool) -> Answer:
        """Answer a question about the document.

        Args:
            question: its ids follow the document's.
            last: no other question follows, so that nothing need be kept for one.
        """


class Reader(ABC):
    """A back-end that is ready: a loaded model, or a connection.

    Attributes:
        concurrency: questions that it takes at once. More than one: `read` and `ask` are called
            from several threads, each question reads its document for itself, and `close` ends
            those that are under way.
    """

    concurrency: int = 1

    @abstractmethod
    def read(self, ids: Ids, budget: int | None = None) -> Document:
        """A document, read now or with its first question.

        Args:
            ids: its token ids `[T]`; T is 0 where a prompt shares nothing with others.
            budget: bytes that may be kept of it; only given to a reader of a sizable back-end.
        """

    def peak(self, ids: Ids, question: Question, budget: int | None = None) -> int | None:
        """Most bytes allocated while a document is read and a question answered, in another pass.

        For where measuring slows an answer down, so that it is not done with each. Weights are not
        counted; None: cannot be known, or is told by each `Answer`.
        """
        return None

    def describe(self) -> Mapping[str, Any]:
        """What was learnt by opening it, for run.json: parameters, layers, versions."""
        return {}

    def forms(self) -> Mapping[str, str]:
        """How it computes in this start, where that may differ from start to start."""
        return {}

    def close(self) -> None:  # noqa: B027  most have nothing to give back
        """Give back memory and connections."""


class Backend(ABC):
    """A variant before it is opened. Making one refuses whatever can be refused without weights.

    Attributes:
        name: in records, and of its folder.
        device: where it computes, `cpu`, `cuda:1`; None: not on this machine, or nowhere.
        context: positions it was made for; None: no limit that it knows.
        parameters: weights that compute on this machine.
        notices: what people must be told before it is asked.
        reads_model: it reads the files of `--model`, or may. Where no variant does, `--model` may
            name something that is not here.
        needs_boundary: where the document ends changes its answers: something is done to what was
            read before the question comes.
        has_window: `--window` is its own window: where several are given, it is made once for each
            with that one as `RunSettings.window`, and the size in its name.
        sizable: how much it keeps follows from a budget of bytes for each document (`--budget`).
            Its reader is given the budget, and so is `cost`.
    """

    name: str
    needs_boundary: bool = False
    has_window: bool = False
    sizable: bool = False
    device: str | None = None
    context: int | None = None
    parameters: int | None = None
    notices: Sequence[str] = ()
    reads_model: bool = True

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """All that is meant to change an answer, as JSON, but for the content of `weight_files`.

        Runs whose variants differ in it do not share a folder.
        """

    @abstractmethod
    def open(self, tokenizer: Any, seed: int) -> Reader:
        """Load the weights, or connect.

        Args:
            tokenizer: of the run's prompts; makes texts of ids.
            seed: of the run.
        """

    def weight_files(self) -> Sequence[Path]:
        """Files whose content changes an answer."""
        return ()

    def describe(self) -> Mapping[str, Any]:
        """For run.json and the plan's table; `variant` names the kind."""
        return {"variant": self.name, **self.identity()}

    def generation(self, settings: Any, stop: Sequence[str], tokenizer: Any) -> Generation | None:
        """What it makes of a task's generation settings; None: all of them are followed.

        Args:
            settings: `Question.settings` of the task.
            stop: `Question.stop` of the task.
            tokenizer: of the run's prompts.

        Raises:
            InputError: it cannot answer by them.
        """
        return None

    def cost(
        self,
        prompt_tokens: int,
        generated_tokens: int,
        document_tokens: int | None = None,
        budget: int | None = None,
    ) -> Cost:
        """What an example of so many tokens costs by arithmetic.

        The last two are only given to a back-end that needs a boundary or is sizable.
        """
        return Cost()

    def document_bytes(self, tokens: int) -> int | None:
        """Bytes that it holds after a document of so many tokens; None: it cannot know.

        Of a back-end that is not sizable; by this number others are sized (`--budget NAME`).
        """
        return None

    def kept(self, document_tokens: int, budget: int) -> float:
        """Tokens of a document that it keeps in a layer, mean over layers; of a sizable back-end.

        Raises:
            InputError: the budget is too small for it.
        """
        raise InputError(
            f"{self.name}: its back-end can be sized, but does not say how many tokens it keeps "
            f"({type(self).__name__}.kept)"
        )


Make = Callable[[VariantRequest, RunSettings], Backend]
"""Makes a variant of a kind from what was asked; raises `InputError` with all that is wrong."""
