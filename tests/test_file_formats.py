"""docs/file-formats.md names the columns and entries that the files have."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from attacks.adaptive import LADDER
from dipdefense import FitConfig, Purifier, fit, learn_start, read_start
from dipdefense.defence.certify import SamplingPlan
from dipdefense.fitting.checkpoint import MAGIC
from eval import RunConfig, evaluate_robustness
from eval.baselines import gaussian_blur
from eval.certification import CertificationConfig, certify_dataset
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.robustness.comparison import FURTHER
from eval.robustness.detection import detection_table
from eval.robustness.ladder_table import tabulate
from eval.robustness.summary import COLUMNS

PAGE = (Path(__file__).parents[1] / "docs" / "file-formats.md").read_text("utf-8")
QUICK = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=4)


def tables(heading: str) -> list[list[str]]:
    """The names in the first column of each table of a section."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [re.findall(r"^\| (?!---)(.+?) \|", part, re.MULTILINE)[1:] for part in re.split(r"\n\n(?!\|)", section)]
    return [[name for row in part for name in re.findall(r"`([^`]+)`", row)] for part in rows if part]


def header(path: Path) -> list[str]:
    return list(pd.read_csv(path, nrows=0).columns)


def first_record(folder: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((folder / "records.jsonl").read_text("utf-8").splitlines()[0])
    return record


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits"), load_classifier("digits_cnn")


def test_an_evaluation(tmp_path, digits):
    dataset, classifier = digits
    config = RunConfig(attacks=("fgsm",), eps=0.2, n=2)
    evaluate_robustness(
        classifier, dataset, config, out=tmp_path, purifier=Purifier(QUICK), filters={"blur": gaussian_blur}
    )
    assert sorted(tables("summary.csv")[0]) == sorted(header(tmp_path / "summary.csv")) == sorted(COLUMNS)
    assert tables("paired.csv")[0] == header(tmp_path / "paired.csv")
    assert tables("records.jsonl")[0] == list(first_record(tmp_path))
    described = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert sorted(tables("config.json")[0]) == sorted(described)
    files = {name for row in tables("The folder of a run") for name in row}
    assert {path.name for path in tmp_path.iterdir()} <= files


def test_a_ladder_and_a_comparison(tmp_path, digits):
    record = {name: 0.5 for names in tables("records.jsonl")[:1] for name in names} | {"correct": True, "fooled": True}
    both = [record | {"attack": attack, "crafted_on": ""} for attack in ("clean", "oblivious")]
    table = tabulate(both, {"norm": "linf"}, LADDER)
    assert sorted(tables("summary.csv")[1]) == sorted(set(table.columns) - set(COLUMNS))
    assert set(FURTHER) <= set(re.findall(r"`(\w+)`", PAGE.split("\n`benchmark defence` has ")[1].split(".")[0]))
    assert tables("roc.csv")[0] == list(detection_table(both).columns)


def test_certificates(tmp_path, digits):
    dataset, classifier = digits
    config = CertificationConfig(plan=SamplingPlan(sigma=0.25, n0=4, n=20), purifiers=("none", "gaussian_blur"), n=1)
    certify_dataset(classifier, dataset, config, out=tmp_path)
    assert sorted(tables("certificates.csv")[0]) == sorted(header(tmp_path / "certificates.csv"))
    assert tables("summary.csv")[2] == header(tmp_path / "summary.csv")
    assert tables("paired.csv")[1] == header(tmp_path / "paired.csv")
    assert sorted(tables("records.jsonl")[1]) == sorted(first_record(tmp_path))


def test_a_start_and_a_checkpoint(tmp_path):
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    learn_start(images, QUICK, inner=2, outer=1, batch=2).save(tmp_path / "start.safetensors")
    start = read_start(tmp_path / "start.safetensors")
    assert sorted(tables("A learned start")[0]) == sorted(start.recipe)
    fit(images, QUICK, seed=0, checkpoint=tmp_path / "fit.ckpt")
    content = (tmp_path / "fit.ckpt").read_bytes()
    assert content.startswith(MAGIC)
    assert MAGIC.decode().strip() in PAGE
    (tmp_path / "body.pt").write_bytes(content[len(MAGIC) + 32 :])
    assert sorted(tables("A checkpoint")[0]) == sorted(torch.load(tmp_path / "body.pt", weights_only=True))
