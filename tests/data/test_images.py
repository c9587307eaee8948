from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from ltbench.data.augment import draw, finish
from ltbench.data.decode import (
    crop_box,
    crop_draws,
    decode_pil,
    decode_pixels,
    resized_centre,
    resized_crop,
)
from ltbench.data.images import ImageSplit
from ltbench.data.pipelines import IMAGENET_STATS, INAT_STATS, statistics
from ltbench.data.transforms import eval_transform, train_transform
from ltbench.errors import UserError
from ltbench.seeding import derive, keyed_bits

PHOTOS = load_sample_images().images
N, SIZE = 12, 24
ALL = np.arange(N)
AT = ALL + 100


class Bytes:
    """A source that lies in memory; remembers which images were asked for."""

    def __init__(self, files: Sequence[bytes], wrong: Sequence[int] = ()) -> None:
        self.files, self.wrong = list(files), wrong
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        self.asked += indices.tolist()
        if set(indices.tolist()) & set(self.wrong):
            raise UserError("the bytes are not those that were packed")
        # One buffer for every call, as sources are allowed to do.
        joined = b"".join(self.files[i] for i in indices.tolist())
        self.buffer = getattr(self, "buffer", np.empty(10**6, np.uint8))
        self.buffer[: len(joined)] = np.frombuffer(joined, np.uint8)
        ends = np.cumsum([0, *(len(self.files[i]) for i in indices.tolist())]).tolist()
        return [self.buffer[a:b] for a, b in itertools.pairwise(ends)]

    def name(self, index: int) -> str:
        return f"image {index}"

    def fingerprint(self, labels: np.ndarray) -> str:
        return f"content:{labels.tolist()}"


def photo(number: int) -> bytes:
    image = Image.fromarray(PHOTOS[number % 2]).crop((number * 20, 30, number * 20 + 90, 100))
    buffer = io.BytesIO()
    image.convert("L" if number == 5 else "RGB").save(buffer, "PNG" if number == 3 else "JPEG")
    return buffer.getvalue()


FILES = [photo(i) for i in range(N)]


def make(augment="imagenet", files=FILES, labels=None, wrong=(), **options) -> ImageSplit:
    labels = ALL[: len(files)] % 3 if labels is None else labels
    options = {"image_size": SIZE, **options}
    return ImageSplit(Bytes(files, wrong), np.asarray(labels), augment=augment, **options)


def images(split: ImageSplit, indices=ALL, key=5, positions=AT, views=1):
    made = split.load(indices, key=key, positions=positions, views=views)
    return split.finish(made, key=key, positions=positions)


# The batched pipelines -----------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["imagenet", "inat", "inat_jitter", "plain"])
def test_load_cuts_out_bytes_and_finish_does_the_rest(augment):
    split = make(augment)
    views = split.load(ALL, key=5, positions=AT, views=2)
    for view, found in enumerate(views):
        assert (found.dtype, found.shape) == (torch.uint8, (N, 3, SIZE, SIZE))
        assert found.is_contiguous(memory_format=torch.channels_last)
        stream = derive(5, "view", view)
        boxes = crop_draws(derive(stream, "crop"), AT)
        for row in range(N):
            pixels = decode_pixels(np.frombuffer(FILES[row], np.uint8), "x")
            expected = torch.empty(3, SIZE, SIZE, dtype=torch.uint8)
            if augment == "plain":
                resized_centre(pixels, expected)
            else:
                resized_crop(pixels, crop_box(boxes[row], *pixels.shape[:2]), expected)
            assert torch.equal(found[row], expected)
        stats = INAT_STATS if augment.startswith("inat") else IMAGENET_STATS
        colours = augment in ("imagenet", "inat_jitter")
        expected = finish(found, *stats, draw(derive(stream, "colours"), AT), colours=colours)
        assert torch.equal(split.finish(views, key=5, positions=AT)[view], expected)
    assert not torch.equal(*split.finish(views, key=5, positions=AT))


