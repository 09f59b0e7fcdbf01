"""Tables and figures that need answers of a model: parts x variants, planned and run.

The plan of a part is made once for all variants: its rows are read and its prompts are made once.
Each variant then runs by itself in its own run folder, `<output>/<model>/<part>/<variant>`, so that
tables and figures share what is the same. Such a folder is what `run_eval <benchmark>` with that
one variant writes: `run_eval report`, `check` and `export` work on it, and either continues it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.text import Text

from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.names import ahn_path
from ahn.cost.accounting import flops
from ahn.cost.shapes import ModelShape
from common.errors import InputError, Problems
from common.progress import ProgressBar
from evaluation.commands.report import write_report
from evaluation.commands.run import DONE, SOME_FAILED, answer, quieten, set_threads
from evaluation.commands.tables import plan_tables, result_tables
from evaluation.commands.terminal import console
from evaluation.paper.costs import shape_of
from evaluation.paper.experiments import Part
from evaluation.paper.needs import needs
from evaluation.paper.options import PaperRun
from evaluation.paper.state import as_record, lines_of, state_of
from evaluation.paper.study import (
    Study,
    configuration,
    examples_of,
    folder_of,
    study,
    unread,
)
from evaluation.paper.variants import Variant
from evaluation.plan.identity import parts_without_weights, run_info
from evaluation.plan.plan import make_plan
from evaluation.plan.planned import Plan
from evaluation.run.engine import Engine, LocalEngine
from evaluation.run.store import check_folder, written_files
from reports import formats
from reports.run_folders import read_run
from reports.targets import check_page_target


@dataclass(frozen=True)
class Planned:
    """A part of a study with the plan of all its variants.

    Attributes:
        name: of the part.
        part: what is asked.
        plan: with every variant.
        study: what the plan is for.
        asked: as it was asked for.
    """

    name: str
    part: Part
    plan: Plan
    study: Study
    asked: PaperRun

    def folder(self, variant: Variant) -> Path:
        """The run folder of a variant."""
        return folder_of(Path(self.asked.output), self.study.model, self.name, variant.name)

    def only(self, variant: Variant) -> Plan:
        """The run of one variant alone. What all are warned of is not told again."""
        alone = configuration(self.study, self.part, [variant], self.asked, self.folder(variant))
        return replace(self.plan.only(variant.name, alone), warnings=[])


def run_experiment(name: str, asked: PaperRun, engine: Engine | None = None) -> int:
    """Plan and run what a table or figure needs of a model; returns the exit code.

    Raises:
        InputError: everything that is wrong or missing; nothing is written then.
    """
    return run_study(study(name, asked), asked, engine)


def run_study(study: Study, asked: PaperRun, engine: Engine | None = None) -> int:
    """Plan and run parts x variants; returns the exit code.

    Args:
        study: what is run.
        asked: how: the limit, the machine, the folders ...
        engine: does the work. Default: this process.

    Raises:
        InputError: everything that is wrong or missing; nothing is written then.
    """
    quieten()
    for warning in unread(study, asked):
        console(stderr=True).print(f"warning: {warning}", markup=False, style="yellow")
    if asked.dry_run:
        console().print(plan_text(study, asked), soft_wrap=True)
    plans = make_plans(study, asked)
    page = Path(asked.output) / study.model / f"{study.name}.html" if asked.report else None
    _check_targets(plans, asked, page)
    if asked.dry_run:
        for planned in plans:
            console().print(Text(f"\n{planned.name}: {planned.part.title}"), soft_wrap=True)
            console().print(plan_tables(planned.plan))
        return DONE
    return _run(study, plans, page, engine or LocalEngine())


def make_plans(study: Study, asked: PaperRun) -> list[Planned]:
    """The plan of every part, each made once for all variants.

    Raises:
        InputError: everything that is missing or wrong, of all parts.
    """
    problems, found = Problems(), []
    for place in dict.fromkeys([study.base, *(str(ahn_path(w)) for w in study.ahn.values())]):
        with problems.collecting():
            _ = CheckpointFiles(place).config
    if problems:  # where the hub gives no weights it gives no rows, and no plan comes to them
        problems.add(
            *(
                f"{need}: not here; {need.remedy}, or download them first"
                for need in needs(study, asked.essay is not None)
                if need.kind == "rows" and not need.here
            )
        )
    for name, part in study.parts.items():
        folder = Path(asked.output) / study.model / name
        with problems.collecting():
            of_part = configuration(study, part, study.variants, asked, folder)
            with ProgressBar(console(stderr=True), "preparing prompts") as bar:
                plan = make_plan(of_part, watch=bar.update)
            plan.warnings[:0] = _another_shape(study, plan)
            found.append(Planned(name, part, plan, study, asked))
    if problems and not all(need.here for need in needs(study, asked.essay is not None)):
        problems.add(_NOTHING_RUN)
    problems.check()
    return found


def _another_shape(study: Study, plan: Plan) -> list[str]:
    """A warning where the base model is not of the size that is asked."""
    wanted, there = (
        asdict(shape)
        for shape in (shape_of(study.model), ModelShape.from_config(plan.model_config))
    )
    unlike = [
        f"{key} {value}, not {wanted[key]}" for key, value in there.items() if value != wanted[key]
    ]
    if not unlike:
        return []
    return [f"--base: {study.base} is no {study.model} ({', '.join(unlike)})"]


_NOTHING_RUN = (
    "nothing was run; weights are named by --base PATH and --ahn gdn=PATH, rows by --data "
    "BENCHMARK=PATH, each a folder; `hf download REPOSITORY` (of rows with --repo-type dataset) "
    "fetches them where there is a network"
)


def _check_targets(plans: Sequence[Planned], asked: PaperRun, page: Path | None) -> None:
    """Refuse folders that hold other runs, and a page that may not be replaced.

    Raises:
        InputError: all of them.
    """
    problems = Problems()
    for planned in plans:
        for variant in planned.study.variants:
            folder = planned.folder(variant)
            with problems.collecting():
                if not asked.overwrite:
                    check_folder(folder, parts_without_weights(planned.only(variant)))
                    _check_limit(folder, planned.plan)
                elif (folder / "run.json").exists():
                    written_files(folder)  # says what cannot be deleted
    if page is not None:
        with problems.collecting():
            check_page_target(page)
    problems.check()


def _check_limit(folder: Path, plan: Plan) -> None:
    """Refuse now what `RunStore` would refuse when it comes to this folder, hours later perhaps.

    Raises:
        InputError: it has answers to examples that are not asked.
    """
    asked = {example.example_id for planned in plan.tasks for example in planned.examples}
    answered = (as_record(line).get("example_id") for line in lines_of(folder))
    more = sum(one is not None and one not in asked for one in answered)
    if more:
        raise InputError(
            f"--limit: {folder} holds answers to {more} examples that are not asked now: give the "
            "limit that it was made with, or a higher one, or name another --output"
        )


def _run(study: Study, plans: Sequence[Planned], page: Path | None, engine: Engine) -> int:
    status, hashes = console(stderr=True), dict[Path, str]()
    failed, stopped = 0, ""
    for planned in plans:
        status.print(f"{study.name}, {study.model}, {planned.name}:", markup=False)
        for warning in planned.plan.warnings:
            status.print(f"warning: {warning}", markup=False, style="yellow")
        for variant in study.variants if not stopped else ():
            plan = planned.only(variant)
            set_threads(plan.configuration.threads, plan.models.values())
            info = run_info(plan, hashes)
            errors, stopped = answer(plan, info, planned.folder(variant), engine)
            failed += errors
            if stopped:
                break
    _show(plans, page)
    if stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
    elif failed:
        print(f"{failed} examples failed; the same command tries them again", file=sys.stderr)
    return SOME_FAILED if failed or stopped else DONE


def _show(plans: Sequence[Planned], page: Path | None) -> None:
    """Print the results of every part and where they are, and write the page on them."""
    out, folders = console(), []
    for planned in plans:
        there = [planned.folder(variant) for variant in planned.study.variants]
        there = [folder for folder in there if (folder / "run.json").exists()]
        folders += there
        if there:
            out.print(f"{planned.name}: {planned.part.title}", markup=False, soft_wrap=True)
            out.print(result_tables(*(read_run(folder) for folder in there)))
    for folder in folders:
        out.print(f"run folder: {folder}", markup=False, soft_wrap=True)
    if page is not None and folders:
        out.print(f"report: {write_report(folders, page)}", markup=False, soft_wrap=True)


def plan_text(study: Study, asked: PaperRun) -> Text:
    """What is to be run, by arithmetic alone: it needs neither weights nor rows.

    Examples are the paper's, each as long as the longest that counts.
    """
    lines = [f"{study.name}, {study.title}: {study.model} ({study.base})"]
    shape = shape_of(study.model)
    for name, part in study.parts.items():
        stands = f", which stands for {part.stands_for}" if part.stands_for else ""
        examples = examples_of(part, asked.limit)
        lines.append(
            f"{name} ({part.title}){stands}: {examples:,} examples of up to {part.tokens:,} tokens"
        )
        for variant in study.variants:
            work = flops(shape, prompt_tokens=part.tokens, **variant.settings).total
            folder = folder_of(Path(asked.output), study.model, name, variant.name)
            lines.append(
                f"  {variant.name} ({variant.method}): {formats.operations(work)} an example, "
                f"{formats.operations(work * examples)} in all; "
                f"{state_of(folder).in_words(examples)}: {folder}"
            )
    for need in needs(study, asked.essay is not None):
        lines.append(f"{'here' if need.here else 'not here'}: {need}")
    return Text("\n".join(lines))
