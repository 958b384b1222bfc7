"""A call that does not fit is answered with what was meant; what is taken is as wide as transformers' own."""

import inspect

import pytest
import torch
from families import build
from steering import vector
from words import words

import steerfn as sf
from steerfn import evaluate, serving
from steerfn.discover._engine._discover import DiscoveryOptions
from steerfn.evaluate.protocols import _run

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
        ("layers", "sites"),
        ("system", "pass a conversation: [{'role': 'system'"),
        ("max_tokens", "did you mean 'max_new_tokens'?"),
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


class Processor:
    """As transformers' processors are: with a tokenizer inside and a template of their own."""

    def __init__(self):
        self.tokenizer = words()

    def apply_chat_template(self, *_, **__):
        raise AssertionError


def public_functions():
    """Every function and constructor that users call, by its name."""
    for module in (sf, sf.discover, sf.datasets, sf.metrics, sf.plot, sf.protocols, evaluate):
        for name in dir(module):
            value = getattr(module, name)
            if inspect.isfunction(value) and not name.startswith("_"):
                yield f"{module.__name__}.{name}", value
    yield "steerfn.serving.app", serving.app
    for kind in (sf.SteeringVector, sf.datasets.ContrastSet, sf.metrics.Metric, sf.metrics.Setting, serving.Limits):
        yield kind.__name__, kind


PUBLIC = list({id(function): (name, function) for name, function in public_functions()}.values())
ELSEWHERE = (sf.from_pretrained, sf.protocols.benchmark, sf.metrics.endpoint, sf.metrics.judge)
"""Hand everything on: to transformers, to a protocol, to a server, to a template."""


@pytest.fixture(scope="module")
def model():
    """One that no test here runs."""
    return build("llama")


def required(function, **known):
    """What stands for the required arguments of a function."""
    parameters = inspect.signature(function).parameters.values()
    return [known.get(p.name) for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize(("name", "function"), PUBLIC, ids=lambda x: x if isinstance(x, str) else "")
def test_every_public_function_answers_a_keyword_that_it_has_not(model, name, function):
    if function in ELSEWHERE:
        return
    options = [p.name for p in inspect.signature(function).parameters.values() if p.default is not p.empty]
    wrong = f"{max(options, key=len)}x" if options else "wholly_unheard_of"
    with pytest.raises(sf.SteerError, match=f"has no option '{wrong}'; (did you mean '{wrong[:-1]}'|help)"):
        function(*required(function, model=model, tokenizer=words()), **{wrong: 1})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: sf.mean_difference(m, t, pairs=[("a", "b")], layer=1), "did you mean 'positive'? It takes pairs"),
        (lambda m, t: sf.mean_difference(m, t, ["a"], ["b"], layer=1), "did you mean 'sites'? An int there means"),
        (lambda m, t: sf.mean_difference(m, t, ["a"], ["b"], 1, system="x"), "pass a conversation: [{'role': 'system'"),
        (lambda m, t: sf.discover.iti(m, t, ["a"], ["b"], sites=[1]), "did you mean 'layers'?"),
        (lambda m, t: sf.caa(m, t, [], layers=1), "caa has no option 'layers'; did you mean 'sites'?"),
        (lambda m, t: sf.activations(m, t, ["a"], layers=1), "did you mean 'sites'?"),
        (lambda m, t: sf.generate(m, t, prompt="a"), "generate has no option 'prompt'; did you mean 'prompts'?"),
        (lambda m, t: sf.generate(m, t, "a", vector=V), "generate has no option 'vector'; did you mean 'op'?"),
        (lambda m, t: sf.compare(m, t, "a", vector=V, layers=1), "compare has no option 'vector'; did you mean 'op'?"),
        (lambda m, t: sf.sweep(m, t, "a", op=V), "sweep has no option 'op'; did you mean 'vector'?"),
        (lambda m, t: sf.steer(m, V, layer=1), "steer has no option 'layer'; a vector steers at its own sites"),
        (lambda m, t: sf.steer(m, vector=V), "steer has no option 'vector'; did you mean 'op'?"),
        (lambda m, t: sf.protocols.caa(m, t, V, [], alphas=1), "caa has no option 'alphas'; did you mean 'alpha'?"),
        (lambda m, t: sf.metrics.length(["a"], refs=[]), "'length' has no option 'refs'"),
        (lambda m, t: sf.metrics.bleu(["a"], reference=["a"]), "'bleu' has no option 'reference'; did you mean 'refer"),
        (lambda m, t: sf.SteeringVector({}, metdata={}), "SteeringVector has no option 'metdata'; did you mean 'metad"),
    ],
)
def test_a_wrong_name_is_named_also_where_an_argument_is_missing_for_it(model, call, message):
    with pytest.raises(sf.SteerError) as caught:
        call(model, words())
    assert message in str(caught.value)


def test_the_spelling_of_an_earlier_release_works_and_warns(tiny):
    for call, then, now in [
        (lambda: sf.add(v=V), sf.add(V), "v= of add is vector= now"),
        (lambda: sf.clamp(vec=V, value=1.0), sf.clamp(V, 1.0), "vec= of clamp is vector= now"),
    ]:
        with pytest.warns(DeprecationWarning, match=f"^{now}; the old spelling goes with the next release.$") as caught:
            found = call()
        assert type(found) is type(then) and found.vector is V and caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="^operator= of side_effects is make= now"), pytest.raises(sf.DataError):
        sf.protocols.side_effects(model=tiny, tokenizer=words(), vector=V, data=[], operator=sf.rotate)
    with pytest.raises(sf.DataError, match="did you mean 'op'"):
        sf.generate(tiny, words(), "a", v=V)  # where the new name is not known, the old one is not either


def test_what_is_wrong_in_another_way_is_as_python_says_it(model):
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'prompts'"):
        sf.generate(model, words(), temperature=1.0)
    with pytest.raises(TypeError, match="can only concatenate"):
        sf.metrics.Metric("m", lambda texts: texts + 1)([""])


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (sf.mean_difference, DiscoveryOptions),
        (sf.discover.iti, DiscoveryOptions),
        (sf.discover.layer_profile, DiscoveryOptions),
        (sf.protocols.refusal, _run.ProtocolOptions),
        (sf.protocols.caa, _run.SteeringOptions),
    ],
)
def test_help_shows_every_option(function, options):
    signature = inspect.signature(function)
    described = {line.strip().partition(":")[0] for line in inspect.getdoc(function).splitlines()}
    assert set(options.__annotations__) <= set(signature.parameters) & described
    assert "**" not in str(signature)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(function, id=name)
        for name, function in PUBLIC
        if list(inspect.signature(function).parameters)[:2] == ["model", "tokenizer"]
    ],
)
def test_model_and_tokenizer_swapped_and_a_processor(model, function):
    others = required(function)[2:]
    with pytest.raises(sf.DataError, match="which is a model, stands where the tokenizer goes"):
        function(words(), model, *others)
    with pytest.raises(sf.DataError, match="A Processor stands where the tokenizer goes; pass its tokenizer"):
        function(model, Processor(), *others)
