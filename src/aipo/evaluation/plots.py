"""Three figures, each as SVG and PNG: capability boundary, training curves, price in expert tokens.

Equal input gives byte-equal SVG with the same matplotlib, whose global state is left alone. Colours are those
of Okabe and Ito (jfly.uni-koeln.de/color), which colour-blind readers can distinguish; markers and dashes
repeat what colour says.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite, nan
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from aipo.core.types import SoloMode
from aipo.evaluation.records import EvaluationRecord, methods_of
from aipo.evaluation.statistics import estimate

Metrics = Mapping[str, float | None]
"""The metrics of one step; `step` among them."""

Dash = Literal["-"] | tuple[float, tuple[float, ...]]

WIDTH_INCHES = 9.0
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES: tuple[Dash, ...] = ("-", (0.0, (5.0, 1.5)), (0.0, (1.5, 1.2)))
STYLE: dict[Any, Any] = {  # Any: the key type that matplotlib names differs between its versions.
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "text.parse_math": False,  # a name may hold dollars
    "svg.hashsalt": "aipo",
    "svg.fonttype": "path",
}
MOST_PIXELS = 60_000
"""Of a PNG's height: matplotlib refuses 2^16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPoint:
    """What a method reached after some updates, and the expert tokens spent up to there."""

    method: str
    updates: int
    raw_tokens: float
    """Tokens written by agents or experts."""
    distinct_tokens: float
    """Of these, the ones that a cache would have charged once."""
    value: float
    """Solo pass@k, a share."""
    low: float = nan
    high: float = nan


def boundary_plot(
    records: Sequence[EvaluationRecord], path: Path, strata: Sequence[str] = (), rng_seed: int = 0
) -> tuple[Path, Path]:
    """Draw pass@k against k, the capability boundary.

    Where curves meet at large k, training sharpened what was there; where they do not, it added something
    (Yue et al. 2025, arXiv 2504.13837). One row per stratum, all of them where none is named; one panel per
    solo mode that occurs, one line per method with its 95 % band, k = 1, 2, 4 .. up to the samples per
    problem; the last point is hollow where k = n, one draw per problem. Writes `path` with suffixes .svg and
    .png and returns both. Raises `ValueError` where no record of `strata` has a solo mode, or as `estimate`
    does.
    """
    found = dict.fromkeys((stratum, record.mode) for record in records for stratum in record.strata)
    strata = strata or tuple(dict.fromkeys(stratum for stratum, _ in found))
    shown = [(stratum, mode) for stratum in strata for mode in SoloMode if (stratum, mode) in found]
    if not shown:
        raise ValueError(f"no record of a solo mode with one of the strata {', '.join(strata)}")
    methods, columns = methods_of(records), len({mode for _, mode in shown})
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(shown), columns, 3.9)
        for panel, (stratum, mode) in zip(panels, shown, strict=True):
            for index, method in enumerate(methods):
                own = [r for r in records if (r.method, r.mode) == (method, mode) and stratum in r.strata]
                if own:
                    _boundary_line(panel, own, stratum, index, rng_seed)
            panel.set_title(f"{stratum} problems, solo, {mode.value}")
            _share_axis(panel)
            panel.set_xlabel("k (hollow: all samples, one draw per problem)")
        for panel in panels[::columns]:
            panel.set_ylabel("pass@k")
        _legend(figure, methods)
        return _save(figure, path)


def training_plot(
    series: Mapping[str, Sequence[Metrics]], path: Path, panels: Sequence[str], window: int = 2
) -> tuple[Path, Path]:
    """Draw one panel per metric, one line per method.

    `series` holds, per method, the metrics of every step of every seed in one list. Line: mean over seeds;
    band: their smallest to largest value; both as running means over the last `window` rows. A metric
    that is absent, `None` or NaN at a step leaves that step out; a panel that no method has data for is left
    out. Writes `path` with suffixes .svg and .png and returns both. Raises `ValueError` where no panel is
    left.
    """
    shown = [name for name in panels if any(_curve(rows, name).size for rows in series.values())]
    if not shown:
        raise ValueError(f"no method has any of {list(panels)}")
    columns = min(3, len(shown))
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(shown), columns, 2.5)
        for panel, name in zip(axes, shown, strict=True):
            for index, rows in enumerate(series.values()):
                curve = _curve(rows, name)
                if curve.size:
                    step, low, mean, high = (curve[:, 0], *_running_mean(curve[:, 1:], window).T)
                    panel.plot(step, mean, color=_colour(index), linestyle=_dash(index))
                    panel.fill_between(step, low, high, color=_colour(index), alpha=0.15, linewidth=0)
            panel.set_title(name.replace("_", " ").replace("/", ": "))
            panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            panel.margins(x=0.02)
        for panel in axes[-columns:]:
            panel.set_xlabel("step")
        _legend(figure, tuple(series), markers=False)
        return _save(figure, path)


