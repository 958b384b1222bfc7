"""The state that the paths of an application share: the model, its worker and vectors, the meters and the audit log."""

import functools
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import anyio.to_thread
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from steerfn.run import ContinuousBatch, decoding_of
from steerfn.serving._answer import Answer, Choice
from steerfn.serving._audit import Audit
from steerfn.serving._guard import Meters
from steerfn.serving._jobs import Reader, Work
from steerfn.serving._limits import Limits
from steerfn.serving._request_error import RequestError
from steerfn.serving._schemas import Common
from steerfn.serving._vectors import Shelf
from steerfn.serving._worker import Running, Worker
from steerfn.values import fingerprint

log = logging.getLogger("steerfn.serving")


class Json(JSONResponse):
    """JSON in ASCII, which any text can be written in."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return json.dumps(content, allow_nan=False).encode("ascii")


class Server:
    """Answers requests, counts them, and logs them.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        shelf: the vectors on offer.
        limits: what requests may take.
        audit: the log of requests.
        default_steering: what every request is steered by.
        continuous: whether rows join and leave a running batch.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        shelf: Shelf,
        limits: Limits,
        audit: Audit,
        default_steering: Any,
        continuous: bool,
    ) -> None:
        from steerfn import __version__

        self.version = __version__
        self.model = fingerprint(model)
        self.name = str(self.model["name"])
        self.shelf, self.limits, self.audit = shelf, limits, audit
        decoding = decoding_of("serving", model, tokenizer, {})
        self.reader = Reader(model, tokenizer, shelf, limits, decoding, default_steering)
        self.meters = Meters(lambda: self.worker.waiting)
        batch = None
        if continuous:
            batch = ContinuousBatch(model, tokenizer, decoding, limits.max_rows, limits.cache_tokens)
            self.reader.longest = min(self.reader.longest or limits.cache_tokens, limits.cache_tokens)
        self.worker = Worker(model, tokenizer, limits, decoding, self._observe_batch, batch)
        self.created = int(time.time())

    def count(self, path: str, status: int) -> None:
        """Count an answer."""
        self.meters.requests.labels(path, status).inc()

    @property
    def about(self) -> dict[str, Any]:
        """The description of the model, in the form of OpenAI's API."""
        one = {"id": self.name, "object": "model", "created": self.created, "owned_by": "steerfn"}
        return one | {"fingerprint": self.model}

    def check_model(self, name: str) -> None:
        """Refuse the name of another model.

        Raises:
            RequestError: it is not this one's.
        """
        if name != self.name:
            raise RequestError(
                f"There is no model {name!r:.140}; this server has {self.name!r}.", 404, "model", "model_not_found"
            )

    def list_vectors(self, allowed: Any) -> dict[str, Any]:
        """The vectors that a key may name, and the files that are passed over."""
        names, passed = self.shelf.listing()
        entries: list[dict[str, Any]] = []
        for name in names if allowed is None else [name for name in names if name in allowed]:
            try:
                entries.append(self.describe_vector(name, allowed))
            except RequestError as error:
                entries.append({"id": name, "object": "vector", "error": error.message})
        over = [{"file": file, "reason": reason} for file, reason in passed.items()]
        default = [one.model_dump() for one in self.reader.default]
        return {"object": "list", "data": entries, "default_steering": default} | (
            {"passed_over": over} if allowed is None else {}
        )

    def describe_vector(self, name: str, allowed: Any) -> dict[str, Any]:
        """One vector, and the range of alpha that a key has for it, if it has one.

        Raises:
            RequestError: no such vector, one that the key may not name, or a file that cannot be served.
        """
        if allowed is not None:
            allowed.check_name(name)
        entry = self.shelf.get(name).entry(name)
        bounds = None if allowed is None else allowed.range_of(name)
        return entry if bounds is None else entry | {"alpha_range": list(bounds)}

    def _observe_batch(self, rows: int, seconds: float) -> None:
        self.meters.rows.observe(rows)
        self.meters.batch.observe(seconds)

    async def log_refusal(self, scope: Any, status: int) -> None:
        """A line in the audit log for a request that was refused before it began."""
        state = scope["state"]
        error = state.get("refusal")
        self.meters.refusals.labels(getattr(error, "code", None) or str(status)).inc()
        if state.get("begun") or not self.audit.is_kept:
            return
        line = {
            "who": state["who"],
            "client": scope["client"][0] if scope.get("client") else None,
            "endpoint": scope["path"][:200].encode("utf-8", "replace").decode(),
            "outcome": ["refused"],
            "status": status,
            "code": getattr(error, "code", None),
            "param": getattr(error, "param", None),
        }
        identifier = state.get("id") or f"refused-{secrets.token_hex(12)}"
        await self._log("refused", identifier, **line)

    async def _log(self, event: str, identifier: str, **line: Any) -> None:
        """A line that nothing depends on any more: nothing was run, or what was run has its beginning in the log."""
        write = functools.partial(self.audit.write, event, identifier, timeout=self.limits.timeout, **line)
        # Shielded, since a caller that has left cancels the request; and bounded, since a disk may never answer.
        with anyio.move_on_after(2 * self.limits.timeout, shield=True):
            try:
                await anyio.to_thread.run_sync(write, abandon_on_cancel=True)
            except OSError as problem:
                log.error("the audit log cannot be written (%s): it lacks a line %r", problem.strerror, event)

    async def complete(
        self, request: Request, body: Common, texts: Sequence[Any], max_tokens: int | None, chat: bool
    ) -> Response:
        """Answer a completion of either kind."""
        if body.model:
            self.check_model(body.model)
        running = Running(self.limits.timeout, self.limits.keep_alive)
        identifier = request.state.id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.reader.check_counts(body, texts)
        allowed = request.state.allowed
        work = await running.run(self.reader.read, body, allowed, texts, chat, running.until)
        running.jobs = self.reader.jobs(body, work, max_tokens, running.on_text)
        await self._begin(request, identifier, body, work, texts, running)
        try:
            self.worker.submit(running.jobs)
        except RequestError:
            await self._log("end", identifier, outcome=["refused"])
            raise
        for one in work.steered.applied:
            self.meters.steered.labels(one["vector"]).inc()
        answer = self._answer(identifier, body, work, running, chat)
        if body.stream:
            usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            events = self._stream_events(request, identifier, answer, running, usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        try:
            async for piece in running.pieces(request.is_disconnected):
                if piece is not None:
                    answer.add(*piece)
        finally:
            await self._end(identifier, answer, running)
        return Json(answer.whole())

    def _answer(self, identifier: str, body: Common, work: Work, running: Running, chat: bool) -> Answer:
        copies, several = body.n or 1, getattr(body, "parallel_tool_calls", None) is not False
        openings = [""] * len(work.prompts)
        if getattr(body, "echo", False):
            openings = ["".join(map(self.reader.token_text, ids)) for ids in work.prompts]
        choices = [
            Choice(job, chat, work.tools, several, openings[i // copies], self.reader.token_text)
            for i, job in enumerate(running.jobs)
        ]
        read = sum(map(len, work.prompts))
        return Answer(identifier, int(time.time()), self.name, choices, chat, read, work.steered.applied)

    async def _stream_events(
        self, request: Request, identifier: str, answer: Answer, running: Running, usage: bool
    ) -> AsyncIterator[bytes]:
        def event(value: Any) -> bytes:
            return b"data: " + json.dumps(value, allow_nan=False).encode("ascii") + b"\n\n"

        try:
            for opening in answer.openings():
                yield event(opening)
            async for piece in running.pieces(request.is_disconnected):
                if piece is None:
                    yield b": waiting\n\n"  # a comment, so that nothing on the way takes the connection for dead
                    continue
                if (part := answer.part(*piece)) is not None:
                    yield event(part)
            if usage:
                yield event(answer.usage_part())
            yield b"data: [DONE]\n\n"
        except RequestError as refused:  # the status is out already
            yield event(refused.body())
        finally:
            await self._end(identifier, answer, running)

    async def _begin(
        self, request: Request, identifier: str, body: Common, work: Work, texts: Sequence[Any], running: Running
    ) -> None:
        try:
            await running.run(
                functools.partial(
                    self.audit.write,
                    "begin",
                    identifier,
                    timeout=max(0.0, running.until - time.monotonic()),
                    who=request.state.who,
                    client=request.client.host if request.client else None,
                    user=body.user,
                    endpoint=request.url.path,
                    model=self.model,
                    steering=work.steered.applied,
                    texts=len(running.jobs),
                    max_tokens=running.jobs[0].max_tokens,
                    prompts=texts,
                )
            )
            request.state.begun = True
        except OSError as error:
            raise RequestError(
                f"The audit log cannot be written ({error.strerror}), so nothing was run.", 503, code="audit"
            ) from None

    async def _end(self, identifier: str, answer: Answer, running: Running) -> None:
        reasons = sorted({job.reason or "cancelled" for job in running.jobs})
        usage = answer.usage()
        self.meters.tokens.labels("prompt").inc(usage["prompt_tokens"])
        self.meters.tokens.labels("completion").inc(usage["completion_tokens"])
        self.meters.seconds.observe(running.seconds)
        if running.first is not None:
            self.meters.first.observe(running.first)
        for job in running.jobs:
            if job.began is not None:
                self.meters.queued.observe(job.began - job.queued)
        made, seconds = usage["completion_tokens"], round(running.seconds, 3)
        await self._log("end", identifier, outcome=reasons, completion_tokens=made, seconds=seconds)
