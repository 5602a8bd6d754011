"""The claims as data, the rules of the verdicts, and a run of claims that is killed and continued."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dipdefense import FitConfig
from eval.claims.bench import Bench, Settings
from eval.claims.claim import (
    DOCUMENTS,
    SPREAD,
    VERDICTS,
    Claim,
    Estimate,
    Outcome,
    at_least,
    estimate,
    holds,
    matches,
)
from eval.claims.curve_scores import along, at, scores
from eval.claims.documents import CLAIMS
from eval.claims.experiments import EXPERIMENTS
from eval.claims.experiments.two_models import MODELS, settings_of
from eval.claims.runner import benchmark_claims
from eval.claims.tables import claims_page, row_of
from eval.intervals import paired_bootstrap
from eval.noise import gaussian, generator_of
from eval.records import read_records

QUICK = FitConfig(
    architecture_options={"channels": [4, 4], "skip_channels": 0}, input_channels=4, iterations=6, ema=0.5
)
MADE_UP = {
    name: Claim(name, f"says {name}", "1.0", **further)
    for name, further in {"S0-1": {}, "S0-2": {}, "S2-1": {}, "S3-1": {"barred": "no weights"}, "S3-2": {}}.items()
}


def gain_of(seed: int):
    """An experiment: a real fit to a small image with noise."""

    def measure(bench: Bench) -> Outcome:
        clean = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(seed))
        noisy = bench.noisy(clean, 0.1, "image")
        curve = bench.curve(clean, noisy, QUICK)
        gain = estimate([scores(curve)["psnr_last"] - bench.input_scores(clean, noisy)["psnr_in"]])
        return Outcome(
            verdict=at_least(gain, 1.0), protocol="p", ours=f"{gain.mean}", estimate=gain, n=1, table=[scores(curve)]
        )

    return measure


@pytest.mark.parametrize(("document", "count"), [("S0", 24), ("S1", 17), ("S2", 7), ("S3", 15)])
def test_every_claim_of_a_document_is_there_in_order(document, count):
    ids = [name for name in CLAIMS if name.startswith(document)]
    assert ids == [f"{document}-{number}" for number in range(1, count + 1)]


def test_claims_and_experiments_belong_together():
    assert set(EXPERIMENTS) <= set(CLAIMS)
    for name, claim in CLAIMS.items():
        assert claim.id == name
        assert claim.document in DOCUMENTS.values()
        assert claim.says.endswith((".", "?"))
        assert bool(claim.barred or claim.waits) == (name not in EXPERIMENTS), name  # a reason, or an experiment
    figures = {name: [float(text) for text in re.findall(r"\d*\.\d+", claim.theirs)] for name, claim in CLAIMS.items()}
    assert np.mean([b - a for a, b in zip(figures["S0-11"][:-1:2], figures["S0-11"][1::2], strict=True)]) == (
        pytest.approx(1.11, abs=0.005)
    )
    assert np.mean([b - a for a, b in zip(figures["S0-12"][:-1:2], figures["S0-12"][1::2], strict=True)]) == (
        pytest.approx(0.76, abs=0.005)
    )


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (Estimate(1.5, 1.1, 1.9, 5), "better"),
        (Estimate(1.5, 1.0, 2.0, 5), "reproduced"),  # the interval holds theirs
        (Estimate(0.8, 0.6, 1.0, 5), "reproduced"),
        (Estimate(0.8, 0.6, 0.99, 5), "not reproduced"),
        (Estimate(1.0 + 1.01 * SPREAD), "better"),
        (Estimate(1.0 - 0.99 * SPREAD), "reproduced"),
        (Estimate(1.0 - 1.01 * SPREAD), "not reproduced"),
        (Estimate(1.0 + 0.5 * SPREAD, spread=0.4 * SPREAD), "better"),
    ],
)
def test_a_verdict_on_a_figure_of_which_more_is_better(ours, verdict):
    assert at_least(ours, 1.0) == verdict


def test_verdicts_on_exact_figures_and_statements():
    assert [matches(value, 2.0, 0.5) for value in (1.5, 2.5, 2.6)] == ["reproduced", "reproduced", "not reproduced"]
    assert holds(True, True) == "reproduced"
    assert holds(True, False) == "not reproduced"
    assert {at_least(Estimate(value), 0) for value in (-1, 0, 1)} | {holds(False)} < set(VERDICTS)


def test_an_estimate_is_the_mean_with_its_bootstrap_interval():
    values = [1.0, 2.0, 4.0]
    mean, low, high = paired_bootstrap(values, [0.0] * 3)
    assert estimate(values) == Estimate(mean, low, high, 3)
    one = estimate([3.0], spread=0.5)
    assert (one.mean, one.low, one.high, one.n) == (3.0, None, None, 1)
    assert (one.least, one.most) == (2.5, 3.5)


def test_an_unknown_verdict_is_refused():
    with pytest.raises(ValueError, match=r"verdict must be one of reproduced, better, .* got 'maybe'"):
        Outcome(verdict="maybe", protocol="", ours="")


def test_the_scores_of_a_curve():
    rows = [
        (iteration, of, against, decibels + (against == "noisy"), decibels / 100)
        for of, values in (("output", [20.0, 26.0, 24.0]), ("average", [15.0, 25.0, 25.5]))
        for against in ("reference", "noisy")
        for iteration, decibels in zip((10, 20, 30), values, strict=True)
    ]
    curve = pd.DataFrame(rows, columns=["iteration", "of", "against", "psnr", "ssim"])
    assert scores(curve) == {
        **{"psnr_last": 24.0, "psnr_average": 25.5, "psnr_best": 26.0, "best_at": 20, "iterations": 30},
        **{"ssim_last": 0.24, "ssim_average": 0.255, "ssim_best": 0.26},
    }
    assert at(curve, "average", 11) == 15
    assert at(curve, "average", 29, "noisy") == 26.5
    assert at(curve, "output", 20, score="ssim") == 0.26
    assert along(curve, "output", "noisy")["psnr"].tolist() == [21, 27, 25]


@pytest.mark.parametrize("model", MODELS)
def test_the_models_of_the_report_and_their_quick_fits(model, tmp_path):
    run = object()
    full = settings_of(Bench(run, Settings(data=tmp_path, published=True)), model, quick=True)
    assert full == MODELS[model]
    assert (full.iterations, full.jitter) == (2000, 0)
    quick = settings_of(Bench(run, Settings(data=tmp_path)), model, quick=True)
    assert replace(quick, iterations=full.iterations, lr=full.lr) == full
    trial = settings_of(Bench(run, Settings(data=tmp_path, iterations=3)), model, quick=True)
    assert trial == replace(quick, iterations=3)


def test_one_row_for_each_claim(tmp_path):
    settings, seen = Settings(data=Path("data"), seed=3), []
    table = benchmark_claims(
        settings,
        claims=MADE_UP,
        experiments={"S0-1": gain_of(0), "S2-1": gain_of(1)},
        out=tmp_path,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert table["id"].tolist() == list(MADE_UP)
    assert seen == [(1, 2), (2, 2)]
    rows = table.set_index("id")
    assert rows.loc["S3-1", ["verdict", "why"]].tolist() == ["not testable here", "no weights"]
    assert rows.loc["S0-2", "verdict"] == "not tried yet"
    assert rows.loc["S2-1", "command"] == "dipdefense benchmark claims --data DATA --out DIR --only S2-1 --seed 3"
    clean = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    noisy = gaussian(clean[None], 0.1, generator=generator_of(3, "image", "claims"))
    error = (noisy - clean).square().mean().log10().item()
    record = next(each for each in read_records(tmp_path / "records.jsonl") if each["what"] == "curve")
    last = next(r["psnr"] for r in reversed(record["value"]) if (r["of"], r["against"]) == ("output", "reference"))
    assert rows.loc["S0-1", "figure"] == pytest.approx(last + 10 * error, abs=1e-4)
    assert rows.loc["S0-1", "verdict"] == at_least(Estimate(rows.loc["S0-1", "figure"]), 1.0)
    assert (rows.loc[["S0-1", "S2-1"], ["seconds", "processor"]] > 0).all(axis=None)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "claims.csv")[["id", "verdict"]], table[["id", "verdict"]])
    assert not (tmp_path / "unfinished").exists()
    assert pd.read_csv(tmp_path / "S0-1.csv")["psnr_last"].item() == pytest.approx(last)
    page = (tmp_path / "claims.md").read_text()
    assert "| S0-1 | says S0-1 | 1.0 |" in page
    assert "## The survey" in page
    assert "slides" not in page  # none of their claims is here
    counts = Counter(table["verdict"])
    assert all(f"| {verdict} | {counts[verdict]} |" in page for verdict in VERDICTS)


def test_a_killed_run_goes_on_and_shares_measurements(tmp_path):
    class Killed(BaseException):
        pass

    def dies(bench: Bench) -> Outcome:
        gain_of(5)(bench)
        raise Killed

    settings = Settings(data=Path("data"))
    run = {"claims": MADE_UP, "out": tmp_path}
    with pytest.raises(Killed):
        benchmark_claims(settings, experiments={"S0-1": gain_of(0), "S0-2": dies}, **run)
    before = read_records(tmp_path / "records.jsonl")
    assert [record["what"] for record in before] == ["curve", "claim S0-1", "curve"]
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"what": "claim S0-2", "conf')  # the write that it died in
    whole = {"S0-1": gain_of(0), "S0-2": gain_of(5), "S2-1": gain_of(5)}
    table = benchmark_claims(settings, experiments=whole, **run)
    after = read_records(tmp_path / "records.jsonl")
    assert after[:3] == before
    assert [record["what"] for record in after[3:]] == ["claim S0-2", "claim S2-1"]  # no curve is made again
    rows = table.set_index("id")
    assert rows.loc["S0-2", "figure"] == rows.loc["S2-1", "figure"] != rows.loc["S0-1", "figure"]
    assert rows.loc["S2-1", "processor"] >= before[2]["processor"]  # a shared curve counts in both claims
    again = benchmark_claims(settings, experiments=whole, **run)
    pd.testing.assert_frame_equal(again, table)
    assert read_records(tmp_path / "records.jsonl") == after


def test_claims_may_be_added_one_by_one(tmp_path):
    settings, run = Settings(data=Path("data")), {"claims": MADE_UP, "out": tmp_path}
    both = {"S0-1": gain_of(0), "S2-1": gain_of(1)}
    first = benchmark_claims(settings, only=["S2-1"], experiments=both, **run).set_index("id")
    assert first.loc["S0-1", "verdict"] == "not tried yet"
    second = benchmark_claims(settings, only=["S0-1"], experiments=both, **run).set_index("id")
    assert second.loc["S2-1"].equals(first.loc["S2-1"])
    assert second.loc["S0-1", "verdict"] != "not tried yet"


def test_a_page_of_claims_that_were_not_measured():
    claim = Claim("S2-1", "says a | b.", "1 | 2", waits="it needs a filter")
    page = claims_page(pd.DataFrame([row_of(claim, None, Settings(data=Path("data")), None)]))
    assert "| S2-1 | says a / b. | 1 / 2 |  |  | **not tried yet** |  |" in page
    assert "- **S2-1** it needs a filter" in page


def test_what_a_run_refuses(tmp_path):
    settings = Settings(data=Path("data"))
    with pytest.raises(ValueError, match=r"only must be among S0-1, .* got 'S9-1'"):
        benchmark_claims(settings, only=["S0-1", "S9-1"], claims=MADE_UP, experiments={}, out=tmp_path)
    benchmark_claims(settings, claims=MADE_UP, experiments={}, out=tmp_path)
    with pytest.raises(ValueError, match="holds a run with seed 0 where this one has 1"):
        benchmark_claims(replace(settings, seed=1), claims=MADE_UP, experiments={}, out=tmp_path)
