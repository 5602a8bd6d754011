"""Every page of the documentation's site on a phone, in a real browser without a screen."""

from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.site]
SEEN = r"""
const all = (selector) => [...document.querySelectorAll(selector)];
const load = (image) => { image.loading = 'eager'; return image.decode().then(() => [], () => [image.src]) };
return Promise.all([...document.images].map(load)).then((broken) => ({
    wide: document.documentElement.scrollWidth - innerWidth,  // pixels
    broken: broken.flat(),
    small: all('.diagram text')  // less than 9 pixels high
        .filter((text) => text.getBoundingClientRect().height < 9).map((text) => text.textContent),
    parted: all('.md-typeset table:not([class]) code, .option')  // one word on several lines
        .filter((word) => /^\w+$|^-[\w-]+$/.test(word.textContent) && word.getClientRects().length > 1)
        .map((word) => word.textContent),
    marked: all('pre .option').length,  // a block of code stays as it is
    merged: all('.md-typeset ol :is(p, li)')  // the next item of a list, read as text
        .filter((item) => !item.querySelector('p, li') && /[.:,] \d\. [A-Z]/.test(item.innerText.replace(/\s+/g, ' ')))
        .map((item) => item.textContent),
}))"""


@pytest.fixture
def phone(browser) -> Any:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_pages_fit_a_phone_and_are_legible_there(phone, site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    faults = {}
    for page in pages:
        phone.get(page.as_uri())
        seen = phone.execute_script(SEEN)
        if seen != {"wide": 0, "broken": [], "small": [], "parted": [], "marked": 0, "merged": []}:
            faults[str(page.relative_to(site))] = seen
    assert faults == {}
