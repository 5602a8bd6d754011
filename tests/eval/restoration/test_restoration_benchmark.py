"""The benchmark of restorations: its protocol on real images, its records, its table and its sheet."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

import eval.restoration.restoration as benchmark
import eval.restoration.restoration_scores
from dipdefense import FitConfig
from dipdefense.files.reading import read_image
from dipdefense.restoration.presets import published_super_resolution
from eval.restoration.contact_sheet import save_sheet
from eval.restoration.degraded_inputs import SCENES, Scene
from eval.restoration.restoration import benchmark_restoration, summarise_restoration
from eval.restoration.restoration_scores import score_restored

QUICK = FitConfig(architecture_options={"channels": [4, 4], "skip_channels": 0}, input_channels=2, iterations=3)


def coarse(height: int = 16, width: int = 16, channels: int = 3) -> torch.Tensor:
    image = torch.rand(1, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(image, (height, width), mode="bilinear")[0]


def linear() -> torch.nn.Module:
    """The sum of the colours, and its opposite."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1, bias=False))
    net.load_state_dict({"0.weight": torch.tensor([1.0, -1.0])[:, None, None, None].expand(2, 3, 1, 1)})
    return net


@pytest.fixture
def scenes(monkeypatch):
    """One made-up scene of each kind."""
    image, mask = coarse(), (torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.4).float()
    small = torch.nn.functional.avg_pool2d(image, 4)
    made = {
        "text": Scene("text", "a", "inpaint", (image, mask), image),
        "zebra": Scene("zebra", "b", "super_resolve", (small,), image, {"factor": 4}),
        "jpeg": Scene("jpeg", "c", "remove_jpeg_artifacts", (image,)),
        "jpeg10": Scene("jpeg10", "e", "remove_jpeg_artifacts", ((image * 8).round() / 8,), image),
        "flash": Scene("flash", "d", "flash_no_flash", (image, image * 0.5)),
        "inversion": Scene("inversion", "f", "invert_features", (image,), image, classifier=linear(), layer="0"),
        "activation": Scene(
            *("activation", "g", "maximise_activation", ()),
            options={"channel": 1, "shape": (3, 16, 16)},
            classifier=linear(),
            layer="0",
        ),
    }
    for task, scene in made.items():
        monkeypatch.setitem(SCENES, task, lambda data, size, seed, scene=scene: [scene])
    monkeypatch.setattr(benchmark, "PIXELS", dataclasses.replace(benchmark.PIXELS, iterations=4))
    monkeypatch.setattr(
        eval.restoration.restoration_scores, "ssim", lambda a, b: (1 - (a - b).square().mean())[None]
    )  # sides may be small
    return made


TASKS = ["text", "zebra", "jpeg10", "flash", "inversion", "activation"]


def run(out, **options):
    return benchmark_restoration(out, **{"tasks": TASKS, "config": QUICK, "size": 16, "out": out, **options})


