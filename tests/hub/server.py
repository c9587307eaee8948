"""A Hub on 127.0.0.1, kept in memory, that the unmodified ``huggingface_hub`` client talks to.

It speaks what the tests need: repositories of three kinds, commits with a parent check, pull
requests, branches and tags, listings, large files behind a redirect to a second origin (the
"CDN"), private and gated repositories, tokens that may write or only read, and faults::

    with HubServer(tokens={"secret": ("alice", "write")}) as hub:
        revision = hub.add("alice/net", {"model.safetensors": content})
        hub.fault("GET", "^/cdn/", "cut", after=1000)
        ...
        assert not any(r.authorized for r in hub.requests if r.origin == "cdn")

With ``xet=True`` large files travel through hf_xet's own ``local://`` storage in the folder
``xet_folder``, which client and server share.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import hashlib
import itertools
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

LARGE = 10 * 2**20
LARGE_NAMES = ("*.safetensors", "*.parquet", "*.bin", "*.npz", "*.pkl", "*.pt", "*.tar", "*.zip")
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


class Refusal(Exception):
    """Ends a request with an HTTP error."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass(frozen=True)
class Entry:
    """A file of a commit."""

    data: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def blob_id(self) -> str:
        return git_hash(self.pointer if self.large else self.data)

    @property
    def pointer(self) -> bytes:
        return (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{self.sha256}\nsize {len(self.data)}\n"
        ).encode()

    def listed(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"oid": self.blob_id, "size": len(self.data)}
        if self.large:
            size = len(self.data)
            facts["lfs"] = {"oid": self.sha256, "size": size, "pointerSize": len(self.pointer)}
        return facts


@dataclass(frozen=True)
class Commit:
    parent: str | None
    title: str
    author: str
    tree: Mapping[str, Entry]


@dataclass
class Repository:
    kind: str
    name: str
    private: bool = False
    gated: bool = False
    sdk: str | None = None
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)  # of pull requests

    def revision(self, name: str) -> str:
        for ref in (f"refs/heads/{name}", f"refs/tags/{name}", name):
            if ref in self.refs:
                return self.refs[ref]
        if name in self.commits:
            return name
        raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")


@dataclass
class Fault:
    method: str
    pattern: str
    kind: str
    times: int
    after: int
    status: int
    seconds: float
    headers: Mapping[str, str]


@dataclass
class Request:
    """What the server noted of a request."""

    origin: str  # hub or cdn
    method: str
    path: str
    authorized: bool
    headers: str
    range: str | None
    status: int | None = None


