"""The state of the page: a value that JSON and a link restore, and that refuses what is not one."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import steerfn as sf
from steerfn.board import SCOPES, Push, State, operator_of, read_steering

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(-100, 100)
pushes = st.builds(Push, texts, numbers, st.none() | texts, st.sampled_from(SCOPES))
FIELDS = {
    str: texts, bool: st.booleans(), int: st.integers(0, 2**31 - 1), int | None: st.none() | st.integers(0, 99),
    tuple[str, ...]: st.lists(texts, max_size=3).map(tuple),
    tuple[float, ...]: st.lists(numbers, max_size=3).map(tuple),
    tuple[Push, ...]: st.lists(pushes, max_size=3).map(tuple),
}  # fmt: skip
states = st.builds(
    State,
    **{f.name: FIELDS[f.type] for f in dataclasses.fields(State) if f.name != "view"},
    view=st.sampled_from(("compare", "strength", "look", "make")),
)


@given(states)
def test_json_and_a_link_restore_a_state(state):
    assert State.from_json(state.to_json()) == state
    assert State.from_query(state.to_query()) == state


def test_what_is_not_set_is_not_written():
    assert State().to_query() == "" and State().to_json() == "{}\n"
    assert State(steering=(Push("a b"),)).to_query() == "steering=%5B%7B%22vector%22%3A%22a+b%22%7D%5D"
    assert State.from_query("__theme=dark") == State()  # the toolkit's own


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("colour=red", "no field 'colour'; it has view, steering"),
        ("view=nowhere", "view 'nowhere' is not one of compare, strength"),
        ("seed=x", "'seed' of a state does not take 'x'"),
        ("sample=1", "'sample' of a state does not take 1"),
        ("alphas=[1,NaN]", "'alphas' of a state does not take"),
        ("turns=[1]", "'turns' of a state does not take"),
        ("steering=[{}]", "must be a mapping with a vector"),
        ('steering=[{"vector":"a","scope":"nowhere"}]', "scope 'nowhere' is not one of everywhere"),
        ('steering=[{"vector":"a","how":1}]', "entry of steering has no field 'how'"),
    ],
)
def test_a_link_that_is_not_a_state_is_refused_in_words(query, message):
    with pytest.raises(sf.DataError, match=message.replace("[", r"\[").replace("(", r"\(")):
        State.from_query(query)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 2_000_000])
def test_a_file_that_is_not_a_state_is_refused(text):
    with pytest.raises(sf.DataError, match="not the file of a state"):
        State.from_json(text)
    with pytest.raises(sf.DataError, match="must be a mapping"):
        State.from_json("[]")


def test_entries_become_the_operator_that_they_say():
    import torch
    from steering import vector

    v, w = vector(sf.resid_post[1], sf.resid_post[2]), vector(sf.resid_post[1], seed=1)
    entries = '[{"vector": "v", "alpha": 2, "site": "resid_post[1]"}, {"vector": "w", "scope": "generated"}]'
    op = operator_of(read_steering(entries), {"v": v, "w": w}.__getitem__)
    expected = sf.chain(sf.add(v.select(1), 2.0), sf.at(sf.generated, sf.add(w)))
    from families import shared
    from steering import token_ids

    f = sf.functional(shared("llama"))
    assert torch.equal(f(op, token_ids()).logits, f(expected, token_ids()).logits)
    with pytest.raises(sf.DataError, match="must be a JSON list such as"):
        read_steering("happy")
