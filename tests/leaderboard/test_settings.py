"""Settings: what a row may be compared with, and that no table mixes two of them."""

from __future__ import annotations

import pytest

from ltbench import leaderboard
from ltbench.errors import UserError
from ltbench.leaderboard.merged import merged
from ltbench.leaderboard.settings import SETTINGS, agree, published_setting, rank, record_setting
from ltbench.leaderboard.tables import board_rows, section_order, select_rows
from ltbench.records.literature import published
from ltbench.records.parts import DatasetFacts
from tests.leaderboard.boards import write
from tests.leaderboard.test_leaderboard import readme_tool, record_of

PLACE = ("CIFAR-10-LT", 100)


def row_of(folder, *words: str, **more):
    """The row of a record of a recipe with some words."""
    write(folder, [record_of((9, 5, 1), 0, *words, **more)])
    (row,) = (row for row in board_rows(folder) if row.get("records"))
    return row


@pytest.mark.parametrize(
    ("words", "setting", "because"),
    [
        (["ce_cifar10"], "plain", ""),
        (["mislas_plot_cifar10"], "plain", ""),  # 200 epochs and 10 of stage 2
        (["ce_cifar10", "stages.0.epochs=201"], "strong", "201 epochs"),
        (["ce_cifar10", "data.augment=strong"], "strong", "AutoAugment, Cutout"),
        (["ce_cifar10", "data.augment=none"], "plain", ""),
        (["paco_cifar10"], "strong", "AutoAugment, Cutout, SimCLR"),  # both views
        (["ride_cifar100"], "strong", "3 experts"),
        (["dirmixe_cifar100"], "strong", "3 experts; crop, flip, rotation"),
        (["bbn_cifar10"], "strong", "branches"),
        (["reslt_cifar10"], "strong", "branches"),
        (["ce_cifar10", "backbone=resnet20_cifar"], "plain", ""),
        (["ce_cifar10", "backbone=resnet56_cifar"], "strong", "ResNet-56"),
        (["etf_cifar100"], "strong", "ResNet-32 (widths 32, 64, 128)"),
        (["ce_imb_sam_cifar100"], "strong", "ResNet-34"),
        (["ce_cifar10", "backbone.args.widths=[8,16,32]"], "plain", ""),
        (["ce_cifar10", "backbone.pretrained=true"], "pretrained", "from timm:resnet32_cifar"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_recipe_decides(tmp_path, words, setting, because):
    row = row_of(tmp_path, *words)
    assert row["setting"] == setting
    assert row["because"].startswith(because)
    assert bool(row["because"]) == bool(because)


def test_on_larger_images_colour_jitter_and_larger_networks_are_usual(tmp_path):
    facts = DatasetFacts(name="imagenet_lt", train_sha256="a" * 64, test_sha256="b" * 64)
    row = row_of(tmp_path, "ce_imagenet_lt", dataset=facts)
    assert (row["augmentation"], row["setting"]) == ("crop, flip, jitter", "plain")


def test_code_from_outside_is_not_known(tmp_path):
    row = row_of(tmp_path, "ce_cifar10")
    (record,) = row["records"]
    method = record.recipe.resolved["stages"][0]["method"]
    method["plugin"] = f"mine@{'0' * 64}"
    assert record_setting(record, row) == ("unknown", "outside code")
    method["experts"] = 2
    assert record_setting(record, row) == ("strong", "2 experts")


def test_what_decides_of_published_rows():
    found = {
        (row["dataset"], row["method"], row["backbone"], row["epochs"]): published_setting(row)
        for row in published()
    }

    def setting(*key: str) -> tuple[str, str]:
        return found[key]

    cifar = "CIFAR-100-LT"
    wide = "ResNet-32 (64/128/256 wide)"
    assert setting(cifar, "MiSLAS", "ResNet-32", "200+10") == ("plain", "")
    assert setting(cifar, "GLMC (paper)", wide, "200") == ("strong", wide)
    assert setting(cifar, "ImbSAM", "ResNet-34", "200") == ("strong", "ResNet-34")
    assert setting(cifar, "RIDE", "ResNet-32", "unknown") == ("strong", "experts or branches")
    assert setting(cifar, "LIFT", "CLIP ViT-B/16", "10")[0] == "pretrained"
    assert setting(cifar, "DeiT-LT", "ViT-B/16 (DeiT)", "1200")[0] == "strong"
    missing = ("unknown", "epochs, augmentation")
    assert setting(cifar, "LDAM-DRW", "ResNet-32", "unknown") == missing
    assert setting(cifar, "H2T", "ResNet-32", "200+10") == ("unknown", "augmentation")
    method = "Focal-SAM (base loss unknown: CE probably)"
    assert setting(cifar, method, "", "unknown")[1] == "network, epochs, augmentation"
    large = "ImageNet-LT"
    assert setting(large, "CE", "ResNeXt-50", "90") == ("plain", "")
    assert setting(large, "GPaCo (2 networks)", "ResNeXt-101", "unknown")[1] == "2 networks"
    assert setting("Places-LT", "CE", "ResNet-152", "unknown")[0] == "pretrained"
    assert setting("iNaturalist-2018", "GPaCo", "ResNet-152", "unknown")[0] == "unknown"


def test_tables_that_print_one_result_share_what_one_of_them_knows(tmp_path):
    rows = [
        row
        for row in board_rows(tmp_path)
        if (row["dataset"], row["method"], row["overall"]) == ("ImageNet-LT", "MiSLAS", 52.7)
    ]
    assert len(rows) == 3
    assert {row["epochs"] for row in rows} == {"unknown", "180+10"}
    assert {row["setting"] for row in rows} == {"plain"}
    assert all(agree(rows[0], row) for row in rows)
    assert len(merged(rows)) == 1


def test_no_section_has_two_settings(tmp_path):
    words = (["mislas_cifar10"], ["ride_cifar10"], ["ce_cifar10", "data.augment=strong"])
    write(tmp_path, [record_of((9, 5 - i, 1), 0, *own) for i, own in enumerate(words)])
    rows = select_rows(folder=tmp_path)
    sections: dict[tuple, set[str]] = {}
    for row in rows:
        sections.setdefault(section_order(row), set()).add(row["setting"])
    assert {len(settings) for settings in sections.values()} == {1}
    ours = [row for row in rows if row["origin"] == "reproduced"]
    assert len({row["track"] for row in ours}) == 1  # one budget, start and data
    assert len({section_order(row) for row in ours}) == 2
    assert not any(row["tie"] for row in ours if row["setting"] == "plain")
    here = [row["setting"] for row in rows if (row["dataset"], row["imbalance_ratio"]) == PLACE]
    assert set(here) == {"plain", "strong", "unknown"}
    assert here == sorted(here, key=rank)


def test_filter_markdown_and_readme(tmp_path):
    folder = tmp_path / "records"
    write(folder, [record_of(), record_of((9, 5, 2), 0, "ce_cifar10", "data.augment=strong")])
    frame = leaderboard.table(folder=folder, setting="plain")
    assert set(frame["setting"]) == {"plain"}
    assert "GLMC (paper)" not in set(frame["method"])
    with pytest.raises(UserError, match="`setting`: expected plain or strong"):
        leaderboard.table(folder=folder, setting="plane")
    text = leaderboard.to_markdown(leaderboard.table(folder=folder, dataset="cifar10"))
    assert "| plain | 200 epochs" in text
    assert f"unknown: {SETTINGS['unknown']}" in text
    page = readme_tool().results(folder)
    for name in ("plain", "strong"):
        assert page.count(f"ResNet-32**: {SETTINGS[name]}; 200 epochs") == 1
