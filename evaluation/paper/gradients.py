"""Figure 5 in miniature: gradients at the tokens of facts and of filler, over generated documents.

The paper shows one text and reads small gradients as what the memory has kept. Here it is known
what each token belongs to, which fact is asked for, and whether the student's answer was right.
So two readings are tested, over documents that the embedded model and its memories can read:

- within a text, are gradients at facts smaller than at filler?
- are they smaller at a fact whose answer the student gave right than, in the same text, at one
  whose answer it did not?

Each document is read with each memory at the positions beyond the window, as in the paper, and at
those that predict the answer of each question, which is what the embedded memories were trained
for: their teacher is taught no more than answers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
from markupsafe import Markup

from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.names import ahn_path, embedded_memories, model_path
from common import charts
from common.errors import InputError
from common.pages import PAGE_IS, check_replaces, is_page, page
from common.probes import (
    NAME,
    Effect,
    Probe,
    ProbedDocument,
    ProbedToken,
    check_probe_target,
    read_probe,
    write_probe,
)
from common.suggestions import did_you_mean
from common.writing import check_folder_writable, write_whole
from evaluation.paper.options import GradientsRun
from evaluation.plan.identity import file_sha256
from reports.gradients import (
    STYLE,
    effect,
    effect_of_recall,
    effects_chart,
    gradient_figure,
)
from tasks.pocket.documents import Document, make_document
from tasks.pocket.facts import KINDS

PAGE = "figure5.html"
DOCUMENTS = 100
WINDOW, SINKS = 128, 4
LENGTH = 512
"""Tokens of a document with room for all of its questions."""
FACTS = 6
QUESTIONS = 2
"""Asked of each document: with both answers right in some, one in others."""
MIN_DISTANCE, LEAD = 160, 10
"""As of the pocket tasks: all facts lie behind the sinks and outside of the last window."""
DIGITS = 5
"""Of a norm in the file."""

_KINDS = tuple(kind for kind in KINDS if kind != "two_hop")  # whose facts do not fit so often
Compared = Literal["beyond", "answer"]
COMPARED: tuple[Compared, ...] = ("beyond", "answer")
Update = Callable[[int, int], None]


@dataclass(frozen=True)
class Question:
    """A document with one of its questions and the answer, as tokens.

    Attributes:
        id: `document#question`.
        ids: of all of it.
        answer: so many tokens at the end are the answer.
        groups: of the tokens of the document: `asked`, `fact` or `filler`, by position.
    """

    id: str
    ids: tuple[int, ...]
    answer: int
    groups: dict[int, str]


def documents(limit: int = DOCUMENTS) -> Iterator[tuple[int, Document]]:
    """Generated documents, the same ones always; a shorter list is the beginning of a longer."""
    for number in range(limit):
        yield (
            number,
            make_document(
                random.Random(f"pocket-figure5/{number}"),
                _KINDS[number % len(_KINDS)],
                length=LENGTH,
                facts=FACTS,
                questions=FACTS,
                split="test",
                min_distance=MIN_DISTANCE,
                lead=LEAD,
            ),
        )


def questions(tokenizer: Any, number: int, document: Document) -> list[Question]:
    """The questions that are asked about a document."""
    made = []
    for asked in range(QUESTIONS):
        question = document.questions[asked]
        text = f" {document.context} {question.question} {question.answer}"
        ids = tokenizer(text)["input_ids"]
        groups = dict.fromkeys(range(1, 1 + len(document.context.split())), "filler")
        for index, other in enumerate(document.questions):
            for start, end in other.evidence:  # in words; <bos> is the first token
                span = range(start + 1, end + 1)
                groups |= dict.fromkeys(span, "asked" if index == asked else "fact")
        answer = len(question.answer.split())
        made.append(Question(f"{number}#{asked}", tuple(ids), answer, groups))
    return made


def probe_question(
    model: Any, tokenizer: Any, asked: Question, compared: Compared, right: bool
) -> ProbedDocument:
    """One document as it is recorded: its sinks and its tokens outside of the window."""
    from ahn.distill.probe import probe_text

    first = len(asked.ids) - asked.answer - 1  # predicts the answer's first token
    positions = range(first, len(asked.ids) - 1) if compared == "answer" else None
    found = probe_text(model, tokenizer, asked.ids, positions)
    tokens = tuple(
        ProbedToken(
            position=token.position,
            text=token.text,
            place=token.place,
            norm=float(f"{token.norm:.{DIGITS}g}"),
            group=asked.groups.get(token.position),
        )
        for token in found.tokens
        if token.place != "window"
    )
    return found.model_copy(update={"id": asked.id, "tokens": tokens, "recalled": right})


def recalled(model: Any, asked: Question) -> bool:
    """Whether the student's most probable tokens are the answer, greedily: word for word."""
    import torch

    first = len(asked.ids) - asked.answer - 1
    with torch.no_grad():
        ids = torch.tensor([asked.ids], device=model.device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=asked.answer + 1).logits
    # each token is judged with the right ones before it: all are right if and only if decoding is
    return bool(logits[0, :-1].argmax(-1).tolist() == list(asked.ids[first + 1 :]))


