"""Names of the embedded memories."""

from __future__ import annotations

from pathlib import Path

import pytest

from ahn.checkpoints.names import ahn_path, embedded_memories, model_path, name_of
from common.errors import InputError


def test_every_embedded_memory_has_the_name_that_run_eval_gives_it() -> None:
    embedded = Path(ahn_path("pocket")).parent
    assert ahn_path("pocket/gdn") == ahn_path("pocket")
    assert ahn_path("pocket/dn") == embedded / "dn"


def test_a_name_of_a_memory_means_the_same_as_a_model_and_as_weights() -> None:
    assert model_path("pocket/dn") == ahn_path("pocket/dn")
    assert model_path("pocket") == Path(ahn_path("pocket")).parent


def test_other_names_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ByteDance-Seed/AHN-GDN", "pockets/gdn", "./pocket/nothing", Path("pocket/x")):
        assert ahn_path(name) == model_path(name) == name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket" / "mine").mkdir(parents=True)
    assert ahn_path("pocket/mine") == "pocket/mine", "a folder of one's own"


@pytest.mark.parametrize("name", ["pocket/gnd", "pocket/", "pocket/../gdn"])
def test_a_memory_that_is_not_embedded_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="no embedded memory .*pocket/dn, .*pocket/gdn"):
        ahn_path(name)
    with pytest.raises(InputError, match="no embedded memory"):
        model_path(name)


def test_a_typo_is_told_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'pocket/gdn'"):
        ahn_path("pocket/gnd")


def test_a_place_has_the_name_that_stands_for_it() -> None:
    names = ["pocket", *(f"pocket/{memory}" for memory in embedded_memories())]
    assert [name_of(str(model_path(name))) for name in names] == names
    for other in ("ByteDance-Seed/AHN-GDN", "runs/pocket/gdn", f"{model_path('pocket')}/training"):
        assert name_of(other) == other
