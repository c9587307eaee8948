"""Started in test_elastic.py: the command line, a log of its steps, and a mishap.

Usage: elastic_worker.py LOGS MISHAP WORDS..., where MISHAP is ``none`` or ``KIND:RANK:S.E.T``: what
befalls which rank before step T of epoch E of stage S, once in the life of the folder LOGS.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from ltbench.cli import app as cli
from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.train.stage import StageRun


def main(argv: list[str]) -> None:
    logs, mishap, words = Path(argv[0]), argv[1], argv[2:]
    befell = logs / "befell"
    do_step = StageRun.step

    def step(self, micro, at):
        place = f"{at.stage}.{at.epoch}.{at.step}"
        if f"{ranks.rank()}:{place}" == mishap.partition(":")[2] and not befell.exists():
            befell.touch()
            befall(mishap.partition(":")[0])
        log = do_step(self, micro, at)
        entry = {
            "try": os.environ["TORCHELASTIC_RESTART_COUNT"],
            "pid": os.getpid(),
            "world": ranks.world(),
            "place": [at.stage, at.epoch, at.step],
            "index": [i for part in micro for i in part.index.tolist()],
        }
        with (logs / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        return log

    StageRun.step = step
    cli.main(words)


def befall(kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "mistake":
        raise UserError("image `7.jpg` cannot be read: repair it")
    raise ValueError("a bug")


if __name__ == "__main__":
    main(sys.argv[1:])
