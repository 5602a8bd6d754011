"""Configurations and decisions: valid ones survive JSON, and a value out of range is refused by its field's name."""

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attacks import ATTACKS, CONTROLS, MINIMUM_NORM
from attacks.adaptive import COSTS, LADDER
from dipdefense import DECISIONS, Detector, FitConfig
from dipdefense.defence.evidence import VIEWS
from dipdefense.fitting.config import GENERATORS, PRECISIONS
from dipdefense.fitting.inputs import INPUTS
from dipdefense.fitting.losses import LOSSES
from dipdefense.stopping import STOPPING_RULES
from eval.robustness.config import CRAFTED_ON, RunConfig
from eval.robustness.ladder import AdaptiveConfig

texts = st.text(max_size=8)
counts = st.integers(1, 10**6)
positive = st.floats(1e-9, 1e9)
share = st.floats(0, 1)
too_few = st.integers(max_value=0)
not_finite = st.sampled_from([float("nan"), float("inf"), float("-inf")])
negative = st.floats(max_value=-1e-9)
no_number = texts | st.none() | st.booleans() | st.lists(st.integers(), max_size=2)
no_count = too_few | no_number | st.floats()
no_positive = not_finite | negative | st.just(0) | no_number


def survives(kind: Callable[..., Any], config: Any) -> bool:
    """The same again after a round trip through JSON, in which a tuple is a list."""
    plain = json.dumps(asdict(config))
    return json.dumps(asdict(kind(**json.loads(plain)))) == plain


def unknown(known: Any) -> st.SearchStrategy[Any]:
    return (texts | st.integers() | st.none() | st.lists(texts, max_size=1)).filter(lambda x: x not in list(known))


def rule_options(rule: str) -> st.SearchStrategy[dict[str, Any]]:
    """What a stopping rule must be told, and nothing else."""
    asked = inspect.signature(STOPPING_RULES[rule]).parameters
    return st.fixed_dictionaries({"sigma": st.floats(0.01, 0.5)} if "sigma" in asked else {})


@st.composite
def fit_configs(draw: st.DrawFn) -> FitConfig:
    architecture, stopping = draw(st.sampled_from(list(GENERATORS))), draw(st.sampled_from(list(STOPPING_RULES)))
    channels = st.lists(st.integers(1, 16), min_size=1, max_size=4)
    sized = architecture != "pixels"
    return FitConfig(
        architecture=architecture,
        architecture_options=draw(st.fixed_dictionaries({"channels": channels | channels.map(tuple)} if sized else {})),
        input=draw(st.sampled_from(list(INPUTS))),
        input_channels=draw(st.integers(1, 64)),
        iterations=draw(st.integers(1000, 10**6)),
        lr=draw(positive),
        jitter=draw(st.floats(0, 1e9)),
        loss=draw(st.sampled_from(list(LOSSES))),
        ema=draw(st.floats(0, 1, exclude_max=True)),
        stopping=stopping,
        stopping_options=draw(rule_options(stopping)),
        rollback_db=draw(positive),
        memory_gb=draw(st.none() | positive),
        precision=draw(st.sampled_from(PRECISIONS)),
        compile=draw(st.booleans()),
    )


@given(config=fit_configs())
def test_a_fit_survives_json(config):
    assert FitConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert survives(FitConfig, config)


@st.composite
def runs(draw: st.DrawFn) -> RunConfig:
    norm, crafted_on = draw(st.sampled_from(["linf", "l2"])), draw(st.sampled_from(list(CRAFTED_ON)))
    targeted = draw(st.booleans())
    known = set(ATTACKS) - {"fgsm"} if norm == "l2" else set(ATTACKS)
    known |= set() if targeted else set(MINIMUM_NORM)
    known |= set() if targeted or crafted_on != "bare" else set(CONTROLS)
    return RunConfig(
        attacks=tuple(draw(st.lists(st.sampled_from(sorted(known)), unique=True))),
        norm=norm,
        eps=draw(share),
        alpha=draw(st.none() | positive),
        steps=draw(counts),
        targeted=targeted,
        crafted_on=crafted_on,
        n=draw(counts),
        n_defended=draw(st.none() | counts),
        seed=draw(st.integers(0, 2**63)),
        batch_size=draw(counts),
    )


@given(config=runs())
def test_a_run_survives_json(config):
    assert survives(RunConfig, config)


@given(
    config=st.builds(
        AdaptiveConfig,
        rungs=st.lists(st.sampled_from(AdaptiveConfig(norm="l2").chosen_rungs), min_size=1, unique=True),
        eps=share,
        norm=st.sampled_from(["linf", "l2"]),
        n=st.fixed_dictionaries({cost: counts for cost in COSTS}),
        queries=counts,
        votes=counts,
        seed=st.integers(0, 2**63),
        batch_size=counts,
        budget=positive | st.just(float("inf")),
    )
)
def test_a_climb_survives_json(config):
    assert survives(AdaptiveConfig, config)