def probe_memory(
    memory: str, limit: int = DOCUMENTS, update: Update | None = None, **placement: Any
) -> dict[Compared, Probe]:
    """Both probes of one of the embedded memories.

    Args:
        memory: its name, `pocket/gdn`.
        limit: documents.
        update: is told how many documents are done, of how many.
        placement: `device` and `dtype` of `ahn.load_model`.
    """
    import ahn
    from ahn.checkpoints.tokenizer import load_tokenizer

    model = ahn.load_model("pocket", ahn=memory, window=WINDOW, sinks=SINKS, **placement)
    tokenizer = load_tokenizer("pocket")
    found: dict[Compared, list[ProbedDocument]] = {"beyond": [], "answer": []}
    for number, document in documents(limit):
        asked = questions(tokenizer, number, document)
        right = [recalled(model, question) for question in asked]
        found["beyond"].append(probe_question(model, tokenizer, asked[0], "beyond", right[0]))
        found["answer"] += [
            probe_question(model, tokenizer, question, "answer", was_right)
            for question, was_right in zip(asked, right, strict=True)
        ]
        if update is not None:
            update(number + 1, limit)
    return {
        compared: Probe(
            model="pocket",
            ahn=memory,
            variant="ahn",
            cell=next(seen.cell for seen in model.layout if seen.cell),
            window=WINDOW,
            sinks=SINKS,
            dtype=str(model.dtype).removeprefix("torch."),
            compared=compared,
            documents=tuple(made),
            effects=tuple(effects_of(made)),
            weights=weights_sha256(memory),
        )
        for compared, made in found.items()
    }


def weights_sha256(memory: str) -> tuple[str, ...]:
    """SHA-256 (hex) of the weight files of the base model and of one of its memories, sorted."""
    places = (model_path("pocket"), ahn_path(memory))
    files = (file for place in places for file in CheckpointFiles(place).weight_files)
    return tuple(sorted(file_sha256(file) for file in files))


def effects_of(made: Sequence[ProbedDocument]) -> list[Effect]:
    """The effects that the documents have something for."""
    found = (
        effect(made, "asked", "filler"),
        effect(made, "fact", "filler"),
        effect_of_recall(made, "asked"),
        effect_of_recall(made, "asked", "filler"),
    )
    return [one for one in found if one is not None]


