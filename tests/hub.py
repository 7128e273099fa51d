"""A stand-in of the Hugging Face hub: what its library asks for when a model is uploaded, answered as the hub does."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_secretsecretsecret"
OWNER = "alice"


@dataclass
class Repo:
    """A repository: its files by branch."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*"}})
    messages: list[str] = field(default_factory=list)


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repos: by name.
        blobs: large files that have arrived, by SHA-256.
        received: sizes of the large files, in the order in which they came.
        breaks_after: of large files; every further one is refused as a server in trouble does. None: never.
        refuses: HTTP status by a part of the path.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.received: list[int] = []
        self.breaks_after: int | None = None
        self.refuses: dict[str, int] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        for part, status in self.server.refuses.items():
            if part in path:
                return self._answer(status, {"error": f"refused, {self.headers.get('Authorization')}"})
        if path.startswith("/lfs/"):
            return self._take_blob(path.removeprefix("/lfs/"), body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": f"Invalid credentials {self.headers.get('Authorization')}"})
        return self._api(path, body)

    def _api(self, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        _, _, rest = path.partition("/api/models/")
        name, _, call = "/".join(rest.split("/")[:2]), None, rest.split("/")[2:]
        repo = self.server.repos.get(name)
        if repo is None:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if not call or call[0] == "revision":
            files = repo.branches["main"]
            siblings = [{"rfilename": each} for each in files]
            return self._answer(200, {"id": name, "private": repo.private, "sha": "0" * 40, "siblings": siblings})
        if call[0] == "branch":
            repo.branches.setdefault(call[1], {})
            return self._answer(200, {})
        if call[0] == "preupload":
            return self._modes(repo.branches[call[1]], json.loads(body))
        if call[0] == "commit":
            return self._commit(name, repo, call[1], body)
        return self._answer(404, {"error": f"no such call: {path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked["organization"]
        name = f"{owner}/{asked['name']}"
        if owner != OWNER:
            return self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        url = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repos:
            return self._answer(409, {"error": "You already created this model repo", **url})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.repos[name] = Repo(private)
        return self._answer(200, url)

    def _modes(self, files: dict[str, bytes], asked: dict[str, Any]) -> None:
        answers = []
        for each in asked["files"]:
            large = each["path"].endswith((".safetensors", ".png"))
            answer = {"path": each["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if (there := files.get(each["path"])) is not None:
                blob = b"blob %d\0" % len(there) + there
                answer["oid"] = (
                    hashlib.sha256(there).hexdigest()
                    if large
                    else hashlib.sha1(blob, usedforsecurity=False).hexdigest()
                )
            answers.append(answer)
        self._answer(200, {"files": answers})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            answer = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.server.blobs:
                answer["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}
            objects.append(answer)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _take_blob(self, oid: str, body: bytes) -> None:
        limit = self.server.breaks_after
        if limit is not None and len(self.server.received) >= limit:
            return self._answer(503, {"error": "later"})
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.received.append(len(body))
        self.server.blobs[oid] = body
        return self._answer(200, {})

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> None:
        files = repo.branches[branch]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.blobs[value["oid"]]
        url = f"{self.server.url}/{name}/commit/{'1' * 40}"
        self._answer(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})

    def _answer(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(patch: pytest.MonkeyPatch, token: str | None = TOKEN) -> Iterator[Hub]:
    """Let the hub's library ask a stand-in, without the protocol that only the hub speaks, and without waiting."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(_http.time, "sleep", lambda seconds: None)
    patch.setattr(constants, "HF_TOKEN_PATH", "/no/such/file")
    patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    patch.setenv("HF_TOKEN", token or "")
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
