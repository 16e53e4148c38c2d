"""Tokenizer, latent actions and dynamics: what each does, every setting on and off, and that stages fit
together.
"""

import dataclasses
import json
import shutil

import pytest
import torch
from conftest import moving_square

from mtld_core.chance import keyed_uniform
from mtld_core.config import ConfigError, UserError
from mtld_core.data import Arc, Dataset
from mtld_core.frames import to_float
from mtld_core.judge.windows import judged_horizon, split_of, windows_of
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.systems.opening import open_run
from mtld_core.systems.world_model.dynamics import Dynamics
from mtld_core.systems.world_model.latent_actions import LatentActions
from mtld_core.systems.world_model.patches import to_frames, to_patches
from mtld_core.systems.world_model.quantise import FSQ, Whitening
from mtld_core.systems.world_model.tokenizer import Tokenizer
from mtld_core.train import fit
from mtld_core.train.settings import build, plan
from mtld_core.train.stepper import Stepper

SIZE = {
    "height": 16,
    "width": 16,
    "patch_size": 8,
    "embed_dim": 16,
    "heads": 2,
    "hidden_dim": 32,
    "blocks": 2,
}


def data(size=16, episodes=6, length=24):
    """Episodes in which a square goes back and forth; the actions alternate."""
    frames = torch.cat([torch.from_numpy(moving_square(length, size, size, seed=i)) for i in range(episodes)])
    arcs = [
        Arc(f"episode_{i}", length * i, length * (i + 1), torch.arange(length).numpy())
        for i in range(episodes)
    ]
    nothing = torch.zeros(0, dtype=torch.int64).numpy()
    return Dataset("memory", "arcs", frames, arcs, nothing, torch.arange(len(frames)) % 2)


def train(name, run_dir, dataset=None, **overrides):
    cls, config, training = plan(name, "tiny", overrides, run_dir=str(run_dir))
    dataset = dataset or data()
    return fit(build(cls, config, dataset, 0), dataset, training)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trained first stages: a tokenizer, one with codes, latent actions, and some as wide as the tokenizer's
    latents.
    """
    folder = tmp_path_factory.mktemp("runs")
    train("tokenizer", folder / "tokenizer")
    train("tokenizer", folder / "codes", quantise="fsq", levels=3)
    train("latent_actions", folder / "actions")
    train("latent_actions", folder / "wide", action_dim=4, action_channels=2)
    return folder


def dynamics(runs, dataset=None, **overrides):
    """A tiny dynamics model on top of those."""
    tokenizer = runs / ("codes" if overrides.get("objective") == "masked" else "tokenizer")
    overrides = {"tokenizer_run": str(tokenizer), "latent_actions_run": str(runs / "actions")} | overrides
    cls, config, _ = plan("dynamics", "tiny", overrides)
    dataset = dataset or data()
    system = build(cls, config, dataset, 0)
    system.prepare(dataset.frames)
    return system


def batch(count=4, frames=4):
    dataset = data()
    rows = torch.arange(count)[:, None] * 24 + torch.arange(frames)
    return {
        "frames": to_float(dataset.frames[rows]),
        "actions": dataset.actions[rows[:, :-1]],
        "key": torch.arange(count) + 7,
    }


def shaken(module):
    """The module with random weights everywhere, so that nothing hides behind a zero."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


def left_behind(cls, runs, **overrides):
    """What two steps leave behind: logs and weights, as shapes and numbers."""
    overrides = {"tokenizer_run": str(runs / "tokenizer")} | overrides if cls is Dynamics else overrides
    _, config, _ = plan(cls.name, "tiny", overrides)
    system = build(cls, config, data(), 0).train()
    system.prepare(data().frames)
    stepper = Stepper(system.optimizers(), torch.device("cpu"))
    logs = [system.training_step([batch(frames=system.needs().window)], stepper) for _ in range(2)][-1]
    numbers = [*logs.values(), *system.state_dict().values()]
    return [number.shape for number in numbers], torch.cat([number.flatten() for number in numbers]).tolist()


ALL_STAGES = [
    {"sequence_length": 6}, {"embed_dim": 32}, {"heads": 1}, {"hidden_dim": 48}, {"blocks": 2}, {"context_frames": 3},
    {"lr": 1e-2}, {"lr_muon": 0.05}, {"beta2": 0.5}, {"weight_decay": 0.5},
]  # fmt: skip
OF_A_STAGE = {
    Tokenizer: [
        {"patch_size": 4}, {"latent_dim": 5}, {"quantise": "fsq"}, {"quantise": "fsq", "levels": 3}, {"latent_noise": 0.3},
        {"moving_weight": 5.0},
    ],
    LatentActions: [
        {"patch_size": 4}, {"encoder": "space_time"}, {"action_levels": 3}, {"action_dim": 4, "action_channels": 2},
    ],
    Dynamics: [{"residual": False}, {"anchored": True}, {"context_fade": 0.5}, {"moving_weight": 5.0}],
}  # fmt: skip


@pytest.mark.parametrize("cls", OF_A_STAGE, ids=lambda cls: cls.name)
def test_every_setting_of_a_stage_matters_beside_the_others(cls, runs):
    usual = left_behind(cls, runs)
    assert usual == left_behind(cls, runs)  # or nothing below could fail
    for overrides in ALL_STAGES + OF_A_STAGE[cls]:
        found = left_behind(cls, runs, **overrides)
        for out in overrides:
            rest = {name: value for name, value in overrides.items() if name != out}
            assert found != (left_behind(cls, runs, **rest) if rest else usual), (overrides, out)


# ---- tokenizer


def test_the_tokenizer_learns_to_rebuild(tmp_path):
    short = train("tokenizer", tmp_path / "short", steps=1)["metrics"]
    long = train("tokenizer", tmp_path / "long", steps=150, lr=3e-3)["metrics"]
    assert long["psnr"] > short["psnr"] + 3
    assert long["latent_variance"] >= long["latent_variance_least"] > 0 and "codebook_use" not in long


