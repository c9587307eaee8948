"""Steps of a verification, from a record's hashes to evaluating its weights again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from ltbench.config import plugins
from ltbench.config.network import check_published
from ltbench.config.resources import leaderboard_dir
from ltbench.data.base import place_options
from ltbench.digest import digest_of, file_sha256
from ltbench.errors import UserError
from ltbench.evaluation.metrics import Metrics
from ltbench.hub.folder import CONFIG, published_data
from ltbench.leaderboard.recipe_check import OtherVersion, check_recipe, registered
from ltbench.records.claims import check_counts, check_date, check_derived, check_others
from ltbench.records.making import today
from ltbench.records.parts import (
    MAX_DIFFERING,
    MAX_ECE_DIFFERENCE,
    CheckpointFacts,
    CodeFacts,
    DatasetFacts,
    RecipeFacts,
    VerificationFacts,
)
from ltbench.records.record import WEIGHTS, Record, schema_problems, seal_problems

if TYPE_CHECKING:
    from ltbench.data.base import Data

State = Literal["passed", "failed", "not run"]


class NotRun(Exception):
    """A step cannot be done here; the message says what it needs."""


class NoWeights(NotRun):
    """A record makes no claim to be verified, and its weights are published nowhere."""


@dataclass(frozen=True)
class Step:
    """Outcome of one step.

    Args:
        number: from 1 to 7.
        name: its subject in one word.
        state: ``passed``, ``failed`` or ``not run``.
        text: the findings, or the reason why it failed or was not run.
    """

    number: int
    name: str
    state: State
    text: str

    def __str__(self) -> str:
        return f"{self.number} {self.name:<10}  {self.state:<7}  {self.text}"


@dataclass
class Case:
    """A record under verification, with the findings of the steps so far.

    Args:
        content: parsed JSON of the record.
        others: records that it must not contradict.
        options: places of the images: options of the data set that are not part of a recipe.
        device: on which to evaluate.
    """

    content: Any
    others: Sequence[Record] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    data: Data | None = None
    data_missing: str = ""
    repository: str = ""
    revision: str = ""
    embedded: Path | None = None
    weights: Path = Path()
    facts: VerificationFacts | None = None

    @property
    def recipe(self) -> RecipeFacts:
        """Recipe of the record."""
        return RecipeFacts.model_validate(self.content["recipe"])

    @property
    def dataset(self) -> DatasetFacts:
        """Data set of the record."""
        return DatasetFacts.model_validate(self.content["dataset"])

    @property
    def metrics(self) -> Metrics:
        """Counts of the record."""
        return Metrics.model_validate(self.content["metrics"])

    @property
    def checkpoint(self) -> CheckpointFacts:
        """Weights of the record."""
        return CheckpointFacts.model_validate(self.content["checkpoint"])


def check_digest(case: Case) -> str:
    """Step 1: the hashes fit the content; the recipe is that of its name, but for overrides."""
    later = ("metrics", "checkpoint")  # steps 2 and 4
    found = schema_problems(case.content)
    problems = [line for part, line in found if part not in later]
    for line in problems or seal_problems(case.content):
        raise UserError(line)
    check_published({**case.recipe.resolved, "name": case.recipe.name}, "recipe.resolved")
    if not found:
        record = Record.model_validate(case.content)
        check_date(record)
        check_derived(record)
        try:
            check_recipe(record)
        except OtherVersion as error:
            raise NotRun(str(error)) from error
    run_id, recipe = case.content["run_id"], case.recipe
    known = "" if registered(recipe.name) else " (unregistered)"
    return (
        f"run {run_id[:12]}, recipe {recipe.name}{known} {recipe.digest}, "
        f"seed {case.content['seed']}"
    )


def check_metrics(case: Case) -> str:
    """Step 2: counts are integers that agree; everything else is computed from them."""
    _fail_for("metrics", case.content)
    metrics = case.metrics
    return (
        f"{sum(metrics.correct):,} of {sum(metrics.total):,} images correct: top-1 "
        f"{100 * metrics.top1:.2f} %, ECE {100 * metrics.ece:.2f} %"
    )


def check_data(case: Case) -> str:
    """Step 3: numbers of images are the official ones, and hashes those of the recipe's images."""
    facts, metrics = case.dataset, case.metrics
    if not schema_problems(case.content):
        record = Record.model_validate(case.content)
        check_counts(record)
        check_others(record, case.others)
    try:
        case.data = read_data(case.recipe.resolved, case.options)
    except UserError as error:
        case.data_missing = str(error).splitlines()[0]
        others = [r for r in case.others if r.run_id != case.content["run_id"]]
        same = sum(_images(r.dataset) == _images(facts) for r in others)
        if same:
            return f"the hashes are those of other records ({same}); the images were not read"
        raise NotRun(f"no images here ({case.data_missing})") from error
    info = case.data.info
    totals = [0] * info.num_classes
    for label in case.data.test.labels.tolist():
        totals[label] += 1
    found = DatasetFacts(
        name=info.name,
        train_sha256=case.data.train.fingerprint(),
        test_sha256=case.data.test.fingerprint(),
    )
    for what, here, there in (
        ("data set", found.name, facts.name),
        ("hash of the training images", found.train_sha256, facts.train_sha256),
        ("hash of the test images", found.test_sha256, facts.test_sha256),
        ("training images of each class", info.class_counts, metrics.class_counts),
        ("test images of each class", tuple(totals), metrics.total),
    ):
        if here != there:
            raise UserError(f"{what}: the record says {_cut(there)}, the images give {_cut(here)}")
    return f"{facts.name}: both hashes and all counts are those of the images"


