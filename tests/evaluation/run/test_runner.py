"""`run_eval longbench` from rows to records, on a tiny random model."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from evaluation.backends.local import CachedDocument
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.plan import make_plan
from evaluation.plan.prompts import shared_tokens
from evaluation.run.runner import Worker, groups_in_order
from evaluation.run.store import RunStore
from tests.evaluation.conftest import (
    OF_ONE_START,
    SINKS,
    WINDOW,
    records_of,
    save_tiny_memory,
    save_tiny_qwen2,
    write_rows,
)
from tests.evaluation.conftest import question as make_question

REQUIRED = {
    "benchmark", "task", "variant", "example_id", "prediction", "answers", "score",
    "prompt_tokens", "generated_tokens", "truncated", "prefill_seconds", "decode_seconds",
    "flops", "cache_bytes_analytic", "cache_bytes_measured", "error",
}  # fmt: skip


@pytest.fixture(scope="module")
def command(tiny, data):
    """A run of two variants on two tasks, five examples each; three are about one document."""
    return [
        "longbench", "--model", tiny, "--data", data, "--tasks", "hotpotqa", "--tasks", "samsum",
        "--variant", "full", "--variant", "window", "--window", WINDOW, "--sinks", SINKS,
        "--limit", 3, "--max-length", 300, "--dtype", "float32", "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture
def arguments(command, tmp_path):
    """`command`, with a folder that is not there yet."""
    return [*command, "--output", tmp_path / "run"]


@pytest.fixture(scope="module")
def finished(run_eval, command, tmp_path_factory):
    """The result of `command` and its folder, to be read only."""
    run = tmp_path_factory.mktemp("finished") / "run"
    return run_eval(*command, "--output", run), run


@pytest.fixture
def again(finished, arguments, tmp_path):
    """`arguments`, with a folder in which all of it is done."""
    shutil.copytree(finished[1], tmp_path / "run")
    return arguments


def test_a_run_records_every_example_of_every_variant(finished):
    result, run = finished
    assert result.exit_code == 0, result.stderr
    found = records_of(run)
    assert len(found) == 10
    assert {(r["variant"], r["task"]) for r in found} == {
        (variant, task) for variant in ("full", "window") for task in ("hotpotqa", "samsum")
    }
    first = json.loads((run / "full" / "hotpotqa.jsonl").read_bytes().split(b"\n")[0])
    assert set(first) >= REQUIRED
    for record in found:
        assert record["error"] is None
        assert 0 <= record["score"] <= 1
        assert record["cache_bytes_measured"] == record["cache_bytes_analytic"] > 0
        assert record["flops"] > 0
        assert record["truncated"] == (record["prompt_tokens_untruncated"] > 300)
    # the window's cache is bounded, full attention's is not
    longest = max(found, key=lambda r: r["prompt_tokens"])["prompt_tokens"]
    assert longest > WINDOW + SINKS
    by_variant = {v: [r for r in found if r["variant"] == v] for v in ("full", "window")}
    held = {v: max(r["cache_bytes_measured"] for r in rs) for v, rs in by_variant.items()}
    assert held["window"] < held["full"]

    assert str(run) in result.stdout and "report.html" in result.stdout
    assert "mean of tasks" in result.stdout and "window" in result.stdout
    assert "<html" in (run / "report.html").read_text("utf-8")


def test_all_four_variants_run_and_writes_off_equals_the_window(
    run_eval, arguments, tmp_path, memory
):
    result = run_eval(*arguments, "--variant", "ahn,no-write", "--ahn", memory)
    assert result.exit_code == 0, result.stderr
    found = records_of(tmp_path / "run")
    predictions = {
        variant: {
            (r["task"], r["example_id"]): r["prediction"] for r in found if r["variant"] == variant
        }
        for variant in ("full", "window", "ahn", "no-write")
    }
    assert all(len(of_variant) == 5 for of_variant in predictions.values())
    assert predictions["no-write"] == predictions["window"]
    assert predictions["ahn"] != predictions["window"]
    assert predictions["full"] != predictions["window"]
    assert all(r["cache_bytes_measured"] == r["cache_bytes_analytic"] for r in found)
    models = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["models"]
    assert [models[v]["cell"] for v in ("window", "ahn")] == [None, "GatedDeltaNet"]
    assert models["ahn"]["layout"][0]["cell"] == "GatedDeltaNet"
    assert models["ahn"]["parameters"] > models["window"]["parameters"]


def test_window_and_sinks_come_from_the_ahn_weights_for_all_variants(run_eval, tiny, data, memory):
    result = run_eval(
        "longbench", "--model", tiny, "--ahn", memory, "--data", data, "--tasks", "hotpotqa",
        "--device", "cpu", "--dry-run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if f"│ {WINDOW} " in line]
    assert [row[1] for row in rows] == ["window", "ahn"]
    assert all(row[5] == str(SINKS) for row in rows)


def test_pocket_rows_run_and_are_summed_up_by_stored_facts(run_eval, tmp_path):
    from tasks.pocket.tokenizer import write_tokenizer

    model = save_tiny_qwen2(tmp_path / "model", vocab_size=576)
    write_tokenizer(model)
    result = run_eval(
        "longbench", "--model", model, "--data", "pocket", "--limit", 2, "--variant", "full",
        "--tasks", "pocket_qa@1,pocket_qa@4", "--device", "cpu", "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "mean, 1 stored fact " in result.stdout and "mean, 4 stored facts" in result.stdout
    found = records_of(tmp_path / "run")
    assert {r["attributes"]["facts"] for r in found} == {1, 4}
    assert all(r["attributes"]["evidence_distance"] > 128 for r in found)
    assert all(r["answer_in_prompt"] for r in found)


def test_run_json_says_how_the_numbers_came_about(finished, data):
    info = json.loads((finished[1] / "run.json").read_text("utf-8"))
    assert info["status"] == "finished"
    assert info["configuration"]["window"] == WINDOW
    assert info["generation"]["full"]["repetition_penalty"] == 1.3  # from the checkpoint
    per_task = info["generation"]["full"]["per_task"]
    assert per_task["samsum"]["eos_token_id"] == [256, 198]  # <|end|> and the newline's byte token
    assert per_task["samsum"]["min_new_tokens"] == 1
    assert per_task["hotpotqa"]["eos_token_id"] == [256]
    assert info["models"]["window"]["window"] == WINDOW and info["models"]["full"]["window"] is None
    assert info["models"]["full"]["parameters"] > 0
    assert len(info["models"]["window"]["layout"]) == 2
    assert {len(task["template_sha256"]) for task in info["tasks"].values()} == {64}
    assert {len(file["sha256"]) for file in info["data_files"]} == {64}
    assert {file["path"] for file in info["data_files"]} == {
        str(data / "hotpotqa.jsonl"), str(data / "samsum.jsonl")
    }  # fmt: skip
    assert {"torch", "transformers", "python"} <= set(info["packages"])
    assert info["hardware"]["cores"] >= 1


def test_the_same_command_again_does_nothing_again(run_eval, again, tmp_path, monkeypatch):
    files = {p: p.read_bytes() for p in (tmp_path / "run").glob("*/*.jsonl")}

    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded, though nothing is left to do")

    monkeypatch.setattr("evaluation.backends.streaming.load_resolved", refuse)
    (tmp_path / "run" / "report.html").unlink()
    result = run_eval(*again, "--no-report")
    assert result.exit_code == 0 and "mean of tasks" in result.stdout
    assert not (tmp_path / "run" / "report.html").exists()
    assert {p: p.read_bytes() for p in (tmp_path / "run").glob("*/*.jsonl")} == files


def test_a_torn_line_and_a_lost_file_are_made_good(run_eval, again, finished, tmp_path):
    torn, lost = (tmp_path / "run" / "full" / f"{task}.jsonl" for task in ("hotpotqa", "samsum"))
    torn.write_bytes(torn.read_bytes()[:-100])
    lost.unlink()
    result = run_eval(*again)
    assert result.exit_code == 0, result.stderr
    assert "hotpotqa.jsonl:3: torn last line dropped" in result.stderr
    assert "continuing: 7 of 10" in result.stderr
    assert records_of(tmp_path / "run") == records_of(finished[1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--max-length", 301], "max_length"),
        (["--window", WINDOW + 1], f"window.window {WINDOW} there, {WINDOW + 1} here"),
        (["--protocol", "ahn"], "protocol official there, ahn here"),
        (["--dtype", "bfloat16"], "dtype"),
        (["--seed", 3], "seed"),
        (["--variant", "full"], "variants.window only in the folder"),
    ],
)
def test_a_changed_run_is_refused_its_folder(run_eval, again, tmp_path, change, named):
    if change[0] == "--window":  # said twice it is two windows
        at = again.index("--window")
        again = again[:at] + again[at + 2 :]
    if change[0] == "--variant":
        at = again.index("window")
        again, change = again[: at - 1] + again[at + 1 :], []
    before = records_of(tmp_path / "run")
    result = run_eval(*again, *change)
    planned = run_eval(*again, *change, "--dry-run")
    assert result.exit_code == planned.exit_code == 2
    assert result.stderr == planned.stderr, "--dry-run says what the run would say"
    assert named in result.stderr and "belongs to another run" in result.stderr
    assert records_of(tmp_path / "run") == before and len(before) == 10


@pytest.mark.slow
def test_a_raised_limit_continues_the_run(run_eval, again, tmp_path):
    result = run_eval(*again, "--limit", 7)
    assert result.exit_code == 0, result.stderr
    assert "continuing: 10 of 18" in result.stderr
    fresh = run_eval(*again[:-1], tmp_path / "fresh", "--limit", 7)
    assert fresh.exit_code == 0
    assert records_of(tmp_path / "run") == records_of(tmp_path / "fresh")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["tasks"]["hotpotqa"]["examples"] == 7 and info["status"] == "finished"


def test_a_lowered_limit_is_refused_the_folder(run_eval, again, tmp_path):
    result = run_eval(*again, "--limit", 1)
    assert result.exit_code == 2
    assert "2 records of examples that are not asked now" in result.stderr
    assert "--limit" in result.stderr and len(records_of(tmp_path / "run")) == 10


def test_a_record_that_answered_another_prompt_is_refused(run_eval, again, data, tmp_path):
    path = tmp_path / "run" / "full" / "hotpotqa.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    last = next(line for line in lines if line["example_id"] == "row2")
    last["prompt_sha256"] = "0" * 64
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run_eval(*again)
    assert result.exit_code == 2
    assert "1 records answered other prompts" in result.stderr and "'row2'" in result.stderr


def test_a_folder_of_an_earlier_schema_is_reported_but_not_continued(run_eval, again, tmp_path):
    run = tmp_path / "run"
    for path in (run / "run.json", *run.glob("*/*.jsonl")):
        path.write_text(path.read_text().replace('"schema_version": 4', '"schema_version": 1'))
        path.write_text(path.read_text().replace('"schema_version":4', '"schema_version":1'))
    result = run_eval(*again)
    assert result.exit_code == 2 and "earlier version of ahn-bench (schema 1" in result.stderr
    assert run_eval("report", run, "-o", tmp_path / "page.html").exit_code == 0


@pytest.mark.slow
def test_several_memories_in_one_run(run_eval, command, memory, tiny, tmp_path):
    """Each named AHN is a variant of its own, and equals the run of that one alone."""
    other = save_tiny_memory(tmp_path / "other", tiny, seed=3)
    at = command.index("--variant")
    common = [*command[:at], *command[at + 4 :]]
    both = run_eval(
        *common, "--ahn", f"a={memory}", "--ahn", f"b={other}", "--variant", "window",
        "--variant", "ahn", "--variant", "no-write-b", "--output", tmp_path / "both",
    )  # fmt: skip
    assert both.exit_code == 0, both.stderr
    found = records_of(tmp_path / "both")
    assert {r["variant"] for r in found} == {"window", "ahn-a", "ahn-b", "no-write-b"}
    alone = run_eval(*common, "--ahn", other, "--variant", "ahn", "--output", tmp_path / "alone")
    assert alone.exit_code == 0, alone.stderr

    def predictions(run, variant):
        of_variant = [r for r in records_of(tmp_path / run) if r["variant"] == variant]
        return {(r["task"], r["example_id"]): r["prediction"] for r in of_variant}

    assert predictions("both", "ahn-b") == predictions("alone", "ahn")
    assert predictions("both", "no-write-b") == predictions("both", "window")
    assert predictions("both", "ahn-a") != predictions("both", "ahn-b")
    info = json.loads((tmp_path / "both" / "run.json").read_text())
    assert info["models"]["ahn-a"]["variant"] == "ahn"
    parts = info["identity_parts"]["variants"]
    assert parts["ahn-a"]["weights_sha256"] != parts["ahn-b"]["weights_sha256"]
    page = (tmp_path / "both" / "report.html").read_text()
    assert "ahn-a" in page and "ahn-b" in page


@pytest.mark.slow
def test_variants_in_turns_give_the_same_records(run_eval, arguments, finished, tmp_path):
    order: list[tuple[str, str]] = []

    class Watched(RunStore):
        def append(self, record: Any) -> None:
            order.append((record.variant, record.document_id))
            super().append(record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.commands.run.RunStore", Watched)
        result = run_eval(*arguments, "--in-turns")
    assert result.exit_code == 0, result.stderr
    assert "full: 5 examples in" in result.stderr and "window: 5 examples in" in result.stderr
    assert records_of(tmp_path / "run") == records_of(finished[1])
    turns = [turn for i, turn in enumerate(order) if not i or order[i - 1] != turn]
    documents = list(dict.fromkeys(document for _, document in turns))
    assert [document for _, document in turns] == [d for d in documents for _ in range(2)]
    first = [variant for variant, _ in turns[::2]]
    assert first == ["full", "window", "full", "window"][: len(first)], "who begins changes"
    assert len(first) == 3


@pytest.mark.slow
def test_failures_in_turns_are_counted_once_and_tried_by_the_next_start(
    run_eval, arguments, finished, tmp_path, monkeypatch
):
    answer = CachedDocument.ask

    def fail_sometimes(self, question, last):
        if (len(self._ids) + len(question.ids)) % 2:
            raise RuntimeError("no luck")
        return answer(self, question, last)

    monkeypatch.setattr(CachedDocument, "ask", fail_sometimes)
    result = run_eval(*arguments, "--in-turns")
    failed = [r for r in records_of(tmp_path / "run") if r["error"]]
    assert result.exit_code == 1 and f"{len(failed)} examples failed" in result.stderr
    assert 0 < len(failed) < 10 and len(records_of(tmp_path / "run")) == 10
    monkeypatch.setattr(CachedDocument, "ask", answer)
    assert run_eval(*arguments, "--in-turns").exit_code == 0
    assert records_of(tmp_path / "run") == records_of(finished[1])


@pytest.mark.slow
def test_other_weights_or_other_rows_are_another_run(run_eval, again, tmp_path, tiny, data):
    model = shutil.copytree(tiny, tmp_path / "model")
    result = run_eval(*again, "--model", model)
    assert result.exit_code == 0, "a copy of the same weights is the same run"
    other = save_tiny_qwen2(model, generation={"repetition_penalty": 1.3}, seed=1)
    result = run_eval(*again, "--model", other)
    assert result.exit_code == 2 and "weights_sha256" in result.stderr
    save_tiny_qwen2(model, generation={"repetition_penalty": 1.2})
    result = run_eval(*again, "--model", model)
    assert result.exit_code == 2 and "repetition_penalty 1.3 there, 1.2 here" in result.stderr
    rows = shutil.copytree(data, tmp_path / "rows")
    write_rows(rows / "hotpotqa.jsonl", [make_question(i, 2 + i // 3) for i in range(8)])
    result = run_eval(*again, "--data", rows)
    assert result.exit_code == 2 and "tasks.hotpotqa" in result.stderr
    assert "tasks.samsum" not in result.stderr
    result = run_eval(*again, "--data", rows, "--overwrite")
    assert result.exit_code == 0


def test_an_example_that_fails_is_recorded_and_tried_again(
    run_eval, arguments, finished, tmp_path, monkeypatch
):
    answer = CachedDocument.ask

    def fail_sometimes(self, question, last):
        if (len(self._ids) + len(question.ids)) % 2:
            raise RuntimeError("no luck\nwith this one")
        return answer(self, question, last)

    monkeypatch.setattr(CachedDocument, "ask", fail_sometimes)
    result = run_eval(*arguments)
    run = tmp_path / "run"
    failed = [r for r in records_of(run) if r["error"]]
    assert result.exit_code == 1
    assert 0 < len(failed) < 10 and len(records_of(run)) == 10
    assert f"{len(failed)} examples failed" in result.stderr
    assert {r["error"] for r in failed} == {"RuntimeError: no luck"}
    assert {r["score"] for r in failed} == {None}
    assert json.loads((run / "run.json").read_text())["status"] == "finished"

    monkeypatch.setattr(CachedDocument, "ask", answer)
    result = run_eval(*arguments)
    assert result.exit_code == 0
    assert records_of(run) == records_of(finished[1])


def test_a_run_in_which_everything_fails_stops_early(run_eval, arguments, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(CachedDocument, "ask", fail)
    result = run_eval(*arguments, "--max-errors", 3)
    assert result.exit_code == 1
    assert "stopped: full: 4 examples failed" in result.stderr and "broken" in result.stderr
    assert len(records_of(tmp_path / "run")) == 4
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["status"] == "interrupted"


@pytest.mark.slow
def test_out_of_memory_drops_the_kept_document_first(
    run_eval, arguments, finished, tmp_path, monkeypatch
):
    answer = CachedDocument._answer

    def crowded(self, question, keep):
        if keep:
            raise MemoryError("no room for two caches")
        return answer(self, question, keep)

    monkeypatch.setattr(CachedDocument, "_answer", crowded)
    result = run_eval(*arguments)
    assert result.exit_code == 0, result.stderr
    assert records_of(tmp_path / "run") == records_of(finished[1])


@pytest.mark.slow
def test_documents_are_read_once_and_the_longest_come_first(run_eval, arguments, tmp_path):
    at = arguments.index("--variant") + 2
    arguments = arguments[:at] + ["--limit", 8, "--max-length", 2000, "--output"]  # full alone
    run_eval(*arguments, tmp_path / "run")
    run_eval(*arguments, tmp_path / "alone", "--no-reuse-prefixes")
    lines = (tmp_path / "run" / "full" / "hotpotqa.jsonl").read_bytes().split(b"\n")[:-1]
    records = [json.loads(line) for line in lines]
    documents = [r["document_id"] for r in records]
    assert len(set(documents)) == 3
    changes = sum(a != b for a, b in zip(documents, documents[1:], strict=False))
    assert changes == 2, "questions on one document follow one another"
    reused = [r["reused_prefix_tokens"] for r in records]
    assert reused.count(0) == 3 and sum(n > 100 for n in reused) == 5
    lengths = {
        d: max(r["prompt_tokens"] for r in records if r["document_id"] == d) for d in documents
    }
    assert list(lengths.values()) == sorted(lengths.values(), reverse=True)
    assert records_of(tmp_path / "run") == records_of(tmp_path / "alone")


def test_shared_beginning_ends_before_the_last_token():
    class Prompt:
        def __init__(self, *ids: int) -> None:
            import numpy as np

            self.ids = np.asarray(ids, dtype=np.int32)
            self.tokens = len(ids)

    prompts: Any = [Prompt(*range(40)), Prompt(*range(40)), Prompt(*range(50))]
    assert shared_tokens(prompts) == 39
    assert shared_tokens(prompts[2:]) == 0
    short: Any = [Prompt(*range(31)), Prompt(*range(31))]
    assert shared_tokens(short) == 0


def test_the_plan_is_printed_without_loading_weights(run_eval, arguments, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("evaluation.backends.streaming.load_resolved", refuse)
    monkeypatch.setattr("evaluation.backends.streaming.StreamingBackend.weight_files", refuse)
    result = run_eval(*arguments, "--dry-run")
    assert result.exit_code == 0
    for expected in ("hotpotqa", "samsum", "5 examples per variant", "FLOP", "KiB", "window"):
        assert expected in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_file_says_what_the_flags_say(run_eval, finished, tiny, data, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {tiny}\ndata: {data}\ntasks: [hotpotqa, samsum]\nvariants: [full, window]\n"
        f"window: {WINDOW}\nsinks: 999\nlimit: 3\nmax_length: 300\ndtype: float32\ndevice: cpu\n"
        f"output: {tmp_path / 'from_file'}\n"
    )
    result = run_eval("longbench", "--config", file, "--sinks", SINKS)
    assert result.exit_code == 0, result.stderr
    assert records_of(tmp_path / "from_file") == records_of(finished[1])
    identities = {
        json.loads((run / "run.json").read_text())["identity"]
        for run in (finished[1], tmp_path / "from_file")
    }
    assert len(identities) == 1


@pytest.mark.slow
def test_without_output_the_folder_is_named_after_the_identity(
    run_eval, arguments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = arguments[: arguments.index("--output")] + ["--limit", 1]
    result = run_eval(*arguments)
    assert result.exit_code == 0, result.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    identity = json.loads((folder / "run.json").read_text())["identity"]
    assert folder.name == f"longbench-{identity[:12]}"
    assert "continuing: 4 of 4" in run_eval(*arguments).stderr


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("protocol", ["official", "ahn"])
def test_the_three_real_tasks_end_to_end(run_eval, shared: Path, tmp_path, protocol):
    model = save_tiny_qwen2(tmp_path / "model", vocab_size=151936, context=32768)
    result = run_eval(
        "longbench", "--model", model, "--tokenizer", shared / "data" / "qwen2.5-tokenizer",
        "--data", shared / "data" / "longbench", "--tasks", "multifieldqa_zh,multi_news",
        "--tasks", "passage_retrieval_zh", "--protocol", protocol, "--limit", 1,
        "--variant", "full", "--variant", "window", "--window", 256, "--sinks", 4,
        "--dtype", "float32", "--device", "cpu", "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = records_of(tmp_path / "run")
    assert len(found) == 6 and not any(r["error"] for r in found)
    assert all(r["chat_template"] for r in found)
    assert max(r["prompt_tokens"] for r in found) > 5000
    for record in found:
        assert record["cache_bytes_measured"] == record["cache_bytes_analytic"]
    limits = {r["task"]: r["generated_tokens"] for r in found if r["finish_reason"] == "length"}
    assert limits.get("multi_news", 512) == (512 if protocol == "official" else 500)


@pytest.mark.slow
def test_a_worker_in_another_place_gives_the_records_of_the_run(finished, tiny, data):
    """It takes a plan and the name of a variant, and neither store nor listener."""
    plan = make_plan(
        RunConfiguration(
            model=str(tiny), data=str(data), tasks=["hotpotqa", "samsum"],
            variants=["full", "window"], window=WINDOW, sinks=SINKS, limit=3, max_length=300,
            dtype="float32", device="cpu",
        )
    )  # fmt: skip
    found = []
    for variant in plan.models:
        worker = pickle.loads(pickle.dumps(Worker(plan, variant)))
        worker.open()
        for group in groups_in_order(plan):
            found += [json.loads(r.to_line()) for r in worker.answer(group, group.indices)]
        worker.close()
    for record in found:
        for key in OF_ONE_START:
            record.pop(key, None)
    assert sorted(found, key=lambda r: (r["variant"], r["task"], r["example_id"])) == records_of(
        finished[1]
    )
