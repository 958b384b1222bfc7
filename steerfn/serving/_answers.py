"""What OpenAI's API calls a completion: whole, or in parts."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from steerfn.serving._job import Job


@dataclasses.dataclass
class Answer:
    """The answer to one request as it grows.

    Attributes:
        identifier: of the request.
        created: seconds since 1970.
        model: its name.
        chat: whether it is a chat completion.
        jobs: its texts.
        prompt_tokens: of all prompts.
        steering: what it is steered by, each with its SHA-256 and whose policy it is; empty where by nothing.
    """

    identifier: str
    created: int
    model: str
    chat: bool
    jobs: Sequence[Job]
    prompt_tokens: int
    steering: Sequence[dict[str, Any]] = ()
    _texts: dict[int, str] = dataclasses.field(default_factory=dict)

    def add(self, index: int, piece: str | None) -> None:
        """A piece of a text."""
        self._texts[index] = self._texts.get(index, "") + (piece or "")

    def usage(self) -> dict[str, int]:
        """Tokens, as far as it has come."""
        made = sum(len(job.tokens) for job in self.jobs)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }

    def whole(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        choices = []
        for index, job in enumerate(self.jobs):
            text = self._texts.get(index, "")
            said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            choices.append({"index": index, **said, "finish_reason": self._reason(job), "logprobs": None})
        return self._head("") | {"choices": choices, "usage": self.usage(), "steering": list(self.steering)}

    def openings(self) -> Iterator[dict[str, Any]]:
        """What a streamed chat begins with: who speaks."""
        for index in range(len(self.jobs)) if self.chat else ():
            delta = {"role": "assistant", "content": ""}
            choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}
            yield self._head(".chunk") | {"choices": [choice]}

    def part(self, index: int, piece: str | None) -> dict[str, Any]:
        """A piece of a text, or (None) its end."""
        said: dict[str, Any] = {"text": piece or ""}
        if self.chat:
            said = {"delta": {} if piece is None else {"content": piece}}
        reason = self._reason(self.jobs[index]) if piece is None else None
        choice = {"index": index, **said, "finish_reason": reason, "logprobs": None}
        steering = {"steering": list(self.steering)} if piece is None else {}
        return self._head(".chunk") | {"choices": [choice]} | steering

    def usage_part(self) -> dict[str, Any]:
        """The last part, where it was asked for."""
        return self._head(".chunk") | {"choices": [], "usage": self.usage()}

    def _head(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        return {"id": self.identifier, "object": kind, "created": self.created, "model": self.model}

    @staticmethod
    def _reason(job: Job) -> str:
        return "length" if job.reason == "length" else "stop"
