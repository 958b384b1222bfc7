"""What a request and an answer look like: OpenAI's completions, and `steering`.

A field that is not known is refused, and so is one whose value would have to be ignored: a request never gets
something else than it asked for.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Layer = Annotated[int, Field(ge=-1024, lt=1024)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200_000)]


class Strict(BaseModel):
    """No field but these."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Steering(Strict):
    """One vector and what is done with it."""

    vector: Name = Field(description="the name of a vector, as in GET /v1/vectors")
    alpha: float = Field(1.0, ge=-1e4, le=1e4, description="strength, in units of the vector")
    operation: Literal["add", "ablate"] = Field("add", description="add alpha * v, or remove its direction")
    layers: list[Layer] | None = Field(None, max_length=1024, description="only these layers of the vector")
    scope: Literal["everywhere", "generated", "prompt"] = Field("everywhere", description="which tokens")


class StreamOptions(Strict):
    """Of OpenAI's API."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Common(Strict):
    """What both kinds of completions take."""

    model: Annotated[str, StringConstraints(max_length=512)] = ""
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    n: int | None = Field(1, ge=1, le=1024)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: (
        Annotated[str, StringConstraints(max_length=1000)]
        | list[Annotated[str, StringConstraints(max_length=1000)]]
        | None
    ) = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, StringConstraints(max_length=256)] | None = None
    steering: Steering | list[Steering] | None = Field(
        None, description="how this request is steered; default not at all"
    )
    # What this server does not do is accepted where it asks for nothing.
    presence_penalty: float | None = Field(0.0, ge=0, le=0)
    frequency_penalty: float | None = Field(0.0, ge=0, le=0)
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None


class Completion(Common):
    """`POST /v1/completions`."""

    prompt: Text | list[Text]
    max_tokens: int | None = Field(16, ge=1)
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = None
    suffix: None = None
    logprobs: None = None


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, StringConstraints(max_length=200_000)]
    name: Annotated[str, StringConstraints(max_length=128)] | None = None


class ChatCompletion(Common):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = False
    top_logprobs: Literal[0] | None = None


class Invocation(Common):
    """`POST /invocations` (SageMaker hosting): a prompt or messages."""

    prompt: Text | list[Text] | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=1024)
    max_tokens: int | None = Field(None, ge=1)
