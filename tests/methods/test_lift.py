"""LIFT on tiny vision transformers with random weights: start, training, resume, publication."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import Ranks
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import ltbench
from ltbench import get_recipe, run
from ltbench.cli.app import main
from ltbench.config.files import list_variants
from ltbench.data.loader import eval_batches
from ltbench.data.text_table import names_hash, read_table, sentences, write_table
from ltbench.errors import UserError
from ltbench.hub.export import export
from ltbench.hub.folder import published_recipe
from ltbench.hub.formats import export_model
from ltbench.hub.load import load_described
from ltbench.losses import log_prior, logit_adjusted_rows
from ltbench.methods.base import Start
from ltbench.methods.head_init import class_means, drawn
from ltbench.models.adapters import is_adapter
from ltbench.models.backbone import create_backbone
from ltbench.models.heads import class_mean_directions, text_directions
from ltbench.train.progress import NoProgress

pytestmark = pytest.mark.usefixtures("no_picture")

F64 = torch.float64
ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROJECTED = 12


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A file of an encoder with its projection to 12 numbers, as timm releases one."""
    torch.manual_seed(7)
    net = create_backbone("test_vit", **ARGS).net
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    head = {"head.weight": torch.randn(PROJECTED, 16), "head.bias": torch.zeros(PROJECTED)}
    save_file({**net.state_dict(), **head}, path)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "digits.safetensors"
    torch.manual_seed(8)
    features = torch.randn(10, PROJECTED) * 3
    write_table(path, features, classes=NAMES, names=NAMES, encoder="test_vit")
    return path


def tiny(out, *words, encoder=None, adapters="adaptformer"):
    weights = "" if encoder is None else f", weights: {encoder}"
    args = "{" + ", ".join(f"{k}: {v}" for k, v in ARGS.items()) + "}"
    return get_recipe(
        "lift_cifar100", "data=digits_lt", "data.imbalance_ratio=5", "data.image_size=16",
        f"backbone={{name: test_vit, args: {args}, adapters: {adapters}{weights}}}", "epochs=2",
        "stages.0.batch_size=287", "run.precision=fp32", "run.device=cpu", "run.threads=1",
        "run.max_steps=4", "run.eval_every=9", "run.save_steps=1", f"out={out}", *words,
    )  # fmt: skip


