"""The whole job of generating: what is written, what it is compared with, and what is refused."""

import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import shown, with_matrix, write_arcs, write_video
from PIL import Image
from rolling import Toy, ToyConfig, open_toy, picture, write_rolling_arcs
from steered import QUICK, steered_run, write_recording

from data_prep.video import Video
from mtld_core import media, open_run
from mtld_core.config import ConfigError, UserError
from mtld_core.frames import to_uint8
from mtld_core.generate import jobs as generation
from mtld_core.generate.rollouts import rollout
from mtld_core.generate.source import read_source
from mtld_core.systems import SYSTEMS
from mtld_core.train import train


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A toy run is opened; the fixture is a function that opens another toy."""
    write_rolling_arcs(tmp_path / "data")
    open_toy(monkeypatch, tmp_path)
    return lambda *space, **config: open_toy(monkeypatch, tmp_path, *space, **config)


def folder_of(path):
    return sorted(p.name for p in Path(path).iterdir())


def test_from_a_picture(opened, tmp_path, capsys):
    Image.fromarray(picture()).save(tmp_path / "start.png")
    result = generation.generate("run", str(tmp_path / "start.png"), 6, fps=10)
    out = tmp_path / "run/samples/start_7"
    assert folder_of(out) == ["frames", "generation.json", "strip.png", "video.gif", "video.mp4"]
    assert folder_of(out / "frames") == [f"frame_{i:04d}.png" for i in range(6)]
    for i in range(6):
        assert np.array_equal(media.read_image(out / f"frames/frame_{i:04d}.png"), np.roll(picture(), i, 1))
    with av.open(str(out / "video.mp4")) as video:
        assert len(list(video.decode(video=0))) == 6 and video.streams.video[0].average_rate == 10
    with Image.open(out / "video.gif") as gif:
        assert gif.n_frames == 6
    assert json.loads((out / "generation.json").read_text()) == result
    assert (
        "psnr" not in result
        and result["size"] == [16, 24]
        and result["step"] == 7
        and result["num_frames"] == 6
    )
    assert capsys.readouterr().out == ""


def test_a_picture_of_another_size_is_fitted_and_said(opened, tmp_path, capsys):
    Image.fromarray(picture(100, 80)).save(tmp_path / "big.jpg")
    result = generation.generate("run", str(tmp_path / "big.jpg"), 2)
    said = "big.jpg is 80x100: its centre is scaled to 24x16, 47% is cut away"
    assert said in capsys.readouterr().out
    assert media.read_image(Path(result["out_dir"]) / "frames/frame_0001.png").shape == (16, 24, 3)


def test_from_the_dataset_with_its_truth(opened, tmp_path):
    result = generation.generate("run", "dataset:moves/13", 30, out_dir=str(tmp_path / "out"))
    assert len(result["psnr_by_horizon"]) == 16 and result["psnr"] == 100  # frames 14 to 29; the toy is right
    assert 10 < result["baseline_copy_psnr"] < 40
    assert {"comparison.mp4", "strip.png"} <= set(result["files"])
    with av.open(str(tmp_path / "out/comparison.mp4")) as video:
        pairs = [shown(f) for f in video.decode(video=0)]
    # words above, and six times as large
    assert len(pairs) == 30 and pairs[0].shape == (30 + 96, 144 + 4 + 144, 3)
    assert pairs[0][:30].min() < 128
    truths = [pair[33::6, 3:144:6].astype(int) for pair in pairs]  # grey from where it ends on
    assert all(np.ptp(truth) < 8 for truth in truths[17:]) and all(
        np.ptp(truth) > 50 for truth in truths[:17]
    )
    strip = media.read_image(tmp_path / "out/strip.png")
    assert strip.shape[1] > 8 * 144 and (strip[:, -100:] == 96).all(-1).any()
    truth = media.read_image(tmp_path / "data/moves/frame_0023.png")
    for half in (pairs[10][33::6, 3:144:6], pairs[10][33::6, 151::6]):
        assert np.abs(half[:, 2:-2].astype(int) - truth[:, 2:-2]).mean() < 6
    assert len(folder_of(tmp_path / "out/frames")) == 30


def test_psnr_by_horizon_is_that_of_the_written_frames(opened, tmp_path):
    opened(noise=0.1)
    result = generation.generate("run", "dataset:moves/12", 5, out_dir=str(tmp_path / "out"))
    read = [media.read_image(tmp_path / f"out/frames/frame_{t:04d}.png") / 255 for t in range(5)]
    real = [media.read_image(tmp_path / f"data/moves/frame_{12 + t:04d}.png") / 255 for t in range(5)]
    wanted = [-10 * np.log10(((read[t] - real[t]) ** 2).mean()) for t in range(1, 5)]
    copies = [-10 * np.log10(((real[0] - real[t]) ** 2).mean()) for t in range(1, 5)]
    assert result["psnr_by_horizon"] == pytest.approx(wanted) and result["psnr"] == pytest.approx(
        np.mean(wanted)
    )
    assert result["baseline_copy_psnr"] == pytest.approx(np.mean(copies))


def test_from_a_clip_and_from_nothing(opened, tmp_path):
    opened(context=3)
    result = generation.generate("run", str(tmp_path / "data/moves"), 4)
    first = media.read_image(Path(result["out_dir"]) / "frames/frame_0000.png")
    assert (
        np.array_equal(first, media.read_image(tmp_path / "data/moves/frame_0012.png"))
        and result["psnr"] == 100
    )
    result = generation.generate("run", "", 4)
    assert result["source"].startswith("dataset:") and len(result["psnr_by_horizon"]) > 0
    assert generation.generate("run", result["source"], 4)["psnr"] == result["psnr"]


def test_again_and_bit_for_bit(opened, tmp_path):
    opened(noise=0.1)
    first, again = (
        generation.generate("run", "dataset:other/10", 8, out_dir=str(tmp_path / n)) for n in "ab"
    )
    for name in [f"frames/frame_{i:04d}.png" for i in range(8)]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    shorter = generation.generate("run", "dataset:other/10", 3, out_dir=str(tmp_path / "a"))
    assert (
        len(folder_of(tmp_path / "a/frames")) == 3
        and shorter["num_frames"] == 3
        and first["seed"] == again["seed"]
    )


def test_generate_sequence(opened, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "start.png")
    result = generation.generate_sequence("run", tmp_path / "start.png", 3, tmp_path / "out")
    assert len(folder_of(tmp_path / "out/frames")) == 3 and result["checkpoint"] == "step_00000007"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_frames": 1}, "num_frames must be at least 2"),
        ({"fps": 0}, "fps must be a number from 0.01"),
        ({"direction": "y_to_x"}, "direction='y_to_x' is for translators"),
        ({"direction": "sideways"}, "direction must be 'x_to_y' or 'y_to_x', not 'sideways'"),
        ({"source": "noise"}, "source='noise' is for systems that draw from noise; toy starts from an image"),
        ({"source": "none.png"}, "none.png: no such image or video file, folder or recording"),
        ({"source": "dataset:moves"}, 'is not "dataset:<arc>/<frame number>"'),
        ({"source": "dataset:move/12"}, "no arc 'move'; did you mean 'moves'"),
        ({"source": "dataset:moves/99"}, "no frame 99; its frames go from 10 to 29"),
        ({"source": "log.jsonl"}, r"log\.jsonl"),
        ({"actions": "[1]"}, "takes no actions"),
        ({"actions": np.array([0, 1])}, "takes no actions"),
        ({"source": Path("none.png")}, "none.png: no such image or video file, folder or recording"),
        ({"actions": "[1,"}, "not valid JSON"),
        ({"actions": '"left"'}, "must be a JSON list"),
    ],
)
def test_mistakes_are_one_plain_line_and_leave_nothing(opened, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        generation.generate(
            "run", **({"source": "dataset:moves/10", "out_dir": str(tmp_path / "out")} | arguments)
        )
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_contexts_that_the_source_cannot_fill(opened, tmp_path):
    opened(context=3)
    with pytest.raises(UserError, match="the first frame of arc 'moves' with that many is frame 12"):
        generation.generate("run", "dataset:moves/11", 4)
    with pytest.raises(UserError, match="holds 2 arcs; name one"):
        generation.generate("run", str(tmp_path / "data"), 4)


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        generation.generate(str(tmp_path / "nowhere"))


def test_a_failing_model_leaves_nothing_half_written(opened, tmp_path, monkeypatch):
    def broken(self, state, action=None):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Toy, "step", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        generation.generate("run", "dataset:moves/10", 4, out_dir=str(tmp_path / "out"))
    assert folder_of(tmp_path / "out") == []


def test_somebody_elses_frames_are_not_replaced(opened, tmp_path):
    (tmp_path / "out/frames").mkdir(parents=True)
    Image.fromarray(picture()).save(tmp_path / "out/frames/frame_0000.png")
    with pytest.raises(UserError, match="was not written by a generation"):
        generation.generate("run", "dataset:moves/10", 4, out_dir=str(tmp_path / "out"))


def test_frames_are_not_written_among_the_arcs_of_the_data(opened, tmp_path):
    before = folder_of(tmp_path / "data")
    for folder in (tmp_path / "data", tmp_path / "data/new"):
        with pytest.raises(UserError, match=r"lies in .*data, where .* choose another one"):
            generation.generate("run", "dataset:moves/10", 4, out_dir=str(folder))
    assert folder_of(tmp_path / "data") == before


def test_frames_are_not_written_among_those_of_the_source(opened, tmp_path):
    """A clip with frames in a folder inside it would be read as that one arc."""
    clip = shutil.copytree(tmp_path / "data/moves", tmp_path / "clip")
    given = generation.generate("run", str(clip), 4, out_dir=str(tmp_path / "out"))
    for folder in (clip, clip / "made", tmp_path / "clip/../clip/made"):
        with pytest.raises(UserError, match=r"lies in .*clip, where .* choose another one"):
            generation.generate("run", str(clip), 4, out_dir=str(folder))
    again = generation.generate("run", str(clip), 4, out_dir=str(tmp_path / "out"))
    assert again["psnr"] == given["psnr"] and folder_of(clip) == folder_of(tmp_path / "data/moves")


def test_what_a_full_disk_left_of_a_generation_goes(opened, tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generation, "write_json", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); make room"):
        generation.generate("run", "dataset:moves/10", 4)
    assert folder_of(tmp_path / "run/samples") == []


# ---- what it may also start from


def test_a_video_goes_on_from_its_last_frames(opened, tmp_path, capsys):
    opened(context=3)
    film = [np.roll(smooth_picture(), 2 * i, 1) for i in range(12)]
    write_video(tmp_path / "film.mp4", film)
    given = read_source(opened(context=3), str(tmp_path / "film.mp4"))
    assert np.abs(given.context.numpy().astype(int) - np.stack(film[-3:])).mean() < 3
    result = generation.generate("run", str(tmp_path / "film.mp4"), 3)
    assert result["out_dir"].endswith("film_7") and capsys.readouterr().out == ""
    write_video(tmp_path / "short.mp4", film[:2])
    given = read_source(opened(context=3), str(tmp_path / "short.mp4"))
    assert given.context[0].equal(given.context[1]) and not given.context[1].equal(given.context[2])
    assert "one stands for 2" in capsys.readouterr().out
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "film.mp4").read_bytes()[:300])
    with pytest.raises(UserError, match=r"broken\.mp4 cannot be read as a video"):
        read_source(opened(), str(tmp_path / "broken.mp4"))


def smooth_picture():
    y, x = np.mgrid[:16, :24]
    return np.stack([100 + 60 * np.sin(x * np.pi / 12), y * 8 + 40, 0 * x + 90], -1).astype(np.uint8)


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_a_phones_video_comes_out_upright_as_in_notebook_01(tmp_path, matrix):
    straight = write_video(tmp_path / "film.mp4", [np.roll(smooth_picture(), i, 1) for i in range(8)])
    turned = with_matrix(straight, tmp_path / "turned.mp4", *matrix)
    wanted = [shown.rgb for shown in Video(turned)][-2:]
    assert np.array_equal(media.last_frames(turned, 2), wanted)


@pytest.fixture
def site(tmp_path):
    """The address of a web server that has what lies in `site/`."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_picture_or_video_from_an_address(opened, tmp_path, site):
    Image.fromarray(picture()).save(tmp_path / "site/über uns.png")
    write_video(tmp_path / "site/film.mp4", [picture(seed=i) for i in range(3)])
    for name in ("über uns.png", "%C3%BCber%20uns.png?size=large"):
        result = generation.generate("run", f"{site}/{name}", 2)
        first = media.read_image(Path(result["out_dir"], "frames/frame_0000.png"))
        assert np.array_equal(first, picture()) and result["source"] == f"{site}/{name}"
    assert generation.generate("run", f"{site}/film.mp4", 2)["out_dir"].endswith("film_7")
    (tmp_path / "site/page.html").write_text("<p>a picture</p>")
    (tmp_path / "site/broken.png").write_text("none")
    for name, message in (
        ("page.html", "is a web page: give the address of the picture"),
        ("broken.png", "/broken.png cannot be read as a picture"),
        ("gone.png", r"gone\.png cannot be fetched \(HTTP Error 404.*\): save it and give the file's path"),
    ):
        with pytest.raises(UserError, match=message) as error:
            generation.generate("run", f"{site}/{name}", 2)
        assert "\n" not in str(error.value)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


