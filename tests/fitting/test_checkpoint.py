"""Checkpoints: a fit that is killed and started again gives the bits of one that was not; nothing else is taken."""

import contextlib
import errno
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dipdefense import STOPPING_RULES, Checkpoint, FitConfig, FitResult, Purifier, denoise, fit
from dipdefense.fitting import checkpoint as module
from dipdefense.fitting.fit import Progress
from dipdefense.fitting.problem import build_problem

TINY = FitConfig(
    architecture_options={"channels": [4], "skip_channels": 2}, input_channels=2, iterations=30, lr=0.03, ema=0.5
)
OPTIONS: dict[str, dict[str, Any]] = {
    "wmv": {"window": 4, "patience": 4},
    "emv": {"rate": 0.5, "patience": 4},
    "dipdefend": {"rate": 0.5, "patience": 2},
    "discrepancy": {"sigma": 0.2},
    "sure": {"sigma": 0.1, "rate": 1.0, "patience": 2},
    "validation": {"fraction": 0.2, "rate": 1.0, "patience": 2},
    "sub_image": {"rate": 1.0},
    "blind_discrepancy": {"factor": 4.0},
}


class KilledError(Exception):
    pass


def images(n: int = 6) -> Tensor:
    """Waves with more and more noise, so that they leave at different iterations."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.nn.functional.interpolate(torch.rand(n, 3, 2, 2, generator=generator), (8, 8), mode="bilinear")
    noise = torch.randn(waves.shape, generator=generator) * torch.linspace(0.01, 1, n).view(-1, 1, 1, 1)
    return (waves + noise).clamp(0, 1)


def in_chunks(config: FitConfig, observed: Tensor, together: float) -> FitConfig:
    """With the memory for so many images at the same time."""
    problem = build_problem(observed, config, 0, None, None, None)
    return replace(config, memory_gb=together * problem.bytes_per_image() / 2**30)


def same(a: FitResult, b: FitResult) -> bool:
    names = [field.name for field in fields(FitResult) if field.name != "seconds"]
    return all(bool(torch.eq(torch.as_tensor(getattr(a, n)), torch.as_tensor(getattr(b, n))).all()) for n in names)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_after(calls: int, then: Callable[[Progress], None] = lambda state: None) -> Callable[[Progress], None]:
    left = iter(range(calls))

    def callback(state: Progress) -> None:
        then(state)
        if next(left, None) is None:
            raise KilledError

    return callback


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rule", STOPPING_RULES)
def test_a_fit_that_is_killed_again_and_again_gives_the_same_bits(rule, tmp_path):
    """Two workers, four chunks, images that leave, states that roll back; some kills undo several iterations."""
    draw, path, seen = random.Random(rule), tmp_path / "fit.ckpt", []
    config = replace(TINY, stopping=rule, stopping_options=OPTIONS.get(rule, {}), rollback_db=0.01)
    config = in_chunks(config, images(), 4.5)
    with threads(2):
        whole = fit(images(), config, callback=seen.append)
        kills = 0
        for _ in range(10):
            saved = Checkpoint(path, draw.choice([0, 0, 0.01]))
            with contextlib.suppress(KilledError):
                fit(images(), config, checkpoint=saved, callback=killed_after(draw.randrange(1, 12)))
                break
            kills += 1
        resumed = fit(images(), config, checkpoint=path)
    assert len([state for state in seen if state.iteration == 1]) == 4
    assert any(not state.sane.all() for state in seen if 1 < state.iteration < config.iterations)
    assert rule == "fixed" or whole.iterations.unique().numel() > 1  # some leave earlier
    assert kills >= 3
    assert same(resumed, whole)


PROGRAM = """
import sys, time
import torch
sys.path.insert(0, sys.argv[1])
from test_checkpoint import TINY, Checkpoint, fit, images, in_chunks
torch.set_num_threads(2)
def callback(state):
    print(state.iteration, flush=True)
    time.sleep(0.005)
