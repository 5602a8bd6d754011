"""The report of real runs: every figure is there, what comes from outside is escaped, what lacks is named."""

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
import shutil
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dipdefense import DefendedClassifier, FitConfig, Purifier
from dipdefense.cli import app
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.fits.accuracy_along_fit import accuracy_along_fit
from eval.metrics import psnr
from eval.records import UNFINISHED
from eval.report import write_report
from eval.report.accuracy_charts import methods_against_eps, together
from eval.report.detection import roc_charts
from eval.report.findings import NOT_ADAPTIVE
from eval.report.line_chart import COLOURS, Chart, Point, Series, draw
from eval.report.page import openings
from eval.report.runs import NOT_FINISHED, find_runs, records_of
from eval.robustness.comparison import ComparisonConfig, benchmark_defence
from eval.robustness.config import RunConfig
from eval.robustness.defences_by_name import build_methods
from eval.robustness.evaluate import evaluate_robustness
from eval.robustness.gallery import gallery_of_run, save_gallery
from eval.text_tables import cells, figures_text, percent, radius

QUICK = FitConfig(
    architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=24, memory_gb=0.5
)
RUN = RunConfig(attacks=("pgd",), eps=0.2, steps=3, n=8)
EVIL = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of each kind, all of them real and tiny."""
    folder = tmp_path_factory.mktemp("runs")
    digits, classifier, purifier = load_dataset("digits"), load_classifier("digits_cnn"), Purifier(QUICK)
    evaluate_robustness(classifier, digits, RUN, out=folder / "evaluated", purifier=purifier)
    gallery_of_run(folder / "evaluated", DefendedClassifier(classifier, purifier), digits, RUN, n=2)
    methods = build_methods(["bare", "noise_level", "jpeg", "dip"], classifier, purifier, iterations=[12, 24])
    compared = ComparisonConfig(attacks=("pgd",), steps=3, n=8, radii=(0.1, 0.2))
    benchmark_defence(classifier, digits, methods, compared, out=folder / "defences")
    (folder / "along").mkdir()
    along = accuracy_along_fit(classifier, load_dataset("digits_train"), RUN, QUICK, every=12)
    along.to_csv(folder / "along" / "iterations.csv", index=False)
    return folder


@pytest.fixture
def copy(runs, tmp_path) -> Path:
    return shutil.copytree(runs, tmp_path / "runs")


def report(folder: Path) -> str:
    write_report(folder, folder.parent / "report.html")
    return (folder.parent / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """The tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        self.text += data if self.inside not in ("script", "style") else ""


def test_every_kind_is_shown_with_its_figures(runs):
    page = Page(report(runs))
    for title in ("Gallery: evaluated", "Evaluation", "Defences compared", "Along the fit"):
        assert title in page.text
    for file in ("evaluated/summary.csv", "defences/summary.csv", "along/iterations.csv"):
        for row in pd.read_csv(runs / file).itertuples():
            figure = f"{100 * row.accuracy:.1f} ({100 * row.ci_low:.1f} to {100 * row.ci_high:.1f})"
            assert figure in page.text
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg" and "aria-label" in attributes]
    starts = ["Accuracy under pgd", "Clean against robust: pgd, eps 0.1", "ROC of the detector: pgd, eps 0.2"]
    starts += ["Accuracy along the fit", "PSNR along the fit", "SSIM along the fit"]
    assert all(any(chart.startswith(start) for chart in charts) for start in starts)


