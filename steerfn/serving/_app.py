"""The ASGI application: what each path does."""

import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from steerfn.model import Model, Tokenizer
from steerfn.output import page, render
from steerfn.serving._admin import add_changes
from steerfn.serving._audit import Audit
from steerfn.serving._explain import explain
from steerfn.serving._guard import TYPE, Guard
from steerfn.serving._hosts import known_hosts
from steerfn.serving._keys import ApiKeys, Keys
from steerfn.serving._limits import Limits
from steerfn.serving._openapi import describe
from steerfn.serving._request_error import RequestError
from steerfn.serving._schemas import ChatCompletion, Completion, Invocation
from steerfn.serving._server import Json, Server
from steerfn.serving._structured import conversation
from steerfn.serving._vectors import Shelf
from steerfn.values import DataError, public

log = logging.getLogger("steerfn.serving")

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may load for the page of paths: the style that stands in it."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {}}}
    for status, what in {
        400: "The request is not one that this server understands; the message says what is wrong with it.",
        401: "No API key, or one that is not known.",
        403: "An alpha outside of the key's range, or a change of vectors without an admin key.",
        404: "No such model or vector.",
        408: "The body did not come in time.",
        409: "A vector whose file is damaged or made for another model, or whose name two files have; a change of one "
        "that the default steering needs.",
        413: "A body that is too large.",
        415: "A body that is not announced as JSON, or an upload that is not announced as bytes.",
        429: "Too many texts are waiting.",
        503: "The server is stopping, or cannot write its audit log or vectors, or apply its default steering.",
        504: "Not done in time.",
    }.items()
}


@public
def app(
    model: Model,
    tokenizer: Tokenizer,
    vectors: Any = None,
    *,
    limits: Limits | None = None,
    api_keys: ApiKeys | None = None,
    admin_keys: Iterable[str] | None = None,
    default_steering: Any = None,
    continuous: bool = False,
    allowed_hosts: Iterable[str] = (),
    cors_origins: Iterable[str] = (),
    audit: Any = None,
    audit_prompts: bool = False,
) -> FastAPI:
    """A server's ASGI application; it runs the model in one thread of its own.

    Paths: `POST /v1/completions`, `POST /v1/chat/completions`, `GET /v1/models`, `GET /v1/models/{id}`,
    `GET /v1/vectors`, `GET /v1/vectors/{name}`, `GET /health`, `GET /metrics`; with an admin key `PUT` and `DELETE
    /v1/vectors/{name}`; `GET /ping` and `POST /invocations`, as SageMaker hosting wants them; `GET /docs`,
    `GET /openapi.json`.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        vectors: the folder whose vector files are offered, by name; None offers none.
        limits: what requests may take.
        api_keys: keys of which every request must bear one, or a mapping of each to the vectors that it may use: their
            names, or a mapping of each name ("*" is every other vector) to the range of alpha, `(low, high)`, or to
            None for any (None for all vectors). None asks for no key; a list without one is refused.
        admin_keys: keys that may do all that others may, and upload, replace and remove vectors. None lets nobody.
        default_steering: what every request is steered by, whatever else it asks for, as in its `steering` field: a
            name, or a mapping such as `{"vector": "safe", "alpha": 2.0}`, or a list of them.
        continuous: let texts join and leave a running batch, by transformers' continuous batching, so that none waits
            for the others' last token.
        allowed_hosts: host names at which the server is known, besides localhost and the address of the connection;
            "*" takes any, which lets web pages reach a server without keys (DNS rebinding).
        cors_origins: web pages (`https://host`) whose scripts may ask.
        audit: the file of the audit log; None keeps none.
        audit_prompts: write prompts into it too.

    Raises:
        FileError: no such folder, or a log that cannot be written.
        ModelError: `continuous`, where the model or transformers cannot.
        DataError: keys, hosts or origins that would leave the server open, or a default steering that cannot be
            applied.

    Example:
        >>> import steerfn as sf
        >>> from steerfn import serving
        >>> import os
        >>> os.mkdir("vectors")
        >>> path = sf.save(v, "vectors/happy.safetensors")
        >>> application = serving.app(model, tokenizer, "vectors")

        To serve it: `uvicorn.run(application, proxy_headers=False)`.
    """
    limits, keys, origins = limits or Limits(), Keys(api_keys, admin_keys), list(cors_origins)
    if isinstance(cors_origins, str) or ("*" in origins and keys.open):
        raise DataError(
            f"cors_origins must be a list of web pages, got {cors_origins!r:.80}; '*' would let every page that is "
            "visited ask this server, so it goes with api_keys only."
        )
    shelf, hosts = Shelf(vectors, model), known_hosts(allowed_hosts)
    server = Server(model, tokenizer, shelf, limits, Audit(audit, audit_prompts), default_steering, continuous)
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
    made.add_middleware(Guard, keys=keys, hosts=hosts, limits=limits, count=server.count, on_refusal=server.log_refusal)
    if origins:
        made.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"], max_age=600
        )
    _add_handlers(made)
    _add_questions(made, server)
    add_changes(made, server, keys, REFUSALS)
    _add_completions(made, server)
    describe(made, limits, keyed=not keys.open)
    return made


