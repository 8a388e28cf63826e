"""A stand-in for the Hugging Face Hub on loopback, with faults: plain `http.server`, all in memory.

It answers what huggingface_hub's client asks when it creates, pushes, lists and loads models, and
keeps a log of the requests. Large files come from a second port, as on the Hub, where they come
from another host. It is no proof about the real Hub: cards are checked only roughly, listings have
one page, and there is no Xet.

    with HubStandIn() as hub:
        hub.faults.append(Fault("status", "POST .*/commit/", status=500))
        HfApi(endpoint=hub.url, token=WRITE_TOKEN).create_repo("someone/model")
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import socket
import struct
import sys
import threading
import traceback
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITE_TOKEN = "hf_may_write_and_must_never_show"
READ_TOKEN = "hf_may_only_read_and_must_never_show"

KINDS = (
    "status",  # answers `status`, and `body` if there is one, and does nothing
    "drop",  # does nothing and closes the connection
    "lost_reply",  # does what was asked and closes the connection
    "cut",  # sends half of the content and closes
    "reset",  # sends half of the content and resets the connection
    "truncate",  # announces and sends half of the content
    "alter",  # changes a byte of the content, on its way out or in
    "wrong_hash",  # states a hash that is not the content's
)


@dataclass
class Fault:
    """A fault of the next `times` requests whose "METHOD path" contains `match`."""

    kind: str
    match: str
    times: int = 1
    status: int = 500
    retry_after: int | None = None
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    def reply(self) -> Reply:
        """Make the answer of a fault of the kind "status"."""
        if self.body is None:
            reply = Reply.error(self.status, "the stand-in was told to fail")
        else:
            reply = Reply(self.status, self.body)
        reply.headers.update(self.headers)
        if self.retry_after is not None:
            reply.headers["Retry-After"] = str(self.retry_after)
        return reply


@dataclass
class Blob:
    """A file: its content, and whether it lies in the large file store."""

    content: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        """Git's hash, of the pointer where the file is large."""
        content = self.content
        if self.is_large:
            head = "version https://git-lfs.github.com/spec/v1\n"
            content = f"{head}oid sha256:{self.sha256}\nsize {len(content)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_oid


@dataclass
class Commit:
    """A commit with all files it holds."""

    sha: str
    message: str
    parent: str | None
    files: dict[str, Blob]


@dataclass
class Repo:
    """A model repository."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, message: str, files: dict[str, Blob]) -> Commit:
        parent = self.branches.get(branch)
        sha = hashlib.sha1(f"{len(self.commits)} {parent} {message}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, message, parent, files)
        self.branches[branch] = sha
        return self.commits[sha]

    def find(self, revision: str) -> Commit | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(sha)


@dataclass
class Reply:
    """An answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(content: Any, status: int = 200) -> Reply:
        return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    @staticmethod
    def error(status: int, message: str, code: str | None = None) -> Reply:
        reply = Reply.of({"error": message}, status)
        reply.headers["X-Error-Message"] = message
        if code is not None:
            reply.headers["X-Error-Code"] = code
        return reply


