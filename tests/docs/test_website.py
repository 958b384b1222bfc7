"""The site, built with warnings as errors and opened in a browser: it asks nothing of anyone else, and says nothing."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("furo", reason="the site's packages are not installed (extra docs)")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.docs,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; .ci/run installs it as root"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, without a line on stderr for each."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The site at an address of this machine; `.ci/run` has built it already."""
    site = os.environ.get("STEERFN_SITE") or str(tmp_path_factory.mktemp("site"))
    if "STEERFN_SITE" not in os.environ:
        command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", site]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def page(browser, address, request):
    """A page, and at the end: nothing was said, and nobody else was asked."""
    opened, said, asked = browser.new_page(color_scheme=request.param), [], []
    opened.scheme = request.param
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda sent: asked.append(sent.url))
    yield opened
    opened.close()
    assert not said and asked and all(url.startswith((address, "data:")) for url in asked)


def test_the_front_page_shows_the_figure_of_its_theme(page, address):
    page.goto(address)
    shown = [image.get_attribute("src") for image in page.query_selector_all("article img") if image.is_visible()]
    assert len(shown) == 1 and page.scheme in shown[0]
    page.click("article >> text=Reference")
    assert page.inner_text("h1").startswith("Reference")


def test_a_search_finds_a_function(page, address):
    page.goto(f"{address}/search.html?q=mean_difference")
    page.wait_for_selector("#search-results li a")
    assert "steerfn.mean_difference" in page.inner_text("#search-results")


@pytest.mark.parametrize("width", [1440, 390])
def test_reference_pages_fit_and_explain(page, address, width):
    page.set_viewport_size({"width": width, "height": 900})
    for name, words in {
        "operators": "h' = h + alpha * v",
        "command-line": "--vector",
        "server": "sha256_before",
        "support": "Qwen3ForCausalLM",
        "metrics": "kl_from_baseline",
    }.items():
        page.goto(f"{address}/reference/{name}.html")
        assert words in page.inner_text("article")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
