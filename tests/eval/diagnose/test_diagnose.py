"""Sanity checks of an evaluation: what is broken on purpose is caught, what is sound passes."""

import json
import math
import re
from dataclasses import asdict
from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.transforms import GaussianBlur
from typer.testing import CliRunner

from attacks import autoattack_flags
from dipdefense import FitConfig, defend
from dipdefense.cli import app
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.diagnose import CHECKS, diagnose, passes
from eval.diagnose.attack_convergence import converged, gradients, one_step, settled
from eval.diagnose.attack_trace import NoGradientError, Trace, margin, trace
from eval.diagnose.finding import surely_above
from eval.diagnose.outputs import autoattack, probabilities
from eval.diagnose.radius import monotone
from eval.intervals import wilson

EPS = 0.2  # a bare digits_cnn falls to it, and noise of its size breaks 4 of 10


def sample(dataset, n=32, seed=0):
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:n]
    return dataset.batch(order.tolist()), dataset.labels[order]


IMAGES, LABELS = sample(load_dataset("digits"))
SHORT = {"eps": EPS, "steps": 5, "queries": 60}


@pytest.fixture(scope="module")
def net():
    return load_classifier("digits_cnn")


class Broken(nn.Module):
    """A classifier behind a defence that only breaks attacks."""

    def __init__(self, net, before=None, after=None):
        super().__init__()
        self.net, self.before, self.after = net, before or nn.Identity(), after or nn.Identity()

    def forward(self, images):
        return self.after(self.net(self.before(images)))


def detach(images):
    return images.detach()


def quantise(images):
    return torch.round(images * 7) / 7


def add_noise(images):
    return images + 0.1 * torch.randn_like(images)


def failed(table):
    return set(table["check"][table["passed"].eq(False)])


ATTACKED = {"gradients", "random_noise", "one_step", "converged", "settled", "monotone", "unbounded", "transfer"}
ATTACKED |= {"black_box"}  # the checks that need a gradient attack


@pytest.mark.parametrize(
    ("before", "after", "caught"),
    [
        (detach, None, ATTACKED | {"autoattack_flags"}),
        (quantise, None, {"gradients", "random_noise", "unbounded", "transfer", "black_box", "autoattack_flags"}),
        (None, partial(torch.softmax, dim=1), {"probabilities", "autoattack_flags"}),
        (add_noise, None, {"stable", "autoattack_flags"}),
    ],
    ids=["detached", "quantised", "softmax", "noise"],
)
def test_a_defence_broken_on_purpose_is_caught(net, before, after, caught):
    table = diagnose(Broken(net, before, after), IMAGES[:16], LABELS[:16], surrogate=net, **SHORT)
    assert caught <= failed(table)


def normalised_by_the_batch(images):
    return images - images.mean(0) + 0.5 * (len(images) == 1)


def test_a_model_whose_answer_depends_on_the_batch_is_caught(net):
    table = diagnose(Broken(net, normalised_by_the_batch), IMAGES[:16], LABELS[:16], checks=["alone"], **SHORT)
    assert failed(table) == {"alone"}
    assert table["figures"][0]["predictions that change"] > 1
    assert diagnose(net, IMAGES[:16], LABELS[:16], checks=["alone"], **SHORT)["passed"].all()


def test_a_bare_classifier_passes(net):
    smoothed = nn.Sequential(GaussianBlur(3, 0.7), net).eval()
    table = diagnose(net, IMAGES, LABELS, surrogate=smoothed, **SHORT)
    assert failed(table) == set()
    assert table["passed"].all()
    assert list(table["check"]) == list(CHECKS)
    assert not table["remedy"].any()


def test_few_images_pass_too(net):
    """Noise of sampling alone fails no check: 8 images are the fewest that are taken."""
    images, labels = sample(load_dataset("digits"), 8, seed=1)
    assert failed(diagnose(net, images, labels, surrogate=net, **SHORT, seed=1)) == set()


