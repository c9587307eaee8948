"""The command line `ltbench`."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from ltbench.cli.bench import bench
from ltbench.cli.command import Group, usage_line
from ltbench.cli.compare import compare
from ltbench.cli.data import data
from ltbench.cli.diagnose import diagnose
from ltbench.cli.display import clean, say
from ltbench.cli.evaluate import eval_
from ltbench.cli.export import export
from ltbench.cli.hub import download, publish
from ltbench.cli.importing import import_
from ltbench.cli.leaderboard import leaderboard
from ltbench.cli.new import new
from ltbench.cli.predict import predict
from ltbench.cli.run import run
from ltbench.cli.show import list_, show
from ltbench.errors import UserError, visible
from ltbench.version import __version__

# Errors of a path or of the machine, wherever they occur: names that are too long, missing
# permissions, full disks, too many open files.
MACHINE = {
    *(errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENOTDIR),
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Words are key=value; `ltbench COMMAND --help` explains each command.",
)
@click.version_option(__version__, prog_name="ltbench")
def cli() -> None:
    """Train, evaluate and compare long-tailed recognition methods.

    \b
    Start here:
      ltbench run recipe=quickstart          a real problem, no network, two minutes
      ltbench list recipes "*plot_cifar10"   what there is
      ltbench show recipe=mislas_plot_inat   what a recipe does
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is


COMMANDS = (
    *(bench, compare, data, diagnose, download, eval_, export, import_, leaderboard, list_, new),
    *(predict, publish, run, show),
)
for command in COMMANDS:
    cli.add_command(command)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line: exit code 2 for a user's mistake, 130 for Ctrl-C."""
    rank = os.environ.get("RANK")
    mark = f"[rank {rank}] " if rank and os.environ.get("WORLD_SIZE", "1") != "1" else ""
    warnings.formatwarning = _note
    try:
        _check_current_folder()
        cli.main(args=list(argv) if argv is not None else None, standalone_mode=False)
    except UserError as error:
        for line in str(error).split("\n"):
            say(f"{mark}error: {line}", err=True)
        sys.exit(2)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # of click 8.2 and later
            error.show()
        else:
            line = usage_line(error, sys.argv[1:] if argv is None else argv)
            say(f"{mark}error: {line}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        where = "" if error.filename is None else f": {visible(os.fsdecode(error.filename))}"
        say(f"{mark}error: {error.strerror}{where}; use another path or make room", err=True)
        sys.exit(2)


def _check_current_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise UserError(
            f"cannot use the current folder ({error.strerror}); change to another one"
        ) from error


_shown = warnings.formatwarning


def _note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Write our own warnings as one line, without the place in the code."""
    if category is UserWarning:
        return clean(f"note: {message}\n")
    return _shown(message, category, filename, lineno, line)
