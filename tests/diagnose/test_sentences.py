from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ltbench.diagnose.calibration import AS_TRAINED, Calibration
from ltbench.diagnose.cca import Cca
from ltbench.diagnose.conflicts import Conflicts
from ltbench.diagnose.cost import Cost
from ltbench.diagnose.errors import Errors, class_table, confusion_table, group_table
from ltbench.diagnose.hessian import Hessian
from ltbench.diagnose.landscape import Landscape
from ltbench.diagnose.norms import Norms
from ltbench.diagnose.openset import Openset
from ltbench.diagnose.sentences import change, differ, interval, listing, number, percent
from ltbench.diagnose.shift import Shift
from ltbench.diagnose.tables import MINUS, TIMES
from ltbench.diagnose.trajectory import Trajectory
from ltbench.diagnose.tsne import Tsne


def of(cls, tables) -> str:
    return plain(" ".join(cls(cls.Options()).describe(tables)))


def plain(text: str) -> str:
    return text.replace(MINUS, "-").replace(TIMES, "x")


def test_intervals_shrink_with_images_and_are_never_empty():
    assert interval(0.5, 100) == pytest.approx(0.096, abs=0.002)
    assert interval(0.5, 10_000) < interval(0.5, 100) < interval(0.5, 10)
    assert interval(1.0, 20) > 0


def test_numbers_of_sentences():
    assert percent(0.5, 0.0123) == "50.0 ± 1.2 %"
    found = [plain(number(v)) for v in (50.0, 0.27012, 1234.5, -0.0123, 3e-7, np.nan)]
    assert found == ["50", "0.270", "1,234", "-0.0123", "3.00 x 10⁻⁷", "not defined"]
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"


def test_a_change_is_one_only_beyond_the_noise():
    low, high = [0.10, 0.11, 0.09, 0.10], [0.30, 0.31, 0.29, 0.32]
    assert change(high, low).startswith("fell from 30.5 ± 0.6 % to 10.0 ± 0.4 %")
    assert change(low, high).startswith("rose from 10.0")
    assert change([0.1, 0.5, 0.9], [0.2, 0.6, 0.8]).startswith("did not change beyond the noise")
    assert differ([1, 1], [2, 2])
    assert not differ([1, 1], [1, 1])
    assert not differ([1], [2])  # one observation has no noise to compare with


def calibration(**gaps: float) -> dict[str, pd.DataFrame]:
    rows = [
        {"variant": AS_TRAINED, "group": group, "temperature": 1.0, "images": 1000,
         "accuracy": 0.8, "confidence": 0.8 + gap, "ece": abs(gap) + 0.01}
        for group, gap in gaps.items()
    ]  # fmt: skip
    return {"summary": pd.DataFrame(rows), "bins": pd.DataFrame()}


def test_calibration_says_over_and_under():
    text = of(Calibration, calibration(overall=0.1, many=-0.15, medium=0.01, few=0.12))
    assert text.startswith("the model is over-confident: mean confidence 90.0 %, accuracy 80.0 ±")
    assert "many -15.0 ± 2.5 points (under-confident, ECE 16.0 %)" in text
    assert "medium +1.0 ± 2.5 points (neither over- nor under-confident beyond the noise" in text
    assert "few +12.0 ± 2.5 points (over-confident" in text
    text = of(Calibration, calibration(overall=-0.1, many=-0.1))
    assert text.startswith("the model is under-confident")
    assert "by shot group" not in text  # a single group is the whole
    diagnostic = Calibration(Calibration.Options())
    better, worse = calibration(overall=0.02), calibration(overall=-0.3)
    (ranked,) = diagnostic.compare({"worse": worse, "better": better})
    assert ranked.endswith(
        "lowest first: better 3.0 % (neither over- nor under-confident beyond "
        "the noise), worse 31.0 % (under-confident)."
    )


def errors(few_right: int, many_right: int) -> dict[str, pd.DataFrame]:
    """100 images of a frequent and 100 of a rare class; all others are taken for each other."""
    labels = np.repeat([0, 1], 100)
    taken = np.repeat([0, 1, 1, 0], [many_right, 100 - many_right, few_right, 100 - few_right])
    members, counts, names = {"many": [0], "few": [1]}, (500, 5), ("cat", "lynx")
    return {
        "groups": group_table(labels, taken, members),
        "classes": class_table(labels, taken, counts, names, members),
        "confusions": confusion_table(labels, taken, names, 3),
        "examples": pd.DataFrame({"class": []}),
    }


