"""Figure 5 in miniature: which tokens belong to facts, and what is found over documents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import ahn
from ahn.checkpoints.tokenizer import load_tokenizer
from common.errors import InputError
from common.pages import is_page
from common.probes import ProbedDocument, ProbedToken, read_probe
from evaluation.paper import gradients
from evaluation.paper.gradients import (
    DOCUMENTS,
    FACTS,
    SINKS,
    WINDOW,
    documents,
    effects_of,
    probe_memory,
    questions,
    recalled,
)
from evaluation.paper.options import GradientsRun
from reports.gradients import effect_of_recall, find_probes


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ahn.POCKET_PATH)


def test_groups_name_the_tokens_of_facts(tokenizer: Any) -> None:
    kinds = set()
    for number, document in documents(14):
        kinds.add(document.kind)
        for index, asked in enumerate(questions(tokenizer, number, document)):
            words = [tokenizer.decode([i]).strip() for i in asked.ids]
            question = document.questions[index]
            assert words[-asked.answer :] == question.answer.split()
            said = " ".join(
                words[p] for p, group in sorted(asked.groups.items()) if group == "asked"
            )
            sentences = [
                " ".join(document.context.split()[start:end]) for start, end in question.evidence
            ]
            assert said == " ".join(sentences)
            facts = sum(e - s for q in document.questions for s, e in q.evidence)
            assert sum(group != "filler" for group in asked.groups.values()) == facts
            last = max(p for p, group in asked.groups.items() if group != "filler")
            assert min(p for p, group in asked.groups.items() if group != "filler") >= SINKS
            assert last < len(asked.ids) - WINDOW, "all facts are outside of the window"
    assert len(kinds) == 7


@pytest.mark.slow
def test_all_documents_can_be_made() -> None:
    made = dict(documents())
    assert len(made) == DOCUMENTS == 100
    assert all(document.facts == FACTS for document in made.values())
    assert [document for _, document in documents(3)] == list(made.values())[:3]


def test_an_answer_is_recalled_as_generation_would(tokenizer: Any) -> None:
    import torch

    found = []
    full = ahn.load_model("pocket", "full", dtype="float32")
    window = ahn.load_model("pocket", "window", window=WINDOW, sinks=SINKS, dtype="float32")
    for number, document in documents(1):
        for asked in questions(tokenizer, number, document)[:1]:
            start = torch.tensor([asked.ids[: -asked.answer]])
            for model in (full, window):
                made = model.generate(
                    start, max_new_tokens=asked.answer, do_sample=False, eos_token_id=-1
                )
                right = made[0, start.shape[1] :].tolist() == list(asked.ids[-asked.answer :])
                assert recalled(model, asked) == right
                found.append(right)
    assert found == [True, False]


def test_recall_is_compared_within_a_text() -> None:
    def text(name: str, right: bool | None, asked: float, filler: float = 1.0) -> ProbedDocument:
        norms = (("asked", asked), ("filler", filler))
        tokens = tuple(
            ProbedToken(position=i, text="x", place="outside", norm=norm, group=group)
            for i, (group, norm) in enumerate(norms)
        )
        return ProbedDocument(id=name, length=2, kl=0.0, positions=1, tokens=tokens, recalled=right)

    made = [
        text("0#0", True, 1e-3, 1e-4),
        text("0#1", False, 1.0),
        text("1#0", True, 9.0),  # no wrong answer beside it
        text("2#0", None, 5.0),
    ]
    found = effect_of_recall(made, "asked")
    assert found is not None
    assert (found.documents, found.delta, found.ratio) == (1, -1, pytest.approx(1e-3))
    relative = effect_of_recall(made, "asked", "filler")
    assert relative is not None
    assert (relative.delta, relative.ratio) == (1, pytest.approx(10))
    assert effect_of_recall(made[2:], "asked") is None
    assert [one.title for one in effects_of(made)] == [
        "asked against filler",
        "asked, recalled against lost",
        "asked, recalled against lost, relative to filler",
    ]


def test_the_command_writes_probes_and_a_page(run_eval: Any, tmp_path: Path) -> None:
    flags = ("--model", "pocket", "--limit", 1, "-o", tmp_path)
    result = run_eval("paper", "figure5", *flags, "--ahn", "gdn", "--json")
    assert result.exit_code == 0, result.output
    effects = json.loads(result.stdout)["pocket/gdn"]
    folder = tmp_path / "pocket" / "figure5"
    assert list(find_probes(tmp_path)) == [
        folder / "gdn" / kind / "probe.json" for kind in ("answer", "beyond")
    ]
    for kind, count in (("beyond", 1), ("answer", 2)):
        probe = read_probe(folder / "gdn" / kind)
        assert (probe.compared, probe.ahn, len(probe.documents)) == (kind, "pocket/gdn", count)
        assert [one.model_dump() for one in probe.effects] == effects[kind]
        tokens = probe.documents[0].tokens
        assert {token.place for token in tokens} == {"sink", "outside"}
        assert {token.group for token in tokens[SINKS:]} == {"asked", "fact", "filler"}
    page = (folder / "figure5.html").read_text()
    assert is_page(folder / "figure5.html")
    assert "asked against filler" in page and page.count('<p class="tokens">') == 2


@pytest.mark.slow
def test_earlier_memories_stay_on_the_page(run_eval: Any, tmp_path: Path) -> None:
    for memory in ("gdn", "dn"):
        flags = ("--model", "pocket", "--limit", 1, "-o", tmp_path, "--ahn", memory)
        result = run_eval("paper", "figure5", *flags)
        assert result.exit_code == 0, result.output
        assert re.search(rf"pocket/{memory} +answer +asked against filler", result.stdout)
    page = (tmp_path / "pocket" / "figure5" / "figure5.html").read_text()
    assert page.count('<td class="left">pocket/gdn</td>') >= 2
    assert page.count('<td class="left">pocket/dn</td>') >= 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "qwen2.5-7b"], "ahn probe --model MODEL"),
        (["--ahn", "gdm"], "did you mean 'gdn'"),
        (["--limit", "0"], "--limit"),
        (["--dtype", "int8"], "--dtype"),
        (["--window", "3"], "--window: there is no such option"),
    ],
)
def test_what_does_not_fit_is_refused(
    run_eval: Any, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_eval("paper", "figure5", *words)
    assert result.exit_code == 2 and said in result.stderr and not result.stdout
    assert not list(tmp_path.iterdir())


def test_a_file_of_somebody_else_stays(run_eval: Any, tmp_path: Path) -> None:
    page = tmp_path / "pocket" / "figure5" / "figure5.html"
    page.parent.mkdir(parents=True)
    page.write_text("mine")
    result = run_eval("paper", "figure5", "-o", tmp_path, "--limit", 1)
    assert result.exit_code == 2 and "not replaced" in result.stderr
    assert page.read_text() == "mine" and list(page.parent.iterdir()) == [page]


def test_memories_of_the_ablation_are_probed_where_they_are_named() -> None:
    six = [f"pocket/{cell}{seed}" for cell in ("dn", "gdn", "mamba2") for seed in ("", "-seed1")]
    assert gradients._memories(GradientsRun.model_validate({})) == six
    named = GradientsRun.model_validate({"ahn": ["ablation/kl-random-seed0"]})
    assert gradients._memories(named) == ["pocket/ablation/kl-random-seed0"]


def test_what_was_probed_is_not_probed_again(
    run_eval: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("paper", "figure5", "-o", tmp_path, "--limit", 1, "--ahn", "gdn", "--json")
    first = run_eval(*command)
    assert first.exit_code == 0, first.output
    asked: list[str] = []

    def probe(memory: str, *_: Any, **__: Any) -> None:
        asked.append(memory)
        raise InputError("asked again")

    monkeypatch.setattr(gradients, "probe_memory", probe)
    again = run_eval(*command)
    assert again.exit_code == 0 and again.stdout == first.stdout and asked == []
    for other in (["--limit", 2], ["--dtype", "float64"], ["--overwrite"]):
        run_eval(*command, *other)
    assert asked == ["pocket/gdn"] * 3
    file = tmp_path / "pocket" / "figure5" / "gdn" / "answer" / "probe.json"
    file.write_text(file.read_text().replace(gradients.weights_sha256("pocket/gdn")[0], "0" * 64))
    run_eval(*command)
    assert asked == ["pocket/gdn"] * 4, "of other weights"


@pytest.mark.slow
def test_over_a_hundred_documents_facts_stand_out_and_recall_makes_them_small() -> None:
    found = probe_memory("pocket/gdn", dtype="float32")
    effects = {(kind, e.title): e for kind, probe in found.items() for e in probe.effects}
    for kind in ("beyond", "answer"):
        for group in ("asked", "fact"):
            one = effects[kind, f"{group} against filler"]
            assert one.documents == DOCUMENTS and one.low > 0, (kind, group, one)
    assert effects["answer", "asked, recalled against lost"].high < 0
