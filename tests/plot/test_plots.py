"""What holds for every plot: options that do something, no text on another, files, no global state, the clear error."""

import functools
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from families import shared
from matplotlib.figure import Figure
from options import assert_changes, count_passes, optional
from overlap import overlaps
from steering import vector
from test_forest import compared, outcome
from test_plot_sweep import table
from words import words

import steerfn as sf

V = 3 * vector(sf.resid_post[1])
SEVERAL = vector(sf.resid_post[0], sf.resid_post[1])
POSITIVE, NEGATIVE = ["a b c", "d e f g", "h i", "j k l m n"], ["o p", "q r s t", "u", "v w a"]
SWEEP = table(sites=(3, 14, 27), vectors=("a vector", "$x_1$"), alphas=(-4, -2, -1, 0, 1, 2, 4))


@functools.cache
def profile():
    return sf.discover.layer_profile(shared("llama"), words(), POSITIVE, NEGATIVE, progress=False)


def probabilities(model=None, **options):
    return sf.plot.token_probabilities(model or shared("llama"), words(template=True), "a b c", V, **options)


def steps(**options):
    return sf.plot.top_k_changes(shared("llama"), words(template=True), "a b c", V, **{"steps": 6, **options})


def text(vector=V, **options):
    return sf.plot.tokens(shared("llama"), words(template=True), " ".join("abcdefghij" * 5), vector, **options)


def sides(model=None, vector=V, **options):
    options = {"progress": False, **options}
    return sf.plot.separation(model or shared("llama"), words(template=True), POSITIVE, NEGATIVE, vector, **options)


PLOTS = {
    "layers": lambda **o: sf.plot.layers(profile(), **o),
    "token_probabilities": probabilities,
    "top_k_changes": steps,
    "tokens": text,
    "separation": sides,
    "sweep": lambda **o: sf.plot.sweep(SWEEP, **o),
    "heat_map": lambda **o: sf.plot.heat_map(SWEEP, **o),
    "comparison": lambda **o: sf.plot.comparison(compared(), **o),
    "outcome": lambda **o: sf.plot.outcome(outcome(), **o),
}


def test_every_plot_is_here():
    assert set(PLOTS) == {name for name in dir(sf.plot) if not name.startswith("_")}


@pytest.mark.parametrize("width", [3.0, 3.5, None, 11.0])
@pytest.mark.parametrize("name", PLOTS)
def test_no_text_lies_on_another_or_outside(name, width):
    made = PLOTS[name](**({} if width is None else {"width": width}))
    assert isinstance(made, Figure)
    assert not overlaps(made)
    assert width is None or made.get_size_inches()[0] == width


SINGLE = ("token_probabilities", "sweep")
"""Those that draw in the axes that is given; the others put their panels in its place."""


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_stands_in_an_axes_of_the_callers(name):
    whole = Figure(figsize=(14, 6), dpi=100)
    left, right = whole.subplots(1, 2)
    right.plot([0, 1], [0, 1])
    right.set_title("$mine$")
    made = PLOTS[name](ax=left, title="a title of mine")
    assert made is whole and right in whole.axes and len(right.get_lines()) == 1
    assert right.title.get_parse_math()  # what is not ours is left alone
    ours = [left] if name in SINGLE else [axes for axes in whole.axes if axes is not right]
    assert (left in whole.axes) == (name in SINGLE)
    assert all(axes.has_data() or axes.patches or axes.texts or axes.collections for axes in ours)
    titles = [axes.get_title(loc="left") for axes in ours] + [sub.get_suptitle() for sub in whole.subfigs]
    assert any("a title of mine" in each for each in [*titles, *(t.get_text() for s in whole.subfigs for t in s.texts)])
    middle = whole.get_size_inches()[0] * whole.dpi / 2
    whole.canvas.draw()
    assert all(axes.get_window_extent().x1 < middle for axes in ours)


def test_a_heat_map_of_one_vector_is_drawn_in_the_axes_itself():
    whole = Figure(figsize=(9, 4))
    axes = whole.subplots(1, 2)[0]
    assert sf.plot.heat_map(table(), ax=axes, title="mine") is whole
    assert axes in whole.axes and axes.collections and axes.get_title(loc="left") == "mine"


