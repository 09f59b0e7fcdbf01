"""A text with a colour for each token: how large the gradient at its embedding is.

One hue from light to dark, so that those who cannot tell colours apart, and a print in grey, keep
the order; steps are equal in the logarithm. The number stands on hover and in a table. Used by
`ahn probe` and by reports; the look is `STYLE`, which a page adds to its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from markupsafe import Markup

from common.probes import ProbedDocument, ProbedToken

LEVELS = 8
"""Colours."""
LEAST = 1e-4
"""Share of the largest norm below which all have the lightest colour."""
MOST_DRAWN = 4_000
"""Tokens that are drawn; what is left out is said."""
MOST_ROWS = 1_000
"""Tokens in the table; likewise."""

_COLOURS = (
    ("f2f6fc", "111"),
    ("dbe7f6", "111"),
    ("bdd5ee", "111"),
    ("94bee2", "111"),
    ("66a3d3", "111"),
    ("3b82bf", "fff"),
    ("1b5c9c", "fff"),
    ("08306b", "fff"),
)
"""Of a level: background and letters, which differ by 4 to 1 at least."""

STYLE = (
    """
.tokens { margin: 10px 0; padding: 12px 14px; border: 1px solid #cfd6de; border-radius: 8px;
  background: #fff; color: #111; font: 14px/2 ui-monospace, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.tok { padding: 2px 0; unicode-bidi: isolate; border-bottom: 1px solid #fff;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.tok.none { background: #fff; color: #111; border-bottom: 1px dotted #5b6470; }
.tok.sink { background: #fff; color: #444; outline: 1px dashed #5b6470; outline-offset: -1px; }
.tok.window { background: #fff; color: #6b7480; font-style: italic; }
.tok.fact { text-decoration: underline 2px; text-underline-offset: 3px; }
.scale { display: flex; flex-wrap: wrap; gap: 4px 10px; margin: 8px 0; padding: 0;
  list-style: none; font-size: 13px; font-variant-numeric: tabular-nums; }
.scale .tok { padding: 2px 7px; margin-right: 5px; border: 1px solid #cfd6de; }
"""
    + "\n".join(
        f".tok.g{i} {{ background: #{paper}; color: #{ink}; }}"
        for i, (paper, ink) in enumerate(_COLOURS)
    )
    + "\n"
)


def edges(norms: Sequence[float]) -> list[float]:
    """The `LEVELS + 1` ends of the colours' ranges, ascending; none where no norm is above 0."""
    positive = [norm for norm in norms if norm > 0]
    if not positive:
        return []
    most = max(positive)
    least = max(min(positive), most * LEAST)
    return [least * (most / least) ** (i / LEVELS) for i in range(LEVELS)] + [most]


def level(norm: float, ends: Sequence[float]) -> int | None:
    """The colour of a norm, from 0, the lightest; None: the gradient is 0."""
    if norm <= 0 or not ends:
        return None
    return max(0, sum(norm >= end for end in ends[:-1]) - 1)


def number(norm: float) -> str:
    """A norm with three digits: `0.0123`, `4.56e-07`."""
    return f"{norm:.3g}"


def token_map(document: ProbedDocument, groups: Collection[str] = ()) -> Markup:
    """The legend and the coloured tokens of a text: a `<ul>`, a `<p>`, and what was left out.

    Colours are for tokens outside of the window. Sinks, and what is in the window, are marked, and
    have none.

    Args:
        document: with its gradients.
        groups: their tokens are underlined.
    """
    drawn = document.tokens[:MOST_DRAWN]
    ends = edges([token.norm for token in document.tokens if token.place == "outside"])
    spans = Markup("").join(_span(token, ends, groups) for token in drawn)
    left = len(document.tokens) - len(drawn)
    more = Markup('<p class="note">{:,} more tokens are not drawn.</p>').format(left)
    return Markup('{}<p class="tokens">{}</p>{}').format(
        _legend(document, ends, groups), spans, more if left else ""
    )


def _span(token: ProbedToken, ends: Sequence[float], groups: Collection[str]) -> Markup:
    found = level(token.norm, ends)
    look = f"g{found}" if found is not None else "none"
    if token.place != "outside":
        look = token.place
    if token.group in groups:
        look += " fact"
    return Markup('<span class="tok {}" title="{}">{}</span>').format(
        look, _said(token), shown(token.text)
    )


def _said(token: ProbedToken) -> str:
    parts = [f"token {token.position}", f"{number(token.norm)}", token.group or ""]
    parts.append({"outside": "", "sink": "sink", "window": "in the window"}[token.place])
    return ", ".join(part for part in parts if part)


def shown(text: str) -> str:
    """A token as the page shows it: ends of lines are visible, and none is without a letter."""
    if not text:
        return "\N{MIDDLE DOT}"
    return text.replace("\r", "\N{SYMBOL FOR CARRIAGE RETURN}").replace("\n", "\N{RETURN SYMBOL}\n")


def _legend(document: ProbedDocument, ends: Sequence[float], groups: Collection[str]) -> Markup:
    item = Markup('<li><span class="tok {}">{}</span>{}</li>')
    parts = []
    if ends and ends[0] == ends[-1]:
        parts.append(item.format("g0", "all", number(ends[0])))
    elif ends:
        for i in range(LEVELS):
            low = "below" if i == 0 else f"{number(ends[i])} to"
            small = {0: "least", LEVELS - 1: "most"}.get(i, 3 * "\N{NO-BREAK SPACE}")
            parts.append(item.format(f"g{i}", small, f"{low} {number(ends[i + 1])}"))
    there = {token.place for token in document.tokens}
    if any(token.norm <= 0 and token.place == "outside" for token in document.tokens):
        parts.append(item.format("none", "0", "no gradient reaches it"))
    if "sink" in there:
        parts.append(item.format("sink", "sink", "stays visible"))
    if "window" in there:
        parts.append(item.format("window", "window", "seen by the last position"))
    named = [group for group in groups if any(t.group == group for t in document.tokens)]
    if named:
        parts.append(item.format("fact", " and ".join(named), "underlined"))
    return Markup('<ul class="scale" aria-label="Norm of the gradient">{}</ul>').format(
        Markup("").join(parts)
    )


def token_table(document: ProbedDocument) -> Markup:
    """A `<table>` of the tokens outside of the window, in their order: position, token, norm."""
    outside = [token for token in document.tokens if token.place == "outside"]
    grouped = any(token.group is not None for token in outside)
    row = Markup('<tr><td>{}</td><td class="left"><code>{}</code></td>{}<td>{}</td></tr>')
    rows = Markup("\n").join(
        row.format(
            token.position,
            visible(token.text),
            Markup('<td class="left">{}</td>').format(token.group or "") if grouped else "",
            number(token.norm),
        )
        for token in outside[:MOST_ROWS]
    )
    left = len(outside) - MOST_ROWS
    caption = f"{left:,} more tokens are in probe.json." if left > 0 else ""
    return Markup(
        '<table><caption>{}</caption><thead><tr><th>position</th><th class="left">token</th>{}'
        "<th>norm</th></tr></thead><tbody>{}</tbody></table>"
    ).format(caption, Markup('<th class="left">group</th>') if grouped else "", rows)


def visible(text: str) -> str:
    """A token in a table: blanks are visible, too."""
    made = text.replace("\n", "\N{RETURN SYMBOL}").replace("\t", "\N{RIGHTWARDS ARROW TO BAR}")
    return (made.replace(" ", "\N{OPEN BOX}")) or "\N{MIDDLE DOT}"


def outside(document: ProbedDocument) -> list[ProbedToken]:
    """Its tokens outside of the window, smallest gradient first."""
    found = (token for token in document.tokens if token.place == "outside")
    return sorted(found, key=lambda token: (token.norm, token.position))
