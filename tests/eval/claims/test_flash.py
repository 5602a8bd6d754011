"""The score of leaked shadows, on results of which it is known."""

import pytest
import torch

from eval.claims.experiments.flash import BRIGHT, flash_pair, leaked_shadow


@pytest.fixture
def pair():
    return flash_pair(torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0)), 0, "photo")


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_shadow_in_a_result_is_found(pair, share):
    assert leaked_shadow(pair["truth"] + share * pair["shadow"], pair) == pytest.approx(share, abs=1e-5)


def test_light_that_is_wrong_everywhere_is_no_shadow(pair):
    assert leaked_shadow(pair["truth"] + 0.2, pair) == pytest.approx(0, abs=1e-5)


def test_the_shadow_is_where_its_depth_is_positive_and_in_the_flash_alone(pair):
    inside = (pair["depth"] > 0).expand_as(pair["shadow"])
    assert (pair["shadow"][inside] <= 0).all()
    assert (pair["shadow"][~inside] == 0).all()
    assert pair["flash"][inside].mean() < 0.5 * pair["flash"][~inside].mean()
    assert (pair["dark"] - pair["truth"]).std() > 5 * BRIGHT
