"""Attacks on runs, models, records, recipes, boards, servers and processes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ltbench import get_recipe
from ltbench.cli import main
from ltbench.config.resources import leaderboard_dir
from ltbench.data.shards.format import KEYS, MANIFEST
from ltbench.data.shards.reader import ShardSource
from ltbench.data.shards.remote import open_remote
from ltbench.digest import digest_of
from ltbench.hub.export import export
from ltbench.hub.load import load_described
from ltbench.leaderboard.page import build_page
from ltbench.leaderboard.submit import submit
from ltbench.leaderboard.tables import board_rows
from ltbench.records.record import Record, record_text
from ltbench.records.sealing import checksums_of, run_id_of
from ltbench.remote import http as transfer
from ltbench.train.checkpoint import Store
from ltbench.train.run import run
from tests.attacks import data_rows
from tests.attacks.damage import HOSTILE, cut, damaged, edited_json, flip, places
from tests.attacks.engine import Row
from tests.data.shards import faults
from tests.hub.fixtures import USERS, point_at
from tests.hub.server import HubServer

WORDS = (
    "data=digits_lt", "data.image_size=8", "data.imbalance_ratio=20",
    "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}", "epochs=2", "run.save_steps=3",
    "run.device=cpu", "run.threads=1",
)  # fmt: skip
IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

_home = tempfile.TemporaryDirectory()  # of what several rows attack


class Interrupted(BaseException):
    """Ends a run in the middle."""


def once(name: str, make: Any) -> Path:
    """Return a folder that is made at the first call."""
    path = Path(_home.name) / name
    if not path.is_dir():
        make(path)
    return path


def train(out: Path) -> Any:
    return run(get_recipe("ce", *WORDS, f"out={out}"))


def finished(root: Path) -> None:
    shutil.copytree(once("finished", train), root / "run")


def halved(root: Path) -> None:
    """Put a run that was interrupted after some checkpoints."""

    def make(path: Path) -> None:
        saved, save = 0, Store.save

        def then_stop(*args: Any, **words: Any) -> None:
            nonlocal saved
            save(*args, **words)
            saved += 1
            if saved == 4:
                raise Interrupted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "save", then_stop)
            with pytest.raises(Interrupted):
                train(path)

    shutil.copytree(once("halved", make), root / "run")


def resume(root: Path) -> list[Any]:
    """Go on with a run, or read a finished one."""
    result = train(root / "run")
    return [
        hashlib.sha256((root / "run/model.safetensors").read_bytes()).hexdigest(),
        json.loads((root / "run/record.json").read_text())["metrics"],
        result.record.run_id == json.loads((root / "run/record.json").read_text())["run_id"],
    ]


def newest(root: Path) -> Path:
    return sorted(p for p in (root / "run/checkpoints").iterdir() if p.is_dir())[-1]


def of_newest(name: str, ways: Any = (flip, flip, flip, cut)) -> Any:
    def damage(root: Path, rng: random.Random, number: int) -> str:
        (path,) = newest(root).glob(name)
        return str(ways[number % len(ways)](path, rng))

    return damage


def hand_edited_state(root: Path, rng: random.Random, number: int) -> str:
    folder = newest(root).relative_to(root)
    return str(edited_json(f"{folder}/state.json", _unsealed)(root, rng, number))


def _unsealed(content: Any) -> Any:
    if isinstance(content, dict) and random.Random(len(str(content))).random() < 0.5:
        content.pop("checksum", None)
    return content


def misplaced_checkpoints(root: Path, rng: random.Random, number: int) -> str:
    """Remove, swap or empty files of the checkpoints and of the run."""
    folder, home = newest(root), root / "run/checkpoints"
    kind = ("no state", "no tensors", "empty", "file", "foreign", "renamed", "none", "recipe",
            "pipe", "order")[number % 10]  # fmt: skip
    if kind == "no state":
        (folder / "state.json").unlink()
    elif kind == "no tensors":
        next(folder.glob("*.safetensors")).unlink()
    elif kind == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif kind == "file":
        shutil.rmtree(folder)
        folder.write_text("x")
    elif kind == "foreign":
        (home / "s9-e0009-t000009").mkdir()
    elif kind == "renamed":
        folder.rename(home / "s0-e0001-t000999")
    elif kind == "none":
        shutil.rmtree(home)
    elif kind == "recipe":
        (root / "run/recipe.json").unlink()
    elif kind == "pipe":
        (folder / "state.json").unlink()
        os.mkfifo(folder / "state.json")
    else:
        (home / "s0-e0010-t1000000").mkdir()
    return kind


def model(root: Path) -> list[Any]:
    """Load a model and compare what it answers and what is known of it."""
    method, described = load_described(root / "run")
    with torch.no_grad():
        logits = method.eval()(IMAGES)
    return [hashlib.sha256(logits.numpy().tobytes()).hexdigest(), described]


def answers(root: Path) -> list[Any]:
    return model(root)[:1]


def published(root: Path) -> None:
    shutil.copytree(
        once("published", lambda path: export(once("finished", train), path)), root / "run"
    )


def evaluate(root: Path) -> str:
    """Evaluate the model in the folder with the command."""
    main(["eval", f"model={root / 'run'}"])
    return "evaluated"


def record(root: Path) -> list[Any]:
    found = Record.load(root / "run/record.json")
    return [found.model_dump(mode="json")]


def sealed(content: Any) -> Any:
    """Compute a record's hashes anew, as a forger does."""
    content["recipe"]["digest"] = digest_of(content["recipe"]["resolved"])
    content["checksums"] = checksums_of(content)
    content["run_id"] = run_id_of(content)
    return json.loads(record_text(content))


