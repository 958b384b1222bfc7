"""Agents of LangChain, LangGraph and LlamaIndex: tools, loops and structured answers, steered by model and by call.

A scripted model writes exact answers; a model in noise, and the demo model, are made to call by a grammar.
"""

import asyncio
import json
from typing import Literal

import pytest

pytest.importorskip("langchain", reason="LangChain's agents are not installed")
pytest.importorskip("llama_index.core", reason="LlamaIndex is not installed")
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field
from steering import vector_at
from tool_models import noise, scripted, tool_tokenizer

import steerfn as sf
from steerfn.integrations.langchain import SteeredChatModel
from steerfn.integrations.llamaindex import SteeredLLM

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # LlamaIndex's own
QUESTION = "How is the weather in Oslo, and what time is it?"
CALLS = (
    'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)
LAST = "It is sunny at noon."


def answer(prompt: str) -> str:
    """Two calls, and a sentence once both results are there."""
    return LAST if "sunny in Oslo" in prompt and "noon" in prompt else CALLS


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def now() -> str:
    """The time."""
    return "noon"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=120)


@pytest.fixture(scope="module")
def tokenizer():
    return tool_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return scripted(tokenizer, answer)


@pytest.fixture(scope="module")
def loud(tokenizer):
    """A model in noise, and a vector that makes it louder."""
    model = noise(tokenizer)
    return model, vector_at(model, sf.resid_post[1], scale=50.0)


@pytest.fixture
def chat(model, tokenizer):
    return SteeredChatModel(model, tokenizer, max_new_tokens=160)


@pytest.fixture
def llm(model, tokenizer):
    return SteeredLLM(model, tokenizer, max_new_tokens=160)


def check_langchain(messages):
    """A question, two calls, their results, and a last answer."""
    asked, called, *results, last = messages
    assert isinstance(asked, HumanMessage) and called.content == "Let me look."
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("weather", {"city": "Oslo"}), ("now", {})]
    assert [each.content for each in results] == ["sunny in Oslo", "noon"]
    assert {each.tool_call_id for each in results} == {call["id"] for call in called.tool_calls}
    assert last.content == LAST and not last.tool_calls


def test_an_agent_of_langchain(chat, model):
    steered = chat.model_copy(update={"steering": vector_at(model, sf.resid_post[1])})
    for each in (chat, steered):
        check_langchain(create_agent(each, [weather, now]).invoke({"messages": [("user", QUESTION)]})["messages"])
    agent = create_agent(chat, [weather, now])
    check_langchain(asyncio.run(agent.ainvoke({"messages": [("user", QUESTION)]}))["messages"])
    parts = [part for part, _ in agent.stream({"messages": [("user", QUESTION)]}, stream_mode="messages")]
    text = "".join(part.content for part in parts if not isinstance(part, ToolMessage))
    assert text == f"Let me look.{LAST}" and len(parts) > 6


