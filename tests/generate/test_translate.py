"""Translations: judged against a known truth by hand-made figures, and the whole job of translating a clip."""

import dataclasses
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import av
import jupytext
import numpy as np
import pytest
import torch
from conftest import shown
from PIL import Image
from rolling import ABOUT, press_generate
from torch import nn

from mtld_core import media
from mtld_core.config import UserError
from mtld_core.data import open_dataset
from mtld_core.generate import jobs as generation
from mtld_core.generate import panel
from mtld_core.generate.rollouts import stream_translation
from mtld_core.judge.translations import TranslationJudge
from mtld_core.metrics import colour_transfer
from mtld_core.systems.base import Needs, Reconstructs, System, Translates

HEIGHT, WIDTH, LENGTH = 8, 12, 20
NOTEBOOK = Path(__file__).parents[2] / "notebooks/03_generate.py"


@dataclasses.dataclass(frozen=True)
class Config:
    height: int = HEIGHT
    width: int = WIDTH


class Negative(Reconstructs, Translates, System):
    """The right translation of `write_pair`: the negative, moved right (y_to_x: left) by the number of frames before."""

    name = "negative"
    Config = Config

    def __init__(self, config=Config(), right=True):  # noqa: B008 (frozen)
        super().__init__(config)
        self.weight, self.right, self.pieces = nn.Parameter(torch.zeros(())), right, []

    def needs(self):
        return Needs(window=4, domains=2)

    def translate(self, frames, direction="x_to_y", state=None):
        state = state or 0
        self.pieces.append(frames.shape[1])
        way = {"x_to_y": 1, "y_to_x": -1}[direction]
        moved = [frame.roll(way * (state + t), -1) for t, frame in enumerate(frames.unbind(1))]
        made = -torch.stack(moved, 1) if self.right else frames
        return made, state + frames.shape[1]


def save(folder, frames, first=0):
    folder.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{first + t:04d}.png")


def moved(frames, way):
    return np.stack([255 - np.roll(frame, way * t, 1) for t, frame in enumerate(frames)])


