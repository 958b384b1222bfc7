"""Isolation: a context steers the thread or task that opened it, and nobody else.

The oracle is the same work done alone: one thread, one task, one model at a time.
"""

import asyncio
import contextlib
import contextvars
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch
from families import build
from snapshot import assert_same_bits, same_bits, unchanged
from steering import token_ids, vector, vector_at
from transformers import TextIteratorStreamer
from words import words

import steerfn as sf

THREADS = 32


def logits(model, ids=None):
    with torch.no_grad():
        return model(token_ids() if ids is None else ids).logits


def generate(model, ids, tokens=4, **options):
    return model.generate(ids, max_new_tokens=tokens, do_sample=False, **options)


def operators(model):
    """An operator for each of 32 threads, of several kinds, with baselines (None) in between."""
    kinds = [
        lambda v: None,
        lambda v: sf.add(v, 2.0),
        lambda v: sf.at(sf.generated, sf.add(v, 3.0)),
        lambda v: sf.chain(sf.ablate(v), sf.add(v, -2.0)),
    ]
    sites = [sf.resid_post[0], sf.resid_post[1], sf.attn_out[1], sf.head_out[2, 1], sf.mlp_out[0], sf.resid_mid[2]]
    return [kinds[i % 4](vector_at(model, sites[i % len(sites)], seed=i)) for i in range(THREADS)]


def in_threads(jobs):
    """The results of jobs, each in a thread of its own, all started together; the first error is raised."""
    start = threading.Barrier(len(jobs))

    def run(job):
        start.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(run, job) for job in jobs]]


def test_pitfall_07_32_threads_generate_as_if_alone(tiny):
    ids = [token_ids(1, 4 + i % 3, seed=i) for i in range(THREADS)]
    ops = operators(tiny)

    def work(i, times):
        with contextlib.nullcontext() if ops[i] is None else sf.steer(tiny, ops[i]):
            return [logits(tiny, ids[i]), *(generate(tiny, ids[i], 2 + n % 2) for n in range(times))]

    alone = [work(i, 2) for i in range(THREADS)]
    assert len({tuple(results[0].flatten().tolist()) for results in alone}) == THREADS
    with unchanged(tiny):
        together = in_threads([lambda i=i: work(i, 10) for i in range(THREADS)])
    for i in range(THREADS):
        for n, found in enumerate(together[i]):
            assert_same_bits(found, alone[i][0 if n == 0 else 1 + (n - 1) % 2], f"thread {i}, call {n}")


def test_pitfall_07_threads_that_open_and_close_all_the_time(tiny):
    """Clones come and go under the feet of the other threads."""
    plain, ops = logits(tiny), operators(tiny)[:8]
    alone = []
    for op in ops:
        with contextlib.nullcontext() if op is None else sf.steer(tiny, op):
            alone.append(logits(tiny))

    def work(i):
        found = []
        for _ in range(15):
            with contextlib.nullcontext() if ops[i] is None else sf.steer(tiny, ops[i]):
                found.append(same_bits(logits(tiny), alone[i]))
            found.append(same_bits(logits(tiny), plain))
        return found

    with unchanged(tiny):
        for i, found in enumerate(in_threads([lambda i=i: work(i) for i in range(len(ops))])):
            assert all(found), f"thread {i}: {found}"


def test_pitfall_07_interleaved_contexts_on_two_models():
    one, two = build("llama"), build("gemma2")
    v, w = vector_at(one, sf.resid_post[1]), vector_at(two, sf.resid_post[1], seed=5)
    plain_one, plain_two = logits(one), logits(two)
    with sf.steer(one, v, 2.0):
        steered_one = logits(one)
        assert_same_bits(logits(two), plain_two)
    with sf.steer(two, w, 2.0):
        steered_two = logits(two)
        assert_same_bits(logits(one), plain_one)
    with unchanged(one), unchanged(two):
        first = sf.steer(one, v, 2.0).__enter__()
        second = sf.steer(two, w, 2.0).__enter__()
        for _ in range(2):
            assert_same_bits(logits(one), steered_one)
            assert_same_bits(logits(two), steered_two)
        first.close()
        assert_same_bits(logits(one), plain_one)
        assert_same_bits(logits(two), steered_two)
        third = sf.steer(one, v, 2.0).__enter__()
        second.close()
        assert_same_bits(logits(one), steered_one)
        assert_same_bits(logits(two), plain_two)
        third.close()
    assert_same_bits(logits(one), plain_one)


