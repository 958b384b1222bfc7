"""An operator is checked against a model once, and its vectors keep saying what they were made from."""

import copy
import pickle
import warnings

import pytest
import torch
from families import build
from steering import vector
from words import words

import steerfn as sf
from steerfn.model import layout
from steerfn.run import _sensitivity
from steerfn.values import _fingerprint
from steerfn.verbs import check_vector, prepare_operator, prepare_operators

PROMPTS = ["a b c", "d e f g a", "b", "c c d"]
FAST = {"max_new_tokens": 2, "chat": False}
QUIET = FAST | {"progress": False}
DATA = {"positive": ["a b", "d e f g", "h i", "j k l m n"], "negative": ["o p", "q r s t", "u", "v w a"]}
MODEL, OTHER, TOKENIZER = build("llama"), build("gpt2"), words(template=True)
IDENTITY = sf.values.fingerprint(MODEL, weights=True)
V = vector(sf.resid_post[0], scale=2.0).with_metadata(model=IDENTITY, method="mean_difference", position="mean")
FOREIGN = V.with_metadata(model=IDENTITY | {"name": "other", "fingerprint": "0" * 16})


def late(texts):
    return [float(len(text)) for text in texts]


def steered(v):
    with sf.steer(MODEL, v):
        MODEL(torch.tensor([[1, 2]]))


def compared(v):
    options = QUIET | {"resamples": 199, "controls": 2}
    return sf.compare_vectors(MODEL, TOKENIZER, {"v": v}, PROMPTS, [late], **options)


def reported(v):
    return sf.report(
        MODEL, TOKENIZER, v, DATA, metrics=[late], prompts=PROMPTS, passages=["a b c d"], resamples=199, controls=1,
        suppress_tokens=[0, 1, 2, *range(31, 99)], **QUIET,
    )  # fmt: skip


CALLS = {
    "steer": (steered, 1, 0),
    "functional": (lambda v: sf.functional(MODEL)(sf.add(v), torch.tensor([[1, 2]])), 1, 0),
    "generate": (lambda v: sf.generate(MODEL, TOKENIZER, PROMPTS, v, batch_size=1, **FAST), 1, 0),
    "generate, one for each": (
        lambda v: sf.generate(MODEL, TOKENIZER, PROMPTS, [v, None, sf.add(v, 2.0), v], batch_size=2, **FAST),
        1,
        0,
    ),
    "compare": (lambda v: sf.compare(MODEL, TOKENIZER, PROMPTS, v, [late], **QUIET), 1, 0),
    "compare_vectors": (compared, 1, 0),
    "sweep": (lambda v: sf.sweep(MODEL, TOKENIZER, PROMPTS, v, [1.0, 2.0], metrics=[late], **QUIET), 1, 0),
    "sweep, scored": (
        lambda v: sf.sweep(
            MODEL, TOKENIZER, PROMPTS, v, [1.0, 2.0], continuations=[" a", " b"], chat=False, progress=False
        ),
        1,
        0,
    ),
    "sensitivity": (
        lambda v: sf.sensitivity(MODEL, TOKENIZER, v, PROMPTS, (" a", " b"), chat=False, progress=False),
        1,
        0,
    ),
    # The report's own, the comparison's, that of the side effects, and that of the profile's vector with its weights.
    "report": (reported, 4, 2),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_identifies_the_model_and_warns_once(call, monkeypatch):
    run, sizes, weights = CALLS[call]
    counted = {"_sizes": 0, "weights_hash": 0}
    for name in counted:
        compute = getattr(_fingerprint, name)

        def count(given, name=name, compute=compute):
            counted[name] += 1
            return compute(given)

        monkeypatch.setattr(_fingerprint, name, count)
    for v, expected in ((V, 0), (FOREIGN, 1)):
        counted |= dict.fromkeys(counted, 0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(v)
        assert sum("their architectures differ" in str(each.message) for each in caught) == expected
        assert counted["_sizes"] <= sizes and counted["weights_hash"] <= weights


def test_what_was_prepared_says_what_it_was_made_from():
    op = sf.at(sf.prompt, sf.when(sf.cosine_above(V, 0.1), sf.chain(sf.add(V, 2.0), sf.ablate(V))))
    ready = prepare_operator(op, MODEL, layout(MODEL))
    assert all(v.identical(V) for v in ready.vectors) and len(ready.vectors) == 3
    assert (
        check_vector(V, MODEL, strict=True).identical(V)
        and _sensitivity._directions_at(V, None, layout(MODEL)).metadata == V.metadata
    )
    assert prepare_operator(ready, MODEL, layout(MODEL)) is ready
    assert not any(v.metadata.checked_for for v in op.vectors)


def test_a_result_names_the_vector_that_was_given():
    found = compared(V).about["vectors"]["v"]
    assert found["method"] == "mean_difference"
    with pytest.warns(sf.SteerWarning, match="their architectures differ"):
        page = reported(FOREIGN)
    assert page.findings["vector"]["match"] == "other"
    assert page.findings["metadata"]["model"] == FOREIGN.metadata["model"]


def warned(v, model=MODEL):
    """How often a vector is said to be another model's."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare_operator(sf.add(v), model, layout(model))
    return len(caught)


def test_only_what_was_checked_for_this_model_is_not_checked_again(tmp_path):
    with pytest.warns(sf.SteerWarning, match="their architectures differ"):
        known = check_vector(FOREIGN, MODEL)
    assert warned(FOREIGN) == 1
    for derived in (known, 2 * known, known.select(0), known.with_metadata(note="mine"), known.to(torch.float64)):
        assert warned(derived) == 0
    assert warned(sf.random_vector(like=known)) == 0
    assert warned(known, OTHER) == warned(known.with_metadata(model=FOREIGN.metadata["model"])) == 1
    sf.save(known, tmp_path / "v.safetensors")
    for copied in (pickle.loads(pickle.dumps(known)), copy.deepcopy(known), sf.load(tmp_path / "v.safetensors")):
        assert copied.identical(FOREIGN) and warned(copied) == 1
    for strict in ("architecture", True):
        with pytest.raises(sf.SteerError, match="their architectures differ"), sf.steer(MODEL, known, strict=strict):
            pass


def test_a_model_that_changed_is_compared_again():
    model = build("llama")
    with pytest.warns(sf.SteerWarning, match="their architectures differ"):
        known = check_vector(FOREIGN, model)
    assert warned(known, model) == 0
    model.model.layers = model.model.layers[:-1]
    assert warned(known, model) == 1
    with torch.no_grad():
        next(model.parameters()).data.mul_(1.5)  # `.data` counts no version
    assert sf.values.fingerprint(model, weights=True)["weights"] != IDENTITY["weights"]


def test_operators_that_users_wrote_and_repeated_ones_stay_what_they_are():
    class Mine(sf.Operator):
        def __init__(self, v):
            self.v = v

        def bind(self, site, device=None):
            return lambda hidden, info: hidden

    mine, shared = Mine(V), sf.add(V)
    ready = prepare_operators([mine, shared, None, shared, sf.chain(mine, shared)], MODEL, layout(MODEL))
    assert ready[0] is mine and ready[1] is ready[3] and ready[2] is None and ready[4].operators[0] is mine