rising = st.lists(counts, min_size=2, max_size=5, unique=True).map(sorted)
detectors = st.builds(
    Detector,
    iteration=counts,
    bias=st.floats(-1e9, 1e9),
    doubt=st.floats(-1e9, 1e9),
    left=st.floats(-1e9, 1e9),
    drawn=st.floats(-1e9, 1e9),
    quiet=st.none() | st.floats(0, 1, exclude_min=True),
)
OF_DECISIONS = {
    "iterations": st.none() | rising | rising.map(tuple),
    "restarts": counts,
    "views": st.lists(st.sampled_from(list(VIEWS)), min_size=1, unique=True).map(tuple),
    "detector": st.none() | detectors,
    "threshold": share,
    "width": st.floats(1e-6, 1e9),
    "alpha": st.floats(0, 1e9),
    "bisections": counts,
}


@pytest.mark.parametrize("name", DECISIONS)
@given(drawn=st.data())
def test_a_decision_survives_json(name, drawn):
    kind = DECISIONS[name]
    decision = kind(**{field.name: drawn.draw(OF_DECISIONS[field.name]) for field in fields(kind)})
    assert kind(**json.loads(json.dumps(asdict(decision)))) == decision


no_options = texts | st.none() | st.integers() | st.lists(texts, max_size=2)
falling = st.lists(st.integers(1, 99), min_size=2, max_size=4, unique=True).map(lambda x: sorted(x, reverse=True))
no_iterations = falling | st.lists(st.floats() | too_few, min_size=1, max_size=3) | st.just([]) | st.integers() | texts
BAD: dict[Callable[..., Any], dict[str, st.SearchStrategy[Any]]] = {
    FitConfig: {
        "architecture": unknown(GENERATORS),
        "architecture_options": no_options,
        "input": unknown(INPUTS),
        "input_channels": no_count,
        "start": st.just("") | st.none() | st.booleans() | st.integers() | st.lists(texts, max_size=2),
        "iterations": no_count,
        "lr": no_positive,
        "jitter": not_finite | negative | no_number,
        "loss": unknown(LOSSES),
        "ema": not_finite | negative | st.floats(min_value=1) | no_number,
        "stopping": unknown(STOPPING_RULES),
        "stopping_options": no_options,
        "rollback_db": no_positive,
        "memory_gb": no_positive.filter(lambda value: value is not None),
        "precision": unknown(PRECISIONS),
        "compile": st.integers() | texts | st.none(),
    },
    RunConfig: {
        "attacks": st.lists(
            texts.filter(lambda name: name not in ATTACKS | MINIMUM_NORM | CONTROLS), min_size=1, max_size=2
        )
        | texts,
        "norm": unknown(("linf", "l2")),
        "eps": not_finite | negative | st.floats(min_value=1, exclude_min=True) | no_number,
        "alpha": not_finite | negative | st.just(0.0) | texts,
        "steps": no_count,
        "targeted": st.integers() | texts | st.none(),
        "crafted_on": unknown(CRAFTED_ON),
        "n": no_count,
        "n_defended": too_few | texts,
        "attacks_defended": st.just(["cw"]) | texts,
        "seed": st.integers(max_value=-1) | no_number,
        "batch_size": no_count,
    },
    AdaptiveConfig: {
        "rungs": st.lists(texts.filter(lambda name: name not in LADDER), max_size=2) | texts,
        "eps": not_finite | negative | st.floats(min_value=1, exclude_min=True) | no_number,
        "norm": unknown(("linf", "l2")),
        "n": no_number
        | st.dictionaries(texts, counts, max_size=2)
        | st.fixed_dictionaries({cost: no_count for cost in COSTS}),
        "queries": no_count,
        "votes": no_count,
        "seed": st.integers(max_value=-1) | no_number,
        "batch_size": no_count,
        "budget": negative | st.just(0.0) | st.just(float("nan")) | no_number,
    },
    **{
        kind: {
            name: bad
            for name, bad in {
                "iterations": no_iterations,
                "restarts": no_count,
                "views": st.lists(texts, max_size=2) | texts,
                "detector": texts | st.integers() | st.booleans(),
                "threshold": not_finite | negative | st.floats(min_value=1, exclude_min=True) | no_number,
                "width": not_finite | negative | st.just(0.0) | no_number,
                "alpha": not_finite | negative | no_number,
                "bisections": no_count,
            }.items()
            if name in {field.name for field in fields(kind)}
        }
        for kind in DECISIONS.values()
    },
    Detector: {
        "iteration": no_count,
        "bias": not_finite | no_number,
        "doubt": not_finite | no_number,
        "left": not_finite | no_number,
        "drawn": not_finite | no_number,
        "quiet": not_finite | negative | st.just(0.0) | st.floats(min_value=1, exclude_min=True) | texts,
    },
}
GOOD = {Detector: {"iteration": 1, "bias": 0.0, "doubt": 0.0, "left": 0.0, "drawn": 0.0}}
EVERY = [(kind, name) for kind, names in BAD.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{kind.__name__}-{name}" for kind, name in EVERY])
@given(drawn=st.data())
def test_a_bad_value_is_refused_by_its_name(kind, name, drawn):
    bad = drawn.draw(BAD[kind][name])
    with pytest.raises((ValueError, TypeError), match=rf"\b({name}|{name.removesuffix('s')})\b"):
        kind(**(GOOD.get(kind, {}) | {name: bad}))


@pytest.mark.parametrize("kind", BAD)
def test_every_field_has_bad_values(kind):
    assert {field.name for field in fields(kind)} == BAD[kind].keys()
