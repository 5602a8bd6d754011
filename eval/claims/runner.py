"""Measure claims one after the other; a killed run goes on where it was.

The folder of a run holds `config.json` (its description), `records.jsonl` (every measurement and every finished claim),
`claims.csv`, `claims.md`, and ID.csv with the details of each claim. Plots, and measurements that are benchmarks of
their own, have a folder each below `runs/`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd

from dipdefense.arguments import check_known
from eval.claims.bench import KEY, Bench, Settings
from eval.claims.claim import Claim, Estimate, Outcome
from eval.claims.documents import CLAIMS
from eval.claims.experiments import EXPERIMENTS
from eval.claims.tables import claims_page, row_of
from eval.records import Record, Run, made_with, write_whole

__all__ = ["benchmark_claims"]

Experiment = Callable[[Bench], Outcome]


def benchmark_claims(
    settings: Settings,
    *,
    only: Sequence[str] = (),
    claims: Mapping[str, Claim] = CLAIMS,
    experiments: Mapping[str, Experiment] = EXPERIMENTS,
    out: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Measure claims and compare each with the figure of its document.

    Args:
        settings: the data and what all measurements have in common.
        only: ids of claims; all if empty.
        claims: the claims by id.
        experiments: how each is measured; one without an experiment is `not tried yet`.
        out: folder of the run, made if missing; a killed run is continued there, and claims may be added.
        progress: called with (claims measured, in all).

    Returns:
        One row per claim, in the order of the documents, also of those that were not measured: `id, document, claim,
        theirs, protocol, ours`; `figure` with `ci_low, ci_high`, a 95 % bootstrap interval over images; `n, seeds,
        verdict, why`; `seconds, processor` (time by the wall, and of the processor), where claims that share a
        measurement count it each; `command`.

    Raises:
        ValueError: an unknown claim, a folder that holds another run.
        OSError: data are missing, the folder cannot be written.
    """
    for name in only:
        check_known("only", name, claims, several=True)
    shared = {name: str(value) if name == "data" else value for name, value in asdict(settings).items()}
    described = {
        "run": "benchmark claims",
        **shared,
        **made_with("dipdefense", "torch", "scikit-image", "torchattacks"),
    }
    run = Run(out, KEY, described)
    run.begin()
    bench = Bench(run, settings)
    wanted = [name for name in only or claims if name in experiments and not claims[name].barred]
    table = _write(run, claims, settings)
    for number, name in enumerate(wanted, 1):
        bench.once(f"claim {name}", {}, partial(_measured, experiments[name], bench))
        table = _write(run, claims, settings)
        if progress is not None:
            progress(number, len(wanted))
    run.end()
    return table


def _measured(experiment: Experiment, bench: Bench) -> Record:
    return asdict(experiment(bench))


def _write(run: Run, claims: Mapping[str, Claim], settings: Settings) -> pd.DataFrame:
    """Write all tables of what is measured so far, and return that of the claims."""
    rows = []
    for claim in claims.values():
        record = _finished(run, claim)
        rows.append(row_of(claim, None if record is None else _outcome_of(record["value"]), settings, record))
        if record is not None and record["value"]["table"]:
            details = pd.DataFrame(record["value"]["table"])
            write_whole(run.folder / f"{claim.id}.csv", details.to_csv(index=False))
    table = pd.DataFrame(rows)
    write_whole(run.folder / "claims.csv", table.to_csv(index=False))
    write_whole(run.folder / "claims.md", claims_page(table))
    return table


def _finished(run: Run, claim: Claim) -> Record | None:
    """The record of a claim that was measured."""
    head = Bench.head(f"claim {claim.id}", {})
    return None if run.missing([head]) else run.records([head])[0]


def _outcome_of(value: Record) -> Outcome:
    """An outcome from the plain values of its record."""
    estimate = value["estimate"]
    return Outcome(**{**value, "estimate": None if estimate is None else Estimate(**estimate)})
