"""The report: the content of the folder of a run as one HTML file that needs no other file."""

import base64
import hashlib
import json
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise ImportError("eval.report needs jinja2: python -m pip install 'dipdefense[eval]'") from error

from eval.records import write_whole
from eval.report.accuracy_charts import together
from eval.report.findings import NOT_ADAPTIVE, OWN, findings, own_name
from eval.report.gallery import embed_gallery
from eval.report.line_chart import draw
from eval.report.runs import NOT_FINISHED, Run, find_runs, rows_of
from eval.report.sections import SECTIONS, plain_sections

__all__ = ["render_report", "write_report"]

TOLD = ("evaluation", "ladder")  # kinds that the opening is made from; the next one if there are none of them
COMPARED = "defence"
# the parts of a complete report, and the commands that make them
PARTS = {
    "evaluation": "the table of `dipdefense evaluate`",
    "ladder": "attacks that know the defence: `dipdefense ladder`",
    "defence": "accuracy against eps, clean-robust curves and the detector's ROC: `dipdefense benchmark defence`",
    "iterations": "PSNR, SSIM and accuracy along the fit: `dipdefense benchmark iterations --out FOLDER`",
    "gallery": "the gallery: `dipdefense evaluate --gallery N`",
}


def write_report(run: str | Path, out: str | Path) -> list[Path]:
    """Write the report of a run's folder, or of a folder of such folders, as one HTML file.

    Args:
        run: folder that `dipdefense evaluate`, `ladder`, `demo`, `diagnose` or `benchmark` wrote.
        out: file to make or replace.

    Returns:
        The folders of runs that are not finished; the page names them, too.

    Raises:
        OSError: a file cannot be read, `out` cannot be written.
        ValueError: the folder holds nothing known, or a file in it does not have the format that its name says.
    """
    out = Path(out)
    if out.is_dir():
        raise IsADirectoryError(f"out must be a file, {out} is a folder: name a file in it, such as {out}/report.html")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out must be in a folder that exists, {out.parent} is missing: make it first")
    runs = find_runs(Path(run))
    write_whole(out, render_report(Path(run), runs))
    return [found.folder for found in runs if not found.finished]


def render_report(folder: Path, runs: list[Run]) -> str:
    """The HTML of the report of the runs of a folder; raises as `write_report` does."""
    pages = [_page(run) for run in runs]
    evaluated = [rows_of(run.tables["evaluation"]) for run in runs if "evaluation" in run.tables]
    galleries = [{"run": r.name, **embed_gallery(r.folder, r.gallery)} for r in runs if r.gallery is not None]
    there = {kind for run in runs for kind in run.tables} | ({"gallery"} if galleries else set())
    script = (files("eval.report") / "templates" / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=folder.resolve().name,
            version=version("dipdefense"),
            pages=pages,
            together=[draw(chart) for chart in together(evaluated)],
            galleries=galleries,
            absent=[text for kind, text in PARTS.items() if kind not in there],
            openings=openings(runs),
            warning=NOT_ADAPTIVE,
            unfinished=[f"{run.name} is not finished: {NOT_FINISHED}." for run in runs if not run.finished],
            script=script,
            digest=digest,
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("eval.report"),
        autoescape=True,  # names of files, classes and methods, and cells of tables, come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(run: Run) -> dict[str, Any]:
    sections = [SECTIONS[kind](run) for kind in SECTIONS if kind in run.tables] + plain_sections(run)
    return {
        "name": run.name,
        "config": _config_rows(run.config),
        "sections": [{"section": s, "drawings": [draw(c) for c in s.charts if c.series]} for s in sections],
        "missing": run.missing,
    }


def openings(runs: list[Run]) -> list[list[str]]:
    """Three sentences for each data set, classifier and defence; see `findings`."""
    groups: dict[tuple[str, ...], dict[str, list[list[dict[str, Any]]]]] = {}
    for run in runs:
        for kind in (*TOLD, COMPARED):
            if kind in run.tables and len(run.tables[kind]):
                rows = rows_of(run.tables[kind])
                named, defence = {**run.config, **rows[0]}, own_name(rows)
                subject = tuple(str(named.get(name, "")) for name in ("dataset", "classifier", "weights"))
                group = groups.setdefault((*subject, "" if defence in OWN else defence), {})
                group.setdefault(kind, []).append(rows)
    told = [[rows for kind in TOLD for rows in kinds.get(kind, [])] or kinds[COMPARED] for kinds in groups.values()]
    return [sentences for tables in told if (sentences := findings(tables))]


def _config_rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings of a run that fit into one line each."""
    return [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in config.items()
        if name not in {"attacks", "defences"}
    ]
