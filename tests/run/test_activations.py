"""Reading: against a plain loop over single texts with `output_hidden_states` and hooks."""

import pytest
import torch
from families import build
from snapshot import unchanged
from steering import vector_at
from words import words

import steerfn as sf

TEXTS = ["a b c d e f g", "h", "i j k", "l m n o p", "q r", "s t u v w x y z"]


def by_hand(model, tokenizer, text, layer):
    """`resid_post` of every token of one text, alone, by a plain forward hook."""
    seen = []
    handle = model.model.layers[layer].register_forward_hook(
        lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))
    handle.remove()
    return seen[0][0]


@pytest.mark.parametrize("batch_size", ["auto", 1, 2, 5, 100])
@pytest.mark.parametrize(
    ("position", "pick"),
    [("last", lambda h: h[-1]), ("mean", lambda h: h.mean(0)), (0, lambda h: h[0]), (-2, lambda h: h[-2])],
)
def test_pitfall_03_equals_a_loop_over_single_texts(tiny, batch_size, position, pick):
    tokenizer = words()
    acts = sf.activations(tiny, tokenizer, TEXTS, [0, -1], position, batch_size=batch_size, progress=False)
    assert list(acts) == [sf.resid_post[0], sf.resid_post[2]]
    for layer in (0, 2):
        want = torch.stack([pick(by_hand(tiny, tokenizer, text, layer)) for text in TEXTS])
        torch.testing.assert_close(acts[sf.resid_post[layer]], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_does_not_matter_and_stays(tiny, side):
    tokenizer = words()
    tokenizer.padding_side = side
    other = words()
    assert torch.equal(
        sf.activations(tiny, tokenizer, TEXTS, 1, progress=False)[sf.resid_post[1]],
        sf.activations(tiny, other, TEXTS, 1, progress=False)[sf.resid_post[1]],
    )
    assert tokenizer.padding_side == side


def test_a_tokenizer_without_a_pad_token_works(tiny):
    tokenizer = words(pad=False)
    got = sf.activations(tiny, tokenizer, TEXTS, 1, progress=False)[sf.resid_post[1]]
    want = sf.activations(tiny, words(), TEXTS, 1, progress=False)[sf.resid_post[1]]
    assert torch.equal(got, want) and tokenizer.pad_token_id is None


@pytest.mark.parametrize("family", ["gpt2", "opt", "mamba", "qwen3_next", "gemma3", "bloom", "falcon"])
def test_padding_is_right_for_architectures_that_ignore_masks(family):
    model, tokenizer = build(family), words()
    sites = [sf.resid_pre[1], sf.resid_post[-1]]
    together = sf.activations(model, tokenizer, TEXTS, sites, progress=False)
    alone = [sf.activations(model, tokenizer, text, sites, progress=False) for text in TEXTS]
    for site, rows in together.items():
        torch.testing.assert_close(rows, torch.cat([a[site] for a in alone]), rtol=1e-4, atol=1e-4)


def test_every_kind_of_site_and_its_width(tiny):
    sites = [sf.resid_pre[1], sf.resid_mid[1], sf.attn_out[1], sf.mlp_out[1], sf.head_out[1, 2], sf.resid_post[1]]
    acts = sf.activations(tiny, words(), TEXTS, sites, progress=False)
    assert [tuple(acts[s].shape) for s in sites] == [(6, 32)] * 4 + [(6, 8), (6, 32)]
    torch.testing.assert_close(
        acts[sf.resid_pre[1]] + acts[sf.attn_out[1]] + acts[sf.mlp_out[1]], acts[sf.resid_post[1]]
    )


def test_the_forward_stops_at_the_deepest_site(tiny):
    def refuse(*_):
        raise AssertionError("a block below the deepest site ran")

    tiny.model.layers[2].register_forward_pre_hook(refuse)
    tiny.lm_head.register_forward_pre_hook(refuse)
    sf.activations(tiny, words(), TEXTS, [0, 1], progress=False)


def test_nothing_is_left_on_the_model_or_the_tokenizer(tiny):
    tokenizer = words()
    attributes = dict(tokenizer.special_tokens_map)
    with unchanged(tiny):
        sf.activations(tiny, tokenizer, TEXTS, 1, progress=False)
    assert tokenizer.special_tokens_map == attributes


def test_values_are_steered_inside_a_context(tiny):
    v = sf.SteeringVector({sf.resid_post[1]: torch.ones(32)})
    plain = sf.activations(tiny, words(), TEXTS, 1, progress=False)[sf.resid_post[1]]
    with sf.steer(tiny, v, 3.0):
        steered = sf.activations(tiny, words(), TEXTS, 1, progress=False)[sf.resid_post[1]]
    torch.testing.assert_close(steered, plain + 3.0)


def test_pitfall_23_exactly_one_bos(tiny):
    tokenizer = words(template=True)
    assert sf.run.token_read(tokenizer, ["a b"], "mean") == ["<bos> a b"]
    assert sf.run.token_read(tokenizer, ["a b"], "mean", chat=True) == ["<bos> user a b assistant"]
    assert sf.run.token_read(tokenizer, [[{"role": "user", "content": "a"}]], "mean") == ["<bos> user a assistant"]


def test_pitfall_38_the_token_read_by_its_text():
    tokenizer = words(template=True)
    assert sf.run.token_read(tokenizer, ["a b c", "d"], "last") == ["c", "d"]
    assert sf.run.token_read(tokenizer, ["a b c"], 1) == ["a"]
    assert sf.run.token_read(tokenizer, ["a b c"], lambda ids: ids.index(4)) == ["b"]
    assert sf.run.token_read(tokenizer, ["a b c"], chat=True) == ["assistant"]


def test_bf16_is_read_in_float32(tiny):
    acts = sf.activations(tiny.bfloat16(), words(), TEXTS, 1, progress=False)
    assert acts[sf.resid_post[1]].dtype == torch.float32


@pytest.mark.parametrize("most", [24, 10])
def test_out_of_memory_halves_the_batch(tiny, most):
    sizes = []

    def full(module, args):
        sizes.append(args[0].shape[0] * args[0].shape[1])
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("no more")

    texts = [*TEXTS, *(f"{t} z" for t in TEXTS)]
    want = sf.activations(tiny, words(), texts, 1, progress=False)[sf.resid_post[1]]
    tiny.model.layers[0].register_forward_pre_hook(full)
    got = sf.activations(tiny, words(), texts, 1, progress=False)[sf.resid_post[1]]
    torch.testing.assert_close(got, want)
    assert max(sizes) > most >= sizes[-1]
    with pytest.raises(torch.OutOfMemoryError):  # not even one text fits
        sf.activations(tiny, words(), ["a " * most], 1, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "texts is empty; pass at least one text."),
        ({"texts": ["a", " "]}, "texts[1] is empty (' '); remove it or give it words."),
        ({"texts": ["a", 3]}, "texts[1] is 3 of type int; pass a text, or a conversation"),
        ({"texts": {"a": 1}}, "texts is a dict, which is not a list of texts; pass a list"),
        ({"position": 9}, "Position 9 is outside a text of 2 tokens; use an index it has, 'last' or 'mean'."),
        ({"position": "first"}, "or a function of the token ids, not 'first'."),
        ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0; 'auto' fits batches to the device."),
        ({"sites": 7}, "resid_post[7] is out of range: the model has 3 blocks"),
        ({"sites": []}, "No site was given"),
        ({"chat": True}, "This tokenizer has no chat template; pass texts with chat=False"),
        ({"tokenizer": None}, "A transformers tokenizer is needed, not None of type NoneType."),
    ],
)
def test_errors_by_their_text(tiny, arguments, message):
    given = {"tokenizer": words(), "texts": ["a"], "sites": 1, "progress": False} | arguments
    with pytest.raises(sf.SteerError) as caught:
        sf.activations(tiny, **given)
    assert message in str(caught.value)