fit(images(), in_chunks(TINY, images(), 4.5), checkpoint=Checkpoint(sys.argv[2], 0), callback=callback)
"""


def test_a_process_that_is_killed_leaves_a_whole_file_and_the_same_bits(tmp_path):
    path, draw = tmp_path / "fit.ckpt", random.Random(0)
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(path)]
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(draw.randrange(10, 40)):
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert names(tmp_path) in (["fit.ckpt"], [".fit.ckpt.tmp", "fit.ckpt"])
    with threads(2):
        whole, seen = fit(images(), in_chunks(TINY, images(), 4.5)), []
        resumed = fit(images(), in_chunks(TINY, images(), 4.5), checkpoint=path, callback=seen.append)
    assert 0 < len(seen) < 4 * TINY.iterations
    assert same(resumed, whole)
    assert names(tmp_path) == ["fit.ckpt"]


def test_the_share_goes_on_where_it_was(tmp_path, one_thread):
    config, shares, parts = in_chunks(replace(TINY, iterations=8), images(4), 2.5), [], []
    fit(images(4), config, callback=lambda state: shares.append(state.share))
    for calls in (3, 9, 99):  # the last call before a kill belongs to an iteration that is not saved
        with contextlib.suppress(KilledError):
            callback = killed_after(calls, lambda state: parts.append(state.share))
            fit(images(4), config, checkpoint=Checkpoint(tmp_path / "fit", 0), callback=callback)
            break
        parts.pop()
    assert parts == shares


def test_an_ended_fit_returns_at_once(tmp_path):
    path = tmp_path / "fit"
    whole = fit(images(), TINY, checkpoint=path)
    assert same(fit(images(), TINY, checkpoint=path, callback=killed_after(0)), whole)


def test_another_number_of_threads_goes_on(tmp_path):
    """To the same up to rounding, in the chunks that were saved."""
    config, sizes = in_chunks(TINY, images(), 4.5), []
    with threads(2):
        with pytest.raises(KilledError):
            fit(images(), config, checkpoint=Checkpoint(tmp_path / "fit", 0), callback=killed_after(20))
        whole = fit(images(), config)
    with threads(1):
        resumed = fit(
            images(), config, checkpoint=tmp_path / "fit", callback=lambda state: sizes.append(len(state.index))
        )
    torch.testing.assert_close(resumed.reconstruction, whole.reconstruction, rtol=0, atol=1e-3)
    assert max(sizes) <= 4


def test_a_chunk_that_is_halved_begins_anew(tmp_path, one_thread):
    """Memory that ends in the middle: what was saved of the chunk is not taken for its half."""
    steps = iter(range(15))

    def degrade(x: Tensor, index: Tensor) -> Tensor:
        if len(index) > 2 and next(steps, None) is None:
            raise torch.OutOfMemoryError("out of memory")
        return x

    path = tmp_path / "fit"
    with pytest.warns(UserWarning, match="chunks of 2 images"):
        result = fit(images(4), TINY, degrade=degrade, checkpoint=Checkpoint(path, 0))
    torch.testing.assert_close(result.reconstruction, fit(images(4), TINY).reconstruction, rtol=0, atol=1e-3)


def test_images_that_were_given_up_are_named_again(tmp_path):
    worse = torch.tensor(1.0)

    def loss(output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        worse.mul_(2)  # whatever the fit does
        return (output - target).square().flatten(1).mean(1) + worse

    config = replace(TINY, iterations=200)
    for _ in range(2):
        worse.fill_(1.0)
        with pytest.warns(UserWarning, match=r"images \[0\] keeps diverging"):
            result = fit(images(1), config, loss=loss, checkpoint=tmp_path / "fit")
        assert result.iterations.item() < 200


def other_degrade(x: Tensor, index: Tensor) -> Tensor:
    return x * 0.5


def other_loss(output: Tensor, target: Tensor, index: Tensor) -> Tensor:
    return (output - target).abs().flatten(1).mean(1)


def a_prior(output: Tensor, index: Tensor) -> Tensor:
    return 0.1 * output.flatten(1).mean(1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": replace(TINY, lr=0.01)}, r"config\.lr"),
        ({"config": replace(TINY, memory_gb=0.5)}, r"config\.memory_gb"),
        ({"config": replace(TINY, stopping="emv", stopping_options={"rate": 0.5})}, r"config\.stopping"),
        ({"seed": 1}, "seed"),
        ({"observed": images().flip(0)}, "observed"),
        ({"observed": images().double()}, "dtype"),
        ({"z": torch.zeros(1, 2, 8, 8)}, "z"),
        ({"degrade": other_degrade}, "degrade"),
        ({"loss": other_loss}, "loss"),
        ({"prior": a_prior}, "prior"),
    ],
)
def test_another_fit_is_refused(change, named, tmp_path):
    path = tmp_path / "fit"
    arguments: dict[str, Any] = {"observed": images(), "config": TINY, "seed": 0}
    with pytest.raises(KilledError):
        fit(**arguments, checkpoint=Checkpoint(path, 0), callback=killed_after(3))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"of another \(.*{named}.*\): name another path, or delete the file"):
        fit(**{**arguments, **change}, checkpoint=path)
    assert path.read_bytes() == before
    assert same(fit(**arguments, checkpoint=path), fit(**arguments))


def test_other_code_is_refused(tmp_path, monkeypatch):
    fit(images(1), TINY, checkpoint=tmp_path / "fit")
    monkeypatch.setattr(module, "source_hash", lambda package: "another")
    with pytest.raises(ValueError, match=r"of another \(code\)"):
        fit(images(1), TINY, checkpoint=tmp_path / "fit")


def test_a_torn_or_foreign_file_is_refused(tmp_path):
    path, foreign, draw = tmp_path / "fit", tmp_path / "foreign", random.Random(0)
    fit(images(1), TINY, checkpoint=path)
    whole = path.read_bytes()
    torch.save({"weight": torch.zeros(3)}, foreign)
    contents = [b"", b"text", foreign.read_bytes(), whole[:40], whole[:-1], whole[9:], whole + b" "]
    for at in draw.sample(range(len(whole)), 20):
        contents.append(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match="fit must be a whole checkpoint, it is torn or another file: name another"
        ):
            fit(images(1), TINY, checkpoint=path)
        assert path.read_bytes() == content


def test_a_checkpoint_needs_a_seed_and_seconds():
    with pytest.raises(ValueError, match="seed must be given with a checkpoint"):
        fit(images(1), TINY, seed=None, checkpoint="never")
    with pytest.raises(ValueError, match="seconds must not be negative"):
        Checkpoint("never", -1)


def test_a_place_that_takes_no_file_is_named_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "fit", tmp_path / "file" / "fit", tmp_path):
        with pytest.raises(OSError, match=str(path)):
            fit(images(1), TINY, checkpoint=path, callback=killed_after(0))


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "fit"
    with pytest.raises(KilledError):
        fit(images(1), TINY, checkpoint=Checkpoint(path, 0), callback=killed_after(5))
    before = path.read_bytes()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*fit'"):
            fit(images(1), TINY, checkpoint=Checkpoint(path, 0))
    assert path.read_bytes() == before
    assert names(tmp_path) == ["fit"]
    assert same(fit(images(1), TINY, checkpoint=path), fit(images(1), TINY))


def test_a_fit_that_fails_at_once_leaves_no_file(tmp_path):
    def loss(output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return output.flatten(1).mean(1) / 0

    with pytest.raises(RuntimeError, match="must be finite from its start"):
        fit(images(1), TINY, loss=loss, checkpoint=tmp_path / "fit")
    assert not names(tmp_path)


def test_what_a_callback_keeps_is_put_back(tmp_path):
    """The averages that a purifier collects along the fit; no iteration is saved that the callback did not see."""
    config, path, every = in_chunks(TINY, images(), 4.5), tmp_path / "fit", tuple(range(1, TINY.iterations + 1))
    frames = partial(Purifier(config).frames, images(), config=config, gradient="none")
    with threads(2):
        for calls in range(7, 15):
            with pytest.raises(KilledError):
                frames(every, checkpoint=Checkpoint(path, 0), callback=killed_after(calls))
        whole = frames(every)
        for _ in range(2):  # the second time the fit has ended
            assert torch.equal(frames(every, checkpoint=path), whole)
    with pytest.raises(ValueError, match=r"of another \(kept\)"):
        frames((3, TINY.iterations), checkpoint=path)


def test_several_runs_have_a_file_each(tmp_path):
    whole, path = denoise(images(1), runs=2, config=TINY), tmp_path / "fit"
    with pytest.raises(KilledError):
        denoise(images(1), runs=2, config=TINY, checkpoint=path, callback=killed_after(TINY.iterations + 5))
    assert names(tmp_path) == ["fit.1"]
    assert torch.equal(denoise(images(1), runs=2, config=TINY, checkpoint=path), whole)
    assert names(tmp_path) == ["fit.1", "fit.2"]
    again = denoise(images(1), runs=2, config=TINY, checkpoint=path, callback=killed_after(0))
    assert torch.equal(again, whole)
