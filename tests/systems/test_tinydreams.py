"""TinyDreams: each setting on and off, what the actions lead to, training on its own predictions, and its
presets.
"""

import dataclasses
import functools

import pytest
import torch
from conftest import assert_each_matters
from torch.nn import functional as F

from mtld_core.config import ConfigError, from_dict
from mtld_core.data import Arc, Dataset, split_windows
from mtld_core.judge.rollouts import Judge
from mtld_core.systems.tinydreams.latent import surprise
from mtld_core.systems.tinydreams.system import TinyDreams
from mtld_core.train import fit
from mtld_core.train.settings import build, plan
from mtld_core.train.stepper import Stepper

PLAIN = {"lambda_gan": 0, "context_noise": 0}


def model(height=16, width=16, **overrides):
    """The tiny preset, with three discrete actions, without discriminator and noise."""
    space = {} if "control_low" in overrides else {"action_count": 3}
    _, config, _ = plan(
        "tinydreams", "tiny", overrides={"height": height, "width": width} | space | PLAIN | overrides
    )
    torch.manual_seed(0)
    return TinyDreams(config)


def awake(system):
    """With a head that is not zero, as after some training; the same one for the same shape."""
    torch.manual_seed(4)
    torch.nn.init.normal_(system.decoder.head.weight, std=0.1)
    return system


def batch(size=3, height=16, width=16, length=4, controls=0):
    torch.manual_seed(1)
    actions = torch.rand(size, length - 1, controls) if controls else torch.randint(3, (size, length - 1))
    frames = torch.rand(size, length, 3, height, width) * 2 - 1
    return {"frames": frames, "key": torch.arange(size) + 5, "actions": actions}


def one_step(system, data, dtype=torch.float32, steps=1):
    stepper = Stepper(system.optimizers(), torch.device("cpu"), dtype)
    return [system.training_step([data], stepper) for _ in range(steps)][-1]


def gradient_of(system, loss):
    return torch.autograd.grad(loss, list(system.parameters()), allow_unused=True)


def test_muon_moves_hidden_matrices_alone():
    """The decoder's last layer gives colours, and no direction of them deserves as long a step as another."""
    usual, system = awake(model()), awake(model(lr_muon=0.02))
    before = {name: value.clone() for name, value in system.named_parameters()}
    for each in (usual, system):
        one_step(each, batch(length=each.needs().window))
    lengths = {}
    for name, value in system.named_parameters():
        if value.dim() > 1 and not torch.equal(value, usual.get_parameter(name)):
            lengths[name] = torch.linalg.svdvals((value.detach() - before[name]).flatten(1))
    assert "encoder.0.mlp.0.weight" in lengths and "decoder.narrow.0.weight" in lengths
    assert not {"decoder.head.weight", "place", "action.mlp.0.weight"} & set(lengths)
    assert max(values.max() for values in lengths.values()) < 0.02 * 1.3 * 3


# ---- settings


ON = [
    {"tokenizer": "patch"},
    {"tokenizer_filters": (8, 12), "patch_size": 8, "tokenizer_blocks": 2},
    {"action_widths": (8, 12)},
    {"action_mode": "cross", "layers": 2},
    {"action_mode": "modulate"},
    {"action_mode": "none", "latents": 2},
    {"action_mode": "none", "lambda_gan": 1},
    {"registers": 3},
    {"registers": 0},
    {"decoder_filters": ()},
    {"decoder_filters": (8, 12), "decoder_blocks": 2},
    {"decoder": "attention", "decoder_layers": 1},
    {"decoder": "attention", "decoder_layers": 0},
    {"tokenizer_filters": (8, 12), "decoder_filters": (12, 8), "skips": True},
    {"norm": "group", "activation": "silu"},
    {"norm": "none", "activation": "relu"},
    {"decoder_activation": "relu"},
    {"ffn_scale": 4.0},
    {"embed_dim": 24, "heads": 1},
    {"weight_decay": 0.5},
    {"output": "direct"},
    {"output": "anchored"},
    {"output": "anchored", "decoder": "attention"},
    {"older_frames": (4, 7)},
    {"latents": 2},
    {"latents": 2, "latent_classes": 3, "lambda_prior": 1.0},
    {"latents": 1, "action_mode": "modulate", "rollout_frames": 1},
    {"moving_weight": 20.0},
    {"moving_weight": 20.0, "lambda_l1": 0, "lambda_mse": 1},
    {"context_frames": 1, "rollout_frames": 3},
    {"context_frames": 3, "rollout_frames": 1},
    {"rollout_gradient": False},
    {"context_noise": 0.1},
    {"context_fade": 0.5},
    {"gradient_checkpointing": True},
    {"lambda_l1": 0, "lambda_mse": 1},
    {"lambda_sobel": 1, "lambda_fft": 1, "lambda_ssim": 1},
    {"lambda_still": 1},
    {"lambda_gan": 1},
    {"lambda_gan": 1, "gan_conditional": False, "soft_labels": 0.4, "label_noise": 0.6},
    {"lambda_gan": 1, "discriminator_channels": (8, 12), "lr_d": 1e-3},
    {"lr": 1e-2, "beta1": 0.5, "beta2": 0.5},
    {"lr_muon": 0.05, "latents": 2, "registers": 2},
]


