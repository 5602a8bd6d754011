"""The positions of points, ticks and intervals in line charts. The template `chart.svg` draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["COLOURS", "Chart", "Drawing", "Point", "Series", "draw"]

COLOURS = 8  # largest number of lines in a chart that can be told apart
WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 18, 10, 40


@dataclass(frozen=True)
class Point:
    """One measured point, and its interval if it has one."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    label: str = ""  # shown in its tooltip


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    points: Sequence[Point]
    dots: bool = True


@dataclass(frozen=True)
class Chart:
    """One picture. The diagonal shows the level of chance."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    note: str = ""
    diagonal: bool = False
    bounds: tuple[float, float] | None = None  # of y; those of the data if None


@dataclass(frozen=True)
class Line:
    """One line in pixels of the drawing."""

    name: str
    path: str
    dots: list[tuple[float, float, str]]  # x, y, tooltip
    bars: list[tuple[float, float, float]]  # x, y of both ends


@dataclass(frozen=True)
class Drawing:
    """Everything that the template needs."""

    chart: Chart
    width: int
    height: int
    box: tuple[int, int, int, int]  # left, top, right, bottom
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    description: str


def draw(chart: Chart) -> Drawing:
    """Scale a chart to the drawing's pixels.

    Raises:
        ValueError: no finite point, or more than `COLOURS` lines.
    """
    points = [point for series in chart.series for point in series.points]
    if not points or len(chart.series) > COLOURS:
        raise ValueError(f"series must be 1 to {COLOURS} lines with points, got {len(chart.series)}")
    ends = [value for p in points for value in (p.y, p.low, p.high) if math.isfinite(value)]
    x_ticks = _ticks(min(p.x for p in points), max(p.x for p in points))
    y_ticks = _ticks(*(chart.bounds or (min(ends), max(ends))))
    box = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)

    def across(x: float) -> float:
        return round(box[0] + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (box[2] - box[0]), 1)

    def down(y: float) -> float:
        return round(box[3] - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (box[3] - box[1]), 1)

    lines = []
    for series in chart.series:
        path = " ".join(dict.fromkeys(f"{across(p.x)},{down(p.y)}" for p in series.points))
        dots = [(across(p.x), down(p.y), _tooltip(series, p)) for p in series.points] if series.dots else []
        bars = [(across(p.x), down(p.low), down(p.high)) for p in series.points if math.isfinite(p.low)]
        lines.append(Line(series.name, path, dots, bars))
    return Drawing(
        chart,
        WIDTH,
        HEIGHT,
        box,
        [(across(x), f"{x:g}") for x in x_ticks],
        [(down(y), f"{y:g}") for y in y_ticks],
        lines,
        "; ".join(_tooltip(series, series.points[-1]) for series in chart.series if series.dots),
    )


def _tooltip(series: Series, point: Point) -> str:
    interval = f" ({point.low:.4g} to {point.high:.4g})" if math.isfinite(point.low) else ""
    head = f"{series.name} {point.label}".strip()
    return f"{head}: {point.y:.4g}{interval} at {point.x:.4g}"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, four to eight of them, that enclose an interval."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 2.5, 5, 10) if power * times >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * k, 12) for k in range(first, last + 1)]
