"""The plots of `benchmarks.simulate`: one message each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

NEED, FULL, FIXED, IDEAL = "#0b6e4f", "#c1440e", "#5b6c8f", "#888888"
OURS = "need, keep 60 min"
"""The run with the default policy."""


def draw(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw all; the files.

    Args:
        figures: of `simulate.run`.
        folder: where to put them, as `simulate-<what>.svg`.
    """
    # Text stays text, and nothing in the files changes from one run to the next but the figures.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "raycache", "font.size": 11})
    made = []
    for name, plot in (("workers", _workers), ("cost", _cost), ("store", _store), ("moved", _moved)):
        figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
        plot(axes, figures)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        path = folder / f"simulate-{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        # matplotlib leaves spaces at the ends of lines.
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
        plt.close(figure)
        made.append(path)
    return made


def _over_the_day(
    axes: Axes, figures: Mapping[str, Any], what: str, lines: Mapping[str, tuple[str, str, str]]
) -> None:
    """Lines of a series; `lines`: by run, its label, colour and style."""
    step = figures["minutes of a point in a series"] / 60
    runs = {**figures["runs"], **{f"clairvoyant {k}": v for k, v in figures["clairvoyant"].items()}}
    for run, (label, colour, style) in lines.items():
        values = runs[run]["series"][what]
        axes.plot(
            [step * (place + 0.5) for place in range(len(values))], values, style, color=colour, label=label
        )
    axes.set(xlim=(0, 24), xticks=range(0, 25, 3), xlabel="Time of day (h)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _workers(axes: Axes, figures: Mapping[str, Any]) -> None:
    _over_the_day(
        axes,
        figures,
        "workers",
        {
            "fullness only": ("scaled on fullness only", FULL, "-"),
            OURS: ("raycache: scaled on need", NEED, "-"),
            "clairvoyant keep 60 min": ("the least possible for data kept 60 min", IDEAL, "--"),
        },
    )
    axes.set(ylabel="Workers", title="Fullness takes every node there is; need follows the day")


def _store(axes: Axes, figures: Mapping[str, Any]) -> None:
    _over_the_day(
        axes,
        figures,
        "from the store, GB/s",
        {"fixed 200": ("200 workers all day", FIXED, "-"), OURS: ("raycache: scaled on need", NEED, "-")},
    )
    step = figures["minutes of a point in a series"] / 60
    read = figures["runs"][OURS]["series"]["read, GB/s"]
    axes.plot(
        [step * (place + 0.5) for place in range(len(read))], read, ":", color=IDEAL, label="read by the jobs"
    )
    axes.set_ylim(0, 1.05 * max(read))
    axes.legend(frameon=False)
    hours = [figures["runs"][run]["worker-hours"] for run in (OURS, "fixed 200")]
    axes.set(
        ylabel="From the object store (GB/s)",
        title=f"What the store has to deliver ({hours[0]:,} and {hours[1]:,} worker-hours)",
    )


def _moved(axes: Axes, figures: Mapping[str, Any]) -> None:
    _over_the_day(
        axes,
        figures,
        "moved, GB/s",
        {
            "fullness only": ("scaled on fullness only", FULL, "-"),
            OURS: ("raycache: scaled on need", NEED, "-"),
        },
    )
    read = sum(figures["runs"][OURS]["series"]["read, GB/s"])
    share = sum(figures["runs"][OURS]["series"]["moved, GB/s"]) / read
    axes.set(
        ylabel="Moved between workers (GB/s)",
        title=f"What changes of membership move: {100 * share:.0f} % of what is read",
    )


def _cost(axes: Axes, figures: Mapping[str, Any]) -> None:
    def points(chosen: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        return (
            [each["worker-hours"] for each in chosen.values()],
            [each["from the store, TiB"] for each in chosen.values()],
        )

    runs = figures["runs"]
    ideal = {name: each for name, each in figures["clairvoyant"].items() if each["worker-hours"] > 0}
    fixed = {name: each for name, each in runs.items() if name.startswith("fixed")}
    need = {name: each for name, each in runs.items() if name.startswith("need")}
    axes.plot(*points(ideal), "--", color=IDEAL, label="the least possible (clairvoyant)")
    axes.plot(*points(fixed), "s-", color=FIXED, label="fixed number of workers")
    axes.plot(
        *points({"": runs["fullness only"]}), "D", color=FULL, markersize=9, label="scaled on fullness only"
    )
    axes.plot(*points(need), "o-", color=NEED, markersize=8, label="raycache: scaled on need")
    for name, each in {**fixed, **need}.items():
        left = name.startswith("need")
        axes.annotate(
            name.removeprefix("fixed ").removeprefix("need, "),
            (each["worker-hours"], each["from the store, TiB"]),
            xytext=(-8, -4) if left else (7, 5),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top" if left else "bottom",
            fontsize=9,
            color=NEED if left else FIXED,
        )
    axes.set_xscale("log")
    ticks = [tick for tick in (300, 1000, 3000, 10000, 30000) if tick]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.set(
        xlabel="Worker-hours in the day (log scale)",
        ylabel="From the object store (TiB in the day)",
        title="Store traffic against size: left and low is good",
    )
    axes.legend(frameon=False)
