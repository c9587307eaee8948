"""What ltbench/FAQ.md says that commands print is what they print."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from ltbench import get_recipe
from ltbench.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ltbench" / "FAQ.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n\$ ltbench (.*)\n((?:.*\n)+?)```", PAGE, re.M)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder that the page's commands are typed in."""
    folder = tmp_path_factory.mktemp("faq")

    def images(place: str, **counts: int) -> None:
        for shade, (name, count) in enumerate(counts.items()):
            (folder / place / name).mkdir(parents=True)
            for number in range(count):
                color = (number * 3, shade * 40, 7)
                Image.new("RGB", (8, 8), color).save(folder / place / name / f"{number}.png")

    images("MY_IMAGES/train", ant=60, bee=20, cat=9)
    images("MY_IMAGES/val", ant=4, bee=6, cat=5)
    images("FLAT", ant=60, bee=30, cat=24)
    images("ONE/train", ant=2)
    images("TINY/train", ant=5, bee=5, cat=3)
    images("TINY/test", ant=2, bee=2, cat=2)
    for split in ("train", "test"):
        images(f"BROKEN/{split}", a=4, b=4)
        images(f"NESTED/{split}/animals", ant=20, bee=20)
        images(f"NESTED/{split}/things", cup=20, pot=20)
    (train, test), counts = ([], []), {"ant": 60, "bee": 20, "cat": 14}
    for label, (name, count) in enumerate(counts.items()):
        lines = [f"{name}/{number}.png,{label}" for number in range(count)]
        test += lines[:10]
        train += lines[10:]
    (folder / "FLAT" / "a.csv").write_text("\n".join(["path,label", *train]))
    (folder / "FLAT" / "b.csv").write_text("\n".join(["path,label", *test]))
    (folder / "FLAT" / "names.csv").write_text("ant/0.png,ant\nbee/0.png,bee\n")
    (folder / "BROKEN" / "train" / "a" / "2.png").write_bytes(b"not a PNG")
    torch.save({"model": torch.nn.Linear(2, 2)}, folder / "whole.pth")
    (folder / "RUN").mkdir()
    recipe = get_recipe("quickstart")
    facts = {"recipe": recipe.name, "digest": recipe.digest, "seed": 0}
    (folder / "RUN" / "recipe.json").write_text(json.dumps(facts))
    (folder / "RUN" / "checkpoints").mkdir()
    return folder


def printed(capsys, words: str) -> str:
    """Return what a command prints, with its spaces and line breaks made one space each."""
    with warnings.catch_warnings(record=True) as notes:
        try:
            main(words.split())
            code = 0
        except SystemExit as end:
            code = end.code or 0
    output = capsys.readouterr()
    assert code == (2 if "error: " in output.err else 0), output.err
    said = [f"note: {note.message}" for note in notes]  # as the command prints warnings
    return " ".join(" ".join([output.out, output.err, *said]).split())


def test_the_page_has_blocks_and_each_is_read():
    assert len(BLOCKS) > 12
    assert PAGE.count("```console") == len(BLOCKS)


@pytest.mark.parametrize(("words", "lines"), BLOCKS, ids=[words[:50] for words, _ in BLOCKS])
def test_a_command_prints_what_the_page_says(words, lines, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    output = printed(capsys, words)
    for line in lines.splitlines():
        wanted = ".*".join(re.escape(" ".join(part.split())) for part in line.split("..."))
        assert re.search(wanted, output), f"{line}\nnot in\n{output}"
