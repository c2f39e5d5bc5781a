"""What `sensitivity` and `recipes` found: tables for a terminal, pictures for a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..errors import ConfigError
from .places import check_writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..trainer.compression.search import Found, Point
    from .compress import Sensitivity

# Told apart in print and by people who confuse red and green (Okabe and Ito's palette).
_COLORS = {"prune": "#0072B2", "cluster": "#E69F00", "quantize": "#009E73"}
_SUFFIXES = (".svg", ".png", ".pdf")
_MEASURES = {"accuracy_drop": "accuracy lost, points", "loss_rise": "rise of the loss"}


def check_picture(file: Path) -> None:
    """Raise ConfigError if a picture cannot be written under this name."""
    if file.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"{file}: cannot be drawn as {file.suffix or 'a file without a suffix'}. Expected a "
            f"name that ends in {', '.join(_SUFFIXES)}."
        )
    check_writable(file.parent, 0)


def sensitivity_table(found: "Sensitivity") -> Table:
    """A row per layer; the costliest one of each step, by the loss, is marked."""
    title = f"what each layer of {found.name} costs alone, on {found.rows} rows; <: the costliest"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("layer", overflow="fold")
    table.add_column("weights", justify="right")
    for words in found.steps.values():
        table.add_column(f"{words}\naccuracy", justify="right")
        table.add_column("\nloss  ", justify="right")
    costliest = {kind: _costliest(found, kind) for kind in found.steps}
    for one in found.layers:
        cells = []
        for kind, losses in one["steps"].items():
            mark = one["layer"] == costliest[kind]
            cells.append(f"{0.0 - losses['accuracy_drop']:+.4f}")
            rise = f"{losses['loss_rise']:+.4f}"
            cells.append(f"[bold red]{rise} <[/]" if mark else f"{rise}  ")
        table.add_row(one["layer"], f"{one['parameters']:,}", *cells)
    return table


def _costliest(found: "Sensitivity", kind: str) -> str:
    worst = max(found.layers, key=lambda one: one["steps"][kind]["loss_rise"])
    return str(worst["layer"])


def sensitivity_picture(found: "Sensitivity", file: Path) -> None:
    """Horizontal bars, a layer a line: accuracy lost on the left, the rise of the loss on the
    right, a colour per step."""
    height = 1.6 + 0.16 * len(found.layers) * (len(found.steps) + 1)
    figure = _figure(11, height)
    for axes, (measure, words) in zip(
        figure.subplots(1, len(_MEASURES), sharey=True), _MEASURES.items(), strict=True
    ):
        _bars(axes, found, measure)
        axes.set_xlabel(words)
    figure.suptitle(
        f"{found.name}: what each layer costs when it alone is changed, without training "
        f"({found.rows} rows)"
    )
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(file)


def _bars(axes: "Axes", found: "Sensitivity", measure: str) -> None:
    thick = 0.8 / len(found.steps)
    scale = 100 if measure == "accuracy_drop" else 1
    for number, (kind, words) in enumerate(found.steps.items()):
        values = [scale * one["steps"][kind][measure] for one in found.layers]
        places = [
            line + (number - (len(found.steps) - 1) / 2) * thick for line in range(len(values))
        ]
        axes.barh(places, values, thick, color=_COLORS[kind], label=words)
    axes.set_yticks(range(len(found.layers)), [one["layer"] for one in found.layers])
    axes.set_ylim(len(found.layers) - 0.4, -0.6)  # the first layer on top
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def recipes_table(found: "Found") -> Table:
    """The recipes, the best first; those on the front are marked, the others are dim."""
    table = Table(title="recipes", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("recipe")
    for name in ("steps", "accuracy", "gzipped MB", "1 row, ms", "budget", "front"):
        table.add_column(name, justify="right")
    trained = found.points[0].trained
    table.add_row("* as trained", "", *_cells(trained, trained), "", "")
    for number, point in enumerate(found.points, start=1):
        on_front = point.name in found.front
        table.add_row(
            f"{number} {point.name}",
            f"{point.share:.0%}",
            *_cells(point.figures, point.trained),
            "over" if point.excess else "kept",
            "yes" if on_front else "",
            style="green" if number == 1 else None if on_front else "dim",
        )
    return table


def _cells(figures: Any, trained: Any) -> list[str]:
    now, before = (one.latency_ms["1"]["median"] for one in (figures, trained))
    times = trained.gzipped / figures.gzipped
    return [
        f"{figures.accuracy:.4f}",
        f"{figures.gzipped / 1e6:.2f} ({times:.1f}x)",
        f"{now:.2f} ({before / now:.1f}x)",
    ]


def recipes_picture(found: "Found", name: str, file: Path) -> None:
    """Size against accuracy, latency as colour; the front is joined, the points are numbered."""
    figure = _figure(10, 7)
    axes = figure.subplots()
    joined = sorted((p for p in found.points if p.name in found.front), key=_size)
    axes.plot([_size(p) for p in joined], [_accuracy(p) for p in joined], color="0.6", zorder=1)
    latencies = [point.latency for point in found.points]
    dots = axes.scatter(
        [_size(p) for p in found.points], [_accuracy(p) for p in found.points], c=latencies,
        cmap="viridis_r", vmin=min(0.5, *latencies), vmax=max(1.0, *latencies), s=90, zorder=3,
    )  # fmt: skip
    for number, point in enumerate(found.points, start=1):
        # A name would not fit: several recipes often end close to each other.
        axes.annotate(str(number), (_size(point), _accuracy(point)), xytext=(0, 7),
                      textcoords="offset points", ha="center")  # fmt: skip
        words = f"{point.name} (the best)" if number == 1 else point.name
        axes.plot([], [], "k", linestyle="none", marker=f"${number}$", label=words)
    trained = found.points[0].trained
    axes.plot(trained.gzipped / 1e6, 100 * trained.accuracy, "k*", ms=12, ls="", label="as trained")
    axes.set_xlabel("size, gzipped MB")
    axes.set_ylabel("accuracy, %")
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.set_title(f"{name}: recipes by size, accuracy and latency; the line joins the front")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.colorbar(dots, label="time of one row, as a share of the trained model's")
    figure.savefig(file)


def _size(point: "Point") -> float:
    return point.figures.gzipped / 1e6


def _accuracy(point: "Point") -> float:
    return 100 * point.figures.accuracy


def _figure(width: float, height: float) -> "Figure":
    """A figure of its own: pyplot would look for a screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=110)
