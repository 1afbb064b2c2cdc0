"""The plots, as SVG, from the JSON files of a folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

COLOURS = {
    "gradient": "#9aa0a6",
    "hooks": "#7fb3e6",
    "evaluate": "#1a66b8",
    "compiled": "#0b3366",
    "BackPACK": "#d1603d",
    "BackPACK, channels_last": "#eda488",
    "torch.func": "#5e8c5a",
    "opacus": "#b08fc7",
    "curvlinops": "#c9a227",
}
STYLE = {
    "svg.hashsalt": "curvserve",  # the same figures, the same bytes
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
TIMES, OVER = "milliseconds", "over BackPACK"


def draw(folder: Path) -> Iterator[Path]:
    """Draw a plot for each JSON file that is there, and yield its path.

    Args:
        folder: what `python -m benchmarks --out` wrote.
    """
    for name, plot in PLOTS.items():
        source = folder / f"{name}.json"
        if source.exists():
            with plt.rc_context(STYLE):
                figure = plot(json.loads(source.read_text()))
                file = folder / f"{name}.svg"
                figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
                plt.close(figure)
            yield file


def passes(figures: dict[str, Any]) -> Any:
    """Bars: each contestant over BackPACK, of the Monte-Carlo diagonal, by threads."""
    rows = [row for row in figures["rows"] if row["quantity"] == "DiagGGNMC"]
    threads = sorted({row["threads"] for row in rows})
    figure, places = plt.subplots(
        len(threads), 1, figsize=(8, 2.6 * len(threads)), squeeze=False, layout="constrained"
    )
    for axes, count in zip(places[:, 0], threads, strict=True):
        own = [row for row in rows if row["threads"] == count]
        names = [name for name in COLOURS if any(name in row["times"] for row in own)]
        values = [{n: row["times"][n]["median"] for n in row["times"]} for row in own]
        titles = [f"{row['net']}\n{row['batch']}" for row in own]
        _bars(axes, titles, names, [_over_peer(value) for value in values])
        axes.set_title(f"DiagGGNMC, {_threads(count)}", loc="left")
        axes.set_ylabel(OVER)
    figure.legend(*places[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def memory(figures: dict[str, Any]) -> Any:
    """Bars: peak memory over BackPACK's."""
    rows = [row for row in figures["rows"] if row["quantity"] == "DiagGGNMC"]
    names = [name for name in COLOURS if any(name in row["megabytes"] for row in rows)]
    figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
    titles = [f"{row['net']}\n{row['batch']}" for row in rows]
    _bars(axes, titles, names, [_over_peer(row["megabytes"]) for row in rows])
    axes.set_title("DiagGGNMC, peak memory of a pass", loc="left")
    axes.set_ylabel(OVER)
    figure.legend(loc="outside upper center", ncols=5, fontsize=8)
    return figure


def steps(figures: dict[str, Any]) -> Any:
    """Bars: each way of a step, by threads."""
    tables = figures["tables"]
    names = list(tables[0]["times"])
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(names) + 1), layout="constrained")
    height = 0.8 / len(tables)
    for number, table in enumerate(tables):
        places = [i + (number - (len(tables) - 1) / 2) * height for i in range(len(names))]
        shade = ("#1a66b8", "#7fb3e6", "#9aa0a6")[number % 3]
        label = _threads(table["threads"])
        axes.barh(places, list(table["times"].values()), height, color=shade, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"{TIMES}, mnist_cnn, batch {tables[0]['batch']}")
    axes.legend()
    return figure


def growth(figures: dict[str, Any]) -> Any:
    """Lines: time over size, both logarithmic, a panel for each axis."""
    figure, places = plt.subplots(2, 3, figsize=(10, 5.6), layout="constrained")
    for axes, found in zip(places.flat, figures["axes"], strict=True):
        for name, times in found["times"].items():
            label = f"{name}: {found['exponents'][name]:.2f}"
            axes.loglog(found["sizes"], times, "o-", ms=3, color=COLOURS[name], label=label)
        axes.set_title(found["what"], fontsize=7.5, loc="left")
        axes.set_xticks(found["sizes"], [_short(size) for size in found["sizes"]])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(found["axis"])
        axes.set_ylabel(TIMES)
        axes.legend(fontsize=7, title="exponent", title_fontsize=7)
    return figure


