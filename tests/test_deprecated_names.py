"""Public names of version 0.1 that changed: each still works, warns, and says what to write in its place."""

import pytest

import dipdefense
from dipdefense import defence_for

RENAMED = {
    "Fault": "Incompatibility",
    "Judgement": "Prediction",
    "Last": "LastReconstruction",
    "Suspicion": "Detector",
    "Trust": "DetectorGated",
}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_the_new_one_and_warns(old):
    with pytest.warns(DeprecationWarning, match=rf"^dipdefense\.{old} is deprecated: use dipdefense\.{RENAMED[old]}$"):
        assert getattr(dipdefense, old) is getattr(dipdefense, RENAMED[old])


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 224, 224)])
def test_the_old_defaults_are_parts_of_the_one_default(shape):
    with pytest.warns(DeprecationWarning, match="use dipdefense.defence_for") as warned:
        from dipdefense import default_config, default_defence
    assert {str(one.filename) for one in warned} == {__file__}
    assert default_config(shape) == defence_for(shape, decision="last").fit
    default = defence_for(shape)
    assert default_defence(shape) == (default.fit, default.decision, default.tile)


def test_the_rival_is_no_decision_of_the_package():
    with pytest.raises(AttributeError, match=r"is now eval\.robustness\.cross_boundary\.CrossBoundary"):
        dipdefense.CrossBoundary  # noqa: B018
    with pytest.raises(AttributeError, match="module 'dipdefense' has no attribute 'Nothing'"):
        dipdefense.Nothing  # noqa: B018
