"""The ASGI application: what each path does."""

import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from steerfn._fingerprint import fingerprint
from steerfn.serving._answers import Answer
from steerfn.serving._asked import Reader, Steered
from steerfn.serving._audit import Audit
from steerfn.serving._gate import Gate
from steerfn.serving._limits import Limits
from steerfn.serving._meters import TYPE, Meters
from steerfn.serving._refused import RequestError
from steerfn.serving._running import Running
from steerfn.serving._schemas import ChatCompletion, Common, Completion, Invocation
from steerfn.serving._shelf import Shelf
from steerfn.serving._worker import Worker

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {}}}
    for status, what in {
        400: "The request is not one that this server understands; the message says what is wrong with it.",
        401: "No API key, or one that is not known.",
        404: "No such model or vector.",
        409: "A vector whose file is damaged or made for another model.",
        413: "A body that is too large.",
        429: "Too many texts are waiting.",
        503: "The server is stopping, or cannot write its audit log.",
        504: "Not done in time.",
    }.items()
}


class Json(JSONResponse):
    """JSON in ASCII, which any text can be written in."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def app(
    model: Any,
    tokenizer: Any,
    vectors: Any = None,
    *,
    limits: Limits | None = None,
    api_keys: Iterable[str] = (),
    audit: Any = None,
    audit_prompts: bool = False,
) -> FastAPI:
    """A server's ASGI application; it runs the model in one thread of its own.

    Paths: `POST /v1/completions`, `POST /v1/chat/completions`, `GET /v1/models`, `GET /v1/vectors`, `GET /health`,
    `GET /metrics`; `GET /ping` and `POST /invocations`, as SageMaker hosting wants them.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        vectors: the folder whose vector files are offered, by name; None offers none.
        limits: what requests may take.
        api_keys: keys of which every request must bear one; none asks for none.
        audit: the file of the audit log; None keeps none.
        audit_prompts: write prompts into it too.

    Raises:
        FileError: no such folder, or a log that cannot be written.

    Example:
        >>> import steerfn as sf
        >>> from steerfn import serving
        >>> application = serving.app(*sf.demo_model(), "vectors")  # doctest: +SKIP
        >>> uvicorn.run(application)  # doctest: +SKIP
    """
    limits = limits or Limits()
    server = _Server(model, tokenizer, Shelf(vectors, model), limits, Audit(audit, audit_prompts))

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(server.worker.close, limits.drain)

    made = FastAPI(title="steerfn", version=server.version, lifespan=life, default_response_class=Json)
    made.add_middleware(Gate, keys=tuple(api_keys), max_body=limits.max_body, count=server.count)
    _add_handlers(made)
    _add_questions(made, server)
    _add_completions(made, server)
    return made


class _Server:
    """What the paths share."""

    def __init__(self, model: Any, tokenizer: Any, shelf: Shelf, limits: Limits, audit: Audit) -> None:
        from steerfn import __version__

        self.version = __version__
        self.model = fingerprint(model)
        self.name = str(self.model["name"])
        self.shelf, self.limits, self.audit = shelf, limits, audit
        self.reader = Reader(model, tokenizer, shelf, limits)
        self.meters = Meters(lambda: self.worker.waiting)
        self.worker = Worker(model, tokenizer, limits, lambda rows, _: self.meters.rows.observe(rows))
        self.created = int(time.time())

    def count(self, path: str, status: int) -> None:
        """One more answer."""
        self.meters.requests.labels(path, status).inc()

    async def complete(
        self, request: Request, asked: Common, texts: list[Any], max_tokens: int | None, chat: bool
    ) -> Response:
        """Answer a completion of either kind."""
        if asked.model and asked.model != self.name:
            raise RequestError(
                f"There is no model {asked.model!r:.140}; this server has {self.name!r}.",
                404,
                "model",
                "model_not_found",
            )
        running = Running(self.limits.timeout)
        identifier = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        steered, prompts = await run_in_threadpool(self._read, asked, texts, chat)
        running.jobs = self.reader.jobs(asked, prompts, max_tokens, steered.op, running.hear)
        await self._begin(request, identifier, asked, steered, texts, running)
        try:
            self.worker.submit(running.jobs)
        except RequestError:
            self.audit.write("end", identifier, outcome=["refused"])
            raise
        for one in steered.told:
            self.meters.steered.labels(one["vector"]).inc()
        answer = Answer(identifier, int(time.time()), self.name, chat, running.jobs, sum(map(len, prompts)))
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = self._streamed(request, identifier, answer, running, usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        try:
            async for index, piece in running.pieces(request.is_disconnected):
                answer.add(index, piece)
        finally:
            await self._end(identifier, answer, running)
        return Json(answer.whole())

    def _read(self, asked: Common, texts: list[Any], chat: bool) -> tuple[Steered, list[list[int]]]:
        return self.reader.steering(asked.steering), self.reader.prompts(texts, chat)

    async def _streamed(
        self, request: Request, identifier: str, answer: Answer, running: Running, usage: bool
    ) -> AsyncIterator[bytes]:
        def event(value: Any) -> bytes:
            return b"data: " + json.dumps(value, allow_nan=False).encode("ascii") + b"\n\n"

        try:
            for opening in answer.openings():
                yield event(opening)
            async for index, piece in running.pieces(request.is_disconnected):
                answer.add(index, piece)
                yield event(answer.part(index, piece))
            if usage:
                yield event(answer.usage_part())
            yield b"data: [DONE]\n\n"
        except RequestError as refused:  # the status is out already
            yield event(refused.body())
        finally:
            await self._end(identifier, answer, running)

    async def _begin(
        self, request: Request, identifier: str, asked: Common, steered: Steered, texts: list[Any], running: Running
    ) -> None:
        try:
            await run_in_threadpool(
                self.audit.write,
                "begin",
                identifier,
                who=request.state.who,
                client=request.client.host if request.client else None,
                user=asked.user,
                endpoint=request.url.path,
                model=self.model,
                steering=steered.told,
                texts=len(running.jobs),
                max_tokens=running.jobs[0].max_tokens,
                prompts=texts,
            )
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
        with contextlib.suppress(OSError):  # its beginning is in the log, and the next request is refused
            self.audit.write(
                "end",
                identifier,
                outcome=reasons,
                completion_tokens=usage["completion_tokens"],
                seconds=round(running.seconds, 3),
            )


def _add_handlers(made: FastAPI) -> None:
    """Every refusal has OpenAI's form."""

    @made.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Json:
        return Json(error.body(), error.status)

    @made.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Json:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        more = len(error.errors()) - 1
        text = f"{where}: {first['msg']}" + (f" (and {more} more)" if more else "")
        return Json(RequestError(text[:500], param=where[:100]).body(), 400)

    @made.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Json:
        return Json(RequestError(str(error.detail), error.status_code).body(), error.status_code, error.headers)


