"""Downloads: what arrives is what was published, or one line says why not."""

from __future__ import annotations

import hashlib
import logging
import random
import traceback
import warnings
from pathlib import Path

import pytest

from ltbench.errors import UserError
from ltbench.remote import hub as client
from tests.hub.fixtures import TOKEN, point_at
from tests.hub.server import HubServer

NET, FILE = "alice/net", "model.safetensors"
SMALL = random.Random(0).randbytes(300_000)
LARGE = random.Random(1).randbytes(11 * 2**20)  # more than one step of the client
STEP = 10 * 2**20


def kept(hub_cache: Path) -> list[Path]:
    """Contents, whole or not, in the cache."""
    return [p for p in hub_cache.rglob("blobs/*") if p.stat().st_size > 0]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "hf" / "hub"


def test_branch_tag_and_commit_give_their_own_content(hub):
    first = hub.add(NET, {FILE: b"\0one", "config.json": b"1"})
    hub.tag(NET, "v1")
    hub.add(NET, {FILE: b"\0two", "config.json": b"2"})
    hub.add(NET, {FILE: b"\0three", "config.json": b"3"}, branch="side")
    for revision, weights, config in (
        ("main", b"\0two", b"2"),
        ("v1", b"\0one", b"1"),
        ("side", b"\0three", b"3"),
        (first, b"\0one", b"1"),
    ):
        assert client.download(NET, FILE, revision).read_bytes() == weights
        assert client.download(NET, "config.json", revision).read_bytes() == config


def test_what_is_missing_is_told_apart(hub, use_token):
    revision = hub.add(NET, {FILE: SMALL})
    hub.add("bob/hidden", {FILE: SMALL}, private=True)
    hub.add("bob/gated", {FILE: SMALL}, gated=True)

    def line(repo, file=FILE, revision="main"):
        with pytest.raises(UserError) as caught:
            client.download(repo, file, revision)
        assert "\n" not in str(caught.value)
        assert repo in str(caught.value)
        return str(caught.value)

    lines = {
        "file": line(NET, "other.safetensors"),
        "revision": line(NET, revision="v7"),
        "commit": line(NET, revision="f" * 40),
        "repository": line("alice/nothing"),
        "hidden": line("bob/hidden"),
        "gated": line("bob/gated"),
    }
    use_token(None)
    lines |= {"logged out": line("bob/hidden"), "gated, logged out": line("bob/gated")}
    assert "other.safetensors" in lines["file"]
    assert "no such file" in lines["file"]
    assert "no such revision" in lines["revision"]
    assert "v7" in lines["revision"]
    assert "no such revision" in lines["commit"]
    assert "no such repository" in lines["repository"]
    assert "your token may not read it" in lines["hidden"]
    assert "not logged in" in lines["logged out"]
    assert "granted on request" in lines["gated"]
    assert "granted on request" in lines["gated, logged out"]
    reasons = [text.partition(": ")[2] for text in lines.values()]
    assert len(set(reasons)) == len(reasons) - 2  # as the Hub: two revisions, hidden and missing
    use_token(TOKEN)
    assert client.download(NET, FILE, revision).read_bytes() == SMALL
    hub.granted.add(("bob/gated", "alice"))
    assert client.download("bob/gated", FILE, "main").read_bytes() == SMALL


def test_private_files_come_with_a_token(hub, use_token):
    hub.add(NET, {FILE: SMALL}, private=True)
    use_token(None)
    with pytest.raises(client.Missing):
        client.download(NET, FILE, "main")
    use_token(TOKEN)
    assert client.download(NET, FILE, "main").read_bytes() == SMALL