def test_a_killed_run_goes_on_and_gives_the_same_table(tmp_path, scenes, monkeypatch):
    restore, calls = benchmark._restore, []

    def killed(*arguments):
        calls.append(arguments[1])
        if len(calls) == 6:
            raise KeyboardInterrupt
        return restore(*arguments)

    monkeypatch.setattr(benchmark, "_restore", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a")
    progress = []
    table = run(tmp_path / "a", progress=lambda done, total: progress.append((done, total)))
    assert len(calls) == 6 + 20 - 5
    assert progress == [(i, 20) for i in range(1, 21)]
    assert list(zip(table["task"], table["method"], strict=True)) == [
        *(("text", method) for method in ("dip", "tv", "biharmonic", "cosine")),
        *(("zebra", method) for method in ("dip", "tv", "bicubic", "nearest", "cosine")),
        *(("jpeg10", method) for method in ("dip", "tv", "input")),
        *(("flash", method) for method in ("dip", "tv")),
        *(("inversion", method) for method in ("dip", "tv", "pixels")),
        *(("activation", method) for method in ("dip", "tv", "pixels")),
    ]
    monkeypatch.setattr(benchmark, "_restore", restore)
    fresh = run(tmp_path / "b")
    assert table.drop(columns="seconds").equals(fresh.drop(columns="seconds"))
    assert len(json.loads((tmp_path / "a" / "summary.json").read_text())) == 20
    assert (tmp_path / "a" / "summary.csv").read_text().startswith("task,method,n,psnr,psnr_min")
    assert not (tmp_path / "a" / "unfinished").exists()
    with Image.open(tmp_path / "a" / "sheet.png") as sheet:
        assert sheet.height > 600


def test_scores_are_those_of_the_raw_output(tmp_path, scenes):
    run(tmp_path, tasks=[*TASKS, "jpeg"], methods=["dip", "library"])
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    by_method = {record["method"]: record for record in records}
    image, mask = scenes["text"].inputs
    ours = next(record for record in records if record["task"] == "text" and record["method"] == "dip")
    unknown = (mask == 0).expand_as(image)
    saved = read_image(tmp_path / ours["file"])
    known_error = peak_signal_noise_ratio(image[unknown].numpy(), saved[unknown].numpy(), data_range=1)
    assert ours["psnr"] == pytest.approx(known_error, abs=0.1)  # the file has 8 bits
    bicubic = read_image(tmp_path / by_method["bicubic"]["file"])
    assert by_method["bicubic"]["psnr"] == pytest.approx(
        peak_signal_noise_ratio(image.numpy(), bicubic.numpy(), data_range=1), abs=1e-3
    )
    luma = [np.tensordot([65.481, 128.553, 24.966], x[:, 4:-4, 4:-4].numpy(), 1) / 255 for x in (image, bicubic)]
    assert by_method["bicubic"]["psnr_y"] == pytest.approx(peak_signal_noise_ratio(*luma, data_range=1), abs=1e-3)
    assert ours["psnr_y"] is None
    visual = [record for record in records if record["task"] in ("jpeg", "flash")]
    assert len(visual) == 3
    assert all(record["psnr"] is None and record["ssim"] is None for record in visual)
    compressed = next(record for record in records if record["task"] == "jpeg10" and record["method"] == "input")
    reference, given = image.numpy(), scenes["jpeg10"].inputs[0].numpy()
    assert compressed["psnr"] == pytest.approx(peak_signal_noise_ratio(reference, given, data_range=1), abs=1e-4)
    assert compressed["iterations"] is None


def test_paired_differences_are_those_of_the_records(tmp_path, scenes):
    """One image for each task, so there is a difference and no interval; the luma counts for super-resolution."""
    run(tmp_path, tasks=["text", "zebra", "flash"], methods=["dip", "library"])
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    scores = {(record["task"], record["method"]): record for record in records}
    table = pd.read_csv(tmp_path / "paired.csv")
    assert table["task"].tolist() == ["text"] * 2 + ["zebra"] * 3  # flash has no reference
    for row in table.itertuples():
        ours, other = scores[row.task, "dip"], scores[row.task, row.method]
        assert row.score == {"text": "psnr", "zebra": "psnr_y"}[row.task]
        assert row.difference == pytest.approx(ours[row.score] - other[row.score], abs=1e-9)
    assert table["ci_low"].isna().all()
    run(tmp_path / "other", tasks=["text"], methods=["library"])
    assert pd.read_csv(tmp_path / "other" / "paired.csv").empty


def test_features_and_activations_by_hand(scenes):
    image, grey = coarse(), torch.full((3, 16, 16), 0.25)
    score = score_restored(grey, scenes["inversion"])
    total = image.sum(0)
    assert score["features"] == pytest.approx(((total - 0.75).square().sum() / total.square().sum()).item(), rel=1e-4)
    assert score["psnr"] == pytest.approx(peak_signal_noise_ratio(image.numpy(), grey.numpy(), data_range=1), abs=1e-3)
    assert score["activation"] is None
    score = score_restored(grey, scenes["activation"])
    assert score == {"psnr": None, "psnr_y": None, "ssim": None, "features": None, "activation": pytest.approx(-0.75)}


def test_plain_pixels_and_the_network_take_the_same_steps_before_a_classifier(tmp_path, scenes):
    run(tmp_path, tasks=["inversion", "activation"], iterations=5)
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [record["iterations"] for record in records] == [5] * 6
    assert [record["tv"] > 0 for record in records] == [False, True, False] * 2
    assert records[3]["activation"] != records[5]["activation"]


@pytest.mark.parametrize("part", ["inputs", "reference", "mask", "classifier"])
def test_a_changed_scene_needs_another_folder(tmp_path, scenes, monkeypatch, part):
    task = "inversion" if part == "classifier" else "text"
    scene, calls, restore = scenes[task], [], benchmark._restore
    monkeypatch.setattr(benchmark, "_restore", lambda *arguments: calls.append(1) or restore(*arguments))
    for _ in range(2):
        run(tmp_path, tasks=[task], methods=["dip"])
    assert len(calls) == 1
    net = linear()
    net[0].weight.data *= 2
    change = {
        "inputs": {"inputs": (scene.inputs[0] * 0.999, *scene.inputs[1:])},
        "reference": {"reference": coarse() * 0.999},
        "mask": {"inputs": (scene.inputs[0], 1 - scene.inputs[-1][:1].round())},
        "classifier": {"classifier": net},
    }[part]
    monkeypatch.setitem(SCENES, task, lambda *arguments: [dataclasses.replace(scene, **change)])
    with pytest.raises(
        ValueError, match=rf"holds a run with scenes.{task} \w+ [0-9a-f]{{16}} where this one has [0-9a-f]+"
    ):
        run(tmp_path, tasks=[task], methods=["dip"])
    assert len(calls) == 1


def test_tasks_and_methods_may_be_added_and_other_fits_not(tmp_path, scenes):
    run(tmp_path, tasks=["text"], methods=["dip"])
    table = run(tmp_path, tasks=["text", "zebra"], methods=["dip", "library"])
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == len(table) == 7
    for changed, message in (
        ({"iterations": 7}, r"fits.text \w+ dip.fit.iterations \d+ where this one has 7"),
        ({"size": 32}, "size 16 where this one has 32"),
    ):
        with pytest.raises(ValueError, match=f"out .* holds a run with {message}.*: name another folder"):
            run(tmp_path, tasks=["text"], methods=["dip"], **changed)


def test_the_table_is_of_means():
    record = {"task": "half", "method": "dip", "iterations": 3, "seed": 0}
    record |= dict.fromkeys(("psnr_y", "features", "activation"))
    records = [record | {"psnr": psnr, "ssim": 0.5, "seconds": 2.0} for psnr in (20.0, 30.0)]
    (row,) = summarise_restoration(records).to_dict("records")
    assert (row["n"], row["psnr"], row["psnr_min"], row["ssim"], row["seconds"]) == (2, 25.0, 20.0, 0.5, 2.0)
    assert math.isnan(row["psnr_y"])


def test_published_numbers_reach_the_fit(tmp_path, scenes, monkeypatch):
    seen = []
    monkeypatch.setattr(
        benchmark, "_restore", lambda scene, method, given, *rest: seen.append(given) or torch.zeros(3, 16, 16)
    )
    options = {"tasks": ["text", "zebra"], "methods": ["dip"], "size": 16}
    benchmark_restoration(tmp_path, **options, published=True, iterations=7, out=tmp_path / "a")
    benchmark_restoration(tmp_path, **options, out=tmp_path / "b")
    configs = [given["config"] for given in seen]
    assert [config.architecture_options["channels"] for config in configs[:2]] == [[128] * 5] * 2
    assert [config.iterations for config in configs[:2]] == [7, 7]
    large = dataclasses.replace(scenes["zebra"], options={"factor": 8})
    assert benchmark._settings(large, "dip", None, True, None) == published_super_resolution(8)
    assert [max(config.architecture_options["channels"]) for config in configs[2:]] == [64, 64]
    assert all(given.keys() == {"config", "tv"} for given in seen[:2])
    assert all((given["tile"], given["refine"]) == (64, True) for given in seen[2:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["text", "magic"]}, "tasks must be among text, holes, half, .* got 'magic'"),
        ({"tasks": []}, "tasks must be among text, .* got ''"),
        ({"methods": ["bicubic"]}, "methods must be among dip, tv, pixels, library, got 'bicubic'"),
        ({"size": 15}, "size must be at least 16 pixels, got 15"),
        ({"config": QUICK, "published": True}, "config and published must not be given together"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        benchmark_restoration(tmp_path, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_methods_that_restore_none_of_the_tasks_are_refused(tmp_path, scenes):
    with pytest.raises(ValueError, match="methods must be such that one restores flash, got pixels, library"):
        run(tmp_path / "run", tasks=["flash"], methods=["pixels", "library"])
    assert not (tmp_path / "run").exists()


def test_a_sheet_of_uneven_rows(tmp_path):
    save_sheet(tmp_path / "a.png", [[("x", coarse())], [("y", coarse(channels=1)), ("z", coarse(20, 8))]])
    with Image.open(tmp_path / "a.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(maxcolors=2**20) or []) > 50


@pytest.mark.data
def test_zebra_is_as_hard_as_published(data):
    """The full-size protocol of the deep image prior: bicubic 23.10 dB, nearest 20.82 dB."""
    (scene,) = SCENES["zebra"](data, None, 0)
    assert scene.reference.shape == (3, 384, 576)
    for method, published in (("bicubic", 23.10), ("nearest", 20.82)):
        restored = benchmark.LIBRARY["super_resolve"][method](scene)
        assert score_restored(restored, scene)["psnr"] == pytest.approx(published, abs=0.006)


@pytest.mark.data
def test_scenes_are_what_they_say(data):
    for task in SCENES:
        for scene in SCENES[task](data, 64, 0):
            shown = scene.reference if scene.reference is not None else (*scene.inputs, None)[0]
            assert (scene.options["shape"][1:] if shown is None else shown.shape[1:]) == (64, 64)
            assert all(((image >= 0) & (image <= 1)).all() for image in scene.inputs)
    assert SCENES["inversion"](data, None, 0)[0].reference.shape == (3, 227, 227)
    assert SCENES["inversion"](data, 128, 0)[0].reference.shape == (3, 112, 112)
    (compressed,) = SCENES["jpeg10"](data, 64, 0)
    assert 20 < score_restored(compressed.inputs[0], compressed)["psnr"] < 32
    by_quality = [SCENES[f"set9_jpeg{quality}"](data, 64, 0) for quality in (10, 40, 90)]
    means = [np.mean([score_restored(s.inputs[0], s)["psnr"] for s in scenes]) for scenes in by_quality]
    assert len(by_quality[0]) == 9
    assert means[0] < means[1] - 2 < means[2] - 4
    for task, side in (("zebra2", 32), ("zebra", 16), ("zebra8", 8)):
        assert SCENES[task](data, 64, 0)[0].inputs[0].shape == (3, side, side)
    (sparse,) = SCENES["sparse"](data, None, 0)
    assert sparse.inputs[1].mean().item() == pytest.approx(0.02, abs=0.002)
    one, other = (SCENES["half"](data, 64, seed)[0].inputs[1] for seed in (0, 1))
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="size must be at most 256, the short side of the smallest image, got 300"):
        SCENES["inpaint11"](data, 300, 0)
    with pytest.raises(ValueError, match="size must be one at which the mask of kate hides and shows pixels, got 32"):
        SCENES["text"](data, 32, 0)
