"""MTLD on a film: latents that are its principal components, rolls that grow, the preset series."""

import dataclasses
import math
import shutil

import pytest
import torch
from conftest import write_arcs
from torch.nn import functional as F

from mtld_core.config import ConfigError
from mtld_core.data import open_dataset
from mtld_core.frames import to_float
from mtld_core.judge.task import Task
from mtld_core.systems.mtld.film import FLOOR, components_for
from mtld_core.systems.mtld.system import MTLD
from mtld_core.systems.opening import open_run
from mtld_core.train import train
from mtld_core.train.settings import build, plan
from mtld_core.train.stepper import Stepper

WEIGHTS = ("lambda_l1", "lambda_reconstruction", "lambda_latent", "lambda_lpips", "lambda_adv", "lambda_fm")
FILM = {"latent": "components", "latent_dim": 6, **dict.fromkeys(WEIGHTS, 0)}


def model(**overrides):
    _, config, _ = plan("mtld", "tiny", overrides={"height": 16, "width": 24} | FILM | overrides)
    torch.manual_seed(0)
    return MTLD(config)


def film(count=40, height=16, width=24):
    """Frames that a few pictures explain for the most part, uint8 `[count, H, W, 3]`."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(8, height, width, 3, generator=generator)
    amounts = torch.rand(count, 8, generator=generator) / 4
    noise = torch.rand(count, height, width, 3, generator=generator)
    return (20 * noise + 200 * torch.einsum("nk,khwc->nhwc", amounts, pictures)).to(torch.uint8)


def windows(frames, length, count=3):
    """The first `count` windows of a film as a batch."""
    rows = torch.arange(count)[:, None] + torch.arange(length)
    return {"frames": to_float(frames[rows]), "key": torch.arange(count)}


# ---- components


def test_components_are_those_of_a_singular_value_decomposition():
    system, frames = model(), film()
    system.prepare(frames)
    x = to_float(frames)
    mean = x.mean(0)
    _, _, rows = torch.linalg.svd((x - mean).flatten(1).double(), full_matrices=False)
    best = ((x - mean).flatten(1).double() @ rows[:6].T @ rows[:6]).float()
    drawn = system.encoder.draw(system.encoder(x))
    torch.testing.assert_close((drawn - mean).flatten(1), best, atol=1e-4, rtol=0)
    z = system.encoder(x)
    lost = (x - best.view_as(x) - mean).square().flatten(1).mean(1)
    torch.testing.assert_close(system.encoder.lost(x, z), lost, rtol=1e-2, atol=1e-7)
    torch.testing.assert_close(z.std(0, unbiased=False), torch.ones(6), atol=1e-3, rtol=0)


def test_weighed_squares_of_latents_are_squares_of_pixels():
    system, frames = model(), film()
    system.prepare(frames)
    a, b = system.encoder(to_float(frames)).split(20)
    pixels = (system.encoder.draw(a) - system.encoder.draw(b)).square().flatten(1).mean(1)
    torch.testing.assert_close((a - b).square() @ system.encoder.weights, pixels, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("frames", [film(4), torch.full((9, 16, 24, 3), 90, dtype=torch.uint8)])
def test_components_beyond_what_the_frames_hold_stay_zero(frames):
    system = model()
    system.prepare(frames)
    held = system.encoder.pictures.flatten(1).norm(dim=1)
    assert held.count_nonzero() <= len(frames) - 1 and len(held) == 6
    assert all(torch.isfinite(buffer).all() for buffer in system.buffers())
    z = system.encoder(to_float(frames))
    torch.testing.assert_close(system.encoder.draw(z), to_float(frames), atol=1e-3, rtol=0)
    assert (system.encoder.lost(to_float(frames), z) == FLOOR).all()


@pytest.mark.parametrize(("frames", "count"), [(2, 1), (30, 10), (1524, 508), (100_000, 512)])
def test_a_longer_film_gets_more_components(frames, count):
    assert components_for(frames) == count


def test_the_dataset_decides_how_many_components_there_are(tmp_path):
    dataset = open_dataset(write_arcs(tmp_path, [12, 18]))
    cls, config, training = plan("mtld", "tiny", overrides=FILM | {"latent_dim": 0})
    assert build(cls, config, dataset, training.seed).config.latent_dim == 10
    cls, config, training = plan("mtld", "tiny", overrides=FILM)
    assert build(cls, config, dataset, training.seed).config.latent_dim == 6


def test_components_see_more_frames_than_a_median_needs(tmp_path):
    dataset = open_dataset(write_arcs(tmp_path, [600]))
    seen = []
    for overrides in (FILM, {}):
        cls, config, training = plan("mtld", "tiny", overrides={"restitution": True} | overrides)
        task = Task(build(cls, config, dataset), dataset, training, say=lambda line: None)
        seen.append(len(task.samples[0]))
    assert seen == [600, 512]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_components_run_in_full_precision(dtype):
    system, frames = model(), film()
    system.prepare(frames)
    encoder, x = system.encoder, to_float(frames)
    z = encoder(x)
    drawn = encoder.draw(z)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(encoder(x), z, atol=0, rtol=0)
        torch.testing.assert_close(encoder.draw(z), drawn, atol=0, rtol=0)


# ---- rolls


@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("reach", [1, 2, 5, 8])
def test_rolls_side_by_side_are_the_rolls_one_by_one(context, reach):
    system = model(sequence_length=8 + context, context_frames=context, decode_frames=1)
    trajectory = system.trajectory
    z = torch.randn(3, 8 + context, 6)
    made, meant = trajectory.from_many(z, context, reach)
    found, starts = {}, set()
    for rows, t in zip(made, meant, strict=True):
        for b in range(3):
            found.setdefault((b, t), []).append(rows[b])
    for first in range(context, 8 + context, max(1, reach // 4)):
        length = min(reach, 8 + context - first)
        path = trajectory(z[:, first - context : first], length)
        starts.add(first)
        for b in range(3):
            for far in range(length):
                near = [row for row in found[b, first + far] if torch.allclose(row, path[b, far], atol=1e-5)]
                assert near, (b, first, far)
    count = sum(min(reach, 8 + context - first) for first in starts)
    assert made.shape == (count, 3, 6)


def test_rolls_grow_frame_by_frame_until_they_fill_the_window():
    system = model(sequence_length=16, grow_until=0.8)
    reached = []
    for tenth in range(11):
        system.progress = tenth / 10
        reached.append(system.reach)
    assert reached == [1, 1, 1, 2, 3, 5, 7, 10, 15, 15, 15]
    assert model(sequence_length=16).reach == 15


@pytest.mark.parametrize("steps", [4, 8])
def test_rolls_grow_by_the_share_of_the_training_that_is_done(tmp_path, monkeypatch, steps):
    reached = []
    loss = MTLD.film_loss

    def watched(self, batch):
        reached.append(self.reach)
        return loss(self, batch)

    monkeypatch.setattr(MTLD, "film_loss", watched)
    data = str(write_arcs(tmp_path / "data", [24]))
    settings = FILM | {"grow_until": 0.5, "sequence_length": 5, "restitution": True, "threads": 1}
    train("mtld", "tiny", data, settings, run_dir=str(tmp_path / "run"), steps=steps)
    assert reached[-steps:] == {4: [1, 2, 4, 4], 8: [1, 1, 2, 2, 4, 4, 4, 4]}[steps]


def test_a_resumed_run_goes_on_with_rolls_as_long(tmp_path, capsys):
    """One run in one go, and one whose first half a second session goes on with."""
    data = str(write_arcs(tmp_path / "data", [24]))
    settings = FILM | {"grow_until": 0.9, "restitution": True, "save_every_steps": 3, "threads": 1}
    settings |= {"sequence_length": 8, "keep_checkpoints": 9}
    train("mtld", "tiny", data, settings, run_dir=str(tmp_path / "a"), steps=6)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("checkpoints/step_00000006", "latest.json", "best.json"):
        gone = tmp_path / "b" / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
    train("mtld", "tiny", data, settings, run_dir=str(tmp_path / "b"), steps=6)
    assert "going on at step 3" in capsys.readouterr().out
    states = [open_run(tmp_path / name, device="cpu").state_dict() for name in "ab"]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=0, rtol=0)


def test_weight_decay_shrinks_what_the_loss_does_not_hold():
    """A step at a still, whose loss moves the head alone."""
    frames, shrunk = film(), {}
    for decay in (0.0, 10.0):
        system = model(gru_gives="change", weight_decay=decay)
        system.prepare(frames)
        before = system.trajectory.init[0].weight.detach().clone()
        system.training_step([windows(frames, 4)], Stepper(system.optimizers(), torch.device("cpu")))
        shrunk[decay] = (system.trajectory.init[0].weight / before).mean().item()
    assert shrunk[0.0] == 1
    assert shrunk[10.0] == pytest.approx(1 - 10 * 2e-4)


def test_with_changes_learning_begins_at_a_still():
    for other in (FILM, {"latent": "vector", "lambda_l1": 1}):
        z = torch.randn(2, 1, other.get("latent_dim", 6))
        still = model(**other, gru_gives="change").trajectory(z, 3)
        torch.testing.assert_close(still, z.expand_as(still), atol=0, rtol=0)
        moved = model(**other, gru_gives="latent").trajectory(z, 3)
        assert (moved - z).abs().min() > 0


# ---- the loss


def test_the_loss_is_the_log_of_the_squared_errors_of_pixels():
    system, frames = model(), film()
    system.prepare(frames)
    data = windows(frames, 4)
    data["frames"][:, 2] += 0.2 * torch.rand(3, 3, 16, 24)  # which the components cannot draw
    loss = system.film_loss(data)
    errors = []
    for first in range(3):
        later = data["frames"][:, first + 1 :]
        path = system.trajectory(system.encoder(data["frames"][:, first])[:, None], 3 - first)
        drawn = system.encoder.draw(path.flatten(0, 1)).view_as(later)
        errors.append((drawn - later).square().mean((2, 3, 4)).flatten())
    errors = torch.cat(errors)
    torch.testing.assert_close(loss.logs["log_error"], errors.log().mean(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loss.logs["error"], errors.mean(), rtol=1e-3, atol=1e-5)
    assert loss.total is loss.logs["log_error"]
    system.encoder.requires_grad_(True)
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in system.trajectory.parameters())


def test_components_are_no_parameters_and_have_no_discriminator():
    system = model()
    assert not list(system.encoder.parameters()) and system.decoder is None
    assert system.discriminator is None and list(system.optimizers()) == ["generator"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lambda_l1": 1, "lambda_fm": 2}, "no weights of others: give lambda_l1=0, lambda_fm=0"),
        ({"latent": "vector", "lambda_l1": 1, "grow_until": 0.3}, "grow_until needs latent='components'"),
        ({"latent": "map", "lambda_l1": 1, "latent_dim": 0}, "latent_dim must be positive, except with"),
        ({"latent": "vector", "lambda_l1": 1, "places": 9}, "places needs latent='components'"),
        ({"places": 5000}, "places must be at most 4096, not 5000"),
        ({"gru_gives": "both"}, "gru_gives must be one of"),
        ({"context_frames": 4}, "context_frames must be from 1 to sequence_length - 1"),
    ],
)
def test_bad_settings_name_the_field_and_the_way_out(overrides, message):
    with pytest.raises(ConfigError, match=message):
        model(**overrides)


def test_series_learns_a_film_of_any_size_by_heart(tmp_path):
    """18x22 pixels: no network halves them."""
    data = str(write_arcs(tmp_path / "data", [24, 30], height=18, width=22))
    short = {"sequence_length": 6, "gru_hidden": 64, "eval_windows": 40, "threads": 1}
    report = train("mtld", "series", data, short, run_dir=str(tmp_path / "run"), steps=200)
    figures = report["metrics"]
    assert figures["skill_db"] > 2
    assert math.isfinite(figures["reconstruction_psnr"])
    system = open_run(tmp_path / "run", device="cpu")
    context = open_dataset(data).frames[0]
    state = system.start(context)
    frames = []
    for _ in range(20):
        state, frame = system.step(state)
        frames.append(frame)
    rolled = torch.cat(list(system.rollout(context, 20)), 1)
    torch.testing.assert_close(rolled, torch.stack(frames, 1), atol=1e-3, rtol=0)
    assert F.mse_loss(rolled[:, 0], to_float(context)[None]) < 1


# ---- priming frames that are none of the film's


def shots(count=24, height=32, width=48):
    """Frames of smooth blobs that wander, uint8 `[count, H, W, 3]`."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    frames = []
    for t in range(count):
        spots = [
            torch.exp(-6 * ((x - math.sin(t / 8 + c)) ** 2 + (y - math.cos(t / 12 + 2 * c)) ** 2))
            for c in range(3)
        ]
        frames.append(torch.stack(spots, 2))
    return (40 + 160 * torch.stack(frames)).to(torch.uint8)


