"""The page in a real browser: numbers are there, and nothing of a model's text comes alive."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports.page import build_report

pytestmark = pytest.mark.browser

MakeRun = Callable[..., Path]
ATTACKS = [
    '<script>document.title = "owned-0"</script>',
    '<img src="x" onerror="document.title = \'owned-1\'">',
    '</script><script>document.title = "owned-2"</script>',
    '</style></pre></table><svg onload="document.title=\'owned-3\'"><p id="planted">planted</p>',
    '<!--<script>--><script>document.title = "owned-4"</script>',
    "{{ 7 * 191 }}{% raw %}",
]


@pytest.fixture(scope="module")
def browser() -> str:
    """A Chromium on PATH, or a skip that says what is missing."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium on PATH (apt-get install chromium)")


def rendered(browser: str, page: Path, profile: Path) -> str:
    """The DOM, as HTML, after scripts have run."""
    result = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--virtual-time-budget=2000",
            f"--user-data-dir={profile}",
            "--dump-dom",
            page.resolve().as_uri(),
        ],
        capture_output=True,
        timeout=600,
        check=True,
    )
    return result.stdout.decode("utf-8")


class Elements(HTMLParser):
    """The elements of a dumped DOM, in order, with their attributes."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def visible(dom: str) -> str:
    """The text of the page's body without scripts, tags removed, white space folded."""
    body = dom[dom.index("<body") :]
    body = re.sub(r"<script\b.*?</script>", " ", body, flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def test_the_numbers_are_on_the_page_and_the_filter_works(
    browser: str, pocket_run: Path, tmp_path: Path
) -> None:
    page = build_report([pocket_run], tmp_path / "report.html")
    dom = rendered(browser, page, tmp_path / "profile")
    text = visible(dom)
    assert "70.0 [" in text
    assert "+70.0 [+" in text
    # 10 of 10: Wilson's [72.2, 100.0] left out the truth too often near the ends.
    assert re.search(r"pocket_qa@1 exact_match 100\.0 \[69\.9, 100\.0\]", text)
    assert "512 KiB 50.0 %" in text
    assert "20 of 20 examples on this page" in text  # written by the script: the policy let it run


def test_the_scores_over_several_windows_are_drawn(
    browser: str, make_run: MakeRun, tmp_path: Path
) -> None:
    models = {
        "full": {"variant": "full", "path": "pocket", "window": None},
        **{
            f"window-{size}": {"variant": "window", "path": "pocket", "window": size, "sinks": 4}
            for size in (64, 128)
        },
    }
    scores = {"full": [1.0, 1.0], "window-64": [0.0, 0.0], "window-128": [1.0, 0.0]}
    run = make_run("swept", {name: {"qa": of} for name, of in scores.items()}, models=models)
    page = build_report([run], tmp_path / "report.html")
    dom = rendered(browser, page, tmp_path / "profile")
    section = dom[dom.index('<section id="by-window">') :]
    section = section[: section.index("</section>")]
    classes = [
        a.get("class") or "" for tag, a in Elements(section).found if tag in ("path", "rect")
    ]
    assert sum("whisker" in one for one in classes) == 2 and "band t1" in classes
    text = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", section)))
    assert "window, tokens (log scale)" in text and "128 50.0 [" in text


def test_text_of_a_model_is_inert(browser: str, make_run: MakeRun, tmp_path: Path) -> None:
    attack = " ".join(ATTACKS)
    folder = make_run(
        scores={"full": {"qa": [1.0, 0.0]}, "ahn": {"qa": [0.0, 0.5]}},
        record={
            "prediction": attack,
            "answers": [attack],
            "prompt_tail": attack,
            "metric": attack,
            "protocol": attack,
            "benchmark": attack,
        },
        configuration={"model": attack},
        models={"full": {"path": attack, "cell": attack, "window": 1}, "ahn": {"path": attack}},
    )
    page = build_report([folder], tmp_path / "report.html")
    dom = rendered(browser, page, tmp_path / "profile")
    assert "<title>AHN-Bench: run</title>" in dom
    elements = Elements(dom).found
    assert [tag for tag, _ in elements if tag in {"img", "script", "title", "style"}] == [
        "title",
        "style",
        "script",
        "script",
    ]
    for tag, attributes in elements:
        assert attributes.get("id") != "planted", tag
        assert not [name for name in attributes if name.startswith("on")], tag
    embedded = re.search(
        r'<script type="application/json" id="leaderboard">(.*?)</script>', dom, re.S
    )
    assert embedded is not None
    assert json.loads(embedded[1])[0]["metric"] == attack
    text = visible(dom)
    for part in ATTACKS:
        assert re.sub(r"\s+", " ", part) in text, "the text itself must be there to be read"
    assert "2 of 2 examples on this page" in text


def test_the_check_itself_sees_a_script_that_runs(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "unsafe.html"
    page.write_text(f"<!doctype html><title>before</title><body>{ATTACKS[0]}{ATTACKS[1]}")
    dom = rendered(browser, page, tmp_path / "profile")
    assert "<title>before</title>" not in dom
    assert "owned" in dom[: dom.index("<body")]
