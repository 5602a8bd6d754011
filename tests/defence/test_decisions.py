"""Decisions: closed forms with a linear classifier, what a fit's trajectory is, and what is refused."""

import copy
import dataclasses
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from dipdefense import (
    DECISIONS,
    DefendedClassifier,
    Detector,
    DetectorGated,
    FitConfig,
    LastReconstruction,
    MeanSoftmax,
    Purifier,
    defend,
)
from dipdefense.defence.detector import log_detail
from dipdefense.defence.evidence import VIEWS, Evidence, classify_view, disagreement, log_mean_softmax

TINY = FitConfig(
    architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=24, ema=0.5
)
LOOKS = (6, 12, 24)
SUSPICION = Detector(iteration=20, bias=1.0, doubt=0.6, left=9.0, drawn=-9.0)
EXAMPLES = [
    LastReconstruction(),
    MeanSoftmax(LOOKS, restarts=2, views=("identity", "mirror")),
    DetectorGated(LOOKS, threshold=0.3, width=0.1),
    DetectorGated(LOOKS, detector=SUSPICION),
    MeanSoftmax(LOOKS, views=("small_mirror",), detector=dataclasses.replace(SUSPICION, quiet=0.1)),
]


def images(n: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)).double()


class Linear(nn.Module):
    """A linear classifier, whose gradient is its weight."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(5, 3 * 16 * 16, generator=torch.Generator().manual_seed(1)) / 10
        self.weight = nn.Parameter(weight.double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


# --- trajectory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [None, 12])
def test_each_look_is_what_a_fit_of_that_length_returns(tile):
    config = dataclasses.replace(TINY, memory_gb=0.004)  # several chunks
    frames = Purifier(config, seed=3, tile=tile).trajectory(images(), LOOKS)
    assert frames.shape == (3, *images().shape)
    assert not frames.requires_grad
    for iteration, frame in zip(LOOKS, frames, strict=True):
        short = dataclasses.replace(config, iterations=iteration)
        torch.testing.assert_close(frame, Purifier(short, seed=3, tile=tile).reconstruct(images()), rtol=0, atol=1e-9)


def test_the_looks_come_in_the_order_asked_for_and_restarts_add_to_the_seed():
    purifier = Purifier(TINY, seed=3)
    frames = purifier.trajectory(images(), LOOKS)
    torch.testing.assert_close(purifier.trajectory(images(), (24, 6)), frames[[2, 0]])
    torch.testing.assert_close(Purifier(TINY, seed=1).trajectory(images(), LOOKS, restart=2), frames)
    fresh = Purifier(TINY, seed=None)
    assert not torch.equal(fresh.trajectory(images(), (6,)), fresh.trajectory(images(), (6,)))


def test_the_cosine_loss_stays_in_range():
    config = dataclasses.replace(TINY, loss="cosine", iterations=100, ema=0.0)
    stripes = torch.tensor([0.0, 1.0]).repeat(8).expand(1, 3, 16, 16)
    assert Purifier(config).trajectory(stripes, (100,)).max() == 1


def test_an_image_that_was_given_up_keeps_its_last_average():
    config = dataclasses.replace(TINY, lr=1e4, iterations=200, rollback_db=1e-6)
    with pytest.warns(UserWarning, match="keeps diverging"):
        frames = Purifier(config).trajectory(images(), (150, 200))
    with pytest.warns(UserWarning, match="keeps diverging"):
        whole = Purifier(config).reconstruct(images())
    torch.testing.assert_close(frames[1], whole)
    assert frames.isfinite().all()


# --- closed forms -----------------------------------------------------------------------------------------------


def test_the_mean_of_softmaxes_by_hand():
    along = torch.tensor([[[0.0, 0.0]], [[0.0, 3.0]]]).log_softmax(2) + 7  # a constant cancels
    expected = (torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 3.0]).softmax(0)) / 2
    torch.testing.assert_close(log_mean_softmax(along).exp()[0], expected)
    torch.testing.assert_close(disagreement(torch.tensor([[2.0, 1.0]]), along), 1 - expected[:1])


def test_logits_average_iterations_restarts_and_views():
    net, purifier = Linear(), Purifier(TINY, seed=4)
    decision = MeanSoftmax(LOOKS, restarts=2, views=("identity", "mirror"))
    frames = torch.cat([Purifier(TINY, seed=seed).trajectory(images(), LOOKS) for seed in (4, 5)])
    shown = [frame for frame in frames] + [frame.flip(3) for frame in frames]
    expected = torch.stack([net(image).softmax(1) for image in shown]).mean(0).log()
    torch.testing.assert_close(DefendedClassifier(net, purifier, decision=decision)(images()), expected)


def test_the_straight_through_gradient_reaches_every_reconstruction():
    """d log mean_s p_s[k] / dx = sum_s p_s[k] (W_k - sum_j p_s[j] W_j) / sum_s p_s[k]."""
    net, x = Linear(), images().requires_grad_()
    decision = MeanSoftmax(LOOKS, restarts=2)
    DefendedClassifier(net, Purifier(TINY), decision=decision)(x)[:, 2].sum().backward()
    frames = torch.cat([Purifier(TINY, seed=seed).trajectory(images(), LOOKS) for seed in (0, 1)])
    p = torch.stack([net(frame).softmax(1) for frame in frames])  # (S, B, K)
    slope = p[..., 2:3] * (net.weight[2] - p @ net.weight)  # (S, B, C*H*W)
    torch.testing.assert_close(x.grad, (slope.sum(0) / p[..., 2:3].sum(0)).view_as(x))


@pytest.mark.parametrize(("threshold", "width"), [(0.0, 1e-6), (1.0, 1e-6), (0.4, 0.2)])
def test_trust_passes_from_the_bare_prediction_to_the_trajectory(threshold, width):
    net, x = Linear(), images().requires_grad_()
    bare = net(x)
    along = net(Purifier(TINY).trajectory(images(), (12,))[0] + (x - x.detach()))  # straight through, by hand
    score = disagreement(bare, along[None])
    w = torch.sigmoid((score - threshold) / width)[:, None]
    expected = ((1 - w) * bare.softmax(1) + w * along.softmax(1)).log()
    logits = defend(net, TINY, decision=DetectorGated((12,), threshold=threshold, width=width))(x)
    torch.testing.assert_close(logits, expected)
    if width > 0.1:
        wanted, got = (torch.autograd.grad(y[:, 1].sum(), x)[0] for y in (expected, logits))
        torch.testing.assert_close(got, wanted)


def test_views():
    row = torch.arange(4.0).expand(1, 1, 4, 4)
    assert torch.equal(VIEWS["identity"](row), row)
    assert VIEWS["mirror"](row)[0, 0, 0].tolist() == [3, 2, 1, 0]
    assert torch.equal(VIEWS["small_mirror"](row), row.flip(3))  # as small as it gets


@pytest.mark.parametrize(
    ("size", "smaller"),
    [
        ((224, 224), (176, 176)),
        ((64, 300), (48, 240)),
        ((32, 32), (32, 32)),
        ((28, 20), (28, 20)),
        ((48, 17), (32, 17)),
    ],
)
def test_the_small_mirror_has_four_fifths_of_a_long_side_in_whole_sixteens(size, smaller):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    seen = VIEWS["small_mirror"](images)
    assert seen.shape == (2, 3, *smaller)
    mirrored = [to_pil_image(image.flip(2)) for image in images]
    wanted = [pil_to_tensor(image.resize(smaller[::-1], Image.Resampling.BILINEAR)) / 255 for image in mirrored]
    torch.testing.assert_close(seen, torch.stack(wanted), rtol=0, atol=2 / 255)  # Pillow works in whole values


def test_a_classifier_of_one_size_is_told_which_view_it_refuses():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 2))
    assert classify_view(net, torch.rand(1, 3, 48, 48), "mirror").shape == (1, 2)
    with pytest.raises(ValueError, match=r"images of 32x32, which the view 'small_mirror' shows.*first layer resize"):
        classify_view(net, torch.rand(1, 3, 48, 48), "small_mirror")
    with pytest.raises(RuntimeError):  # its own, where the view is not at fault
        classify_view(net, torch.rand(1, 3, 8, 8), "small_mirror")
    with pytest.raises(ValueError, match="small_mirror"):
        defend(net, decision=MeanSoftmax(views=("small_mirror",))).detect(torch.rand(1, 3, 48, 48))


class Broken(nn.Module):
    """A classifier that raises, or returns, what it is told; if asked, for images up to 32 pixels a side alone."""

    def __init__(self, result, small_only):
        super().__init__()
        self.result, self.small_only = result, small_only

    def forward(self, images):
        if self.small_only and images.shape[-1] > 32:
            return images.mean(2)[:, :, 0].repeat(1, 2)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result.expand(len(images), -1)


@pytest.mark.parametrize(
    ("result", "small_only", "error", "message"),
    [
        (RuntimeError("one channel"), False, RuntimeError, "^one channel$"),
        (torch.full((1, 6), math.nan), False, ValueError, "^classifier must return finite logits"),
        (torch.OutOfMemoryError("full"), True, torch.OutOfMemoryError, "^full$"),
        (torch.full((1, 6), math.nan), True, ValueError, "'small_mirror' shows it, got NaN or infinite logits"),
        (torch.zeros(1, 5), True, ValueError, r"logits \(1, 6\) for images of every size, got \(1, 5\) for the view"),
    ],
)
def test_what_is_wrong_with_a_classifier_is_said_before_the_fit(result, small_only, error, message, monkeypatch):
    decision = MeanSoftmax((2,), views=("small_mirror",))
    monkeypatch.setattr("dipdefense.defence.purifier.fit", None)
    monkeypatch.setattr("dipdefense.defence.purifier._watch", None)
    with pytest.raises(error, match=message):
        defend(Broken(result, small_only), decision=decision)(torch.rand(1, 3, 48, 48))


def test_a_small_mirror_stays_between_0_and_1_and_passes_every_gradient():
    white = torch.ones(1, 3, 224, 224, requires_grad=True)
    seen = VIEWS["small_mirror"](white)
    assert seen.max() == 1
    assert VIEWS["small_mirror"](0 * white).min() == 0
    (gradient,) = torch.autograd.grad(seen.sum(), white)
    torch.testing.assert_close(gradient.mean(), torch.tensor(176.0**2 / 224**2), rtol=1e-5, atol=0)
    assert (gradient > 0).all()


def stripes(height: float) -> torch.Tensor:
    """(1, 1, 4, 6), a chequerboard: the mask at any pixel gives 16 heights over 6, up to the sign."""
    y, x = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    return (height * (-1.0) ** (x + y))[None, None]


def test_the_detector_by_hand():
    bare, along = torch.tensor([[2.0, 0.0]]), torch.tensor([[[0.0, 0.0]], [[math.log(3), 0.0]]])
    frames = torch.stack([stripes(0.1), stripes(0.2)])  # of two restarts
    left = (math.log(0.3 * 16 / 6 + 1e-3) + math.log(0.2 * 16 / 6 + 1e-3)) / 2
    drawn = (math.log(0.1 * 16 / 6 + 1e-3) + math.log(0.2 * 16 / 6 + 1e-3)) / 2
    doubt = -math.log((0.5 + 0.75) / 2 + 1e-3)
    z = 1.5 + 0.5 * doubt + 3 * left - 2 * drawn
    detector = Detector(iteration=9, bias=1.5, doubt=0.5, left=3, drawn=-2)
    found = detector(Evidence(bare, along, stripes(0.4), {9: frames}))
    torch.testing.assert_close(found, torch.tensor([1 / (1 + math.exp(-z))]))
    assert detector(Evidence(bare, along, stripes(0.0), {9: stripes(0.0)[None]})).isfinite().all()


def test_detail_is_that_of_noise_and_not_that_of_planes_and_straight_edges():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    smooth = torch.stack([x / 64, (x + y) / 128, (x > 20).float()])[None]
    torch.testing.assert_close(log_detail(smooth[None])[0], torch.tensor([math.log(1e-3)]), atol=1e-2, rtol=0)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    # the mean of log |n| of a standard normal n is -(Euler's constant + log 2) / 2
    expected = math.log(0.1) - (np.euler_gamma + math.log(2)) / 2
    torch.testing.assert_close(
        log_detail((0.1 * noise + smooth)[None])[0], torch.tensor([expected]).double(), atol=0.06, rtol=0
    )
    assert log_detail(noise[None, ..., :2]).item() == pytest.approx(math.log(1e-3))


def test_a_quiet_detector_looks_at_the_quietest_blocks():
    """Of 5x5 blocks with noise of levels 1, 2, .., 25 the quantile of a quarter is the seventh; the border is over."""
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    levels = (order + 1.0).view(5, 5).repeat_interleave(8, 0).repeat_interleave(8, 1)
    noise = torch.randn(200, 40, 40, generator=torch.Generator().manual_seed(1))
    image = torch.nn.functional.pad(noise * levels, (1, 4, 1, 4))[None, None]  # the mask needs a pixel, then 3 are over
    whole = log_detail(noise[None, None])  # of level 1
    torch.testing.assert_close(log_detail(image, 0.25), whole + math.log(7), atol=0.15, rtol=0)
    torch.testing.assert_close(log_detail(image, 1.0), whole + math.log(25), atol=0.15, rtol=0)
    flat = torch.full((1, 2, 3, 5, 43), 0.5)  # narrower than a block
    torch.testing.assert_close(log_detail(flat, 0.5), torch.full((1, 2), math.log(1e-3)))


@pytest.mark.parametrize("quiet", [0, 1.1, -0.1, math.nan, "low"])
def test_a_quantile_outside_of_its_range_is_refused(quiet):
    with pytest.raises(ValueError, match="quiet must be"):
        Detector(iteration=9, bias=0.0, doubt=0.0, left=1.0, drawn=0.0, quiet=quiet)


def test_the_reconstruction_is_the_mean_of_what_was_classified():
    frames = Purifier(TINY).trajectory(images(), LOOKS)
    found = defend(Linear(), TINY, decision=MeanSoftmax(LOOKS)).judge(images()).reconstruction
    torch.testing.assert_close(found, frames.mean(0))


# --- the module -------------------------------------------------------------------------------------------------


def test_every_decision_has_an_example():
    assert {type(decision) for decision in EXAMPLES} == set(DECISIONS.values())


@pytest.mark.parametrize("decision", EXAMPLES)
def test_one_image_is_decided_as_in_its_batch(decision):
    defended = defend(Linear(), TINY, decision=decision)
    logits, scores = defended.judge(images())[:2]
    assert logits.shape == (3, 5)
    assert scores.shape == (3,)
    assert ((scores >= 0) & (scores <= 1)).all()
    for got, wanted in ((defended(images()), logits), (defended.detect(images()), scores)):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(defended.detect(images()[1:2]), scores[1:2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(defended(images()[1:2]), logits[1:2], rtol=1e-6, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(defended(images()), logits)


@pytest.mark.parametrize("decision", EXAMPLES)
def test_a_decision_survives_json_copies_and_files(decision):
    name = next(name for name, kind in DECISIONS.items() if kind is type(decision))
    assert DECISIONS[name](**json.loads(json.dumps(dataclasses.asdict(decision)))) == decision
    defended = defend(Linear(), TINY, decision=decision)
    assert list(defended.state_dict()) == ["weight"]
    assert repr(decision) in repr(defended)
    file = io.BytesIO()
    torch.save(defended, file)
    file.seek(0)
    for again in (copy.deepcopy(defended), torch.load(file, weights_only=False)):
        torch.testing.assert_close(again(images()), defended(images()))


@pytest.mark.parametrize("decision", DECISIONS.values())
def test_a_decision_without_arguments_fits_any_length(decision):
    for iterations in (2, 24):
        config = dataclasses.replace(TINY, iterations=iterations)
        assert defend(Linear(), config, decision=decision())(images()).shape == (3, 5)


def test_the_last_look_alone_is_the_softmax_of_the_last_decision():
    last, mean = (defend(Linear(), TINY, decision=d)(images()) for d in (None, MeanSoftmax((24,))))
    torch.testing.assert_close(mean, last.log_softmax(1))


def test_no_gradient_raises_through_a_decision():
    x = images().requires_grad_()
    with pytest.raises(RuntimeError, match='use gradient="straight_through"'):
        defend(Linear(), TINY, gradient="none", decision=DetectorGated())(x).sum().backward()


# --- what is refused --------------------------------------------------------------------------------------------


class Returns(nn.Module):
    """Whatever it is given."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> object:
        return self.value


