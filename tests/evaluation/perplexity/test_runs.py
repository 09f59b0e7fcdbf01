"""`run_eval perplexity`: a folder that is continued, what is refused, memory, and the page."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from evaluation.perplexity import reading
from evaluation.perplexity.configuration import OF_RUNS, PerplexityConfiguration
from evaluation.perplexity.run import plan_perplexity, run_perplexity
from evaluation.perplexity.store import cache_path
from evaluation.perplexity.text import make_text, pocket_book
from reports.perplexity import PerplexityRun, read_perplexity, record_path
from tests.evaluation.conftest import SINKS, WINDOW
from tests.processes import start_fork

BOOK = "Call me Ishmael. Some years ago, never mind how long precisely. " * 14
BLOCK = 64


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    return path


@pytest.fixture
def asked(tiny: Path, memory: Path, book: Path) -> Callable[..., PerplexityConfiguration]:
    def configure(**changes: Any) -> PerplexityConfiguration:
        given: dict[str, Any] = {
            "model": str(tiny), "ahn": {"": str(memory)}, "data": str(book), "device": "cpu",
            "window": WINDOW, "sinks": SINKS, "dtype": "float32", "block_tokens": BLOCK,
            "variants": ["full", "ahn"], "peak": False,
        }  # fmt: skip
        return PerplexityConfiguration(**given | changes)

    return configure


class Killed(KeyboardInterrupt):
    """Stands for a signal."""


def killed_after(tokens: int, variant: str) -> Callable[[int, int, str], None]:
    def watch(done: int, total: int, name: str) -> None:
        assert total == len(BOOK)
        if name == variant and done >= tokens:
            raise Killed

    return watch


def losses(run: PerplexityRun) -> dict[str, list[tuple[int, int, float]]]:
    return {n: [(b.first, b.tokens, b.loss) for b in blocks] for n, blocks in run.blocks.items()}


def test_a_run_reads_every_token_once(
    asked: Callable[..., PerplexityConfiguration], tmp_path: Path
) -> None:
    run = run_perplexity(plan_perplexity(asked()), tmp_path / "run")
    assert run.info.status == "finished" and not run.warnings
    assert run.info.tokens == len(BOOK) == run.tokens("full") == run.tokens("ahn")
    assert run.info.prefix is not None and run.info.prefix["text"] == "<|end|>"
    assert run.info.data["sha256"] and run.info.variants["ahn"]["cell"] == "GatedDeltaNet"
    assert sum(b.tokens for b in run.blocks["full"]) == len(BOOK)
    assert not list((tmp_path / "run").glob("*.cache"))
    at = SINKS + WINDOW
    first = [run.blocks[name][0] for name in ("full", "ahn")]
    assert at < BLOCK and first[0].loss == pytest.approx(first[1].loss, rel=0.2)
    assert run.blocks["full"][-1].loss != run.blocks["ahn"][-1].loss
    again = run_perplexity(plan_perplexity(asked()), tmp_path / "run")
    assert losses(again) == losses(run) and len(again.info.starts) == 2


@pytest.mark.parametrize("seconds", [1e9, 0.0])
def test_what_was_interrupted_goes_on(
    asked: Callable[..., PerplexityConfiguration],
    tmp_path: Path,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = losses(run_perplexity(plan_perplexity(asked()), tmp_path / "whole"))
    folder = tmp_path / "cut"
    for variant, tokens in (("full", 300), ("ahn", 200), ("ahn", 500)):
        with pytest.raises(Killed):
            run_perplexity(
                plan_perplexity(asked()), folder, killed_after(tokens, variant),
                checkpoint_seconds=seconds,
            )  # fmt: skip
        assert read_perplexity(folder).info.status == "interrupted"
        assert cache_path(folder, variant).is_file() == (seconds == 0)
    read: list[int] = []
    before = reading.Reading._losses

    def count(self: Any, stream: Any, first: int, end: int) -> Any:
        read.append(first)
        return before(self, stream, first, end)

    monkeypatch.setattr(reading.Reading, "_losses", count)
    run = run_perplexity(plan_perplexity(asked()), folder, checkpoint_seconds=seconds)
    assert losses(run) == whole and run.info.status == "finished"
    assert not list(folder.glob("*.cache"))
    assert [block.start for block in run.blocks["ahn"]][-1] == 3
    assert min(read) == (0 if seconds else 7 * BLOCK), "a kept cache spares reading again"


def _run(configuration: dict[str, Any], folder: str, pause: float) -> None:
    def watch(done: int, total: int, name: str) -> None:
        time.sleep(pause)

    plan = plan_perplexity(PerplexityConfiguration(**configuration))
    run_perplexity(plan, Path(folder), watch, checkpoint_seconds=0.05)


@pytest.mark.slow
def test_kills_lose_nothing_and_double_nothing(
    asked: Callable[..., PerplexityConfiguration], tmp_path: Path
) -> None:
    whole = losses(run_perplexity(plan_perplexity(asked()), tmp_path / "whole"))
    given = asked().model_dump(exclude={*OF_RUNS})
    folder, said = tmp_path / "killed", tmp_path / "said"
    lines: dict[str, list[bytes]] = {}
    kills = 0
    for number in range(5):
        process = start_fork(_run, given, str(folder), 0.02 if number < 4 else 0.0, output=said)
        wanted = sum(map(len, lines.values())) + 3 + number % 3 if number < 4 else 1000
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if sum(p.read_bytes().count(b"\n") for p in folder.glob("*.jsonl")) >= wanted:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        process.join(60)
        for path in folder.glob("*.jsonl"):
            now = path.read_bytes().split(b"\n")[:-1]
            assert now[: len(lines.get(path.stem, []))] == lines.get(path.stem, []), "lost"
            lines[path.stem] = now
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, said.read_text()
        kills += 1
    run = read_perplexity(folder)
    assert kills >= 3 and run.info.status == "finished"
    assert losses(run) == whole


def test_a_torn_line_is_set_aside_and_computed_again(
    asked: Callable[..., PerplexityConfiguration], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    whole = losses(run_perplexity(plan_perplexity(asked()), folder))
    path = record_path(folder, "ahn")
    content = path.read_bytes()
    cut = content[: content.rindex(b"\n", 0, -1) + 20]
    path.write_bytes(cut)
    odd = read_perplexity(folder)
    assert len(odd.warnings) == 1 and "not whole" in odd.warnings[0]
    told: list[str] = []
    assert losses(run_perplexity(plan_perplexity(asked()), folder, tell=told.append)) == whole
    assert any("not whole" in text for text in told)
    assert path.with_name("ahn.jsonl.rejected").read_bytes() == cut[cut.rindex(b"\n") + 1 :] + b"\n"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "doubled"),
        (lambda lines: [*lines[:2], *lines[3:]], "missing"),
        (lambda lines: [lines[0].replace(b'"first":0', b'"first":1'), *lines[1:]], "changed"),
        (lambda lines: [b"no json", *lines[1:]], "no record"),
    ],
)
def test_damaged_records_are_refused(
    asked: Callable[..., PerplexityConfiguration],
    tmp_path: Path,
    damage: Callable[[list[bytes]], list[bytes]],
    said: str,
) -> None:
    folder = tmp_path / "run"
    run_perplexity(plan_perplexity(asked(variants=["full"])), folder)
    path = record_path(folder, "full")
    path.write_bytes(b"".join(x + b"\n" for x in damage(path.read_bytes().split(b"\n")[:-1])))
    before = path.read_bytes()
    for work in (
        lambda: read_perplexity(folder),
        lambda: run_perplexity(plan_perplexity(asked(variants=["full"])), folder),
    ):
        with pytest.raises(InputError, match=said):
            work()
    assert path.read_bytes() == before


def test_losses_that_do_not_repeat_are_not_gone_on_with(
    asked: Callable[..., PerplexityConfiguration], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        run_perplexity(plan_perplexity(asked()), folder, killed_after(300, "full"))
    path = record_path(folder, "full")
    run = read_perplexity(folder)
    other = [b.model_copy(update={"loss": b.loss + 0.1}) for b in run.blocks["full"]]
    path.write_text("".join(block.to_line() + "\n" for block in other))
    with pytest.raises(InputError, match="read again, and their loss differs by"):
        run_perplexity(plan_perplexity(asked()), folder)
    run = run_perplexity(plan_perplexity(asked(overwrite=True)), folder)
    assert run.info.status == "finished" and len(run.info.starts) == 1


def test_another_text_or_setting_is_refused_and_another_variant_joins(
    asked: Callable[..., PerplexityConfiguration], tmp_path: Path, book: Path
) -> None:
    folder = tmp_path / "run"
    first = run_perplexity(plan_perplexity(asked(variants=["full"])), folder)
    for change, part in (
        ({"block_tokens": 32}, "block_tokens"),
        ({"max_tokens": 100}, "tokens"),
        ({"chunk_tokens": 16}, "chunk_tokens"),
        ({"prefix": "none"}, "prefix"),
        ({"dtype": "bfloat16"}, "full: dtype"),
    ):
        with pytest.raises(InputError, match=f"another text or setting.*{part}"):
            run_perplexity(plan_perplexity(asked(variants=["full"], **change)), folder)
    more = run_perplexity(plan_perplexity(asked(variants=["window"])), folder)
    assert list(more.blocks) == ["full", "window"] and more.info.status == "finished"
    assert losses(more)["full"] == losses(first)["full"]
    book.write_text(BOOK.replace("Ishmael", "ishmael"), encoding="utf-8")
    with pytest.raises(InputError, match="data_sha256"):
        run_perplexity(plan_perplexity(asked()), folder)


def test_numbers_out_of_range_end_a_variant_and_not_the_others(
    asked: Callable[..., PerplexityConfiguration], tmp_path: Path, tiny: Path, run_eval: Any
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = 3e38  # finite, and no logit is
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    result = run_eval(
        "perplexity", "--model", broken, "--data", asked().data, "--variant", "full,window",
        "--window", WINDOW, "--device", "cpu", "--block-tokens", 64, "--no-peak",
        "-o", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 1, result.stderr
    assert "full stopped at token 0: the loss of token 0 is nan" in result.stderr
    info = read_perplexity(tmp_path / "run").info
    assert info.status == "failed" and info.failures["full"]["token"] == 0
    assert "window stopped at token 0" in result.stderr, "the next variant was tried all the same"
    assert "full stopped at token 0" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text_where_it_need_not(
    asked: Callable[..., PerplexityConfiguration],
    tmp_path: Path,
    book: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "MOST_PROFILED", 1)
    kinds = ["full", "window", "ahn", "memory-only"]
    peaks: dict[int, dict[str, int]] = {}
    for number in (320, 4 * 320):
        book.write_text((BOOK * 2)[:number], encoding="utf-8")
        plan = plan_perplexity(asked(variants=kinds, peak=True))
        run = run_perplexity(plan, tmp_path / str(number))
        blocks = {n: [b for b in run.blocks[n] if b.peak_bytes is not None] for n in kinds}
        assert all(found[-1].first + BLOCK == number for found in blocks.values())
        peaks[number] = {n: found[-1].peak_bytes or 0 for n, found in blocks.items()}
        for name, found in blocks.items():
            assert all(b.seconds is None for b in found)
            assert (found[-1].peak_bytes or 0) > (found[-1].cache_bytes or 0) > 0, name
    for name in kinds[1:]:
        assert peaks[320][name] == peaks[1280][name], name
    assert peaks[1280]["full"] > 2 * peaks[320]["full"]


def test_logits_are_never_there_for_the_whole_block(
    asked: Callable[..., PerplexityConfiguration], tmp_path: Path, tiny: Path
) -> None:
    """A vocabulary of 259 in float32: a block of 512 would take half a megabyte of logits."""
    plan = plan_perplexity(asked(variants=["window"], block_tokens=512, chunk_tokens=16, peak=True))
    large = run_perplexity(plan, tmp_path / "run").blocks["window"][0]
    assert large.tokens == 512 and large.peak_bytes is not None
    assert large.peak_bytes < 512 * 259 * 4


# -- what is given --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"\x89PNG\r\n\x1a\n", "is not UTF-8 text"),
        (b"a\0b", "null bytes"),
        (gzip.compress(b"whole", mtime=0)[:-4], "whole gzip file"),
        (b"a" * 2100, "more than the model's max_position_embeddings 2,048"),
    ],
    ids=["empty", "blank", "binary", "null byte", "torn gzip", "too long"],
)
def test_what_is_no_text_is_refused(
    asked: Callable[..., PerplexityConfiguration], book: Path, content: bytes, said: str
) -> None:
    book.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        plan_perplexity(asked())
    assert str(caught.value).startswith("--data: ")


def test_one_token_is_scored_by_its_prefix_or_not_at_all(
    asked: Callable[..., PerplexityConfiguration], book: Path, tmp_path: Path
) -> None:
    book.write_text("x")
    with pytest.raises(InputError, match="one token, from which nothing is predicted"):
        plan_perplexity(asked(prefix="none"))
    run = run_perplexity(plan_perplexity(asked(variants=["full"])), tmp_path / "run")
    assert run.tokens("full") == 1 and run.log_perplexity("full") is not None


def test_overlong_texts_are_read_where_that_is_said(
    asked: Callable[..., PerplexityConfiguration], book: Path
) -> None:
    book.write_text("a" * 2100)
    plan = plan_perplexity(asked(allow_overlong=True))
    assert plan.text.tokens == 2100 and "no variant was made for" in " ".join(plan.warnings)
    assert plan_perplexity(asked(max_tokens=2048)).text.tokens == 2048


def test_a_packed_text_is_the_same_text(
    asked: Callable[..., PerplexityConfiguration], book: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "book.txt.gz"
    packed.write_bytes(gzip.compress(book.read_bytes()))
    one, other = (plan_perplexity(asked(data=str(path))) for path in (book, packed))
    assert one.parts(weights=False) == other.parts(weights=False)


def test_all_that_is_wrong_is_said_at_once(
    asked: Callable[..., PerplexityConfiguration], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        plan_perplexity(asked(data=str(tmp_path / "absent"), variants=["hf:chunk=4", "full"]))
    assert len(caught.value.problems) == 2
    assert "absent: no such file" in str(caught.value) and "--chunk-tokens" in str(caught.value)


def test_what_the_tokenizer_does_not_know_is_told(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from ahn.checkpoints.tokenizer import load_tokenizer

    path = tmp_path / "odd.txt"
    path.write_text("the \u4e16\u754c of <eos> filler")
    told = " ".join(make_text(str(path), load_tokenizer("pocket"), 576).warnings)
    assert "leaves out 61.1% of the text" in told and "special tokens (as <eos>)" in told
    raw = Tokenizer(models.WordLevel({"the": 0, "of": 1, "<unk>": 2}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    path.write_text("the end of the book")
    text = make_text(str(path), words, 3)
    told = " ".join(text.warnings)
    assert "2 of the text's 5 tokens" in told and "neither a BOS nor an EOS" in told
    assert text.prefix is None and text.tokens == 4
    path.write_text("the of the of")
    assert len(make_text(str(path), words, 3, prefix="none").warnings) == 0


def test_pocket_is_a_text_whose_answers_count(tmp_path: Path) -> None:
    from ahn.checkpoints.tokenizer import load_tokenizer

    pocket = load_tokenizer("pocket")
    text = make_text("pocket", pocket, 576, 900)
    assert text.tokens == 900 and text.scored is not None
    content, places = pocket_book(900)
    assert content == pocket_book(900)[0] != pocket_book(900, seed=1)[0]
    wanted = pocket("".join(f" {content[a:b]}" for a, b in places), add_special_tokens=False)
    scored = text.targets[text.scored].tolist()
    assert len(scored) > 10 and scored == wanted["input_ids"][: len(scored)]
    with pytest.raises(InputError, match="no answer stands in the first 20 tokens"):
        make_text("pocket", pocket, 576, 20)


# -- the command ----------------------------------------------------------------------------------


def test_the_command_writes_a_page_and_prints_data(
    run_eval: Any,
    asked: Callable[..., PerplexityConfiguration],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "MOST_PROFILED", 2)
    given = asked()
    words = [
        "perplexity", "--model", given.model, "--ahn", given.ahn[""], "--data", given.data,
        "--window", WINDOW, "--sinks", SINKS, "--dtype", "float32", "--device", "cpu",
        "--block-tokens", 32, "--output", tmp_path / "run",
    ]  # fmt: skip
    planned = run_eval(*words, "--dry-run", "--json")
    assert planned.exit_code == 0 and not (tmp_path / "run").exists()
    assert list(json.loads(planned.stdout)["variants"]) == ["full", "window", "ahn"]
    assert "blocks of 32" in run_eval(*words, "--dry-run").stdout
    result = run_eval(*words, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["baseline"] == "full" and data["compared_tokens"] == len(BOOK)
    for name, found in data["variants"].items():
        mean = found["log_perplexity"]
        assert mean["low"] < mean["mean"] < mean["high"], name
        assert (found["difference"] is None) == (name == "full")
        assert found["peak_bytes"] > found["cache_bytes"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count('<svg class="chart"') == 3 and 'class="band' in page
    assert "http" not in page.split("</style>")[1].split('<section id="details"')[0]
    assert run_eval(*words).exit_code == 0, "what is finished is shown again"
    again = run_eval("report", tmp_path / "run", "-o", tmp_path / "again.html")
    assert again.exit_code == 0 and "<small>blocks of " in (tmp_path / "again.html").read_text()
    both = run_eval("report", tmp_path / "run", tmp_path / "run", "-o", tmp_path / "again.html")
    assert both.exit_code == 2 and "name it alone" in both.stderr


def test_several_windows_are_several_variants(
    run_eval: Any, asked: Callable[..., PerplexityConfiguration], tmp_path: Path
) -> None:
    given = asked()
    result = run_eval(
        "perplexity", "--model", given.model, "--data", given.data, "--device", "cpu",
        "--variant", "full,window", "--window", "16,48", "--sinks", SINKS, "--no-peak",
        "--max-tokens", 256, "--block-tokens", 64, "-o", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    run = read_perplexity(tmp_path / "run")
    windows = {name: of.get("window") for name, of in run.info.variants.items()}
    assert windows == {"full": None, "window-16": 16, "window-48": 48}
    assert run.log_perplexity("window-16") != run.log_perplexity("window-48")


def test_the_command_refuses_in_one_line_per_problem(run_eval: Any, tmp_path: Path) -> None:
    for words, said in (
        (["--model", "pocket"], "--data: needed"),
        (["--model", "pocket", "--data", "pocket", "--chunk-tokens", 256], "more than a block"),
        (["--model", "pocket", "--data", "pocket", "--limit", 2], "--limit: there is no such"),
        (["--model", "pocket", "--data", "pocket", "--variant", "winow"], "unknown variant"),
        (["--model", "pocket", "--data", tmp_path], "is a folder"),
    ):
        result = run_eval("perplexity", *words, "-o", tmp_path / "run")
        assert result.exit_code == 2 and said in result.stderr, result.stderr
        assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()


def test_a_folder_of_a_run_is_left_alone(
    asked: Callable[..., PerplexityConfiguration], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(InputError, match="is the folder of a run"):
        run_perplexity(plan_perplexity(asked()), tmp_path / "run")


def test_the_flags_of_runs_that_mean_nothing_here_are_not_there() -> None:
    from evaluation.cli import app

    command = app.commands["perplexity"]
    assert set(command._without) == set(OF_RUNS)  # type: ignore[attr-defined]
