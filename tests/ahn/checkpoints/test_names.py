"""Names of the embedded memories."""

from __future__ import annotations

from pathlib import Path

from ahn.checkpoints.names import ahn_path


def test_every_embedded_memory_has_the_name_that_run_eval_gives_it() -> None:
    embedded = Path(ahn_path("pocket")).parent
    assert ahn_path("pocket/gdn") == ahn_path("pocket")
    assert ahn_path("pocket/dn") == embedded / "dn"


def test_other_names_stay_what_they_are() -> None:
    for name in ("pocket/nothing", "ByteDance-Seed/AHN-GDN", "pockets/gdn"):
        assert ahn_path(name) == name
