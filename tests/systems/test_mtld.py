"""MTLD: each setting on and off, and the mistakes of the public original, which must not come back."""

import dataclasses
import functools

import pytest
import torch
from conftest import assert_each_matters, write_arcs
from torch.nn import functional as F

from mtld_core.chance import keyed_uniform
from mtld_core.config import ConfigError
from mtld_core.generate import generate, rollout
from mtld_core.nn.conv import erases, norm2d
from mtld_core.nn.perceptual import LPIPS
from mtld_core.runs.checkpoint import export_pth, list_checkpoints
from mtld_core.systems.mtld.nets import warp
from mtld_core.systems.mtld.system import MTLD
from mtld_core.systems.opening import open_run
from mtld_core.train import train
from mtld_core.train.settings import plan
from mtld_core.train.stepper import Stepper


def model(height=16, width=16, **overrides):
    _, config, _ = plan("mtld", "tiny", overrides={"height": height, "width": width} | overrides)
    torch.manual_seed(0)
    return MTLD(config)


def batch(size=3, height=16, width=16, length=4):
    torch.manual_seed(1)
    return {"frames": torch.rand(size, length, 3, height, width) * 2 - 1, "key": torch.arange(size) + 5}


def one_step(system, data, accumulate=1):
    stepper = Stepper(system.optimizers(), torch.device("cpu"), accumulate=accumulate)
    return system.training_step([data], stepper)


class Counter:
    """Counts a module's forward passes, and the pictures in them."""

    def __init__(self, module):
        self.passes, self.pictures, self.graded = 0, 0, []
        module.register_forward_hook(self)

    def __call__(self, module, inputs, output):
        self.passes, self.pictures = self.passes + 1, self.pictures + len(inputs[0])
        self.graded.append(torch.is_grad_enabled())


# ---- the original's mistakes


def test_the_encoder_learns_and_only_the_latent_targets_are_detached():
    system = model(lambda_adv=0, lambda_fm=0)
    loss = system.generator_loss(batch())
    only_latent = F.mse_loss(torch.zeros(1), torch.zeros(1)) + loss.logs["latent"]
    reconstruction = torch.autograd.grad(
        loss.logs["reconstruction"], system.encoder.head.weight, retain_graph=True
    )[0]
    assert reconstruction.abs().sum() > 0
    # through the trajectory the latent loss reaches the encoding of the first frame, but not that of its
    # targets
    target = batch()
    target["frames"][:, 1:] += 0.1
    assert not torch.equal(system.generator_loss(target).logs["latent"], loss.logs["latent"])
    gradient = torch.autograd.grad(only_latent, system.trajectory.head.weight)[0]
    assert gradient.abs().sum() > 0


