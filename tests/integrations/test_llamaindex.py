"""The LlamaIndex LLM, with the real package: an answer is the library's own, however it is asked for."""

import asyncio
import copy
import importlib
import sys

import pytest

pytest.importorskip("llama_index.core", reason="LlamaIndex is not installed")
import torch
from families import build
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage, MessageRole
from steering import vector
from words import WORDS, words

import steerfn as sf
from steerfn.integrations.llamaindex import SteeredLLM, conversation

NAMES = [*WORDS, *(f"w{i}" for i in range(96 - len(WORDS)))]
V, W = (vector(sf.resid_post[1], seed=seed, scale=3.0) for seed in (0, 1))
ASK = "a b c"
MESSAGES = [ChatMessage(ASK)]


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return words(template=True, names=NAMES)


@pytest.fixture
def llm(model, tokenizer):
    return SteeredLLM(model, tokenizer, steering=V, alpha=2.0, max_new_tokens=8)


def own(model, tokenizer, op, chat=False, **hf):
    """What the library itself answers."""
    return sf.generate(model, tokenizer, ASK, op, max_new_tokens=8, chat=chat, **hf).texts[0]


def test_complete_and_chat_are_the_librarys_generate(model, tokenizer, llm):
    done, said = llm.complete(ASK), llm.chat(MESSAGES)
    assert done.text == own(model, tokenizer, sf.add(V, 2.0)) != own(model, tokenizer, None)
    assert said.message.content == own(model, tokenizer, sf.add(V, 2.0), chat=True) != done.text
    assert said.message.role == MessageRole.ASSISTANT
    usage = {"prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14}
    assert said.raw == {"finish_reason": "length", "usage": usage}
    ids = torch.tensor([[1, 3, 4, 5]])
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, pad_token_id=0)[0, 4:]
    assert llm.complete(ASK, steering=None).text == tokenizer.decode(plain, skip_special_tokens=True)
    assert llm.chat(MESSAGES, steering=W).message.content == own(model, tokenizer, sf.add(W), chat=True)
    assert llm.complete(ASK, alpha=-1.0).text == own(model, tokenizer, sf.add(V, -1.0))


def test_a_begun_answer_is_continued(model, tokenizer):
    closed = copy.deepcopy(tokenizer)
    closed.chat_template = closed.chat_template.replace("{{ m['content'] }} ", "{{ m['content'] }} z ")
    begun = [*MESSAGES, ChatMessage("d e", role="assistant")]
    answer = SteeredLLM(model, closed, steering=V, max_new_tokens=8).chat(begun).message.content
    rendered = "<bos> user a b c z assistant d e"
    assert answer == sf.generate(model, tokenizer, rendered, V, chat=False, max_new_tokens=8).texts[0]


def test_streams_are_the_answers_in_pieces(llm):
    completed, said = list(llm.stream_complete(ASK)), list(llm.stream_chat(MESSAGES))
    assert len(completed) > 4 and len(said) > 4
    assert "".join(each.delta for each in completed) == completed[-1].text == llm.complete(ASK).text
    assert "".join(each.delta for each in said) == said[-1].message.content == llm.chat(MESSAGES).message.content
    assert said[-1].raw["usage"]["completion_tokens"] == 8
    text = llm.complete(ASK, steering=None).text.split()
    assert llm.complete(ASK, steering=None, stop=text[2]).text.split() == text[: text.index(text[2])]
    warm = {"temperature": 2.0, "seed": 3}
    assert list(llm.stream_complete(ASK, **warm))[-1].text == llm.complete(ASK, **warm).text != llm.complete(ASK).text


def test_asynchronous_calls(llm):
    async def all_ways():
        completed = [each.delta async for each in await llm.astream_complete(ASK)]
        said = [each.delta async for each in await llm.astream_chat(MESSAGES)]
        return (await llm.acomplete(ASK)).text, completed, (await llm.achat(MESSAGES)).message.content, said

    completed, pieces, said, parts = asyncio.run(all_ways())
    assert completed == "".join(pieces) == llm.complete(ASK).text
    assert said == "".join(parts) == llm.chat(MESSAGES).message.content


def test_metadata(llm, model):
    told = llm.metadata
    assert (told.context_window, told.num_output, told.is_chat_model) == (128, 8, True)
    assert told.model_name == sf.values.fingerprint(model)["name"]
    assert not SteeredLLM(model, words(names=NAMES)).metadata.is_chat_model


