"""Lists of images with any content: a listing, or lines of one mistake each."""

from __future__ import annotations

from hypothesis import strategies as st
from strategies import damaged, paths, property_of, takes_or_refuses, text

from ltbench.config.validation import build_options
from ltbench.data.listing import read_list, read_names

labels = st.one_of(
    st.integers(-2, 9).map(str),
    st.sampled_from(["", "1.0", "0x1", "٣", "²", "9" * 25, "1_0", "-0", "+1", "nan", "true"]),
    text,
)
lines = st.one_of(
    st.tuples(paths, st.sampled_from([" ", "\t", ",", "  ", ""]), labels).map("".join), text
)
contents = st.one_of(
    st.binary(max_size=120),
    st.lists(lines, max_size=8).map(
        lambda found: "\n".join(found).encode("utf-8", "surrogatepass")
    ),
    damaged(b"train/a/0.jpg 0\ntrain/b/1.jpg 1\n"),
    damaged(b"path,label\nx/0.png,0\nx/1.png,1\n"),
)


@property_of(contents, few=200)
def test_any_file_is_a_list_or_refused(content, tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    listing, _ = takes_or_refuses(lambda: read_list(file))
    if listing is not None:
        assert len(listing.paths) == len(listing.labels) > 0
        assert not any("\0" in path for path in listing.paths)
    takes_or_refuses(lambda: read_names(file, 2))


@property_of(st.tuples(contents, contents))
def test_any_two_lists_are_a_data_set_or_refused(files, tmp_path):
    for split, content in zip(("train", "test"), files, strict=True):
        (tmp_path / f"{split}.txt").write_bytes(content)
    takes_or_refuses(lambda: build_options("DATASETS", "list", {"root": str(tmp_path)}).load())


@property_of(st.tuples(paths, paths))
def test_any_root_and_list_are_found_or_refused(words):
    root, train = words
    options = {"root": root, "train": train, "class_names": train}
    takes_or_refuses(lambda: build_options("DATASETS", "list", options).load())
