"""Every public result exports alike: in each form, with the same numbers, whole, and into files that are whole too."""

import csv
import dataclasses
import importlib
import io
import json
import math
import re
import sys
import types

import numpy as np
import pytest
from balanced_page import BalancedPage
from results import RESULTS

import steerfn as sf
from steerfn.output import Record, Result, Screen, columns
from steerfn.reporting import Report
from steerfn.values import visible_line

PUBLIC = "steerfn steerfn.datasets steerfn.discover steerfn.evaluate steerfn.evaluate.protocols steerfn.metrics"
ARE_NO_RESULTS = (  # values that go in, and errors
    "Config ContrastSet DataError Endpoint FileError Finding Info Metric ModelError Operator Setting ShapeError Site "
    "SiteError SteerError SteerWarning SteeringVector Workers"
)
LINES = (Record, sf.model.Layout, sf.run.Generations, sf.run.Scores)
"""What prints as lines that are as long as they are."""
FORMS = {".csv": "to_csv", ".html": "to_html", ".json": "to_json", ".md": "to_markdown"}


@pytest.fixture(params=RESULTS)
def result(request):
    return RESULTS[request.param]()


def test_every_public_class_is_a_result_or_known_not_to_be_one():
    modules = map(importlib.import_module, PUBLIC.split())
    public = {value for module in modules for name in dir(module) if isinstance(value := getattr(module, name), type)}
    ours = {each.__name__: each for each in public if each.__module__.startswith("steerfn.")}
    assert {name for name, each in ours.items() if not issubclass(each, Result)} == set(ARE_NO_RESULTS.split())


def test_there_is_one_of_every_result_here():
    def kinds(base):
        return {each for kind in base.__subclasses__() for each in {kind, *kinds(kind)}}

    found = {each.__name__ for each in kinds(Result) if each.__module__.startswith("steerfn.")}
    assert found - {"Record"} == set(RESULTS) == {type(make()).__name__ for make in RESULTS.values()}


def number(value):
    """What forms agree on: None for what is no finite number."""
    if isinstance(value, (list, tuple)):
        return [number(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def leaves(value):
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    return [leaf for each in value for leaf in leaves(each)] if isinstance(value, list) else [value]


def read_csv(text):
    """The cells of a CSV as they were: numbers, lists, truths, and None for an empty one."""

    def cell(text):
        if text in ("", "True", "False"):
            return {"": None, "True": True, "False": False}[text]
        if re.fullmatch(r"-?(\d+(\.\d+)?(e[-+]\d+)?|inf)", text):
            return number(float(text))
        return json.loads(text) if text.startswith("[") and text.endswith("]") else text

    return [{key: cell(value) for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))]


def same(first, second):
    """Whether records agree, where a text may be a number by chance."""
    return len(first) == len(second) and all(
        str(one.get(key)) == str(other.get(key)) or one.get(key) == other.get(key)
        for one, other in zip(first, second, strict=True)
        for key in {*one, *other}
    )


def test_json_csv_and_pandas_have_the_same_numbers(result, monkeypatch):
    class Frame:
        def __init__(self, records):
            self.records, self.index = records, None

        def set_index(self, name):
            self.index = name
            return self

    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=Frame))
    records = [{key: number(value) for key, value in each.items()} for each in result.to_records()]
    assert records
    document = json.loads(result.to_json(), parse_constant=pytest.fail)
    if isinstance(result, Record):
        assert leaves(document) == leaves(records)
    else:
        assert same((document["effect"] if isinstance(result, Report) else document)["records"], records)
    assert same(read_csv(result.to_csv()), records)
    frame = result.to_pandas()
    assert same([{key: number(value) for key, value in each.items()} for each in frame.records], records)
    assert frame.index in (None, "site")


def test_pandas_itself_reads_the_csv_as_its_own_frame(result):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = result.to_pandas().reset_index(drop=False)
    again = pandas.read_csv(io.StringIO(result.to_csv()))
    numbers = [name for name in again.columns if pandas.api.types.is_float_dtype(again[name])]
    assert len(again) == len(frame)
    for name in numbers:
        np.testing.assert_allclose(again[name].to_numpy(float), frame[name].to_numpy(float), rtol=1e-15)


def test_it_writes_what_it_returns_and_its_suffix_says_the_form(result, tmp_path):
    for suffix, form in FORMS.items():
        write, path = getattr(result, form), tmp_path / f"of.{form}{suffix}"
        text = write(path)
        assert isinstance(text, str) and path.read_bytes().decode() == text == write()
        assert result.save(tmp_path / f"saved{suffix}") == tmp_path / f"saved{suffix}"
        assert (tmp_path / f"saved{suffix}").read_bytes() == path.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2 * len(FORMS)  # nothing temporary is left