def board(root: Path) -> None:
    """Put a leaderboard with a few honest records, and a run to submit."""
    finished(root)
    records = root / "records"
    records.mkdir()
    for number, path in enumerate(sorted(leaderboard_dir().glob("records/**/*.json"))[:4]):
        shutil.copy(path, records / f"{number}.json")


def forged_submission(root: Path, rng: random.Random, number: int) -> str:
    return str(edited_json("run/record.json", sealed)(root, rng, number))


def submitted(root: Path) -> str:
    """Submit a record: a traceback or a wait without end is wrong, a claim is a claim."""
    submit(root / "run/record.json", folder=root / "records")
    board_rows(root / "records")
    return "a row"


def poisoned(root: Path, rng: random.Random, number: int) -> str:
    """Put a hostile record, sealed or not, or a file that is none, among those of a board."""
    kind = number % 6
    target = root / f"records/{rng.choice(['x', '0', 'a b', '.partial-1', 'é'])}.json"
    if kind < 4:
        shutil.copy(root / "run/record.json", root / "records/9.json")
        note = edited_json("records/9.json", sealed if kind < 3 else None)(root, rng, number)
        if not target.exists():
            (root / "records/9.json").rename(target)
        return str(note)
    text = rng.choice(["", "[" * 10**5, "{}", "null", "[]", "\0", "{" * 99, '{"run_id": 1}'])
    target.write_text(text)
    return f"{target.name} of {text[:20]!r}"


def shown(root: Path) -> str:
    """Make the table and the page of a board."""
    board_rows(root / "records")
    page = build_page(root / "records")
    return "owned" if "<script>x" in page else "a page"