@pytest.mark.parametrize("augment", ["imagenet", "plain"])
def test_evaluation_is_the_centre_without_changes(augment):
    split = make(augment)
    found = split.load(ALL, key=None, positions=AT, views=3)
    assert len(found) == 3
    expected = torch.empty(3, SIZE, SIZE, dtype=torch.uint8)
    for row in range(N):
        resized_centre(decode_pixels(np.frombuffer(FILES[row], np.uint8), "x"), expected)
        assert torch.equal(found[0][row], expected)
    done = split.finish(found, key=None, positions=AT)
    assert torch.equal(done[2], finish(found[0], *IMAGENET_STATS))
    assert all(map(torch.equal, done, images(split, key=None, positions=AT + 7, views=3)))


def test_evaluation_is_close_to_the_pillow_pipeline():
    for augment in ("inat", "imagenet"):
        found = images(make(augment), key=None)[0]
        exact = images(make(augment, decode="pil"), key=None)[0]
        std = torch.tensor(statistics(augment)[1]).view(3, 1, 1)
        assert ((found - exact) * std * 255).abs().max() < 1.01


@pytest.mark.parametrize("augment", ["imagenet", "crop", "inat", "plain", "sim"])
@pytest.mark.parametrize("decode", ["fast", "pil"])
def test_pixels_do_not_depend_on_the_batches(augment, decode):
    split = make(augment, augment_views=("inat_jitter", "rand"), decode=decode)
    order = ALL[::-1].copy()
    whole = images(split, order, views=3)
    for cuts in ([5], [1, 2, 9], list(range(1, N))):
        parts = [
            images(split, i, positions=p, views=3)
            for i, p in zip(np.split(order, cuts), np.split(AT, cuts), strict=True)
        ]
        for view in range(3):
            assert torch.equal(torch.cat([part[view] for part in parts]), whole[view])
    assert torch.equal(images(split, order)[0], whole[0])
    assert not torch.equal(images(split, order, key=6)[0], whole[0])
    assert not torch.equal(images(split, order, positions=AT + 1)[0], whole[0])


def test_crop_is_imagenet_without_colours_and_inat_under_other_statistics():
    crop, inat = (images(make(augment))[0] for augment in ("crop", "inat"))
    pixels = [
        (x * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)) * 255
        for x, (mean, std) in ((crop, IMAGENET_STATS), (inat, INAT_STATS))
    ]
    assert (pixels[0] - pixels[1]).abs().max() < 1e-3
    assert not torch.equal(crop, images(make("imagenet"))[0])


def test_training_finds_half_of_the_images_mirrored():
    split = make("plain")
    same = images(split, np.zeros(60, np.int64), positions=np.arange(60))[0]
    straight = images(split, key=None)[0][0]
    mirrored = [torch.equal(image, straight.flip(2)) for image in same]
    kept = [torch.equal(image, straight) for image in same]
    assert 15 < sum(mirrored) < 45
    assert sum(mirrored) + sum(kept) == 60


# Pillow's pipelines --------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["imagenet", "inat", "plain", "rand", "sim", "sim_hue_rand"])
def test_pillow_decodes_and_torchvision_augments_one_by_one(augment):
    split = make(augment, decode="pil")
    (found,) = split.load(ALL, key=5, positions=AT)
    assert found.dtype == torch.float32
    assert split.finish((found,), key=5, positions=AT)[0] is found
    pipeline = train_transform(augment, SIZE)
    seeds = keyed_bits(derive(5, "view", 0), AT) >> 1
    for row in range(N):
        torch.manual_seed(int(seeds[row]))
        expected = pipeline(decode_pil(np.frombuffer(FILES[row], np.uint8), "x"))
        assert torch.equal(found[row], expected)
    (plain,) = images(split, key=None)
    image = eval_transform(augment, SIZE)(decode_pil(np.frombuffer(FILES[0], np.uint8), "x"))
    assert torch.equal(plain[0], image)


@pytest.mark.parametrize("augment", ["rand", "inat_rand", "sim", "sim_hue", "sim_rand"])
def test_pipelines_of_single_images_see_the_same_pixels_whoever_decodes(augment):
    fast, slow = make(augment), make(augment, decode="pil")
    assert torch.equal(images(fast)[0], images(slow)[0])
    assert fast.load(ALL, key=None, positions=AT)[0].dtype == torch.uint8