def clip(seed, length=LENGTH, low=0):
    """Flat columns, of which one brightens: nothing that a hard cut could be seen in."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(low, 200, (1, WIDTH // 4, 3)).repeat(4, 1), HEIGHT, 0)[None].repeat(
        length, 0
    )
    frames[:, :, :4, 0] = low + 2 * np.arange(length)[:, None, None]
    return frames.astype(np.uint8)


def write_pair(root, arcs=6, length=LENGTH, truth=True):
    """Two domains of arcs whose frames are numbered from 5 on, in X arc_0 to arc_5, in Y arc_0 to arc_5 of other contents."""
    for domain, other, way, low in (("X", "Y", 1, 0), ("Y", "X", -1, 50)):
        for i in range(arcs):
            frames = clip(10 * i + 5 + way, length, low)
            save(root / domain / f"arc_{i}", frames, 5)
            if truth:
                save(root / f"truth/{domain}_in_{other}/arc_{i}", moved(frames, way), 5)
    return root


def db(a, b):
    """PSNR of a frame, by hand."""
    return min(100.0, -10 * math.log10(max(1e-10, ((a / 255.0 - b / 255.0) ** 2).mean())))


# ---- the judge


def judge_of(root, starts=([2, 27], [41]), window=4):
    pair = open_dataset(root, progress=False)
    samples = pair.x.frames[40:60], pair.y.frames[60:100]
    return pair, samples, TranslationJudge(pair, tuple(map(torch.tensor, starts)), window, samples)


def test_figures_and_baselines_by_hand(tmp_path):
    pair, samples, judge = judge_of(write_pair(tmp_path / "data"))
    untouched = judge(Negative(right=False))
    assert untouched["psnr_x_to_y"] == pytest.approx(untouched["baseline_identity_psnr_x_to_y"])
    x, y = (domain.frames.numpy() for domain in (pair.x, pair.y))
    # windows of X: frames 2 to 5 of arc_0 and 7 to 10 of arc_1; their truth is where the whole arc has it
    source = [x[row] for start in (2, 27) for row in range(start, start + 4)]
    truth = [255 - np.roll(x[row], row % LENGTH, 1) for start in (2, 27) for row in range(start, start + 4)]
    figures = judge(Negative())
    made = [
        255 - np.roll(x[start + t], t, 1) for start in (2, 27) for t in range(4)
    ]  # a window begins unmoved
    assert figures["psnr_x_to_y"] == pytest.approx(
        np.mean([db(*both) for both in zip(made, truth, strict=True)])
    )
    wanted = np.mean([db(*both) for both in zip(source, truth, strict=True)])
    assert figures["baseline_identity_psnr_x_to_y"] == pytest.approx(wanted)
    mean = np.round(samples[1].numpy().astype(float).mean(0))
    wanted = np.mean([db(mean, one) for one in truth])
    assert figures["baseline_mean_image_psnr_x_to_y"] == pytest.approx(wanted)
    matrix, shift = (part.numpy() for part in colour_transfer(*samples))
    recoloured = [np.clip(np.round(one @ matrix.T + shift), 0, 255) for one in source]
    wanted = np.mean([db(*both) for both in zip(recoloured, truth, strict=True)])
    assert figures["baseline_colour_transfer_psnr_x_to_y"] == pytest.approx(
        wanted, abs=0.05
    )  # a rounding on the edge
    names = ("identity", "mean_image", "colour_transfer")
    for d in ("x_to_y", "y_to_x"):
        assert figures[f"baseline_psnr_{d}"] == max(figures[f"baseline_{name}_psnr_{d}"] for name in names)
    there = (
        [255 - np.roll(y[41 + t], -t, 1) for t in range(4)],
        [255 - np.roll(y[41 + t], -(1 + t), 1) for t in range(4)],
    )
    assert figures["psnr_y_to_x"] == pytest.approx(np.mean([db(*both) for both in zip(*there, strict=True)]))


def test_flicker_by_hand(tmp_path):
    """A source that brightens steadily does not flicker; its columns on the move come and go."""
    pair, _, judge = judge_of(write_pair(tmp_path / "data"))
    figures = judge(Negative())
    assert figures["flicker_source_x_to_y"] == figures["flicker_source_y_to_x"] == 0
    made = [
        255 - np.roll(clip(10 * arc + 6)[t + n], n, 1).astype(int)
        for arc, t in ((0, 2), (1, 7))
        for n in range(4)
    ]
    x = pair.x.frames.numpy()
    truth = [
        255 - np.roll(x[row], row % LENGTH, 1).astype(int)
        for start in (2, 27)
        for row in range(start, start + 4)
    ]
    for name, clips in (("flicker_x_to_y", made), ("flicker_truth_x_to_y", truth)):
        second = [np.abs(clips[i] - 2 * clips[i + 1] + clips[i + 2]).mean() for i in (0, 1, 4, 5)]
        assert figures[name] == pytest.approx(np.mean(second))


def test_colour_transfer_gives_mean_and_covariance():
    rng = np.random.default_rng(0)
    source = torch.from_numpy(rng.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8))
    target = (
        source.double() @ torch.tensor([[0.5, 0.1, 0], [0, 0.3, 0.1], [0.2, 0, 0.4]]).T.double() + 20
    ).to(torch.uint8)
    matrix, shift = colour_transfer(source, target)
    made, wanted = (source.double() @ matrix.T + shift).reshape(-1, 3), target.reshape(-1, 3).double()
    torch.testing.assert_close(made.mean(0), wanted.mean(0))
    torch.testing.assert_close(torch.cov(made.T), torch.cov(wanted.T))
    matrix, shift = colour_transfer(source, source)
    torch.testing.assert_close(matrix, torch.eye(3).double())
    flat, grey = (
        torch.full((2, 4, 4, 3), 9, dtype=torch.uint8),
        torch.full((2, 4, 4, 3), 99, dtype=torch.uint8),
    )
    matrix, shift = colour_transfer(flat, grey)
    assert matrix.isfinite().all() and (flat[0, 0, 0].double() @ matrix.T + shift).tolist() == [99] * 3


def test_without_a_truth_its_figures_are_none(tmp_path):
    _, _, judge = judge_of(write_pair(tmp_path / "data", truth=False))
    figures = judge(Negative())
    assert {name for name, value in figures.items() if value is None} == {
        f"{name}_{d}" for name in ("psnr", "baseline_psnr", "flicker_truth") for d in ("x_to_y", "y_to_x")
    }
    assert figures["flicker_x_to_y"] > 0 and not any("identity" in name for name in figures)
    rows, labels, columns = judge.preview(Negative())
    assert labels == ["x", "x in y", "y", "y in x"] and columns == ["0", "1", "2", "3"] and len(rows) == 4


def test_the_preview_shows_source_translation_and_truth(tmp_path):
    pair, _, judge = judge_of(
        write_pair(tmp_path / "data"), ([20], [0])
    )  # an arc's beginning: the translation is right
    rows, labels, _ = judge.preview(Negative())
    assert labels == ["x", "x in y", "truth", "y", "y in x", "truth"]
    assert rows[0].equal(pair.x.frames[20:24]) and rows[1].equal(rows[2]) and rows[4].equal(rows[5])


def test_a_truth_with_a_hole_is_refused(tmp_path):
    root = write_pair(tmp_path / "data")
    (root / "truth/X_in_Y/arc_1/frame_0013.png").unlink()
    with pytest.raises(
        UserError, match=r"truth/X_in_Y: arc 'arc_1' has no frame 13; its frames go from 5 to 24"
    ):
        judge_of(root)
    judge_of(root, ([2], [41]))  # of other windows nothing is missing


# ---- the job


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A run of `Negative` on a pair of domains with a known truth; returns the system."""
    write_pair(tmp_path / "data")
    (tmp_path / "run").mkdir()
    system = Negative().eval()
    system.run = types.SimpleNamespace(
        dir=tmp_path / "run",
        checkpoint="step_00000007",
        step=7,
        preset="demo",
        dataset_path=str(tmp_path / "data"),
        training={"holdout": 0.1, "cross_cuts": False, "restitution": False, "eval_horizon": 0},
    )
    for module in (generation, panel):
        monkeypatch.setattr(module, "open_run", lambda path, checkpoint="", device="auto": system)
    return system


