import pytest

from ltbench import get_recipe, list_recipes

OWN = [name for name in list_recipes() if get_recipe(name).data.name in ("folder", "digits_lt")]


def test_there_are_starting_points_for_own_images() -> None:
    assert {"ce", "balanced_softmax", "ldam_drw", "crt_mixup", "mislas_plot"} <= set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_no_epoch_is_at_rate_0_however_short(name: str) -> None:
    for words in ([], *([f"epochs={n}"] for n in (1, 2, 3, 5, 12, 150))):
        for stage in get_recipe(name, *words).stages:
            if stage.epochs is not None:
                rates = [stage.schedule.factor(e, stage.epochs) for e in range(stage.epochs)]
                assert min(rates) > 1e-5
