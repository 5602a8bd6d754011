"""The charts of accuracy: against eps, clean against robust, along a fit, certified.

Rows are those of the tables.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from eval.report.line_chart import COLOURS, Chart, Point, Series
from eval.text_tables import radius

__all__ = [
    "along_fit",
    "certified_against_radius",
    "clean_robust",
    "defences_against_eps",
    "methods_against_eps",
    "together",
]

Row = dict[str, Any]
HITS = "Share of images classified as their target"  # the meaning of accuracy in a targeted run
BEST = (
    "Each method at the strength with the best mean of clean and attacked accuracy on these images, which flatters "
    "methods with many strengths."
)


def defences_against_eps(rows: Sequence[Row]) -> list[Chart]:
    """Accuracy of `evaluate`: one chart for each attack with a radius, with the clean images at an eps of zero."""
    attacks = dict.fromkeys(row["attack"] for row in _attacked(rows))
    measure = HITS if any(row.get("targeted") for row in rows) else "Accuracy"
    return [_against_eps(f"{measure} under {attack}", _lines(rows, attack), "", measure) for attack in attacks]


def together(tables: Sequence[Sequence[Row]]) -> list[Chart]:
    """Accuracy against eps over several runs of `evaluate`, if no two scored the same defence at the same eps."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for rows in tables:
        for row in rows:
            measure = HITS if row.get("targeted") else "Accuracy"
            groups.setdefault((measure, row["dataset"], row["classifier"]), []).append(row)
    charts = []
    for (measure, dataset, classifier), rows in groups.items():
        for attack, norm in dict.fromkeys((row["attack"], row["norm"]) for row in _attacked(rows)):
            lines = _lines([row for row in rows if row["attack"] == "clean" or row["norm"] == norm], attack)
            radii = [[point.x for point in line if point.x > 0] for line in lines.values()]
            if max(map(len, radii)) > 1 and all(len(set(line)) == len(line) for line in radii):
                title = f"{measure} under {attack} ({norm}): {dataset}, {classifier}"
                charts.append(_against_eps(title, lines, "From all runs of this folder.", measure))
    return charts


def methods_against_eps(rows: Sequence[Row], attack: str) -> Chart:
    """Accuracy of `benchmark defence`: each method at its best strength."""
    scores: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if row["attack"] in ("clean", attack):
            scores.setdefault((row["defence"], row["strength"]), []).append(row)

    def worth(setting: tuple[str, float]) -> float:
        clean = [row["accuracy"] for row in scores[setting] if row["attack"] == "clean"]
        attacked = [row["accuracy"] for row in scores[setting] if row["attack"] != "clean"]
        return (_mean(clean) + _mean(attacked)) / 2

    best = {}
    for method in dict.fromkeys(method for method, _ in scores):
        strength = max((s for m, s in scores if m == method), key=lambda s: worth((method, s)))
        best[f"{method} {strength:g}"] = method, strength
    lines = {name: [_point(row) for row in scores[best[name]]] for name in best}
    return _against_eps(f"Accuracy under {attack}", lines, BEST, key=lambda name: worth(best[name]))


def clean_robust(rows: Sequence[Row], attack: str, eps: float) -> Chart:
    """Clean accuracy (x) against accuracy under an attack (y), one line for each method over its strengths."""
    clean = {(row["defence"], row["strength"]): row["accuracy"] for row in rows if row["attack"] == "clean"}
    lines: dict[str, list[Point]] = {}
    for row in rows:
        setting = row["defence"], row["strength"]
        if (row["attack"], row["eps"]) == (attack, eps) and setting in clean:
            point = Point(100 * clean[setting], 100 * row["accuracy"], label=f"{row['strength']:g}")
            lines.setdefault(row["defence"], []).append(point)
    series, note = _at_most(lines, key=lambda name: max(point.x + point.y for point in lines[name]))
    title = f"Clean against robust: {attack}, eps {radius(eps)}"
    return Chart(title, "clean accuracy, %", "accuracy under attack, %", series, note)


def along_fit(rows: Sequence[Row], column: str, title: str) -> Chart:
    """A column of `benchmark iterations` against the iteration, one line for each attack."""
    lines: dict[str, list[Point]] = {}
    for row in rows:
        share = column == "accuracy"
        bounds = (100 * row["ci_low"], 100 * row["ci_high"]) if share else (math.nan, math.nan)
        point = Point(row["iteration"], (100 if share else 1) * row[column], *bounds)
        lines.setdefault(row["attack"], []).append(point)
    series, note = _at_most(lines)
    return Chart(f"{title.partition(',')[0]} along the fit", "iteration", title, series, note)


def _attacked(rows: Iterable[Row]) -> list[Row]:
    """The rows of attacks with a radius."""
    return [row for row in rows if row["attack"] != "clean" and not math.isnan(row["eps"])]


def certified_against_radius(rows: Sequence[Row]) -> Chart:
    """Certified accuracy of `certify` against the radius, one line for each purifier."""
    lines: dict[str, list[Point]] = {}
    for row in rows:
        bounds = 100 * row["certified_accuracy"], 100 * row["ci_low"], 100 * row["ci_high"]
        lines.setdefault(row["purifier"], []).append(Point(row["radius"], *bounds))
    series, note = _at_most(lines)
    title = f"Certified accuracy, sigma {rows[0]['sigma']:g}"
    return Chart(title, "L2 radius", "certified accuracy, %", series, note, bounds=(0, 100))


def _lines(rows: Iterable[Row], attack: str) -> dict[str, list[Point]]:
    """For each defence its clean accuracy, once, and its accuracy under each kind of the attack."""
    clean: dict[str, Point] = {}
    lines: dict[str, list[Point]] = {}
    for row in rows:
        if row["attack"] == "clean":
            clean.setdefault(row["defence"], _point(row))
        elif row["attack"] == attack:
            name = f"{row['defence']}, attack on {row['crafted_on']}"
            start = [clean[row["defence"]]] if row["defence"] in clean else []
            lines.setdefault(name, start).append(_point(row))
    return lines


def _against_eps(
    title: str,
    lines: dict[str, list[Point]],
    note: str,
    measure: str = "Accuracy",
    key: Callable[[str], float] | None = None,
) -> Chart:
    ordered = {name: sorted(line, key=lambda point: point.x) for name, line in lines.items()}
    series, more = _at_most(ordered, key)
    return Chart(
        title, "eps", f"{measure[0].lower()}{measure[1:]}, %", series, f"{note} {more}".strip(), bounds=(0, 100)
    )


def _at_most(lines: dict[str, list[Point]], key: Callable[[str], float] | None = None) -> tuple[list[Series], str]:
    """As many lines as can be told apart, the best by `key`, in their own order; and a note on the others."""
    kept = list(lines)[:COLOURS] if key is None else sorted(lines, key=key, reverse=True)[:COLOURS]
    more = [name for name in lines if name not in kept]
    note = f"Not drawn, but in the table: {', '.join(more)}." if more else ""
    return [Series(name, line) for name, line in lines.items() if name in kept], note


def _point(row: Row) -> Point:
    return Point(row["eps"], 100 * row["accuracy"], 100 * row["ci_low"], 100 * row["ci_high"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
