"""A batch that fails is fitted again in halves: an image at fault costs its neighbours nothing."""

import pytest
import torch

from dipdefense import FitConfig, Purifier
from dipdefense.files.purify_files import purify_files
from dipdefense.files.same_shape import Purified, purify_each
from dipdefense.files.writing import write_image

TINY = FitConfig(architecture_options={"channels": [4], "skip_channels": 0}, input_channels=2, iterations=3)
IMAGES = {f"{i}.png": torch.full((3, 8, 8), 0.1 * (i + 1), dtype=torch.float64) for i in range(5)}
SOURCES = [(key, lambda key=key: IMAGES[key]) for key in IMAGES]


class Refusing(Purifier):
    """Fails for a batch that holds the image `refused`, or is larger than `room`; keeps the sizes of its batches."""

    def __init__(self, error=None, refused=None, room=99):
        super().__init__(TINY)
        self.error, self.refused, self.room, self.sizes = error, refused, room, []

    def reconstruct(self, images, callback=None):
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        purified = super().reconstruct(images, callback)
        if self.refused is not None and any(torch.equal(image, IMAGES[self.refused]) for image in images):
            raise self.error  # at the end, when progress was told
        return purified


@pytest.mark.parametrize("error", [ValueError("no such image"), RuntimeError("the fit is not finite")])
def test_only_the_image_at_fault_has_its_error(error):
    results = dict(purify_each(SOURCES, Refusing(error, "3.png")))
    fault = results.pop("3.png")
    assert (type(fault), str(fault)) == (ValueError, f"3.png: {error}")
    assert set(results) == IMAGES.keys() - {"3.png"}
    for key, result in results.items():
        alone = Purifier(TINY).reconstruct(IMAGES[key][None])[0]
        torch.testing.assert_close(result.image, alone, atol=1e-6, rtol=0)
        assert result.iterations == 3


def test_a_batch_too_large_for_the_memory_is_halved():
    purifier = Refusing(room=2)
    results = dict(purify_each(SOURCES, purifier))
    assert all(isinstance(result, Purified) for result in results.values())
    assert purifier.sizes == [5, 2, 3, 1, 2]


@pytest.mark.parametrize("text", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_memory_that_does_not_suffice_for_one_image_is_told_from_its_own_faults(tmp_path, text, monkeypatch):
    """So that a caller may try again elsewhere; of files it is left out like any other."""
    purifier = Refusing(RuntimeError(text), "1.png")
    results = dict(purify_each(SOURCES, purifier))
    assert {key for key, result in results.items() if isinstance(result, Purified)} == IMAGES.keys() - {"1.png"}
    assert isinstance(results["1.png"], torch.OutOfMemoryError)
    assert str(results["1.png"]) == f"1.png: {text}"
    monkeypatch.setitem(IMAGES, "1.png", torch.full((3, 8, 8), 51 / 255))  # as a file of eight bits holds it
    for key in ("0.png", "1.png"):
        write_image(IMAGES[key], tmp_path / key)
    (failure,) = purify_files(
        [tmp_path / "0.png", tmp_path / "1.png"], [tmp_path / "a.png", tmp_path / "b.png"], purifier
    )
    assert str(failure) == f"{tmp_path / '1.png'}: {text}"
    assert [(tmp_path / name).exists() for name in ("a.png", "b.png")] == [True, False]


def test_the_progress_of_a_batch_that_is_fitted_again_does_not_go_back():
    seen = []
    for _ in purify_each(SOURCES, Refusing(ValueError("no"), "4.png"), batch_size=3, progress=seen.append):
        pass
    assert seen == sorted(seen)
    assert seen[-1] == 5
