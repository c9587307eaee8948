"""Print what a PLOT step costs: ``python tools/bench_plot.py --classes 100``."""

from __future__ import annotations

import argparse
import sys

import torch

from ltbench.bench import plot


def main() -> None:
    """Run the measurement that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet32_cifar")
    parser.add_argument("--part", default="last")
    for name, value in (("classes", 10), ("batch", 128), ("pixels", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--present", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pipelines", nargs="+", default=plot.PIPELINES, choices=plot.PIPELINES)
    options = vars(parser.parse_args())
    torch.set_num_threads(options.pop("threads"))
    rows = plot.bench(options.pop("backbone"), **options)
    sys.stdout.write(f"{plot.table(rows)}\npeak memory {plot.peak_mib():.0f} MiB\n")


if __name__ == "__main__":
    main()
