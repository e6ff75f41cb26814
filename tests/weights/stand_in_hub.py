"""A small server of the hub's protocol on loopback: facts of models and data sets, trees, files with ranges and tags.

A data set is a repository whose name begins with `datasets/`."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


@dataclass
class Repository:
    """One model or data set: its commits, each with its files, and branches by name."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    token: str = ""
    gated: bool = False


@dataclass
class Hub:
    """What the server has, what it was asked, and how often it breaks off a file after so many bytes. `refused` are
    statuses that it answers requests for a range with, one after the other; `sent` the bytes of each range it gave."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    breaks: list[int] = field(default_factory=list)
    url: str = ""
    failing: bool = False
    refused: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)

    def add(self, name: str, files: dict[str, bytes], **options: object) -> str:
        """A model with one commit on `main`; gives the commit."""
        commit = hashlib.sha1(b"".join(key.encode() + value for key, value in files.items())).hexdigest()
        self.repositories[name] = Repository(commits={commit: files}, branches={"main": commit}, **options)  # type: ignore[arg-type]
        return commit

    def push(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """One commit more on a branch; gives the commit."""
        commit = hashlib.sha1(b"2" + b"".join(files.values())).hexdigest()
        there = self.repositories[name]
        there.commits[commit] = files
        there.branches[branch] = commit
        return commit


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """`hub` answering at `hub.url` while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.wanted = json.loads(asked) if asked[:1] == b"{" else parse_qs(asked.decode())
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            if self.headers.get("Authorization"):
                hub.tokens.add(self.headers["Authorization"].removeprefix("Bearer "))
            if hub.failing:
                self.refuse(500, "", body)
                return
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self.facts("/".join(parts[2:4]), parts[4:], body)
            elif parts[:2] == ["api", "datasets"]:
                self.facts("/".join(parts[1:4]), parts[4:], body)
            elif len(parts) > 5 and parts[0] == "datasets" and parts[3] == "resolve":
                there = hub.repositories.get("/".join(parts[:3]))
                names = sorted((*there.branches, *there.commits), key=len, reverse=True) if there else []
                rest = "/".join(parts[4:])
                revision = next((name for name in names if rest.startswith(f"{name}/")), parts[4])
                self.file("/".join(parts[:3]), revision, rest.removeprefix(f"{revision}/"), body)
            elif len(parts) > 4 and parts[2] == "resolve":
                self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body)
            else:
                self.refuse(404, "", body)

        def refuse(self, status: int, code: str, body: bool) -> None:
            text = b'{"error":"no"}'
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if body:
                self.wfile.write(text)

        def find(self, name: str, revision: str, body: bool) -> tuple[str, Repository] | None:
            there = hub.repositories.get(name)
            if there is None or (there.token and self.headers.get("Authorization") != f"Bearer {there.token}"):
                self.refuse(401, "RepoNotFound", body)
                return None
            commit = there.branches.get(revision, revision)
            if commit not in there.commits:
                self.refuse(404, "RevisionNotFound", body)
                return None
            return commit, there

        def facts(self, name: str, rest: list[str], body: bool) -> None:
            revision = "/".join(rest[1:]) if rest else "main"
            if rest[:1] in (["tree"], ["paths-info"]):
                revision = rest[1]
            found = self.find(name, revision, body)
            if found is None:
                return
            commit, there = found
            files = there.commits[commit]
            if rest[:1] in (["tree"], ["paths-info"]):
                told: object = [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in files.items()
                    if rest[0] == "tree" or path in self.wanted["paths"]
                ]
            else:
                told = {
                    "id": name,
                    "modelId": name,
                    "sha": commit,
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "gated": there.gated,
                    "siblings": [{"rfilename": path, "size": len(data)} for path, data in files.items()],
                }
            text = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def file(self, name: str, revision: str, path: str, body: bool) -> None:
            found = self.find(name, revision, body)
            if found is None:
                return
            commit, there = found
            if there.gated:
                self.refuse(403, "GatedRepo", body)
                return
            if path not in there.commits[commit]:
                self.refuse(404, "EntryNotFound", body)
                return
            data = there.commits[commit][path]
            tag = hashlib.sha256(data).hexdigest()
            wanted = self.headers.get("Range", "")
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first or 0), min(int(last or len(data)), len(data) - 1) + 1
            if wanted and hub.refused:
                self.refuse(hub.refused.pop(0), "", body)
                return
            if wanted:
                hub.ranges.append(wanted)
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
                hub.sent.append(end - start)
            self.send_header("Content-Length", str(end - start))
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if not body:
                return
            if hub.breaks and len(data) > 100_000:
                self.wfile.write(data[start : start + hub.breaks.pop(0)])
                self.close_connection = True
                return
            self.wfile.write(data[start:end])

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()


def point_to(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its environment would say had it been set before it was imported."""
    from huggingface_hub import constants  # half a second, for those who need a hub

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