FAULTS = {
    "cut below a step": (LARGE, {"kind": "cut", "after": 3_000_000}),
    "cut above a step": (LARGE, {"kind": "cut", "after": STEP + 300_000}),
    "reset": (SMALL, {"kind": "reset", "after": 1000}),
    "503": (SMALL, {"kind": "status", "status": 503}),
    "429": (SMALL, {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}}),
    "stall": (SMALL, {"kind": "stall", "seconds": 0.6}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_passing_fault_is_outlived(hub, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    content, fault = FAULTS[name]
    revision = hub.add(NET, {FILE: content})
    hub.fault("GET", "^/cdn/", **fault)
    assert client.download(NET, FILE, revision).read_bytes() == content
    gets = [r for r in hub.requests if r.origin == "cdn"]
    assert len(gets) == 2
    if name == "cut above a step":
        assert gets[1].range == f"bytes={STEP}-"  # goes on where it stopped


@pytest.mark.parametrize("name", ["reset", "503", "429", "stall"])
def test_a_lasting_fault_ends_with_one_line_and_leaves_nothing(hub, name, monkeypatch, cache):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    content, fault = FAULTS[name]
    if fault["kind"] == "stall":
        fault = {**fault, "seconds": 0.2}
    revision = hub.add(NET, {FILE: content})
    hub.fault("GET", "^/cdn/", **fault, times=10_000)
    with pytest.raises(client.Unreachable) as caught:
        client.download(NET, FILE, revision)
    assert str(caught.value).startswith(f"{FILE} of {NET}@{revision[:12]}: ")
    assert "\n" not in str(caught.value)
    assert not kept(cache)
    assert sum(r.origin == "cdn" for r in hub.requests) <= 30


@pytest.mark.parametrize("path", ["^/alice/net/resolve", "^/api/models"])
@pytest.mark.parametrize(("kind", "status"), [("status", 503), ("status", 429), ("reset", 0)])
def test_questions_before_a_download_are_repeated_too(hub, path, kind, status):
    hub.add(NET, {FILE: SMALL})
    for method in ("GET", "HEAD"):
        hub.fault(method, path, kind, status=status)
    assert client.download(NET, FILE, "main").read_bytes() == SMALL


@pytest.mark.parametrize(("file", "origin"), [(FILE, "^/cdn/"), ("config.json", "resolve-cache")])
def test_corrupt_content_is_fetched_again(hub, file, origin):
    revision = hub.add(NET, {file: SMALL.hex().encode() if file != FILE else SMALL})
    hub.fault("GET", origin, "corrupt")
    path = client.download(NET, file, revision)
    assert path.read_bytes() == hub.files(NET)[file]
    assert sum(r.method == "GET" and "/api/models" not in r.path for r in hub.requests) == 2


def test_content_that_stays_wrong_is_refused_and_not_kept(hub, cache):
    revision = hub.add(NET, {FILE: SMALL})
    hub.fault("GET", "^/cdn/", "corrupt", times=100)
    with pytest.raises(UserError, match=f"{FILE} of {NET}@.*content is wrong.*SHA-256"):
        client.download(NET, FILE, revision)
    assert sum(r.origin == "cdn" for r in hub.requests) == client.FETCHES
    assert not kept(cache)


def test_content_other_than_was_asked_for_is_refused(hub, cache):
    revision = hub.add(NET, {FILE: SMALL})
    right = hashlib.sha256(SMALL).hexdigest()
    assert client.download(NET, FILE, revision, sha256=right, size=len(SMALL)).is_file()
    with pytest.raises(UserError, match="expected SHA-256 hash 000000000000"):
        client.download(NET, FILE, revision, sha256="0" * 64)
    with pytest.raises(UserError, match="expected 5 bytes, found 300,000"):
        client.download(NET, FILE, revision, size=5)
    assert not kept(cache)


def test_a_damaged_cache_is_repaired_or_said_to_be_damaged(hub, offline):
    revision = hub.add(NET, {FILE: SMALL})
    path = client.download(NET, FILE, revision)
    path.resolve().write_bytes(b"x" * len(SMALL))
    assert client.download(NET, FILE, revision).read_bytes() == SMALL
    path.resolve().write_bytes(b"x" * len(SMALL))
    offline()
    with pytest.raises(client.Missing, match=r"not in the cache.*was removed: expected SHA-256"):
        client.download(NET, FILE, revision)


def test_a_cache_without_links_is_checked_against_the_listing(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_SYMLINKS", True)
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    revision = hub.add(NET, {FILE: SMALL, "config.json": b"{}"})
    hub.fault("GET", "^/cdn/", "corrupt")
    hub.fault("GET", "resolve-cache", "corrupt")
    for file in (FILE, "config.json"):
        path = client.download(NET, file, revision)
        assert not path.is_symlink()
        assert path.read_bytes() == hub.files(NET)[file]


def test_with_the_hub_down_main_is_the_last_one_and_says_so(hub, monkeypatch):
    monkeypatch.setattr("ltbench.remote.faults.PATIENCE", 0)
    revision = hub.add(NET, {FILE: SMALL})
    client.download(NET, FILE, "main")
    hub.stop()
    with pytest.warns(UserWarning, match=rf"cannot connect.*`main` of {NET} was.*{revision}"):
        assert client.download(NET, FILE, "main").read_bytes() == SMALL
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert client.download(NET, FILE, revision).read_bytes() == SMALL
    with pytest.raises(client.Unreachable, match=f"alice/other@main: cannot connect to {hub.url}"):
        client.download("alice/other", FILE, "main")
    with pytest.raises(client.Unreachable, match=f"config.json of {NET}.*cannot connect"):
        client.download(NET, "config.json", revision)


def test_a_main_that_moved_is_noticed_when_the_hub_is_back(hub):
    hub.add(NET, {FILE: SMALL})
    client.download(NET, FILE, "main")
    hub.stop()
    hub.add(NET, {FILE: b"\0new"})
    hub.start()
    assert client.download(NET, FILE, "main").read_bytes() == b"\0new"


def test_offline_mode_reads_the_cache_and_asks_nobody(hub, offline):
    revision = hub.add(NET, {FILE: SMALL})
    client.download(NET, FILE, "main")
    asked = len(hub.requests)
    offline()
    with pytest.warns(UserWarning, match=f"offline mode is on; using what `main` of {NET}"):
        assert client.download(NET, FILE, "main").read_bytes() == SMALL
    assert client.download(NET, FILE, revision).read_bytes() == SMALL
    for repo, file in ((NET, "config.json"), ("alice/other", FILE)):
        with pytest.raises(client.Missing, match=f"{repo}.*offline mode"):
            client.download(repo, file, revision)
    with pytest.raises(client.Missing, match="offline"):
        client.resolve(NET, "v1")
    with pytest.raises(client.Missing, match="offline"):
        client.listing(NET, revision)
    assert len(hub.requests) == asked


def test_the_token_never_reaches_the_cdn(hub):
    client.create_repo(NET)
    client.commit(NET, {FILE: SMALL, "config.json": b"{}"}, "publish", parent=None)
    hub.fault("GET", "^/cdn/", "reset", after=10)
    for file in (FILE, "config.json"):
        client.download(NET, file, "main")
    there = [r for r in hub.requests if r.origin == "cdn"]
    assert {r.method for r in there} == {"PUT", "GET"}
    assert not any(r.authorized or TOKEN in r.headers + r.path for r in there)
    assert any(r.authorized for r in hub.requests)  # the Hub itself needs it


def test_the_token_is_in_no_message_log_or_chain_of_exceptions(hub, caplog):
    caplog.set_level(logging.DEBUG)
    revision = hub.add(NET, {FILE: SMALL})
    hub.add("bob/gated", {FILE: SMALL}, gated=True)
    logging.getLogger("huggingface_hub").propagate = True
    ways = {
        "reset": lambda: client.download(NET, FILE, revision),
        "missing": lambda: client.download(NET, "no.safetensors", revision),
        "gated": lambda: client.download("bob/gated", FILE, "main"),
        "forbidden": lambda: client.create_repo("bob/net"),
        "conflict": lambda: client.commit(NET, {"a.json": b"1"}, "x", parent="0" * 40),
        "down": lambda: client.listing(NET, revision),
    }
    hub.fault("GET", "^/cdn/", "reset", times=100)
    try:
        for name, way in ways.items():
            if name == "down":
                hub.stop()
            with pytest.raises(UserError) as caught:
                way()
            printed = "".join(traceback.format_exception(caught.value))
            assert TOKEN not in printed, name
            error = caught.value
            while error is not None:
                assert not hasattr(error, "request"), name
                assert not hasattr(error, "response"), name
                error = error.__cause__ or error.__context__
    finally:
        logging.getLogger("huggingface_hub").propagate = False
    assert caplog.records
    assert TOKEN not in caplog.text


def test_xet_carries_weights_both_ways_and_a_wrong_file_is_refused(tmp_path, monkeypatch):
    users = {TOKEN: ("alice", "write")}
    with HubServer(tokens=users, xet_folder=tmp_path / "cas") as hub:
        point_at(hub, tmp_path / "hf", monkeypatch, xet=True)
        pytest.importorskip("hf_xet")  # asks the environment where to write logs
        client.create_repo(NET)
        client.commit(NET, {FILE: SMALL, "config.json": b"{}"}, "publish", parent=None)
        assert hub.files(NET) == {FILE: SMALL, "config.json": b"{}"}
        path = client.download(NET, FILE, "main")
        assert path.read_bytes() == SMALL
        assert not [r for r in hub.requests if r.origin == "cdn"]
        with pytest.raises(UserError, match="the content is wrong"):
            client.download(NET, FILE, "main", sha256="0" * 64)
        assert not path.exists()
