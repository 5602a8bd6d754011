"""Shared fixtures: the folder with real images and weights, a browser, the documentation's site."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# A property test draws the same examples at every run, so that a failure is the code's; DIPDEFENSE_EXAMPLES draws more.
settings.register_profile(
    "dipdefense",
    max_examples=int(os.environ.get("DIPDEFENSE_EXAMPLES", 24)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("dipdefense")

# The networks of the tests are tiny: threads would only wait for each other. CI also runs some tests with two.
THREADS = int(os.environ.get("DIPDEFENSE_TEST_THREADS", "1"))
torch.set_num_threads(THREADS)

DATA = Path(os.environ.get("DIPDEFENSE_DATA", Path(__file__).parents[2] / "shared" / "data"))
SITE = Path(os.environ.get("DIPDEFENSE_SITE", Path(__file__).parents[1] / "site"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `data`, `gpu`, `browser` and `site` tests, visibly, where there is nothing to run them on."""
    missing = {}
    if not DATA.is_dir():
        missing["data"] = f"real data not found at {DATA}: set DIPDEFENSE_DATA"
    if not torch.cuda.is_available():
        missing["gpu"] = "no CUDA device"
    if not (shutil.which("chromium") and shutil.which("chromedriver") and find_spec("selenium")):
        missing["browser"] = "no browser: apt-get install chromium chromium-driver, pip install selenium"
    if not (SITE / "index.html").is_file():
        missing["site"] = f"no site at {SITE}: mkdocs build, and set DIPDEFENSE_SITE"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For what holds in one chunk at a time: calls that are counted, an order of callbacks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder with the real images, labels and weights; only `data` tests may ask for it."""
    return DATA


@pytest.fixture(scope="session")
def site() -> Path:
    """Folder with the built documentation; only `site` tests may ask for it."""
    return SITE


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a screen."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()