@pytest.mark.parametrize("overrides", ON, ids=str)
def test_every_setting_trains_every_weight_and_generates(overrides):
    """All weights move within two steps: the first one wakes the zero-initialised head."""
    system = awake(model(**overrides)).train()
    before = {name: value.clone() for name, value in system.named_parameters()}
    logs = one_step(system, batch(length=system.needs().window), steps=2)
    assert all(torch.isfinite(value) for value in logs.values())
    still = [
        name
        for name, value in system.named_parameters()
        if value.numel() and torch.equal(value, before[name])
    ]
    assert not still
    state = system.eval().start(torch.zeros(system.needs().context, 16, 16, 3, dtype=torch.uint8))
    for _ in range(2):
        state, frame = system.step(state, torch.tensor([1]))
    assert frame.shape == (1, 3, 16, 16) and frame.abs().max() <= 1


@functools.cache
def traces(settings):
    """What two steps with these settings leave behind: logs, weights and a frame. settings: (name, value)
    pairs.
    """
    system = awake(model(**dict(settings))).train()
    logs = one_step(system, batch(length=system.needs().window), steps=2)
    needs = system.needs()
    past = batch(length=needs.window)["frames"][:, : needs.context]
    frame = system.eval().predict(past, torch.tensor([0, 1, 2]))
    numbers = [*logs.values(), *system.state_dict().values(), frame]
    return [number.shape for number in numbers], torch.cat([number.flatten() for number in numbers]).tolist()


def test_the_same_settings_leave_the_same_behind():
    """Or the next test could not fail."""
    assert traces(()) == traces.__wrapped__(())


@pytest.mark.parametrize("overrides", [one for one in ON if one != {"gradient_checkpointing": True}], ids=str)
def test_every_setting_matters_beside_the_others(overrides):
    """Left out alone, each of them changes what training leaves behind; gradient checkpointing changes the
    memory alone.
    """
    assert_each_matters(traces, overrides)


def test_gradient_checkpointing_computes_the_layers_again(monkeypatch):
    from mtld_core.systems.tinydreams import system as tinydreams

    calls, again = [], tinydreams.checkpoint

    def counted(layer, *inputs, **how):
        calls.append(layer)
        return again(layer, *inputs, **how)

    monkeypatch.setattr(tinydreams, "checkpoint", counted)
    for on, layers in ((False, 0), (True, 3)):  # the tokenizer, one block, the decoder
        calls.clear()
        system = model(gradient_checkpointing=on, rollout_frames=1)
        system.generator_loss(batch(length=3))
        assert len(calls) == layers
        with torch.no_grad():
            system.generator_loss(batch(length=3))
        assert len(calls) == layers


def test_frames_that_are_no_squares():
    system = awake(model(16, 32))
    one_step(system, batch(height=16, width=32))
    assert system.predict(batch(height=16, width=32)["frames"][:, :2], torch.zeros(3).long()).shape == (
        3,
        3,
        16,
        32,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_keeps_the_frames_in_fp32(dtype):
    system = awake(
        model(lambda_l1=1, lambda_mse=1, lambda_sobel=1, lambda_fft=1, lambda_ssim=1, lambda_gan=1)
    ).train()
    logs = one_step(system, batch(), dtype)
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for name, value in logs.items() if "gan" not in name
               and name != "discriminator")  # fmt: skip


@pytest.mark.parametrize("name", ["l1", "mse", "sobel", "fft", "ssim", "lpips", "still", "gan"])
def test_every_weight_scales_its_term_and_zero_leaves_it_out(name):
    names = [
        "lambda_l1",
        "lambda_mse",
        "lambda_sobel",
        "lambda_fft",
        "lambda_ssim",
        "lambda_still",
        "lambda_gan",
    ]
    weights = dict.fromkeys(names, 1)
    system = awake(model(**weights)).eval()
    system.frozen["lpips"] = lambda fake, real: (fake - real).square().mean((1, 2, 3))
    system.config = dataclasses.replace(system.config, lambda_lpips=1)
    low = system.generator_loss(batch())
    system.config = dataclasses.replace(system.config, **{f"lambda_{name}": 4})
    high = system.generator_loss(batch())
    torch.testing.assert_close(high.total - low.total, 3 * low.logs[name])
    assert any(g is not None and g.abs().sum() > 0 for g in gradient_of(system, high.logs[name]))
    system = model(**weights | {f"lambda_{name}": 0})
    assert name not in system.generator_loss(batch()).logs


