"""A device that is not here is one line."""

from __future__ import annotations

import pytest
import torch

from ltbench.distributed.device import pick_device
from ltbench.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def test_the_gpu_of_a_rank(two_gpus, monkeypatch):
    assert pick_device("auto") == torch.device("cuda", 0)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert pick_device("cuda") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda:2", "expected a GPU from cuda:0 to cuda:1, found cuda:2"),
        ("cuda:300", "found cuda:300"),  # torch would count modulo 256
        ("cuda:" + "9" * 5000, "expected cuda or cuda:N"),
        ("cuda:-1", "expected cuda or cuda:N"),
        ("mps", "expected auto, cpu, cuda or cuda:N, found `mps`"),
    ],
)
def test_a_device_that_is_not_here_is_one_line(two_gpus, name, said):
    with pytest.raises(UserError, match=said) as caught:
        pick_device(name)
    assert len(str(caught.value)) < 400
