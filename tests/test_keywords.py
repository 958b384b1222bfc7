"""A keyword that nothing takes is refused with the nearest name; what is taken is as wide as transformers' own."""

import pytest
import torch
from steering import vector
from words import words

import steerfn as sf

V = vector(sf.resid_post[1])


def protocol(model, tokenizer, **generation):
    sf.protocols.side_effects(
        model, tokenizer, V, ["a b c d"], prompts=["a b"], controls=1, progress=False, generation=generation
    )


VERBS = {
    "generate": lambda m, t, **o: sf.generate(m, t, "a b", V, **o),
    "stream": lambda m, t, **o: sf.stream(m, t, "a b", V, **o),
    "sweep": lambda m, t, **o: sf.sweep(m, t, "a b", V, [1], progress=False, **o),
    "compare": lambda m, t, **o: sf.compare(m, t, "a b", V, progress=False, **o),
    "compare_vectors": lambda m, t, **o: sf.compare_vectors(m, t, V, "a b", "length", progress=False, **o),
    "side_effects": protocol,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max_new_token", "did you mean 'max_new_tokens'?"),
        ("repetition_penaltie", "did you mean 'repetition_penalty'?"),
        ("layers", "sites= says where to steer"),
        ("system", "pass a conversation: [{'role': 'system'"),
        ("max_tokens", "the number of new tokens is max_new_tokens."),
        ("attention_mask", "prompts are padded and masked here"),
        ("wholly_unheard_of", "has no option 'wholly_unheard_of'; help() lists"),
    ],
)
def test_an_unknown_keyword_is_named_with_what_was_meant(tiny, verb, name, message):
    with pytest.raises(sf.SteerError) as caught:
        VERBS[verb](tiny, words(), **{name: 1})
    assert message in str(caught.value) and verb in str(caught.value)


def test_what_transformers_takes_is_taken(tiny):
    known = {"repetition_penalty": 1.5, "logits_to_keep": 1, "output_logits": True, "return_dict_in_generate": True}
    for options in (known, {"past_key_values": None}, {"use_cache": False}, {"logits_processor": []}):
        got = sf.generate(tiny, words(), "a b", max_new_tokens=4, **options).token_ids[0]
        plain = tiny.generate(torch.tensor([[1, 3, 4]]), pad_token_id=0, max_new_tokens=4, do_sample=False, **options)
        assert got == tuple((plain if torch.is_tensor(plain) else plain.sequences)[0, 3:].tolist())


@pytest.mark.parametrize("verb", VERBS)
def test_model_and_tokenizer_swapped(tiny, verb):
    with pytest.raises(sf.SteerError, match=r"(which is a model, stands where the tokenizer goes|A model is a torch)"):
        VERBS[verb](words(), tiny)


class Processor:
    """As transformers' processors are: with a tokenizer inside and a template of their own."""

    def __init__(self):
        self.tokenizer = words()

    def apply_chat_template(self, *_, **__):
        raise AssertionError


@pytest.mark.parametrize(
    "call",
    [
        *VERBS.values(),
        lambda m, t: sf.score(m, t, "a", [" b"], progress=False),
        lambda m, t: sf.activations(m, t, ["a"], 1, progress=False),
        lambda m, t: sf.mean_difference(m, t, ["a"], ["b"], 1, progress=False),
    ],
)
def test_a_processor_is_no_tokenizer(tiny, call):
    with pytest.raises(sf.DataError, match=r"A Processor stands where the tokenizer goes; pass its tokenizer"):
        call(tiny, Processor())
