"""ITI: planted heads are chosen, accuracies against scikit-learn, shifts against their formula."""

import numpy as np
import pytest
import torch
from families import build
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from words import words

import steerfn as sf
from steerfn.datasets._folds import deciding_tokens, describe_texts, divide
from steerfn.run._positions import reads

FILLERS = ["a b", "c d", "e f g", "h", "i j k", "l m", "n o", "p q r", "s b", "d h", "e", "k o i"]
POSITIVE = [f"{text} x {rest} t" for text, rest in zip(FILLERS, FILLERS[::-1], strict=True)]
NEGATIVE = [f"{text} y {rest} t" for text, rest in zip(FILLERS, FILLERS[::-1], strict=True)]
PLANT = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(5)), dim=0)
QUIET = {"progress": False}


def planted():
    """A Llama in which x and y differ in one direction, which only heads 2 and 3 of block 1 read."""
    model = build("llama")
    with torch.no_grad():

        def without(weight):
            weight.copy_(weight - torch.outer(weight @ PLANT, PLANT))

        for name, p in model.named_parameters():
            if "norm" in name:
                p.fill_(1.0)
        embedding = model.model.embed_tokens.weight
        without(embedding)
        x, y = words().convert_tokens_to_ids(["x", "y"])
        common = embedding[x].clone()
        embedding[x], embedding[y] = common + 2 * PLANT, common - 2 * PLANT
        for block in model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                without(part.weight)
            for part in (attention.o_proj, mlp.down_proj):  # nor does any sublayer write it
                part.weight.copy_(part.weight - torch.outer(PLANT, PLANT @ part.weight))
        reading = model.model.layers[1].self_attn
        reading.v_proj.weight[8:] += 4 * torch.outer(torch.ones(8), PLANT)  # the value head of heads 2 and 3
        reading.k_proj.weight.zero_()  # every token is attended to alike, x and y in every text
        reading.o_proj.weight[:, 16:] = 0  # nothing of it is passed on
    return model


def by_hand(model, tokenizer, texts, site):
    """The head's output at the last token, one text at a time."""
    states = []
    for text in texts:
        with torch.no_grad():
            _, acts = sf.capture(model, site)(tokenizer(text, return_tensors="pt")["input_ids"])
        states.append(acts[site][0, -1].double().numpy())
    return np.stack(states)


def test_the_planted_heads_are_chosen():
    v = sf.discover.iti(planted(), words(), POSITIVE, NEGATIVE, k=2, **QUIET)
    assert v.sites == (sf.head_out[1, 2], sf.head_out[1, 3])
    accuracy = v.metadata["accuracy"]
    assert len(accuracy) == 12 and all(accuracy[site.name] == 1.0 for site in v.sites)
    assert max(a for name, a in accuracy.items() if name not in {s.name for s in v.sites}) < 0.9
    for site in v.sites:  # where every coordinate carries the signal alike
        assert torch.cosine_similarity(v[site], torch.ones(8), dim=0) > 0.99


@pytest.mark.parametrize("negative", [NEGATIVE, NEGATIVE[:7]], ids=["pairs", "unequal"])
def test_accuracy_and_loss_equal_scikit_learn(tiny, negative):
    v = sf.discover.iti(tiny, words(), POSITIVE, negative, k=12, l2=0.5, seed=3, **QUIET)
    read = reads([words()(text)["input_ids"] for text in [*POSITIVE, *negative]], "last")
    tokens = deciding_tokens(read, 12 if negative is NEGATIVE else None)
    fold = divide(describe_texts((12, len(negative)), tokens), 5, 3)
    folds = fold[:12], fold[12:]
    assert set(folds[0]) == set(folds[1]) == set(range(5))
    for site in v.sites[::3]:
        sides = [by_hand(tiny, words(), texts, site) for texts in (POSITIVE, negative)]
        x, fold = np.concatenate(sides), np.concatenate(folds)
        y = np.array([1] * len(sides[0]) + [0] * len(sides[1]))
        p = np.zeros(len(y))
        for f in range(5):
            probe = LogisticRegression(C=2.0, tol=1e-10, max_iter=10000).fit(x[fold != f], y[fold != f])
            p[fold == f] = probe.predict_proba(x[fold == f])[:, 1]
        assert v.metadata["accuracy"][site.name] == pytest.approx(((p > 0.5) == y).mean())
        assert v.metadata["log_loss"][site.name] == pytest.approx(log_loss(y, p), rel=1e-4)


