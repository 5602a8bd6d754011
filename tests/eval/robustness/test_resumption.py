"""The folder of a run holds one configuration: another is refused, by what differs, and what may be added is kept."""

import dataclasses
from functools import partial

import pytest
import torch
from closed_form_classifiers import Scaled
from torch import nn

from attacks import ATTACKS
from attacks.adaptive import SURROGATES, Blur
from dipdefense import DefendedClassifier, FitConfig, MeanSoftmax, Purifier
from eval import RunConfig, evaluate_robustness, records
from eval.baselines import gaussian_blur
from eval.classifiers import Normalize, load_classifier
from eval.datasets import load_dataset
from eval.robustness.comparison import ComparisonConfig, benchmark_defence
from eval.robustness.defences_by_name import build_methods
from eval.robustness.ladder import AdaptiveConfig, evaluate_adaptive

TINY = FitConfig(architecture_options={"channels": [4], "skip_channels": 0}, input_channels=4, iterations=5)
RUN = RunConfig(attacks=("fgsm",), eps=0.2, steps=2, n=4)
COMPARED = ComparisonConfig(steps=2, n=4, radii=(0.1,))
CLIMB = AdaptiveConfig(rungs=["blur"], eps=0.2, n={"cheap": 2, "gradient": 2, "unrolled": 1, "queries": 1})
HIDDEN = {"scale": 1.0}  # a description of a function does not look into it


class Own(Purifier):
    """A purifier with an attribute of its own."""

    def __init__(self, *arguments, least, **options):
        super().__init__(*arguments, **options)
        self.least = least


def closure(scale):
    def scaled(images):
        return images * scale

    return scaled


def hidden(images):
    return images * HIDDEN["scale"]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def net():
    return load_classifier("digits_cnn")


def run(net, digits, out, config=RUN, **options):
    options = {"purifier": Purifier(TINY), "filters": {"blur": gaussian_blur}} | options
    return evaluate_robustness(net, digits, config, out=out, **options)


def refusal(out, message):
    """The error that refuses a folder, as a pattern: it says what differs, and what to do."""
    return f"out {out} holds a run with {message}.*: name another folder"


@pytest.fixture(scope="module")
def made(tmp_path_factory, net, digits):
    folder = tmp_path_factory.mktemp("run")
    run(net, digits, folder)
    return folder


def numbers(**changes):
    return lambda net, digits: (net, digits, dataclasses.replace(RUN, **changes), {})


def data(change):
    return lambda net, digits: (net, change(digits), RUN, {})


def options(**changes):
    return lambda net, digits: (net, digits, RUN, changes)