def test_lpips_is_set_up_where_it_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr("mtld_core.systems.tinydreams.system.load_trunk", asked.append)
    monkeypatch.setattr("mtld_core.systems.tinydreams.system.LPIPS", lambda trunk: torch.nn.Linear(1, 1))
    for weight in (0, 1):
        system = model(lambda_lpips=weight, lpips_weights="given.pth")
        system.setup_training(None)
        assert ("lpips" in system.frozen) == (weight > 0) and not any(
            "lpips" in name for name in system.state_dict()
        )
    assert asked == ["given.pth"]


def test_gradient_checkpointing_changes_no_gradient():
    found = []
    for on in (False, True):
        system = awake(model(gradient_checkpointing=on, action_mode="cross")).double()
        data = batch() | {"frames": batch()["frames"].double()}
        found.append(gradient_of(system, system.generator_loss(data).total))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_residual_output_begins_as_a_copy_and_direct_output_does_not():
    past = batch()["frames"][:, :2]
    for output, copies in (("residual", True), ("direct", False)):
        made = model(output=output).predict(past, torch.tensor([0, 1, 2]))
        assert torch.equal(made, past[:, -1]) == copies


@pytest.mark.parametrize("mode", ["concat", "cross", "modulate"])
def test_the_action_reaches_every_pixel_and_the_registers_none_of_their_own(mode):
    system = awake(model(action_mode=mode, layers=2)).eval()
    for block in system.encoder:
        for norm in (block.norm1, block.norm2):
            if norm.modulation is not None:
                torch.nn.init.normal_(norm.modulation.weight)
    past = batch(1)["frames"][:, :2]
    up, down = (system.predict(past, torch.tensor([a])) for a in (0, 1))
    assert (up != down).all()


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_noise_on_the_context_is_keyed(noise):
    system, data = awake(model(context_noise=noise)), batch()
    loss = [system.generator_loss(data | {"key": data["key"] + add}).total for add in (0, 0, 1)]
    assert loss[0] == loss[1] and (loss[0] == loss[2]) == (noise == 0)


def test_only_frames_that_are_looked_at_become_noisy(monkeypatch):
    """Each by numbers of its own; two predictions look at the oldest of them one step later, too."""
    system = model(context_noise=0.3, context_frames=1, older_frames=(3,), rollout_frames=2)
    data = batch(length=6)
    seen = []
    unroll = system.unroll
    monkeypatch.setattr(system, "unroll", lambda past, *rest: seen.extend(past) or unroll(past, *rest))
    system.generator_loss(data)
    noise = torch.stack([now - frame for now, frame in zip(seen, data["frames"].unbind(1), strict=False)])
    spread = noise.flatten(1).std(1)
    assert (spread > 0.25).tolist() == [True, True, False, True] and spread[2] == 0
    assert torch.corrcoef(noise[[0, 1, 3]].flatten(1)).triu(1).abs().max() < 0.1


def test_the_context_fades_towards_the_median_frame(monkeypatch):
    """By one share a sample, by its key, up to the set one, so that a faint ball is drawn whole again."""
    system, data = model(context_fade=0.5), batch(64)
    system.prepare(torch.full((3, 16, 16, 3), 255, dtype=torch.uint8))
    seen = []
    unroll = system.unroll
    monkeypatch.setattr(system, "unroll", lambda past, *rest: seen.append(past) or unroll(past, *rest))
    for _ in range(2):
        system.generator_loss(data)
    assert all(map(torch.equal, *seen))
    past, frames = torch.stack(seen[0], 1), data["frames"][:, :2]  # [B, 2, 3, H, W]
    shares = (1 - past).flatten(1).sum(1) / (1 - frames).flatten(1).sum(1)
    torch.testing.assert_close(past, 1 - shares.view(-1, 1, 1, 1, 1) * (1 - frames))
    assert 0.5 <= shares.min() < 0.55 and 0.95 < shares.max() <= 1


def test_under_no_action_the_present_frame_is_asked_for(monkeypatch):
    """Of the frames as they are, though the model sees them under noise; the recorded actions do not
    matter.
    """
    system, data = awake(model(lambda_still=1, rollout_frames=1, context_noise=0.3)), batch(length=3)
    seen = []
    predict = system.predict
    monkeypatch.setattr(system, "predict", lambda past, action: seen.append(past) or predict(past, action))
    logs = system.generator_loss(data).logs
    expected = F.l1_loss(predict(seen[-1], None), data["frames"][:, 1])
    assert logs["still"] == expected and not torch.equal(seen[-1][:, -1], data["frames"][:, 1])
    other = system.generator_loss(data | {"actions": (data["actions"] + 1) % 3}).logs
    assert other["still"] == logs["still"] and other["l1"] != logs["l1"]


