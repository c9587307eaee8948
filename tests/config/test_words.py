"""Words of the command line, right and wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from ltbench.config.schema import Config
from ltbench.config.words import PLAIN, REST, describe_words, read_words
from ltbench.errors import UserError


class Check(Config):
    path: Path = Field(json_schema_extra=PLAIN, description="Folder of shards.")
    level: Literal["size", "crc"] = Field("crc", description="How much is checked.")
    workers: int = Field(4, ge=1, le=64, description="Processes.")
    name: str | None = None
    what: tuple[str, ...] = ("a", "b")
    sizes: tuple[int, ...] = ()
    out: Path | None = None
    private: bool = False
    data: dict[str, Any] = Field({}, description="Options of the data set.")


class Run(Config):
    recipe: str
    seed: int | None = Field(None, ge=0)
    words: tuple[str, ...] = Field((), json_schema_extra=REST)


class Prepare(Config):
    dataset: str
    options: dict[str, Any] = Field({}, json_schema_extra=REST)


def test_values_become_what_the_fields_hold():
    words = ["SHARDS", "level=size", "workers=8", "name=1e10", "what=x,y", "sizes=2,3"]
    given = read_words([*words, "out=~/x", "private=true", "data.root=D", "data.size=3"], Check)
    assert given == Check(
        path=Path("SHARDS"), level="size", workers=8, name="1e10", what=("x", "y"), sizes=(2, 3),
        out=Path("~/x").expanduser(), private=True, data={"root": "D", "size": "3"},
    )  # fmt: skip
    assert read_words(["S"], Check) == Check(path=Path("S"))


def test_a_tilde_alone_is_a_name():
    assert read_words(["S", "out=~"], Check).out == Path("~")
    assert read_words(["~", "out=~nobody/x"], Check) == Check(path=Path("~"), out="~nobody/x")


def test_a_mapping_and_its_keys_complete_each_other_in_each_order():
    words = ["S", "data={root: D}", "data.size=3"]
    for order in (words, words[::-1]):
        assert read_words(order, Check).data == {"root": "D", "size": "3"}
        with pytest.raises(UserError, match=r"`data.root` = E contradict each other"):
            read_words([*order, "data.root=E"], Check)


def test_a_value_may_hold_equals_signs():
    assert read_words(["S", "name=a=b"], Check).name == "a=b"


def test_other_words_are_kept():
    run = read_words(["recipe=ce", "seed=1", "stages.0.epochs=3", "out=a b"], Run)
    assert run.words == ("stages.0.epochs=3", "out=a b")
    assert read_words(["dataset=list", "train=x.txt", "pad=2"], Prepare).options == {
        "train": "x.txt",
        "pad": "2",  # the data set's options say what it is
    }


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([], Check, "expected PATH, found nothing"),
        (["a", "b"], Check, "expected one PATH, found a, b"),
        (["a", "levle=crc"], Check, "`levle`: unknown key (did you mean `level`?)"),
        (["a", "zz=1"], Check, "`zz`: unknown key; known here: level, workers"),
        (["a", "level=crd"], Check, "'size' or 'crc', found 'crd' (did you mean `crc`?)"),
        (["a", "workers=0"], Check, "`workers`: should be greater than or equal to 1, found 0"),
        (["a", "workers=true"], Check, "`workers`: expected a number, found true"),
        (["a", "workers=x"], Check, "`workers`: should be a whole number, found 'x'"),
        (["a", "workers=1", "workers=2"], Check, "`workers` is given twice; give it once"),
        (["a", "data.x=1", "data.x=2"], Check, "`data.x` is given twice; give it once"),
        (["a", "workers="], Check, "`workers`: expected a value after `=`, found none"),
        (["a", "data=x"], Check, "`data`: should be a valid dictionary, found 'x'"),
        (["a", "data.x="], Check, "`data.x`: expected a value after `=`, found none"),
        (["a", "sizes=1,,2"], Check, "`sizes`: expected values with commas between, found `1,,2`"),
        (["a", "workers=[1"], Check, "`workers`: cannot read the value `[1`"),
        (["recip=ce"], Run, "expected `recipe=...`, found recip=ce (did you mean `recip`?)"),
        (["ce"], Run, "expected `key=value`, found `ce`"),
    ],
)
def test_mistakes_say_what_was_required_and_found(words, options, message):
    with pytest.raises(UserError) as raised:
        read_words(words, options)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_all_mistakes_are_said_at_once():
    with pytest.raises(UserError) as raised:
        read_words(["a", "wrkers=1", "workers=[1", "level=crc", "level=crc"], Check)
    assert len(str(raised.value).splitlines()) == 3
    with pytest.raises(UserError) as raised:
        read_words(["a", "workers=0", "private=perhaps"], Check)
    assert len(str(raised.value).splitlines()) == 2


def test_other_words_may_be_limited_by_their_first_part():
    assert read_words(["recipe=ce", "run.device=cpu"], Run, rest=["run"]).words
    with pytest.raises(UserError, match="did you mean `run`"):
        read_words(["recipe=ce", "rin.device=cpu"], Run, rest=["run"])


def test_the_help_is_made_of_the_fields():
    rows = dict(describe_words(Check))
    assert rows["PATH"] == "Folder of shards. [required]"
    assert rows["level=crc"] == "How much is checked. [size | crc]"
    assert rows["workers=4"] == "Processes. [1 to 64]"
    assert rows["data.KEY=VALUE"] == "Options of the data set."
