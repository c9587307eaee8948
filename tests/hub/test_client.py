"""Commits, listings, rights: what the package asks of the Hub apart from downloads."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ltbench.errors import UserError
from ltbench.remote import hub as client
from ltbench.remote.faults import explain
from tests.hub.server import git_hash

NET = "alice/net"
WEIGHTS = b"\0weights" * 1000


def puts(hub):
    return [r for r in hub.requests if r.origin == "cdn" and r.method == "PUT"]


def test_resolve_gives_the_commit_of_a_branch_a_tag_and_a_commit(hub):
    first = hub.add(NET, {"a.json": b"1"})
    hub.tag(NET, "v1")
    second = hub.add(NET, {"a.json": b"2"})
    side = hub.add(NET, {"a.json": b"3"}, branch="side")
    assert client.resolve(NET, "v1") == first
    assert client.resolve(NET) == second
    assert client.resolve(NET, "side") == side
    asked = len(hub.requests)
    assert client.resolve(NET, first) == first
    assert len(hub.requests) == asked


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_listing_tells_sizes_and_hashes_of_every_kind(hub, kind):
    revision = hub.add(NET, {"m.safetensors": WEIGHTS, "d/a.json": b"{}"}, kind=kind)
    files = client.listing(NET, revision, kind=kind)
    assert files["m.safetensors"].sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert files["m.safetensors"].size == len(WEIGHTS)
    small = files["d/a.json"]
    assert (small.sha256, small.size, small.blob_id) == (None, 2, git_hash(b"{}"))
    assert client.download(NET, "d/a.json", "main", kind=kind).read_bytes() == b"{}"


def test_creating_twice_is_fine_and_a_foreign_namespace_is_not(hub, use_token):
    for _ in range(2):
        client.create_repo(NET)
    client.create_repo("lab/results", kind="dataset")
    client.create_repo("lab/page", kind="space", space_sdk="static")
    assert hub.repositories["space", "lab/page"].sdk == "static"
    with pytest.raises(UserError, match=r"repository bob/net: your token does not permit this"):
        client.create_repo("bob/net")
    use_token(None)
    with pytest.raises(UserError, match="hf auth login"):
        client.create_repo("alice/other")
    assert ("model", "alice/other") not in hub.repositories


def test_a_token_that_only_reads_may_not_commit(hub, use_token):
    client.create_repo(NET)
    use_token("hf_ReaderOfAlice")
    client.create_repo(NET)  # is there: fine
    with pytest.raises(UserError, match=f"commit to {NET}: your token does not permit") as caught:
        client.commit(NET, {"a.json": b"1"}, "add", parent=None)
    assert "write access" in str(caught.value)
    assert hub.files(NET) == {}


def test_a_wrong_token_is_named_as_the_reason(hub, use_token):
    client.create_repo(NET)
    use_token("hf_WrongAltogether")
    for call in (
        lambda: client.commit(NET, {"a.json": b"1"}, "add", parent=None),
        lambda: client.resolve(NET),
        lambda: client.create_repo("alice/other"),
    ):
        with pytest.raises(UserError, match="does not accept the token") as caught:
            call()
        assert "hf_Wrong" not in str(caught.value)


def test_weights_travel_as_lfs_and_the_rest_does_not(hub, tmp_path):
    client.create_repo(NET)
    weights = tmp_path / "w"
    weights.write_bytes(WEIGHTS)
    done = client.commit(
        NET, {"model.safetensors": weights, "config.json": b"{}"}, "publish", parent=hub.head(NET)
    )
    assert done.oid == hub.head(NET)
    assert done.url.endswith(done.oid)
    assert hub.files(NET) == {"model.safetensors": WEIGHTS, "config.json": b"{}"}
    tree = hub.repositories["model", NET].commits[done.oid].tree
    assert tree["model.safetensors"].large
    assert not tree["config.json"].large
    assert len(puts(hub)) == 1


def test_the_same_files_again_are_no_commit_and_send_nothing(hub):
    client.create_repo(NET)
    files = {"model.safetensors": WEIGHTS, "config.json": b"{}"}
    first = client.commit(NET, files, "publish", parent=None)
    sent = len(puts(hub))
    again = client.commit(NET, files, "publish", parent=first.oid)
    assert again.oid == first.oid
    assert len(puts(hub)) == sent
    assert hub.history(NET) == ["publish", "initial commit"]


def test_after_a_failed_commit_the_content_is_not_sent_again(hub):
    client.create_repo(NET)
    hub.fault("POST", "/commit/", "status", times=4)
    with pytest.raises(client.Unreachable, match=f"commit to {NET}: .*HTTP 503"):
        client.commit(NET, {"model.safetensors": WEIGHTS}, "publish", parent=None)
    assert len(puts(hub)) == 1
    assert hub.files(NET) == {}
    client.commit(NET, {"model.safetensors": WEIGHTS}, "publish", parent=None)
    assert hub.files(NET) == {"model.safetensors": WEIGHTS}
    assert len(puts(hub)) == 1


@pytest.mark.parametrize("kind", ["status", "reset", "cut"])
def test_a_passing_fault_of_a_commit_is_outlived(hub, kind):
    client.create_repo(NET)
    hub.fault("POST", "/commit/", kind)
    hub.fault("POST", "/preupload/", kind)
    hub.fault("PUT", "^/put/", kind, after=100)
    client.commit(NET, {"model.safetensors": WEIGHTS}, "publish", parent=hub.head(NET))
    assert hub.files(NET) == {"model.safetensors": WEIGHTS}
    assert hub.history(NET) == ["publish", "initial commit"]


def test_a_commit_whose_answer_is_lost_is_made_once(hub):
    client.create_repo(NET)
    hub.fault("POST", "/commit/", "drop")
    done = client.commit(NET, {"config.json": b"{}"}, "publish", parent=hub.head(NET))
    assert done.oid == hub.head(NET)
    assert hub.history(NET) == ["publish", "initial commit"]


def test_a_commit_that_gets_no_answer_ends_with_one_line(hub, monkeypatch):
    monkeypatch.setattr(client, "QUIET", 0.2)
    client.create_repo(NET)
    hub.fault("POST", "/commit/", "stall", times=4, seconds=1)
    with pytest.raises(client.Unreachable, match=f"commit to {NET}: .* did not answer in time"):
        client.commit(NET, {"config.json": b"{}"}, "publish", parent=None)


def test_a_stale_parent_is_a_conflict(hub):
    client.create_repo(NET)
    before = hub.head(NET)
    client.commit(NET, {"a.json": b"1"}, "one", parent=before)
    with pytest.raises(client.Conflict, match=f"commit to {NET}: someone else committed"):
        client.commit(NET, {"b.json": b"2"}, "two", parent=before)
    assert hub.files(NET) == {"a.json": b"1"}


def test_parallel_commits_of_distinct_files_all_survive(hub):
    client.create_repo("lab/results", kind="dataset")

    def submit(number):
        for conflicts in range(100):
            head = client.resolve("lab/results", kind="dataset")
            try:
                client.commit(
                    "lab/results",
                    {f"runs/{number}.json": str(number).encode(), "all.json": str(number).encode()},
                    f"run {number}",
                    parent=head,
                    kind="dataset",
                )
                return conflicts
            except client.Conflict:
                pass
        raise AssertionError("never got in")

    with ThreadPoolExecutor(5) as pool:
        conflicts = list(pool.map(submit, range(5)))
    files = hub.files("lab/results", kind="dataset")
    assert {f"runs/{n}.json" for n in range(5)} <= set(files)
    assert sorted(hub.history("lab/results", kind="dataset")[:-1]) == [f"run {n}" for n in range(5)]
    assert sum(conflicts) == sum(r.status == 412 for r in hub.requests)


def test_files_are_deleted_in_the_same_commit(hub):
    hub.add(NET, {"old.json": b"1", "stay.json": b"2"})
    client.commit(NET, {"new.json": b"3"}, "move", parent=hub.head(NET), delete=["old.json"])
    assert hub.files(NET) == {"stay.json": b"2", "new.json": b"3"}
    with pytest.raises(client.Missing):
        client.commit(NET, {}, "again", parent=hub.head(NET), delete=["old.json"])


def test_a_pull_request_leaves_main_alone_until_it_is_merged(hub, use_token):
    hub.add("lab/results", {"a.json": b"1"}, kind="dataset")
    use_token("hf_SecretOfBob")
    done = client.commit(
        "lab/results", {"b.json": b"2"}, "mine", parent=None, kind="dataset", pull_request=True
    )
    assert done.pr_url is not None
    assert done.pr_url.endswith("/discussions/1")
    assert hub.files("lab/results", kind="dataset") == {"a.json": b"1"}
    hub.merge("lab/results", 1, kind="dataset")
    assert hub.files("lab/results", kind="dataset") == {"a.json": b"1", "b.json": b"2"}


def test_a_pull_request_is_never_opened_twice(hub):
    hub.add("lab/results", {"a.json": b"1"}, kind="dataset")
    hub.fault("POST", "/commit/", "drop")
    with pytest.raises(client.Unreachable):
        client.commit(
            "lab/results", {"b.json": b"2"}, "mine", parent=None, kind="dataset", pull_request=True
        )
    assert len(hub.repositories["dataset", "lab/results"].bases) == 1


@pytest.mark.parametrize(
    "path", ["../a.json", "a/../b.json", "/a.json", "a\\b.json", "C:a.json", "", ".git/config"]
)
def test_paths_that_leave_their_folder_are_refused(hub, path):
    revision = hub.add(NET, {"a.json": b"1"})
    with pytest.raises(UserError, match="refused as the path"):
        client.download(NET, path, revision)
    with pytest.raises(UserError, match="refused as the path"):
        client.commit(NET, {path: b"1"}, "x", parent=None)
    assert not hub.requests


@pytest.mark.parametrize("path", ["model.pt", "pytorch_model.bin", "w/MODEL.PKL"])
def test_no_pickle_is_published_or_fetched(hub, path):
    revision = hub.add(NET, {path: b"1"})
    with pytest.raises(UserError, match=r"only \.safetensors"):
        client.download(NET, path, revision)
    with pytest.raises(UserError, match=r"only \.safetensors"):
        client.commit(NET, {path: b"1"}, "x", parent=None)
    assert not hub.requests


@pytest.mark.parametrize("repo", ["net", "a/b/c", "../net", "alice/..", "alice/n--t", "alice/", ""])
def test_what_is_no_repository_is_refused_before_anything_is_sent(hub, repo):
    for call in (client.resolve, client.create_repo, lambda r: client.listing(r, "main")):
        with pytest.raises(UserError, match="expected org/name"):
            call(repo)
    with pytest.raises(UserError, match="no revision"):
        client.resolve(NET, "../../x")
    assert not hub.requests


def with_cause(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "No space left", "/x"), UserError, "No space left (/x); make room"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), client.Unreachable, "connection broke"),
        (TimeoutError(errno.ETIMEDOUT, "late"), client.Unreachable, "not answer in time"),
        (OSError("Consistency check failed: 1"), client.Unreachable, "arrived incomplete"),
        (RuntimeError("xet said\nno"), client.Unreachable, "xet said no"),
        (ValueError("bad card"), UserError, "bad card"),
        (
            with_cause(RuntimeError("while uploading"), OSError(errno.EACCES, "Denied", "/y")),
            UserError,
            "Denied (/y)",
        ),
        (ValueError("see http://cdn/x?Signature=abc and hf_0123456789"), UserError, "see http://"),
    ],
)
def test_every_fault_has_a_reason_without_secrets(error, kind, said):
    fault = explain(error)
    assert fault is not None
    assert fault.error is kind
    assert said in fault.reason
    assert "Signature" not in fault.reason
    assert "hf_0" not in fault.reason
    assert "\n" not in fault.reason


def test_a_mistake_of_our_own_is_not_called_a_fault_of_the_hub():
    assert explain(KeyError("x")) is None
    with pytest.raises(KeyError):
        client.attempt("x", lambda: {}["x"])


def test_trying_again_ends_after_a_number_of_tries_and_some_time(monkeypatch):
    tried = []

    def fail():
        tried.append(1)
        raise ConnectionResetError

    monkeypatch.setattr("ltbench.remote.faults.PAUSE", 0)
    with pytest.raises(client.Unreachable, match="a of b: the connection broke"):
        client.attempt("a of b", fail, tries=3)
    assert len(tried) == 3
    monkeypatch.setattr("ltbench.remote.faults.PATIENCE", 0)
    with pytest.raises(client.Unreachable):
        client.attempt("a of b", fail)
    assert len(tried) == 4


def test_names_of_the_zoo_are_listed_without_torch_and_without_the_client():
    code = (
        "import sys; from ltbench.hub import zoo; zoo.listing(); "
        "print(sorted({'torch', 'timm', 'huggingface_hub', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