OTHERS = {  # what a second start has in place of the first, and what the refusal names
    "eps": (numbers(eps=0.1), "eps 0.2 where this one has 0.1"),
    "steps": (numbers(steps=3), "steps 2 where this one has 3"),
    "n": (numbers(n=5), "n 4 where this one has 5"),
    "targeted": (numbers(targeted=True), "targeted false where this one has true"),
    "labels": (
        data(lambda digits: dataclasses.replace(digits, labels=(digits.labels + 1) % 10)),
        r"images 449 \(\w+\) where this one has 449 \(\w+\)",
    ),
    "pixels": (data(lambda digits: dataclasses.replace(digits, read=lambda i: digits.read(i) / 2)), r"images 449 \("),
    "part": (data(lambda digits: digits.between(0, 1000)), r"images 449 \(\w+\) where this one has 250"),
    "fit seed": (options(purifier=Purifier(TINY, seed=1)), "defences.dip.fit_seed 0 where this one has 1"),
    "fit": (
        options(purifier=Purifier(dataclasses.replace(TINY, lr=0.02))),
        "defences.dip.fit.lr 0.01 where this one has 0.02",
    ),
    "tile": (options(purifier=Purifier(TINY, tile=16)), "defences.dip.tile null where this one has 16"),
    "gradient": (
        options(purifier=Purifier(TINY, gradient=Blur(2.0))),
        "defences.dip.purifier dipdefense.defence.purifier.Purifier ",
    ),
    "decision": (
        options(decision=MeanSoftmax((2, 4))),
        "defences.dip.decision LastReconstruction.* where this one has MeanS",
    ),
    "filter": (
        options(filters={"blur": partial(gaussian_blur, sigma=0.5)}),
        "defences.blur.filter eval.baselines.gaussian_blur .* where this one has "
        "eval.baselines.gaussian_blur{'sigma': 0.5}",
    ),
    "classifier": (
        lambda net, digits: (nn.Sequential(Normalize([0.1], [0.9]), net).eval(), digits, RUN, {}),
        r"classifier \w+ where this one has Sequential, weights \w+ where",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_configuration_is_refused_by_what_differs(made, net, digits, name):
    change, message = OTHERS[name]
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    classifier, dataset, config, changed = change(net, digits)
    with pytest.raises(ValueError, match=refusal(made, message)):
        run(classifier, dataset, made, config, **changed)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_other_code_is_refused(made, net, digits, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(records, "source_hash", lambda *packages: "0123456789abcdef")
        said = f"out {made} holds a run that was made before the code changed, .*: name another folder with --out, or "
        with pytest.raises(ValueError, match=rf"{said}delete this one \(code \w+, now 0123456789abcdef\)"):
            run(net, digits, made)
    monkeypatch.setitem(ATTACKS, "fgsm", partial(ATTACKS["fgsm"], seed=3))
    with pytest.raises(
        ValueError, match=refusal(made, r"attacks\.fgsm attacks\.gradient\.fgsm \w+ where this one has")
    ):
        run(net, digits, made)


def test_filters_may_be_added_and_left_out(tmp_path, net, digits):
    config, calls = dataclasses.replace(RUN, attacks=(), n=2), []
    run(net, digits, tmp_path, config, filters={})
    count = {"progress": lambda *counts: calls.append(counts)}
    assert set(run(net, digits, tmp_path, config, **count)["defence"]) == {"none", "dip", "blur"}
    assert len(calls) == 1  # the filter that is new
    assert set(run(net, digits, tmp_path, config, filters={}, **count)["defence"]) == {"none", "dip"}
    assert len(calls) == 1
    other = {"blur": partial(gaussian_blur, sigma=0.5)}
    with pytest.raises(
        ValueError, match=refusal(tmp_path, r"defences\.blur\.filter .* where this one has")
    ):  # of the start before the last
        run(net, digits, tmp_path, config, filters=other)


@pytest.mark.parametrize("second", [lambda x: x * -1.0, lambda x: x * 0.5])
def test_another_function_in_an_attribute_is_refused(tmp_path, net, digits, second):
    """Weights, structure and code of the two are the same: the second run once returned the first one's table."""
    config, first = dataclasses.replace(RUN, attacks=(), n=2), Scaled(net, lambda x: x * 1.0).eval()
    run(first, digits, tmp_path, config, filters={})
    with pytest.raises(
        ValueError,
        match=refusal(
            tmp_path, r"another classifier, whose logits differ from this one's by up to [\d.]+, in a range of"
        ),
    ):
        run(Scaled(net, second).eval(), digits, tmp_path, config, filters={})
    assert run(first, digits, tmp_path, config, filters={})["n"].eq(2).all()


HELD = {
    "closure": ({"filters": {"f": closure(1.0)}}, {"filters": {"f": closure(0.5)}}),
    "seed of a module": ({"filters": {"f": Purifier(TINY)}}, {"filters": {"f": Purifier(TINY, seed=1)}}),
    "attribute": ({"purifier": Own(TINY, least=1)}, {"purifier": Own(TINY, least=2)}),
    "surrogate": ({"gradient": Blur(1.0)}, {"gradient": Blur(2.0)}),
}


@pytest.mark.parametrize("name", HELD)
def test_filters_purifiers_and_gradients_are_known_by_what_they_hold(tmp_path, net, digits, name):
    (first, second), config = HELD[name], dataclasses.replace(RUN, attacks=(), n=2)
    run(net, digits, tmp_path, config, **{"filters": {}} | first)
    with pytest.raises(
        ValueError,
        match=refusal(tmp_path, r"(defences\.f\.filter|defences\.\w+\.purifier|gradient) .* where this one has"),
    ):
        run(net, digits, tmp_path, config, **{"filters": {}} | second)


def test_a_filter_is_known_by_its_answers(tmp_path, net, digits, monkeypatch):
    config = dataclasses.replace(RUN, attacks=(), n=2)
    run(net, digits, tmp_path, config, filters={"f": hidden})
    monkeypatch.setitem(HIDDEN, "scale", 0.2)
    with pytest.raises(ValueError, match=refusal(tmp_path, "another filter f, whose logits differ")):
        run(net, digits, tmp_path, config, filters={"f": hidden})


def test_another_number_of_threads_is_the_same_run(made, net, digits):
    threads, calls = torch.get_num_threads(), []
    try:
        torch.set_num_threads(threads + 1)
        run(net, digits, made, progress=lambda *counts: calls.append(counts))
    finally:
        torch.set_num_threads(threads)
    assert calls == []


def climb(net, digits, out, config=CLIMB, seed=0, **options):
    return evaluate_adaptive(DefendedClassifier(net, Purifier(TINY, seed=seed)), digits, config, out=out, **options)


def test_rungs_and_images_may_be_added_to_a_ladder_and_nothing_else(tmp_path, net, digits, monkeypatch):
    climb(net, digits, tmp_path)
    calls, more = [], dataclasses.replace(CLIMB, rungs=["blur", "oblivious"], n=CLIMB.n | {"cheap": 3})
    table = climb(net, digits, tmp_path, more, progress=lambda *counts: calls.append(counts))
    assert table.set_index("attack")["n"].to_dict() == {"clean": 3, "blur": 2, "oblivious": 3, "worst case": 3}
    for changed, message in (
        ({"config": dataclasses.replace(CLIMB, eps=0.1)}, "eps 0.2 where this one has 0.1"),
        ({"config": dataclasses.replace(CLIMB, batch_size=1)}, "batch_size 32 where this one has 1"),
        ({"seed": 1}, "defences.dip.fit_seed 0 where this one has 1"),
    ):
        with pytest.raises(ValueError, match=refusal(tmp_path, message)):
            climb(net, digits, tmp_path, **changed)
    with pytest.raises(ValueError, match=refusal(tmp_path, r"weights \w+ where this one has \w+")):
        climb(Scaled(net, lambda x: x).eval(), digits, tmp_path, classifier_name=type(net).__name__)
    monkeypatch.setitem(SURROGATES, "blur", Blur(2.0))
    with pytest.raises(
        ValueError,
        match=refusal(
            tmp_path, r"attacks\.blur\.gradient Blur\(sigma=1\.0\) \w+ where this one has Blur\(sigma=2\.0\)"
        ),
    ):
        climb(net, digits, tmp_path)


def test_a_source_may_be_added_with_the_rung_that_needs_it_and_stays(tmp_path, net, digits):
    oblivious = dataclasses.replace(CLIMB, rungs=["oblivious"])
    climb(net, digits, tmp_path, oblivious)
    transfer = dataclasses.replace(CLIMB, rungs=["oblivious", "transfer"])
    source = Scaled(net, lambda x: 2 * x).eval()
    assert len(climb(net, digits, tmp_path, transfer, source=source)) == 4
    with pytest.raises(ValueError, match=refusal(tmp_path, "another source, whose logits")):
        climb(net, digits, tmp_path, transfer, source=Scaled(net, lambda x: -x).eval())
    with pytest.raises(ValueError, match=refusal(tmp_path, r"attacks\.transfer\.source \w+ where this one has")):
        climb(net, digits, tmp_path, transfer, source=net)


def test_methods_may_be_added_to_a_comparison_and_nothing_else(tmp_path, net, digits):
    def compare(names, fit=TINY, net=net, **changes):
        methods = build_methods(names, net, Purifier(fit), iterations=(5,))
        config = dataclasses.replace(COMPARED, **changes)
        return benchmark_defence(net, digits, methods, config, out=tmp_path, classifier_name="net")

    compare(["bare"], attacks=())
    assert set(compare(["bare", "dip"])["defence"]) == {"bare", "dip"}
    compare(["bare"])
    with pytest.raises(
        ValueError, match=refusal(tmp_path, "defences.dip 5.0.fit.lr 0.01 where this one has 0.02")
    ):  # of the start before the last
        compare(["dip"], fit=dataclasses.replace(TINY, lr=0.02))
    with pytest.raises(ValueError, match=refusal(tmp_path, "seed 0 where this one has 1")):
        compare(["bare"], seed=1)
    with pytest.raises(ValueError, match=refusal(tmp_path, r"weights \w+ where this one has")):
        compare(["bare"], net=Scaled(net, lambda x: -x).eval())


def test_two_kinds_of_run_do_not_share_a_folder(made, net, digits):
    with pytest.raises(ValueError, match=refusal(made, "run evaluate where this one has ladder")):
        climb(net, digits, made)