def test_latent_targets_carry_no_gradient():
    """With the trajectory's input cut off, the latent loss has no way into the encoder."""
    system = model(lambda_adv=0, lambda_fm=0)
    system.trajectory.init.requires_grad_(False)
    forward = system.trajectory.forward
    system.trajectory.forward = lambda z, length: forward(z.detach(), length)
    loss = system.generator_loss(batch()).logs["latent"]
    found = torch.autograd.grad(loss, list(system.encoder.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in found)


def test_three_passes_through_the_discriminator_and_real_features_without_gradient():
    system = model()
    counter = Counter(system.discriminator)
    one_step(system, batch(size=3))
    fakes = 3 * 2  # two decoded frames a window
    assert counter.passes == 3 and counter.pictures == fakes + fakes + 2 * fakes
    assert counter.graded == [True, False, True]


def test_each_phase_moves_its_own_networks():
    system = model()
    before = {name: value.clone() for name, value in system.state_dict().items()}
    stepper = Stepper(system.optimizers(), torch.device("cpu"))
    result = stepper("generator", system.generator_loss, batch())
    moved = {n for n, p in system.named_parameters() if not torch.equal(p, before[n])}
    assert moved and not any(name.startswith("discriminator") for name in moved)
    before = {name: value.clone() for name, value in system.state_dict().items()}
    stepper("discriminator", system.discriminator_loss, result.carry)
    moved = {n for n, p in system.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(name.startswith("discriminator") for name in moved)


# ---- settings


WEIGHTS = ("lambda_l1", "lambda_reconstruction", "lambda_latent", "lambda_lpips", "lambda_adv", "lambda_fm")


@pytest.mark.parametrize("wanted", [1, 3, 0])
def test_decode_frames_bounds_what_is_decoded(wanted):
    system = model(decode_frames=wanted if wanted < 3 else 0, rebuild_frames=1, lambda_adv=0, lambda_fm=0)
    counter = Counter(system.decoder)
    loss = system.generator_loss(batch(size=2))
    frames = wanted or 3  # T - 1 frames of the future
    assert counter.pictures == 2 * 2 * frames  # of the trajectory and of the encodings
    assert loss.carry["fake"].shape == (2, frames, 3, 16, 16)


def test_the_decoded_frames_change_from_sample_to_sample_and_match_their_truth():
    system = model(sequence_length=9, decode_frames=2, lambda_adv=0, lambda_fm=0)
    data = batch(size=4, length=9)
    data["frames"] = (
        data["frames"] * 0 + torch.arange(9.0)[:, None, None, None] / 10
    )  # frame t is filled with t / 10
    real = system.generator_loss(data).carry["real"][:, :, 0, 0, 0] * 10
    picked = keyed_uniform(data["key"], "decode_frames", 8).argsort(1)[:, :2] + 1
    torch.testing.assert_close(real, picked.float())
    assert real.min() >= 1 and len({tuple(row) for row in real.tolist()}) > 1  # never the priming frame


def test_without_adversarial_terms_there_is_no_discriminator():
    assert model(lambda_adv=0, lambda_fm=0).discriminator is None
    for only in ("lambda_adv", "lambda_fm"):
        system = model(**{only: 0})
        assert "discriminator" in one_step(system, batch())


@pytest.mark.parametrize("name", [*WEIGHTS, "lambda_temporal"])
def test_every_weight_scales_its_term(name):
    term = {
        "lambda_adv": "adversarial",
        "lambda_fm": "feature_matching",
        "lambda_temporal": "adversarial_temporal",
    }
    term = term.get(name, name.removeprefix("lambda_"))
    system = model(lambda_adv=1, lambda_fm=1, lambda_temporal=1, perceptual="vgg").eval()
    system.frozen["lpips"] = lambda fake, real: (fake - real).square().mean((1, 2, 3))
    low = system.generator_loss(batch())
    system.config = dataclasses.replace(system.config, **{name: getattr(system.config, name) + 3})
    high = system.generator_loss(batch())
    torch.testing.assert_close(high.total - low.total, 3 * low.logs[term], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [0.05, 0.2, 1.0])
def test_lpips_sees_its_share_of_all_windows_and_never_the_priming_frame(share):
    system = model(
        64,
        64,
        sequence_length=11,
        decode_frames=0,
        lpips_frames=share,
        perceptual="vgg",
        lambda_adv=0,
        lambda_fm=0,
    )
    seen = []
    system.frozen["lpips"] = lambda fake, real: seen.append(real) or (fake - real).square().mean((1, 2, 3))
    data = batch(2, 64, 64, length=11)
    loss = system.generator_loss(data)
    assert seen[0].shape == (round(20 * share), 3, 64, 64) and "lpips" in loss.logs
    windows = [
        next(b for b in range(2) if (data["frames"][b] == picture).all((1, 2, 3)).any())
        for picture in seen[0]
    ]
    assert abs(windows.count(0) - windows.count(1)) <= 1
    assert not any(torch.equal(picture, first) for picture in seen[0] for first in data["frames"][:, 0])


@pytest.mark.parametrize(("share", "rebuilt"), [(1.0, 4), (0.5, 2), (0.01, 1)])
def test_rebuild_frames_bounds_what_is_rebuilt_but_not_the_latent_targets(share, rebuilt):
    system = model(sequence_length=9, decode_frames=4, rebuild_frames=share, lambda_adv=0, lambda_fm=0)
    drawn, encoded = Counter(system.decoder), Counter(system.encoder)
    loss = system.generator_loss(batch(size=3, length=9))
    assert drawn.pictures == 3 * (4 + rebuilt)
    assert encoded.pictures == 3 * (1 + 4) and encoded.graded == [True, False][: 1 + (rebuilt < 4)]
    whole = model(
        sequence_length=9, decode_frames=4, rebuild_frames=1, lambda_adv=0, lambda_fm=0
    ).generator_loss(batch(size=3, length=9))
    torch.testing.assert_close(loss.logs["latent"], whole.logs["latent"])
    torch.testing.assert_close(loss.logs["l1"], whole.logs["l1"])


def test_lpips_can_be_left_out_and_is_in_no_checkpoint(monkeypatch, tmp_path):
    import torchvision

    torch.manual_seed(0)
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    trunk = {f"features.{name}": value for name, value in layers.state_dict().items()}
    asked = []
    monkeypatch.setattr(
        "mtld_core.systems.mtld.system.load_trunk", lambda given: asked.append(given) or trunk
    )
    on = model(perceptual="vgg", lpips_weights="given.pth")
    off = model()
    for system in (off, model(perceptual="vgg", lambda_lpips=0), on):
        system.setup_training(None)
        assert ("lpips" in system.frozen) == (system is on)
    assert isinstance(on.frozen["lpips"], LPIPS) and asked == ["given.pth"]
    assert on.state_dict().keys() == off.state_dict().keys()


NETWORKS = [
    {"decoder_blocks": 0}, {"decoder_norm": "group"},
    {"decoder": "resize", "decoder_channels": (8, 8)}, {"decoder": "transposed", "decoder_channels": (8, 8, 8)},
    {"decoder": "transposed", "decoder_channels": (8, 8), "decoder_norm": "instance"},
    {"encoder_norm": "none"}, {"encoder_norm": "group"}, {"gru_layers": 3}, {"decode_frames": 0}, {"context_frames": 2},
    {"latent": "map", "shuffle_factor": 8}, {"latent": "map", "decoder": "resize", "decoder_channels": (8, 8, 8)},
    {"skip": "features"}, {"skip": "warp"}, {"gru_gives": "change"}, {"lambda_temporal": 1}, {"lambda_temporal": 1, "decode_frames": 0},
    {"rebuild_frames": 1.0},
    {"latent": "map", "shuffle_factor": 8, "skip": "warp", "context_frames": 2, "gru_layers": 3, "lambda_temporal": 1},
]  # fmt: skip


@pytest.mark.parametrize("decoder", NETWORKS, ids=str)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40)])
def test_every_shape_of_network_trains_on_any_size(decoder, height, width):
    system = model(height, width, **decoder)
    before = {n: p.detach().clone() for n, p in system.named_parameters()}
    for _ in range(3):  # what is initialised to 0 lets gradient through from its second step on
        logs = one_step(system, batch(2, height, width))
    assert all(torch.isfinite(value) for value in logs.values())
    still = [name for name, p in system.named_parameters() if torch.equal(p, before[name])]
    assert not still or all("norm" in name for name in still), still