def expert_token_plot(measures: Mapping[str, Sequence[TokenPoint]], path: Path) -> tuple[Path, Path]:
    """Draw quality against expert tokens, raw and distinct: the price at which a method gets there.

    One row per measure of quality, named by its key; one line per method through its points in order of
    updates, labelled by them. A method that never spent an expert token has no place on a logarithmic axis;
    its last point is a dotted level across the panel. Writes `path` with suffixes .svg and .png and returns
    both. Raises `ValueError` without points.
    """
    methods = tuple(dict.fromkeys(point.method for points in measures.values() for point in points))
    if not methods:
        raise ValueError("no points")
    shown = [(points, field) for points in measures.values() for field in ("raw_tokens", "distinct_tokens")]
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(shown), 2, 3.9)
        for panel, (points, field) in zip(panels, shown, strict=True):
            for index, method in enumerate(methods):
                own = sorted((p for p in points if p.method == method), key=lambda point: point.updates)
                if not own:
                    continue
                _token_line(panel, own, [getattr(point, field) / 1000 for point in own], index)
            panel.set_xscale("log")
            panel.margins(x=0.12)
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda thousands, _: f"{thousands:g}"))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xlabel("thousand expert tokens, " + field.removesuffix("_tokens"))
            _share_axis(panel)
        for panel, measure in zip(panels[::2], measures, strict=True):
            panel.set_ylabel(measure)
        _legend(figure, methods)
        return _save(figure, path)


def _boundary_line(
    panel: Axes, records: Sequence[EvaluationRecord], stratum: str, index: int, rng_seed: int
) -> None:
    most = max(result.graded for record in records for result in record.results if result.stratum == stratum)
    ks = [2**i for i in range(most.bit_length())]
    points = [estimate(records, stratum, k, rng_seed) for k in ks]
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
    values, colour = [point.value for point in points], _colour(index)
    panel.plot(ks, values, color=colour, linestyle=_dash(index), marker=_marker(index))
    if ks[-1] == most:
        panel.plot(ks[-1:], values[-1:], color=colour, marker=_marker(index), markerfacecolor="white")
    low, high = [p.low for p in points], [p.high for p in points]
    panel.fill_between(ks, low, high, facecolor=(colour, 0.09), edgecolor=(colour, 0.35), linewidth=0.6)


def _token_line(panel: Axes, points: Sequence[TokenPoint], thousands: Sequence[float], index: int) -> None:
    colour = _colour(index)
    paid = [(x, point) for x, point in zip(thousands, points, strict=True) if x > 0]
    if not paid:
        last = points[-1]
        panel.axhline(last.value, color=colour, linestyle=":")
        text = f"{last.method}, {last.updates} updates: no expert token"
        _note(panel, text, (0.99, last.value), colour, (0, 3), ("axes fraction", "data"))
        return
    xs, values = [x for x, _ in paid], [point.value for _, point in paid]
    panel.plot(xs, values, color=colour, linestyle=_dash(index), marker=_marker(index))
    for x, point in paid:
        if isfinite(point.low) and isfinite(point.high):
            panel.vlines(x, point.low, point.high, color=colour, linewidth=1.2, alpha=0.6)
        # Neighbouring methods put their labels on opposite sides.
        _note(panel, str(point.updates), (x, point.value), colour, (-5, 4) if index % 2 else (26, -11))


def _note(
    panel: Axes,
    text: str,
    at: tuple[float, float],
    colour: str,
    offset_points: tuple[float, float],
    coordinates: str | tuple[str, str] = "data",
) -> None:
    panel.annotate(
        text, at, xycoords=coordinates, xytext=offset_points, textcoords="offset points", ha="right",
        fontsize=9, color=colour,
    )  # fmt: skip


def _curve(rows: Iterable[Metrics], name: str) -> NDArray[np.float64]:
    """Return step, smallest, mean and largest value over seeds; one row per step that has the metric."""
    values: dict[float, list[float]] = {}
    for row in rows:
        step, value = row["step"], row.get(name)
        if step is not None and value is not None and isfinite(value):
            values.setdefault(step, []).append(value)
    return np.array([(step, min(v), sum(v) / len(v), max(v)) for step, v in sorted(values.items())])


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of each row with the up to `window` - 1 rows before it.

    >>> _running_mean(np.array([[2.0], [4.0], [6.0], [0.0]]), window=2).ravel().tolist()
    [2.0, 3.0, 5.0, 3.0]
    """
    sums = np.cumsum(values, axis=0)
    sums[window:] = sums[window:] - sums[:-window]
    return sums / np.minimum(np.arange(1, len(values) + 1), window)[:, None]


def _panels(count: int, columns: int, height_inches: float) -> tuple[Figure, list[Axes]]:
    rows = ceil(count / columns)
    figure = Figure(figsize=(WIDTH_INCHES, 0.5 + rows * height_inches), layout="constrained")
    axes = [figure.add_subplot(rows, columns, position + 1) for position in range(count)]
    return figure, axes


def _share_axis(panel: Axes) -> None:
    panel.set_ylim(-0.03, 1.03)
    panel.set_yticks(np.linspace(0, 1, 6))


def _legend(figure: Figure, methods: Sequence[str], markers: bool = True) -> None:
    """Put one legend above all panels, outside of the data."""
    handles = [
        Line2D(
            [], [], color=_colour(i), linestyle=_dash(i), marker=_marker(i) if markers else "", label=method
        )
        for i, method in enumerate(methods)
    ]
    longest = max(map(len, methods))
    columns = max(1, min(len(methods), 100 // (longest + 8)))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.6)


def _save(figure: Figure, path: Path) -> tuple[Path, Path]:
    stem = path.with_suffix("") if path.suffix in (".svg", ".png") else path
    svg, png = stem.with_name(stem.name + ".svg"), stem.with_name(stem.name + ".png")
    svg.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(svg, metadata={"Date": None})
    figure.savefig(png, dpi=min(200, MOST_PIXELS // figure.get_figheight()))
    return svg, png


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def _dash(index: int) -> Dash:
    """Return a dash pattern that changes with each round of the colours."""
    return DASHES[index // len(COLOURS) % len(DASHES)]
