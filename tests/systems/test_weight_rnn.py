"""Weight RNN: what an update does to the weights, whom the losses teach, each setting on and off, and what is
refused.
"""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from conftest import assert_each_matters, moving_square
from PIL import Image
from torch.func import functional_call, vmap
from weight_rnn import sheet

from mtld_core.config import ConfigError, from_dict
from mtld_core.data import open_dataset
from mtld_core.frames import to_float, to_uint8
from mtld_core.systems.weight_rnn.hyper import LayerUpdate, changed_layer
from mtld_core.systems.weight_rnn.losses import gaussian_kl, gradient_penalty
from mtld_core.systems.weight_rnn.system import Code, WeightRNN
from mtld_core.systems.weight_rnn.videos import noisy_video, synthetic_video
from mtld_core.train.settings import plan
from mtld_core.train.stepper import Stepper

KINDS = ("full", "low_rank", "per_channel")


def model(height=16, width=16, **overrides):
    """The tiny preset: two convolutions each way, full updates of the decoder."""
    _, config, _ = plan("weight_rnn", "tiny", overrides={"height": height, "width": width} | overrides)
    torch.manual_seed(0)
    return WeightRNN(config)


def awake(system, size=0.3):
    """With a head that predicts something, as after some training; the same one for the same shape."""
    torch.manual_seed(4)
    torch.nn.init.normal_(system.predictor.head.weight, std=size)
    return system


def batch(size=3, height=16, width=16):
    torch.manual_seed(1)
    return {"frames": torch.rand(size, 1, 3, height, width) * 2 - 1, "key": torch.arange(size) + 5}


def train(system, data, steps=1, dtype=torch.float32):
    stepper = Stepper(system.optimizers(), torch.device("cpu"), dtype)
    return [system.training_step([data] * system.needs().batches, stepper) for _ in range(steps)][-1]


def vectors_of(system, size=3, scale=1.0):
    torch.manual_seed(2)
    return scale * torch.randn(size, sum(update.size for update in system.layer_updates))


def gradients(system, loss):
    return dict(zip(dict(system.named_parameters()), torch.autograd.grad(loss, list(system.parameters()), allow_unused=True),
                    strict=True))  # fmt: skip


def written(system, vector, network=None):
    """A copy of the VAE with the update of one sample added to its weights, in place."""
    vae, sizes = copy.deepcopy(system.vae), [update.size for update in system.layer_updates]
    with torch.no_grad():
        for name, update, part in zip(
            system.config.targets, system.layer_updates, vector.split(sizes), strict=True
        ):
            layer = vae.get_submodule(name)
            weight, bias = changes_by_hand(update, layer, part)
            layer.weight += weight
            layer.bias += bias
    return vae


def changes_by_hand(update, layer, part):
    """(change of the weight, of the bias) from one sample's numbers, written out loop by loop."""
    weight = layer.weight.transpose(0, 1) if isinstance(layer, torch.nn.ConvTranspose2d) else layer.weight
    out, rest, numbers = len(weight), weight[0].numel(), iter(part.tolist())
    own = (weight.square().sum() + layer.bias.square().sum()).sqrt().item()
    change = torch.zeros(out, rest)
    if update.kind == "full":
        change = (
            torch.tensor([[next(numbers) for _ in range(rest)] for _ in range(out)])
            * own
            / (out * rest) ** 0.5
        )
    if update.kind == "low_rank":
        columns = torch.tensor([[next(numbers) for _ in range(update.rank)] for _ in range(out)])
        rows = torch.tensor([[next(numbers) for _ in range(rest)] for _ in range(update.rank)])
        change = columns @ rows / update.rank**0.5 * own / (out * rest) ** 0.5
    factors = [next(numbers) for _ in range(out)] if update.kind == "per_channel" else [0.0] * out
    shifts = torch.tensor([next(numbers) * own / out**0.5 for _ in range(out)])
    for o, factor in enumerate(factors):
        change[o] += factor * weight[o].flatten()
        shifts[o] += factor * layer.bias[o]
    norm = (change.square().sum() + shifts.square().sum()).sqrt().item()
    squeeze = update.bound * own / ((update.bound * own) ** 2 + norm**2) ** 0.5
    change = change.view(weight.shape) * squeeze
    return change.transpose(0, 1) if isinstance(layer, torch.nn.ConvTranspose2d) else change, shifts * squeeze