def test_autoattack_is_asked_about_recognised_images(net):
    """Its loss is constant where the true class comes third; no attack would start there."""
    third = net(IMAGES).topk(3).indices[:, 2]
    labels = torch.where(torch.arange(32) < 2, third, LABELS)
    assert any("2 points with zero gradient" in flag for flag in autoattack_flags(net, IMAGES, labels))
    assert autoattack(net, IMAGES, labels).passed


@pytest.mark.data
@pytest.mark.slow
def test_the_resnet_passes(data):
    classifier = load_classifier("cifar_resnet20", data / "weights" / "cifar10_resnet20.pt")
    images, labels = sample(load_dataset("cifar10", data / "cifar10" / "test.npz"))
    smoothed = nn.Sequential(GaussianBlur(3, 0.7), classifier).eval()
    table = diagnose(classifier, images, labels, eps=8 / 255, queries=100, surrogate=smoothed)
    assert table["passed"].all()


@pytest.mark.data
@pytest.mark.slow
def test_the_adversarially_trained_lenet_passes(data):
    robust, plain = (
        load_classifier("mnist_lenet", data / "weights" / f"mnist_lenet5_{name}.pt")
        for name in ("advtrained", "clntrained")
    )
    images, labels = sample(load_dataset("mnist", data / "mnist"), 64)
    table = diagnose(robust, images, labels, eps=0.3, surrogate=plain)
    assert table["passed"].all()
    robust_accuracy = table.set_index("check").loc["converged", "figures"]["accuracy after 40 steps"]
    assert wilson(round(64 * robust_accuracy), 64)[0] > 0.8  # it is robust, or its passing would say little


@pytest.mark.parametrize(
    ("start", "end", "fail"),
    [
        (1.0, -0.5, {"converged"}),  # falls in the second half of the steps
        (1.0, 0.2, {"settled"}),  # stands, and would fall if it went on
        (1.0, 0.6, set()),  # as many steps again end at 0.2
        (1.0, -3.0, set()),  # falls in the first half
        (-0.5, -1.0, set()),
    ],
)
def test_attacks_that_end_too_soon_are_caught(net, start, end, fail):
    """Margins that fall evenly, for 6 of 32 images; the others stand and rest."""
    margins = torch.ones(17, 32)
    margins[:, :6] = torch.linspace(start, end, 17)[:, None]
    found = Trace(margins, torch.ones(16, 32, dtype=torch.bool), IMAGES)
    verdicts = [
        check(net, IMAGES, LABELS, eps=EPS, steps=8, craft=lambda *_, **__: found) for check in (converged, settled)
    ]
    assert {finding.check for finding in verdicts if not finding.passed} == fail


def test_a_rising_accuracy_is_caught(net):
    """An attack that gives up on the largest ball."""

    def craft(model, images, labels, *, eps, steps, seed=0):
        return trace(model, images, labels, eps=eps if eps <= EPS else 1e-3, steps=steps, seed=seed)

    finding = monotone(net, IMAGES, LABELS, eps=EPS, steps=5, craft=craft)
    assert not finding.passed
    assert finding.figures["accuracy at 0.4"] > finding.figures["accuracy at 0.2"]
    assert monotone(net, IMAGES, LABELS, eps=EPS, steps=5).passed


def test_one_step_that_does_as_well_is_caught(net):
    """A gradient that is right at the image only: all that follows is random."""

    def craft(model, images, labels, **numbers):
        found = trace(model, images, labels, **numbers)
        return found._replace(margins=margin(model, images, labels)[None])

    assert not one_step(net, IMAGES, LABELS, eps=EPS, steps=5, craft=craft).passed


def test_a_nan_gradient_is_counted_and_the_attack_goes_on(net):
    class Torn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images):
            return images.clone()

        @staticmethod
        def backward(ctx, gradient):
            return torch.where(torch.arange(len(gradient)).view(-1, 1, 1, 1) < 10, math.nan, gradient)

    finding = gradients(Broken(net, Torn.apply).eval(), IMAGES, LABELS, eps=EPS, steps=3)
    attack = trace(net, IMAGES, LABELS, eps=EPS, steps=1)
    blind = int((attack.margins[0, :10] > 0).sum())  # an image that its random start breaks is not asked
    assert finding.figures["images without gradient"] == blind >= 5
    assert not finding.passed


