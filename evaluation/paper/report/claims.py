"""What the paper says in words of its tables and figures, and whether the runs show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evaluation.paper.costs import paper_table, printed
from evaluation.paper.experiments import POCKET, TRAININGS
from evaluation.paper.report.measured import Asked, Measurements, Tasks
from evaluation.paper.report.parts import pocket_sweep, pocket_tasks
from evaluation.paper.report.tried import PURE_RNN
from evaluation.paper.scores import PrintedScores, printed_scores
from reports.compare import Difference, marked
from reports.stats import Interval

GDN, SWA, FULL = "AHN-GDN", "Sinks + SWA", "Full Attn"
SINKS = 128
HOLDS, FAILS, OPEN, UNTRIED = "holds", "does not hold", "cannot be said", "not tried"

NAMES = {
    "lveval": "LV-Eval",
    "infinitebench": "InfiniteBench",
    "longbench": "LongBench",
    "ruler": "RULER",
}
_AVERAGES = {
    "lveval": ("table2", "LV-Eval average of 11"),
    "infinitebench": ("table2", "InfiniteBench average of two"),
    "longbench": ("table3", "average"),
    "ruler": ("table5", ""),
}


@dataclass(frozen=True)
class Claim:
    """That one method is above another in a benchmark's average.

    Attributes:
        where: table or figure.
        part: the benchmark.
        first: the method that is said to be above.
        second: the one below.
        training: of `first`'s memory, in Table 4; likewise `than` of `second`'s.
        windows: whether it is said of every window of a figure.
    """

    where: str
    part: str
    first: str
    second: str
    training: str | None = None
    than: str | None = None
    windows: bool = False

    def text(self, model: str) -> str:
        """In words; the pocket model is asked other questions."""
        first = TRAININGS[self.training] if self.training else self.first
        second = TRAININGS[self.than] if self.than else self.second
        at = " at every window" if self.windows else ""
        asked = NAMES[self.part] + ("'s stand-ins" if model == POCKET else "")
        return f"{asked}: {first} above {second}{at}"


CLAIMS = (
    *(
        Claim("table2", part, method, SWA)
        for part in ("lveval", "infinitebench")
        for method in ("AHN-Mamba2", "AHN-DN", GDN)
    ),
    *(Claim("table2", part, GDN, "CT-Average") for part in ("lveval", "infinitebench")),
    *(Claim("table2", part, GDN, FULL) for part in ("lveval", "infinitebench")),
    *(Claim("table3", "longbench", method, SWA) for method in ("AHN-Mamba2", "AHN-DN", GDN)),
    Claim("table3", "longbench", GDN, "CT-Average"),
    Claim("table4", "longbench", GDN, GDN, "kl-random", "kl-fixed1024"),
    Claim("table4", "longbench", GDN, GDN, "kl-random", "ce-random"),
    Claim("table5", "ruler", FULL, GDN),
    *(Claim("table8", part, SWA, PURE_RNN) for part in ("lveval", "infinitebench")),
    *(Claim("figure4", part, GDN, SWA, windows=True) for part in ("lveval", "infinitebench")),
    *(Claim("figure7", "longbench", GDN, method, windows=True) for method in (SWA, "CT-Average")),
)


@dataclass(frozen=True)
class Standing:
    """A claim, tried on one model.

    Attributes:
        claim: in words.
        where: table or figure.
        model: by the paper's name, or `pocket`.
        published: difference in points; None: it is drawn only, or of another model.
        ours: paired difference; None where there is none.
        verdict: one of the four.
        remark: what must be known of it.
        seen: where it does not rest on a paired difference: what was found, in words.
        of_paper: of the pocket model: the published difference of each of the paper's models.
    """

    claim: str
    where: str
    model: str
    published: float | None
    ours: Difference | None
    verdict: str
    remark: str = ""
    seen: str = ""
    of_paper: tuple[tuple[str, float], ...] = ()


def part_tasks(part: str, model: str) -> Tasks:
    """The tasks of a benchmark's average; of the pocket model, those that stand for them."""
    if model == POCKET:
        return pocket_tasks(part)
    table = printed_scores().tables[_AVERAGES[part][0]]
    cells = [table.cells[column] for column in _average_columns(part, table)]
    return [(cell.benchmark, name) for cell in cells for name in cell.tasks]


def _average_columns(part: str, table: PrintedScores) -> Sequence[str]:
    column = _AVERAGES[part][1]
    return (column,) if column else table.columns


def spans(where: str, model: str) -> tuple[int, int]:
    """Window and sinks of a table."""
    if model == POCKET:
        sweep = pocket_sweep(where)
        return sweep.windows[0], sweep.sinks
    table = printed_scores().tables[where]
    return table.window, table.sinks


def models_of(where: str) -> list[str]:
    """The paper's models that a table or figure is of, and the pocket model."""
    tables = printed_scores().tables
    own = list(tables[where].rows) if where in tables else ["Qwen2.5-7B-Instruct"]
    return [*own, POCKET]