@functools.cache
def traces(settings):
    """What two steps with these settings leave behind: logs, weights and a frame. settings: (name, value)
    pairs.
    """
    system = model(24, 40, **dict(settings))
    logs = [one_step(system, batch(2, 24, 40, system.config.sequence_length)) for _ in range(2)][-1]
    frames = batch(2, 24, 40)["frames"][:, : system.config.context_frames]
    numbers = [*logs.values(), *system.state_dict().values(), system.eval().step(system.start(frames))[1]]
    return [number.shape for number in numbers], torch.cat([number.flatten() for number in numbers]).tolist()


def test_the_same_settings_leave_the_same_behind():
    """Or the next test could not fail."""
    assert traces(()) == traces.__wrapped__(())


NUMBERS = [
    {"sequence_length": 6, "latent_dim": 6}, {"gru_hidden": 12}, {"encoder_channels": (8, 12, 8)}, {"decoder_channels": (12,)},
    {"discriminator_channels": (8, 12)}, {"lr_g": 1e-2}, {"lr_d": 1e-2}, {"beta1": 0.9, "beta2": 0.5}, {"shuffle_factor": 8},
    *({name: 3.0} for name in ("lambda_l1", "lambda_reconstruction", "lambda_latent", "lambda_adv", "lambda_fm")),
]  # fmt: skip


@pytest.mark.parametrize("overrides", NETWORKS + NUMBERS, ids=str)
def test_every_setting_matters_beside_the_others(overrides):
    """Left out alone, each of them changes what training leaves behind."""
    assert_each_matters(traces, overrides)


@pytest.mark.parametrize("skip", ["features", "warp"])
@pytest.mark.parametrize("latent", ["vector", "map"])
def test_with_a_skip_learning_begins_at_the_priming_frame(skip, latent):
    system = model(24, 56, skip=skip, latent=latent, shuffle_factor=8).eval()
    frames = batch(2, 24, 56)["frames"]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            system.step(system.start(frames[:, :1]))[1], frames[:, 0], atol=1e-5, rtol=0
        )
    torch.testing.assert_close(system.step(system.start(frames[:, :1]))[1], frames[:, 0], atol=1e-5, rtol=0)
    drawn = torch.cat(list(system.rollout(frames[:, :1], 3)), 1)
    torch.testing.assert_close(drawn, frames[:, :1].expand_as(drawn), atol=1e-5, rtol=0)


