"""The LangChain chat model, with the real package: an answer is the library's own, however it is asked for."""

import asyncio
import concurrent.futures
import copy
import importlib
import sys
import threading

import pytest

pytest.importorskip("langchain_core", reason="LangChain is not installed")
import torch
from families import build
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from steering import vector
from words import WORDS, words

import steerfn as sf
from steerfn.integrations import _chat
from steerfn.integrations.langchain import SteeredChatModel, conversation
from steerfn.verbs._steer import STREAM

NAMES = [*WORDS, *(f"w{i}" for i in range(96 - len(WORDS)))]
V, W = (vector(sf.resid_post[1], seed=seed, scale=3.0) for seed in (0, 1))
ASK = "a b c"


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return words(template=True, names=NAMES)


@pytest.fixture
def chat(model, tokenizer):
    return SteeredChatModel(model, tokenizer, steering=V, alpha=2.0, max_new_tokens=8)


@pytest.fixture
def batches(monkeypatch):
    """How many rows each run of the model had."""
    found, run = [], _chat.run_batch

    def counted(model, tokenizer, jobs, *rest):
        found.append(len(jobs))
        return run(model, tokenizer, jobs, *rest)

    monkeypatch.setattr(_chat, "run_batch", counted)
    return found


def own(model, tokenizer, op, prompt=ASK, **hf):
    """What the library itself answers."""
    return sf.generate(model, tokenizer, prompt, op, max_new_tokens=8, **hf).texts[0]


def test_invoke_is_the_librarys_generate_and_unsteered_the_models_own(model, tokenizer, chat):
    answer = chat.invoke(ASK)
    assert answer.content == own(model, tokenizer, sf.add(V, 2.0)) != own(model, tokenizer, None)
    assert answer.usage_metadata == {"input_tokens": 6, "output_tokens": 8, "total_tokens": 14}
    assert answer.response_metadata["finish_reason"] == "length"
    ids = torch.tensor([[1, 29, 3, 4, 5, 30]])  # <bos> user a b c assistant
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, pad_token_id=0)[0, 6:]
    assert (
        chat.invoke(ASK, steering=None).content == tokenizer.decode(plain, skip_special_tokens=True) != answer.content
    )
    assert chat.bind(steering=W).invoke(ASK).content == own(model, tokenizer, sf.add(W))
    assert chat.invoke(ASK, alpha=-1).content == own(model, tokenizer, sf.add(V, -1.0))
    assert chat.invoke(ASK, steering=sf.ablate(V)).content == own(model, tokenizer, sf.ablate(V))


def test_a_begun_answer_is_continued(model, tokenizer, chat):
    closed = copy.deepcopy(tokenizer)
    closed.chat_template = closed.chat_template.replace("{{ m['content'] }} ", "{{ m['content'] }} z ")
    begun = [HumanMessage(ASK), AIMessage("d e")]
    answer = SteeredChatModel(model, closed, steering=V, alpha=2.0, max_new_tokens=8).invoke(begun)
    want = own(model, tokenizer, sf.add(V, 2.0), "<bos> user a b c z assistant d e")
    assert answer.content == want


def test_what_the_models_own_config_says_of_sampling_and_stops(tokenizer, chat):
    sampler, text = build("llama"), chat.invoke(ASK).content
    sampler.generation_config.update(do_sample=True, temperature=5.0, stop_strings=[text.split()[3]])
    answer = SteeredChatModel(sampler, tokenizer, steering=V, alpha=2.0, max_new_tokens=8).invoke(ASK)
    assert answer.content.split() == text.split()[:3] and answer.response_metadata["finish_reason"] == "stop"


def test_pitfall_65_a_long_input_pads_no_short_ones(chat, batches):
    asked = ["a " * 90, "a", "b", "c"]
    found = [answer.content for answer in chat.batch(asked)]
    assert batches == [3, 1] and found == [chat.invoke(each).content for each in asked]


