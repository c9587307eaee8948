"""Words of `launcher=`: what each run of a grid asks of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from ltbench.config.schema import Config
from ltbench.config.values import Word
from ltbench.config.words import read_words
from ltbench.errors import UserError

PREFIX = "launcher."


class Launcher(Config):
    """Jobs that the runs of a grid become."""

    executor: str = Field(description="slurm, local, debug, or another executor of submitit")
    nodes: int = Field(1, ge=1, le=4096, description="machines of a run")
    gpus: int | None = Field(
        None, ge=0, le=64, description="GPUs of a machine, with a rank each; default 1 if used"
    )
    ranks: int | None = Field(None, ge=1, le=1024, description="ranks of a machine without GPUs")
    cpus: int | None = Field(None, ge=1, le=1024, description="processor cores of a rank")
    memory: float | None = Field(None, gt=0, le=2**20, description="GB of a machine")
    minutes: int = Field(1440, ge=1, le=525_600, description="time limit of a job")
    partition: str | None = Field(None, description="partition (Slurm)")
    account: str | None = Field(None, description="account (Slurm)")
    qos: str | None = Field(None, description="quality of service (Slurm)")
    constraint: str | None = Field(None, description="features of the machines (Slurm)")
    array_parallelism: int | None = Field(
        None, ge=1, le=10_000, description="runs at a time; default all, 1 with executor local"
    )
    restarts: int = Field(
        10, ge=0, le=1000, description="times that a run goes on after preemption, timeout or kill"
    )
    wait: bool = Field(True, description="wait and print the table; false submits and returns")
    options: dict[str, Any] = Field(
        {}, description="further parameters of submitit, e.g. options.slurm_mail_user=ME"
    )

    def parameters(self, gpus: int) -> dict[str, Any]:
        """Return the parameters of submitit's ``AutoExecutor``.

        Args:
            gpus: of a machine.
        """
        given = {
            "timeout_min": self.minutes,
            "nodes": self.nodes,
            "gpus_per_node": gpus,
            "tasks_per_node": self.ranks or max(1, gpus),
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory,
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_array_parallelism": self.array_parallelism,
        }
        return {name: value for name, value in given.items() if value is not None} | self.options


def read_launcher(
    executor: str | None, words: Sequence[str]
) -> tuple[Launcher | None, tuple[str, ...]]:
    """Return the launcher that words ask for, if any, and the other words.

    Args:
        executor: value of `launcher=`.
        words: those that the command does not read itself.

    Raises:
        UserError: a word of the launcher is wrong, or there is none but `launcher.KEY=`.
    """
    own = [word.removeprefix(PREFIX) for word in words if word.startswith(PREFIX)]
    others = tuple(word for word in words if not word.startswith(PREFIX))
    if executor is None:
        if own:
            raise UserError(
                f"`{PREFIX}{own[0].partition('=')[0]}` needs an executor: launcher=slurm, or "
                "launcher=local to try it on this machine"
            )
        return None, others
    try:
        found = read_words([*own, f"executor={executor}"], Launcher)
        options = {k: v.read() if isinstance(v, Word) else v for k, v in found.options.items()}
        return found.model_copy(update={"options": options}), others
    except UserError as error:
        lines = [
            f"`{PREFIX}{line[1:]}" if line.startswith("`") else line
            for line in str(error).splitlines()
        ]
        raise UserError("\n".join(lines)) from None
