"""Tool calls through the server: asked for, streamed, forced, answered, and steered."""

import json

import jsonschema
import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
from served import client, post, served
from steering import vector_at
from tool_models import noise, scripted, tool_tokenizer

import steerfn as sf
from steerfn import serving

CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
QUESTION = [{"role": "user", "content": "How is the weather in Oslo and Rome?"}]
GREEDY = {"model": "", "temperature": 0}
CALLS = "".join(
    f'\n<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
    for city in ("Oslo", "Rome")
)


def answer(prompt: str) -> str:
    """What the scripted model writes: two calls, and a sentence once it has their results."""
    if "tool\n21" in prompt:
        return "It is 21 degrees in both."
    return f"Let me look.{CALLS}" if "weather in Oslo" in prompt else "Hello <tool_call> you."


@pytest.fixture(scope="module")
def address():
    tokenizer = tool_tokenizer()
    with served(serving.app(scripted(tokenizer, answer), tokenizer)) as where:
        yield where


def test_the_loop_of_an_agent_as_openais_client_writes_it(address):
    ask = client(address).chat.completions.create
    choice = ask(messages=QUESTION, tools=TOOLS, **GREEDY).choices[0]
    message = choice.message
    assert choice.finish_reason == "tool_calls" and message.content == "Let me look."
    assert [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls] == [
        ("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"}),
    ]  # fmt: skip
    identifiers = [call.id for call in message.tool_calls]
    assert len(set(identifiers)) == 2 and all(len(each) == 9 and each.isalnum() for each in identifiers)
    results = [{"role": "tool", "tool_call_id": each, "content": "21"} for each in identifiers]
    last = ask(messages=[*QUESTION, message.model_dump(), *results], tools=TOOLS, **GREEDY).choices[0]
    assert (last.finish_reason, last.message.content, last.message.tool_calls) == (
        "stop", "It is 21 degrees in both.", None,
    )  # fmt: skip


def test_a_stream_says_what_the_whole_answer_says(address):
    ask = client(address).chat.completions.create
    whole = ask(messages=QUESTION, tools=TOOLS, **GREEDY).choices[0]
    content, calls, reasons = "", {}, []
    for chunk in ask(messages=QUESTION, tools=TOOLS, stream=True, **GREEDY):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        for call in delta.tool_calls or ():
            calls.setdefault(call.index, []).append((call.id, call.type, call.function.name, call.function.arguments))
        reasons.append(chunk.choices[0].finish_reason)
    assert content == whole.message.content and reasons[-1] == "tool_calls" and not any(reasons[:-1])
    assert [parts[0][2:] for parts in calls.values()] == [
        (call.function.name, call.function.arguments) for call in whole.message.tool_calls
    ]
    assert sorted(calls) == [0, 1] and all(kind == "function" for _, kind, *_ in calls[0])


def test_text_that_quotes_a_mark_is_text_streamed_or_not(address):
    ask = client(address).chat.completions.create
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, **GREEDY}
    whole = ask(**body).choices[0]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True, **body))
    assert whole.message.content == streamed == "Hello <tool_call> you." and whole.finish_reason == "stop"


def test_one_call_or_none_where_no_more_is_wanted(address):
    ask = client(address).chat.completions.create
    one = ask(messages=QUESTION, tools=TOOLS, parallel_tool_calls=False, **GREEDY).choices[0]
    assert len(one.message.tool_calls) == 1 and one.finish_reason == "tool_calls"
    none = ask(messages=QUESTION, tools=TOOLS, tool_choice="none", **GREEDY).choices[0]
    assert none.message.tool_calls is None and none.message.content == f"Let me look.{CALLS}"
    cut = ask(messages=QUESTION, tools=TOOLS, max_tokens=12, **GREEDY).choices[0]
    assert cut.finish_reason == "length" and cut.message.content.startswith("Let me look.\n<tool_call>")


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_is_valid_at_any_alpha(tmp_path, stream):
    tokenizer = tool_tokenizer()
    model = noise(tokenizer)
    sf.save(vector_at(model, sf.resid_post[1], scale=3.0), tmp_path / "v.safetensors")
    with served(serving.app(model, tokenizer, tmp_path)) as address:
        ask = client(address).chat.completions.create
        for alpha in (-4.0, 400.0):
            for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
                made = ask(
                    messages=QUESTION, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, seed=3, model="",
                    max_tokens=80, stream=stream, extra_body={"steering": {"vector": "v", "alpha": alpha}},
                )  # fmt: skip
                if stream:
                    chunks = [chunk.choices[0] for chunk in made]
                    reason, content = chunks[-1].finish_reason, "".join(c.delta.content or "" for c in chunks)
                    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
                else:
                    [only] = made.choices
                    reason, content, calls = only.finish_reason, only.message.content, only.message.tool_calls
                assert reason == "tool_calls" and not content and len(calls) == 1
                if calls[0].function.name == "weather":
                    jsonschema.validate(json.loads(calls[0].function.arguments), CITY)
                else:
                    assert choice == "required" and json.loads(calls[0].function.arguments) == {}


