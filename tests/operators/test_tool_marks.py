"""The marks of tool calls: read off response templates, chat templates and vocabularies, or given."""

import pytest
from words import words

import steerfn as sf
from steerfn.operators import ToolMarks, tool_marks
from steerfn.operators._tool_marks import FORMATS

HERMES = "<tool_call>{{ call }}</tool_call>"


def made(template=None, added=(), eos=None):
    tokenizer = words(bos=False)
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)} | ({"eos_token": eos} if eos else {}))
    return tokenizer


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_known_by_its_template_and_by_its_token(name):
    opens, *closes = FORMATS[name]
    expected = ToolMarks(opens, tuple(closes), (), name)
    assert (
        tool_marks(made(f"{{{{ '{opens}' }}}}{{{{ message.tool_calls }}}}{{{{ {' '.join(closes)!r} }}}}")) == expected
    )
    assert tool_marks(made("{{ messages }}", [opens, *closes])) == expected


def test_the_chat_template_comes_before_the_tokens():
    """Hermes is tuned on Llama 3, whose tokenizer has a mark of its own; its template may have several parts."""
    tokenizer = made(HERMES, ["<|python_tag|>", "<|eot_id|>", "<|eom_id|>"], eos="<|im_end|>")
    assert tool_marks(tokenizer) == ToolMarks(
        "<tool_call>", ("</tool_call>",), ("<|im_end|>", "<|eot_id|>", "<|eom_id|>"), "hermes"
    )
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": HERMES}
    assert tool_marks(tokenizer).format == "hermes"
    tokenizer.chat_template = None
    assert tool_marks(tokenizer).format == "llama"


def test_the_response_template_comes_first():
    tokenizer = made(HERMES)
    tokenizer.response_template = {"fields": {"tool_calls": {"open": "<<", "close": [">>", "|>"], "content": "json"}}}
    assert tool_marks(tokenizer) == ToolMarks("<<", (">>", "|>"), (), "response_template")
    calls = {"open_pattern": r"\s*<\|tool_call>call:(?P<name>\w+)", "close": "<tool_call|>"}
    tokenizer.response_template = {"fields": {"tool_calls": calls}}
    assert tool_marks(tokenizer).format == "gemma"
    tokenizer.response_template = {"fields": {"content": {}}}
    assert tool_marks(tokenizer).format == "hermes"


def test_a_callers_marks():
    tokenizer = made(HERMES, eos="</s>")
    assert tool_marks(tokenizer, ("CALL", ";", "\n")) == ToolMarks("CALL", (";", "\n"), ("</s>",), "given")
    assert tool_marks(tokenizer, ["CALL"]) == ToolMarks("CALL", (), ("</s>",), "given")
    for bad in ("<tool_call>", (), ("a", 3), ("", "b"), 7):
        with pytest.raises(sf.DataError, match="^marks is the text that opens a call and those that close it, such as"):
            tool_marks(tokenizer, bad)


def test_a_tokenizer_that_knows_of_no_calls():
    with pytest.raises(sf.DataError) as error:
        tool_marks(made("{{ messages }}"))
    text = str(error.value)
    assert (
        " knows of no tool calls: neither its response template, its chat template nor its tokens hold <tool_call> ... "
        in text
    )
    assert text.endswith("as in marks=('<tool_call>', '</tool_call>').") and "[TOOL_CALLS]" in text
