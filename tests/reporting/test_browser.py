"""The page in a real headless Chromium: skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medvol.reporting import write_prediction_report, write_report
from tests.reporting.conftest import HOSTILE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-quic", "--disable-dev-shm-usage", "--window-size=760,560",
)  # fmt: skip
#: A busy machine draws WebGL in software slowly.
PATIENCE_S = 240

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed (apt-get install "
    "chromium chromium-driver)"
)  # fmt: skip
# Of Selenium's own connections, which it leaves to the garbage collector.
pytestmark = [pytestmark, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def browser(
    mask_run: Path, score_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    folder = tmp_path_factory.mktemp("browser")
    images = mask_run.parent / "images"
    page = write_report([mask_run, score_run], folder, names=("organs", "nodules"), images=images,
                        title=HOSTILE, volumes=4).page  # fmt: skip
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_page_load_timeout(PATIENCE_S)
        driver.set_script_timeout(PATIENCE_S)
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def script(browser: Any, text: str, *arguments: Any) -> Any:
    return browser.execute_script(text, *arguments)


def wait_for(browser: Any, text: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, PATIENCE_S, 0.1).until(lambda _: script(browser, text))


def column(browser: Any, run: str, number: int) -> list[str]:
    rows = f"#{run} .cases tbody tr:not([hidden])"
    return script(browser, "return [...document.querySelectorAll(arguments[0])].map(r => "
                  "r.cells[arguments[1]].textContent)", rows, number)  # fmt: skip


def coloured(browser: Any) -> dict[str, int]:
    """Pixels of the canvas that are lit, bluish (reference) and orange (prediction)."""
    return script(browser, """
        const nv = medvolViewer.instance; nv.drawScene();
        const gl = nv.gl, [w, h] = [gl.drawingBufferWidth, gl.drawingBufferHeight];
        const p = new Uint8Array(4 * w * h);
        gl.readPixels(0, 0, w, h, gl.RGBA, gl.UNSIGNED_BYTE, p);
        const found = {all: w * h, lit: 0, ref: 0, pred: 0};
        for (let i = 0; i < p.length; i += 4) {
          const [r, g, b] = [p[i], p[i + 1], p[i + 2]];
          if (r + g + b > 120) found.lit++;
          if (b > r + 25) found.ref++;
          if (r > b + 25 && r > g + 30) found.pred++;
        }
        return found;""")  # fmt: skip


def send(browser: Any, keys: str) -> None:
    browser.switch_to.active_element.send_keys(keys)


def test_the_page_loads_without_a_network_request_or_a_complaint(browser):
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [r["params"]["request"]["url"] for r in requests
            if r["method"] == "Network.requestWillBeSent"]  # fmt: skip
    assert [u for u in urls if u.startswith("file:")]
    # chrome: is the browser's own start page.
    assert [u for u in urls if not u.startswith(("file:", "data:", "blob:", "chrome:"))] == []
    assert browser.get_log("browser") == []
    assert script(browser, "return document.querySelectorAll('figure img').length") >= 10
    assert script(browser, "return [...document.images].every(i => i.loading === 'lazy' || "
                  "i.naturalWidth > 0)")  # fmt: skip


def test_hostile_names_are_text(browser):
    assert script(browser, "return window.hacked") is None
    assert browser.title == HOSTILE
    assert script(browser, "return document.querySelector('h1').textContent") == HOSTILE
    assert HOSTILE in column(browser, "run0", 1)
    assert script(browser, "return document.querySelectorAll('img[src=x]').length") == 0
    assert "<b>100" in column(browser, "run1", 0)


def test_a_click_sorts_and_undefined_stays_last(browser):
    header = "return [...document.querySelectorAll('#run0 .cases thead button')]"
    script(browser, f"{header}[2].click()")
    assert script(browser, f"{header}[2].parentElement.ariaSort") == "ascending"
    dice = column(browser, "run0", 2)
    assert len(dice) == 12
    known = [float(v) for v in dice if v != "undefined"]
    assert known == sorted(known)
    assert known[0] == 0
    for _ in range(2):
        script(browser, f"{header}[3].click()")
    distances = column(browser, "run0", 3)
    assert distances[:2] == ["inf", "inf"]


def test_words_comparisons_and_choices_filter(browser):
    def search(text: str) -> int:
        script(browser, "const s = document.querySelector('#run0 input[type=search]'); s.value = "
               "arguments[0]; s.dispatchEvent(new Event('input'))", text)  # fmt: skip
        return len(column(browser, "run0", 0))

    assert search("case3") == 2
    assert search("dice<0.5") == len([v for v in column(browser, "run0", 2) if float(v) < 0.5]) > 0
    assert search("false negative") == 1
    assert search("") == 12
    script(browser, "const s = document.querySelector('#run0 select'); s.value = 'liver'; "
           "s.dispatchEvent(new Event('change'))")  # fmt: skip
    assert set(column(browser, "run0", 1)) == {"liver"}
    count = script(browser, "return document.querySelector('#run0 .count').textContent")
    assert count == "6 of 12 rows"
    script(browser, "const s = document.querySelector('#run0 select'); s.value = ''; "
           "s.dispatchEvent(new Event('change'))")  # fmt: skip


def test_the_keyboard_alone_opens_a_case_and_turns_it_around(browser):
    from selenium.webdriver.common.keys import Keys

    script(browser, "document.querySelector('#run0 .card').focus()")
    send(browser, Keys.ENTER)
    wait_for(browser, "return Boolean(document.querySelector('#case').dataset.shown)")
    first = script(browser, "return document.querySelector('#case-name').textContent")
    numbers = script(browser, "return document.querySelector('#case-numbers').textContent")
    assert "Dice" in numbers
    assert HOSTILE in numbers
    script(browser, "document.querySelector('#opacity').value = 100; document.querySelector("
           "'#opacity').dispatchEvent(new Event('input'))")  # fmt: skip
    both = coloured(browser)
    assert both["lit"] > 0.05 * both["all"]
    assert both["pred"] > 50
    send(browser, "3")
    without = coloured(browser)
    assert without["pred"] < 0.2 * both["pred"]
    assert without["ref"] > 50
    send(browser, "2")
    assert coloured(browser)["ref"] < 0.2 * without["ref"]
    send(browser, "n")
    wait_for(browser, "return Boolean(document.querySelector('#case').dataset.shown)")
    assert script(browser, "return document.querySelector('#case-name').textContent") != first
    send(browser, Keys.ESCAPE)
    assert not script(browser, "return document.querySelector('#case').open")
    assert script(browser, "return document.activeElement.className") == "card"


def test_letters_typed_in_a_list_choose_there_and_turn_no_page(browser):
    script(browser, "document.querySelector('#run0 .card').click()")
    wait_for(browser, "return Boolean(document.querySelector('#case').dataset.shown)")
    name = "return document.querySelector('#case-name').textContent"
    first = script(browser, name)
    script(browser, "document.querySelector('#case-label').focus()")
    send(browser, "p")
    assert script(browser, name) == first
    script(browser, "document.querySelector('#close').click()")


def test_a_case_that_loads_slowly_never_replaces_the_one_asked_for_after_it(browser):
    script(
        browser,
        """
        const real = niivue.NVImage.loadFromBase64;
        let calls = 0;
        niivue.NVImage.loadFromBase64 = async (given) => {
            if (calls++ === 0) await new Promise((done) => setTimeout(done, 3000));
            return real.call(niivue.NVImage, given);
        };
        document.querySelector('#run0 .card').click();
    """,
    )
    send(browser, "n")
    wait_for(browser, "return Boolean(document.querySelector('#case').dataset.shown)")
    script(browser, "window.settled = false; setTimeout(() => { window.settled = true; }, 5000)")
    wait_for(browser, "return window.settled")
    shown = script(browser, "return JSON.parse(document.getElementById('data').textContent)"
                   ".cases[document.querySelector('#case').dataset.shown].name")  # fmt: skip
    assert shown == script(browser, "return document.querySelector('#case-name').textContent")
    assert script(browser, "return medvolViewer.instance.volumes.length") == 3
    script(browser, "document.querySelector('#close').click()")


def test_a_case_without_a_volume_shows_its_numbers(browser):
    script(browser, "document.querySelector('#run1 button.open').click()")
    assert script(browser, "return document.querySelector('#case').className") == "flat"
    assert "Brier" in script(browser, "return document.querySelector('#case-numbers').textContent")
    script(browser, "document.querySelector('#close').click()")
    assert browser.get_log("browser") == []


def test_a_page_of_predictions_fits_every_width_and_opens_in_3d(browser, predictions, tmp_path):
    page = write_prediction_report(predictions, tmp_path / "report").page
    browser.get_log("browser")
    browser.get(page.as_uri())
    for width in (390, 768, 1400):
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert script(browser, "return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert script(browser, "return [...document.images].every(i => i.naturalWidth > 0)")
    script(browser, "document.querySelector('[data-open]').click()")
    wait_for(browser, "return Boolean(document.getElementById('case').dataset.shown)")
    assert coloured(browser)["pred"] > 0
    assert script(browser, "return document.getElementById('case-numbers').textContent")
    assert script(browser, "return document.getElementById('show-ref').parentElement.hidden")
    assert browser.get_log("browser") == []
