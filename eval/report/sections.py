"""The sections of the page, made from the tables of a run, and what is missing for others."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from eval.report.accuracy_charts import (
    along_fit,
    certified_against_radius,
    clean_robust,
    defences_against_eps,
    methods_against_eps,
)
from eval.report.detection import roc_charts
from eval.report.line_chart import Chart
from eval.report.runs import PLAIN, Run, rows_of
from eval.text_tables import Cells, cells, figures_text

__all__ = ["SECTIONS", "Section", "plain_sections"]

OBLIVIOUS = "These attacks know the bare classifier alone, and say nothing of an attacker who knows the defence."
ALONG = {"accuracy": "Accuracy, %", "psnr": "PSNR, dB", "ssim": "SSIM"}
WILSON = "Accuracy, with the 95 % Wilson interval"
HITS = "Share of images classified as their target, with the 95 % Wilson interval: the lower, the better the defence"
TANGO = "with Tango's 95 % score interval"
SHARED = ("dataset", "classifier", "targeted", "seed")  # columns that hold one value
NOT_ATTACKED = "accuracy under attack: the run had no attack"


@dataclass(frozen=True)
class Section:
    """One part of a run's report."""

    title: str
    lead: str = ""
    tables: list[Cells] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def evaluation(run: Run) -> Section:
    """The table of `evaluate`, and charts of accuracy against eps."""
    table, missing = run.tables["evaluation"], []
    aimed = "targeted" in table and table["targeted"].any()  # runs of version 0.1 have no such column
    tables = [cells(HITS if aimed else WILSON, table, drop=SHARED)]
    if len(paired := run.beside.get("paired.csv", pd.DataFrame())):
        tables.append(cells(f"Paired differences in {'these shares' if aimed else 'accuracy'}, {TANGO}", paired))
    else:
        missing.append("paired differences: there is no paired.csv, or only one defence was scored")
    charts = defences_against_eps(rows_of(table))
    attacked, adaptive = (table["attack"] != "clean").any(), (table["crafted_on"] == "defended").any()
    if not attacked:
        missing.append(NOT_ATTACKED)
    elif not charts:
        missing.append("accuracy against eps: no attack of the run has a radius")
    return Section("Evaluation", "" if adaptive or not attacked else OBLIVIOUS, tables, charts, missing)


def ladder(run: Run) -> Section:
    """The table of `ladder`."""
    table = run.tables["ladder"]
    lead = "Attacks that know the defence. In the worst case every rung that attacked an image counts."
    missing = [] if (table["attack"] == "worst case").any() else ["worst case: summary.csv lacks it"]
    return Section("Adaptive ladder", lead, [cells(WILSON, table, drop=SHARED)], missing=missing)


def defence(run: Run) -> Section:
    """The tables of `benchmark defence`, and charts of accuracy against eps, clean against robust accuracy, and ROC."""
    table = run.tables["defence"]
    rows, tables, missing = rows_of(table), [cells(WILSON, table, drop=SHARED)], []
    attacked = dict.fromkeys((row["attack"], row["eps"]) for row in rows if row["attack"] != "clean")
    if not attacked:
        missing.append(NOT_ATTACKED)
    charts = [methods_against_eps(rows, attack) for attack in dict.fromkeys(attack for attack, _ in attacked)]
    charts += [clean_robust(rows, attack, eps) for attack, eps in attacked]
    for file, caption in (
        ("paired.csv", f"Paired differences in accuracy from the baseline, {TANGO}"),
        ("roc.csv", "Detection: area under the ROC curve, with the 95 % bootstrap interval"),
    ):
        if len(found := run.beside.get(file, pd.DataFrame())):
            tables.append(cells(caption, found))
        else:
            missing.append(f"{file}: missing, or empty")
    curves, lacking = roc_charts(run)
    return Section("Defences compared", OBLIVIOUS, tables, charts + curves, missing + lacking)


def iterations(run: Run) -> Section:
    """The table of `benchmark iterations`: accuracy, PSNR and SSIM along the fit."""
    table = run.tables["iterations"]
    charts = [along_fit(rows_of(table), column, title) for column, title in ALONG.items() if column in table]
    missing = [f"{title} along the fit: iterations.csv lacks it" for name, title in ALONG.items() if name not in table]
    lead = "The result of a fit if it ended at each iteration, for images on which settings are chosen."
    return Section("Along the fit", lead, [cells("Accuracy, PSNR and SSIM along the fit", table)], charts, missing)


def certificates(run: Run) -> Section:
    """The tables of `certify`, and the curve of certified accuracy against the radius, of more than two radii."""
    table = run.tables["certificates"]
    tables = [cells("Certified accuracy, with the 95 % Wilson interval", table)]
    if len(paired := run.beside.get("paired.csv", pd.DataFrame())):
        tables.append(cells(f"Differences of two purifiers on the same noise, {TANGO}", paired))
    lead = "L2 radii, images in [0, 1]; they hold for the vote of many noisy copies. Who abstains counts as wrong."
    charts = [certified_against_radius(rows_of(table))] if table["radius"].nunique() > 2 else []
    return Section("Certificates", lead, tables, charts)


SECTIONS: dict[str, Callable[[Run], Section]] = {
    "evaluation": evaluation,
    "ladder": ladder,
    "defence": defence,
    "iterations": iterations,
    "certificates": certificates,
}


def plain_sections(run: Run) -> list[Section]:
    """Tables that are shown as they are."""
    return [Section(PLAIN[file], tables=[cells(file, _readable(file, table))]) for file, table in run.plain.items()]


def _readable(file: str, table: pd.DataFrame) -> pd.DataFrame:
    """The table, with the figures of checks as text instead of JSON."""
    if file != "diagnose.csv" or "figures" not in table:
        return table
    return table.assign(figures=[figures_text(json.loads(figures)) for figures in table["figures"]])
