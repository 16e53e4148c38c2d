"""Two unpaired domains: the same bytes again, a truth that is one, and sources of one's own."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_arcs
from PIL import Image
from toys import ToyConfig, ToyTranslator

from data_prep import make_domains
from mtld_core.config import UserError
from mtld_core.data import open_dataset
from mtld_core.metrics import colour_transfer

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


def test_in_the_crossed_palette_colour_points_to_the_wrong_part(tmp_path):
    """Where the colour transfer between the domains takes X's parts. The worlds are the same ones."""
    nearest = {}
    for name, palette in make_domains.PALETTES.items():
        make_domains.shapes(tmp_path / name, clips=8, frames=4, size=32, palette=name)
        pair = open_dataset(tmp_path / name, cache=False, progress=False)
        matrix, shift = colour_transfer(pair.x.frames, pair.y.frames)
        for part in make_domains.PARTS:
            colour = matrix.numpy() @ (255 * np.array(make_domains.X[part]).mean(0)) + shift.numpy()
            apart = {
                to: np.abs(255 * np.array(palette[to]).mean(0) - colour).sum() for to in make_domains.PARTS
            }
            nearest[name, part] = min(apart, key=apart.get)
    assert nearest["easy", "disc"] == "disc" and nearest["crossed", "disc"] == "box", nearest
    easy, crossed = files(tmp_path / "easy"), files(tmp_path / "crossed")
    same = {path for path in easy if easy[path] == crossed[path]}
    assert same == {path for path in easy if path.startswith(("X/", "truth/Y_in_X/"))}


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


def test_by_night_every_other_arc_is_y_and_its_truth_known(tmp_path):
    write_arcs(tmp_path / "film", [6, 7, 8, 9], 32, 32)
    make_domains.film(tmp_path / "out", tmp_path / "film", size=32, look="night")
    original = open_dataset(tmp_path / "film", cache=False, progress=False)
    pair = open_dataset(tmp_path / "out", cache=False, progress=False)
    plain = {arc.name: original.frames[arc.start : arc.stop].numpy() for arc in original.arcs}
    assert [[arc.name for arc in part.arcs] for part in (pair.x, pair.y)] == [
        ["arc_0", "arc_2"],
        ["arc_1", "arc_3"],
    ]
    dark = {name: make_domains.night(clip) for name, clip in plain.items()}
    for folder, clips in (("X", plain), ("truth/X_in_Y", dark)):
        assert (frames(tmp_path / "out" / folder) == np.concatenate([clips["arc_0"], clips["arc_2"]])).all()
    for folder, clips in (("Y", dark), ("truth/Y_in_X", plain)):
        assert (frames(tmp_path / "out" / folder) == np.concatenate([clips["arc_1"], clips["arc_3"]])).all()