def written(result):
    return [media.read_image(path) for path in sorted(Path(result["out_dir"], "frames").iterdir())]


def pictures_of(path):
    with av.open(str(path)) as video:
        return [shown(frame) for frame in video.decode(video=0)]


@pytest.mark.parametrize(("direction", "domain", "way"), [("x_to_y", "X", 1), ("y_to_x", "Y", -1)])
def test_a_clips_folder_beside_its_truth(opened, tmp_path, capsys, direction, domain, way):
    source = tmp_path / "data" / domain / "arc_2"
    result = generation.generate("run", str(source), 48, direction=direction, fps=10)
    frames = clip(25 + way, low=50 * (way < 0))
    assert np.array_equal(written(result), moved(frames, way))  # frame_0000 is the first translated one
    assert capsys.readouterr().out == f"{source} has 20 frames from its start on: num_frames=48 becomes 20\n"
    assert opened.pieces == [4] * 5  # a window at a time
    assert result["num_frames"] == 20 and result["direction"] == direction and result["source"] == str(source)
    assert Path(result["out_dir"]) == tmp_path / f"run/samples/arc_2_{direction}_7"
    assert (
        result["comparison"] == "source | translated | truth"
        and result["psnr"] == 100
        and "actions" not in result
    )
    assert result["psnr_by_horizon"] == [100] * 20
    wanted = np.mean([db(*both) for both in zip(frames, moved(frames, way), strict=True)])
    assert result["baseline_identity_psnr"] == pytest.approx(wanted)
    assert json.loads(Path(result["out_dir"], "generation.json").read_text()) == result
    assert sorted(result["files"]) == ["comparison.mp4", "frames", "strip.png", "video.gif", "video.mp4"]
    pictures = pictures_of(Path(result["out_dir"], "comparison.mp4"))
    assert len(pictures) == 20 and pictures[0].shape == (30 + 12 * HEIGHT, 3 * 12 * WIDTH + 8, 3)
    parts = [pictures[7][36::12, i * (12 * WIDTH + 4) + 6 :: 12][:, :WIDTH].astype(int) for i in range(3)]
    for part, true in zip(parts, [frames[7], moved(frames, way)[7], moved(frames, way)[7]], strict=True):
        assert abs(part.mean() - true.mean()) < 12  # colours blur at the edges of such small pictures


def test_flicker_of_source_and_translation(opened, tmp_path):
    result = generation.generate("run", str(tmp_path / "data/X/arc_2"), 6)
    made = moved(clip(26), 1)[:6].astype(int)
    assert result["flicker_source"] == 0 and result["num_frames"] == 6
    assert result["flicker"] == pytest.approx(np.abs(made[:-2] - 2 * made[1:-1] + made[2:]).mean())


