"""Names of what code and objects are: the same in every process, others for anything that changes a result."""

import functools
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from attacks.adaptive import Blur
from dipdefense.digest import configuration_hash, describe, fingerprint, source_hash
from eval.baselines import gaussian_blur

ROOT = Path(__file__).parents[1]
SCALE = 2.0


def test_hash_ignores_order_alone():
    assert configuration_hash({"a": 1, "b": 2}) == configuration_hash({"b": 2, "a": 1})
    assert configuration_hash({"a": 1}) != configuration_hash({"a": 2})


def test_any_change_of_a_source_file_gives_another_hash(tmp_path, monkeypatch):
    (tmp_path / "first" / "inner").mkdir(parents=True)
    (tmp_path / "second").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "first" / "inner" / "a.py"
    seen = set()
    for change in (
        lambda: (tmp_path / "first" / "__init__.py").write_text(""),
        lambda: file.write_text("x = 1\n"),
        lambda: file.write_text("x = 2\n"),
        lambda: file.rename(file.with_name("b.py")),
        lambda: (tmp_path / "second" / "__init__.py").write_text("x = 2\n"),
    ):
        change()
        seen.add(source_hash.__wrapped__("first", "second"))
    assert len(seen) == 5
    (tmp_path / "first" / "notes.txt").write_text("no code")
    assert source_hash.__wrapped__("first", "second") in seen


@dataclass(frozen=True)
class Setting:
    sigma: float
    steps: tuple[int, ...] = (1, 2)


class Plain:
    factor = 3

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __call__(self, x):
        return x


class Other(Plain):
    def __call__(self, x):
        return -x


class Third(Plain):
    factor = 4


def times(factor):
    return lambda x: x * factor


def defaults(x, factor=2):
    return x * factor


def global_scale(x):
    return x * SCALE


def calls(x):
    return defaults(x)


def cyclic():
    a = Plain()
    a.again = [a]
    return a


DIFFERENT = {
    "closure": (times(1.0), times(-1.0)),
    "two lambdas in one line": (lambda x: x, lambda x: -x),
    "nested": (lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x]),
    "partial": (functools.partial(gaussian_blur, sigma=0.5), functools.partial(gaussian_blur, sigma=0.6)),
    "positional": (functools.partial(defaults, 1), functools.partial(defaults, 2)),
    "dataclass": (Setting(1.0), Setting(2.0)),
    "tuple": (Setting(1.0, (1,)), Setting(1.0, (2,))),
    "surrogate": (Blur(1.0), Blur(2.0)),
    "attribute": (Plain(a=1), Plain(a=2)),
    "tensor": (Plain(a=torch.zeros(2)), Plain(a=torch.ones(2))),
    "array": (Plain(a=np.zeros(2)), Plain(a=np.ones(2))),
    "held function": (Plain(a=times(1)), Plain(a=times(2))),
    "code of the class": (Plain(), Other()),
    "attribute of the class": (Plain(), Third()),
    "method": (Plain(a=1).__call__, Plain(a=2).__call__),
    "module": (nn.Threshold(1, 0.0), nn.Threshold(2, 0.0)),
    "in C": (torch.device("cpu"), torch.device("meta")),
    "dict": (Plain(a={"x": 1}), Plain(a={"x": 2})),
    "set": (Plain(a={1, 2}), Plain(a={1, 3})),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_settings_and_code_are_told_apart(name):
    first, second = map(describe, DIFFERENT[name])
    assert first != second
    assert describe(DIFFERENT[name][0]) == first


def test_defaults_globals_and_functions_of_the_module_count(monkeypatch):
    before = [describe(function) for function in (defaults, global_scale, calls)]
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    monkeypatch.setattr(defaults, "__defaults__", (5,))
    after = [describe(function) for function in (defaults, global_scale, calls)]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_what_a_description_reads_like():
    assert describe("straight_through") == "straight_through"
    assert describe(gaussian_blur).startswith("eval.baselines.gaussian_blur ")
    assert describe(functools.partial(gaussian_blur, sigma=0.5)).startswith(
        "eval.baselines.gaussian_blur{'sigma': 0.5} "
    )
    assert describe(Blur(2.0)).startswith("Blur(sigma=2.0) ")
    assert describe(nn.ReLU()).startswith("torch.nn.modules.activation.ReLU ")
    assert "0x" not in describe(Plain()).partition(" ")[0]
    assert describe(cyclic()) == describe(cyclic())
    assert describe(gaussian_blur, 1) != describe(gaussian_blur, 2)


def test_descriptions_are_the_same_in_every_process():
    code = """
import json
from torch import nn
from attacks import ATTACKS
from dipdefense import Purifier, DetectorGated
from dipdefense.digest import describe
from dipdefense.defence.gradients import GRADIENTS

net = nn.Sequential(nn.Linear(2, 2))
for parameter in net.parameters():
    nn.init.ones_(parameter)
net.register_forward_hook(print)
known = (*GRADIENTS.values(), *ATTACKS.values(), DetectorGated(), Purifier, net, {1, "a", "b", "c"})
found = json.dumps([describe(held) for held in known])
"""
    here: dict[str, str] = {}
    exec(code, here)
    command = [sys.executable, "-c", f"{code}\nprint(found)"]
    there = subprocess.run(command, cwd=ROOT, env={"PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True)
    assert there.stdout == here["found"] + "\n"
    assert "0x" not in re.sub(r" [0-9a-f]{16}", "", here["found"])


def test_a_fingerprint_sees_tensors_and_code_and_no_address():
    class Held(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function
            self.register_buffer("hidden", torch.zeros(1), persistent=False)

        def extra_repr(self):
            return repr(self.function)

        def forward(self, x):
            return self.function(x)

    assert fingerprint(Held(times(1))) == fingerprint(Held(times(2)))  # the probe tells these apart
    changed = Held(times(1))
    changed.hidden += 1
    assert fingerprint(changed) != fingerprint(Held(times(1)))
