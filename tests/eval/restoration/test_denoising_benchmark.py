"""The denoising benchmark against scikit-image's scores and fits of its own, its records, and what it refuses."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import eval.restoration.denoising
from dipdefense import FitConfig, denoise, fit
from dipdefense.restoration.presets import SMALL as PRESETS
from eval import benchmark_denoising
from eval.metrics import psnr
from eval.noise import NOISES, gaussian, generator_of
from eval.restoration.candidates import CANDIDATES, fit_candidates
from eval.restoration.denoisers import DENOISERS, estimated_sigma
from eval.restoration.denoising import DENOISE, METHODS
from eval.restoration.denoising_tables import paired_scores, score_table, summarise_scores

QUICK = FitConfig(
    architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=40, ema=0.8
)
SIGMA = 25 / 255
FILTERS = ["noisy", "gaussian", "median"]


def images(n: int = 2, sides: tuple[int, int] = (16, 20)) -> list[tuple[str, torch.Tensor]]:
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return [(f"{i}.png", torch.nn.functional.interpolate(image[None], sides)[0]) for i, image in enumerate(coarse)]


def records(folder) -> pd.DataFrame:
    return pd.DataFrame(map(json.loads, (folder / "records.jsonl").read_text().splitlines()))


@pytest.fixture
def spied(monkeypatch):
    """What every filter was given: name -> list of (noisy, sigma)."""
    seen: dict[str, list] = {}
    for name in FILTERS:
        apply = DENOISERS[name]

        def spy(image, sigma, name=name, apply=apply):
            seen.setdefault(name, []).append((image.copy(), sigma))
            return apply(image, sigma)

        monkeypatch.setitem(DENOISERS, name, spy)
    return seen


def test_identical_noise_and_the_scores_of_scikit_image(tmp_path, spied, monkeypatch):
    fitted = []
    monkeypatch.setattr(
        eval.restoration.denoising,
        "fit_candidates",
        lambda *arguments: fitted.append(arguments) or fit_candidates(*arguments),
    )
    table = benchmark_denoising(images(), [*FILTERS, "dip"], QUICK, sigma=SIGMA, out=tmp_path)
    made = records(tmp_path).set_index(["image", "method"])
    clean = dict(images())
    for i, name in enumerate(clean):
        noisy = spied["noisy"][i][0]
        reference = clean[name].permute(1, 2, 0).double().numpy()
        assert (noisy.min(), noisy.max()) != (noisy.clip(0, 1).min(), noisy.clip(0, 1).max())  # not clipped
        assert np.array_equal(spied["gaussian"][i][0], noisy)
        assert np.array_equal(spied["median"][i][0], noisy)
        assert np.array_equal(fitted[0][1][i].permute(1, 2, 0).double().numpy(), noisy)
        assert (noisy - reference).std() == pytest.approx(SIGMA, rel=0.1)
        assert spied["gaussian"][i][1] == SIGMA
        for method in FILTERS:
            filtered = DENOISERS[method](noisy, SIGMA)
            row = made.loc[name, method]
            assert row["psnr"] == pytest.approx(
                peak_signal_noise_ratio(reference, filtered.clip(0, 1), data_range=1), abs=1e-4
            )
            assert row["psnr_unclipped"] == pytest.approx(
                peak_signal_noise_ratio(reference, filtered, data_range=1), abs=1e-4
            )
            similarity = structural_similarity(
                reference,
                filtered.clip(0, 1),
                channel_axis=-1,
                data_range=1,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            assert row["ssim"] == pytest.approx(similarity, abs=1e-4)
    assert table.set_index("method").loc["noisy", "psnr"] > table.set_index("method").loc["noisy", "psnr_unclipped"]


def test_candidates_are_those_of_the_fit_and_see_no_reference():
    # In float64: a stopped image leaves, and in float32 a fit amplifies the rounding that differs from then on.
    clean = torch.stack([image for _, image in images()]).double()
    noisy = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    config = dataclasses.replace(QUICK, iterations=120, lr=0.04)
    made = fit_candidates(clean, noisy, config, 3)
    other = fit_candidates(torch.zeros_like(clean), noisy, config, 3)
    best = torch.zeros(2, 120, dtype=torch.float64)

    def watch(state):
        best[state.index, state.iteration - 1] = psnr(state.average, clean[state.index])

    whole = fit(noisy, config, seed=3, callback=watch)
    stopped = fit(noisy, dataclasses.replace(config, stopping="blind_discrepancy"), seed=3)
    last = fit(noisy, dataclasses.replace(config, ema=0.0), seed=3)
    for i in range(2):
        for name in CANDIDATES:
            if name != "dip_oracle":
                assert torch.equal(made[name][i][0], other[name][i][0])
                assert made[name][i][2] == other[name][i][2]
        assert torch.equal(made["dip_ema"][i][0], whole.reconstruction[i])
        assert torch.equal(made["dip"][i][0], last.reconstruction[i])
        assert made["dip_blind_stop"][i][2] == stopped.chosen[i]
        torch.testing.assert_close(made["dip_blind_stop"][i][0], stopped.reconstruction[i], atol=1e-7, rtol=0)
        assert made["dip_oracle"][i][2] == best[i].argmax() + 1
        assert psnr(made["dip_oracle"][i][0][None], clean[i : i + 1]).item() == pytest.approx(best[i].max().item())
        share = stopped.chosen[i].item() / 120
        assert made["dip_blind_stop"][i][1] == pytest.approx(made["dip"][i][1] * share)
    assert (stopped.chosen < 120).any()


def test_the_average_of_runs(tmp_path):
    benchmark_denoising(images(1), ["dip_average"], QUICK, sigma=SIGMA, seeds=2, runs=3, out=tmp_path)
    benchmark_denoising(images(1), ["noisy"], QUICK, sigma=SIGMA, seeds=2, out=tmp_path)
    made = records(tmp_path).set_index(["method", "seed"])
    generator = generator_of(1, "0.png", "denoising")
    noisy = gaussian(images(1)[0][1][None], SIGMA, generator=generator, clip=False)
    mean = torch.stack([fit(noisy, QUICK, seed=seed).reconstruction for seed in (3, 4, 5)]).mean(0)
    expected = psnr(mean, images(1)[0][1][None]).item()
    assert made.loc[("dip_average", 1), "psnr"] == pytest.approx(expected, abs=1e-3)
    assert made.loc[("noisy", 0), "psnr"] != made.loc[("noisy", 1), "psnr"]  # every seed has its own noise


def test_a_run_goes_on_where_it_was_and_adds_methods(tmp_path, monkeypatch):
    fits, seen = [], []
    monkeypatch.setattr(
        eval.restoration.denoising,
        "fit_candidates",
        lambda *arguments: fits.append(len(arguments[0])) or fit_candidates(*arguments),
    )
    run = {"references": images(3), "config": QUICK, "sigma": SIGMA, "out": tmp_path, "runs": 1, "batch_size": 2}
    first = benchmark_denoising(methods=["median", "dip", "dip_ema"], **run)
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 9
    assert fits == [2, 1]
    (tmp_path / "records.jsonl").write_text("".join(lines[:6]) + lines[6][:20])  # killed while it wrote
    again = benchmark_denoising(methods=["median", "dip", "dip_ema"], progress=lambda *n: seen.append(n), **run)
    assert fits == [2, 1, 1]
    assert seen == [(9, 9)]
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), first.drop(columns="seconds"))
    benchmark_denoising(methods=["median", "dip", "noisy"], **run)
    assert len(fits) == 3  # a filter that is new costs no fit
    assert len(records(tmp_path)) == 12
    for changed, message in (
        ({"sigma": 0.2}, "sigma 0.0980392 where this one has 0.2"),
        ({"config": dataclasses.replace(QUICK, iterations=7)}, r"methods.dip.fit.iterations \d+ where this one has 7"),
        ({"references": [("0.png", images(1)[0][1] / 2)]}, "images.0.png [0-9a-f]{16} where"),
    ):
        with pytest.raises(ValueError, match=f"out .* holds a run with {message}.*: name another folder"):
            benchmark_denoising(methods=["median", "dip"], **run | changed)
    assert len(records(tmp_path)) == 12
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["settings"] == {
        **{"sigma": SIGMA, "level": None, "clip": False, "noisy": "gaussian", "seeds": 1, "runs": 1},
        "fit": dataclasses.asdict(QUICK),
    }
    assert [row["image"] for row in result["scores"] if row["method"] == "median"] == [
        "0.png",
        "1.png",
        "2.png",
        "mean",
    ]
    names = {
        "config.json",
        "records.jsonl",
        "scores.csv",
        "summary.csv",
        "paired.csv",
        "results.json",
        "contact_sheet.jpg",
    }
    assert {path.name for path in tmp_path.iterdir()} == names | {"pictures"}
    assert (tmp_path / "contact_sheet.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_real_pairs_of_several_sizes_and_kinds(tmp_path, spied):
    """Sigma is estimated, and the methods say so; `noisy` is what came in."""
    pairs = [("a.png", torch.rand(1, 16, 16)), ("b.png", torch.rand(3, 20, 16)), ("c.png", torch.rand(1, 16, 16))]
    shots = [(image + 0.1 * torch.randn(image.shape)).clamp(0, 1) for _, image in pairs]
    table = benchmark_denoising(
        pairs, ["noisy", "median", "dip_ema", "dip_average"], QUICK, noisy=shots, seeds=2, runs=1, out=tmp_path
    )
    assert table["method"].tolist() == ["noisy", "median:estimated", "dip_ema", "dip_average"]
    assert table["psnr_spread"].iloc[:2].tolist() == [0, 0]
    given = {array.tobytes() for array, _ in spied["noisy"]}
    assert given == {shot.permute(1, 2, 0).double().numpy().tobytes() for shot in shots}
    assert [sigma for _, sigma in spied["median"]] == [estimated_sigma(array) for array, _ in spied["median"]]
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert scores["image"].iloc[[0, 4, 8, 12]].tolist() == ["a.png", "b.png", "c.png", "mean"]
    assert scores["sigma"].notna().sum() == 6
    told = benchmark_denoising(pairs, ["median", "median:estimated"], QUICK, noisy=shots, sigma=0.1, out=tmp_path)
    assert told["method"].tolist() == ["median", "median:estimated"]
    assert spied["median"][-1][1] == 0.1


@pytest.mark.parametrize(("noise", "level"), [("impulse", 0.2), ("shot", 20.0), ("speckle", 0.3), ("camera", 300.0)])
def test_other_noise_is_that_of_its_name_and_nobody_is_told_a_sigma(tmp_path, spied, noise, level):
    options = {"noise": noise, "level": level, "out": tmp_path, "runs": 1}
    table = benchmark_denoising(images(1), ["noisy", "median", "dip"], QUICK, **options)
    assert table["method"].tolist() == ["noisy", "median:estimated", "dip"]
    (name, clean), given = images(1)[0], spied["noisy"][0][0]
    expected = NOISES[noise](clean[None], level, generator=generator_of(0, name, "denoising"))[0]
    assert np.array_equal(given, expected.permute(1, 2, 0).double().numpy())
    assert spied["median"][0][1] == estimated_sigma(given)
    result = json.loads((tmp_path / "results.json").read_text())
    assert (result["settings"]["noisy"], result["settings"]["level"]) == (noise, level)
    told = benchmark_denoising(images(1), ["median"], QUICK, sigma=0.1, **options)
    assert told["method"].tolist() == ["median"]
    assert spied["median"][-1][1] == 0.1
    benchmark_denoising(images(1), ["noisy"], QUICK, **options | {"level": level / 2, "out": tmp_path / "other"})
    assert len(spied["noisy"]) == 2  # another level is another image
    with pytest.raises(ValueError, match=f"holds a run with level {level:g} where this one has {level / 2:g}: name"):
        benchmark_denoising(images(1), ["noisy"], QUICK, **options | {"level": level / 2})


def test_clipped_noise(tmp_path, spied):
    benchmark_denoising(images(), ["noisy"], QUICK, sigma=0.3, clip=True, out=tmp_path)
    noisy = spied["noisy"][0][0]
    assert (noisy.min(), noisy.max()) == (0, 1)
    assert records(tmp_path)["psnr"].equals(records(tmp_path)["psnr_unclipped"])


def test_tables_by_hand():
    def record(image, method, seed, decibels):
        scores = {"psnr": decibels, "ssim": 0.5 + seed / 10, "psnr_unclipped": decibels - 1, "seconds": 2.0}
        return {"image": image, "method": method, "seed": seed, **scores, "iteration": None, "sigma": None}

    made = [record("a", "x", 0, 20.0), record("b", "x", 0, 24.0), record("a", "x", 1, 22.0), record("b", "x", 1, 26.0)]
    made += [record("a", "y", 0, 19.0), record("b", "y", 0, 25.0), record("a", "y", 1, 19.0), record("b", "y", 1, 25.0)]
    summary = summarise_scores(made).set_index("method")
    assert summary.loc["x", ["n", "seeds", "psnr", "ssim", "seconds"]].tolist() == [2, 2, 23.0, 0.55, 2.0]
    assert summary.loc["x", "psnr_spread"] == pytest.approx(2**0.5)  # of 22 and 24
    assert summary.loc["x", ["ci_low", "ci_high", "psnr_unclipped"]].tolist() == [21.0, 25.0, 22.0]
    paired = paired_scores(made, "x").iloc[0]
    assert paired[["method", "n", "difference", "least", "above"]].tolist() == ["y", 2, 1.0, 0.0, 1]
    table = score_table(made)
    assert table[table["image"] == "mean"][["method", "seed", "psnr"]].values.tolist() == [
        ["x", 0, 22.0],
        ["y", 0, 22.0],
        ["x", 1, 24.0],
        ["y", 1, 22.0],
    ]
    alone = summarise_scores(made[:1]).iloc[0]
    assert alone["psnr"] == 20
    assert alone[["ci_low", "psnr_spread"]].isna().all()


def test_a_noisy_image_that_is_its_reference_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the noisy image must differ from its reference, got equal pixels"):
        benchmark_denoising(images(1), ["noisy"], QUICK, noisy=[images(1)[0][1]], out=tmp_path)


def test_a_grey_image_has_no_camera_noise(tmp_path):
    (name, image) = images(1)[0]
    with pytest.raises(ValueError, match="references must be RGB for the noise camera, got a grey image"):
        benchmark_denoising([(name, image[:1])], ["noisy"], QUICK, noise="camera", level=300.0, out=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": -0.1}, r"sigma must lie in \(0, 1\], .*got -0.1"),
        ({"sigma": 25}, r"sigma must lie in \(0, 1\], .*got 25: write 25 / 255"),
        ({"noise": "rain"}, "noise must be one of gaussian, impulse, shot, speckle, camera, got 'rain'"),
        ({"noise": "shot"}, "level must be given for the noise 'shot', got None"),
        ({"noise": "speckle", "level": -0.1}, "level must be positive, got -0.1"),
        ({"noise": "impulse", "level": 2.0}, "level must be a fraction of the values, at most 1, got 2"),
        ({"level": 0.1}, "level must be left out for Gaussian noise, got 0.1: give sigma"),
        (
            {"noise": "shot", "level": 9.0, "noisy": [torch.zeros(3, 16, 20)]},
            "noise and level must be left out where noisy images are given, got 'shot', 9.0",
        ),
        ({"sigma": None}, "sigma must be given where noise is to be added"),
        ({"references": []}, "references must be at least one, with different names, got 0"),
        ({"references": images(1) * 2}, "references must be at least one, with different names, got 2"),
        ({"references": [("a", torch.full((3, 16, 16), 2.0))]}, r"a must be within \[0, 1\]"),
        ({"references": images(1, (15, 20))}, r"0.png: sides must be at least 16 pixels, got \(15, 20\)"),
        ({"references": [("a", torch.zeros(1, 16, 16))], "methods": ["cbm3d"]}, "a: cbm3d must be given RGB images"),
        ({"methods": ["magic"]}, "methods must be among noisy, gaussian, .*, got magic"),
        ({"methods": ["dip:estimated"]}, "methods must be among .*, got dip:estimated"),
        ({"methods": []}, "methods must be among .*, got none"),
        ({"methods": ["dip", "dip"]}, "methods must differ from each other, got dip, dip"),
        ({"noisy": []}, "noisy must be one image for each of 1 references"),
        ({"noisy": [torch.full((3, 16, 20), -1.0)]}, r"0.png, noisy must be within \[0, 1\]"),
        ({"noisy": [torch.zeros(3, 16, 20)], "clip": True}, "clip must be False where noisy images are given"),
        ({"config": dataclasses.replace(QUICK, stopping="emv")}, "config must stop by the rule fixed, got 'emv'"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"runs": 0}, "runs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_computed(change, message, tmp_path):
    arguments = {"references": images(1), "methods": ["median"], "config": QUICK, "sigma": SIGMA, **change}
    with pytest.raises(ValueError, match=message):
        benchmark_denoising(**arguments, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_denoise_is_the_function_and_its_average_goes_on_from_the_same_fit(tmp_path, monkeypatch):
    network = {"architecture_options": QUICK.architecture_options, "input_channels": 8, "iterations": 60, "ema": 0.9}
    monkeypatch.setitem(PRESETS, "denoise", dataclasses.replace(PRESETS["denoise"], **network))
    steps: list[int] = []  # of each fit

    def counted(*arguments, **keywords):
        steps.append(0)

        def count(state):
            steps[-1] += 1

        return fit(*arguments, **{**keywords, "callback": count})

    monkeypatch.setattr("dipdefense.restoration.prior_fit.fit", counted)
    ((name, reference),) = images(1, (20, 24))
    benchmark_denoising([(name, reference)], ["denoise_average", "denoise"], QUICK, sigma=SIGMA, out=tmp_path)
    assert steps[2] == 0 < min(steps[:2])  # the fit of `denoise` was there
    noisy = gaussian(reference[None], SIGMA, generator=generator_of(0, name, "denoising")).clamp(0, 1)
    table = records(tmp_path).set_index("method")
    for method, runs in (("denoise", 1), ("denoise_average", 2)):
        expected = psnr(denoise(noisy, runs=runs), reference[None]).item()
        assert table.loc[method, "psnr"] == pytest.approx(expected, abs=1e-4), method
    assert not (tmp_path / "checkpoints").exists()


def test_every_method_has_a_name():
    assert set(METHODS) == {*DENOISERS, *CANDIDATES, "dip_average", *DENOISE}


@pytest.mark.data
@pytest.mark.slow
def test_the_prior_removes_noise_from_a_photograph(data, tmp_path):
    from eval.photographs import read_photo
    from eval.restoration.denoising import SMALL

    reference = ("butterfly.png", read_photo(data / "sets" / "set5" / "butterfly.png", crop=64))
    methods = ["noisy", "gaussian", "median", "dip", "dip_ema", "dip_oracle"]
    table = benchmark_denoising([reference], methods, SMALL, sigma=SIGMA, out=tmp_path).set_index("method")["psnr"]
    assert table["dip_oracle"] >= table["dip_ema"] > table["dip"] > table["noisy"] + 3
    assert table["dip_ema"] > max(table["gaussian"], table["median"])
