"""Everything a user can give that is wrong, through what a user runs: one plain line with the way out,
nothing half-written left, nothing lost, and no part of a dataset passed over in silence. The details of each
part are in its own tests.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_arcs, write_video
from PIL import Image, ImageOps

from data_prep.extract_frames import extract
from mtld_core import systems
from mtld_core.config import ConfigError, UserError
from mtld_core.files import read_json, write_json
from mtld_core.generate import generate
from mtld_core.media import read_image
from mtld_core.runs.checkpoint import list_checkpoints, problem
from mtld_core.runs.folder import read_pointer
from mtld_core.share import share
from mtld_core.train import train
from mtld_core.train.job import main
from mtld_core.train.loop import Training

ROOT = Path(__file__).parents[1]
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture(autouse=True)
def no_trunk(tmp_path_factory, monkeypatch):
    """Whatever torch's cache holds on this machine: no LPIPS here."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))


def tiny(data, run, overrides=None, preset="tiny", **settings):
    overrides = {"save_every_minutes": 0, "save_every_steps": 5} | (overrides or {})
    return train("mtld", preset, str(data), overrides, run_dir=str(run), **{"steps": 10} | settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(dataset, run with checkpoints at steps 5 and 10)."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_arcs(folder / "data", [20] * 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTLD_CACHE", str(folder / "cache"))
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        tiny(data, folder / "run")
    return data, folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained[1], tmp_path / "run"))


def refused(call, *words):
    """`call` raises one plain line that holds all `words`."""
    with pytest.raises((UserError, ConfigError)) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


def command(*words, code=1):
    """Run Python with `words`; its exit code is `code` and it says no traceback. Returns (stdout, last line
    of stderr).
    """
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