def test_no_action_is_sticks_at_rest_or_no_button():
    sticks = model(action_count=0, control_low=(-1.0, 0.0), control_high=(1.0, 0.5)).action
    torch.testing.assert_close(sticks.idle(2), sticks(torch.zeros(2, 2)))
    buttons = model().action
    torch.testing.assert_close(buttons.idle(1), buttons.body(torch.zeros(1, 3)))
    assert not any(torch.allclose(buttons.idle(1)[0], token) for token in buttons(torch.arange(3)))


def test_the_decoder_can_have_an_activation_of_its_own():
    images, tokens = batch()["frames"][:, 0], torch.randn(2, 16, 4, 4)

    def drawn(**overrides):
        system = awake(model(context_frames=1, **overrides))
        return system.tokenizer(images)[0], system.decoder(tokens)

    (gelu, gelu_drawn), (mixed, mixed_drawn), (relu, relu_drawn) = (
        drawn(), drawn(decoder_activation="relu"), drawn(activation="relu"),
    )  # fmt: skip
    assert torch.equal(mixed, gelu) and not torch.equal(relu, gelu)
    assert torch.equal(mixed_drawn, relu_drawn) and not torch.equal(mixed_drawn, gelu_drawn)


# ---- what lasts


def test_an_anchored_output_begins_between_the_median_frame_and_the_last_one():
    system, past = model(output="anchored"), batch()["frames"][:, :2]
    system.prepare(torch.full((3, 16, 16, 3), 255, dtype=torch.uint8))
    made = system.predict(past, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(made, (past[:, -1] + 1) / 2)


def test_a_dream_over_the_median_frame_heals_to_it_where_nobody_sees_the_difference():
    """Over a thousand steps the shimmer of a still background had been as much motion as what moves."""
    for output, heals in (("anchored", True), ("residual", False)):
        system = model(output=output, context_frames=1)
        system.prepare(torch.full((3, 16, 16, 3), 128, dtype=torch.uint8))
        still = torch.full((1, 1, 3, 16, 16), 128 / 127.5 - 1)
        context = still.clone()
        context[..., :8] += 5 / 127.5  # an anchored output begins half way between both
        context[..., 8:] += 7 / 127.5
        drawn = system.predict(context, torch.tensor([1]))
        _, frame = system.step(system.start(context), torch.tensor([1]))
        off = (frame - still[0]).abs()
        assert (off[..., :8].max() < 1e-6) == heals and off[..., 8:].min() > 3 / 127.5
        torch.testing.assert_close(frame[..., 8:], drawn[..., 8:])


def test_the_median_frame_is_measured_and_saved():
    frames = torch.randint(256, (5, 16, 16, 3), dtype=torch.uint8)
    for overrides in ({"output": "anchored"}, {"moving_weight": 1.0}):
        system = model(**overrides)
        system.prepare(frames)
        expected = frames.float().median(0).values.permute(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(system.state_dict()["median"], expected)
    system = model()
    system.prepare(frames)
    assert "median" not in system.state_dict()  # or runs of before would not open


def test_what_moves_weighs_more():
    """An error of the same size costs more where the truth or the prediction differs from the median frame."""
    system = model(moving_weight=3.0, lambda_l1=1, lambda_mse=1)
    still, moved = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    moved[:, 1, :8] = 0.5  # one channel tells that the pixel moves
    near = still + 0.05
    both = system._pixel_losses(moved + 0.05, moved), system._pixel_losses(near, still)
    for name, plain in (("l1", 0.05), ("mse", 0.05**2)):
        torch.testing.assert_close(both[0][name].item(), plain * 2.5)
        torch.testing.assert_close(both[1][name].item(), plain)
    plain = model(lambda_mse=1)._pixel_losses(still, moved)
    missing, ghost = system._pixel_losses(still, moved), system._pixel_losses(moved, still)
    for name in ("l1", "mse"):
        torch.testing.assert_close(missing[name], 4 * plain[name])
        torch.testing.assert_close(ghost[name], 1.3 * plain[name])


def test_older_frames_are_seen_and_those_between_are_not():
    system = awake(model(older_frames=(4, 7))).eval()
    past = torch.rand(1, system.needs().context, 3, 16, 16) * 2 - 1
    assert system.needs().context == 8
    made = system.predict(past, torch.tensor([1]))
    for age in range(8):
        other = past.clone()
        other[:, -1 - age] = 0
        seen = not torch.equal(system.predict(other, torch.tensor([1])), made)
        assert seen == (age in (0, 1, 4, 7))


@pytest.mark.parametrize("ages", [(1,), (4, 2.5)])
def test_older_frames_must_be_older(ages):
    with pytest.raises(ConfigError, match="older_frames"):
        model(older_frames=ages)


def test_a_dream_draws_its_latents_and_without_a_generator_takes_the_likeliest():
    system = awake(model(latents=2)).eval()
    torch.nn.init.normal_(system.latent.embed.weight)
    past = batch()["frames"][:, :2]

    def dreamt(seed=None, system=system):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        actions = [torch.tensor([0, 1, 2])] * 6
        return torch.cat(list(system.rollout(past, 6, actions, generator)), 1)

    assert torch.equal(dreamt(0), dreamt(0)) and not torch.equal(dreamt(0), dreamt(1))
    assert torch.equal(dreamt(), dreamt())
    cold = model(latents=2, temperature=0.0).eval()
    cold.load_state_dict(system.state_dict())
    assert torch.equal(dreamt(1, cold), dreamt())


def test_what_was_not_expected_has_a_weight_and_teaches_the_prior_alone():
    system = awake(model(latents=2, lambda_prior=1.0, rollout_frames=1))
    low = system.generator_loss(batch(length=3))
    system.config = dataclasses.replace(system.config, lambda_prior=4.0)
    high = system.generator_loss(batch(length=3))
    torch.testing.assert_close(high.total - low.total, 3 * low.logs["prior"])
    taught = torch.autograd.grad(low.logs["prior"], list(system.latent.parameters()), allow_unused=True)
    names = {
        name.split(".")[0]
        for (name, _), gradient in zip(system.latent.named_parameters(), taught, strict=True)
        if gradient is not None and gradient.abs().sum() > 0
    }
    assert {"prior", "gather"} <= names and not names & {"compare", "tokenizer"}
    expected = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]).log()
    choice = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    torch.testing.assert_close(surprise(choice, expected), -torch.tensor([0.75 * 0.5]).log())


