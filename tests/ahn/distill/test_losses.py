"""The losses' own arithmetic: which positions count, sums in pieces, precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahn.distill import losses
from ahn.distill.losses import beyond, ce_loss, distill_loss, kl_loss, shifted

LABELS = torch.tensor([[5, 6, -100, 7, 8], [-100, 1, 2, -100, -100]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_positions_count_from_the_lossless_part_where_there_is_a_label() -> None:
    assert beyond(LABELS, 0).tolist() == (LABELS != -100).tolist()
    assert beyond(LABELS, 1).tolist() == [
        [False, True, False, True, True],
        [False, True, True, False, False],
    ]
    assert beyond(LABELS, 4).tolist() == [[False] * 4 + [True], [False] * 5]
    assert not beyond(LABELS, 5).any()
    assert beyond(LABELS.to("meta"), 2).device.type == "meta"


def test_each_position_must_predict_the_next_label_and_the_last_none() -> None:
    assert shifted(LABELS).tolist() == [[6, -100, 7, 8, -100], [1, 2, -100, -100, -100]]


@pytest.fixture(params=[1, 3, 4, 1024])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Positions that are computed at a time."""
    monkeypatch.setattr(losses, "POSITIONS", request.param)
    return int(request.param)


@pytest.mark.usefixtures("pieces")
def test_sums_in_pieces_are_the_means_over_all_positions() -> None:
    head = nn.Linear(6, 11, bias=False)
    student, teacher = random(7, 6), random(7, 6, seed=1)
    targets = torch.arange(7)
    said, wanted = head(student).log_softmax(-1), head(teacher).log_softmax(-1)
    expected = (wanted.exp() * (wanted - said)).sum() / 7
    torch.testing.assert_close(kl_loss(student, teacher, head), expected)
    torch.testing.assert_close(ce_loss(student, targets, head), -said[range(7), targets].mean())
    assert kl_loss(student, student, head) == 0 and kl_loss(student, teacher, head) > 0.1


def test_the_sum_over_pieces_is_in_float32_whatever_the_type_of_the_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sum of 2,000 positions in bfloat16 would stop growing at a few hundred."""
    monkeypatch.setattr(losses, "POSITIONS", 4)
    head = nn.Linear(6, 11, bias=False).bfloat16()
    student, teacher = random(2000, 6).bfloat16(), random(2000, 6, seed=1).bfloat16()
    found = kl_loss(student, teacher, head)
    said, wanted = (head(x).float().log_softmax(-1) for x in (student, teacher))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (wanted.exp() * (wanted - said)).sum() / 2000)


@pytest.mark.usefixtures("pieces")
def test_gradients_in_pieces_are_those_of_whole_logits() -> None:
    head = nn.Linear(6, 11, bias=False)
    teacher, targets = random(7, 6, seed=1), torch.arange(7)
    found = []
    for whole in (True, False):
        student = random(7, 6).requires_grad_()
        if whole:
            said, wanted = head(student).log_softmax(-1), head(teacher).log_softmax(-1)
            kl = F.kl_div(said, wanted, log_target=True, reduction="batchmean")
            loss = kl + F.cross_entropy(head(student), targets)
        else:
            loss = kl_loss(student, teacher, head) + ce_loss(student, targets, head)
        loss.backward()
        found.append(student.grad)
    torch.testing.assert_close(found[0], found[1])


def test_losses_of_half_precision_are_computed_in_float32() -> None:
    """Near zero a KL in bfloat16 is noise of either sign."""
    head = nn.Linear(64, 500, bias=False)
    student, teacher = random(40, 64), random(40, 64) + 1e-2 * random(40, 64, seed=1)
    half = [x.bfloat16() for x in (student, teacher)]
    head16 = nn.Linear(64, 500, bias=False, dtype=torch.bfloat16)
    head16.weight.data = head.weight.data.bfloat16()
    logits = [F.linear(x, head16.weight).float() for x in half]
    said, wanted = (x.log_softmax(-1) for x in logits)
    found = kl_loss(half[0], half[1], head16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (wanted.exp() * (wanted - said)).sum() / 40)
    targets = torch.arange(40)
    ce = ce_loss(half[0], targets, head16)
    assert ce.dtype == torch.float32
    torch.testing.assert_close(ce, F.cross_entropy(logits[0], targets))
    outputs = [random(1, 9, 8, seed=n).bfloat16() for n in range(2)]
    error = distill_loss(outputs[:1], outputs[1:], 0, normalized=False)
    assert error.dtype == torch.float32
    expected = (outputs[0].float() - outputs[1].float()).square().mean()
    torch.testing.assert_close(error, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("normalized", [True, False])
def test_attention_outputs_differ_by_their_mean_square_over_layers(normalized: bool) -> None:
    """Layers weigh alike, and positions before the window and padding do not count."""
    mine = [random(2, 7, 6, seed=n) for n in range(3)]
    theirs = [random(2, 7, 6, seed=10 + n) for n in range(3)]
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    expected = []
    for a, b in zip(mine, theirs, strict=True):
        errors = []
        for row, length in ((0, 7), (1, 5)):
            for p in range(3, length):
                x, y = a[row, p], b[row, p]
                if normalized:
                    x, y = x / x.norm(), y / y.norm()
                errors.append((x - y).square().mean())
        expected.append(torch.stack(errors).mean())
    found = distill_loss(mine, theirs, 3, normalized, mask)
    torch.testing.assert_close(found, torch.stack(expected).mean())
    without = distill_loss([x[:1] for x in mine], [x[:1] for x in theirs], 3, normalized)
    first = distill_loss([x[:1] for x in mine], [x[:1] for x in theirs], 3, normalized, mask[:1])
    torch.testing.assert_close(without, first)


def test_a_missing_layer_or_piece_is_no_loss_of_its_own() -> None:
    layer = random(1, 4, 6)
    with pytest.raises(ValueError):
        distill_loss([layer], [layer, layer], 0, normalized=False)
    head = nn.Linear(6, 11, bias=False)
    fewer = losses.POSITIONS  # a whole piece less
    many = random(fewer + 1, 6)
    with pytest.raises(ValueError):
        kl_loss(many, many[:fewer], head)
    with pytest.raises(ValueError):
        ce_loss(many, torch.arange(fewer) % 11, head)


def test_logits_of_a_whole_sequence_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    linear = F.linear

    def watched(x: Tensor, weight: Tensor) -> Tensor:
        rows.append(len(x))
        return linear(x, weight)

    monkeypatch.setattr(losses, "POSITIONS", 4)
    monkeypatch.setattr(losses.F, "linear", watched)
    head = nn.Linear(6, 11, bias=False)
    student = random(10, 6).requires_grad_()
    (
        kl_loss(student, random(10, 6, seed=1), head) + ce_loss(student, torch.arange(10), head)
    ).backward()
    assert max(rows) == 4
    # formed again going backward, so that nothing of them is kept in between
    assert len(rows) == 2 * 3 * 3
