from __future__ import annotations

import numpy as np
import pytest
import torch

from ltbench.diagnose.base import Subject
from ltbench.diagnose.landscape import Landscape, filter_normalised, surface
from ltbench.errors import UserError

TINY = {"images": 12, "points": 3, "line": 3}


def test_a_quadratic_gives_the_exact_paraboloid():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    hessian = root @ root.T
    least = torch.randn(6, generator=generator, dtype=torch.float64)
    center = least + 0.3
    d1, d2 = torch.randn(2, 6, generator=generator, dtype=torch.float64)

    def losses(moved):
        away = torch.cat([w.flatten() for w in moved]) - least
        return np.array([float(away @ hessian @ away) / 2, float(away @ away)])

    def cut(v):
        return [v[:4].view(2, 2), v[4:]]

    a, b = np.linspace(-1, 1, 5), np.linspace(-2, 2, 3)
    found = surface(losses, cut(center), [cut(d1), cut(d2)], [a, b])
    assert found.shape == (5, 3, 2)
    offset = center - least
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            quadratic = (
                offset @ hessian @ offset / 2
                + x * offset @ hessian @ d1
                + y * offset @ hessian @ d2
                + x**2 * d1 @ hessian @ d1 / 2
                + y**2 * d2 @ hessian @ d2 / 2
                + x * y * d1 @ hessian @ d2
            )
            assert found[i, j, 0] == pytest.approx(float(quadratic), rel=1e-12)
    line = surface(losses, cut(center), [cut(d1)], [a])
    np.testing.assert_allclose(line, found[:, 1], rtol=1e-12)


def test_filters_get_the_norms_of_the_weights_and_vectors_get_none():
    generator = torch.Generator().manual_seed(0)
    conv = torch.randn(5, 3, 3, 3, generator=generator) * torch.arange(5.0).view(5, 1, 1, 1)
    columns, bias = torch.randn(7, 4, generator=generator), torch.randn(5, generator=generator)
    direction = filter_normalised([conv, bias, columns], 1, [False, False, True])
    torch.testing.assert_close(direction[0].flatten(1).norm(dim=1), conv.flatten(1).norm(dim=1))
    assert not direction[0][0].any(), "a filter of zeros does not move"
    assert not direction[1].any()
    torch.testing.assert_close(direction[2].norm(dim=0), columns.norm(dim=0))
    again = filter_normalised([2 * conv, bias, columns], 1, [False, False, True])
    torch.testing.assert_close(again[0], 2 * direction[0])
    other = filter_normalised([conv], 2)
    assert abs(torch.cosine_similarity(other[0].flatten(), direction[0].flatten(), dim=0)) < 0.5


def test_tables_of_a_model(subject: Subject):
    before = {k: v.clone() for k, v in subject.method.state_dict().items()}
    rng = torch.get_rng_state()
    tables = Landscape(Landscape.Options(**TINY)).measure(subject)
    assert list(tables["sample"]["group"]) == ["many", "medium", "few"]
    assert list(tables["sample"]["images"]) == [12, 12, 12]
    assert len(tables["plane"]) == 3 * 9
    assert len(tables["line"]) == 3 * 3
    assert np.isfinite(tables["plane"]["loss"]).all()
    for key, value in subject.method.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(rng, torch.get_rng_state())
    again = Landscape(Landscape.Options(**TINY)).measure(subject)
    assert all(tables[name].equals(again[name]) for name in tables)
    figures = Landscape(Landscape.Options()).draw({"a": tables, "b": again})
    assert set(figures) == {"plane", "line"}
    assert len(figures["plane"].axes) == 2 * 3 + 1
    assert [len(axes.lines) for axes in figures["line"].axes] == [2, 2, 2]


def test_the_middle_is_the_loss_of_the_model(subject: Subject):
    from ltbench.diagnose.features import collect, sample, thirds

    options = Landscape.Options(split="test", groups="thirds", **TINY)
    tables = Landscape(options).measure(subject)
    tail = thirds(subject.data.info.class_counts)["tail"]
    seen = collect(subject, subject.data.test, sample(subject.data.test.labels, tail, total=12))
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(seen.logits), torch.from_numpy(seen.labels)
    )
    line = tables["line"]
    middle = line[(line["group"] == "tail") & (line["x"] == 0)]["loss"].item()
    assert middle == pytest.approx(float(loss), rel=1e-5)
    plane = tables["plane"].query("group == 'tail'")
    on_line = plane[plane["y"] == 0]["loss"].to_numpy()
    np.testing.assert_allclose(on_line, line[line["group"] == "tail"]["loss"], rtol=1e-6)


def test_wrong_options(subject: Subject):
    with pytest.raises(ValueError, match="must be odd"):
        Landscape.Options(points=4)
    with pytest.raises(UserError, match="has no part `layer7`"):
        Landscape(Landscape.Options(part="layer7", **TINY)).measure(subject)