def _add_questions(made: FastAPI, server: _Server) -> None:
    @made.get("/health", tags=["server"])
    @made.get("/ping", tags=["server"])
    async def health() -> Any:
        """Whether the server takes requests."""
        return {"status": "ok", "version": server.version, "waiting": server.worker.waiting}

    @made.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Any:
        """Counters, for Prometheus."""
        return Response(server.meters.text(), media_type=TYPE)

    @made.get("/v1/models", tags=["models"], responses={401: REFUSALS[401]})
    async def models() -> Any:
        """The one model, with its fingerprint."""
        one = {"id": server.name, "object": "model", "created": server.created, "owned_by": "steerfn"}
        return {"object": "list", "data": [one | {"fingerprint": server.model}]}

    @made.get("/v1/vectors", tags=["models"], responses={401: REFUSALS[401]})
    async def vectors() -> Any:
        """The vectors that a request can name."""

        def read() -> list[dict[str, Any]]:
            found = []
            for name in server.shelf.names():
                try:
                    vector, digest = server.shelf.get(name)
                except RequestError as error:
                    found.append({"id": name, "object": "vector", "error": error.message})
                    continue
                sites = [site.name for site in vector.sites]
                method = vector.metadata.get("method")
                found.append({"id": name, "object": "vector", "sha256": digest, "sites": sites, "method": method})
            return found

        return {"object": "list", "data": await run_in_threadpool(read)}


def _add_completions(made: FastAPI, server: _Server) -> None:
    @made.post("/v1/completions", tags=["completions"], responses=REFUSALS)
    async def completions(request: Request, asked: Completion) -> Response:
        """Texts that go on from prompts, steered or not."""
        texts = [asked.prompt] if isinstance(asked.prompt, str) else list(asked.prompt)
        if not texts:
            raise RequestError("prompt is empty; pass at least one text.", param="prompt")
        return await server.complete(request, asked, texts, asked.max_tokens, chat=False)

    @made.post("/v1/chat/completions", tags=["completions"], responses=REFUSALS)
    async def chat_completions(request: Request, asked: ChatCompletion) -> Response:
        """The next message of a conversation, steered or not."""
        most = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        return await server.complete(request, asked, [_messages(asked.messages)], most, chat=True)

    @made.post("/invocations", tags=["completions"], responses=REFUSALS)
    async def invocations(request: Request, asked: Invocation) -> Response:
        """A completion or a chat completion, by what is there: a prompt or messages."""
        if (asked.prompt is None) == (asked.messages is None):
            raise RequestError("Pass a prompt or messages, and not both.", param="prompt")
        if asked.messages is not None:
            return await server.complete(request, asked, [_messages(asked.messages)], asked.max_tokens, chat=True)
        texts = [asked.prompt] if isinstance(asked.prompt, str) else list(asked.prompt or ())
        if not texts:
            raise RequestError("prompt is empty; pass at least one text.", param="prompt")
        return await server.complete(request, asked, texts, asked.max_tokens, chat=False)


def _messages(messages: list[Any]) -> list[dict[str, str]]:
    return [{"role": "system" if each.role == "developer" else each.role, "content": each.content} for each in messages]
