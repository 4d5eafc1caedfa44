"""A hub in this process: what huggingface-hub asks of one to download a snapshot and to push a commit."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

Files = dict[str, bytes]


class FakeHub:
    """Repositories in memory: branches of commits, each a set of files.

    ``status``: answer every request with it; ``token``: the only one that is let in.
    """

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, Files] = {}
        self.private: dict[str, bool] = {}
        self.objects: Files = {}
        self.requests: list[tuple[str, str]] = []
        self.status: int | None = None
        self.token: str | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo: str, files: Files, branch: str = "main") -> str:
        """A commit that holds ``files``, put on a branch; its hash."""
        parts = [part for name in sorted(files) for part in (name.encode(), files[name])]
        sha = hashlib.sha1(b"\0".join([repo.encode(), *parts])).hexdigest()
        self.commits[sha] = files
        self.branches.setdefault(repo, {})[branch] = sha
        self.private.setdefault(repo, False)
        return sha

    def files(self, repo: str, revision: str = "main") -> Files | None:
        return self.commits.get(self.branches.get(repo, {}).get(revision, revision))

    # ---- the pages: (status, answer, headers) ------------------------------------------------------------

    def get(self, path: str) -> tuple[int, Any, dict[str, str]]:
        api, parts = path.startswith("/api/models/"), path.removeprefix("/api/models/").strip("/").split("/")
        repo, what, rest = "/".join(parts[:2]), parts[2:3], [unquote(part) for part in parts[3:]]
        if repo not in self.branches:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        revision = rest[0] if rest else "main"
        files = self.files(repo, revision)
        if files is None:
            return 404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"}
        sha = self.branches[repo].get(revision, revision)
        if what == ["tree"]:
            entries = [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in files.items()]
            return 200, entries, {}
        if api:
            return 200, {"id": repo, "sha": sha, "private": self.private[repo], "siblings": []}, {}
        content = files["/".join(rest[1:])]
        return 200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": sha}

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/validate-yaml":
            known = "license: none of them" not in json.loads(body)["content"]
            return (200, {}) if known else (400, {"errors": [{"message": "license is none of ours"}]})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            oids = [wanted["oid"] for wanted in json.loads(body)["objects"]]
            upload = {oid: {"upload": {"href": f"{self.url}/lfs/{oid}"}} for oid in oids}
            objects = [{"oid": oid, "size": 0, "actions": upload[oid]} for oid in oids]
            return 200, {"transfer": "basic", "objects": objects}
        owner, name, what, revision = path.removeprefix("/api/models/").split("/")
        repo, revision = f"{owner}/{name}", unquote(revision)
        if what == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            return 200, {
                "files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]
            }
        if what == "branch":
            known = revision in self.branches[repo]
            self.branches[repo].setdefault(revision, self.branches[repo]["main"])
            return 409 if known else 200, {}
        assert what == "commit"
        return self._commit(repo, revision, [json.loads(line) for line in body.splitlines()])

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{wanted['organization']}/{wanted['name']}"
        known = repo in self.branches
        if not known:
            self.add(repo, {".gitattributes": b""})
            self.private[repo] = wanted.get("visibility") == "private" or wanted.get("private") is True
        return 409 if known else 200, {"url": f"{self.url}/{repo}"}

    def _commit(self, repo: str, revision: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        files = dict(self.files(repo, revision) or {})
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        sha = self.add(repo, files, revision)
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{sha}", "commitOid": sha}


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path, hub = self.path.split("?")[0], self.hub
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.requests.append((self.command, path))
        if hub.status:
            self._send(hub.status, {"error": "no"}, {})
        elif (
            hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}" and self.command != "PUT"
        ):
            self._send(401, {"error": "Invalid username or password."}, {})
        elif self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == path.rsplit("/", 1)[-1]
            hub.objects[path.rsplit("/", 1)[-1]] = body
            self._send(200, {}, {})
        elif self.command == "POST":
            self._send(*hub.post(path, body), {})
        else:
            self._send(*hub.get(path))

    def _send(self, status: int, answer: Any, headers: dict[str, str]) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""