def test_what_is_written_down_tells_steerings_apart(model, tokenizer):
    turned = sf.SteeringVector({sf.resid_post[1]: V[sf.resid_post[1]].flip(0)})  # the same norm and site
    ops = [None, V, turned, sf.add(V, 2.0), sf.ablate(V), sf.at(sf.generated, sf.add(V))]
    told = [SteeredLLM(model, tokenizer, steering=op).to_dict() for op in ops]
    assert len(set(map(str, told))) == len(ops) and told[3]["identity"]["steering"]["alpha"] == 2.0
    assert str(SteeredLLM(model, tokenizer, steering=sf.add(V)).to_dict()) == str(told[1])
    assert "model" not in told[0] and "LlamaForCausalLM(" not in repr(SteeredLLM(model, tokenizer))


def test_prompts_of_llamaindex(model, tokenizer, llm):
    assert llm.predict(PromptTemplate("a b {x}"), x="c") == llm.chat(MESSAGES).message.content
    counter = TokenCountingHandler(tokenizer=str.split)
    counted = SteeredLLM(model, tokenizer, max_new_tokens=8, callback_manager=CallbackManager([counter]))
    counted.chat(MESSAGES)
    assert (counter.prompt_llm_token_count, counter.completion_llm_token_count) == (6, 8)


def test_text_that_was_formatted_has_one_beginning(model, tokenizer):
    written = SteeredLLM(
        model,
        tokenizer,
        max_new_tokens=8,
        messages_to_prompt=lambda messages: f"<bos> {messages[0].content}",
        completion_to_prompt=lambda prompt: f"<bos> {prompt}",
    )
    expected = own(model, tokenizer, None)
    assert written.complete(ASK).text == written.chat(MESSAGES).message.content == expected
    assert written.complete(ASK).raw["usage"]["prompt_tokens"] == 4


def test_messages_become_a_conversation():
    given = [ChatMessage("s", role="system"), ChatMessage(blocks=[TextBlock(text="a"), TextBlock(text=" b")])]
    assert conversation([ChatMessage("s", role="developer")]) == conversation(given)[:1]
    assert conversation(given) == [{"role": "system", "content": "s"}, {"role": "user", "content": "a b"}]
    block = ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs={"x": 1})
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    result = ChatMessage("4", role="tool", additional_kwargs={"tool_call_id": "1"})
    assert conversation([ChatMessage(role="assistant", blocks=[block]), result]) == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1", "name": "f"},
    ]


@pytest.mark.parametrize(
    "message, told",
    [
        (ChatMessage("", role="assistant", additional_kwargs={"tool_calls": [1]}), "tool calls of another LLM's form"),
        (ChatMessage(blocks=[ImageBlock(image=b"x")]), r"messages\[0\] has content of type ImageBlock, and"),
    ],
)
def test_messages_that_it_cannot_take(llm, message, told):
    with pytest.raises(sf.SteerError, match=told):
        llm.chat([message])


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"steering": "happy"}, "takes a SteeringVector or an operator, not a str"),
        ({"steering": vector(sf.resid_post[1], width=16)}, "has width 16, but LlamaForCausalLM has width 32"),
        ({"max_new_tokens": 1.5}, "`max_new_tokens` must be a positive integer, got 1.5"),
        ({"alhpa": 2.0}, "alhpa"),
    ],
    ids=str,
)
def test_wrong_arguments_are_told_when_made_and_when_called(model, tokenizer, wrong, told):
    with pytest.raises(sf.SteerError, match=told):
        SteeredLLM(model, tokenizer, **wrong)
    with pytest.raises(sf.SteerError, match=told):
        SteeredLLM(model, tokenizer).complete(ASK, **wrong)


def test_no_template_no_chat_and_too_long(model, llm):
    with pytest.raises(sf.DataError, match="This tokenizer has no chat template"):
        SteeredLLM(model, words(names=NAMES)).chat(MESSAGES)
    with pytest.raises(sf.DataError, match="together more than the 128 that the model takes"):
        llm.complete("a " * 200)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "steerfn.integrations.llamaindex")
    monkeypatch.setitem(sys.modules, "llama_index.core.llms.callbacks", None)
    with pytest.raises(ImportError, match=r'run: pip install -c constraints.txt -e "\.\[llamaindex\]"'):
        importlib.import_module("steerfn.integrations.llamaindex")