def training(figures: dict[str, Any]) -> Any:
    """Lines: time over steps, and the mean probability of the label."""
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    points = figures["points"]
    at = [point["step"] for point in points]
    for name in points[0]["times"]:
        times = [point["times"][name] for point in points]
        axes.plot(at, times, "o-", ms=3, color=COLOURS[name], label=name)
    axes.set_ylim(0)
    axes.set_xlabel(f"steps of training, mnist_cnn, batch {figures['about']['batch']}")
    axes.set_ylabel(TIMES)
    right = axes.twinx()
    known = [point["p_label"] for point in points]
    right.plot(at, known, "--", color="#444", label="mean p(label)")
    right.set_ylim(0, 1)
    right.set_ylabel("mean p(label)")
    right.grid(False)
    lines = [*axes.get_lines(), *right.get_lines()]
    labels = [str(line.get_label()) for line in lines]
    figure.legend(lines, labels, loc="outside upper center", ncols=5, fontsize=8)
    return figure


def scaling(figures: dict[str, Any]) -> Any:
    """Lines: time of a step over the number of workers, against this process and a fair share."""
    rows = figures["steps"]["rows"]
    names = list(dict.fromkeys((row["net"], row["batch"]) for row in rows))
    figure, places = plt.subplots(
        1, len(names), figsize=(4 * len(names), 3), squeeze=False, layout="constrained"
    )
    for axes, (net, batch) in zip(places[0], names, strict=True):
        times = {row["workers"]: row["ms"] for row in rows if row["net"] == net}
        alone = times.pop("inline")
        counts = [int(name) for name in times]
        axes.plot(counts, list(times.values()), "o-", ms=4, color="#0b3366", label="workers")
        axes.axhline(alone, color="#444", lw=0.8, label="inline")
        share = [alone / count for count in counts]
        axes.plot(counts, share, ":", color="#9aa0a6", label="inline, divided")
        axes.set_title(f"{net}, batch {batch}", loc="left")
        axes.set_xticks(counts)
        axes.set_ylim(0)
        axes.set_xlabel("workers")
        axes.set_ylabel(TIMES)
    figure.legend(*places[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


PLOTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "passes": passes,
    "steps": steps,
    "memory": memory,
    "growth": growth,
    "training": training,
    "scaling": scaling,
}


def _over_peer(values: dict[str, float]) -> dict[str, float]:
    """Return each value over BackPACK's, or over the next peer's where that cannot."""
    peer = values.get("BackPACK", values.get("torch.func", 1.0))
    return {name: value / peer for name, value in values.items()}


def _bars(axes: Axes, titles: list[str], names: list[str], values: list[dict[str, float]]) -> None:
    """Draw a group of bars for each title; what is beyond three times the peer is cut, and said."""
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        for place, value in enumerate(values):
            if name in value:
                x = place + (number - (len(names) - 1) / 2) * width
                bar = axes.bar(
                    x,
                    min(value[name], 3),
                    width,
                    color=COLOURS[name],
                    label=name if name not in axes.get_legend_handles_labels()[1] else None,
                )
                if value[name] > 3:
                    axes.bar_label(bar, [f"{value[name]:.0f}"], fontsize=7)
    axes.axhline(1, color="#444", lw=0.8)
    axes.set_ylim(0, 3.3)
    axes.set_xticks(range(len(titles)), titles)
    axes.grid(False, axis="x")


def _short(size: int) -> str:
    """Return a number that fits under a tick."""
    return (
        f"{size / 1e6:.1f}M" if size >= 1e6 else f"{size / 1e3:.0f}k" if size > 2000 else str(size)
    )


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"
