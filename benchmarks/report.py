"""Tell what was found: a table, the raw figures, a plot.

``python report.py FOLDER`` writes table and plot anew from the raw figures of an earlier run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import plot
from figures import Figure, Results
from systems import CREATE, NARROW, OURS
from targets import NAMES, TARGETS, Target

YARDSTICKS = {"enqueue": CREATE, "drain": NARROW}


def save(results: Results, folder: Path) -> None:
    """Write ``RESULTS.md``, ``results.json`` and ``results.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = json.dumps(results.to_json(), indent=1)
    (folder / "results.json").write_text(raw + "\n")
    (folder / "RESULTS.md").write_text(table(results) + "\n")
    plot.draw(results, folder / "results.svg")


def table(results: Results) -> str:
    """Return the results as Markdown."""
    return "\n".join(
        [*_head(results), *_targets(results), *_sections(results), *_left_out(results)]
    )


def _head(results: Results) -> Iterator[str]:
    facts = results.machine
    versions = ", ".join(f"{NAMES[name]} {version}" for name, version in facts["databases"].items())
    yield "# Results"
    yield ""
    yield (
        f"{facts['day']}: {facts['cores']} cores, {facts['cpu']}, {facts['kernel']}, "
        f"Python {facts['python']}, {versions}. "
        f"Passes: {facts['passes']}. Tasks to drain: {facts['count']:,}."
    )
    yield ""
    yield "How this was measured, and what it is worth, stands in [README.md](README.md)."
    yield ""
    yield "![The figures as bars](results.svg)"


def _targets(results: Results) -> Iterator[str]:
    rows = [(target, target.measure(results)) for target in TARGETS]
    if not any(value is not None for _, value in rows):
        return
    yield from ("", "## The numbers asked for", "")
    yield "| | at least | aim | measured | |"
    yield "|---|---:|---:|---:|---|"
    for target, value in rows:
        if value is not None:
            yield _target(target, value)


def _target(target: Target, value: float) -> str:
    sign = "≤ " if target.is_lower_better else "≥ "
    must = f"{sign}{_number(target.must)}" if target.must else ""
    measured = f"{_number(value)} {target.unit}"
    verdict = "met" if target.is_met(value) else "**not met**"
    if not target.must:
        verdict = ""
    return f"| {target.what} | {must} | {_number(target.aim)} | {measured} | {verdict} |"


def _sections(results: Results) -> Iterator[str]:
    sections = dict.fromkeys((figure.database, figure.workload) for figure in results.figures)
    for database, workload in sorted(sections, key=lambda section: [*NAMES].index(section[0])):
        some = [f for f in results.figures if (f.database, f.workload) == (database, workload)]
        yield from ("", f"## {NAMES[database]}, {workload}", "")
        yield from _section(results, some, YARDSTICKS.get(workload))


def _section(results: Results, figures: list[Figure], yardstick: str | None) -> Iterator[str]:
    """Yield a table; what is compared with others has columns for that."""
    is_compared = len({figure.system for figure in figures}) > 1
    more = (f" of the {yardstick} |" if yardstick else "") + " background_task is |"
    yield "| | | median | from … to |" + (more if is_compared else "")
    yield "|---|---|---:|---:|" + ("---:|" * more.count("|") if is_compared else "")
    names = [*dict.fromkeys(figure.figure for figure in figures)]
    for figure in sorted(figures, key=lambda figure: names.index(figure.figure)):
        cells = [
            figure.figure.partition(", ")[2],
            f"**{figure.system}**" if figure.kind == "ours" else figure.system,
            f"{_number(figure.median)} {figure.unit}",
            f"{_number(min(figure.values))} … {_number(max(figure.values))}",
        ]
        if is_compared and yardstick:
            cells.append(_ratio(figure, results.of(figure.database, figure.figure, yardstick)))
        if is_compared:
            cells.append(_ahead(figure, results.of(figure.database, figure.figure, OURS)))
        yield f"| {' | '.join(cells)} |"


def _ratio(figure: Figure, other: Figure | None) -> str:
    return f"{_number(figure.median / other.median)}" if other else ""


def _ahead(figure: Figure, ours: Figure | None) -> str:
    """Return how many times as fast this package is."""
    if ours is None or ours is figure or min(ours.median, figure.median) <= 0:
        return ""
    times = ours.median / figure.median
    return f"{_number(1 / times if figure.unit == 'ms' else times)} x as fast"


def _left_out(results: Results) -> Iterator[str]:
    if results.left_out:
        yield from ("", "## Left out", "")
        for what, reason in results.left_out.items():
            yield f"- {what}: {reason}"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    save(Results.from_json(json.loads((place / "results.json").read_text())), place)
