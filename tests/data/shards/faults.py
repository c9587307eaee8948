"""Break shards, transfers and processes on purpose, and count what is noticed.

Every fault is tried on a small packed data set of its own: what is read afterwards must be the
bytes that were packed, or an error of one line. "right" counts the faults that did no harm or were
repaired; "silent" counts wrong data without an error, "other" tracebacks and hangs: both must be 0.

Usage:
  python tests/data/shards/faults.py          # short
  python tests/data/shards/faults.py --full   # 200 of each damage to the shards, 40 killed packers
"""

from __future__ import annotations

import argparse
import http.server
import io
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ltbench.data.decode import decode_pil, decode_pixels
from ltbench.data.images import ImageSplit
from ltbench.data.loader import batches
from ltbench.data.shards import reader
from ltbench.data.shards.format import INDEX, MANIFEST
from ltbench.data.shards.pack import PartToPack, pack
from ltbench.data.shards.reader import ShardSource
from ltbench.data.shards.remote import open_remote
from ltbench.data.shards.stream import stream_batches
from ltbench.errors import UserError
from ltbench.remote import http as transfer
from ltbench.seeding import keyed_bits

IMAGES, SHARD_BYTES, DEADLINE = 24, 24 * 1024, 120
SPLITS = ("train", "test")


@dataclass
class Fault:
    """What a server does to requests whose path matches."""

    pattern: str
    kind: str  # "status", "cut", "stall", "trickle", "swap", "no ranges"
    times: int
    after: int = 0  # bytes that are sent as they should be
    status: int = 500
    seconds: float = 0.0


