"""The model `ahn` for lm-evaluation-harness 0.4.13: every variant behind lm-eval's own interface.

Importing this module registers it. `run_eval lm-eval ...` does so, adds this project's task
files, and hands everything else to lm-eval:

    run_eval lm-eval --model ahn --tasks ahnbench_lveval_128k \
        --model_args pretrained=MODEL,ahn=WEIGHTS,variant=ahn,window=32640,sinks=128

lm-eval's own command looks for models inside its package only; it learns of this one from
`tasks/ahn.yaml`, named among the tasks:

    TASKS=$(python -c 'import tasks; print(*tasks.__path__)')
    lm_eval --model ahn --include_path $TASKS --tasks $TASKS/ahn.yaml,ahnbench_lveval_128k ...

- Tasks of others are asked as lm-eval's `hf` model asks them: its tokenisation, chat template,
  left truncation, stop strings and batches. Log-likelihoods are computed in float32 and
  streamed (`evaluation.lm_eval.scoring`).
- Tasks of this project are asked by their benchmark's own procedure, exactly as `run_eval`
  does: prompt, truncation, chat template, generation settings and seed come from the task's
  protocol, whatever `--apply_chat_template` says. So both give the same score.
- `--use_cache` is refused: its keys know neither the variant nor the window nor the protocol, so
  that one would be answered from another's.
"""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from ahn.checkpoints.load import load_resolved
from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.names import ahn_path
from ahn.checkpoints.placement import resolve_device
from ahn.checkpoints.resolve import default_variant, resolve_checkpoint
from ahn.checkpoints.tokenizer import load_tokenizer
from common.errors import InputError, Problems
from common.notices import tell_once
from common.quantities import token_count
from evaluation.backends.base import Question
from evaluation.backends.generation import generation_settings, load_generation_config
from evaluation.backends.local import is_out_of_memory
from evaluation.backends.streaming import StreamingReader
from evaluation.lm_eval.scoring import LikelihoodScorer, Scored, cut_left, with_smaller_batches
from evaluation.plan.plan import CONTEXT_SLACK, sampling_seed
from evaluation.plan.prompts import PreparedPrompt, prepare, shared_tokens, smallest_max_length
from tasks.lm_eval import PROTOCOL_MODELS, TaskDocument, document_of
from tasks.lm_eval_task import BY_PROTOCOL
from tasks.schema import TaskProtocol

_log = logging.getLogger(__name__)
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
NO_ANSWER_CACHE = (
    "--use_cache: not with the model 'ahn': lm-eval's cache of answers knows neither variant nor "
    "window nor protocol, and would answer one from another's; leave it out (run_eval longbench "
    "... goes on where it was interrupted)"
)
# Options of lm-eval's `hf` model that would silently mean nothing here.
_REFUSED = {
    "trust_remote_code": "code from a checkpoint is never run",
    "peft": "adapters are not supported; merge them into the base model first",
    "delta": "delta weights are not supported; merge them into the base model first",
    "parallelize": "the model is placed on one device; give device=cuda:0",
    "load_in_8bit": "quantised weights are not supported",
    "load_in_4bit": "quantised weights are not supported",
}


@dataclass(frozen=True)
class _Asked:
    """One request for a task of this project, prepared."""

    index: int
    document: TaskDocument
    prompt: PreparedPrompt
    settings: Any
    seed: int
    stop: tuple[str, ...]