def test_errors_say_who_loses_and_to_whom():
    text = of(Errors, errors(few_right=40, many_right=95))
    assert text.startswith("65 of 200 test images are misclassified (32.5 ± ")
    assert "few-shot classes lose most: 60.0 ± " in text
    assert "Their 60 errors go to many-shot (60) classes." in text
    assert "lowest recall: lynx 40.0 % (5 training images; 60 of 100 taken for cat)" in text
    assert "many-shot 1.55, few-shot 0.450 (1 is balanced)" in text
    text = of(Errors, errors(few_right=95, many_right=40))
    assert "many-shot classes lose most" in text
    assert "lowest recall: cat" in text
    assert "do not differ beyond the noise" in of(Errors, errors(few_right=90, many_right=92))
    perfect = of(Errors, errors(few_right=100, many_right=100))
    assert perfect.startswith("0 of 200")
    assert "lowest recall" not in perfect


def conflicts(*shares: float, stage: int = 0) -> dict[str, pd.DataFrame]:
    rows = [
        {"state": f"stage 1, epoch {i + 1}", "stage": stage, "part": "last", "batch": b,
         "pairs": 100, "conflicts": 100 * share + b, "dominated": 50 * share}
        for i, share in enumerate(shares)
        for b in range(4)
    ]  # fmt: skip
    ratios = [{"name": "cat", "images": 500, "norm_ratio": 3.0}]
    ratios.append({"name": "lynx", "images": 5, "norm_ratio": 0.2})
    last = {"state": f"stage 1, epoch {len(shares)}", "stage": stage, "part": "last"}
    return {"conflicts": pd.DataFrame(rows), "classes": pd.DataFrame([r | last for r in ratios])}


def test_conflicts_fall_rise_or_stay():
    text = of(Conflicts, conflicts(0.4, 0.3, 0.1))
    assert "from stage 1, epoch 1 to stage 1, epoch 3 the share of conflicting pairs" in text
    assert "classes fell from 41.5 ± 0.6 % to 11.5 ± 0.6 %" in text
    assert "that of dominated conflicts fell from 20.0 ± 0.0 % to 5.0 ± 0.0 %" in text
    assert "longest gradient is that of class cat (500 training images, 3)" in text
    assert "classes rose from 11.5" in of(Conflicts, conflicts(0.1, 0.4))
    assert "did not change beyond the noise" in of(Conflicts, conflicts(0.1, 0.105))
    assert "classes is the same at both, 11.5 ± 0.6 %" in of(Conflicts, conflicts(0.1, 0.1))
    assert of(Conflicts, conflicts(0.2)).startswith("at stage 1, epoch 1, 21.5 ± 0.6 % of the")


def test_conflicts_of_two_models_are_ranked_unless_they_are_alike():
    diagnostic = Conflicts(Conflicts.Options())
    found = diagnostic.compare({"plain": conflicts(0.4), "plot": conflicts(0.1)})
    assert found[0].startswith("conflicts at the end of the first stage, fewest first: plot 11.5")
    assert "beyond the noise" not in found[0]
    alike = diagnostic.compare({"a": conflicts(0.4), "b": conflicts(0.4)})
    assert all("they do not differ beyond the noise" in sentence for sentence in alike)


def test_conflicts_over_the_log_of_training():
    def steps(*shares: float) -> dict[str, pd.DataFrame]:
        rows = [{"stage": 0, "pairs": 10, "conflicts": 10 * s, "dominated": 5.0} for s in shares]
        return {"steps": pd.DataFrame(rows)}

    falling = np.linspace(0.9, 0.1, 25)
    text = of(Trajectory, steps(*falling))
    assert "of 25 measured steps: the share of conflicting pairs of classes fell from 83.3" in text
    assert "that of dominated conflicts is the same at both, 50.0" in text
    assert "classes rose from" in of(Trajectory, steps(*falling[::-1]))


def hessian(often: float, rare: float, error: float = 0.1) -> dict[str, pd.DataFrame]:
    rows = [
        {"class": k, "name": name, "count": count, "largest": trace / 2, "smallest": -trace / 20,
         "trace": trace, "trace_error": error}
        for k, (name, count, trace) in enumerate([("cat", 500, often), ("lynx", 5, rare)])
    ]  # fmt: skip
    tops = [{"class": k, "rank": 1, "residual": 0.01} for k in (0, 1)]
    return {"summary": pd.DataFrame(rows), "eigenvalues": pd.DataFrame(tops)}


def test_hessian_says_sharper_flatter_or_neither():
    text = of(Hessian, hessian(2, 20))
    assert "class cat (500 training images) has the largest eigenvalue 1 ± 0.0100" in text
    assert "the rare class is sharper by the trace" in text
    assert "lynx -1 (10.0 % of the largest)" in text
    assert "the rare class is flatter by the trace" in of(Hessian, hessian(20, 2))
    assert "the traces do not differ beyond the noise" in of(Hessian, hessian(2, 20, error=9))


