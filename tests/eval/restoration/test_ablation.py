"""The ablation table against fits of its rows."""

import dataclasses

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from dipdefense import FitConfig, fit
from eval.metrics import psnr
from eval.restoration.ablation import FIXED, OWN, _input, benchmark_ablation, build_tasks, variants

QUICK = FitConfig(
    architecture_options={"channels": [8, 8], "skip_channels": 4, "upsampling": "nearest"},
    input_channels=8,
    iterations=6,
    ema=0.5,
)


def photos(n: int = 2, side: int = 16) -> list[torch.Tensor]:
    return list(torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)))


def digits(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def test_the_tasks():
    tasks = build_tasks(photos(side=64), digits(40))
    clean = torch.stack(photos(side=64))
    assert psnr(tasks["colour"].observed, clean).mean().item() == pytest.approx(29, abs=0.1)
    assert (tasks["digits"].observed - digits(40)).std().item() == pytest.approx(0.25, rel=0.03)
    known = (tasks["inpainting"].observed != 0).any(1, keepdim=True)
    assert known.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(tasks["inpainting"].observed, torch.where(known, clean, 0))
    index = torch.arange(2)
    loss, degrade = tasks["inpainting"].loss, tasks["super-resolution"].degrade
    assert loss(torch.where(known, clean, 0.7), tasks["inpainting"].observed, index).tolist() == [0, 0]
    cells = clean.reshape(2, 3, 32, 2, 32, 2).mean((3, 5))
    torch.testing.assert_close(tasks["super-resolution"].observed, cells)
    torch.testing.assert_close(degrade(clean, index), cells)
    assert list(build_tasks(photos(), None)) == ["colour", "inpainting", "super-resolution"]
    again = build_tasks(photos(), digits())
    assert torch.equal(again["colour"].observed, build_tasks(photos(), digits())["colour"].observed)
    assert not torch.equal(again["colour"].observed, build_tasks(photos(), digits(), seed=1)["colour"].observed)


def test_one_thing_changes_at_a_time():
    rows = variants(FIXED)
    assert rows.pop("own") == FIXED
    for name, config in rows.items():
        changed = {f.name for f in dataclasses.fields(FitConfig) if getattr(config, f.name) != getattr(FIXED, f.name)}
        assert changed == {
            "autoencoder": {"architecture", "architecture_options"},
            "unet": {"architecture", "architecture_options"},
            "cosine loss": {"loss"},
            "half the iterations": {"iterations"},
            "meshgrid input": {"input", "input_channels"},
            "no jitter": {"jitter"},
            "no EMA": {"ema"},
        }.get(name, {"architecture_options"}), name
    assert rows["half the iterations"].iterations == FIXED.iterations // 2
    assert rows["between"].architecture_options["skip_channels"] == [16] * 4
    assert set(OWN) == {"colour", "digits", "inpainting", "super-resolution"}


def test_rows_are_fits_of_their_configurations(tmp_path):
    own = {name: dataclasses.replace(QUICK, iterations=5) for name in OWN}
    seen = []
    run = {"fixed": QUICK, "own": own, "seed": 4, "out": tmp_path}
    table = benchmark_ablation(photos(), digits(), **run, progress=lambda done, total: seen.append((done, total)))
    names = ["input", *variants(QUICK), "fixed"]
    names.remove("own")
    expected = {"colour": ["input", "own", *names[1:]], "digits": ["input", "own", *names[1:]]}
    expected |= {"inpainting": ["input", "own", "fixed"], "super-resolution": ["own", "fixed"]}
    assert {task: group["network"].tolist() for task, group in table.groupby("task")} == expected
    assert seen[-1] == (30, 30)
    rows = table.set_index(["task", "network"])
    tasks = build_tasks(photos(), digits(), 4)
    scores = {}
    for task, network, config in (
        ("colour", "own", own["colour"]),
        ("colour", "no EMA", dataclasses.replace(own["colour"], ema=0.0)),
        ("digits", "fixed", QUICK),
        ("inpainting", "own", own["inpainting"]),
        ("super-resolution", "fixed", QUICK),
    ):
        problem = tasks[task]
        z = _input(problem, config, 4, "cpu")
        assert (z is None) == (task != "super-resolution")
        image = fit(problem.observed, config, seed=4, loss=problem.loss, degrade=problem.degrade, z=z).reconstruction
        scores[task, network] = psnr(image, problem.references)
        row = rows.loc[task, network]
        assert row["psnr"] == pytest.approx(scores[task, network].mean().item(), abs=1e-4)
        assert row["n"] == len(image)
        assert row["ci_low"] <= row["psnr"] <= row["ci_high"]
        assert row["seconds"] > 0
    gap = scores["colour", "no EMA"].mean() - scores["colour", "own"].mean()
    assert rows.loc[("colour", "no EMA"), "difference"] == pytest.approx(gap.item(), abs=1e-4)
    assert rows.loc[("colour", "own"), ["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]
    clipped = psnr(tasks["colour"].observed.clamp(0, 1), tasks["colour"].references).mean().item()
    assert rows.loc[("colour", "input"), "psnr"] == pytest.approx(clipped, abs=1e-4)
    assert pd.read_csv(tmp_path / "ablation.csv")["psnr"].tolist() == pytest.approx(table["psnr"].tolist())
    assert not (tmp_path / "unfinished").exists()
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 30
    (tmp_path / "records.jsonl").write_text("".join(lines[:28]) + lines[28][:20])  # killed while it wrote
    seen.clear()
    again = benchmark_ablation(photos(), digits(), **run, progress=lambda done, total: seen.append((done, total)))
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), table.drop(columns="seconds"))
    assert len(seen) == 11  # the steps of the last two rows


def test_masks_follow_their_images_into_chunks():
    """One image at a time gives what all of them together give."""
    task = build_tasks(photos(3), None)["inpainting"]
    observed = task.observed.double()  # in float32 a fit amplifies the rounding that differs with the chunk
    whole = fit(observed, QUICK, loss=task.loss).reconstruction
    small = dataclasses.replace(QUICK, memory_gb=0.008)
    torch.testing.assert_close(fit(observed, small, loss=task.loss).reconstruction, whole, atol=1e-9, rtol=0)
    assert F.mse_loss(whole[0], whole[1]) > 1e-4


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "photos must be at least one, and of one shape, got 0"),
        ([*photos(1), *photos(1, 20)], "photos must be at least one, and of one shape, got 2: crop them"),
        (photos(1, 15), r"photos must have even sides of at least 11 pixels, got \(15, 15\)"),
        (photos(1, 10), r"photos must have even sides of at least 11 pixels, got \(10, 10\)"),
        ([photos(1)[0] * 2], r"photos must be within \[0, 1\]"),
    ],
)
def test_bad_photos_are_refused(bad, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        benchmark_ablation(bad, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_colour_digits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="digits must have 1 channels"):
        benchmark_ablation(photos(), digits().expand(-1, 3, -1, -1), out=tmp_path)
