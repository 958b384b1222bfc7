"""Run by the clients' own interpreter: what a client of OpenAI's API makes of a server, as JSON.

    python run.py openai|langchain|litellm|llamaindex http://127.0.0.1:8000/v1

A chat, a stream, a tool call, one that is streamed, and an answer with a schema.
"""

import json
import sys
from typing import Any

from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def weather(city: str) -> str:
    """The weather of a city."""
    return city


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
SCHEMA = Person.model_json_schema() | {"additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
NAME = "LlamaForCausalLM"


def messages(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def by_completions(create: Any) -> dict[str, Any]:
    """The tasks through a function like OpenAI's `chat.completions.create`."""

    def calls(chunks: Any) -> dict[str, Any]:
        parts = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or ()]
        arguments = "".join(part.function.arguments or "" for part in parts)
        return {"name": parts[0].function.name, "args": json.loads(arguments)}

    called = create(messages=messages("weather"), tools=TOOLS).choices[0].message.tool_calls[0].function
    streamed = create(messages=messages("hello"), stream=True)
    return {
        "chat": create(messages=messages("hello")).choices[0].message.content,
        "stream": "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices),
        "tool": {"name": called.name, "args": json.loads(called.arguments)},
        "streamed_tool": calls(create(messages=messages("weather"), tools=TOOLS, stream=True)),
        "schema": json.loads(create(messages=messages("person"), response_format=FORMAT).choices[0].message.content),
    }


def openai(url: str) -> dict[str, Any]:
    import functools

    from openai import OpenAI

    api = OpenAI(base_url=url, api_key="none", max_retries=0)
    told = by_completions(functools.partial(api.chat.completions.create, model="", temperature=0))
    parsed = api.chat.completions.parse(model="", temperature=0, messages=messages("person"), response_format=Person)
    assert parsed.choices[0].message.parsed == Person(**told["schema"])
    return told


def litellm(url: str) -> dict[str, Any]:
    import functools

    import litellm

    more = {"model": f"openai/{NAME}", "api_base": url, "api_key": "none", "temperature": 0, "num_retries": 0}
    return by_completions(functools.partial(litellm.completion, **more))


def langchain(url: str) -> dict[str, Any]:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=NAME, base_url=url, api_key="none", temperature=0, max_retries=0)
    bound = chat.bind_tools([weather])
    [call] = bound.invoke("weather").tool_calls
    total = None
    for part in bound.stream("weather"):
        total = part if total is None else total + part
    [streamed] = total.tool_calls
    return {
        "chat": chat.invoke("hello").content,
        "stream": "".join(part.content for part in chat.stream("hello")),
        "tool": {"name": call["name"], "args": call["args"]},
        "streamed_tool": {"name": streamed["name"], "args": streamed["args"]},
        "schema": chat.with_structured_output(Person).invoke("person").model_dump(),
    }


def llamaindex(url: str) -> dict[str, Any]:
    from llama_index.core.llms import ChatMessage
    from llama_index.core.prompts import PromptTemplate
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model=NAME, api_base=url, api_key="none", temperature=0, max_retries=0, is_chat_model=True,
        is_function_calling_model=True, should_use_structured_outputs=True,
    )  # fmt: skip
    tools = [FunctionTool.from_defaults(weather)]
    [call] = llm.get_tool_calls_from_response(llm.chat_with_tools(tools, "weather"))
    *_, last = llm.stream_chat_with_tools(tools, "weather")
    [streamed] = llm.get_tool_calls_from_response(last)
    return {
        "chat": llm.chat([ChatMessage("hello")]).message.content,
        "stream": "".join(part.delta or "" for part in llm.stream_chat([ChatMessage("hello")])),
        "tool": {"name": call.tool_name, "args": call.tool_kwargs},
        "streamed_tool": {"name": streamed.tool_name, "args": streamed.tool_kwargs},
        "schema": llm.structured_predict(Person, PromptTemplate("person")).model_dump(),
    }


if __name__ == "__main__":
    name, address = sys.argv[1:]
    print(
        json.dumps(
            {"openai": openai, "litellm": litellm, "langchain": langchain, "llamaindex": llamaindex}[name](address)
        )
    )
