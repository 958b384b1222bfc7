"""The same requests, through OpenAI's client, to `steerfn serve` and to vLLM with the plugin: the same rules hold.

pytest -n 0 -m "heavy or engine" tests/serving/test_same_requests.py     (vLLM, in an environment of its own)
"""

import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
import requests
from openai import APIStatusError, OpenAI
from served import served, wait_for
from steering import vector
from tool_models import tool_tokenizer

import steerfn as sf
from steerfn import serving

sys.path.append(str(Path(__file__).parents[1] / "engines"))

PERSON = {
    "type": "object", "required": ["name", "age"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
}  # fmt: skip
CITY = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
WEATHER = {"name": "weather", "description": "The weather.", "parameters": CITY, "strict": True}
TOOLS = [{"type": "function", "function": WEATHER}]
QUESTION = [{"role": "user", "content": "What is the weather in Oslo?"}]
STEERED = {"steering": {"vector": "one", "alpha": 30.0}}
GREEDY = {"temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    where = tmp_path_factory.mktemp("same")
    model, tokenizer = demo[0], tool_tokenizer()
    model.save_pretrained(where / "model")
    tokenizer.save_pretrained(where / "model")
    (where / "vectors").mkdir()
    sf.save(
        vector(12, width=576, seed=1).with_metadata(model=sf.values.fingerprint(model)),
        where / "vectors" / "one.safetensors",
    )
    return where


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("steerfn", marks=pytest.mark.heavy),
        pytest.param("vllm", marks=[pytest.mark.engine, pytest.mark.timeout(1800)]),
    ],
)
def server(request, demo, folder):
    """The client of a server, and the name of its model."""
    if request.param == "steerfn":
        with served(serving.app(demo[0], tool_tokenizer(), folder / "vectors")) as address:
            yield OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0), ""
        return
    from environments import beside, python_of
    from test_vllm import SETTINGS

    beside(python_of("vllm"), folder / "site")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(python_of("vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model"),
        "--served-model-name", "smol", "--port", str(port), "--enforce-eager", "--max-model-len", "512",
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--structured-outputs-config",
        '{"backend": "xgrammar", "disable_any_whitespace": true}',  # JSON on one line, as here
    ]  # fmt: skip
    environment = {
        **os.environ,
        **SETTINGS,
        "PYTHONPATH": str(folder / "site"),
        "STEERFN_VECTORS": str(folder / "vectors"),
    }
    with open(folder / "vllm.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:

        def is_up():
            assert process.poll() is None, (folder / "vllm.log").read_text()[-6000:]
            try:
                return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok
            except requests.ConnectionError:
                return False

        wait_for(is_up, 900)
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0), "smol"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def chat(server):
    client, model = server
    return lambda **body: client.chat.completions.create(model=model, **{"messages": QUESTION, **GREEDY, **body})


@pytest.fixture
def complete(server):
    client, model = server
    return lambda **body: client.completions.create(
        model=model, **{"prompt": "The sky is", **GREEDY, "max_tokens": 8, **body}
    )


def test_chat_steered_or_not_streamed_or_not(chat):
    plain, steered = chat(max_tokens=12), chat(max_tokens=12, extra_body=STEERED)
    assert plain.choices[0].message.content != steered.choices[0].message.content
    for body, whole in (({}, plain), ({"extra_body": STEERED}, steered)):
        chunks = list(chat(max_tokens=12, stream=True, **body))
        assert (
            "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
        )
    assert plain.choices[0].finish_reason == "length" and plain.usage.completion_tokens == 12


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=["required", "named"]
)
@pytest.mark.parametrize("extra", [{}, STEERED], ids=["plain", "steered"])
def test_a_forced_call_is_valid_steered_or_not(chat, server, choice, extra):
    [one] = chat(tools=TOOLS, tool_choice=choice, extra_body=extra, parallel_tool_calls=False).choices
    if one.finish_reason == "length":  # vLLM leaves the white space within a call free, and noise takes it
        assert extra and server[1] == "smol"
        return
    assert one.message.tool_calls and not one.message.content
    for call in one.message.tool_calls:
        assert call.type == "function" and call.id and call.function.name == "weather"
        jsonschema.validate(json.loads(call.function.arguments), CITY)


