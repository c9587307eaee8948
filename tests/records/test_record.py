from __future__ import annotations

import dataclasses
import getpass
import importlib.util
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ltbench import get_recipe
from ltbench.data.base import Data, DatasetInfo
from ltbench.digest import digest_of
from ltbench.errors import UserError
from ltbench.evaluation.metrics import BINS, Metrics
from ltbench.machine import emulates_bfloat16, environment, gpu_numerics
from ltbench.records.making import make_record
from ltbench.records.record import Record, load_content, record_text, validate_record
from ltbench.records.sealing import checksums_of, run_id_of

ROOT = Path(__file__).parents[2]
COUNTS = (300, 50, 3)


@dataclasses.dataclass
class FakeSplit:
    labels: np.ndarray
    mark: str

    def fingerprint(self) -> str:
        return self.mark * 64


def metrics() -> Metrics:
    bins = [(0, 0.0, 0)] * BINS
    bins[7] = (30, 15.25, 15)
    return Metrics.from_counts([9, 5, 1], [10, 10, 10], bins, COUNTS)


def record_of(tmp_path: Path, *words: str, name: str = "ce_cifar10", worlds=(1,)) -> Record:
    labels = np.repeat(np.arange(3), 10)
    data = Data(
        DatasetInfo("cifar10_lt", COUNTS, ("a", "b", "c")),
        FakeSplit(labels, "a"),
        FakeSplit(labels, "b"),
        None,
        {"protocol": "seed0"},
    )
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    return make_record(
        get_recipe(name, *words),
        data,
        metrics(),
        device=torch.device("cpu"),
        worlds=worlds,
        seconds=1.5,
        weights=weights,
        weights_sha256="c" * 64,
    )


def test_a_record_holds_what_is_needed_and_comes_back_the_same(tmp_path):
    record = record_of(tmp_path, "seed=7", worlds=(1, 2))
    record.save(tmp_path / "record.json")
    again = Record.load(tmp_path / "record.json")
    assert again == record
    recipe = get_recipe("ce_cifar10", "seed=7")
    assert (again.recipe.name, again.recipe.digest) == ("ce_cifar10", recipe.digest)
    assert digest_of(again.recipe.resolved) == recipe.digest
    assert (again.seed, again.selection, again.complete) == (7, "last", True)
    assert again.epoch == sum(s.epochs for s in recipe.stages)
    assert again.execution.ranks == (1, 2)
    assert again.execution.per_rank_batch == (recipe.stages[0].batch_size // 2,)
    assert again.execution.libraries["torch"].startswith(torch.__version__.split("+")[0])
    assert again.execution.peak_memory_bytes > 2**20
    assert (again.dataset.train_sha256, again.dataset.test_sha256) == ("a" * 64, "b" * 64)
    assert (again.checkpoint.file, again.checkpoint.bytes) == ("model.safetensors", 7)
    assert len(again.run_id) == 32
    assert again.metrics.few == 0.1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "record.json"]


def test_what_shortens_a_run_and_what_changes_it_is_named(tmp_path):
    record = record_of(tmp_path, "stages.0.epochs=3", "stages.0.optim.lr=0.05", "run.max_steps=5")
    assert not record.complete
    assert record.shortened == ("run.max_steps", "stages.0.epochs")
    assert record.recipe.overrides == ("run.max_steps", "stages.0.epochs", "stages.0.optim.lr")
    assert record.epoch is None
    longer = record_of(tmp_path, "stages.0.epochs=300")
    assert longer.complete
    assert longer.recipe.overrides == ("stages.0.epochs",)


def test_seed_paths_and_workers_leave_the_recipe_part_alone(tmp_path):
    plain = record_of(tmp_path)
    other = record_of(tmp_path, "seed=3", f"data.root={tmp_path}", "run.workers=0", "out=x")
    assert plain.recipe == other.recipe
    assert plain.run_id != other.run_id


