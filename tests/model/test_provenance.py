"""The record of what was run: everything that changes a result changes it, and nothing else does."""

import json
from importlib.metadata import version

import torch
from families import build
from steering import vector

import steerfn as sf
from steerfn.model._provenance import operators_sha256, run_provenance

V = vector(sf.resid_post[0], sf.resid_post[2])


def test_it_names_the_model_the_versions_and_the_options(tiny):
    found = run_provenance(tiny, [sf.add(V)], {"seed": 3, "scope": sf.prompt, "prompts": ("a", "b")})
    assert found["model"] == sf.values.fingerprint(tiny)
    assert found["versions"] == {name: version(name) for name in ("steerfn", "torch", "transformers")}
    assert (found["seed"], found["scope"], found["prompts"]) == (3, "prompt", ["a", "b"])
    assert json.loads(json.dumps(found)) == found


def test_a_compiled_model_is_the_model_it_was(tiny):
    assert run_provenance(torch.compile(tiny, backend="eager"), [], {}) == run_provenance(build("llama"), [], {})


def test_operators_are_told_apart_to_the_last_bit():
    nudged = sf.SteeringVector({site: d.nextafter(d + 1) for site, d in zip(V.sites, V.directions, strict=True)})
    told = {
        operators_sha256(ops)
        for ops in (
            [],
            [sf.add(V)],
            [sf.add(V, 2.0)],
            [sf.add(nudged)],
            [sf.add(V.select(0))],
            [sf.ablate(V)],
            [sf.at(sf.prompt, sf.add(V))],
            [sf.at(sf.generated, sf.add(V))],
            [sf.add(V), sf.add(V, 2.0)],
            [sf.add(V, 2.0), sf.add(V)],
        )
    }
    assert len(told) == 10


def test_what_a_vector_says_of_itself_is_not_what_it_does():
    assert operators_sha256([sf.add(V), None]) == operators_sha256([sf.add(V.with_metadata(note="x")), None])
