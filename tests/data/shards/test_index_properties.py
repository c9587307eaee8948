"""Manifests, indexes and keys of shards, changed in any way: read, or refused."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zlib

import numpy as np
import pytest
from hypothesis import strategies as st
from strategies import changed, damaged, json_values, property_of, takes_or_refuses

from ltbench.data.shards import reader
from ltbench.data.shards.format import INDEX, KEYS, MANIFEST, parse_manifest
from ltbench.data.shards.pack import PartToPack, pack
from ltbench.data.shards.reader import ShardSource

COUNT = 5


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(reader, "PAUSE", 0.0)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "train"
    labels = np.arange(COUNT) % 2
    paths = [f"c/{i}.png" for i in range(COUNT)]
    part = PartToPack("toy", "train", lambda i: bytes([i] * (20 + i)), paths, labels, ["a", "b"])
    pack(part, folder, workers=1)
    return folder


def read(folder):
    source = ShardSource(folder)
    labels = np.asarray(source.index["label"])
    source.verify()
    source.fingerprint(labels)
    images = source.read(np.arange(len(source)))
    return labels.tolist(), source.keys(), [bytes(image) for image in images]


def edited(packed, folder, name, content):
    """Copy the shards with one file replaced and its hash in the manifest put right."""
    copy = folder / "train"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(packed, copy)
    (copy / name).write_bytes(content)
    if name != MANIFEST:
        manifest = json.loads((packed / MANIFEST).read_text())
        manifest.pop("checksum", None)
        key = "index_sha256" if name == INDEX else "keys_sha256"
        manifest[key] = hashlib.sha256(content).hexdigest()
        (copy / MANIFEST).write_text(json.dumps(manifest))
    return copy


def test_what_was_packed_is_read(packed):
    labels, keys, images = read(packed)
    assert labels == [i % 2 for i in range(COUNT)]
    assert keys == [f"c/{i}.png" for i in range(COUNT)]
    assert images == [bytes([i] * (20 + i)) for i in range(COUNT)]


@property_of(st.data())
def test_any_manifest_is_read_or_refused(data, packed, tmp_path):
    sound = (packed / MANIFEST).read_bytes()
    tree = {k: v for k, v in json.loads(sound).items() if k != "checksum"}
    trees = st.one_of(changed(tree), json_values).map(lambda tree: json.dumps(tree).encode())
    content = data.draw(st.one_of(damaged(sound), trees, st.binary(max_size=50)))
    takes_or_refuses(lambda: parse_manifest(content, "x"))
    takes_or_refuses(lambda: read(edited(packed, tmp_path, MANIFEST, content)))


@property_of(st.data())
def test_any_index_is_read_or_refused(data, packed, tmp_path):
    content = data.draw(damaged((packed / INDEX).read_bytes()))
    takes_or_refuses(lambda: read(edited(packed, tmp_path, INDEX, content)))


numbers = st.sampled_from([0, 1, -1, 19, 2**31 - 1, 2**32 - 1, 2**63 - 1, -(2**31), -(2**63)])


@property_of(st.data())
def test_any_numbers_in_an_index_are_read_or_refused(data, packed, tmp_path):
    rows = np.load(packed / INDEX).copy()
    name = data.draw(st.sampled_from(rows.dtype.names))
    number = data.draw(st.one_of(numbers, st.integers(-(2**63), 2**63 - 1)))
    bounds = np.iinfo(rows.dtype[name])
    rows[name][data.draw(st.integers(0, COUNT - 1))] = max(bounds.min, min(bounds.max, number))
    buffer = io.BytesIO()
    np.save(buffer, rows)
    takes_or_refuses(lambda: read(edited(packed, tmp_path, INDEX, buffer.getvalue())))


@property_of(st.data())
def test_any_keys_are_read_or_refused(data, packed, tmp_path):
    sound = (packed / KEYS).read_bytes()
    texts = st.one_of(damaged(zlib.decompress(sound)), st.binary(max_size=60)).map(zlib.compress)
    content = data.draw(st.one_of(damaged(sound), texts))
    takes_or_refuses(lambda: read(edited(packed, tmp_path, KEYS, content)))