def knowing(**overrides):
    """A model that knows every frame of `shots`."""
    frames = shots()
    system = model(height=32, width=48, latent_dim=12, places=len(frames), **overrides)
    system.prepare(frames)
    return system, to_float(frames)


def disturbances(x):
    """name -> pictures `[N, 3, H, W]` as they may come from elsewhere."""
    logo = x.clone()
    logo[..., 2:8, 36:46] = torch.tensor([0.4, -0.7, -0.7])[:, None, None]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    cropped = F.interpolate(x[..., 2:-2, 2:-2], size=x.shape[2:], mode="bilinear", align_corners=False)
    shifted = torch.cat([x[..., :1].expand(-1, -1, -1, 2), x[..., :-2]], 3)
    return {
        "clean": x,
        "a logo": logo,
        "brighter": 1.15 * (x + 1) - 1,
        "darker": 0.85 * (x + 1) - 1,
        "tinted": x + torch.tensor([0.1, 0.0, -0.1])[:, None, None],
        "noise": x + 0.1 * noise,
        "cropped": cropped,
        "shifted": shifted,
    }


@pytest.mark.parametrize("name", disturbances(torch.zeros(1, 3, 32, 48)))
def test_a_disturbed_priming_frame_is_taken_for_the_films_own(name):
    system, x = knowing()
    given = disturbances(x)[name]
    z, _, _ = system.start(given[:, None])
    right = (z == system.encoder.known).all(1)
    assert right.float().mean() > 0.95, right
    off = system.encoder(given)
    if name != "clean":
        assert (off - system.encoder.known).abs().max() > 0.05  # which it would have begun with


