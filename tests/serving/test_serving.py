"""The server, driven over HTTP by OpenAI's own client: a request gets what it gets alone, and never another's."""

import concurrent.futures
import dataclasses
import json
import re
import threading

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
import openai
import requests
import torch
from families import build
from served import client, paced, post, served, tokenizer, wait_for
from steering import vector
from words import WORDS, words

import steerfn as sf
from steerfn import serving
from steerfn.run import BatchJob, RowSampling, run_batch
from steerfn.run._decoding import decoding_of

SITE = sf.resid_post[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("vectors")
    for i in range(4):
        sf.save(vector(SITE, sf.resid_post[2], seed=i, scale=3.0), where / f"v{i}.safetensors")
    sf.save(vector(sf.resid_post[2], seed=9), where / "happy-1.5.json")
    (where / "notes.txt").write_text("no vector")
    return where


@pytest.fixture(scope="module")
def address(model, folder, tmp_path_factory):
    audit = tmp_path_factory.mktemp("log") / "audit.jsonl"
    patient = {"timeout": 250.0, "receive": 250.0}  # to end what hangs, and nothing else
    limits = serving.Limits(max_tokens=32, max_rows=8, max_queue=400, max_choices=6, **patient)
    with served(serving.app(model, tokenizer(), folder, limits=limits, audit=audit)) as where:
        yield where


def name(model):
    return sf.values.fingerprint(model)["name"]


def alone(model, folder, prompt, steering, tokens):
    """What one steered prompt gets from the library itself, greedily."""
    scopes = {"everywhere": sf.everywhere, "generated": sf.generated, "prompt": sf.prompt}
    ops = []
    for one in steering:
        v = sf.load(next(folder.glob(f"{one['vector']}.[sj]*")))
        v = v.select(one["layers"]) if one.get("layers") is not None else v
        op = sf.ablate(v) if one.get("operation") == "ablate" else sf.add(v, one.get("alpha", 1.0))
        ops.append(sf.at(scopes[one.get("scope", "everywhere")], op))
    out = sf.generate(model, tokenizer(), prompt, sf.chain(*ops), max_new_tokens=tokens, chat=False, do_sample=False)
    return out.texts[0]


def test_openais_client_gets_steered_and_unsteered_completions(model, folder, address):
    ask = client(address).completions.create
    plain = ask(model=name(model), prompt="a b c", max_tokens=8, temperature=0)
    assert plain.choices[0].text == alone(model, folder, "a b c", [], 8)
    assert plain.choices[0].finish_reason == "length"
    assert plain.usage.prompt_tokens == 4 and plain.usage.completion_tokens == 8
    one = {"vector": "v0", "alpha": 2.0, "scope": "generated"}
    steered = ask(model=name(model), prompt="a b c", max_tokens=8, temperature=0, extra_body={"steering": one})
    assert steered.choices[0].text == alone(model, folder, "a b c", [one], 8) != plain.choices[0].text


def test_a_chat_and_its_stream_are_the_same(model, address):
    ask = client(address).chat.completions.create
    given = {
        "model": name(model), "messages": [{"role": "user", "content": "a b"}], "max_tokens": 9, "temperature": 0.9,
        "seed": 5, "n": 2, "extra_body": {"steering": {"vector": "v1"}},
    }  # fmt: skip
    whole = ask(**given)
    texts, reasons, usage = {0: "", 1: ""}, {}, None
    for part in ask(**given, stream=True, stream_options={"include_usage": True}):
        usage = part.usage or usage
        for choice in part.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert [texts[0], texts[1]] == [choice.message.content for choice in whole.choices] and texts[0] != texts[1]
    assert reasons == {0: "length", 1: "length"} and usage.completion_tokens == 18
    expected = sf.generate(
        model, tokenizer(), "a b", sf.add(vector(SITE, sf.resid_post[2], seed=1, scale=3.0)), max_new_tokens=9,
        do_sample=True, temperature=0.9, seed=[5], top_k=0,
    )  # fmt: skip
    assert texts[0] == expected.texts[0]


def mixed(count):
    """Requests of every kind: vectors, strengths, scopes, layers, several at once, none."""
    kinds = [
        [],
        [{"vector": "v0", "alpha": 1.5}],
        [{"vector": "v1", "alpha": -2.0, "scope": "generated"}],
        [{"vector": "v2", "operation": "ablate"}],
        [{"vector": "v3", "alpha": 0.5, "scope": "prompt"}, {"vector": "happy-1.5", "alpha": 3.0}],
        [{"vector": "v0", "alpha": 4.0, "layers": [2]}],
    ]
    prompts = [" ".join(WORDS[(i + j) % 20] for j in range(1 + i % 7)) for i in range(count)]
    return [(prompt, kinds[i % len(kinds)], 3 + i % 9) for i, prompt in enumerate(prompts)]


def ask_at_once(address, asked):
    """The texts of requests that come all at once."""

    def ask(one):
        prompt, steering, tokens = one
        body = {"prompt": prompt, "steering": steering, "max_tokens": tokens, "temperature": 0}
        return post(address, "/v1/completions", body).json()["choices"][0]["text"]

    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(ask, asked))