def test_a_tokenizer_begins_with_the_median_frame_and_latents_that_differ():
    dataset = data(64)
    cls, config, _ = plan("tokenizer", "small", {})
    system = build(cls, config, dataset, 0).eval()
    system.prepare(dataset.frames)
    frames = to_float(dataset.frames[:8])[None]
    with torch.no_grad():
        rebuilt = system.reconstruct(frames)
        latents = system.encode(frames)
    assert torch.equal(rebuilt, system.median.expand_as(rebuilt))
    # 0.05 to 0.07 by seed; with the random biases that torch gives it was 0.003 to 0.006
    assert latents.flatten(0, 2).var(0).mean() > 0.03


def test_codes_are_counted(runs):
    figures = open_run(runs / "codes", device="cpu").evaluate(data(), torch.arange(4))
    assert 0 < figures["codebook_use"] <= 1 and 1 <= figures["codebook_perplexity"] <= 3**4
    system = open_run(runs / "codes", device="cpu")
    assert not system.alarms(figures) and "collapsed" in system.alarms({"codebook_perplexity": 1.5})[0]
    assert "collapsed" in system.alarms({"latent_variance_least": 1e-6})[0]


def test_latents_stay_within_their_bounds_and_on_the_grid_of_codes(runs):
    frames = batch()["frames"]
    plain, coded = (open_run(runs / name, device="cpu") for name in ("tokenizer", "codes"))
    assert plain.encode(frames).abs().max() < 1
    latents = coded.encode(frames)
    torch.testing.assert_close(latents, latents.round(), rtol=0, atol=1e-6)  # three levels: -1, 0, 1
    torch.testing.assert_close(coded.fsq.latents(coded.fsq.codes(latents)), latents)


def test_latent_noise_only_in_training_and_keyed(runs):
    system = open_run(runs / "tokenizer", device="cpu")
    quiet = system.loss(batch()).total
    noisy = system.train().loss(batch()).total
    assert noisy != quiet and noisy == system.loss(batch()).total
    system.config = dataclasses.replace(system.config, latent_noise=0.0)
    assert system.loss(batch()).total == quiet


def test_what_moves_weighs_more_in_the_tokenizer(monkeypatch):
    system = Tokenizer(Tokenizer.Config(**SIZE, moving_weight=3.0)).eval()
    frames = torch.zeros(1, 2, 3, 16, 16)  # the median frame, too
    off = to_patches(torch.full_like(frames, 0.05), 8)
    monkeypatch.setattr(system, "decode_patches", lambda *given: (to_patches(frames, 8) + off, None))
    torch.testing.assert_close(system.loss({"frames": frames}).total.item(), 0.05**2)
    frames[..., 1, :8, :] = 0.5  # one colour tells that the pixel moves
    torch.testing.assert_close(system.loss({"frames": frames}).total.item(), 2.5 * 0.05**2)


def test_frames_are_rebuilt_one_by_one_as_in_one_pass():
    system = shaken(Tokenizer(Tokenizer.Config(**SIZE, latent_dim=4, context_frames=3)))
    latents = torch.rand(2, 12, 4, 4) * 2 - 1
    with torch.no_grad():
        whole, _ = system.decode(latents)
        past, frames = None, []
        for t in range(12):
            frame, past = system.decode(latents[:, t : t + 1], past)
            frames.append(frame)
    torch.testing.assert_close(torch.cat(frames, 1), whole, rtol=0, atol=1e-4)


def test_too_many_codes_are_refused():
    with pytest.raises(ConfigError, match=r"levels=4 in latent_dim=16 .* 65536 are the most"):
        Tokenizer.Config(quantise="fsq")


# ---- latent actions


def steered(episodes=8, length=40):
    """A bar that moves right under action 1 and left under 0, at random: the past says nothing of what
    comes.
    """
    chance = torch.Generator().manual_seed(0)
    actions = torch.randint(0, 2, (episodes * length,), generator=chance)
    frames = []
    for _ in range(episodes):
        picture = torch.zeros(16, 16, 3, dtype=torch.uint8)
        picture[4:12, 4:8] = 255
        for _step in range(length):
            frames.append(picture)
            picture = picture.roll(4 if actions[len(frames) - 1] else -4, 1)
    arcs = [
        Arc(f"episode_{i}", length * i, length * (i + 1), torch.arange(length).numpy())
        for i in range(episodes)
    ]
    names = {"action_names": ["left", "right"]}
    return Dataset(
        "memory",
        "arcs",
        torch.stack(frames),
        arcs,
        torch.zeros(0, dtype=torch.int64).numpy(),
        actions,
        [],
        names,
    )


def test_latent_actions_find_what_moves_the_picture(tmp_path):
    dataset = steered()
    report = train(
        "latent_actions", tmp_path / "run", dataset, steps=250, lr=3e-3, action_dim=1, batch_size=8
    )
    assert report["metrics"]["codebook_use"] == 1 and report["metrics"]["skill_db"] > 3
    assert sorted(label.split()[0] for label in report["metrics"]["action_labels"]) == ["left", "right"]
    system = open_run(tmp_path / "run", device="cpu")
    codes = system.infer_actions(to_float(dataset.frames[None, :40]))[0]
    agree = (codes == dataset.actions[:39]).float().mean()
    assert max(agree, 1 - agree) > 0.95  # a code has no name of its own


def test_a_latent_action_sees_the_frames_around_it_and_those_before():
    system = shaken(LatentActions(LatentActions.Config(**SIZE, context_frames=2, sequence_length=4)))
    system.fsq = torch.nn.Identity()  # which would hide small changes
    frames = torch.rand(1, 8, 3, 16, 16) * 2 - 1
    before = system.encode(frames)
    frames[:, 5] = -frames[:, 5]
    changed = (system.encode(frames) != before).any(-1)[0]
    assert changed.any() and not changed[:4].any()  # actions 0 to 3 lead to frames 1 to 4