def test_views_mix_batched_pipelines_and_single_ones():
    split = make("inat", augment_views=("sim", "imagenet", "rand"))
    made = split.load(ALL, key=5, positions=AT, views=5)
    kinds = [torch.uint8, torch.float32, torch.uint8, torch.float32, torch.float32]
    assert [view.dtype for view in made] == kinds
    done = split.finish(made, key=5, positions=AT)
    assert torch.equal(done[0], images(make("inat"))[0])
    assert done[1] is made[1]
    like = make("inat", augment_views=("sim",), decode="pil")
    assert torch.equal(done[1], images(like, views=2)[1])
    std = torch.tensor(INAT_STATS[1]).view(3, 1, 1)
    pixels = (done[2] * std + torch.tensor(INAT_STATS[0]).view(3, 1, 1)) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3  # normalised as the first view
    assert not torch.equal(done[3], done[4])


def test_global_random_state_is_neither_read_nor_moved():
    split = make("inat", augment_views=("sim",))
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = images(split, views=2)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert all(map(torch.equal, first, images(split, views=2)))


def test_a_split_can_be_sent_to_another_process():
    split = make("inat", augment_views=("sim",))
    assert all(
        map(torch.equal, images(pickle.loads(pickle.dumps(split)), views=2), images(split, views=2))
    )


def test_length_labels_and_fingerprint_are_the_sources():
    split = make(labels=np.ones(N, dtype=np.int32))
    assert len(split) == N
    assert split.labels.dtype == np.int64
    assert not split.in_memory
    assert split.fingerprint() == f"content:{[1] * N}"


# Images that cannot be decoded ---------------------------------------------------------------


def broken(*which: int) -> list[bytes]:
    return [FILES[i][:700] if i in which else FILES[i] for i in range(N)]


def test_an_unreadable_image_is_an_error():
    with pytest.raises(UserError, match="cannot read image `image 4`"):
        images(make(files=broken(4)))
    with pytest.raises(UserError, match="cannot read image `image 4`"):
        images(make(files=broken(4), decode="pil"))
    for unreadable in ("raise", "replace"):
        with pytest.raises(UserError, match="cannot read image `image 4`"):
            images(make(files=broken(4), unreadable=unreadable), key=None)


@pytest.mark.parametrize(
    ("augment", "decode"), [("imagenet", "fast"), ("sim", "fast"), ("inat", "pil")]
)
def test_the_next_image_of_its_class_stands_in_where_that_is_asked_for(augment, decode):
    # Classes go 0, 1, 2, 0, 1, 2, ...: after 4 comes 7, after 7 comes 10, after 11 comes 2.
    options = {"augment": augment, "decode": decode}
    split = make(files=broken(4, 7, 11), unreadable="replace", **options)
    whole = make(**options)
    stand_in = ALL.copy()
    stand_in[[4, 7, 11]] = 10, 10, 2
    expected = images(whole, stand_in, views=2)
    assert all(map(torch.equal, images(split, views=2), expected))
    assert split.labels.tolist() == whole.labels.tolist()
    (alone,) = images(
        make(files=broken(4, 7, 11), unreadable="replace", **options), ALL[4:5], positions=AT[4:5]
    )
    assert torch.equal(alone[0], expected[0][4])


def test_a_replaced_image_is_noted_once():
    split = make(files=broken(4, 7), unreadable="replace")
    images(split)
    notes = split.take_notes()
    assert len(notes) == 2
    assert "`image 4`" in notes[0]
    assert "`image 10` stands in" in notes[0]
    assert "`image 7`" in notes[1]
    assert not any("\n" in note for note in notes)
    assert split.take_notes() == []
    split.source.asked.clear()
    images(split)
    assert split.take_notes() == []
    assert split.source.asked == [*ALL.tolist(), 10, 10]  # the way there is not searched again
    assert make(unreadable="replace").take_notes() == []


def test_a_class_without_a_readable_image_is_an_error():
    split = make(files=broken(1, 4, 7, 10), unreadable="replace")
    with pytest.raises(UserError, match=r"`image 1`.*no other image of class 1 can be decoded"):
        images(split)


def test_bytes_that_are_not_as_packed_are_never_replaced():
    with pytest.raises(UserError, match="not those that were packed"):
        images(make(wrong=[4], unreadable="replace"))
    with pytest.raises(UserError, match="not those that were packed"):
        images(make(files=broken(4), wrong=[7], unreadable="replace"), ALL[4:5], positions=AT[4:5])