def test_100_mixed_requests_at_once_each_get_what_they_get_alone(model, folder, address):
    asked = mixed(100)
    assert ask_at_once(address, asked) == [alone(model, folder, *one) for one in asked]
    rows = requests.get(f"{address}/metrics").text
    assert float(re.search(r"steerfn_batch_rows_count (\S+)", rows)[1]) < 100, "nothing ran together"


def test_so_do_those_that_join_and_leave_a_running_batch(model, folder):
    pytest.importorskip("transformers", minversion="5.23", reason="continuous batching as it is here")
    asked, before = mixed(100), {name: value.clone() for name, value in model.state_dict().items()}
    patient = {"timeout": 250.0, "receive": 250.0}
    limits = serving.Limits(max_tokens=32, max_rows=8, max_queue=400, cache_tokens=512, **patient)
    with served(serving.app(model, tokenizer(), folder, limits=limits, continuous=True)) as where:
        assert ask_at_once(where, asked) == [alone(model, folder, *one) for one in asked]
        assert requests.get(f"{where}/health").json()["waiting"] == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pitfall_37_an_unknown_vector_is_an_error_of_its_request_alone(model, folder, address):
    def ask(vector):
        steering = [{"vector": vector, "alpha": 2.0}]
        return post(
            address, "/v1/completions", {"prompt": "a b", "steering": steering, "max_tokens": 5, "temperature": 0}
        )

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, ["v0", "v9", "v1"] * 4))
    for named, answer in zip(["v0", "v9", "v1"] * 4, found, strict=True):
        if named == "v9":
            assert answer.status_code == 404 and "There is no vector 'v9'" in answer.json()["error"]["message"]
        else:
            steering = [{"vector": named, "alpha": 2.0}]
            assert answer.json()["choices"][0]["text"] == alone(model, folder, "a b", steering, 5)


def test_a_stop_text_ends_a_text_and_is_left_out(model, folder, address):
    whole = alone(model, folder, "a b c", [], 12)
    stop = whole.split()[4]
    body = {"prompt": "a b c", "max_tokens": 12, "temperature": 0, "stop": ["no such text", f" {stop}"]}
    [choice] = post(address, "/v1/completions", body).json()["choices"]
    assert choice["text"] == whole[: whole.index(f" {stop}")] and choice["finish_reason"] == "stop"


def test_what_is_offered_is_told(model, folder, address):
    [one] = client(address).models.list().data
    assert one.id == name(model) and one.fingerprint == sf.values.fingerprint(model)
    found = {each["id"]: each for each in requests.get(f"{address}/v1/vectors").json()["data"]}
    assert set(found) == {"v0", "v1", "v2", "v3", "happy-1.5"}
    assert found["v0"]["sites"] == ["resid_post[1]", "resid_post[2]"]
    assert found["v0"]["sha256"] == sf.files.describe(folder / "v0.safetensors")["sha256"]
    for path in ("health", "ping"):
        assert requests.get(f"{address}/{path}").json()["status"] == "ok"


