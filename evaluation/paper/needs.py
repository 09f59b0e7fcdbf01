"""What a table or figure needs, and what of it is on this machine. Downloads nothing; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.names import ahn_path
from common.errors import InputError
from evaluation.commands.tasks import rows_of
from evaluation.paper.experiments import Part
from evaluation.paper.study import Study
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.tasks import resolve_tasks

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Need:
    """Something that a run reads.

    Attributes:
        kind: `weights` or `rows`.
        name: of the checkpoint, or of the part.
        place: where it comes from, in words.
        here: whether all of it is on this machine.
        remedy: the flag that names a folder with it.
    """

    kind: str
    name: str
    place: str
    here: bool
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.name}, {self.place}"


def needs(study: Study, essay: bool = False) -> list[Need]:
    """Weights and rows of a study.

    Args:
        study: what is asked.
        essay: whether there is a haystack for RULER's essay tasks.
    """
    found = [_weights(study.model, study.base, "--base PATH")]
    found += [
        _weights(f"ahn-{name}", str(ahn_path(place)), f"--ahn {name}=PATH")
        for name, place in study.ahn.items()
    ]
    return [*found, *(rows_need(name, study.parts[name], study, essay) for name in study.parts)]


def _weights(name: str, place: str, remedy: str) -> Need:
    return Need("weights", name, place, checkpoint_is_here(place), remedy)


def checkpoint_is_here(place: str) -> bool:
    """Whether configuration and weights of a checkpoint are in a folder or in the hub's cache."""
    try:
        files = CheckpointFiles(place)
        folder = Path(files.place) if files.is_folder else _snapshot(place)
    except InputError:
        return False
    if folder is None or not (folder / "config.json").is_file():
        return False
    if not (folder / _INDEX).is_file():
        return any(path.is_file() for path in folder.glob("*.safetensors"))
    try:
        return all(path.is_file() for path in CheckpointFiles(folder).weight_files)
    except InputError:
        return False


def _snapshot(hub_id: str) -> Path | None:
    """The folder of the hub's cache that holds a checkpoint; None: it has none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def rows_need(name: str, part: Part, study: Study | None = None, essay: bool = False) -> Need:
    """The rows of a part: in the folder that a study names, else where the benchmark has them."""
    benchmark = str(part.run["benchmark"])
    data = None if study is None else study.data.get(benchmark)
    states = list(_rows(part, data, essay))
    places = ", ".join(dict.fromkeys(place for place, _ in states))
    remedy = f"--data {benchmark}=PATH"
    if benchmark == "ruler" and data is None:
        remedy = "--essay FILE"
    return Need("rows", name, places, bool(states) and all(here for _, here in states), remedy)


def _rows(part: Part, data: str | None, essay: bool) -> Iterator[tuple[str, bool]]:
    """Of each task where its rows are from, and whether they are here."""
    keys: Iterable[str] = ("benchmark", "tasks", "lengths", "protocol")
    asked = {key: part.run[key] for key in keys if key in part.run}
    given = data or part.run.get("data")
    asked |= {"data": given} if given else {}
    for task in resolve_tasks(RunConfiguration.model_validate(asked)).tasks:
        rows = rows_of(task, data)
        yield str(rows["from"]), bool(rows["here"] or (essay and "--essay" in str(rows["from"])))