def files(folder):
    """{path: content} of all that lies in a folder, but for the lock."""
    return {
        p.relative_to(folder): p.read_bytes()
        for p in Path(folder).rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# ---- datasets


def text_file(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("no frames")


def video(folder):
    folder.mkdir()
    (folder / "film.mp4").write_bytes(b"any")


def cut_pngs(folder):
    write_arcs(folder, [20] * 6)
    for number in range(7):
        cut(folder / f"arc_1/frame_000{number}.png")


def picture_instead(folder):
    Image.fromarray(NOISE).save(folder, "png")


DATASETS = {
    "missing": (lambda folder: None, "does not exist; wanted is <folder>/<arc>/frame_0000.png"),
    "empty": (Path.mkdir, "holds no images"),
    "without images": (text_file, "holds no images"),
    "one picture": (picture_instead, "is no HDF5 file"),
    "videos": (video, "run notebooks/01_extract_frames on it first"),
    "7 of 120 PNGs cut short": (cut_pngs, "7 of 120 image files cannot be used"),
    "every arc too short": (lambda folder: write_arcs(folder, [3, 3]), "windows of 4 frames do not fit"),
    "too few to judge": (lambda folder: write_arcs(folder, [6]), "nothing can be held out"),
    "size not divisible": (
        lambda folder: write_arcs(folder, [20] * 6, 18, 16),
        "height=18 is not divisible by 8; use 16",
    ),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_a_dataset_that_cannot_be_used(tmp_path, kind):
    make, words = DATASETS[kind]
    make(tmp_path / "data")
    refused(
        lambda: tiny(tmp_path / "data", tmp_path / "run"),
        words,
        "height" if "size" in kind else str(tmp_path / "data"),
    )
    assert not (tmp_path / "run").exists()


def test_what_is_left_out_of_a_dataset_is_named(tmp_path, capsys):
    data = write_arcs(tmp_path / "data", [20] * 6 + [3])
    cut(data / "arc_1/frame_0007.png")
    Image.fromarray(NOISE[:16, :16]).save(data / "arc_2/frame_0020.jpg")
    cut(data / "arc_2/frame_0020.jpg", 0.8)
    write_arcs(data / "arc_3/deeper", [5])
    write_arcs(data / "season_2", [5])
    assert tiny(data, tmp_path / "run")["dataset"]["frames"] == 123 - 1
    said = capsys.readouterr().out
    for words in (
        "arc_1/frame_0007.png: left out, ",
        "arc_2/frame_0020.jpg: left out, ",
        "arc_3/deeper: a folder inside an arc, left out",
        "season_2: a folder without images, left out",
        "nothing is learnt from 1 of 7 arcs, which hold no window of 4 frames without a cut: arc_6",
    ):
        assert words in said, said


def test_the_run_may_not_lie_where_the_frames_are(tmp_path):
    data = write_arcs(tmp_path / "data", [20] * 6)
    before = files(data)
    refused(lambda: tiny(data, data), "the dataset's own folder; choose another")
    assert files(data) == before


def test_videos(tmp_path):
    videos, root = tmp_path / "videos", tmp_path / "root"
    videos.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
    for name in ("good.mp4", "cut.mp4"):
        write_video(videos / name, noise, movflags="faststart")
    data = (videos / "cut.mp4").read_bytes()
    begin = data.index(b"mdat")
    (videos / "cut.mp4").write_bytes(data[: begin + (len(data) - begin) // 20])
    (videos / "text.mp4").write_text("this is no video\n" * 50)
    said, last = command("data_prep/extract_frames.py", videos, root)
    assert (
        "cut.mp4: damaged: 1 of 30 frames can be decoded" in said and "text.mp4: not a readable video" in said
    )
    assert last == "error: 2 of the videos failed (cut.mp4, text.mp4); the table says why"
    assert sorted(path.name for path in root.iterdir()) == ["contact_sheet.png", "good"]
    _, last = command("data_prep/extract_frames.py", videos / "text.mp4", tmp_path / "other")
    assert last.endswith("text.mp4: not a readable video (Invalid data found when processing input)")
    assert not (tmp_path / "other").exists()


def test_a_contact_sheet_that_cannot_be_written(tmp_path):
    (tmp_path / "root/contact_sheet.png").mkdir(parents=True)
    video = write_video(tmp_path / "a.mp4", [NOISE] * 3)
    refused(
        lambda: extract(video, tmp_path / "root", progress=False),
        "the frames are there, but contact_sheet.png cannot be",
    )
    assert len(list((tmp_path / "root/a").glob("frame_*.png"))) == 3


@pytest.fixture
def two_domains(tmp_path, monkeypatch):
    """`two_domains(x, y)` writes arcs of these lengths (and sizes) and trains a translator on them for two
    steps.
    """
    monkeypatch.setitem(systems.SYSTEMS, "toy_translator", "toys:ToyTranslator")

    def make(x, y, overrides="{}"):
        for name, arcs in (("X", x), ("Y", y)):
            write_arcs(tmp_path / "data" / name, *arcs)
        return train(
            "toy_translator",
            "tiny",
            str(tmp_path / "data"),
            overrides,
            steps=2,
            run_dir=str(tmp_path / "run"),
        )

    return make


def test_domains_of_different_frame_sizes(tmp_path, two_domains):
    words = "X has frames of 16x16 pixels and Y of 24x16 pixels; set height and width to fit both"
    refused(lambda: two_domains(([20] * 6,), ([20] * 6, 16, 24)), str(tmp_path / "data"), words)
    overrides = {"height": 16, "width": 16}
    assert (
        train(
            "toy_translator",
            "tiny",
            str(tmp_path / "data"),
            overrides,
            steps=2,
            run_dir=str(tmp_path / "run"),
        )["step"]
        == 2
    )


@pytest.mark.parametrize("short", ["X", "Y"])
def test_a_domain_without_an_arc_long_enough(tmp_path, two_domains, short):
    lengths = {"X": [20] * 6, "Y": [20] * 6} | {short: [2] * 6}
    words = (
        "windows of 3 frames do not fit, the longest arc ('arc_0') has 2; use a shorter window or longer arcs"
    )
    refused(lambda: two_domains((lengths["X"],), (lengths["Y"],)), f"{tmp_path / 'data' / short}: ", words)
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("short", ["X", "Y"])
def test_a_domain_of_which_nothing_can_be_held_out(tmp_path, two_domains, short):
    lengths = {"X": [20] * 6, "Y": [20] * 6} | {short: [6]}
    words = ("nothing can be held out: the longest arc has 6 frames", "restitution=true")
    refused(lambda: two_domains((lengths["X"],), (lengths["Y"],)), f"{tmp_path / 'data' / short}: ", *words)


def test_one_domain_for_two(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(systems.SYSTEMS, "toy_translator", "toys:ToyTranslator")
    refused(
        lambda: train("toy_translator", "tiny", str(trained[0]), run_dir=str(tmp_path / "run")),
        "needs 2 domain(s)",
    )


@pytest.mark.parametrize("preset", ["tiny", "series"])
def test_two_domains_for_one(tmp_path, two_domains, preset):
    two_domains(([20] * 6,), ([20] * 6,))
    words = ("mtld needs 1 domain(s)", "holds 2")
    refused(lambda: tiny(tmp_path / "data", tmp_path / "other", preset=preset), *words)


# ---- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"overrides": '{"latent_dims": 3}'},
            "overrides: no setting 'latent_dims'; did you mean 'latent_dim'?",
        ),
        ({"overrides": '{"lr_g": Infinity}'}, "MTLDConfig.lr_g must be finite"),
        ({"overrides": None}, "overrides must be JSON text, not None"),
        ({"sytem": "mtld"}, "did you mean"),
        ({"system": None}, "system must be a text, not None"),
        ({"preset": 3}, "preset must be a text, not 3"),
        ({"dataset_root": ["a", "b"]}, "dataset_root must be a text"),
        ({"run_dir": "job.json"}, "job.json cannot be a run's folder (File exists); choose another run_dir"),
        ({"run_dir": "job.json/run"}, "cannot be a run's folder (Not a directory)"),
        ({"resume": "nowhere"}, "nowhere: no such run folder"),
        ({"overrides": '{"lpips_weights": "none.pth"}'}, "lpips_weights='none.pth': no such file"),
        (
            {"overrides": '{"lpips_weights": "job.json"}'},
            "job.json is no file of weights that torch can read",
        ),
    ],
)
def test_a_job_file_with_a_mistake(trained, tmp_path, monkeypatch, capsys, settings, words):
    monkeypatch.chdir(tmp_path)
    write_json("job.json", {"preset": "tiny", "dataset_root": str(trained[0]), "run_dir": "run"} | settings)
    assert main(["--config", "job.json"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


def test_the_command(tmp_path):
    write_json(
        tmp_path / "job.json",
        {"preset": "tiny", "dataset_root": str(tmp_path / "none"), "run_dir": str(tmp_path / "run")},
    )
    out, last = command("-m", "mtld_core.train", "--config", tmp_path / "job.json")
    assert out == "" and last.startswith(f"error: {tmp_path / 'none'} does not exist; wanted is ")


def test_a_job_file_that_cannot_be_read(tmp_path, capsys):
    for name, reason in {"none.json": "No such file or directory", "": "Is a directory"}.items():
        assert main(["--config", str(tmp_path / name)]) == 1
        assert capsys.readouterr().err == f"error: --config {tmp_path / name}: {reason}\n"


# ---- checkpoints


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "train_state.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    trained, run, tmp_path, capsys, damage, name
):
    damage(run / "checkpoints/step_00000010" / name)
    before = files(run)
    Image.fromarray(NOISE).save(tmp_path / "start.png")
    assert generate(run, str(tmp_path / "start.png"), 3, tmp_path / "out")["step"] == 5
    assert "step_00000010 is damaged" in capsys.readouterr().out and files(run) == before
    assert tiny(trained[0], run, steps=11)["step"] == 11
    said = capsys.readouterr().out
    assert "step_00000010 is damaged" in said and "going on at step 5" in said
    assert problem(list_checkpoints(run)[0]) is None


def test_where_every_checkpoint_is_damaged_nothing_is_touched(trained, run, tmp_path):
    for folder in list_checkpoints(run):
        flip(folder / "model.safetensors")
    before = files(run)
    refused(lambda: tiny(trained[0], run), str(run), "train it anew in another run_dir, or restore a copy")
    refused(lambda: generate(run, "", 3, tmp_path / "out"), str(run), "is damaged")
    assert files(run) == before and not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_system_other_data_or_another_seed(trained, run, tmp_path, monkeypatch):
    monkeypatch.setitem(systems.SYSTEMS, "toy_stage", "toys:ToyStage")
    before = files(run)
    settings = {"run_dir": str(run), "steps": 20}
    refused(
        lambda: train("toy_stage", "tiny", str(trained[0]), **settings),
        "checkpoint of 'mtld', not of 'toy_stage'",
    )
    refused(
        lambda: tiny(write_arcs(tmp_path / "other", [21] * 6), run),
        "was trained with dataset frames=120, now it is 126",
    )
    refused(lambda: tiny(trained[0], run, seed=1), "training seed=0, now it is 1")
    refused(lambda: tiny(trained[0], run, {"latent_dim": 16}), "(now 16), so its weights do not fit")
    assert files(run) == before


def test_other_pictures_under_the_same_names_are_said(trained, run, tmp_path, capsys):
    arcs = shutil.copytree(trained[0], tmp_path / "arcs")
    said = "holds other pictures than this run began with"
    assert tiny(arcs, run, steps=11)["step"] == 11 and said not in capsys.readouterr().out  # they may move
    for file in arcs.glob("*/*.png"):
        with Image.open(file) as picture:
            ImageOps.invert(picture.convert("RGB")).save(file)
    assert tiny(arcs, run, steps=12)["step"] == 12
    assert capsys.readouterr().out.count(f"{arcs} {said}") == 1
    assert tiny(arcs, run, steps=13)["step"] == 13 and said not in capsys.readouterr().out


def test_other_files_of_a_run_damaged(trained, run):
    """What they said is made anew; nothing depends on them."""
    for name, content in {
        "metrics.jsonl": b'\xff\xfe\n[]\n3\n{"step": "x"}\n',
        "latest.json": b"{",
        "best.json": b'{"checkpoint": "a"}',
    }.items():
        (run / name).write_bytes(content)
    about = read_json(run / "config.json")
    for damaged in ([], about | {"dataset": {}}, about | {"dataset": {"path": 7}}):
        write_json(run / "config.json", damaged)
        refused(lambda: generate(run), "config.json is damaged", "training writes it anew")
    assert tiny(trained[0], run, steps=12)["step"] == 12
    assert read_pointer(run / "latest.json")["step"] == read_pointer(run / "best.json")["step"] == 12
    assert generate(run, "dataset:arc_0/3", 3)["step"] == 12


def test_a_best_checkpoint_that_was_undone_is_no_longer_the_best(trained, run):
    write_json(run / "best.json", read_pointer(run / "best.json") | {"value": 1e9})
    cut(run / "checkpoints/step_00000010/model.safetensors")
    tiny(trained[0], run, steps=6)
    assert read_pointer(run / "best.json")["step"] == 6


def test_a_branch_of_a_run_goes_on_when_started_again(trained, run, tmp_path, monkeypatch):
    branch = {"resume": str(run), "steps": 20}
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_evaluate", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            tiny(trained[0], tmp_path / "branch", **branch)
    assert tiny(trained[0], tmp_path / "branch", **branch | {"steps": 22})["step"] == 22
    refused(
        lambda: tiny(trained[0], tmp_path / "branch", resume=str(run / "checkpoints/step_00000005")),
        "already holds a run",
    )
    refused(lambda: tiny(trained[0], tmp_path / "branch", resume="never"), "already holds a run")


# ---- a full disk


LIMITED = """
import resource, signal, sys
from mtld_core.generate import generate
from mtld_core.config import UserError
from mtld_core.train.job import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # no file larger than that can be written
try:
    sys.exit(main(["--config", sys.argv[1]]) if len(sys.argv) == 2 else generate(*sys.argv[1:3], 40, sys.argv[3]))
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.versionless  # the disk's doing
@pytest.mark.skipif(os.name == "nt", reason="no such limits on Windows")
def test_files_that_cannot_grow(trained, run, tmp_path):
    job = {"preset": "tiny", "dataset_root": str(trained[0]), "run_dir": str(run), "steps": 15}
    write_json(tmp_path / "job.json", job)
    before = files(run / "checkpoints")
    _, last = command("-c", LIMITED, tmp_path / "job.json")
    assert (
        last.startswith(f"error: {run}: ") and "File too large" in last and "make room on that disk" in last
    )
    assert files(run / "checkpoints") == before and not list(run.rglob("*.tmp*"))
    assert (
        main(["--config", str(tmp_path / "job.json")]) == 0
        and read_pointer(run / "latest.json")["step"] == 15
    )
    Image.fromarray(NOISE).save(tmp_path / "start.png")
    _, last = command("-c", LIMITED, run, tmp_path / "start.png", tmp_path / "out")
    assert last.startswith(f"error: {tmp_path / 'out'} cannot be written (File too large)")
    assert not any((tmp_path / "out").iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a good megabyte, where this machine lets a test mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", folder], capture_output=True
        ).returncode
    ):
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.versionless  # the disk's doing
def test_a_full_disk(trained, small_disk, tmp_path):
    run = Path(shutil.copytree(trained[1], small_disk / "run"))
    before = files(run / "checkpoints")
    left = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(left - 20_000))
    refused(
        lambda: tiny(trained[0], run, steps=15),
        f"{run}: ",
        "No space left on device",
        "make room on that disk",
    )
    assert files(run / "checkpoints") == before and not list(run.rglob("*.tmp*"))
    refused(
        lambda: generate(run, "dataset:arc_0/3", 48, small_disk / "out"),
        "out cannot be written (No space left on device)",
    )
    assert not any((small_disk / "out").iterdir())
    for half in (False, True):
        refused(
            lambda half=half: share(run, small_disk / "shared", 4, half),
            "shared cannot be written (No space left on device); make room there or name another folder",
        )
        assert not (small_disk / "shared").exists()
    (small_disk / "root").mkdir()
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free + left - 20_000 - 8192))
    _, last = command("data_prep/extract_frames.py", "sample", small_disk / "root")
    assert "No space left on device" in last and not any((small_disk / "root").iterdir())
    (small_disk / "filler").unlink()
    assert tiny(trained[0], run, {"keep_checkpoints": 1}, steps=11)["step"] == 11


def test_a_report_that_cannot_be_written_hides_nothing(trained, run, monkeypatch):
    def fails(error):
        def fail(*_):
            raise error

        return fail

    monkeypatch.setattr(Training, "_train_step", fails(UserError("what happened first")))
    monkeypatch.setattr(Training, "write_report", fails(OSError(28, "No space left on device")))
    refused(lambda: tiny(trained[0], run, steps=15), "what happened first")


# ---- two at once, and killed


@pytest.mark.versionless  # our own lock
def test_a_second_process_is_refused_and_the_first_goes_on(trained, tmp_path, capsys):
    job, run = tmp_path / "job.json", tmp_path / "run"
    settings = {"preset": "tiny", "dataset_root": str(trained[0]), "run_dir": str(run), "steps": 10**6}
    write_json(job, settings | {"overrides": '{"log_every_steps": 1}'})
    first = subprocess.Popen(
        [sys.executable, "-m", "mtld_core.train", "--config", str(job)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert main(["--config", str(job)]) == 1
        assert re.search(
            rf"wait for process {first.pid} on \S+ or choose another run_dir$",
            capsys.readouterr().err.strip(),
        )
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 130
    finally:
        first.kill()
    assert read_pointer(run / "latest.json")["step"] > 0 and problem(list_checkpoints(run)[0]) is None


def test_what_killed_generations_left_goes(run, tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "start.png")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    living = f".frames.{os.getppid()}.tmp"
    for name in (f".frames.{gone.pid}.tmp", f".frames.{gone.pid}.old", living):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "frame_0000.png").touch()
    generate(run, str(tmp_path / "start.png"), 3, tmp_path / "out")
    hidden = [path.name for path in (tmp_path / "out").glob(".*")]
    assert hidden == [living]


# ---- what a generation starts from


def saved(image, name, **options):
    def make(folder):
        image.save(folder / name, **options)
        return folder / name

    return make


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    half = NOISE * 0
    half[:, :16] = 255  # white on the left: on top when turned
    return saved(Image.fromarray(half), "turned.jpg", exif=exif)


COLOUR = Image.new("RGB", (32, 32), (200, 100, 50))
PICTURES = {  # name: (what writes it, mean of each channel as the model is to see it)
    "alpha": (saved(Image.new("RGBA", (32, 32), (200, 100, 50, 128)), "a.png"), (100, 50, 25)),
    "grey": (saved(COLOUR.convert("L"), "a.png"), (124, 124, 124)),
    "16 bit": (saved(Image.fromarray(np.full((32, 32), 77 * 257, np.uint16)), "a.png"), (77, 77, 77)),
    "CMYK": (saved(COLOUR.convert("CMYK"), "a.jpg"), (200, 100, 50)),
    "animation": (
        saved(COLOUR, "a.gif", save_all=True, append_images=[Image.new("RGB", (32, 32))]),
        (200, 100, 50),
    ),
    "EXIF": (turned(), (127, 127, 127)),
    "20,000 pixels wide": (saved(Image.new("RGB", (20_000, 40), (200, 100, 50)), "a.png"), (200, 100, 50)),
    "20,000 pixels wide, JPEG": (
        saved(Image.new("RGB", (20_000, 40), (200, 100, 50)), "a.jpg"),
        (200, 100, 50),
    ),
    "one pixel": (saved(Image.new("RGB", (1, 1), (200, 100, 50)), "a.png"), (200, 100, 50)),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_unusual_pictures_are_understood(run, tmp_path, kind):
    make, colour = PICTURES[kind]
    result = generate(run, str(make(tmp_path)), 3, tmp_path / "out")
    first = read_image(tmp_path / "out/frames/frame_0000.png")
    assert first.shape == (16, 16, 3) and np.abs(first.mean((0, 1)) - colour).max() < 3
    if kind == "EXIF":
        assert first[:6].mean() > 240 and first[10:].mean() < 15
    assert result["num_frames"] == len(list((tmp_path / "out/frames").iterdir())) == 3


def cut_picture(suffix):
    def make(folder):
        Image.fromarray(NOISE).save(folder / f"a.{suffix}")
        cut(folder / f"a.{suffix}", 0.8)
        return folder / f"a.{suffix}"

    return make


def folder_named_like_a_picture(folder):
    (folder / "a.png").mkdir()
    return folder / "a.png"


BAD_PICTURES = {
    "PNG cut short": (cut_picture("png"), "cannot be read as a picture"),
    "JPEG cut short": (cut_picture("jpg"), "cannot be read as a picture"),
    "GIF cut short": (cut_picture("gif"), "cannot be read as a picture"),
    "missing": (lambda folder: folder / "a.png", "no such image or video file"),
    "folder": (folder_named_like_a_picture, "holds no images"),
    "20,000 x 4,000 pixels": (saved(Image.new("1", (20_000, 4_000)), "a.png"), "is too large to decode"),
    "20,000 x 4,000 pixels, JPEG": (
        saved(Image.new("L", (20_000, 4_000)), "a.jpg"),
        "is too large to decode",
    ),
    "unreadable clip": (
        lambda folder: cut_pngs(folder / "a") or folder / "a/arc_1",
        "7 of 20 image files cannot be used",
    ),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_picture_that_cannot_be_used(run, tmp_path, kind):
    make, words = BAD_PICTURES[kind]
    path = make(tmp_path)
    before = files(run)
    refused(lambda: generate(run, str(path), 3), str(path), words)
    refused(lambda: generate(run, str(path), 3, tmp_path / "out"), words)
    assert files(run) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_frames": "3"}, "num_frames must be a whole number from 1 on, not '3'"),
        ({"num_frames": 3.5}, "num_frames must be a whole number from 1 on, not 3.5"),
        ({"fps": "12"}, "fps must be a number"),
        ({"fps": float("nan")}, "fps must be a number from 0.01 to 1000"),
        ({"fps": 1e-4}, "fps must be a number from 0.01 to 1000"),
        ({"seed": 2**70}, "seed must be a whole number from 0"),
        ({"num_frames": 1}, "num_frames must be at least 2 (the first frame is the given one), not 1"),
        ({"direction": "left"}, "direction must be 'x_to_y' or 'y_to_x', not 'left'"),
        ({"direction": "y_to_x"}, "direction='y_to_x' is for translators between two domains; use 'x_to_y'"),
        (
            {"source": "noise"},
            "source='noise' is for systems that draw from noise; mtld starts from an image, a clip's folder",
        ),
        ({"out_dir": "start.png"}, "start.png cannot be written (Not a directory)"),
        ({"out_dir": "start.png/out"}, "cannot be written (Not a directory)"),
        ({"checkpoint": "start.pth"}, "start.pth is no file of weights that can be read"),
        ({"run_dir": "start.png"}, "is not a run folder"),
    ],
)
def test_settings_of_a_generation(run, tmp_path, monkeypatch, settings, words):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(NOISE).save("start.png")
    Path("start.pth").write_text("no weights")
    before = files(tmp_path)
    refused(lambda: generate(**{"run_dir": "run", "source": "start.png", "out_dir": "out"} | settings), words)
    assert files(tmp_path) == before and not Path("out").exists()
