"""What the tables of a data set and a classifier say, in three sentences of plain English."""

from collections.abc import Iterable, Sequence
from typing import Any

from attacks import CONTROLS
from eval.text_tables import percent, radius

__all__ = ["NOT_ADAPTIVE", "OWN", "findings", "own_name"]

Row = dict[str, Any]
NOT_ADAPTIVE = (
    "No attack that knows the defence was run, so nothing can be claimed about an attacker who knows it: run "
    "dipdefense ladder."
)
UNDEFENDED = ("none", "bare")
SMOOTH = "smooth"
OWN = ("default", "dip")  # the defence of this project
# of `benchmark defence`: further ways to use the fit, and detection without a defence
NO_RIVALS = (*UNDEFENDED, *OWN, SMOOTH, "dip_mean", "detector_gated", "noise_level")
WORST = "worst case"  # of a ladder: its row over all rungs
NAMED = 6  # number of attacks that are named


def findings(tables: Sequence[Sequence[Row]]) -> list[str]:
    """What was measured; the strongest attack that does not know the defence; attacks that know it.

    Tables of targeted attacks are left out, since they hold the share of hits.

    Args:
        tables: rows of `evaluate`, `ladder` or `benchmark defence`, all of one data set and classifier.

    Returns:
        Three sentences with the figures of the tables; none if no table is left.
    """
    kept = [_answers(rows) for rows in tables]
    kept = [rows for rows in kept if _own(rows) and not any(row.get("targeted") in (True,) for row in rows)]
    return [_measured(kept), _oblivious(kept), _adaptive(kept)] if kept else []


def _answers(rows: Sequence[Row]) -> list[Row]:
    """The rows of the answer of the defence: of the smoothed classifier the majority of its votes, else one query."""
    kinds = {row.get("query", "single") for row in rows if row["defence"] == SMOOTH}
    answer = "majority" if "majority" in kinds else "single"
    return [row for row in rows if row.get("query", "single") == answer]


def own_name(rows: Sequence[Row]) -> str:
    """The name of the defence that the sentences are about; empty if a comparison lacks that of this project.

    In a table of `evaluate` or `ladder`, which has no strengths, it is the first one.
    """
    names = [row["defence"] for row in rows if row["defence"] not in UNDEFENDED]
    if names and not any("strength" in row for row in rows):
        return str(names[0])
    return next((name for name in OWN if name in names), "")


def _own(rows: Sequence[Row]) -> list[Row]:
    """The rows of the defence; of several strengths the largest, which is the whole fit."""
    found = [row for row in rows if row["defence"] == own_name(rows)]
    strength = max((row.get("strength", 0) for row in found), default=0)
    return [row for row in found if row.get("strength", 0) == strength]


def _measured(tables: Sequence[Sequence[Row]]) -> str:
    rows = [row for table in tables for row in table]
    first, attacked = rows[0], [row for row in rows if _is_attack(row)]
    n = max(row["n"] for row in rows)
    of, by = (
        f" {word} {first[key]}" if key in first else "" for word, key in (("of", "dataset"), ("by", "classifier"))
    )
    text = f"{n} images{of} were classified{by}, "
    text += f"clean and under {_attacks(attacked)}" if attacked else "all of them clean: no attack was run"
    table = next((table for table in tables if any(row["attack"] == "clean" for row in _own(table))), None)
    if table is None:
        return f"{text}."
    clean = next(row for row in _own(table) if row["attack"] == "clean")
    bare = _undefended(_beside(clean, table))
    return f"{text}; of the clean images {_with_and_without(clean, bare)} (95 % intervals in brackets)."


def _oblivious(tables: Sequence[Sequence[Row]]) -> str:
    found = [
        (row, table) for table in tables for row in _own(table) if _is_attack(row) and row["crafted_on"] != "defended"
    ]
    if not found:
        return "No attack was run that does not know the defence."
    row, table = min(found, key=lambda pair: pair[0]["accuracy"])
    beside = _beside(row, table)
    text = f"Under the strongest attack that does not know the defence, {_attack(row)}, {row['n']} images, "
    text += _with_and_without(row, _undefended(beside))
    others = [other for other in beside if other["defence"] != row["defence"]]
    rivals = [other for other in others if other["defence"].partition("+")[0] not in NO_RIVALS]  # NAME+VIEWS
    if rivals:
        best = max(rivals, key=lambda other: other["accuracy"])
        strength = f" {best['strength']:g}" if "strength" in best else ""
        text += f"; the best of the other defences, {best['defence']}{strength}, keeps {_share(best)}"
    return f"{text}."


def _adaptive(tables: Sequence[Sequence[Row]]) -> str:
    found = [row for table in tables for row in _own(table) if row["crafted_on"] == "defended"]
    if not found:
        return NOT_ADAPTIVE
    row = min(found, key=lambda row: (row["accuracy"], row["attack"] != WORST))
    attack = _attack({**row, "attack": "all attacks of the ladder together"} if row["attack"] == WORST else row)
    return f"Against an attacker who knows the defence ({attack}) it keeps {_share(row)} of {row['n']} images right."


def _is_attack(row: Row) -> bool:
    return row["attack"] not in ("clean", WORST, *CONTROLS)


def _beside(row: Row, table: Iterable[Row]) -> list[Row]:
    """The rows of the other defences on the same images."""
    names = ("attack", "eps", "crafted_on")  # compared as text, since a missing value is NaN
    return [other for other in table if all(str(other[name]) == str(row[name]) for name in names)]


def _undefended(rows: Iterable[Row]) -> Row | None:
    return next((row for row in rows if row["defence"] in UNDEFENDED), None)


def _with_and_without(row: Row, bare: Row | None) -> str:
    named = "" if row["defence"] in OWN else f" {row['defence']}"
    with_it = f"{_share(row)} are classified right with the defence{named}"
    return with_it if bare is None else f"{with_it} and {_share(bare)} without it"


def _share(row: Row) -> str:
    return f"{percent(row['accuracy'])} % ({percent(row['ci_low'])} to {percent(row['ci_high'])})"


def _attacks(rows: Iterable[Row]) -> str:
    """The names of attacks, and their radii."""
    rows = list(rows)
    names = list(dict.fromkeys(row["attack"] for row in rows))
    listed = f"{len(names)} attacks" if len(names) > NAMED else ", ".join(names)
    radii = list(dict.fromkeys(filter(None, (radius(row["eps"]) for row in rows))))
    return f"{listed} with eps {', '.join(radii)}" if radii else listed


def _attack(row: Row) -> str:
    eps = radius(row["eps"])
    return f"{row['attack']} with eps {eps}" if eps else str(row["attack"])
