"""Names that stand for the embedded model and its memories: `pocket`, `pocket/gdn` ..."""

from __future__ import annotations

from pathlib import Path

from common.errors import InputError
from common.suggestions import did_you_mean

_POCKET = Path(__file__).parents[1] / "assets" / "pocket"
_PREFIX = "pocket/"


def model_path(name: str | Path | None) -> str | Path:
    """The place that `name` stands for.

    Args:
        name: a folder, a hub id, `pocket` (the embedded model) or `pocket/dn` ... (one of the
            embedded memories). A folder of such a name is given as `./pocket`.

    Raises:
        InputError: `pocket/...` is neither an embedded memory nor a folder.
    """
    if name == "pocket":
        return _POCKET
    if not isinstance(name, str) or not name.startswith(_PREFIX):
        return name or ""
    memory, known = name.removeprefix(_PREFIX), embedded_memories()
    if memory in known:
        return _POCKET / memory
    if memory and Path(name).is_dir():
        return name
    names = [f"{_PREFIX}{other}" for other in known]
    raise InputError(
        f"{name}: no such folder, and no embedded memory (those are {', '.join(names)})"
        f"{did_you_mean(name, names, most=1)}"
    )


def ahn_path(name: str | Path) -> str | Path:
    """As `model_path`, for AHN weights: `pocket` stands for the embedded GatedDeltaNet memory."""
    return model_path(f"{_PREFIX}gdn" if name == "pocket" else name)


def name_of(place: str) -> str:
    """What `model_path` understands on any machine: an embedded model's or memory's name.

    Args:
        place: what `model_path` gave; folders elsewhere and hub ids are their own names.
    """
    if Path(place) == _POCKET:
        return "pocket"
    names = {_POCKET / memory: f"{_PREFIX}{memory}" for memory in embedded_memories()}
    return names.get(Path(place), place)


def embedded_memories() -> list[str]:
    """Names of the memories of the embedded model: `gdn`, `dn` ..., then `ablation/...`."""
    files = (_POCKET.glob("*/config.json"), _POCKET.glob("ablation/*/config.json"))
    return [
        name
        for some in files
        for name in sorted(file.parent.relative_to(_POCKET).as_posix() for file in some)
    ]
