"""What requests may say, how they are steered whatever they say, and what they are told when they are refused."""

import itertools
import json
import re
import threading
import time

import jsonschema
import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
import requests
from families import build
from served import client, post, served, tokenizer
from steering import vector

import steerfn as sf
from steerfn import serving
from steerfn.serving import _jobs

SITE = sf.resid_post[1]
GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("vectors")
    for i, name in enumerate(("safe", "v0", "v1")):
        sf.save(vector(SITE, sf.resid_post[2], seed=i, scale=3.0), where / f"{name}.safetensors")
    sf.save(sf.load(where / "safe.safetensors").with_metadata(note="a copy"), where / "copy.json")
    return where


@pytest.fixture(scope="module")
def address(model, folder):
    limits = serving.Limits(max_tokens=8, max_alpha=5.0)
    with served(serving.app(model, tokenizer(), folder, limits=limits)) as where:
        yield where


def said(model, op=None, prompt="a b", tokens=6):
    return sf.generate(model, tokenizer(), prompt, op, chat=False, max_new_tokens=tokens, do_sample=False).texts[0]


NOTHING = {
    "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "store": False, "functions": [],
    "function_call": "none", "parallel_tool_calls": True, "logprobs": False, "top_logprobs": 0, "logit_bias": {},
    "metadata": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "modalities": ["text"], "audio": None,
    "prediction": None, "reasoning_effort": None, "n": None, "seed": None, "stop": None, "top_p": None, "user": None,
    "stream": None, "stream_options": None, "max_completion_tokens": None, "service_tier": "auto", "model": None,
}  # fmt: skip
SOMETHING = {
    "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required", "store": True,
    "response_format": {"type": "json_object"}, "top_logprobs": 3, "logit_bias": {"99": 5}, "presence_penalty": 3,
    "modalities": ["audio"], "reasoning_effort": "high", "functions": [{"name": "f"}], "min_p": 2, "top_kk": 5,
}  # fmt: skip


def test_fields_that_ask_for_nothing_are_taken_and_others_refused_by_name(address):
    body = {"messages": [{"role": "user", "content": "a b"}], **GREEDY}
    plain = post(address, "/v1/chat/completions", body).json()["choices"]
    assert post(address, "/v1/chat/completions", {**body, **NOTHING}).json()["choices"] == plain
    for field, value in SOMETHING.items():
        found = post(address, "/v1/chat/completions", {**body, field: value})
        assert found.status_code == 400 and field in found.json()["error"]["message"], field


def test_a_history_as_openais_client_gives_it_back_and_content_in_parts(address, model):
    ask = client(address).chat.completions.create
    first = ask(model="", messages=[{"role": "user", "content": "a b"}], **GREEDY).choices[0].message
    parts = [{"type": "text", "text": "c "}, {"type": "text", "text": "d"}]
    history = [{"role": "user", "content": "a b"}, first.model_dump(), {"role": "user", "content": parts}]
    plain = [*history[:1], {"role": "assistant", "content": first.content}, {"role": "user", "content": "c d"}]
    found = [ask(model="", messages=messages, **GREEDY).choices[0].message.content for messages in (history, plain)]
    assert found[0] == found[1] == sf.generate(model, tokenizer(), [plain], max_new_tokens=6, do_sample=False).texts[0]
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    refused = post(address, "/v1/chat/completions", {"messages": [{"role": "user", "content": image}]})
    assert refused.status_code == 400 and "messages.0.content" in refused.json()["error"]["message"]


def test_a_participants_name_reaches_the_template(model):
    named = tokenizer()
    named.chat_template = named.chat_template.replace("{{ m['role'] }}", "{{ m['name'] or m['role'] }}")
    with served(serving.app(model, named)) as address:
        found = {}
        for more in ({}, {"name": "c"}):
            body = {"messages": [{"role": "user", "content": "a b", **more}], **GREEDY}
            found[more.get("name")] = post(address, "/v1/chat/completions", body).json()["choices"][0]["message"]
    for name, rendered in ((None, "user a b assistant"), ("c", "c a b assistant")):
        assert found[name]["content"] == said(model, prompt=rendered)
    assert found[None] != found["c"]


