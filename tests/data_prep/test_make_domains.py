"""Two unpaired domains: the same bytes again, a truth that is one, and sources of one's own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_arcs
from toys import ToyConfig, ToyTranslator

from data_prep import make_domains
from mtld_core.config import UserError
from mtld_core.data import open_dataset

ROOT = Path(__file__).parents[2]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    out = tmp_path_factory.mktemp("domains") / "shapes"
    counts = make_domains.shapes(out, clips=3, frames=8, size=32, seed=5)
    assert counts == {"X": (3, 24), "truth/X_in_Y": (3, 24), "Y": (3, 24), "truth/Y_in_X": (3, 24)}
    return out


def frames(folder):
    return open_dataset(folder, cache=False, progress=False).frames.numpy()


def test_the_same_arguments_give_the_same_bytes_and_another_seed_does_not(shapes, tmp_path):
    make_domains.shapes(tmp_path / "again", clips=3, frames=8, size=32, seed=5)
    make_domains.shapes(tmp_path / "other", clips=3, frames=8, size=32, seed=6)
    assert (
        files(shapes) == files(tmp_path / "again")
        and files(shapes).keys() == files(tmp_path / "other").keys()
    )
    assert files(shapes) != files(tmp_path / "other")


def test_the_domains_open_as_a_pair_and_share_no_clip(shapes):
    pair = open_dataset(shapes, cache=False, progress=False)
    assert len(pair.x.arcs) == len(pair.y.arcs) == 3 and pair.size == (32, 32)
    truth = frames(shapes / "truth/X_in_Y")
    assert not any(
        (truth[8 * i : 8 * i + 8] == frames(shapes / "Y")[8 * j : 8 * j + 8]).all()
        for i in range(3)
        for j in range(3)
    )


def test_the_truth_shows_the_same_world_in_the_other_style(shapes):
    """The ground of one lies where the ground of the other does, and the truth has the colours of Y, not of
    X.
    """
    x, truth, y = (frames(shapes / name).astype(int) for name in ("X", "truth/X_in_Y", "Y"))
    ground_x, ground_y = (
        (x[..., 2] > x[..., 0] + 60) & (x[..., 0] < 80),
        (truth[..., 1] > truth[..., 2] + 20) & (truth[..., 0] < 120),
    )
    assert (ground_x == ground_y).mean() > 0.95
    means = [pictures.mean((0, 1, 2)) for pictures in (x, truth, y)]
    assert abs(means[1] - means[2]).max() < 12 < abs(means[0] - means[2]).max()


def test_shapes_move_smoothly_and_stay_inside():
    world = make_domains._world(np.random.default_rng(0), 400)
    for part, radius in make_domains.PARTS.items():
        path = world[part]
        assert path.min() >= radius - 1e-9 and path.max() <= 1 - radius + 1e-9
        assert np.abs(np.diff(path, axis=0)).max() <= 1.4 * make_domains.STEP / 64 + 1e-9
        assert np.ptp(path, axis=0).max() > 0.3


def test_a_film_is_graded_in_turn_and_its_truth_known(tmp_path):
    write_arcs(tmp_path / "film", [24])
    make_domains.film(tmp_path / "out", tmp_path / "film", size=16)
    original = frames(tmp_path / "film")
    pair = open_dataset(tmp_path / "out", cache=False, progress=False)
    assert [arc.name for arc in pair.x.arcs] == ["arc_0_0", "arc_0_2", "arc_0_4"]
    assert [arc.name for arc in pair.y.arcs] == ["arc_0_1", "arc_0_3", "arc_0_5"]
    blocks = original.reshape(6, 4, 16, 16, 3)
    assert (pair.x.frames.numpy() == blocks[::2].reshape(-1, 16, 16, 3)).all()
    assert (pair.y.frames.numpy() == make_domains.grade(blocks[1::2]).reshape(-1, 16, 16, 3)).all()
    assert (
        frames(tmp_path / "out/truth/X_in_Y") == make_domains.grade(blocks[::2]).reshape(-1, 16, 16, 3)
    ).all()
    assert (frames(tmp_path / "out/truth/Y_in_X") == blocks[1::2].reshape(-1, 16, 16, 3)).all()


def test_the_grade_keeps_apart_what_was_apart():
    """A look-up that made two colours one could not be undone."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    assert len(np.unique(make_domains.grade(cube), axis=0)) == len(cube)


def test_two_sources_of_ones_own(tmp_path):
    write_arcs(tmp_path / "day", [3], 20, 16)
    write_arcs(tmp_path / "night", [4], 16, 24)
    counts = make_domains.pair(tmp_path / "out", tmp_path / "day", tmp_path / "night", size=16)
    assert counts == {"X": (1, 3), "Y": (1, 4)}
    assert open_dataset(tmp_path / "out", cache=False, progress=False).size == (16, 16)
    assert not (tmp_path / "out/truth").exists()


def test_videos_of_ones_own(tmp_path):
    video = ROOT / "data_prep/sample/bigbuckbunny.mp4"
    counts = make_domains.pair(tmp_path / "out", "sample", video, size=16)
    assert counts == {"X": (1, 132), "Y": (1, 132)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clips", "0"], "clips must be 1 or more"),
        (["--size", "8"], "size must be 16 or more"),
        (["--x", "sample"], "give --x and --y together"),
        (["--film", "nowhere.mp4"], "nowhere.mp4"),
        (["--film", "sample", "--size", "0"], "size must be 16 or more"),
    ],
)
def test_bad_input_is_said_in_one_line(arguments, words, tmp_path):
    command = [sys.executable, ROOT / "data_prep/make_domains.py", tmp_path / "out", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and words in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []  # and nothing half-written


def test_a_source_that_makes_no_domains_is_said(shapes, tmp_path):
    with pytest.raises(UserError, match=r"holds two domains already: name .*X or .*Y"):
        make_domains.film(tmp_path / "out", shapes)
    write_arcs(tmp_path / "film", [5])
    with pytest.raises(UserError, match="arc 'arc_0' has 5 frames, and 6 blocks are cut"):
        make_domains.film(tmp_path / "out", tmp_path / "film", size=16)


def test_what_is_there_is_not_overwritten(shapes):
    before = files(shapes)
    with pytest.raises(UserError, match="is there already"):
        make_domains.shapes(shapes, clips=1, frames=2)
    assert files(shapes) == before


def test_the_baselines_leave_something_to_learn(shapes):
    """The judge's own: no linear map of colours makes the textures, and the mean image has no shapes."""
    from mtld_core.judge.translations import TranslationJudge

    pair = open_dataset(shapes, cache=False, progress=False)
    starts = torch.tensor([0, 8]), torch.tensor([0, 8])
    judge = TranslationJudge(pair, starts, 8, [pair.x.frames, pair.y.frames])
    figures = judge(ToyTranslator(ToyConfig(32, 32)))
    named = [value for name, value in figures.items() if name.startswith("baseline_")]
    assert len(named) == 8 and all(5 < value < 22 for value in named)
