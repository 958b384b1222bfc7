"""An outcome prints, is saved, and calls nothing shown that the data cannot carry."""

import json
import math

import numpy as np
import pytest

import steerfn as sf
from steerfn.evaluate._statistics import holm
from steerfn.evaluate._tally import outcome

RANDOM = np.random.default_rng(0)
BASE = RANDOM.normal(size=30)
VALUES = {
    "steered": {"moved": BASE + 1 + 0.1 * RANDOM.normal(size=30), "still": BASE},
    "unsteered": {"moved": BASE, "still": BASE + RANDOM.normal(size=30)},
    "a|b <c>": {"moved": BASE + 1 + 0.5 * RANDOM.normal(size=30)},
}


def made(**options):
    given = {
        "compared": ("moved", "still"),
        "about": {"seed": 0, "nan": math.nan},
        "records": [{"item": 0, "x": math.nan, "values": np.arange(2)}, {"item": 1, "x": 1.0, "values": None}],
        "notes": ["Beware of <b>this</b>."],
        "level": 0.95,
        "seed": 0,
    }
    return outcome("trial", "Someone 2024", VALUES, **given | options)


def test_differences_are_corrected_for_all_of_them_together():
    found = made()
    keys = [("unsteered", "moved"), ("unsteered", "still"), ("a|b <c>", "moved")]
    assert list(found.adjusted) == keys
    p = [found.effects[against][name].p for against, name in keys]
    assert list(found.adjusted.values()) == [*holm(p[:2]), p[2]]  # a control of one's own is another question


def test_a_difference_is_shown_only_if_the_data_carry_it():
    found = made()
    assert found.is_shown("moved") and not found.is_shown("still") and not found.is_shown("moved", "a|b <c>")
    few = {name: {key: numbers[:4] for key, numbers in each.items()} for name, each in VALUES.items()}
    small = outcome("trial", "n", few, compared=("moved",), about={}, level=0.95, seed=0)
    assert small.effects["unsteered"]["moved"].estimate.low > 0 and not small.is_shown("moved")
    with pytest.raises(sf.DataError, match="trial compares no 'gone' against 'unsteered'; it has moved against unst"):
        found.is_shown("gone")


def test_printed():
    lines = str(made()).splitlines()
    assert lines[0] == "trial (Someone 2024)"
    assert lines[2].split("  ")[0] == "figure" and lines[2].split()[-1] == "n"
    assert lines[3].startswith("moved") and lines[3].endswith("30") and "[" in lines[3]
    assert lines[4].startswith("still") and "-" in lines[4].split()
    assert any(line.startswith("  moved against unsteered: +") and "p < 0.001, n = 30" in line for line in lines)
    assert any(line.endswith("no difference could be shown") and "still" in line for line in lines)
    assert lines[-1] == "  - Beware of <b>this</b>."
    assert repr(made()).startswith("Outcome('trial', moved ")


def test_too_few_items_are_told_from_no_difference():
    few = {name: {key: numbers[:6] for key, numbers in each.items()} for name, each in VALUES.items()}
    lines = str(outcome("trial", "n", few, compared=("moved", "still"), about={}, level=0.95, seed=0)).splitlines()
    assert any(line.endswith("n = 6: 6 items are too few to show any difference") for line in lines)
    # One comparison of six items may reach p = 2 / 2^6 = 0.03.
    alone = {name: few[name] for name in ("steered", "unsteered")}
    text = str(outcome("trial", "n", alone, compared=("still",), about={}, level=0.95, seed=0))
    assert "too few" not in text and "no difference could be shown" in text


def test_an_outcome_without_differences_prints():
    bare = sf.evaluate.Outcome("bare", "n", made().figures)
    assert "Differences" not in str(bare) and "Differences" not in bare.to_markdown() and bare._repr_html_()


def test_markdown_and_html_are_escaped(tmp_path):
    found = made()
    text = found.to_markdown(tmp_path / "o.md")
    assert (tmp_path / "o.md").read_text() == text
    assert "| figure | steered | unsteered | a\\|b \\<c\\> | n |" in text
    shown = found._repr_html_()
    assert "<b>this" not in shown and "&lt;b&gt;this" in shown and "<c>" not in shown


def test_json(tmp_path):
    found = made()
    document = json.loads(found.to_json(tmp_path / "o.json"), parse_constant=pytest.fail)
    assert json.loads((tmp_path / "o.json").read_text()) == document
    assert document["figures"]["moved"]["mean"] == found.figures["moved"].mean
    effect = document["effects"]["unsteered"]["moved"]
    assert effect["estimate"]["low"] == found.effects["unsteered"]["moved"].estimate.low
    assert effect["p_holm"] == found.adjusted["unsteered", "moved"] and effect["shown"] is True
    assert document["records"][0] == {"item": 0, "x": None, "values": [0, 1]}
    assert document["about"] == {"seed": 0, "nan": None} and document["notes"] == list(found.notes)
    with pytest.raises(sf.FileError, match="The outcome cannot be written to .*nowhere.*; create it first"):
        found.to_json(tmp_path / "nowhere" / "o.json")


def test_pandas():
    pytest.importorskip("pandas")
    assert made().to_pandas().x.isna().tolist() == [True, False]


def test_one_item_has_no_interval_and_still_prints():
    one = {name: {"x": np.array([0.5])} for name in ("steered", "unsteered")}
    found = outcome("t", "n", one, compared=("x",), about={}, level=0.95, seed=0)
    assert math.isnan(found.figures["x"].low) and not found.effects
    assert str(found).splitlines()[3].split() == ["x", "0.5", "0.5", "1"]