def test_the_page_needs_no_network(runs):
    source = report(runs)
    page = Page(source)
    addresses = [a[name] for _, a in page.tags for name in ("src", "href", "action", "data") if name in a]
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    assert not re.search(r"https?://|@import|url\(", source)
    script = re.findall(r"<script>(.*?)</script>", source, flags=re.DOTALL)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "Security" in (a.get("http-equiv") or ""))
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_the_documentation_runs(copy, monkeypatch):
    """The Python of docs/reports.md, where `dipdefense demo` left its folder."""
    text = (Path(__file__).parents[3] / "docs" / "reports.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(copy)
    (copy / "runs").mkdir()
    (copy / "defences").rename(copy / "runs" / "demo")
    exec(compile(block, "docs/reports.md", "exec"), {})
    assert "Defences compared" in (copy / "report.html").read_text(encoding="utf-8")


def test_the_templates_are_part_of_the_package():
    """What a wheel holds: every file beside page.html matches the globs of pyproject.toml."""
    root = Path(__file__).parents[3]
    globs = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["eval"]
    packed = {path for pattern in globs for path in (root / "eval").glob(pattern)}
    assert set((root / "eval" / "report" / "templates").iterdir()) <= packed


def test_what_comes_from_outside_is_escaped(copy):
    evil = copy / "evaluated"
    content = json.loads((evil / "gallery" / "gallery.json").read_text())
    content["classes"][0] = EVIL
    content["items"][0]["condition"] = EVIL
    (evil / "gallery" / "gallery.json").write_text(json.dumps(content))
    for file in ("evaluated/summary.csv", "defences/summary.csv", "along/iterations.csv"):
        text = (copy / file).read_text().replace("pgd", EVIL)
        (copy / file).write_text(text)
    config = json.loads((evil / "config.json").read_text())
    (evil / "config.json").write_text(json.dumps(config | {"classifier": EVIL, EVIL: 1}))
    evil.rename(copy / EVIL.replace("/", "\\"))
    source = report(copy)
    assert source.count("<script") == 2  # the page's own script, and the numbers of the gallery
    assert html.escape(EVIL, quote=False).replace("'", "&#39;") in source
    assert "\\u003cscript\\u003e" in source  # in the numbers of the gallery


def test_what_lacks_is_named(copy):
    shutil.rmtree(copy / "evaluated" / "gallery")
    (copy / "evaluated" / "config.json").unlink()
    (copy / "evaluated" / "paired.csv").unlink()
    (copy / "defences" / "records.jsonl").unlink()
    table = pd.read_csv(copy / "along" / "iterations.csv")
    table.drop(columns="ssim").to_csv(copy / "along" / "iterations.csv", index=False)
    (copy / "along" / "other.csv").write_text("a,b\n1,2\n")
    page = Page(report(copy)).text
    for sentence in (
        "the gallery: `dipdefense evaluate --gallery N`",
        "attacks that know the defence: `dipdefense ladder`",
        "No attack that knows the defence was run, so nothing can be claimed",
        "config.json, the settings of the run",
        "paired differences: there is no paired.csv",
        "ROC of the detector: records.jsonl, which holds the scores, is missing",
        "SSIM along the fit: iterations.csv lacks it",
        "other.csv is not shown",
    ):
        assert sentence in page


def evaluate_until(out: Path, kill_at: int, **changes: object) -> None:
    """The run `evaluated`, with these settings changed, until so many records are made."""

    def kill(done: int, total: int) -> None:
        if done >= kill_at:
            raise KeyboardInterrupt

    config = dataclasses.replace(RUN, **changes)
    digits, classifier, purifier = load_dataset("digits"), load_classifier("digits_cnn"), Purifier(QUICK)
    evaluate_robustness(classifier, digits, config, out=out, purifier=purifier, progress=kill)


def test_an_unfinished_run_says_so_and_stays_as_it_is(copy):
    killed = copy / "killed"
    with pytest.raises(KeyboardInterrupt):
        evaluate_until(killed, 16)
    with (killed / "records.jsonl").open("a") as records:
        records.write('{"torn')
    before = {path.name: path.read_bytes() for path in killed.iterdir()}
    said = f"killed is not finished: {NOT_FINISHED}."
    page = report(copy)
    assert page.count(said) == 1
    assert page.index(said) < page.index("Report of dipdefense")
    assert "the run is not finished" in page
    assert "evaluated is not finished" not in page
    assert "defences is not finished" not in page
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == before
    assert write_report(copy, copy / "report.html") == [killed]
    evaluate_until(killed, 1000)
    assert write_report(copy, copy / "report.html") == []


def test_a_run_that_was_killed_before_its_first_record_is_not_finished_either(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate_until(tmp_path / "killed", 0)
    (tmp_path / "killed" / "records.jsonl").unlink()
    assert write_report(tmp_path / "killed", tmp_path / "report.html") == [tmp_path / "killed"]
    result = CliRunner().invoke(app, ["report", str(tmp_path / "killed"), "-o", str(tmp_path / "report.html")])
    assert result.stdout.splitlines()[0] == f"{tmp_path / 'killed'} is not finished: {NOT_FINISHED}"


def test_a_run_without_table_of_an_earlier_version_is_not_finished(tmp_path):
    """It set no mark."""
    with pytest.raises(KeyboardInterrupt):
        evaluate_until(tmp_path / "killed", 16)
    (tmp_path / "killed" / UNFINISHED).unlink()
    assert write_report(tmp_path / "killed", tmp_path / "report.html") == [tmp_path / "killed"]


def test_a_finished_run_that_is_extended_and_killed_is_not_finished(copy):
    """Its tables are still there, and are those of before."""
    run = copy / "evaluated"
    evaluate_until(run, 1000)  # begun again with nothing more to do
    assert write_report(run, copy / "report.html") == []
    with pytest.raises(KeyboardInterrupt):
        evaluate_until(run, 0, attacks=("pgd", "fgsm"))
    assert set(pd.read_csv(run / "summary.csv")["attack"]) == {"clean", "pgd"}
    assert write_report(run, copy / "report.html") == [run]
    evaluate_until(run, 1000, attacks=("pgd", "fgsm"))
    assert set(pd.read_csv(run / "summary.csv")["attack"]) == {"clean", "pgd", "fgsm"}
    assert write_report(run, copy / "report.html") == []


def test_a_figure_of_an_adaptive_attack_silences_the_warning(copy):
    (copy / "ladder").mkdir()
    columns = "attack,eps,crafted_on,defence,n,accuracy,ci_low,ci_high,psnr_defended,ssim_defended,query,flagged"
    rows = "clean,0,,dip,4,1,0.5,1,20,0.9,single,0\nbpda,0.2,defended,dip,4,0.25,0.1,0.5,20,0.9,single,0\n"
    (copy / "ladder" / "summary.csv").write_text(f"{columns}\n{rows}")
    page = Page(report(copy)).text
    assert "25.0 (10.0 to 50.0)" in page
    assert "worst case: summary.csv lacks it" in page
    assert NOT_ADAPTIVE not in openings(find_runs(copy / "ladder"))[0]
    assert "it keeps 25.0 % (10.0 to 50.0) of 4 images right" in page


def test_the_page_opens_with_what_its_tables_say(runs):
    """Three sentences, with the figures of the table; the comparison is left to its section."""
    table = pd.read_csv(runs / "evaluated" / "summary.csv").set_index(["attack", "defence"])

    def share(*row: str) -> str:
        accuracy, low, high = 100 * table.loc[row, ["accuracy", "ci_low", "ci_high"]]
        return f"{accuracy:.1f} % ({low:.1f} to {high:.1f})"

    (opening,) = openings(find_runs(runs))
    assert opening == [
        f"8 images of digits were classified by DigitsCNN, clean and under pgd with eps 0.2; of the clean images "
        f"{share('clean', 'dip')} are classified right with the defence and {share('clean', 'none')} without it (95 % "
        "intervals in brackets).",
        f"Under the strongest attack that does not know the defence, pgd with eps 0.2, 8 images, {share('pgd', 'dip')} "
        f"are classified right with the defence and {share('pgd', 'none')} without it.",
        NOT_ADAPTIVE,
    ]
    text = Page(report(runs)).text
    assert [text.index(sentence) for sentence in opening] == sorted(text.index(sentence) for sentence in opening)
    assert text.index(NOT_ADAPTIVE) < text.index("Report of dipdefense")
    (compared,) = openings(find_runs(runs / "defences"))
    assert "pgd with eps 0.1, 0.2" in compared[0]
    assert "the best of the other defences, jpeg " in compared[1]


def test_each_defence_has_sentences_of_its_own(runs, copy):
    """A second run in the folder with a purifier of one's own; runs of the fit, also of an older folder, are `dip`."""
    shutil.copytree(copy / "evaluated", copy / "own")
    file = copy / "own" / "summary.csv"
    table = pd.read_csv(file, keep_default_na=False)
    table.assign(defence=table["defence"].replace("dip", "Jpeg")).to_csv(file, index=False)
    dip, own = openings(find_runs(copy))
    assert dip == openings(find_runs(runs))[0]
    assert own == [sentence.replace("with the defence", "with the defence Jpeg") for sentence in dip]


def test_a_targeted_run_is_a_share_of_hits_and_an_older_table_one_of_right_images(copy):
    file = copy / "evaluated" / "summary.csv"
    table = pd.read_csv(file, keep_default_na=False)
    hits, right = "Share of images classified as their target", "Accuracy, with the 95 % Wilson interval"
    for changed, shown, hidden in (
        (table.assign(targeted=True), hits, right),
        (table, right, hits),
        (table.drop(columns="targeted"), right, hits),
    ):
        changed.to_csv(file, index=False)
        write_report(copy / "evaluated", copy / "report.html")
        text = Page((copy / "report.html").read_text(encoding="utf-8")).text
        assert shown in text
        assert hidden not in text


def test_bad_folders_are_refused(tmp_path, copy):
    with pytest.raises(ValueError, match=r"RUN_DIR must be the folder of a run, got .*nowhere: no such folder"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"RUN_DIR must hold one of .*summary.csv.* got .*empty, which has none"):
        write_report(tmp_path / "empty", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ValueError, match=r"got .*notes.txt: a file"):
        write_report(tmp_path / "empty" / "notes.txt", tmp_path / "report.html")
    with pytest.raises(FileNotFoundError, match=r"out must be in a folder that exists, .*missing is missing"):
        write_report(copy, tmp_path / "missing" / "report.html")
    with pytest.raises(IsADirectoryError, match=r"out must be a file, .*empty is a folder: name a file in it"):
        write_report(copy, tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluated/summary.csv", b'a,b\n1,"2\n', "summary.csv must be a CSV table"),
        ("evaluated/summary.csv", b"\xff\xfe\xfa", "summary.csv must be a CSV table"),
        ("evaluated/config.json", b"{", "config.json must be JSON"),
        ("evaluated/config.json", b"[1]", "config.json must be a JSON object, got list"),
        ("evaluated/gallery/gallery.json", b"{}", "gallery.json must hold classes: make the gallery anew"),
        ("evaluated/gallery/001.png", b"no image", "001.png"),
        ("defences/records.jsonl", b"{\n", "records.jsonl: line 1 must be a JSON object"),
    ],
)
def test_broken_files_are_refused(copy, file, content, message):
    (copy / file).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        write_report(copy, copy / "report.html")


def test_a_strip_of_another_size_is_refused(copy):
    strip = copy / "evaluated" / "gallery" / "000.png"
    with Image.open(strip) as image:
        image.load()
    image.crop((0, 0, 32, 64)).save(strip)
    with pytest.raises(ValueError, match=r"000.png must be 32x832 pixels, got 32x64"):
        write_report(copy, copy / "report.html")


def test_the_gallery_is_the_fit_of_the_run(runs):
    """Pixels and numbers against the purifier itself, on the images of the run."""
    folder = runs / "evaluated" / "gallery"
    content = json.loads((folder / "gallery.json").read_text())
    digits, classifier = load_dataset("digits"), load_classifier("digits_cnn")
    records = [json.loads(line) for line in (runs / "evaluated" / "records.jsonl").read_text().splitlines()]
    assert [(item["index"], item["condition"]) for item in content["items"]] == [
        (record["index"], condition) for condition in ("clean", "pgd") for record in records[:2]
    ]
    answers = {(r["index"], r["attack"]): r["prediction"] for r in records if r["defence"] == "dip"}
    for item in content["items"]:
        assert item["answer"]["prediction"] == answers[item["index"], item["condition"]]
    iterations = [frame["iteration"] for frame in content["items"][0]["frames"]]
    assert iterations == list(range(1, 25))
    positions = [digits.index.tolist().index(item["index"]) for item in content["items"][:2]]
    clean = digits.batch(positions)
    along = Purifier(QUICK).trajectory(clean, iterations)
    for i, item in enumerate(content["items"][:2]):
        with Image.open(folder / f"{i:03d}.png") as strip:
            frames = torch.from_numpy(np.array(strip)).reshape(-1, 1, 32, 32) / 255
        assert torch.allclose(frames[:2], clean[i], atol=0.5 / 255 + 1e-6)
        assert torch.allclose(frames[2:], along[:, i], atol=1 / 255)
        measured = psnr(along[:, i], clean[i].expand_as(along[:, i]))
        assert [frame["psnr"] for frame in item["frames"]] == pytest.approx(measured.tolist(), abs=0.02)
        logits = classifier(along[:, i])
        assert [frame["prediction"] for frame in item["frames"]] == logits.argmax(1).tolist()
        assert item["input"]["psnr"] is None  # equal to the clean image


def test_bad_galleries_are_refused(tmp_path):
    digits, classifier = load_dataset("digits"), load_classifier("digits_cnn")
    defended = DefendedClassifier(classifier, Purifier(QUICK))
    with pytest.raises(ValueError, match="gallery must lie between 1 and the 8 images of the run, got 9"):
        gallery_of_run(tmp_path, defended, digits, RUN, n=9)
    other = FitConfig(**{**vars(QUICK), "iterations": 200, "stopping": "emv"})
    with pytest.raises(ValueError, match="gallery must go with the stopping rule fixed, got 'emv'"):
        save_gallery(
            tmp_path,
            DefendedClassifier(classifier, Purifier(other)),
            {"clean": digits.batch([0])},
            digits.labels[:1],
            [0],
            class_names=digits.class_names,
        )


def test_the_area_under_each_roc_curve_is_its_auroc(runs):
    """The trapezoid rule on the drawn curve against Mann and Whitney's count in roc.csv."""
    run = next(run for run in find_runs(runs) if run.name == "defences")
    charts, lacking = roc_charts(run)
    assert lacking == []
    assert len(charts) == 2
    for chart in charts:
        for series in chart.series:
            x, y = (np.array([getattr(point, axis) for point in series.points]) / 100 for axis in "xy")
            area = float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())
            assert f"{area:.3f}" == series.name.rpartition(": ")[2]