def test_every_class_of_the_latents_is_used_and_one_sample_alone_is_told():
    system = model(latents=2, latent_classes=4)
    frames = torch.rand(2, 64, 3, 16, 16) * 2 - 1
    told = system.latent.tell(*frames)
    assert (told.sum(-1) - 1).abs().max() < 1e-6 and (told.mean(0) > 0.05).all()
    assert system.latent.tell(*frames[:, :1]).isfinite().all()


def test_the_latents_tell_what_the_past_does_not():
    """Of two futures after the same past, drawing by the posterior gives each, and the prior expects both."""
    torch.manual_seed(0)
    system = model(latents=1, latent_classes=2, lr=3e-3, rollout_frames=1, norm="none").train()
    past = torch.zeros(8, 2, 3, 16, 16)
    future = torch.ones(8, 1, 3, 16, 16) * torch.tensor([0.8, -0.8]).repeat(4).view(8, 1, 1, 1, 1)
    data = {"frames": torch.cat([past, future], 1), "actions": torch.zeros(8, 2, dtype=torch.long)}
    stepper = Stepper(system.optimizers(), torch.device("cpu"), torch.float32)
    for step in range(150):
        logs = system.training_step([data | {"key": torch.arange(8) + 8 * step}], stepper)
    assert logs["l1"] < 0.1  # the mean of both, without latents, costs 0.8
    system.eval()
    generator = torch.Generator().manual_seed(0)
    dreamt = system.predict(past[:1].expand(64, -1, -1, -1, -1), torch.zeros(64).long(), generator).mean(
        (1, 2, 3)
    )
    assert 0.25 < (dreamt > 0).float().mean() < 0.75 and (dreamt.abs() > 0.5).all()


# ---- training on its own predictions


def test_later_frames_come_from_predictions_not_from_the_recording():
    """What is drawn in training does not change with the frames that were recorded after the context."""
    system, data = awake(model(rollout_frames=3, lambda_gan=1)), batch(length=5)
    other = data["frames"].clone()
    other[:, 2:] = 0
    losses = [system.generator_loss(data | {"frames": frames}) for frames in (data["frames"], other)]
    made = [loss.carry["fake"][:, :, :3] for loss in losses]
    assert torch.equal(*made) and losses[0].logs["l1"] != losses[1].logs["l1"]
    state = system.start(data["frames"][:, :2])
    for t in range(3):
        state, frame = system.step(state, data["actions"][:, 1 + t])
        torch.testing.assert_close(made[0][:, t].clamp(-1, 1), frame)


@pytest.mark.parametrize("through", [True, False])
def test_gradient_through_time_is_a_setting(through):
    system, data = awake(model(rollout_gradient=through)), batch()
    past = data["frames"][:, :2].clone().requires_grad_()
    second = system.unroll(past.unbind(1), data["actions"][:, 1:])[0][:, 1]
    oldest = torch.autograd.grad(second.sum(), past)[0][
        :, 0
    ]  # the second prediction sees it through the first one alone
    assert (oldest.abs().sum() > 0) == through


# ---- the discriminator