def test_an_agent_of_langchains_runs_it(chat):
    agents = pytest.importorskip("langchain.agents", reason="the package langchain is not installed")
    said = agents.create_agent(chat, tools=[], system_prompt="d").invoke({"messages": [HumanMessage(ASK)]})
    assert said["messages"][-1].content == chat.invoke([SystemMessage("d"), HumanMessage(ASK)]).content


def test_agents_find_the_models_name_and_not_the_model(chat):
    """As LangChain's `create_agent` looks for it, which asks the name for providers."""
    name = getattr(chat, "model_name", None) or getattr(chat, "model", None) or getattr(chat, "model_id", "")
    assert "gpt" not in name.lower() and name == chat.invoke(ASK).response_metadata["model_name"]
    from_developer = [ChatMessage(role="developer", content="a"), HumanMessage("b")]
    assert conversation(from_developer)[0] == {"role": "system", "content": "a"}


def test_a_stream_is_the_answer_in_pieces(chat):
    chunks = list(chat.stream(ASK))
    assert len(chunks) > 4 and "".join(chunk.content for chunk in chunks) == chat.invoke(ASK).content
    whole = sum(chunks[1:], chunks[0])
    assert whole.usage_metadata["output_tokens"] == 8 and whole.response_metadata["finish_reason"] == "length"
    pieces = chat.stream(ASK, steering=None, max_new_tokens=50)
    next(pieces)
    pieces.close()
    assert not [thread for thread in threading.enumerate() if thread.name == STREAM]


def test_stop_texts_end_an_answer_and_are_left_out(chat):
    text = chat.invoke(ASK, steering=None).content.split()
    for said in (text[3], [text[3]]):
        answer = chat.invoke(ASK, steering=None, stop=said)
        assert (
            answer.content.split() == text[: text.index(text[3])]
            and answer.response_metadata["finish_reason"] == "stop"
        )
    assert "".join(c.content for c in chat.stream(ASK, steering=None, stop=[text[3]])) == answer.content
    assert chat.invoke(ASK, steering=None).content.split() == text


def test_sampled_answers_are_those_of_their_seed(model, tokenizer, chat):
    warm = {"temperature": 2.0, "top_p": 0.9}
    seeded = chat.bind(seed=5, **warm)
    answer = seeded.invoke(ASK).content
    assert answer == own(model, tokenizer, sf.add(V, 2.0), seed=[5], do_sample=True, top_k=0, **warm)
    assert answer == "".join(c.content for c in seeded.stream(ASK)) == seeded.batch(["d", ASK])[1].content
    assert len({chat.invoke(ASK, seed=seed, **warm).content for seed in (1, 2, 3, None, None)}) > 2


def test_a_batch_is_rows_and_each_gets_what_it_gets_alone(chat, batches):
    prompts, steering = [ASK, "d", "e f", ASK], [V, None, sf.at(sf.generated, sf.add(W, 2.0)), W]
    got = [answer.content for answer in chat.batch(prompts, steering=steering)]
    assert batches == [4]
    assert got == [chat.invoke(p, steering=s).content for p, s in zip(prompts, steering, strict=True)]
    assert len(set(got)) == 4 and chat.batch([]) == []
    batches.clear()
    same = [answer.content for answer in chat.batch(prompts, {"max_concurrency": 3}, steering=steering)]
    assert same == got and batches == [3, 1]
    with pytest.raises(sf.DataError, match="There are 4 inputs but 2 steerings; pass one for each"):
        chat.batch(prompts, steering=[V, None])


def test_what_fails_in_a_batch_fails_alone(chat, batches, monkeypatch):
    good, bad = chat.batch([ASK, "a " * 200], return_exceptions=True)
    assert good.content == chat.invoke(ASK).content and isinstance(bad, sf.DataError)
    assert "The prompt has 203 tokens and max_new_tokens is 8, together more than the 128" in str(bad)
    assert batches == [1, 1]
    with pytest.raises(sf.DataError, match="The prompt has 203 tokens"):
        chat.batch([ASK, "a " * 200])

    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(_chat, "run_batch", broken)
    assert [str(e) for e in chat.batch([ASK, "d"], return_exceptions=True)] == ["out of memory"] * 2
    with pytest.raises(RuntimeError, match="out of memory"):
        list(chat.stream(ASK))


