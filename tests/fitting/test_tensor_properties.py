"""Tensors at the public doors: every image batch comes back as one, and what is none is refused by its name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dipdefense import DECISIONS, FitConfig, Purifier, defend
from dipdefense.image_tensors import check_images

TINY = FitConfig(architecture_options={"channels": [4], "skip_channels": 0}, input_channels=2, iterations=2)
CLASSES = 5
HALF = (torch.float16, torch.bfloat16)
FAULTS = {"nan": torch.nan, "infinite": torch.inf, "above": 1.5, "below": -0.5, "levels": 255.0}

sides = st.integers(1, 40)
shapes = st.tuples(st.integers(0, 3), st.sampled_from([1, 3]), sides, sides)
dtypes = st.sampled_from([torch.float32, torch.float64, *HALF])


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int, fault: str | None = None) -> torch.Tensor:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if fault is not None:
        images.view(-1)[seed % images.numel()] = FAULTS[fault]
    return images.to(dtype)


def answer(door, images: torch.Tensor) -> torch.Tensor | None:
    """What a door returns; None for a dtype of half the precision, which it must refuse."""
    if images.dtype not in HALF:
        return door(images)
    with pytest.raises(TypeError, match=r"images must be float32 or float64, got torch\.\w+16"):
        door(images)
    return None


@given(shape=shapes, dtype=dtypes, seed=st.integers(0, 99), tile=st.none() | st.integers(1, 40))
def test_a_purifier_returns_images_of_the_same_kind(shape, dtype, seed, tile):
    images = drawn(shape, dtype, seed)
    before = images.clone()
    purified = answer(Purifier(TINY, tile=tile), images)
    assert torch.equal(images, before)
    if purified is not None:
        assert (purified.shape, purified.dtype) == (images.shape, images.dtype)
        assert purified.numel() == 0 or 0 <= purified.min() <= purified.max() <= 1


@pytest.mark.parametrize("decision", DECISIONS.values())
@given(shape=shapes, dtype=dtypes, seed=st.integers(0, 99))
def test_a_defended_classifier_returns_logits_and_scores(decision, shape, dtype, seed):
    images = drawn(shape, dtype, seed)
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * shape[1], CLASSES)).to(dtype)
    defended = defend(classifier.eval(), TINY, decision=decision(), check=False)
    judged = answer(defended.judge, images)
    if judged is not None:
        assert judged.logits.shape == (shape[0], CLASSES)
        assert judged.logits.isfinite().all()
        assert judged.scores.shape == (shape[0],)
        assert ((judged.scores >= 0) & (judged.scores <= 1)).all()
        assert judged.reconstruction.shape == shape


DOORS = {
    "check_images": check_images,
    "purifier": Purifier(TINY),
    "defended": defend(nn.Flatten().eval(), TINY, check=False),
}


@pytest.mark.parametrize("door", DOORS)
@given(
    shape=shapes.filter(lambda shape: shape[0]),
    dtype=dtypes,
    seed=st.integers(0, 99),
    fault=st.sampled_from(list(FAULTS)),
)
def test_values_outside_an_image_are_refused(door, shape, dtype, seed, fault):
    with pytest.raises((TypeError, ValueError), match="images"):
        DOORS[door](drawn(shape, dtype, seed, fault))


@pytest.mark.parametrize("door", DOORS)
@given(shape=st.lists(st.integers(0, 5), max_size=6).filter(lambda shape: len(shape) not in (3, 4)))
def test_other_numbers_of_dimensions_are_refused(door, shape):
    with pytest.raises(ValueError, match="images must have 4 dimensions"):
        DOORS[door](torch.zeros(shape))


@pytest.mark.parametrize("door", DOORS)
@given(
    images=st.sampled_from([torch.uint8, torch.int64, torch.bool, torch.complex64]).map(
        lambda dtype: torch.zeros(1, 3, 8, 8, dtype=dtype)
    )
    | st.none()
    | st.lists(st.floats(0, 1))
    | st.floats(0, 1).map(lambda value: torch.full((1, 3, 8, 8), value).numpy())
)
def test_other_types_are_refused(door, images):
    with pytest.raises(TypeError, match="images must"):
        DOORS[door](images)