def test_tokens_beyond_the_limit_are_cut_and_absent_means_what_is_left(address):
    for more, made in (({"max_tokens": 99}, 8), ({}, 8), ({"max_tokens": None}, 8), ({"prompt": "a " * 124}, 3)):
        found = post(address, "/v1/completions", {"prompt": "a", "temperature": 0, **more}).json()
        assert found["usage"]["completion_tokens"] == made and found["choices"][0]["finish_reason"] == "length"
    body = {"messages": [{"role": "user", "content": "a"}]}
    assert post(address, "/v1/chat/completions", body).json()["usage"]["completion_tokens"] == 8


def test_a_model_by_its_name_and_steering_by_a_name(address, model, folder):
    known = sf.values.fingerprint(model)["name"]
    assert client(address).models.retrieve(known).id == known
    assert requests.get(f"{address}/v1/models/other").status_code == 404
    v0 = sf.load(folder / "v0.safetensors")
    for steering in ("v0", ["v0"], {"vector": "v0"}, [{"vector": "v0"}]):
        found = post(address, "/v1/completions", {"prompt": "a b", "steering": steering, **GREEDY}).json()
        assert found["choices"][0]["text"] == said(model, sf.add(v0))
        [one] = found["steering"]
        assert (one["vector"], one["alpha"], one["policy"]) == ("v0", 1.0, "request")
        assert one["sha256"] == sf.files.describe(folder / "v0.safetensors")["sha256"]
    stream = client(address).completions.create(
        model="", prompt="a b", stream=True, extra_body={"steering": "v0"}, **GREEDY
    )
    assert [part.steering for part in stream if part.choices[0].finish_reason] == [found["steering"]]
    assert post(address, "/v1/completions", {"prompt": "a b", **GREEDY}).json()["steering"] == []


def test_a_clients_own_words_cannot_leave_out_the_default_steering(model, folder):
    safe, v0 = (sf.load(folder / f"{name}.safetensors") for name in ("safe", "v0"))
    default = {"vector": "safe", "alpha": 2.0}
    with served(serving.app(model, tokenizer(), folder, default_steering=default)) as address:

        def ask(**more):
            return post(address, "/v1/completions", {"prompt": "a b", **GREEDY, **more})

        for steering, op in (
            (None, sf.add(safe, 2.0)),
            ([], sf.add(safe, 2.0)),
            ({"vector": "v0", "alpha": 3.0}, sf.chain(sf.add(v0, 3.0), sf.add(safe, 2.0))),
            ({"vector": "v0", "operation": "ablate"}, sf.chain(sf.ablate(v0), sf.add(safe, 2.0))),
        ):
            found = ask(steering=steering).json()
            assert found["choices"][0]["text"] == said(model, op)
            assert [one["policy"] for one in found["steering"]] == ["request"] * bool(steering) + ["default"]
        assert ask().json()["choices"][0]["text"] != said(model)
        for name, operation in itertools.product(("safe", "copy"), ("add", "ablate")):
            found = ask(steering={"vector": name, "alpha": -2.0, "operation": operation})
            assert found.status_code == 400 and "part of this server's default steering" in found.text
        assert requests.get(f"{address}/v1/vectors").json()["default_steering"][0]["vector"] == "safe"
        (folder / "safe.safetensors").rename(folder / "safe.away")
        found = ask()
        (folder / "safe.away").rename(folder / "safe.safetensors")
        assert found.status_code == 503 and "default steering of this server cannot be applied" in found.text
        assert ask().status_code == 200