def test_a_flow_moves_pixels_from_where_it_points_to():
    picture = torch.zeros(1, 3, 8, 16)
    picture[..., 2, 12] = 1
    flow = torch.zeros(1, 2, 8, 16)
    flow[:, 0] = 2 * 4 / 16  # each pixel is taken from four pixels to its right
    moved = warp(picture, flow)
    assert moved[0, 0, 2, 8] == pytest.approx(1, abs=1e-5) and moved.sum() == pytest.approx(3, abs=1e-4)
    flow = torch.zeros(1, 2, 8, 16)
    flow[:, 1] = -2 * 1 / 8  # and from one above
    assert warp(picture, flow)[0, 0, 3, 12] == pytest.approx(1, abs=1e-5)


def test_a_latent_map_keeps_places_apart():
    """A change in one corner of the priming frame changes the far corner's frames under a vector, not under a
    map.
    """
    changed = {}
    for latent in ("vector", "map"):
        torch.manual_seed(3)
        system = model(64, 192, latent=latent, shuffle_factor=8, encoder_norm="none").eval()
        frames = batch(1, 64, 192)["frames"][:, :1]
        other = frames.clone()
        other[..., :8, :8] *= -1
        change = (system.step(system.start(frames))[1] - system.step(system.start(other))[1]).abs()
        changed[latent] = change[..., -8:, -8:].max().item()
    assert changed["map"] == 0 < changed["vector"]


def test_all_priming_frames_are_used_and_none_is_predicted():
    system = model(sequence_length=6, context_frames=3, decode_frames=0, lambda_adv=0, lambda_fm=0)
    assert system.needs().context == 3 and system.needs().window == 6
    data = batch(size=2, length=6)
    assert torch.equal(
        system.generator_loss(data).carry["real"].sort(1).values, data["frames"][:, 3:].sort(1).values
    )
    context = data["frames"][:1, :3].clone().requires_grad_()
    system.step(system.start(context))[1].sum().backward()
    assert all(context.grad[0, t].abs().sum() > 0 for t in range(3))


def test_the_temporal_discriminator_sees_neighbours_and_moves_only_in_its_own_phase():
    system = model(sequence_length=9, decode_frames=4, lambda_adv=0, lambda_fm=0, lambda_temporal=2)
    assert system.discriminator is None and set(system.optimizers()) == {"generator", "temporal"}
    data = batch(size=5, length=9)
    data["frames"] = data["frames"] * 0 + torch.arange(9.0)[:, None, None, None] / 10
    real = (system.generator_loss(data).carry["real"][:, :, 0, 0, 0] * 10).round()
    assert torch.equal(real[:, 1:] - real[:, :-1], torch.ones(5, 3))  # in a row
    assert set(system._pick(torch.arange(300)).flatten().tolist()) == set(
        range(8)
    )  # all of them have their turn
    assert real.min() >= 1 and len(set(real[:, 0].tolist())) > 1
    seen = []
    system.temporal.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    logs = one_step(system, data)
    assert {"temporal", "adversarial_temporal"} <= logs.keys()
    fakes, both = seen
    assert fakes.shape == (5 * 3, 6, 16, 16) and both.shape == (2 * 5 * 3, 6, 16, 16)
    assert torch.equal(both[15:], fakes)  # reals first; the fakes from before the generator's update
    assert torch.allclose(both[:15, :3].mean((1, 2, 3)) * 10, real[:, :-1].flatten(), atol=1e-3)
    assert torch.allclose(both[:15, 3:].mean((1, 2, 3)) * 10, real[:, 1:].flatten(), atol=1e-3)


