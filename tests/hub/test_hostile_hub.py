"""A Hub whose answers have no end, and a cache with links to elsewhere."""

from __future__ import annotations

import contextlib
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ltbench.errors import UserError
from ltbench.remote import hub as client
from ltbench.remote import limits
from ltbench.remote.cache import discard
from ltbench.remote.faults import attempt

REPO, COMMIT = "alice/net", "0" * 40
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture
def answer(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[Any, str], None]], None]]:
    """Let a function write the answers in place of the Hub."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    chosen: list[Callable[[Any, str], None]] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            first = self.rfile.readline().decode()
            while self.rfile.readline().strip():
                pass
            with contextlib.suppress(OSError):
                chosen[-1](self.wfile, first)

    class Threads(socketserver.ThreadingMixIn, socketserver.TCPServer):
        daemon_threads = True

    with Threads(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        close_session()
        monkeypatch.setattr(limits, "DEADLINE", 0.5)
        monkeypatch.setattr("ltbench.remote.faults.TRIES", 1)
        monkeypatch.setattr("ltbench.remote.faults.PATIENCE", 0)
        yield chosen.append
        server.shutdown()


def forever(begin: bytes, piece: bytes, pause: float = 0.0) -> Callable[[Any, str], None]:
    def write(out: Any, _: str) -> None:
        out.write(begin)
        while True:
            out.write(piece)
            time.sleep(pause)

    return write


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (forever(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.02), "did not answer in time"),
        (forever(OK, b"X: x\r\n", 0.02), "did not answer in time"),
        (forever(OK + b"\r\n", b" ", 0.02), "did not answer in time"),
        (forever(OK + b"\r\n", b" " * 2**16), "larger than 262,144 bytes"),
        (forever(b"HTTP/1.1 500 No\r\n\r\n", b" " * 2**16), "larger than 65,536 bytes"),
        (
            forever(b"HTTP/1.1 302 Go\r\nLocation: /x\r\n\r\n", b" " * 2**16),
            "larger than 65,536 bytes",
        ),
        (lambda out, _: out.write(OK + b"\r\n" + b"[" * 50_000), "cannot read"),
        (lambda out, _: out.write(OK + b"\r\n[1]"), "cannot read"),
        (lambda out, _: out.write(OK + b'\r\n{"id": "a/b", "sha": "../x"}'), "no commit"),
    ],
)
def test_answers_end(answer: Any, kind: Any, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ANSWER", 2**18)
    monkeypatch.setattr(limits, "REFUSAL", 2**16)
    answer(kind)
    with pytest.raises(UserError) as error:
        client.resolve(REPO)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_is_never_longer_than_announced(
    answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DEADLINE", 10)
    head = f'X-Repo-Commit: {COMMIT}\r\nETag: "{"a" * 40}"\r\n'.encode()

    def write(out: Any, first: str) -> None:
        if first.startswith("HEAD"):
            out.write(OK + head + b"Content-Length: 1000\r\n\r\n")
        else:
            forever(OK + head + b"\r\n", b"x" * 2**21)(out, first)

    answer(write)
    with pytest.raises(UserError, match="expected 1,000 bytes, found"):
        client.download(REPO, "config.json", COMMIT, cache=tmp_path / "cache")
    with pytest.raises(UserError, match="expected at most 10 bytes, found 1,000"):
        client.download(REPO, "config.json", COMMIT, limit=10, cache=tmp_path / "cache")
    left = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and b"xxx" in p.read_bytes()]
    assert not left


def test_a_download_that_makes_progress_has_no_deadline() -> None:
    count = iter(range(10**9))

    def slow() -> str:
        time.sleep(0.3)
        return "done"

    progress = lambda: next(count) * 2**20  # noqa: E731
    assert attempt("x", slow, seconds=0.05, progress=progress) == "done"
    with pytest.raises(UserError, match="did not answer in time"):
        attempt("x", slow, seconds=0.05, tries=1)


def test_what_links_point_to_outside_the_cache_stays(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    home = tmp_path / "hub" / "models--a--b"
    shot = home / "snapshots" / COMMIT / "folder"
    shot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for target in (
        precious,
        home / "blobs" / ".." / ".." / ".." / "precious",
        tmp_path / "blobs" / "x",
    ):
        target.parent.mkdir(exist_ok=True)
        target.write_text("x")
        file = shot / "model.safetensors"
        file.symlink_to(target)
        discard(file)
        assert target.read_text() == "x"
        assert not file.is_symlink()
    (home / "blobs" / "link").symlink_to(precious)
    (home / "blobs" / "own").write_text("x")
    for name in ("link", "own"):
        file = shot / name
        file.symlink_to(Path("..", "..", "..", "blobs", name))
        discard(file)
        assert not (home / "blobs" / name).is_symlink()
        assert not (home / "blobs" / name).exists()
    assert precious.read_text() == "x"


def test_a_noted_commit_is_written_through_no_link(answer: Any, tmp_path: Path) -> None:
    from ltbench.remote import cache

    precious = tmp_path / "precious"
    precious.write_text("x")
    refs = cache.folder_of(REPO, "model") / "refs"
    refs.mkdir(parents=True)
    (refs / "main").symlink_to(precious)
    cache.note_commit(REPO, "main", "model", COMMIT)
    assert precious.read_text() == "x"
    assert cache.noted_commit(REPO, "main", "model") == COMMIT
    (refs / "main").write_bytes(b"\xff" * 1000)
    assert not client.COMMIT.fullmatch(cache.noted_commit(REPO, "main", "model"))