def test_a_conversation_with_calls_and_results_goes_on(chat):
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    history = [
        *QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "21 degrees"},
    ]  # fmt: skip
    [one] = chat(messages=history, tools=TOOLS, tool_choice="none").choices
    assert one.message.content and not one.message.tool_calls


@pytest.mark.parametrize("extra", [{}, STEERED], ids=["plain", "steered"])
def test_a_schema_is_satisfied_steered_or_not(chat, extra):
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    [one] = chat(response_format=schema, extra_body=extra).choices
    assert one.finish_reason == "stop"
    jsonschema.validate(json.loads(one.message.content), PERSON)


@pytest.mark.parametrize("wanted, check", [
    ({"regex": "[0-9]{3}-[0-9]{4}"}, lambda text: re.fullmatch("[0-9]{3}-[0-9]{4}", text)),
    ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
    ({"json": PERSON}, lambda text: jsonschema.validate(json.loads(text), PERSON) is None),
], ids=["regex", "choice", "json"])  # fmt: skip
def test_structured_outputs_as_vllm_names_them(chat, wanted, check):
    [one] = chat(extra_body={**STEERED, "structured_outputs": wanted}).choices
    assert one.finish_reason == "stop" and check(one.message.content)


def test_log_probabilities_of_a_message(chat):
    told = chat(max_tokens=6, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(told) == 6
    for one in told:  # greedy: the likeliest
        assert len(one.top_logprobs) == 3 and one.logprob == pytest.approx(
            max(each.logprob for each in one.top_logprobs)
        )
        assert one.token == one.top_logprobs[0].token and bytes(one.bytes).decode() == one.token


def test_echo_with_log_probabilities_as_evaluations_read_them(complete):
    [one] = complete(prompt="The sky is blue", echo=True, logprobs=1, max_tokens=1).choices
    told = one.logprobs
    assert one.text.startswith("The sky is blue") and "".join(told.tokens) == one.text
    assert told.token_logprobs[0] is None and all(value <= 0 for value in told.token_logprobs[1:])
    assert told.text_offset == [sum(map(len, told.tokens[:i])) for i in range(len(told.tokens))]
    for token, value, top in list(zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True))[1:]:
        assert math.isclose(top[token], value) and max(top.values()) >= value


def test_token_ids_are_prompts_one_or_many(complete, demo):
    ids = demo[1]("The sky is").input_ids
    texts = [complete().choices, complete(prompt=ids).choices, complete(prompt=[ids, ids]).choices]
    assert [len(each) for each in texts] == [1, 1, 2]
    assert len({choice.text for each in texts for choice in each}) == 1


def test_what_changes_the_choice_of_tokens(complete):
    plain = complete().choices[0].text
    assert complete(extra_body={"top_k": 1}, temperature=1.5).choices[0].text == plain
    assert complete(extra_body={"min_p": 1.0}, temperature=1.5).choices[0].text == plain
    biased = complete(logit_bias={"5345": 100}, max_tokens=3, logprobs=0)
    assert len(set(biased.choices[0].logprobs.tokens)) == 1
    long = [complete(max_tokens=20, **each).choices[0].text for each in (
        {}, {"frequency_penalty": 2.0}, {"extra_body": {"repetition_penalty": 1.5}},
    )]  # fmt: skip
    assert len(set(long)) == 3
    assert len(complete(n=3, temperature=1.0, seed=5).choices) == 3


@pytest.mark.parametrize("body", [
    {"temperature": -1}, {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
    {"extra_body": {"steering": {"vector": "unknown"}}}, {"extra_body": {"structured_outputs": {"regex": "["}}},
    {"messages": []},
], ids=["temperature", "tool", "schema", "vector", "regex", "messages"])  # fmt: skip
def test_what_both_refuse(chat, body):
    with pytest.raises(APIStatusError) as refused:
        chat(**body)
    assert refused.value.status_code in (400, 404, 422)