# ---- updates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "targets", [(), ("stem", "decoder.0"), ("encoder.0", "mu", "logvar", "decoder.1")], ids=str
)
def test_an_update_does_what_the_same_update_written_into_the_weights_does(kind, targets):
    system = model(update=kind, target_layers=targets, update_bound=0.5)
    data, vectors = batch(), vectors_of(system)
    frames = data["frames"][:, 0]
    code = system.encode(frames)
    drawn, _ = system.draw(code, vectors)
    for i in range(3):
        vae = written(system, vectors[i])
        expected = vae.decode(vae.encode(frames[i : i + 1])[0])
        torch.testing.assert_close(drawn[i : i + 1], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(drawn, system.draw(code)[0], atol=1e-3)


@pytest.mark.parametrize(
    "layer", [torch.nn.Linear(5, 4), torch.nn.Conv2d(3, 4, 3), torch.nn.ConvTranspose2d(3, 4, 4, 2, 1)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_layer_is_a_call_with_the_weights_of_each_sample(layer, kind):
    """The reference: torch.func.functional_call under vmap, with weights made sample by sample."""
    update = LayerUpdate(layer, kind, 2, 0.3)
    vectors, x = (
        torch.randn(6, update.size),
        torch.randn(6, *((5,) if isinstance(layer, torch.nn.Linear) else (3, 8, 8))),
    )
    changes = [changes_by_hand(update, layer, vector) for vector in vectors]
    own = {
        "weight": torch.stack([layer.weight + w for w, _ in changes]),
        "bias": torch.stack([layer.bias + b for _, b in changes]),
    }
    expected = vmap(lambda parameters, sample: functional_call(layer, parameters, (sample[None],))[0])(own, x)
    torch.testing.assert_close(
        changed_layer(layer, x, update(layer, vectors)), expected, rtol=1e-4, atol=1e-5
    )
    assert changed_layer(layer, x).shape == expected.shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("bound", [0.05, 0.5])
def test_no_vector_changes_a_layer_beyond_the_bound(kind, size, bound):
    system = model(update=kind, update_bound=bound)
    for vector in vectors_of(system, scale=size):
        vae = written(system, vector)
        changes = system.changes(vector[None])
        for name in system.config.targets:
            before, after = system.vae.get_submodule(name), vae.get_submodule(name)
            pairs = [(getattr(before, part), getattr(after, part)) for part in ("weight", "bias")]
            share = (
                (sum((b - a).square().sum() for b, a in pairs) / sum(b.square().sum() for b, _ in pairs))
                .sqrt()
                .item()
            )
            assert share <= bound * 1.0001 and (share > 0.9 * bound or size < 1e3)
            assert all(torch.isfinite(part).all() for part in changes[name].values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_follows_the_target_layers(kind):
    sizes = {"full": 8 * 8 * 16 + 8 + 8 * 3 * 16 + 3, "per_channel": 2 * 8 + 2 * 3,
             "low_rank": 4 * (8 + 8 * 16) + 8 + 4 * (3 + 8 * 16) + 3}  # fmt: skip
    assert len(model(update=kind).predictor.head.bias) == sizes[kind]
    one = {"full": 4 * 128 + 128, "per_channel": 256, "low_rank": 4 * (4 + 128) + 128}
    assert len(model(update=kind, target_layers=("stem",)).predictor.head.bias) == one[kind]


SOURCE = {
    "height": 128, "width": 128, "latent_dim": 64, "encoder_channels": (48, 48, 48), "decoder_channels": (48, 48, 48),
    "downsample": "pool", "activation": "relu", "critic_widths": (64, 64), "updates": True, "target_layers": ("encoder.0",),
    "update": "full", "update_rounds": 1, "learning": "apart", "video_frames": 16, "video_changes": "noise",
    "video_shrink": 1, "frame_channels": (), "gru_hidden": 128, "gru_layers": 2, "adversarial_on": "reconstructions",
    "critic_steps": 1, "lr": 1e-3, "lr_predictor": 1e-3, "lr_critic": 1e-3, "beta1": 0.9, "beta2": 0.999,
    "lambda_adv": 1, "lambda_gp": 10,
}  # fmt: skip


def test_the_original_has_the_values_of_the_source():
    _, config, training = plan("weight_rnn", "original")
    assert {name: getattr(config, name) for name in SOURCE} == SOURCE
    assert config.video_strength / 15 == pytest.approx(
        2 * 0.01
    )  # 0.01 t on pixels in [0, 1], a range half as wide
    assert (training.batch_size, training.epochs, training.steps) == (16, 10, 0)
    assert (training.clip_norm, training.ema_decay, training.warmup_steps, training.lr_schedule) == (
        0,
        0,
        0,
        "constant",
    )


def test_the_original_trains_a_step():
    """On smaller images, and few of them."""
    _, config, _ = plan("weight_rnn", "original", overrides={"height": 32, "width": 32})
    logs = train(awake(WeightRNN(config)), batch(2, 32, 32))
    assert set(logs) == {"mse", "kl", "adversarial", "critic", "penalty"} and all(
        torch.isfinite(v) for v in logs.values()
    )


def test_settings_of_a_run_from_before_a_field_was_there_open():
    """As runs of the former preset "original" have kept them."""
    former = {
        "height": 32, "width": 32, "encoder_channels": [48, 96, 192, 384], "decoder_channels": [384, 192, 96, 48],
        "downsample": "pool", "target_layers": ["encoder.0"], "update": "full", "update_size": 1344, "video_shrink": 1,
        "frame_channels": [], "learning": "apart", "adversarial_on": "reconstructions", "critic_steps": 5,
    }  # fmt: skip
    system = WeightRNN(from_dict(WeightRNN.Config, former))
    assert [name for name, _ in system.critic.named_parameters() if "trunk" not in name] == ["head.weight"]
    assert system.config.video_changes == "drift" and system.config.activation == "leaky_relu"


def test_the_original_has_the_numbers_of_the_source():
    _, config, training = plan("weight_rnn", "original")
    with torch.device("meta"):
        (update,) = config.layer_updates(config.build_vae())
        assert update.size == 1344 == 48 * 3 * 9 + 48
        predictor = WeightRNN(config).predictor
    assert predictor.gru.input_size == 49_152 == 3 * 128 * 128 and len(predictor.frames) == 0
    assert (predictor.gru.hidden_size, predictor.gru.num_layers, predictor.head.out_features) == (
        128,
        2,
        1344,
    )
    assert (config.height, config.width, training.batch_size, config.lambda_gp) == (128, 128, 16, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_at_first_an_update_changes_nothing_and_can_be_learned(kind):
    system, frames = model(update=kind), batch()["frames"]
    plain = system.vae.decode(system.vae.encode(frames[:, 0])[0])
    torch.testing.assert_close(system.reconstruct(frames)[:, 0], plain)
    assert not system.predictor.head.weight.any()
    found = gradients(system, system.generator_loss(batch()).total)
    assert found["predictor.head.weight"].abs().sum() > 0 and not found["predictor.gru.weight_ih_l0"].any()
    found = gradients(awake(system), system.generator_loss(batch()).total)
    assert all(
        found[name].abs().sum() > 0 for name, _ in system.named_parameters() if name.startswith("predictor")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_of_an_image_does_not_depend_on_the_others(kind):
    system, data = awake(model(update=kind)), batch(4)
    frames, keys = data["frames"][:, 0], data["key"]
    code = Code(system.vae.encode(frames)[0])
    together = system._redraw(code, keys)[0]
    for i in range(4):
        alone = system._redraw(Code(code.z[i : i + 1]), keys[i : i + 1])[0]
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        together, system._redraw(code, keys + 1)[0], atol=1e-5
    )  # another video, another update


# ---- the synthetic video


def test_a_synthetic_video_begins_with_the_image_and_goes_on_in_growing_changes():
    images = torch.from_numpy(moving_square(3)).movedim(-1, 1) / 127.5 - 1
    video = synthetic_video(images, torch.arange(3), 5, 0.1)
    assert video.shape == (3, 5, 3, 16, 16) and video.abs().max() <= 1
    torch.testing.assert_close(video[:, 0], images, rtol=0, atol=1e-5)
    moved = (video - images[:, None]).abs().mean((2, 3, 4))
    assert (moved.diff(dim=1) > 0).all() and moved.max() < 0.3
    torch.testing.assert_close(
        synthetic_video(images, torch.arange(3), 5, 0.0), images[:, None].expand(-1, 5, -1, -1, -1)
    )
    torch.testing.assert_close(synthetic_video(images[1:], torch.arange(3)[1:], 5, 0.1), video[1:])
    assert not torch.equal(synthetic_video(images, torch.arange(3) + 1, 5, 0.1), video)


def test_a_noisy_video_begins_with_the_image_and_goes_on_under_more_and_more_noise():
    images = torch.from_numpy(moving_square(3)).movedim(-1, 1) / 127.5 - 1
    video = noisy_video(0.1 * images, torch.arange(3), 5, 0.2)
    assert video.shape == (3, 5, 3, 16, 16) and torch.equal(video[:, 0], 0.1 * images)
    noise = video - 0.1 * images[:, None]
    torch.testing.assert_close(noise.std((0, 2, 3, 4)), 0.2 * torch.arange(5) / 4, rtol=0.05, atol=1e-6)
    assert (
        torch.corrcoef(noise[:, 1:].transpose(0, 1).flatten(1)).fill_diagonal_(0).abs().max() < 0.1
    )  # anew in each frame
    assert torch.equal(noisy_video(0.1 * images[1:], torch.arange(3)[1:], 5, 0.2), video[1:])
    assert not torch.equal(noisy_video(0.1 * images, torch.arange(3) + 1, 5, 0.2)[:, 1:], video[:, 1:])
    assert noisy_video(images, torch.arange(3), 5, 3.0).abs().max() <= 1


def test_every_channel_of_features_drifts_on_its_own():
    keys = torch.arange(2)
    video = synthetic_video(torch.zeros(2, 5, 4, 4), keys, 3, 0.1)
    assert video.shape == (2, 3, 5, 4, 4) and not video[:, 0].any()
    assert len(video[:, 2, :, 0, 0].unique()) == 10
    torch.testing.assert_close(video[:, 1] * 2, video[:, 2])


# ---- what is watched


@pytest.mark.parametrize(("watched", "drawn"), [("image", 2), ("features", 1)])
def test_for_features_an_image_is_drawn_once(watched, drawn):
    """In training, and in a rollout, where the image that is shown is the one that is watched next."""
    system = awake(model(watched=watched, update_rounds=1, lambda_adv=0))
    draws = []
    system.vae.decode = lambda z, *more, decode=system.vae.decode: draws.append(len(z)) or decode(z, *more)
    train(system, batch())
    assert draws == [3] * drawn
    draws.clear()
    list(system.eval().rollout(None, 4, generator=torch.Generator().manual_seed(0)))
    assert len(draws) == 4 + (watched == "image")


@pytest.mark.parametrize(("target", "moves"), [("stem", True), ("encoder.0", True), ("decoder.0", False)])
def test_features_are_watched_as_the_update_left_them(target, moves):
    """So a rollout goes on where what comes before them is changed, and is a still elsewhere."""
    system = awake(model(watched="features", target_layers=(target,), update_bound=0.5), 3.0).eval()
    frame = torch.from_numpy(moving_square(1))
    with torch.inference_mode():
        code, seen = system.start(frame)
        features = system.vae.stem(system.vae.encode(to_float(frame))[0]).tanh()
        torch.testing.assert_close(seen.flatten(1), features)
        vectors = system.watch(seen, torch.zeros(1, dtype=torch.int64))
        first, second = system.rollout(frame, 2)
        torch.testing.assert_close(first[:, 0], system.draw(code, vectors)[0])
        torch.testing.assert_close(second, system.reconstruct(to_float(frame)[None]))  # two rounds
    assert torch.equal(first, second) != moves


# ---- losses


def test_the_penalty_of_a_linear_critic_is_known():
    weight = torch.randn(3 * 4 * 4)
    weight *= 2.5 / weight.norm()
    real, fake = torch.randn(2, 6, 3, 4, 4)
    penalty = gradient_penalty(lambda x, **how: x.flatten(1) @ weight, real, fake, torch.rand(6))
    assert penalty.item() == pytest.approx((2.5 - 1) ** 2, rel=1e-5)
    system = model()
    system.critic.forward = lambda x, **how: x.flatten(1) @ weight.repeat(16)  # |weight| is 4 times 2.5
    logs = system.critic_loss(batch()).logs
    assert logs["penalty"].item() == pytest.approx(81.0, rel=1e-4)


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("activation", ["leaky_relu", "relu"])
def test_the_penalty_teaches_what_torchs_own_convolutions_would(downsample, activation):
    torch.manual_seed(0)
    critic = model(downsample=downsample, activation=activation, critic_widths=(5,)).critic.double()
    real, fake = torch.randn(2, 4, 3, 16, 16, dtype=torch.float64)
    alpha = torch.rand(4)
    penalty = gradient_penalty(critic, real, fake, alpha)
    expected = gradient_penalty(lambda points, **how: critic(points), real, fake, alpha)
    torch.testing.assert_close(penalty, expected)
    learning = dict(critic.named_parameters())
    mine, torchs = (
        torch.autograd.grad(each, learning.values(), materialize_grads=True) for each in (penalty, expected)
    )
    torch.testing.assert_close(mine, torchs)
    moved = {name for name, grad in zip(learning, mine, strict=True) if grad.any()}
    assert moved == {name for name in learning if name.endswith("weight")}


def test_the_divergence_in_closed_form():
    mu, logvar = (
        torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [0.0, 0.0], [np.log(4.0), 0.0]]),
    )
    expected = [0.0, 0.5 * (1 + 4), 0.5 * (4 - 1 - np.log(4))]
    assert gaussian_kl(mu, logvar).tolist() == pytest.approx(expected)


def test_a_second_code_costs_its_nats_too():
    """Or the first one, which the updates tell of, could be as rich as it likes, and the second one say
    nothing.
    """
    frames = batch()["frames"][:, 0]
    for target, codes in (("encoder.0", 2), ("decoder.0", 1)):
        system = model(target_layers=(target,))
        once = gaussian_kl(*system.vae.encode(frames)).mean()
        torch.testing.assert_close(
            system.generator_loss(batch()).logs["kl"], codes * once
        )  # at first both are the same


@pytest.mark.parametrize(("target", "second"), [("encoder.0", True), ("decoder.0", False)])
def test_a_draw_has_a_second_code_where_the_encoder_is_changed(target, second):
    system = model(target_layers=(target,))
    code = system._prior(torch.arange(3))
    drawn, used = system.draw(code, vectors_of(system))
    assert torch.equal(used.z, code.noise if second else code.z) and not torch.equal(code.z, code.noise)
    assert torch.equal(system.draw(code)[1].z, code.z) and drawn.shape == (3, 3, 16, 16)


@pytest.mark.parametrize("learning", ["together", "apart"])
def test_each_phase_moves_its_own_networks(learning):
    system, moved = awake(model(learning=learning)), []
    stepper = Stepper(system.optimizers(), torch.device("cpu"))

    def step(phase, loss, data):
        before = {name: value.clone() for name, value in system.named_parameters()}
        result = stepper(phase, loss, data)
        names = {
            name.split(".")[0]
            for name, value in system.named_parameters()
            if not torch.equal(value, before[name])
        }
        moved.append((phase, names))
        return result

    system.training_step([batch(), batch()], step)
    critic = [("critic", {"critic"})] * 2
    if learning == "apart":
        assert moved == [("predictor", {"predictor"}), *critic, ("generator", {"vae"})]
    else:
        assert moved == [("generator", {"vae", "predictor"}), *critic]


def test_learning_apart_keeps_the_predicted_updates_for_the_generator():
    system = awake(model(learning="apart"))
    seen = []
    system.watch = lambda images, keys, watch=system.watch: seen.append(len(images)) or watch(images, keys)
    train(system, batch())
    assert (
        len(seen) == 2 * 2 + 2
    )  # two rounds for both images in the predictor's phase, two for the second critic step's own


def test_the_critic_alone_pays_the_penalty_and_each_of_its_steps_has_a_fresh_batch():
    low, high = (awake(model(lambda_gp=weight, critic_steps=3)) for weight in (1.0, 50.0))
    assert low.needs().batches == 3 and model(lambda_adv=0).needs().batches == 1
    assert low.generator_loss(batch()).total == high.generator_loss(batch()).total
    assert low.critic_loss(batch()).total != high.critic_loss(batch()).total
    keys = []
    low.critic_loss = lambda data, loss=low.critic_loss: keys.append(data["key"].tolist()) or loss(data)
    data = [batch() | {"key": torch.arange(3) + 100 * i} for i in range(3)]
    low.training_step(data, Stepper(low.optimizers(), torch.device("cpu")))
    assert keys == [one["key"].tolist() for one in data]


@pytest.mark.parametrize("name", ["reconstruction", "kl", "adv"])
def test_every_weight_scales_its_term(name):
    log = {"reconstruction": "mse", "kl": "kl", "adv": "adversarial"}[name]
    low, high = (awake(model(**{f"lambda_{name}": weight})).generator_loss(batch()) for weight in (1.0, 4.0))
    torch.testing.assert_close(high.total - low.total, 3 * low.logs[log], rtol=1e-3, atol=1e-4)


def test_without_its_weight_there_is_no_critic():
    system = model(lambda_adv=0)
    logs = train(system, batch())
    assert system.critic is None and set(logs) == {"mse", "kl"} and "critic" not in system.optimizers()


@pytest.mark.parametrize("shown", ["samples", "reconstructions"])
def test_what_the_critic_is_shown(shown):
    system, data = awake(model(adversarial_on=shown)), batch()
    fake = system.generator_loss(data).carry["fake"]
    moved = system.generator_loss(data | {"frames": data["frames"] * 0.5}).carry["fake"]
    assert torch.equal(fake, moved) == (shown == "samples")


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("preset", ["tiny", "small", "lean", "demo"])
def test_batches_of_one_and_of_many(preset, size):
    _, config, _ = plan("weight_rnn", preset, overrides={"height": 16, "width": 16})
    logs = train(WeightRNN(config), batch(size), steps=2)
    assert all(torch.isfinite(value) for value in logs.values())


# ---- settings


ON = [
    {"downsample": "pool"},
    {"activation": "relu"},
    {"critic_widths": (8, 6)},
    {"latent_dim": 5},
    {"encoder_channels": (8,), "decoder_channels": (8, 12, 8)},
    {"target_layers": ("encoder.0", "encoder.1", "mu", "logvar", "stem", "decoder.0", "decoder.1")},
    {"update": "low_rank", "update_rank": 1},
    {"update": "low_rank"},
    {"update": "per_channel"},
    {"update_bound": 1.0},
    {"update_rounds": 1},
    {"learning": "apart"},
    {"video_frames": 5, "video_strength": 0.5},
    {"video_strength": 0.0},
    {"video_changes": "noise", "video_strength": 0.3},
    {"video_shrink": 2},
    {"watched": "features"},
    {"watched": "features", "video_changes": "noise", "target_layers": ("stem", "encoder.0")},
    {"frame_channels": ()},
    {"gru_layers": 1, "gru_hidden": 5},
    {"adversarial_on": "reconstructions"},
    {"critic_steps": 1},
    {"lambda_adv": 0},
    {"updates": False},
    {"updates": False, "learning": "apart"},
    {"lr": 1e-2, "beta1": 0.9, "beta2": 0.5},
    {"lr_predictor": 1e-2},
    {"lr_critic": 1e-2},
    {"lambda_reconstruction": 10, "lambda_kl": 0.1},
    {"lambda_gp": 1},
]


@pytest.mark.parametrize("overrides", ON, ids=str)
def test_every_setting_trains_every_weight(overrides):
    """All weights move in two steps."""
    system = model(**overrides)
    if system.predictor is not None:
        awake(system)
    before = {name: value.clone() for name, value in system.named_parameters()}
    logs = train(system, batch(), steps=2)
    assert all(torch.isfinite(value) for value in logs.values())
    assert not [name for name, value in system.named_parameters() if torch.equal(value, before[name])]
    made = system.eval().reconstruct(batch()["frames"])
    assert made.shape == (3, 1, 3, 16, 16) and made.abs().max() <= 1


@functools.cache
def traces(settings):
    """What two steps with these settings leave behind: logs, weights and images. settings: (name, value)
    pairs.
    """
    system = model(**dict(settings))
    if system.predictor is not None:
        awake(system)
    logs = train(system, batch(), steps=2)
    numbers = [*logs.values(), *system.state_dict().values(), system.eval().reconstruct(batch()["frames"])]
    return [number.shape for number in numbers], torch.cat([number.flatten() for number in numbers]).tolist()


def test_the_same_settings_leave_the_same_behind():
    """Or the next test could not fail."""
    assert traces(()) == traces.__wrapped__(())


@pytest.mark.parametrize("overrides", ON, ids=str)
def test_every_setting_matters_beside_the_others(overrides):
    """Left out alone, each of them changes what training leaves behind."""
    assert_each_matters(traces, overrides)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision(dtype):
    logs = train(
        awake(model(target_layers=("encoder.0", "stem", "decoder.1"))), batch(), steps=2, dtype=dtype
    )
    assert all(torch.isfinite(value) for value in logs.values())


def test_images_that_are_no_squares():
    system = awake(model(16, 32))
    train(system, batch(width=32))
    assert system.reconstruct(batch(width=32)["frames"]).shape == (3, 1, 3, 16, 32)
    assert system.sample(2).shape == (2, 3, 16, 32)


def test_without_updates_the_rest_begins_alike_and_nothing_watches():
    on, off = model(), model(updates=False)
    assert all(torch.equal(value, on.state_dict()[name]) for name, value in off.state_dict().items())
    assert off.predictor is None and set(off.optimizers()) == {"generator", "critic"}
    state = off.start(None, torch.Generator().manual_seed(0))
    state, first = off.step(state)
    assert torch.equal(first, off.step(state)[1])  # nothing changes: a still


# ---- from noise, and on and on


def test_samples_follow_the_generator_alone():
    system = awake(model()).eval()
    draws = [system.sample(4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.allclose(draws[0], draws[2])
    assert draws[0].shape == (4, 3, 16, 16) and draws[0].abs().max() <= 1
    rolled = torch.cat(list(system.rollout(None, 3, generator=torch.Generator().manual_seed(0))), 1)
    assert rolled.shape == (1, 3, 3, 16, 16)
    torch.testing.assert_close(rolled[:, 1], system.sample(1, torch.Generator().manual_seed(0)))  # two rounds


def test_a_rollout_is_the_sequence_of_updates_and_stays_bounded():
    system = awake(model(update_bound=0.5), size=30.0).eval()
    frame = torch.from_numpy(moving_square(1))
    with torch.inference_mode():
        code, images = system.start(frame)
        torch.testing.assert_close(images, system.vae.decode(system.vae.encode(to_float(frame))[0]))
        frames = torch.cat(list(system.rollout(frame, 200)), 1)
        once, _ = system.draw(code, system.watch(images, torch.zeros(1, dtype=torch.int64)))
        torch.testing.assert_close(frames[:, 0], once)
        torch.testing.assert_close(
            frames[:, 1], system.reconstruct(to_float(frame)[None])[:, 0]
        )  # two rounds
    assert frames.shape == (1, 200, 3, 16, 16) and torch.isfinite(frames).all() and frames.abs().max() <= 1
    away = (frames - images).abs().mean((2, 3, 4))[0]
    assert (
        away.min() > 0 and away[100:].max() < 2 * away[:100].max()
    )  # always from the same weights, so never further


def test_evaluation_says_what_the_updates_add(tmp_path):
    system = awake(model())
    frames = torch.from_numpy(moving_square(8))
    dataset = type("Data", (), {"frames": frames})
    figures = system.evaluate(dataset, torch.arange(8))
    assert set(figures) == {"first_psnr", "update_gain_db"} and figures["update_gain_db"] != 0
    assert (
        model().evaluate(dataset, torch.arange(8))["update_gain_db"] == 0
        and model(updates=False).evaluate(dataset, torch.arange(8)) == {}
    )
    assert system.alarms({"kl": 0.001}) and not system.alarms({"kl": 5.0}) and not system.alarms({})


# ---- bad input


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"target_layers": ("decoder.7",)}, r"no layer 'decoder\.7'; did you mean 'decoder\.[01]'"),
        ({"target_layers": ("wings",)}, r"no layer 'wings'; known: decoder\.0, .*stem"),
        ({"target_layers": ("stem", "stem")}, "names 'stem' twice"),
        ({"update_size": 1344}, r"update_size=1344.*decoder\.0, decoder\.1 takes 1419"),
        ({"update_bound": 0.0}, r"update_bound must be in \(0, 1\]"),
        ({"height": 18}, "height=18 is not divisible by 4; use 16, fewer encoder_channels$"),
        (
            {"watched": "features", "video_shrink": 2},
            "height=16 is not divisible by 32; .*fewer frame_channels or a lower video_shrink",
        ),
        ({"frame_channels": (4,) * 5}, "not divisible by 32.*fewer frame_channels or a lower video_shrink"),
        ({"encoder_channels": ()}, "encoder_channels must list positive widths"),
        ({"video_frames": 1}, "video_frames must be at least 2"),
        ({"gru_hidden": 0}, "gru_hidden must be positive"),
        ({"critic_widths": (8, 0)}, "critic_widths must list positive widths"),
        ({"update_rank": 0}, "update_rank must be positive"),
        ({"video_shrink": 0}, "video_shrink must be positive"),
        (
            {"lambda_reconstruction": 0, "lambda_adv": 0},
            "lambda_reconstruction or lambda_adv a positive weight",
        ),
        ({"lambda_kl": -1.0}, "lambda_kl must not be negative"),
        ({"update": "whole"}, "update must be one of 'full', 'low_rank', 'per_channel'"),
    ],
)
def test_settings_that_cannot_be(overrides, message):
    with pytest.raises(ConfigError, match=message):
        model(**overrides)


def test_a_size_that_is_given_is_checked_once_the_image_is_known():
    _, config, _ = plan("weight_rnn", "tiny", overrides={"target_layers": ["stem"], "update_size": 640})
    assert dataclasses.replace(config, height=16, width=16).update_size == 640  # 4 * 128 + 128
    with pytest.raises(ConfigError, match=r"update_size=640.*takes 2560"):
        dataclasses.replace(config, height=32, width=32)


def test_grey_images_are_read_as_rgb(tmp_path):
    (tmp_path / "digits" / "seven").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.full((16, 16), 80 * i, np.uint8), "L").save(
            tmp_path / "digits" / "seven" / f"{i}.png"
        )
    frames = open_dataset(tmp_path / "digits").frames
    assert frames.shape == (3, 16, 16, 3) and frames[2].unique().tolist() == [160]


def test_the_benchs_sheet_shows_both_looks_and_the_rollout(monkeypatch):
    system, images = awake(model()).eval(), to_uint8(batch()["frames"][:, 0])
    monkeypatch.setattr("weight_rnn.strip", lambda rows, labels: (rows, labels))
    rows, labels = sheet(system, images)
    truth, first, last, noise_first, noise_last, rolled = rows
    assert len(labels) == 6 and truth is images and all(len(row) == 3 for row in rows)
    assert last.equal(to_uint8(system.reconstruct(to_float(images)[:, None])[:, 0])) and not last.equal(first)
    drawn = system.sample(1, torch.Generator().manual_seed(0))
    assert (noise_last[0].int() - to_uint8(drawn)[0].int()).abs().max() <= 1 and not noise_last.equal(
        noise_first
    )
    assert not rolled[0].equal(rolled[1])
