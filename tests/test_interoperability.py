"""The Python of docs/interoperability.md runs as it stands, each block after the first."""

import re
from pathlib import Path

import pytest
import torch

TEXT = (Path(__file__).parents[1] / "docs" / "interoperability.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
TITLES = [part.splitlines()[0] for part in TEXT.split("\n## ")[1:]]


def test_every_section_has_one_block():
    assert len(BLOCKS) == len(TITLES) + 1


def test_blocks_are_short():
    for block in BLOCKS:
        statements = [line for line in block.splitlines() if line and not line.startswith(("import ", "from "))]
        assert len(statements) <= 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the libraries' own, at import
@pytest.mark.parametrize("number", range(1, len(BLOCKS)), ids=TITLES)
def test_block_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in (BLOCKS[0], BLOCKS[number]):
            exec(compile(block, "docs/interoperability.md", "exec"), names)
    for name, shape in {"adversarial": (4, 3, 16, 16), "purified": (3, 16, 16), "predicted": (4,)}.items():
        if name in names:
            assert tuple(names[name].shape) == shape  # type: ignore[attr-defined]
