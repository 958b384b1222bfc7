"""A server whose texts join and leave a running batch: the same answers, and nobody waits for another's last token."""

import concurrent.futures
import threading

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
pytest.importorskip("transformers", minversion="5.23", reason="continuous batching as it is here")
from families import build
from served import client, paced, post, served, tokenizer, wait_for

import steerfn as sf
from steerfn import serving

PATIENT = {"timeout": 250.0, "receive": 250.0}


def test_a_short_text_that_comes_later_ends_before_a_long_one():
    model, permits = paced(40)  # some for the trial at the start
    limits = serving.Limits(max_tokens=64, **PATIENT)
    ended = []

    def ask(tokens):
        post(address, "/v1/completions", {"prompt": "a b", "max_tokens": tokens, "temperature": 0})
        ended.append(tokens)

    application = serving.app(model, tokenizer(), limits=limits, continuous=True)
    with served(application) as address:
        while permits.acquire(blocking=False):
            pass
        long = threading.Thread(target=ask, args=(30,))
        long.start()
        permits.release(3)
        wait_for(lambda: application.state.server.worker.waiting == 1)
        short = threading.Thread(target=ask, args=(2,))
        short.start()
        wait_for(lambda: application.state.server.worker.waiting == 2)
        permits.release(10)  # too few for the long one
        short.join(120)
        assert ended == [2]
        permits.release(40)
        long.join(120)
    assert ended == [2, 30]


def test_a_pass_that_fails_is_run_row_by_row_and_a_caller_that_leaves_makes_room(model):
    broken, failing = build("llama"), threading.Event()

    def hook(_, given):
        if failing.is_set() and given[0].shape[1] > 1:
            failing.clear()
            raise RuntimeError("planned")

    broken.model.layers[2].mlp.register_forward_pre_hook(hook)
    body = {"prompt": "a b", "max_tokens": 6, "temperature": 0}
    application = serving.app(broken, tokenizer(), limits=serving.Limits(**PATIENT), continuous=True)
    with served(application) as address:
        expected = post(address, "/v1/completions", body).json()["choices"][0]["text"]
        failing.set()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: post(address, "/v1/completions", body), range(4)))
        assert {each.json()["choices"][0]["text"] for each in found} == {expected} and not failing.is_set()
        with client(address).completions.create(model="", prompt="a", max_tokens=400, stream=True) as stream:
            next(iter(stream))
        wait_for(lambda: application.state.server.worker.waiting == 0)
        assert post(address, "/v1/completions", body).json()["choices"][0]["text"] == expected
    assert expected == sf.generate(model, tokenizer(), "a b", max_new_tokens=6, chat=False).texts[0]


def test_who_cannot_join_runs_alone_and_the_others_go_on(model, monkeypatch):
    application = serving.app(model, tokenizer(), limits=serving.Limits(**PATIENT), continuous=True)
    batch = application.state.server.worker.continuous
    join, body = batch._join, {"prompt": "a b", "max_tokens": 5, "temperature": 0}
    monkeypatch.setattr(batch, "_join", lambda job: join(job) if len(job.prompt) > 1 else 1 / 0)
    with served(application) as address, concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [body, {**body, "prompt": "a"}, body, {**body, "prompt": "a"}]
        found = list(pool.map(lambda each: post(address, "/v1/completions", each).json()["choices"][0]["text"], asked))
    expected = [
        sf.generate(model, tokenizer(), each["prompt"], max_new_tokens=5, chat=False).texts[0] for each in asked
    ]
    assert found == expected


def test_a_prompt_that_the_cache_cannot_hold_is_refused_by_its_length(model):
    limits = serving.Limits(cache_tokens=32, **PATIENT)
    with served(serving.app(model, tokenizer(), limits=limits, continuous=True)) as address:
        found = post(address, "/v1/completions", {"prompt": "a " * 40})
        assert found.status_code == 400 and found.json()["error"]["code"] == "context_length_exceeded"
        fits = post(address, "/v1/completions", {"prompt": "a " * 20, "temperature": 0})
        assert fits.json()["usage"]["completion_tokens"] <= 12