def test_few_codes_can_stand_for_wide_latent_actions():
    """action_channels: that many numbers are quantised, and widened to action_dim."""
    narrow = LatentActions(LatentActions.Config(**SIZE, action_dim=6, action_levels=2))
    wide = shaken(
        LatentActions(LatentActions.Config(**SIZE, action_dim=6, action_channels=2, action_levels=3))
    )
    assert narrow.action_space == 2**6 and wide.action_space == 3**2
    frames = torch.rand(2, 5, 3, 16, 16) * 2 - 1
    codes = wide.infer_actions(frames)
    assert codes.shape == (2, 4) and codes.max() < 9
    torch.testing.assert_close(wide.latents(codes), wide.widen(wide.encode(frames)))
    assert wide.latents(codes).shape == (2, 4, 6)
    assert not [name for name in narrow.state_dict() if name.startswith("widen")]  # as in runs from before


def test_a_dream_heals_to_the_median_frame_where_its_tokenizer_tells_what_moves(runs, tmp_path):
    train("tokenizer", tmp_path / "moving", moving_weight=5.0)
    near = []
    for tokenizer in (tmp_path / "moving", runs / "tokenizer"):
        system = shaken(dynamics(runs, tokenizer_run=str(tokenizer)))
        torch.nn.init.normal_(system.tokenizer.head.weight, std=0.02)
        frames = torch.cat(list(system.rollout(batch()["frames"][:, :2], 8, [torch.zeros(4).long()] * 8)), 1)
        off = (frames - system.tokenizer.median).abs()
        near.append(((off > 1e-6) & (off < 3 / 127.5)).any().item())
        assert (off > 3 / 127.5).any()
    assert near == [False, True]


def test_dead_codes_raise_an_alarm(runs):
    system = open_run(runs / "actions", device="cpu")
    assert "2 of 8 action codes are never used" in system.alarms({"codebook_use": 0.75})[0]
    assert not system.alarms({"codebook_use": 1.0})
    assert "collapsed" in system.alarms({"action_variance_least": 0.0})[0]


# ---- dynamics


@pytest.mark.parametrize("objective", ["mse", "masked"])
@pytest.mark.parametrize("actions", ["recorded", "latent"])
def test_every_kind_learns_and_opens_without_its_stages(objective, actions, runs, tmp_path):
    copies = {}
    for field, name in {
        "tokenizer_run": "codes" if objective == "masked" else "tokenizer",
        "latent_actions_run": "actions",
    }.items():
        copies[field] = str(shutil.copytree(runs / name, tmp_path / name))
    learns = {"objective": objective, "actions": actions, "lr": 3e-3, "ema_decay": 0.9} | copies
    report = train("dynamics", tmp_path / "run", steps=120, **learns)
    one_step = train("dynamics", tmp_path / "one", steps=1, **learns)
    assert report["metrics"]["psnr"] > one_step["metrics"]["psnr"] and (
        "action_labels" in report["metrics"]
    ) == (actions == "latent")
    for path in copies.values():
        shutil.rmtree(path)
    system = open_run(tmp_path / "run", device="cpu")
    assert system.action_space == (8 if actions == "latent" else 2)
    with torch.inference_mode():
        pieces = list(system.rollout(data().frames[:2], 3, [torch.tensor([1])] * 3))
    assert torch.cat(pieces, 1).shape == (1, 3, 3, 16, 16)


def test_the_frozen_stages_stay_as_they_were(runs, tmp_path):
    overrides = {
        "tokenizer_run": str(runs / "tokenizer"),
        "latent_actions_run": str(runs / "actions"),
        "actions": "latent",
    }
    train("dynamics", tmp_path / "run", lambda_pixels=1.0, **overrides)
    system = open_run(tmp_path / "run", device="cpu")
    for part, name in ((system.tokenizer, "tokenizer"), (system.lam, "actions")):
        for key, value in open_run(runs / name, device="cpu").state_dict().items():
            assert torch.equal(part.state_dict()[key], value), key


@pytest.mark.parametrize("objective", ["mse", "masked"])
def test_an_action_reaches_the_frame_that_it_leads_to_and_none_before(objective, runs):
    """actions[:, t] leads from frame t to t + 1."""
    system = shaken(dynamics(runs, objective=objective, context_frames=3, sequence_length=6))
    given = batch(frames=6)
    if objective == "mse":
        latents = system._standard(system.tokenizer.encode(given["frames"]))[
            :, :-1
        ]  # [:, t] is of the frame after t

        def made(conditions):
            return system._predict(latents, conditions)[0]
    else:

        def made(conditions):
            before = system.no_action.expand(4, 1, -1)
            x = system._tokens(
                system.tokenizer.encode(given["frames"]), torch.zeros(4, 6, 4, dtype=torch.bool)
            )
            return system._transform(x, torch.cat([before, conditions], 1))[0][:, 1:]

    plain = system.encode_action(given["actions"])
    for t in range(5):
        conditions = plain.clone()
        conditions[:, t] += 1
        changed = (made(conditions) != made(plain)).flatten(2).any(-1)[0]
        assert not changed[:t].any() and changed[t]


@pytest.mark.parametrize("objective", ["mse", "masked"])
def test_the_cache_agrees_with_a_pass_over_the_whole_history(objective, runs):
    """The reference: banded causal attention over all frames so far, made from the frames that the rollout
    gave.
    """
    system = shaken(dynamics(runs, objective=objective, context_frames=3, sequence_length=6))
    context = to_float(data().frames[None, :3])
    actions = [torch.tensor([t % 2]) for t in range(30)]
    with torch.no_grad():
        state, states, frames = system.start(context), [], []
        for action in actions:
            state, frame = system.step(state, action)
            states.append(state.latents)
            frames.append(frame)
        made = torch.cat(states, 1)
        history = torch.cat([system.tokenizer.encode(context), made], 1)
        told = system.no_action.expand(1, 2, -1)
        conditions = torch.cat([told, system.encode_action(torch.stack(actions, 1))], 1)
        if objective == "mse":
            whole = system._raw(system._predict(system._standard(history[:, :-1]), conditions)[0])[
                :, 2:
            ].clamp(-1, 1)
            torch.testing.assert_close(made, whole, rtol=0, atol=1e-4)
        else:
            conditions = torch.cat([system.no_action.expand(1, 1, -1), conditions], 1)
            _, past = system._transform(
                system._tokens(history, torch.zeros(1, 33, 4, dtype=torch.bool)), conditions
            )
            for cached, reference in zip(state.past, past, strict=True):
                for a, b in zip(cached, reference, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            torch.stack(frames, 1), system.tokenizer.decode(history)[0][:, 3:].clamp(-1, 1), rtol=0, atol=1e-4
        )


