"""Draw the figures that are compared with others: one panel for each, as bars, the best on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from figures import Figure, Results
from targets import NAMES

PANELS = {
    "enqueue, one by one": "Enqueue one by one, tasks/s",
    "enqueue, in bulk": "Enqueue in bulk, tasks/s",
    "drain, 1 worker": "Drain with one worker, tasks/s",
    "drain, 2 workers": "Drain with two workers, tasks/s",
    "pickup, p50": "Pickup by an idle worker, median, ms (less is better)",
    "pickup, p99": "Pickup by an idle worker, 99th percentile, ms (less is better)",
}
COLOURS = {"ours": "#0b6e4f", "yardstick": "#9aa0a6", "peer": "#4c78a8"}
KINDS = {"ours": "this package", "yardstick": "yardsticks", "peer": "others"}
BAR = 0.27


def draw(results: Results, path: Path) -> None:
    """Write an SVG; nothing where there is nothing to compare."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import patches, pyplot

    panels = {name: _bars(results, name) for name in PANELS}
    panels = {name: bars for name, bars in panels.items() if bars}
    if not panels:
        return
    heights = [len(bars) + 2 for bars in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), figsize=(10, BAR * sum(heights)), squeeze=False, layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for (name, bars), axis in zip(panels.items(), axes[:, 0], strict=True):
        _panel(axis, PANELS[name], bars)
    legend = [patches.Patch(color=colour, label=KINDS[kind]) for kind, colour in COLOURS.items()]
    figure.legend(handles=legend, loc="outside upper right", ncols=len(legend), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _bars(results: Results, name: str) -> list[Figure]:
    """Return the figures of a panel, the worst first: bars are drawn from below."""
    found = [figure for figure in results.figures if figure.figure == name]
    return sorted(found, key=lambda figure: figure.median, reverse=name.startswith("pickup"))


def _panel(axis: Any, title: str, bars: list[Figure]) -> None:
    labels = [_label(figure) for figure in bars]
    values = [figure.median for figure in bars]
    drawn = axis.barh(labels, values, color=[COLOURS[figure.kind] for figure in bars], height=0.7)
    texts = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
    axis.bar_label(drawn, texts, padding=3)
    axis.set_xscale("log")
    positive = [value for value in values if value > 0] or [1]
    axis.set_xlim(min(positive) / 2, max(positive) * 4)
    axis.set_ylim(-0.7, len(bars) - 0.3)
    axis.set_title(f"{title}; logarithmic", loc="left", fontweight="bold")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _label(figure: Figure) -> str:
    """Return the name of a bar; that of some systems says already where they store."""
    if figure.system.endswith((", Redis", ", SQLite")):
        return figure.system
    return f"{figure.system} · {NAMES[figure.database]}"
