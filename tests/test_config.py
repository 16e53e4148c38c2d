"""Settings survive JSON, and whatever is wrong with one is said with its name."""

import dataclasses
import json
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtld_core import config
from mtld_core.config import (
    AtLeastOne,
    AtLeastTwo,
    BelowOne,
    ConfigError,
    NotNegative,
    Positive,
    PositiveShare,
    Settings,
    Share,
    UserError,
    Widths,
    WidthsOrNone,
    check,
    field_names,
    from_dict,
    nearest,
    parse_object,
    to_dict,
)


@dataclasses.dataclass(frozen=True)
class Everything(Settings):
    """One field for each kind of annotation that config.py promises."""

    count: NotNegative[int] = 1
    rate: float = 0.5
    on: bool = False
    word: str = "a"
    widths: tuple[int, ...] = (1, 2)
    shares: tuple[float, ...] = (0.5,)
    names: tuple[str, ...] = ()
    mode: bool | str = "auto"
    norm: typing.Literal["instance", "group", "none"] = "group"


finite = st.floats(allow_nan=False, allow_infinity=False)
everything = st.builds(
    Everything,
    count=st.integers(0, 2**60),
    rate=finite,
    on=st.booleans(),
    word=st.text(),
    widths=st.lists(st.integers(-(2**60), 2**60)).map(tuple),
    shares=st.lists(finite).map(tuple),
    names=st.lists(st.text()).map(tuple),
    mode=st.booleans() | st.text(),
    norm=st.sampled_from(["instance", "group", "none"]),
)


@settings(max_examples=40, deadline=None)
@given(everything)
def test_json_round_trip_loses_nothing(config):
    back = from_dict(Everything, parse_object(json.dumps(to_dict(config)), "config"))
    assert back == config
    assert [type(value) for value in vars(back).values()] == [type(value) for value in vars(config).values()]
    assert from_dict(Everything, to_dict(config)) == config
    assert list(to_dict(config)) == field_names(Everything)


def test_fields_left_out_keep_their_defaults():
    assert from_dict(Everything, {"rate": 2}) == Everything(rate=2.0)


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("rate", 3, 3.0),
        ("count", 3.0, 3),
        ("shares", [1, 0.5], (1.0, 0.5)),
        ("widths", (3, 4), (3, 4)),
        ("mode", True, True),
    ],
)
def test_what_may_be_bent(name, value, stored):
    found = getattr(from_dict(Everything, {name: value}), name)
    assert found == stored and type(found) is type(stored)
    if isinstance(stored, tuple):
        assert [type(item) for item in found] == [type(item) for item in stored]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("count", True, "type int"),
        ("count", 2.5, "type int"),
        ("count", "3", "type int"),
        ("count", None, "type int"),
        ("count", 10**400, "64 bits"),
        ("count", -(2**63), "64 bits"),
        ("rate", True, "type float"),
        ("rate", "0.1", "type float"),
        ("rate", [0.1], "type float"),
        ("on", 1, "type bool"),
        ("on", "true", "type bool"),
        ("word", 3, "type str"),
        ("word", ["a"], "type str"),
        ("widths", 3, "must be a list"),
        ("widths", "12", "must be a list"),
        ("widths", {"a": 1}, "must be a list"),
        ("mode", 1, "bool or str"),
        ("mode", None, "bool or str"),
        ("norm", "batch", "'instance', 'group', 'none'"),
        ("norm", 0, "'instance', 'group', 'none'"),
    ],
)
def test_a_wrong_type_names_field_value_and_what_is_wanted(name, value, wanted):
    with pytest.raises(ConfigError) as error:
        from_dict(Everything, {name: value})
    text = str(error.value)
    assert (
        text.startswith(f"Everything.{name} ") and wanted in text and repr(value) in text and "\n" not in text
    )


def test_a_number_of_any_size_is_read():
    assert from_dict(Everything, {"count": 2**63 - 1}).count == 2**63 - 1
    assert from_dict(Everything, {"count": -0.0}).count == 0
    with pytest.raises(ConfigError, match="count must fit into 64 bits"):
        from_dict(Everything, {"count": 1e300})


@pytest.mark.parametrize("bad", [True, 1.5, "1", None])
def test_a_wrong_element_is_named_by_its_place(bad):
    with pytest.raises(ConfigError, match=r"Everything\.widths\[1\] must be of type int"):
        from_dict(Everything, {"widths": [1, bad]})


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match="Everything has no setting 'widhts'; did you mean 'widths'"):
        from_dict(Everything, {"widhts": [1]})
    with pytest.raises(ConfigError, match=r"no setting 'zzzzzz'; known: count, mode, .*widths, word"):
        from_dict(Everything, {"zzzzzz": 1})
    assert nearest("mltd", ["rl_v2v", "mtld"]) == "; did you mean 'mtld'?"
    assert nearest("mltd", ["b", "a"]) == "; known: a, b"
    many = nearest("mltd", [f"arc_{i:04d}" for i in range(3000)])
    assert many.startswith("; known: arc_0000, ") and many.endswith("arc_0199, ...")