def test_each_phase_moves_its_own_networks():
    system = awake(model(lambda_gan=1, gan_conditional=True)).train()
    stepper = Stepper(system.optimizers(), torch.device("cpu"))
    before = {name: value.clone() for name, value in system.named_parameters()}
    result = stepper("generator", system.generator_loss, batch())
    moved = {name for name, value in system.named_parameters() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith("discriminator") for name in moved)
    before = {name: value.clone() for name, value in system.named_parameters()}
    stepper("discriminator", system.discriminator_loss, result.carry)
    moved = {name for name, value in system.named_parameters() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("discriminator") for name in moved)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_conditional_discriminator_sees_the_frame_before_and_the_action(conditional):
    system, data = awake(model(lambda_gan=1, gan_conditional=conditional)), batch()
    shown, fake = (system.generator_loss(data).carry[side] for side in ("real", "fake"))
    torch.testing.assert_close(shown[:, :, :3], data["frames"][:, 2:])
    assert shown.shape == fake.shape == (3, 2, 9 if conditional else 3, 16, 16)
    if conditional:
        torch.testing.assert_close(shown[:, :, 3:6], data["frames"][:, 1:3])  # the frame right before each
        # leads from it to the frame
        torch.testing.assert_close(shown[..., 6:, 0, 0].argmax(2), data["actions"][:, 1:])
        assert torch.equal(shown[..., 6:, 0, 0], shown[..., 6:, 5, 7])
        torch.testing.assert_close(fake[:, 0, 3:6], data["frames"][:, 1])
        torch.testing.assert_close(fake[:, 1, 3:6], fake[:, 0, :3])  # a fake frame goes on from a fake one
        assert torch.equal(fake[:, :, 6:], shown[:, :, 6:])


@pytest.mark.parametrize(("soft", "noise"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.3), (0.1, 0.2)])
def test_soft_and_noisy_labels(soft, noise):
    """A discriminator that says 0 everywhere has a loss that tells the labels: half the mean of their
    squares, both sides.
    """
    system = model(lambda_gan=1, soft_labels=soft, label_noise=noise)
    system.discriminator.forward = lambda x: (torch.zeros(len(x), 1, 2, 2), [])
    frames = torch.zeros(2000, 2, 3, 1, 1)
    carry = {"fake": frames, "real": frames, "key": torch.arange(2000)}
    loss = system.discriminator_loss(carry).total
    near, far = (
        soft**2 / 3,
        (1 - soft) ** 2 + soft * (1 - soft) + soft**2 / 3,
    )  # mean squares of a label near 0, near 1
    expected = 0.5 * ((1 - noise) * far + noise * near + (1 - noise) * near + noise * far)
    assert loss.item() == pytest.approx(expected, abs=0.02)


# ---- actions