@pytest.mark.parametrize("name", PLOTS)
def test_a_title_of_ones_own_stands_instead(name):
    def texts(made):
        made.canvas.draw()
        found = [made.get_suptitle(), *(t.get_text() for t in made.texts)]
        return " ".join([*found, *(axes.get_title(loc="left") for axes in made.axes)])

    usual, mine, none = (texts(PLOTS[name](**o)) for o in ({}, {"title": "of mine"}, {"title": ""}))
    assert "of mine" in mine and usual not in mine and len(none) < len(usual)


def test_an_axes_that_is_none_is_refused():
    with pytest.raises(sf.SteerError, match="ax is a matplotlib axes, such as fig, ax = plt.subplots"):
        PLOTS["sweep"](ax=3)
    free = Figure().add_axes((0.1, 0.1, 0.5, 0.5))
    with pytest.raises(sf.SteerError, match="ax must stand in a grid: take one from plt.subplots"):
        PLOTS["layers"](ax=free)


def test_long_names_leave_room_for_the_axis():
    names = ["a vector with a rather long name", "another vector with such a name"]
    random = np.random.default_rng(0)
    conditions = ["unsteered", *names, *(f"random like {name}" for name in names)]
    values = {metric: {name: random.normal(size=12) for name in conditions} for metric in ("share", "a_metric")}
    values["none"] = {name: np.zeros(12) for name in conditions}
    for width in (3.0, 3.5, 6.5):
        made = sf.plot.comparison(compared(values), width=width)
        assert not overlaps(made)
        made.canvas.draw()
        assert all(axes.get_window_extent().width > 0.6 * made.dpi for axes in made.axes)


def test_the_check_sees_what_overlaps_and_what_is_cut():
    made = Figure(figsize=(3, 2))
    made.text(0.4, 0.5, "one")
    assert not overlaps(made)
    made.text(0.42, 0.5, "two")
    made.text(0.9, 0.9, "a long text")
    assert [found[:2] for found in overlaps(made)] == [("one", "two"), ("a long text", "outside")]


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_it_is_saved(name, kind, tmp_path):
    path = tmp_path / f"plot.{kind}"
    PLOTS[name]().savefig(path)
    assert path.stat().st_size > 4000
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def seen(made):
    """All that a figure says: sizes, texts, and the numbers of its lines, bars and cells."""
    found = [made.get_size_inches().tolist(), made.get_suptitle(), [t.get_text() for t in made.texts]]
    for axes in made.axes:
        found += [[t.get_text() for t in axes.texts], [t.get_text() for t in axes.get_yticklabels()]]
        found += [np.asarray(line.get_xydata()).tolist() for line in axes.get_lines()]
        found += [np.asarray(each.get_array()).tolist() for each in axes.collections if each.get_array() is not None]
        found += [path.vertices.tolist() for each in axes.collections for path in each.get_paths()[:1]]
        found += [patch.get_path().vertices.tolist() + [patch.get_facecolor()] for patch in axes.patches]
    return found


def drawn(call, **options):
    return lambda: seen(call(**options))


def on_sweep(plot, **options):
    return lambda: seen(plot(SWEEP, **options))