def test_what_is_kept_of_the_past_does_not_grow(runs):
    system = dynamics(runs, context_frames=3, sequence_length=6)
    with torch.no_grad():
        state = system.start(data().frames[:3])
        for _ in range(50):
            state, _ = system.step(state, torch.tensor([0]))
    assert {kept.shape[3] for block in state.past for kept in block} == {2}
    assert {kept.shape[3] for block in state.drawn for kept in block} == {
        1
    }  # the tokenizer looks back less far


@pytest.mark.parametrize(
    ("overrides", "compared"),
    [
        ({"residual": False}, {}),
        ({"lambda_pixels": 1.0}, {}),
        ({"lambda_latent": 0.5}, {}),
        ({"context_noise": 0.5}, {}),
        ({"context_fade": 0.5}, {}),
        ({"anchored": True}, {}),
        ({"moving_weight": 5.0}, {}),
        ({"action_input": "add"}, {}),
        ({"action_input": "add", "actions": "latent"}, {"action_input": "add"}),
        ({"action_input": "latent", "actions": "latent", "latent_actions_run": "{wide}"},
         {"action_input": "add", "actions": "latent", "latent_actions_run": "{wide}"}),
        ({"action_widths": (5,)}, {}),
        ({"context_frames": 3}, {}),
        ({"hidden_dim": 48}, {}),
        ({"heads": 1}, {}),
        ({"blocks": 2}, {}),
        ({"embed_dim": 32}, {}),
        ({"objective": "masked", "context_noise": 0.9}, {"objective": "masked"}),
    ],
    ids=str,
)  # fmt: skip
def test_each_setting_changes_the_loss(overrides, compared, runs):
    """In training, beside the same model with all else alike."""

    def loss(settings):
        named = {k: v.format(wide=runs / "wide") if isinstance(v, str) else v for k, v in settings.items()}
        return shaken(dynamics(runs, **named)).train().loss(batch()).total

    assert loss(compared) == loss(compared) != loss(overrides)


def test_noise_on_the_context_is_for_training_alone(runs):
    for objective in ("mse", "masked"):
        quiet, noisy = (shaken(dynamics(runs, objective=objective, context_noise=x)) for x in (0.0, 0.9))
        assert quiet.loss(batch()).total == noisy.loss(batch()).total != noisy.train().loss(batch()).total


def test_a_fading_context_is_drawn_towards_the_median_frame_in_training_alone(runs):
    system = shaken(dynamics(runs, context_noise=0.0, context_fade=0.5))
    seen = []
    system._predict = lambda latents, conditions: seen.append(latents) or (latents, None)
    system.loss(batch())
    system.train().loss(batch())
    whole, faded = seen
    share = (whole - faded) / (whole - system.rest)
    shares = share.flatten(1).median(1).values
    torch.testing.assert_close(share, shares[:, None, None, None].expand_as(share), rtol=0, atol=1e-2)
    assert len(set(shares.tolist())) == 4 and shares.min() > 0 and 0.2 < shares.max() < 0.5


def test_latents_of_patches_where_something_moves_weigh_more(runs):
    system = shaken(dynamics(runs, moving_weight=5.0))
    frames = system.tokenizer.median.repeat(1, 4, 1, 1, 1)
    system.rest = system._standard(system.tokenizer.encode(frames))[0, -1]
    moved = frames.clone()
    moved[:, -1, :, :8, :8] += 0.2  # one of the four patches, in the last of three predicted frames

    def loss(clip, frame, patch, by=1.0):
        """The loss where the latents of one patch of one predicted frame are wrong by so much."""
        wrong = torch.zeros(3, 4, 1)
        wrong[frame, patch] = by
        target = system._standard(system.tokenizer.encode(clip))[:, 1:]
        system._predict = lambda seen, conditions: (target + wrong, None)
        return system.loss(
            {"frames": clip, "actions": torch.zeros(1, 3).long(), "key": torch.arange(1)}
        ).total

    ghost = loss(frames, 2, 0)  # drawn where nothing is
    torch.testing.assert_close(ghost, torch.tensor((1 + 0.15 * 5) / 12))
    torch.testing.assert_close(loss(moved, 2, 0), torch.tensor(6 / 12))
    torch.testing.assert_close(loss(moved, 2, 1), ghost)
    torch.testing.assert_close(loss(moved, 1, 0), ghost)
    torch.testing.assert_close(loss(frames, 2, 0, 0.1), torch.tensor(0.01 / 12))  # too faint for a ghost


def test_an_anchored_output_lets_the_present_latents_through_or_draws_those_of_the_median_frame(runs):
    system = dynamics(runs, anchored=True).eval()
    still = system.tokenizer.median.expand(1, 2, -1, -1, -1)
    rest = system.tokenizer.encode(still)[0, -1]
    torch.testing.assert_close(system._raw(system.rest), rest)
    state = system.start(data().frames[:2])
    present = state.latents[0, 0]
    passed, _ = system.step(state, torch.tensor([0]))
    torch.testing.assert_close(passed.latents[0, 0], rest + (present - rest) * torch.tensor(4.0).sigmoid())
    torch.nn.init.constant_(system.head.bias[-1:], -30)
    healed, _ = system.step(state, torch.tensor([0]))
    torch.testing.assert_close(healed.latents[0, 0], rest)