def test_caches_never_take_one_steering_for_another(model, tokenizer, batches):
    chat = SteeredChatModel(model, tokenizer, max_new_tokens=8, cache=InMemoryCache())
    turned = sf.SteeringVector({sf.resid_post[1]: V[sf.resid_post[1]].flip(0)})  # the same norm, site and repr
    assert repr(turned) == repr(V)
    early, late = sf.scheduled(sf.add(V), [2.0, 0.0]), sf.scheduled(sf.add(V), [0.0, 2.0])
    scoped = [sf.at(scope, sf.add(V)) for scope in (sf.generated, sf.prompt, sf.positions(1))]
    ops = [None, V, turned, sf.add(V, 1.001), early, late, *scoped, sf.ablate(V)]
    texts = [chat.invoke(ASK, steering=op).content for op in ops]
    assert texts == [own(model, tokenizer, op) for op in ops] and len(batches) == len(ops)
    assert [chat.invoke(ASK, steering=op).content for op in ops] == texts and len(batches) == len(ops)
    assert chat.invoke(ASK, steering=sf.add(V, 1.0)).content == texts[1] and len(batches) == len(ops)  # the same one
    for k in (1.0, 2.0, 3.0):  # a function that takes the place of another in memory is another one
        op = sf.scheduled(sf.add(V), lambda index, k=k: torch.full_like(index, k, dtype=torch.float32))
        assert chat.invoke(ASK, steering=op).content == own(model, tokenizer, op)
    batches.clear()
    with sf.steer(model, W):  # an answer under a context is not the plain model's
        assert chat.invoke(ASK).content == own(model, tokenizer, None) != texts[0]
        chat.invoke(ASK)
    assert chat.invoke(ASK).content == texts[0] and len(batches) == 1
    other = [chat.invoke(ASK, **kwargs).content for kwargs in ({"max_new_tokens": 4}, {"stop": [texts[0].split()[2]]})]
    assert len({texts[0], *other}) == 3


def test_two_chat_models_that_share_a_cache(model, tokenizer):
    cache, changed = InMemoryCache(), build("llama")
    with torch.no_grad():
        changed.model.norm.weight.mul_(-1)
    chats = [
        SteeredChatModel(which, tokenizer, steering=op, max_new_tokens=8, cache=cache)
        for which in (model, changed)
        for op in (None, V, W)
    ]
    told = {str(chat._identifying_params) for chat in chats}
    assert len(told) == len({chat.invoke(ASK).content for chat in chats}) == 6
    steering = SteeredChatModel(model, tokenizer, steering=V, alpha=2.0)._identifying_params["steering"]
    assert steering["alpha"] == 2.0 and len(steering["vectors_sha256"][0]) == 64


def test_another_model_called_within_a_batch_answers_for_itself(model, tokenizer, chat):
    changed = build("llama")
    with torch.no_grad():
        changed.model.norm.weight.mul_(-1)
    other, heard = SteeredChatModel(changed, tokenizer, max_new_tokens=8), []

    class Handler(BaseCallbackHandler):
        def on_chat_model_start(self, serialized, messages, **kwargs):
            heard.append(other.invoke(ASK).content)

    got = chat.batch([ASK, ASK], {"callbacks": [Handler()]}, steering=[V, None])
    assert heard == [own(changed, tokenizer, None)] * 2 and heard[0] != own(model, tokenizer, None)
    assert [m.content for m in got] == [own(model, tokenizer, op) for op in (V, None)]


def test_a_batch_uses_the_cache_input_by_input(model, tokenizer, batches):
    chat = SteeredChatModel(model, tokenizer, max_new_tokens=8, cache=InMemoryCache())
    chat.invoke(ASK, steering=V)
    got = chat.batch([ASK, ASK, "d"], steering=[V, W, None])
    assert batches == [1, 2] and [m.content for m in got[:2]] == [own(model, tokenizer, v) for v in (V, W)]


