"""New images: found, read, transformed and classified as in evaluation; tables; the command."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.utils.data import DataLoader

import ltbench
from ltbench.cli.predict import predict as command
from ltbench.data.digits import DigitsLT
from ltbench.data.folder import Folder
from ltbench.data.preprocessing import Preprocessing, preprocessing_of
from ltbench.errors import UserError
from ltbench.evaluation.tables import encoded


@pytest.fixture(scope="module")
def model():
    return ltbench.load("quickstart")


@pytest.fixture(scope="module")
def digits():
    return DigitsLT().load().test


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """Test digits as PNG in nested folders, and what is no image, or a damaged one."""
    root = tmp_path_factory.mktemp("new") / "images"
    for i, name in enumerate(("b/2.png", "a.png", "b/c/10.png", "ä b,c.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[i * 150]).save(root / name)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_text("no image")
    return root


@pytest.fixture
def damaged(tmp_path, folder):
    root = tmp_path / "damaged"
    root.mkdir()
    whole = (folder / "a.png").read_bytes()
    (root / "good.png").write_bytes(whole)
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "empty.jpg").touch()
    (root / "lost.png").symlink_to("nowhere.png")
    (root / ".hidden").mkdir()
    os.mkfifo(root / ".hidden" / "pipe.png")
    return root


def names_of(found):
    return [names[0] for names in found.names]


def invoke(*words):
    return CliRunner().invoke(command, words, catch_exceptions=False)


def quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ltbench.predict(*args, **options)


def test_logits_of_evaluation(model, digits):
    """Probabilities are those of evaluation, bit for bit, in order."""
    seen = []
    ltbench.evaluate(
        model, "digits_lt", device="cpu", each=lambda batch, logits: seen.append(logits)
    )
    wanted = torch.cat(seen).double().softmax(dim=1).float()
    images = [Image.fromarray(x) for x in digits.images]
    found = ltbench.predict(model, images, topk=10, device="cpu", workers=0)
    rows = np.zeros((600, 10), np.float32)
    np.put_along_axis(rows, found.labels, found.probabilities, axis=1)
    assert np.array_equal(rows, wanted.numpy())
    assert (np.diff(found.probabilities, axis=1) <= 0).all()


@pytest.mark.parametrize("decode", ["fast", "pil"])
@pytest.mark.parametrize("augment", ["imagenet", "inat"])
def test_transform_has_the_pixels_of_evaluation_on_folders(tmp_path, decode, augment):
    rng = np.random.default_rng(0)
    for k, size in enumerate(((50, 90), (64, 64), (33, 20), (9, 7))):
        for part in ("train", "test"):
            for name in "ab":
                path = tmp_path / part / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
    config = Folder(
        root=str(tmp_path), image_size=24, decode=decode, augment=augment, test_images="all"
    )
    data = config.load()
    order = np.arange(8)
    loaded = data.test.load(order, key=None, positions=order)
    wanted = data.test.finish(loaded, key=None, positions=order)[0]
    transform = preprocessing_of("folder", config, data.info.mean, data.info.std)
    found = [transform(Image.open(tmp_path / path)) for path in data.test.source.paths]
    assert torch.equal(torch.stack(found), wanted)
    assert transform.resize == 27


def test_small_images_are_enlarged_as_in_evaluation(model, digits):
    order = np.arange(len(digits))
    wanted = digits.finish(digits.load(order, key=None, positions=order), key=None, positions=order)
    small = [Image.fromarray(x[::2, ::2]).resize((16, 16), 2) for x in digits.images[:3]]
    assert model.transform == Preprocessing(16, 16, (0.305,) * 3, (0.376,) * 3)
    assert all(model.transform(x).shape == (3, 16, 16) for x in small)
    same = [model.transform(Image.fromarray(x)) for x in digits.images]
    assert torch.equal(torch.stack(same), wanted[0])


def test_loaded_models_have_class_names_and_a_transform_for_any_mode(model):
    assert model.class_names[:2] == ("zero", "one")
    assert pickle.loads(pickle.dumps(model.transform)) == model.transform
    for image in (Image.new("L", (9, 31)), Image.new("RGBA", (40, 8)), Image.new("P", (16, 16))):
        assert model.transform(image).shape == (3, 16, 16)


def test_transform_serves_a_torch_data_set(model, folder):
    class Own(torch.utils.data.Dataset):
        files = sorted(folder.glob("b/*.png"))

        def __len__(self):
            return len(self.files)

        def __getitem__(self, index):
            return model.transform(Image.open(self.files[index]))

    (batch,) = DataLoader(Own(), batch_size=4)
    assert batch.shape == (1, 3, 16, 16)


def test_a_folder_is_read_at_any_depth_in_sorted_order(model, folder, digits):
    with pytest.warns(UserWarning, match=r"left out: .txt \(1\)"):
        found = ltbench.predict(model, folder, topk=2, workers=0)
    assert found.paths == ("a.png", "b/2.png", "b/c/10.png", "ä b,c.png")
    images = [Image.fromarray(digits.images[i * 150]) for i in (1, 0, 2, 3)]
    same = ltbench.predict(model, images, topk=2)
    assert np.array_equal(found.probabilities, same.probabilities)
    assert same.paths == ("0", "1", "2", "3")
    assert found.names[0] == tuple(model.class_names[k] for k in found.labels[0])
    with pytest.raises(AttributeError):
        found.labels = None


def test_progress_counts_all_images(model, damaged):
    told: list[tuple[int, int]] = []
    found = quiet(
        model, damaged, batch_size=2, unreadable="skip", progress=lambda *now: told.append(now)
    )
    total = len(found) + len(found.unreadable)
    assert found.unreadable
    assert told == [(min(done, total), total) for done in range(2, total + 2, 2)]


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 2), (100, 2)])
def test_batches_and_processes_change_nothing(model, folder, batch_size, workers):
    one = quiet(model, folder, workers=0)
    found = quiet(model, folder, batch_size=batch_size, workers=workers)
    assert found.paths == one.paths
    np.testing.assert_allclose(found.probabilities, one.probabilities, atol=1e-6)


def test_lists_files_and_paths_name_the_same_images(model, folder, tmp_path, monkeypatch):
    wanted = quiet(model, folder, workers=0)
    listed = tmp_path / "paths.txt"
    listed.write_text("\ufeff\n" + "\n".join(wanted.paths) + "\r\n\n", encoding="utf-8")
    found = ltbench.predict(model, listed, root=folder)
    assert found.paths == wanted.paths
    assert np.array_equal(found.labels, wanted.labels)
    monkeypatch.chdir(folder)
    assert ltbench.predict(model, str(listed)).paths == wanted.paths
    paths = [folder / name for name in wanted.paths]
    assert np.array_equal(ltbench.predict(model, paths).labels, wanted.labels)
    assert ltbench.predict(model, "a.png").labels.tolist() == wanted.labels[:1].tolist()
    with Image.open("a.png") as image:
        assert ltbench.predict("quickstart", image, topk=99).labels.shape == (1, 10)


def test_a_list_may_name_anything(model, damaged, tmp_path):
    listed = tmp_path / "paths.txt"
    odd = ["good.png", ".hidden/pipe.png", ".hidden", "x" * 300 + ".png", "a\0b.png", "/dev/zero"]
    odd.append("a\u2028b.png")
    listed.write_text("\n".join(odd))
    found = ltbench.predict(model, listed, root=damaged, unreadable="skip")
    assert found.paths == ("good.png",)
    assert [path for path, _ in found.unreadable] == odd[1:]
    binary = tmp_path / "paths.bin"
    binary.write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="nor a list of paths in UTF-8"):
        ltbench.predict(model, binary)


def test_what_cannot_be_read_is_raised_or_listed(model, damaged):
    with pytest.raises(UserError, match=r"cannot read image .*cut\.png"):
        ltbench.predict(model, damaged)
    found = ltbench.predict(model, damaged, unreadable="skip")
    assert found.paths == ("good.png",)
    assert [path for path, _ in found.unreadable] == ["cut.png", "empty.jpg", "lost.png"]
    assert "0 bytes" in found.unreadable[1][1]
    assert "No such file" in found.unreadable[2][1]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("nowhere", "there is no nowhere"),
        ([], "no images in `images`"),
        ([torch.zeros(3, 8, 8)], "expected paths or Pillow images, found Tensor"),
        ([Image.new("F", (4, 4))], "cannot read image 0: it has 32 bits"),
        ([Image.new("L", (0, 4))], "cannot read image 0: it has 0 x 4 pixels"),
        ([Image.new("L", (1, 9999))], "cannot read image 0: it has 1 x 9,999 pixels"),
    ],
)
def test_bad_images_are_one_line(model, images, said):
    with pytest.raises(UserError, match=said) as caught:
        ltbench.predict(model, images)
    assert "\n" not in str(caught.value)


def test_bad_models_and_options_are_one_line(model, folder):
    with pytest.raises(UserError, match=r"expected a model of `ltbench.load`.*found Linear"):
        ltbench.predict(torch.nn.Linear(2, 2), [folder / "a.png"])
    with pytest.raises(UserError, match="`topk`"):
        ltbench.predict(model, folder, topk=0)
    with pytest.raises(UserError, match="`unreadable`: expected raise or skip, found `ignore`"):
        ltbench.predict(model, folder, unreadable="ignore")
    bare = ltbench.load("quickstart")
    bare.transform = None
    with pytest.raises(UserError, match="transform of data set digits_lt is not known"):
        ltbench.predict(bare, [folder / "a.png"])
    bare.transform = lambda image: torch.full((3, 16, 16), float("nan"))
    with pytest.raises(UserError, match="NaN or infinite logits"):
        ltbench.predict(bare, [folder / "a.png"])


def test_the_command_writes_the_same_table_in_three_formats(folder, tmp_path):
    tables = {}
    for ending in ("csv", "json", "parquet"):
        out = tmp_path / "new" / f"p.{ending}"
        for _ in range(2):  # its own file is replaced
            done = invoke(f"images={folder}", "model=quickstart", f"out={out}", "topk=2")
            assert done.exit_code == 0
        assert re.search(rf"^4 images, \d+\.\d s: {re.escape(str(out))}$", done.output, re.M)
        tables[ending] = getattr(pd, f"read_{ending}")(out)
    columns = ["path"] + [f"{c}_{k}" for k in (1, 2) for c in ("label", "class", "probability")]
    wanted = quiet("quickstart", folder, topk=2, workers=0).frame()
    for table in tables.values():
        assert list(table.columns) == columns
        pd.testing.assert_frame_equal(table, wanted, check_dtype=False, rtol=1e-6)
    assert json.loads((tmp_path / "new" / "p.json").read_text())[0]["path"] == "a.png"
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_the_command_lists_skipped_images_and_fails_if_none_is_left(damaged, tmp_path):
    out = tmp_path / "p.csv"
    done = invoke("model=quickstart", f"images={damaged}", f"out={out}")
    assert done.exit_code == 0
    assert "4 images, 3 skipped" in done.output
    assert sum(line.startswith("skipped: cannot read") for line in done.output.splitlines()) == 3
    assert len(pd.read_csv(out)) == 1
    (damaged / "good.png").unlink()
    with pytest.raises(UserError, match="no image could be read") as caught:
        invoke("model=quickstart", f"images={damaged}", f"out={tmp_path / 'none.csv'}")
    assert len(str(caught.value).splitlines()) == 4
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize("ending", [".csv", ".json", ".parquet"])
def test_the_command_replaces_nothing_but_predictions(folder, tmp_path, ending):
    out = tmp_path / f"record{ending}"
    out.write_bytes(b'{"path": 1, "label_1": 2}')
    with pytest.raises(UserError, match="exists and is not a table of predictions"):
        invoke("model=quickstart", f"images={folder}", f"out={out}")
    assert out.read_bytes() == b'{"path": 1, "label_1": 2}'
    with pytest.raises(UserError, match=r"ending in .csv or .json or .parquet"):
        invoke("model=quickstart", f"images={folder}", f"out={tmp_path / 'p.txt'}")


def test_names_that_are_not_utf8_are_escaped(model, folder, tmp_path):
    odd = tmp_path / "a\udcff.png"
    odd.write_bytes((folder / "a.png").read_bytes())
    found = ltbench.predict(model, tmp_path)
    assert found.paths == ("a\udcff.png",)
    for ending in (".csv", ".json", ".parquet"):
        assert b"\\xff.png" in encoded(found.frame(), ending)