@register_model("ahn")
class AHNLM(HFLM):
    """A variant of a base model.

    Args:
        pretrained: folder, hub id, or ``pocket``.
        ahn: AHN weights: folder, hub id, or ``pocket``; None where they are merged or not needed.
        variant: ``full``, ``window``, ``ahn``, ``no-write``, ``compressive`` or ``memory-only``.
            Default: ``ahn`` with AHN weights, else ``window`` with a window, else ``full``.
        window: sliding window, in tokens. Default: that of the AHN weights.
        sinks: attention sinks, in tokens. Default: that of the AHN weights, else 128.
        yarn_factor: RoPE is stretched by YaRN with this factor. Default: as the checkpoint has it.
        rate: of ``compressive``: tokens pooled into one. Default: the paper's 4.
        pooling: of ``compressive``: ``mean`` or ``max``. Default: ``mean``.
        slots: of ``compressive``: pooled slots of each layer. Default: the paper's.
        tokenizer: folder or hub id. Default: the model's own.
        dtype: ``auto`` (bfloat16 on cuda, float32 elsewhere), or a type's name (also ``bf16``).
        device: ``cpu``, ``cuda``, ``cuda:1``. Default: cuda where there is one.
        batch_size: rows at once; ``auto`` halves ``max_batch_size`` until it fits.
        max_length: longest text in tokens. Default: the model's ``max_position_embeddings``;
            for tasks of this project, their protocol's.
        seed: of sampled answers of this project's tasks. Default: the protocol's.

    Raises:
        InputError: for an option that is unknown or refused, and whatever `ahn.load_model` finds.
    """

    def __init__(
        self,
        pretrained: str,
        ahn: str | None = None,
        variant: str | None = None,
        window: int | None = None,
        sinks: int | None = None,
        yarn_factor: float | None = None,
        rate: int | None = None,
        pooling: str | None = None,
        slots: int | None = None,
        tokenizer: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = 64,
        max_length: int | None = None,
        seed: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        chat_template_args: dict[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        window, sinks, max_length = map(token_count, (window, sinks, max_length))  # as 32k
        _check_options(unknown, window, sinks, max_length)
        base = CheckpointFiles(str(pretrained))
        if variant is None:
            variant = default_variant(base, ahn is not None, window is not None)
        # lm-eval says "cuda:0" where its user says nothing, also where there is none.
        if device is None or (device == "cuda:0" and not torch.cuda.is_available()):
            device = "auto"
        if dtype == "auto":
            dtype = "bfloat16" if resolve_device(device).startswith("cuda") else "float32"
        checkpoint = resolve_checkpoint(
            base,
            variant,
            None if ahn is None else str(ahn),
            window,
            sinks,
            dtype,
            device,
            yarn_factor=yarn_factor,
            rate=rate,
            pooling=pooling,
            slots=slots,
        )
        for notice in checkpoint.notices:
            tell_once(notice)
        try:
            own = load_tokenizer(base if tokenizer is None else tokenizer)
        except InputError as error:
            raise error.prefixed("--model_args tokenizer: ") from None
        folder = base.folder(weights=False)
        generation = load_generation_config(folder, base.config)
        model = load_resolved(checkpoint)
        self._context = checkpoint.context or 2048
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=own,
            batch_size=batch_size,
            max_batch_size=max_batch_size or 64,
            max_length=max_length,
            add_bos_token=add_bos_token,
            prefix_token_id=prefix_token_id,
            enable_thinking=enable_thinking,
            think_end_token=think_end_token,
            chat_template_args=chat_template_args,
        )
        self.variant = variant
        self._path = checkpoint.path
        self._ahn_path = None if ahn is None else str(ahn_path(str(ahn)))
        self._model_type = base.config.get("model_type")
        self._seed = seed
        self._checkpoint_generation = generation
        model.generation_config = copy.deepcopy(generation)
        PROTOCOL_MODELS.add(self)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Raises `InputError`: lm-eval wraps a model whose answers it caches."""
        if cache_hook.dbdict is not None:
            raise InputError(NO_ANSWER_CACHE)
        super().set_cache_hook(cache_hook)

    @property
    def max_length(self) -> int:
        """Longest text in tokens: as given, else what the model was made for, YaRN included."""
        return int(self._max_length or self._context)

    # -- log-likelihoods --------------------------------------------------------------------

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(sum of log-probabilities in nats, whether greedy) for each (context, continuation)."""
        items = [
            cut_left(index, context, continuation, self.max_length)
            for index, (_, context, continuation) in enumerate(requests)
        ]
        scorer = LikelihoodScorer(self.model, self.tokenizer.pad_token_id)
        found: dict[int, tuple[float, bool]] = {}

        def attempt(batch_size: int) -> None:
            left: list[Scored] = [item for item in items if item.index not in found]
            for result in scorer.score(left, batch_size):
                found[result.index] = (result.log_probability, result.is_greedy)
                names = requests[result.index][0]
                if names is not None:
                    self.cache_hook.add_partial("loglikelihood", names, found[result.index])
                bar.update(1)

        with tqdm(
            total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests"
        ) as bar:
            if self.batch_size == "auto":
                with_smaller_batches(attempt, override_bs or self.max_batch_size, is_out_of_memory)
            else:
                attempt(override_bs or int(self.batch_size))
        return [found[index] for index in range(len(requests))]

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        """The largest batch of longest texts that can be read; no logits but the last are made."""

        @torch.inference_mode()
        def attempt(batch_size: int) -> None:
            ids = torch.ones((batch_size, self.max_length), dtype=torch.long, device=self.device)
            self.model(input_ids=ids, use_cache=True, logits_to_keep=1)

        return with_smaller_batches(attempt, self.max_batch_size, is_out_of_memory)[1]

    # -- answers ----------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each prompt; see the module for how each kind is asked."""
        documents = [document_of(request.doc) for request in requests]
        others = [index for index, document in enumerate(documents) if document is None]
        answers: dict[int, str] = {}
        if others:
            texts = super().generate_until([requests[index] for index in others], disable_tqdm)
            answers |= dict(zip(others, texts, strict=True))
        ours = [
            self._prepare(index, document, dict(requests[index].args[1]))
            for index, document in enumerate(documents)
            if document is not None
        ]
        if ours:
            self._tell_of_changed_prompts(requests, documents)
            # Its calls come with all settings: the model's own are kept for tasks of others.
            kept = self.model.generation_config
            reader = StreamingReader(self.model, self.tokenizer)
            try:
                with tqdm(
                    total=len(ours), disable=disable_tqdm, desc="Running benchmark prompts"
                ) as bar:
                    for group in _by_document(ours):
                        self._answer(group, reader, answers, bar)
            finally:
                self.model.generation_config = kept
            for asked in ours:
                setattr(requests[asked.index], BY_PROTOCOL, True)
        return [answers[index] for index in range(len(requests))]

    def _tell_of_changed_prompts(
        self, requests: list[Instance], documents: Sequence[TaskDocument | None]
    ) -> None:
        """Warn where the harness put something around a prompt, which is not used."""
        for request, document in zip(requests, documents, strict=True):
            if document is not None and request.args[0] != request.doc["prompt"]:
                _log.warning(
                    "tasks of AHN-Bench are asked as their protocol says: what "
                    "--apply_chat_template and --system_instruction would add is left out"
                )
                return

    def _prepare(self, index: int, document: TaskDocument, given: dict[str, Any]) -> _Asked:
        """The prompt and the settings that `run_eval` would use; what the user gave goes first."""
        rules = document.task.protocol(document.protocol)
        prompt = prepare(
            document.task,
            document.example,
            document.protocol,
            self.tokenizer,
            self._prompt_length(document, rules),
            self._model_type,
        )
        if prompt.tokens > self._context:
            raise InputError(
                f"{document.example.where}: the prompt has {prompt.tokens} tokens, the model "
                f"{self._context} positions; give max_length in --model_args"
            )
        longest = _new_tokens(given.pop("max_gen_toks", rules.max_new_tokens))
        if rules.turns is not None and rules.turns.new_tokens:  # kinds of question have their own
            longest = min(longest, document.task.new_tokens(document.example, document.protocol))
        settings = generation_settings(
            self._checkpoint_generation,
            document.protocol,
            rules.generation,
            longest,
            self.tokenizer,
            self._model_type,
            document.task.benchmark,
        )
        stop = _texts(given.pop("until", rules.stop))
        samples = given.pop("do_sample", False)
        if samples not in (True, False):
            raise InputError(f"--gen_kwargs do_sample: should be True or False, not {samples!r}")
        if samples:
            settings.do_sample = True
            for key in _SAMPLING:
                setattr(settings, key, given.pop(key, getattr(settings, key)))
        if given:
            needs = " (needs do_sample=True)" if set(given) <= set(_SAMPLING) else ""
            raise InputError(
                f"--gen_kwargs {', '.join(given)}: not for tasks of this package, whose settings "
                f"are their protocol's{needs}"
            )
        seed = rules.seed if self._seed is None else self._seed
        name, example = document.task.name, document.example.example_id
        return _Asked(index, document, prompt, settings, sampling_seed(seed, name, example), stop)

    def _prompt_length(self, document: TaskDocument, rules: TaskProtocol) -> int:
        """Longest prompt in tokens, before the chat template."""
        length = self._max_length or rules.default_max_length or self._context - CONTEXT_SLACK
        smallest = smallest_max_length(rules)
        if length < smallest:
            raise InputError(
                f"max_length {length} is too small for {document.task.name} (at least {smallest})"
            )
        return int(length)

    def _answer(
        self, group: list[_Asked], reader: StreamingReader, answers: dict[int, str], bar: Any
    ) -> None:
        """Answer examples about one document; its beginning is read once."""
        shared = shared_tokens([asked.prompt for asked in group])
        document = reader.read(group[0].prompt.ids[:shared])
        for asked in group:
            seed = asked.seed if asked.settings.do_sample else None
            question = Question(asked.prompt.ids[shared:], asked.settings, asked.stop, seed)
            answers[asked.index] = document.ask(question, last=asked is group[-1]).text
            bar.update(1)

    # -- what it is -------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval stores beside the scores; asks no hub."""
        layouts = [
            {
                "window": layer.window,
                "sinks": layer.sinks if layer.window is not None else None,
                "cell": layer.cell,
                **layer.pooled,
            }
            for layer in self.model.layout
        ]
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "pretrained": self._path,
            "ahn": self._ahn_path,
            "variant": self.variant,
            "layout": layouts,
        }


