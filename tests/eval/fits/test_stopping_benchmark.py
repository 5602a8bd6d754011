"""The benchmark of stopping rules against fits under each rule, and its records."""

import dataclasses
import json

import pandas as pd
import pytest
import torch

from dipdefense import FitConfig, fit
from eval.fits.rule_watcher import Watch
from eval.fits.stopping import benchmark_stopping, summarise_stopping
from eval.metrics import psnr
from eval.noise import LEVELS, NOISES

QUICK = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=60)
RULES = {
    "fixed": {},
    "wmv": {"window": 5, "patience": 10},
    "discrepancy": {},
    "sure": {"patience": 15},
    "validation": {"patience": 15},
}
CELL = {"noises": ["gaussian"], "levels": ["high"]}


def images(n: int = 3) -> list[tuple[str, torch.Tensor]]:
    """In float64: rounding of float32 alone can move the least of a statistic."""
    coarse = torch.rand(n, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [
        (f"{i}.png", image) for i, image in enumerate(torch.nn.functional.interpolate(coarse, (16, 16), mode="nearest"))
    ]


def records(folder) -> pd.DataFrame:
    return pd.DataFrame(map(json.loads, (folder / "records.jsonl").read_text().splitlines()))


def test_rules_fare_as_in_fits_of_their_own(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(
        NOISES, "gaussian", lambda x, level, generator: seen.append((x, level)) or noisy[len(seen) % 3 - 1]
    )
    clean = torch.stack([image for _, image in images()])
    noisy = (clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[
        :, None
    ]
    table = benchmark_stopping(images(), RULES, QUICK, out=tmp_path, **CELL)
    assert [level for _, level in seen] == [LEVELS["gaussian"]["high"]] * 6  # first the options of all rules
    made = records(tmp_path)
    assert len(made) == 15
    curve = torch.zeros(3, 60, dtype=torch.float64)

    def watch(progress):
        curve[progress.index, progress.iteration - 1] = psnr(progress.average, clean[progress.index])

    fit(noisy[:, 0], QUICK, callback=watch)
    for rule, group in made.groupby("rule", sort=False):
        options = group["options"].iloc[0]
        if rule in ("discrepancy", "sure"):
            assert options["sigma"] == pytest.approx((noisy[:, 0] - clean).square().mean().sqrt().item(), abs=1e-5)
        result = fit(noisy[:, 0], dataclasses.replace(QUICK, stopping=rule, stopping_options=options))
        assert group["chosen"].tolist() == result.chosen.tolist()
        assert group["finished"].tolist() == result.stopped.tolist()
        assert group["psnr"].tolist() == pytest.approx(psnr(result.reconstruction, clean).tolist(), abs=0.01)
        assert group["oracle"].tolist() == (curve.argmax(1) + 1).tolist()
        assert group["oracle_psnr"].tolist() == pytest.approx(curve.amax(1).tolist(), abs=0.01)
        assert (group["long_enough"] == (3 * group["oracle"] <= 60)).all()
        assert (group["overhead"] > 0).all()
        assert group["past"].isna().tolist() == (~result.stopped).tolist()
        for past, end, chosen in zip(group["past"], result.iterations, result.chosen, strict=True):
            assert pd.isna(past) or 0 <= end - chosen - past < 10  # rows leave at the next look
    assert made[made["rule"] == "wmv"]["past"].dropna().eq(10).all()
    assert table["rule"].tolist() == [*RULES, *RULES]
    assert pd.read_csv(tmp_path / "summary.csv")["gap"].tolist() == pytest.approx(table["gap"].tolist())


def test_a_run_goes_on_where_it_was_and_adds_rules(tmp_path):
    few = {"fixed": {}, "emv": {"patience": 10}}
    config = dataclasses.replace(QUICK, iterations=15)
    seen = []
    first = benchmark_stopping(images(), few, config, out=tmp_path, batch_size=2, **CELL)
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # killed while it wrote
    again = benchmark_stopping(
        images(), few, config, out=tmp_path, batch_size=2, progress=lambda *n: seen.append(n), **CELL
    )
    assert seen == [(6, 6)]
    pd.testing.assert_frame_equal(again.drop(columns="overhead"), first.drop(columns="overhead"))
    benchmark_stopping(images(), few, config, out=tmp_path, progress=lambda *n: seen.append(n), **CELL)
    assert len(seen) == 1  # nothing was left to do
    more = few | {"blind_discrepancy": {}}
    benchmark_stopping(images(), more, config, out=tmp_path, **CELL)
    assert records(tmp_path)["rule"].value_counts().to_dict() == {"fixed": 3, "emv": 3, "blind_discrepancy": 3}
    for changed, message in (
        ({"seed": 1}, "seed 0 where this one has 1"),
        ({"rules": {"emv": {"patience": 20}}}, r"rules.emv under \w+ noise, \w+.patience 10 where this one has 20"),
        ({"images": [("0.png", images()[0][1] / 2), *images()[1:]]}, "images.0.png [0-9a-f]{16} where this one has"),
    ):
        arguments = {"images": images(), "rules": few, "config": config, "out": tmp_path, **CELL} | changed
        with pytest.raises(ValueError, match=f"out .* holds a run with {message}.*: name another folder"):
            benchmark_stopping(**arguments)
    assert len(records(tmp_path)) == 9


def test_fits_that_are_too_short_are_repeated(tmp_path):
    """Under weak noise the best iterate comes late: twice the iterations, then the cap."""
    config = dataclasses.replace(QUICK, iterations=10)
    rules = {"fixed": {}, "validation": {}}
    table = benchmark_stopping(images(2), rules, config, out=tmp_path, longest=30, noises=["shot"], levels=["low"])
    made = records(tmp_path)
    assert made["iterations"].isin([10, 20, 30]).all()
    assert ((made["iterations"] == 30) | made["long_enough"]).all()
    assert (made["iterations"] == 30).any()
    assert table["too_short"].iloc[0] == (~made[made["rule"] == "fixed"]["long_enough"]).sum()


def test_the_watch_follows_chunks_workers_and_memory_that_runs_out():
    clean = torch.stack([image for _, image in images(5)]).double()
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rules = {"emv": {"patience": 5}, "blind_discrepancy": {}}
    whole = Watch(clean, noisy, rules, 60)
    fit(noisy, QUICK, callback=whole)
    assert whole.overhead("emv", 1e9) < 1e-3
    calls = []

    def greedy(x, index):
        calls.append(1)
        if len(x) > 2 and len(calls) >= 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    parts = Watch(clean, noisy, rules, 60)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.warns(UserWarning, match="out of memory"):
            fit(noisy, QUICK, degrade=greedy, callback=parts)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(parts.psnr, whole.psnr, atol=1e-3, rtol=0)
    assert (parts.chosen["blind_discrepancy"] > 0).all()


def test_images_that_diverge_leave_the_watch():
    clean = torch.stack([image for _, image in images(2)])
    calls = []

    def hopeless(output, observed, index):
        calls.append(1)
        error = (output - observed).square().flatten(1).mean(1)
        return error * torch.where((index == 0) & torch.tensor(len(calls) > 15), torch.nan, 1.0)

    config = dataclasses.replace(QUICK, iterations=150)
    watch = Watch(clean, clean, {"emv": {"patience": 500}}, 150)
    with pytest.warns(UserWarning, match="keeps diverging"):
        fit(clean, config, loss=hopeless, callback=watch)
    assert watch.psnr[0, -1] == -torch.inf
    assert watch.psnr[1].isfinite().all()
    assert watch.chosen["emv"][0] <= 20


def test_the_summary_by_hand():
    def record(rule, image, level, gap, past):
        values = {"oracle_psnr": 30.0, "psnr": 30.0 - gap, "gap": gap, "past": past, "finished": past is not None}
        head = {"rule": rule, "image": image, "noise": "gaussian", "level": level}
        return head | values | {"long_enough": gap < 3, "overhead": 0.1}

    rows = [("a", "low", 1.0, 10), ("a", "high", 3.0, None), ("b", "low", 0.0, 30), ("b", "high", 0.0, 20)]
    table = summarise_stopping([record("emv", *row) for row in rows])
    total = table.iloc[0]
    assert total[["rule", "noise", "level", "n"]].tolist() == ["emv", "all", "all", 4]
    assert total[["gap", "gap_max", "past_mean", "past_max"]].tolist() == [1.0, 3.0, 20.0, 30.0]
    assert total[["unfinished", "too_short", "overhead"]].tolist() == [1, 1, pytest.approx(0.1)]
    assert 0 <= total["ci_low"] < 1 < total["ci_high"] <= 2
    assert table[["level", "gap"]].values.tolist() == [["all", 1.0], ["low", 0.5], ["high", 1.5]]
    alone = summarise_stopping([record("emv", *rows[0])]).iloc[0]
    assert alone["gap"] == 1
    assert pd.isna(alone["ci_low"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": {"magic": {}}}, "rules must be among fixed, wmv, .*, got magic"),
        ({"rules": {}}, "rules must be among fixed, wmv, .*, got none"),
        ({"noises": ["rain"]}, "noises must be among gaussian, .*, got rain"),
        ({"levels": ["extreme"]}, "levels must be among low, medium, high, got extreme"),
        ({"images": []}, "images must be at least one"),
        ({"images": [*images(1), ("b", torch.zeros(3, 8, 8))]}, "of one shape: crop them"),
        ({"images": images(1) * 2}, "images must have different names"),
        ({"images": [("a", torch.full((3, 8, 8), 2.0))]}, r"a must be within \[0, 1\]"),
        ({"config": dataclasses.replace(QUICK, stopping="emv")}, "config must stop by the rule fixed, got 'emv'"),
        ({"longest": 5}, "longest must be at least the 60 iterations of the fit, got 5"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rules": {"wmv": {}}}, "iterations must be at least the 100 iterates that wmv sees"),
        ({"rules": {"emv": {"window": 3}}}, "emv must be given options among"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_fitted(change, message, tmp_path):
    arguments = {"images": images(1), "rules": {"fixed": {}}, "config": QUICK, **CELL, **change}
    with pytest.raises(ValueError, match=message):
        benchmark_stopping(**arguments, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_settings_of_one_rule(tmp_path):
    rules = {"emv": {"patience": 5}, "emv:patient": {"patience": 40}}
    benchmark_stopping(images(1), rules, QUICK, out=tmp_path, **CELL)
    past = {row["rule"]: row["past"] for _, row in records(tmp_path).iterrows()}
    assert past["emv"] == 5
    assert past["emv:patient"] != 5