def test_a_file_that_cannot_be_written_is_one_sentence_and_changes_nothing(result, tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("x")
    if not isinstance(result, Report):  # whose page may be called anything
        with pytest.raises(sf.FileError, match=r"kept\.txt': its suffix says the form, and is one of \.csv, \.html, "):
            result.save(kept)
    for form in FORMS.values():
        with pytest.raises(sf.FileError, match="cannot be written to .*: it is a folder"):
            getattr(result, form)(tmp_path)
        with pytest.raises(sf.FileError, match="there is no folder .*nowhere'; create it first"):
            getattr(result, form)(tmp_path / "nowhere" / "x.json")
    with pytest.raises(sf.FileError, match="is named by text or a Path, not by 3 of type int"):
        result.save(3)
    assert kept.read_text() == "x" and list(tmp_path.iterdir()) == [kept]


def test_pages_are_escaped_and_load_nothing(result):
    whole, notebook, markdown = result.to_html(), result._repr_html_(), result.to_markdown()
    framed = isinstance(result, Report)
    for page in (whole, notebook):
        assert not BalancedPage(page).tags & {"script", "b", "v", "c", "glad", "img", "link"}
        assert not re.search(r"https?:", page)
    assert whole.startswith("<!DOCTYPE html>") and ("iframe" in BalancedPage(notebook).tags) == framed
    assert notebook.startswith("<iframe sandbox" if framed else '<div class="steerfn">')
    assert markdown.startswith("# ") and not re.search(r"(?<!\\)<[a-z]", markdown)


def test_a_page_holds_every_number_that_is_printed(result):
    """And so does the Markdown."""
    page, markdown = BalancedPage(result.to_html()).text, re.sub(r"\\(.)", r"\1", result.to_markdown())
    printed = re.findall(r"-?\d+\.\d+", str(result)) if not isinstance(result, Record) else []
    assert all(each in page and each in markdown for each in printed)


def screens():
    return [Screen(width, wraps=True) for width in (60, 80, 120)]


@pytest.mark.parametrize("screen", screens(), ids=lambda screen: str(screen.width))
def test_a_persons_screen_breaks_no_line_and_loses_no_word(result, screen):
    wide = result._text(Screen(10_000, wraps=False))
    text = result._text(screen)
    if isinstance(result, LINES):
        return
    assert max(columns(line) for line in text.splitlines()) <= screen.width
    if isinstance(result, (sf.evaluate.Comparison, sf.evaluate.Outcome)):
        return  # columns that a narrow screen does without, and words that stand in two tables
    words = re.findall(r"\S+", re.sub("[|│-]", " ", text))
    assert not [word for word in re.findall(r"\S+", re.sub("[|│-]", " ", wide)) if word not in words]


def test_a_pipe_gets_one_line_a_row_whatever_the_width(result, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    narrow = str(result)
    monkeypatch.setenv("COLUMNS", "500")
    if not isinstance(result, sf.evaluate.Comparison):  # its texts stand side by side
        assert narrow == str(result)


def test_a_terminal_is_what_is_wrapped_for(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    swept = RESULTS["Sweep"]()
    assert max(map(columns, str(swept).splitlines())) > 60
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert max(map(columns, str(swept).splitlines())) <= 60


def test_wide_characters_line_up():
    grid = str(RESULTS["Sweep"]()).split("\n\n")[1].splitlines()[:5]
    assert any("日本語" in line for line in grid) and len({columns(line) for line in grid}) == 1


def test_what_a_model_wrote_cannot_act_on_the_terminal():
    hostile = "red\x1b[31m\nforged line"
    table = dataclasses.replace(RESULTS["Outcome"](), figures={hostile: RESULTS["Estimate"]()}, effects={})
    assert "\x1b" not in str(table) and visible_line(hostile) in str(table)


def test_a_notebook_shows_the_first_of_many_texts_and_says_so():
    texts = tuple(f"text {i}" for i in range(50))
    many = sf.run.Generations(texts, texts, ((1,),) * 50, ((1,),) * 50)
    assert "... and 30 more" in many._repr_html_() and "text 20" not in many._repr_html_()
    assert all(text in many.to_html() and text in many.to_markdown() and text in str(many) for text in texts)
    assert " more" not in many.to_html()


def test_a_result_of_ones_own_needs_its_records_and_its_sections():
    @dataclasses.dataclass(frozen=True)
    class Pulse(Record):
        rate: float
        ends: tuple[float, float]

    found = Pulse(1.5, (1.0, math.nan))
    assert json.loads(found.to_json()) == {"rate": 1.5, "ends": [1.0, None]}
    assert found.to_csv() == 'rate,ends\n1.5,"[1.0, null]"\n' and str(found) == repr(found)
    assert "| rate | 1.5 |" in found.to_markdown() and found.to_markdown().startswith("# Pulse")
    with pytest.raises(TypeError, match="abstract"):
        Result()
