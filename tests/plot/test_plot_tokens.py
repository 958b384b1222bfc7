"""Projections token by token: the right number at the right token, with the right colour."""

import numpy as np
import pytest
import torch
from families import build
from matplotlib import colormaps
from steering import vector
from words import words

import steerfn as sf
from steerfn.plot._figure import DIVERGING
from steerfn.plot._separation import projections
from steerfn.plot._tokens import wrap_tokens

pytestmark = pytest.mark.steady

V = vector(sf.resid_post[1])
TEXT = "a b c d e f"
TOKENS = ["<bos>", "a", "b", "c", "d", "e", "f"]


def drawn(made):
    """What is drawn, in order: the text of each token, its colour, and whether the text lies in its box."""
    axes = made.axes[0]
    texts, patches = list(axes.texts), list(axes.patches)
    assert len(texts) == len(patches)
    for text, patch in zip(texts, patches, strict=True):
        x, y = text.get_position()
        assert patch.get_x() < x < patch.get_x() + patch.get_width()
        assert patch.get_y() < y < patch.get_y() + patch.get_height()
    return [t.get_text() for t in texts], [p.get_facecolor() for p in patches]


def colours(values, centre=None):
    off = values - (np.median(values[1:]) if centre is None else centre)
    span = np.abs(off[1:]).max()
    return [colormaps[DIVERGING](min(max((v + span) / (2 * span), 0.0), 1.0)) for v in off]


def test_white_is_between_the_classes_and_said_to_be(tiny):
    """0 is not neutral: all states may lie on one side of it."""
    positive, negative = ["a b", "c d e"], ["f g", "h"]
    sides = [np.concatenate([projections(tiny, words(), t, V).values[1:] for t in s]) for s in (positive, negative)]
    bias = {sf.resid_post[1].name: 3.0}
    values = projections(tiny, words(), TEXT, V).values
    for made, centre, told in (
        (sf.plot.tokens(tiny, words(), TEXT, V), np.median(values[1:]), "the median of these tokens"),
        (sf.plot.tokens(tiny, words(), TEXT, V, centre=0.25), 0.25, "as asked"),
        (
            sf.plot.tokens(tiny, words(), TEXT, V, centre=(positive, negative)),
            (sides[0].mean() + sides[1].mean()) / 2,
            "between the two sides",
        ),
        (
            sf.plot.tokens(tiny, words(), TEXT, V.with_metadata(bias=bias)),
            -3.0 / float(V[1].norm()),
            "the classifier's boundary",
        ),
    ):
        np.testing.assert_allclose(drawn(made)[1], colours(values, centre), atol=1e-6)
        assert told in " ".join(made.axes[1].get_xlabel().split())
    with pytest.raises(sf.DataError, match="centre is a number, or a pair of lists of positive and negative texts"):
        sf.plot.tokens(tiny, words(), TEXT, V, centre=["a", "b"])


def test_values_are_those_of_hidden_states(tiny):
    found = projections(tiny, words(), TEXT, V)
    with torch.no_grad():
        states = tiny(torch.tensor([[1, 3, 4, 5, 6, 7, 8]]), output_hidden_states=True).hidden_states[2][0]
    direction = V[1] / V[1].norm()
    assert found.ids == (1, 3, 4, 5, 6, 7, 8) and found.site == sf.resid_post[1]
    np.testing.assert_allclose(found.values, (states @ direction).numpy(), atol=1e-5)
    np.testing.assert_allclose(projections(tiny, words(), TEXT, 7 * V).values, found.values, atol=1e-6)
    np.testing.assert_allclose(projections(tiny, words(), TEXT, -V).values, -found.values, atol=1e-6)


@pytest.mark.parametrize("where", range(7))
def test_pitfall_27_a_known_activation_is_at_its_token(tiny, where):
    """A push along the direction at one token is seen at that token, and at no other."""
    plain = projections(tiny, words(), TEXT, V).values
    with sf.steer(tiny, sf.at(sf.positions([where]), sf.add(V, 100 / float(V[1].norm())))):
        pushed = projections(tiny, words(), TEXT, V).values
        made = sf.plot.tokens(tiny, words(), TEXT, V)
    assert (pushed - plain)[where] == pytest.approx(100, abs=1e-3)
    np.testing.assert_allclose(np.delete(pushed, where), np.delete(plain, where), atol=1e-4)
    names, faces = drawn(made)
    assert names == TOKENS
    np.testing.assert_allclose(faces, colours(pushed), atol=1e-6)
    if where:  # the first token does not set the scale
        assert faces[where] == colormaps[DIVERGING](1.0)


