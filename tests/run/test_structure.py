"""Answers that keep to a grammar, under any steering: the law, rows of different grammars, and what is refused."""

import json
import re

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from steering import vector_at
from tool_models import noise, tool_tokenizer

import steerfn as sf
from steerfn.run import (
    BatchJob,
    RowSampling,
    choice_grammar,
    compile_structure,
    decoding_of,
    json_schema_grammar,
    regex_grammar,
    run_batch,
)

PERSON = {
    "type": "object", "required": ["name", "age"], "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "maxItems": 2},
        "more": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/one"}]},
    },
    "$defs": {"one": {"type": "object", "properties": {"x": {"type": "boolean"}}, "additionalProperties": False}},
}  # fmt: skip
PHONE = r"\+?[0-9]{3}/[0-9]{2,4}"
CHECKS = {
    json_schema_grammar(PERSON): lambda text: jsonschema.validate(json.loads(text), PERSON),
    regex_grammar(PHONE): lambda text: re.fullmatch(PHONE, text) or pytest.fail(text),
    choice_grammar(["yes", 'no "really"\n']): lambda text: text in ("yes", 'no "really"\n') or pytest.fail(text),
    'start: "(" start ")" | "x"': lambda text: re.fullmatch(r"(\(*)x(\)*)", text) or pytest.fail(text),
}


@pytest.fixture(scope="module")
def parts():
    tokenizer = tool_tokenizer()
    model = noise(tokenizer)
    decoding = decoding_of("test", model, tokenizer, {})
    compiled = {grammar: compile_structure(tokenizer, grammar, decoding.ends) for grammar in CHECKS}
    return model, tokenizer, decoding, compiled


def run(parts, rows):
    """(grammar, operator, sampling) rows as one batch: each text, and why it ended."""
    model, tokenizer, decoding, compiled = parts
    jobs, texts = [], []
    for grammar, op, sampling in rows:
        texts.append([])
        structure = None if grammar is None else compiled[grammar]
        jobs.append(BatchJob([5, 6, 7], op, 90, sampling, (), texts[-1].append, structure=structure))
    run_batch(model, tokenizer, jobs, decoding)
    return [("".join(filter(None, pieces)), job.reason, job.error) for job, pieces in zip(jobs, texts, strict=True)]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), alphas=st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=5))
def test_law_under_any_vector_and_strength_every_finished_answer_is_valid(parts, seed, alphas):
    """Rows of different grammars, steering and sampling in one batch; one of them is free."""
    model = parts[0]
    ops = [sf.add(vector_at(model, sf.resid_post[i % 3], seed=seed + i), alpha) for i, alpha in enumerate(alphas)]
    samplings = [RowSampling(temperature=float(i % 2) * 1.5, seed=seed % 2**30 + i) for i in range(5)]
    grammars = [*CHECKS, None]
    texts = run(parts, zip(grammars, ops, samplings, strict=True))
    for grammar, (text, reason, error) in zip(grammars, texts, strict=True):
        assert error is None
        if grammar is not None and reason == "stop":
            CHECKS[grammar](text)


def test_every_kind_is_finished_and_is_alone_what_it_is_in_a_batch(parts):
    bounded = [*CHECKS][:3]
    rows = [(grammar, None, RowSampling(temperature=1.0, seed=i)) for i, grammar in enumerate(bounded)]
    together = run(parts, rows)
    assert [reason for _, reason, _ in together] == ["stop"] * 3
    for row, (text, *_) in zip(rows, together, strict=True):
        CHECKS[row[0]](text)
        assert run(parts, [row])[0][0] == text


def test_a_grammar_and_penalties_that_pull_the_other_way(parts):
    outside = parts[1].encode("maybe")[0]
    pulled = RowSampling(logit_bias={outside: 100.0}, repetition_penalty=50.0, presence_penalty=2.0)
    [(text, reason, _)] = run(parts, [(choice_grammar(["yes", 'no "really"\n']), None, pulled)])
    assert text in ("yes", 'no "really"\n') and reason == "stop"


@pytest.mark.parametrize(
    "grammar, message",
    [
        (json_schema_grammar({"type": "nonsense"}), "Invalid type: nonsense"),
        (json_schema_grammar({"not": {"type": "string"}}), "Unimplemented keys"),
        (json_schema_grammar({"$ref": "http://example.com/schema"}), "does not fetch resources"),
        (json_schema_grammar(False), "schema is false"),
        (json_schema_grammar({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "."),
        (json_schema_grammar({"oneOf": [{"const": 1}, {"type": "integer"}]}), "oneOf"),
        (regex_grammar("(a"), "unclosed group"),
        (regex_grammar("(?=a)b"), "look-around"),
        ("start: other", "unknown name"),
        ("nothing", "."),
    ],
)
def test_what_cannot_be_enforced_is_refused_before_anything_runs(parts, grammar, message):
    _, tokenizer, decoding, _ = parts
    with pytest.raises(sf.DataError, match="This structure cannot be enforced") as refused:
        compile_structure(tokenizer, grammar, decoding.ends)
    assert re.search(message, str(refused.value)) and "\n" not in str(refused.value)


def test_a_model_whose_texts_do_not_end_and_a_schema_that_is_none(parts):
    with pytest.raises(sf.DataError, match="set generation_config.eos_token_id"):
        compile_structure(parts[1], regex_grammar("a"), frozenset())
    with pytest.raises(sf.DataError, match="A JSON schema must be an object, got 'x'"):
        json_schema_grammar("x")


@pytest.mark.parametrize("pattern", ["a{1,60000}b{1,60000}", "(x+x+)+y", "(a|aa)*" * 40, "[a-z]*" * 200])
def test_hostile_patterns_end_in_bounded_time(parts, pattern):
    """Compiled and run, or refused: no pattern takes a server's time or memory."""
    _, tokenizer, decoding, compiled = parts
    grammar = regex_grammar(pattern)
    try:
        compiled[grammar] = compile_structure(tokenizer, grammar, decoding.ends)
    except sf.DataError:
        return
    [(_, reason, error)] = run(parts, [(grammar, None, RowSampling())])
    assert reason in ("stop", "length") or (reason == "error" and "structure" in str(error))