def test_threads_do_not_see_each_others_steering(chat):
    ops = [None, V, W, sf.ablate(V)] * 3
    alone = [chat.invoke(ASK, steering=op).content for op in ops]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda op: chat.invoke(ASK, steering=op).content, ops)) == alone
        streams = pool.map(lambda op: "".join(c.content for c in chat.stream(ASK, steering=op)), ops)
        assert list(streams) == alone


def test_asynchronous_calls(chat):
    async def all_ways():
        pieces = [chunk.content async for chunk in chat.astream(ASK)]
        return (await chat.ainvoke(ASK)).content, "".join(pieces), await chat.abatch([ASK, ASK], steering=[V, None])

    invoked, streamed, both = asyncio.run(all_ways())
    assert invoked == streamed == chat.invoke(ASK).content
    assert [m.content for m in both] == [chat.invoke(ASK, steering=op).content for op in (V, None)]


def test_in_a_chain_and_by_configuration(chat):
    chain = ChatPromptTemplate.from_messages([("system", "x"), ("human", "{what}")]) | chat | StrOutputParser()
    assert chain.invoke({"what": ASK}) == chat.invoke([SystemMessage("x"), HumanMessage(ASK)]).content
    assert chain.batch([{"what": "a"}, {"what": "b"}]) == [chain.invoke({"what": w}) for w in "ab"]
    open_to = chat.configurable_fields(steering=ConfigurableField(id="steering"), alpha=ConfigurableField(id="alpha"))
    configs = [{"configurable": {"steering": op, "alpha": None}} for op in (W, None)]
    got = [m.content for m in open_to.batch([ASK, ASK], config=configs)]
    assert got == [chat.invoke(ASK, steering=op).content for op in (W, None)]


def test_callbacks_are_told_hashes(chat):
    heard = []

    class Handler(BaseCallbackHandler):
        def on_chat_model_start(self, serialized, messages, **kwargs):
            heard.append((serialized, kwargs["invocation_params"]))

        def on_llm_new_token(self, token, **kwargs):
            heard.append(token)

    answer = chat.invoke(ASK, {"callbacks": [Handler()]}, steering=sf.add(W, 1.5))
    [(serialized, params)] = heard
    assert params["steering"] == _chat.steering_identity(sf.add(W, 1.5)) and params["_type"] == "steerfn"
    assert "LlamaForCausalLM(" not in str(serialized) and "LlamaForCausalLM(" not in repr(chat)
    list(chat.stream(ASK, {"callbacks": [Handler()]}, steering=sf.add(W, 1.5)))
    assert "".join(heard[2:]) == answer.content


def test_settings_of_transformers_hold(model, tokenizer, chat, monkeypatch):
    op = sf.add(V, 2.0)
    bound = chat.bind(generation_kwargs={"repetition_penalty": 5.0})
    answer = bound.invoke(ASK).content
    assert answer == own(model, tokenizer, op, repetition_penalty=5.0) != chat.invoke(ASK).content
    assert bound.batch(["d e f g", ASK])[1].content == answer
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 5.0)
    configured = SteeredChatModel(model, tokenizer, steering=op, max_new_tokens=8)
    assert configured.invoke(ASK).content == answer


def test_tokens_are_counted_as_the_model_gets_them(chat):
    assert chat.get_num_tokens(ASK) == 3 and chat.get_num_tokens_from_messages([HumanMessage(ASK)]) == 6


def test_messages_become_a_conversation():
    blocks = [{"type": "text", "text": "a"}, " b"]
    given = [
        SystemMessage("s"),
        HumanMessage(blocks),
        AIMessage("c"),
        AIMessageChunk("d"),
        ChatMessage("e", role="user"),
    ]
    roles = ["system", "user", "assistant", "assistant", "user"]
    assert conversation(given) == [
        {"role": r, "content": c} for r, c in zip(roles, ["s", "a b", "c", "d", "e"], strict=True)
    ]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert conversation([AIMessage("", tool_calls=[CALL]), ToolMessage("4", tool_call_id="1")]) == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1", "name": "f"},
    ]


