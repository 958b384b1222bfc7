"""Batches of rows of like length, and a health that tells the truth."""

import concurrent.futures
import time

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
import requests
from families import build
from served import post, served
from words import words

from steerfn import serving
from steerfn.run import BatchJob, RowSampling, like_lengths
from steerfn.serving import _worker


def job(length):
    return BatchJob([3] * length, None, 1, RowSampling(), (), lambda _: None)


@pytest.mark.parametrize(
    "lengths, groups",
    [
        ([600, *range(3, 10)], [[9, 8, 7, 6, 5, 4, 3], [600]]),
        ([5, 40, 20], [[5], [40, 20]]), ([100, 50, 49, 200], [[50, 49], [200, 100]]),
        ([7], [[7]]), ([], []),
    ],
)  # fmt: skip
def test_rows_of_like_length_run_together(lengths, groups):
    found = like_lengths([job(length) for length in lengths])
    assert [[len(each.prompt) for each in some] for some in found] == groups
    for some in found:
        most = max(len(each.prompt) for each in some)
        assert all(most <= max(2 * len(each.prompt) + 1, len(each.prompt) + 32) for each in some)


def test_pitfall_65_a_long_prompt_beside_short_ones_pads_none_of_them(monkeypatch):
    model, shapes = build("llama"), []
    model.config.max_position_embeddings = 1024
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = ["a " * 600, *("a " * i for i in range(1, 8))]
    limits = serving.Limits(gather=60.0, max_rows=8)  # it begins when all have come
    with served(serving.app(model, words(), limits=limits)) as address:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [{"prompt": prompt, "max_tokens": 1, "temperature": 0} for prompt in prompts]
            found = list(pool.map(lambda body: post(address, "/v1/completions", body).status_code, asked))
    read = sum(rows * length for rows, length in shapes)
    assert found == [200] * 8 and read <= 601 + 7 * 32, f"{read} places for {sum(map(len, prompts)) // 2} words"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_health_tells_of_a_thread_that_is_gone(monkeypatch):
    application = serving.app(build("llama"), words())
    worker = application.state.server.worker
    with served(application) as address:
        assert requests.get(f"{address}/health").status_code == 200

        def die(*_):
            raise SystemExit

        monkeypatch.setattr(worker, "_gather_jobs", die)
        first = post(address, "/v1/completions", {"prompt": "a", "max_tokens": 1})
        worker._thread.join(20)
        for path in ("health", "ping"):
            found = requests.get(f"{address}/{path}")
            assert found.status_code == 503 and "has ended" in found.json()["reason"]
        assert (first.status_code, post(address, "/v1/completions", {"prompt": "a"}).status_code) == (503, 503)


def test_health_tells_of_a_device_that_fails_and_of_one_that_works_again(monkeypatch):
    model, broken = build("llama"), []

    def hook(*_):
        if broken:
            raise RuntimeError("CUDA error: device-side assert triggered")

    model.model.layers[0].register_forward_pre_hook(hook)
    monkeypatch.setattr(_worker, "IDLE", 0.05)
    monkeypatch.setattr(_worker, "RETRY", 0.05)
    with served(serving.app(model, words())) as address:

        def until(status):
            end = time.monotonic() + 30
            while (found := requests.get(f"{address}/health")).status_code != status and time.monotonic() < end:
                time.sleep(0.02)
            return found

        assert until(200).json()["status"] == "ok"
        broken.append(True)
        found = until(503)
        assert found.json()["reason"] == "the model fails on a single token" and "CUDA" not in found.text
        broken.clear()
        assert until(200).status_code == 200


def test_health_tells_of_a_batch_that_does_not_come_back():
    application = serving.app(build("llama"), words(), limits=serving.Limits(timeout=1.0))
    worker = application.state.server.worker
    with served(application) as address:
        assert requests.get(f"{address}/health").status_code == 200
        worker._since = time.monotonic() - 1.0 - _worker.STUCK
        assert requests.get(f"{address}/health").status_code == 503


def test_a_request_that_fails_by_itself_makes_no_server_ill():
    model = build("llama")

    def hook(_, args, kwargs):
        if kwargs["input_ids"].shape[1] > 1:
            raise RuntimeError("out of memory")

    model.model.register_forward_pre_hook(hook, with_kwargs=True)
    with served(serving.app(model, words())) as address:
        assert post(address, "/v1/completions", {"prompt": "a b", "max_tokens": 1}).status_code == 500
        assert requests.get(f"{address}/health").status_code == 200