def test_landscape_names_the_steepest_group():
    def line(many: float, few: float) -> dict[str, pd.DataFrame]:
        ends = {"many": many, "few": few}
        rows = [
            {"group": g, "x": x, "loss": 0.1 if x == 0 else end}
            for g, end in ends.items()
            for x in (-0.5, 0.0, 0.5)
        ]
        return {"line": pd.DataFrame(rows)}

    assert "many 0.100 to 1, few 0.100 to 3; it rises most for few" in of(Landscape, line(1, 3))
    assert "it rises most for many" in of(Landscape, line(3, 1))
    (ranked,) = Landscape(Landscape.Options()).compare({"a": line(1, 3), "b": line(1, 2)})
    assert ranked.endswith(
        "loss of few along one random direction, flattest first: b 1.90, a 2.90."
    )


def test_norms_grow_fall_or_do_neither():
    def classes(norms) -> dict[str, pd.DataFrame]:
        table = pd.DataFrame({"count": np.arange(10, 110, 10), "weight_norm": norms})
        rows = [{"group": "all", "nc1": 0.5, "split": "train"}]
        return {"classes": table, "collapse": pd.DataFrame(rows)}

    up, mixed = np.arange(10.0), [3, 9, 1, 7, 5, 0, 8, 2, 6, 4]
    assert "weight grows with the number of training images (rank" in of(Norms, classes(up))
    assert "weight falls with the number" in of(Norms, classes(up[::-1]))
    assert "does not depend on the number of training images beyond" in of(Norms, classes(mixed))
    assert of(Norms, classes(np.nan)).startswith("within- over between-class variance")


def test_shift_falls_rises_or_stays():
    def table(first: float, last: float, sd: float = 0.01) -> dict[str, pd.DataFrame]:
        rows = [
            {"direction": d, "ratio": 50.0, "accuracy": a, "drawn_sd": sd}
            for d, a in (("forward", first), ("backward", last))
        ]
        return {"shift": pd.DataFrame(rows)}

    assert "accuracy falls from test sets" in of(Shift, table(0.9, 0.5))
    assert "(ratio 50): 90.0 ± 1.0 %, then 50.0 ± 1.0 %" in of(Shift, table(0.9, 0.5))
    assert "accuracy rises" in of(Shift, table(0.5, 0.9))
    assert "does not change beyond the noise" in of(Shift, table(0.6, 0.5, sd=0.1))


def test_similarity_lies_between_above_or_below_its_references():
    def table(value: float) -> dict[str, pd.DataFrame]:
        row = {"measure": "cka", "head_tail": value, "chance": 0.2, "head_head": 0.8}
        return {"similarity": pd.DataFrame([row])}

    for value, where in ((0.5, "between"), (0.9, "above"), (0.1, "below")):
        assert f"CKA {value:.3f}, {where} chance (0.200)" in of(Cca, table(value))


def test_separation_names_the_best_score():
    rows = [
        {"score": s, "group": g, "known": 10, "unknown": 20, "auroc": a}
        for s, base in (("softmax", 0.7), ("energy", 0.9), ("cosine", 0.6))
        for g, a in (("overall", base), ("many", base + 0.05), ("few", base - 0.1))
    ]
    text = of(Openset, {"separation": pd.DataFrame(rows)})
    assert "AUROC (0.5 is chance): log-sum-exp of the logits 0.900, largest softmax" in text
    assert "many 0.950, few 0.800" in text


def test_neighbours_and_cost():
    row = {"neighbour_accuracy": 0.9, "images": 500, "split": "test", "trustworthiness": 0.98}
    assert of(Tsne, {"quality": pd.DataFrame([row])}).startswith("90.0 ± 2.7 % of 500 test images")

    def cost(minutes: float) -> dict[str, pd.DataFrame]:
        rows = [("parameters", 2e6, ""), ("multiply-adds", 40.0, "million")]
        rows += [("speed, batch 1", 120.0, "images/s"), ("images seen", 1e4, "")]
        rows += [("training time", minutes, "min")]
        conditions = [("timed on", "cpu")]
        return {
            "cost": pd.DataFrame(rows, columns=["quantity", "value", "unit"]),
            "conditions": pd.DataFrame(conditions, columns=["condition", "value"]),
        }

    text = of(Cost, cost(3.0))
    assert text.startswith("2 million parameters, 40 million multiply-adds an image, 120 images/s")
    assert text.endswith("training took 3 minutes for 10,000 images.")
    found = Cost(Cost.Options()).compare({"a": cost(2.0), "b": cost(3.0)})
    assert found[0] == "relative to a: training time b 1.50 times."
    assert found[1].startswith("the same for all: parameters, multiply-adds")
