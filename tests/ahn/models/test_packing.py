"""Several documents in a row: each gets what it gets alone, also its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import DataCollatorWithFlattening

from ahn import MemoryHook
from ahn.config import CELLS, VARIANTS
from ahn.models.attention import LayerPlan
from ahn.models.packing import find_documents, packed_plans
from tests.ahn.conftest import SINKS, SIZES, WINDOW, tokens, variant_model

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
#: of documents: short ones, alike ones, and some beyond sinks and window
LENGTHS = [50, 3, 1, 24, 24, 1, SINKS + WINDOW, 37]


def documents(lengths: list[int], seed: int = 0) -> list[Tensor]:
    return [tokens(n, seed=seed + number)[0] for number, n in enumerate(lengths)]


def restarting(lengths: list[int], start: int = 0) -> Tensor:
    return torch.cat([start + torch.arange(n) for n in lengths])[None]


def boundaries(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


@torch.no_grad()
def alone(model: Any, rows: list[Tensor]) -> Tensor:
    return torch.cat([model(row[None], use_cache=False).logits[0] for row in rows])


def told(how: str, lengths: list[int]) -> dict[str, Any]:
    """Arguments that tell where documents of one row begin."""
    edges = boundaries(lengths)
    limits = {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    if how == "positions":
        return {"position_ids": restarting(lengths)}
    if how == "boundaries":
        return {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, **limits}
    return {"position_ids": restarting(lengths), "cu_seq_lens_q": edges, "cu_seq_lens_k": edges}


@pytest.mark.parametrize("how", ["positions", "boundaries", "both"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [1024, 60, 16])
@torch.no_grad()
def test_each_document_gets_what_it_gets_alone(
    models: Any, variant: str, how: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = models(variant), documents(LENGTHS)
    expected = alone(model, rows)
    monkeypatch.setattr(model, "prefill_chunk_size", size)
    output = model(torch.cat(rows)[None], **told(how, LENGTHS))
    assert output.past_key_values is None
    torch.testing.assert_close(output.logits[0], expected, **CLOSE)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("cell", CELLS)
def test_losses_and_gradients_are_those_of_the_documents_alone(cell: str, family: str) -> None:
    model = variant_model("ahn", cell=cell, family=family, full_attention_layers=(1,)).train()
    rows = documents(LENGTHS)
    packed = model(torch.cat(rows)[None], labels=torch.cat(rows)[None], **told("both", LENGTHS))
    packed.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    predicted, loss = sum(n - 1 for n in LENGTHS), torch.zeros(())
    for row in rows:
        if len(row) > 1:
            total = model(row[None], labels=row[None]).loss * (len(row) - 1)
            (total / predicted).backward()
            loss += total.detach() / predicted
    torch.testing.assert_close(packed.loss.detach(), loss, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        atol = 1e-4 * float(parameter.grad.abs().max())
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_of_different_documents_with_padding(checkpointing: bool) -> None:
    # each row has its own documents and its own padding, on either side
    model = variant_model("ahn").train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    rows = [documents([30, 22, 5]), documents([44], seed=10), documents([20, 37], seed=20)]
    paddings = [(0, 4), (10, 7), (3, 1)]
    ids = torch.stack([F.pad(torch.cat(row), pad) for row, pad in zip(rows, paddings, strict=True)])
    mask = torch.stack(
        [
            F.pad(torch.ones(sum(map(len, row))), pad)
            for row, pad in zip(rows, paddings, strict=True)
        ]
    )
    positions = torch.stack(
        [
            F.pad(restarting([*map(len, row)])[0], pad, value=1)
            for row, pad in zip(rows, paddings, strict=True)
        ]
    )
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    assert logits.requires_grad and torch.isfinite(logits).all()
    model.eval()
    with torch.no_grad():
        streamed = model(ids, attention_mask=mask, position_ids=positions).logits
        model.prefill_chunk_size = 25
        in_pieces = model(ids, attention_mask=mask, position_ids=positions).logits
    for found in (logits.detach(), streamed, in_pieces):
        for row, (parts, (left, right)) in enumerate(zip(rows, paddings, strict=True)):
            expected = alone(model, parts)
            torch.testing.assert_close(found[row, left : 61 - right], expected, **CLOSE)


@torch.no_grad()
def test_a_collator_of_transformers_packs_and_the_model_unpacks(models: Any) -> None:
    model, rows = models("ahn"), documents([40, 25, 33])
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_tensors="pt")
    batch = collator([{"input_ids": row.tolist()} for row in rows])
    output = model(**batch)
    torch.testing.assert_close(output.logits[0], alone(model, rows), **CLOSE)
    sums = [float(model(row[None], labels=row[None]).loss) * (len(row) - 1) for row in rows]
    assert float(output.loss) == pytest.approx(sum(sums) / (98 - 3), abs=1e-5)
    without = {key: batch[key] for key in ("input_ids", "position_ids")}
    # labels of first tokens count no more than the collator lets them
    labelled = model(**without, labels=batch["input_ids"])
    assert float(labelled.loss) == pytest.approx(float(output.loss), abs=1e-6)
    torch.testing.assert_close(labelled.logits, output.logits)


@torch.no_grad()
def test_numbers_of_documents_must_agree(models: Any) -> None:
    # trl and transformers send them along for models with other recurrences
    rows = documents([30, 22, 1, 9])
    ids, where = torch.cat(rows)[None], told("positions", [30, 22, 1, 9])
    numbers = torch.repeat_interleave(torch.arange(4), torch.tensor([30, 22, 1, 9]))[None].int()
    edges = {name: boundaries([30, 22, 1, 9]) for name in ("cu_seq_lens_q", "cu_seq_lens_k")}
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    for model in (models("ahn"), models("ahn").model):
        plain = model(ids, **where)[0]
        for given_ in (where, edges):
            assert torch.equal(model(ids, seq_idx=numbers, **given_)[0], plain)
        padded = numbers.clone()
        padded[0, :2] = 7
        assert model(ids, seq_idx=padded, attention_mask=mask, **edges)[0].isfinite().all()
        for wrong in (numbers // 2, numbers.roll(1), torch.arange(62)[None]):
            with pytest.raises(ValueError, match="seq_idx tells of other documents.*row 0, column"):
                model(ids, seq_idx=wrong, **where)
        with pytest.raises(ValueError, match="other documents"):
            model(ids, seq_idx=numbers, position_ids=torch.arange(62)[None])
        for length in (62, 1):
            with pytest.raises(ValueError, match="seq_idx alone is refused"):
                model(ids[:, :length], seq_idx=numbers[:, :length])
        with pytest.raises(ValueError, match=r"seq_idx must be \[1 or 1, 62\]"):
            model(ids, seq_idx=numbers[:, :-1], **where)


@torch.no_grad()
def test_shifted_labels_are_the_callers(models: Any, stock: Any) -> None:
    rows = documents([10, 7])
    ids = torch.cat(rows)[None]
    shifted = F.pad(ids[:, 1:], (0, 1), value=-100)
    given = {"labels": ids, "shift_labels": shifted, "num_items_in_batch": 16}
    packed = models("full")(ids, **told("positions", [10, 7]), **given)
    logits = packed.logits[0, :-1]
    expected = F.cross_entropy(logits, ids[0, 1:], reduction="sum") / 16
    torch.testing.assert_close(packed.loss, expected)


@pytest.mark.parametrize("size", [1024, 30])
@torch.no_grad()
def test_logits_and_hidden_states_of_any_column(
    models: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = models("ahn"), documents(LENGTHS)
    ids, where = torch.cat(rows)[None], told("positions", LENGTHS)
    whole = model(ids, output_hidden_states=True, **where)
    monkeypatch.setattr(model, "prefill_chunk_size", size)
    last = model(ids, logits_to_keep=5, **where).logits
    torch.testing.assert_close(last, whole.logits[:, -5:], **CLOSE)
    some = torch.tensor([70, 3, -1, 3])
    found = model(ids, logits_to_keep=some, output_hidden_states=[0, -1], **where)
    torch.testing.assert_close(found.logits, whole.logits[:, some], **CLOSE)
    assert [state is None for state in found.hidden_states] == [False, True, True, False]
    for number in (0, -1):
        torch.testing.assert_close(
            found.hidden_states[number], whole.hidden_states[number], **CLOSE
        )


@torch.no_grad()
def test_boundaries_allow_positions_that_run_on(models: Any) -> None:
    # rotary positions are relative: documents that stand elsewhere are the same documents
    model, rows = models("window"), documents([30, 40])
    edges = boundaries([30, 40])
    output = model(
        torch.cat(rows)[None],
        position_ids=torch.arange(70)[None],
        cu_seq_lens_q=edges,
        cu_seq_lens_k=edges,
    )
    torch.testing.assert_close(output.logits[0], alone(model, rows), rtol=0, atol=1e-3)
    begun_at_two = model(torch.cat(rows)[None], position_ids=restarting([30, 40], 2)).logits
    torch.testing.assert_close(begun_at_two[0], alone(model, rows), rtol=0, atol=1e-3)


@pytest.mark.parametrize("variant", ["full", "ahn"])
@torch.no_grad()
def test_gaps_and_shifts_are_one_document(models: Any, variant: str) -> None:
    model, ids = models(variant), tokens(60, rows=2)
    shifted = torch.arange(1000, 1060)[None]
    gaps = torch.arange(60).repeat(2, 1)
    gaps[0, 20:] += 300
    gaps[1, 41:] += 7
    plain = model(ids).logits
    torch.testing.assert_close(model(ids, position_ids=shifted).logits, plain, rtol=0, atol=2e-3)
    jumped = model(ids, position_ids=gaps)
    assert jumped.past_key_values.get_seq_length() == 60
    torch.testing.assert_close(jumped.logits[0, :20], plain[0, :20], **CLOSE)
    # what stands behind a gap still sees what stands before it
    changed = ids.clone()
    changed[0, 3] = (changed[0, 3] + 1) % SIZES["vocab_size"]
    again = model(changed, position_ids=gaps).logits
    assert (again - jumped.logits)[0, 20:].abs().max() > 1e-3


def test_positions_of_a_padded_row_are_not_documents(models: Any) -> None:
    # generate() gives padding position 0 or 1
    ids, mask = tokens(12), torch.tensor([[0] * 5 + [1] * 7])
    plain = models("ahn")(ids, attention_mask=mask).logits
    for filler in (0, 1):
        positions = torch.cat([torch.full((1, 5), filler), torch.arange(7)[None]], 1)
        output = models("ahn")(ids, attention_mask=mask, position_ids=positions)
        assert output.past_key_values is not None
        torch.testing.assert_close(output.logits[:, 5:], plain[:, 5:], **CLOSE)


@pytest.mark.parametrize(
    ("positions", "says"),
    [
        ([0, 1, 2, 1, 2, 3], "row 0 goes from 2 to 1 at column 3"),
        ([5, 6, 7, 8, 7, 8], "goes from 8 to 7 at column 4"),
        ([0, 1, 2, 2, 3, 4], "goes from 2 to 2 at column 3"),
        ([-1, 0, 1, 2, 3, 4], "row 0 begins at position -1"),
    ],
)
def test_positions_that_say_neither_are_refused(
    models: Any, positions: list[int], says: str
) -> None:
    for stack in (models("ahn"), models("ahn").model):
        with pytest.raises(ValueError, match=says):
            stack(tokens(6), position_ids=torch.tensor([positions]))


@pytest.mark.parametrize("variant", ["full", "ahn"])
@torch.no_grad()
def test_a_packed_batch_has_no_past(models: Any, variant: str) -> None:
    model, ids, positions = models(variant), tokens(40), restarting([25, 15])
    for stack in (model, model.model):
        with pytest.raises(ValueError, match="a cache holds the past of one"):
            stack(ids, position_ids=positions, use_cache=True)
        with pytest.raises(ValueError, match="a cache holds the past of one"):
            stack(ids, position_ids=positions, past_key_values=model.new_cache())
        assert stack(ids, position_ids=positions).past_key_values is None
    with pytest.raises(ValueError, match="a cache holds the past of one"):
        model.generate(ids, position_ids=positions, max_new_tokens=2, pad_token_id=0)


@pytest.mark.parametrize("many", [1, 5])
@torch.no_grad()
def test_a_new_document_is_not_put_behind_another_one(models: Any, many: int) -> None:
    # as a loop does that reads a packed row in pieces, with one cache
    for stack in (models("ahn"), models("ahn").model):
        cache = models("ahn").new_cache()
        stack(tokens(30), past_key_values=cache)
        for start in (0, 29):
            positions = torch.arange(start, start + many)[None]
            with pytest.raises(ValueError, match="the cache holds 30 tokens of it already"):
                stack(tokens(many), position_ids=positions, past_key_values=cache)
        stack(tokens(many), position_ids=positions + 1, past_key_values=cache)
        assert cache.get_seq_length() == 30 + many


@torch.no_grad()
def test_rows_of_different_lengths_go_on_where_they_are(models: Any) -> None:
    model, mask = models("ahn"), torch.ones(2, 30).long()
    mask[1, :12] = 0
    for many in (1, 4):
        cache = model.new_cache()
        model(tokens(30, rows=2), attention_mask=mask, past_key_values=cache)
        positions = torch.tensor([[30], [18]]) + torch.arange(many)
        with pytest.raises(ValueError, match="row 1 goes on at position 17.*holds 18 tokens"):
            wrong = positions - torch.tensor([[0], [1]])
            model(tokens(many, rows=2), position_ids=wrong, past_key_values=cache)
        fork = cache.copy()
        found = model(tokens(many, rows=2), position_ids=positions, past_key_values=cache).logits
        expected = model(tokens(many, rows=2), past_key_values=fork).logits
        torch.testing.assert_close(found, expected, **CLOSE)


EDGES = torch.tensor([0, 10, 24])


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"cu_seq_lens_q": EDGES}, "come together"),
        ({"cu_seq_lens_k": EDGES}, "come together"),
        ({"max_length_q": 24}, "max_length_q comes with cu_seq_lens_q"),
        ({"max_length_k": 24}, "max_length_k comes with cu_seq_lens_q"),
        ({"cu_seq_lens_q": EDGES, "cu_seq_lens_k": EDGES * 2}, "differ"),
        ({"cu_seq_lens_q": EDGES[:-1], "cu_seq_lens_k": EDGES[:-1]}, "must rise from 0 to the 24"),
        ({"cu_seq_lens_q": EDGES[1:], "cu_seq_lens_k": EDGES[1:]}, "must rise from 0"),
        (
            {"cu_seq_lens_q": EDGES, "cu_seq_lens_k": EDGES, "max_length_q": 13},
            "max_length_q is 13, and a document has 14 tokens",
        ),
        (
            {"cu_seq_lens_q": EDGES, "cu_seq_lens_k": EDGES, "position_ids": restarting([9, 15])},
            "do not increase at row 0, column 9",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else "+".join(value),
)
def test_boundaries_that_contradict_are_refused(
    models: Any, given_: dict[str, Any], says: str
) -> None:
    for stack in (models("ahn"), models("ahn").model):
        with pytest.raises(ValueError, match=says):
            stack(tokens(24), **given_)


@torch.no_grad()
def test_boundaries_count_through_all_rows(models: Any) -> None:
    model, ids = models("ahn"), tokens(40, rows=2)
    edges = torch.tensor([0, 25, 40, 40, 61, 80])
    output = model(ids, cu_seq_lens_q=edges, cu_seq_lens_k=edges)
    parts = [ids[0, :25], ids[0, 25:], ids[1, :21], ids[1, 21:]]
    torch.testing.assert_close(output.logits.flatten(0, 1), alone(model, parts), **CLOSE)
    for length in (40, 1):
        across = torch.tensor([0, 2 * length])
        with pytest.raises(ValueError, match="goes on from row 0 of input_ids to the next"):
            model(ids[:, :length], cu_seq_lens_q=across, cu_seq_lens_k=across)
    whole = torch.tensor([0, 40, 80])  # nothing is packed, so there may be a cache
    output = model(ids, cu_seq_lens_q=whole, cu_seq_lens_k=whole, use_cache=True)
    assert output.past_key_values is not None
    torch.testing.assert_close(output.logits, model(ids).logits, **CLOSE)


def test_a_memory_hook_needs_one_document_a_row(models: Any) -> None:
    with pytest.raises(ValueError, match="one document a row"):
        models("ahn").model(tokens(40), position_ids=restarting([25, 15]), memory_hook=MemoryHook())


@st.composite
def batches(draw: Any) -> dict[str, Any]:
    document = st.integers(1, 30)
    rows = draw(st.lists(st.lists(document, min_size=1, max_size=4), min_size=1, max_size=3))
    return {
        "rows": rows,
        "left": [draw(st.integers(0, 5)) for _ in rows],
        "right": [draw(st.integers(0, 5)) for _ in rows],
        "size": draw(st.sampled_from([7, 16, 1024])),
        "training": draw(st.booleans()),
        "cell": draw(st.sampled_from(tuple(CELLS))),
    }


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=batches())
def test_any_rows_of_any_documents(models: Any, case: dict[str, Any]) -> None:
    model = models("ahn", cell=case["cell"])
    rows = [documents(lengths, seed=7 * n) for n, lengths in enumerate(case["rows"])]
    sides = list(zip(case["left"], case["right"], strict=True))
    lengths = [sum(row) + sum(side) for row, side in zip(case["rows"], sides, strict=True)]
    longest = max(lengths)
    pads = [(left, right + longest - n) for (left, right), n in zip(sides, lengths, strict=True)]
    ids = torch.stack([F.pad(torch.cat(row), pad) for row, pad in zip(rows, pads, strict=True)])
    mask = torch.stack(
        [F.pad(torch.ones(sum(map(len, r))), pad) for r, pad in zip(rows, pads, strict=True)]
    )
    positions = torch.stack(
        [F.pad(restarting([*map(len, r)])[0], pad) for r, pad in zip(rows, pads, strict=True)]
    )
    model.prefill_chunk_size = case["size"]
    try:
        with torch.set_grad_enabled(case["training"]):
            found = model(ids, attention_mask=mask, position_ids=positions).logits.detach()
        for row, (left, right) in enumerate(pads):
            expected = alone(model, rows[row])
            torch.testing.assert_close(found[row, left : longest - right], expected, **CLOSE)
    finally:
        del model.prefill_chunk_size


@torch.no_grad()
def test_documents_stay_apart_under_the_hooks_of_accelerate() -> None:
    model, rows = variant_model("ahn"), documents([30, 24, 41])
    expected = alone(model, rows)
    parts = {f"model.{part}": "cpu" for part in ("embed_tokens", "rotary_emb", "layers", "norm")}
    hooked = dispatch_model(model, {**parts, "lm_head": "cpu"}, main_device="cpu", force_hooks=True)
    output = hooked(torch.cat(rows)[None], **told("positions", [30, 24, 41]))
    torch.testing.assert_close(output.logits[0], expected, **CLOSE)
    found = find_documents(1, 95, restarting([30, 24, 41]), None)
    assert found is not None
    plan = packed_plans(found, model.layout, torch.device("cpu"))[0]
    assert plan.to("cpu") is plan
    of_a_document = plan.to("meta").plans[41]
    assert isinstance(of_a_document, LayerPlan) and of_a_document.keys.device.type == "meta"


def test_runs_of_short_documents_go_through_together() -> None:
    found = find_documents(1, 100, restarting([10, 5, 40, 30, 15]), None)
    assert found is not None
    assert found.pieces(0, 30) == [(0, 15), (15, 55), (55, 85), (85, 100)]
    assert found.pieces(0, 1000) == [(0, 100)]
    assert found.within(0, 55, 100).rows == (((0, 30), (30, 45)),)
