"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_there_is_an_example():
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block):
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert tuple(names["logits"].shape) == (2, 1000)  # type: ignore[attr-defined]
    assert names["purified"].shape == names["images"].shape  # type: ignore[attr-defined]
