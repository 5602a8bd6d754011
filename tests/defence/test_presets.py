"""The one default: what `defence_for` gives by shape, by name and by classifier, and that everything uses it."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from dipdefense import (
    DECISIONS,
    Defence,
    DefendedClassifier,
    DetectorGated,
    FitConfig,
    LastReconstruction,
    MeanSoftmax,
    Purifier,
    check_classifier,
    defence_for,
    defend,
)
from dipdefense.defence.evidence import VIEWS

GREY, SMALL, LARGE = (1, 28, 28), (3, 32, 32), (3, 48, 40)
TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=4)


def images(shape: tuple[int, ...], n: int = 2) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def pooled(channels: int = 3) -> nn.Module:
    """A classifier of images of every size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, 5)).eval()


def transformer(size: int) -> nn.Module:
    """A vision transformer, which refuses images of every other size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = VisionTransformer(
            image_size=size, patch_size=16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=5
        )
        nn.init.normal_(net.heads.head.weight)  # it starts at zero
        return net.eval()


# --- the default, and names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [GREY, SMALL, (3, 48, 16)])
def test_defend_and_the_purifier_use_the_default_of_the_shape(shape):
    defence = defence_for(shape)
    x = torch.zeros(1, *shape)
    purifier, decision = defend(pooled(shape[0])).plan(x)
    assert Defence(purifier.config, decision, purifier.tile) == defence
    assert Purifier().config_for(x) == defence.fit
    assert Purifier().tile_for(x) == purifier.tile_for(x) == (None if max(shape) <= 32 else 32)
    if shape == GREY:
        assert decision == LastReconstruction()
    else:
        assert isinstance(decision, DetectorGated)
        assert max(*decision.iterations, *decision.scored_iterations) <= defence.fit.iterations


@pytest.mark.parametrize("shape", [GREY, (3, 16, 16), (3, 40, 24)])  # the last one is cut into tiles
@torch.no_grad()
def test_the_purifier_gives_the_reconstruction_of_the_default_defence(shape):
    x, net = images(shape, 1), pooled(shape[0])
    found = defend(net).judge(x).reconstruction
    assert torch.equal(Purifier()(x), found)
    assert torch.equal(Purifier().reconstruct(x), found)
    if shape != GREY:
        defence = defence_for(shape)
        along = Purifier(defence.fit, tile=defence.tile).trajectory(x, defence.decision.iterations)
        assert torch.equal(along.mean(0), found)


def test_the_gradient_of_the_default_purifier_is_the_identity():
    x = images((3, 16, 16), 1).requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((Purifier()(x) * weight).sum(), x)
    torch.testing.assert_close(gradient, weight)


class Short(Purifier):
    """Another fit than the default one, by a method."""

    def config_for(self, images):
        return TINY


def test_a_derived_class_with_a_fit_of_its_own_gives_what_that_returns():
    assert torch.equal(Short()(images(LARGE)), Purifier(TINY, tile=32)(images(LARGE)))


@torch.no_grad()
def test_the_progress_of_the_default_purifier_is_told():
    seen, last = [], max(defence_for((3, 8, 8)).decision.iterations_of(1))
    Purifier().reconstruct(images((3, 8, 8), 1), lambda state: seen.append(state.iteration))
    assert seen == list(range(1, last + 1))


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_a_name_stands_for_what_was_tuned_for_the_shape(shape):
    default = defence_for(shape)
    gated, mean, last = (defence_for(shape, decision=name) for name in ("detector_gated", "mean_softmax", "last"))
    assert gated == default
    assert mean.fit == default.fit
    assert type(mean.decision) is MeanSoftmax
    for field in ("iterations", "views", "detector", "restarts"):
        assert getattr(mean.decision, field) == getattr(default.decision, field)
    assert last.decision == LastReconstruction()
    for name in DECISIONS:
        purifier, decision = DefendedClassifier(pooled(), decision=name).plan(torch.zeros(1, *shape))
        assert Defence(purifier.config, decision, purifier.tile) == defence_for(shape, decision=name)


def test_a_name_is_refused_where_nothing_was_tuned():
    assert defence_for(GREY, decision="last") == defence_for(GREY)
    for name in ("detector_gated", "mean_softmax"):
        with pytest.raises(ValueError, match=r"decision must be last for images of shape \(1, 28, 28\).*leave it out"):
            defence_for(GREY, decision=name)
        with pytest.raises(ValueError, match=f"for which no other was tuned, got '{name}'"):
            defend(pooled(1), decision=name)(images(GREY))
    with pytest.raises(ValueError, match="decision must be one of last, mean_softmax, detector_gated, got 'vote'"):
        defence_for(SMALL, decision="vote")
    with pytest.raises(TypeError, match="decision must be a Decision, its name or None, got 3"):
        defence_for(SMALL, decision=3)
    for shape in ((32, 32), (3, 0, 32)):
        with pytest.raises(ValueError, match=r"shape must be \(C, H, W\), three positive integers, got"):
            defence_for(shape)


def test_a_decision_of_ones_own_gets_the_default_fit():
    mean, last = MeanSoftmax((20,)), LastReconstruction()
    assert defence_for(SMALL, decision=mean) == replace(defence_for(SMALL), decision=mean)
    assert defence_for(SMALL, decision=last) == defence_for(SMALL, decision="last")
    assert defence_for(GREY, decision=mean) == replace(defence_for(GREY), decision=mean)


def test_with_a_fit_of_ones_own_nothing_is_tuned():
    assert defence_for(SMALL, fit=TINY) == Defence(TINY, LastReconstruction(), None)
    assert defence_for(GREY, fit=TINY, decision="mean_softmax") == Defence(TINY, MeanSoftmax(), None)
    with pytest.raises(
        ValueError, match="decision must be a DetectorGated with a detector that was learnt on your fit"
    ):
        defence_for(GREY, fit=TINY, decision="detector_gated")
    assert defend(pooled(), TINY, decision="mean_softmax").plan(images(LARGE))[1] == MeanSoftmax()
    assert DefendedClassifier(pooled(), Purifier(TINY, tile=16)).plan(images(LARGE))[0].tile == 16


def test_the_old_name_of_a_decision_is_deprecated():
    with pytest.warns(FutureWarning, match="the decision trust is now called detector_gated"):
        defended = defend(pooled(), decision="trust")
    assert defended.plan(images(SMALL))[1] == defence_for(SMALL).decision  # not said again
    with pytest.warns(FutureWarning, match="detector_gated"):
        assert defence_for(SMALL, decision="trust") == defence_for(SMALL)


def test_what_is_set_later_holds():
    defended = defend(pooled())
    assert isinstance(defended.plan(images(SMALL))[1], DetectorGated)
    defended.decision = "last"
    assert defended.plan(images(SMALL))[1] == LastReconstruction()


# --- classes that change in the mirror --------------------------------------------------------------------------


def test_without_the_mirror_no_view_is_mirrored():
    for shape, views in ((SMALL, ("identity",)), (LARGE, ("small",))):
        default = defence_for(shape)
        plain = defence_for(shape, mirror=False)
        assert plain == replace(default, decision=replace(default.decision, views=views))
        assert defend(pooled(), mirror=False).plan(images(shape))[1] == plain.decision
        assert defence_for(shape, decision="mean_softmax", mirror=False).decision.views == views
    assert defence_for(GREY, mirror=False) == defence_for(GREY)
    x = images(LARGE)
    torch.testing.assert_close(VIEWS["small"](x).flip(3), VIEWS["small_mirror"](x))


def test_without_the_mirror_a_mirrored_decision_of_ones_own_is_refused():
    with pytest.raises(
        ValueError, match=r"decision must have no mirrored view where mirror is False, got \('mirror',\)"
    ):
        defence_for(SMALL, decision=MeanSoftmax(views=("mirror",)), mirror=False)
    own = MeanSoftmax((2,))
    assert defend(pooled(), TINY, decision=own, mirror=False).plan(images(SMALL))[1] == own


# --- classifiers of one size ------------------------------------------------------------------------------------

SMALLER = (
    r"classifier must take images of 32x32, which the view '{view}' shows it, got AssertionError: Wrong image .*: "
    r"the default defence classifies the view '{instead}' in its place, .* let the classifier's first layer resize"
)


@torch.no_grad()
def test_a_vision_transformer_is_defended_as_it_is():
    net, x = transformer(48), images((3, 48, 48), 1)
    defended = defend(net, check=(3, 48, 48))
    with pytest.warns(UserWarning, match=SMALLER.format(view="small_mirror", instead="mirror")) as said:
        first = defended.judge(x)
    assert len(said) == 1
    with warnings.catch_warnings(action="error"):  # said once, also where the defence is asked through a variant
        assert torch.equal(defended.variant(seed=0, gradient="none")(x), first.logits)
        planned = defended.plan(x)[1]
    default = defence_for((3, 48, 48)).decision
    assert planned == replace(default, views=("mirror",))
    along = Purifier().trajectory(x, default.iterations)
    mean = torch.stack([net(frame.flip(3)).softmax(1) for frame in along]).mean(0)
    weight = torch.sigmoid((first.scores - default.threshold) / default.width)[:, None]
    torch.testing.assert_close(first.logits.exp(), (1 - weight) * net(x).softmax(1) + weight * mean)


def test_a_view_of_another_size_is_left_out_in_either_mode():
    net = transformer(48)
    for training in (False, True):
        net.train(training)
        state = torch.get_rng_state()
        with pytest.warns(UserWarning, match=SMALLER.format(view="small", instead="identity")):
            assert defence_for((3, 48, 48), net, mirror=False).decision.views == ("identity",)
        assert all(module.training is training for module in net.modules())
        assert torch.equal(torch.get_rng_state(), state)


def test_a_transformer_of_timm():
    timm, size = pytest.importorskip("timm"), 224
    with torch.random.fork_rng():
        net = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5).eval()
    assert "size" not in {fault.name for fault in check_classifier(net, (3, size, size)).faults}
    with pytest.warns(
        UserWarning, match=r"images of 176x176, which .* got AssertionError: Input height.*[^.]: the def"
    ):
        defence = defence_for((3, size, size), net)
    assert defence.decision.views == ("mirror",)
    cheap = replace(defence.decision, iterations=(1, 2), detector=None)
    defended = DefendedClassifier(net, Purifier(replace(defence.fit, iterations=2), tile=defence.tile), decision=cheap)
    with torch.no_grad():
        assert defended(images((3, size, size), 1)).shape == (1, 5)


def test_a_view_that_is_refused_by_a_decision_of_ones_own_is_an_error():
    x, net = images((3, 48, 48)), transformer(48)
    for config in (None, TINY):
        defended = defend(net, config, decision=MeanSoftmax((2,), views=("small_mirror",)))
        with pytest.raises(ValueError, match=r"32x32, which the view 'small_mirror' .* or name a decision without"):
            defended(x)


class Sized(nn.Module):
    """What another function makes of images up to 32 pixels a side."""

    def __init__(self, small, large=lambda x: x.mean((2, 3))):
        super().__init__()
        self.small, self.large = small, large

    def forward(self, x):
        return (self.small if x.shape[-1] <= 32 else self.large)(x)


@pytest.mark.parametrize(
    ("small", "message"),
    [
        (lambda x: x.mean((2, 3)) * torch.nan, "which the view 'small_mirror' shows it, got NaN or infinite logits"),
        (lambda x: x.mean(3).flatten(1), r"must return logits \(1, 3\) for images of every size, got \(1, 96\)"),
        (lambda x: None, "for images of every size, got NoneType for the view 'small_mirror'"),
    ],
)
def test_an_answer_that_is_none_is_a_refusal(small, message):
    with pytest.warns(UserWarning, match=message):
        assert defence_for((3, 48, 48), Sized(small)).decision.views == ("mirror",)


def refuse(x):
    raise RuntimeError("one channel")


@pytest.mark.parametrize("both", [refuse, lambda x: x.mean((2, 3)) * torch.nan])
def test_a_size_is_not_at_fault_where_the_images_themselves_are_refused(both):
    assert defence_for((3, 48, 48), Sized(both, both)) == defence_for((3, 48, 48))


def test_memory_that_is_full_is_no_refusal():
    def full(x):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match=r"^full$"):
        defence_for((3, 48, 48), Sized(full))