def recipes(root: Path) -> None:
    tree = get_recipe("ce", *WORDS).tree()
    (root / "mine.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)
TEXTS = (
    BOMB, "a: &a [*a]\n", "a: &a {b: *a}\n", "[" * 5000, "{a: " * 3000, "- " * 3000,
    "!!python/name:os.system x", "!!python/object/apply:os.system [true]", "a: !!binary x",
    "1: 2\n", "null", "", "[]", "\0", "é: \udcff", "extends: ../../../etc/passwd\n",
    "extends: mine.yaml\n", "extends: [mine.yaml]\n", "variants: []\n", "name: ../x\n",
    "seed: 99999999999999999999\n", "seed: 1e400\n", "seed: " + "9" * 5000, "stages: {}\n",
    "\n".join(f"k{i}: 1" for i in range(60_000)), "a: 1\na: 2\n", "? [a]\n: b\n", "<<: x\n",
    "data: 2026-01-01\n", "x: .inf\n", "---\na: 1\n---\nb: 2\n", "%YAML 9.9\n---\na: 1", "\t",
    "a: |\n" + "x" * 10**6,
)  # fmt: skip


def hostile_recipe(root: Path, rng: random.Random, number: int) -> str:
    path = root / "mine.yaml"
    if number % 3 == 0:
        text = TEXTS[number // 3 % len(TEXTS)]
        path.write_text(text, errors="surrogateescape")
        return repr(text[:40])
    if number % 3 == 1:
        return rng.choice([flip, cut])(path, rng)
    tree = yaml.safe_load(path.read_text())
    where = list(places(tree))
    at, value = where[number % len(where)], rng.choice(HOSTILE)
    branch = tree
    for key in at[:-1]:
        branch = branch[key]
    branch[at[-1]] = value if not (isinstance(value, int) and abs(value) > 2**70) else 2**70
    path.write_text(yaml.safe_dump(tree, sort_keys=False), errors="surrogatepass")
    return f"{at} = {str(value)[:30] if value != 10**400 else '10^400'!r}"


def resolve_recipe(root: Path) -> str:
    """Read a recipe as `ltbench show` does; nothing is run, and nothing is written."""
    before = sorted(root.rglob("*"))
    main(["show", f"recipe={root / 'mine.yaml'}"])
    return "resolved" if sorted(root.rglob("*")) == before else "something was written"


def words_row(root: Path) -> None:
    (root / "words.json").write_text("[]")


def hostile_words(root: Path, rng: random.Random, number: int) -> str:
    tree = get_recipe("ce", *WORDS).tree()
    where = list(places(tree))
    at, value = where[number % len(where)], rng.choice([v for v in HOSTILE if v != 10**400])
    word = f"{'.'.join(map(str, at))}={value if isinstance(value, str) else json.dumps(value)}"
    (root / "words.json").write_text(json.dumps([word.replace("\0", "")]))
    return repr(word[:80])


def resolve_words(root: Path) -> str:
    words = json.loads((root / "words.json").read_text())
    main(["show", "recipe=ce", *words])
    return "resolved"


MOVED = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: %s"


class Hostile(faults.Handler):
    """A web server that answers as none should."""

    kind = ""
    pattern = ""

    def answer(self, path: str, fault: faults.Fault) -> None:
        kind, hit = self.owner.kind, self.owner.pattern in path  # type: ignore[attr-defined]
        if not hit or not kind:
            return super().answer(path, fault)
        send = self.wfile.write
        data = (self.owner.root / path).read_bytes() if (self.owner.root / path).is_file() else b""
        if kind == "endless":
            self.send_response(200)
            self.end_headers()
            while True:
                send(b" " * 2**20)
        if kind == "endless headers":
            send(b"HTTP/1.1 200 OK\r\n")
            while True:
                send(b"X-A: b\r\n")
                time.sleep(0.01)
        if kind == "garbage":
            send(b"\0\xff" * 500)
        elif kind == "wrong length":
            send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n" + data)
        elif kind == "negative length":
            send(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + data)
        elif kind == "no length, cut":
            send(b"HTTP/1.0 200 OK\r\n\r\n" + data[: len(data) // 2])
        elif kind == "gzip":
            send(b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + data)
        elif kind == "chunks":
            send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + data)
        elif kind == "loop":
            send(
                b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /"
                + path.encode()
                + b"\r\n\r\n"
            )
        elif kind == "file":
            send(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: file:///etc/passwd\r\n\r\n")
        elif kind == "ftp":
            send(
                b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: ftp://127.0.0.1:9/x\r\n\r\n"
            )
        elif kind == "partial":
            send(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-9/10\r\n")
            send(b"Content-Length: 5\r\n\r\n12345")
        elif kind == "deep":
            text = b"[" * 10**5
            send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        self.close_connection = True
        return None


ANSWERS = (
    "endless", "endless headers", "garbage", "wrong length", "negative length", "no length, cut",
    "gzip", "chunks", "loop", "file", "ftp", "partial", "deep",
)  # fmt: skip
ASKED = ("_info.json", f"train/{MANIFEST}", "train/index.npy", f"test/{KEYS}", ".tar")


def served(root: Path) -> None:
    (root / "site").mkdir()
    data_rows.pack_both(root / "site")
    (root / "how.json").write_text('{"kind": "", "pattern": "", "fault": null}')


def hostile_answer(root: Path, rng: random.Random, number: int) -> str:
    how: dict[str, Any] = {"kind": "", "pattern": rng.choice(ASKED), "fault": None}
    kind = number % 3
    if kind == 0:
        how["kind"] = ANSWERS[number // 3 % len(ANSWERS)]
    elif kind == 1:
        status = rng.choice([201, 204, 304, 400, 401, 403, 404, 410, 416, 429, 500, 503, 999])
        options: dict[str, Any] = {
            "status": {"status": status}, "cut": {"after": rng.randrange(400)}, "swap": {},
            "no ranges": {},
        }  # fmt: skip
        name = rng.choice(list(options))
        times = rng.choice([1, 2, 10**9])
        how["fault"] = [how["pattern"], name, times, options[name]]
    else:
        part = rng.choice(
            [data_rows.tables, edited_json("*/manifest.json", data_rows.without_checksum)]
        )
        return f"served: {part(root / 'site', rng, number)}"
    (root / "how.json").write_text(json.dumps(how))
    return str(how)


def fetched(root: Path) -> list[Any]:
    """Read remote shards into a cache of their own."""
    how = json.loads((root / "how.json").read_text())
    transfer.BACKOFF, transfer.TIMEOUT = 0.01, 1.0
    os.environ.update(LTBENCH_CACHE=str(root / "cache"), NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    server = faults.Server(root / "site", handler=Hostile)
    server.kind, server.pattern = how["kind"], how["pattern"]  # type: ignore[attr-defined]
    with server:
        if how["fault"]:
            pattern, kind, times, options = how["fault"]
            server.fault(pattern.replace(".", r"\."), kind, times, **options)
        found = []
        for split in open_remote(server.url).values():
            source = ShardSource(split)
            source.verify()
            images = source.read(np.arange(len(source)))
            digest = hashlib.sha256(b"".join(image.tobytes() for image in images))
            found.append((digest.hexdigest(), source.fingerprint(source.labels)))
    return found


def on_hub(root: Path) -> None:
    published(root)
    (root / "how.json").write_text("{}")


def hub_answer(root: Path, rng: random.Random, number: int) -> str:
    how: dict[str, Any] = {}
    if number % 2:
        kind = rng.choice(["status", "cut", "reset", "corrupt"])
        how = {
            "pattern": rng.choice(["/api/", "resolve", "^/cdn/", "config.json", "safetensors"]),
            "method": rng.choice(["GET", "HEAD"]), "kind": kind,
            "times": rng.choice([1, 2, 10**6]), "after": rng.randrange(2000),
            "status": rng.choice([400, 401, 403, 404, 416, 429, 500, 502, 503]),
        }  # fmt: skip
        (root / "how.json").write_text(json.dumps(how))
        return str(how)
    return str(damaged("run/*.json", "run/*.safetensors")(root, rng, number))


def loaded_from_hub(root: Path) -> list[Any]:
    """Load a model by its address from a Hub on this machine."""
    how = json.loads((root / "how.json").read_text())
    with HubServer(tokens=USERS) as server, pytest.MonkeyPatch.context() as patch:
        point_at(server, root / "hf", patch)
        files = {p.name: p.read_bytes() for p in (root / "run").iterdir() if p.is_file()}
        revision = server.add("alice/net", files)
        if how:
            server.fault(how["method"], how["pattern"], how["kind"], how["times"],
                         after=how["after"], status=how["status"])  # fmt: skip
        method, _ = load_described(f"hf-hub:alice/net@{revision}")
        with torch.no_grad():
            return [hashlib.sha256(method.eval()(IMAGES).numpy().tobytes()).hexdigest()]


def to_kill(root: Path) -> None:
    (root / "when.txt").write_text("")
    once("finished", train)


def later(root: Path, rng: random.Random, number: int) -> str:
    (root / "when.txt").write_text(str(rng.uniform(0.05, 1.2)))
    return f"killed after {(root / 'when.txt').read_text()[:5]} s"


def killed(root: Path, work: Any) -> None:
    """Do work in a process of its own; it is killed after a while if there is one."""
    when = (root / "when.txt").read_text()
    child = os.fork()
    if not child:
        os.setsid()
        try:
            work()
        finally:
            os._exit(0)
    if when:
        threading.Event().wait(float(when))
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def train_killed(root: Path) -> list[Any]:
    killed(root, lambda: train(root / "run"))
    return resume(root)


def pack_killed(root: Path) -> list[Any]:
    when = (root / "when.txt").read_text()
    (root / "when.txt").write_text(str(float(when) / 10) if when else "")
    killed(root, lambda: data_rows.pack_both(root / "packed"))
    data_rows.pack_both(root / "packed")
    files = sorted(p for p in (root / "packed").rglob("*") if p.is_file())
    return [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def submit_killed(root: Path) -> list[Any]:
    when = (root / "when.txt").read_text()
    (root / "when.txt").write_text(str(float(when) / 4) if when else "")
    (root / "records").mkdir()
    killed(root, lambda: submit(once("finished", train), folder=root / "records"))
    if not any(p.suffix == ".json" and p.name[0] != "." for p in (root / "records").rglob("*")):
        submit(once("finished", train), folder=root / "records")
    files = sorted(p for p in (root / "records").rglob("*.json") if p.name[0] != ".")
    return [Record.load(path).run_id for path in files]


STATE = "state.json"
ROWS = [
    Row("checkpoint tensors: flips, cuts", 120, halved, of_newest("*.safetensors"), resume,
        seconds=60),
    Row("checkpoint state.json: flips, cuts", 150, halved, of_newest(STATE), resume, seconds=60),
    Row("checkpoint state.json edited", 80, halved, hand_edited_state, resume, seconds=60),
    Row("checkpoints missing, swapped, foreign, pipes", 20, halved, misplaced_checkpoints, resume,
        seconds=60),
    Row("finished runs: record.json flips, cuts", 120, finished, damaged("run/record.json"), record,
        sample=2),
    Row("finished runs: the same command again", 60, finished,
        damaged("run/record.json", "run/recipe.json", "run/model.safetensors", "run/model.json"),
        resume, seconds=60),
    Row("recipe.json of a run edited", 40, finished, edited_json("run/recipe.json"), resume,
        seconds=60),
    Row("model.json: flips, cuts", 120, finished, damaged("run/model.json"), model),
    Row("model.json edited", 80, finished, edited_json("run/model.json", _unsealed), answers),
    Row("model.safetensors: flips, cuts", 120, finished, damaged("run/model.safetensors"), model),
    Row("published config.json: flips, cuts", 80, published, damaged("run/config.json"), answers),
    Row("published config.json edited", 120, published, edited_json("run/config.json"), answers),
    Row("published config.json edited, ltbench eval", 30, published, edited_json("run/config.json"),
        evaluate, seconds=60),
    Row("forged records submitted", 120, board, forged_submission, submitted, seconds=60),
    Row("poisoned records on a board", 40, board, poisoned, shown, seconds=60),
    Row("recipe YAML: hostile texts, flips, values", 240, recipes, hostile_recipe, resolve_recipe,
        sample=4),
    Row("words of the command line", 200, words_row, hostile_words, resolve_words, sample=4),
    Row("HTTP: hostile answers and shards", 120, served, hostile_answer, fetched, seconds=45,
        sample=1),
    Row("Hub: hostile answers and files", 60, on_hub, hub_answer, loaded_from_hub, seconds=45),
    Row("training killed", 8, to_kill, later, train_killed, seconds=120),
    Row("packing killed", 12, to_kill, later, pack_killed, seconds=60),
    Row("submit killed", 6, to_kill, later, submit_killed, seconds=60),
]  # fmt: skip
