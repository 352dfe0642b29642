"""A hub on this machine: the part of the API of huggingface.co that an upload takes, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

TOKEN = "hf_secret"


class FakeHub:
    """Repositories by name, with their files. As a context manager it serves at `url`."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.requests: list[str] = []
        self._stored: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer("GET")

            def do_POST(self) -> None:
                self._answer("POST")

            def do_PUT(self) -> None:
                self._answer("PUT")

            def _answer(self, method: str) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                code, table = hub.answer(method, self.path, self.rfile.read(length), self.headers.get("Authorization"))
                text = json.dumps(table).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, body: bytes, authorization: str | None) -> tuple[int, Any]:
        path = path.partition("?")[0]
        self.requests.append(f"{method} {path}")
        if method == "PUT" and path.startswith("/store/"):  # a signed address, which takes no token
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/store/")
            self._stored[path.removeprefix("/store/")] = body
            return 200, {}
        if authorization != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        for repo in self.repos:
            if path == f"/{repo}.git/info/lfs/objects/batch":
                return 200, self._batch(json.loads(body))
            if path == f"/api/models/{repo}/preupload/main":
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False} for f in files]
                return 200, {"files": modes}
            if path == f"/api/models/{repo}/commit/main":
                return 200, self._commit(repo, body)
            if path.startswith(f"/api/models/{repo}"):
                return 200, {"id": repo, "sha": "0" * 40, "siblings": [], "private": self.private[repo], "tags": []}
        return 404, {"error": "not found"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        self.repos[repo] = {}
        self.private[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
        return 200, {"url": f"{self.url}/{repo}", "name": repo}

    def _batch(self, asked: dict[str, Any]) -> Any:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/store/{each['oid']}"}}} for each in asked["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _commit(self, repo: str, body: bytes) -> Any:
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                self.messages.append(value["summary"])
            elif row["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self._stored[value["oid"]]
        return {"commitOid": "1" * 40, "commitUrl": f"{self.url}/{repo}/commit/{'1' * 40}", "success": True}


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"