def check_pinned(case: Case) -> str:
    """Step 4: the weights are safetensors at a commit that cannot move."""
    _fail_for("checkpoint", case.content)
    if case.content.get("checkpoint") is None:
        raise UserError("the record names no weights; only a run with weights can be verified")
    at = case.checkpoint
    if PurePosixPath(at.file).name != WEIGHTS:
        raise UserError(f"checkpoint.file: expected {WEIGHTS}, found {at.file}")
    if at.repository is None:
        case.embedded = _embedded(case)
        return f"no repository: {case.embedded} is committed with the leaderboard"
    if at.revision is None:
        raise UserError(
            f"checkpoint.revision: expected a commit of {at.repository}, 40 hex digits, found none"
        )
    case.repository, case.revision = at.repository, at.revision
    return f"{at.file} of {at.repository}@{at.revision}"


def check_listing(case: Case) -> str:
    """Step 5: the repository lists the file with the recorded hash and size."""
    at = case.checkpoint
    if case.embedded is not None:
        from ltbench.hub.zoo import find

        entry = find(case.recipe.name, case.content["seed"])
        found, size, place = entry.sha256, entry.bytes, "the committed index"
    else:
        from ltbench.remote import hub as client

        files = client.listing(case.repository, case.revision)
        place = f"{case.repository}@{case.revision[:12]}"
        if at.file not in files:
            raise UserError(f"{place} lists no {at.file}")
        found, size = files[at.file].sha256 or "none", files[at.file].size
    if (found, size) != (at.sha256, at.bytes):
        raise UserError(
            f"{place} lists {at.file} with SHA-256 {found[:12]}... and {size:,} bytes, the record "
            f"says {at.sha256[:12]}... and {at.bytes:,}"
        )
    return f"{place} lists SHA-256 {found[:12]}... and {size:,} bytes"


def check_download(case: Case) -> str:
    """Step 6: the bytes that arrive have the recorded hash."""
    at = case.checkpoint
    if case.embedded is not None:
        found = file_sha256(case.embedded)
        if found != at.sha256:
            raise UserError(
                f"{case.embedded} has SHA-256 {found[:12]}..., the record says {at.sha256[:12]}..."
            )
        case.weights = case.embedded
        return f"the committed file has SHA-256 {found[:12]}..."
    from ltbench.remote import hub as client

    case.weights = client.download(
        case.repository, at.file, case.revision, sha256=at.sha256, size=at.bytes
    )
    return f"the downloaded file has SHA-256 {at.sha256[:12]}..."


