"""A stand-in of the Hugging Face hub on this machine: the endpoints that reading, listing and committing need."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

import pytest


class Hub:
    """Repositories as lists of commits; each is what the files were then.

    Attributes:
        commits: by repository, (id, files by path), the last one being the main branch.
        sizes: what is claimed of files by path, where it is not their size.
        hang_up: end every connection without an answer.
        gated: refuse to show the repositories' files.
        token: who may write, None for anyone.
        requests: every (method, path) that was asked.
        go_offline: have the client do as with HF_HUB_OFFLINE=1, where it talks to this one.
    """

    def __init__(self):
        self.commits, self.sizes, self.token, self.requests = {}, {}, None, []
        self.hang_up = self.gated = False

    def commit(self, repo, files):
        """Add files to a repository, and its id."""
        before = self.commits.setdefault(repo, [])
        new = {**(before[-1][1] if before else {}), **files}
        digest = hashlib.sha1(repr((len(before), sorted(new.items()))).encode()).hexdigest()
        before.append((digest, new))
        return digest

    def at(self, repo, revision):
        """The commit of a revision and its files, None where there is none."""
        commits = self.commits[repo] or [("0" * 40, {})]
        return commits[-1] if revision == "main" else next((c for c in commits if c[0] == revision), None)


class Answer(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def say(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        if hub.hang_up:
            self.close_connection = True
            return self.connection.close()
        if path.startswith("/api/validate-yaml"):
            return self.say(200, {"errors": [], "warnings": []})
        if self.command == "POST" and hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.say(401, X_Error_Message="Invalid username or password.")
        if path == "/api/repos/create":
            body = json.loads(data)
            repo = "/".join(filter(None, (body.get("organization"), body["name"])))
            repo = repo if "/" in repo else f"someone/{repo}"
            known = repo in hub.commits
            hub.commits.setdefault(repo, [])
            return self.say(409 if known else 200, {"url": f"{self.server.url}/{repo}", "id": repo})
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        if repo not in hub.commits:
            return self.say(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if hub.gated:
            return self.say(403, X_Error_Code="GatedRepo", X_Error_Message=f"Access to model {repo} is restricted.")
        rest = parts[4:] if api else parts[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        found = hub.at(repo, revision)
        if found is None:
            return self.say(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
        commit, files = found
        if api and rest[:1] == ["preupload"]:
            asked = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(data)["files"]]
            return self.say(200, {"files": [{**each, "shouldIgnore": False, "oid": None} for each in asked]})
        if api and rest[:1] == ["commit"]:
            lines = [json.loads(line) for line in data.decode().splitlines() if line]
            added = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            new = hub.commit(repo, added)
            return self.say(
                200, {"commitUrl": f"{self.server.url}/{repo}/commit/{new}", "commitOid": new, "success": True}
            )
        if api and rest[:1] == ["tree"]:
            return self.say(200, [self.entry(hub, name, each) for name, each in sorted(files.items())])
        if api:
            siblings = [{**self.entry(hub, name, each), "rfilename": name} for name, each in sorted(files.items())]
            return self.say(200, {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": []})
        name = "/".join(rest[2:])  # user/name/resolve/revision/file
        if name not in files:
            return self.say(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=commit)
        data = files[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": commit}
        if name in hub.sizes:
            headers["X_Linked_Size"] = str(hub.sizes[name])
        return self.say(200, data, **headers)

    @staticmethod
    def entry(hub, name, data):
        size = hub.sizes.get(name, len(data))
        return {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(data).hexdigest()}

    do_GET = do_HEAD = do_POST = answer


@contextlib.contextmanager
def hub_server():
    """A stand-in that runs while the context is open: the hub, and its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    server.hub, server.url = Hub(), f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.hub, server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def stand_in(cache):
    """A stand-in that the hub's client talks to, with a cache and a login of its own.

    Args:
        cache: a folder.
    """
    from huggingface_hub import constants, file_download, utils

    reset = getattr(utils, "reset_sessions", lambda: None)  # an older client looks at these when it opens a session
    with hub_server() as (hub, url):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "ENDPOINT": url,
                "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
                "HF_HUB_CACHE": str(cache),
                "HF_HUB_OFFLINE": False,
            }.items():  # what the client reads from the environment when it is imported
                for module in (constants, file_download):
                    if hasattr(module, name):
                        patch.setattr(module, name, value)
            patch.setenv("HF_TOKEN", "hf_test")
            patch.setattr("time.sleep", lambda seconds: None)  # an older client asks five times, ever later
            reset()

            def go_offline():
                patch.setattr(constants, "HF_HUB_OFFLINE", True)
                reset()

            hub.go_offline = go_offline
            yield hub
        reset()