def test_status_alone_does_not_change_the_run_id(tmp_path):
    record = record_of(tmp_path)
    withdrawn = record.model_copy(update={"status": "withdrawn"})
    assert withdrawn.sealed() == withdrawn
    assert validate_record(json.loads(withdrawn.model_dump_json())) == []


VERIFICATION = {
    "date": "2026-01-02",
    "code": {"version": "0.1.0", "commit": None, "dirty": None},
    "device": "a processor",
    "differing": 1,
    "ece_difference": 0.01,
}


def test_verified_needs_a_verification_and_both_lie_outside_the_seal(tmp_path):
    content = json.loads(record_of(tmp_path).model_dump_json())
    verified = {**content, "status": "verified"}
    assert validate_record(verified) == ["status verified needs a verification"]
    verified["verification"] = VERIFICATION
    assert validate_record(verified) == []
    assert run_id_of(verified) == content["run_id"]
    verified["verification"] = {**VERIFICATION, "differing": 3}
    assert "`verification.differing`" in validate_record(verified)[0]


def test_a_file_from_before_a_field_with_a_default_is_not_edited(tmp_path):
    old = json.loads(record_of(tmp_path).model_dump_json())
    del old["notes"], old["recipe"]["overrides"], old["execution"]["ranks_from"]  # as never known
    del old["verification"]
    old["checksums"] = checksums_of(old)
    old["run_id"] = run_id_of(old)
    path = tmp_path / "record.json"
    path.write_bytes(record_text(old))
    record = Record.load(path)
    assert (record.notes, record.recipe.overrides, record.run_id) == ("", (), old["run_id"])
    assert load_content(path) == old
    path.write_bytes(record_text({**old, "notes": ""}))  # the default, but nobody wrote it then
    with pytest.raises(UserError, match="do not trust `notes`"):
        Record.load(path)


