"""Mean difference: against a plain loop, with its metadata and its refusals."""

import pytest
import torch
from families import build
from words import words

import steerfn as sf

pytestmark = pytest.mark.steady

POSITIVE, NEGATIVE = ["a b c", "d e f g", "h i", "j k l m n"], ["o p", "q r s t", "u"]


def test_pitfall_19_equals_the_difference_of_plain_means(tiny):
    tokenizer, means = words(), {}
    for name, texts in {"positive": POSITIVE, "negative": NEGATIVE}.items():
        states = []
        for text in texts:
            with torch.no_grad():
                out = tiny(
                    **tokenizer(text, return_tensors="pt", return_token_type_ids=False), output_hidden_states=True
                )
            states.append(out.hidden_states[2][0, -1].double())
        means[name] = torch.stack(states).mean(0)
    for batch_size in ("auto", 1, 2, 3):
        v = sf.mean_difference(tiny, tokenizer, POSITIVE, NEGATIVE, 1, batch_size=batch_size, progress=False)
        torch.testing.assert_close(v[1].double(), means["positive"] - means["negative"], rtol=1e-5, atol=1e-5)


def test_pitfall_20_and_28_counts_of_one_and_of_many(tiny):
    one = sf.mean_difference(tiny, words(), ["a"], ["b"], 1, progress=False)
    many = sf.mean_difference(tiny, words(), ["a"] * 5, ["b"] * 2, 1, progress=False)
    torch.testing.assert_close(one[1], many[1])


def test_pitfall_11_positives_project_higher(tiny):
    v = sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, progress=False)
    high, low = (
        sf.activations(tiny, words(), t, 1, progress=False)[sf.resid_post[1]] @ v[1] for t in (POSITIVE, NEGATIVE)
    )
    assert high.mean() > low.mean()


def test_metadata_says_what_was_done(tiny):
    v = sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, [0, sf.attn_out[1]], position="mean", progress=False)
    assert v.sites == (sf.resid_post[0], sf.attn_out[1]) and v.dtype == torch.float32
    assert v.metadata["method"] == "mean_difference" and v.metadata["position"] == "mean"
    assert v.metadata["counts"] == {"positive": 4, "negative": 3} and v.metadata["model"] == sf.values.fingerprint(
        tiny, weights=True
    )


def test_the_same_call_gives_the_same_bits(tiny):
    first, second = (sf.mean_difference(tiny, words(), POSITIVE, NEGATIVE, 1, progress=False) for _ in range(2))
    assert first.identical(second)


def test_sentiment_steers_the_real_model(demo):
    model, tokenizer = demo
    happy = ["I am so happy today, everything is wonderful!", "I love my life and I smile at everyone."]
    sad = ["I am so sad today, everything is terrible.", "I hate my life and I cry alone."]
    v = sf.mean_difference(model, tokenizer, happy, sad, 14, position="mean", progress=False)
    good, bad = (tokenizer(f" {w}").input_ids[0] for w in ("wonderful", "terrible"))
    ids = tokenizer("The day was", return_tensors="pt")
    gap = []
    for alpha in (-2.0, 0.0, 2.0):
        with torch.no_grad(), sf.steer(model, v, alpha):
            logits = model(**ids).logits[0, -1]
        gap.append((logits[good] - logits[bad]).item())
    assert gap[0] < gap[1] < gap[2]


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ([], ["a"], "positive is empty; pass at least one text."),
        (["a"], [""], "negative[0] is empty (''); remove it or give it words."),
        (["a"], ["a"], "positive and negative are the same texts"),
        (5, ["a"], "positive is a list of texts, not 5 of type int."),
    ],
)
def test_errors_by_their_text(tiny, positive, negative, message):
    with pytest.raises(sf.SteerError) as caught:
        sf.mean_difference(tiny, words(), positive, negative, 1, progress=False)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": ["first"]}, "position is 'last', 'mean', 'mean_all', 'answer' (for pairs), an index, a slice"),
        ({"position": "answer"}, "so it needs pairs: as many positive as negative texts."),
        ({"chat": "yes"}, "chat is True, False or None, not 'yes'."),
        (
            {"batch_size": "big"},
            "`batch_size` must be a positive integer, got 'big'; 'auto' fits batches to the device.",
        ),
    ],
)
def test_wrong_options_are_one_sentence(tiny, options, message):
    with pytest.raises(sf.DataError) as caught:
        sf.mean_difference(tiny, words(), ["a"], ["b", "c"], 1, progress=False, **options)
    assert message in str(caught.value)


def test_a_misspelled_option_is_named_with_the_one_that_was_meant(tiny):
    with pytest.raises(sf.DataError, match=r"mean_difference has no option 'positon'; did you mean 'position'\?"):
        sf.mean_difference(tiny, words(), ["a"], ["b"], 1, positon="mean")


def test_other_families(tiny):
    del tiny
    for family in ("gpt2", "gpt_neox", "gemma2", "mamba"):
        v = sf.mean_difference(build(family), words(), POSITIVE, NEGATIVE, -1, progress=False)
        assert v.sites == (sf.resid_post[2],) and v.magnitude[sf.resid_post[2]] > 0
