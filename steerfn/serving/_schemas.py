"""The schemas of requests: OpenAI's completions, with `steering`.

A field that is not known is refused, and so is one whose value would have to be ignored: a request never gets
something else than it asked for. Fields of OpenAI's API that this server lacks are taken where they ask for nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Layer = Annotated[int, Field(ge=-1024, lt=1024)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200_000)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=1024, fail_fast=True)]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=200_000, fail_fast=True)]
ManyIds = Annotated[list[Ids], Field(min_length=1, max_length=1024, fail_fast=True)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Function = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
Biases = Annotated[dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
No = Literal[False] | None
NoList = Annotated[list[Any], Field(max_length=0)] | None
NoMapping = Annotated[dict[str, Any], Field(max_length=0)] | None


class Strict(BaseModel):
    """A model that refuses unknown fields and converts no types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown(cls, value: Any) -> Any:
        """Keep one unknown field at most: each of a million would be an error of its own."""
        if not isinstance(value, dict):
            return value
        unknown = [name for name in value if name not in cls.model_fields]
        return {name: value[name] for name in (*cls.model_fields, *unknown[:1]) if name in value}


class SteeringRequest(Strict):
    """One vector and what is done with it."""

    vector: Name = Field(description="the name of a vector, as in GET /v1/vectors")
    alpha: float = Field(1.0, ge=-1e4, le=1e4, description="strength, in units of the vector")
    operation: Literal["add", "ablate"] = Field("add", description="add alpha * v, or remove its direction")
    layers: Annotated[list[Layer], Field(max_length=1024, fail_fast=True)] | None = Field(
        None, description="only these layers of the vector"
    )
    scope: Literal["everywhere", "generated", "prompt"] = Field("everywhere", description="which tokens")
    outside_tool_calls: bool = Field(False, description="leave tool calls unsteered")


class StreamOptions(Strict):
    """The options of streams in OpenAI's API."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = None


class JsonSchema(Strict):
    """A named JSON schema, as OpenAI's API has it; it is always enforced, `strict` or not."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    description: Annotated[str, StringConstraints(max_length=10_000)] | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class PlainFormat(Strict):
    """Plain text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(Strict):
    """JSON that satisfies a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StructuredOutputs(Strict):
    """The structure of an answer, as vLLM names it: one of these."""

    json_: dict[str, Any] | bool | None = Field(None, alias="json", description="a JSON schema")
    json_object: bool | None = None
    regex: Pattern | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=256, fail_fast=True)] | None = None
    grammar: Pattern | None = Field(None, description="a context-free grammar, in llguidance's dialect of Lark")


class FunctionTool(Strict):
    """A function that the model may call."""

    name: Function
    description: Annotated[str, StringConstraints(max_length=10_000)] | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of its arguments")
    strict: bool | None = None


class Tool(Strict):
    """A tool in OpenAI's API."""

    type: Literal["function"]
    function: FunctionTool


class FunctionName(Strict):
    """The name of a function."""

    name: Function


class ToolChoice(Strict):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class Common(Strict):
    """The fields of both kinds of completions."""

    model: Annotated[str, StringConstraints(max_length=512)] | None = ""
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    n: int | None = Field(1, ge=1, le=1024)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: Stop | Annotated[list[Stop], Field(max_length=64, fail_fast=True)] | None = None
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1 for all")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(1.0, ge=0.01, le=100)
    logit_bias: Biases | None = Field(None, description="added to the logits of tokens, by their ids")
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, description="default: as many as are left")
    user: Annotated[str, StringConstraints(max_length=256)] | None = None
    steering: (
        Name | SteeringRequest | Annotated[list[Name | SteeringRequest], Field(max_length=64, fail_fast=True)] | None
    ) = Field(None, description="how this request is steered: names of vectors, or objects; default not at all")
    # What this server does not do is taken where it asks for nothing.
    metadata: NoMapping = None
    store: No = None


class Completion(Common):
    """`POST /v1/completions`."""

    prompt: Text | Texts | Ids | ManyIds = Field(description="texts, or token ids")
    max_tokens: int | None = Field(None, ge=0, description="default: as many as are left")
    echo: bool | None = Field(False, description="begin the answer with the prompt, and `logprobs` with its tokens")
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None
    logprobs: int | None = Field(None, ge=0, le=20, description="most probable tokens to tell for each token")


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Annotated[str, StringConstraints(max_length=200_000)]


class CalledFunction(Strict):
    """A function that the model called."""

    name: Function
    arguments: Annotated[str, StringConstraints(max_length=200_000)] = Field(description="a JSON object, as text")


class MessageCall(Strict):
    """A tool call of the assistant."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Strict):
    """One turn of a conversation, also as OpenAI's client gives an answer back (`message.model_dump()`)."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[str, StringConstraints(max_length=200_000)]
        | Annotated[list[TextPart], Field(min_length=1, max_length=1024, fail_fast=True)]
        | None
    ) = None
    name: Annotated[str, StringConstraints(max_length=128)] | None = None
    refusal: None = None
    annotations: NoList = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[MessageCall], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: Annotated[str, StringConstraints(max_length=128)] | None = None
    reasoning_content: None = None

    @model_validator(mode="after")
    def _say_something(self) -> "Message":
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing; only an assistant's message with tool_calls may lack it")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls belong to the assistant, not to the role {self.role!r}")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a message of the role 'tool' has the tool_call_id that it answers, and no other has one")
        return self

    @property
    def text(self) -> str:
        """The text of the message."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())


Messages = Annotated[list[Message], Field(min_length=1, max_length=1024, fail_fast=True)]


class Chat(Common):
    """The fields of chat completions."""

    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: NoList = None
    function_call: Literal["none", "auto"] | None = None
    response_format: PlainFormat | SchemaFormat | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    service_tier: Literal["auto", "default"] | None = None
    verbosity: None = None
    web_search_options: None = None

    @property
    def most(self) -> int | None:
        """The most tokens that the request asks for, if it does."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class ChatCompletion(Chat):
    """`POST /v1/chat/completions`."""

    messages: Messages


class Invocation(Chat):
    """`POST /invocations` (SageMaker hosting): a prompt or messages."""

    prompt: Text | Texts | None = None
    messages: Messages | None = None