def check_evaluation(case: Case) -> str:
    """Step 7: evaluating the weights again reproduces the counts and the calibration error."""
    if case.data is None:
        raise NotRun(f"this step needs the test images: add data.root=DIR ({case.data_missing})")
    away = plugins.missing(case.recipe.resolved)
    if away:
        raise NotRun(away)
    from ltbench.distributed.device import pick_device
    from ltbench.evaluation.evaluate import evaluate
    from ltbench.hub.load import load_described
    from ltbench.machine import environment, gpu_name
    from ltbench.methods.weights import check_classes
    from ltbench.remote import hub as client

    recorded = case.metrics
    if case.embedded is None:
        inside = PurePosixPath(case.checkpoint.file).parent
        client.download(case.repository, str(inside / CONFIG), case.revision)
    method, facts = load_described(case.weights.parent)
    _same_run(case, facts)
    check_classes(facts, case.data.info, "the model")
    device = pick_device(case.device)
    found = evaluate(method, case.data, device=str(device))
    differing = sum(abs(a - b) for a, b in zip(found.correct, recorded.correct, strict=True))
    ece = 100 * abs(found.ece - recorded.ece)
    text = f"{differing} predictions differ, ECE differs by {ece:.4f} percentage points"
    if differing > MAX_DIFFERING or ece >= MAX_ECE_DIFFERENCE:
        raise UserError(
            f"{text}; at most {MAX_DIFFERING} and less than {MAX_ECE_DIFFERENCE} are allowed"
        )
    around = environment()
    case.facts = VerificationFacts(
        date=today(),
        code=CodeFacts(**around["code"]),
        device=gpu_name(device) or around["cpu"],
        differing=differing,
        ece_difference=ece,
    )
    return f"{text}, on {case.facts.device}"


STEPS: tuple[tuple[str, Callable[[Case], str]], ...] = (
    ("digest", check_digest),
    ("metrics", check_metrics),
    ("data", check_data),
    ("pinned", check_pinned),
    ("listing", check_listing),
    ("download", check_download),
    ("evaluation", check_evaluation),
)


def read_data(resolved: Mapping[str, Any], options: Mapping[str, Any]) -> Data:
    """Return the data that a resolved recipe reads.

    Args:
        resolved: of a record; paths in it are left aside.
        options: places of the images; those unknown to this data set are left aside.

    Raises:
        UserError: they cannot be read.
    """
    from ltbench.config.validation import build_options
    from ltbench.data import DATASETS

    part = resolved.get("data")
    fixed = published_data(part if isinstance(part, dict) else None, "recipe.resolved")
    name = fixed.pop("name")
    places = place_options(DATASETS.get(name))
    given = {k: v for k, v in options.items() if k in places}
    data: Data = build_options("DATASETS", name, {**fixed, **given}).load()  # type: ignore[attr-defined]
    return data


def _fail_for(part: str, content: Any) -> None:
    for where, line in schema_problems(content):
        if where == part:
            raise UserError(line)


def _same_run(case: Case, facts: Mapping[str, Any]) -> None:
    """Check that the description beside the weights is that of the record's run.

    Raises:
        UserError: it is of another one.
    """
    recipe = case.recipe
    theirs = digest_of({key: facts["recipe"].get(key) for key in recipe.resolved})
    if facts.get("sha256") != case.checkpoint.sha256:
        raise UserError(f"{CONFIG} beside the weights is about other weights")
    stated = (theirs, facts.get("seed"))
    if stated != (recipe.digest, case.content["seed"]):
        raise UserError(
            f"{CONFIG} beside the weights describes recipe {stated[0]}, seed {stated[1]}; the "
            f"record says {recipe.digest}, seed {case.content['seed']}"
        )


def _embedded(case: Case) -> Path:
    """Return the committed weights of a record without a repository.

    Raises:
        NoWeights: there are none.
        UserError: there are none, and the record is marked as verified.
    """
    from ltbench.hub.zoo import read_index

    entry = read_index().get(case.recipe.name, {}).get(case.content["seed"])
    if entry is None or entry.embedded is None:
        fault = UserError if case.content.get("status") == "verified" else NoWeights
        raise fault(
            "checkpoint.repository: expected ORG/NAME with a 40-hex revision, found none; publish "
            "the weights, then submit with repository= and revision="
        )
    return leaderboard_dir() / entry.embedded / WEIGHTS


def _images(facts: DatasetFacts) -> tuple[str, str, str]:
    return facts.name, facts.train_sha256, facts.test_sha256


def _cut(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