def test_a_night_is_no_map_of_colours():
    """Reds lose more light than blues, corners more than the middle; a lamp glows; grain changes with time."""
    patches = np.zeros((3, 96, 96, 3), np.uint8)
    patches[:, 40:44, 40:44] = (200, 40, 40)
    patches[:, 40:44, 52:56] = (40, 40, 200)
    patches[:, :4, :4] = (40, 40, 200)
    made = make_domains.night(patches).astype(float)
    red, blue, corner = (
        made[:, y : y + 4, x : x + 4].sum(-1).mean() for y, x in ((40, 40), (40, 52), (0, 0))
    )
    assert red < 0.75 * blue and corner < 0.75 * blue
    lamp = np.zeros_like(patches)
    lamp[:, 44:52, 44:52] = 255
    around = make_domains.night(lamp)[:, 40:44, 44:52].astype(float).mean((0, 1, 2))
    assert around[0] > 20 and around[0] > 2 * around[2]  # warm, where nothing was
    grain = make_domains.night(np.full((3, 32, 32, 3), 90, np.uint8))
    assert (grain[0] != grain[1]).mean() > 0.5 and (
        grain == make_domains.night(np.full((3, 32, 32, 3), 90, np.uint8))
    ).all()


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
        (["--film", ""], "a source is empty: name a video"),
        (["--film", "sample", "--x", "sample", "--y", "sample"], "give --x and --y together, or --film"),
        (["--look", "night"], "--look does nothing here"),
        (["--film", "sample", "--palette", "crossed"], "--palette does nothing here"),
        (["--film", "sample", "--size", "0"], "size must be 16 or more"),
    ],
)
@pytest.mark.versionless  # our own errors
def test_bad_input_is_said_in_one_line(arguments, words, tmp_path):
    command = [sys.executable, ROOT / "data_prep/make_domains.py", tmp_path / "out", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and words in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []  # and nothing half-written


def test_videos_beside_a_cover_are_the_source_and_a_bad_one_is_named(tmp_path, capsys):
    """The cover was the only arc, and what could not be extracted went without a word."""
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(ROOT / "data_prep/sample/bigbuckbunny.mp4", folder / "film.mp4")
    (folder / "bad.mp4").write_bytes(b"no video")
    Image.new("RGB", (20, 20)).save(folder / "cover.jpg")
    counts = make_domains.pair(tmp_path / "out", folder, folder / "film.mp4", size=16)
    assert counts == {"X": (1, 132), "Y": (1, 132)}
    assert "bad.mp4: not a readable video" in capsys.readouterr().err
    write_arcs(folder, [3])
    assert make_domains.pair(tmp_path / "arcs", folder, folder / "film.mp4", size=16)["X"] == (1, 3)
    assert "film.mp4: lies beside the arcs, left out" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"videos", "out", "arcs"}


def test_a_source_that_makes_no_domains_is_said(shapes, tmp_path):
    with pytest.raises(UserError, match=r"holds two domains already: name .*X or .*Y"):
        make_domains.film(tmp_path / "out", shapes)
    write_arcs(tmp_path / "film", [5])
    with pytest.raises(UserError, match="arc 'arc_0' has 5 frames, and 6 blocks are cut"):
        make_domains.film(tmp_path / "out", tmp_path / "film", size=16)
    with pytest.raises(
        UserError, match=r"has 1 arcs, and the night takes every other one of 4 or more: .*split_scenes"
    ):
        make_domains.film(tmp_path / "out", tmp_path / "film", size=16, look="night")


def test_what_is_there_is_not_overwritten(shapes):
    before = files(shapes)
    with pytest.raises(UserError, match="is there already"):
        make_domains.shapes(shapes, clips=1, frames=2)
    assert files(shapes) == before


def test_that_it_is_there_is_said_before_a_film_is_extracted(shapes, monkeypatch):
    monkeypatch.setattr(make_domains, "extract", lambda *_, **__: pytest.fail("extracted"))
    for make in (
        lambda: make_domains.film(shapes, "sample"),
        lambda: make_domains.pair(shapes, "sample", "sample"),
    ):
        with pytest.raises(UserError, match="is there already"):
            make()


def test_arcs_of_tiff_files_are_arcs(tmp_path):
    root = write_arcs(tmp_path / "arcs", [6, 6])
    for file in root.rglob("*.png"):
        Image.open(file).save(file.with_suffix(".tif"))
        file.unlink()
    made = make_domains.pair(tmp_path / "out", root / "arc_0", root / "arc_1", 16)
    assert made == {"X": (1, 6), "Y": (1, 6)}


def test_the_baselines_leave_something_to_learn(shapes):
    """The judge's own: no linear map of colours makes the textures, and the mean image has no shapes."""
    from mtld_core.judge.translations import TranslationJudge

    pair = open_dataset(shapes, cache=False, progress=False)
    starts = torch.tensor([0, 8]), torch.tensor([0, 8])
    judge = TranslationJudge(pair, starts, 8, [pair.x.frames, pair.y.frames])
    figures = judge(ToyTranslator(ToyConfig(32, 32)))
    named = [value for name, value in figures.items() if name.startswith("baseline_")]
    assert len(named) == 8 and all(5 < value < 22 for value in named)