def answering(answer):
    """The address of a server that sends these bytes to one visitor, and closes."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer_one():
        with listening, listening.accept()[0] as visitor:
            visitor.recv(65536)
            visitor.sendall(answer)

    threading.Thread(target=answer_one, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"hello\r\n", "cannot be fetched"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n10\r\nabc", "cannot be fetched"),
        (HEAD + b"Content-Length: 400\r\n\r\nabc", "the connection broke on the way; try again"),
    ],
)
def test_what_a_server_does_wrong_is_one_line(answer, message):
    with pytest.raises(UserError, match=message):
        media.fetch(f"{answering(answer)}/a.png")


@pytest.mark.parametrize("address", ["http://host:abc/a.png", "http://[::1/a.png", "http://a..b/a.png"])
def test_an_address_that_cannot_be_is_one_line(address):
    with pytest.raises(UserError, match="cannot be fetched"):
        media.fetch(address)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a" * 300 + ".png", "a" * 46 + ".png"),
        ("..", "fetched"),
        ("", "fetched"),
        ("a%2Fb%00.png", "b.png"),
        ("%E3%81%82.png", "\u3042.png"),
    ],
)
def test_what_is_fetched_has_a_name_that_a_file_can_have(path, name):
    address = answering(HEAD + b"Content-Length: 3\r\n\r\nabc")
    fetched = media.fetch(f"{address}/{path}")
    assert fetched.name == name and fetched.read_bytes() == b"abc"


# ---- a folder for each


def test_a_folder_under_ones_home(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert generation.generate("run", "dataset:moves/13", 2, "~/out")["out_dir"] == f"{tmp_path}/out"


def test_a_long_name_is_shortened(opened, tmp_path):
    start = tmp_path / (
        "\u3042" * 80 + ".png"
    )  # 244 bytes: with a step behind it no folder could be called so
    Image.fromarray(picture()).save(start)
    result = generation.generate("run", str(start), 2)
    assert Path(result["out_dir"]).name == "\u3042" * 50 + "_7" and result["source"] == str(start)
    (tmp_path / "data/moves").rename(tmp_path / "data" / ("m" * 250))
    result = generation.generate("run", f"dataset:{'m' * 250}/13", 2)
    assert Path(result["out_dir"]).name == f"{'m' * 50}_13_7"


def test_each_has_a_folder_of_its_own(opened, tmp_path):
    results = [generation.generate("run", "dataset:moves/13", length) for length in (3, 4, 5)]
    assert [Path(result["out_dir"]).name for result in results] == [
        "moves_13_7",
        "moves_13_7-2",
        "moves_13_7-3",
    ]
    for result in results:
        assert len(folder_of(Path(result["out_dir"], "frames"))) == result["num_frames"]
    assert [about["num_frames"] for about in generation.kept(tmp_path / "run").values()] == [5, 4, 3]


def test_what_ends_on_the_way_leaves_no_folder(opened, tmp_path):
    made = []

    def enough():
        made.append(len(made))
        if len(made) == 4:
            raise UserError("that will do")

    with pytest.raises(UserError, match="that will do"):
        generation.generate("run", "dataset:moves/13", 20, progress=enough)
    assert folder_of(tmp_path / "run/samples") == [] and generation.kept(tmp_path / "run") == {}
    generation.generate("run", "dataset:moves/13", 3, progress=lambda: made.append(0))
    assert len(made) == 7


def test_a_run_that_cannot_be_written_to_generates_here(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    result = generation.generate("run", "dataset:moves/13", 3)
    assert Path(result["out_dir"]) == tmp_path / "samples/run/moves_13_7"
    assert list(generation.kept("run")) == [Path("samples/run/moves_13_7")]


# ---- steered


MOVES = np.array([1, 0, 2, 1, 1, 2, 0, 1] * 3)


@pytest.fixture
def steered(tmp_path, monkeypatch):
    """`steered(actions)` -> the folder of a run on a recording of them; more: fields of the system's
    config.
    """

    def steered(actions=MOVES, **config):
        recording = write_recording(tmp_path / "recording.h5", actions)
        return str(steered_run(monkeypatch, tmp_path, recording, **config))

    return steered


@pytest.mark.parametrize("invents", [False, True])
def test_without_actions_it_follows_the_recorded_ones(steered, tmp_path, invents):
    run = steered(invents=invents)
    result = generation.generate(run, "dataset:episode_1/9", 13, out_dir=str(tmp_path / "out"))
    assert (
        result["actions"] == MOVES[9:21].tolist()
        and result["psnr"] == 100
        and len(result["psnr_by_horizon"]) == 12
    )
    assert json.loads((tmp_path / "out/generation.json").read_text()) == result
    from_file = generation.generate(run, str(tmp_path / "recording.h5"), 4, out_dir=str(tmp_path / "out"))
    assert from_file["actions"] == MOVES[1:4].tolist() and from_file["psnr"] == 100
    assert generation.generate(run, "", 4)["psnr"] == 100


def test_floats_are_followed_and_recorded(steered):
    result = generation.generate(
        steered(np.stack([MOVES, -0.5 * MOVES], 1).astype(np.float32)), "dataset:episode_1/9", 4
    )
    assert result["actions"] == [[0.0, 0.0], [2.0, -1.0], [1.0, -0.5]]


def test_scripted_actions_are_compared_as_far_as_they_were_recorded(steered):
    run = steered()
    result = generation.generate(
        run, "dataset:episode_1/9", 6, actions="[0, 2, 1, 0, 0]"
    )  # recorded: 0 2 1 1 2
    assert (
        result["actions"] == [0, 2, 1, 0, 0] and len(result["psnr_by_horizon"]) == 3 and result["psnr"] == 100
    )
    other = generation.generate(run, "dataset:episode_1/9", 3, actions="[1, 1]")
    assert "psnr" not in other and folder_of(Path(other["out_dir"]) / "frames")[-1] == "frame_0002.png"
    first, last = (media.read_image(Path(other["out_dir"]) / f"frames/frame_000{i}.png") for i in (0, 2))
    assert np.array_equal(last, np.roll(first, 2, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_frames": 16},
            "num_frames=16 needs 15 actions and 14 are recorded after dataset:episode_1/9: use num_frames=15 "
            "or fe",
        ),
        (
            {"source": "dataset:episode_1/23"},
            r"no recorded actions follow dataset:episode_1/23, so give one .* actions='\[0, 2\]'",
        ),
        (
            {"source": "start.png"},
            r"no recorded actions follow .*start\.png, so give one for each predicted frame, such as",
        ),
        ({"actions": "[1, 1]"}, "one action for each predicted frame: 7; 2 were given"),
        ({"actions": "[0, 0, 0, 3, 0, 0, 0]"}, "action 3 is 3; each must be an integer from 0 to 2"),
        ({"actions": "[0, 0, 0, [1], NaN, 0, 0]"}, "action 4 is nan; each must be"),
    ],
)
def test_actions_that_are_not_there_or_out_of_range(steered, tmp_path, arguments, message, monkeypatch):
    Image.fromarray(picture()).save(tmp_path / "start.png")
    run = steered()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        generation.generate(
            run, **({"source": "dataset:episode_1/9", "num_frames": 8, "out_dir": "out"} | arguments)
        )
    assert not (tmp_path / "out").exists()


def test_an_inventor_of_actions_needs_frames_that_follow(steered, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "start.png")
    with pytest.raises(UserError, match=r"no frames follow .*start\.png, so give one"):
        generation.generate(steered(invents=True), str(tmp_path / "start.png"), 4)
    result = generation.generate(
        str(tmp_path / "runs/steered"), str(tmp_path / "start.png"), 3, actions="[1, 2]"
    )
    assert result["actions"] == [1, 2]


# ---- from noise


@pytest.fixture
def sampler(tmp_path, monkeypatch):
    """A run of `ToySampler`, a step old, on arcs of 16x16."""
    monkeypatch.setitem(SYSTEMS, "toy_sampler", "toys:ToySampler")
    write_arcs(tmp_path / "data", [20] * 6)
    train(
        "toy_sampler", "tiny", str(tmp_path / "data"), QUICK, steps=1, run_dir=str(tmp_path / "runs/sampler")
    )
    return str(tmp_path / "runs/sampler")


def test_from_noise_the_first_frame_is_the_first_sample(sampler, tmp_path):
    result = generation.generate(sampler, num_frames=5, seed=3)
    assert (
        result["source"] == "noise"
        and result["num_frames"] == 5
        and result["out_dir"].endswith("samples/noise_1")
    )
    assert folder_of(result["out_dir"]) == [
        "frames",
        "generation.json",
        "strip.png",
        "video.gif",
        "video.mp4",
    ]
    assert "psnr" not in result and "comparison" not in result
    system = open_run(sampler)
    drawn = rollout(system, None, 5, seed=3)
    for i, frame in enumerate(drawn):
        assert np.array_equal(media.read_image(Path(result["out_dir"], f"frames/frame_000{i}.png")), frame)
    state = system.start(None, torch.Generator().manual_seed(3))
    assert drawn[0].equal(to_uint8(system.step(state)[1][0]))
    named = generation.generate(sampler, "noise", 1, str(tmp_path / "out"), seed=4)
    assert named["num_frames"] == 1 and folder_of(tmp_path / "out/frames") == ["frame_0000.png"]
    assert not np.array_equal(media.read_image(tmp_path / "out/frames/frame_0000.png"), drawn[0])


@pytest.mark.parametrize("source", ["dataset:arc_2/7", "data/arc_2/frame_0007.png"])
def test_a_sampler_starts_from_a_picture_too(sampler, tmp_path, monkeypatch, source):
    """It was not taught what follows in the film, so nothing is compared with that."""
    monkeypatch.chdir(tmp_path)
    result = generation.generate(sampler, source, 4)
    context = media.read_image(tmp_path / "data/arc_2/frame_0007.png")
    written = [media.read_image(Path(result["out_dir"], f"frames/frame_000{i}.png")) for i in range(4)]
    assert np.array_equal(written[0], context) and np.array_equal(
        written[1:], rollout(open_run(sampler), context, 3)
    )
    assert "psnr" not in result and "comparison.mp4" not in result["files"]
    with pytest.raises(UserError, match="num_frames must be at least 2"):
        generation.generate(sampler, source, 1)


def test_who_only_rebuilds_generates_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(SYSTEMS, "toy_autoencoder", "toys:ToyAutoencoder")
    write_arcs(tmp_path / "data", [20] * 6)
    train("toy_autoencoder", "tiny", str(tmp_path / "data"), QUICK, steps=1, run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="toy_autoencoder rebuilds frames and makes none of its own"):
        generation.generate(str(tmp_path / "run"))
    assert not (tmp_path / "run/samples").exists()


def test_who_cannot_draw_from_noise_says_so_in_python_too():
    with pytest.raises(ConfigError, match="toy cannot start from noise: give it 1 context frames"):
        rollout(Toy(ToyConfig()).eval(), None, 2)


def test_the_bundled_clip_is_a_dataset_and_no_source(tmp_path, arcs):
    train("mtld", "tiny", str(arcs), QUICK, steps=1, run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match='source="sample" is no source; empty, it is a frame'):
        generation.generate(str(tmp_path / "run"), "sample")


MEMORY = """
import sys, types; sys.path[:0] = ["tests", "."]
from pathlib import Path
from mtld_core.generate import jobs as generation
from mtld_core.runtime import peak_memory_mb
from PIL import Image
from rolling import Toy, ToyConfig
system = Toy(ToyConfig(96, 128)).eval()
folder = Path(sys.argv[1])
system.run = types.SimpleNamespace(dir=folder, checkpoint="step_1", step=1, preset="", dataset_path="")
generation.open_run = lambda *_: system
Image.new("RGB", (128, 96), "teal").save(sys.argv[1] + "/start.png")
for length in (200, 2000):
    generation.generate("", sys.argv[1] + "/start.png", length, sys.argv[1] + "/out")
    print(peak_memory_mb())
"""


@pytest.mark.versionless  # frames are handed on one by one
def test_ten_times_the_frames_take_no_more_memory(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True
    )
    short, long = map(float, done.stdout.split())
    assert long - short < 20, f"{short} MB, then {long} MB"  # all 2,000 frames at once would be 74 MB
