"""The command `benchmark claims`: without data, with exact answers on real data, and a short trial of the others."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from dipdefense.cli import app
from eval.claims.claim import VERDICTS
from eval.claims.documents import CLAIMS
from eval.claims.experiments import EXPERIMENTS
from eval.records import read_records

# Benchmarks of their own, which are tested elsewhere, and whose cost no number of iterations bounds.
LONG = {"S0-3", "S0-4", "S0-5", "S0-20", "S3-3", "S3-4", "S3-6", "S3-8", "S3-11", "S3-13"}


def claims(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["benchmark", "claims", *map(str, arguments)])
    assert result.exit_code == 0, result.exception
    return result.stdout


def test_claims_that_need_no_data(tmp_path):
    out = tmp_path / "run"
    printed = claims("--data", tmp_path, "--only", "S2-2,S3-2,S0-7,S3-7", "--out", out)
    assert "2217831" in printed
    rows = pd.read_csv(out / "claims.csv").set_index("id")
    assert rows.index.tolist() == list(CLAIMS)
    assert rows.loc["S2-2", ["theirs", "ours", "verdict"]].tolist() == ["2217831", "2217831", "reproduced"]
    assert rows.loc[["S3-2", "S0-7", "S3-7", "S0-6", "S0-8"], "verdict"].tolist() == [
        *("reproduced", "not testable here", "not testable here", "not tried yet", "not tried yet"),
    ]
    assert pd.read_csv(out / "S3-2.csv")["difference"].abs().max() < 1e-7
    assert not (out / "S0-8.csv").exists()
    before = read_records(out / "records.jsonl")
    assert [record["what"] for record in before] == ["claim S2-2", "claim S3-2", "claim S0-7"]
    again = json.loads(claims("--data", tmp_path, "--only", "S2-2", "--out", out, "--json"))
    assert [row["id"] for row in again] == ["S2-2"]
    assert read_records(out / "records.jsonl") == before


def test_an_unknown_claim_and_a_missing_folder_are_refused(tmp_path):
    refused = CliRunner().invoke(app, ["benchmark", "claims", "--data", str(tmp_path), "--only", "S7-1"])
    assert isinstance(refused.exception, ValueError)
    assert "only must be among S0-1" in str(refused.exception)
    arguments = ["--data", str(tmp_path), "--only", "S2-5", "--out", str(tmp_path / "run")]
    assert isinstance(CliRunner().invoke(app, ["benchmark", "claims", *arguments]).exception, OSError)


@pytest.mark.data
def test_claims_with_exact_answers(tmp_path, data):
    claims("--data", data, "--only", "S0-24,S1-13,S2-5,S3-1", "--iterations", 2, "--out", tmp_path)
    rows = pd.read_csv(tmp_path / "claims.csv").set_index("id")
    assert (rows.loc[["S0-24", "S1-13", "S2-5", "S3-1"], "verdict"] == "reproduced").all()
    zebra = pd.read_csv(tmp_path / "S2-5.csv")
    assert (zebra["theirs"] - zebra["ours"]).abs().max() < 0.006


@pytest.mark.slow
@pytest.mark.data
def test_a_trial_of_the_other_claims(tmp_path: Path, data: Path):
    """Two iterations of small images say nothing of a claim; this is whether each can be measured."""
    chosen = [name for name in EXPERIMENTS if name not in LONG]
    claims("--data", data, "--only", ",".join(chosen), "--size", 64, "--iterations", 2, "--out", tmp_path)
    rows = pd.read_csv(tmp_path / "claims.csv").set_index("id").loc[chosen]
    assert rows["verdict"].isin(VERDICTS[:4]).all()
    assert rows[["protocol", "ours", "command"]].notna().all(axis=None)
    assert (rows["command"].str.contains("--size 64 --iterations 2")).all()
    without_details = {name for name in chosen if not (tmp_path / f"{name}.csv").exists()}
    assert without_details == set()