@pytest.mark.parametrize("direction", ["x_to_y", "y_to_x"])
def test_from_a_frame_of_the_dataset_on(opened, tmp_path, direction):
    result = generation.generate("run", "dataset:arc_3/11", direction=direction)
    way = 1 if direction == "x_to_y" else -1
    frames = clip(35 + way, low=50 * (way < 0))
    assert np.array_equal(written(result), moved(frames[6:], way)) and result["num_frames"] == 14
    truth = moved(frames, way)[6:]  # that of the whole clip, which has moved by then
    assert result["psnr_by_horizon"] == pytest.approx(
        [db(*both) for both in zip(written(result), truth, strict=True)]
    )
    assert result["source"] == "dataset:arc_3/11"


def test_from_nothing_it_is_the_first_held_out_window_of_the_domain(opened, tmp_path):
    (tmp_path / "data/Y/arc_5").rename(tmp_path / "data/Y/arc_9")
    (tmp_path / "data/truth/Y_in_X/arc_5").rename(tmp_path / "data/truth/Y_in_X/arc_9")
    for direction in ("x_to_y", "y_to_x"):
        result = generation.generate("run", direction=direction)
        assert result["source"] == "dataset:arc_3/5" and result["num_frames"] == 20 and result["psnr"] == 100


def test_a_single_image_is_a_clip_of_one_frame(opened, tmp_path, capsys):
    Image.fromarray(np.full((30, 45, 3), 40, np.uint8)).save(tmp_path / "start.png")
    result = generation.generate("run", str(tmp_path / "start.png"), 5)
    assert result["num_frames"] == 1 and np.array_equal(written(result), np.full((1, HEIGHT, WIDTH, 3), 215))
    said = capsys.readouterr().out
    assert (
        "its centre is scaled to 12x8, 0% is cut away" in said
        and "has 1 frame from its start on: num_frames=5 becomes 1" in said
    )
    assert result["comparison"] == "source | translated" and "psnr" not in result and result["flicker"] == 0
    [pair] = pictures_of(Path(result["out_dir"], "comparison.mp4"))
    assert pair.shape == (30 + 12 * HEIGHT, 2 * 12 * WIDTH + 4, 3)
    assert generation.generate("run", str(tmp_path / "start.png"), 1)["num_frames"] == 1


def test_a_clip_of_no_known_truth(opened, tmp_path):
    """Somebody's own clip, a clip of the other domain whose name the truth has, and one that the truth has not."""
    save(tmp_path / "own", clip(3))
    for source in (tmp_path / "own", tmp_path / "data/Y/arc_2"):
        result = generation.generate("run", str(source))
        assert (
            "psnr" not in result
            and result["comparison"] == "source | translated"
            and result["num_frames"] == 20
        )
    (tmp_path / "data/truth/X_in_Y/arc_2").rename(tmp_path / "gone")
    assert "psnr" not in generation.generate("run", str(tmp_path / "data/X/arc_2"))


def test_a_new_shot_is_begun_anew(opened, tmp_path):
    rng = np.random.default_rng(5)
    still = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(2)]
    save(tmp_path / "cut", np.stack([still[0]] * 10 + [still[1]] * 7))
    result = generation.generate("run", str(tmp_path / "cut"), 17)
    wanted = np.concatenate([moved(np.stack([still[0]] * 10), 1), moved(np.stack([still[1]] * 7), 1)])
    assert (
        np.array_equal(written(result), wanted)
        and opened.pieces == [4, 4, 2, 4, 3]
        and result["flicker_source"] == 0
    )
    short = generation.generate("run", str(tmp_path / "cut"), 6)
    assert np.array_equal(written(short), wanted[:6])


def test_whole_or_in_pieces(opened):
    frames = torch.from_numpy(clip(1, 11))
    assert torch.stack(list(stream_translation(opened, frames, "x_to_y"))).equal(
        torch.from_numpy(moved(frames.numpy(), 1))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"direction": "sideways"}, "direction must be 'x_to_y' or 'y_to_x', not 'sideways'"),
        ({"num_frames": 0}, "num_frames must be a whole number from 1 on"),
        ({"actions": "[1]"}, "takes no actions"),
        (
            {"source": "noise"},
            "source='noise' is for systems that draw from noise; negative starts from an image",
        ),
        ({"source": "dataset:arc_9/5"}, "data/X has no arc 'arc_9'"),
        (
            {"source": "dataset:arc_2/5", "direction": "y_to_x", "num_frames": 3.5},
            "num_frames must be a whole number",
        ),
        ({"source": "data"}, "data holds 6 arcs; name one, such as .*data/X/arc_0"),
        ({"source": "data", "direction": "y_to_x"}, "data holds 6 arcs; name one, such as .*data/Y/arc_0"),
    ],
)
def test_mistakes_leave_nothing(opened, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        generation.generate("run", **({"source": "dataset:arc_2/5", "out_dir": "out"} | arguments))
    assert not Path("out").exists()


def test_a_dataset_that_is_gone_names_the_way_out(opened, tmp_path):
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"is not there .* name an image file or a clip's folder"):
        generation.generate("run")
    assert generation.generate("run", str(tmp_path / "moved/X/arc_1"))["psnr"] == 100


