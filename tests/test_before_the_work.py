"""What a verb or a command needs at its end is checked at its beginning: no model is run, nor loaded, before.

Each row has a call that would be refused only after the work, if it were not looked at first.
"""

from pathlib import Path

import pytest
from asking import QUESTIONS
from families import build
from steering import vector
from words import words

import steerfn as sf
from steerfn import serving
from steerfn.cli import main

V = vector(sf.resid_post[1])
SIDES = ["a b", "c d e"], ["f", "g h"]
NOWHERE = "no/there.json"
FEW = {"controls": 1, "progress": False}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with what the rows name."""
    monkeypatch.chdir(tmp_path)
    for name in ("folder.json", "folder.safetensors", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "texts.json").write_text('[{"left": "a b", "right": "c d"}]')
    sf.save(V, "v.safetensors")
    (tmp_path / "vectors").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def unrun():
    """A model that cannot be run. Its layout, which is found on a copy, is known."""
    model = build("llama")
    sf.layout(model)

    def run(*_):
        raise AssertionError("the model was run")

    model.model.embed_tokens.register_forward_pre_hook(run)
    with pytest.raises(AssertionError, match="was run"):
        sf.generate(model, words(), "a")
    return model


def discovery(name, *given, **options):
    home = sf.discover if name in dir(sf.discover) else sf
    return lambda m, t, path: getattr(home, name)(m, t, *given, checkpoint=path, progress=False, **options)


# verb and what it writes: (call, kinds of bad places)
PLACES = {
    "mean_difference checkpoint": discovery("mean_difference", *SIDES, 1),
    "pca checkpoint": discovery("pca", *SIDES, 1),
    "lat checkpoint": discovery("lat", *SIDES, 1),
    "linear_probe checkpoint": discovery("linear_probe", *SIDES, 1),
    "lda checkpoint": discovery("lda", *SIDES, 1),
    "caa checkpoint": discovery("caa", QUESTIONS, 1),
    "iti checkpoint": discovery("iti", *SIDES, k=2),
    "layer_profile checkpoint": discovery("layer_profile", *SIDES),
    "sweep checkpoint": lambda m, t, p: sf.sweep(m, t, "a", V, [0, 1], checkpoint=p, progress=False),
    "compare_vectors checkpoint": lambda m, t, p: sf.compare_vectors(
        m, t, V, ["a"], "length", checkpoint=p, progress=False
    ),
    "bake": lambda m, t, p: sf.bake(m, t, V, {"folder.json": "full"}.get(p, p)),
    "to_lm_eval": lambda m, t, p: sf.to_lm_eval(V, Path(p).with_suffix(".pt") if "/" in p else "folder.json", model=m),
}
NAMES = {
    "sweep metrics": (lambda m, t: sf.sweep(m, t, "a", V, [0, 1], metrics="lenght"), "did you mean 'length'?"),
    "compare metrics": (lambda m, t: sf.compare(m, t, "a", V, "lenght"), "did you mean 'length'?"),
    "compare_vectors metrics": (lambda m, t: sf.compare_vectors(m, t, V, "a", ["lenght"]), "did you mean 'length'?"),
    "report metrics": (lambda m, t: sf.report(m, t, V, SIDES_MAP, metrics="lenght"), "did you mean 'length'?"),
    "toxicity metric": (lambda m, t: sf.protocols.toxicity(m, t, V, ["a"], metric="lenght"), "did you mean 'length'?"),
    "a metric that fails": (
        lambda m, t: sf.compare(m, t, "a", V, lambda texts, *, references: []),
        "gave (0,) numbers for 1 texts",
    ),
    "an alpha by an unknown name": (
        lambda m, t: sf.compare_vectors(m, t, {"v": V}, ["a"], "length", alpha={"w": 1.0}),
        "w",
    ),
    "report's vector": (lambda m, t: sf.report(m, t, "none.safetensors", SIDES_MAP), "there is no such file"),
    "report's data": (lambda m, t: sf.report(m, t, V, "none.json"), "there is no such file"),
    "report's columns": (lambda m, t: sf.report(m, t, V, "texts.json"), "left"),
    "report's questions": (lambda m, t: sf.report(m, t, V, SIDES_MAP, questions="none.json"), "there is no such file"),
    "a protocol's data": (lambda m, t: sf.protocols.benchmark("caa", m, t, V, "none.json"), "there is no such file"),
    "a protocol's name": (lambda m, t: sf.protocols.benchmark("caaa", m, t, V, QUESTIONS), "did you mean 'caa'?"),
    "side_effects' questions": (
        lambda m, t: sf.protocols.side_effects(m, t, V, ["a b c"], questions="none.json", **FEW),
        "there is no such file",
    ),
    "side_effects' generation": (
        lambda m, t: sf.protocols.side_effects(m, t, V, ["a b c"], prompts=["a"], generation={"top_q": 1}, **FEW),
        "did you mean 'top_",
    ),
    "cast's generation": (
        lambda m, t: sf.protocols.cast(
            m, t, V, {"harmful": ["a", "b", "c"], "harmless": ["d", "e", "f"]}, generation={"top_q": 1}, **FEW
        ),
        "did you mean 'top_",
    ),
    "a profile's method": (
        lambda m, t: sf.discover.layer_profile(m, t, *SIDES, method="mean"),
        "no method named 'mean'",
    ),
    "a condition's by": (lambda m, t: sf.discover.find_condition(m, t, *SIDES, 1, by="lst"), "lst"),
    "a position": (lambda m, t: sf.mean_difference(m, t, *SIDES, 1, position="lst"), "position is 'last'"),
    "axes": (lambda m, t: sf.plot.tokens(m, t, "a b", V, ax="here"), "ax"),
    "axes of probabilities": (lambda m, t: sf.plot.token_probabilities(m, t, "a b", V, ax="here"), "ax"),
    "axes of changes": (lambda m, t: sf.plot.top_k_changes(m, t, "a b", V, ax="here"), "ax"),
    "axes of a separation": (lambda m, t: sf.plot.separation(m, t, *SIDES, 1, ax="here"), "ax"),
    "the server's folder": (lambda m, t: serving.app(m, t, "none"), "does not exist"),
    "the server's log": (lambda m, t: serving.app(m, t, audit="no/log"), "Cannot append to the audit log 'no/log'"),
    "the server's default": (
        lambda m, t: serving.app(m, t, "vectors", default_steering="w"),
        "There is no vector 'w'",
    ),
}
SIDES_MAP = {"positive": SIDES[0], "negative": SIDES[1]}
# A folder that is there and takes no file, not even from root; other systems have no such folder.
PROC = pytest.param("/proc/there.json", marks=pytest.mark.skipif(not Path("/proc").is_dir(), reason="no such folder"))


@pytest.mark.parametrize("place", [NOWHERE, "folder.json", PROC])
@pytest.mark.parametrize("verb", PLACES)
def test_a_place_that_cannot_be_written_is_refused_before_the_model_runs(folder, unrun, verb, place):
    with pytest.raises(sf.FileError):
        PLACES[verb](unrun, words(), place)


@pytest.mark.parametrize("row", NAMES)
def test_a_name_is_looked_up_before_the_model_runs(folder, unrun, row):
    call, message = NAMES[row]
    with pytest.raises(sf.SteerError) as caught:
        call(unrun, words())
    assert message in str(caught.value)


COMPARE = "compare a --vector v.safetensors"
SWEEP = "sweep a --vector v.safetensors"
REPORT = "report v.safetensors --dataset sentiment"
DISCOVER = "discover --dataset sentiment"
VECTOR_PLACES = ["no/v.safetensors", "folder.safetensors", "v.unknown", "v"]
FILE_PLACES = ["no/x.json", "folder.json"]
COMMANDS = [
    *(f"demo --save {place}" for place in VECTOR_PLACES),
    *(f"{DISCOVER} --out {place}" for place in VECTOR_PLACES),
    *(f"export v.safetensors {place} --overwrite" for place in VECTOR_PLACES),
    "export v.safetensors no/v.pt --blocks demo",
    *(f"{DISCOVER} --out x.json --checkpoint {place}" for place in FILE_PLACES),
    *(f"{COMPARE} {option} {place}" for option in ("--html", "--json", "--markdown") for place in FILE_PLACES),
    *(f"{SWEEP} {option} {place}" for option in ("--out", "--checkpoint") for place in FILE_PLACES),
    *(f"{command} --out {place}" for command in (SWEEP, REPORT) for place in ("x.txt", "x.pdf", "x")),
    *(f"{REPORT} {option} {place}" for option in ("--out", "--json") for place in FILE_PLACES),
    *(f"bake v.safetensors {place}" for place in ("no/folder", "full", "texts.json")),
    *(f"serve --audit {place}" for place in ("no/log", "full")),
    "serve --vectors none",
    "serve --vectors vectors --default-steering happy",
    "serve --vectors vectors --default-steering {",
    *(f"{command} --metric lenght" for command in (COMPARE, SWEEP, REPORT)),
    f"{SWEEP} --metric length --by lenght",
    f"{SWEEP} --choice a --choice b --by lenght",
    f"{SWEEP} --site resid[1]",
    *(f"{command} none.safetensors" for command in ("generate a --vector", "compare a --vector", "sweep a --vector")),
    *(f"{command} none.safetensors" for command in ("inspect", f"{REPORT.replace('v.safetensors ', '')}")),
    "bake none.safetensors new",
    "export none.safetensors new.json",
    "discover --pairs texts.json --out x.json",
    "discover --pairs texts.json --sides left wrong --out x.json",
    "discover --dataset sentimnt --out x.json",
    f"{DISCOVER} --out x.json --site resid[1]",
    f"{DISCOVER} --out x.json --position lst",
    f"{DISCOVER} --out x.json --batch-size much",
    *(f"{REPORT} {option} none.json" for option in ("--prompts", "--passages", "--questions")),
    "report v.safetensors --data none.json",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_so_before_it_loads_a_model(folder, monkeypatch, capsys, command):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("steerfn.demo_model", load)
    monkeypatch.setattr("steerfn.from_pretrained", load)
    assert main(command.split()) == 2
    told = capsys.readouterr()
    assert told.err.startswith("steerfn: ") and len(told.err.strip().splitlines()) == 1 and not told.out
    assert not list(folder.glob("**/.steerfn-*")) and not (folder / "x.json").exists()