def test_sagemakers_path_takes_prompts_and_messages(model, folder, address):
    body = {"prompt": "a b", "max_tokens": 4, "temperature": 0}
    assert post(address, "/invocations", body).json()["choices"][0]["text"] == alone(model, folder, "a b", [], 4)
    body = {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 4, "temperature": 0}
    assert post(address, "/invocations", body).json()["choices"][0]["message"]["role"] == "assistant"
    assert "Pass a prompt or messages" in post(address, "/invocations", {}).json()["error"]["message"]


WRONG = {
    "unknown vector": ({"steering": {"vector": "v9"}}, 404, "There is no vector 'v9'; this server has happy-1.5, v0"),
    "path": ({"steering": {"vector": "../v0"}}, 404, "There is no vector '../v0'"),
    "absolute path": ({"steering": {"vector": "/etc/passwd"}}, 404, "There is no vector"),
    "layer": ({"steering": {"vector": "v0", "layers": [0]}}, 400, "The vector 'v0': "),
    "strength": ({"steering": {"vector": "v0", "alpha": 1e9}}, 400, "steering"),
    "unknown field": (
        {"logit_bios": {}},
        400,
        "'logit_bios' is not a field that this server knows here; did you mean 'logit_bias'?",
    ),
    "unsupported": ({"suffix": "b"}, 400, "suffix"),
    "logprobs": ({"logprobs": 50}, 400, "logprobs must be at most 20, not 50."),
    "ids": ({"prompt": [5, 99]}, 400, "the token id 99, and the model has embeddings for 99 tokens"),
    "bias": ({"logit_bias": {"99": 1}}, 400, "logit_bias has the token 99, and those of this model are 0 to 98."),
    "model": ({"model": "gpt-9"}, 404, "There is no model 'gpt-9'"),
    "too many texts": ({"n": 7}, 400, "A request may ask for 6 texts, not 7"),
    "too long": ({"prompt": "a " * 127}, 400, "The prompt has 128 tokens, and the model takes 128 with the answer"),
    "far too long": ({"prompt": "a" * 9000}, 400, "9000 characters, more than the 128 tokens that the model takes"),
    "empty prompt": ({"prompt": ""}, 400, "prompt"),
    "no prompts": ({"prompt": []}, 400, "prompt must be a list that is not empty, not a list of 0"),
    "empty stop": ({"stop": ""}, 400, "stop must be a text that is not empty, not ''"),
    "temperature": ({"temperature": -1}, 400, "temperature"),
    "type": ({"max_tokens": "8"}, 400, "max_tokens must be an integer, not '8'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_told_what_is_wrong_with_it(case, address):
    more, status, told = WRONG[case]
    found = post(address, "/v1/completions", {"prompt": "a b", "max_tokens": 2, **more})
    assert found.status_code == status and told in found.json()["error"]["message"]


@pytest.mark.parametrize(
    "content, status",
    [
        (b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "a", "temperature": NaN}', 400), (b"[" * 100_000, 400), (b'{"prompt": "' + b"a" * (1 << 20), 413),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400), (b"\xff\xfe", 400),
    ],
    ids=["nothing", "cut", "list", "null", "surrogate", "nan", "deep", "large", "number", "bytes"],
)  # fmt: skip
def test_hostile_bodies_are_refused(content, status, address):
    found = requests.post(f"{address}/v1/completions", data=content, headers={"content-type": "application/json"})
    assert found.status_code == status and found.json()["error"]["message"]


def test_openais_client_raises_its_own_errors(model, address):
    with pytest.raises(openai.BadRequestError, match="temperature must be at most 2, not 9"):
        client(address).completions.create(model=name(model), prompt="a", temperature=9)
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        client(address).completions.create(model="other", prompt="a")


def test_keys(model, folder):
    with served(serving.app(model, tokenizer(), folder, api_keys=["one", "two"])) as address:
        for key in ("", "three", "on"):
            found = post(address, "/v1/completions", {"prompt": "a"}, headers={"authorization": f"Bearer {key}"})
            assert found.status_code == 401 and "API key" in found.json()["error"]["message"]
        for path in ("v1/vectors", "metrics"):
            assert requests.get(f"{address}/{path}").status_code == 401
        assert requests.get(f"{address}/health").status_code == 200
        assert client(address, "two").completions.create(model="", prompt="a", max_tokens=1).choices


def test_the_audit_log_says_who_when_and_what_and_never_the_prompt(model, folder, tmp_path):
    log = tmp_path / "audit.jsonl"
    log.write_text('{"earlier": true}\n')
    with served(serving.app(model, tokenizer(), folder, api_keys=["one"], audit=log)) as address:
        head = {"authorization": "Bearer one"}
        body = {"prompt": "q r s", "max_tokens": 2, "user": "ada", "steering": {"vector": "v0", "alpha": 2}}
        assert post(address, "/v1/completions", body, headers=head).status_code == 200
        assert post(address, "/v1/completions", {**body, "max_tokens": -1}, headers=head).status_code == 400
        assert post(address, "/v1/completions", body).status_code == 401
        assert requests.get(f"{address}/v2", headers=head).status_code == 404
        assert post(address, "/v1/completions", {"prompt": "q" * (1 << 20)}, headers=head).status_code == 413
    earlier, begin, end, *refused = map(json.loads, log.read_text().splitlines())
    assert [(each["status"], each["who"] == begin["who"], each["client"]) for each in refused] == [
        (400, True, "127.0.0.1"), (401, False, "127.0.0.1"), (404, True, "127.0.0.1"), (413, True, "127.0.0.1"),
    ]  # fmt: skip
    assert {each["event"] for each in refused} == {"refused"} and refused[0]["param"] == "max_tokens"
    assert earlier == {"earlier": True} and begin["id"] == end["id"]
    assert begin["who"].startswith("key ") and begin["user"] == "ada" and begin["client"] == "127.0.0.1"
    [steered] = begin["steering"]
    assert steered["sha256"] == sf.files.describe(folder / "v0.safetensors")["sha256"] and steered["alpha"] == 2
    assert (
        begin["model"] == sf.values.fingerprint(model)
        and end["outcome"] == ["length"]
        and end["completion_tokens"] == 2
    )
    assert "q r s" not in log.read_text() and log.stat().st_mode & 0o777 in (0o644, 0o600)
    other = tmp_path / "with.jsonl"
    with served(serving.app(model, tokenizer(), folder, audit=other, audit_prompts=True)) as address:
        post(address, "/v1/completions", {"prompt": "q r s", "max_tokens": 1})
    assert json.loads(other.read_text().splitlines()[0])["prompts"] == ["q r s"]


def test_without_its_audit_log_nothing_runs(model, folder, tmp_path, monkeypatch):
    application = serving.app(model, tokenizer(), folder, audit=tmp_path / "audit.jsonl")

    def full(*_):
        raise OSError(28, "No space left on device")

    with served(application) as address:
        monkeypatch.setattr("steerfn.serving._audit.os.write", full)
        found = post(address, "/v1/completions", {"prompt": "a", "max_tokens": 1})
        monkeypatch.undo()
    assert found.status_code == 503 and "audit log cannot be written (No space left" in found.json()["error"]["message"]


def test_a_full_queue_a_timeout_and_a_caller_that_leaves():
    model, permits = paced(1)
    limits = serving.Limits(max_rows=1, max_queue=1, timeout=2.0, max_tokens=64)
    application = serving.app(model, tokenizer(), None, limits=limits)
    worker, body = application.state.server.worker, {"prompt": "a", "max_tokens": 64, "temperature": 0}
    with served(application) as address, concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert post(address, "/v1/completions", {**body, "max_tokens": 1}).status_code == 200
        taken = [pool.submit(post, address, "/v1/completions", body) for _ in range(2)]
        wait_for(lambda: requests.get(f"{address}/health").json()["waiting"] == 2)
        assert [post(address, "/v1/completions", body).status_code for _ in range(2)] == [429, 429]
        assert [each.result().status_code for each in taken] == [504, 504]
        permits.release(2)  # the pass that the first of them is in, and the first of the next request
        with client(address).completions.create(model="", **body, stream=True) as stream:
            next(iter(stream))
        wait_for(lambda: worker._taken[0].cancelled)
        permits.release(2)  # too few for the row of the caller that left to go on
        assert post(address, "/v1/completions", {**body, "max_tokens": 1}).status_code == 200


def test_a_vector_of_another_model_and_a_damaged_one_fail_alone(model, tmp_path):
    sf.save(vector(SITE, width=16), tmp_path / "narrow.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    sf.save(vector(SITE), tmp_path / "good.safetensors")
    (tmp_path / "out.safetensors").symlink_to("/etc/hostname")
    with served(serving.app(model, tokenizer(), tmp_path)) as address:
        for bad, told in (("narrow", "cannot be served"), ("broken", "cannot be served")):
            found = post(address, "/v1/completions", {"prompt": "a", "steering": {"vector": bad}})
            assert found.status_code == 409 and told in found.json()["error"]["message"]
            assert str(tmp_path) not in found.text
        assert post(address, "/v1/completions", {"prompt": "a", "steering": {"vector": "out"}}).status_code == 404
        body = {"prompt": "a", "temperature": 0, "steering": {"vector": "good", "alpha": 9}}
        before = post(address, "/v1/completions", body)
        sf.save(vector(SITE, seed=3, scale=20.0), tmp_path / "good.safetensors")
        after = post(address, "/v1/completions", body)
        assert before.json()["choices"] != after.json()["choices"], "the file was not read again"


class Raises(torch.nn.Module):
    """An MLP that takes one row at a time, and not one whose state is large."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        if hidden.shape[0] > 1 or RAISE.is_set():
            raise RuntimeError("planned")
        return self.inner(hidden)


RAISE = threading.Event()


def test_a_batch_that_fails_is_run_row_by_row_and_what_fails_alone_says_nothing_of_the_model(model, folder):
    broken = build("llama")
    broken.model.layers[2].mlp = Raises(broken.model.layers[2].mlp)
    body = {"prompt": "a b", "max_tokens": 3, "temperature": 0}
    with served(serving.app(broken, tokenizer(), folder, limits=serving.Limits(gather=0.3))) as address:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: post(address, "/v1/completions", body), range(4)))
        assert {each.json()["choices"][0]["text"] for each in found} == {alone(model, folder, "a b", [], 3)}
        RAISE.set()
        found = post(address, "/v1/completions", body)
        RAISE.clear()
        assert found.status_code == 500 and found.json()["error"]["type"] == "server_error"
        assert "planned" not in found.text, "the model's own words reached a caller"
        assert post(address, "/v1/completions", body).status_code == 200


@pytest.mark.filterwarnings("ignore:Steering made the hidden state")
def test_a_strength_that_overflows_is_told_and_fails_alone(folder):
    body = {"prompt": "a b", "max_tokens": 4, "temperature": 1.0, "seed": 1}
    far = {**body, "steering": {"vector": "v0", "alpha": 1e4}}
    limits = serving.Limits(gather=0.3)
    with served(serving.app(build("llama").half(), tokenizer(), folder, limits=limits)) as address:
        alone_too = post(address, "/v1/completions", body).json()["choices"][0]["text"]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda each: post(address, "/v1/completions", each), [body, far, body, far]))
    assert [each.status_code for each in found] == [200, 400, 200, 400]
    assert "pass a smaller alpha" in found[1].json()["error"]["message"]
    assert {each.json()["choices"][0]["text"] for each in found[::2]} == {alone_too}


def test_a_job_hands_out_no_half_character_and_no_beginning_of_a_stop_text():
    heard: list = []
    job = BatchJob([1], None, 9, RowSampling(), ("STOP",), heard.append)
    steps = ["a", "a\ufffd", "aé", "aé S", "aé ST", "aé STx", "aé STx STOP and more"]
    for i, text in enumerate(steps):
        job.add(i, frozenset(), lambda _, text=text: text)
    assert heard == ["a", "é", " ", "STx", " ", None] and job.reason == "stop"


def test_limits_are_checked():
    with pytest.raises(sf.DataError, match="`max_rows` must be a finite number >= 1, got 0"):
        serving.Limits(max_rows=0)
    with pytest.raises(sf.FileError, match="The folder of vectors 'nowhere' does not exist"):
        serving.app(build("llama"), tokenizer(), "nowhere")


def test_one_worker_runs_the_model_and_the_model_is_as_it_was(model, folder):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    threads = threading.active_count()
    with served(serving.app(model, tokenizer(), folder)) as address:
        assert post(address, "/v1/completions", {"prompt": "a", "steering": {"vector": "v0"}}).status_code == 200
    wait_for(lambda: not [each for each in threading.enumerate() if each.name == "steerfn-serving"][1:])
    wait_for(lambda: threading.active_count() <= threads + 4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_a_tokenizer_rewrites_loses_nothing_that_follows():
    heard: list = []
    job = BatchJob([1], None, 4, RowSampling(), (), heard.append)
    for i, text in enumerate(["do", "do n", "don't", "don't know"]):
        job.add(i, frozenset(), lambda _, text=text: text)
    assert heard == ["do", " n", "n't", " know", None] and job.reason == "length"


def test_spaces_are_as_the_model_wrote_them_streamed_or_not(model):
    tidy = words(
        template=True, names=[["do", "n", "'t", "n't", ".", ","][i % 6] + "\u200b" * (i // 6) for i in range(96)]
    )
    tidy.clean_up_tokenization_spaces = True
    whole = sf.generate(model, tidy, "do n't", max_new_tokens=24, chat=False).texts[0]
    ids = sf.generate(model, tidy, "do n't", max_new_tokens=24, chat=False).token_ids[0]
    assert tidy.decode(ids, skip_special_tokens=True) != whole, "this tokenizer would tidy nothing here"
    assert whole.split(" ") == [tidy.decode([token]) for token in ids if token > 2]
    assert "".join(sf.stream(model, tidy, "do n't", max_new_tokens=24, chat=False)) == whole
    heard: list = []
    ids = tidy("do n't").input_ids
    endless = dataclasses.replace(decoding_of("a test", model, tidy, {}), ends=frozenset())
    run_batch(model, tidy, [BatchJob(ids, None, 24, RowSampling(), (), heard.append)], endless)
    assert "".join(heard[:-1]) == whole


def test_a_begun_answer_is_continued_and_the_models_own_config_is_no_request(folder):
    """Behind a template that closes messages, on a model whose config samples and stops at strings of its own."""
    model, closed = build("llama"), tokenizer()
    closed.chat_template = closed.chat_template.replace("{{ m['content'] }} ", "{{ m['content'] }} z ")
    rendered = "<bos> user a b z assistant c"
    whole, short = (sf.generate(model, closed, rendered, chat=False, max_new_tokens=n).texts[0].split() for n in (8, 3))
    model.generation_config.update(do_sample=True, temperature=5.0, stop_strings=[whole[4]])
    messages = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    body = {"messages": messages, "max_tokens": 8, "temperature": 0}
    with served(serving.app(model, closed, folder)) as where:
        choice = post(where, "/v1/chat/completions", body).json()["choices"][0]
        assert choice["message"]["content"].split() == whole[:4] and choice["finish_reason"] == "stop"
        plain = {"prompt": rendered, "max_tokens": 3, "temperature": 0}
        assert post(where, "/v1/completions", plain).json()["choices"][0]["text"].split() == short