def standings(found: Measurements) -> list[Standing]:
    """Every claim on every model; p-values are corrected over the claims on one model."""
    tried = [
        one
        for claim in CLAIMS
        for model in models_of(claim.where)
        for one in _try(claim, model, found)
    ]
    corrected: dict[str, list[Difference | None]] = {
        model: marked([interval for one, interval in tried if one.model == model])
        for model in dict.fromkeys(one.model for one, _ in tried)
    }
    order = {model: iter(differences) for model, differences in corrected.items()}
    return [_judged(one, next(order[one.model])) for one, _ in tried]


def _judged(one: Standing, ours: Difference | None) -> Standing:
    if ours is None:
        return one
    verdict = OPEN if not ours.clear else HOLDS if ours.interval.mean > 0 else FAILS
    return replace(one, ours=ours, verdict=verdict)


def _try(claim: Claim, model: str, found: Measurements) -> list[tuple[Standing, Interval | None]]:
    if claim.windows:
        return _try_windows(claim, model, found)
    window, sinks = spans(claim.where, model)
    first = Asked(model, claim.first, window, sinks, claim.training)
    second = Asked(model, claim.second, window, sinks, claim.than)
    tasks = part_tasks(claim.part, model)
    interval = found.difference(first, second, tasks)
    published = _published(claim, model)
    standing = Standing(claim.text(model), claim.where, model, published, None, UNTRIED)
    if model == POCKET:
        of_paper = ((name, _published(claim, name)) for name in models_of(claim.where)[:-1])
        shown = tuple((name, value) for name, value in of_paper if value is not None)
        standing = replace(standing, of_paper=shown)
    return [(replace(standing, remark=_differs(found, first, second, tasks)), interval)]


def _differs(found: Measurements, first: Asked, second: Asked, tasks: Tasks) -> str:
    cells = [found.cell(asked, tasks) for asked in (first, second)]
    return "settings differ: see there" if any(c is not None and c.remarks for c in cells) else ""


def _try_windows(
    claim: Claim, model: str, found: Measurements
) -> list[tuple[Standing, Interval | None]]:
    sinks = pocket_sweep(claim.where).sinks if model == POCKET else SINKS
    made: list[tuple[Standing, Interval | None]] = []
    for window in found.windows(model, (claim.first,), sinks):
        first = Asked(model, claim.first, window, sinks)
        second = Asked(model, claim.second, window, sinks)
        interval = found.difference(first, second, part_tasks(claim.part, model))
        if interval is not None:
            text = claim.text(model).replace("at every window", f"at a window of {window:,}")
            remark = _differs(found, first, second, part_tasks(claim.part, model))
            standing = Standing(text, claim.where, model, None, None, UNTRIED, remark)
            made.append((standing, interval))
    if len(made) > 1:
        return made
    # One window is no figure: it is the table's own comparison.
    return [(Standing(claim.text(model), claim.where, model, None, None, UNTRIED), None)]


def _published(claim: Claim, model: str) -> float | None:
    if model == POCKET:
        return None
    if claim.training is not None and claim.than is not None:
        table = printed_scores().tables[claim.where]
        names = [TRAININGS[claim.training], TRAININGS[claim.than]]
        cells = [table.printed(model, name, table.columns[0]) for name in names]
    else:
        cells = [published_average(claim.part, model, m) for m in (claim.first, claim.second)]
    first, second = cells
    return None if first is None or second is None else first - second


def published_average(part: str, model: str, method: str) -> float | None:
    """A benchmark's average as printed; where only its data sets are, their mean."""
    if method == PURE_RNN:
        table, columns = printed_scores().tables["table8"], {"lveval": 0, "infinitebench": 1}
        cells = table.rows.get(model, {}).get(method)
        return None if cells is None or part not in columns else cells[columns[part]]
    table = printed_scores().tables[_AVERAGES[part][0]]
    cells_of = [table.printed(model, method, c) for c in _average_columns(part, table)]
    known = [cell for cell in cells_of if cell is not None]
    return sum(known) / len(known) if known and len(known) == len(cells_of) else None


def cost_standings() -> list[Standing]:
    """What the paper saves at 128k, computed: no run is needed."""
    table, columns = paper_table("table9"), {"FLOPs": "model FLOPs %", "cache": "memory cache %"}
    made = []
    for model in printed().models:
        for what, column in columns.items():
            index = table.columns.index(column)
            published, ours = (of[model][GDN][index] for of in (table.published, table.ours))
            same = abs(ours - published) <= 0.5 * 10 ** -table.decimals[index] + 1e-9
            made.append(
                Standing(
                    f"At 128k, {GDN} takes {published:.1f} % of full attention's {what}",
                    "table9",
                    model,
                    None,
                    None,
                    HOLDS if same else FAILS,
                    "" if same else "what is printed does not follow from the paper's own formula",
                    f"{ours:.2f} % by the paper's formula, computed",
                )
            )
    return made
