"""Sites: names, ranges, order, parsing, and what is refused in which words."""

import copy
import pickle
import re

import numpy as np
import pytest

import steerfn as sf
from steerfn.values._site import KINDS, Site, as_sites, resolve_sites

ROUND_TRIPS = [
    *[sf.resid_post[12], sf.resid_pre[0], sf.resid_mid[-1], sf.attn_out[7], sf.mlp_out[-30], sf.head_out[3, 11]],
    *[
        sf.resid_post[10:14],
        sf.resid_post[:],
        sf.resid_post[2:],
        sf.resid_post[:-2],
        sf.attn_out[-4:-1],
        sf.mlp_out[::2],
    ],
    *[sf.resid_post[1:9:3], sf.head_out[2:5, 1], sf.head_out[-1, 0], sf.head_out[:, 4], sf.resid_post[9:1:-2]],
]


def refused(text, make):
    with pytest.raises(sf.SiteError, match=f"^{re.escape(text)}$"):
        make()


@pytest.mark.parametrize("site", ROUND_TRIPS, ids=str)
def test_parse_inverts_repr(site):
    back = Site.parse(repr(site))
    assert back == site and hash(back) == hash(site)
    assert (back.kind, back.layer, back.head, back.name) == (site.kind, site.layer, site.head, site.name)


@pytest.mark.parametrize("site", ROUND_TRIPS, ids=str)
def test_copies_pickles_and_hashes(site):
    for back in (copy.copy(site), copy.deepcopy(site), pickle.loads(pickle.dumps(site))):
        assert back == site and hash(back) == hash(site) and back.layer == site.layer
    assert {site: 1}[Site.parse(str(site))] == 1


def test_names():
    assert [str(s) for s in ROUND_TRIPS[:8]] == [
        *["resid_post[12]", "resid_pre[0]", "resid_mid[-1]", "attn_out[7]", "mlp_out[-30]", "head_out[3, 11]"],
        *["resid_post[10:14]", "resid_post[:]"],
    ]
    assert len(set(ROUND_TRIPS)) == len(ROUND_TRIPS)
    assert sf.resid_post[1] != sf.resid_pre[1] and sf.resid_post[1] != "resid_post[1]"
    assert repr(sf.resid_post) == "resid_post"


def test_numpy_integers_are_layers_and_booleans_are_not():
    assert sf.resid_post[np.int64(3)] == sf.resid_post[3]
    assert sf.head_out[np.int32(3), np.int8(1)] == sf.head_out[3, 1]
    assert sf.resid_post[np.int64(1) : np.int64(3)] == sf.resid_post[1:3]
    refused("A layer is an integer, not True of type bool.", lambda: sf.resid_post[True])
    refused("A layer is an integer, not 1.5 of type float.", lambda: sf.resid_post[1.5])
    refused("A layer is an integer, not 'a' of type str.", lambda: sf.resid_post["a":3])
    refused("A head is an integer, not 1.5 of type float.", lambda: sf.head_out[1, 1.5])


def test_resolve_counts_from_zero():
    for n in (1, 3, 30):
        for layer in range(-n, n):
            assert sf.attn_out[layer].resolve(n) == (sf.attn_out[range(n)[layer]],)
        for bounds in ((None, None, None), (0, 2, None), (-2, None, None), (None, None, -1), (0, 99, 2)):
            layers = range(n)[slice(*bounds)]
            assert Site("resid_post", bounds).resolve(n) == tuple(sf.resid_post[i] for i in layers)
    assert sf.head_out[-1, 5].resolve(4) == (sf.head_out[3, 5],)
    assert sf.head_out[1:3, 5].resolve(4) == (sf.head_out[1, 5], sf.head_out[2, 5])


def test_resolve_refuses_what_is_not_there():
    text = "is out of range: the model has 30 blocks, so a layer is 0 to 29 (or -30 to -1 from the end)."
    refused(f"resid_post[30] {text}", lambda: sf.resid_post[30].resolve(30))
    refused(f"resid_post[-31] {text}", lambda: sf.resid_post[-31].resolve(30))
    text = "resid_post[40:50] selects no layer of a model with 30 blocks (0 to 29)."
    refused(text, lambda: sf.resid_post[40:50].resolve(30))


