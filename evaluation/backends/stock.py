"""`hf`: any causal language model of transformers, with its own class and its own cache.

Models differ in what they keep of the past: keys and values, sliding windows, convolutions,
recurrent states. Nothing here knows which: the cache is whatever the model returns, it is counted
on its tensors, and copied whole.

Some models go on wrongly from a cache when they are given several tokens at once. So a model is
tried when it is loaded: a text is read in one pass, and once more as a document and a question.
Where the two differ, the question is read token by token; where that differs, too, the whole prompt
is read for every question. Both say so in run.json and in the report.

A question is read at its true positions, and decoding goes on from the logits: `generate` would
take a cache's number of slots for the number of tokens that were read, and read a compressed
document once more.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.generation import StoppingCriteriaList, StopStringCriteria
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.placement import DTYPE_BYTES
from ahn.checkpoints.rope import context_length
from ahn.cost.accounting import cache_bytes, flops
from ahn.cost.shapes import ModelShape
from ahn.families import find_family
from ahn.released import read_ahn_config
from common.errors import InputError, Problems
from common.suggestions import did_you_mean
from evaluation.backends.base import Backend, Cost, Ids, Question, Reader, RunSettings
from evaluation.backends.cache_bytes import held
from evaluation.backends.local import LocalReader, seed_everything
from evaluation.backends.requests import VariantRequest, tokens
from evaluation.backends.streaming import StreamingModels

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""What models call their cache, in their output and among their arguments."""
_STATE_IN_MODULES = {"recurrent_gemma"}
"""Model types that keep the past in their modules: there is no cache to copy."""
_TRIED_DOCUMENT, _TRIED_QUESTION = 57, 9  # tokens; neither is a multiple of a block
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference of logits that is rounding, as a share of what the document does to them."""

Reading = Literal["one chunk", "token by token", "whole prompt"]


class StockModels:
    """The model of a run as transformers knows it: what its variants share.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._models = settings.once(StreamingModels)
        self.settings = settings

    @property
    def files(self) -> CheckpointFiles:
        """The checkpoint."""
        return self._models.base

    @property
    def device_and_dtype(self) -> tuple[str, str]:
        """What `auto` stands for here."""
        return self._models.device_and_dtype

    @cached_property
    def config(self) -> dict[str, Any]:
        """The `config.json`, positions stretched where that is asked.

        Raises:
            InputError: transformers has no causal language model of this kind, or it is one whose
                past cannot be copied.
        """
        config, place = self._models.config, self.files.place
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING_NAMES:
            hint = did_you_mean(str(kind), list(CONFIG_MAPPING_NAMES), most=1)
            own = " (code that comes with a model is not run)" if "auto_map" in config else ""
            raise InputError(
                f"{place}: config.json: transformers has no model_type {kind!r}{own}{hint}"
            )
        if read_ahn_config(config, place) is not None:
            raise InputError(
                f"{place}: AHN weights are merged into it; ask it as full, window, ahn or no-write"
            )
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise InputError(f"{place}: {kind} is no causal language model")
        if kind in _STATE_IN_MODULES:
            raise InputError(
                f"{place}: {kind} keeps its state inside its modules, so that no document can be "
                "kept for several questions"
            )
        return config

    @cached_property
    def shape(self) -> ModelShape | None:
        """Its sizes; None: of no family whose costs are known, or with windows of its own."""
        family = find_family(self.config.get("model_type"))
        if family is None or family.sliding_layers(self.config):
            return None
        return ModelShape.from_config(self.config)

    @cached_property
    def parameters(self) -> int:
        """Numbers in its files."""
        return sum(prod(tensor.shape) for tensor in self.files.tensors.values())