@dataclass
class Request:
    """A question, and whether a fault wants its answer to state a wrong hash."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    is_wrong: bool = False

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    def json(self) -> Any:
        return json.loads(self.body)


class HubStandIn:
    """The two servers; use it as a context manager."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.store: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int]] = []
        self.bodies: list[bytes] = []
        self.mistakes: list[str] = []
        self.lock = threading.RLock()
        self.servers = [_Server(self) for _ in range(2)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].server_port}"

    @property
    def large_file_url(self) -> str:
        # Another host, as the Hub's storage is: a client follows no redirect to it when it asks
        # for a file's metadata.
        return f"http://localhost:{self.servers[1].server_port}"

    def __enter__(self) -> HubStandIn:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def count(self, pattern: str) -> int:
        """Requests so far whose "METHOD path" `pattern` is found in."""
        lines = [f"{method} {path}" for method, path, _ in self.log]
        return sum(re.search(pattern, line) is not None for line in lines)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Return the content of every file of a repository."""
        commit = self.repos[repo].find(revision)
        assert commit is not None
        return {path: blob.content for path, blob in commit.files.items()}

    def take_fault(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.match, line):
                fault.times -= 1
                return fault
        return None

    # -------------------------------------------------------------- answers

    def answer(self, request: Request) -> Reply:
        for method, pattern, act in _ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match is not None and request.method in method.split():
                return act(self, request, *(unquote(part or "") for part in match.groups()))
        return Reply.error(404, f"no such endpoint: {request.method} {request.path}")

    def refuse(self, request: Request, name: str, *, write: bool = False) -> Reply | None:
        """Return the refusal of a request, or None."""
        token = request.token
        if token not in (None, WRITE_TOKEN, READ_TOKEN):
            return Reply.error(401, "Invalid credentials in Authorization header")
        repo = self.repos.get(name)
        if repo is None or (repo.private and token is None):
            status = 401 if token is None else 404
            return Reply.error(status, "Repository not found", "RepoNotFound")
        if write and token != WRITE_TOKEN:
            return Reply.error(403, "You need a token that may write")
        return None

    def find(self, request: Request, name: str, revision: str) -> Commit | Reply:
        refusal = self.refuse(request, name)
        if refusal is not None:
            return refusal
        commit = self.repos[name].find(revision)
        return commit or Reply.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def create_repo(self, request: Request) -> Reply:
        if request.token != WRITE_TOKEN:
            return Reply.error(401 if request.token != READ_TOKEN else 403, "no right to create")
        given = request.json()
        name = f"{given.get('organization') or 'someone'}/{given['name']}"
        answer = {"url": f"{self.url}/{name}", "name": name}
        if name in self.repos:
            return Reply.of({**answer, "error": "You already created this model repo"}, 409)
        repo = Repo(given.get("visibility") == "private" or given.get("private") is True)
        first = {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}
        repo.commit("main", "initial commit", first)
        self.repos[name] = repo
        return Reply.of(answer)

    def validate_card(self, request: Request) -> Reply:
        text = request.json()["content"]
        found = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
        data = yaml.safe_load(found[1]) if found else None
        errors = [] if isinstance(data, dict) else [{"message": "no front matter"}]
        for entry in (data or {}).get("model-index", []) if isinstance(data, dict) else []:
            for result in entry.get("results", []):
                for key in ("task", "dataset", "metrics"):
                    if not result.get(key):
                        errors.append({"message": f"model-index has a result without {key}"})
        return Reply.of({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, request: Request, name: str, revision: str) -> Reply:
        refusal = self.refuse(request, name, write=True)
        if refusal is not None:
            return refusal
        commit = self.find(request, name, revision)
        if isinstance(commit, Reply):
            return commit
        files = []
        for file in request.json()["files"]:
            is_large = file["path"].endswith((".safetensors", ".png")) or file["size"] > 10_000_000
            there = commit.files.get(file["path"])
            files.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large else "regular",
                    "shouldIgnore": False,
                    "oid": there.etag if there is not None else None,
                }
            )
        return Reply.of({"files": files})

    def large_file_batch(self, request: Request, name: str) -> Reply:
        refusal = self.refuse(request, name, write=True)
        if refusal is not None:
            return refusal
        objects = []
        for item in request.json()["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.store:
                upload = {"href": f"{self.large_file_url}/upload/{item['oid']}"}
                verify = {"href": f"{self.url}/{name}.git/info/lfs/objects/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return Reply.of({"transfer": "basic", "objects": objects})

    def large_file_verify(self, request: Request, name: str) -> Reply:
        item = request.json()
        if len(self.store.get(item["oid"], b"")) != item["size"]:
            return Reply.error(404, "the large file has not arrived")
        return Reply.of({})

    def upload(self, request: Request, oid: str) -> Reply:
        if hashlib.sha256(request.body).hexdigest() != oid:
            return Reply.error(400, "the content does not have the hash that was announced")
        self.store[oid] = request.body
        return Reply()

    def commit(self, request: Request, name: str, branch: str) -> Reply:
        refusal = self.refuse(request, name, write=True)
        if refusal is not None:
            return refusal
        repo = self.repos[name]
        if branch not in repo.branches:
            return Reply.error(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        lines = [json.loads(line) for line in request.body.splitlines()]
        header, files = lines[0]["value"], dict(repo.commits[repo.branches[branch]].files)
        if header.get("parentCommit") not in (None, repo.branches[branch]):
            return Reply.error(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.store:
                    return Reply.error(400, f"large file {value['oid']} has not arrived")
                files[value["path"]] = Blob(self.store[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = repo.commit(branch, header["summary"], files)
        url = f"{self.url}/{name}/commit/{made.sha}"
        return Reply.of({"commitUrl": url, "commitOid": made.sha})

    def info(self, request: Request, name: str, revision: str = "main") -> Reply:
        commit = self.find(request, name, revision)
        if isinstance(commit, Reply):
            return commit
        files = [{"rfilename": path} for path in commit.files]
        private = self.repos[name].private
        return Reply.of({"id": name, "sha": commit.sha, "private": private, "siblings": files})

    def tree(self, request: Request, name: str, revision: str, folder: str = "") -> Reply:
        commit = self.find(request, name, revision)
        if isinstance(commit, Reply):
            return commit
        folder = folder.strip("/")
        entries = []
        for path, blob in sorted(commit.files.items()):
            if folder and not path.startswith(f"{folder}/"):
                continue
            size = len(blob.content)
            entry = {"type": "file", "path": path, "size": size, "oid": blob.git_oid}
            if blob.is_large:
                entry["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": 130}
            if request.is_wrong:
                entry.update(oid="0" * 40)
                if blob.is_large:
                    entry["lfs"] = {"oid": "0" * 64, "size": size, "pointerSize": 130}
            entries.append(entry)
        if folder and not entries:
            return Reply.error(404, f"{folder} does not exist", "EntryNotFound")
        return Reply.of(entries)

    def refs(self, request: Request, name: str) -> Reply:
        refusal = self.refuse(request, name)
        if refusal is not None:
            return refusal
        repo = self.repos[name]

        def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [
                {"name": key, "ref": f"refs/{kind}/{key}", "targetCommit": sha}
                for key, sha in refs.items()
            ]

        branches, tags = listed("heads", repo.branches), listed("tags", repo.tags)
        return Reply.of({"branches": branches, "tags": tags, "converts": []})

    def add_ref(self, request: Request, name: str, kind: str, ref: str) -> Reply:
        refusal = self.refuse(request, name, write=True)
        if refusal is not None:
            return refusal
        repo, given = self.repos[name], request.json()
        refs, key = (repo.tags, given["tag"]) if kind == "tag" else (repo.branches, ref)
        if key in refs:
            return Reply.error(409, f"Reference {key} already exists")
        start = repo.find(ref if kind == "tag" else given.get("startingPoint", "main"))
        if start is None:
            return Reply.error(404, "Invalid rev id", "RevisionNotFound")
        refs[key] = start.sha
        return Reply.of({})

    def resolve(self, request: Request, name: str, revision: str, path: str) -> Reply:
        commit = self.find(request, name, revision)
        if isinstance(commit, Reply):
            return commit
        blob = commit.files.get(path)
        if blob is None:
            reply = Reply.error(404, f"{path} does not exist", "EntryNotFound")
            reply.headers["X-Repo-Commit"] = commit.sha
            return reply
        etag = "0" * len(blob.etag) if request.is_wrong else blob.etag
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"'}
        if not blob.is_large:
            return _part(request, blob.content, headers)
        self.store[blob.sha256] = blob.content
        headers["X-Linked-Etag"], headers["X-Linked-Size"] = headers["ETag"], str(len(blob.content))
        headers["Location"] = f"{self.large_file_url}/blob/{blob.sha256}"
        return Reply(302, b"", headers)

    def large_file(self, request: Request, oid: str) -> Reply:
        if oid not in self.store:
            return Reply.error(404, "no such file")
        return _part(request, self.store[oid], {"ETag": f'"{oid}"'})


def _part(request: Request, content: bytes, headers: dict[str, str]) -> Reply:
    """Return the content, from where a Range header wants it."""
    wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if wanted is None:
        return Reply(200, content, headers)
    start, size = int(wanted[1]), len(content)
    headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    return Reply(206, content[start:], headers)


_NAME, _REVISION = r"([^/]+/[^/]+)", r"([^/]+)"
_ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", HubStandIn.create_repo),
    ("POST", "/api/validate-yaml", HubStandIn.validate_card),
    ("POST", f"/api/models/{_NAME}/preupload/{_REVISION}", HubStandIn.preupload),
    ("POST", f"/{_NAME}\\.git/info/lfs/objects/batch", HubStandIn.large_file_batch),
    ("POST", f"/{_NAME}\\.git/info/lfs/objects/verify", HubStandIn.large_file_verify),
    ("PUT", "/upload/([0-9a-f]+)", HubStandIn.upload),
    ("POST", f"/api/models/{_NAME}/commit/{_REVISION}", HubStandIn.commit),
    ("GET", f"/api/models/{_NAME}", HubStandIn.info),
    ("GET", f"/api/models/{_NAME}/revision/{_REVISION}", HubStandIn.info),
    ("GET", f"/api/models/{_NAME}/tree/{_REVISION}(/.*)?", HubStandIn.tree),
    ("GET", f"/api/models/{_NAME}/refs", HubStandIn.refs),
    ("POST", f"/api/models/{_NAME}/(tag|branch)/{_REVISION}", HubStandIn.add_ref),
    ("HEAD GET", f"/{_NAME}/resolve/{_REVISION}/(.+)", HubStandIn.resolve),
    ("HEAD GET", "/blob/([0-9a-f]+)", HubStandIn.large_file),
]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubStandIn) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over a client that hangs up; any other error is a mistake of the stand-in's."""
        if not isinstance(sys.exc_info()[1], OSError):
            self.hub.mistakes.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """Print nothing: the log is kept."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        body = self._body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, url.path, parse_qs(url.query), headers, body)
        with hub.lock:
            fault = hub.take_fault(f"{self.command} {url.path}")
            kind = fault.kind if fault is not None else ""
            if kind == "alter" and body:
                request.body = _altered(body)
            request.is_wrong = kind == "wrong_hash"
            if fault is not None and kind == "status":
                reply = fault.reply()
            else:
                reply = Reply(0) if kind == "drop" else hub.answer(request)
            hub.log.append((self.command, url.path, reply.status))
            hub.bodies.append(body)
        if kind in ("drop", "lost_reply"):
            self._hang_up(reset=False)
        else:
            self._send(reply, kind)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, reply: Reply, kind: str) -> None:
        body, size = reply.body, len(reply.body)
        if kind == "alter" and self.command == "GET":
            body = _altered(body)
        if kind == "truncate":
            body, size = body[: size // 2], size // 2
        if kind in ("cut", "reset"):
            body = body[: size // 2]
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()
        if kind in ("cut", "reset"):
            self._hang_up(reset=kind == "reset")

    def _hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        if not reset:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        # Closing with unsent data forgotten (linger 0) sends RST instead of FIN.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.wfile = io.BytesIO()
        os.close(self.connection.detach())


def _altered(content: bytes) -> bytes:
    """Change one bit of the middle byte; the length stays."""
    if not content:
        return content
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
