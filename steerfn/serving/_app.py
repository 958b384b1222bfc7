"""The ASGI application: what each path does."""

import contextlib
import functools
import html
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from steerfn._errors import DataError
from steerfn._fingerprint import fingerprint
from steerfn.serving._answers import Answer
from steerfn.serving._asked import Reader, Steered
from steerfn.serving._audit import Audit
from steerfn.serving._explain import explain
from steerfn.serving._gate import Gate, known_hosts
from steerfn.serving._job import Job
from steerfn.serving._keys import Keys
from steerfn.serving._limits import Limits
from steerfn.serving._meters import TYPE, Meters
from steerfn.serving._openapi import describe
from steerfn.serving._refused import RequestError
from steerfn.serving._running import Running
from steerfn.serving._schemas import ChatCompletion, Common, Completion, Invocation, Message
from steerfn.serving._shelf import Shelf
from steerfn.serving._worker import Worker

log = logging.getLogger("steerfn.serving")

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {}}}
    for status, what in {
        400: "The request is not one that this server understands; the message says what is wrong with it.",
        401: "No API key, or one that is not known.",
        404: "No such model or vector.",
        408: "The body did not come in time.",
        409: "A vector whose file is damaged or made for another model, or whose name two files have.",
        413: "A body that is too large.",
        415: "A body that is not announced as JSON.",
        429: "Too many texts are waiting.",
        503: "The server is stopping, or cannot write its audit log or apply its default steering.",
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
    api_keys: Iterable[str] | Mapping[str, Iterable[str] | None] | None = None,
    default_steering: Any = None,
    allowed_hosts: Iterable[str] = (),
    cors_origins: Iterable[str] = (),
    audit: Any = None,
    audit_prompts: bool = False,
) -> FastAPI:
    """A server's ASGI application; it runs the model in one thread of its own.

    Paths: `POST /v1/completions`, `POST /v1/chat/completions`, `GET /v1/models`, `GET /v1/models/{id}`,
    `GET /v1/vectors`, `GET /health`, `GET /metrics`; `GET /ping` and `POST /invocations`, as SageMaker hosting wants
    them; `GET /docs`, `GET /openapi.json`.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        vectors: the folder whose vector files are offered, by name; None offers none.
        limits: what requests may take.
        api_keys: keys of which every request must bear one, or a mapping of each to the names of the vectors that it
            may use (None for all). None asks for no key; a list without one is refused.
        default_steering: what every request is steered by, whatever else it asks for, as in its `steering` field: a
            name, or a mapping such as `{"vector": "safe", "alpha": 2.0}`, or a list of them.
        allowed_hosts: host names at which the server is known, besides localhost and the address of the connection;
            "*" takes any, which lets web pages reach a server without keys (DNS rebinding).
        cors_origins: web pages (`https://host`) whose scripts may ask.
        audit: the file of the audit log; None keeps none.
        audit_prompts: write prompts into it too.

    Raises:
        FileError: no such folder, or a log that cannot be written.
        DataError: keys, hosts or origins that would leave the server open, or a default steering that cannot be
            applied.

    Example:
        >>> import steerfn as sf
        >>> from steerfn import serving
        >>> application = serving.app(*sf.demo_model(), "vectors")  # doctest: +SKIP
        >>> uvicorn.run(application, proxy_headers=False)  # doctest: +SKIP
    """
    limits, keys, origins = limits or Limits(), Keys(api_keys), list(cors_origins)
    if isinstance(cors_origins, str) or ("*" in origins and keys.open):
        raise DataError(
            f"cors_origins must be a list of web pages, got {cors_origins!r:.80}; '*' would let every page that is "
            "visited ask this server, so it goes with api_keys only."
        )
    shelf, hosts = Shelf(vectors, model), known_hosts(allowed_hosts)
    server = _Server(model, tokenizer, shelf, limits, Audit(audit, audit_prompts), default_steering)
    for file, reason in shelf.listing()[1].items():
        log.warning("not offered: %r: %s", file, reason)

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(server.worker.close, limits.drain)

    # The pages that FastAPI makes of the schema load scripts from elsewhere.
    made = FastAPI(
        title="steerfn",
        version=server.version,
        lifespan=life,
        default_response_class=Json,
        docs_url=None,
        redoc_url=None,
    )
    made.state.server = server
    made.add_middleware(Gate, keys=keys, hosts=hosts, limits=limits, count=server.count, on_refusal=server.log_refusal)
    if origins:
        made.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"], max_age=600
        )
    _add_handlers(made)
    _add_questions(made, server)
    _add_completions(made, server)
    describe(made, limits, keyed=not keys.open)
    return made