def test_a_value_out_of_range_is_refused_by_the_dataclass():
    with pytest.raises(ConfigError, match="count must not be negative, it is -1"):
        from_dict(Everything, {"count": -1})
    check(True, "never said")
    assert issubclass(ConfigError, ValueError) and issubclass(ConfigError, UserError)


@dataclasses.dataclass(frozen=True)
class Ranges(Settings):
    above: Positive[float] = 1.0
    least: NotNegative[int] = 0
    one: AtLeastOne[int] = 1
    two: AtLeastTwo[int] = 2
    beta: BelowOne[float] = 0.0
    share: Share[float] = 1.0
    some: PositiveShare[float] = 1.0
    widths: Widths = (1,)
    more: WidthsOrNone = ()


@pytest.mark.parametrize(
    ("name", "good", "bad", "words"),
    [
        ("above", 1e-9, 0.0, "must be positive, not 0.0"),
        ("least", 0, -1, "must not be negative, it is -1"),
        ("one", 1, 0, "must be at least 1, not 0"),
        ("two", 2, 1, "must be at least 2, not 1"),
        ("beta", 0.999, 1.0, r"must be in \[0, 1\), not 1.0"),
        ("share", 0.0, 1.01, r"must be in \[0, 1\], not 1.01"),
        ("some", 0.01, 0.0, r"must be in \(0, 1\], not 0.0"),
        ("widths", (3, 1), (), "must list positive widths"),
        ("widths", (3, 1), (3, 0), "must list positive widths"),
        ("more", (), (-1,), "must list positive widths"),
    ],
)
def test_a_range_in_an_annotation_is_checked(name, good, bad, words):
    assert getattr(Ranges(**{name: good}), name) == good == getattr(from_dict(Ranges, {name: good}), name)
    with pytest.raises(ConfigError, match=f"{name} {words}"):
        Ranges(**{name: bad})


def test_broken_json_names_line_and_column():
    with pytest.raises(ConfigError, match=r"overrides is not valid JSON \(.*: line 3 column 1 "):
        parse_object('{\n "a": 1,\n}', "overrides")
    with pytest.raises(ConfigError, match=r"Everything is not valid JSON \(.*: line 1 column 10 "):
        parse_object('{"count" 1}', "Everything")


@pytest.mark.parametrize("text", [f'{{"steps": {"9" * 5000}}}', f'{{"a": {"[" * 100_000}'])
def test_json_too_large_to_be_meant_is_refused(text):
    with pytest.raises(ConfigError, match="overrides is not valid JSON"):
        parse_object(text, "overrides")


@pytest.mark.parametrize(
    ("text", "kind"), [("[1]", "list"), ("3", "int"), ("null", "NoneType"), ('"a"', "str")]
)
def test_json_that_is_no_object_is_refused(text, kind):
    with pytest.raises(ConfigError, match=f"Everything must be a JSON object .* not {kind}"):
        parse_object(text, "Everything")


# ---- where a path is looked for


def test_a_relative_path_is_looked_for_here_then_in_the_project(tmp_path, monkeypatch):
    for folder in ("here", "project/notebooks", "project/examples/pong"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(config, "places", [tmp_path / "project/notebooks", tmp_path / "project"])
    pong = str(tmp_path / "project/examples/pong")
    assert config.find("examples/pong") == pong and config.find(Path("examples/pong")) == pong
    assert config.find("examples/ping") == "examples/ping" and config.find("") == ""
    (tmp_path / "here/examples/pong").mkdir(parents=True)
    assert config.find("examples/pong") == "examples/pong" and config.find(pong) == pong
    assert (
        config.looked_in("x")
        == f" (looked in {tmp_path}/here, {tmp_path}/project/notebooks, {tmp_path}/project)"
    )
    monkeypatch.chdir("../project")
    assert config.looked_in("x") == f" (looked in {tmp_path}/project, {tmp_path}/project/notebooks)"
    assert config.looked_in("/x") == ""


def test_an_id_on_the_hub_is_the_folder_that_it_was_fetched_into(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.find("hf://me/pong") == "hf://me/pong"
    (tmp_path / "runs/me--pong").mkdir(parents=True)
    assert config.find("hf://me/pong") == "runs/me--pong"


def test_each_id_on_the_hub_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / config.hub_folder("hf://a_b/c")).mkdir(parents=True)
    assert config.find("hf://a/b_c") == "hf://a/b_c"  # another run, which is still to be fetched