RISING = "iterations must be one or more integers rising from 1 or above, got "


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: defend(Linear(), TINY, decision="vote"),
            ValueError,
            "must be one of last, mean_softmax, detector_gated, got 'vote'",
        ),
        (lambda: defend(Linear(), TINY, decision=3), TypeError, "decision must be a Decision, its name or None, got 3"),
        (
            lambda: defend(Linear(), TINY, decision=LastReconstruction),
            TypeError,
            "decision must be a Decision, its name or None",
        ),
        (lambda: MeanSoftmax(()), ValueError, RISING),
        (lambda: MeanSoftmax((3, 2)), ValueError, RISING),
        (lambda: MeanSoftmax((2, 2)), ValueError, RISING),
        (lambda: DetectorGated((0, 1)), ValueError, RISING),
        (lambda: DetectorGated((1.5,)), ValueError, RISING),
        (
            lambda: MeanSoftmax(LOOKS, detector={"iteration": 5, "bias": 1, "early": 20}),
            ValueError,
            "settings of a detector must be among iteration, bias, .*, got 'early'",
        ),
        (lambda: MeanSoftmax(LOOKS, restarts=0), ValueError, "restarts must be an integer of at least 1, got 0"),
        (lambda: MeanSoftmax(LOOKS, views=()), ValueError, "views must be one or more of identity, mirror"),
        (lambda: MeanSoftmax(LOOKS, views=("up",)), ValueError, "views must be one or more of identity, mirror"),
        (lambda: DetectorGated(LOOKS, threshold=1.5), ValueError, r"threshold must lie in \[0, 1\], got 1.5"),
        (
            lambda: Detector(iteration=0, bias=0, doubt=0, left=0, drawn=0),
            ValueError,
            "iteration must be an integer of at least 1, got 0",
        ),
        (lambda: DetectorGated(LOOKS, width=0), ValueError, "width must be at least 1e-06, got 0"),
        (lambda: defend(Linear(), TINY, decision=MeanSoftmax((25,)))(images()), ValueError, "from 1 to the 24 of the"),
        (lambda: Purifier(TINY).trajectory(images(), ()), ValueError, "iterations must be one or more integers from 1"),
        (lambda: Purifier(TINY).trajectory(images(), (0,)), ValueError, r"of the fit, got \(0,\)"),
        (
            lambda: defend(Linear(), dataclasses.replace(TINY, stopping="emv"), decision=DetectorGated())(images()),
            ValueError,
            "stopping must be fixed where iterations are named, got 'emv': use the decision last",
        ),
        (lambda: defend(Linear(), TINY, decision=DetectorGated())(images() * 2), ValueError, "255"),
        (lambda: defend(Returns(torch.zeros(3)), TINY)(images()), ValueError, r"\(B, K\) for 3 images, got shape \(3,"),
        (lambda: defend(Returns(torch.zeros(2, 5)), TINY)(images()), ValueError, r"logits \(B, K\) for 3 images"),
        (lambda: defend(Returns(None), TINY)(images()), ValueError, "for 3 images, got NoneType"),
        (
            lambda: defend(Returns(torch.full((3, 5), torch.nan)), TINY).detect(images()),
            ValueError,
            "classifier must return finite logits, got NaN or infinite values",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