@pytest.mark.parametrize("default", ["none", {"vector": "safe", "alfa": 1}, {"vector": "safe", "layers": [0]}, 5, {}])
def test_a_default_that_cannot_be_applied_is_refused_at_start(default, model, folder):
    with pytest.raises(sf.DataError, match="The default steering .* cannot be applied: .*"):
        serving.app(model, tokenizer(), folder, default_steering=default)


def test_the_bound_on_strength_holds_for_all_that_is_done_with_a_vector(address):
    def ask(*strengths):
        steering = [{"vector": "v0", "alpha": alpha} for alpha in strengths]
        return post(address, "/v1/completions", {"prompt": "a", "max_tokens": 1, "steering": steering})

    assert ask(5.0).status_code == ask(-2.0, 3.0).status_code == 200
    for strengths in ((5.1,), (-6.0,), (3.0, 3.0), (5.0, -1.0)):
        found = ask(*strengths)
        assert found.status_code == 400 and "this server allows 5; pass a smaller alpha" in found.text


WRONG = {
    '{"prompt": "a"': "The body is not JSON",
    "{}": "prompt is missing",
    '{"prompt": 5}': "prompt must be a text or a list, not 5.",
    '{"prompt": ["a", 5]}': "prompt.1 must be a text, not 5.",
    '{"prompt": "a", "temperature": 3}': "temperature must be at most 2, not 3.",
    '{"prompt": "a", "max_tokens": -1}': "max_tokens must be at least 0, not -1.",
    '{"prompt": "a", "max_tokens": 1.5}': "max_tokens must be an integer, not 1.5.",
    '{"prompt": "a", "stream": "yes"}': "stream must be true or false, not 'yes'.",
    '{"prompt": "a", "steering": {"vector": "v0", "scope": "x"}}': "steering.scope must be 'everywhere', 'generated'",
    '{"prompt": "a", "steering": {"vector": "v0", "alpha": 1e9}}': "steering.alpha must be at most 10000, not 1e+09",
    '{"prompt": "a", "steering": [{"vector": "v0", "alpha": "2"}]}': "steering.0.alpha must be a number, not '2'",
    '{"prompt": "a", "steering": {"vector": "v0", "strength": 2}}': "'strength' is not a field that this server knows",
    '{"prompt": "a", "steering": {"alpha": 2}}': "steering.vector is missing",
    '{"prompt": "a", "steerings": "v0"}': "did you mean 'steering'?",
    '{"prompt": "\\ud83d"}': "prompt has half of a surrogate pair",
    '{"prompt": ["a", "x\\udc00y"]}': "prompt.1 has half of a surrogate pair",
    '{"prompt": "a", "stop": "\\ud83d"}': "stop has half of a surrogate pair",
    '{"prompt": "a", "\\ud83d": 1}': "half of a surrogate pair",
    '{"prompt": "a", "tools": [1]}': "'tools' is not a field",
}


@pytest.mark.parametrize("body", WRONG)
def test_a_refusal_names_the_field_the_value_and_what_it_may_be(body, address):
    headers = {"content-type": "application/json"}
    found = requests.post(f"{address}/v1/completions", data=body, headers=headers)
    message = found.json()["error"]["message"]
    assert found.status_code == 400 and WRONG[body] in message
    assert not re.search(r"Input should|Extra inputs|Value error|\bvalid\b", message), "pydantic's own words"


def test_a_pair_of_surrogates_is_a_character(address):
    headers = {"content-type": "application/json"}
    body = b'{"prompt": "a \\ud83d\\ude00", "max_tokens": 1}'
    assert requests.post(f"{address}/v1/completions", data=body, headers=headers).status_code == 200