def test_an_anchored_output_without_a_change_is_refused(runs):
    with pytest.raises(ConfigError, match=r"anchored=True .* use residual=True"):
        dynamics(runs, anchored=True, residual=False)


def test_a_latent_action_itself_is_added_to_the_latents_of_the_frame(runs):
    system = shaken(
        dynamics(runs, actions="latent", action_input="latent", latent_actions_run=str(runs / "wide"))
    )
    assert not hasattr(system, "encode_action") and system.action_space == 4
    latents, codes = torch.rand(2, 3, 4, 4), torch.tensor([[0, 1, 3], [2, 2, 0]])
    actions = system.lam.latents(codes)
    assert actions.shape == (2, 3, 4)
    expected, _ = system.transformer(system.embed(latents + actions[:, :, None]))
    found, _ = system._transform(system.embed(latents), system._action(codes))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_first_actions_are_sometimes_not_told(runs):
    """As when a rollout starts, which knows its context's frames alone."""
    system = shaken(dynamics(runs, context_frames=3, sequence_length=6))
    given = batch(count=4, frames=6)
    given = {name: value.repeat(16, *[1] * (value.dim() - 1)) for name, value in given.items()} | {
        "key": torch.arange(64)
    }
    uniform = keyed_uniform(given["key"], "no_action", 1)
    told = (system._conditions(given, uniform) != system.no_action).any(-1)  # [64, 5]
    assert told[:, 2:].all() and 0 < told[:, 0].float().mean() < 0.7 and not (told[:, 0] & ~told[:, 1]).any()


def test_filling_in_takes_as_many_passes_as_asked_and_leaves_nothing_hidden(runs):
    for steps in (1, 4):
        system = shaken(dynamics(runs, objective="masked", decode_steps=steps))
        passes = []
        system.transformer.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        with torch.no_grad():
            state = system.start(data().frames[:2])
            passes.clear()
            state, _ = system.step(state, torch.tensor([1]))
        assert len(passes) == steps + 1
        torch.testing.assert_close(state.latents, state.latents.round(), rtol=0, atol=1e-6)


def test_a_frame_is_filled_in_without_favouring_what_is_likely(runs):
    """Where every patch has a code with a chance of 30 %, 30 % of them get it: a ball is not left out."""
    system = shaken(dynamics(runs, objective="masked", temperature=1.0))
    with torch.no_grad():
        system.head.weight.zero_()
        system.head.bias.fill_(-50)
        system.head.bias[:2] = torch.tensor([0.7, 0.3]).log()
        state = system.start(data().frames[:2].repeat(200, 1, 1, 1, 1), torch.Generator().manual_seed(0))
        state, _ = system.step(state, torch.zeros(200, dtype=torch.long))
    codes = system.tokenizer.fsq.codes(state.latents)
    assert set(codes.unique().tolist()) == {0, 1} and abs(codes.double().mean() - 0.3) < 0.05


def test_a_code_that_lies_between_two_values_stays_where_it_was(runs):
    fsq = FSQ(1, 4)
    spread = torch.tensor(
        [1.4, 1.6, 1.45, 1.55, 2.6, 2.4, 1.0]
    )  # where a value lies, in steps from the least
    clip = torch.atanh((2 * spread + 1) / 4 - 1).view(1, -1, 1, 1)

    def digits(hold):
        return fsq.codes(fsq(clip, hold)).flatten().tolist()

    assert digits(0.0) == [1, 2, 1, 2, 3, 2, 1]
    assert digits(0.2) == [1, 1, 1, 1, 3, 3, 1]
    system = dynamics(runs, objective="masked", code_hold=10.0)  # then a code never changes
    seen, codes = [], system.tokenizer.fsq.codes
    system.tokenizer.fsq.codes = lambda latents: seen.append(codes(latents)) or seen[-1]
    started = []
    for hold in (10.0, 0.0):
        system.config = dataclasses.replace(system.config, code_hold=hold)
        system.loss(batch())
        started.append(system.start(batch()["frames"]).latents)
    held, free = seen
    assert (held[:, 1:] == held[:, :1]).all() and (free[:, 1:] != free[:, :1]).any()
    assert not torch.equal(*started)


def test_temperature_samples_by_the_seed(runs):
    system = shaken(dynamics(runs, objective="masked"))

    def latents(temperature, seed):
        system.config = dataclasses.replace(system.config, temperature=temperature)
        with torch.no_grad():
            state = system.start(data().frames[:2], torch.Generator().manual_seed(seed))
            return system.step(state, torch.tensor([1]))[0].latents

    assert torch.equal(latents(0.0, 1), latents(0.0, 2))
    assert torch.equal(latents(5.0, 1), latents(5.0, 1)) and not torch.equal(latents(5.0, 1), latents(5.0, 2))


def test_dynamics_follow_the_true_actions(tmp_path):
    dataset = steered()
    train("tokenizer", tmp_path / "tokenizer", dataset, steps=300, lr=3e-3, batch_size=8)
    overrides = {"tokenizer_run": str(tmp_path / "tokenizer"), "steps": 400, "lr": 3e-3, "batch_size": 8}
    metrics = train("dynamics", tmp_path / "run", dataset, lambda_pixels=1.0, **overrides)["metrics"]
    assert metrics["skill_db"] > 3 and metrics["action_shuffle_gap_db"] > 3


