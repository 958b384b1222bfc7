"""What is shown in a real browser: all of a report, which loads nothing; a comparison where JupyterLab's rules hold."""

import re
import shutil

import pytest
from families import build
from steering import vector
from words import words

import steerfn as sf

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="there is no chromium with its chromedriver; .ci/run installs them as root"
)
HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
TITLE = f"{HOSTILE} {'long' * 30}"
SECTIONS = "verdict vector made quality effect costs controls examples limits repeat sign".split()
DATA = {"positive": ["a b c", "d e f g", "h i", "j k l m n"], "negative": ["o p", "q r s t", "u", "v w a"]}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report whose vector, metric, prompts and title all try to run something."""
    v = vector(sf.resid_post[1], scale=2.0).with_metadata(method=HOSTILE, **{HOSTILE: HOSTILE})

    def count(texts):
        return [float(len(text)) for text in texts]

    count.__name__ = HOSTILE
    found = sf.report(
        build("llama"), words(template=True), v, DATA, prompts=[f"{letter} {HOSTILE}" for letter in "abcdefgh"],
        passages=["a b c d", "e f g h"], metrics=[count], controls=1, max_new_tokens=4, resamples=199, title=TITLE,
        progress=False,
    )  # fmt: skip
    return found.save(tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = (
        "headless=new no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync "
        "no-first-run disable-dev-shm-usage"
    )
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.heavy
@needs_browser
@pytest.mark.parametrize("width", [1200, 360])
def test_the_report_is_whole_in_a_browser(page, browser, width):
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}  # no window is that narrow
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(page.as_uri())
    ask = browser.execute_script
    assert browser.title == TITLE  # shown as text, and not run
    for each in SECTIONS:
        height = ask("return document.getElementById(arguments[0])?.getBoundingClientRect().height", each)
        assert height and height > 40, each
    pictures = ask("return [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.alt.length])")
    assert len(pictures) == 2
    assert all(whole and natural > 0 and seen > 100 and alt > 20 for whole, natural, seen, alt in pictures)
    assert not browser.get_log("browser")
    loaded = ask("return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))")
    assert loaded == [] and ask("return document.scripts.length") == 0
    # Nothing sticks out of the page to the right, on a telephone either.
    assert ask("return document.documentElement.scrollWidth") <= ask("return window.innerWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.heavy
@needs_browser
@pytest.mark.parametrize("trusted", [True, False])
def test_a_comparison_in_jupyterlab_is_aligned_as_it_is_elsewhere(browser, tmp_path, trusted):
    v = vector(sf.resid_post[1], scale=2.0)
    found = sf.compare(build("llama"), words(), ["a b", "c d"], v, ["length"], max_new_tokens=4, progress=False)
    shown, rule = found._repr_html_(), ":not(.jp-RenderedMarkdown).jp-RenderedHTMLCommon :is(td, th, tr)"
    if not trusted:  # then the page takes style sheets out of what a notebook brings
        shown = re.sub("<style>.*?</style>", "", shown, flags=re.DOTALL)
    page = tmp_path / "lab.html"
    page.write_text(f'<style>{rule} {{ text-align: right; }}</style><div class="jp-RenderedHTMLCommon">{shown}</div>')
    browser.get(page.as_uri())
    cells = browser.execute_script(
        "return [...document.querySelectorAll('td, th')].map(c => [c.className, getComputedStyle(c).textAlign])"
    )
    assert {tuple(cell) for cell in cells} == {("", "left"), ("number", "right")}


@pytest.mark.heavy
@needs_browser
def test_links_lead_to_sections_and_boxes_can_be_ticked(page, browser):
    browser.set_window_size(1200, 900)
    browser.get(page.as_uri())
    links = browser.execute_script("return [...document.querySelectorAll('nav a')].map(a => a.hash)")
    assert links == [f"#{each}" for each in SECTIONS[1:]]
    assert browser.execute_script("return arguments[0].every(h => document.querySelector(h))", links)
    box = browser.find_element("css selector", "#sign input[type=checkbox]")
    box.click()
    assert box.is_selected()
    name = browser.find_element("css selector", "#sign fieldset input")
    name.send_keys("A. Reviewer")
    assert name.get_property("value") == "A. Reviewer"


@pytest.mark.heavy
@needs_browser
def test_it_is_dark_where_the_reader_likes_it_dark_and_light_on_paper(page, browser):
    def ground(**media):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {
                "media": media.get("media", ""),
                "features": [{"name": "prefers-color-scheme", "value": media.get("scheme", "light")}],
            },
        )
        return browser.execute_script(
            "const s = getComputedStyle(document.body);"
            "return [s.backgroundColor, s.color].map(c => Number(c.match(/\\d+/)[0]))"
        )

    browser.get(page.as_uri())
    (light, ink), (dark, chalk), (paper, print_) = ground(), ground(scheme="dark"), ground(scheme="dark", media="print")
    assert light > 200 > 60 > ink and dark < 60 < 200 < chalk and paper == 255 and print_ == 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    assert len(printed) > 20_000
