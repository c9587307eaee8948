"""Limits of the machine that stop loader processes are one line, and nobody waits for ever."""

from __future__ import annotations

import errno
import resource

import numpy as np
import pytest
import torch
from torch.utils.data import dataloader

from ltbench import machine
from ltbench.data import workers
from ltbench.data.loader import Loader, eval_batches
from ltbench.errors import UserError


class Split:
    """Zeros, made in loader processes."""

    in_memory = False
    labels = np.zeros(8, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, indices, *, key, positions, views=1):
        return tuple(torch.zeros(len(indices), 3, 4, 4) for _ in range(views))

    def finish(self, views, *, key, positions):
        return views


def read(loader: Loader) -> int:
    return sum(len(step[0].labels) for step in loader.batches(np.arange(8), 4, key=0))


def refused(match: str, count: int = 1) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read(Loader(Split(), workers=count))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_auto_is_the_cores_over_the_processes_that_share_them(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 12)
    for name in ("LOCAL_WORLD_SIZE", machine.JOBS):
        monkeypatch.delenv(name, raising=False)
    assert workers.loader_processes("auto") == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers.loader_processes("auto") == 3
    monkeypatch.setenv(machine.JOBS, "2")
    assert workers.loader_processes("auto") == 1
    assert workers.loader_processes(7) == 7
    assert workers.loader_processes(0) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "99")
    assert workers.loader_processes("auto") == 1
    monkeypatch.setattr(machine, "cores", lambda: 400)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "x")
    assert workers.loader_processes("auto") == workers.MOST
    assert Loader(Split(), workers="auto").workers == workers.MOST
    assert len(list(eval_batches(Split(), 5, workers="auto"))) == 2


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_stream_whose_batches_depend_on_it_has_the_same_number_everywhere(monkeypatch):
    stream = pytest.importorskip("ltbench.data.shards.stream")
    for cores in (1, 64):
        monkeypatch.setattr(machine, "cores", cores.__int__)
        assert stream.StreamLoader(Split(), workers="auto").workers == stream.READERS
    assert stream.StreamLoader(Split(), workers=5).workers == 5


def test_batches_come_in_shared_memory():
    loader = Loader(Split(), workers=1)
    for (loaded,) in loader.batches(np.arange(8), 4, key=0):
        assert all(t.is_shared() for t in (*loaded.views, loaded.labels, loaded.index))


def test_full_shared_memory_is_one_line(monkeypatch):
    """The loader process says so; torch would say it in a thread that nobody hears."""

    def full(self):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_3>: "
            "No space left on device (28)"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    refused("/dev/shm.* has no room .* `run.workers=0`")
    assert read(Loader(Split(), workers=0)) == 8  # nothing is shared


@pytest.mark.parametrize("number", sorted(workers._LIMITS))
def test_a_process_that_cannot_be_started_is_one_line(number, monkeypatch, capfd):
    def start(self, loader):
        self._partly = True  # torch's clean-up of a loader started in part raises
        raise OSError(number, "the machine says no")

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", start)
    refused("cannot start data workers: the machine says no")
    assert "Traceback" not in capfd.readouterr().err


def test_too_few_files_are_found_before_a_process_is_started(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (64, 64))
    refused("`run.workers=64` needs about .* open files", count=64)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (resource.RLIM_INFINITY,) * 2)
    workers.check_descriptors(10**6)


@pytest.mark.parametrize("text", ["Too many open files", "received 0 items of ancdata"])
def test_files_that_run_out_later_are_one_line(text):
    with pytest.raises(UserError, match="used up all open files"), workers.worker_errors():
        raise RuntimeError(text)


def test_other_errors_stay_as_they_are():
    for error in (RuntimeError("of the network"), OSError(errno.EIO, "of the disk")):
        with pytest.raises(type(error), match="of the"), workers.worker_errors():
            raise error
