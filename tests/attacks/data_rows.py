"""Attacks on shards, their tables, foreign tars, image files and lists."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ltbench.data.decode import decode_pil, decode_pixels
from ltbench.data.folder import Folder
from ltbench.data.images import ImageSplit
from ltbench.data.listing import check_parts, read_list
from ltbench.data.lists import ImageList
from ltbench.data.shards import reader
from ltbench.data.shards.check import check
from ltbench.data.shards.dataset import Shards
from ltbench.data.shards.foreign import index_tars
from ltbench.data.shards.format import INDEX, KEYS, MANIFEST
from ltbench.data.shards.pack import PartToPack, pack
from ltbench.data.shards.reader import ShardSource
from ltbench.errors import UserError
from ltbench.seeding import keyed_bits
from tests.attacks.damage import HOSTILE, cut, damaged, edited_json
from tests.attacks.engine import Row
from tests.data.shards.test_hostile import JSONS, TARS, member, patched, special

N = 12


def picture(i: int) -> Image.Image:
    return Image.fromarray(
        keyed_bits(i, np.arange(16 * 16 * 3)).astype(np.uint8).reshape(16, 16, 3)
    )


def encoded(i: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    picture(i).save(buffer, kind)
    return buffer.getvalue()


def pack_both(root: Path) -> None:
    """Pack two splits of a few images in some shards."""
    for number, split in enumerate(("train", "test")):
        paths = [f"{split}{i % 3}/{i}.jpg" for i in range(N)]
        part = PartToPack(
            "toy", split, _Images(100 * number), paths, np.arange(N) % 3, ("a", "b", "c")
        )
        pack(part, root / split, shard_bytes=8 * 1024, workers=1)


class _Images:
    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, i: int) -> bytes:
        return encoded(self.first + i)


def read_split(split: Any) -> list[str]:
    assert isinstance(split, ImageSplit)
    images = split.source.read(np.arange(len(split)))
    digest = hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()
    return [digest[:16], str(split.labels.tolist()), split.fingerprint()]


def read_shards(root: Path) -> list[Any]:
    """Load shards as a run does, read and decode every image."""
    reader.PAUSE = 0.0
    data = Shards(root=str(root), image_size=8).load()
    assert isinstance(data.train, ImageSplit)
    data.train.load(np.arange(len(data.train)), key=1, positions=np.arange(len(data.train)))
    return [read_split(data.train), read_split(data.test), data.info.class_counts]


def checked(root: Path) -> list[Any]:
    """Check shards, then read them: an error of either is one of a user."""
    report = check(root, "decode", workers=1)
    if report.problems:
        raise UserError("\n".join(report.problems))
    return read_shards(root)


def misplaced(root: Path, rng: random.Random, number: int) -> str:
    """Swap, remove or replace whole files."""
    shards = sorted(root.glob("train/*.tar"))
    one, two = rng.sample(shards, 2)
    kind = ("swapped", "missing", "other", "splits", "pipe", "socket", "folder", "device", "loop")[
        number % 9
    ]
    if kind == "swapped":
        one.rename(root / "x")
        two.rename(one)
        (root / "x").rename(two)
    elif kind == "missing":
        rng.choice([one, root / "train" / INDEX, root / "test" / KEYS]).unlink()
    elif kind == "other":
        name = rng.choice([INDEX, KEYS, MANIFEST, "train-00000.tar"])
        shutil.copy(root / "test" / name.replace("train", "test"), root / "train" / name)
    elif kind == "splits":
        (root / "train").rename(root / "x")
        (root / "test").rename(root / "train")
        (root / "x").rename(root / "test")
    else:
        name = rng.choice([one.name, INDEX, KEYS, MANIFEST])
        special(root / "train" / name, kind)
        return f"{kind}: {name}"
    return kind


def forged(folder: Path, **fields: Any) -> None:
    """Edit a manifest as somebody who knows that its checksum may be left out."""
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    path.write_text(json.dumps({**content, **fields}))


NUMBERS = (0, 1, 2, 3, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1, 4_000_000_000, 511)


def tables(root: Path, rng: random.Random, number: int) -> str:
    """Write another index or other keys, with the hash that the manifest names."""
    folder = root / rng.choice(["train", "test"])
    if number % 3 == 2:
        lines = zlib.decompress((folder / KEYS).read_bytes())
        packed = zlib.compress
        data = rng.choice(
            [
                b"", b"hello", lines, packed(lines)[:-4], packed(lines) + b"x", packed(lines[:-1]),
                packed(lines + b"more\n"), packed(b"\n" * N), packed(bytes(2**24)),
                packed(b"\n" * 2**24), packed(b"\xff" * 99), gzip.compress(lines),
                packed(b"a" * 2**22 + b"\n" * N), rng.randbytes(99),
            ]
        )  # fmt: skip
        (folder / KEYS).write_bytes(data)
        forged(folder, keys_sha256=hashlib.sha256(data).hexdigest())
        return f"keys of {len(data)} bytes"
    rows = np.array(np.load(folder / INDEX))
    name = rng.choice(rows.dtype.names)
    value, at = rng.choice(NUMBERS), rng.choice([0, N - 1, slice(None)])
    rows[name][at] = np.array([value % 2**64], dtype=np.uint64).astype(rows.dtype[name])[0]
    kind = rng.random()
    if kind < 0.1:
        rows = rows[: rng.randrange(N)]
    elif kind < 0.15:
        rows = rows.astype([(n, ">u8") for n in rows.dtype.names])
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, rows, version=(1, 0))
    data = buffer.getvalue()
    if kind > 0.92:
        data = rng.choice([b"", data[:60], b"\x93NUMPY" + data[6:40] + b"(" * 9000, data + data])
    (folder / INDEX).write_bytes(data)
    forged(folder, index_sha256=hashlib.sha256(data).hexdigest())
    return f"{name}[{at}] = {value}"


def without_checksum(content: dict[str, Any]) -> dict[str, Any]:
    content.pop("checksum", None)
    return content


def foreign(root: Path) -> None:
    """Write a tar of samples, and index it."""
    samples = b"".join(
        member(f"d/s{i}.jpg", encoded(i)) + member(f"d/s{i}.cls", b"%d" % (i % 3)) for i in range(N)
    )
    (root / "tars").mkdir()
    (root / "tars/set.tar").write_bytes(samples + bytes(1024))
    index_foreign(root)  # whose link to the tar is relative, so that copies have their own


def index_foreign(root: Path) -> list[Any]:
    shutil.rmtree(root / "train", ignore_errors=True)
    index_tars([root / "tars/set.tar"], root, workers=1)
    return read_foreign(root)


def read_foreign(root: Path) -> list[Any]:
    reader.PAUSE = 0.0
    source = ShardSource(root / "train")
    source.verify()
    images = source.read(np.arange(len(source)))
    return [
        source.keys(), source.labels.tolist(), source.fingerprint(source.labels),
        hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest(),
    ]  # fmt: skip


HOSTILE_TARS = sorted(set(TARS) - {"label is an id"})


def hostile_member(root: Path, rng: random.Random, number: int) -> str:
    """Put a member that does harm among the samples, or change a header and its checksum."""
    tar = root / "tars/set.tar"
    data = tar.read_bytes()
    starts = _headers(data)
    at = rng.choice(starts)
    if number % 2:
        name = HOSTILE_TARS[number // 2 % len(HOSTILE_TARS)]
        more = TARS[name].replace(b"a.jpg", b"x.jpg").replace(b"a.cls", b"x.cls")
        tar.write_bytes(data[:at] + more)
        return name
    field, width = rng.choice([(124, 12), (156, 1), (257, 8), (100, 8), (345, 155), (329, 8)])
    values = [b"\xff" * width, b"\x80" + b"\xff" * (width - 1), b"\0" * width, b"9" * width]
    values += [rng.randbytes(width), b"7" * width]
    if width == 1:
        values = [bytes([c]) for c in b"1234567gxLKSDMNV\0\xff"]
    value = rng.choice(values)
    head = patched(data[at : at + 512], field, value)
    tar.write_bytes(data[:at] + head + data[at + 512 :])
    return f"header at {at}: byte {field} = {value[:12]!r}"


def _headers(data: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [one.offset for one in archive]


def harmless(root: Path) -> list[Any]:
    """Index a tar whose headers its author chose: what can be read has the bytes of the tar."""
    found = index_foreign(root)
    return ["consistent", len(found[0]) == len(found[1])]


def json_labels(root: Path) -> None:
    (root / "set.tar").write_bytes(
        member("a.jpg", encoded(1)) + member("a.json", b'{"y": 1}') + bytes(1024)
    )


def hostile_json(root: Path, rng: random.Random, number: int) -> str:
    text = JSONS[number % len(JSONS)]
    if number >= len(JSONS):
        value = rng.choice(HOSTILE)
        value = str(value) if isinstance(value, int) and abs(value) > 2**70 else value
        text = json.dumps({rng.choice(["y", "z"]): value}).encode("utf-8", "surrogatepass")
    (root / "set.tar").write_bytes(
        member("a.jpg", encoded(1)) + member("a.json", text) + bytes(1024)
    )
    return repr(text[:40])


def index_json(root: Path) -> str:
    """Index: a valid label (0 or 1 here) is right, everything else has to be refused."""
    shutil.rmtree(root / "out", ignore_errors=True)
    manifest = index_tars([root / "set.tar"], root / "out", label="json:y", workers=1)
    return "a label" if manifest.num_classes <= 2 else f"{manifest.num_classes} classes"


def half_packed(root: Path) -> None:
    pack_both(root)
    for split in ("train", "test"):
        (root / split / MANIFEST).unlink()


def pack_again(root: Path) -> list[Any]:
    pack_both(root)
    files = sorted(p for p in root.rglob("*.tar") if p.is_file())
    return [hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest(), read_shards(root)]


KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")


def image_files(root: Path) -> None:
    for number, kind in enumerate(KINDS):
        picture(number).resize((24, 20)).save(root / f"{number}.{kind.lower()}", kind)


def decoded(root: Path) -> list[Any]:
    """Decode images both ways; both read the same pixels or refuse."""
    for path in sorted(root.iterdir()):
        data = np.frombuffer(bytearray(path.read_bytes()), dtype=np.uint8)
        try:
            fast = np.asarray(decode_pixels(data, path.name))
        except UserError as refusal:
            with contextlib.suppress(UserError):
                decode_pil(data, path.name)
                return ["Pillow reads it"]
            raise refusal
        if not np.array_equal(fast, np.asarray(decode_pil(data, path.name))):
            return ["the two decoders differ"]
    return ["the same"]


def image_folder(root: Path) -> None:
    for part in ("train", "test"):
        for label in range(3):
            (root / part / f"c{label}").mkdir(parents=True)
            for i in range(3):
                (root / part / f"c{label}/{i}.png").write_bytes(encoded(10 * label + i, "PNG"))


def odd_folder(root: Path, rng: random.Random, number: int) -> str:
    """Put something into class folders that does no harm or cannot be an image."""
    folder = root / rng.choice(["train", "test"]) / f"c{rng.randrange(3)}"
    kind = ("loop", "up", "pipe", "dangling", "hidden", "text", "empty", "folder", "bomb", "eps")[
        number % 10
    ]
    if kind == "loop":
        (folder / "again").symlink_to(folder)
    elif kind == "up":
        (folder / "again").symlink_to(folder.parent)
    elif kind == "pipe":
        os.mkfifo(folder / "p.png")
    elif kind == "dangling":
        (folder / "d.png").symlink_to(folder / "nothing.png")
    elif kind == "hidden":
        (folder / "._0.png").write_bytes(b"mac")
    elif kind == "text":
        (folder / "readme.txt").write_text("hello")
    elif kind == "empty":
        (folder / "e.png").write_bytes(b"")
    elif kind == "folder":
        (folder / "f.png").mkdir()
    elif kind == "bomb":
        (folder / "b.png").write_bytes(_bomb())
    else:
        (folder / "0.png").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
        )
    return kind


def _bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def read_folder(root: Path) -> list[Any]:
    data = Folder(root=str(root), image_size=8).load()
    found = []
    for split in (data.train, data.test):
        assert isinstance(split, ImageSplit)
        split.load(np.arange(len(split)), key=None, positions=np.arange(len(split)))
        found.append(read_split(split))
    return found


def lists(root: Path) -> None:
    (root / "im").mkdir()
    for i in range(N):
        (root / f"im/{i}.png").write_bytes(encoded(i, "PNG"))
    lines = [f"im/{i}.png {i % 3}\n" for i in range(N)]
    (root / "train.txt").write_text("".join(lines[:6]))
    (root / "test.txt").write_text("".join(lines[6:]))


LINES = (
    b"im/0.png 99999999999999999999", b"im/0.png " + b"9" * 5000, b"im/0.png -1", b"im/0.png 1.0",
    b"im/\0.png 1", b"a" * 10**6 + b" 1", b"a/" * 10**5 + b"x.png 1", b"im/0.png", b" 1",
    b"\xff\xfe", b"im/0.png \xd9\xa3", b"im/0.png 0x1", b"im/0.png 1e3", b"im/0.png 999999",
    b"im/0.png 3",
    b"../../../etc/passwd 1", b"/etc/passwd 1", b"/dev/zero 1", b"/dev/stdin 1", b"im 1", b". 1",
    b"im/0.png 1\r", b"im/0.png\t1", b"im/\x1b[31m.png 1", b"im/0.png 2147483648", b"im/0.png +1",
    b"im/0.png 1 1", b"\xef\xbb\xbfim/0.png 1", b"im/none.png 1", b"\x1f\x8b\x08\0", b"\0" * 99,
)  # fmt: skip


def hostile_line(root: Path, rng: random.Random, number: int) -> str:
    file = root / rng.choice(["train.txt", "test.txt"])
    line = LINES[number % len(LINES)]
    lines = file.read_bytes().splitlines(keepends=True)
    kind = number // len(LINES) % 3
    if kind == 0:
        file.write_bytes(b"".join([*lines, line + b"\n"]))
    elif kind == 1:
        file.write_bytes(line + b"\n" + b"".join(lines))
    else:
        file.write_bytes(
            gzip.compress(line + b"\n" + b"".join(lines))[: rng.choice([None, -5, 30])]
        )
    return f"{line[:40]!r} in {file.name}"


def read_lists(root: Path) -> str:
    """Load lists; what is accepted lies below the root and has labels of the training list."""
    check_parts({part: read_list(root / f"{part}.txt") for part in ("train", "test")})
    data = ImageList(root=str(root), image_size=8).load()
    for split in (data.train, data.test):
        assert isinstance(split, ImageSplit)
        split.load(np.arange(len(split)), key=None, positions=np.arange(len(split)))
        for i in range(len(split)):
            name = Path(split.source.name(i)).resolve()
            if root.resolve() not in name.parents:
                return f"read {name}"
    return "below the root"


SHARDS = ("*/*.tar",)
TABLES = ("*/index.npy", "*/keys.zlib", "*/manifest.json")
ROWS = [
    Row("shards: flips, cuts, zeroed pages", 300, pack_both, damaged(*SHARDS), checked, sample=6),
    Row("shards: the same, read without a check", 150, pack_both, damaged(*SHARDS), read_shards),
    Row("shards swapped, missing, special files", 36, pack_both, misplaced, read_shards, sample=4),
    Row("index, keys, manifest: flips, cuts", 150, pack_both, damaged(*TABLES), read_shards,
        sample=4),
    Row("index and keys edited (hash fixed)", 150, pack_both, tables, read_shards, sample=6),
    Row("the same, data check", 60, pack_both, tables, checked),
    Row("manifest edited (checksum left out)", 150, pack_both,
        edited_json("*/manifest.json", without_checksum), read_shards, sample=6),
    Row("packing: plan and sidecars damaged, packed again", 60, half_packed,
        damaged("*/plan.json", "*/*.tar.json", "*/*.tar"), pack_again, sample=1),
    Row("foreign tars: hostile members and headers", 150, foreign, hostile_member, harmless,
        sample=6),
    Row("foreign tars: labels in JSON", 60, json_labels, hostile_json, index_json, sample=3),
    Row("foreign tars: flips and cuts after indexing", 150, foreign, damaged("tars/*.tar"),
        read_foreign, sample=3),
    Row("foreign tars: cuts and zeros before", 60, foreign,
        damaged("tars/*.tar", ways=(cut,)), index_foreign, sample=1),
    Row("images: flips and cuts", 200, image_files, damaged("*"), decoded, sample=4),
    Row("folders: links, pipes, bombs, wrong formats", 20, image_folder, odd_folder, read_folder,
        seconds=30),
    Row("list files: hostile lines", len(LINES) * 3, lists, hostile_line, read_lists, sample=3),
]  # fmt: skip
