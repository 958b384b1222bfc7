"""The page in a real browser: discover, steer, compare, restore; offline, accessible, two tabs at once."""

import json
import shutil
import subprocess

import pytest

pytest.importorskip("gradio", reason="Gradio is not installed")
pytest.importorskip("playwright", reason="Playwright is not installed")
from families import build
from playwright.sync_api import sync_playwright
from served import paced, served
from small_zoo import fill
from steering import vector
from words import words

import steerfn as sf
from steerfn import board
from steerfn.board import Push, State
from steerfn.board._compare import converse

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync disable-dev-shm-usage"
)
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),  # Gradio's own
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; .ci/run installs it as root"),
]


class Visit:
    """A page of a browser, with all that it asked for and said."""

    def __init__(self, context, address):
        self.page, self.address, self.asked, self.said = context.new_page(), address, [], []
        self.page.set_default_timeout(120_000)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))

    def open(self, state=None):
        self.page.goto(f"{self.address}/?{(state or State()).to_query()}")
        self.page.wait_for_selector("#send")
        return self

    def press(self, button):
        """Press a button once what was pressed before is done."""
        self.page.wait_for_function("!document.querySelector('[data-testid=status-tracker]:not(.hide)')")
        self.page.click(button)

    def tab(self, name, button, result):
        """Open a tab, press its button, and wait for what it shows."""
        self.page.get_by_role("tab", name=name).click()
        self.page.click(button)
        self.page.wait_for_selector(result)
        return self.page.inner_text(result.split()[0])

    def answers(self, turns=1):
        """The answers of the last turn, once they are written."""
        done = f"document.querySelectorAll('.exchange').length == {turns} && !document.querySelector('.caret')"
        self.page.wait_for_function(done)
        return self.page.locator(".exchange").last.locator(".answer").all_inner_texts()

    def check(self):
        """Nothing from elsewhere, and nothing in the console."""
        assert self.said == []
        assert {url.split("/")[2] for url in self.asked if not url.startswith(("data:", "blob:"))} == {
            self.address.split("/")[2]
        }
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in FLAGS.split()])
        yield made
        made.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """axe-core's script, from the npm registry."""
    folder = tmp_path_factory.mktemp("axe")
    try:
        subprocess.run(
            ["npm", "pack", "--silent", "axe-core@4"], cwd=folder, check=True, capture_output=True, timeout=120
        )
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"axe-core is not to be had from the npm registry: {error}")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder)
    return (folder / "package" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def home(tmp_path_factory, zoo):
    """The address of a page of a tiny model, the model, its vectors, and the page."""
    folder = tmp_path_factory.mktemp("home") / "vectors"
    model, tokenizer = build("llama"), words(template=True)
    presets = board.Presets(folder, model)
    presets.save("up", vector(sf.resid_post[1], sf.resid_post[2], scale=2.0))
    presets.save("down", vector(sf.resid_post[1], seed=1, scale=2.0))
    page = board.Page(model, tokenizer, presets, board.Source(folder=str(folder)), State())
    with served(board.app(page, board.check_keys("127.0.0.1", None))) as address:
        yield address, model, tokenizer, presets, page


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """The zoo is one of the tiny model's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steerfn.zoo._entries.OURS", fill(tmp_path_factory.mktemp("zoo"), build("llama")))
        yield


def visit(browser, home, **more):
    return Visit(browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **more}), home[0])


def expected(home, state):
    *_, shown = converse(*home[1:4], state)
    return [shown[-1].unsteered.strip(), shown[-1].steered.strip()]


def test_discover_steer_compare_restore(browser, home, tmp_path):
    address, model, tokenizer, presets, page = home
    here = visit(browser, home).open()
    look = here.page
    look.get_by_role("tab", name="Make").click()
    look.get_by_label("Positive texts").fill("a b c\nd e f\ng h i\nj k l")
    look.get_by_label("Negative texts").fill("m n o\np q r\ns t u\nv w x")
    here.press("#lint")
    look.wait_for_selector("#made .findings")
    assert "4 positive and 4 negative texts are few" in look.inner_text("#made")
    here.press("#profile")
    look.wait_for_selector("#made img")
    here.press("#make")
    look.wait_for_selector("#made .quality")
    assert "held-out AUC" in look.inner_text("#made")
    look.get_by_label("Name").fill("made here")
    here.press("#save")
    look.wait_for_selector("#made .board-alert")
    assert "not a name for a vector" in look.inner_text("#made")
    look.get_by_label("Name").fill("made-here")
    here.press("#save")
    look.wait_for_selector("#made [role=status]")
    assert presets.get("made-here").sites == (sf.resid_post[1],)

    look.get_by_role("combobox", name="Vectors").click()
    look.get_by_role("option", name="made-here").click()
    look.get_by_role("spinbutton", name="Strength of made-here").fill("3")
    look.keyboard.press("Tab")
    look.get_by_role("tab", name="Compare").click()
    look.locator("#prompt textarea").fill("a b")
    look.keyboard.press("Shift+Enter")
    shown = here.answers()
    state = State(steering=(Push("made-here", 3.0),), turns=("a b",))
    assert [each.strip() for each in shown] == expected(home, state)

    look.locator("#prompt textarea").fill("c d")
    look.click("#send")
    shown = here.answers(2)
    state = State(
        steering=(Push("made-here", 3.0),), turns=("a b", "c d"), positive=("a b c", "d e f", "g h i", "j k l"),
        negative=("m n o", "p q r", "s t u", "v w x"), name="made-here",
    )  # fmt: skip
    assert [each.strip() for each in shown] == expected(home, state)

    look.get_by_text("Python, command and link").click()
    look.wait_for_function("document.querySelector('#python textarea')?.value.includes('c d')")
    assert look.locator("#python textarea").input_value() == board.to_python(state, page.source)
    assert look.locator("#command textarea").input_value() == board.to_command(state, page.source)
    link = look.locator("#link textarea").input_value()
    with look.expect_download() as download:
        look.get_by_role("button", name="Save the state").click()
    assert State.from_json(download.value.path().read_text()) == state == State.from_query(link.partition("?")[2])

    again = visit(browser, home)
    again.page.goto(link)
    assert again.answers(2) == shown
    restored = visit(browser, home).open()
    (tmp_path / "state.json").write_text(state.to_json())
    with restored.page.expect_file_chooser() as chooser:
        restored.page.get_by_text("Python, command and link").click()
        restored.page.get_by_role("button", name="Restore a state").click()
    chooser.value.set_files(tmp_path / "state.json")
    assert restored.answers(2) == shown
    for each in (here, again, restored):
        each.check()


@pytest.mark.parametrize("width", [1440, 1024, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_accessible_and_fits(browser, home, axe, width, scheme):
    state = State(
        steering=(Push("up", 2.0, "resid_post[2]"), Push("down", -1.0, scope="generated")), turns=("a b c",),
        max_new_tokens=8, text="a b c d e", prompts=("a b", "c d"), alphas=(-1.0, 0.0, 1.0), metrics=("length",),
    )  # fmt: skip
    here = visit(browser, home, viewport={"width": width, "height": 900}, color_scheme=scheme).open(state)
    here.answers()
    here.page.get_by_text("Python, command and link").click()
    shown = {"Compare": here.page.inner_text("#answers")}
    serious = audit(here, axe)
    for name, button, result in (
        ("Strength", "#sweep", "#swept img"), ("Look", "#look", "#looked img"), ("Make", "#make", "#made .board-alert"),
    ):  # fmt: skip
        shown[name] = here.tab(name, button, result)
        serious += audit(here, axe)
        here.check()
    assert serious == []
    assert "resid_post[2]" in shown["Look"] and "Contrast needs two sides" in shown["Make"]
    alts = here.page.evaluate("[...document.querySelectorAll('.board-figure img')].map(i => i.alt.length)")
    assert len(alts) == 3 and min(alts) > 20
    filters = here.page.evaluate(
        "[...document.querySelectorAll('.board-figure img')].map(i => getComputedStyle(i).filter)"
    )
    assert all(("invert" in each) == (scheme == "dark") for each in filters)


def test_a_vector_of_the_zoo_starts_at_its_reports_strength_and_says_what_it_found(browser, home):
    here = visit(browser, home).open()
    look = here.page
    for label, said in (
        ("zoo:calm, effect shown", "Its report, at strength 1.5: An effect was shown: it calms."),
        ("zoo:rude, no effect shown", "Its report, at strength -2.5: No effect could be shown."),
        ("zoo:plain, no report", None),
        ("up", None),
    ):
        look.get_by_role("combobox", name="Vectors").click()
        look.get_by_role("option", name=label, exact=True).click()
        look.keyboard.press("Tab")
        name = label.partition(",")[0]
        look.get_by_role("spinbutton", name=f"Strength of {name}").wait_for()
        slot = look.locator(".board-slot:visible").last
        assert "Its report" in slot.inner_text() if said else "Its report" not in slot.inner_text()
        assert said is None or said in slot.inner_text()
    look.locator("#prompt textarea").fill("a b")
    look.click("#send")
    pushes = Push("zoo:calm", 1.5), Push("zoo:rude", -2.5), Push("zoo:plain"), Push("up")
    state = State(steering=pushes, turns=("a b",))
    assert [each.strip() for each in here.answers()] == expected(home, state)
    look.get_by_text("Python, command and link").click()
    look.wait_for_function("document.querySelector('#python textarea')?.value.includes('\"a b\"')")
    assert look.locator("#python textarea").input_value() == board.to_python(state, home[4].source)
    link = look.locator("#link textarea").input_value()
    assert State.from_query(link.partition("?")[2]) == state
    again = visit(browser, home)
    again.page.goto(link)
    assert [each.strip() for each in again.answers()] == expected(home, state)
    for each in (here, again):
        each.check()


def test_a_folder_that_is_not_there_is_said_until_a_vector_is_chosen(browser, zoo, tmp_path):
    with pytest.warns(sf.SteerWarning, match="There is no folder"):
        page = sf.dashboard(build("llama"), words(template=True), tmp_path / "none")
    with page:
        here = Visit(browser.new_context(), page.url.rstrip("/")).open()
        here.page.wait_for_selector(".board-note [role=status]")
        assert "none' yet; the first vector that is saved makes it." in here.page.inner_text(".board-note")
        here.page.get_by_role("combobox", name="Vectors").click()
        here.page.get_by_role("option", name="zoo:calm").click()
        here.page.wait_for_selector(".board-note", state="hidden")
        here.check()


def audit(here, axe):
    """What axe finds that is serious."""
    here.page.wait_for_timeout(400)  # colours of what is just pressed change slowly
    here.page.evaluate(axe)
    found = here.page.evaluate("axe.run()")["violations"]
    return [
        (each["id"], json.dumps([node["html"][:200] for node in each["nodes"]]))
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def test_two_tabs_have_their_own_state(browser, home):
    states = [State(steering=(Push(name, 2.0),), turns=(prompt,)) for name, prompt in (("up", "a"), ("down", "b"))]
    tabs = [visit(browser, home).open(state) for state in states]
    for here, state in zip(tabs, states, strict=True):
        assert [each.strip() for each in here.answers()] == expected(home, state)
        here.check()


def test_stop_stops_and_what_was_written_stays(browser):
    model, permits = paced(1000)
    page = board.Page(model, words(template=True), board.Presets(None, model), board.Source(), State())
    with served(board.app(page, board.check_keys("127.0.0.1", None))) as address:
        here = Visit(browser.new_context(), address).open()
        while permits.acquire(blocking=False):
            pass
        here.page.locator("#prompt textarea").fill("a")
        here.page.click("#send")
        here.page.wait_for_selector(".answer")
        while not here.page.locator(".answer").first.inner_text().strip():
            permits.release()
            here.page.wait_for_timeout(200)  # a picture of the text comes every 0.05 s
        here.page.click("#stop")
        here.page.wait_for_timeout(200)
        for _ in range(4):
            permits.release()
        written = here.answers()[0].split()
        assert 0 < len(written) < 12  # of sixty
        here.check()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("colour=red", "A state has no field 'colour'"),
        ("steering=%5B%7B%22vector%22%3A%22gone%22%7D%5D", "There is no vector 'gone'"),
        ("steering=%5B%7B%22vector%22%3A%22up%22,%22site%22%3A%22resid_post[0]%22%7D%5D", "has no 'resid_post[0]'"),
    ],
)
def test_a_link_that_does_not_fit_says_why(browser, home, query, message):
    here = visit(browser, home)
    here.page.goto(f"{here.address}/?{query}")
    here.page.wait_for_selector(".board-note .board-alert")
    assert message in here.page.inner_text(".board-note")
    here.check()


def test_what_people_and_models_write_is_text(browser, home):
    hostile = "<img src=x onerror=\"document.title='taken'\"> ${document.title='taken'} {{x}}"
    here = visit(browser, home).open(State(turns=(hostile,), max_new_tokens=2))
    here.answers()
    assert hostile in here.page.inner_text(".turn") and here.page.title() == "steerfn"
    here.check()
