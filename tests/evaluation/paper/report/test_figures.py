"""Figures 3 and 5: folders of perplexity and probes, and what they show of the claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.probes import Effect, Probe, ProbedDocument, ProbedToken, write_probe
from evaluation.commands.cost import find_shape
from evaluation.paper.report.blocks import NotRun, Picture, Section, Tokens, Words
from evaluation.paper.report.page import PaperReport, paper_report, write_paper_report
from evaluation.paper.report.tried import shapes
from reports.perplexity import INFO_FILE, BlockRecord, PerplexityInfo

OF_3B = "Qwen2.5-3B-Instruct"
NASTY = "</style><script>alert(1)</script>"
KINDS = {
    "full": {"variant": "full", "dtype": "float32"},
    "ahn-gdn": {
        "variant": "ahn",
        "cell": "GatedDeltaNet",
        "window": 64,
        "sinks": 4,
        "dtype": "float32",
        "ahn": "/x/gdn",
    },
}


def config_of(model: str) -> dict[str, Any]:
    shape = shapes()[model]
    names = (
        "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
        "head_dim", "intermediate_size", "vocab_size", "tie_word_embeddings",
    )  # fmt: skip
    return {"model_type": "qwen2", **{name: getattr(shape, name) for name in names}}


def book(
    folder: Path,
    losses: Mapping[str, Sequence[float]],
    model: str = OF_3B,
    context: int = 640,
    cache: Mapping[str, Sequence[int]] | None = None,
    **changes: Any,
) -> Path:
    """A folder of `run_eval perplexity`: blocks of 64 tokens with these losses a token."""
    folder.mkdir(parents=True)
    blocks = len(next(iter(losses.values())))
    fields: dict[str, Any] = {
        "identity": "0" * 64,
        "identity_parts": {},
        "created": "2025-11-20T22:00:00+00:00",
        "updated": "2025-11-20T22:00:00+00:00",
        "starts": [
            {
                "time": "2025-11-20T22:00:00+00:00",
                "command": ["run_eval"],
                "configuration": {},
                "git": None,
                "packages": {},
                "hardware": {},
                "environment": None,
            }
        ],
        "command": ["run_eval", "perplexity"],
        "configuration": {},
        "model": "acme/folder",
        "model_settings": config_of(model),
        "data": {"path": "book.txt", "sha256": "ab" * 32, "tokens": 64 * blocks},
        "tokens": 64 * blocks,
        "tokens_sha256": "cd" * 32,
        "prefix": None,
        "context": context,
        "block_tokens": 64,
        "chunk_tokens": 64,
        "peak": None,
        "variants": {name: KINDS[name] for name in losses},
        "status": "finished",
    }
    info = PerplexityInfo(**(fields | changes))
    (folder / INFO_FILE).write_text(info.model_dump_json(), encoding="utf-8")
    for name, of in losses.items():
        lines = [
            BlockRecord(
                variant=name,
                first=64 * i,
                tokens=64,
                scored=64,
                loss=64 * loss,
                cache_bytes=(cache or {}).get(name, [1000] * blocks)[i],
                start=0,
            ).to_line()
            for i, loss in enumerate(of)
        ]
        (folder / f"{name}.jsonl").write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")
    return folder


def probe(folder: Path, model: str = "pocket", low: float = -0.6, high: float = -0.4) -> Path:
    """A probe of one text of three tokens, with an effect."""
    folder.mkdir(parents=True)
    tokens = tuple(
        ProbedToken(position=i, text=text, place="outside", norm=0.1 * (i + 1), group=group)
        for i, (text, group) in enumerate([("amber", "fact"), ("the", "filler"), (NASTY, None)])
    )
    found = Probe(
        model=model,
        variant="ahn",
        cell="GatedDeltaNet",
        window=128,
        sinks=4,
        dtype="float32",
        compared="beyond",
        documents=(ProbedDocument(id="a", length=3, kl=0.1, positions=2, tokens=tokens),),
        effects=(
            Effect(
                title="facts against filler",
                first="fact",
                second="filler",
                documents=100,
                delta=(low + high) / 2,
                low=low,
                high=high,
                method="a rule",
                ratio=0.5,
            ),
        ),
    )
    return write_probe(folder, found)


def section(report: PaperReport, name: str) -> Section:
    return next(s for s in report.sections if s.name == name)


def grows(blocks: int) -> list[int]:
    return [1000 * (i + 1) for i in range(blocks)]


def test_a_book_stands_in_figure_3_with_its_numbers(tmp_path: Path) -> None:
    losses = {"full": [2.0] * 10 + [6.0, 6.2] * 10, "ahn-gdn": [2.1] * 10 + [2.1, 2.2] * 10}
    book(tmp_path / "book", losses, cache={"full": grows(30)})
    report = paper_report([tmp_path])
    figure = section(report, "figure3")
    assert not any(isinstance(block, NotRun) for block in figure.blocks)
    (words,) = (b for b in figure.blocks if isinstance(b, Words))
    assert "1,920 tokens" in words.text and "57K tokens" in words.text and "float32" in words.text
    c = next(b for b in figure.blocks if isinstance(b, Picture) and ", c: " in b.title)
    assert [name for name, _ in c.rows] == ["full", "ahn-gdn"]
    assert c.rows[1][1][2].startswith(f"{(2.1 * 20 + 2.2 * 10) / 30:.4f}"), c.rows[1]
    claims = [one for one in report.claims if one.where == "figure3"]
    assert [one.verdict for one in claims] == ["holds", "holds"]
    assert "Beyond the model's 640 positions" in claims[0].claim
    assert claims[0].seen.startswith("−3.95") and "1,280 tokens" in claims[0].seen
    assert claims[1].seen == "times 1.000, full attention times 10.00"


def test_a_book_that_shows_the_contrary_says_so(tmp_path: Path) -> None:
    losses = {"full": [2.0] * 30, "ahn-gdn": [3.0] * 30}
    book(tmp_path / "book", losses, cache={"ahn-gdn": grows(30), "full": grows(30)})
    claims = [one for one in paper_report([tmp_path]).claims if one.where == "figure3"]
    assert [one.verdict for one in claims] == ["does not hold", "does not hold"]


def test_within_the_models_positions_nothing_is_said_of_what_is_beyond(tmp_path: Path) -> None:
    losses = {"full": [2.0] * 20, "ahn-gdn": [2.5] * 20}
    book(tmp_path / "book", losses, context=32768, cache={"full": grows(20)})
    claims = [one.claim for one in paper_report([tmp_path]).claims if one.where == "figure3"]
    assert len(claims) == 1 and claims[0].startswith("Once the window is full")


def test_a_book_of_pocket_is_in_miniature_and_of_another_model_apart(tmp_path: Path) -> None:
    losses = {"full": [2.0] * 10, "ahn-gdn": [2.5] * 10}
    book(tmp_path / "a", losses, "pocket")
    book(tmp_path / "b", losses, "Qwen2.5-7B-Instruct")
    odd = {**config_of("pocket"), "num_hidden_layers": 5}
    book(tmp_path / "c", losses, model_settings=odd)
    report = paper_report([tmp_path])
    figure = section(report, "figure3")
    assert any(isinstance(block, NotRun) for block in figure.blocks)
    assert [b.title for b in figure.miniature if isinstance(b, Picture)][0].startswith("pocket, c:")
    assert [(line.name, line.use) for line in report.runs] == [
        ("a", "yes"),
        ("b", "no: Figure 3 is of Qwen2.5-3B-Instruct"),
        ("c", "no: Figure 3 is of Qwen2.5-3B-Instruct"),
    ]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.6, -0.4, "holds"), (0.1, 0.2, "does not hold"), (-0.1, 0.2, "cannot be said")],
)
def test_a_probe_stands_in_figure_5(tmp_path: Path, low: float, high: float, verdict: str) -> None:
    file = probe(tmp_path / "probe", low=low, high=high)
    report = paper_report([file])
    figure = section(report, "figure5")
    assert any(isinstance(block, NotRun) for block in figure.blocks)
    assert any(isinstance(block, Tokens) for block in figure.miniature)
    (claim,) = (one for one in report.claims if one.where == "figure5")
    assert claim.verdict == verdict and claim.model == "pocket"
    page = write_paper_report([tmp_path], tmp_path / "paper.html").read_text("utf-8")
    assert ">amber</span>" in page and "<script" not in page and "&lt;script&gt;" in page


def test_of_several_probes_the_first_text_is_drawn_and_all_effects_stand(tmp_path: Path) -> None:
    for name in ("gdn/answer", "gdn/beyond", "dn/beyond"):
        probe(tmp_path / name)
    report = paper_report([tmp_path])
    blocks = section(report, "figure5").miniature
    (drawn,) = (block for block in blocks if isinstance(block, Tokens))
    assert drawn.title.startswith("dn/beyond: ")
    shown = [block.title for block in blocks if isinstance(block, Picture)]
    assert shown == [f"{n}: groups of tokens" for n in ("dn/beyond", "gdn/answer", "gdn/beyond")]
    assert len([one for one in report.claims if one.where == "figure5"]) == 3


def test_costs_over_length_are_drawn_without_a_run(tmp_path: Path) -> None:
    figure = section(paper_report([probe(tmp_path / "p")]), "figure3")
    flops, cache = (b for b in figure.blocks if isinstance(b, Picture))
    at = dict(flops.rows)["128,000"], dict(cache.rows)["128,000"]
    assert at == (("3.29", "1.95"), ("9.44", "2.45")), "Table 9's cells"
    assert flops.columns == ("tokens", "Full Attn", "AHN-GDN")


def test_the_pocket_shape_is_the_one_of_its_folder() -> None:
    assert shapes()["pocket"] == find_shape("pocket")