def test_steering_that_leaves_calls_alone_is_the_scope_of_the_library(tmp_path):
    tokenizer = tool_tokenizer()
    model = noise(tokenizer)
    v = vector_at(model, sf.resid_post[1], scale=4.0)
    sf.save(v, tmp_path / "v.safetensors")
    prompts = ["It was a day", 'It was <tool_call>\n{"name": "now", "arg']
    with served(serving.app(model, tokenizer, tmp_path)) as address:
        for outside in (False, True):
            steering = {"vector": "v", "alpha": 2.0, "outside_tool_calls": outside}
            body = {"prompt": prompts, "max_tokens": 8, "temperature": 0, "steering": steering}
            reply = post(address, "/v1/completions", body).json()
            assert reply["steering"][0]["outside_tool_calls"] is outside
            op = sf.at(sf.outside_tool_calls(tokenizer) if outside else sf.everywhere, sf.add(v, 2.0))
            own = sf.generate(model, tokenizer, prompts, op, max_new_tokens=8, chat=False)
            assert [choice["text"] for choice in reply["choices"]] == list(own.texts)
            plain = sf.generate(model, tokenizer, prompts, max_new_tokens=8, chat=False).texts
            assert (own.texts[0] != plain[0]) and (own.texts[1] != plain[1])


REFUSED = {
    "choice without tools": ({"tool_choice": "required"}, "tool_choice asks for a call, and there are no tools"),
    "unknown choice": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}, "names the tool 'no'",
    ),
    "twice": ({"tools": [TOOLS[0], TOOLS[0]]}, "Two tools have the name 'weather'"),
    "name": ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    "other kind": ({"tools": [{"type": "retrieval"}]}, "tools.0"),
    "schema": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
         "tool_choice": "required"},
        "tool_choice: This structure cannot be enforced: JSON schema: Unimplemented keys",
    ),
    "both": (
        {"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format and tools ask for different",
    ),
    "no id": ({"messages": [{"role": "tool", "content": "x"}]}, "has the tool_call_id that it answers"),
    "answer to nothing": (
        {"messages": [*QUESTION, {"role": "tool", "content": "x", "tool_call_id": "y"}]},
        "messages.1 answers the tool call 'y', which no message before it makes",
    ),
    "arguments": (
        {"messages": [{"role": "assistant", "tool_calls": [
            {"id": "y", "type": "function", "function": {"name": "f", "arguments": "[]"}}]}]},
        "must be the text of a JSON object, not '[]'",
    ),
    "empty": ({"messages": [{"role": "assistant"}]}, "content is missing"),
    "deep": (
        {"messages": [{"role": "assistant", "tool_calls": [
            {"id": "y", "type": "function", "function": {"name": "f", "arguments": "[" * 50_000}}]}]},
        "must be the text of a JSON object",
    ),
    "half a character": (
        {"messages": [{"role": "assistant", "tool_calls": [
            {"id": "y", "type": "function", "function": {"name": "f", "arguments": '{"x": "\\ud800"}'}}]}]},
        "must be the text of a JSON object",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_with_tools_is_said(address, name):
    body, message = REFUSED[name]
    reply = post(address, "/v1/chat/completions", {"messages": QUESTION, "max_tokens": 2, **body})
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]


def test_a_template_that_knows_no_tools_refuses_them(demo):
    model, tokenizer = demo
    with served(serving.app(model, tokenizer)) as address:
        reply = post(address, "/v1/chat/completions", {"messages": QUESTION, "tools": TOOLS})
    assert reply.status_code == 400 and "knows no tools, so the model would never" in reply.json()["error"]["message"]
