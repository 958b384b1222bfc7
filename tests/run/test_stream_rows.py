"""Several prompts streamed together: the texts of `generate`, as they come."""

import threading

import pytest
from families import build
from served import paced
from steering import vector
from words import words

import steerfn as sf
from steerfn.run import stream_rows

V = vector(sf.resid_post[1], scale=2.0)


@pytest.mark.parametrize("more", [{}, {"seed": [5, 5], "do_sample": True}])
def test_the_last_texts_are_those_of_generate(more):
    model, tokenizer = build("llama"), words()
    prompts, ops = ["a b c", "a b c", "d"], [None, sf.add(V), sf.add(V, -1.0)]
    more = more | ({"seed": [5, 5, 6]} if more else {})
    steps = list(stream_rows(model, tokenizer, prompts, ops, max_new_tokens=6, **more))
    assert steps[-1] == sf.generate(model, tokenizer, prompts, ops, max_new_tokens=6, **more).texts
    for earlier, later in zip(steps, steps[1:], strict=False):
        assert all(new.startswith(old) for old, new in zip(earlier, later, strict=True))
    assert len(steps) == 7  # every token, and the end
    assert (steps[-1][0] != steps[-1][1]) and not more.get("do_sample") or more


def test_closing_it_ends_the_generation():
    model, permits = paced(2)
    before = threading.active_count()
    texts = stream_rows(model, words(), ["a", "b"], [None, sf.add(V)], max_new_tokens=50)
    next(texts)
    permits.release()
    texts.close()
    assert threading.active_count() == before  # its thread has ended, long before fifty tokens


def test_an_error_is_raised_where_the_texts_are_read():
    wide = vector(sf.resid_post[1], width=8)
    with pytest.raises(sf.SteerError, match="8"):
        list(stream_rows(build("llama"), words(), ["a"], [sf.add(wide)]))
    with pytest.raises(sf.DataError, match="2 prompts but 1 operators"):
        stream_rows(build("llama"), words(), ["a", "b"], [None])
