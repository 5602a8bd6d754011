"""The table of claims, as rows and as a page."""

import pandas as pd

from eval.claims.bench import Settings, plain
from eval.claims.claim import DOCUMENTS, VERDICTS, Claim, Outcome
from eval.records import Record

__all__ = ["claims_page", "row_of"]


def row_of(claim: Claim, outcome: Outcome | None, settings: Settings, record: Record | None) -> Record:
    """One row of the table; the outcome and its record are None for a claim that was not measured."""
    head: Record = {"id": claim.id, "document": claim.document, "claim": claim.says, "theirs": claim.theirs}
    if outcome is None or record is None:
        verdict = VERDICTS[3] if claim.barred else VERDICTS[4]
        why = claim.barred or claim.waits or "it was not measured in this run"
        rest: Record = dict.fromkeys(("protocol", "ours", "figure", "ci_low", "ci_high", "n", "seeds"))
        return head | rest | {"verdict": verdict, "why": why, "seconds": None, "processor": None, "command": ""}
    figure = outcome.estimate
    return head | {
        "protocol": outcome.protocol,
        "ours": outcome.ours,
        "figure": None if figure is None else figure.mean,
        "ci_low": None if figure is None else figure.low,
        "ci_high": None if figure is None else figure.high,
        "n": outcome.n or None,
        "seeds": outcome.seeds or (str(settings.seed) if outcome.n else ""),
        "verdict": outcome.verdict,
        "why": outcome.why,
        "seconds": record["seconds"],
        "processor": record["processor"],
        "command": command_of(claim.id, settings),
    }


def command_of(name: str, settings: Settings) -> str:
    """The command that measures a claim again, with the settings that are not the usual ones."""
    usual = Settings(data=settings.data)
    words = ["dipdefense benchmark claims --data DATA --out DIR --only", name]
    for option in ("size", "iterations", "seed", "device"):
        if (value := getattr(settings, option)) != getattr(usual, option):
            words += [f"--{option}", str(value)]
    return " ".join([*words, *(["--published"] if settings.published else [])])


def claims_page(table: pd.DataFrame) -> str:
    """The table as Markdown: verdicts counted, then each document's claims, then what was done for each."""
    counts = table["verdict"].value_counts()
    lines = ["| verdict | claims |", "|---|---|"]
    lines += [f"| {verdict} | {counts.get(verdict, 0)} |" for verdict in VERDICTS]
    for document in DOCUMENTS.values():
        rows = plain(table[table["document"] == document])
        if not rows:
            continue
        lines += ["", f"## The {document}", ""]
        lines += ["| id | claim | theirs | ours | n | verdict | processor, s |", "|---|---|---|---|---|---|---|"]
        lines += map(_line, rows)
        lines += ["", *map(_protocol, rows)]
    return "\n".join(lines) + "\n"


def _line(row: Record) -> str:
    seconds = "" if row["processor"] is None else f"{row['processor']:.3g}"
    n = "" if row["n"] is None else f"{row['n']:.0f}"
    cells = (row["id"], row["claim"], row["theirs"], row["ours"] or "", n, f"**{row['verdict']}**", seconds)
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _protocol(row: Record) -> str:
    text = " ".join(part for part in (row["protocol"], row["why"]) if part)
    return f"- **{row['id']}** {text}"
