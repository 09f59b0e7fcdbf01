"""`ahn probe` on the embedded model: a page, a file, tables; and everything that is refused."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import ahn
from ahn.checkpoints.tokenizer import load_tokenizer
from ahn.cli import app
from ahn.commands.prompting import prompt_ids
from ahn.distill.probe import gradient_norms
from common.pages import is_page
from common.probes import read_probe
from tasks.pocket.documents import make_document

DOCUMENT = make_document(random.Random(3), "qa", length=90, facts=2, questions=1, split="test")
STORY = f"{DOCUMENT.context} {DOCUMENT.questions[0].question}"
POCKET = ["probe", "--model", "pocket", "--ahn", "pocket", "--window", "32", "--sinks", "2"]


def run(*arguments: str, code: int = 0, input: str | None = None) -> Any:
    result = CliRunner().invoke(app, [*arguments], input=input)
    assert result.exit_code == code, result.output
    return result


def test_page_file_and_tables_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    out = tmp_path / "made" / "here"
    told = run(
        *POCKET, "--prompt-file", str(tmp_path / "story.txt"), "-o", str(out), "--top", "3"
    ).stdout
    probe = read_probe(out)
    ids = prompt_ids(load_tokenizer(ahn.POCKET_PATH), STORY, None)
    model = ahn.load_model("pocket", ahn="pocket", window=32, sinks=2, dtype="float32")
    found = gradient_norms(model, ids)
    document = probe.documents[0]
    assert [token.norm for token in document.tokens] == list(found.norms)
    assert document.kl == found.kl and document.positions == len(ids) - 34
    assert "".join(token.text for token in document.tokens) == f"<bos> {STORY}"
    kinds = [token.place for token in document.tokens]
    assert kinds == ["sink"] * 2 + ["outside"] * (len(ids) - 34) + ["window"] * 32
    assert (probe.model, probe.ahn, probe.variant, probe.cell) == (
        "pocket", "pocket", "ahn", "GatedDeltaNet",
    )  # fmt: skip
    assert (probe.window, probe.sinks, probe.dtype, probe.compared) == (32, 2, "float32", "beyond")
    outside = sorted((t.norm, t.position) for t in document.tokens if t.place == "outside")
    rows = re.findall(r"^ *(\d+) +␣\S+ +(\S+)$", told, re.M)
    assert [int(position) for position, _ in rows[:3]] == [p for _, p in outside[:3]]
    assert [int(position) for position, _ in rows[3:]] == [p for _, p in outside[::-1][:3]]
    assert float(rows[3][1]) == pytest.approx(outside[-1][0], rel=0.01)
    page = (out / "probe.html").read_text()
    assert is_page(out / "probe.html") and page.count('class="tok ') >= len(ids)
    for token in document.tokens[:40]:
        assert f'title="token {token.position}, {token.norm:.3g}' in page
    again = run(*POCKET, "--prompt", STORY, "-o", str(out), "--json")
    assert json.loads(again.stdout) == json.loads((out / "probe.json").read_text())
    assert (out / "probe.html").read_text().count("<table>") == 3


def test_the_last_position_alone(tmp_path: Path) -> None:
    run(*POCKET, "--prompt", STORY, "--compared", "last", "-o", str(tmp_path))
    probe = read_probe(tmp_path)
    assert (probe.compared, probe.documents[0].positions) == ("last", 1)
    assert "the last position alone" in (tmp_path / "probe.html").read_text()


def test_a_student_without_a_memory_says_what_its_zeros_mean(tmp_path: Path) -> None:
    shared = ["--prompt", STORY, "--compared", "last", "-o", str(tmp_path)]
    told = run("probe", "--model", "pocket", "--window", "8", "--sinks", "0", *shared).stdout
    norms = [t.norm for t in read_probe(tmp_path).documents[0].tokens if t.place == "outside"]
    assert norms[0] == 0 and any(norms), "three layers look a little beyond the window"
    page = (tmp_path / "probe.html").read_text()
    assert "no gradient reaches it" in page and "note:" not in told


def test_halves_are_told(tmp_path: Path) -> None:
    told = run(*POCKET, "--prompt", STORY, "--dtype", "bf16", "-o", str(tmp_path)).stdout
    assert "note: Computed in bfloat16" in told
    assert read_probe(tmp_path).dtype == "bfloat16"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--prompt", "the sky is wide ."], "6 tokens, and all of them are seen with a window"),
        (["--prompt", STORY, "--window", "4k"], "nothing is outside"),
        (["--prompt", STORY, "--variant", "full"], "give --window"),
        (["--prompt", " it" * 4200], "4,201 tokens, the model 4,096 positions"),
        (["--prompt", STORY, "--top", "0"], "--top"),
        (["--prompt", STORY, "--compared", "first"], "--compared"),
        ([], "--prompt"),
        (["--prompt-file", "absent.txt"], "absent.txt"),
        (["--prompt", STORY, "--sinks", "-1"], "--sinks"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(checkpoint: Any) -> Any:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("ahn.commands.probe.load_resolved", never)
    result = run(*POCKET, *arguments, "-o", str(tmp_path / "out"), code=2)
    assert said in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_there_and_is_no_probe_stays(tmp_path: Path) -> None:
    for name, text in (("probe.html", "<p>mine</p>"), ("probe.json", '{"mine": 1}')):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        result = run(*POCKET, "--prompt", STORY, "-o", str(folder), code=2)
        assert "not replaced" in result.stderr
        assert [(f.name, f.read_text()) for f in folder.iterdir()] == [(name, text)]
    (tmp_path / "file").write_text("")
    assert (
        "not a folder"
        in run(*POCKET, "--prompt", STORY, "-o", str(tmp_path / "file"), code=2).stderr
    )


def test_a_device_that_is_too_small_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ahn.distill.probe.gradient_norms", full)
    result = run(*POCKET, "--prompt", STORY, "-o", str(tmp_path / "out"), code=2)
    assert "do not fit into the device's memory" in result.stderr
    assert not (tmp_path / "out").exists()