class Breaks(NoProgress):
    """Stops a run as Ctrl-C would, after some steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def step(self, *args, **kw) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_text_head(vector):
    v = vector("lift_text_head")
    text, of_text, of_images = (
        torch.tensor(v["inputs"][k], dtype=F64)
        for k in ("text_features", "text_projection", "image_projection")
    )
    embedding = torch.nn.functional.normalize(text @ of_text, dim=1)
    expected = {k: torch.tensor(x, dtype=F64) for k, x in v["expected"].items()}
    torch.testing.assert_close(embedding, expected["embedding"], atol=1e-10, rtol=0)
    for scale in (1.0, 40.0):  # text features of any length
        found = text_directions(scale * text @ of_text, of_images.T)
        torch.testing.assert_close(found, expected["weight"], atol=1e-10, rtol=0)


def test_logit_adjusted_loss(vector):
    v = vector("lift_la_loss")
    logits = torch.tensor(v["inputs"]["logits"], dtype=F64)
    offset = v["params"]["tau"] * log_prior(v["inputs"]["counts"], floor=0.0)
    rows = logit_adjusted_rows(logits, torch.tensor(v["inputs"]["labels"]), offset)
    assert rows.mean().item() == pytest.approx(v["expected"]["loss"], abs=1e-10)


def test_class_means():
    features = torch.randn(7, 4, dtype=F64)
    labels = torch.tensor([0, 2, 2, 0, 1, 2, 0])
    found = class_mean_directions(features, labels, 3)
    for k in range(3):
        mean = features[labels == k].mean(0)
        torch.testing.assert_close(found[k], mean / mean.norm(), atol=1e-12, rtol=0)


def start_of(labels: np.ndarray, images: torch.Tensor, world: int = 1, rank: int = 0) -> Start:
    def read(indices):
        for part in np.array_split(np.array_split(indices, world)[rank], 3):
            if len(part):
                yield images[part], torch.from_numpy(labels[part])

    return Start(0, 0, labels, "test_vit", read)


def means_on_a_rank(rank: int, world: int, images: int | None) -> torch.Tensor:
    torch.manual_seed(0)
    backbone = create_backbone("test_vit", **ARGS)
    labels = np.arange(11) % 3
    return class_means(
        backbone, 3, start_of(labels, torch.randn(11, 3, 16, 16), world, rank), images
    )


def means_here(images: int | None) -> torch.Tensor:
    from ltbench.distributed import ranks

    return means_on_a_rank(ranks.rank(), ranks.world(), images)


def test_class_means_of_several_ranks_are_those_of_one(two_processes: Ranks):
    for images in (None, 2):
        whole = means_on_a_rank(0, 1, images)
        torch.manual_seed(0)
        backbone = create_backbone("test_vit", **ARGS).eval()
        x, labels = torch.randn(11, 3, 16, 16), np.arange(11) % 3
        chosen = drawn(start_of(labels, x), images)
        assert (np.bincount(labels[chosen]) <= (images or 11)).all()
        with torch.no_grad():
            features = backbone(x[chosen]).double()
        direct = class_mean_directions(features, torch.from_numpy(labels[chosen]), 3)
        torch.testing.assert_close(whole, direct, atol=1e-6, rtol=0)
        for found in two_processes.call(means_here, images):
            torch.testing.assert_close(found, whole, atol=1e-12, rtol=0)


def test_a_table_says_what_it_is_of(tmp_path):
    path = tmp_path / "table.safetensors"
    features = torch.randn(3, 5)
    write_table(path, features, classes=("a", "b", "c"), names=("x", "y_z", "w"), encoder="e.t")
    found = read_table(path)
    torch.testing.assert_close(found.features, features, atol=2e-3, rtol=1e-3)
    assert (found.encoder, found.prompt) == ("e.t", "a photo of a {}.")
    assert found.classes == names_hash(("a", "b", "c"))
    assert load_file(path)["features"].dtype == torch.float16
    assert sentences(("y_z",)) == ["a photo of a y z."]
    assert sentences(("a{b}",), "{}!") == ["a{b}!"]
    with pytest.raises(UserError, match=r"required one \{\}"):
        sentences(("a",), "a photo")
    with pytest.raises(UserError, match=r"numbers or identifiers, e\.g\. `n01440764`"):
        sentences(("n01440764", "n01443537"))
    with pytest.raises(UserError, match="3 classes, 2 names"):
        write_table(path, features, classes=("a", "b", "c"), names=("a", "b"), encoder="e")
    save_file({"features": features}, tmp_path / "other.safetensors")
    for name in ("other.safetensors", "none.safetensors"):
        with pytest.raises(UserError, match="make one with `ltbench data text-table"):
            read_table(tmp_path / name)


def test_the_command_writes_a_table(tmp_path, monkeypatch, capsys):
    seen = {}

    class Model:
        def eval(self):
            return self

        def encode_text(self, tokens):
            return tokens.float() @ torch.ones(4, 6)

    def create_model(name, pretrained, device):
        seen.update(name=name, pretrained=pretrained)
        return Model()

    def tokenizer(lines):
        seen["lines"] = lines
        return torch.tensor([[len(line), 1, 2, i] for i, line in enumerate(lines)])

    fake = SimpleNamespace(create_model=create_model, get_tokenizer=lambda name: tokenizer)
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    out = tmp_path / "cifar100.safetensors"
    words = ["data", "text-table", "dataset=cifar100", f"out={out}", "device=cpu"]
    main(words)
    assert seen["name"] == "ViT-B-16-quickgelu"
    assert seen["pretrained"] == "openai"
    assert seen["lines"][0] == "a photo of a apple."
    assert "a photo of a aquarium fish." in seen["lines"]
    found = read_table(out)
    assert found.features.shape == (100, 6)
    assert found.encoder == "vit_base_patch16_clip_quickgelu_224.openai"
    assert "init.file=" in capsys.readouterr().out


def test_the_classifier_begins_from_text(encoder, table, tmp_path):
    words = ("stages.0.optim.lr=1e-30", f"stages.0.method.init.file={table}")
    result = run(tiny(tmp_path / "run", *words, encoder=encoder))
    method = ltbench.load(result.folder)
    projection = load_file(encoder)["head.weight"]
    expected = text_directions(read_table(table).features, projection)
    torch.testing.assert_close(method.head.weight.T, expected, atol=1e-6, rtol=0)
    recipe = result.record.recipe
    assert recipe.resolved["stages"][0]["method"]["init"]["file"].startswith("sha256:")
    assert "stages.0.method.init.file" in recipe.overrides
    other = tmp_path / "other.safetensors"
    torch.manual_seed(9)
    write_table(other, torch.randn(10, PROJECTED), classes=NAMES, names=NAMES, encoder="test_vit")
    changed = tiny(tmp_path / "x", words[0], f"stages.0.method.init.file={other}", encoder=encoder)
    assert changed.digest != recipe.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "resnet18"}, "is for encoder resnet18, the backbone is test_vit"),
        ({"classes": NAMES[::-1]}, "of 10 classes with other names or in another order"),
        ({"width": 7}, "text features of 7 numbers, the encoder projects to 12"),
    ],
)
def test_tables_of_others_are_refused(change, message, encoder, tmp_path):
    path = tmp_path / "table.safetensors"
    features = torch.randn(10, change.get("width", PROJECTED))
    classes, name = change.get("classes", NAMES), change.get("encoder", "test_vit")
    write_table(path, features, classes=classes, names=classes, encoder=name)
    with pytest.raises(UserError, match=message) as error:
        run(tiny(tmp_path / "run", f"stages.0.method.init.file={path}", encoder=encoder))
    assert "\n" not in str(error.value)


def test_text_needs_a_table_and_an_encoder(table, tmp_path):
    with pytest.raises(UserError, match=r"none is given as stages\.0\.method\.init\.file"):
        run(tiny(tmp_path / "run"))
    with pytest.raises(UserError, match=r"has random weights; give backbone\.pretrained"):
        run(tiny(tmp_path / "run", f"stages.0.method.init.file={table}"))
    with pytest.raises(UserError, match="file is an option of init `text`"):
        tiny(tmp_path / "run", "stages.0.method.init={name: class_mean, file: x}")


@pytest.mark.parametrize("adapters", ["adaptformer", "lora"])
def test_it_resumes_from_class_means(adapters, tmp_path):
    init = "stages.0.method.init={name: class_mean, images: 9}"
    whole = run(tiny(tmp_path / "whole", init, adapters=adapters))
    with pytest.raises(KeyboardInterrupt):
        run(tiny(tmp_path / "broken", init, adapters=adapters), reporter=Breaks(after=3))
    again = run(tiny(tmp_path / "broken", init, adapters=adapters))
    ours, theirs = (load_file(r.folder / "model.safetensors") for r in (again, whole))
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    assert again.metrics == whole.metrics
    assert any(ours[k].any() for k in ours if is_adapter(k) and ".up." in k)  # trained


@pytest.fixture
def folder(tmp_path):
    """Digits as image files in class folders."""
    from PIL import Image

    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * 15).astype(np.uint8).repeat(3, 1).repeat(2, 2)
    for part, per_class in (("train", 20), ("test", 4)):
        for k in range(3):
            (tmp_path / "images" / part / str(k)).mkdir(parents=True)
            own = np.flatnonzero(labels == k)
            for i in own[:per_class] if part == "train" else own[-per_class:]:
                Image.fromarray(pixels[i]).save(tmp_path / "images" / part / str(k) / f"{i}.png")
    return tmp_path / "images"


def test_lift_plus_resumes_exactly_and_is_evaluated_on_five_crops(folder, tmp_path, capsys):
    def of(out):
        return get_recipe(
            "lift_plus_places_lt", f"data={{name: folder, root: {folder}, image_size: 16}}",
            "data.augment=half_minimalist", "data.interpolation=bicubic",
            f"backbone={{name: test_vit, args: {json.dumps(ARGS)}, adapters: lora}}", "epochs=3",
            "stages.0.method.init=class_mean", "stages.0.batch_size=20", "run.precision=fp32",
            "run.device=cpu", "run.threads=1", "run.save_steps=1", "run.workers=0",
            f"out={tmp_path / out}",
        )  # fmt: skip

    whole = run(of("whole"))
    with pytest.raises(KeyboardInterrupt):
        run(of("broken"), reporter=Breaks(after=5))
    again = run(of("broken"))
    ours, theirs = (load_file(r.folder / "model.safetensors") for r in (again, whole))
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    words = ["eval", f"model={whole.folder}", "crops=five", "expand=4", "workers=0"]
    main([*words, f"out={tmp_path / 'found'}"])
    assert "five crops (+4)" in capsys.readouterr().out
    found = json.loads((tmp_path / "found" / "metrics.json").read_text())
    assert (found["crops"], found["expand"]) == ("five", 4)
    assert found["centre_crop"]["top1"] == pytest.approx(whole.metrics.top1)
    method = ltbench.load(whole.folder)
    data = get_recipe("ce_places_lt", f"data={{name: folder, root: {folder}, image_size: 16}}")
    loaded = data.data.config.model_copy(
        update={"augment": "half_minimalist", "interpolation": "bicubic"}
    ).load()
    (views,) = [x.views for x in eval_batches(loaded.test.five_crops(4), 99)]
    with torch.no_grad():
        mean = torch.stack([method(view) for view in views]).mean(0)
    right = (mean.argmax(1) == torch.from_numpy(loaded.test.labels)).float().mean().item()
    assert found["top1"] == pytest.approx(right)
    with pytest.raises(UserError, match="five crops need images that are resized"):
        ltbench.evaluate(method, "digits_lt", five_crops=4)


def test_adapters_are_published_apart_from_their_encoder(encoder, tmp_path, monkeypatch):
    words = ("stages.0.method.init=class_mean",)
    result = run(tiny(tmp_path / "run", *words, encoder=encoder))
    out = export(result.folder, tmp_path / "apart", apart=True)
    tensors = load_file(out / "model.safetensors")
    assert tensors
    assert all(is_adapter(n) or n.startswith("head.") for n in tensors)
    stated = json.loads((out / "config.json").read_text())["ltbench"]["encoder"]
    assert stated["name"] == "test_vit"
    whole = ltbench.load(result.folder)
    x = torch.randn(3, 3, 16, 16)
    found = ltbench.load(out, encoder=str(encoder))
    with torch.no_grad():
        assert torch.equal(found(x), whole(x))
    with pytest.raises(UserError, match="of encoder test_vit, whose weights were a file") as error:
        ltbench.load(out)
    assert "\n" not in str(error.value)
    torch.manual_seed(70)
    other = tmp_path / "other.safetensors"
    save_file(create_backbone("test_vit", **ARGS).net.state_dict(), other)
    with pytest.raises(UserError, match="belongs to another encoder test_vit") as error:
        ltbench.load(out, encoder=str(other))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="holds its encoder already"):
        ltbench.load(result.folder, encoder=str(encoder))
    with pytest.raises(UserError, match="cannot be loaded"):
        ltbench.load(out, encoder=str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="adapters are small"):
        export(result.folder, tmp_path / "half", apart=True, half=True)
    trained = run(tiny(tmp_path / "all", *words, "stages.0.freeze=[]", encoder=encoder))
    with pytest.raises(UserError, match="not the one that it began from"):
        export(trained.folder, tmp_path / "no", apart=True)
    random = run(tiny(tmp_path / "random", *words))
    with pytest.raises(UserError, match="began from random weights"):
        export(random.folder, tmp_path / "no", apart=True)


def test_a_published_recipe_names_no_file_of_this_machine():
    tree = {
        "name": "x",
        "backbone": {"name": "test_vit"},
        "data": {"name": "digits_lt"},
        "stages": [{"method": {"name": "lift", "init": {"name": "text", "file": "sha256:1"}}}],
    }
    assert published_recipe(tree, "it") == tree
    for place in ("/etc/passwd", "~/x", "a/../b", "https://x/y"):
        tree["stages"][0]["method"]["init"]["file"] = place
        with pytest.raises(UserError, match=r"`stages\.0\.method\.init\.file`: a published"):
            published_recipe(tree, "it")


def test_lora_is_merged_in_exports(tmp_path):
    result = run(tiny(tmp_path / "run", "stages.0.method.init=class_mean", adapters="lora"))
    method, facts = load_described(result.folder)
    done = export_model(method, facts, tmp_path / "plain.safetensors")
    names = set(load_file(done.path))
    net = create_backbone("test_vit", **ARGS)
    assert {n for n in names if n.startswith("0.")} == {f"0.{n}" for n in net.state_dict()}


SETS = ("cifar100", "imagenet_lt", "places_lt", "inat")
OURS = [f"lift{plus}{plot}_{s}" for plus in ("", "_plus") for plot in ("", "_plot") for s in SETS]


@pytest.mark.parametrize("name", OURS)
def test_recipes_name_tags_and_pipelines_of_their_encoder(name):
    for variant in ("", *(f"_{v}" for v in list_variants(name))):
        recipe = get_recipe(f"{name}{variant}")
        network, augment = recipe.backbone.name, recipe.data.config.augment
        assert "." in network
        assert recipe.backbone.pretrained
        assert recipe.data.config.image_size == 224
        assert recipe.data.config.interpolation == "bicubic"
        assert augment.startswith("clip" if "clip" in network else "half")
        init = recipe.stages[0].method.config.init.name
        assert init == ("text" if "clip" in network else "class_mean")
        assert augment.endswith("minimalist") == name.startswith("lift_plus")
