"""A language model behind an address: OpenAI's chat completions, as most servers speak them."""

import dataclasses
import http.client
import io
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, overload

from steerfn.values import DataError, SteerError, finite_number, integer, positive_int, public

LONGEST_WAIT = 60.0
"""Seconds between two attempts at most, whatever the server asks for."""
PATIENCE = 10
"""How many times `timeout` an answer may take in all."""
MAX_ANSWER = 2**22
"""Bytes of an answer: a hundred times the longest that a judge gives."""
PATH = "/chat/completions"


class _Timed(io.RawIOBase):
    """Read a response until a deadline: a socket timeout alone restarts with every byte."""

    def __init__(self, sock: Any, raw: Any) -> None:
        self._sock, self._raw, self._timeout = sock, raw, sock.gettimeout()
        self._end = time.monotonic() + PATIENCE * self._timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"the answer was not whole after {PATIENCE * self._timeout:g} seconds")
        self._sock.settimeout(min(self._timeout, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Timed(sock, self.fp.detach()))


class _Http(http.client.HTTPConnection):
    response_class = _Response


class _Https(http.client.HTTPSConnection):
    response_class = _Response


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> Any:
        return self.do_open(_Http, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        return self.do_open(_Https, req)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would go on without its question, and with the key to whoever is named."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A function from a question, or a list of them, to the answers; see `endpoint`.

    Attributes:
        address: where it asks.
        model: the name of the model.
        api_key: sent as a bearer token; shown nowhere.
        body: what else goes into each request.
        timeout: seconds.
        retries: further attempts at most.
        backoff: seconds before the second attempt; they double.
        concurrency: questions under way at once.
    """

    address: str
    model: str
    api_key: str | None = dataclasses.field(repr=False)
    body: Mapping[str, Any]
    timeout: float
    retries: int
    backoff: float
    concurrency: int

    @overload
    def __call__(self, question: str) -> str: ...
    @overload
    def __call__(self, question: list[str]) -> list[str]: ...
    def __call__(self, question: str | list[str]) -> str | list[str]:
        if isinstance(question, str):
            return self._answer(question)
        if not question:
            return []
        pool = ThreadPoolExecutor(min(self.concurrency, len(question)), thread_name_prefix="steerfn-judge")
        try:
            return list(pool.map(self._answer, question))
        finally:  # after an error nothing more is asked, and paid for
            pool.shutdown(cancel_futures=True)

    def _answer(self, question: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], **self.body}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        # Half of a pair of surrogates, which a cut text may end with, has no UTF-8; JSON writes it as an escape.
        request = urllib.request.Request(self.address, json.dumps(body).encode(), headers)
        why = ""
        for attempt in range(self.retries + 1):
            wait = self.backoff * 2**attempt
            try:
                opener = urllib.request.build_opener(_NoRedirect, _HttpHandler, _HttpsHandler)
                with opener.open(request, timeout=self.timeout) as response:
                    return self._content(self._body(response))
            except urllib.error.HTTPError as error:
                with error:
                    why = f"{error.code} {error.reason}: {self._quote(_read(error))}"
                    wait = _retry_after(error.headers.get("Retry-After")) or wait
                if error.code != 429 and error.code < 500:
                    raise SteerError(
                        f"The endpoint {self.address} refused ({why}); check the address, the model's name "
                        f"{self.model!r}, the key and the options."
                    ) from None
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                why = self._quote(str(getattr(error, "reason", "") or error) or type(error).__name__)
            if attempt < self.retries:
                time.sleep(min(wait, LONGEST_WAIT))
        attempts = f"{self.retries + 1} attempts" if self.retries else "1 attempt"
        raise SteerError(
            f"The endpoint {self.address} did not answer in {attempts} ({why}); check that it runs, or raise retries, "
            "backoff or timeout."
        )

    def _body(self, response: Any) -> bytes:
        """An answer in full, as long as it may be."""
        chunks, size = [], 0
        while chunk := response.read1(65536):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER:
                raise SteerError(
                    f"The endpoint {self.address} answered with more than {MAX_ANSWER} bytes; check the address, or "
                    "pass max_tokens."
                )
        return b"".join(chunks)

    def _content(self, raw: bytes) -> str:
        try:
            content = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            content = 0
        if content is None:  # so a model declines: there is nothing to read
            return ""
        if not isinstance(content, str):
            raise SteerError(
                f"The endpoint {self.address} did not answer as OpenAI's chat completions do, but with "
                f"{self._quote(raw[:4096].decode(errors='replace'))!r}; check the address."
            )
        return content

    def _quote(self, text: str) -> str:
        """A server's message, shortened, and without the API key that it may quote."""
        text = " ".join(text.split())
        return (text.replace(self.api_key, "[key]") if self.api_key else text)[:200]


def _read(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""


def _retry_after(header: str | None) -> float | None:
    """The seconds that a server asks to wait; dates are not read."""
    return float(header) if header and re.fullmatch(r"\d+(\.\d+)?", header.strip()) else None


@public
def endpoint(
    url: str,
    model: str,
    api_key: str | None = None,
    *,
    temperature: float | None = 0.0,
    max_tokens: int | None = None,
    timeout: float = 60.0,
    retries: int = 5,
    backoff: float = 1.0,
    concurrency: int = 4,
    **body: Any,
) -> Endpoint:
    """A language model that answers over HTTP, for `judge`: any server that speaks OpenAI's chat completions.

    Each question is one request with one user message, by the standard library alone. Status 429, 5xx and broken
    connections are tried again after `backoff`, `2 backoff`, `4 backoff`, ... seconds, or as long as the server asks
    (`Retry-After`), up to a minute; anything else is an error at once. Redirects are not followed.

    Args:
        url: where the API begins, such as "https://api.openai.com/v1" or "http://localhost:8000/v1" (vLLM, llama.cpp,
            Ollama); "/chat/completions" is added unless it is there.
        model: the name of the model.
        api_key: sent as a bearer token; it is read from nowhere else, and shown nowhere.
        temperature: of its sampling; None leaves it to the server, as models that think demand.
        max_tokens: of an answer at most; None leaves it to the server.
        timeout: seconds without a sign of the server; an answer may take ten times as long in all, and have 4 MiB.
        retries: further attempts at most.
        backoff: seconds before the second attempt.
        concurrency: questions under way at once.
        body: anything else that goes into the request, such as `seed=0` or `max_completion_tokens=500`.

    Returns:
        A function from a question to the answer, or from a list of questions to the list of answers.

    Raises:
        DataError: no http address, a key with blanks or line breaks in it, or a number out of range.
        SteerError: when asked: a server that refuses, cannot be reached, or says something else.

    Example:
        >>> import steerfn as sf
        >>> ask = sf.metrics.endpoint("http://localhost:8000/v1", "judge-model", concurrency=8)
        >>> ask.address
        'http://localhost:8000/v1/chat/completions'
    """
    if not isinstance(url, str) or not re.fullmatch(r"https?://[^/\s]+\S*", url):
        raise DataError(f"url must be an address that begins with http:// or https://, not {url!r:.80}.")
    if not isinstance(model, str) or not model:
        raise DataError(f"model must be the name of a model, not {model!r:.80}.")
    if api_key is not None and not (isinstance(api_key, str) and re.fullmatch(r"[!-~]+", api_key)):
        raise DataError("api_key must be a text without blanks, line breaks or accents; strip surrounding characters.")
    timeout = finite_number("timeout", timeout, above=0, hint="it is in seconds")
    backoff = finite_number("backoff", backoff, above=0, hint="it is in seconds")
    retries, concurrency = integer("retries", retries, 0), positive_int("concurrency", concurrency)
    place = url.rstrip("/")
    address = place if place.endswith(PATH) else place + PATH
    more = {"temperature": temperature, "max_tokens": max_tokens}
    payload = {name: value for name, value in more.items() if value is not None} | body
    return Endpoint(address, model, api_key, payload, timeout, retries, backoff, concurrency)