CALL = {"name": "f", "args": {"x": 1}, "id": "1"}
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    "message, told",
    [
        (
            FunctionMessage("4", name="f"),
            r"messages\[0\] is a FunctionMessage with role 'function', and this chat model",
        ),
        (HumanMessage([IMAGE]), r"messages\[0\] has content of type 'image_url', and this chat model takes text only"),
    ],
)
def test_messages_that_it_cannot_take(chat, message, told):
    with pytest.raises(sf.SteerError, match=told):
        chat.invoke([message])


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"steering": "happy"}, "takes a SteeringVector or an operator, not a str"),
        ({"steering": torch.ones(32)}, "takes a SteeringVector or an operator, not a Tensor"),
        ({"steering": vector(sf.resid_post[1], width=16)}, "has width 16, but LlamaForCausalLM has width 32"),
        ({"steering": vector(sf.resid_post[7])}, "7"),
        ({"steering": sf.add(V), "alpha": 2.0}, "alpha=2.0 goes with a vector"),
        ({"steering": V, "alpha": "much"}, "alpha is a number"),
        ({"steering": None, "alpha": 2.0}, "alpha=2.0 is the strength of a vector; pass steering=vector"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be a positive integer, got 0"),
        ({"max_new_tokens": "8"}, "`max_new_tokens` must be a positive integer, got '8'"),
        ({"max_new_tokens": True}, "`max_new_tokens` must be a positive integer, got True"),
        ({"temperature": -1}, "`temperature` must be a finite number >= 0"),
        ({"temperature": float("nan")}, "`temperature` must be a finite number >= 0"),
        ({"top_p": 0}, "`top_p` must be a finite number > 0 and <= 1"),
        ({"seed": 1.5}, "`seed` must be an integer"),
        ({"stop": [""]}, "stop is a text or a list of texts, none of them empty"),
        ({"stop": 3}, "stop is a text or a list of texts"),
        ({"generation_kwargs": {"num_beams": 4}}, "generation_kwargs has no num_beams; it takes bad_words_ids"),
        ({"generation_kwargs": 4}, "generation_kwargs is a mapping"),
        ({"alhpa": 2.0}, "alhpa"),
    ],
    ids=str,
)
def test_wrong_arguments_are_told_when_made_and_when_called(model, tokenizer, wrong, told):
    for refused in (
        lambda: SteeredChatModel(model, tokenizer, **wrong),
        lambda: SteeredChatModel(model, tokenizer).invoke(ASK, **wrong),
    ):
        with pytest.raises(sf.SteerError, match=told) as caught:
            refused()
        assert type(caught.value).__module__ == "steerfn.values._errors"


def test_what_is_no_model_no_tokenizer_no_template_and_no_tool(model, tokenizer, chat):
    for given, told in [
        (("gpt", tokenizer), "model is a transformers causal LM, not 'gpt' of type str"),
        ((model, "gpt"), "tokenizer is a transformers tokenizer, not 'gpt' of type str"),
    ]:
        with pytest.raises(sf.SteerError, match=told):
            SteeredChatModel(*given)
    with pytest.raises(sf.DataError, match="`batch_size` must be a positive integer, got 0"):
        SteeredChatModel(model, tokenizer, batch_size=0)
    with pytest.raises(sf.DataError, match="This tokenizer has no chat template, so"):
        SteeredChatModel(model, words(names=NAMES)).invoke(ASK)
    with pytest.raises(sf.DataError, match="There are no messages to answer"):
        chat.invoke([])
    with pytest.raises(sf.SteerError, match="The chat template of this tokenizer knows no tools"):
        chat.bind_tools([{"name": "f", "description": "", "parameters": {}}])
    strict = words(template=True, names=NAMES)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(sf.DataError, match="The chat template refuses these messages: roles must alternate"):
        SteeredChatModel(model, strict).invoke(ASK)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "steerfn.integrations.langchain")
    monkeypatch.setitem(sys.modules, "langchain_core.callbacks", None)
    with pytest.raises(ImportError, match=r'run: pip install -c constraints.txt -e "\.\[langchain\]"'):
        importlib.import_module("steerfn.integrations.langchain")
