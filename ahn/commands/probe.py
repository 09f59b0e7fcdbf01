"""`ahn probe`: gradients at the tokens outside of the window, as a page, a file and a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ahn.checkpoints.load import load_resolved
from ahn.commands.generate import Prepared, prepared
from ahn.commands.options import ProbeSettings
from ahn.commands.prompting import harmless
from ahn.config import LayerLayout
from ahn.models.layouts import check_length, span_of
from common import token_map
from common.errors import InputError
from common.notices import tell_once
from common.pages import PAGE_IS, check_replaces, is_page, page
from common.probes import (
    NAME,
    Probe,
    ProbedDocument,
    ProbedToken,
    as_json,
    check_probe_target,
    write_probe,
)
from common.writing import check_folder_writable, write_whole

PAGE = "probe.html"

_STYLE = (
    """
:root { color-scheme: light dark; }
body { max-width: 1060px; margin: 0 auto; padding: 30px 22px 50px; line-height: 1.5;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 8px; } h2 { font-size: 18px; margin: 26px 0 4px; }
p.note, caption { color: GrayText; font-size: 14px; text-align: left; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr));
  gap: 10px 40px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid #8884; }
td.left, th.left { text-align: left; } code { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; margin-top: 20px; }
dt { font-weight: 600; margin-top: 8px; } dd { margin: 0; }
@media print { body { padding: 0; font-size: 12px; } }
"""
    + token_map.STYLE
)

_COMPARED = {
    "beyond": "all positions from {first:,} on (counted from 0), which do not see every token",
    "last": "the last position alone, which sees none of the tokens outside of the window",
    "answer": "the positions that predict the answer",
}


ProbeText = Callable[[Any, Any, Sequence[int], Sequence[int] | None], ProbedDocument]
"""From a model, its tokenizer, a text and the compared positions: `ahn.distill.probe.probe_text`,
handed in, as commands do not hang on training."""


def show(asked: ProbeSettings, probe_text: ProbeText) -> None:
    """Probe, write the page and the file, and print what stands out.

    Raises:
        InputError: anything that does not fit; before weights are loaded, where they do not tell.
    """
    given = prepared(asked)
    window, sinks = span_of(given.checkpoint.layout)
    check_length(len(given.ids), window, sinks)
    context = given.checkpoint.context
    if context is not None and len(given.ids) > context:
        raise InputError(
            f"the prompt has {len(given.ids):,} tokens, the model {context:,} positions: the "
            "teacher, which attends to all of them, is none beyond; stretch them with "
            "--yarn-factor, or give a shorter prompt"
        )
    check_folder_writable(asked.output)
    check_probe_target(asked.output / NAME)
    check_replaces(asked.output / PAGE, is_page, PAGE_IS)
    for notice in given.checkpoint.notices:
        tell_once(notice)
    probe = probed(given, asked, probe_text)
    asked.output.mkdir(parents=True, exist_ok=True)
    made = write_probe(asked.output, probe)
    write_whole(asked.output / PAGE, render(probe, asked.top))
    if asked.json_:
        click.echo(json.dumps(as_json(probe), indent=1, ensure_ascii=False))
    else:
        _print(probe, asked.top)
    click.echo(f"page: {asked.output / PAGE}\nfile: {made}", err=asked.json_)


def probed(given: Prepared, asked: ProbeSettings, probe_text: ProbeText) -> Probe:
    """Load the model and compute.

    Raises:
        InputError: what only the weights tell, and a device that is too small.
    """
    import torch

    positions = [len(given.ids) - 1] if asked.compared == "last" else None
    try:
        model = load_resolved(given.checkpoint)
        document = probe_text(model, given.tokenizer, given.ids, positions)
    except torch.OutOfMemoryError:
        raise InputError(
            f"{len(given.ids):,} tokens do not fit into the device's memory with their gradients; "
            "give a shorter prompt, --dtype bfloat16, or another --device"
        ) from None
    layouts = given.checkpoint.layout
    window, sinks = span_of(layouts)
    cells = {seen.cell for seen in layouts} - {None}
    return Probe(
        model=asked.model,
        ahn=asked.ahn if given.checkpoint.memory is not None else None,
        variant=given.checkpoint.settings.variant,
        cell=", ".join(sorted(filter(None, cells))) or None,
        window=window,
        sinks=sinks,
        dtype=given.checkpoint.dtype,
        compared=asked.compared,
        documents=(document,),
        notes=tuple(_notes(layouts, document.tokens, given.checkpoint.dtype)),
    )


def _notes(layouts: Sequence[LayerLayout], tokens: Sequence[ProbedToken], dtype: str) -> list[str]:
    found = []
    full = [str(number) for number, seen in enumerate(layouts) if seen.window is None]
    if full:
        found.append(
            f"Layers {', '.join(full)} have full attention: tokens outside of the others' windows "
            "reach all positions through them."
        )
    if dtype not in ("float32", "float64"):
        found.append(
            f"Computed in {dtype}: small gradients are rounded, and the smallest to 0; --dtype "
            "float32 keeps them."
        )
    beyond = [token.norm for token in tokens if token.place == "outside"]
    if not any(beyond):
        found.append(
            "No gradient reaches any token outside of the window: nothing that is compared depends "
            "on them. That is not the same as kept."
        )
    return found


# -- the page ------------------------------------------------------------------------------------


def render(probe: Probe, top: int) -> bytes:
    """The page of a probe of one text."""
    document = probe.documents[0]
    outside = token_map.outside(document)
    body = Markup(
        "<h1>{title}</h1>\n<p>{lead}</p>\n<p class='note'>{reading}</p>\n{notes}"
        "<h2>The text</h2>\n{map}\n<h2>Smallest and largest gradients</h2>\n"
        "<div class='pair'>{low}{high}</div>\n"
        "<details><summary>All {count:,} tokens outside of the window</summary>{table}</details>\n"
        "<details open><summary>What was computed</summary><dl>{facts}</dl></details>"
    ).format(
        title=f"Gradients at {len(outside):,} tokens outside of the window",
        lead=_sentence(probe),
        reading="Light: a small gradient. The paper (figure 5) reads it as kept by the memory; it "
        "is as small where nothing that is compared depends on the token. Dark: a large gradient, "
        "where the student's difference to the teacher hangs on the token.",
        notes=Markup("").join(Markup("<p class='note'>{}</p>\n").format(n) for n in probe.notes),
        map=token_map.token_map(document),
        low=_list("Smallest", outside[:top]),
        high=_list("Largest", outside[::-1][:top]),
        count=len(outside),
        table=token_map.token_table(document),
        facts=Markup("").join(
            Markup("<dt>{}</dt><dd>{}</dd>").format(name, value) for name, value in _facts(probe)
        ),
    )
    return page("gradients outside of the window", _STYLE, body)


def _list(title: str, tokens: Sequence[ProbedToken]) -> Markup:
    row = Markup("<tr><td>{}</td><td class='left'><code>{}</code></td><td>{}</td></tr>")
    rows = Markup("").join(
        row.format(token.position, token_map.visible(token.text), token_map.number(token.norm))
        for token in tokens
    )
    return Markup(
        "<table><caption>{}</caption><thead><tr><th>position</th><th class='left'>token</th>"
        "<th>norm</th></tr></thead><tbody>{}</tbody></table>"
    ).format(title, rows)


def _sentence(probe: Probe) -> str:
    document = probe.documents[0]
    memory = f"{probe.variant} ({probe.cell})" if probe.cell else probe.variant
    return (
        f"{probe.model}, {memory}, window {probe.window:,}, sinks {probe.sinks:,}: "
        f"{document.length:,} tokens; KL(full attention || student) {document.kl:.4g} nats, mean "
        f"of {document.positions:,} position{'s' if document.positions != 1 else ''}."
    )


def _facts(probe: Probe) -> list[tuple[str, str]]:
    compared = _COMPARED[probe.compared].format(first=probe.window + probe.sinks)
    return [
        ("Number of a token", "L2 norm of the gradient of KL(teacher || student) at its embedding"),
        ("Teacher", f"{probe.model} with full attention; its distributions are constants"),
        ("Student", f"variant {probe.variant}, memory {probe.ahn or probe.cell or 'none'}"),
        ("Compared at", f"{compared}; mean over them"),
        ("Outside of the window", "what the last position does not see: behind the sinks, before "
         f"the last {probe.window:,} tokens"),
        ("Computed in", probe.dtype),
    ]  # fmt: skip


# -- the terminal --------------------------------------------------------------------------------


def _print(probe: Probe, top: int) -> None:
    console = Console(highlight=False)
    console.print(Text(harmless(_sentence(probe))))
    outside = token_map.outside(probe.documents[0])
    for title, tokens in (("smallest", outside[:top]), ("largest", outside[::-1][:top])):
        console.print(f"\n{title} gradients of {len(outside):,} tokens outside of the window")
        table = Table(box=None, pad_edge=False)
        table.add_column("position", justify="right")
        table.add_column("token", overflow="fold")
        table.add_column("norm", justify="right")
        for token in tokens:
            text = Text(harmless(token_map.visible(token.text)))
            table.add_row(str(token.position), text, token_map.number(token.norm))
        console.print(table)
    for note in probe.notes:
        console.print(Text(f"note: {note}"))
