"""Names that stand for the embedded model: `pocket`."""

from __future__ import annotations

from pathlib import Path

_POCKET = Path(__file__).parents[1] / "assets" / "pocket"


def model_path(name: str | Path | None) -> str | Path:
    """`name`, with `pocket` standing for the embedded model."""
    return _POCKET if name == "pocket" else name or ""


def ahn_path(name: str | Path) -> str | Path:
    """`name`, with `pocket` (GatedDeltaNet) and `pocket/dn` ... standing for embedded memories."""
    if name == "pocket":
        return _POCKET / "gdn"
    if isinstance(name, str) and name.startswith("pocket/"):
        embedded = _POCKET / name.removeprefix("pocket/")
        if (embedded / "config.json").is_file():
            return embedded
    return name
