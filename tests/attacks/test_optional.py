"""Without the attack libraries everything loads, and the attacks of our own run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys

sys.modules["torchattacks"] = sys.modules["pyautoattack"] = None

import torch

import attacks
import attacks.adaptive
import eval

images = torch.rand(2, 1, 4, 4)
labels = images.flatten(1).argmax(1)
for attack in (attacks.pgd, attacks.momentum_pgd, attacks.nes):
    assert (attack(torch.nn.Flatten(), images, labels, eps=0.1) != images).any()
for run in (
    lambda: attacks.fgsm(torch.nn.Flatten(), images, labels, eps=0.1),
    lambda: attacks.MomentumPGD,
    lambda: attacks.square(torch.nn.Flatten(), images, labels, eps=0.1),
    lambda: attacks.autoattack(torch.nn.Flatten(), images, labels, eps=0.1),
):
    try:
        run()
        print("ran")
    except ImportError as error:
        print(error)
"""
LOADED = "import sys, attacks, attacks.adaptive, eval; print(*{name.partition('.')[0] for name in sys.modules})"


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_without_the_libraries_our_attacks_run_and_theirs_name_the_extra():
    packages = ("torchattacks", "torchattacks", "pyautoattack", "pyautoattack")
    told = [f'this attack needs {package}: python -m pip install "dipdefense[eval]"' for package in packages]
    assert python(WITHOUT).splitlines() == told


def test_importing_loads_no_attack_library():
    assert not {"torchattacks", "pyautoattack"} & set(python(LOADED).split())