class HubServer:
    """The Hub and its CDN.

    Args:
        tokens: token -> (user, ``read`` or ``write``).
        orgs: organisation -> its members.
        xet_folder: serve large files through Xet, kept here.
    """

    def __init__(
        self,
        tokens: Mapping[str, tuple[str, str]] | None = None,
        orgs: Mapping[str, Sequence[str]] | None = None,
        xet_folder: Path | None = None,
    ) -> None:
        self.tokens, self.orgs = dict(tokens or {}), dict(orgs or {})
        self.xet_folder = xet_folder
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files by sha256
        self.granted: set[tuple[str, str]] = set()  # (repository, user) let into gated ones
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.connections: set[socket.socket] = set()
        self.lock = threading.RLock()
        self._count = itertools.count()
        self._servers: dict[str, ThreadingHTTPServer] = {}
        self._ports = {"hub": 0, "cdn": 0}
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['hub']}"

    @property
    def cdn(self) -> str:
        return f"http://127.0.0.1:{self._ports['cdn']}"

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same ports as before a ``stop``."""
        for origin, port in self._ports.items():
            handler = type("Bound", (Handler,), {"hub": self, "origin": origin})
            server = ThreadingHTTPServer(("127.0.0.1", port), handler)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            self._servers[origin], self._ports[origin] = server, server.server_port

    def stop(self) -> None:
        """Stop listening: the Hub is down."""
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        self._servers.clear()
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def fault(
        self,
        method: str,
        pattern: str,
        kind: str,
        times: int = 1,
        *,
        after: int = 0,
        status: int = 503,
        seconds: float = 3,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Break the next requests whose path matches.

        Args:
            method: of HTTP.
            pattern: regular expression, searched in path and query.
            kind: ``status`` (an HTTP error), ``stall`` (a wait before the answer), ``cut``
                (closed after some bytes), ``reset`` (the same by a TCP reset), ``corrupt``
                (right size, wrong bytes), ``drop`` (a commit is made, its answer lost).
            times: how many requests.
            after: bytes before a cut or reset.
            status: of the error.
            seconds: of the stall.
            headers: of the error.
        """
        self.faults.append(
            Fault(method, pattern, kind, times, after, status, seconds, headers or {})
        )

    def add(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        kind: str = "model",
        branch: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Put files into a repository, made if it is new, and return the commit."""
        with self.lock:
            repo = self.repositories.get((kind, name))
            if repo is None:
                repo = self.create(kind, name, "server", private=private)
            repo.gated = gated or repo.gated
            head = repo.refs.get(f"refs/heads/{branch}", repo.refs["refs/heads/main"])
            tree = dict(repo.commits[head].tree)
            tree |= {path: self.entry(path, data) for path, data in files.items()}
            return self.commit(repo, f"refs/heads/{branch}", tree, "add", "server", head)

    def tag(self, name: str, tag: str, revision: str = "main", *, kind: str = "model") -> None:
        """Point a tag at a revision."""
        repo = self.repositories[kind, name]
        repo.refs[f"refs/tags/{tag}"] = repo.revision(revision)

    def files(self, name: str, revision: str = "main", *, kind: str = "model") -> dict[str, bytes]:
        """Return the files of a revision."""
        repo = self.repositories[kind, name]
        tree = repo.commits[repo.revision(revision)].tree
        return {path: entry.data for path, entry in tree.items() if path != ".gitattributes"}

    def head(self, name: str, revision: str = "main", *, kind: str = "model") -> str:
        """Return the commit of a revision."""
        return self.repositories[kind, name].revision(revision)

    def history(self, name: str, *, kind: str = "model") -> list[str]:
        """Return the titles of the commits of main, the newest first."""
        repo = self.repositories[kind, name]
        titles, at = [], repo.refs["refs/heads/main"]
        while at is not None:
            titles.append(repo.commits[at].title)
            at = repo.commits[at].parent  # type: ignore[assignment]
        return titles

    def merge(self, name: str, number: int, *, kind: str = "model") -> str:
        """Merge a pull request into the branch it was opened against and return the commit."""
        with self.lock:
            repo = self.repositories[kind, name]
            change = repo.commits[repo.refs[f"refs/pr/{number}"]]
            before = repo.commits[change.parent or ""].tree
            branch = repo.bases[str(number)]
            head = repo.refs[branch]
            changed = {p: e for p, e in change.tree.items() if before.get(p) != e}
            tree = {**repo.commits[head].tree, **changed}
            return self.commit(repo, branch, tree, change.title, change.author, head)

    def create(
        self, kind: str, name: str, author: str, *, private: bool = False, sdk: str | None = None
    ) -> Repository:
        """Make a repository with the first commit that the Hub makes."""
        repo = self.repositories[kind, name] = Repository(kind, name, private=private, sdk=sdk)
        attributes = "".join(f"{g} filter=lfs diff=lfs merge=lfs -text\n" for g in LARGE_NAMES)
        tree = {".gitattributes": Entry(attributes.encode(), False)}
        self.commit(repo, "refs/heads/main", tree, "initial commit", author, None)
        return repo

    def entry(self, path: str, data: bytes) -> Entry:
        """Return a file as the Hub would keep it."""
        made = Entry(data, is_large(path, len(data), data[:512]))
        if made.large:
            self.objects[made.sha256] = data
        return made

    def commit(
        self,
        repo: Repository,
        ref: str,
        tree: Mapping[str, Entry],
        title: str,
        author: str,
        parent: str | None,
    ) -> str:
        """Add a commit and move a ref to it."""
        names = sorted((path, entry.blob_id) for path, entry in tree.items())
        content = json.dumps([parent, title, author, names, next(self._count)])
        oid = git_hash(content.encode(), "commit")
        repo.commits[oid] = Commit(parent, title, author, dict(tree))
        repo.refs[ref] = oid
        return oid


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    hub: HubServer
    origin: str

    def setup(self) -> None:
        super().setup()
        with self.hub.lock:
            self.hub.connections.add(self.connection)

    def finish(self) -> None:
        with self.hub.lock:
            self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, *args: Any) -> None:
        """Print nothing."""

    def handle_request(self) -> None:
        """Answer one request, or break it if a fault asks for that."""
        url = urlsplit(self.path)
        self.query = parse_qs(url.query, keep_blank_values=True)
        self.unread = int(self.headers.get("Content-Length") or 0)
        self.note = Request(
            self.origin,
            self.command,
            self.path,
            "Authorization" in self.headers,
            str(self.headers),
            self.headers.get("Range"),
        )
        with self.hub.lock:
            self.hub.requests.append(self.note)
            self.fault = self._next_fault()
        kind = self.fault.kind if self.fault else ""
        try:
            if self.fault and kind == "stall":
                time.sleep(self.fault.seconds)
            if self.fault and kind == "status":
                refusal = Refusal(self.fault.status, "a fault on demand")
                refusal.headers |= self.fault.headers
                raise refusal
            if self.fault and kind in ("cut", "reset") and self.unread:
                self.rfile.read(min(self.fault.after, self.unread))
                self._hang_up()
                return
            self._route([unquote(part) for part in url.path.split("/")[1:]])
        except Refusal as refusal:
            self._reply(refusal.status, refusal.body, refusal.headers)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def _next_fault(self) -> Fault | None:
        for fault in self.hub.faults:
            right = fault.method == self.command and re.search(fault.pattern, self.path)
            if fault.times > 0 and right:
                fault.times -= 1
                return fault
        return None

    # --- the transport -------------------------------------------------------------------

    def _hang_up(self) -> None:
        self.close_connection = True
        if self.fault and self.fault.kind == "reset":
            time.sleep(0.1)  # a reset discards what the client has not read yet
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        data = self.rfile.read(self.unread)
        if len(data) < self.unread:
            raise ConnectionError("the client went away")
        self.unread = 0
        return data

    def _json(self) -> Any:
        return json.loads(self._body() or b"{}")

    def _begin(self, status: int, headers: Mapping[str, Any]) -> bool:
        self._body()  # else it would be taken for the next request
        if self.fault and self.fault.kind == "drop":
            self._hang_up()
            return False
        self.note.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        return self.command != "HEAD"

    def _reply(
        self, status: int, content: Any = None, headers: Mapping[str, Any] | None = None
    ) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        if isinstance(content, list):
            raw = json.dumps(content).encode()
        about = {"Content-Type": "application/json", "Content-Length": len(raw)}
        if self._begin(status, {**about, **(headers or {})}):
            self.wfile.write(raw)

    def _send(self, data: bytes, etag: str, headers: Mapping[str, Any]) -> None:
        first, last, status = 0, len(data) - 1, 200
        about: dict[str, Any] = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **headers}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last, status = int(found[1]), min(int(found[2] or last), last), 206
            if first >= len(data):
                raise Refusal(416, "Range Not Satisfiable")
            about["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        part = data[first : last + 1]
        about |= {"Content-Type": "application/octet-stream", "Content-Length": len(part)}
        if not self._begin(status, about):
            return
        kind = self.fault.kind if self.fault else ""
        if self.fault and kind in ("cut", "reset"):
            self.wfile.write(part[: self.fault.after])
            self._hang_up()
        else:
            self.wfile.write(bytes([part[0] ^ 255]) + part[1:] if kind == "corrupt" else part)

    # --- who may do what -----------------------------------------------------------------

    def _user(self) -> tuple[str | None, str]:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not token:
            return None, ""
        if token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _member(self, name: str) -> bool:
        user, owner = self._user()[0], name.split("/")[0]
        return user is not None and (user == owner or user in self.hub.orgs.get(owner, ()))

    def _logged_in(self) -> str:
        user, _ = self._user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return user

    def _writer(self, name: str) -> str:
        user = self._logged_in()
        if not self._member(name) or self._user()[1] != "write":
            raise Refusal(403, f"You don't have the rights to write to {name}")
        return user

    def _repository(self, kind: str, name: str, *, content: bool = False) -> Repository:
        repo, (user, _) = self.hub.repositories.get((kind, name)), self._user()
        if repo is None or (repo.private and not self._member(name)):
            # On http:// the client knows a missing repository by this code only.
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        inside = self._member(name) or (name, user) in self.hub.granted
        if content and repo.gated and not inside:
            raise Refusal(403 if user else 401, f"Access to {name} is restricted.", "GatedRepo")
        return repo

    # --- routes --------------------------------------------------------------------------

    def _route(self, parts: list[str]) -> None:
        if self.origin == "cdn":
            self._cdn(parts)
        elif parts[0] == "lfs":
            self._lfs_verify(parts[-1])
        elif parts[0] != "api":
            kind, parts = KINDS.get(parts[0], "model"), parts[parts[0] in KINDS :]
            name, rest = "/".join(parts[:2]), parts[2:]
            if rest[:1] == ["resolve"] and len(rest) > 2:
                self._resolve(kind, name, rest[1], "/".join(rest[2:]))
            elif rest == ["info", "lfs", "objects", "batch"]:
                self._lfs_batch(kind, name.removesuffix(".git"))
            else:
                raise Refusal(404, f"not served: {self.path}")
        elif parts[1] == "resolve-cache":
            kind, name = KINDS[parts[2]], "/".join(parts[3:5])
            self._resolve(kind, name, parts[5], "/".join(parts[6:]), cached=True)
        elif parts[1] == "whoami-v2":
            self._whoami()
        elif parts[1] == "validate-yaml":
            self._validate_yaml()
        elif parts[1:] == ["repos", "create"]:
            self._create()
        elif parts[1] in KINDS and len(parts) > 3:
            kind, name = KINDS[parts[1]], "/".join(parts[2:4])
            action, rest = (parts[4] if len(parts) > 4 else "revision"), parts[5:]
            serve = getattr(self, "_api_" + action.replace("-", "_"), None)
            if serve is None:
                raise Refusal(404, f"not served: {self.path}")
            with self.hub.lock:
                serve(kind, name, rest)
        else:
            raise Refusal(404, f"not served: {self.path}")

    def _whoami(self) -> None:
        user = self._logged_in()
        orgs = [{"name": org} for org, members in self.hub.orgs.items() if user in members]
        role = {"accessToken": {"role": self._user()[1]}}
        self._reply(200, {"type": "user", "name": user, "orgs": orgs, "auth": role})

    def _validate_yaml(self) -> None:
        text = self._json()["content"]
        try:
            warnings = [] if front_matter(text) else [{"message": "no metadata"}]
            self._reply(200, {"errors": [], "warnings": warnings})
        except yaml.YAMLError as error:
            self._reply(400, {"errors": [{"message": str(error)}], "warnings": []})

    def _create(self) -> None:
        asked = self._json()
        kind = asked.get("type") or "model"
        name = f"{asked.get('organization') or self._user()[0]}/{asked['name']}"
        user = self._writer(name)
        url = self._page(kind, name)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or "--" in name or ".." in name:
            raise Refusal(400, f"Invalid repo id {name}")
        with self.hub.lock:
            if (kind, name) in self.hub.repositories:
                raise Refusal(409, "You already created this repo", url=url)
            private = asked.get("visibility") == "private"
            self.hub.create(kind, name, user, private=private, sdk=asked.get("sdk"))
        self._reply(200, {"url": url, "name": name, "id": name})

    def _page(self, kind: str, name: str) -> str:
        return f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"

    def _at(
        self, kind: str, name: str, revision: str, *, content: bool = False
    ) -> tuple[Repository, str, Mapping[str, Entry]]:
        repo = self._repository(kind, name, content=content)
        oid = repo.revision(revision)
        return repo, oid, repo.commits[oid].tree

    def _api_revision(self, kind: str, name: str, rest: list[str]) -> None:
        repo, oid, tree = self._at(kind, name, rest[0] if rest else "main")
        card = front_matter(tree["README.md"].data.decode()) if "README.md" in tree else {}
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(tree)]
        if "blobs" in self.query:
            for sibling in siblings:
                entry = tree[sibling["rfilename"]]
                sibling |= {"size": len(entry.data), "blobId": entry.blob_id}
                if entry.large:
                    sibling["lfs"] = {**entry.listed()["lfs"], "sha256": entry.sha256}
        facts = {
            "id": name, "modelId": name, "author": name.split("/")[0], "sha": oid,
            "private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0,
            "likes": 0, "tags": card.get("tags") or [], "siblings": siblings, "cardData": card,
            "library_name": card.get("library_name"), "model-index": card.get("model-index"),
            "pipeline_tag": card.get("pipeline_tag"), "sdk": repo.sdk,
        }  # fmt: skip
        expand = {*self.query.get("expand", ()), "id"}
        chosen = {
            k: v for k, v in facts.items() if v is not None and (len(expand) == 1 or k in expand)
        }
        self._reply(200, chosen)

    def _api_tree(self, kind: str, name: str, rest: list[str]) -> None:
        tree = self._at(kind, name, rest[0])[2]
        deep = self.query.get("recursive", ["false"])[0].lower() == "true"
        rows = list(nodes(tree, "/".join(rest[1:]), deep))
        if rest[1:] and not rows:
            raise Refusal(404, "no such folder", "EntryNotFound")
        self._reply(200, rows)

    def _api_paths_info(self, kind: str, name: str, rest: list[str]) -> None:
        paths = parse_qs(self._body().decode()).get("paths", [])
        tree = self._at(kind, name, rest[0])[2]
        self._reply(200, [n for n in nodes(tree, "", True) if n["path"] in paths])

    def _api_refs(self, kind: str, name: str, rest: list[str]) -> None:
        refs = self._repository(kind, name).refs
        spaces = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
        rows = {
            key: [
                {"name": ref.removeprefix(start), "ref": ref, "targetCommit": oid}
                for ref, oid in refs.items()
                if ref.startswith(start)
            ]
            for key, start in spaces.items()
        }
        self._reply(200, {**rows, "converts": []})

    def _api_branch(self, kind: str, name: str, rest: list[str]) -> None:
        repo, asked, _ = self._repository(kind, name), self._json(), self._writer(name)
        ref = f"refs/heads/{rest[0]}"
        if self.command == "DELETE":
            repo.refs.pop(ref, None)
        elif ref in repo.refs:
            raise Refusal(409, "Reference already exists")
        else:
            repo.refs[ref] = repo.revision(asked.get("startingPoint") or "main")
        self._reply(200)

    def _api_tag(self, kind: str, name: str, rest: list[str]) -> None:
        repo, asked, _ = self._repository(kind, name), self._json(), self._writer(name)
        if f"refs/tags/{asked['tag']}" in repo.refs:
            raise Refusal(409, "Reference already exists")
        repo.refs[f"refs/tags/{asked['tag']}"] = repo.revision(rest[0])
        self._reply(200)

    def _api_settings(self, kind: str, name: str, rest: list[str]) -> None:
        repo, asked, _ = self._repository(kind, name), self._json(), self._writer(name)
        repo.gated = bool(asked.get("gated", repo.gated))
        repo.private = asked.get("visibility", "") == "private" or repo.private
        self._reply(200)

    def _api_preupload(self, kind: str, name: str, rest: list[str]) -> None:
        tree = self._at(kind, name, rest[0])[2]
        self._may_commit(name)
        answers = []
        for asked in self._json()["files"]:
            path, known = safe_path(asked["path"]), tree.get(asked["path"])
            sample = base64.b64decode(asked.get("sample") or "")
            large = is_large(path, asked["size"], sample)
            oid = (known.sha256 if known.large else known.blob_id) if known else None
            mode = "lfs" if large else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._reply(200, {"files": answers})

    def _may_commit(self, name: str) -> str:
        return self._logged_in() if "create_pr" in self.query else self._writer(name)

    def _api_commit(self, kind: str, name: str, rest: list[str]) -> None:
        repo, head, tree = self._at(kind, name, rest[0])
        user, header, after = self._may_commit(name), {}, dict(tree)
        for item in map(json.loads, self._body().splitlines()):
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
                continue
            path = safe_path(value["path"].rstrip("/"))
            if key == "file":
                try:
                    after[path] = Entry(base64.b64decode(value["content"]), False)
                except binascii.Error as error:
                    raise Refusal(400, f"{path} is not base64") from error
            elif key == "lfsFile":
                after[path] = Entry(self._object(value["oid"], path), True)
            else:
                folder = path + "/" if key == "deletedFolder" else path + "\0"
                gone = {p for p in after if p == path or p.startswith(folder)}
                if not gone:
                    raise Refusal(404, f"{path} does not exist", "EntryNotFound")
                after = {p: e for p, e in after.items() if p not in gone}
        wanted, request = header.get("parentCommit"), "create_pr" in self.query
        if wanted and not head.startswith(wanted) and not request:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        ref, number = f"refs/heads/{rest[0]}", len(repo.bases) + 1
        if request:
            repo.bases[str(number)], ref = ref, f"refs/pr/{number}"
        elif ref not in repo.refs:
            raise Refusal(400, f"{rest[0]} is not a branch")
        oid = self.hub.commit(repo, ref, after, header.get("summary", ""), user, head)
        page = self._page(kind, name)
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}"}
        answer["pullRequestUrl"] = f"{page}/discussions/{number}" if request else None
        self._reply(200, answer)

    def _api_discussions(self, kind: str, name: str, rest: list[str]) -> None:
        self._writer(name)
        if rest[1:] != ["merge"]:
            raise Refusal(404, "of discussions only the merge is served")
        self.hub.merge(name, int(rest[0]), kind=kind)
        self._reply(200)

    # --- content -------------------------------------------------------------------------

    def _resolve(
        self, kind: str, name: str, revision: str, path: str, *, cached: bool = False
    ) -> None:
        _, oid, tree = self._at(kind, name, revision, content=True)
        entry, headers = tree.get(path), {"X-Repo-Commit": oid}
        if entry is None:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.headers |= headers
            raise refusal
        if entry.large:
            headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": len(entry.data)}
            headers["Location"] = f"{self.hub.cdn}/cdn/{entry.sha256}"
            if self.hub.xet_folder and (known := self._xet_hash(entry.sha256)):
                place = f"{self.hub.url}/api/{kind}s/{name}/xet-read-token/{oid}"
                headers |= {"X-Xet-Hash": known, "Link": f'<{place}>; rel="xet-auth"'}
            self._reply(302, b"", headers)
        elif cached:
            self._send(entry.data, entry.blob_id, headers)
        else:  # as on the Hub, small files take a redirect within it
            place = f"/api/resolve-cache/{kind}s/{name}/{oid}/{quote(path)}"
            self._reply(307, b"", {**headers, "Location": place})

    def _cdn(self, parts: list[str]) -> None:
        if parts[0] == "cdn" and parts[1] in self.hub.objects:
            self._send(self.hub.objects[parts[1]], parts[1], {})
        elif parts[0] == "put":
            data = self._body()
            if hashlib.sha256(data).hexdigest() != parts[1]:
                raise Refusal(400, "the content is not that of the announced oid")
            self.hub.objects[parts[1]] = data
            self._reply(200)
        else:
            raise Refusal(404, "no such object")

    def _lfs_batch(self, kind: str, name: str) -> None:
        self._repository(kind, name)
        self._logged_in()
        answers = []
        for asked in self._json()["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:  # known content is not sent again
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.cdn}/put/{asked['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs/verify/{asked['oid']}"},
                }
            answers.append(answer)
        self._reply(200, {"transfer": "basic", "objects": answers})

    def _lfs_verify(self, oid: str) -> None:
        if len(self.hub.objects.get(oid, b"")) != self._json()["size"]:
            raise Refusal(404, "no such object")
        self._reply(200)

    def _object(self, oid: str, path: str) -> bytes:
        if oid not in self.hub.objects and self.hub.xet_folder:
            self._fetch_xet(oid)
        if oid not in self.hub.objects:
            raise Refusal(400, f"{path} points to content that was not uploaded")
        return self.hub.objects[oid]

    # --- Xet -----------------------------------------------------------------------------

    def _api_xet_write_token(self, kind: str, name: str, rest: list[str]) -> None:
        self._may_commit(name)
        self._xet_token()

    def _api_xet_read_token(self, kind: str, name: str, rest: list[str]) -> None:
        self._repository(kind, name, content=True)
        self._xet_token()

    def _xet_token(self) -> None:
        if self.hub.xet_folder is None:
            raise Refusal(404, "no Xet storage: set HF_HUB_DISABLE_XET=1")
        place, end = f"local://{self.hub.xet_folder}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": place, "X-Xet-Access-Token": "none"}
        headers["X-Xet-Token-Expiration"] = str(end)
        self._reply(200, {"accessToken": "none", "exp": end, "casUrl": place}, headers)

    def _xet_hash(self, sha256: str) -> str | None:
        """Find a file's Xet hash in the shards that the client left in the local storage."""
        assert self.hub.xet_folder is not None
        for shard in self.hub.xet_folder.glob("xet/xorbs/shards/*.mdb"):
            raw, at = shard.read_bytes(), 48
            while raw[at : at + 32] != b"\xff" * 32:  # per file: header, segments, checks, sha256
                name, (flags, count) = raw[at : at + 32], struct.unpack_from("<II", raw, at + 32)
                at += 48 * (1 + count * (2 if flags >> 31 else 1))
                if flags >> 30 & 1:
                    if words(raw[at : at + 32]) == sha256:
                        return words(name)
                    at += 48
        return None

    def _fetch_xet(self, sha256: str) -> None:
        assert self.hub.xet_folder is not None
        known, target = self._xet_hash(sha256), self.hub.xet_folder / f"fetched-{sha256}"
        if known is None:
            return
        import hf_xet

        place = f"local://{self.hub.xet_folder}"
        with hf_xet.XetSession().new_file_download_group(endpoint=place) as group:
            group.start_download_file(hf_xet.XetFileInfo(known, None), str(target))
        data = target.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            self.hub.objects[sha256] = data


def words(raw: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def git_hash(data: bytes, kind: str = "blob") -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def is_large(path: str, size: int, sample: bytes) -> bool:
    name = path.rpartition("/")[2]
    return size > LARGE or b"\0" in sample or any(fnmatch.fnmatch(name, g) for g in LARGE_NAMES)


def safe_path(path: str) -> str:
    if "\\" in path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise Refusal(400, f"Invalid path: {path!r}")
    return path


def front_matter(text: str) -> dict[str, Any]:
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    return (yaml.safe_load(found[1]) or {}) if found else {}


def nodes(tree: Mapping[str, Entry], base: str, deep: bool) -> Iterator[dict[str, Any]]:
    """Files and folders below a folder, as the Hub lists them."""
    seen: set[str] = set()
    depth = base.count("/") + 1 if base else 0
    for path, entry in sorted(tree.items()):
        if base and not path.startswith(base + "/"):
            continue
        parts = path.split("/")
        folders = ["/".join(parts[:i]) for i in range(depth + 1, len(parts))]
        for folder in folders if deep else folders[:1]:
            if folder not in seen:
                seen.add(folder)
                oid = git_hash(folder.encode(), "tree")
                yield {"type": "directory", "path": folder, "oid": oid, "size": 0}
        if deep or not folders:
            yield {"type": "file", "path": path, **entry.listed()}