# ---- stages that do not fit


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tokenizer_run": ""}, "tokenizer_run is empty: name the run folder of a trained tokenizer"),
        ({"tokenizer_run": "nowhere"}, r"tokenizer_run='nowhere' is not a run folder"),
        (
            {"tokenizer_run": "{actions}"},
            r"tokenizer_run=.* is a run of 'latent_actions', wanted is one of 'tokenizer'",
        ),
        ({"patch_size": 4}, r"has patch_size=8, this dynamics has patch_size=4"),
        ({"latent_dim": 7}, r"has latent_dim=4, this dynamics has latent_dim=7"),
        (
            {"objective": "masked", "tokenizer_run": "{tokenizer}"},
            r"objective='masked' fills in codes.*quantise='none'",
        ),
        (
            {"actions": "latent", "latent_actions_run": "{tokenizer}"},
            r"latent_actions_run=.* wanted is one of 'latent_actions'",
        ),
        (
            {"actions": "latent", "action_input": "latent"},
            r"latent_actions_run=.* has action_dim=3, and action_input='latent' adds it to latents of latent_dim=4",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused(overrides, message, runs):
    named = {k: v.format(actions=runs / "actions", tokenizer=runs / "tokenizer") if isinstance(v, str) else v
             for k, v in overrides.items()}  # fmt: skip
    with pytest.raises((ConfigError, UserError), match=message):
        dynamics(runs, **named)


def test_a_stage_of_other_data_is_refused(runs):
    with pytest.raises(
        ConfigError, match=r"trained on data with size=\[16, 16\], this dataset has size=\[32, 32\]"
    ):
        dynamics(runs, data(size=32))
    with pytest.raises(ConfigError, match=r"trained on data with frames=144, this dataset has frames=120"):
        dynamics(runs, data(episodes=5))


def test_latent_actions_of_another_patch_size_are_refused(runs, tmp_path):
    train("latent_actions", tmp_path / "other", patch_size=4)
    with pytest.raises(ConfigError, match=r"has patch_size=4, tokenizer_run=.* has 8"):
        dynamics(runs, actions="latent", latent_actions_run=str(tmp_path / "other"))


def test_dynamics_without_recorded_actions_say_what_to_do(runs):
    dataset = data()
    dataset.actions = None
    with pytest.raises(ConfigError, match=r"has no actions.*or actions='latent'"):
        dynamics(runs, dataset)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 60}, "height=60 is not divisible by patch_size=8"),
        ({"embed_dim": 100}, "embed_dim=100 must be a multiple of 8 . heads = 32"),
        ({"sequence_length": 4}, "sequence_length=4 must be above context_frames=4"),
        ({"context_noise": -1.0}, "context_noise must not be negative"),
        ({"patch_size": 0, "height": 16}, "patch_size must be positive, not 0"),
        ({"blocks": 0}, "blocks must be positive, not 0"),
        ({"latent_dim": 0}, "latent_dim must be positive, not 0"),
        ({"action_widths": (8, 0)}, "action_widths must list positive widths"),
        ({"weight_decay": -0.1}, r"weight_decay must not be negative, it is -0\.1"),
        ({"beta2": 1.0}, r"beta2 must be in \[0, 1\), not 1\.0"),
        ({"lambda_latent": 0}, "lambda_latent and lambda_pixels are 0, so nothing would be learned"),
        (
            {"action_input": "latent"},
            "actions='recorded' have no latent; use actions='latent', or action_input='add'",
        ),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        Dynamics.Config(**values)


def test_masked_dynamics_have_no_weights_to_set():
    assert Dynamics.Config(objective="masked", lambda_latent=0, sequence_length=6)


SOURCE = {
    "height": 64, "width": 64, "patch_size": 8, "embed_dim": 128, "heads": 4, "hidden_dim": 512, "blocks": 2,
    "context_frames": 4, "lr": 1e-4, "beta2": 0.999, "weight_decay": 0,
}  # fmt: skip


def test_the_original_preset_has_the_sources_values():
    configs = {}
    for cls in (Tokenizer, LatentActions, Dynamics):
        _, config, training = plan(cls.name, "original")
        assert {name: getattr(config, name) for name in SOURCE} == SOURCE
        assert (training.batch_size, training.steps, training.log_every_steps) == (32, 10_000, 10)
        assert (training.clip_norm, training.ema_decay, training.warmup_steps) == (1, 0, 0)
        configs[cls] = config
    tokenizer, actions, dynamic = configs.values()
    assert tokenizer.latent_dim == actions.action_dim == dynamic.latent_dim == 16
    assert (tokenizer.sequence_length, actions.sequence_length, dynamic.sequence_length) == (
        4,
        5,
        5,
    )  # 4 and the next one
    assert (tokenizer.quantise, tokenizer.latent_noise, actions.encoder, actions.channels) == (
        "none",
        0,
        "space_time",
        2,
    )
    chosen = {
        "actions": "latent",
        "action_input": "latent",
        "objective": "mse",
        "residual": False,
        "context_noise": 0,
    }
    assert {name: getattr(dynamic, name) for name in chosen} == chosen
    assert (dynamic.lambda_latent, dynamic.lambda_pixels) == (1, 0)


def test_the_original_preset_trains_a_step_in_each_stage(tmp_path):
    """At its own sizes, but for the batch."""
    dataset, below = data(64, episodes=5), {}
    for cls in (Tokenizer, LatentActions, Dynamics):
        run_dir = str(tmp_path / cls.name)
        settings = {"eval_windows": 2, "eval_horizon": 2, "long_horizon": 0} | (
            below if cls is Dynamics else {}
        )
        _, config, training = plan(cls.name, "original", settings, run_dir=run_dir, steps=1, batch_size=2)
        report = fit(build(cls, config, dataset, 0), dataset, training)
        assert report["step"] == 1 and report["metrics"]["psnr"] > 0
        below[f"{cls.name}_run"] = run_dir
    assert open_run(tmp_path / "dynamics", device="cpu").action_space == 4


# ---- quantisation


def test_every_code_can_be_reached_and_found_again():
    fsq = FSQ(2, 3)
    latents = fsq(torch.linspace(-4, 4, 41)[:, None].expand(-1, 2) * torch.tensor([1.0, -1.0]))
    assert latents.unique().tolist() == [-1, 0, 1]
    codes = torch.arange(fsq.size)
    assert torch.equal(fsq.codes(fsq.latents(codes)), codes)
    x = torch.zeros(5, 2, requires_grad=True)
    fsq(x).sum().backward()
    assert (x.grad > 0).all()  # straight through the rounding


