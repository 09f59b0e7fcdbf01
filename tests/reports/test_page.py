"""The page: self-contained, bounded, escaped, complete, and refused for what is no run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from common.errors import InputError
from reports.examples import MOST_EXAMPLES
from reports.page import MOST_BYTES, build_report

MakeRun = Callable[..., Path]
NASTY = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>"\'&amp;'


class Reader(HTMLParser):
    """Collects what a browser would load or run, and the text per element id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text: list[str] = []
        self._within = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts.append(data)
        elif self._within == "style":
            self.styles.append(data)
        else:
            self.text.append(data)


def read(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


def test_the_page_has_the_answer_the_tables_and_the_charts(
    pocket_run: Path, tmp_path: Path
) -> None:
    output = build_report([pocket_run], tmp_path / "new" / "report.html")
    page = read(output)
    text = re.sub(r"\s+", " ", "".join(page.text))
    assert "AHN on pocket scores 70.0 [" in text
    for part in ("pocket_qa@4", "90.0", "50.0 %", "512 KiB", "2.00 GFLOP", "20.0 ms", "0123456789"):
        assert part in text
    assert "exact_match" in text
    assert sum(tag == "svg" and "chart" in (a.get("class") or "") for tag, a in page.tags) >= 5
    assert "Before you read on" not in text


def test_the_page_loads_nothing_and_allows_only_its_own_two_texts(
    pocket_run: Path, tmp_path: Path
) -> None:
    page = read(build_report([pocket_run], tmp_path / "report.html"))
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "srcset", "style"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(
        a["content"] or ""
        for tag, a in page.tags
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    for kind, content in (("style", page.styles[0]), ("script", page.scripts[-1])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "url(" not in page.styles[0]
    assert "@import" not in page.styles[0]


def test_text_of_models_data_and_configuration_is_escaped(
    make_run: MakeRun, tmp_path: Path
) -> None:
    folder = make_run(
        scores={"full": {"qa": [1.0, None]}, "ahn": {"qa": [0.5, 0.0]}},
        record=lambda v, t, i: {
            "prediction": NASTY,
            "answers": [NASTY],
            "prompt_tail": NASTY,
            "metric": NASTY,
            "example_id": NASTY + str(i),
            "benchmark": NASTY,
            "protocol": NASTY + v,
            "error": NASTY if v == "full" and i else None,
        },
        configuration={NASTY: NASTY},
        models={"full": {"cell": NASTY, "window": NASTY}, "ahn": {NASTY: {NASTY: NASTY}}},
        packages={NASTY: NASTY},
        command=["run_eval", NASTY],
        data_files=[{"path": NASTY}],
        status="running",
    )
    output = build_report([folder], tmp_path / "report.html")
    page = read(output)
    assert not any(tag == "img" for tag, _ in page.tags)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not any("owned" in script for script in page.scripts[1:])
    assert "".join(page.text).count(NASTY) > 10
    leaderboard = json.loads(page.scripts[0])
    assert leaderboard[0]["metric"] == NASTY


def test_control_characters_of_a_model_are_shown_and_not_sent(
    make_run: MakeRun, tmp_path: Path
) -> None:
    text = "a\x00b\x1b[31mc\x7f\td"
    folder = make_run(scores={"full": {"qa": [1.0]}}, record=lambda v, t, i: {"prediction": text})
    output = build_report([folder], tmp_path / "report.html")
    assert not set(output.read_bytes()) & ({*range(32), 0x7F} - {*b"\t\n\r"})
    assert "a␀b␛[31mc␡\td" in "".join(read(output).text)


def test_the_data_of_the_leaderboard_stand_in_the_page(pocket_run: Path, tmp_path: Path) -> None:
    page = read(build_report([pocket_run], tmp_path / "report.html"))
    rows = {(row["variant"], row["task"]): row for row in json.loads(page.scripts[0])}
    assert rows["ahn", "pocket_qa@1"]["mean"] == pytest.approx(0.9)
    method = rows["ahn", "pocket_qa@1"]["method"]
    assert method == "Wilson's rule with an effective n of 10.0 for 10"


def test_colours_follow_the_corrected_p_values_and_the_page_says_so(
    make_run: MakeRun, tmp_path: Path
) -> None:
    # Six of twenty gained in one task of twelve: clear alone, not among twelve.
    few, many = [1.0] * 6 + [0.0] * 14, [1.0] * 18 + [0.0] * 2
    nothing = [0.0] * 20

    def classes(name: str, tasks: dict[str, list[float]]) -> tuple[str, str]:
        scores = {"window": {t: nothing for t in tasks}, "ahn": tasks}
        page = build_report([make_run(name, scores)], tmp_path / f"{name}.html")
        text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
        (cell,) = re.findall(r'class="(\w+)"> ?\+30\.0</span>', text)
        return cell, text

    alone = make_run("alone", {"window": {"t0": nothing}, "ahn": {"t0": few}})
    text = build_report([alone], tmp_path / "alone.html").read_text(encoding="utf-8")
    assert re.findall(r'class="(\w+)">\s*\+30\.0</span>', text) == ["up"] * 3
    cell, text = classes("twelve", {f"t{i}": few if i == 0 else nothing for i in range(12)})
    assert cell == "chance"
    assert "after Holm's correction for looking at many: the 12 cells of the tasks together" in text
    assert "and the 1 of the averages" in text
    assert re.search(r'title="p = 0\.0\d+, corrected = 0\.\d+; Wilson', text)
    cell, text = classes("clear", {"t0": many, "t1": few})
    assert cell == "up"


def test_the_page_names_the_selection_of_the_best(make_run: MakeRun, tmp_path: Path) -> None:
    scores = {"full": [1.0] * 9, "ahn-a": [0.0] * 9, "ahn-b": [1.0] * 8 + [0.0]}
    folder = make_run(scores={v: {"qa": s} for v, s in scores.items()})
    text = "".join(read(build_report([folder], tmp_path / "report.html")).text)
    assert "Of 2 memories of pocket, ahn-b scores best" in text
    assert "chosen by the very scores it is shown with" in text


@pytest.mark.slow
def test_a_large_run_gives_a_small_page_that_says_what_it_left_out(
    make_run: MakeRun, tmp_path: Path
) -> None:
    long = "<&\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 400
    folder = make_run(
        scores={v: {t: [1.0, 0.0] * 200 for t in ("a", "b")} for v in ("full", "window", "ahn")},
        record={"prediction": long, "prompt_tail": long, "answers": [long] * 9},
    )
    output = build_report([folder], tmp_path / "report.html")
    assert output.stat().st_size < MOST_BYTES
    text = re.sub(r"\s+", " ", "".join(read(output).text))
    found = re.search(r"(\d+) of 800 examples, so that the page stays small", text)
    assert found is not None
    assert 20 <= int(found[1]) <= MOST_EXAMPLES
    assert "more characters]" in text
    assert "[… 5 more answers]" in text


def test_wrong_answers_come_first_and_every_task_has_its_turn(
    make_run: MakeRun, tmp_path: Path
) -> None:
    scores = [1.0] * 190 + [0.0] * 9 + [None]
    folder = make_run(
        scores={"full": {t: [1.0] * 200 for t in "ab"}, "ahn": {t: scores for t in "ab"}},
        record=lambda v, t, i: {"prediction": f"{v}-{t}-{i}-prediction"},
    )
    page = read(build_report([folder], tmp_path / "report.html"))
    shown = [text for text in page.text if text.startswith("ahn-") and "prediction" in text]
    for task in "ab":
        of_task = [text for text in shown if text.startswith(f"ahn-{task}-")]
        assert len(of_task) == MOST_EXAMPLES // 2
        assert of_task[0] == f"ahn-{task}-199-prediction"
        assert {f"ahn-{task}-{i}-prediction" for i in range(190, 200)} <= set(of_task)
        assert of_task.index(f"ahn-{task}-0-prediction") == 3


def test_unfinished_runs_and_errors_are_said_at_the_top(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(scores={"full": {"qa": [1.0, None]}}, status="interrupted")
    with (folder / "full" / "qa.jsonl").open("a") as file:
        file.write('{"torn')
    text = "".join(read(build_report([folder], tmp_path / "report.html")).text)
    top = text[: text.index("Score and cost of each variant")]
    assert "is not finished (status: interrupted)" in top
    assert "1 of 2 examples of run run ended with an error" in top
    assert "torn last line dropped" in top
    assert "Error: out of memory" in text


def test_several_runs_stand_on_one_page(
    make_run: MakeRun, pocket_run: Path, tmp_path: Path
) -> None:
    other = make_run("other", {"ahn": {"pocket_qa@1": [1.0] * 10}}, models={"ahn": {"window": 64}})
    page = read(build_report([pocket_run, other], tmp_path / "report.html"))
    text = "".join(page.text)
    assert "ahn · demo" in text
    assert "ahn · other" in text
    assert "0 sinks + window 64" in text


def test_a_run_in_which_everything_failed_still_gives_a_page(
    make_run: MakeRun, tmp_path: Path
) -> None:
    folder = make_run(
        scores={"full": {"qa": [None]}, "ahn": {"qa": [None]}},
        record={"prefill_seconds": None, "cache_bytes_measured": None, "flops": None},
    )
    text = "".join(read(build_report([folder], tmp_path / "report.html")).text)
    assert "No example has a score yet" in text
    assert "Error: out of memory" in text


def test_a_record_without_costs_gives_a_page_without_those_charts(
    make_run: MakeRun, tmp_path: Path
) -> None:
    folder = make_run(
        scores={"full": {"qa": [1.0]}},
        record={"flops": None, "cache_bytes_measured": None, "cache_bytes_analytic": None},
    )
    page = read(build_report([folder], tmp_path / "report.html"))
    assert "Score against cache size" not in "".join(page.text)


def test_the_same_run_gives_the_same_bytes(pocket_run: Path, tmp_path: Path) -> None:
    first = build_report([pocket_run], tmp_path / "one.html").read_bytes()
    assert build_report([pocket_run], tmp_path / "two.html").read_bytes() == first


def test_bad_input_is_refused_and_leaves_an_earlier_page_alone(
    pocket_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "report.html"
    output.write_text("earlier")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        build_report([pocket_run, tmp_path / "empty", tmp_path / "absent"], output)
    assert "no run.json" in str(caught.value)
    assert "absent: no such run folder" in str(caught.value)
    with pytest.raises(InputError, match="at least one"):
        build_report([], output)
    with pytest.raises(InputError, match="given twice"):
        build_report([pocket_run, pocket_run / "."], output)
    with pytest.raises(InputError, match="is a folder"):
        build_report([pocket_run], tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        build_report([pocket_run], output / "below-a-file.html")
    assert output.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_a_report_needs_neither_torch_nor_the_other_wings(pocket_run: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from reports.page import build_report;"
        "build_report([sys.argv[1]], sys.argv[2]);"
        "print([m for m in ('torch', 'transformers', 'ahn', 'tasks', 'evaluation')"
        " if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(pocket_run), str(tmp_path / "report.html")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"


def test_a_figure_that_rests_on_a_fallback_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    told = {"hf": {"variant": "hf", "fallback": "questions are read as: token by token"}}
    run = make_run("run", {"hf": {"qa": [1.0] * 4}}, models=told)
    text = "".join(read(build_report([run], tmp_path / "report.html")).text)
    assert "hf: questions are read as: token by token." in text