def run_figure5(
    output: Path,
    memories: Sequence[str],
    limit: int = DOCUMENTS,
    progress: Callable[[str], Update] | None = None,
    overwrite: bool = False,
    **placement: Any,
) -> dict[str, dict[Compared, Probe]]:
    """Probe the memories, and write `NAME/beyond`, `NAME/answer` and the page into a folder.

    A memory whose probes are there, of the same weights, documents and type, is not probed again.

    Args:
        output: the folder; it is made.
        memories: names of embedded memories, `pocket/gdn`.
        limit: documents.
        progress: makes what is told how far a memory is.
        overwrite: probe all of them anew.
        placement: as in `probe_memory`.

    Raises:
        InputError: what is there and is not a probe's, before anything is computed.
    """
    folders = {
        (memory, kind): output / memory.rpartition("/")[2] / kind
        for memory in memories
        for kind in COMPARED
    }
    check_folder_writable(output)
    check_replaces(output / PAGE, is_page, PAGE_IS)
    for folder in folders.values():
        check_probe_target(folder / NAME)
    made: dict[str, dict[Compared, Probe]] = {}
    for memory in memories:
        update = progress(memory) if progress else None
        there = None if overwrite else _done(output, memory, limit, placement.get("dtype"))
        if there is not None:
            made[memory] = there
            if update is not None:
                update(limit, limit)
            continue
        made[memory] = probe_memory(memory, limit, update, **placement)
        for compared, probe in made[memory].items():
            folder = folders[memory, compared]
            folder.mkdir(parents=True, exist_ok=True)
            write_probe(folder, probe)
    write_whole(output / PAGE, render(_earlier(output, made) | made))
    return made


def _done(output: Path, memory: str, limit: int, dtype: str | None) -> dict[Compared, Probe] | None:
    """The probes of a memory that are in the folder, where they are what would be made now."""
    files = {kind: output / memory.rpartition("/")[2] / kind / NAME for kind in COMPARED}
    if not all(file.is_file() for file in files.values()):
        return None
    found = {kind: read_probe(file) for kind, file in files.items()}
    texts = {"beyond": limit, "answer": limit * QUESTIONS}
    asked = {"ahn": memory, "window": WINDOW, "sinks": SINKS, "dtype": dtype}
    weights = weights_sha256(memory)
    same = all(
        len(probe.documents) == texts[kind]
        and probe.weights == weights
        and all(getattr(probe, key) == value for key, value in asked.items())
        for kind, probe in found.items()
    )
    return found if same else None


def _earlier(
    output: Path, made: Mapping[str, Mapping[Compared, Probe]]
) -> dict[str, dict[Compared, Probe]]:
    """Probes of the other memories that are in the folder, which the page shows, too."""
    found: dict[str, dict[Compared, Probe]] = {}
    for memory in (f"pocket/{name}" for name in embedded_memories()):
        files = {kind: output / memory.rpartition("/")[2] / kind / NAME for kind in COMPARED}
        if memory not in made and all(file.is_file() for file in files.values()):
            found[memory] = {kind: read_probe(file) for kind, file in files.items()}
    return found


def show(asked: GradientsRun) -> None:
    """Run as the command asks, and print the effects.

    Raises:
        InputError: another model, a memory that there is not, or a file that is not replaced.
    """
    from rich import box
    from rich.table import Table

    from common.progress import ProgressBar
    from evaluation.commands.run import quieten
    from evaluation.commands.terminal import console

    quieten()
    names = _memories(asked)
    output = Path(asked.output) / asked.model / "figure5"
    with ProgressBar(console(stderr=True), "documents") as bar:
        made = run_figure5(
            output,
            names,
            asked.limit or DOCUMENTS,
            lambda memory: partial(bar.update, what=memory),
            overwrite=asked.overwrite,
            device=asked.device,
            dtype=asked.dtype,
        )
    if asked.json_:
        effects = {
            memory: {kind: [e.model_dump() for e in probe.effects] for kind, probe in kinds.items()}
            for memory, kinds in made.items()
        }
        click.echo(json.dumps(effects, indent=1, ensure_ascii=False))
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in HEADINGS:
            justify: Any = "left" if heading in HEADINGS[:3] else "right"
            table.add_column(heading, justify=justify)
        for row in rows_of(made):
            table.add_row(*row)
        console().print(table)
    click.echo(f"page: {output / PAGE}", err=asked.json_)


def _memories(asked: GradientsRun) -> list[str]:
    """Names of the embedded memories that are asked for.

    Raises:
        InputError: there is no such memory, or the model is another, of whose text nobody has one.
    """
    if asked.model != "pocket":
        raise InputError(
            f"figure5 --model {asked.model}: the paper's text is not published; probe one of "
            "yours: ahn probe --model MODEL --ahn WEIGHTS --prompt-file FILE --window 512 (the "
            "paper's has 811 tokens); --model pocket tests the figure over generated documents"
        )
    known = embedded_memories()
    names = [name.removeprefix("pocket/") for name in asked.ahn]
    names = names or [name for name in known if "/" not in name]
    problems = [
        f"--ahn {name}: no embedded memory; one of {', '.join(known)}{did_you_mean(name, known)}"
        for name in names
        if name not in known
    ]
    if problems:
        raise InputError(*problems)
    return [f"pocket/{name}" for name in names]