def test_expand_needs_no_model():
    assert sf.resid_post[10:13].expand() == (sf.resid_post[10], sf.resid_post[11], sf.resid_post[12])
    assert sf.resid_post[:2].expand() == (sf.resid_post[0], sf.resid_post[1])
    assert sf.resid_post[1:8:3].expand() == (sf.resid_post[1], sf.resid_post[4], sf.resid_post[7])
    assert sf.resid_post[5:2:-1].expand() == (sf.resid_post[5], sf.resid_post[4], sf.resid_post[3])
    assert sf.resid_post[-1].expand() == (sf.resid_post[-1],)
    assert sf.head_out[0:2, 1].expand() == (sf.head_out[0, 1], sf.head_out[1, 1])
    for site in (sf.resid_post[3:], sf.resid_post[:], sf.resid_post[-3:4], sf.resid_post[1:-1], sf.resid_post[:1:-1]):
        text = "needs a model to be resolved; write both bounds as layers from 0, as in [10:14]."
        refused(f"{site} {text}", site.expand)
    for site in (sf.resid_post[5:5], sf.resid_post[5:2]):
        refused(f"{site} names no layer; write the bounds as in [10:14], for layers 10 to 13.", site.expand)


def test_order_is_that_of_a_forward_pass():
    kinds = ["resid_pre", "head_out", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    assert sorted(kinds) == sorted(KINDS)
    sites = [Site(k, layer, 0 if k == "head_out" else None) for layer in (0, 1, 2) for k in kinds]
    assert sorted(reversed(sites), key=lambda s: s.order) == sites


def test_sites_are_immutable():
    site = sf.resid_post[1]
    for change in (lambda: setattr(site, "layer", 2), lambda: setattr(site, "new", 2), lambda: delattr(site, "layer")):
        with pytest.raises(AttributeError, match="immutable"):
            change()
    assert site == sf.resid_post[1]


def test_constructor_refuses():
    kinds = "resid_pre, head_out, attn_out, resid_mid, mlp_out, resid_post"
    refused(f"There is no site named 'mlp'; use one of {kinds}.", lambda: Site("mlp", 1))
    refused("head_out needs a layer and a head: write head_out[12, 3].", lambda: Site("head_out", 1))
    refused("head_out needs a layer and a head: write head_out[12, 3], not head_out[12].", lambda: sf.head_out[12])
    refused("mlp_out has no heads; write mlp_out[1], or use head_out.", lambda: Site("mlp_out", 1, 2))
    text = "resid_post takes one layer or a range, not (1, 2); pass several sites as a list."
    refused(text, lambda: sf.resid_post[1, 2])
    with pytest.raises(sf.SiteError, match="step of 0.*use a step of 1 or more"):
        sf.resid_post[::0]
    with pytest.raises(sf.SiteError, match=r"A range of layers is \(start, stop, step\)"):
        Site("resid_post", (1, 2))


@pytest.mark.parametrize(
    "text",
    ["", "resid_post", "resid_post[]", "resid_post[1", "resid_post[a]", "resid_post[1:2:3:4]", "resid_post[1.0]"],
)
def test_parse_refuses(text):
    refused(
        f"{text!r} names no site; write for example 'resid_post[12]' or 'head_out[12, 3]'.", lambda: Site.parse(text)
    )


def test_parse_refuses_unknown_kinds_and_missing_heads():
    with pytest.raises(sf.SiteError, match="There is no site named 'post'"):
        Site.parse("post[1]")
    with pytest.raises(sf.SiteError, match="head_out needs a layer and a head"):
        Site.parse("head_out[1]")
    with pytest.raises(sf.SiteError, match="mlp_out has no heads"):
        Site.parse("mlp_out[1, 2]")


def test_as_sites_takes_one_or_several():
    post = sf.resid_post
    for given, expected in [
        (3, (post[3],)),
        (np.int64(3), (post[3],)),
        (-1, (post[-1],)),
        (sf.attn_out[2], (sf.attn_out[2],)),
        ("mlp_out[4]", (sf.mlp_out[4],)),
        (slice(1, 3), (post[1:3],)),
        (range(2, 5), (post[2], post[3], post[4])),
        ([1, sf.attn_out[2], "resid_mid[0]"], (post[1], sf.attn_out[2], sf.resid_mid[0])),
        ((1, 1, post[1]), (post[1],)),
        ([range(2), [1, 2]], (post[0], post[1], post[2])),
    ]:
        assert as_sites(given) == expected, given
    text = "No site was given; pass for example sites=12 or sites=[sf.resid_post[10], sf.attn_out[11]]."
    refused(text, lambda: as_sites([]))
    refused(
        "attn_out needs a layer: write attn_out[12], or attn_out[:] for every block.", lambda: as_sites(sf.attn_out)
    )
    refused("A layer is an integer, not 1.5 of type float.", lambda: as_sites(1.5))
    refused("A layer is an integer, not None of type NoneType.", lambda: as_sites(None))


def test_resolve_sites_drops_duplicates():
    post = sf.resid_post
    assert resolve_sites([-1, 2, slice(0, 2), post[0]], 3) == (post[2], post[0], post[1])
    assert resolve_sites(post[:], 2) == (post[0], post[1])