def test_log_probabilities_are_logits(net):
    finding = probabilities(Broken(net, after=partial(torch.log_softmax, dim=1)), IMAGES, LABELS)
    assert finding.passed
    assert finding.figures["log-probabilities"]
    assert not probabilities(net, IMAGES, LABELS).figures["log-probabilities"]


def test_transfer_is_not_asked_without_a_surrogate(net):
    (row,) = diagnose(net, IMAGES, LABELS, checks=["transfer"], **SHORT).itertuples()
    assert row.passed is None
    assert row.queries == 0
    assert row.remedy == "name another classifier as the surrogate (--surrogate)"


def test_a_linear_classifier_has_its_exact_trace():
    """Linf PGD on w x + b arrives at the corner -eps sign(w), whose margin is known."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    images = 0.3 + 0.4 * torch.rand(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(8, dtype=torch.int64)
    found = trace(linear, images, labels, eps=0.1, steps=10)
    weight = linear[1].weight[0] - linear[1].weight[1]
    torch.testing.assert_close(found.least(), margin(linear, images, labels) - 0.1 * weight.abs().sum().detach())
    torch.testing.assert_close(margin(linear, found.adversarial, labels), found.least())
    assert found.margins.shape == (11, 8)
    assert found.usable.shape == (11, 8)
    assert found.usable.all()
    torch.testing.assert_close(trace(linear, images, labels, eps=0.1, steps=4).margins, found.margins[:5])


def test_the_least_margin_is_kept_per_image(net):
    found = trace(net, IMAGES, LABELS, eps=EPS, steps=6)
    torch.testing.assert_close(margin(net, found.adversarial, LABELS), found.margins.amin(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.least(0), found.margins[0])
    assert (found.adversarial - IMAGES).abs().max() <= EPS + 1e-6


def test_queries_are_counted_and_the_forecast_holds(net):
    table = diagnose(net, IMAGES, LABELS, surrogate=net, **SHORT)
    rows = table.set_index("check")
    assert rows.loc["gradients", "queries"] == 1 + (2 * 5 + 1) * 32  # one image first, then start, steps and end
    assert rows.loc["converged", "queries"] == 0  # the same attack
    square = rows.loc["black_box", "queries"] / 32
    assert square <= 60 + 1
    made = table["queries"].sum() / 32 - square
    assert made == pytest.approx(passes(5, 0), abs=1)


def test_the_attack_is_reproducible_and_leaves_the_world_as_found(net):
    model = Broken(net, add_noise)
    state = torch.get_rng_state()
    first, second = (
        diagnose(model, IMAGES, LABELS, checks=["random_noise", "stable"], **SHORT)["figures"].tolist()
        for _ in range(2)
    )
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert not net.training
    with torch.inference_mode():
        inside = diagnose(model, IMAGES, LABELS, checks=["random_noise", "stable"], **SHORT)["figures"].tolist()
    assert inside == first


def test_the_verdict_is_beyond_noise():
    assert not surely_above(0, 0, 0.5)
    assert not surely_above(6, 6, 0.5)
    assert surely_above(8, 8, 0.5)
    for bound, least in ((0.02, [2, 2, 3, 5]), (0.5, [8, 14, 24, 43])):  # docs/diagnose.md
        assert [min(k for k in range(n + 1) if surely_above(k, n, bound)) for n in (8, 16, 32, 64)] == least


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checks": ["magic"]}, "checks must be among probabilities, .*, got 'magic'"),
        ({"checks": []}, "checks must be among probabilities, .*, got none"),
        ({"eps": 0}, "eps must be above 0 for a diagnosis, got 0"),
        ({"eps": -1}, "eps must be finite and at least 0, got -1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"queries": 3}, "queries must be at least 4, got 3"),
        ({"repeats": 1}, "repeats must be at least 2, got 1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_refuses_numbers(net, options, message):
    with pytest.raises(ValueError, match=message):
        diagnose(net, IMAGES, LABELS, **(SHORT | options))


def test_refuses_models_and_images(net):
    with pytest.raises(ValueError, match="images must be at least 8, got 7"):
        diagnose(net, IMAGES[:7], LABELS[:7], **SHORT)
    with pytest.raises(TypeError, match="images must be floating"):
        diagnose(net, IMAGES.byte(), LABELS, **SHORT)
    with pytest.raises(ValueError, match="labels must be below the model's 10 classes, got 10"):
        diagnose(net, IMAGES, LABELS.clamp(min=10), **SHORT)
    wrongs = ((nn.Flatten(0), "logits (B, K) for 1 image, got shape (10,)"), (lambda x: x * math.nan, "finite logits"))
    for wrong, wanted in wrongs:
        with pytest.raises(ValueError, match=re.escape(f"model must return {wanted}")):
            diagnose(Broken(net, after=wrong).eval(), IMAGES, LABELS, **SHORT)
    with pytest.raises(NoGradientError, match="not have been used"):
        trace(Broken(net, detach), IMAGES, LABELS, eps=EPS, steps=1)


QUICK = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=20)


def test_a_purifier_without_gradient_is_caught_and_says_so(net):
    model = defend(net, QUICK, gradient="none")
    table = diagnose(model, IMAGES[:8], LABELS[:8], eps=EPS, steps=1, checks=["gradients", "autoattack_flags"])
    assert failed(table) == {"gradients", "autoattack_flags"}
    assert "this purification has no gradient" in table["figures"][0]["error"]


def command(*arguments):
    return CliRunner().invoke(app, ["diagnose", *map(str, arguments)])


def test_command_passes_and_fails(tmp_path):
    short = ("--eps", EPS, "--n", 16, "--steps", 5, "--queries", 20, "--out", tmp_path)
    result = command("--bare", *short)
    assert result.exit_code == 0, result.output
    assert "pass  random_noise" in result.output
    assert "-     transfer" in result.output
    written = json.loads((tmp_path / "diagnose.json").read_text())
    table = pd.read_csv(tmp_path / "diagnose.csv")
    assert [row["check"] for row in written] == list(table["check"]) == list(CHECKS)
    assert [row["figures"] for row in written] == [json.loads(text) for text in table["figures"]]
    (tmp_path / "broken.py").write_text(
        "import torch\nfrom eval.digits_cnn import trained_digits_cnn\n"
        "def broken():\n    return torch.nn.Sequential(trained_digits_cnn(), torch.nn.Softmax(1)).eval()\n"
    )
    result = command("--bare", *short, "--classifier", f"{tmp_path / 'broken.py'}:broken", "--checks", "probabilities")
    assert result.exit_code == 2, result.output
    assert "FAIL  probabilities" in result.output
    assert "remedy: return logits" in result.output


def test_command_on_the_defence(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(asdict(QUICK)))
    result = command("--n", 8, "--eps", EPS, "--steps", 1, "--config", config, "--checks", "stable,transfer,gradients")
    assert result.exit_code == (2 if "FAIL" in result.output else 0), result.output
    assert "pass  stable" in result.output
    assert "pass  gradients" in result.output
    assert "accuracy transfer" in result.output  # the bare classifier is the surrogate


def test_command_refuses(tmp_path):
    result = command("--n", 450, "--out", tmp_path / "run")
    assert isinstance(result.exception, ValueError)
    assert "n must lie between 1 and the 449 images of digits, got 450" in str(result.exception)
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("precious")
    assert isinstance(command("--n", 8, "--out", tmp_path / "file").exception, FileExistsError)
    result = command("--n", 8, "--bare", "--checks", "magic", "--out", tmp_path / "run")
    assert "checks must be among" in str(result.exception)
