"""Files are purified in batches of one shape, each as it would be alone."""

import pytest
import torch

from dipdefense import FitConfig, Purifier
from dipdefense.files.purify_files import purify_files
from dipdefense.files.reading import read_image
from dipdefense.files.writing import write_image

TINY = FitConfig(
    architecture_options={"channels": [8, 8], "skip_channels": 0},
    input_channels=8,
    iterations=20,
    memory_gb=0.001,
)


@pytest.fixture
def sources(tmp_path):
    generator = torch.Generator().manual_seed(0)
    paths = []
    for i, shape in enumerate([(3, 8, 8), (1, 8, 8), (3, 8, 8), (3, 8, 12), (3, 8, 8)]):
        paths.append(tmp_path / f"{i}.png")
        write_image(torch.rand(*shape, generator=generator), paths[-1])
    return paths


def test_each_file_as_alone(tmp_path, sources):
    targets = [tmp_path / f"{path.stem}.tif" for path in sources]
    seen = []
    purifier = Purifier(TINY)
    failures = purify_files(
        sources, targets, purifier, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert failures == []
    for source, target in zip(sources, targets, strict=True):
        alone = purifier(read_image(source))
        assert (read_image(target) - alone).abs().max() < 2 / 255
    assert seen == sorted(seen)
    assert seen[-1] == (5.0, 5)


def test_an_unreadable_file_is_returned_and_the_rest_written(tmp_path, sources):
    sources[1].write_bytes(b"")
    targets = [tmp_path / f"{path.stem}.tif" for path in sources]
    (failure,) = purify_files(sources, targets, Purifier(TINY))
    assert "1.png" in str(failure)
    assert [path.exists() for path in targets] == [True, False, True, True, True]


def test_every_source_needs_a_target(tmp_path, sources):
    with pytest.raises(ValueError, match="targets must be as many as sources, got 2 for 5"):
        purify_files(sources, [tmp_path / "a.png", tmp_path / "b.png"], Purifier(TINY))


def test_an_interruption_keeps_what_is_finished(tmp_path, sources):
    targets = [tmp_path / f"{path.stem}.tif" for path in sources]

    def interrupt(done, total):
        if done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        purify_files(sources, targets, Purifier(TINY), batch_size=2, progress=interrupt)
    assert [path.exists() for path in targets] == [True, True, False, False, False]


def test_images_too_large_for_the_budget_are_returned_and_the_rest_written(tmp_path, sources):
    write_image(torch.full((3, 64, 64), 0.5), sources[0])
    targets = [tmp_path / f"{path.stem}.tif" for path in sources]
    (failure,) = purify_files(sources, targets, Purifier(TINY))
    assert "0.png: memory_gb must be at least" in str(failure)
    assert [path.exists() for path in targets] == [False, True, True, True, True]


def test_a_device_that_fails_is_no_fault_of_the_images(tmp_path, sources, monkeypatch):
    def fail(*_):
        raise torch.AcceleratorError("device lost")

    monkeypatch.setattr(Purifier, "reconstruct", fail)
    with pytest.raises(torch.AcceleratorError, match="device lost"):
        purify_files(sources, [tmp_path / f"{path.stem}.tif" for path in sources], Purifier(TINY))


def test_bad_targets_are_refused_before_anything_is_computed(tmp_path, sources):
    two = [tmp_path / "same.png"] * 2
    with pytest.raises(ValueError, match=r"same\.png: must be the target of one image"):
        purify_files(sources[:2], two, Purifier(TINY))
    with pytest.raises(ValueError, match="the suffix must be one of"):
        purify_files(sources[:2], [tmp_path / "a.png", tmp_path / "b.xyz"], Purifier(TINY))
    with pytest.raises(OSError, match="missing"):
        purify_files(sources[:1], [tmp_path / "missing" / "a.png"], Purifier(TINY))
    assert not (tmp_path / "a.png").exists()
