from __future__ import annotations

import importlib
import sys

import pytest

from ltbench.moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_former_modules_hold_the_same_objects(name, monkeypatch):
    monkeypatch.delitem(sys.modules, f"ltbench.{name}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"ltbench.{name} has moved to ltbench."):
        former = importlib.import_module(f"ltbench.{name}")
    for place in MOVED[name]:
        now = importlib.import_module(f"ltbench.{place}")
        public = [n for n, v in vars(now).items() if getattr(v, "__module__", "") == now.__name__]
        assert all(hasattr(former, n) for n in public)
        assert not hasattr(former, "no_such_name")


@pytest.mark.filterwarnings("ignore:ltbench.optim has moved")
def test_former_modules_are_imported_from_their_package():
    from ltbench import optim
    from ltbench.config.optim import Optim

    assert optim.Optim is Optim