def moving_bar(arcs=6, length=60, actions=3, seed=0):
    """A bar that moves by exactly the action, action - 1 pixels around the picture; actions are random in
    each step.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(actions, (arcs * length,), generator=generator)
    place = torch.cat([torch.zeros(1).long(), (chosen - 1).cumsum(0)[:-1]]) % 16
    frames = torch.full((arcs * length, 16, 16, 3), 40, dtype=torch.uint8)
    columns = (place[:, None] + torch.arange(4)) % 16
    frames[torch.arange(len(frames))[:, None], 4:12, columns] = 220
    spans = [Arc(f"arc_{i}", length * i, length * (i + 1), torch.arange(length).numpy()) for i in range(arcs)]
    return Dataset("memory", "arcs", frames, spans, torch.zeros(0, dtype=torch.int64).numpy(), chosen)


def learned(dataset, folder, **overrides):
    """A system after a short run with teacher forcing and MSE."""
    settings = PLAIN | {
        "lambda_l1": 0,
        "lambda_mse": 10,
        "embed_dim": 32,
        "lr": 5e-3,
        "lr_schedule": "cosine",
        "ema_decay": 0,
    }
    settings |= {"tokenizer_filters": (16,), "decoder_filters": (16,), "norm": "none", "rollout_frames": 1}
    settings |= overrides
    cls, config, training = plan(
        "tinydreams", "tiny", overrides=settings, run_dir=str(folder / "run"), steps=150
    )
    system = build(cls, config, dataset)
    fit(
        system,
        dataset,
        dataclasses.replace(training, batch_size=16, eval_every_steps=0, preview_every_steps=0),
    )
    return system.eval()


def skills(system, dataset):
    """skill_db by horizon, 1 to 4, on the held-out arcs."""
    _, held = split_windows(dataset, system.needs().window, judged=6)
    return Judge(dataset, held, system.needs(), 4, dataset.frames)(system)["skill_db_by_horizon"]


@pytest.fixture(scope="module")
def bar_player(tmp_path_factory):
    return learned(moving_bar(), tmp_path_factory.mktemp("bar"))


def test_an_action_leads_from_its_frame_to_the_next_one(bar_player):
    """Learned from a game where nothing else tells what comes. Off by one either way, nothing could be
    learned from it.
    """
    assert min(skills(bar_player, moving_bar())) > 6


@pytest.mark.parametrize("shift", [1, -1])
def test_actions_of_the_frame_before_or_after_lead_astray(shift, bar_player):
    dataset = moving_bar()
    dataset.actions = dataset.actions.roll(shift, 0)
    assert skills(bar_player, dataset)[0] < 0.5  # later on the sums of actions are nearly the same


def test_continuous_controls(tmp_path):
    """The same game with two floats: the first one moves the bar, the second one does nothing."""
    dataset = moving_bar()
    useless = torch.rand(len(dataset.actions), generator=torch.Generator().manual_seed(3))
    dataset.actions = torch.stack([(dataset.actions - 1) * 0.25, useless], 1)
    assert min(skills(learned(dataset, tmp_path), dataset)) > 5
    system = build(TinyDreams, plan("tinydreams", "tiny")[1], dataset)
    low, high = system.action_space
    assert (low[0], high[0]) == (-0.25, 0.25) and len(low) == len(high) == 2
    torch.testing.assert_close(
        system.action.to_values(torch.tensor([low, high])), torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    )


def test_a_dataset_with_other_actions_is_refused():
    given = {"action_count": 2, "patch_size": 4, "tokenizer_filters": (8,), "decoder_filters": (8,)}
    with pytest.raises(ConfigError, match="2 actions and those of memory are 3 actions"):
        TinyDreams.fit_config(from_dict(TinyDreams.Config, given), moving_bar())
    fitted = TinyDreams.fit_config(from_dict(TinyDreams.Config, given | {"action_count": 3}), moving_bar())
    assert (fitted.action_count, fitted.height, fitted.control_low) == (3, 16, ())
    dataset = moving_bar()
    dataset.actions = torch.rand(len(dataset.frames), 2)
    with pytest.raises(ConfigError, match="3 actions and those of memory are 2 floats"):
        TinyDreams.fit_config(fitted, dataset)
    dataset.actions = None
    with pytest.raises(ConfigError, match=r"memory has no actions.*or action_mode='none'"):
        TinyDreams.fit_config(fitted, dataset)


@pytest.mark.parametrize("recorded", [False, True])
def test_plain_video_goes_on_by_itself(recorded, tmp_path):
    """A bar that moves by one pixel a frame. Where there are actions, none is asked for either."""
    dataset = moving_bar(actions=1)  # what it moves by is one number: always to the left
    if not recorded:
        dataset.actions = None
    system = learned(dataset, tmp_path, action_mode="none")
    assert system.action_space is None and not system.needs().actions
    assert not [name for name, _ in system.named_parameters() if name.startswith("action")]
    assert min(skills(system, dataset)) > 6


# ---- bad settings and presets


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"height": 18}, "height=18 is not divisible by patch_size=4"),
        ({"embed_dim": 308, "heads": 14}, "22 wide.*nearest is 24: embed_dim=336"),
        ({"embed_dim": 16, "heads": 4}, "4 wide.*nearest is 8: embed_dim=32"),
        ({"embed_dim": 20, "heads": 3}, "6.66667 wide.*nearest is 8: embed_dim=24"),
        ({"tokenizer_filters": (8, 8, 8)}, "tokenizer_filters change the grid 8 times, and patch_size=4"),
        ({"decoder_filters": (8, 8, 8)}, "decoder_filters change the grid 8 times, and patch_size=4"),
        ({"tokenizer_filters": ()}, "tokenizer_filters must list positive widths"),
        ({"decoder_filters": (0,)}, "decoder_filters must list positive widths"),
        ({"action_widths": ()}, "action_widths must list positive widths"),
        ({"skips": True, "tokenizer": "patch"}, "skips needs a conv tokenizer and a conv decoder"),
        ({"skips": True, "decoder_filters": ()}, "skips needs a conv tokenizer and a conv decoder"),
        (
            {"lambda_gan": 1, "discriminator_channels": (8, 8, 8, 8)},
            "need 24 pixels; use fewer, or lambda_gan=0",
        ),
        ({"context_frames": 0}, "context_frames must be positive, not 0"),
        ({"rollout_frames": 0}, "rollout_frames must be positive, not 0"),
        ({"patch_size": 0}, "patch_size must be positive"),
        ({"registers": -1}, "registers must not be negative"),
        ({"label_noise": 1.0}, r"label_noise must be in \[0, 1\), not 1.0"),
        ({"lambda_l1": -1}, "lambda_l1 must not be negative"),
        ({"lambda_l1": 0}, "no loss.*lambda_l1 or lambda_mse"),
        ({"lambda_l1": 0, "lambda_still": 1}, "no loss.*lambda_l1 or lambda_mse"),
        ({"ffn_scale": 0.01}, "ffn_scale=0.01 of embed_dim=16 leaves the MLPs no width; use at least 0.0625"),
        (
            {"lambda_gan": 1, "discriminator_channels": (8, 0)},
            "discriminator_channels must list positive widths",
        ),
        ({"decoder_blocks": 0}, "decoder_blocks must be positive, not 0"),
        ({"action_mode": "add"}, "action_mode must be one of"),
        (
            {"action_mode": "none", "lambda_still": 1},
            "action_mode='none' there never is one; use lambda_still=0",
        ),
        (
            {"patch_size": 16},
            r"one patch \(patch_size=16\) leave nothing to norm='instance'; use .* norm='none'",
        ),
        ({"patch_size": 16, "norm": "group", "tokenizer_filters": (1,)}, "leave nothing to norm='group'"),
    ],
)
def test_bad_settings_name_the_field_and_the_way_out(overrides, message):
    with pytest.raises(ConfigError, match=message):
        model(**{"height": 16, "width": 16} | overrides)


SOURCE = {
    "height": 256, "width": 256, "context_frames": 1, "rollout_frames": 1, "context_noise": 0, "tokenizer": "conv",
    "patch_size": 32, "tokenizer_blocks": 2, "norm": "instance", "activation": "gelu", "action_widths": (15, 31, 63),
    "action_mode": "concat", "heads": 14, "layers": 14, "ffn_scale": 3, "registers": 12, "decoder": "conv",
    "decoder_filters": (240, 180, 96, 64, 48), "decoder_blocks": 2, "decoder_activation": "relu", "output": "direct",
    "skips": False, "gradient_checkpointing": False, "lr": 6e-4, "lr_d": 1e-4, "beta1": 0.9, "beta2": 0.999,
    "weight_decay": 1e-5, "lambda_l1": 1, "lambda_still": 0.4, "lambda_mse": 0, "lambda_sobel": 0, "lambda_fft": 0,
    "lambda_gan": 0, "gan_conditional": False, "discriminator_channels": (32, 64, 128), "soft_labels": 0.2,
}  # fmt: skip


def test_the_original_preset_has_the_sources_values():
    _, config, training = plan("tinydreams", "original")
    assert {name: getattr(config, name) for name in SOURCE} == SOURCE
    assert (training.batch_size, training.epochs, training.steps) == (36, 10_000, 0)
    assert (training.clip_norm, training.ema_decay, training.warmup_steps, training.lr_schedule) == (
        0,
        0,
        0,
        "constant",
    )
    with pytest.raises(ConfigError, match=r"22 wide.*nearest is 24: embed_dim=336"):  # the one departure
        dataclasses.replace(config, embed_dim=308)
    assert config.embed_dim == config.tokenizer_filters[-1] == 336 and config.tokenizer_filters[:-1] == (
        64,
        128,
        256,
        256,
    )


@pytest.mark.parametrize(
    "overrides", [{"norm": "group"}, {"norm": "none"}, {"norm": "instance", "tokenizer": "patch"}]
)
def test_a_frame_of_one_patch_is_used_where_no_norm_erases_it(overrides):
    one_step(model(patch_size=16, **overrides), batch(size=1))


def test_the_original_preset_trains_a_step():
    """On smaller frames: the batch of 36 at 256x256 is work for a GPU."""
    sticks = {"control_low": (-1.0,) * 4, "control_high": (1.0,) * 4}
    _, config, _ = plan("tinydreams", "original", overrides={"height": 64, "width": 64} | sticks)
    system = TinyDreams(config)
    logs = one_step(system, batch(1, 64, 64, length=2, controls=4))
    assert set(logs) == {"l1", "still"} and all(torch.isfinite(value) for value in logs.values())


def test_settings_of_a_run_from_before_a_field_was_there_open():
    """As runs of the former preset "original" have kept them."""
    former = {
        "height": 64, "width": 64, "action_count": 4, "context_frames": 1, "tokenizer_filters": [32, 64, 128],
        "decoder_filters": [128, 64, 32], "embed_dim": 256, "heads": 8, "layers": 6, "ffn_scale": 4.0, "output": "direct",
    }  # fmt: skip
    config = from_dict(TinyDreams.Config, former)
    assert (config.decoder_activation, config.lambda_still) == ("same", 0)
    past = torch.rand(1, 1, 3, 64, 64)
    assert TinyDreams(config).predict(past, torch.zeros(1).long()).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("preset", ["small", "demo"])
def test_a_run_at_64x64_is_small_enough_to_ship(preset):
    _, config, _ = plan("tinydreams", preset, overrides={"height": 64, "width": 64, "action_count": 18})
    with torch.device("meta"):
        system = TinyDreams(config)
    assert sum(4 * p.numel() for p in system.parameters()) < 4.5e6


def test_more_training_brings_the_frame_closer():
    system, data = model(lr=3e-3, norm="none").train(), batch()
    first, last = one_step(system, data), one_step(system, data, steps=100)
    assert (
        last["l1"] < 0.8 * first["l1"] and F.l1_loss(data["frames"][:, 2], data["frames"][:, 1]) > last["l1"]
    )