def every_field(content: dict, path=()):
    """Yield the path of every field and list entry of plain data."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from every_field(value, (*path, key))


def test_no_field_can_be_removed_added_or_changed(tmp_path):
    """Whatever is done to the file, except to what is said about a run afterwards, is noticed."""
    content = json.loads(record_of(tmp_path).model_dump_json())
    outside = {"status", "verification"}
    paths = [p for p in every_field(content) if p[0] not in outside]
    assert len(paths) > 150
    for *steps, last in paths:
        removed, changed, added = (json.loads(json.dumps(content)) for _ in range(3))
        for copy in (removed, changed, added):
            node = copy
            for step in steps:
                node = node[step]
            if copy is removed:
                del node[last]
            elif copy is changed:
                node[last] = [node[last]]
            elif isinstance(node, dict):
                node[f"{last}_"] = node[last]
            else:
                node.append(node[last])
            assert validate_record(copy) != [], (*steps, last)


@pytest.mark.parametrize("value", [9.0, "9", True, -1, None])
def test_counts_are_integers_and_nothing_that_looks_like_one(tmp_path, value):
    content = json.loads(record_of(tmp_path).model_dump_json())
    content["metrics"]["correct"][0] = value
    content["checksums"] = checksums_of(content)
    content["run_id"] = run_id_of(content)
    assert "`metrics.correct.0`" in validate_record(content)[0]
    content["metrics"]["correct"][0] = 9
    content["metrics"]["top1"] = 0.9
    assert "`metrics.top1` is not a field" in validate_record(content)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(date="2026-13-01"), "`date`"),
        (lambda c: c.update(seed=2**63), "`seed`"),
        (lambda c: c["metrics"]["class_counts"].__setitem__(0, 10**400), "images of a class"),
        (lambda c: c["recipe"]["resolved"].update(data="x"), "`recipe.resolved."),
        (lambda c: c["recipe"]["resolved"].update(stages=[3]), "`recipe.resolved."),
    ],
)
def test_what_no_table_could_show_is_refused(tmp_path, change, message):
    content = json.loads(record_of(tmp_path).model_dump_json())
    change(content)
    problems = validate_record(content)
    assert message in problems[0]
    assert "\n" not in problems[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"seed": 0, "seed": 1}', "`seed` is given twice"),
        (b'{"seed": 1e999}', "not JSON"),
        (b'{"notes": "\\ud800"}', "not JSON"),
        (b"[" * 100_000, "nested more than"),
    ],
)
def test_json_that_says_two_things_or_nothing_is_refused(tmp_path, text, message):
    path = tmp_path / "record.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=message):
        Record.load(path)


def test_no_path_or_name_of_user_or_machine_is_in_a_record(tmp_path):
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"x")
    record = record_of(tmp_path, f"data.root={tmp_path}", f"backbone.weights={start}")
    text = record.model_dump_json()
    hidden = {str(tmp_path), str(ROOT), str(Path.home()), platform.node(), str(start)}
    if len(getpass.getuser()) > 4:
        hidden.add(getpass.getuser())
    assert [h for h in hidden if len(h) > 1 and h in text] == []
    assert record.backbone_weights.startswith("sha256:2d711642b726b044")
    assert validate_record(json.loads(text)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["metrics"]["correct"].__setitem__(0, 8), "bins hold"),
        (
            lambda c: (
                c["metrics"]["correct"].__setitem__(0, 8),
                c["metrics"]["bin_correct"].__setitem__(7, 14),
            ),
            "do not trust `metrics`",
        ),
        (
            lambda c: (c.update(seed=5), c["dataset"].update(name="x")),
            "do not trust `dataset`, `seed`",
        ),
        (lambda c: c.update(run_id="0" * 32), "run_id or checksums"),
        (lambda c: c["recipe"]["resolved"].update(x=1), "do not trust `recipe`"),
        (lambda c: c.update(schema_version=2), "schema_version 2, this version reads 1"),
        (lambda c: c.update(extra=1), "`extra` is not a field"),
        (lambda c: c.pop("metrics"), "`metrics`: Field required"),
        (lambda c: c["checkpoint"].update(file="../x.safetensors"), "`checkpoint.file`"),
        (lambda c: c["checkpoint"].update(file="model.pkl"), "`checkpoint.file`"),
        (lambda c: c["checkpoint"].update(revision="main"), "`checkpoint.revision`"),
        (lambda c: c.update(status="paper"), "origin reproduced cannot have status paper"),
        (lambda c: c.update(shortened=["run.max_steps"]), "complete must be true exactly"),
        (lambda c: c.pop("run_id"), "is not a record of ltbench"),
    ],
)
def test_edited_and_foreign_records_are_refused_in_one_line(tmp_path, change, message):
    content = record_of(tmp_path).model_dump(mode="json")
    content = json.loads(json.dumps(content))
    assert validate_record(content) == []
    change(content)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        Record.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_was_edited_and_sealed_again_is_still_found_out(tmp_path):
    content = json.loads(record_of(tmp_path).model_dump_json())
    content["recipe"]["resolved"]["stages"][0]["epochs"] = 90
    content["checksums"] = checksums_of(content)
    content["run_id"] = run_id_of(content)
    problems = validate_record(content)
    assert len(problems) == 1
    assert "recipe.resolved gives" in problems[0]


@pytest.mark.parametrize("cut", [0, 1, 100, -3])
def test_truncated_files(tmp_path, cut):
    path = tmp_path / "record.json"
    record_of(tmp_path).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="truncated or not JSON"):
        Record.load(path)


def test_files_that_are_no_records(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(UserError, match="cannot read the record"):
        Record.load(path)
    for text in ("[]", '{"a": 1}', "3"):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a record of ltbench"):
            Record.load(path)
    path.write_text('{"schema_version": NaN}')
    with pytest.raises(UserError, match="NaN is no number"):
        Record.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="truncated or not JSON"):
        Record.load(path)


def test_an_unwritable_place_is_one_line_and_leaves_nothing(tmp_path):
    record = record_of(tmp_path)
    (tmp_path / "record.json").mkdir()
    with pytest.raises(UserError, match="could not write"):
        record.save(tmp_path / "record.json")
    with pytest.raises(UserError, match="could not write"):
        record.save(tmp_path / "absent" / "record.json")
    assert not list(tmp_path.glob(".partial-*"))


def test_it_is_known_which_processors_only_imitate_bfloat16(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    has: dict[str, bool] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    cpu = torch.device("cpu")
    assert emulates_bfloat16(cpu)
    assert not emulates_bfloat16(torch.device("cuda"))
    for name in ("avx512_bf16", "amx_bf16"):
        has.clear()
        has[name] = True
        assert not emulates_bfloat16(cpu)


@pytest.mark.parametrize("found", [True, False])
def test_an_older_torch_knows_them_too(monkeypatch, found):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: found, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert emulates_bfloat16(torch.device("cpu")) is not found


def test_environment_knows_commit_only_in_a_checkout(tmp_path):
    found = environment()
    assert found["libraries"]["python"] == platform.python_version()
    assert found["cpu"]
    copy = tmp_path / "site"
    (copy / "ltbench").mkdir(parents=True)
    (copy / "ltbench" / "__init__.py").write_text("")
    (copy / "ltbench" / "version.py").write_text("__version__ = '9.9'")
    source = (ROOT / "ltbench" / "machine.py").read_text()
    (copy / "ltbench" / "machine.py").write_text(source)
    code = "from ltbench.machine import environment as e; print(e()['code'])"

    def run_there() -> str:
        done = subprocess.run(
            [sys.executable, "-B", "-c", code], cwd=copy, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return done.stdout

    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)  # an enclosing repository is not ours
    assert "'commit': None, 'dirty': None" in run_there()
    git = ["git", "-C", str(copy), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert "'commit': None, 'dirty': None" in run_there()  # no commit yet
    subprocess.run([*git, "add", "ltbench"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    (copy / "notes.txt").write_text("cannot change a run")
    assert "'dirty': False" in run_there()
    (copy / "ltbench" / "new.py").write_text("")
    assert "'dirty': True" in run_there()


def test_exported_schema_is_in_sync_and_without_torch():
    spec = importlib.util.spec_from_file_location("export", ROOT / "tools" / "export_schema.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "leaderboard" / "schema.json").read_text()
    assert written == module.schema(), "run: python tools/export_schema.py"
    code = "import sys, ltbench.records.record; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_record_says_what_a_gpu_computed_with(tmp_path, monkeypatch):
    on_cpu = record_of(tmp_path)
    assert "gpu_numerics" not in on_cpu.model_dump(mode="json")["execution"]  # as older ones
    found = {
        "tf32_convolutions": True,
        "tf32_matmul": False,
        "cudnn_benchmark": True,
        "deterministic": False,
    }
    monkeypatch.setattr("ltbench.records.making.gpu_numerics", lambda _device: found)
    on_gpu = record_of(tmp_path)
    path = tmp_path / "record.json"
    on_gpu.save(path)
    assert load_content(path)["execution"]["gpu_numerics"] == found
    assert Record.load(path) == on_gpu


def test_tf32_is_read_by_whichever_name_set_it(monkeypatch):
    gpu = torch.device("cuda")
    assert gpu_numerics(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    for tf32 in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
        found = gpu_numerics(gpu)
        assert found is not None
        assert (found["tf32_convolutions"], found["tf32_matmul"]) == (tf32, False)

    class Mixed:  # as torch does after its new names were used
        fp32_precision = "tf32"

        @property
        def allow_tf32(self):
            raise RuntimeError("a mix of the legacy and new APIs")

    monkeypatch.setattr(torch.backends.cuda, "matmul", Mixed())
    assert gpu_numerics(gpu)["tf32_matmul"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert not gpu_numerics(gpu)["tf32_matmul"]  # Turing has none