@dataclass
class Server:
    """A folder on a web server of this machine, with faults on demand.

    Args:
        root: folder.
        login: ``user:password`` that is asked for.
    """

    root: Path
    login: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    handler: type[Handler] | None = None

    def __enter__(self) -> Server:
        kind = type("Bound", (self.handler or Handler,), {"owner": self})
        self.lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self, pattern: str, kind: str, times: int = 10**9, **options: Any) -> None:
        """Break the next requests whose path matches."""
        self.faults.append(Fault(pattern, kind, times, **options))

    def asked(self, pattern: str) -> int:
        """Return how many requests matched."""
        return sum(bool(re.search(pattern, entry["path"])) for entry in self.log)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request of a ``Server``."""

    owner: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Send a file, or what a fault makes of it."""
        owner, headers = self.owner, {k.title(): v for k, v in self.headers.items()}
        with owner.lock:
            owner.log.append({"path": self.path, "method": self.command, **headers})
            fault = next(
                (f for f in owner.faults if f.times > 0 and re.search(f.pattern, self.path)), None
            )
            if fault is not None:
                fault.times -= 1
        fault = fault or Fault("", "", 0)
        if owner.login and headers.get("Authorization") != f"Basic {owner.login}":
            return self.send_error(401)
        if fault.kind == "status":
            return self.send_error(fault.status)
        try:
            self.answer(self.path.partition("?")[0].strip("/"), fault)
        except OSError:
            self.close_connection = True  # the other side has had enough
        return None

    do_HEAD = do_GET

    def answer(self, path: str, fault: Fault) -> None:
        """Send a file below the root."""
        file = self.owner.root / path
        if not file.is_file():
            return self.send_error(404)
        data = bytearray(file.read_bytes())
        if fault.kind == "swap":
            data[len(data) // 2] ^= 1
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(asked[1]) if asked and fault.kind != "no ranges" else 0
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        body = bytes(data[first:])
        if fault.kind == "stall":
            time.sleep(fault.seconds)
        if fault.kind == "trickle":
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(fault.seconds)
        if fault.kind == "cut":
            self.wfile.write(body[: fault.after])
            self.wfile.flush()
            return self.connection.shutdown(socket.SHUT_RDWR)
        self.wfile.write(body)
        return None


def picture(i: int, side: int = 20) -> Image.Image:
    """Return a noisy image."""
    pixels = keyed_bits(i, np.arange(side * side * 3)).reshape(side, side, 3)
    return Image.fromarray((pixels >> np.uint64(58)).astype(np.uint8) + np.uint8(4 * i))


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def content(i: int) -> bytes:
    """Return the file of image ``i``."""
    return encoded(picture(i))


def make(root: Path, file: Callable[[int], bytes] = content) -> Path:
    """Pack the data set and return its root."""
    labels = np.arange(IMAGES) % 3
    paths = [f"c{i % 3}/{i}.jpg" for i in range(IMAGES)]
    for split in SPLITS:
        part = PartToPack("list", split, file, paths, labels, ("a", "b", "c"))
        pack(part, root / split, shard_bytes=SHARD_BYTES, workers=1)
    return root


def split_of(source: ShardSource, decode: str = "fast", kind: type[ImageSplit] = ImageSplit) -> Any:
    """Return the images of a source."""
    options: dict[str, Any] = {"augment": "inat", "image_size": 8, "decode": decode}
    return kind(source, source.labels, **options)


def read_all(source: ShardSource) -> bool:
    """Return whether every image can be read and is what was packed; an error goes on."""
    right, errors = True, []
    for i in range(len(source)):
        try:
            (data,) = source.read(np.array([i]))
        except UserError as error:
            errors.append(error)
            continue
        right = right and data.tobytes() == content(i) and source.labels[i] == i % 3
    if right and errors:
        raise errors[0]
    return right


def stream_all(source: ShardSource) -> bool:
    """Return whether a stream gives every image once, with the pixels of random access."""
    split, seen, right = split_of(source), [], True
    clean = split_of(ShardSource(CLEAN))
    for step, (batch,) in enumerate(stream_batches(split, 8, seed=0, epoch=0, key=3)):
        positions = np.arange(8 * step, 8 * step + len(batch.index))
        views = clean.load(batch.index.numpy(), key=3, positions=positions)
        (wanted,) = clean.finish(views, key=3, positions=positions)
        right = right and bool((batch.views[0] == wanted).all())
        right = right and batch.labels.tolist() == (batch.index % 3).tolist()
        seen += batch.index.tolist()
    return right and sorted(seen) == list(range(IMAGES))


CLEAN = Path()  # the train split as it was packed


@contextmanager
def deadline(seconds: int = DEADLINE) -> Iterator[None]:
    """Raise where something hangs."""

    def over(*_: object) -> None:
        raise TimeoutError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(action: Callable[[], bool]) -> str:
    """Return ``"right"``, ``"silent"``, ``"caught"`` or ``"other"``."""
    try:
        with deadline(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "right" if action() else "silent"
    except UserError as error:
        return "caught" if "\n" not in str(error) else "other"
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return "other"


def damaged(data: bytes, kind: str, number: int) -> bytes:
    """Return a file with one damage, the same for the same number."""
    at = int(keyed_bits(7, np.array([number]))[0] % np.uint64(len(data)))
    if kind == "bit flip":
        return data[:at] + bytes([data[at] ^ (1 << number % 8)]) + data[at + 1 :]
    if kind == "truncation":
        # Half of them at the border of a tar block, where many readers see nothing.
        return data[: at // 512 * 512 if number % 2 else at]
    return data[: at // 4096 * 4096] + bytes(4096) + data[at // 4096 * 4096 + 4096 :]


def shard_damage(root: Path, count: int) -> dict[str, Counter[str]]:
    """Damage shards and the index; read by random access and as a stream."""
    table: dict[str, Counter[str]] = {}
    folder = root / "train"
    shards = [folder / shard.name for shard in ShardSource(folder).manifest.shards]
    for kind in ("bit flip", "truncation", "zeroed page"):
        for file, way, test in (
            (None, "read", read_all),
            (None, "stream", stream_all),
            (folder / INDEX, "index", read_all),
        ):
            tally = table.setdefault(f"{way}: {kind}", Counter())
            for number in range(count):
                victim = file or shards[number % len(shards)]
                good = victim.read_bytes()
                victim.write_bytes(damaged(good, kind, number)[: max(len(good), 4096)])
                tally[outcome(lambda test=test: test(ShardSource(folder)))] += 1
                victim.write_bytes(good)
    return table


def fetched(url: str) -> bool:
    """Return whether a remote split reads right from an empty cache."""
    images = ShardSource(open_remote(url)["train"]).read(np.arange(IMAGES))
    return [image.tobytes() for image in images] == [content(i) for i in range(IMAGES)]


def transfers(root: Path, scratch: Path) -> dict[str, Counter[str]]:
    """Break downloads; every case has a cache of its own."""
    table: dict[str, Counter[str]] = {}
    transfer.BACKOFF, transfer.TIMEOUT = 0.01, 0.5

    def case(name: str, action: Callable[[Server], bool]) -> None:
        os.environ["LTBENCH_CACHE"] = str(scratch / name.replace(" ", "-").replace(":", ""))
        with Server(root) as server:
            table[f"http: {name}"] = Counter([outcome(lambda: action(server))])

    def faulty(pattern: str, kind: str, **options: Any) -> Callable[[Server], bool]:
        def action(server: Server) -> bool:
            server.fault(pattern, kind, **options)
            return fetched(server.url)

        return action

    shard = r"train-00001\.tar$"
    case("one body cut", faulty(shard, "cut", times=1, after=5000))
    case("every body cut", faulty(shard, "cut", after=100))
    case("manifest cut", faulty(MANIFEST, "cut", after=100))
    case("404 for a shard", faulty(shard, "status", status=404))
    case("403 for all", faulty("", "status", status=403))
    case("500 once", faulty(shard, "status", times=1))
    case("500 always", faulty("", "status"))
    case("server stalls once", faulty(shard, "stall", times=1, seconds=1.5))
    case("server stalls always", faulty(shard, "stall", seconds=1.5))
    case("server trickles", faulty(shard, "trickle", seconds=0.02))
    case("damaged on the way once", faulty(shard, "swap", times=1))
    case("shard swapped under its name", faulty(shard, "swap"))
    case("missing index", faulty(INDEX, "status", status=404))
    case("missing manifest", faulty("json", "status", status=404))
    case("no such server", lambda server: fetched("http://127.0.0.1:9/data"))
    case("two processes race", _race)
    case("poisoned cache, same size", lambda server: _poisoned(server, cut=False))
    case("poisoned cache, truncated", lambda server: _poisoned(server, cut=True))
    case("disk full", _disk_full)
    case("offline, all cached", _offline)
    return table


def _race_one(url: str, go: Any, results: Any) -> None:
    go.wait()
    results.put(outcome(lambda: fetched(url)))


def _race(server: Server) -> bool:
    server.fault(r"\.tar$", "stall", seconds=0.1)
    context = multiprocessing.get_context("fork")
    go, results = context.Event(), context.Queue()
    two = [context.Process(target=_race_one, args=(server.url, go, results)) for _ in range(2)]
    for process in two:
        process.start()
    go.set()
    found = [results.get(timeout=60) for _ in two]
    for process in two:
        process.join(10)
    shards = len(ShardSource(server.root / "train").manifest.shards)
    return found == ["right", "right"] and server.asked(r"train-\d+\.tar$") == shards


def _poisoned(server: Server, cut: bool) -> bool:
    split = open_remote(server.url)["train"]
    path = split.shard(1)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 2000] = bytes(2000)
    path.write_bytes(data[:-600] if cut else data)
    return fetched(server.url) and server.asked(r"train-00001\.tar$") == 2


def _disk_full(server: Server) -> bool:
    split = open_remote(server.url)["train"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        return read_all(ShardSource(split))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        left = [path.name for path in split.folder.iterdir() if path.suffix in (".part", ".tar")]
        if left:
            raise RuntimeError(f"left behind: {left}")


def _offline(server: Server) -> bool:
    ok = fetched(server.url)
    server.fault("", "status", status=503)
    before = server.asked(r"\.tar$")
    return ok and fetched(server.url) and server.asked(r"\.tar$") == before


def odd_images(scratch: Path) -> dict[str, Counter[str]]:
    """Pack one odd file among good ones and load it with both decoders."""
    good = encoded(picture(1, 64))
    odd = {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "text": b"this is not an image, whatever its name says\n" * 9,
        "without end marker": good[:-2],
        "PNG named jpg": encoded(picture(1, 64), "PNG"),
        "CMYK": encoded(picture(1, 64).convert("CMYK")),
        "grey": encoded(picture(1, 64).convert("L")),
    }
    table = {}
    for name, data in odd.items():
        tally = table[f"image: {name}"] = Counter[str]()
        for decode in ("fast", "pil"):
            root = scratch / f"odd-{name}-{decode}".replace(" ", "-")
            tally[outcome(lambda d=data, r=root, k=decode: _load_odd(r, d, k))] += 1
    return table


def _load_odd(root: Path, data: bytes, decode: str) -> bool:
    make(root, lambda i: data if i == 5 else content(i))
    split = split_of(ShardSource(root / "train"), decode)
    list(batches(split, np.arange(IMAGES), 8, key=1))
    (raw,) = split.source.read(np.array([5]))
    same = np.asarray(decode_pil(raw, "odd"))
    return raw.tobytes() == data and bool((decode_pixels(raw, "odd").numpy() == same).all())


class Deadly(ImageSplit):
    """Kills the process that loads it."""

    def load(self, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        """Kill this process."""
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def killed_workers(root: Path) -> dict[str, Counter[str]]:
    """Kill loader processes."""
    deadly = split_of(ShardSource(root / "train"), kind=Deadly)
    order = np.arange(IMAGES)
    return {
        "killed worker": Counter(
            outcome(action)
            for action in (
                lambda: bool(list(batches(deadly, order, 8, key=1, workers=2))),
                lambda: bool(list(stream_batches(deadly, 8, seed=0, epoch=0, key=1, workers=2))),
            )
        )
    }


def killed_packers(scratch: Path, count: int) -> dict[str, Counter[str]]:
    """Kill packers at random moments; what they left must be right, and a rerun must finish it."""
    number = 600
    part = PartToPack(
        "toy", "train", lambda i: content(i % IMAGES), [f"{i}.jpg" for i in range(number)],
        np.arange(number) % 3, ["a", "b", "c"],
    )  # fmt: skip
    packed = partial(pack, part, shard_bytes=SHARD_BYTES, workers=1)
    packed(scratch / "undisturbed" / "train")
    began = time.monotonic()
    packed(scratch / "again" / "train")
    usual = time.monotonic() - began
    whole = _files(scratch / "undisturbed" / "train")
    tally, out = Counter[str](), scratch / "killed" / "train"
    moments = (keyed_bits(7, np.arange(10 * count)) % np.uint64(1000)).astype(float) / 1000
    for moment in moments.tolist():
        packer = multiprocessing.get_context("fork").Process(target=packed, args=(out,))
        packer.start()
        packer.join(0.02 + usual * moment)
        packer.kill()
        packer.join()
        left = _files(out)
        if packer.exitcode != -signal.SIGKILL or MANIFEST in left:  # too late
            tally["silent"] += left != whole
            shutil.rmtree(out, ignore_errors=True)
            continue
        committed = [name.removesuffix(".json") for name in left if name.endswith(".tar.json")]
        tally["right" if all(left[n] == whole[n] for n in committed) else "silent"] += 1
        if sum(tally.values()) >= count:
            break
    packed(out)
    tally["silent"] += _files(out) != whole
    return {"killed packer": tally}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def run(scratch: Path, count: int) -> dict[str, Counter[str]]:
    """Try all faults.

    Args:
        scratch: an empty folder.
        count: of each damage to the shards.

    Returns:
        Outcomes by fault.
    """
    global CLEAN
    reader.PAUSE = 0.0
    CLEAN = make(scratch / "clean") / "train"
    root = make(scratch / "data")
    return {
        **shard_damage(root, count),
        **transfers(root, scratch / "caches"),
        **odd_images(scratch),
        **killed_workers(root),
        **killed_packers(scratch / "packers", max(4, count // 5)),
    }


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="200 of each damage instead of 20")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        table = run(Path(scratch), 200 if args.full else 20)
    columns = ("caught", "right", "silent", "other")
    print(f"{'fault':36}{'tried':>8}" + "".join(f"{name:>8}" for name in columns))
    for name, tally in table.items():
        numbers = "".join(f"{tally[column]:8}" for column in columns)
        print(f"{name:36}{sum(tally.values()):8}{numbers}")
    total = sum(table.values(), Counter[str]())
    print(f"{'all':36}{sum(total.values()):8}" + "".join(f"{total[c]:8}" for c in columns))
    if total["silent"] or total["other"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
