"""`--variant kvpress:PRESS`: what can be asked for, how it answers, and what it costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Mamba2Config

from ahn import POCKET_PATH
from common.errors import InputError
from evaluation.backends.base import Question, RunSettings
from evaluation.backends.presses import library as press_library
from evaluation.backends.presses.backend import PressBackend, PressReader
from evaluation.backends.presses.library import INSTALL, TRAITS, VERSION, read_request
from evaluation.backends.requests import parse_request
from evaluation.backends.stock import StockBackend
from evaluation.cli import main
from tests.evaluation.backends.presses.test_reading import model_of

if find_spec("kvpress") is None:
    pytest.skip(f"kvpress is not installed: {INSTALL}", allow_module_level=True)

DOCUMENT = np.random.default_rng(0).integers(5, 576, 200).astype(np.int32)
QUESTIONS = [np.random.default_rng(n).integers(5, 576, 7).astype(np.int32) for n in (1, 2, 3)]
OF_A_TOKEN = 3 * 4 * 2 * 64 * 4
"""Bytes of a token of the pocket model."""


def backend(text: str, **settings: Any) -> PressBackend:
    model = settings.pop("model", "pocket")
    return PressBackend(parse_request(f"kvpress:{text}"), RunSettings(model=model, **settings))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(POCKET_PATH)


def opened(made: PressBackend, tokenizer: Any) -> PressReader:
    return made.open(tokenizer, 0)


def question(ids: Any, new: int = 6) -> Question:
    return Question(ids, GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("snapkv,windowsize=3", "no option 'windowsize' .*did you mean 'window_size'"),
        ("snapv,keep=9", "no press 'snapv' .*did you mean 'snapkv'"),
        ("keep=9", "which press"),
        ("snapkv", "how much is kept.*keep=TOKENS, ratio=SHARE .*--budget"),
        ("knorm,keep=9,ratio=0.5", "only one of them"),
        ("knorm,keep=9,compression_ratio=0.5", "only one of them"),
        ("knorm,keep=0", "keep: '0' is less than 1"),
        ("knorm,keep=x", "keep: 'x' is not a number of tokens"),
        ("knorm,ratio=1", "ratio: '1' is not a share from 0 to below 1"),
        ("knorm,ratio=nan", "ratio: 'nan' is not a number"),
        ("knorm,ratio=-0.5", "'-0.5' is not a share"),
        ("snapkv,window_size=0,keep=9", "window_size: '0' is less than 1"),
        ("snapkv,keep=9", "keep=9 is fewer than the 64 tokens that SnapKVPress always keeps"),
        ("streamingllm,n_sink=20,keep=9", "fewer than the 20 tokens .*n_sink=20"),
        ("cur,leverage_type=both,keep=9", "'both' is none of key, value, kv_avg, kv_product"),
        ("cur,use_random_leverage=1,keep=9", "'1' is neither true nor false"),
        ("expectedattention,epsilon=inf,keep=9", "epsilon: 'inf' is not a number"),
        ("knorm,inner=snapkv,keep=9", "works through no other press"),
        ("adakv,keep=9", "works through another press: inner=snapkv"),
        ("adakv,inner=finch,keep=9", "FinchPress cannot be used"),
        ("adakv,inner=knrm,keep=9", "no press 'knrm'.*'knorm'"),
        ("adakv,inner=adakv,keep=9", "needs|requires a ScorerPress|works through another"),
        ("adakv,inner=criticalkv,criticalkv.inner=criticalkv,keep=9", "cannot work through itself"),
        ("adakv,inner=snapkv+knorm,keep=99", "works through one other press, not 2"),
        ("adakv,inner=knorm,alpha_safeguard=2,keep=9", "alpha_safeguard should be in"),
        ("adakv,inner=snapkv,window_size=9,keep=99", "no option 'window_size'.*snapkv.window_size"),
        ("adakv,inner=observedattention,keep=9", "cannot work through ObservedAttentionPress"),
        ("adakv,inner=knorm,keep=9,attention=eager", "with sdpa only"),
        ("observedattention,keep=9,attention=sdpa", "needs attention weights: eager"),
        ("snapkv,keep=99,attention=flash", "'flash' is none of sdpa, eager"),
        ("snapkv,keep=99,chunk=8", "no option 'chunk'"),
        ("composed,inner=snapkv+knorm,keep=99", "one may drop|that drops tokens from all heads"),
        ("composed,inner=kvcompose+think,think.key_channel_compression_ratio=.5,keep=9", "drops"),
        ("composed,inner=snapkv,keep=99", "works with a press that drops tokens"),
        ("think", "key_channel_compression_ratio must be given"),
        ("think,key_channel_compression_ratio=0.5,keep=9", "keep and ratio cannot be chosen"),
        ("simlayerkv,lazy_threshold=1", "lazy_threshold must be given, above 0 and below 1"),
        ("simlayerkv,lazy_threshold=0.5,n_recent=1", "n_recent must be above n_last"),
        ("dms,inner=knorm", "threshold must be given"),
        ("dms,inner=knorm,threshold=-1,decoding=true", "no option 'decoding'"),
        ("perlayercompression,inner=knorm,compression_ratios=0.5/0.6", "2 shares for a model of 3"),
        ("perlayercompression,inner=knorm,compression_ratios=0.5/x/0", "'x' is not a number"),
        ("perlayercompression,inner=knorm,compression_ratios=0/1/0", "must be below 1"),
        ("kvcompose,agg_task=most,keep=9", "'most' is none of max, mean"),
        ("entropygatedchunkkv,inner=knorm,chunk_length=3,keep=9", "chunk_length > low_entropy"),
        ("compactor,_leverage_press=none,keep=20", "no option '_leverage_press'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        backend(text)


def test_several_problems_are_told_at_once():
    with pytest.raises(InputError) as caught:
        backend("snapkv,window_size=x,keep=y,attention=z", model="/nowhere")
    told = "\n".join(caught.value.problems)
    assert all(word in told for word in ("window_size", "keep", "/nowhere")), told


def test_a_press_and_its_settings_are_read():
    spec, size = read_request(
        parse_request("kvpress:AdaKV,inner=Snap-KV_press,Snap-KV_press.window_size=1k,ratio=0.74")
    )
    inner = {"press": "SnapKVPress", "window_size": 1024, "kernel_size": 5}
    assert spec.described() == {"press": "AdaKVPress", "alpha_safeguard": 0.2, "inner": [inner]}
    assert size.described() == {"ratio": 0.74}
    assert spec.make().press.window_size == 1024


@pytest.mark.parametrize(
    ("ratio", "document", "kept"), [("0.74", 128_000, 33_280), ("0.9", 10, 1), ("0.7", 10, 3)]
)
def test_a_share_is_taken_as_it_is_written(ratio, document, kept):
    _, size = read_request(parse_request(f"kvpress:knorm,ratio={ratio}"))
    assert size.tokens(document) == kept  # int(10 * (1 - 0.9)) is 0 in floating point


def test_a_library_that_is_missing_or_another_is_told_with_the_way_to_get_it(monkeypatch):
    press_library.kvpress.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(press_library, "find_spec", lambda name: None)
            with pytest.raises(InputError, match="not installed: pip install 'ahn-bench"):
                backend("snapkv,keep=99")
        with monkeypatch.context() as patch:
            patch.setattr(metadata, "version", lambda name: "0.4.2")
            with pytest.raises(InputError) as caught:
                backend("snapkv,keep=99")
            assert f"kvpress 0.4.2 is installed, and {VERSION} is needed" in str(caught.value)
            assert f"pip install --no-deps kvpress=={VERSION}" in str(caught.value)
    finally:
        press_library.kvpress.cache_clear()


@pytest.mark.slow
def test_importing_the_library_changes_nothing_of_transformers():
    code = (
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as found\n"
        "found['mine'] = mine = lambda *a: a\n"
        "before = dict(found)\n"
        "from evaluation.backends.presses.library import kvpress\n"
        "kvpress()\n"
        "assert dict(found) == before and list(found._local_mapping) == ['mine'], found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def save(folder: Path, config: Any) -> Path:
    folder.mkdir()
    model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_families_that_kvpress_does_not_know_are_refused_without_weights(tmp_path):
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 300}
    mamba = Mamba2Config(**sizes, num_heads=8, head_dim=16, state_size=8, n_groups=1)
    with pytest.raises(InputError, match="kvpress works on llama, mistral, .* not on mamba2"):
        backend("knorm,keep=9", model=str(save(tmp_path / "mamba", mamba)))


def test_sliding_layers_and_presses_that_do_not_know_a_family_are_refused(tmp_path):
    config = json.loads((POCKET_PATH / "config.json").read_text("utf-8"))
    sliding = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    folder = tmp_path / "sliding"
    folder.mkdir()
    for file in POCKET_PATH.glob("*"):
        if file.is_file() and file.name != "config.json":
            (folder / file.name).symlink_to(file)
    changed = config | sliding | {"layer_types": kinds}
    (folder / "config.json").write_text(json.dumps(changed), "utf-8")
    with pytest.raises(InputError, match="2 of the model's 3 layers slide"):
        backend("knorm,keep=9", model=str(folder))


def test_identity_holds_all_that_changes_what_is_kept():
    texts = [
        "snapkv,keep=99",
        "snapkv,keep=98",
        "snapkv,ratio=0.5",
        "snapkv,keep=99,window_size=32",
        "snapkv,keep=99,attention=eager",
        "knorm,keep=99",
        "adakv,inner=snapkv,keep=99",
        "adakv,inner=knorm,keep=99",
        "adakv,inner=knorm,alpha_safeguard=0.3,keep=99",
    ]
    found = [json.dumps(backend(text).identity(), sort_keys=True) for text in texts]
    found.append(json.dumps(backend("snapkv", budget="0.5").identity(), sort_keys=True))
    assert len(set(found)) == len(found)
    assert backend("snapkv,keep=99").identity()["kvpress"] == VERSION
    assert backend("SnapKV_press,keep=99").identity() == backend("snapkv,keep=99").identity()


def test_statistics_of_the_user_are_among_the_files_that_change_an_answer(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("x", "utf-8")
    made = backend(f"expectedattentionstats,keep=99,stats_folder={tmp_path}")
    names = [file.name for file in made.weight_files() if file.parent == tmp_path]
    assert names == ["config.json", "model.safetensors"]
    assert str(tmp_path) not in json.dumps(made.identity()), "what counts is what is in it"
    assert made.describe()["folders"] == [str(tmp_path)]
    assert not set(backend("snapkv,keep=99").weight_files()) - set(made.weight_files())


@pytest.mark.parametrize(
    ("text", "budget", "sizable"),
    [
        ("snapkv", "0.5", True),
        ("snapkv,keep=99", "0.5", False),
        ("snapkv,ratio=0.5", "0.5", False),
        ("think,key_channel_compression_ratio=0.5", "0.5", False),
        ("snapkv,keep=99", None, False),
    ],
)
def test_a_budget_sizes_presses_that_have_no_size_of_their_own(text, budget, sizable):
    made = backend(text, budget=budget)
    assert (made.sizable, made.needs_boundary) == (sizable, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adakv,inner=knorm,keep=99", "masked head by head, and stay in memory"),
        ("think,key_channel_compression_ratio=0.5", "channels of keys are set to zero"),
        ("kvzip,keep=99", "reads the document once more"),
        ("pyramidkv,keep=99", "fewer than 1,280 tokens a layer"),
        ("chunkkv,inner=knorm,keep=99", "keeps whole chunks"),
        ("qfilter,keep=99", "needs filters trained for the model"),
    ],
)
def test_what_people_must_know_is_a_notice(text, said):
    made = backend(text)
    assert any(said in notice and made.name in notice for notice in made.notices), made.notices


def test_a_plain_press_needs_no_notice():
    assert not backend("snapkv,keep=99").notices
    assert not backend("pyramidkv,window_size=4,keep=99").notices
    assert backend("snapkv,keep=99").describe()["frees_memory"] == "yes"
    assert backend("adakv,inner=knorm,keep=99").describe()["frees_memory"].startswith("no: tokens")
    (said,) = backend("think,key_channel_compression_ratio=.5", budget="0.5").notices[:1]
    assert "think" in said


@pytest.mark.parametrize(
    "text", ["snapkv,window_size=16", "adakv,inner=knorm", "pyramidkv,window_size=8",
             "keyrerotation,inner=streamingllm", "kvzip", "random"]
)  # fmt: skip
def test_answers_do_not_depend_on_other_questions(text, tokenizer):
    reader = opened(backend(f"{text},keep=60"), tokenizer)
    together = reader.read(DOCUMENT)
    first = [together.ask(question(ids), last=n == 2) for n, ids in enumerate(QUESTIONS)]
    for ids, found in zip(QUESTIONS, first, strict=True):
        alone = reader.read(DOCUMENT).ask(question(ids), last=True)
        assert list(alone.token_ids or ()) == list(found.token_ids or ())
        assert (alone.document_bytes, alone.kept_tokens) == (
            found.document_bytes,
            found.kept_tokens,
        )
    assert [a.reused_tokens for a in first] == [0, len(DOCUMENT), len(DOCUMENT)]
    assert first[0].kept_tokens == 60


def test_no_press_sees_the_question(tokenizer):
    reader = opened(backend("snapkv,window_size=16,keep=60"), tokenizer)
    kept = []
    for _ in QUESTIONS:
        past = reader.fill(DOCUMENT)
        kept.append([layer.keys.clone() for layer in past.cache.layers])
        reader.prefill(QUESTIONS[len(kept) - 1], past)
    for other in kept[1:]:
        assert all(torch.equal(a, b) for a, b in zip(kept[0], other, strict=True))


def test_a_question_stands_at_its_true_position(tokenizer):
    plain = opened(backend("knorm,keep=60"), tokenizer)
    rotated = opened(backend("keyrerotation,inner=knorm,keep=60"), tokenizer)
    assert plain.fill(DOCUMENT).seen == len(DOCUMENT)
    assert rotated.fill(DOCUMENT).seen == 60, "keys were rotated to stand side by side"


def test_without_a_document_it_is_the_stock_model(tokenizer):
    made = backend("snapkv,keep=64")
    request = parse_request("hf")
    stock = StockBackend(request, RunSettings(model="pocket")).open(tokenizer, 0)
    expected = stock.read(DOCUMENT[:0]).ask(question(DOCUMENT), last=True)
    found = opened(made, tokenizer).read(DOCUMENT[:0]).ask(question(DOCUMENT), last=True)
    assert found.token_ids == expected.token_ids
    assert found.cache_bytes == expected.cache_bytes
    assert made.cost(200, 6, 0) == StockBackend(request, RunSettings(model="pocket")).cost(200, 6)


@pytest.mark.parametrize(
    "text", ["knorm,keep=60", "knorm,ratio=0.9", "pyramidkv,window_size=8,keep=60",
             "adakv,inner=knorm,keep=60", "snapkv,keep=500",
             "perlayercompression,inner=knorm,compression_ratios=0/0.5/0.9"]
)  # fmt: skip
def test_bytes_by_arithmetic_are_those_that_are_measured(text, tokenizer):
    made = backend(text)
    answer = opened(made, tokenizer).read(DOCUMENT).ask(question(QUESTIONS[0]), last=True)
    assert made.document_bytes(len(DOCUMENT)) == answer.document_bytes
    prompt, generated = len(DOCUMENT) + 7, answer.generated_tokens or 0
    cost = made.cost(prompt, generated, len(DOCUMENT))
    assert cost.cache_bytes == answer.cache_bytes


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2", "gemma3"])
def test_a_model_of_another_family_is_pressed_from_its_folder(family, tmp_path, tokenizer):
    model_of(family).save_pretrained(tmp_path)
    made = backend("pyramidkv,window_size=8,keep=60", model=str(tmp_path))
    answer = opened(made, tokenizer).read(DOCUMENT).ask(question(QUESTIONS[0]), last=True)
    assert answer.kept_tokens == (60 if family != "gemma3" else (60 + 31) / 2)
    assert made.document_bytes(200) == answer.document_bytes
    cost = made.cost(207, answer.generated_tokens or 0, 200)
    assert cost.cache_bytes == answer.cache_bytes
    assert (cost.flops is None) == (family in ("phi3", "gemma3")), "shapes that ahn.cost knows"


def test_flops_are_those_of_a_full_prefill_and_of_the_slots_that_are_kept():
    stock = StockBackend(parse_request("hf"), RunSettings(model="pocket"))
    full = stock.cost(207, 6).flops
    assert backend("knorm,keep=200").cost(207, 6, 200).flops == full
    found = backend("knorm,keep=60").cost(207, 6, 200).flops
    # 7 tokens of the question and 5 decode steps each see 140 keys fewer, in 3 layers of 4 heads.
    assert full is not None and found == full - 12 * 140 * 3 * 4 * 64 * 4
    mean = backend("pyramidkv,window_size=8,keep=60").cost(207, 6, 200).flops
    assert mean == found, "layers that keep 60 on average cost what layers of 60 do"


def test_what_is_not_known_of_the_cost_is_not_said():
    assert backend("kvzip,keep=60").cost(207, 6, 200).flops is None, "it reads the document again"
    assert backend("kvcompose,keep=60").cost(207, 6, 200).cache_bytes is None
    assert backend("knorm,keep=60").cost(207, 6).flops is None, "where the document ends is unknown"
    assert backend("simlayerkv,lazy_threshold=0.5").document_bytes(200) is None


@pytest.mark.parametrize("tokens", [60, 61, 100])
@pytest.mark.parametrize("over", [0, 1, OF_A_TOKEN - 1])
@pytest.mark.parametrize("text", ["knorm", "pyramidkv,window_size=4", "adakv,inner=knorm"])
def test_a_budget_is_filled_to_the_last_token(text, tokens, over, tokenizer):
    made = backend(text, budget="0.5")
    budget = tokens * OF_A_TOKEN + over
    kept = made.kept(len(DOCUMENT), budget)
    assert tokens - 1 < kept < tokens + 1
    if text == "knorm":
        assert kept == tokens
    if over == 0:
        reader = opened(made, tokenizer)
        answer = reader.read(DOCUMENT, budget).ask(question(QUESTIONS[0]), last=True)
        assert answer.kept_tokens == kept
        if not made.spec.masks:
            assert budget - OF_A_TOKEN < (answer.document_bytes or 0) <= budget


def test_a_budget_that_holds_too_little_is_told_before_the_run():
    with pytest.raises(InputError, match="fewer than the 64 that it always keeps"):
        backend("snapkv", budget="0.5").kept(200, 40 * OF_A_TOKEN)
    with pytest.raises(InputError, match="holds no token"):
        backend("knorm", budget="0.5").kept(200, OF_A_TOKEN - 1)


def test_documents_that_are_too_short_for_a_share_are_told_before_the_run(capsys):
    options = ["--tasks", "pocket_qa@4", "--lengths", "512", "--limit", "3", "--dry-run"]
    with pytest.raises(SystemExit, match="0"):
        main(["pocket", "--variant", "kvpress:snapkv,ratio=0.9,kvpress:knorm,ratio=0.9", *options])
    told = " ".join("".join(capsys.readouterr()).split())
    assert "pocket_qa@4: 3 of 3 examples will fail with kvpress-snapkv-ratio0.9: SnapKV" in told
    assert "fewer than the 64 that it always keeps" in told
    assert "fail with kvpress-knorm" not in told


@pytest.mark.slow
def test_it_is_asked_in_a_run_at_the_bytes_of_another_variant(tmp_path):
    folder = tmp_path / "run"
    variants = "ahn,kvpress:snapkv,window_size=32,kvpress:pyramidkv,window_size=16,name=pyramid"
    command = ["pocket", "--variant", variants, "--ahn", "pocket", "--budget", "ahn"]
    options = ["--tasks", "pocket_qa@4", "--lengths", "512", "--limit", "3", "--no-report"]
    with pytest.raises(SystemExit, match="0"):
        main([*command, *options, "-o", str(folder)])
    for variant in ("kvpress-snapkv-window_size32", "pyramid"):
        lines = (folder / variant / "pocket_qa@4.jsonl").read_text("utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert len(records) == 3
        for record in records:
            assert record["error"] is None
            budget, held = record["budget_bytes"], record["document_bytes"]
            assert 0.995 * budget <= held <= budget
            assert record["kept_tokens"] == held / OF_A_TOKEN
            assert record["cache_bytes_measured"] == record["cache_bytes_analytic"]
    run = json.loads((folder / "run.json").read_text("utf-8"))
    assert run["models"]["pyramid"]["press"]["press"] == "PyramidKVPress"


def test_the_version_is_that_of_the_pins_and_of_the_page():
    root = Path(__file__).parents[4]
    assert f"kvpress=={VERSION}\n" in (root / "constraints.txt").read_text("utf-8")
    page = (root / "docs" / "presses.md").read_text("utf-8")
    assert set(re.findall(r"kvpress==?([\d.]+\d)", page)) == {VERSION}
    # Under [project.optional-dependencies] it would make pip look for an older transformers.
    wanted = metadata.requires("kvpress") or []
    assert any(line.startswith("transformers<5.3") for line in wanted), "then it can be an extra"


def table_of_presses() -> dict[str, tuple[str, str]]:
    page = (Path(__file__).parents[4] / "docs" / "presses.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ?([^|]*)\|$", page, re.MULTILINE)
    return {name: (works.strip(), more.strip()) for name, works, more in rows}


@pytest.mark.parametrize("name", TRAITS)
def test_the_page_says_of_each_press_what_the_code_does(name):
    works, more = table_of_presses()[name]
    traits = TRAITS[name]
    assert (works == "refused") == bool(traits.refused)
    assert (works == "with a download") == bool(traits.needs)
    assert ("masks heads" in more) == ("masked" in traits.masks or name == "KVComposePress")
    assert ("not Gemma 3" in more) == ("gemma3" in traits.not_for)
    assert (f"size from `{traits.size}" in more) == bool(traits.size)
    assert ("twice" in more) == traits.again
    short = name.removesuffix("Press").lower()
    if works in ("yes", "with `inner`"):
        try:
            read_request(parse_request(f"kvpress:{short}"))
        except InputError as error:
            assert ("works through another press" in str(error)) == (works == "with `inner`")
        else:
            assert works == "yes"


def test_the_page_lists_no_other_press():
    assert set(table_of_presses()) == set(TRAITS)
