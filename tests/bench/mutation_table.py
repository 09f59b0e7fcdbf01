"""The page of mutation results: what was killed, and every survivor with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class FileResults:
    """What is known of the mutants of one file.

    Attributes:
        path: of the file.
        possible: mutants that it has.
        records: the results of those that were tried.
    """

    path: str
    possible: int
    records: list[dict[str, Any]]

    @property
    def survivors(self) -> list[dict[str, Any]]:
        """Those that no test noticed."""
        return [record for record in self.records if record["outcome"] == "survived"]

    @property
    def figures(self) -> dict[str, int]:
        """Counts: `possible`, `tried`, `killed`, and of these `ended` by time or crash."""
        tried = len(self.records)
        ended = sum(record["outcome"] in ("timeout", "crashed") for record in self.records)
        killed = tried - len(self.survivors)
        return {"possible": self.possible, "tried": tried, "killed": killed, "ended": ended}


def table(
    found: Mapping[str, Sequence[FileResults]],
    reasons: Mapping[tuple[str, str, str], str],
    sample: int,
    seed: int,
) -> tuple[str, int]:
    """The page, and how many survivors have no reason.

    Args:
        found: the files of each area.
        reasons: why a mutant survives, by path, old and new text.
        sample, seed: how mutants were drawn.
    """
    drawn = (
        f"{sample} mutants of each file (all, where it has no more)" if sample else "all mutants"
    )
    date = max(record["date"] for files in found.values() for f in files for record in f.records)
    options = f"--sample {sample} --seed {seed}"
    lines = [
        "# Mutation tests",
        "",
        "What the tests notice when the code is changed in one place: a number, a comparison, an",
        "argument left out. Made by",
        "",
        f"    python -m tests.bench.mutation run {options}",
        f"    python -m tests.bench.mutation table {options} -o docs/mutation.md",
        "",
        f"on {date}: {drawn}, by mutmut's operators; per area the",
        "nearest tests (`AREAS` in the script), without those marked slow and without the shared",
        "reference material. A survivor that no test can tell from the original is counted as one",
        "all the same.",
        "",
        "| area | file | possible | tried | killed | by time or crash | survived | share killed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    totals: Counter[str] = Counter()
    for name, files in found.items():
        own: Counter[str] = Counter()
        for file in files:
            own.update(file.figures)
            if len(files) > 1:
                lines.append(_row("", f"`{file.path}`", file.figures))
        lines.append(_row(f"**{name}**", f"`{files[0].path}`" if len(files) == 1 else "all", own))
        totals.update(own)
    lines += [_row("**all**", "", totals), "", "## Survivors", ""]
    unexplained = 0
    for file in (file for files in found.values() for file in files):
        if file.survivors:
            lines += [f"### `{file.path}`", ""]
        for record in file.survivors:
            reason = reasons.get((record["path"], record["old"], record["new"]))
            unexplained += reason is None
            lines += [
                f"- line {record['line']}: {reason or '**no reason given**'}",
                "",
                "  ```diff",
                f"  - {record['old']}",
                f"  + {record['new']}",
                "  ```",
                "",
            ]
    return "\n".join(lines).rstrip() + "\n", unexplained


def _row(area: str, file: str, of: Mapping[str, int]) -> str:
    tried, killed = of["tried"], of["killed"]
    share = f"{100 * killed / tried:.1f} %" if tried else "-"
    figures = [of["possible"], tried, killed, of["ended"], tried - killed, share]
    return f"| {area} | {file} | " + " | ".join(map(str, figures)) + " |"
