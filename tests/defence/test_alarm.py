"""The alarm: its rate of false alarms in closed form and by simulation, and what `calibrate` leaves as it was."""

import pickle

import pytest
import torch
from scipy.stats import beta
from torch import nn

import dipdefense
from dipdefense import FitConfig, defend
from dipdefense.defence.alarm import Alarm, set_alarm

SHAPE = (3, 8, 8)
TINY = FitConfig(architecture_options={"channels": [4], "skip_channels": 0}, input_channels=4, iterations=6)


@pytest.fixture(scope="module")
def defended():
    torch.manual_seed(0)
    return defend(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval(), TINY)


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_the_threshold_by_hand():
    scores = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.4, 0.8, 0.6])  # n = 9: ranks among 10
    for fpr, threshold in ((0.1, 0.9), (0.2, 0.8), (0.5, 0.5), (0.15, 0.9)):
        assert set_alarm(scores, fpr, SHAPE).threshold == pytest.approx(threshold)


@pytest.mark.parametrize(("n", "fpr"), [(19, 0.05), (100, 0.05), (37, 0.2)])
def test_false_alarms_are_as_frequent_as_asked_over_many_draws(n, fpr):
    scores = torch.rand(20_000, n, generator=torch.Generator().manual_seed(n))
    k = torch.tensor([set_alarm(row, fpr, SHAPE).threshold for row in scores[:2000]])
    rates = 1 - k  # a uniform score exceeds a threshold t with probability 1 - t
    below = (n + 1) * fpr // 1 / (n + 1)
    assert rates.mean().item() == pytest.approx(below, abs=4 * rates.std().item() / 2000**0.5)
    low, high = set_alarm(scores[0], fpr, SHAPE).interval(0.9)
    assert ((rates > low) & (rates < high)).float().mean().item() == pytest.approx(0.9, abs=0.03)


def test_the_interval_is_that_of_the_rank():
    assert Alarm(0.5, 0.05, 99, SHAPE).interval() == pytest.approx(beta.ppf([0.025, 0.975], 5, 95))


def test_equal_scores_raise_no_more_alarms():
    alarm = set_alarm(torch.zeros(50), 0.1, SHAPE)
    assert not alarm.flags(torch.zeros(5)).any()
    assert alarm.flags(torch.tensor([0.1])).all()


def test_calibrating_makes_a_copy_that_decides_and_scores_as_before(defended):
    clean, seen = images(20), images(3, seed=1)
    alarmed, before = defended.calibrate(clean, 0.1), defended.judge(seen)
    after = alarmed.judge(seen)
    assert before.flagged is None
    assert defended.alarm is None
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)
    threshold = defended.detect(clean).sort().values[18].item()  # ceil(21 * 0.9) = 19
    assert alarmed.alarm == Alarm(pytest.approx(threshold, abs=1e-5), 0.1, 20, SHAPE)
    assert torch.equal(after.flagged, after.scores > alarmed.alarm.threshold)
    assert "alarm=Alarm(" in repr(alarmed)
    assert alarmed.variant(seed=1, gradient="none").alarm == alarmed.alarm


def test_a_prediction_with_other_fields_keeps_its_alarm(defended):
    judged = defended.calibrate(images(20), 0.1).judge(images(3, seed=1))
    other = judged._replace(scores=judged.scores / 2)
    assert torch.equal(other.flagged, judged.flagged)
    assert torch.equal(other.scores, judged.scores / 2)
    assert judged._replace(flagged=None).flagged is None
    logits, scores, reconstruction = other
    assert [part is field for part, field in zip((logits, scores, reconstruction), other, strict=True)] == [True] * 3
    assert other[1] is other.scores
    assert repr(other).startswith("Prediction(logits=")
    assert pickle.loads(pickle.dumps(other)).flagged.equal(judged.flagged)


def test_the_size_of_a_batch_does_not_matter(defended):
    clean = images(20)
    one, other = (defended.calibrate(clean, 0.1, batch_size=size).alarm.threshold for size in (64, 7))
    assert one == pytest.approx(other, abs=1e-5)


def test_calibrating_keeps_no_graph_and_needs_no_gradient(defended):
    assert not defended.calibrate(images(20).requires_grad_(), 0.1).judge(images(2)).flagged.requires_grad


def test_a_rate_of_nearly_one_flags_all_but_the_least():
    assert set_alarm(torch.tensor([0.3, 0.1, 0.2]), 1 - 1e-12, SHAPE).threshold == pytest.approx(0.1)


@pytest.mark.parametrize("fpr", [0, 1, -0.1, 1.5])
def test_bad_rates_are_refused(defended, fpr):
    with pytest.raises(ValueError, match="fpr must lie between 0 and 1"):
        defended.calibrate(images(20), fpr)


def test_too_few_images_are_refused_before_the_fits(defended):
    with pytest.raises(ValueError, match=r"clean_images must be at least 19 for fpr 0.05, got 18"):
        defended.calibrate(images(18))
    assert defended.calibrate(images(19)).alarm.threshold == pytest.approx(defended.detect(images(19)).max().item())


def test_other_input_is_refused(defended):
    with pytest.raises(ValueError, match="clean_images must"):
        defended.calibrate(images(20) + 1)
    with pytest.raises(ValueError, match="batch_size must be"):
        defended.calibrate(images(20), batch_size=0)
    alarmed = defended.calibrate(images(20), 0.1)
    with pytest.raises(ValueError, match=r"images must be of the shape that the alarm was set on, \(3, 8, 8\)"):
        alarmed.judge(torch.rand(1, 3, 9, 8))
    with pytest.raises(ValueError, match="images must have 4 dimensions"):
        alarmed.judge(torch.rand(3, 8, 8))


def test_the_default_defence_of_digits_and_of_colour_has_an_alarm():
    """The score has another origin for each shape; the alarm has one meaning."""
    for channels in (1, 3):
        shape = (channels, 12, 12)
        clean = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
        net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, 5)).eval()
        judged = dipdefense.defend(net).calibrate(clean, 0.5).judge(clean)
        assert judged.flagged.sum() == 1  # one of three scores is above the second smallest
