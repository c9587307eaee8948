"""Fixtures around a Hub in memory, for the tests of the hub and of the leaderboard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hub.server import HubServer

TOKEN = "hf_TopSecretOfAlice"
USERS = {
    TOKEN: ("alice", "write"),
    "hf_ReaderOfAlice": ("alice", "read"),
    "hf_SecretOfBob": ("bob", "write"),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that this process and its children talk to, with caches of their own.

    Users are alice and bob (``TOKEN`` is alice's, and that of the environment); the organisation
    ``lab`` has alice as a member. Large files travel as LFS, not as Xet. Waits between tries are
    skipped.
    """
    with HubServer(tokens=USERS, orgs={"lab": ["alice"]}) as server:
        point_at(server, tmp_path / "hf", monkeypatch)
        yield server


@pytest.fixture
def use_token(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Become another user, or nobody."""

    def use(token: str | None) -> None:
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)

    return use


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Switch to offline mode."""

    def switch() -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    return switch


def point_at(
    server: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch, *, xet: bool = False
) -> None:
    """Point the environment, and what the client froze of it, at a server and a new cache."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _cache_manager, _http, close_session

    for name in [n for n in os.environ if n.startswith(("HF_", "HUGGINGFACE_"))]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    environment = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **({} if xet else {"HF_HUB_DISABLE_XET": "1"}),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    frozen = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_XET": not xet,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in frozen.items():
        monkeypatch.setattr(constants, name, value, raising=False)  # older releases lack some
    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", str(home / "hub"))
    if hasattr(_http, "_HUB_ORIGINS"):
        monkeypatch.setattr(_http, "_HUB_ORIGINS", frozenset({_http._url_origin(server.url)}))
    hurried = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    monkeypatch.setattr(_http, "time", hurried)
    monkeypatch.setattr(file_download, "time", hurried)
    monkeypatch.setattr("ltbench.remote.faults.PAUSE", 0)
    close_session()