def test_records_of_other_configurations_are_left_out(copy):
    run = next(run for run in find_runs(copy) if run.name == "defences")
    known = list(records_of(run))
    with (run.folder / "records.jsonl").open("a") as file:
        file.write(json.dumps(known[0] | {"config": "old"}) + "\n{")
    assert list(records_of(run)) == known


def test_a_drawing_puts_points_where_they_belong():
    points = [Point(0, 0, 0, 5), Point(5, 10), Point(10, 2.5)]
    drawn = draw(Chart("title", "x", "y", [Series("line", points)]))
    left, top, right, bottom = map(float, drawn.box)
    assert drawn.lines[0].path == f"{left},{bottom} {(left + right) / 2},{top} {right},{top + 0.75 * (bottom - top)}"
    assert drawn.lines[0].bars == [(left, bottom, (top + bottom) / 2)]
    assert [label for _, label in drawn.y_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert drawn.description == "line: 2.5 at 10"
    flat = draw(Chart("title", "x", "y", [Series("line", [Point(3, 3)])]))
    assert flat.lines[0].path == f"{(left + right) / 2},{(top + bottom) / 2}"
    with pytest.raises(ValueError, match=f"series must be 1 to {COLOURS} lines with points, got 9"):
        draw(Chart("title", "x", "y", [Series("line", points)] * 9))


def test_each_method_is_drawn_at_its_best_strength():
    def row(method: str, strength: float, attack: str, accuracy: float) -> dict[str, object]:
        eps = 0.0 if attack == "clean" else 0.1
        figures = {"accuracy": accuracy, "ci_low": accuracy, "ci_high": accuracy}
        return {"defence": method, "strength": strength, "attack": attack, "eps": eps} | figures

    rows = [row(m, s, "clean", 1 - s / 10) for m in "ab" for s in (1.0, 2.0)]
    rows += [row("a", 1.0, "pgd", 0.1), row("a", 2.0, "pgd", 0.5), row("b", 1.0, "pgd", 0.3), row("b", 2.0, "pgd", 0.3)]
    chart = methods_against_eps(rows, "pgd")
    assert [series.name for series in chart.series] == ["a 2", "b 1"]
    assert [point.y for point in chart.series[0].points] == [80, 50]
    many = [row(f"m{k}", 1.0, attack, k / 10) for k in range(10) for attack in ("clean", "pgd")]
    chart = methods_against_eps(many, "pgd")
    assert [series.name for series in chart.series] == [f"m{k} 1" for k in range(2, 10)]
    assert chart.note.endswith("Not drawn, but in the table: m0 1, m1 1.")


def test_runs_of_several_eps_share_a_chart():
    def run(eps: float, accuracy: float) -> list[dict[str, object]]:
        head = {"dataset": "d", "classifier": "c", "defence": "dip", "ci_low": 0.0, "ci_high": 1.0}
        clean = head | {"attack": "clean", "norm": "", "eps": 0.0, "crafted_on": "", "accuracy": 1.0}
        return [clean, head | {"attack": "pgd", "norm": "linf", "eps": eps, "crafted_on": "bare", "accuracy": accuracy}]

    (chart,) = together([run(0.2, 0.4), run(0.1, 0.7)])
    assert [(point.x, point.y) for point in chart.series[0].points] == [(0, 100), (0.1, 70), (0.2, 40)]
    assert together([run(0.2, 0.4), run(0.2, 0.5)]) == []  # two figures of one defence at one eps
    assert together([run(0.2, 0.4)]) == []
    aimed = [row | {"targeted": True} for row in run(0.1, 0.7)]
    assert together([run(0.2, 0.4), aimed]) == []  # hits of a target are no accuracy


def test_attacks_without_a_radius_are_in_the_table_and_in_no_chart(tmp_path):
    free = RunConfig(attacks=("deepfool",), n=2)
    out = tmp_path / "run"
    evaluate_robustness(load_classifier("digits_cnn"), load_dataset("digits"), free, out=out, purifier=Purifier(QUICK))
    text = report(out)
    assert "deepfool" in text
    assert "accuracy against eps: no attack of the run has a radius" in text
    assert "Accuracy under deepfool" not in text
    assert "say nothing of an attacker who knows the defence" in text


def test_a_column_that_is_empty_in_all_rows_is_left_out(runs):
    """A strength of 0 is none: the bare baseline has none, and some methods have one."""
    (run,) = find_runs(runs / "defences")
    paired = run.beside["paired.csv"]
    assert set(paired["against_strength"]) == {0}
    assert set(paired["strength"]) > {0}
    table = cells("", paired)
    assert "against strength" not in table.header
    assert "against strength" not in Page(report(runs)).text
    column = table.header.index("strength")
    assert [row[column] for row in table.rows] == [f"{s:g}" if s else "" for s in paired["strength"]]
    assert "strength" not in cells("", paired[paired["strength"] == 0]).header


def test_cells_and_radii():
    frame = pd.DataFrame({"attack": ["x"], "eps": [8 / 255], "psnr_defended": [20.123456], "n": [3], "empty": [np.nan]})
    table = cells("caption", frame)
    assert (table.header, table.rows) == (["attack", "eps", "PSNR defended, dB", "n"], [["x", "8/255", "20.12", "3"]])
    assert table.figures == [False, True, True, True]
    assert [radius(eps) for eps in (0.0, 2 / 255, 0.2, 0.05)] == ["0", "2/255", "0.2", "0.05"]
    assert radius(math.nan) == ""


def test_shares_are_in_percent_and_other_figures_are_not():
    """A difference is one of accuracies where a table says against what, else one of decibels."""
    bounds = {"ci_low": [0.1, np.nan], "ci_high": [0.2, np.nan]}
    shares = pd.DataFrame({"against": ["none", "none"], "difference": [0.15, 0.2], **bounds, "flagged": [0.054, 1]})
    table = cells("caption", shares)
    assert table.header == ["against", "difference, % (95 % interval)", "flagged, %"]
    assert table.rows == [["none", "15.0 (10.0 to 20.0)", "5.4"], ["none", "20.0", "100.0"]]
    decibels = pd.DataFrame({"psnr": [20.0, 21.0], **bounds, "difference": [0.5, -0.25], "rate": [1234.5, 0.5]})
    table = cells("caption", decibels)
    assert table.header == ["PSNR, dB (95 % interval)", "difference, dB", "rate"]
    assert table.rows == [["20 (0.1 to 0.2)", "0.5", "1234"], ["21", "-0.25", "0.5"]]
    assert cells("caption", shares[:0]).header == ["against", "difference, %", "flagged, %"]
    assert percent(math.nan) == ""
    figures = {"accuracy PGD": 0.125, "margin": 0.12345, "flags": "none", "sums to 1": True, "n": 8}
    assert figures_text(figures) == "accuracy PGD 12.5 %, margin 0.1235, flags none, sums to 1 True, n 8"
