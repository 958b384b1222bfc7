"""A judge over HTTP: against a real server of the standard library, in a thread."""

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import steerfn as sf
from steerfn.metrics import AXBENCH, _endpoint, endpoint, judge

KEY = "sk-very-secret"


def said(content):
    """The answer of a server of chat completions."""
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


class Server(ThreadingHTTPServer):
    """Answers every question by `reply(question, attempt)`: a status, a body, and perhaps headers."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.requests, self.lock, self.attempts = reply, [], threading.Lock(), {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """A client that has gone is none of the test's business."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            attempt = self.server.attempts[question] = self.server.attempts.get(question, -1) + 1
        found = self.server.reply(question, attempt)
        if found is None:  # the line goes dead
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, text, *headers = found
        self.send_response(status)
        for name, value in (headers[0] if headers else {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        """Nothing on stderr."""


@contextlib.contextmanager
def serving(reply):
    server = Server(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def waits(monkeypatch):
    """How long it would have waited."""
    found = []
    monkeypatch.setattr(_endpoint.time, "sleep", found.append)
    return found


def test_it_asks_as_openai_is_asked():
    with serving(lambda question, _: said(f"You said: {question}")) as server:
        ask = endpoint(server.url, "a-model", KEY, max_tokens=9, seed=3)
        assert ask("Höflich?") == "You said: Höflich?"
        [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}" and headers["Content-Type"] == "application/json"
    assert body == {
        "model": "a-model",
        "messages": [{"role": "user", "content": "Höflich?"}],
        "temperature": 0.0,
        "max_tokens": 9,
        "seed": 3,
    }


def test_what_is_left_to_the_server_is_not_sent():
    with serving(lambda *_: said("yes")) as server:
        endpoint(server.url + "/chat/completions/", "m", temperature=None)("a")
        [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert body == {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def test_half_a_character_can_be_asked_about():
    with serving(lambda question, _: said("yes")) as server:
        assert endpoint(server.url, "m")("cut \ud83d") == "yes"


@pytest.mark.parametrize("concurrency", [1, 3])
def test_several_questions_are_under_way_at_once(concurrency):
    under_way, most, lock, together = [], [], threading.Lock(), threading.Barrier(concurrency)

    def reply(question, _):
        with lock:
            under_way.append(question)
            most.append(len(under_way))
        together.wait(60)
        with lock:
            under_way.remove(question)
        return said(question.upper())

    questions = [f"q{i}" for i in range(9)]
    with serving(reply) as server:
        assert endpoint(server.url, "m", concurrency=concurrency)(questions) == [q.upper() for q in questions]
    assert max(most) == concurrency
    assert endpoint("http://127.0.0.1:1/v1", "m")([]) == []


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_what_may_pass_is_tried_again(waits, status):
    with serving(lambda _, attempt: (status, "busy") if attempt < 3 else said("at last")) as server:
        assert endpoint(server.url, "m", backoff=0.5)("a") == "at last"
        assert len(server.requests) == 4
    assert waits == [0.5, 1.0, 2.0]


def test_it_waits_as_long_as_the_server_asks(waits):
    asked = ["7", "0.25", "Wed, 21 Oct 2026 07:28:00 GMT", "86400", "0"]
    with serving(lambda _, n: (429, "", {"Retry-After": asked[n]}) if n < 5 else said("ok")) as server:
        assert endpoint(server.url, "m", backoff=1.0)("a") == "ok"
    assert waits == [7, 0.25, 4.0, _endpoint.LONGEST_WAIT, 16.0]


def test_a_dead_line_is_tried_again(waits):
    with serving(lambda _, attempt: None if attempt < 2 else said("ok")) as server:
        assert endpoint(server.url, "m")("a") == "ok"
    assert len(waits) == 2


def test_it_gives_up_after_its_attempts(waits):
    with serving(lambda *_: (503, "the model is loading")) as server:
        with pytest.raises(sf.SteerError) as caught:
            endpoint(server.url, "m", retries=2)("a")
        assert len(server.requests) == 3
        with pytest.raises(sf.SteerError, match="did not answer in 1 attempt "):
            endpoint(server.url, "m", retries=0)("b")
    assert (
        f"The endpoint {server.url}/chat/completions did not answer in 3 attempts (503 Service Unavailable: the"
        in str(caught.value)
    )
    assert "check that it runs, or raise retries, backoff or timeout." in str(caught.value)
    assert len(waits) == 2


def test_a_server_that_is_not_there(waits):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(sf.SteerError, match=r"did not answer in 2 attempts \(.*refused"):
        endpoint(f"http://127.0.0.1:{port}/v1", "m", retries=1)("a")


def test_a_server_that_hangs(waits):
    done = threading.Event()
    with serving(lambda *_: done.wait(10) and None) as server:
        with pytest.raises(sf.SteerError, match=r"did not answer in 1 attempt \(timed out\)"):
            endpoint(server.url, "m", retries=0, timeout=0.1)("a")
        done.set()


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_told_at_once_and_without_the_key(waits, status):
    with serving(lambda *_: (status, json.dumps({"error": f"no such model or key {KEY}"}))) as server:
        with pytest.raises(sf.SteerError) as caught:
            endpoint(server.url, "m", KEY)("a")
        assert len(server.requests) == 1
    text = str(caught.value)
    assert f"refused ({status} " in text and "no such model or key [key]" in text and KEY not in text
    assert "check the address, the model's name 'm', the key and the options." in text
    assert not waits


def test_a_redirect_is_not_followed():
    """It would take the key along."""
    with serving(lambda *_: said("mine now")) as thief:
        with serving(lambda *_: (302, "", {"Location": thief.url + "/chat/completions"})) as server:
            with pytest.raises(sf.SteerError, match=r"refused \(302 Found"):
                endpoint(server.url, "m", KEY)("a")
        assert not thief.requests


@pytest.mark.parametrize(
    "body", ["<html>hello</html>", "{}", '{"choices": []}', '{"choices": [{"message": {}}]}', "[3]"]
)
def test_an_answer_of_another_kind_is_told(body):
    with serving(lambda *_: (200, body)) as server:
        with pytest.raises(sf.SteerError, match="did not answer as OpenAI's chat completions do, but with '"):
            endpoint(server.url, "m")("a")


def test_an_error_among_many_ends_them_all():
    with serving(lambda question, _: (400, "no") if question == "q3" else said("ok")) as server:
        with pytest.raises(sf.SteerError, match="refused"):
            endpoint(server.url, "m", concurrency=2)([f"q{i}" for i in range(200)])
        assert len(server.requests) < 100
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("steerfn-judge")]


def test_a_model_that_declines_has_said_nothing():
    with serving(lambda *_: said(None)) as server:
        assert endpoint(server.url, "m")("a") == ""


def test_a_judge_asks_it_for_many_texts_at_once():
    def reply(question, _):
        return said(f"Seen.\nRating: [[{2 if 'buzz' in question else 0}]]")

    with serving(reply) as server:
        mine = judge(endpoint(server.url, "small-judge"), AXBENCH["concept"], "bees", concept="bees")
        assert mine(["buzz", "quack", "buzz buzz", "quack"]) == [2, 0, 2, 0]
        assert len(server.requests) == 3
    assert mine.about == f"Rated by small-judge at {server.url}/chat/completions: as good as that judge is."


def test_the_key_is_shown_nowhere():
    assert KEY not in repr(endpoint("http://localhost/v1", "m", KEY)) + str(endpoint("http://localhost/v1", "m", KEY))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"url": "file:///etc/passwd"},
            "url must be an address that begins with http:// or https://, not 'file:///etc/passwd'.",
        ),
        ({"url": "localhost:8000/v1"}, "url must be an address that begins with http:// or https://"),
        ({"url": None}, "url must be an address that begins with http:// or https://, not None."),
        ({"model": ""}, "model must be the name of a model, not ''."),
        (
            {"api_key": "sk-x\n"},
            "api_key must be a text without blanks, line breaks or accents; strip surrounding characters.",
        ),
        ({"timeout": -1}, "`timeout` must be a finite number > 0, got -1; it is in seconds."),
        ({"backoff": "x"}, "`backoff` must be a finite number > 0, got 'x'; it is in seconds."),
        ({"retries": 1.5}, "`retries` must be a non-negative integer, got 1.5."),
        ({"concurrency": 0}, "`concurrency` must be a positive integer, got 0."),
    ],
)
def test_options_that_are_none(given, message):
    with pytest.raises(sf.DataError) as caught:
        endpoint(**{"url": "http://localhost/v1", "model": "m", **given})
    assert message in str(caught.value) and "sk-x" not in str(caught.value)


def test_an_answer_has_a_largest_size_and_depth(monkeypatch):
    monkeypatch.setattr(_endpoint, "MAX_ANSWER", 300_000)
    with serving(lambda question, _: (200, "[" * int(question))) as server:
        ask = endpoint(server.url, "m", retries=0)
        with pytest.raises(sf.SteerError, match="answered with more than 300000 bytes"):
            ask("300001")
        with pytest.raises(sf.SteerError, match="did not answer as OpenAI's chat completions do"):
            ask("200000")


@pytest.mark.parametrize("where", ["headers", "body"])
def test_an_answer_that_drips_has_an_end(where, monkeypatch):
    """A byte at a time, each well within the timeout of 5 seconds, for a minute; all of it may take 1 second."""
    monkeypatch.setattr(_endpoint, "PATIENCE", 0.2)
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip():
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 9999\r\n\r\n" if where == "body" else b"X: ")
            )
            for _ in range(3000):
                if stop.wait(0.02):
                    break
                connection.sendall(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        ask = endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}", "m", timeout=5.0, retries=0)
        with pytest.raises(sf.SteerError, match="not whole after 1 seconds|timed out"):
            ask("?")
    finally:
        stop.set()
        thread.join()
        listener.close()
