"""What comes in: known hosts, JSON, bodies that are small and come in time; what goes out to browsers and HEAD."""

import contextlib
import itertools
import re
import socket

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
import requests
from families import build
from served import post, served
from words import words

import steerfn as sf
from steerfn import serving
from steerfn.serving._connection import patient_protocol

BODY = {"prompt": "a", "max_tokens": 1}
ORIGIN = "https://page.example"


@pytest.fixture(scope="module")
def address():
    limits = serving.Limits(max_body=2000)
    application = serving.app(
        build("llama"), words(), limits=limits, allowed_hosts=["steering.example"], cors_origins=[ORIGIN]
    )
    with served(application, http=patient_protocol(limits.receive)) as where:
        yield where


@pytest.mark.parametrize(
    "host, status",
    [
        ("evil.example", 400), ("127.0.0.1.evil.example:80", 400), ("localhost.evil.example", 400), ("", 400),
        ("[::2]:80", 400), ("localhost", 200), ("LOCALHOST:9", 200), ("[::1]:8000", 200), ("steering.example:443", 200),
    ],
)  # fmt: skip
def test_dns_rebinding_only_known_hosts_are_answered(host, status, address):
    for path in ("/v1/models", "/health", "/metrics", "/openapi.json"):
        assert requests.get(f"{address}{path}", headers={"host": host}).status_code == status
    assert post(address, "/v1/completions", BODY, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "a/json"]
)
def test_a_body_must_say_that_it_is_json(kind, address):
    headers = {} if kind is None else {"content-type": kind}
    found = requests.post(f"{address}/v1/completions", data=b'{"prompt": "a"}', headers=headers)
    assert found.status_code == 415 and "Content-Type: application/json" in found.json()["error"]["message"]
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    body = b'{"prompt": "a", "max_tokens": 1}'
    assert requests.post(f"{address}/v1/completions", data=body, headers=headers).status_code == 200


def test_a_body_without_a_length_is_bounded_too(address):
    """Pieces are counted as they come: the body never ends, and the answer comes."""
    pieces = itertools.repeat(b'{"prompt": "' + b"a" * 500)
    headers = {"content-type": "application/json"}
    try:
        found = requests.post(f"{address}/v1/completions", data=pieces, headers=headers, timeout=20).status_code
    except requests.ConnectionError:  # it was closed while more was being sent
        found = 413
    assert found == 413
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as talk:
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        talk.sendall(f"{head}transfer-encoding: chunked\r\n\r\n{2001:x}\r\n{'a' * 2001}\r\n".encode())
        assert b" 413 " in talk.recv(1000).splitlines()[0]


@pytest.mark.parametrize(
    "sent, head, body",
    [
        (
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            "content-type: application/json\r\ncontent-length: 50\r\n\r\n{",
            60.0,
            0.5,
        ),
        ("POST /v1/completions HTTP/1.1\r\nhost: loc", 0.5, 60.0),
        ("", 0.5, 60.0),
    ],
    ids=["body", "head", "nothing"],
)
def test_half_sent_requests_time_out(sent, head, body):
    """Each by its own clock: the other's is too long to matter."""
    application, told = serving.app(build("llama"), words(), limits=serving.Limits(receive=body)), []
    with served(application, http=patient_protocol(head)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=50) as talk:  # which ends a wait for nothing
            with contextlib.suppress(ConnectionError):  # it was closed before all was sent
                talk.sendall(sent.encode())
                told.extend(iter(lambda: talk.recv(1000), b""))
    assert (b" 408 " in b"".join(told)) == sent.endswith("{")


def test_a_head_asks_for_no_body_and_a_page_only_where_it_is_named(address):
    for path in ("/health", "/v1/models", "/metrics"):
        found = requests.head(f"{address}{path}")
        assert found.status_code == 200 and found.content == b""
    asked = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "x-a"}
    found = requests.options(f"{address}/v1/completions", headers=asked)
    assert found.status_code == 200 and found.headers["access-control-allow-origin"] == ORIGIN
    other = post(address, "/v1/completions", BODY, headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    assert post(address, "/v1/completions", BODY, headers={"origin": ORIGIN}).headers["access-control-allow-origin"]
    for wrong in (["*"], ORIGIN):
        with pytest.raises(sf.DataError, match="cors_origins must be a list"):
            serving.app(build("llama"), words(), cors_origins=wrong)


def test_the_docs_load_nothing_from_elsewhere(address):
    page = requests.get(f"{address}/docs")
    assert page.status_code == 200 and "/v1/chat/completions" in page.text
    assert not re.search(r"(src|href)=.?(https?:)?//|<script|@import", page.text)
    assert requests.get(f"{address}/redoc").status_code == 404
