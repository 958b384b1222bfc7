"""The next token before and after steering: the numbers against plain transformers, the drawing against the numbers."""

import numpy as np
import pytest
import torch
from families import build
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from steering import vector
from words import words

import steerfn as sf
from steerfn.plot._figure import COLOURS
from steerfn.plot._next_token import divergence, next_token, steps_of

pytestmark = pytest.mark.steady

V = 3 * vector(sf.resid_post[1])
PROMPT = "a b c d"
IDS = [1, 3, 4, 5, 6]  # with BOS


def plain(model, ids, v=None, first=0):
    """Log-probabilities after each token, by a hook that adds a vector from a token on."""

    def hook(module, args, out):
        hidden = out[0] if isinstance(out, tuple) else out
        hidden = hidden.clone()
        hidden[:, first:] += v[1]
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handle = model.model.layers[1].register_forward_hook(hook) if v is not None else None
    with torch.no_grad():
        out = model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
    if handle is not None:
        handle.remove()
    return out


def test_the_tokens_are_the_likeliest_of_both_and_their_numbers_those_of_a_plain_pass(tiny):
    found = next_token(tiny, words(), PROMPT, sf.add(V), 4, None)
    before, after = plain(tiny, IDS)[-1], plain(tiny, IDS, V)[-1]
    expected = {int(i) for each in (before, after) for i in sorted(range(99), key=lambda t: -each[t])[:4]}
    assert set(found.ids) == expected and 4 < len(found.ids) <= 8
    np.testing.assert_allclose(found.before, np.exp(before[list(found.ids)]), atol=1e-6)
    np.testing.assert_allclose(found.after, np.exp(after[list(found.ids)]), atol=1e-6)
    change = found.after - found.before
    assert (np.diff(change) <= 0).all() and change[0] > 0 > change[-1]
    assert found.divergence == pytest.approx(
        sum(np.exp(a) * (a - b) for a, b in zip(after, before, strict=True)), abs=1e-5
    )


def test_the_bars_are_the_probabilities_at_their_tokens(tiny):
    found = next_token(tiny, words(), PROMPT, sf.add(V), 4, None)
    made = sf.plot.token_probabilities(tiny, words(), PROMPT, V, top=4)
    (axes,) = made.axes
    labels = dict(zip(axes.get_yticks(), [t.get_text() for t in axes.get_yticklabels()], strict=True))
    names = [words().convert_ids_to_tokens(i) or f"id·{i}" for i in found.ids]
    assert [labels[i] for i in range(len(names))] == names
    before, after = axes.containers
    for bars, values, name in ((before, found.before, "unsteered"), (after, found.after, "steered")):
        assert bars.get_label() == name
        np.testing.assert_allclose([bar.get_width() for bar in bars], values)
        assert [round(bar.get_y() + bar.get_height() / 2) for bar in bars] == list(range(len(names)))
    assert [t.get_text() for t in axes.texts] == [f"{c:+.2g}" for c in found.after - found.before]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # what gains most is on top
    assert axes.get_xlabel().startswith("Probability of the next token")
    assert made.get_suptitle() == f"Next token after “a b c d”\nKL(steered || unsteered) = {found.divergence:.3g} nats"


def test_alpha_0_changes_nothing(tiny):
    found = next_token(tiny, words(), PROMPT, sf.add(V, 0.0), 3, None)
    assert len(found.ids) == 3 and found.divergence == 0
    assert np.array_equal(found.before, found.after)


def test_the_figure_ignores_open_contexts_and_leaves_the_model_as_it_was(tiny):
    alone = next_token(tiny, words(), PROMPT, sf.add(V), 4, None)
    before = plain(tiny, IDS)
    with sf.steer(tiny, -V):
        inside = next_token(tiny, words(), PROMPT, sf.add(V), 4, None)
        steps, _ = steps_of(tiny, words(), PROMPT, sf.add(V), 4, 3, None)
    assert np.array_equal(inside.before, alone.before) and np.array_equal(inside.after, alone.after)
    assert steps.chosen.tolist() == steps_of(tiny, words(), PROMPT, sf.add(V), 4, 3, None)[0].chosen.tolist()
    assert np.array_equal(plain(tiny, IDS), before)


@pytest.mark.parametrize("scoped", [False, True])
def test_every_step_is_that_of_a_loop(tiny, scoped):
    op = sf.at(sf.generated, sf.add(V)) if scoped else sf.add(V)
    found, ids = steps_of(tiny, words(), PROMPT, op, 5, 3, None)
    assert list(ids) == IDS and len(found) == 5
    text = list(IDS)
    for step in range(5):
        after = plain(tiny, text, V, first=len(IDS) - 1 if scoped else 0)[-1]
        before = plain(tiny, text)[-1]
        assert found.chosen[step] == after.argmax()
        for tokens, probs, expected in (
            (found.before[step], found.before_probs[step], before),
            (found.after[step], found.after_probs[step], after),
        ):
            assert tokens.tolist() == sorted(range(99), key=lambda t: -expected[t])[:3]
            np.testing.assert_allclose(probs, np.exp(expected[tokens]), atol=1e-5)
        assert found.divergence[step] == pytest.approx(float(np.sum(np.exp(after) * (after - before))), abs=1e-4)
        text.append(int(found.chosen[step]))