def test_pitfall_44_a_site_that_no_pass_meets_is_refused():
    """Mllama's cross-attention block runs with images only: what reads says so, with the site."""
    model, tokenizer, texts = build("mllama"), words(), ["a b c", "d e"]
    message = r"^The forward pass of MllamaForConditionalGeneration did not meet resid_post\[1\]"
    for read in (
        lambda: sf.activations(model, tokenizer, texts, [0, 1], progress=False),
        lambda: sf.mean_difference(model, tokenizer, texts, ["e f g", "h i"], sites=1, progress=False),
        lambda: sf.discover.layer_profile(model, tokenizer, texts * 4, ["e f g", "h i"] * 4, sites=sf.resid_post[:]),
    ):
        with unchanged(model), pytest.raises(sf.SiteError, match=message):
            read()


def dropping(family):
    """A model in training mode that drops half of everything, and one in evaluation mode."""
    models = build(family), build(family)
    for module in models[0].modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return models[0].train(), models[1]


@pytest.mark.parametrize("part", ["whole", "one block"])
def test_a_model_in_training_mode_is_read_in_evaluation_mode(part):
    """What is read is what the model computes without dropout; the model stays as it is, other threads' too."""
    model, still = dropping("gpt2")
    if part == "one block":
        model.eval().transformer.h[0].train()
    texts, v = ["a b c", "d e", "f g h i", "j"], vector_at(still, sf.resid_post[0])

    def read(model, op=None):
        with sf.steer(model, op or sf.identity):
            acts = sf.activations(model, words(), texts, [sf.resid_post[2], sf.mlp_out[1]], progress=False)
        scores = sf.score(model, words(), texts, [" k", " l m"], op, progress=False).log_probs
        return *acts.values(), torch.tensor(scores)

    for op in (None, sf.add(v, 2.0)):
        with unchanged(model):
            found = read(model, op)
        for one, other in zip(found, read(still, op), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
