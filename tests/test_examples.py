"""The example scripts run offline, in about a minute of one thread, and what they print is so."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
pytestmark = pytest.mark.slow


def run(name: str, folder: Path, *arguments: object) -> str:
    """What the script prints, run in a folder; a warning, or three minutes of a slow processor, fails it."""
    before = _seconds()
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=480,  # of a shared machine
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert _seconds() - before < 180
    return result.stdout


def _seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_all_scripts_are_tested():
    tested = set(re.findall(r"def test_(\w+)\(tmp_path", Path(__file__).read_text("utf-8")))
    assert tested == {path.stem for path in EXAMPLES.glob("*.py")}


def test_wrap_a_classifier(tmp_path):
    printed = run("wrap_a_classifier", tmp_path)
    right = {(image, who): int(n) for image, who, n in re.findall(r"(\w+) +(\w+) +(\d+) of", printed)}
    score = {image: float(mean) for image, mean in re.findall(r"(\w+) +detection score, mean (\S+)", printed)}
    assert right["PGD", "bare"] <= 2  # the attack works where there is no defence
    assert right["PGD", "defended"] > right["PGD", "bare"] + 6
    assert right["clean", "defended"] >= right["clean", "bare"] - 3
    assert score["PGD"] > score["clean"] + 0.3


def test_attack_a_filter(tmp_path):
    rows = re.findall(r"^(\S+) +(\S+) +(\S+) +(\S+) % right", run("attack_a_filter", tmp_path), re.MULTILINE)
    right = {(float(eps), attack, on): float(share) for eps, attack, on, share in rows}
    assert len(right) == 12
    for attack in ("pgd", "momentum_pgd"):  # what seems to help falls to an attack that knows it
        assert right[0.1, attack, "filtered"] < right[0.1, attack, "bare"] - 10
        assert right[0.3, attack, "filtered"] < 5


def test_calibrate_an_alarm(tmp_path):
    printed = run("calibrate_an_alarm", tmp_path)
    flagged = {kind: float(share) for kind, share in re.findall(r"^(.+?) +(\S+) % flagged", printed, re.MULTILINE)}
    asked = re.search(r"a rate of (\S+) to (\S+) %", printed)
    assert asked is not None
    assert flagged["clean"] < float(asked[2]) + 10  # of 59 images
    assert min(flagged["PGD 25/255"], flagged["PGD 51/255"]) > 70


@pytest.mark.data
def test_alarm_on_photographs(tmp_path, data):
    weights = data / "weights" / "imagenet_squeezenet1_0.pt"
    printed = run("alarm_on_photographs", tmp_path, data / "imagenet", weights, 39, 10, 8, 64)
    rows = {
        kind: {name: float(share) for share, name in re.findall(r"(\S+) % ([a-z ]+) \(", row)}
        for kind, row in re.findall(r"^(\S+(?: \S+/255)?) +(\d.+)$", printed, re.MULTILINE)
    }
    assert list(rows) == ["clean", "pgd 1/255", "pgd 2/255", "pgd 4/255", "pgd_di 4/255", "patch"]
    assert rows["clean"]["flagged"] < 40  # of 10 images, asked for 5
    assert rows["pgd 4/255"]["flagged"] > rows["clean"]["flagged"] + 20
    assert max(rows[kind]["bare right"] for kind in ("pgd 4/255", "patch")) == 0
    assert rows["pgd 4/255"]["lost"] < 100


def test_learn_a_detector(tmp_path):
    printed = run("learn_a_detector", tmp_path)
    areas = {name: float(area) for name, area in re.findall(r"^(.+?) +AUROC (\S+)", printed, re.MULTILINE)}
    assert printed.startswith("Detector(iteration=20, bias=")
    assert len(areas) == 8
    assert min(areas["pgd"], areas["momentum_pgd"], areas["fgsm"]) > 0.9
    assert min(areas.values()) > 0.5


@pytest.mark.data
def test_along_the_fit(tmp_path, data):
    printed = run("along_the_fit", tmp_path, data, tmp_path, 24)
    assert printed.count("defended: espresso") >= 1  # the photograph as it is
    right = {
        name: [float(share) for share in re.findall(r"(\S+) % right", line)]
        for name, line in re.findall(r"^(clean|pgd): (.+)$", printed, re.MULTILINE)
    }
    assert right["clean"][0] < right["clean"][-1] - 30  # blurred, then right
    assert right["pgd"][0] < right["pgd"][1] - 10  # blurred, right,
    assert right["pgd"][-1] < right["pgd"][1] - 10  # and fooled again
    assert {path.name for path in tmp_path.iterdir()} >= {"along_the_fit.jpg", "accuracy_along_fit.png"}


@pytest.mark.data
def test_seconds_of_the_default(tmp_path, data):
    printed = run("seconds_of_the_default", tmp_path, data, 32, 1)
    fastest = [float(seconds) for seconds in re.findall(r": (\S+) to \S+ s an image, 1 threads", printed)]
    in_a_batch, one_by_one, photograph = fastest
    assert one_by_one > 2 * in_a_batch
    assert photograph > 10 * in_a_batch  # it has 81 tiles


def test_evaluate_honestly(tmp_path):
    run("evaluate_honestly", tmp_path)
    table = pd.read_csv(tmp_path / "runs/evaluate_honestly/summary.csv").set_index("attack")
    assert list(table.index) == ["clean", "oblivious", "bpda", "unrolled", "worst case"]
    assert table.accuracy["worst case"] == table.accuracy.min()
    assert table.accuracy["bpda"] < table.accuracy["oblivious"] < table.accuracy["clean"]


def test_restore_an_image(tmp_path):
    pairs = re.findall(r"(\S+) dB -> +(\S+) dB", run("restore_an_image", tmp_path))
    gains = [float(after) - float(before) for before, after in pairs]
    assert len(gains) == 2
    assert gains[0] > 4  # dB, noise of 25/255
    assert gains[1] > 12  # dB, half of the pixels
    assert (tmp_path / "restored.png").is_file()


def test_learned_start(tmp_path):
    rows = (re.split(r"  +", line) for line in run("learned_start", tmp_path).splitlines()[1:])
    levels = {kind: [float(level) for level in row] for kind, *row in rows}
    noise = levels.pop("uniform noise")
    assert len(levels) == 3
    for random_50, random_100, _, _, learned_50, learned_100 in levels.values():
        assert learned_50 > random_50 + 2  # dB
        assert learned_100 > random_100 + 2
    assert noise[4] < noise[0] + 1
    assert noise[5] < noise[1]


@pytest.mark.data
def test_noisy_copies(tmp_path, data):
    printed = run("noisy_copies", tmp_path, data, 0.12, "1000:", 48, 7)
    right = {name: float(share) for name, share in re.findall(r"^(.+): (\S+) % right", printed, re.MULTILINE)}
    dip = right["fit and filters (dip)"]
    assert dip > right["none"] + 25
    assert dip > right["fit alone, iterations 100 and 120"] - 10  # 48 images do not tell them apart
    assert right["none, without noise"] > dip
