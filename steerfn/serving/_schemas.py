"""What a request looks like: OpenAI's completions, and `steering`.

A field that is not known is refused, and so is one whose value would have to be ignored: a request never gets
something else than it asked for. Fields of OpenAI's API that this server lacks are taken where they ask for nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Layer = Annotated[int, Field(ge=-1024, lt=1024)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200_000)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=1024, fail_fast=True)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
No = Literal[False] | None
NoList = Annotated[list[Any], Field(max_length=0)] | None
NoMapping = Annotated[dict[str, Any], Field(max_length=0)] | None


class Strict(BaseModel):
    """No field but these."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown(cls, value: Any) -> Any:
        """What has a million unknown fields is refused for one of them: each would be an error of its own."""
        if not isinstance(value, dict):
            return value
        unknown = [name for name in value if name not in cls.model_fields]
        return {name: value[name] for name in (*cls.model_fields, *unknown[:1]) if name in value}


class Steering(Strict):
    """One vector and what is done with it."""

    vector: Name = Field(description="the name of a vector, as in GET /v1/vectors")
    alpha: float = Field(1.0, ge=-1e4, le=1e4, description="strength, in units of the vector")
    operation: Literal["add", "ablate"] = Field("add", description="add alpha * v, or remove its direction")
    layers: Annotated[list[Layer], Field(max_length=1024, fail_fast=True)] | None = Field(
        None, description="only these layers of the vector"
    )
    scope: Literal["everywhere", "generated", "prompt"] = Field("everywhere", description="which tokens")


class StreamOptions(Strict):
    """Of OpenAI's API."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = None


class ResponseFormat(Strict):
    """Of OpenAI's API; answers are plain text."""

    type: Literal["text"]


class Common(Strict):
    """What both kinds of completions take."""

    model: Annotated[str, StringConstraints(max_length=512)] | None = ""
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    n: int | None = Field(1, ge=1, le=1024)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: Stop | Annotated[list[Stop], Field(max_length=64, fail_fast=True)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, description="default: as many as are left")
    user: Annotated[str, StringConstraints(max_length=256)] | None = None
    steering: Name | Steering | Annotated[list[Name | Steering], Field(max_length=64, fail_fast=True)] | None = Field(
        None, description="how this request is steered: names of vectors, or objects; default not at all"
    )
    # What this server does not do is taken where it asks for nothing.
    presence_penalty: float | None = Field(0.0, ge=0, le=0)
    frequency_penalty: float | None = Field(0.0, ge=0, le=0)
    logit_bias: NoMapping = None
    metadata: NoMapping = None
    store: No = None


class Completion(Common):
    """`POST /v1/completions`."""

    prompt: Text | Texts
    echo: No = False
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None
    logprobs: None = None


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Annotated[str, StringConstraints(max_length=200_000)]


class Message(Strict):
    """One turn of a conversation, also as OpenAI's client gives an answer back (`message.model_dump()`)."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Annotated[str, StringConstraints(max_length=200_000)]
        | Annotated[list[TextPart], Field(min_length=1, max_length=1024, fail_fast=True)]
    )
    name: Annotated[str, StringConstraints(max_length=128)] | None = None
    refusal: None = None
    annotations: NoList = None
    audio: None = None
    function_call: None = None
    tool_calls: NoList = None
    reasoning_content: None = None

    @property
    def text(self) -> str:
        """What was said."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


Messages = Annotated[list[Message], Field(min_length=1, max_length=1024, fail_fast=True)]


class Chat(Common):
    """What belongs to messages."""

    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: No = False
    top_logprobs: Literal[0] | None = None
    tools: NoList = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: NoList = None
    function_call: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    service_tier: Literal["auto", "default"] | None = None
    verbosity: None = None
    web_search_options: None = None

    @property
    def most(self) -> int | None:
        """Tokens that it may have, if it says so."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class ChatCompletion(Chat):
    """`POST /v1/chat/completions`."""

    messages: Messages


class Invocation(Chat):
    """`POST /invocations` (SageMaker hosting): a prompt or messages."""

    prompt: Text | Texts | None = None
    messages: Messages | None = None