def test_the_shift_is_a_standard_deviation_along_the_mean_difference(tiny):
    v = sf.discover.iti(tiny, words(), POSITIVE, NEGATIVE[:9], k=12, **QUIET)
    for site in v.sites[::5]:
        positive, negative = (by_hand(tiny, words(), texts, site) for texts in (POSITIVE, NEGATIVE[:9]))
        difference = positive.mean(0) - negative.mean(0)
        theta = difference / np.linalg.norm(difference)
        expected = theta * (np.concatenate([positive, negative]) @ theta).std()
        np.testing.assert_allclose(v[site].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_the_best_heads_are_kept(tiny):
    """By accuracy, then by log loss; in the order of the forward pass."""
    every = sf.discover.iti(tiny, words(), POSITIVE, NEGATIVE, k=12, **QUIET)
    accuracy, loss = every.metadata["accuracy"], every.metadata["log_loss"]
    ranked = sorted(accuracy, key=lambda name: (-accuracy[name], loss[name]))
    for k in (1, 5):
        v = sf.discover.iti(tiny, words(), POSITIVE, NEGATIVE, k=k, **QUIET)
        assert {site.name for site in v.sites} == set(ranked[:k])
        assert list(v.sites) == sorted(v.sites, key=lambda site: (site.layer, site.head))
        assert all(torch.equal(v[site], every[site]) for site in v.sites)
        assert v.metadata["k"] == k and v.metadata["heads"] == 12 and v.metadata["method"] == "iti"


def test_it_steers_each_head(tiny):
    v = sf.discover.iti(tiny, words(), POSITIVE, NEGATIVE, k=3, **QUIET)
    ids, site = words()("a b c", return_tensors="pt")["input_ids"], v.sites[0]
    with torch.no_grad():
        _, before = sf.capture(tiny, site)(ids)
        with sf.steer(tiny, v, alpha=15):
            _, after = sf.capture(tiny, site)(ids)
    delta = after[site] - before[site]
    torch.testing.assert_close(delta, (15 * v[site]).expand_as(delta), rtol=1e-4, atol=1e-5)


def test_options_change_the_result(tiny):
    def found(**options):
        return sf.discover.iti(tiny, words(template=True), POSITIVE, NEGATIVE, **({"k": 4} | QUIET | options))

    base = found()
    assert found(layers=1).sites == tuple(sf.head_out[1, head] for head in range(4))
    assert found(layers=slice(1, 3), k=8).layers == found(layers=[-2, -1], k=8).layers == (1, 2)
    assert found(seed=1).metadata["log_loss"] != base.metadata["log_loss"]
    assert found(l2=9.0).metadata["log_loss"] != base.metadata["log_loss"]
    assert found(position=2).metadata["log_loss"] != base.metadata["log_loss"]
    assert found(chat=True).metadata["log_loss"] != base.metadata["log_loss"]
    assert base.identical(found()) and base.allclose(found(batch_size=1), rtol=1e-3, atol=1e-5)
    assert sf.quality(found(quality=True)).keys() == set(base.sites)


def test_texts_may_come_from_an_iterator(tiny):
    v = sf.discover.iti(tiny, words(), iter(POSITIVE), iter(NEGATIVE), k=4, **QUIET)
    assert v.identical(sf.discover.iti(tiny, words(), POSITIVE, NEGATIVE, k=4, **QUIET))


def test_hybrid_models_use_the_blocks_that_have_heads():
    v = sf.discover.iti(build("jamba"), words(), POSITIVE[:4], NEGATIVE[:4], k=4, **QUIET)
    assert v.layers == (1,) and v.metadata["heads"] == 4
    with pytest.raises(sf.SiteError, match=r"has no head_out\[0, 0\]: this block has no attention with an output proj"):
        sf.discover.iti(build("jamba"), words(), POSITIVE, NEGATIVE, layers=0, k=1, **QUIET)
    with pytest.raises(sf.SiteError, match=r"has no head_out\[0, 0\]: this block has no attention with an output proj"):
        sf.discover.iti(build("mamba"), words(), POSITIVE, NEGATIVE, k=1, **QUIET)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((POSITIVE, NEGATIVE), {}, "`k` must be an integer from 1 to 12, got 48; there are 12 heads."),
        ((POSITIVE, NEGATIVE), {"k": 0}, "`k` must be an integer from 1 to 12, got 0; there are 12 heads."),
        ((POSITIVE, NEGATIVE), {"k": True}, "`k` must be an integer from 1 to 12, got True; there are 12 heads."),
        (
            (POSITIVE, NEGATIVE),
            {"k": 5, "layers": 1},
            "`k` must be an integer from 1 to 4, got 5; there are 4 heads.",
        ),
        ((POSITIVE, NEGATIVE), {"k": 1, "layers": 7}, "is out of range: the model has 3 blocks"),
        (
            (POSITIVE, NEGATIVE),
            {"k": 1, "l2": 0},
            "`l2` must be a finite number > 0, got 0; the penalty is l2/2 |w|^2.",
        ),
        ((POSITIVE, NEGATIVE), {"k": 1, "seed": "a"}, "`seed` must be an integer, got 'a'."),
        ((["a"], NEGATIVE), {"k": 1}, "positive has one text; a probe's accuracy on held-out texts takes at least two"),
        ((POSITIVE, "a"), {"k": 1}, "negative has one text; a probe's accuracy on held-out texts takes at least two"),
        (([], NEGATIVE), {"k": 1}, "positive is empty; pass at least one text."),
    ],
)
def test_wrong_arguments_are_one_sentence(tiny, given, options, message):
    with pytest.raises(sf.SteerError) as caught:
        sf.discover.iti(tiny, words(), *given, **options, **QUIET)
    assert message in str(caught.value)
