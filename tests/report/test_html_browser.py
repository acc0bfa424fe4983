"""The HTML page in headless Chromium, on real runs: charts, tabs, sorting, light and dark, a phone's width, attacks."""

from __future__ import annotations

import itertools
import shutil
import time

import pytest

from stochprune.report.html import read_source, render, view_of
from tests.report.html_runs import HOSTILE, hostile, make_runs, write

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip("selenium.webdriver")
pytest.importorskip("vl_convert")
CLIPPED = """
return [...document.querySelectorAll('.run:not([hidden]) .chart svg')].flatMap((svg) => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter((text) => {
    const { left, right, width } = text.getBoundingClientRect();
    return width && (left < box.left - 1 || right > box.right + 1);
  }).map((text) => text.textContent);
});"""
SHOWN = "document.querySelectorAll('.run:not([hidden]) .chart')"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    runs = make_runs(folder / "runs")
    content = {key: value for key, value in read_source(runs[0]).content.items() if key != "digest"}
    runs.append(write(folder / "attack.json", hostile(content)))
    path = folder / "page.html"
    path.write_text(render([view_of(read_source(run)) for run in runs], [HOSTILE]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chromium():
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()


def opened(chromium, file, *, scheme="light", width=1280):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chromium.get(f"file://{file}")
    drawn(chromium)
    return chromium


def drawn(chromium):
    """Wait until every chart of the shown run is drawn; a failure raises."""
    for _ in range(300):
        states = chromium.execute_script(f"return [...{SHOWN}].map((chart) => chart.dataset.state)")
        assert "failed" not in states
        if set(states) <= {"drawn"}:
            return
        time.sleep(0.1)
    raise AssertionError(states)


def shown_runs(chromium):
    return chromium.execute_script("return [...document.querySelectorAll('.run:not([hidden])')].map((run) => run.id)")


@pytest.mark.parametrize(("scheme", "width"), list(itertools.product(("light", "dark"), (1280, 390))))
def test_every_tab_draws_its_charts_without_overflow(chromium, file, scheme, width):
    page = opened(chromium, file, scheme=scheme, width=width)
    page.get_log("browser")
    tabs = page.find_elements("css selector", "[role=tab]")
    charts = 0
    for index, tab in enumerate(tabs):
        tab.click()
        drawn(page)
        assert shown_runs(page) == [f"run-{index + 1}"]
        assert tab.get_attribute("aria-selected") == "true"
        charts += page.execute_script(f"return [...{SHOWN}].filter((chart) => chart.querySelector('svg path')).length")
        across = page.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
        assert across[0] <= across[1]
        wide = f"return [...{SHOWN}].filter((c) => c.querySelector('svg').clientWidth > c.clientWidth + 1).length"
        assert page.execute_script(wide) == 0
        assert page.execute_script(CLIPPED) == []
    assert charts > 20
    assert not [entry for entry in page.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


def test_arrow_keys_move_between_tabs(chromium, file):
    page = opened(chromium, file)
    first, *_, last = page.find_elements("css selector", "[role=tab]")
    first.send_keys("\ue014")  # arrow right
    assert shown_runs(page) == ["run-2"]
    assert page.switch_to.active_element.get_attribute("id") == "tab-2"
    page.switch_to.active_element.send_keys("\ue010")  # end
    assert page.switch_to.active_element == last and first.get_attribute("tabindex") == "-1"
    last.send_keys("\ue014")
    assert shown_runs(page) == ["run-1"]


def test_a_header_sorts_its_table_in_both_directions(chromium, file):
    page = opened(chromium, file)
    tab = page.find_elements("css selector", "[role=tab]")[3]
    tab.click()
    table = page.find_element("css selector", ".run:not([hidden]) > .scroll table")
    headers = table.find_elements("css selector", "th")
    names = [header.text.strip() for header in headers]
    for name, convert in (("ms", float), ("contender", str)):
        column = names.index(name)
        found = []
        for order in ("ascending", "descending"):
            headers[column].find_element("css selector", "button").click()
            assert headers[column].get_attribute("aria-sort") == order
            cells = page.execute_script(
                "return [...arguments[0].tBodies[0].rows].map((row) => [row.cells[arguments[1]].dataset.value, "
                "row.cells[arguments[1]].textContent])",
                table,
                column,
            )
            found.append([convert(value if convert is float else text) for value, text in cells])
        assert found[0] == sorted(found[0]) and found[1] == sorted(found[1], reverse=True) and found[0] != found[1]
        said = page.find_element("css selector", "[role=status]").get_attribute("textContent")
        assert name in said and "descending" in said


def test_dark_and_light_differ_and_both_can_be_read(chromium, file):
    seen = {}
    for scheme in ("light", "dark"):
        page = opened(chromium, file, scheme=scheme)
        back = page.execute_script("return getComputedStyle(document.querySelector('figure')).backgroundColor")
        ink = page.execute_script("return document.querySelector('.chart svg text').getAttribute('fill')")
        soft = page.execute_script("return getComputedStyle(document.querySelector('figcaption p')).color")
        seen[scheme] = back
        assert contrast(back, ink) > 7 and contrast(back, soft) > 4.5  # WCAG AAA and AA
    assert seen["light"] != seen["dark"]


def contrast(first, second):
    """Return the contrast of two colours as WCAG defines it, 1 to 21."""
    values = sorted((luminance(first), luminance(second)))
    return (values[1] + 0.05) / (values[0] + 0.05)


def luminance(colour):
    if colour.startswith("#"):
        parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    else:
        parts = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in parts)]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_attacks_do_not_run_and_nothing_is_loaded(chromium, file):
    page = opened(chromium, file)
    page.find_elements("css selector", "[role=tab]")[-1].click()
    drawn(page)
    assert not page.find_elements("css selector", "img[src=x]")
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert HOSTILE in page.find_element("css selector", ".errors").text
    page.execute_script("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    time.sleep(0.3)
    assert page.execute_script("return window.ran") is None  # the policy would stop it, too
