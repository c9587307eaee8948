"""Hostile web servers: every answer ends in time and size, and no redirect leaves the web."""

from __future__ import annotations

import contextlib
import io
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ltbench.data.shards import remote
from ltbench.errors import UserError
from ltbench.remote import address, http
from ltbench.remote.address import Address, without_credentials
from ltbench.remote.http import Body

Answer = Callable[[Any], None]
OK = b"HTTP/1.1 200 OK\r\n"


class Server:
    """Web server on 127.0.0.1 that sends what a function writes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: list[Answer] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                outer.asked.append(self.rfile.readline().decode().split(" ")[1])
                while self.rfile.readline().strip():
                    pass
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                with contextlib.suppress(OSError):
                    answer(self.wfile)

        class Threads(socketserver.ThreadingMixIn, socketserver.TCPServer):
            daemon_threads = True

        self.server = Threads(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr(http, "TIMEOUT", 0.15)
    monkeypatch.setattr(http, "BACKOFF", 0.0)
    monkeypatch.setenv("LTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(address.CREDENTIALS, "{}")
    found = Server()
    yield found
    found.server.shutdown()
    found.server.server_close()


def forever(begin: bytes, piece: bytes, pause: float = 0.0) -> Answer:
    def answer(out: Any) -> None:
        out.write(begin)
        while True:
            out.write(piece)
            if pause:
                time.sleep(pause)

    return answer


def once(text: bytes) -> Answer:
    return lambda out: out.write(text)


def fetched(server: Server, **options: Any) -> bytes:
    body = Body(Address(server.url), "file", tries=2, **options)
    with contextlib.closing(body):
        return b"".join(iter(body.read, b""))


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "a status line that drips": forever(b"HTTP/1.1 200", b" ", 0.02),
    "a header that drips": forever(OK + b"X: ", b"x", 0.02),
    "headers that drip": forever(OK, b"X: x\r\n", 0.02),
    "headers without end": forever(OK, b"X: x\r\n"),
    "a header without end": forever(OK + b"X: ", b"x" * 4096),
    "interim answers without end": forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a chunk's size that drips": forever(CHUNKED, b"0", 0.02),
    "trailers that drip": forever(CHUNKED + b"0\r\n", b"X: x\r\n", 0.02),
    "a body that drips": forever(OK + b"\r\n", b"x", 0.02),
    "a body without end": forever(OK + b"\r\n", b"x" * 4096),
    "chunks without end": forever(CHUNKED, b"1000\r\n" + b"x" * 4096 + b"\r\n"),
    "an announced size": once(OK + b"Content-Length: 99999999999\r\n\r\nx"),
    "a redirect's body without end": forever(
        b"HTTP/1.1 302 Found\r\nLocation: /file\r\n\r\n", b"x" * 4096
    ),
    "an error's body without end": forever(b"HTTP/1.1 500 No\r\n\r\n", b"x" * 4096),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_every_answer_ends(server: Server, kind: str) -> None:
    server.answers = [ENDLESS[kind]]
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            fetched(server, limit=2**16)
        except UserError as error:
            ended.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(5)
    assert ended, "still waiting"
    text = str(ended[0])
    assert f"{server.url}/file" in text
    assert "\n" not in text


def test_a_body_is_never_longer_than_expected(server: Server) -> None:
    server.answers = [forever(OK + b"\r\n", b"x" * 4096)]
    assert len(fetched(server, size=10_000)) == 10_000
    with pytest.raises(UserError, match="larger than the 65,536 bytes"):
        fetched(server, limit=2**16)


@pytest.mark.parametrize("target", ["ftp://127.0.0.1:9/x", "file:///etc/passwd", "data:,x", "x:"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_stay_on_the_web(server: Server, target: str, status: int) -> None:
    server.answers = [once(f"HTTP/1.1 {status} Go\r\nLocation: {target}\r\n\r\n".encode())]
    with pytest.raises(UserError, match="is not followed: only http and https are"):
        fetched(server)
    assert len(server.asked) == 1


def test_https_is_not_left_for_http() -> None:
    from ltbench.remote.opener import _Redirects

    class Request:
        type, host, full_url = "https", "secure.org", "https://secure.org/a"

    headers = {"Location": "http://secure.org/a"}
    with pytest.raises(UserError, match="only https are"):
        _Redirects().http_error_302(Request(), io.BytesIO(), 302, "", headers)  # type: ignore[arg-type]


def test_a_manifest_cut_without_a_length_is_asked_for_again(server: Server) -> None:
    whole = json.dumps({"splits": {"train": {}}}).encode()
    server.answers = [once(OK + b"\r\n" + whole[:9]), once(OK + b"\r\n" + whole)]
    assert remote._text(Address(server.url), "_info.json", 3) == whole
    assert len(server.asked) == 2


@pytest.mark.parametrize("text", [b'{"splits": ' * 50_000, b"[1]", b'{"splits": "train"}', b"\xff"])
def test_a_description_of_splits_that_is_none(server: Server, text: bytes) -> None:
    server.answers = [once(OK + b"\r\n" + text)]
    with pytest.raises(UserError, match=r"there are no shards at|is not a manifest"):
        remote.open_remote(server.url)


def test_a_download_writes_through_no_link(server: Server, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    (tmp_path / "index.npy.part").symlink_to(precious)
    server.answers = [once(OK + b"Content-Length: 3\r\n\r\nabc")]
    with pytest.raises(UserError, match="is not the file that its manifest describes"):
        remote._download(Address(server.url), "f", tmp_path / "index.npy", "0" * 64, limit=9)
    assert precious.read_text() == "x"
    assert not (tmp_path / "index.npy").exists()


ROOT = "https://me:pa55%2Fword@host.org:8443/data?sig=s1gned#part"


def test_credentials_are_kept_apart_from_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(address.CREDENTIALS, "{}")
    plain = without_credentials(ROOT)
    assert plain == "https://host.org:8443/data"
    for place in (Address(ROOT), Address(plain)):
        asked = place.request("train/a b.tar")
        assert asked.full_url == "https://host.org:8443/data/train/a%20b.tar?sig=s1gned"
        assert asked.get_header("Authorization") == "Basic bWU6cGE1NS93b3Jk"
        assert "sig" not in place.shown()
    assert Address(plain).identity == Address(ROOT).identity
    other = Address("https://host.org:8443/other").request("x")
    assert not other.has_header("Authorization")
    assert "sig" not in other.full_url
    assert without_credentials("/a@b/c?d") == "/a@b/c?d"


def test_a_recipe_holds_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    from ltbench import get_recipe

    monkeypatch.setenv(address.CREDENTIALS, "{}")
    for data in ("shards", "cifar10_lt", "list", "inat18"):
        recipe = get_recipe("ce", f"data={data}", f"data.root={ROOT}", "backbone=resnet20_cifar")
        for text in (json.dumps(recipe.tree()), repr(recipe)):
            assert "pa55" not in text
            assert "s1gned" not in text
    for word in ("backbone.weights=http://me:pa55@h/x", "out=ftp://me:pa55@h/x"):
        with pytest.raises(UserError, match="a user or a password") as error:
            get_recipe("ce", word, "backbone=resnet20_cifar")
        assert "pa55" not in str(error.value)


@pytest.mark.parametrize("root", ["http://[::1/x", "http://me:pa55@[x/y"])
def test_an_address_that_is_none_is_one_line(root: str) -> None:
    with pytest.raises(UserError, match="is no address") as error:
        without_credentials(root)
    assert "pa55" not in str(error.value)