def test_a_single_vector_is_whitened_by_the_moving_average():
    """Such a part has no covariance of its own: its one latent would always become 0, and its gradient,
    too.
    """
    whiten = Whitening(3).train()
    x = torch.tensor([[[1.0, -2.0, 3.0]]], requires_grad=True)
    y = whiten(x)
    torch.testing.assert_close(y, x, rtol=2e-3, atol=0)
    y.sum().backward()
    assert (
        x.grad.abs().min() > 0.9
        and whiten.mean.equal(torch.zeros(3))
        and whiten.covariance.equal(torch.eye(3))
    )


def test_whitening_takes_mean_and_correlation_away():
    whiten, chance = Whitening(3), torch.Generator().manual_seed(0)
    mix = torch.tensor([[1.0, 0, 0], [0.6, 0.6, 0], [0.5, 0.5, 2.0]])
    for _ in range(200):
        x = torch.randn(64, 3, generator=chance) @ mix.T + torch.tensor([5.0, -3.0, 0.1])
        y = whiten(x)
        assert y.mean(0).abs().max() < 1e-4 and (torch.cov(y.T) - torch.eye(3)).abs().max() < 0.1
    x = torch.randn(4000, 3, generator=chance) @ mix.T + torch.tensor([5.0, -3.0, 0.1])
    y = whiten.eval()(x)
    assert y.mean(0).abs().max() < 0.2 and (torch.cov(y.T) - torch.eye(3)).abs().max() < 0.3
    kept = whiten.mean.clone()
    whiten(x + 1)
    assert torch.equal(whiten.mean, kept)
    with torch.autocast("cpu", torch.bfloat16):
        assert whiten(x).dtype == torch.float32


def test_patches_and_back():
    frames = torch.rand(2, 3, 3, 16, 24)
    patches = to_patches(frames, 8)
    assert patches.shape == (2, 3, 6, 192)
    torch.testing.assert_close(to_frames(patches, 8, 16, 24), frames, rtol=0, atol=0)
    torch.testing.assert_close(
        patches[0, 0, 4], frames[0, 0, :, 8:16, 8:16].permute(1, 2, 0).flatten(), rtol=0, atol=0
    )


@pytest.mark.parametrize("encoder", ["pair", "space_time"])
def test_both_encoders_of_latent_actions_learn(encoder, tmp_path):
    report = train(
        "latent_actions", tmp_path / "run", steered(), steps=150, lr=3e-3, batch_size=8, encoder=encoder
    )
    assert report["metrics"]["skill_db"] > 1 and report["metrics"]["action_shuffle_gap_db"] > 1


# ---- going on, and sharing


def test_a_run_goes_on_with_the_stages_that_it_began_with(runs, tmp_path):
    """Whatever became of their folders."""
    moved = shutil.copytree(runs / "tokenizer", tmp_path / "tokenizer")
    named = {"tokenizer_run": str(moved)}
    train("dynamics", tmp_path / "run", steps=10, **named)
    shutil.rmtree(moved)
    assert train("dynamics", tmp_path / "run", steps=20, **named)["step"] == 20
    train("tokenizer", moved, quantise="fsq", levels=3)  # fits in shape, and is another one
    assert train("dynamics", tmp_path / "run", steps=30, **named)["step"] == 30
    assert open_run(tmp_path / "run", device="cpu").tokenizer.fsq is None
    shutil.rmtree(moved)
    with pytest.raises(UserError, match="is not a run folder"):
        train("dynamics", tmp_path / "other", steps=10, **named)


def test_a_shared_stage_is_a_stage(runs, tmp_path):
    checkpoint = next((runs / "tokenizer" / "checkpoints").glob("step_*"))
    (tmp_path / "shared").mkdir()
    shutil.copy(runs / "tokenizer" / "config.json", tmp_path / "shared")
    shutil.copy(checkpoint / "ema.safetensors", tmp_path / "shared" / "model.safetensors")
    system = dynamics(runs, tokenizer_run=str(tmp_path / "shared"))
    assert torch.equal(system.tokenizer.head.weight, open_run(runs / "tokenizer", device="cpu").head.weight)


def test_a_stage_that_learned_longer_windows_is_judged_on_shorter_ones(tmp_path):
    dataset = data(length=12)
    train("tokenizer", tmp_path / "tokenizer", dataset, sequence_length=10)
    report = train("dynamics", tmp_path / "run", dataset, tokenizer_run=str(tmp_path / "tokenizer"))
    assert report["metrics"]["latent_variance"] > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": 2}, "encoder='pair' needs a patch_size that 4 divides, not 2"),
        ({"sequence_length": 4, "context_frames": 4}, "sequence_length=4 must be above context_frames=4"),
        ({"action_channels": 4}, r"action_channels must be from 0 \(all\) to action_dim=3, not 4"),
        ({"action_dim": 17}, "action_levels=2 in 17 channels make 131072 codes; 65536 are the most"),
        ({"action_dim": 0}, "action_dim must be positive, not 0"),
    ],
)
def test_wrong_settings_of_latent_actions_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        LatentActions.Config(**values)


# ---- the stages divide the data alike

SHORT = {  # lengths of arcs that stages with windows of their own divided each in its own way
    "one arc": [60],
    "two arcs, one too short to divide": [70, 15],
    "short arcs between long ones": [24, 6, 24, 6, 24, 6, 6, 24],
    "arcs too short for most": [30, 6, 7, 8, 9, 24, 10],
}


def arcs_of(lengths):
    frames = torch.cat([torch.from_numpy(moving_square(n, 16, 16, seed=i)) for i, n in enumerate(lengths)])
    ends = torch.tensor(lengths).cumsum(0).tolist()
    arcs = [
        Arc(f"arc_{i}", e - n, e, torch.arange(n).numpy())
        for i, (n, e) in enumerate(zip(lengths, ends, strict=True))
    ]
    return Dataset(
        "memory",
        "arcs",
        frames,
        arcs,
        torch.zeros(0, dtype=torch.int64).numpy(),
        torch.arange(len(frames)) % 2,
    )


