"""The text of an error, inside a sentence of ours."""

import pytest

from dipdefense.defence.classifier_errors import first_line


@pytest.mark.parametrize("message", ["Wrong size (176)", "Wrong size (176).", "Wrong size (176).\nSee the manual."])
def test_the_first_line_has_no_full_stop(message):
    assert first_line(ValueError(message)) == "ValueError: Wrong size (176)"
