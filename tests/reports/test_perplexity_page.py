"""The page on a folder of `run_eval perplexity`, and what is compared on it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from reports.perplexity import (
    INFO_FILE,
    BlockRecord,
    PerplexityInfo,
    folders_below,
    is_perplexity_folder,
    read_perplexity,
    record_path,
)
from reports.perplexity_page import (
    as_data,
    baseline_of,
    build_perplexity_page,
    compared_tokens,
    curve,
    curve_table,
    memory_table,
    notices,
    peak_figure,
    render,
    summaries,
)

BLOCK = 10
START: dict[str, Any] = {
    "time": "2026-01-01T00:00:00+00:00", "command": ["run_eval"], "configuration": {},
    "git": None, "packages": {"torch": "2", "transformers": "5"},
    "hardware": {"processor": "P", "device": "cpu"}, "environment": {},
}  # fmt: skip


def folder(
    path: Path,
    losses: dict[str, Sequence[float]],
    blocks: int = 20,
    scored: int = BLOCK,
    **changes: Any,
) -> Path:
    """A folder whose variants have these losses a token, block by block."""
    kinds = {name: name.partition("-")[0] for name in losses}
    given: dict[str, Any] = {
        "identity": "0" * 64, "identity_parts": {"variants": {}}, "created": "a", "updated": "b",
        "starts": [START], "command": [], "configuration": {"seed": 3}, "model": "M",
        "model_settings": {}, "data": {"path": "b<i>ook", "sha256": "1", "characters": 5,
        "tokens": 500, "bytes": 5}, "tokens": blocks * BLOCK, "tokens_sha256": "2",
        "prefix": {"id": 1, "text": "<s>"}, "context": 100, "block_tokens": BLOCK,
        "chunk_tokens": BLOCK, "peak": "somehow", "status": "finished",
        "variants": {n: {"variant": kind, "dtype": "float32", "device": "cpu",
            **({"window": 16, "sinks": 4} if kind == "window" else {})}
            for n, kind in kinds.items()},
    }  # fmt: skip
    path.mkdir(parents=True)
    info = PerplexityInfo(**given | changes)
    (path / INFO_FILE).write_text(info.model_dump_json())
    for name, values in losses.items():
        lines = [
            BlockRecord(
                variant=name,
                first=i * BLOCK,
                tokens=BLOCK,
                scored=scored,
                loss=scored * value,
                cache_bytes=1000 * (i + 1),
                peak_bytes=2000 * (i + 1) if i % 2 else None,
                seconds=0.01,
                start=0,
            ).to_line()
            for i, value in enumerate(values)
        ]
        record_path(path, name).write_text("".join(line + "\n" for line in lines))
    return path


def wave(mean: float) -> list[float]:
    return [mean + 0.3 * math.sin(1.7 * i) for i in range(20)]


def test_variants_are_compared_on_what_all_have_read(tmp_path: Path) -> None:
    far = [*wave(2.0)[:12], *[9.0] * 8]
    path = folder(
        tmp_path / "run",
        {"full": wave(1.5)[:12], "window": far, "hf": []},
        failures={"full": {"token": 120, "error": "out of memory"}},
        status="failed",
    )
    run = read_perplexity(path)
    assert compared_tokens(run) == 120 and baseline_of(run) == "full"
    full, window, unread = summaries(run)
    assert full.log_perplexity is not None and window.log_perplexity is not None
    assert full.log_perplexity.tokens == window.log_perplexity.tokens == 120
    assert window.difference is not None and window.difference.mean == pytest.approx(0.5)
    assert window.difference.low == pytest.approx(0.5, abs=1e-6), "paired: nothing varies"
    assert window.tokens == 200 and unread.log_perplexity is None and full.difference is None
    told = " ".join(notices(run))
    assert "full stopped at token 120 of 200: out of memory" in told
    assert "not read yet: hf" in told and "over the first 120" in told
    assert "stopped" in render(run)
    assert as_data(run)["variants"]["window"]["perplexity"] == pytest.approx(
        math.exp(window.log_perplexity.mean)
    )


def test_only_scored_tokens_count(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", {"full": wave(1.0)}, scored=3)
    lines = record_path(path, "full").read_text().splitlines()
    none = json.loads(lines[4]) | {"scored": 0, "loss": 0.0}
    none.pop("record_sha256")
    lines[4] = BlockRecord(**none).to_line()
    record_path(path, "full").write_text("".join(line + "\n" for line in lines))
    run = read_perplexity(path)
    (row,) = summaries(run)
    wanted = sum(v for i, v in enumerate(wave(1.0)) if i != 4) / 19
    assert row.log_perplexity is not None and row.log_perplexity.tokens == 57
    assert row.log_perplexity.mean == pytest.approx(wanted) == run.log_perplexity("full")
    shown = folder(tmp_path / "none", {"full": [0.0] * 9}, 9, scored=0)
    (empty,) = summaries(read_perplexity(shown))
    assert empty.log_perplexity is None and "nothing was read" in render(read_perplexity(shown))


def test_curves_and_tables_show_the_same_places(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "run", {"full": wave(1.0), "window": wave(2.0)},
        configuration={"rolling_tokens": 40},
    )  # fmt: skip
    run = read_perplexity(path)
    found = curve(run, "full")
    assert found is not None and found.points[0][0] == 40 and found.points[-1][0] == 200
    assert found.points[0][1] == pytest.approx(sum(wave(1.0)[:4]) / 4)
    table = curve_table(run)
    assert table.columns == ("full", "window") and table.rows[-1][0] == "200"
    assert table.rows[-1][1][0] == f"{sum(wave(1.0)[-4:]) / 4:.4f}"
    assert memory_table(run).rows[-1] == ("200", ("39.1 KiB / 19.5 KiB",) * 2)
    picture = peak_figure(run)
    assert picture is not None and "window is full" in picture and "positions of" in picture
    page = render(run)
    assert "b&lt;i&gt;ook" in page and "<i>ook" not in page
    assert page == render(run), "the same folder gives the same page"


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    run = read_perplexity(folder(tmp_path / "run", {"full": wave(1.0)}))
    page = build_perplexity_page(run, tmp_path / "new" / "page.html")
    assert build_perplexity_page(run, page) == page
    other = tmp_path / "mine.html"
    other.write_text("mine")
    with pytest.raises(InputError, match="is no report of ahn-bench"):
        build_perplexity_page(run, other)
    with pytest.raises(InputError, match="is there already"):
        build_perplexity_page(run, tmp_path / "run" / INFO_FILE)


def test_folders_are_found_and_others_refused(tmp_path: Path) -> None:
    made = folder(tmp_path / "a" / "b", {"full": wave(1.0)})
    assert list(folders_below(tmp_path)) == [made]
    assert is_perplexity_folder(made) and not is_perplexity_folder(tmp_path)
    with pytest.raises(InputError, match="no folder of run_eval perplexity"):
        read_perplexity(tmp_path)
    content = json.loads((made / INFO_FILE).read_text())
    for change, said in (
        ({"schema_version": 9}, "update ahn-bench"),
        ({"odd": 1}, "odd"),
        ({"tokens": 0}, "tokens"),
    ):
        (made / INFO_FILE).write_text(json.dumps(content | change))
        with pytest.raises(InputError, match=said):
            read_perplexity(made)