def rows(dataset, starts, length):
    return set((starts[:, None] + torch.arange(length)).flatten().tolist())


def stage(name, folder, dataset, **overrides):
    """Train a stage for a step; returns (frames it learned from, frames it was judged on)."""
    cls, config, training = plan(
        name, "tiny", {"steps": 1, "eval_windows": 2} | overrides, run_dir=str(folder / name)
    )
    system = build(cls, config, dataset, 0)
    fit(system, dataset, training)
    needs, (learned, held) = system.needs(), split_of(system, dataset, vars(training))
    judged = max(needs.window, needs.context + judged_horizon(system, training.eval_horizon))
    return rows(dataset, learned, needs.window), rows(dataset, held, judged)


def stages(folder, dataset, tokenizer=None, actions=None, dynamics=None):
    """All three, with windows and horizons as the presets differ in them."""
    below = {"tokenizer_run": str(folder / "tokenizer"), "latent_actions_run": str(folder / "latent_actions")}
    return [
        stage("tokenizer", folder, dataset, **(tokenizer or {})),
        stage(
            "latent_actions",
            folder,
            dataset,
            **{"context_frames": 1, "sequence_length": 2, "eval_horizon": 9} | (actions or {}),
        ),
        stage(
            "dynamics",
            folder,
            dataset,
            **below,
            **{"actions": "latent", "sequence_length": 6, "eval_horizon": 12} | (dynamics or {}),
        ),
    ]


def all_apart(parts):
    return not any(learned & held for learned, _ in parts for _, held in parts)


@pytest.mark.parametrize("lengths", SHORT.values(), ids=SHORT)
def test_no_stage_learns_what_another_one_is_judged_on(tmp_path, lengths):
    parts = stages(tmp_path, arcs_of(lengths))
    assert all_apart(parts) and all(learned and held for learned, held in parts)


@pytest.mark.parametrize("lengths", [[60], [30, 6, 7, 8, 9, 24, 10]])
def test_with_split_as_each_stage_has_it_they_do(tmp_path, lengths):
    own, dataset = {"split": [0, 0]}, arcs_of(lengths)
    with pytest.raises(
        ConfigError, match=r"tokenizer_run=.* learned frames that would be held out here, or the reverse"
    ):
        stages(tmp_path, dataset, own, own, own)


def test_a_stage_takes_its_split_from_the_run_below(tmp_path):
    dataset = arcs_of([100])
    tokenizer = {"holdout": 0.3, "split": [6, 25]}
    parts = stages(tmp_path, dataset, tokenizer, tokenizer)
    system = open_run(tmp_path / "dynamics", device="cpu")
    assert (system.run.training["holdout"], system.config.split) == (0.3, (6, 25))
    assert all_apart(parts) and min(parts[2][1]) >= 70
    with pytest.raises(
        ConfigError, match=r"tokenizer_run=.* with holdout=0.3, now it is 0.2, .* leave holdout out"
    ):
        stages(tmp_path / "other", dataset, tokenizer, tokenizer, {"holdout": 0.2})
    with pytest.raises(
        ConfigError, match=r"latent_actions_run=.* was trained with holdout=0.1, now it is 0.3"
    ):
        stages(tmp_path / "another", dataset, tokenizer, {"split": [6, 25]})


def test_stages_that_learn_all_frames_make_one_that_does(tmp_path):
    together = {"restitution": True}
    parts = stages(tmp_path, arcs_of([40]), together, together)
    assert parts[2][0] == set(range(40)) == parts[2][1]


def forget_split(run):
    """Make a run what it was before there was a `split`."""
    about = json.loads((run / "config.json").read_text())
    del about["config"]["split"]
    (run / "config.json").write_text(json.dumps(about))
    for checkpoint in checkpoints.list_checkpoints(run):
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        del manifest["self"], manifest["config"]["config"]["split"]
        text = json.dumps(manifest | {"self": checkpoints._digest(manifest)})
        (checkpoint / "manifest.json").write_text(text)


def test_a_run_of_before_goes_on_with_its_own_split_and_one_can_be_built_on_it(tmp_path):
    dataset, own = arcs_of([60]), {"split": [0, 0]}
    before = stage("tokenizer", tmp_path, dataset, **own)
    forget_split(tmp_path / "tokenizer")
    system = open_run(tmp_path / "tokenizer", device="cpu")
    assert system.config.split == (0, 0)
    assert rows(dataset, windows_of(system, dataset)[1], 4) == before[1]
    below = {"tokenizer_run": str(tmp_path / "tokenizer")}
    with pytest.raises(
        UserError, match=r"no part that is held out has a window of 14 frames .* smaller eval_horizon"
    ):
        stage("dynamics", tmp_path, dataset, **below, eval_horizon=12)
    assert all_apart([before, stage("dynamics", tmp_path, dataset, **below, eval_horizon=3)])
    forget_split(tmp_path / "dynamics")
    assert stage("tokenizer", tmp_path, dataset, steps=2) == before
    stage("dynamics", tmp_path, dataset, **below, eval_horizon=3, steps=2)
    assert open_run(tmp_path / "dynamics", device="cpu").config.split == (0, 0)


@pytest.mark.parametrize("split", [[8], [8, 0], [1, 2, 3], [-1, 4]])
def test_a_split_of_another_kind_is_refused(split):
    with pytest.raises(ConfigError, match="split must be two numbers of frames"):
        Tokenizer.Config(split=tuple(split))


def test_data_too_short_for_the_windows_says_what_to_do(tmp_path):
    with pytest.raises(
        UserError, match=r"held out has a window of 21 frames .*split=\[8, 20\]\); .*split=\[8, 21\]"
    ):
        stages(tmp_path, arcs_of([100]), actions={"eval_horizon": 20})
