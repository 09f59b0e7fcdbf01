"""Probes of gradients: read strictly, compared by groups, drawn for those who see no colours."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any, Literal

import pytest

from common.errors import InputError
from common.probes import Probe, ProbedDocument, ProbedToken, as_json, write_probe
from common.token_map import LEVELS, MOST_DRAWN, edges, level, token_map, token_table
from reports.gradients import (
    cliffs_delta,
    effect,
    find_probes,
    gradient_figure,
    read_probe,
)


def document(norms: Sequence[float], groups: Sequence[str | None] = (), **options: Any) -> Any:
    """A text whose tokens all lie outside of the window."""
    named = [*groups, *[None] * (len(norms) - len(groups))]
    tokens = tuple(
        ProbedToken(position=i, text=f" w{i}", place="outside", norm=norm, group=group)
        for i, (norm, group) in enumerate(zip(norms, named, strict=True))
    )
    fields: dict[str, Any] = {
        "id": "a",
        "length": len(norms) + 9,
        "kl": 0.5,
        "positions": 4,
        "tokens": tokens,
    }
    return ProbedDocument(**fields | options)


def probe(*documents: Any) -> Probe:
    return Probe(
        model="pocket",
        ahn="pocket/gdn",
        variant="ahn",
        cell="GatedDeltaNet",
        window=9,
        sinks=0,
        dtype="float32",
        compared="beyond",
        documents=documents or (document([1.0, 2.0]),),
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = probe(document([0.0, 1e-30, 3.5], ["fact", "filler"], recalled=True))
    path = write_probe(tmp_path, made)
    assert path.name == "probe.json"
    assert read_probe(path) == read_probe(tmp_path) == made
    content = json.loads(path.read_text())
    assert content["schema"] == "ahn-bench probe 1"
    assert content["documents"][0]["tokens"][1] == {
        "position": 1, "text": " w1", "place": "outside", "norm": 1e-30, "group": "filler",
    }  # fmt: skip
    assert write_probe(tmp_path, made) == path, "a probe replaces a probe"


def test_probes_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("b", "a/deep"):
        (tmp_path / name).mkdir(parents=True)
        write_probe(tmp_path / name, probe())
    assert list(find_probes(tmp_path)) == [
        tmp_path / "a" / "deep" / "probe.json",
        tmp_path / "b" / "probe.json",
    ]


def test_a_file_that_is_no_probe_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    content = as_json(probe())
    token = content["documents"][0]["tokens"][0]
    path = tmp_path / "probe.json"
    for text, said in (
        ("{", "not JSON"),
        ("[]", "is no probe"),
        (json.dumps({"schema": "other"}), "is no probe"),
        (json.dumps({**content, "windows": 3}), "windows: there is no such key"),
        (json.dumps({**content, "documents": []}), "documents"),
        (json.dumps(content).replace(json.dumps(token), '{"position": 0}'), "norm: is missing"),
        (json.dumps(content).replace('"norm": 1.0', '"norm": -1.0'), "must be at least 0"),
        (json.dumps(content).replace('"norm": 1.0', '"norm": NaN'), "NaN"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=re.escape(said)) as caught:
            read_probe(path)
        assert str(path) in str(caught.value)
        with pytest.raises(InputError, match="not replaced"):
            write_probe(tmp_path, probe())
        assert path.read_text() == text
    with pytest.raises(InputError):
        read_probe(tmp_path / "absent")


def test_cliffs_delta_counts_pairs() -> None:
    assert cliffs_delta([3, 4], [1, 2]) == 1
    assert cliffs_delta([1], [1, 1, 1]) == 0
    assert cliffs_delta([1, 2], [1, 2, 3]) == pytest.approx((0 - 2 + 1 - 1) / 6)
    rng = random.Random(0)
    a = [rng.randint(0, 9) for _ in range(30)]
    b = [rng.randint(2, 11) for _ in range(40)]
    pairs = [(x > y) - (x < y) for x in a for y in b]
    assert cliffs_delta(a, b) == pytest.approx(sum(pairs) / len(pairs))
    with pytest.raises(ValueError):
        cliffs_delta([], [1])


def test_an_effect_weighs_documents_not_tokens() -> None:
    few = document([4.0, 1.0], ["fact", "filler"])
    many = document([1.0] * 50 + [2.0], ["fact"] * 50 + ["filler"], id="b")
    nothing = document([7.0, 8.0], ["fact"])
    found = effect([few, many, nothing], "fact", "filler")
    assert found is not None
    assert (found.documents, found.delta) == (2, 0.0)
    assert -1 <= found.low < 0 < found.high <= 1
    assert found.ratio == pytest.approx(math.sqrt(4 * 0.5))
    assert effect([nothing], "fact", "filler") is None
    asked = [document([4.0, 1.0], ["fact", "filler"], id=f"{t}#{q}") for t in "ab" for q in "01"]
    again = effect(asked, "fact", "filler")
    assert again is not None and (again.documents, again.delta) == (2, 1), "texts are counted"
    zero = effect([document([0.0, 1.0], ["fact", "filler"])], "fact", "filler")
    assert zero is not None and zero.ratio is None and zero.delta == -1


def test_tokens_in_the_window_and_sinks_are_in_no_group() -> None:
    unseen: list[Literal["sink", "window"]] = ["sink", "window"]
    tokens = [
        ProbedToken(position=0, text="x", place=place, norm=9.0, group="fact") for place in unseen
    ]
    tokens.append(ProbedToken(position=1, text="x", place="outside", norm=1.0, group="fact"))
    tokens.append(ProbedToken(position=2, text="x", place="outside", norm=2.0, group="filler"))
    made = document([]).model_copy(update={"tokens": tuple(tokens)})
    found = effect([made], "fact", "filler")
    assert found is not None and found.delta == -1


def test_colours_are_equal_steps_of_the_logarithm() -> None:
    norms = [1.0, *(1.1 * 10.0**-i for i in range(1, 7))]
    ends = edges(norms)
    assert (ends[0], ends[-1]) == (1e-4, 1.0), "four powers of ten at most"
    steps = [b / a for a, b in zip(ends, ends[1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * LEVELS)
    assert [level(norm, ends) for norm in norms] == [7, 6, 4, 2, 0, 0, 0]
    assert level(0.0, ends) is None
    assert edges([0.0]) == [] and level(0.0, []) is None
    assert level(2.0, edges([2.0])) is not None


def test_a_hostile_token_is_a_text_of_the_page() -> None:
    made = document([1.0, 2.0]).model_copy(
        update={
            "tokens": (
                ProbedToken(
                    position=0, text="<script>a</script>", place="outside", norm=1, group='"x'
                ),
                ProbedToken(position=1, text="\n", place="outside", norm=2),
                ProbedToken(position=2, text="", place="sink", norm=0),
            )
        }
    )
    for drawn in (token_map(made, ['"x']), token_table(made)):
        assert "<script" not in drawn and "&lt;script&gt;" in drawn
    assert "\N{RETURN SYMBOL}\n" in token_map(made)
    assert 'title="token 1, 2"' in token_map(made)


def test_the_figure_says_every_number() -> None:
    made = probe(document([0.5, 0.0, 2.0], ["fact", "filler", "filler"]))
    drawn = gradient_figure(made)
    assert drawn.count('<span class="tok g7') == 2, "the largest, and its colour in the legend"
    assert 'title="token 0, 0.5, fact"' in drawn and "tok g0 fact" in drawn
    assert "no gradient reaches it" in drawn
    cells = [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", drawn)]
    assert cells[:4] == ["0", "<code>␣w0</code>", "fact", "0.5"]
    assert len(cells) == 12


def test_what_is_not_drawn_is_said() -> None:
    drawn = token_map(document([1.0] * (MOST_DRAWN + 3)))
    assert "3 more tokens are not drawn" in drawn
