"""`inpaint`: what it fills in, what it never reads, and how large its tiles are."""

import dataclasses

import pytest
import torch
from restoration_images import BRIEF, QUICK, edges, error, holes, seams, smooth
from sklearn.datasets import load_sample_image

from dipdefense import STOPPING_RULES, inpaint
from dipdefense.filters.cosine_filters import fill
from dipdefense.restoration.inpainting import tile_side
from dipdefense.restoration.presets import SMALL


@pytest.mark.parametrize("kind", ["edges", "photograph"])
def test_by_default_inpainting_is_as_good_as_the_better_of_fit_and_filters(small_fits, kind):
    """On straight edges the fit is the better one, on the texture of a flower the filters are."""
    flower = torch.tensor(load_sample_image("flower.jpg")[200:260, 260:320]).permute(2, 0, 1)[None] / 255
    clean = edges(60) if kind == "edges" else flower
    mask = holes(clean)
    whole = inpaint(clean * mask, mask)
    fit_alone = error(inpaint(clean * mask, mask, refine=False, paste=True), clean)
    filters_alone = error(fill(clean, mask, torch.full_like(clean, 0.5)), clean)
    assert torch.equal(whole[mask.expand_as(whole)], clean[mask.expand_as(whole)])
    assert error(whole, clean) < 1.2 * min(fit_alone, filters_alone)
    assert error(whole, clean) < 0.85 * max(fit_alone, filters_alone)
    assert (fit_alone < filters_alone) == (kind == "edges")
    wrong, at = (whole - clean).square().mean((0, 1)), seams(60, [0, 18, 36], 6)
    assert wrong[at].mean() < 1.5 * wrong[~at].mean()
    assert wrong[:, at].mean() < 1.5 * wrong[:, ~at].mean()


def test_a_hole_as_large_as_a_tile_gets_a_larger_tile(small_fits):
    """A tile of 24 pixels inside the hole would know nothing."""
    hole = torch.ones(1, 1, 60, 60, dtype=torch.bool)
    hole[..., 16:42, 16:42] = False
    assert [tile_side(mask[0], 24) for mask in (hole, holes(edges(60)), hole[..., :24, :24])] == [48, 24, None]
    one_channel = hole.repeat(1, 3, 1, 1)
    one_channel[:, :2] = True
    assert tile_side(one_channel[0], 24) == 48
    clean = smooth(1, 3, 60, 60)
    filled = inpaint(clean.masked_fill(~hole, torch.nan), hole)
    assert error(filled, clean) < 0.5 * error(torch.where(hole, clean, 0.5), clean)


def test_a_hole_larger_than_a_tile_has_settings_of_its_own(small_fits, monkeypatch):
    monkeypatch.setattr("dipdefense.restoration.inpainting.SMALL_HOLES", BRIEF)
    images, mask = edges(48), holes(edges(48))
    mask[..., 10:38, 10:38] = False
    expected = inpaint(images, mask, config=BRIEF, tile=24, refine=True)
    torch.testing.assert_close(inpaint(images, mask), expected)
    more_memory = dataclasses.replace(SMALL["inpaint"], memory_gb=5.0)
    torch.testing.assert_close(inpaint(images, mask, config=more_memory, tile=24, refine=True), expected)


def test_the_hole_of_another_image_changes_nothing(tmp_path):
    images = edges(48).double().repeat(2, 1, 1, 1)
    mask = holes(images)
    mask[1] = True
    mask[1, :, 10:38, 10:38] = False
    settings = {"config": BRIEF, "tile": 24, "refine": True}
    both = inpaint(images, mask, checkpoint=tmp_path / "fit", **settings)
    torch.testing.assert_close(both[:1], inpaint(images[:1], mask[:1], **settings), atol=1e-6, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.1", "fit.2"]


def test_inpainting_finds_the_missing_half():
    clean = smooth()
    mask = holes(clean)
    unknown = (~mask).expand_as(clean)
    filled = inpaint(torch.where(mask, clean, 0), mask, config=QUICK)
    assert error(filled[unknown], clean[unknown]) < 0.1 * error(clean[unknown], clean.mean())


OPTIONS = {
    "wmv": {"window": 5, "patience": 3},
    "discrepancy": {"sigma": 0.05},
    "sure": {"sigma": 0.05},
}


@pytest.mark.parametrize(
    "rule", [rule for rule in STOPPING_RULES if rule != "blind_discrepancy"]
)  # it wants all values
def test_unknown_pixels_never_leak(rule):
    """Whatever they hold, and whatever the stopping rule looks at."""
    clean = smooth(1, 1, 40, 40)
    mask = holes(clean, 0.3)
    config = dataclasses.replace(BRIEF, stopping=rule, stopping_options=OPTIONS.get(rule, {}))
    results = [inpaint(torch.where(mask, clean, other), mask, config=config) for other in (0.0, 255.0, float("nan"))]
    assert all(torch.equal(result, results[0]) for result in results)
    known = torch.where(mask, 1 - clean, clean)
    assert not torch.equal(inpaint(known, mask, config=config), results[0])


def test_pasting_puts_the_known_pixels_back_and_nothing_else():
    clean = smooth()
    mask = holes(clean)
    raw, pasted = (inpaint(clean, mask, config=BRIEF, paste=paste) for paste in (False, True))
    known = mask.expand_as(clean)
    assert torch.equal(pasted[known], clean[known])
    assert torch.equal(pasted[~known], raw[~known])
    assert not torch.equal(raw[known], clean[known])


def test_one_mask_for_all_equals_one_for_each():
    clean = smooth()
    mask = holes(clean)[:1]
    ours = inpaint(clean, mask, config=BRIEF)
    torch.testing.assert_close(ours, inpaint(clean, mask.float().expand(2, 3, -1, -1), config=BRIEF))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 1, 20, 23), r"mask must have the size of images, \(2, 3, 20, 24\).*got \(1, 1, 20, 23\)"),
        (torch.ones(3, 1, 20, 24), r"mask must have the size of images, .* got \(3, 1, 20, 24\)"),
        (torch.ones(1, 2, 20, 24), r"mask must have the size of images, .* got \(1, 2, 20, 24\)"),
        (torch.ones(20, 24), r"mask must have the size of images, .* got \(20, 24\)"),
        (torch.full((1, 1, 20, 24), 0.5), "mask must be binary"),
        (torch.zeros(1, 1, 20, 24), "mask must leave at least one known pixel in every image"),
    ],
)
def test_bad_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        inpaint(smooth(), mask, config=BRIEF)


def test_a_mask_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="images and mask must be tensors, got Tensor and NoneType"):
        inpaint(smooth(), None, config=BRIEF)