def _check_options(
    unknown: dict[str, Any], window: object, sinks: object, max_length: object
) -> None:
    problems = Problems()
    for name, value in unknown.items():
        if name in _REFUSED and value:
            problems.add(f"--model_args {name}: {_REFUSED[name]}")
        elif name not in _REFUSED:
            problems.add(f"--model_args {name}: unknown option of the model 'ahn'")
    for name, number in (("window", window), ("sinks", sinks), ("max_length", max_length)):
        if name == "window" and isinstance(number, list | tuple):
            problems.add(
                f"--model_args window: takes one window, not {len(number)}; run_eval compares "
                "several in one run (--window 1k,2k)"
            )
            continue
        fits = isinstance(number, int) and not isinstance(number, bool) and number <= 10**9
        if number is not None and not fits:
            problems.add(f"--model_args {name}: {number!r} is not a number of tokens")
    problems.check()


def _new_tokens(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**9:
        raise InputError(f"--gen_kwargs max_gen_toks: should be a number of tokens, not {value!r}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else list(value or ())
    if not all(isinstance(text, str) and text for text in texts):
        raise InputError(f"--gen_kwargs until: should be texts, not {value!r}")
    return tuple(texts)


def _by_document(asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """Groups about one document of one task, the longest first."""
    groups: dict[tuple[str, str, str], list[_Asked]] = defaultdict(list)
    for one in asked:
        document = one.document
        key = (document.task.benchmark, document.task.name, document.example.document_id)
        groups[key].append(one)
    return sorted(groups.values(), key=lambda group: -max(one.prompt.tokens for one in group))
