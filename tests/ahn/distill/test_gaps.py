"""Random jumps in positions: how many batches have them, how many, how far, where."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ahn.distill.gaps import PositionGaps

GAP = 2000


def jumps(
    length: int, batches: int = 4000, rows: int = 1, gap: int = GAP, seed: int = 0
) -> list[torch.Tensor | None]:
    """`[rows, length - 1]` for each batch: how far positions jump beyond the next one."""
    groups = [[i * rows + row for row in range(rows)] for i in range(batches)]
    gaps = PositionGaps([length] * batches * rows, groups, gap, seed)
    found = []
    for group in groups:
        positions = gaps.position_ids(group[0], rows, length)
        assert positions is None or not positions[:, 0].any()
        found.append(None if positions is None else positions.diff(dim=1) - 1)
    return found


def test_seven_in_ten_long_batches_have_jumps() -> None:
    """Four standard deviations of 4,000 draws are 0.029."""
    found = jumps(300)
    assert sum(jump is not None for jump in found) / len(found) == pytest.approx(0.7, abs=0.029)


@pytest.mark.parametrize(("length", "some"), [(255, False), (256, True)])
def test_short_batches_have_none(length: int, some: bool) -> None:
    assert any(jump is not None for jump in jumps(length, batches=50)) is some


def test_the_longest_sample_of_a_batch_decides() -> None:
    groups = [[i, i + 1] for i in range(0, 100, 2)]
    gaps = PositionGaps([20, 256] * 50, groups, GAP, 0)
    drawn = [gaps.position_ids(group[0], 2, 256) for group in groups]
    assert any(positions is not None for positions in drawn)


def test_rows_get_one_to_four_jumps_evenly() -> None:
    """A quarter each: drawn anew for each row, with 1,400 rows to count."""
    counts = [
        int((row > 0).sum()) for jump in jumps(5000, 1000, 2) if jump is not None for row in jump
    ]
    assert max(counts) == 4 and counts.count(0) < 0.03 * len(counts)  # one jump, of no length
    for number in (1, 2, 3, 4):  # two at one place, or one of no length, are rare
        assert counts.count(number) / len(counts) == pytest.approx(0.25, abs=0.06)
    rows = [jump for jump in jumps(5000, 50, 2) if jump is not None]
    assert any(not torch.equal(pair[0], pair[1]) for pair in rows)


def test_short_jumps_are_likelier_and_none_is_longer_than_half_of_the_gap() -> None:
    """A size is the square of an even draw: a half of them are below a quarter of the longest."""
    sizes = torch.cat([j[j > 0] for j in jumps(20_000, 1500) if j is not None]).double()
    longest = GAP / 2
    assert 0.99 * longest < sizes.max() < 1.1 * longest  # two at one place are rare
    assert (sizes < longest / 4).double().mean() == pytest.approx(0.5, abs=0.04)
    assert sizes.mean() == pytest.approx(longest / 3, rel=0.06)


def test_jumps_come_at_any_place() -> None:
    places = torch.cat([j.nonzero()[:, 1] for j in jumps(1000, 1500) if j is not None]).double()
    assert places.min() < 10 and places.max() > 988
    assert places.mean() == pytest.approx(499, abs=25)


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(256, 400),
    rows=st.integers(1, 3),
    gap=st.integers(1, 5000),
    seed=st.integers(0, 99),
)
def test_positions_start_at_zero_only_grow_and_stay_in_reach(
    length: int, rows: int, gap: int, seed: int
) -> None:
    drawn = jumps(length, 6, rows, gap, seed)
    again = jumps(length, 6, rows, gap, seed)
    for jump, same in zip(drawn, again, strict=True):
        assert (jump is None) == (same is None)
        if jump is not None and same is not None:
            assert torch.equal(jump, same) and (jump >= 0).all()
            assert (jump.sum(1) <= 4 * gap / 2).all()


def test_another_seed_draws_others() -> None:
    one, two = ([j is not None for j in jumps(300, 60, seed=seed)] for seed in (0, 1))
    assert one != two
