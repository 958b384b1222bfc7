"""Reading tool calls: real texts of each format, cut anywhere, and grammars that make them."""

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steering import vector_at
from tool_models import noise, tool_tokenizer

import steerfn as sf
from steerfn.run import BatchJob, RowSampling, ToolReader, compile_structure, decoding_of, encode, run_batch
from steerfn.run._tool_calls import FORMATS, Reply, ToolCall

HERMES, MISTRAL, LLAMA = (FORMATS[name] for name in ("hermes", "mistral", "llama"))
NAMES = ["f", "g", "get_weather"]
F, G = ToolCall("f", '{"x": 1}'), ToolCall("g", "{}")
WEATHER = ToolCall("get_weather", '{"city": "Zürich"}')
QUOTING = ToolCall("f", '{"text": "write </tool_call> or <tool_call>{\\"name\\": \\"g\\"} and \\\\ [TOOL_CALLS]"}')


def hermes(call):
    return f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.arguments}}}\n</tool_call>'


TEXTS = [
    # Hermes 3, Qwen 2.5 and 3
    (HERMES, hermes(WEATHER), "", [WEATHER]),
    (HERMES, f"I'll look it up.\n\n{hermes(WEATHER)}", "I'll look it up.", [WEATHER]),
    (HERMES, f"{hermes(F)}\n{hermes(G)}", "", [F, G]),
    (HERMES, f"First: {hermes(F)} then {hermes(G)}\nDone.", "First:\nthen\nDone.", [F, G]),
    (HERMES, '<tool_call>\n{"arguments": {"x": 1}, "name": "f"}\n</tool_call>', "", [F]),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [F]),  # as text, as OpenAI has it
    (HERMES, '<tool_call>\n{"name": "f", "arguments": {"x": 1}}', "", [F]),  # ended without the mark
    (HERMES, f'<tool_call>\n{{"name": "g"}}\n{hermes(F)}', "", [G, F]),
    (HERMES, hermes(QUOTING), "", [QUOTING]),  # a call inside a string
    (HERMES, f"It is <tool_call> and </tool_call>. {hermes(F)}", "It is <tool_call> and </tool_call>.", [F]),
    (HERMES, '<tool_call>\n{"name": "f", "argum', '<tool_call>\n{"name": "f", "argum', []),  # cut off in the middle
    (HERMES, f"{hermes(F)}\n<tool_call>\n{{\"na", '<tool_call>\n{"na', [F]),
    (HERMES, "<tool_call>\n{name: f}\n</tool_call>", "<tool_call>\n{name: f}\n</tool_call>", []),  # JSON that is none
    (HERMES, '<tool_call>{"x": 1}</tool_call>', '<tool_call>{"x": 1}</tool_call>', []),  # JSON that is no call
    (HERMES, '<tool_call>{"name": "f", "arguments": [1]}', '<tool_call>{"name": "f", "arguments": [1]}', []),
    (HERMES, '<tool_call>{"name": "f"}}}</tool_call> so', '<tool_call>{"name": "f"}}}</tool_call> so', []),
    (HERMES, "  plain, with spaces  ", "  plain, with spaces  ", []),
    # Mistral 7B v0.3 and Nemo; Small 3.1 and later
    (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]', "", [F, G]),
    (MISTRAL, '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Zürich"}, "id": "a1b2"}]', "", [WEATHER]),
    (MISTRAL, 'Let me see.[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{}', "Let me see.", [F, G]),
    (MISTRAL, '[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{"x": 1}', "", [F]),
    (MISTRAL, '[TOOL_CALLS] [{"name": "f", "argu', '[TOOL_CALLS] [{"name": "f", "argu', []),
    (MISTRAL, "[TOOL_CALLS] none, thank you", "[TOOL_CALLS] none, thank you", []),
    (MISTRAL, '[TOOL_CALLS] [{"x": 1}]', '[TOOL_CALLS] [{"x": 1}]', []),
    # Llama 3.1 and 3.2
    (LLAMA, '{"name": "f", "parameters": {"x": 1}}', "", [F]),
    (LLAMA, '<|python_tag|>{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}', "", [F, G]),
    (LLAMA, '{"type": "function", "name": "get_weather", "parameters": {"city": "Zürich"}}', "", [WEATHER]),
    (LLAMA, '{"name": "unknown", "parameters": {}}', '{"name": "unknown", "parameters": {}}', []),
    (LLAMA, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA, 'Call {"name": "f", "parameters": {}}', 'Call {"name": "f", "parameters": {}}', []),
    (LLAMA, '{"name": "f", "param', '{"name": "f", "param', []),
    (LLAMA, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
]  # fmt: skip


@pytest.mark.parametrize("form, text, content, calls", TEXTS, ids=range(len(TEXTS)))
def test_texts_of_each_format_are_taken_apart_whole_and_as_they_grow(form, text, content, calls):
    whole = form.read(text, NAMES, complete=True)
    assert whole == Reply(content, tuple(calls))
    seen = Reply("")
    for size in range(len(text) + 1):
        part = form.read(text[:size], NAMES, complete=False)
        assert part.content.startswith(seen.content) and part.calls[: len(seen.calls)] == seen.calls
        seen = part
    assert whole.content.startswith(seen.content) and whole.calls[: len(seen.calls)] == seen.calls