MORE = sf.evaluate.Sweep(SWEEP.configs, SWEEP.prompts, {**SWEEP.values, "other": SWEEP.values["share"] ** 2})
CASES = {
    sf.plot.layers: {"width": (drawn(PLOTS["layers"]), drawn(PLOTS["layers"], width=4.0))},
    sf.plot.token_probabilities: {
        "top": (drawn(probabilities), drawn(probabilities, top=3)),
        "chat": (drawn(probabilities), drawn(probabilities, chat=False)),
        "width": (drawn(probabilities), drawn(probabilities, width=4.0)),
    },
    sf.plot.top_k_changes: {
        "steps": (drawn(steps), drawn(steps, steps=3)),
        "top": (drawn(steps), drawn(steps, top=3)),
        "chat": (drawn(steps), drawn(steps, chat=False)),
        "width": (drawn(steps), drawn(steps, width=4.0)),
    },
    sf.plot.tokens: {
        "site": (drawn(text, vector=SEVERAL, site=0), drawn(text, vector=SEVERAL, site=1)),
        "centre": (drawn(text), drawn(text, centre=0.5)),
        "chat": (drawn(text), drawn(text, chat=True)),
        "width": (drawn(text), drawn(text, width=4.0)),
    },
    sf.plot.separation: {
        "vector": (drawn(sides, site=1), drawn(sides, vector=None, site=1)),
        "site": (drawn(sides, vector=SEVERAL, site=0), drawn(sides, vector=SEVERAL, site=1)),
        "position": (drawn(sides), drawn(sides, position="mean")),
        "chat": (drawn(sides), drawn(sides, chat=True)),
        "batch_size": (lambda: count_passes(sides), lambda: count_passes(lambda m: sides(m, batch_size=1))),
        "width": (drawn(sides), drawn(sides, width=4.0)),
    },
    sf.plot.sweep: {
        "metric": (lambda: seen(sf.plot.sweep(MORE)), lambda: seen(sf.plot.sweep(MORE, "other"))),
        "groups": (
            on_sweep(sf.plot.sweep),
            on_sweep(sf.plot.sweep, groups=[i // 2 for i in range(len(SWEEP.prompts))]),
        ),
        "level": (on_sweep(sf.plot.sweep), on_sweep(sf.plot.sweep, level=0.5)),
        "width": (on_sweep(sf.plot.sweep), on_sweep(sf.plot.sweep, width=4.0)),
    },
    sf.plot.heat_map: {
        "metric": (lambda: seen(sf.plot.heat_map(MORE)), lambda: seen(sf.plot.heat_map(MORE, "other"))),
        "width": (on_sweep(sf.plot.heat_map), on_sweep(sf.plot.heat_map, width=4.0)),
    },
    sf.plot.comparison: {"width": (drawn(PLOTS["comparison"]), drawn(PLOTS["comparison"], width=4.0))},
    sf.plot.outcome: {"width": (drawn(PLOTS["outcome"]), drawn(PLOTS["outcome"], width=4.0))},
}
NAMED = [(function, option) for function, options in CASES.items() for option in options]


@pytest.mark.parametrize(("function", "option"), NAMED, ids=lambda x: getattr(x, "__name__", x))
def test_pitfall_26_an_option_changes_the_result(function, option):
    without, with_ = CASES[function][option]
    usual = without()
    assert str(usual) == str(without())  # it is the option that changes it
    assert_changes(lambda: usual, with_)


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_pitfall_26_no_option_is_left_out(function):
    assert optional(function) - set(CASES[function]) <= {"progress", "ax", "title"}


def test_pitfall_26_progress_shows_a_bar(capsys):
    sides(progress=True)
    assert "Reading activations" in capsys.readouterr().err
    sides()
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", PLOTS)
def test_a_width_that_is_none_is_refused(name):
    for width in (2.9, "6", True, float("nan")):
        with pytest.raises(sf.DataError, match="`width` must be a finite number >= 3, got "):
            PLOTS[name](width=width)


@pytest.mark.parametrize("name", PLOTS)
def test_settings_of_matplotlib_stay_as_they_were(name):
    before = dict(matplotlib.rcParams)
    PLOTS[name]()
    assert dict(matplotlib.rcParams) == before


CODE = """
import sys
import steerfn as sf
plots = [name for name in dir(sf.plot) if not name.startswith("_")]
assert len(plots) == 9 and "matplotlib" not in sys.modules and "scipy" not in sys.modules
import numpy as np
import torch
from steerfn.evaluate._configs import Config
configs = tuple(Config("v", ("resid_post[1]",), a) for a in (0.0, 1.0))
table = sf.evaluate.Sweep(configs, ("a", "b"), {"share": np.eye(2)})
q = {f"resid_post[{i}]": sf.discover.Quality(0.5 + i / 10, i, None, 0.1, (3, 3), 3).to_dict() for i in range(3)}
p = sf.discover.Profile(sf.SteeringVector({sf.resid_post[i]: torch.ones(4) for i in range(3)}, {"quality": q}))
assert "matplotlib" not in sys.modules
sf.plot.layers(p), sf.plot.sweep(table), sf.plot.heat_map(table)
print("matplotlib.pyplot" in sys.modules)
"""


def test_pitfall_30_importing_plots_loads_nothing_and_pyplot_stays_out():
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, env=env)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("name", ["heat_map", "layers"])
def test_without_matplotlib_the_error_names_the_fix(name, monkeypatch):
    profile()  # what it takes a model for is there
    for module in [module for module in sys.modules if module.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(sf.SteerError, match="This needs matplotlib") as caught:
        PLOTS[name]()
    assert str(caught.value).endswith('run: pip install -c constraints.txt -e ".[plot]"')