# -- the page ------------------------------------------------------------------------------------

_STYLE = (
    """
body { max-width: 1060px; margin: 0 auto; padding: 30px 22px 50px; background: #fff; color: #111;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 24px; } h2 { font-size: 18px; margin: 28px 0 4px; } figure { margin: 0; }
p.note, caption { color: #5b6470; font-size: 14px; text-align: left; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 16px 4px 0; text-align: right; border-bottom: 1px solid #dde1e6; }
td.left, th.left { text-align: left; } summary { cursor: pointer; } svg.chart { max-width: 720px; }
"""
    + charts.STYLE
    + STYLE
)

_TITLES: dict[Compared, str] = {
    "beyond": "Compared at all positions beyond the window",
    "answer": "Compared at the positions that predict the answer",
}


def render(made: Mapping[str, Mapping[Compared, Probe]]) -> bytes:
    """The page: effects of all memories, and one text."""
    first = next(iter(made.values()))
    count = len(first["beyond"].documents)
    parts = [
        Markup("<h1>Figure 5 in miniature: gradients at facts and filler</h1>\n<p>{}</p>").format(
            f"{count:,} generated documents, {FACTS} facts each, window {WINDOW}, sinks {SINKS}. "
            "L2 norm of the gradient of KL(full attention || memory) at the embedding of each "
            "token outside of the window. Cliff's delta, times 100, with its 95 % interval: above "
            "0 the first group's gradients are larger. The paper reads small gradients as kept."
        )
    ]
    for compared, title in _TITLES.items():
        parts.append(Markup("<h2>{}</h2>").format(title))
        names = dict.fromkeys(e.title for probes in made.values() for e in probes[compared].effects)
        for name in names:
            rows = [
                (memory, one)
                for memory, probes in made.items()
                for one in probes[compared].effects
                if one.title == name
            ]
            parts.append(Markup("<figure>{}</figure>").format(effects_chart(name, rows)))
        parts.append(_table(made, compared))
    for compared, title in _TITLES.items():
        parts.append(Markup("<h2>One text. {}</h2>").format(title))
        parts.append(gradient_figure(first[compared]))
    return page("figure 5 in miniature", _STYLE, Markup("\n").join(parts))


def rows_of(made: Mapping[str, Mapping[Compared, Probe]]) -> Iterator[tuple[str, ...]]:
    """Memory, compared positions, effect, documents, delta, interval, ratio: as texts."""
    for memory, probes in made.items():
        for compared, probe in probes.items():
            for one in probe.effects:
                yield (
                    memory,
                    compared,
                    one.title,
                    f"{one.documents:,}",
                    f"{one.delta:+.2f}",
                    f"[{one.low:+.2f}, {one.high:+.2f}]",
                    "" if one.ratio is None else f"{one.ratio:.3g}",
                )


HEADINGS = ("memory", "compared", "effect", "documents", "delta", "95 %", "ratio")


def _table(made: Mapping[str, Mapping[Compared, Probe]], compared: Compared) -> Markup:
    cell = Markup("<td{}>{}</td>")
    left = Markup(' class="left"')
    rows = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                cell.format(left if i < 2 else "", value)
                for i, value in enumerate((row[0], *row[2:]))
            )
        )
        for row in rows_of(made)
        if row[1] == compared
    )
    heads = Markup("").join(
        Markup("<th{}>{}</th>").format(left if i < 2 else "", name)
        for i, name in enumerate((HEADINGS[0], *HEADINGS[2:]))
    )
    return Markup(
        "<details><summary>As a table</summary><table><caption>ratio: geometric mean of the first "
        "group's norms over the second's</caption><thead><tr>{}</tr></thead><tbody>{}</tbody>"
        "</table></details>"
    ).format(heads, rows)
