"""Pitfall 26 for discovery: every keyword of every method changes what happens (the common ones: `mean_difference`)."""

import json

import pytest
import torch
from families import build
from options import assert_changes, optional
from safetensors.torch import save_file
from words import words

import steerfn as sf
from steerfn.discover._engine._discover import DiscoveryOptions

LETTERS = "abcdefgh"
POSITIVE = [f"{a} {b}" for a in LETTERS[:4] for b in LETTERS[4:]]
NEGATIVE = [f"{b} {a} {a}" for a in LETTERS[:4] for b in LETTERS[4:]]
SIDES = (POSITIVE, NEGATIVE)
V = sf.SteeringVector({sf.resid_post[1]: torch.randn(32, generator=torch.Generator().manual_seed(0))})


def made(verb, **options):
    where = () if verb in (sf.discover.iti, sf.discover.layer_profile) else (1,)
    return verb(build("llama"), words(), *SIDES, *where, progress=False, **options)


def bits(verb, **options):
    v = made(verb, **options)
    return [(site, v[site].tolist()) for site in v.sites]


def sweep(verb, **options):
    """A call without, and one for each option; an option may need others beside it."""
    return {
        name: (lambda o=beside: bits(verb, **o), lambda n=name, x=value, o=beside: bits(verb, **{**o, n: x}))
        for name, (value, beside) in options.items()
    }


def calibrated(**options):
    options = {"max_ratio": 1.3, "high": 8.0, "progress": False, **options}
    return sf.discover.calibrate(build("llama"), words(), 5 * V, POSITIVE[:4], **options)


def passes(**options):
    """How many forward passes a calibration takes."""
    model, seen = build("llama"), []
    model.model.embed_tokens.register_forward_hook(lambda *_: seen.append(1))
    sf.discover.calibrate(model, words(), 5 * V, POSITIVE, max_ratio=2.0, high=8.0, progress=False, **options)
    return len(seen)


PROMOTE = [("a b", "c"), ("d e", "f g"), ("b a", "h"), ("e", "d"), ("c c", "a b")]


def optimised(template=False, **options):
    options = {"promote": PROMOTE, "steps": 4, "chat": False, "progress": False, **options}
    v = sf.optimise(build("llama"), words(template=template), 1, **options)
    return v[1].tolist(), v.metadata.get("steps")


def sae(folder, **options):
    save_file({"W_dec": torch.arange(12.0).reshape(3, 4)}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"hook_name": "blocks.1.hook_resid_post"}))
    v = sf.discover.from_sae(folder, 1, **options)
    return v.sites, v.directions


CASES = {
    sf.pca: sweep(sf.pca, on=("pooled", {})),
    sf.discover.lat: sweep(sf.discover.lat, seed=(1, {})),
    sf.linear_probe: sweep(sf.linear_probe, l2=(100.0, {})),
    sf.lda: sweep(sf.lda, shrinkage=(0.9, {})),
    sf.discover.iti: {
        "k": (lambda: bits(sf.discover.iti, k=1), lambda: bits(sf.discover.iti, k=2)),
        "layers": (lambda: bits(sf.discover.iti, k=2, layers=[1]), lambda: bits(sf.discover.iti, k=2, layers=[0])),
        "l2": (
            lambda: made(sf.discover.iti, k=2).metadata["log_loss"],
            lambda: made(sf.discover.iti, k=2, l2=1e4).metadata["log_loss"],
        ),
    },
    sf.discover.layer_profile: {
        "sites": (lambda: made(sf.discover.layer_profile), lambda: made(sf.discover.layer_profile, sites=[1])),
        "method": (lambda: made(sf.discover.layer_profile), lambda: made(sf.discover.layer_profile, method="lda")),
    },
    sf.discover.calibrate: {
        "max_ratio": (calibrated, lambda: calibrated(max_ratio=1.1)),
        "sign": (calibrated, lambda: calibrated(sign=-1)),
        "low": (calibrated, lambda: calibrated(low=0.3)),
        "high": (calibrated, lambda: calibrated(high=0.25)),
        "tolerance": (calibrated, lambda: calibrated(tolerance=1e-3)),
        "scope": (calibrated, lambda: calibrated(scope=sf.positions(0))),
        "batch_size": (passes, lambda: passes(batch_size=1)),
    },
    sf.optimise: {
        "promote": (optimised, lambda: optimised(promote=PROMOTE[::-1])),
        "suppress": (optimised, lambda: optimised(suppress=[("a", "b"), ("c", "d"), ("e", "f")])),
        "pairs": (optimised, lambda: optimised(promote=None, pairs=[(p, c, "a a") for p, c in PROMOTE])),
        "max_norm": (optimised, lambda: optimised(max_norm=0.01)),
        "init": (optimised, lambda: optimised(init=0.1 * V)),
        "steps": (optimised, lambda: optimised(steps=1)),
        "lr": (optimised, lambda: optimised(lr=0.1)),
        "patience": (lambda: optimised(steps=40, lr=3.0), lambda: optimised(steps=40, lr=3.0, patience=1)),
        "held_out": (optimised, lambda: optimised(held_out=0.5)),
        "groups": (optimised, lambda: optimised(groups=["q", "q", "q", "r", "r"], seed=1)),
        "beta": (
            lambda: optimised(promote=None, pairs=[(p, c, "a a") for p, c in PROMOTE]),
            lambda: optimised(promote=None, pairs=[(p, c, "a a") for p, c in PROMOTE], beta=2.0),
        ),
        "scope": (optimised, lambda: optimised(scope=sf.positions(0))),
        "chat": (lambda: optimised(template=True), lambda: optimised(template=True, chat=True)),
        "batch_size": (optimised, lambda: optimised(batch_size=2)),
        "seed": (lambda: optimised(batch_size=2), lambda: optimised(batch_size=2, seed=3)),
    },
    sf.random_vector: {"seed": (lambda: sf.random_vector(V)[1], lambda: sf.random_vector(V, seed=1)[1])},
}
NAMED = [(function, option) for function, options in CASES.items() for option in options]


@pytest.mark.filterwarnings("ignore::steerfn.SteerWarning")
@pytest.mark.parametrize(("function", "option"), NAMED, ids=lambda x: getattr(x, "__name__", x))
def test_pitfall_26_an_option_changes_the_result(function, option):
    assert_changes(*CASES[function][option])


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_pitfall_26_no_option_is_left_out(function):
    assert optional(function) - set(CASES[function]) - set(DiscoveryOptions.__annotations__) <= {"progress"}


@pytest.mark.parametrize("option", [{"norm": 2.0}, {"site": sf.resid_pre[0]}])
def test_pitfall_26_options_of_from_sae(tmp_path, option):
    assert_changes(lambda: sae(tmp_path), lambda: sae(tmp_path, **option))