def test_bos_and_the_template_are_shown(tiny):
    assert drawn(sf.plot.tokens(tiny, words(), "a b", V))[0] == ["<bos>", "a", "b"]
    tokenizer = words(template=True)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a b"}], add_generation_prompt=True)
    ids = ids["input_ids"] if not isinstance(ids, list) else ids
    names = drawn(sf.plot.tokens(tiny, tokenizer, "a b", V, chat=True))[0]
    assert names == tokenizer.convert_ids_to_tokens(ids)


def test_what_lies_beyond_the_colours_is_told(tiny):
    with sf.steer(tiny, sf.at(sf.positions([0]), sf.add(V, -1000.0))):
        made = sf.plot.tokens(tiny, words(), TEXT, V)
        value = projections(tiny, words(), TEXT, V).values[0]
    title = made.texts[0].get_text()
    assert title.splitlines() == [
        "Projection on the direction at resid_post[1], token by token",
        f"First token: {value:.0f}, beyond the colours",
    ]
    with sf.steer(tiny, sf.at(sf.positions([1]), sf.add(V, 1000.0))):  # the first is no longer the furthest out
        assert "First token" not in sf.plot.tokens(tiny, words(), TEXT, V).texts[0].get_text()


def test_lines_break_where_tokens_do_not_fit_and_after_line_breaks():
    texts = ["<s>", " good", "\n", "bad", " morning", " everyone", "\n\n", "x"]
    found = wrap_tokens(texts, 14)
    assert [(row, label) for row, _, label in found] == [
        (0, "<s>"), (0, "·good"), (0, "⏎"), (1, "bad"), (1, "·morning"), (2, "·everyone"), (2, "⏎⏎"), (3, "x"),
    ]  # fmt: skip
    ends = {}
    for row, column, label in found:
        assert column == ends.get(row, 0) and column + len(label) <= 14
        ends[row] = column + len(label)


def test_a_token_longer_than_a_line_is_cut():
    ((_, _, label),) = wrap_tokens(["x" * 100], 20)
    assert label == "x" * 19 + "…"


def test_a_site_is_chosen(tiny):
    several = vector(sf.resid_post[0], sf.resid_post[2])
    with pytest.raises(sf.SiteError) as caught:
        sf.plot.tokens(tiny, words(), TEXT, several)
    message = "One site is needed, not 2 (resid_post[0], resid_post[2]); pass for example site='resid_post[0]'."
    assert str(caught.value) == message
    for site in (2, -1, sf.resid_post[2], "resid_post[2]"):
        assert projections(tiny, words(), TEXT, several, site).site == sf.resid_post[2]
    with pytest.raises(sf.SiteError, match="This vector has no direction at resid_post"):
        projections(tiny, words(), TEXT, several, 1)


def test_one_token_and_a_zero_direction(tiny):
    assert drawn(sf.plot.tokens(tiny, words(bos=False), "b", V))[0] == ["b"]
    zero = sf.SteeringVector({sf.resid_post[1]: torch.zeros(32)})
    assert not projections(tiny, words(), TEXT, zero).values.any()
    sf.plot.tokens(tiny, words(), TEXT, zero)


@pytest.mark.parametrize("site", [sf.attn_out[0], sf.head_out[1, 2], sf.resid_pre[2]])
def test_other_sites(tiny, site):
    v = vector(site, width=8 if site.kind == "head_out" else 32)
    _, states = sf.capture(tiny, site)(torch.tensor([[1, 3, 4, 5, 6, 7, 8]]))
    expected = (states[site][0] @ (v[site] / v[site].norm())).detach().numpy()
    np.testing.assert_allclose(projections(tiny, words(), TEXT, v).values, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ["a", "b"]}, "One text is drawn, not 2; make a figure for each."),
        ({"text": ""}, "text[0] is empty"),
        ({"vector": 3}, "A plot of projections takes a SteeringVector, not a int;"),
        ({"vector": vector(sf.resid_post[1], width=8)}, "has width 8"),
        ({"text": "a " * 110}, "The text has 111 tokens, and a figure holds 100; draw a part of it."),
    ],
)
def test_errors_by_their_text(tiny, options, message, monkeypatch):
    monkeypatch.setattr("steerfn.plot._tokens.MOST", 100)
    with pytest.raises(sf.SteerError) as caught:
        sf.plot.tokens(tiny, words(), **{"text": TEXT, "vector": V} | options)
    assert message in str(caught.value)


def test_other_families_and_dtypes():
    for model in (build("gpt2"), build("mamba"), build("llama").to(torch.bfloat16)):
        assert np.isfinite(projections(model, words(), TEXT, V).values).all()
