"""A server on 127.0.0.1 that speaks as much of the hub's protocol as publishing and fetching models needs:
repositories, commits (with Git LFS uploads), listings and files. It counts what it is asked for."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

WRITER, READER = "hf_writer", "hf_reader"


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """The files of each commit, by its hash."""
    branches: dict[str, str] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    """Files that were uploaded by Git LFS."""

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {branch}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        oid = self.branches.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


class LocalHub:
    """The server and what it holds."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def add(self, name: str, files: dict[str, bytes], *, private: bool = False) -> str:
        """A repository with these files in its branch main."""
        repository = self.repositories.setdefault(name, Repository(private))
        return repository.commit("main", files)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repositories[name].files(revision)
        assert found is not None
        return found[1]

    @staticmethod
    def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the hub's client take `url` for the hub's address."""
        monkeypatch.setattr(constants, "ENDPOINT", url)
        address = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.state.asked.append(f"{self.command} {path}")
        bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.token = bearer or None
        if path.startswith("/objects/"):
            return self._object(path.removeprefix("/objects/"))
        if self.token not in (None, WRITER, READER):
            return self._refuse(401, message="Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(self.body))
        if path.startswith("/api/models/"):
            user, name, *rest = path.removeprefix("/api/models/").split("/", 3)
            return self._api(f"{user}/{name}", rest[0] if rest else "", rest[1] if len(rest) > 1 else "main")
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(self.body))
        user, name, *word = path.strip("/").split("/", 3)
        if len(word) < 2 or word[0] != "resolve":
            return self._refuse(404, message="no such page")
        return self._resolve(f"{user}/{name}", word[1])

    def _repository(self, name: str) -> Repository | None:
        """The repository, if it is there and this token may see it; else the refusal is sent."""
        found = self.state.repositories.get(name)
        if found is not None and (not found.private or self.token):
            return found
        self._refuse(404 if self.token else 401, code="RepoNotFound", message="Repository not found")
        return None

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        page = f"{self.state.url}/{name}"
        if self.token != WRITER:
            return self._refuse(403 if self.token else 401, message="You may not create this repository")
        if name in self.state.repositories:
            return self._refuse(409, message="You already created this model repo", url=page)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.state.repositories[name] = Repository(private)
        self.state.repositories[name].commit("main", {})
        return self._json({"url": page, "name": name})

    def _api(self, name: str, word: str, revision: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return None
        if word in ("preupload", "commit", "branch") and self.token != WRITER:
            return self._refuse(403, message="You may not write here")
        if word == "branch":
            repository.branches.setdefault(revision, repository.branches["main"])
            return self._json({})
        found = repository.files(revision)
        if found is None:
            return self._refuse(404, code="RevisionNotFound", message="Invalid rev id")
        oid, files = found
        if word == "preupload":
            asked = json.loads(self.body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in asked
            ]
            return self._json({"files": modes})
        if word == "commit":
            return self._commit(name, repository, revision, dict(files))
        if word == "tree":
            return self._json([self._entry(repository, path, content) for path, content in files.items()])
        siblings = [{"rfilename": path} for path in files]
        return self._json({"id": name, "sha": oid, "private": repository.private, "siblings": siblings})

    def _entry(self, repository: Repository, path: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid}
        if path in repository.large:
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        return entry

    def _commit(self, name: str, repository: Repository, branch: str, files: dict[str, bytes]) -> None:
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.state.objects[value["oid"]]
                repository.large.add(value["path"])
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(branch, files)
        self._json({"commitUrl": f"{self.state.url}/{name}/commit/{oid}", "commitOid": oid})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.state.url}/objects/{o['oid']}"}}}
            for o in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _object(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.state.objects[oid] = self.body
        self._json({})

    def _resolve(self, name: str, rest: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return None
        revisions = [*repository.branches, *repository.commits]
        revision = next((r for r in revisions if rest.startswith(f"{r}/")), None)
        if revision is None:
            return self._refuse(404, code="RevisionNotFound", message="Invalid rev id")
        found = repository.files(revision)
        assert found is not None
        oid, files = found
        path = rest.removeprefix(f"{revision}/")
        if path not in files:
            return self._refuse(404, code="EntryNotFound", message="Entry not found", commit=oid)
        content = files[path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return self._send(200, content, headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(
        self, status: int, *, code: str = "", message: str = "", commit: str = "", url: str = ""
    ) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self._send(
            status,
            json.dumps({"error": message, "url": url}).encode(),
            {k: v for k, v in headers.items() if v},
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