def test_the_shuffle_decoder_begins_at_the_mean_picture():
    system = model(decoder_blocks=1)
    frames = torch.randint(0, 255, (20, 16, 16, 3), dtype=torch.uint8)
    system.prepare(frames)
    mean = frames.float().mean(0).movedim(-1, 0) / 127.5 - 1
    torch.testing.assert_close(system.decoder.mean, mean, atol=1e-5, rtol=0)
    system.decoder.head.weight.data.zero_(), system.decoder.head.bias.data.zero_()
    torch.testing.assert_close(
        system.decoder(torch.randn(2, 8)), mean.expand(2, -1, -1, -1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"height": 20}, "height=20 is not divisible by 8; use 16"),
        ({"width": 4}, "width=4 is not divisible by 8; use 8"),
        ({"lpips_frames": 0.0}, r"lpips_frames must be in \(0, 1\]"),
        ({"rebuild_frames": 1.5}, r"rebuild_frames must be in \(0, 1\], not 1.5"),
        ({"decode_frames": 4}, "decode_frames must be from 0"),
        ({"decode_frames": 3, "context_frames": 2}, r"decode_frames must be from 0 \(all\) to 2"),
        ({"context_frames": 4}, "context_frames must be from 1 to sequence_length - 1, not 4"),
        (
            {"lambda_temporal": 1, "lambda_adv": 0, "lambda_fm": 0, "discriminator_channels": [8] * 4},
            "need 24 pixels",
        ),
        ({"lambda_temporal": 1, "decode_frames": 1}, "lambda_temporal needs decode_frames of at least 2"),
        (
            {"latent": "map"},
            r"enlarges \(4 times\) as much as the encoder shrinks \(8 times\); change shuffle_factor",
        ),
        ({"skip": "warp", "decoder": "resize"}, "skip='warp' needs decoder='shuffle'"),
        ({"sequence_length": 1}, "sequence_length must be at least 2"),
        ({"decoder_channels": [8, 8]}, "decoder='shuffle' takes one width"),
        ({"decoder": "transpose"}, "decoder must be one of"),
        ({"encoder_channels": []}, "encoder_channels must list positive widths"),
        ({"latent_dim": 0}, "latent_dim must be positive"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), not 1.0"),
        ({"lambda_l1": -1}, "lambda_l1 must not be negative, it is -1"),
        ({"shuffle_factor": 0}, "shuffle_factor must be positive, not 0"),
        ({"decoder_blocks": -1}, "decoder_blocks must not be negative, it is -1"),
        ({"discriminator_channels": (8, 0)}, "discriminator_channels must list positive widths"),
        (
            dict.fromkeys(WEIGHTS, 0),
            "all weights of the loss are 0, so nothing would be learned: give lambda_l1",
        ),
        # LPIPS is not there to weigh: the preset has perceptual="none"
        (dict.fromkeys(WEIGHTS, 0) | {"lambda_lpips": 1}, "all weights of the loss are 0"),
        (
            {"shuffle_factor": 16, "decoder_norm": "instance"},
            r"one cell \(shuffle_factor=16\).*norm='instance'; use .*'none'",
        ),
        (
            {"shuffle_factor": 16, "decoder_norm": "group", "decoder_channels": [1]},
            "leave nothing to decoder_norm='group'",
        ),
    ],
)
def test_bad_settings_name_the_field_and_the_way_out(overrides, message):
    with pytest.raises(ConfigError, match=message):
        model(**{"height": 16, "width": 16} | overrides)


@pytest.mark.parametrize("name", [*WEIGHTS, "lambda_temporal"])
def test_a_single_weight_is_enough_to_learn_from(name):
    perceptual = {"perceptual": "vgg"} if name == "lambda_lpips" else {}
    assert model(**dict.fromkeys(WEIGHTS, 0) | {name: 1} | perceptual)


def test_the_original_preset_trains_a_step():
    """On smaller frames, one window of them. LPIPS stands aside for a distance that needs no download."""
    _, config, _ = plan("mtld", "original", overrides={"height": 64, "width": 64})
    system = MTLD(config)
    seen = []
    system.frozen["lpips"] = lambda fake, real: (
        seen.append(len(real)) or (fake - real).square().mean((1, 2, 3))
    )
    logs = one_step(system, batch(1, 64, 64, length=16))
    terms = {"l1", "reconstruction", "latent", "lpips", "adversarial", "feature_matching", "discriminator"}
    assert set(logs) == terms and all(torch.isfinite(value) for value in logs.values())
    assert seen == [15]


@pytest.mark.parametrize("decoder", [
    {"decoder_norm": "group"}, {"decoder_norm": "none"}, {"decoder_norm": "instance", "decoder_blocks": 0},
    {"decoder_norm": "instance", "decoder": "resize", "decoder_channels": [8, 8, 8, 8]},
])  # fmt: skip
def test_a_grid_of_one_cell_is_used_where_no_norm_erases_it(decoder):
    one_step(model(**{"shuffle_factor": 16} | decoder), batch(size=1))