MILLIONS = {
    "prompts": {"prompt": ["a"] * 200_000},
    "numbers": {"prompt": list(range(130_000))},
    "fields": {"prompt": "a", **{f"f{i}": 0 for i in range(70_000)}},
    "steerings": {"prompt": "a", "steering": [{}] * 200_000},
    "layers": {"prompt": "a", "steering": {"vector": "v0", "layers": [9**9] * 80_000}},
    "stops": {"prompt": "a", "stop": [""] * 200_000},
    "letters": {"prompt": "a" * 190_000},
    "texts": {"prompt": ["a " * 9_000] * 50},
}


@pytest.mark.parametrize("kind", MILLIONS)
def test_a_refused_megabyte_is_refused_before_anything_is_tokenized(kind, address, monkeypatch):
    monkeypatch.setattr(_jobs, "encode", lambda *_: pytest.fail("it was tokenized"))
    started = time.process_time()
    found = post(address, "/v1/completions", MILLIONS[kind])
    assert found.status_code == 400 and len(found.content) < 2000
    assert time.process_time() - started < 20  # seconds of work; 200,000 of anything, looked at twice, take hours


def test_waiting_for_the_tokenizer_is_inside_the_time_of_a_request(model, folder):
    application = serving.app(model, tokenizer(), folder, limits=serving.Limits(timeout=0.4))
    with served(application) as address, application.state.server.reader._lock:
        found = post(address, "/v1/completions", {"prompt": "a"})
        assert found.status_code == 504
        assert requests.get(f"{address}/health").status_code == 200


def test_a_stream_that_waits_says_so_and_openais_client_does_not_mind(model, folder):
    go = threading.Event()
    slow = build("llama")
    slow.model.layers[0].register_forward_pre_hook(lambda *_: go.wait(30) and None)
    limits = serving.Limits(keep_alive=0.05)
    with served(serving.app(slow, tokenizer(), folder, limits=limits)) as address:
        body = {"prompt": "a b", "stream": True, **GREEDY}
        with requests.post(f"{address}/v1/completions", json=body, stream=True, timeout=60) as found:
            lines = (line for line in found.iter_lines() if line)
            assert [next(lines) for _ in range(3)] == [b": waiting"] * 3
            go.set()
            rest = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        assert "".join(part["choices"][0]["text"] for part in rest) == said(model)
        go.clear()
        threading.Timer(0.3, go.set).start()
        parts = client(address).completions.create(model="", **body)
        assert "".join(part.choices[0].text for part in parts) == said(model)
        metrics = requests.get(f"{address}/metrics").text
    for one in ("first_token_seconds", "queue_seconds", "batch_seconds", "batch_rows"):
        assert float(re.search(rf"steerfn_{one}_count (\S+)", metrics)[1]) == 2


def test_the_schema_is_as_strict_as_the_server(address):
    schema = requests.get(f"{address}/openapi.json").json()
    limits = serving.Limits()
    cases = [
        ("/v1/completions", {"prompt": "a", **more})
        for more in (
            {}, {"n": limits.max_choices}, {"n": limits.max_choices + 1}, {"stop": ["a"] * 5}, {"stop": ["a"] * 4},
            {"steering": ["v0"] * 9}, {"steering": "v0"}, {"steering": {"vector": "v0", "alpha": 6.0}}, {"x": 1},
            {"prompt": ["a"] * 17}, {"prompt": []}, {"prompt": ["a", ""]}, {"stop": ""}, {"max_tokens": 0},
            {"tools": []}, {"logit_bias": {}}, {"logit_bias": {"1": 1}}, {"seed": 2**64}, {"stop": [""]},
        )
    ]  # fmt: skip
    messages = [{"role": "user", "content": "a"}]
    for body in ({}, {"prompt": None}, {"prompt": "a"}, {"messages": messages}, {"prompt": "a", "messages": messages}):
        cases.append(("/invocations", body))
    for path, body in cases:
        [reference] = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"].values()
        valid = jsonschema.Draft202012Validator({"$ref": reference, **schema}).is_valid(body)
        assert valid == (post(address, path, {"max_tokens": 1, **body}).status_code == 200), (path, body)