def test_pitfall_07_two_models_generate_in_turns():
    """A generation that is under way on one model does not place the tokens of the other."""
    one, two = build("llama"), build("llama")
    op = sf.at(sf.generated, sf.add(vector_at(one, sf.resid_post[1]), 3.0))
    long, short = token_ids(1, 9), token_ids(1, 3)
    with sf.steer(two, op):
        expected = logits(two, short)
    with sf.steer(one, op):
        tokens = generate(one, long)
    seen = []

    class Between:
        """A streamer that runs the other model whenever a token comes."""

        def put(self, value):
            seen.append(logits(two, short))

        def end(self):
            pass

    with sf.steer(one, op), sf.steer(two, op):
        assert torch.equal(generate(one, long, streamer=Between()), tokens)
    assert len(seen) == 5
    for found in seen:
        assert_same_bits(found, expected)


def test_asyncio_tasks_each_have_their_own_context(tiny):
    plain = logits(tiny)
    vectors = [vector_at(tiny, sf.resid_post[1], seed=i) for i in range(6)]
    alone = []
    for v in vectors:
        with sf.steer(tiny, v, 2.0):
            alone.append(logits(tiny))

    async def steered(i):
        found = []
        await asyncio.sleep(0)
        with sf.steer(tiny, vectors[i], 2.0):
            for _ in range(4):
                await asyncio.sleep(0)
                found.append(same_bits(logits(tiny), alone[i]))
        await asyncio.sleep(0)
        return [*found, same_bits(logits(tiny), plain)]

    async def unsteered():
        found = []
        for _ in range(6):
            await asyncio.sleep(0)
            found.append(same_bits(logits(tiny), plain))
        return found

    async def everyone():
        return await asyncio.gather(unsteered(), *map(steered, range(len(vectors))), unsteered())

    with unchanged(tiny):
        for i, found in enumerate(asyncio.run(everyone())):
            assert all(found), f"task {i}: {found}"


def test_asyncio_to_thread_is_steered(tiny):
    """`asyncio.to_thread` copies the context, so the work it does is steered."""
    v = vector_at(tiny, sf.resid_post[1])

    async def work():
        with sf.steer(tiny, v, 2.0):
            return logits(tiny), await asyncio.to_thread(logits, tiny)

    here, there = asyncio.run(work())
    assert_same_bits(there, here)
    assert not same_bits(here, logits(tiny))


def in_one_thread(target):
    """What a thread returns, and what it warned of."""
    found = []

    def run():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.append(target())
        found.append(caught)

    thread = threading.Thread(target=run, name="reader")
    thread.start()
    thread.join()
    return found


class Words:
    """Just enough of a tokenizer for a streamer: every id is a word."""

    def decode(self, ids, **options):
        return "".join(f"{int(i)} " for i in ids)


def streamed(model, ids, start):
    """The text that a `TextIteratorStreamer` gives while `start` runs `generate` in a thread, and its warnings."""
    streamer = TextIteratorStreamer(Words(), skip_prompt=True, timeout=60)

    def work():
        generate(model, ids, 5, streamer=streamer)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=start(work), name="streaming")
        thread.start()
        text = "".join(streamer)
        thread.join()
    return text, [w for w in caught if issubclass(w.category, sf.SteerWarning)]


def test_a_streaming_thread_started_inside_is_told_that_it_runs_unsteered(tiny):
    ids, v = token_ids(1), vector_at(tiny, sf.resid_post[1], scale=3.0)
    plain = Words().decode(generate(tiny, ids, 5)[0, ids.shape[1] :])
    with sf.steer(tiny, v):
        expected = Words().decode(generate(tiny, ids, 5)[0, ids.shape[1] :])
    assert expected != plain
    with unchanged(tiny), sf.steer(tiny, v):
        text, caught = streamed(tiny, ids, lambda work: work)
        assert text == plain
        (warning,) = caught
        for part in ("'streaming'", "unsteered", "sf.stream", "contextvars.copy_context().run", "open the context in"):
            assert part in str(warning.message)
        text, caught = streamed(tiny, ids, lambda work: lambda: contextvars.copy_context().run(work))
        assert text == plain and len(caught) == 1  # copied in the new thread: too late
        copied = contextvars.copy_context()
        text, caught = streamed(tiny, ids, lambda work: lambda: copied.run(work))
        assert text == expected and not caught

        def own():
            with sf.steer(tiny, v):
                return streamed_here(tiny, ids)

        def streamed_here(model, ids):
            return Words().decode(generate(model, ids, 5)[0, ids.shape[1] :])

        found, caught = in_one_thread(own)
        assert found != plain and not caught