def test_the_grid_shows_each_token_at_its_step_and_rank(tiny):
    found, _ = steps_of(tiny, words(), PROMPT, sf.add(V), 4, 3, None)
    made = sf.plot.top_k_changes(tiny, words(), PROMPT, V, steps=4, top=3, width=12.0)
    upper, lower, below = made.axes[:3]

    def name(token):
        return words().convert_ids_to_tokens(int(token)) or f"id·{token}"

    for axes, tokens, probs in ((upper, found.before, found.before_probs), (lower, found.after, found.after_probs)):
        cells = {tuple(t.get_position()): t for t in axes.texts}
        assert {place: t.get_text() for place, t in cells.items()} == {
            (step, rank + 1): name(tokens[step, rank]) for step in range(4) for rank in range(3)
        }
        (mesh,) = axes.collections
        np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(3, 4), probs.T)
        bold = {place for place, t in cells.items() if t.get_fontweight() == "bold"}
        assert bold == {(s, r + 1) for s in range(4) for r in range(3) if tokens[s, r] == found.chosen[s]}
    framed = {
        (round(p.get_x() + p.get_width() / 2), round(p.get_y() + p.get_height() / 2) - 1)
        for p in lower.patches
        if isinstance(p, Rectangle) and p.get_edgecolor() == to_rgba(COLOURS[1])
    }
    new = {(s, r) for s in range(4) for r in range(3) if found.after[s, r] not in found.before[s].tolist()}
    assert framed == new and new and not upper.patches
    assert [bar.get_height() for bar in below.containers[0]] == pytest.approx(found.divergence.tolist())
    ticks = [t.get_text() for t in below.get_xticklabels()]
    assert ticks == [f"{i + 1}\n{name(token)}" for i, token in enumerate(found.chosen)]


def test_the_end_of_the_text_ends_the_steps(tiny):
    tiny.generation_config.eos_token_id = int(steps_of(tiny, words(), PROMPT, sf.add(V), 5, 3, None)[0].chosen[1])
    found, _ = steps_of(tiny, words(), PROMPT, sf.add(V), 5, 3, None)
    assert 1 <= len(found) <= 2


def test_more_tokens_than_there_are_is_all_of_them(tiny):
    assert len(next_token(tiny, words(), PROMPT, sf.add(V), 1000, None).ids) == 99
    assert steps_of(tiny, words(), PROMPT, sf.add(V), 1, 1000, None)[0].after.shape == (1, 99)


def test_an_impossible_token_adds_nothing_to_a_divergence():
    a, b = np.log([0.5, 0.5, 1e-300]), np.log([0.25, 0.75, 1e-300])
    a[2] = b[2] = -np.inf
    assert divergence(a, b) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75))


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "mamba"])
def test_other_families(family):
    found = next_token(build(family), words(), PROMPT, sf.add(V), 4, None)
    assert found.divergence > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "`top` must be a positive integer, got 0."),
        ({"top": True}, "`top` must be a positive integer, got True."),
        ({"steps": 0}, "`steps` must be a positive integer, got 0."),
        ({"prompt": ["a", "b"]}, "One prompt is drawn, not 2; make a figure for each."),
        ({"prompt": " "}, "prompt[0] is empty"),
        ({"op": 3.0}, "steer takes a SteeringVector or an operator, not a float"),
        ({"width": 2.0}, "`width` must be a finite number >= 3, got 2.0; it is in inches."),
        ({"width": float("inf")}, "`width` must be a finite number >= 3, got inf; it is in inches."),
    ],
)
def test_errors_by_their_text(tiny, options, message):
    given = {"prompt": PROMPT, "op": V} | options
    for plot in (sf.plot.token_probabilities, sf.plot.top_k_changes):
        if "steps" in options and plot is sf.plot.token_probabilities:
            continue
        with pytest.raises(sf.SteerError) as caught:
            plot(tiny, words(), **given)
        assert message in str(caught.value)


def test_on_a_real_model(demo):
    model, tokenizer = demo
    texts = sf.datasets.load("sentiment")
    happy = sf.mean_difference(model, tokenizer, texts.positive[:12], texts.negative[:12], 14, progress=False)
    made = sf.plot.token_probabilities(model, tokenizer, "I feel so", sf.add(happy, 2.0), top=5, chat=False)
    (axes,) = made.axes
    labels = [t.get_text() for t in axes.get_yticklabels()]
    ids = tokenizer("I feel so", return_tensors="pt").input_ids
    with torch.no_grad():
        probs = model(ids).logits[0, -1].softmax(-1)
    expected = [tokenizer.decode([i]).replace(" ", "·") for i in probs.topk(5).indices.tolist()]
    assert set(expected) <= set(labels) and all(label.startswith("·") for label in expected)
    widths = dict(zip(labels, [bar.get_width() for bar in axes.containers[0]], strict=True))
    np.testing.assert_allclose([widths[each] for each in expected], probs.topk(5).values.numpy(), atol=1e-5)
