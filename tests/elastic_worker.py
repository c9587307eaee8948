"""Started by torchrun in test_elastic.py: the command line, a log of its steps, and a mishap.

Usage: elastic_worker.py LOGS MISHAP WORDS..., where MISHAP is ``none`` or ``KIND:RANK:S.E.T``: what
befalls which rank before step T of epoch E of stage S, once in the life of the folder LOGS.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from ltbench import cli, dist
from ltbench.errors import UserError
from ltbench.trainer import Trainer

logs, mishap, words = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
do_step = Trainer._step


def step(self, run, update, micro, at, stats):
    place = f"{at.stage}.{at.epoch}.{at.step}"
    if f"{dist.rank()}:{place}" == mishap.partition(":")[2] and not (logs / "befell").exists():
        (logs / "befell").touch()
        befall(mishap.partition(":")[0])
    log = do_step(self, run, update, micro, at, stats)
    entry = {
        "try": os.environ["TORCHELASTIC_RESTART_COUNT"],
        "pid": os.getpid(),
        "world": dist.world(),
        "place": [at.stage, at.epoch, at.step],
        "index": [i for part in micro for i in part.index.tolist()],
    }
    with (logs / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    return log


def befall(kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "mistake":
        raise UserError("image `7.jpg` cannot be read: repair it")
    raise ValueError("a bug")


if __name__ == "__main__":
    Trainer._step = step
    cli.main(words)
