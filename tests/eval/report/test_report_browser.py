"""The report in a real browser without a screen: the slider is dragged, and the numbers are read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dipdefense import DefendedClassifier, FitConfig, Purifier
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.report import write_report
from eval.robustness.config import RunConfig
from eval.robustness.evaluate import evaluate_robustness
from eval.robustness.gallery import gallery_of_run

pytestmark = [pytest.mark.slow, pytest.mark.browser]
QUICK = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=24)
RUN = RunConfig(attacks=("pgd",), eps=0.2, steps=3, n=4)
EVIL = "<script>document.title='owned'<\\script><img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run whose folder and first class have hostile names."""
    run = tmp_path_factory.mktemp("runs") / EVIL
    digits, classifier, purifier = load_dataset("digits"), load_classifier("digits_cnn"), Purifier(QUICK)
    evaluate_robustness(classifier, digits, RUN, out=run, purifier=purifier)
    gallery_of_run(run, DefendedClassifier(classifier, purifier), digits, RUN, n=2)
    numbers = json.loads((run / "gallery" / "gallery.json").read_text())
    numbers["classes"] = [EVIL for _ in numbers["classes"]]
    (run / "gallery" / "gallery.json").write_text(json.dumps(numbers))
    write_report(run.parent, run.parent / "report.html")
    return run


@pytest.fixture
def page(browser, folder) -> Any:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get_log("browser")  # of the page before
    browser.get((folder.parent / "report.html").as_uri())
    shown(browser)
    return browser


def shown(browser: Any, condition: str = "clean") -> None:
    """Wait until the gallery shows an image under a condition."""
    from selenium.webdriver.support.ui import WebDriverWait

    selector = f".gallery[data-shown$='{condition}']"
    WebDriverWait(browser, 10).until(lambda driver: driver.find_elements("css selector", selector))


def text(browser: Any, name: str) -> str:
    return str(browser.find_element("css selector", f".gallery .{name}").text)


def choose(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("css selector", "select.condition")).select_by_visible_text(condition)
    shown(browser, condition)


def drag(browser: Any, share: float) -> None:
    """Take the thumb of the slider where it is, and let it go at a share of its way."""
    from selenium.webdriver import ActionChains

    slider = browser.find_element("css selector", ".slider")
    way = slider.size["width"] - 16  # the thumb's centre stays half its 16 pixels inside
    now = int(slider.get_property("value")) / int(slider.get_property("max"))
    chain = ActionChains(browser, duration=20)
    chain.move_to_element_with_offset(slider, round((now - 0.5) * way), 0).click_and_hold()
    for part in (0.25, 0.5, 0.75, 1.0):
        chain.move_to_element_with_offset(slider, round((now + (share - now) * part - 0.5) * way), 0)
    chain.release().perform()


def pixels(browser: Any, name: str) -> np.ndarray:
    """Red of a canvas, as it stands in it."""
    code = """const canvas = document.querySelector('.gallery canvas.' + arguments[0]);
    return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"""
    return np.array(browser.execute_script(code, name), dtype=np.int64).reshape(32, 32, 4)[..., 0]


def test_dragging_the_slider_changes_pictures_and_numbers(page, folder):
    content = json.loads((folder / "gallery" / "gallery.json").read_text())
    choose(page, "pgd")
    number = next(i for i, item in enumerate(content["items"]) if item["condition"] == "pgd")
    item = content["items"][number]
    with Image.open(folder / "gallery" / f"{number:03d}.png") as strip:
        frames = np.array(strip).astype(np.int64).reshape(-1, 32, 32)
    seen = set()
    for share in (1.0, 0.5, 0.0, 0.75):
        drag(page, share)
        at = int(page.find_element("css selector", ".slider").get_property("value"))
        assert at == pytest.approx(share * (len(item["frames"]) - 1), abs=1)
        frame = item["frames"][at]
        assert text(page, "iteration") == f"{frame['iteration']} of 24"
        assert text(page, "psnr") == f"{frame['psnr']:.2f} dB"
        assert float(text(page, "ssim")) == pytest.approx(frame["ssim"], abs=6e-4)
        assert float(text(page, "rms")) == pytest.approx(frame["residual"], abs=6e-5)
        assert text(page, "read").startswith("read as <script>")
        assert text(page, "read").endswith(f", {100 * frame['probability']:.0f} %")
        wrong = "wrong" in page.find_element("css selector", ".read").get_attribute("class")
        assert wrong == (frame["prediction"] != item["label"])
        assert (pixels(page, "reconstruction") == frames[at + 2]).all()
        residual = (127.5 + 5 * (frames[1] - frames[at + 2])).clip(0, 255)
        assert np.abs(pixels(page, "residual") - residual).max() <= 0.5
        seen.add(text(page, "psnr"))
    assert len(seen) == 4
    assert (pixels(page, "clean") == frames[0]).all()
    assert (pixels(page, "input") == frames[1]).all()


def test_arrow_keys_move_the_slider(page):
    from selenium.webdriver import Keys

    slider = page.find_element("css selector", ".slider")
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert text(page, "iteration") == "3 of 24"
    assert slider.get_attribute("aria-valuetext").startswith("iteration 3, read as")


def test_names_of_folders_and_classes_stay_text(page, folder):
    assert page.title == f"dipdefense report: {folder.parent.name}"
    assert EVIL in page.find_element("css selector", ".run h2").text
    assert EVIL in text(page, "true")
    assert page.execute_script("return document.scripts.length") == 2
    assert page.find_elements("css selector", "img") == []


def test_nothing_is_fetched_and_nothing_complains(page):
    fetched = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith("data:image/png") for name in fetched)
    assert page.get_log("browser") == []


def test_light_and_dark_follow_the_system(page):
    def luminance(scheme: str, what: str) -> float:
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        colour = page.execute_script(f"return getComputedStyle(document.body).{what}")
        return float(np.mean([int(level) for level in colour[colour.index("(") + 1 : -1].split(",")[:3]])) / 255

    assert luminance("light", "backgroundColor") > 0.9 > 0.2 > luminance("light", "color")
    assert luminance("dark", "backgroundColor") < 0.2 < 0.8 < luminance("dark", "color")


def test_a_phone_shows_it_without_scrolling_sideways(page):
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    wide = page.execute_script(
        "return [...document.querySelectorAll('body *')].filter((e) => !e.closest('.wide *')"
        " && e.getBoundingClientRect().right > 361).map((e) => e.outerHTML.slice(0, 90))"
    )
    assert wide == []
    assert page.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    drag(page, 1.0)
    assert text(page, "iteration") == "24 of 24"
    small = page.execute_script(
        "return Math.min(...[...document.querySelectorAll('.chart text')].map((t) => t.getBoundingClientRect().height))"
    )
    assert small >= 10  # pixels: legible