def test_threads_that_have_nothing_to_do_with_the_context_are_not_warned(tiny):
    """A server's worker that was there before, and a thread that streams nothing."""
    ids, v = token_ids(1), vector_at(tiny, sf.resid_post[1], scale=3.0)
    plain = generate(tiny, ids, 5)
    opened, done, found = threading.Event(), threading.Event(), []

    class Silent:
        def put(self, value):
            pass

        def end(self):
            pass

    def worker():
        opened.wait()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.append(generate(tiny, ids, 5, streamer=Silent()))
        found.append(caught)
        done.set()

    thread = threading.Thread(target=worker)
    thread.start()
    with sf.steer(tiny, v):
        opened.set()
        done.wait()
        thread.join()
        tokens, caught = in_one_thread(lambda: generate(tiny, ids, 5))
    assert torch.equal(found[0], plain) and torch.equal(tokens, plain)
    assert not found[1] and not caught


def test_a_stream_beside_another_threads_context_is_not_warned(tiny):
    """`stream` generates in a thread of its own, which knows what it is to be steered by."""
    plain = "".join(sf.stream(tiny, words(), "a b", max_new_tokens=3))
    opened, done = threading.Event(), threading.Event()

    def hold():
        with sf.steer(tiny, vector(sf.resid_post[1])):
            opened.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert opened.wait(30)
        assert "".join(sf.stream(tiny, words(), "a b", max_new_tokens=3)) == plain
    finally:
        done.set()
        thread.join()


def test_a_thread_that_copies_the_context_is_steered_until_it_closes(tiny):
    plain, v = logits(tiny), vector_at(tiny, sf.resid_post[1])
    with sf.steer(tiny, v, 2.0):
        steered, copied = logits(tiny), contextvars.copy_context()
        assert_same_bits(in_one_thread(lambda: copied.run(logits, tiny))[0], steered)
        assert_same_bits(in_one_thread(lambda: logits(tiny))[0], plain)
    assert_same_bits(copied.run(logits, tiny), plain)
    with sf.steer(tiny, vector_at(tiny, sf.resid_post[0]), 2.0):  # clones are in place again, for another context
        assert_same_bits(copied.run(logits, tiny), plain)


def test_contexts_close_from_another_thread(tiny):
    plain = logits(tiny)
    v, w = vector_at(tiny, sf.resid_post[1]), vector_at(tiny, sf.attn_out[0], seed=1)
    with sf.steer(tiny, w):
        only_w = logits(tiny)
    with unchanged(tiny):
        first, second = sf.steer(tiny, v).__enter__(), sf.steer(tiny, w).__enter__()
        both = logits(tiny)
        in_one_thread(first.close)
        assert_same_bits(logits(tiny), only_w)
        in_one_thread(second.close)
        assert_same_bits(logits(tiny), plain)
        first.close()
        second.close()
        opened = in_one_thread(sf.steer(tiny, v).__enter__)[0]  # opened there, closed here
        assert_same_bits(logits(tiny), plain)
        opened.close()
    assert_same_bits(logits(tiny), plain)
    assert not same_bits(both, only_w)


def test_closing_in_the_middle_of_another_threads_forward(tiny):
    """The forward that is under way ends steered or not, but it ends, and the model is put back."""
    plain, v = logits(tiny), vector_at(tiny, sf.resid_post[1])
    inside, go_on = threading.Event(), threading.Event()

    def waiting(index):
        inside.set()
        assert go_on.wait(60)
        return torch.zeros(index.shape)

    with unchanged(tiny):
        found = []

        def work():
            with sf.steer(tiny, sf.scheduled(sf.add(v), waiting)):
                found.append(logits(tiny))
            found.append(logits(tiny))

        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(60)
        with sf.steer(tiny, v):
            steered = logits(tiny)
        assert_same_bits(logits(tiny), plain)
        go_on.set()
        thread.join()
    assert_same_bits(found[0], plain)
    assert_same_bits(found[1], plain)
    assert not same_bits(steered, plain)


def test_the_pure_view_is_safe_in_every_thread(tiny):
    f, plain = sf.functional(tiny), logits(tiny)
    ops = [sf.identity if op is None else op for op in operators(tiny)[:12]]
    with torch.no_grad():
        alone = [f(op, token_ids()).logits for op in ops]

    def work(i):
        with torch.no_grad():
            return [same_bits(f(ops[i], token_ids()).logits, alone[i]) for _ in range(15)]

    with unchanged(tiny), sf.steer(tiny, vector_at(tiny, sf.resid_post[2], seed=77)):
        for i, found in enumerate(in_threads([lambda i=i: work(i) for i in range(len(ops))])):
            assert all(found), f"thread {i}"
    assert_same_bits(logits(tiny), plain)


def test_first_use_of_a_model_by_many_threads_at_once():
    """Nothing is known of the model yet: its layout, its substitutions."""
    reference, model = build("llama"), build("llama")
    v = vector_at(reference, sf.resid_post[1])
    with sf.steer(reference, v):
        expected = logits(reference)

    def work():
        with sf.steer(model, v):
            return logits(model)

    with unchanged(model):
        for found in in_threads([work] * 12):
            assert_same_bits(found, expected)