def test_a_graph_of_langgraph_with_a_loop_of_tools(chat):
    tools = [tool(weather), tool(now)]
    bound = chat.bind_tools(tools)
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [bound.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    check_langchain(graph.compile().invoke({"messages": [("user", QUESTION)]})["messages"])


def test_calls_stream_as_chunks_that_add_up(chat):
    bound = chat.bind_tools([weather, now])
    whole, parts = bound.invoke(QUESTION), list(bound.stream(QUESTION))
    total = parts[0]
    for part in parts[1:]:
        total += part
    assert total.content == whole.content and len(parts) > 5
    assert [(c["name"], c["args"]) for c in total.tool_calls] == [(c["name"], c["args"]) for c in whole.tool_calls]
    assert whole.response_metadata["finish_reason"] == total.response_metadata["finish_reason"] == "tool_calls"
    one = chat.bind_tools([weather, now], parallel_tool_calls=False).invoke(QUESTION)
    assert [call["name"] for call in one.tool_calls] == ["weather"]
    assert not chat.bind_tools([weather], tool_choice="none").invoke(QUESTION).tool_calls
    both = bound.batch([QUESTION, QUESTION])
    assert all(len(each.tool_calls) == 2 for each in both)


def roll(sides: Literal["four", "six"]) -> str:
    """Roll a die."""
    return sides


@pytest.mark.parametrize("choice, names", [("any", {"roll", "now"}), ("roll", {"roll"}), (True, {"roll", "now"})])
def test_a_bound_tool_that_must_be_called_is_called_at_any_steering(loud, tokenizer, choice, names):
    model, direction = loud
    chat = SteeredChatModel(model, tokenizer, max_new_tokens=60, temperature=1.0, seed=5)
    bound = chat.bind_tools([roll, now], tool_choice=choice, parallel_tool_calls=False)
    for more in ({}, {"steering": direction, "alpha": 1.0}, {"steering": direction, "alpha": 100.0}):
        message = bound.invoke(QUESTION, **more)
        [call] = message.tool_calls
        assert call["name"] in names and call["args"] in ({}, {"sides": "four"}, {"sides": "six"})
        assert not message.invalid_tool_calls and not message.content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("include_raw", [False, True])
def test_structured_answers_of_langchain(loud, tokenizer, method, include_raw):
    model, direction = loud
    chat = SteeredChatModel(model, tokenizer, steering=direction, alpha=2.0, max_new_tokens=250)
    structured = chat.with_structured_output(Person, method=method, include_raw=include_raw)
    person = structured.invoke("Somebody")
    if include_raw:
        assert isinstance(person["raw"], AIMessage) and person["parsing_error"] is None
        person = person["parsed"]
    assert isinstance(person, Person) and 0 <= person.age <= 120
    as_dict = chat.with_structured_output(Person.model_json_schema(), method=method).invoke("Somebody")
    assert Person(**as_dict) == person


def test_an_answer_that_is_cut_is_a_parsing_error_and_not_a_person(loud, tokenizer):
    short = SteeredChatModel(loud[0], tokenizer, max_new_tokens=3)
    cut = short.with_structured_output(Person, include_raw=True).invoke("Somebody")
    assert cut["parsed"] is None and cut["parsing_error"] is not None and "error" not in cut
    with pytest.raises(ValueError, match="Person|JSON|json"):
        short.with_structured_output(Person).invoke("Somebody")


def test_any_json_object_and_an_agent_with_a_form(loud, tokenizer):
    chat = SteeredChatModel(loud[0], tokenizer, max_new_tokens=60, temperature=1.0, seed=1)
    message = chat.bind(response_format={"type": "json_object"}).invoke("Something")
    assert message.response_metadata["finish_reason"] == "length" or isinstance(json.loads(message.content), dict)
    person = '<tool_call>\n{"name": "Person", "arguments": {"name": "Ada", "age": 36}}\n</tool_call>'
    chat = SteeredChatModel(scripted(tokenizer, lambda _: person), tokenizer)
    agent = create_agent(chat, [], response_format=ToolStrategy(Person))
    assert agent.invoke({"messages": [("user", "Somebody")]})["structured_response"] == Person(name="Ada", age=36)


def test_caches_know_tools_and_forms(chat):
    keys = {
        chat._get_llm_string(**more)
        for more in (
            {}, {"tools": [{"type": "function", "function": {"name": "f"}}]},
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "f"},
            {"response_format": {"type": "json_object"}},
        )
    }  # fmt: skip
    assert len(keys) == 4


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"tools": [{"name": "f"}]}, "tools must be functions as OpenAI's API has them"),
        ({"tool_choice": "required"}, "there are no tools; pass tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "g"},
            "or the name of a tool \\(f\\)",
        ),
        ({"response_format": {"type": "xml"}}, "not 'xml'"),
        ({"response_format": {"schema": {}}}, "not None"),
        ({"response_format": {"type": "json_schema", "schema": {}}}, "has its schema in json_schema"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "there are no tools\\), got {'type': 'tool'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "cannot be enforced"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "response_format": {"type": "json_object"}},
            "ask for different answers",
        ),
    ],
    ids=range(9),
)
def test_wrong_tools_and_forms_are_refused_with_a_sentence(chat, llm, wrong, told):
    with pytest.raises(sf.SteerError, match=told):
        chat.invoke(QUESTION, **wrong)
    with pytest.raises(sf.SteerError, match=told):
        llm.chat([ChatMessage(QUESTION)], **wrong)
    with pytest.raises(sf.DataError, match="'function_calling' or 'json_mode', got 'xml'"):
        chat.with_structured_output(Person, method="xml")


def test_a_function_agent_of_llamaindex(llm):
    async def run():
        agent = FunctionAgent(llm=llm, tools=[weather, now])
        handler, seen = agent.run(QUESTION), []
        async for event in handler.stream_events():
            if isinstance(event, (ToolCallResult, AgentStream)):
                seen.append(event)
        return str(await handler), seen

    text, events = asyncio.run(run())
    results = [event for event in events if isinstance(event, ToolCallResult)]
    assert text == LAST and [(r.tool_name, r.tool_kwargs) for r in results] == [
        ("weather", {"city": "Oslo"}),
        ("now", {}),
    ]
    assert "".join(e.delta for e in events if isinstance(e, AgentStream)) == f"Let me look.{LAST}"


def test_tools_and_structured_answers_of_llamaindex_at_any_steering(loud, tokenizer):
    model, direction = loud
    llm = SteeredLLM(model, tokenizer, steering=direction, alpha=3.0, max_new_tokens=250)
    assert llm.metadata.is_function_calling_model
    person = llm.structured_predict(Person, PromptTemplate("Somebody"))
    assert isinstance(person, Person)
    tools = [FunctionTool.from_defaults(weather), FunctionTool.from_defaults(now)]
    for stream in (False, True):
        if stream:
            *_, response = llm.stream_chat_with_tools(tools, QUESTION, tool_required=True)
        else:
            response = llm.chat_with_tools(tools, QUESTION, tool_required=True)
        [call] = llm.get_tool_calls_from_response(response)
        assert call.tool_name in ("weather", "now") and response.raw["finish_reason"] == "tool_calls"
    plain = llm.chat_with_tools([], QUESTION, steering=None, max_new_tokens=4)
    with pytest.raises(ValueError, match="The answer calls no tool"):
        llm.get_tool_calls_from_response(plain)


def test_the_demo_model_makes_a_sensible_call_when_it_must(demo, tokenizer):
    chat = SteeredChatModel(demo[0], tokenizer, max_new_tokens=60)
    bound = chat.bind_tools([weather], tool_choice="weather")
    for more in ({}, {"steering": vector_at(demo[0], sf.resid_post[15], scale=0.5), "alpha": 1.0}):
        [call] = bound.invoke("What is the weather in Oslo?", **more).tool_calls
        assert call["name"] == "weather" and set(call["args"]) == {"city"}
    assert bound.invoke("What is the weather in Oslo?").tool_calls[0]["args"] == {"city": "Oslo"}