ARGUMENTS = st.dictionaries(
    st.text(max_size=5), st.text(max_size=12) | st.integers() | st.lists(st.none(), max_size=2), max_size=3
)
PROSE = st.text(st.characters(exclude_characters="<[{", exclude_categories=["Cs"]), max_size=20).map(str.strip)


@settings(max_examples=60)
@given(st.lists(st.tuples(PROSE, ARGUMENTS), max_size=4), PROSE, st.data())
def test_what_is_written_is_read_and_every_beginning_is_a_beginning(calls, end, data):
    made = [ToolCall("f", json.dumps(arguments, ensure_ascii=False)) for _, arguments in calls]
    text = "".join(prose + hermes(call) for (prose, _), call in zip(calls, made, strict=True)) + end
    prose = [part for part in (*(prose for prose, _ in calls), end) if part]
    whole = HERMES.read(text, NAMES, complete=True)
    assert whole == Reply("\n".join(prose) if calls else end, tuple(made))
    part = HERMES.read(text[: data.draw(st.integers(0, len(text)))], NAMES, complete=False)
    assert whole.content.startswith(part.content) and whole.calls[: len(part.calls)] == part.calls


@given(st.text(st.sampled_from('<tool_cal/>{}[]",:\\ namef'), max_size=60))
def test_no_text_is_lost_or_raises(text):
    for form in FORMATS.values():
        reply = form.read(text, NAMES, complete=True)
        assert reply.calls or reply.content == text


TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"$ref": "#/$defs/days"}},
        "required": ["city"], "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}}}},
    {"type": "function", "function": {"name": "now"}},
    {"type": "function", "function": {"name": "until", "parameters": {  # the same word for another thing
        "type": "object", "properties": {"days": {"$ref": "#/$defs/days"}}, "required": ["days"],
        "$defs": {"days": {"enum": ["monday", "sunday"]}}}}},
]  # fmt: skip


@pytest.mark.parametrize(
    "form, only, several", [(form, *how) for form in (*FORMATS, "tekken") for how in ((None, True), ("now", False))]
)
def test_forced_calls_are_valid_at_any_strength(form, only, several):
    """The law: whatever noise steering makes of a model, an answer that is finished calls a tool as its schema says."""
    tokenizer = tool_tokenizer("mistral" if form == "tekken" else form)
    if form == "tekken":  # later models of Mistral have a token between name and arguments
        tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "[ARGS]"]})
    model = noise(tokenizer)
    reader, decoding = ToolReader(tokenizer, TOOLS), decoding_of("test", model, tokenizer, {})
    structure = compile_structure(tokenizer, reader.grammar(only, several), decoding.ends)
    ids = encode(tokenizer, ["What is the weather in Oslo?"], {"tools": TOOLS})[0]
    direction = vector_at(model, sf.resid_post[1], seed=3)
    jobs, texts = [], []
    for i, alpha in enumerate((0.0, -1.0, 3.0, 30.0, 300.0, 3000.0)):
        texts.append([])
        jobs.append(
            BatchJob(
                ids, sf.add(direction, alpha), 300, RowSampling(temperature=float(i % 2), seed=i), (), texts[-1].append,
                structure=structure, marks=reader.mark_texts,
            )
        )  # fmt: skip
    run_batch(model, tokenizer, jobs, decoding)
    schemas = {each["function"]["name"]: each["function"].get("parameters", {}) for each in TOOLS}
    for job, pieces in zip(jobs, texts, strict=True):
        reply = reader.read("".join(piece for piece in pieces if piece), complete=True)
        if job.reason == "stop":
            assert not reply.content and 1 <= len(reply.calls) <= (8 if several else 1)
        for call in reply.calls:
            assert only in (None, call.name)
            jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    assert sum(job.reason == "stop" for job in jobs) >= 2


def test_what_cannot_call_tools_is_refused_and_says_why(demo):
    with pytest.raises(sf.DataError, match="knows no tools, so the model would never hear of them"):
        ToolReader(demo[1], TOOLS)
    strange = tool_tokenizer()
    strange.chat_template = strange.chat_template.replace("<tool_call>", "<function=").replace(
        "</tool_call>", "</function>"
    )
    with pytest.raises(sf.DataError, match="in a form that is not read here"):
        ToolReader(strange, TOOLS)


def test_a_response_template_is_read_by_transformers_where_it_can(demo):
    tokenizer = tool_tokenizer()
    if not hasattr(tokenizer, "parse_response"):
        pytest.skip("this transformers has no parse_response")
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "content": {"close": "<|im_end|>"},
            "tool_calls": {
                "open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json",
                "transform": {"function": {"name": "{content.name}", "arguments": "{content.arguments}"}},
            },
        },
    }  # fmt: skip
    reader = ToolReader(tokenizer, TOOLS)
    call = ToolCall("weather", '{"city": "Oslo"}')
    assert reader.read(f"Well.{hermes(call)}", complete=False) == Reply("")
    prompt = encode(tokenizer, ["Weather?"], {"tools": TOOLS})[0]
    reply = reader.read(f"Well.{hermes(call)}<|im_end|>", complete=True, prompt=prompt)
    assert reply.calls == (call,) and reply.content.strip() == "Well."
    broken = "<tool_call>{name: weather}</tool_call>"
    assert reader.read(broken, complete=True, prompt=prompt) == Reply(broken)