class StockBackend(Backend):
    """A model of transformers with the cache that its class makes.

    Subclasses are other caches of the same models: they name further `readers` of options, and make
    another reader.

    Args:
        request: options `attention` (sdpa, eager, flash_attention_2 ...: an implementation of
            transformers) and `chunk` (tokens of a document that are read at a time).
        settings: of the run.

    Raises:
        InputError: everything that is wrong with it.
    """

    readers: ClassVar[Mapping[str, Callable[[str], Any]]] = {"attention": str, "chunk": tokens}

    def __init__(self, request: VariantRequest, settings: RunSettings) -> None:
        self.name, self.kind = request.name, request.kind
        self.models = settings.once(StockModels)
        problems = Problems()
        self.options: dict[str, Any] = {}
        with problems.collecting():
            self.options = request.take(**self.readers)
        if self.options.get("chunk", 1) < 1:
            problems.add(f"--variant {request}: chunk: at least 1 token")
        self.dtype = "float32"
        with problems.collecting():
            self.device, self.dtype = self.models.device_and_dtype
        with problems.collecting():
            _ = self.models.config, self.models.shape
        problems.check()
        self.context = context_length(self.models.config)
        self.parameters = self.models.parameters

    def identity(self) -> Mapping[str, Any]:
        """See `Backend`."""
        factor = self.models.settings.yarn_factor
        return ({} if factor is None else {"yarn_factor": factor}) | {
            "kind": self.kind,
            "model_type": self.models.config["model_type"],
            "attention": self.options.get("attention"),
            "chunk": self.options.get("chunk"),
            "dtype": self.dtype,
            "device": (self.device or "").split(":")[0],
        }

    def weight_files(self) -> Sequence[Path]:
        """See `Backend`."""
        return self.models.files.weight_files

    def describe(self) -> Mapping[str, Any]:
        """See `Backend`."""
        return {
            "name": self.name,
            **self.identity(),
            "variant": self.kind,
            "path": str(self.models.files.place),
            "device": self.device,
        }

    def cost(
        self,
        prompt_tokens: int,
        generated_tokens: int,
        document_tokens: int | None = None,
        budget: int | None = None,
    ) -> Cost:
        """See `Backend`: of full attention, where its shape is known."""
        shape = self.models.shape
        if shape is None:
            return Cost()
        counted = flops(shape, "full", prompt_tokens, generated_tokens, accounting="exact")
        in_cache = prompt_tokens + max(generated_tokens - 1, 0)
        return Cost(int(counted.total), self.document_bytes(in_cache))

    def document_bytes(self, tokens: int) -> int | None:
        """See `Backend`: keys and values of all tokens, and no slot more."""
        if self.models.shape is None:
            return None
        of_element = DTYPE_BYTES[self.dtype]
        held_bytes = cache_bytes(
            self.models.shape, "full", tokens, dtype_bytes=of_element, accounting="paper"
        )
        return int(held_bytes.total)

    def open(self, tokenizer: Any, seed: int) -> Reader:
        """See `Backend`.

        Raises:
            InputError: the weights are not those of the model, or no way of reading is right.
        """
        seed_everything(seed)
        return self.reader(self._load(), tokenizer)

    def reader(self, model: Any, tokenizer: Any) -> StockReader:
        """What asks a loaded model."""
        return StockReader(model, tokenizer, self.options.get("chunk"))

    def _config(self) -> Any:
        """As transformers reads it; positions stretched where that is asked."""
        if self.models.settings.yarn_factor is None:
            return AutoConfig.from_pretrained(self.models.files.folder(), local_files_only=True)
        return CONFIG_MAPPING[self.models.config["model_type"]].from_dict(self.models.config)

    def _load(self) -> Any:
        files, problems = self.models.files, Problems()
        config = self._config()
        _ = files.weight_files  # refuses what is missing, and pickles
        asked = {"attn_implementation": a} if (a := self.options.get("attention")) else {}
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                files.folder(),
                config=config,
                dtype=getattr(torch, self.dtype),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **asked,
            )
        except (ImportError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{self.name}: {files.place}: {reason}") from error
        for what in ("missing_keys", "mismatched_keys"):
            if keys := sorted(map(str, found.get(what) or ())):
                several = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                problems.add(f"{files.place}: {what.replace('_', ' ')}: {keys[0]}{several}")
        problems.check()
        return model.to(self.device).eval()


@dataclass
class Past:
    """What was read of a prompt.

    Attributes:
        cache: what the model gave; None: nothing was read.
        seen: tokens that were read; a compressed cache has fewer slots.
        unread: tokens that wait for the whole prompt, `[1, T]` each.
    """

    cache: Any = None
    seen: int = 0
    unread: list[torch.Tensor] = field(default_factory=list)


class StockReader(LocalReader):
    """A model of transformers that was loaded.

    Args:
        model: of `AutoModelForCausalLM`.
        tokenizer: makes texts of ids.
        chunk: tokens of a document that are read at a time; None: all.

    Raises:
        InputError: `chunk` is given and the model can only go on token by token.
    """

    def __init__(self, model: Any, tokenizer: Any, chunk: int | None = None) -> None:
        super().__init__(model, tokenizer)
        model.generation_config = GenerationConfig()  # each call comes with all settings
        self.chunk = chunk
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._cache_name = next((name for name in CACHE_NAMES if name in self._accepted), "")
        self.reading: Reading = "one chunk"
        self.differences: dict[str, float] = {}
        self._choose_reading()

    # -- how it is read -----------------------------------------------------------------------

    @torch.inference_mode()
    def _choose_reading(self) -> None:
        """Find out whether a document and a question give what the whole text gives.

        Raises:
            InputError: the model has no cache, or `chunk` cannot be used with it.
        """
        total = _TRIED_DOCUMENT + _TRIED_QUESTION
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        text = torch.randint(0, vocabulary, (1, total), generator=generator).to(self.device)
        whole = Past()
        expected = self._pass(text, whole).float()
        if whole.cache is None:
            raise InputError(f"{type(self.model).__name__} returns no cache that could be kept")
        alone = self._pass(text[:, _TRIED_DOCUMENT:], Past(seen=_TRIED_DOCUMENT)).float()
        size = max(float((expected - alone).abs().max()), 1e-6)
        tolerance = _TOLERANCE[str(self.model.dtype).removeprefix("torch.")] * size
        ways: tuple[tuple[Reading, int], ...] = (("one chunk", total), ("token by token", 1))
        for way, step in ways:
            past = Past()
            self._pass(text[:, :_TRIED_DOCUMENT], past)
            found = expected
            for piece in text[:, _TRIED_DOCUMENT:].split(step, 1):
                found = self._pass(piece, past)
            difference = float((found.float() - expected).abs().max())
            self.differences[way] = difference / size
            if difference <= tolerance:
                self.reading = way
                break
        else:
            self.reading, self.reuses = "whole prompt", False
        if self.chunk is not None and self.reading != "one chunk":
            raise InputError(
                f"chunk={self.chunk}: {type(self.model).__name__} does not go on from a cache with "
                "several tokens as if it had read all at once; leave chunk out"
            )

    @property
    def fallback(self) -> str | None:
        """What people must be told of how questions are read; None: nothing."""
        if self.reading == "one chunk":
            return None
        off = ", ".join(f"{way}: {share:.1e}" for way, share in self.differences.items())
        return (
            f"a document and then a question give other logits than one pass (off by {off} of what "
            f"a document changes), so that questions are read as: {self.reading}"
        )

    def describe(self) -> Mapping[str, Any]:
        """See `Reader`."""
        told = {} if self.fallback is None else {"fallback": self.fallback}
        return told | {
            "class": type(self.model).__name__,
            "attention": getattr(self.model.config, "_attn_implementation", None),
            "parameters": self.model.num_parameters(),
            "questions_read": self.reading,
            "self_check": dict(self.differences),
        }

    # -- LocalReader --------------------------------------------------------------------------

    def fill(self, ids: Ids, budget: int | None = None) -> Past:
        """See `LocalReader`."""
        past = Past()
        if len(ids):
            self.read_document(self.as_batch(ids), past, budget)
        return past

    def read_document(self, ids: torch.Tensor, past: Past, budget: int | None) -> None:
        """Read a document `[1, T]` into an empty past."""
        del budget  # everything is kept
        if self.reading == "whole prompt":
            past.unread.append(ids)
            return
        for piece in ids.split(self.chunk or ids.shape[1], 1):
            self._pass(piece, past)

    def prefill(self, ids: Ids, past: Past) -> None:
        """See `LocalReader`."""
        if not len(ids):
            return
        new = self.as_batch(ids)
        if self.reading == "whole prompt":
            past.unread.append(new)
            return
        at_once = self.reading == "one chunk" or past.cache is None
        for piece in new.split(new.shape[1] if at_once else 1, 1):
            self._pass(piece, past)

    def decode(self, prompt: torch.Tensor, past: Past, question: Question) -> list[int]:
        """See `LocalReader`: `generate` prepares all that the settings ask for."""
        if question.settings.num_beams not in (None, 1):
            raise ValueError("only one beam: a cache is not divided among several")
        stop = StoppingCriteriaList()
        if question.stop:
            stop.append(StopStringCriteria(self.tokenizer, list(question.stop)))

        def loop(
            model: Any,
            input_ids: torch.Tensor,
            logits_processor: Any,
            stopping_criteria: Any,
            generation_config: GenerationConfig,
            **unused: Any,
        ) -> torch.Tensor:
            """As transformers' sampling, on our past."""
            del model, unused  # a cache of its own, which is not ours
            last = torch.cat([*past.unread, input_ids[:, -1:]], 1)
            past.unread.clear()
            while True:
                scores = logits_processor(input_ids, self._pass(last, past).float())
                if generation_config.do_sample:
                    last = torch.multinomial(scores.softmax(-1), 1)
                else:
                    last = scores.argmax(-1, keepdim=True)
                input_ids = torch.cat([input_ids, last], 1)
                if bool(stopping_criteria(input_ids, None).all()):
                    return input_ids

        output = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=question.settings,
            stopping_criteria=stop,
            custom_generate=loop,
        )
        new_ids: list[int] = output[0, prompt.shape[1] :].tolist()
        return new_ids

    def copy(self, past: Past) -> Past:
        """See `LocalReader`."""
        return Past(self.copy_cache(past.cache), past.seen, list(past.unread))

    def copy_cache(self, cache: Any) -> Any:
        """A cache with tensors of its own."""
        return copy.deepcopy(cache)

    def used(self, past: Past) -> int | None:
        """See `LocalReader`."""
        return None if past.cache is None else held(past.cache).used

    def kept(self, past: Past, document_tokens: int) -> float | None:
        """See `LocalReader`: slots of the cache's layers, where each has keys."""
        slots = slots_of(past.cache)
        return None if slots is None else sum(slots) / len(slots)

    # -- one pass -----------------------------------------------------------------------------

    def new_cache(self) -> Any:
        """An empty cache for the model; None: it makes its own."""
        return None

    def _pass(self, ids: torch.Tensor, past: Past) -> torch.Tensor:
        """Read `ids [1, T]` on top of a past, which changes: its last logits `[1, V]`."""
        return self.logits(ids, past, last=True)[:, -1]

    def logits(self, ids: torch.Tensor, past: Past, last: bool = False) -> torch.Tensor:
        """Read `ids [1, T]` on top of a past, which changes.

        Args:
            ids: the next tokens.
            past: what was read before.
            last: only the last token's logits are wanted.

        Returns:
            Logits `[1, T, V]`; with `last` those of one token or of all, as the model gives them.
        """
        given: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        cache = self.new_cache() if past.cache is None else past.cache
        if cache is not None:
            given[self._cache_name] = cache
        if "position_ids" in self._accepted:
            positions = torch.arange(past.seen, past.seen + ids.shape[1], device=ids.device)
            given["position_ids"] = positions[None]
        if last and "logits_to_keep" in self._accepted:
            given["logits_to_keep"] = 1
        output = self.model(**given)
        past.cache = next(
            (c for n in CACHE_NAMES if (c := getattr(output, n, None)) is not None), None
        )
        past.seen += ids.shape[1]
        logits: torch.Tensor = output.logits
        return logits


def slots_of(cache: Any) -> list[int] | None:
    """Slots with keys in each layer of a cache of transformers; None: not all layers have keys."""
    layers = getattr(cache, "layers", None)
    if not layers:
        return None
    keys: list[Any] = [getattr(layer, "keys", None) for layer in layers]
    if not all(isinstance(x, torch.Tensor) and x.dim() == 4 for x in keys):
        return None
    return [x.shape[2] for x in keys]