MEMORY = """
import sys, types; sys.path[:0] = ["tests/generate", "tests", "."]
from pathlib import Path
import numpy as np
from PIL import Image
from mtld_core.generate import jobs as generation
from mtld_core.runtime import peak_memory_mb
from test_translate import Config, Negative
system = Negative(Config(96, 128)).eval()
system.run = types.SimpleNamespace(dir=Path(sys.argv[1]), checkpoint="step_1", step=1, preset="", dataset_path="", training={})
generation.open_run = lambda *_: system
for length in (100, 1000):
    generation.generate("", sys.argv[1] + "/long", length, sys.argv[1] + "/out")
    print(peak_memory_mb())
"""


@pytest.mark.versionless  # frames are handed on one by one
def test_ten_times_the_frames_take_no_more_memory(tmp_path):
    save(tmp_path / "long", np.broadcast_to(np.uint8([0, 128, 128]), (1000, 96, 128, 3)))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True
    )
    short, long = map(float, done.stdout.split())
    assert long - short < 20, (
        f"{short} MB, then {long} MB"
    )  # the translation at once would be 37 MB, as floats 148


def test_notebook_03_shows_the_translation(opened, tmp_path, capsys):
    """Its cells as papermill runs them, but in this process, where the run is a toy."""
    given, clip = {}, str(tmp_path / "data/Y/arc_1")
    for cell in jupytext.read(NOTEBOOK).cells:
        if cell.cell_type == "code":
            exec(cell.source, given)
        if "parameters" in cell.metadata.get("tags", []):
            given |= {"run_dir": "run", "source": clip, "direction": "y_to_x", "interactive": False}
    said = capsys.readouterr().out
    assert given["result"]["direction"] == "y_to_x" and given["result"]["psnr"] == 100
    assert (
        "source | translated | truth" in said
        and "baseline_identity_psnr" in said
        and "psnr_by_horizon" not in said
    )


# ---- the form


@pytest.fixture
def form(opened, tmp_path):
    (tmp_path / "runs/run/checkpoints/step_00000007").mkdir(parents=True)
    (tmp_path / "runs/run/config.json").write_text(ABOUT)
    (tmp_path / "data/Y/arc_5").rename(tmp_path / "data/Y/arc_of_y")
    return panel.GeneratePanel(str(tmp_path / "runs/run"), num_frames=30)


def test_the_form_offers_both_directions_and_whole_clips(form):
    assert form.direction.layout.display == "" and form.start.options == ("dataset", "picture")
    assert form.arc.options == tuple(f"arc_{i}" for i in range(6)) and form.frame.options == tuple(
        range(5, 25)
    )
    press_generate(form)
    assert (
        form.result["direction"] == "x_to_y"
        and form.result["num_frames"] == 20
        and form.result["psnr"] == 100
    )
    assert form.links.value.startswith("source | translated | truth · download")
    assert "num_frames=30 becomes 20" in form.message.value
    form.direction.value = "y_to_x"
    assert form.arc.options[-1] == "arc_of_y"
    form.arc.value = "arc_of_y"
    press_generate(form)
    assert (
        form.result["direction"] == "y_to_x"
        and form.result["source"] == "dataset:arc_of_y/5"
        and not form.button.disabled
    )
    assert form.links.value.startswith("source | translated · download")


def test_the_form_of_a_run_without_its_dataset_still_takes_pictures(form, tmp_path):
    (tmp_path / "data").rename(tmp_path / "gone")
    again = panel.GeneratePanel(form.run.value)
    assert "name an image file or a clip" in again.message.value
    Image.fromarray(clip(1)[0]).save(tmp_path / "up.png")
    again._keep("up.png", (tmp_path / "up.png").read_bytes())
    press_generate(again)
    assert again.result["num_frames"] == 1 and again.direction.layout.display == ""