@pytest.mark.parametrize("kind", ["instance", "group"])
@pytest.mark.parametrize("channels", [1, 2, 7, 8, 25, 28, 31])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2)])
def test_a_norm_takes_any_width_and_says_where_it_erases(kind, channels, height, width):
    """What is left of one sample is nothing but zeros, or torch refuses it, in just the cases that `erases`
    names.
    """
    torch.manual_seed(0)
    try:
        left = norm2d(kind, channels)(torch.randn(1, channels, height, width)).abs().max().item()
    except ValueError as error:
        assert "Expected more than 1" in str(error)
        left = 0
    assert erases(kind, channels, height, width) == (left == 0)


def test_the_original_preset_has_the_sources_values():
    _, config, training = plan("mtld", "original")
    source = {
        "height": 256, "width": 256, "sequence_length": 16, "latent_dim": 256, "gru_hidden": 512, "gru_layers": 2,
        "lr_g": 2e-4, "lr_d": 4e-4, "beta1": 0.5, "beta2": 0.999, "decoder": "transposed", "perceptual": "vgg",
        "lambda_l1": 100, "lambda_lpips": 10, "lambda_latent": 150, "lambda_adv": 1, "lambda_fm": 10,
        "decode_frames": 0, "lpips_frames": 1.0,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in source} == source
    assert (training.batch_size, training.epochs, training.lr_schedule, training.ema_decay) == (
        2,
        100,
        "constant",
        0,
    )
    with torch.device("meta"):
        system = MTLD(config)
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in system.named_children()}
    # weights of the public script's layers, added up by hand; here some convolutions before a norm have a
    # bias more
    public = {
        "encoder": 32_116_032,
        "decoder": 32_132_099,
        "trajectory": 3_284_224,
        "discriminator": 2_764_737,
    }
    assert sizes == {name: pytest.approx(count, rel=1e-3) for name, count in public.items()}


def test_small_is_a_latent_map_that_draws_changes_to_the_priming_frame():
    _, config, training = plan("mtld", "small", overrides={"height": 32, "width": 48, "perceptual": "none"})
    assert (config.latent, config.skip, training.restitution) == ("map", "features", False)
    system, data = MTLD(config), batch(2, 32, 48, length=16)
    torch.testing.assert_close(
        system.eval().step(system.start(data["frames"][:, :1]))[1], data["frames"][:, 0]
    )
    assert all(torch.isfinite(value) for value in one_step(system.train(), data).values())


# ---- generation


def test_a_run_generates_the_same_frames_every_time_and_from_its_pth(tmp_path):
    run, data = tmp_path / "run", write_arcs(tmp_path / "data", [20] * 6)
    train("mtld", "tiny", str(data), run_dir=str(run), steps=3)
    system = open_run(run, device="cpu")
    context = torch.full((16, 16, 3), 90, dtype=torch.uint8)
    first = rollout(system, context, 40)
    assert torch.equal(first, rollout(open_run(run, device="cpu"), context, 40))
    assert first.float().std() > 0 and first.shape == (40, 16, 16, 3)

    export_pth(list_checkpoints(run)[0], tmp_path / "weights.pth")
    weights = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert weights.keys() == system.state_dict().keys()
    again = open_run(run, str(tmp_path / "weights.pth"), device="cpu")
    assert torch.equal(rollout(again, context, 40), first)
    result = generate(
        run, "dataset:arc_1/3", 5, tmp_path / "out", checkpoint=str(tmp_path / "weights.pth"), device="cpu"
    )
    assert result["checkpoint"] == "weights.pth"


def test_a_longer_rollout_begins_with_the_shorter_one():
    system = model().eval()
    context = torch.full((16, 16, 3), 90, dtype=torch.uint8)
    short, long = rollout(system, context, 16), rollout(system, context, 35)
    assert (
        short.int() - long[:16].int()
    ).abs().max() <= 1  # the last piece of a rollout may be rounded otherwise


def test_more_training_brings_the_picture_closer(tmp_path):
    data = write_arcs(tmp_path / "data", [24])
    psnr = [
        train(
            "mtld",
            "tiny",
            str(data),
            {"restitution": True, "lr_g": 3e-3},
            run_dir=str(tmp_path / str(n)),
            steps=n,
        )["metrics"]["psnr"]
        for n in (2, 150)
    ]
    assert psnr[1] > psnr[0] + 1