def _add_handlers(made: FastAPI) -> None:
    """Every refusal has OpenAI's form."""

    @made.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> Json:
        request.state.refusal = error
        return Json(error.body(), error.status)

    @made.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Json:
        return await refuse(request, explain(list(error.errors())))

    @made.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Json:
        return Json(RequestError(str(error.detail), error.status_code).body(), error.status_code, error.headers)


def _add_questions(made: FastAPI, server: Server) -> None:
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

    @made.get("/v1/vectors/", include_in_schema=False)
    @made.get("/v1/vectors", tags=["models"], responses={401: REFUSALS[401]})
    async def vectors(request: Request) -> Any:
        """The vectors that a request can name, and the files that are not offered, with the reason."""
        return await run_in_threadpool(server.list_vectors, request.state.allowed)

    @made.get("/v1/vectors/{name:path}", tags=["models"], responses={each: REFUSALS[each] for each in (401, 404, 409)})
    async def vector(request: Request, name: str) -> Any:
        """One vector, by its name."""
        return await run_in_threadpool(server.describe_vector, name, request.state.allowed)

    @made.get("/docs", include_in_schema=False)
    async def docs() -> Any:
        """The paths, for people."""
        paths = render("serving/docs.html.j2", version=server.version, paths=made.openapi()["paths"])
        return HTMLResponse(page("steerfn", paths), headers={"content-security-policy": POLICY})


def _add_completions(made: FastAPI, server: Server) -> None:
    @made.post("/v1/completions", tags=["completions"], responses=REFUSALS)
    async def completions(request: Request, body: Completion) -> Response:
        """Texts that go on from prompts, steered or not."""
        return await server.complete(request, body, _texts(body.prompt), body.max_tokens, chat=False)

    @made.post("/v1/chat/completions", tags=["completions"], responses=REFUSALS)
    async def chat_completions(request: Request, body: ChatCompletion) -> Response:
        """The next message of a conversation, steered or not."""
        return await server.complete(request, body, [conversation(body.messages)], body.most, chat=True)

    @made.post("/invocations", tags=["completions"], responses=REFUSALS)
    async def invocations(request: Request, body: Invocation) -> Response:
        """A completion or a chat completion, by what is there: a prompt or messages."""
        if body.messages is not None and body.prompt is None:
            return await server.complete(request, body, [conversation(body.messages)], body.most, chat=True)
        if body.prompt is not None and body.messages is None:
            return await server.complete(request, body, _texts(body.prompt), body.most, chat=False)
        raise RequestError("Pass a prompt or messages, and not both.", param="prompt")


def _texts(prompt: Any) -> list[Any]:
    """The prompts of a completion: texts, or token ids as tuples."""
    if isinstance(prompt, str):
        return [prompt]
    many = [prompt] if isinstance(prompt[0], int) else prompt
    return [each if isinstance(each, str) else tuple(each) for each in many]