class _Server:
    """What the paths share."""

    def __init__(
        self, model: Any, tokenizer: Any, shelf: Shelf, limits: Limits, audit: Audit, default_steering: Any
    ) -> None:
        from steerfn import __version__

        self.version = __version__
        self.model = fingerprint(model)
        self.name = str(self.model["name"])
        self.shelf, self.limits, self.audit = shelf, limits, audit
        self.reader = Reader(model, tokenizer, shelf, limits, default_steering)
        self.meters = Meters(lambda: self.worker.waiting)
        self.worker = Worker(model, tokenizer, limits, self._observe_batch)
        self.created = int(time.time())

    def count(self, path: str, status: int) -> None:
        """One more answer."""
        self.meters.requests.labels(path, status).inc()

    @property
    def about(self) -> dict[str, Any]:
        """The model, as OpenAI's API tells of one."""
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
        found: list[dict[str, Any]] = []
        for name in names if allowed is None else [name for name in names if name in allowed]:
            one = {"id": name, "object": "vector"}
            try:
                vector, digest = self.shelf.get(name)
            except RequestError as error:
                found.append(one | {"error": error.message})
                continue
            sites = [site.name for site in vector.sites]
            found.append(one | {"sha256": digest, "sites": sites, "method": vector.metadata.get("method")})
        over = [{"file": file, "reason": reason} for file, reason in passed.items()]
        default = [one.model_dump() for one in self.reader.default]
        return {"object": "list", "data": found, "default_steering": default} | (
            {"passed_over": over} if allowed is None else {}
        )

    def _observe_batch(self, jobs: Sequence[Job], started: float, seconds: float) -> None:
        self.meters.rows.observe(len(jobs))
        self.meters.batch.observe(seconds)
        for job in jobs:
            self.meters.queued.observe(max(0.0, started - job.queued))

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
        self, request: Request, asked: Common, texts: Sequence[Any], max_tokens: int | None, chat: bool
    ) -> Response:
        """Answer a completion of either kind."""
        if asked.model:
            self.check_model(asked.model)
        running = Running(self.limits.timeout, self.limits.keep_alive)
        identifier = request.state.id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.reader.check_counts(asked, texts)
        allowed = request.state.allowed
        steered, prompts = await running.run(self._read, asked, allowed, texts, chat, running.until)
        running.jobs = self.reader.jobs(asked, prompts, max_tokens, steered.op, running.hear)
        await self._begin(request, identifier, asked, steered, texts, running)
        try:
            self.worker.submit(running.jobs)
        except RequestError:
            await self._log("end", identifier, outcome=["refused"])
            raise
        for one in steered.applied:
            self.meters.steered.labels(one["vector"]).inc()
        read = sum(map(len, prompts))
        answer = Answer(identifier, int(time.time()), self.name, chat, running.jobs, read, steered.applied)
        if asked.stream:
            usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
            events = self._streamed(request, identifier, answer, running, usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        try:
            async for said in running.pieces(request.is_disconnected):
                if said is not None:
                    answer.add(*said)
        finally:
            await self._end(identifier, answer, running)
        return Json(answer.whole())

    def _read(
        self, asked: Common, allowed: Any, texts: Sequence[Any], chat: bool, until: float
    ) -> tuple[Steered, list[list[int]]]:
        return self.reader.steering(asked.steering, allowed), self.reader.prompts(texts, chat, until)

    async def _streamed(
        self, request: Request, identifier: str, answer: Answer, running: Running, usage: bool
    ) -> AsyncIterator[bytes]:
        def event(value: Any) -> bytes:
            return b"data: " + json.dumps(value, allow_nan=False).encode("ascii") + b"\n\n"

        try:
            for opening in answer.openings():
                yield event(opening)
            async for said in running.pieces(request.is_disconnected):
                if said is None:
                    yield b": waiting\n\n"  # a comment, so that nothing on the way takes the connection for dead
                    continue
                answer.add(*said)
                yield event(answer.part(*said))
            if usage:
                yield event(answer.usage_part())
            yield b"data: [DONE]\n\n"
        except RequestError as refused:  # the status is out already
            yield event(refused.body())
        finally:
            await self._end(identifier, answer, running)

    async def _begin(
        self, request: Request, identifier: str, asked: Common, steered: Steered, texts: Sequence[Any], running: Running
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
                    user=asked.user,
                    endpoint=request.url.path,
                    model=self.model,
                    steering=steered.applied,
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
        made, seconds = usage["completion_tokens"], round(running.seconds, 3)
        await self._log("end", identifier, outcome=reasons, completion_tokens=made, seconds=seconds)


def _add_handlers(made: FastAPI) -> None:
    """Every refusal has OpenAI's form."""

    @made.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Json:
        request.state.refusal = error
        return Json(error.body(), error.status)

    @made.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Json:
        return await refused(request, explain(list(error.errors())))

    @made.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Json:
        return Json(RequestError(str(error.detail), error.status_code).body(), error.status_code, error.headers)


def _add_questions(made: FastAPI, server: _Server) -> None:
    @made.get("/health", tags=["server"], responses={503: REFUSALS[503]})
    @made.get("/ping", tags=["server"], responses={503: REFUSALS[503]})
    async def health() -> Any:
        """Whether a request would be answered now."""
        trouble, state = server.worker.trouble, {"version": server.version, "waiting": server.worker.waiting}
        if trouble is not None:
            return Json({"status": "failing", "reason": trouble} | state, 503)
        return {"status": "ok"} | state

    @made.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Any:
        """Counters, for Prometheus."""
        return Response(server.meters.text(), media_type=TYPE)

    @made.get("/v1/models", tags=["models"], responses={401: REFUSALS[401]})
    async def models() -> Any:
        """The one model, with its fingerprint."""
        return {"object": "list", "data": [server.about]}

    @made.get("/v1/models/{name:path}", tags=["models"], responses={401: REFUSALS[401], 404: REFUSALS[404]})
    async def model(name: str) -> Any:
        """The one model, by its name."""
        server.check_model(name)
        return server.about

    @made.get("/v1/vectors", tags=["models"], responses={401: REFUSALS[401]})
    async def vectors(request: Request) -> Any:
        """The vectors that a request can name, and the files that are none, with the reason."""
        return await run_in_threadpool(server.list_vectors, request.state.allowed)

    @made.get("/docs", include_in_schema=False)
    async def docs() -> Any:
        """The paths, for people."""
        rows = "".join(
            f"<dt><code>{method.upper()} {html.escape(path)}</code><dd>{html.escape(one.get('description', ''))}"
            for path, methods in made.openapi()["paths"].items()
            for method, one in methods.items()
        )
        return HTMLResponse(
            f"<!doctype html><html lang=en><meta charset=utf-8><title>steerfn</title><h1>steerfn {server.version}</h1>"
            f"<dl>{rows}</dl><p>Fields and values: <a href=openapi.json>openapi.json</a>.</p></html>",
            headers={"content-security-policy": "default-src 'none'"},
        )


def _add_completions(made: FastAPI, server: _Server) -> None:
    @made.post("/v1/completions", tags=["completions"], responses=REFUSALS)
    async def completions(request: Request, asked: Completion) -> Response:
        """Texts that go on from prompts, steered or not."""
        return await server.complete(request, asked, _texts(asked.prompt), asked.max_tokens, chat=False)

    @made.post("/v1/chat/completions", tags=["completions"], responses=REFUSALS)
    async def chat_completions(request: Request, asked: ChatCompletion) -> Response:
        """The next message of a conversation, steered or not."""
        return await server.complete(request, asked, [_messages(asked.messages)], asked.most, chat=True)

    @made.post("/invocations", tags=["completions"], responses=REFUSALS)
    async def invocations(request: Request, asked: Invocation) -> Response:
        """A completion or a chat completion, by what is there: a prompt or messages."""
        if asked.messages is not None and asked.prompt is None:
            return await server.complete(request, asked, [_messages(asked.messages)], asked.most, chat=True)
        if asked.prompt is not None and asked.messages is None:
            return await server.complete(request, asked, _texts(asked.prompt), asked.most, chat=False)
        raise RequestError("Pass a prompt or messages, and not both.", param="prompt")


def _texts(prompt: str | list[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else prompt


def _messages(messages: list[Message]) -> list[dict[str, str]]:
    """Conversations as chat templates take them, which may write a participant's name."""
    return [
        {"role": "system" if each.role == "developer" else each.role, "content": each.text}
        | ({} if each.name is None else {"name": each.name})
        for each in messages
    ]