def test_a_frame_of_the_film_is_itself_and_a_rollout_begins_at_it():
    system, x = knowing()
    with torch.no_grad():
        rolled = torch.cat(list(system.rollout(x[:, None], 3)), 1)
        system.config = dataclasses.replace(system.config, places=0)
        torch.testing.assert_close(torch.cat(list(system.rollout(x[:, None], 3)), 1), rolled)


def test_each_of_several_priming_frames_is_looked_up():
    system, x = knowing(context_frames=2)
    given = disturbances(x)["brighter"]
    pairs = torch.stack([given[3:9], given[4:10]], 1)
    z, hidden, _ = system.start(pairs)
    known = system.encoder.known
    torch.testing.assert_close(z, known[4:10], atol=0, rtol=0)
    clean = system.trajectory.start(torch.stack([known[3:9], known[4:10]], 1))
    torch.testing.assert_close(hidden[0], clean[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_places_are_found_in_full_precision(dtype):
    system, x = knowing()
    given = disturbances(x)["cropped"][:4]
    z, _, _ = system.start(given[:, None])
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(system.start(given[:, None])[0], z, atol=0, rtol=0)


@pytest.mark.parametrize(("places", "kept"), [(0, 0), (29, 0), (30, 30), (4096, 30)])
def test_a_film_is_known_whole_or_not_at_all(tmp_path, places, kept):
    dataset = open_dataset(write_arcs(tmp_path, [12, 18]))
    cls, config, training = plan("mtld", "tiny", overrides=FILM | {"places": places})
    system = build(cls, config, dataset, training.seed)
    assert system.config.places == kept and len(system.encoder.known) == kept
    assert ("encoder.known" in system.state_dict()) == bool(kept)  # a run of before has none


def test_places_change_nothing_in_training_and_come_back_with_the_run(tmp_path):
    data = str(write_arcs(tmp_path / "data", [24]))
    states = []
    for places in (0, 100):
        settings = FILM | {"places": places, "restitution": True, "threads": 1}
        train("mtld", "tiny", data, settings, run_dir=str(tmp_path / str(places)), steps=3)
        states.append(open_run(tmp_path / str(places), device="cpu").state_dict())
    known = states[1].pop("encoder.known")
    system = open_run(tmp_path / "100", device="cpu")
    torch.testing.assert_close(known, system.encoder(to_float(open_dataset(data).frames)))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=0, rtol=0)
