"""Configurations: a JSON round trip, and one clear error for each bad value."""

import dataclasses
import json

import pytest

from dipdefense import FitConfig, defence_for


@pytest.mark.parametrize(
    "config",
    [
        FitConfig(),
        FitConfig(memory_gb=1.0),
        FitConfig(architecture_options={"channels": (8, 8), "skip_channels": [0, 4]}, stopping="emv"),
        defence_for((3, 32, 32)).fit,
        defence_for((1, 28, 28)).fit,
        defence_for((3, 224, 224)).fit,
    ],
)
def test_json_round_trip(config):
    assert FitConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 224, 224), (3, 512, 512)])
@pytest.mark.parametrize("decision", [None, "last"])
def test_the_default_is_never_the_large_slow_network(shape, decision):
    config = defence_for(shape, decision=decision).fit
    assert config.iterations <= 1000
    assert max(config.architecture_options["channels"]) < 128


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "resnet"}, "architecture must be one of autoencoder, unet, skip, pixels, got 'resnet'"),
        ({"architecture": ["skip"]}, "architecture must be one of"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"architecture_options": "ab"}, "architecture_options must map names to values, got 'ab'"),
        ({"input": "zeros"}, "input must be one of noise, meshgrid"),
        ({"loss": "huber"}, "loss must be one of mse, l1, poisson, gaussian_mixture, cosine"),
        ({"stopping": "never"}, "stopping must be one of fixed, wmv, emv, .*got 'never'"),
        ({"iterations": 0}, "iterations must be an integer of at least 1, got 0"),
        ({"iterations": 2.5}, "iterations must be an integer of at least 1, got 2.5"),
        ({"input_channels": 0}, "input_channels must be an integer of at least 1"),
        ({"lr": 0.0}, "lr must be positive and finite"),
        ({"lr": float("nan")}, "lr must be positive and finite"),
        ({"memory_gb": -1.0}, "memory_gb must be positive"),
        ({"memory_gb": True}, "memory_gb must be a number, got True"),
        ({"rollback_db": 0.0}, "rollback_db must be positive"),
        ({"jitter": -0.1}, "jitter must be finite and not negative"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\)"),
        ({"architecture_options": {"depth": 3}}, "skip must be given options among channels, .*got 'depth'"),
        ({"architecture_options": {"padding": "wrap"}}, "padding must be one of"),
        (
            {"stopping_options": {"patience": 5}},
            r"fixed must be given options among \(none\), got 'patience'",
        ),
        ({"stopping": "wmv", "stopping_options": {"window": 1}}, "window must be an integer of at least 2"),
        (
            {"stopping": "wmv", "iterations": 99},
            "iterations must be at least the 100 iterates that wmv sees before it judges, got 99: raise it",
        ),
        ({"stopping": "emv", "iterations": 9}, "iterations must be at least the 10 iterates that emv sees"),
        ({"stopping": "sure"}, r"sigma must be given in \[0, 1\] units such as 25/255 and be positive, got None"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**settings)
