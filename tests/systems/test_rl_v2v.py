"""RL-V2V-GAN: its decisions by hand, what its losses are made of, and that each half can be turned off."""

import gc
import types

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from data_prep import make_domains
from mtld_core.config import ConfigError, from_dict, to_dict
from mtld_core.frames import to_float, to_uint8
from mtld_core.systems.rl_v2v import decisions
from mtld_core.systems.rl_v2v.losses import bce_discriminator_loss, bce_generator_loss, structure
from mtld_core.systems.rl_v2v.nets import ConvLSTM, Discriminator, ResBlock3d, Translator, Value
from mtld_core.systems.rl_v2v.system import FRAMES, RLV2V
from mtld_core.train.settings import build, plan
from mtld_core.train.stepper import Stepper

SIZE, T, P, B = 16, 5, 2, 3


def make(folder=None, **settings):
    """A tiny system, and its stepper where it is to be trained in `folder`."""
    torch.manual_seed(0)
    _, config, _ = plan("rl_v2v", "tiny", {"height": SIZE, "width": SIZE} | settings)
    system = RLV2V(config)
    if folder is None:
        return system
    system.setup_training(folder)
    return system, Stepper(system.optimizers(), torch.device("cpu"))


def batch(seed=0, size=B):
    torch.manual_seed(seed)
    x, y = torch.rand(2, size, T, 3, SIZE, SIZE) * 2 - 1
    return {"frames": x, "frames_y": y, "key": torch.arange(size) + 1000 * seed}


class Frames(nn.Module):
    """Stands for a translator or predictor: every pixel by a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, frames, state=None):
        return self.function(frames), state


class Verdict(nn.Module):
    """Stands for a discriminator: the mean of each frame, and of the clip."""

    def forward(self, clips):
        means = clips.mean((2, 3, 4))
        return means[..., None], means.mean(1)


# ---- decisions by hand


def test_rewards_are_the_losses_with_a_minus():
    losses = [torch.tensor(values) for values in ([1.0, 2.0], [10.0, 0.0], [100.0, 50.0])]
    assert decisions.reward(*losses, lambda_rr=0.1, lambda_rc=0.01).tolist() == pytest.approx([-3.0, -2.5])
    assert decisions.last_reward(torch.tensor([0.5, 4.0]), lambda_v=2.0).tolist() == [-1.0, -8.0]
    assert (decisions.reward(*[torch.rand(9) for _ in range(3)], 0.1, 0.1) <= 0).all()


def test_q_target_bootstraps_only_where_the_clip_goes_on():
    target = decisions.q_target(
        torch.tensor([-1.0, -1.0]), torch.tensor([False, True]), torch.tensor([-10.0, -10.0]), 0.9
    )
    assert target.tolist() == [-10.0, -1.0]


@pytest.mark.parametrize(("sigma2", "chosen"), [(0.0, [1, 0, 1, 0]), (1.0, [1, 1, 0, 0])])
def test_sigma2_is_the_probability_of_the_coin(sigma2, chosen):
    values = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-2.0, -1.0], [-1.0, -2.0]])
    coin = torch.tensor([0.1, 0.49, 0.5, 0.9])  # below a half: the second
    assert decisions.choose(values, torch.tensor([0.0, 0.3, 0.6, 0.99]), coin, sigma2).tolist() == chosen


def test_sigma2_between_explores_as_often_as_it_says():
    values, draws = (
        torch.tensor([[1.0, 0.0]]).expand(20_000, 2),
        torch.rand(2, 20_000, generator=torch.manual_seed(0)),
    )
    assert decisions.choose(values, *draws, 0.3).float().mean() == pytest.approx(0.15, abs=0.01)


def test_next_state_drops_the_oldest():
    states = torch.arange(3.0).view(1, 3, 1, 1, 1)
    assert decisions.next_state(states, torch.full((1, 1, 1, 1), 9.0)).flatten().tolist() == [1.0, 2.0, 9.0]


def test_soft_update_by_hand():
    slow, fast = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    slow.weight.data.fill_(2.0)
    fast.weight.data.fill_(10.0)
    decisions.soft_update(slow, fast, 0.25)
    assert slow.weight.item() == 4.0 and fast.weight.item() == 10.0


# ---- networks


def test_value_networks_can_fit_a_constant_negative_reward():
    """A ReLU at the end, as in the original, never could."""
    torch.manual_seed(0)
    value, states, actions = Value((8, 8), 2), torch.rand(8, P, 3, SIZE, SIZE), torch.rand(8, 3, SIZE, SIZE)
    optimizer = torch.optim.Adam(value.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (value(states, actions) + 3).square().mean().backward()
        optimizer.step()
    assert value(states, actions).mean().item() == pytest.approx(-3, abs=0.2)


def test_the_value_depends_on_the_action_and_on_each_frame_of_the_state():
    value, states, actions = Value((8, 8), 2), torch.rand(1, P, 3, SIZE, SIZE), torch.rand(1, 3, SIZE, SIZE)
    value = value.eval()
    for changed in ((states, actions + 1), (states + torch.tensor([1.0, 0]).view(1, 2, 1, 1, 1), actions)):
        assert (value(*changed) - value(states, actions)).abs().item() > 1e-5


def test_lstm_is_torchs_own_on_a_single_place():
    """On 1x1 maps only the middle of each 3x3 kernel counts, and the gates lie in another order than
    torch's.
    """
    torch.manual_seed(0)
    ours, theirs = ConvLSTM(4, 5), nn.LSTM(4, 5, batch_first=True)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.from_input.weight[:, :, 1, 1])
        theirs.weight_hh_l0.copy_(ours.from_hidden.weight[:, :, 1, 1])
        theirs.bias_ih_l0.copy_(ours.from_input.bias)
        theirs.bias_hh_l0.zero_()
    clip = torch.randn(2, 6, 4, 1, 1)
    found, (hidden, cell) = ours(clip)
    wanted, (h, c) = theirs(clip.flatten(2))
    torch.testing.assert_close(found.flatten(2), wanted)
    torch.testing.assert_close((hidden.flatten(1), cell.flatten(1)), (h[0], c[0]))


def test_residual_3d_block_sees_the_frames_on_both_sides():
    block, clip = ResBlock3d(2), torch.zeros(1, 2, 7, 4, 4)
    moved = clip.clone()
    moved[:, :, 3] = 1
    changed = (block(moved) - block(clip)).abs().amax((0, 1, 3, 4)) > 0
    assert changed.tolist() == [False, True, True, True, True, True, False]


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("channels", [(8,), (8, 12)])
def test_a_clip_in_pieces_is_translated_as_a_whole(channels, residual):
    torch.manual_seed(0)
    net, clip = Translator(channels, 2, 1, 4, residual=residual), torch.rand(2, 6, 3, SIZE, SIZE) * 2 - 1
    nn.init.normal_(net.head[-1].weight, std=0.1)
    whole, _ = net(clip)
    first, state = net(clip[:, :2])
    second, _ = net(clip[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    assert (net(clip[:, 2:])[0] - second).abs().max() > 1e-4  # it remembers what came before
    assert residual or whole.abs().max() <= 1


def test_an_untrained_residual_translator_maps_colours():
    net, clip = Translator((8,), 4, 1, 4), torch.rand(1, 2, 3, SIZE, SIZE)
    torch.testing.assert_close(net(clip)[0], clip)
    net.set_colour(torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]), torch.tensor([0.0, 0.0, 0.5]))
    torch.testing.assert_close(net(clip)[0], clip[:, :, [1, 0, 2]] + torch.tensor([0, 0, 0.5]).view(3, 1, 1))


@pytest.mark.parametrize(("grid", "n", "m"), [(None, 16, 80), ((4, 4), 1, 1)])
def test_a_discriminator_has_a_head_for_frames_and_one_for_clips(grid, n, m):
    frames, whole = Discriminator((8, 8), 2, grid)(torch.rand(2, 5, 3, SIZE, SIZE))
    assert frames.shape == (2, 5, n) and whole.shape == (2, m)


# ---- losses by hand


def stubbed(**settings):
    """Translators add 0.5 (to Y) or take 0.25 away (to X); predictors repeat; discriminators give means."""
    system = make(**settings)
    system.g = nn.ModuleDict({"x": Frames(lambda f: f - 0.25), "y": Frames(lambda f: f + 0.5)})
    system.p = nn.ModuleDict({d: Frames(lambda f: f) for d in "xy"})
    system.d = nn.ModuleDict({d: Verdict() for d in "xy"})
    return system


def still(x=0.0, y=1.0):
    """Clips of frames that do not move; one number each."""
    pictures = torch.ones(2, T, 3, SIZE, SIZE)
    return {"frames": x * pictures, "frames_y": y * pictures, "key": torch.arange(2)}


def test_the_losses_inside_a_clip_by_hand():
    """X at 0: in Y 0.5, recycled 0.25. Y at 1: in X 0.75, recycled 1.25. So both recycle losses are 0.25."""
    result = stubbed(lambda_rr=10.0, lambda_rc=100.0).generator_loss(still(), t=3)
    logs = {name: value.item() for name, value in result.logs.items()}
    assert logs["recurrent_x"] == logs["recurrent_y"] == 0
    assert logs["recycle_x"] == logs["recycle_y"] == pytest.approx(0.25)
    assert logs["adversarial_x"] == pytest.approx(
        2 * (0.5 - 1) ** 2
    )  # of X in Y: its frames, and the sub-clip
    assert logs["adversarial_y"] == pytest.approx(2 * (0.75 - 1) ** 2)
    assert result.total.item() == pytest.approx(0.5 + 0.125 + 100 * 0.5)
    assert result.carry["fake_y"].shape == (2, P + 1, 3, SIZE, SIZE)
    assert (result.carry["fake_y"] == 0.5).all() and (
        result.carry["fake_x"] == 0.75
    ).all()  # translations, not cycles


def test_a_translation_is_to_be_as_predictable_as_a_clip():
    """X jumps from 0 to 1 at frame 3. In Y the predictor repeats 0.5, and the translation of what came is
    1.5.
    """
    data = still()
    data["frames"][:, 3:] = 1
    plain, steady = (stubbed(lambda_steady=weight).generator_loss(data, t=3) for weight in (0.0, 2.0))
    assert steady.logs["steady_x"].item() == pytest.approx(1.0) and steady.logs["steady_y"].item() == 0
    assert "steady_x" not in plain.logs and (steady.total - plain.total).item() == pytest.approx(2.0)


def disc(at=32, inside=(1.0, -1.0, -1.0), ground=(-1.0, -1.0, 1.0), stripes=0.0):
    """A picture `[1, 3, 64, 64]` of a disc, striped over 8 pixels or not."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    shown = ((y - 32) ** 2 + (x - at) ** 2 < 14**2).float()
    wave = stripes * torch.sin(2 * torch.pi * y / 8)
    inside, ground = (torch.tensor(each).view(3, 1, 1) for each in (inside, ground))
    return (ground + shown * (inside + wave - ground))[None]


def test_structure_is_where_things_are_and_not_their_colours():
    def apart(a, b):
        return (structure(a) - structure(b)).abs().mean().item()

    plain = disc()
    moved = apart(plain, disc(at=36))
    assert apart(plain, disc(inside=(-1.0, -1.0, 1.0), ground=(1.0, -1.0, -1.0))) < 1e-6  # exchanged
    assert apart(plain, disc(inside=(0.2, 0.6, 0.2), ground=(-0.2, -0.2, 0.6))) < 0.25 * moved
    assert apart(plain, disc(stripes=0.5)) < 0.5 * moved
    assert moved > 0.05 and apart(plain, torch.zeros(1, 3, 64, 64)) > 0.1
    assert (
        structure(plain).shape == (1, 16, 15, 15)
        and 0 <= structure(plain).min() <= structure(plain).max() <= 1
    )


@pytest.fixture(scope="module")
def worlds():
    """Six clips of moving shapes, `[48, 3, 64, 64]`, and the same in the palette whose colours are crossed."""
    moving = [make_domains._world(np.random.default_rng(seed), 8) for seed in range(6)]
    styles = make_domains.X, make_domains.PALETTES["crossed"]
    drawn = [np.concatenate([make_domains._draw(one, style, 64) for one in moving]) for style in styles]
    return [to_float(torch.from_numpy(frames)) for frames in drawn]


def test_a_true_translation_has_the_structure_and_another_clips_has_not(worlds):
    source, truth = worlds
    wanted = structure(source)
    found, wrong = (
        (structure(frames) - wanted).abs().mean().item() for frames in (truth, truth.roll(8, dims=0))
    )
    assert found < 0.04 and wrong > 0.15


def test_half_precision_hardly_changes_the_gradient_of_the_structure(worlds):
    source, truth = worlds
    made = truth + 0.05 * torch.randn(truth.shape, generator=torch.manual_seed(0))
    gradients = []
    for kind in (torch.float32, torch.float16):
        frames = made.to(kind).requires_grad_()
        found = structure(frames)
        assert found.dtype == torch.float32
        (gradient,) = torch.autograd.grad(1000 * (found - structure(source)).abs().mean(), frames)
        gradients.append(gradient.float())
    assert (gradients[1] - gradients[0]).norm() <= 0.02 * gradients[0].norm()


@pytest.mark.parametrize("t", [3, T - 1])
def test_a_translation_is_to_have_the_structure_of_its_frames(t):
    """Translators that add a number to all pixels keep it. One that shows the clip mirrored does not."""
    data = still()
    data["frames"] = data["frames"].clone()
    data["frames"][..., :4] = 1
    kept = stubbed(lambda_structure=2.0).generator_loss(data, t)
    assert kept.logs["structure_x"].item() == pytest.approx(0, abs=1e-6)
    plain, mirrored = stubbed(), stubbed(lambda_structure=2.0)
    for system in (plain, mirrored):
        system.g["y"] = Frames(lambda f: f.flip(-1))
    losses = [system.generator_loss(data, t) for system in (plain, mirrored)]
    found = losses[1].logs["structure_x"].item()
    assert found > 0.1 and "structure_x" not in losses[0].logs
    assert (losses[1].total - losses[0].total).item() == pytest.approx(2 * found)


def test_a_state_is_translated_with_the_memory_of_its_clip():
    """At frame T - 2 it is what a translation of the whole clip shows there, not one that begins with the
    state.
    """
    system, data = make(), batch()
    for net in system.g.values():
        nn.init.normal_(net.head[-1].weight, std=0.3)
    fake = system.generator_loss(data, t=T - 2).carry["fake_y"][:, :P]
    whole, _ = system.g["y"](data["frames"])
    torch.testing.assert_close(fake, whole[:, T - 2 - P : T - 2])
    assert (fake - system.g["y"](data["frames"][:, T - 2 - P : T - 2])[0]).abs().max() > 1e-4


def test_the_last_step_is_the_whole_clip_alone():
    result = stubbed(lambda_v=3.0, lambda_rr=10.0, lambda_rc=100.0).generator_loss(still(), t=T - 1)
    assert result.carry["fake_y"].shape == (2, T, 3, SIZE, SIZE)
    assert result.total.item() == pytest.approx(3 * ((0.5 - 1) ** 2 + (0.75 - 1) ** 2))


def test_the_discriminators_see_the_same_moment_of_real_clips():
    system, data = stubbed(), batch()
    made = system.generator_loss(data, t=3).carry
    seen = []
    system.d = nn.ModuleDict({d: Frames(lambda clip: (seen.append(clip), Verdict()(clip))[1]) for d in "xy"})
    for d in "xy":
        system.d[d].forward = system.d[d].function
    system.discriminator_loss(data | made, t=3)
    assert torch.equal(seen[0], data["frames"][:, 1:4]) and torch.equal(seen[2], data["frames_y"][:, 1:4])
    assert torch.equal(seen[1], made["fake_x"])


def test_bce_is_taken_on_logits():
    logits = torch.tensor([0.0, 2.0, -2.0])
    wanted = nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(3))
    torch.testing.assert_close(bce_generator_loss(logits), wanted)
    false = nn.functional.binary_cross_entropy_with_logits(logits, torch.zeros(3))
    torch.testing.assert_close(bce_discriminator_loss(logits, logits), 0.5 * (wanted + false))


# ---- the RL half


def by_domain(replay):
    """All that a replay holds, X first."""
    numbers = torch.arange(replay.count - len(replay), replay.count)
    return replay.take(numbers.view(-1, 2).T.flatten())


def remembered(t, tmp_path, **settings):
    """What the replay holds after one batch of still clips at moment t."""
    system = stubbed(**settings)
    system.setup_training(tmp_path)
    system.q = nn.ModuleDict({d: Frames(lambda f: f) for d in "xy"})
    for d in "xy":
        system.q[d].forward = lambda states, actions: actions.mean((1, 2, 3))  # brighter is better
    data = still()
    system._remember(data, t)
    return by_domain(system.replay)


def test_a_transition_by_hand(tmp_path):
    """sigma2 = 0: the brighter candidate is taken: of X the recycled 0.25, of Y the recycled 1.25 (which
    white clips to 1).
    """
    kept = remembered(3, tmp_path, sigma2=0.0, lambda_rr=10.0, lambda_rc=2.0)
    assert kept["domains"].tolist() == [0, 0, 1, 1] and kept["positions"].tolist() == [3] * 4
    assert not kept["done"].any()
    action = kept["frames"][:, -1].float().mean((1, 2, 3)) / 127.5 - 1
    assert action.tolist() == pytest.approx([0.25, 0.25, 1, 1], abs=0.01)
    assert (kept["frames"][:2, :P] == 128).all() and (kept["frames"][2:, :P] == 255).all()
    sub_clips = (2 * 0.0 + 0.25) / 3, (2 * 1.0 + 1.25) / 3  # what the stub says of a clip: its mean
    wanted = [
        -((a - 1) ** 2 + (clip - 1) ** 2 + 2 * 0.25) for a, clip in zip((0.25, 1.25), sub_clips, strict=True)
    ]
    assert kept["rewards"].tolist() == pytest.approx([wanted[0]] * 2 + [wanted[1]] * 2, rel=1e-4)


def test_the_last_transition_is_judged_by_the_whole_clip(tmp_path):
    """The clip that ends with the action, by its own domain's discriminator: four frames of 0 and 0.25, of 1 and
    1.25.
    """
    kept = remembered(T - 1, tmp_path, sigma2=0.0, lambda_v=3.0)
    assert kept["done"].all()
    wanted = [-3 * (mean - 1) ** 2 for mean in (0.25 / T, (T - 1 + 1.25) / T)]
    assert kept["rewards"].tolist() == pytest.approx([wanted[0]] * 2 + [wanted[1]] * 2, rel=1e-4)


def remember_at(t, system, data, monkeypatch):
    """What the replay holds after a training step at moment t in which no network moves."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda *_: torch.tensor(t))
        system.training_step([data], lambda phase, loss, batch: loss(batch))
    return by_domain(system.replay)


@pytest.mark.parametrize("t", [T - 2, T - 1])
def test_the_action_taken_is_one_of_the_states_own_candidates(t, tmp_path, monkeypatch):
    """What came before the state decides nothing, though a translator that has seen it would show another
    frame.
    """
    system, _ = make(tmp_path, sigma2=1.0)
    for net in (*system.g.values(), *system.p.values()):
        nn.init.normal_(net.head[-1].weight, std=0.3)
    data = batch(size=8)
    kept = remember_at(t, system, data, monkeypatch)
    taken, nearest = kept["frames"][:, -1].float(), []
    for number, (d, name) in enumerate((("x", "frames"), ("y", "frames_y"))):
        with torch.no_grad():
            both = torch.stack(system._candidates(data[name][:, t - P : t], d, system.g, system.p))
        apart = (to_uint8(both).float() - taken[kept["domains"] == number]).abs().amax((2, 3, 4))  # [2, 8]
        assert apart.amin(0).max() <= 1  # of 255 levels
        nearest += apart.argmin(0).tolist()
    assert set(nearest) == {0, 1}  # the coin took both ways


def test_the_reward_is_of_the_candidates_that_could_be_taken(tmp_path, monkeypatch):
    """Two clips that end in the same state, and go on with the same frame, have the same two candidates and
    losses.
    """
    system, _ = make(tmp_path, sigma2=0.0)
    for net in (*system.g.values(), *system.p.values()):
        nn.init.normal_(net.head[-1].weight, std=0.3)
    data, t = batch(size=2), T - 2
    for name in ("frames", "frames_y"):
        data[name][1, t - P :] = data[name][0, t - P :]
    kept = remember_at(t, system, data, monkeypatch)
    for first, second in ((0, 1), (2, 3)):
        assert (kept["frames"][first].int() - kept["frames"][second].int()).abs().max() <= 1
        assert kept["rewards"][first].item() == pytest.approx(kept["rewards"][second].item(), rel=1e-3)


class Brightness(nn.Module):
    """Stands for a value network: how bright the action is, and ten times the state's first frame."""

    def forward(self, states, actions):
        return actions.mean((1, 2, 3)) + 10 * states[:, 0].mean((1, 2, 3))


def one_transition(domain, done=False):
    """State 0.1, 0.2; action 0.3; reward -1. That of the other domain is black, ends the clip, is worth 0."""
    other = "yx"["xy".index(domain)]
    pictures = torch.ones(1, P, 3, SIZE, SIZE) * torch.tensor([0.1, 0.2]).view(P, 1, 1, 1)
    rows = {f"state_{domain}": pictures, f"state_{other}": 0 * pictures}
    rows |= {
        f"action_{domain}": 0.3 * torch.ones(1, 3, SIZE, SIZE),
        f"rewards_{domain}": torch.tensor([-1.0]),
    }
    rows |= {f"action_{other}": torch.zeros(1, 3, SIZE, SIZE), f"rewards_{other}": torch.zeros(1)}
    return rows | {f"done_{domain}": torch.tensor([done]), f"done_{other}": torch.tensor([True])}


@pytest.mark.parametrize(("done", "target"), [(False, -1 + 0.5 * (2.0 + 0.4)), (True, -1.0)])
def test_what_a_value_network_learns_by_hand(done, target, tmp_path):
    """From the next state 0.2, 0.3 the slow predictor repeats 0.3; the slow way over Y, 0.3 + 0.5 - 0.4, is
    brighter.

    Its value is 0.4 + 10 x 0.2; that of the transition itself 0.3 + 10 x 0.1.
    """
    system = stubbed(gamma=0.5)
    system.q = nn.ModuleDict({d: Brightness() for d in "xy"})
    slow_g = nn.ModuleDict({"x": Frames(lambda f: f - 0.4), "y": Frames(lambda f: f + 0.5)})
    system.slow = {"g": slow_g, "p": system.p, "q": system.q}
    loss = system.q_loss(one_transition("x", done)).total
    assert loss.item() == pytest.approx((1.3 - target) ** 2 / 2, rel=1e-4)  # half of the batch is of Y


def test_the_target_is_the_slow_networks_own(tmp_path):
    system = stubbed(gamma=0.5)
    system.q = nn.ModuleDict({d: Brightness() for d in "xy"})
    slow_q = nn.ModuleDict({d: Frames(None) for d in "xy"})
    for d in "xy":
        slow_q[d].forward = lambda states, actions: torch.full((len(states),), -7.0)
    system.slow = {"g": system.g, "p": system.p, "q": slow_q}
    loss = system.q_loss(one_transition("y")).total
    assert loss.item() == pytest.approx((1.3 - (-1 - 3.5)) ** 2 / 2, rel=1e-4)


def test_the_candidates_by_hand():
    """Of Y: the predictor of Y adds 1; over X it is 0.2 - 0.25, there the predictor of X adds 5, and back
    0.5.
    """
    system = stubbed()
    system.p = nn.ModuleDict({"x": Frames(lambda f: f + 5), "y": Frames(lambda f: f + 1)})
    predicted, recycled = system._candidates(one_transition("y")["state_y"], "y", system.g, system.p)
    assert predicted.mean().item() == pytest.approx(1.2) and recycled.mean().item() == pytest.approx(
        0.2 - 0.25 + 5 + 0.5
    )


@pytest.mark.parametrize("sigma1", [0.0, 0.5, 1.0])
def test_sigma1_is_the_probability_of_the_replay(sigma1, tmp_path):
    """100 old transitions of reward -1 and 2 x 50 new ones: else a sample draws its own, in each domain."""
    system, _ = make(tmp_path, sigma1=sigma1)
    own = torch.arange(100.0)
    for rewards in (-torch.ones(10_000), own):
        n = len(rewards)
        frames = torch.zeros(n, P + 1, SIZE, SIZE, 3, dtype=torch.uint8)
        system.replay.add(frames, rewards, 0, torch.arange(n) % 2, False)
    drawn = system._draw(torch.arange(50) + 100)
    for d, mine in (("x", own[::2]), ("y", own[1::2])):
        shares = (drawn[f"rewards_{d}"] == mine).float().mean().item()
        assert abs(shares - (1 - sigma1)) < 0.2 and (sigma1 or shares == 1)
    other = system._draw(torch.arange(50) + 200)
    assert not sigma1 or not torch.equal(drawn["rewards_x"], other["rewards_x"])
    again = system._draw(torch.arange(50) + 100)
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)


def transitions(n):
    """Random ones of both domains, as the losses of the RL half take them."""
    rows = {}
    for d in "xy":
        rows |= {f"state_{d}": torch.rand(n, P, 3, SIZE, SIZE), f"action_{d}": torch.rand(n, 3, SIZE, SIZE)}
        rows |= {f"rewards_{d}": -torch.ones(n), f"done_{d}": torch.arange(n) % 2 == 0}
    return rows


def test_the_domain_selects_the_networks(tmp_path):
    """What Y's networks say of X's transitions does not count."""
    system, _ = make(tmp_path)
    rows = transitions(3)
    system.q_loss(rows).total.backward()
    assert all(p.grad is not None for p in system.q.parameters())
    before = system.q["y"](rows["state_y"], rows["action_y"])
    for name in ("state_x", "action_x", "rewards_x"):
        grads = [p.grad.clone() for p in system.q["y"].parameters()]
        system.q.zero_grad()
        rows[name] = rows[name] * 0.5
        system.q_loss(rows).total.backward()
        for grad, p in zip(grads, system.q["y"].parameters(), strict=True):
            torch.testing.assert_close(p.grad, grad)
    assert torch.equal(before, system.q["y"](rows["state_y"], rows["action_y"]))
    apart = [system.q_loss({name: value[i : i + 1] for name, value in rows.items()}).total for i in range(3)]
    torch.testing.assert_close(system.q_loss(rows).total, sum(apart) / 3)


def test_the_policy_reaches_translators_and_predictors_and_raises_the_value(tmp_path):
    system, stepper = make(tmp_path, lr_policy=1e-3)
    rows = transitions(2)
    first = stepper("policy", system.policy_loss, rows).logs["policy"]
    moved = [
        p for maker in (system.g, system.p) for p in maker.parameters() if p.grad is not None and p.grad.any()
    ]
    assert len(moved) > 4 and all(p.grad is None for p in system.q.parameters())
    for _ in range(10):
        last = stepper("policy", system.policy_loss, rows).logs["policy"]
    assert last < first


def test_slow_copies_follow_and_are_no_part_of_the_model(tmp_path):
    system, stepper = make(tmp_path, tau=0.5)
    names = set(system.state_dict())
    before = [p.clone() for p in system.slow["q"].parameters()]
    system.training_step([batch()], stepper)
    for old, slow, fast in zip(before, system.slow["q"].parameters(), system.q.parameters(), strict=True):
        torch.testing.assert_close(slow, (old + fast) / 2)
    assert set(system.state_dict()) == names and not any("slow" in name for name in names)


def test_rl_every_is_how_often_and_0_is_never(tmp_path):
    for every, learnt in ((0, []), (1, [0, 1, 2, 3]), (2, [1, 3])):
        system, stepper = make(tmp_path / str(every), rl_every=every)
        found = [i for i in range(4) if "q" in system.training_step([batch(i)], stepper)]
        assert found == learnt
        assert set(stepper.optimizers) == {"generator", "discriminator"} | (
            {"q", "policy"} if every else set()
        )
    assert make(rl_every=0).q is None


def test_what_is_compiled_is_what_is_called():
    assert len(make().to_compile()) == 8 and len(make(rl_every=0).to_compile()) == 6


def test_a_batch_of_one(tmp_path):
    system, stepper = make(tmp_path)
    logs = system.training_step([batch(size=1)], stepper)
    assert all(torch.isfinite(value) for value in logs.values())


# ---- settings


def trained(tmp_path, **settings):
    """The weights of translators and predictors after six steps, not all of them at the end of a clip."""
    system, stepper = make(tmp_path, **settings)
    batches, moments = [batch(i) for i in range(6)], set()
    torch.manual_seed(1)
    for one in batches:
        system.training_step([one], stepper)
        moments |= (
            set(system.replay._ring["positions"][: len(system.replay)].tolist())
            if system.replay
            else {P, T - 1}
        )
    assert len(moments) > 1
    return torch.cat([p.detach().flatten() for p in (*system.g.parameters(), *system.p.parameters())])


CHANGES = {
    "gan": "bce", "lambda_rr": 5.0, "lambda_rc": 5.0, "lr": 1e-2, "lr_policy": 1e-2, "beta1": 0.9, "beta2": 0.9, "rl_every": 0,
    "lr_d": 1e-2, "lambda_steady": 5.0, "lambda_structure": 5.0,
}  # fmt: skip


def test_names_of_before_are_read():
    """In the config of an old run, and as overrides, where they win over the preset's."""
    _, tiny, _ = plan("rl_v2v", "tiny")
    assert (tiny.discriminator_channels, tiny.discriminator_fold) == ((8, 8), 2)
    former = {"judge_channels": [4, 8], "judge_fold": 1}
    _, config, _ = plan("rl_v2v", "tiny", former)
    kept = from_dict(RLV2V.Config, former)
    for one in (config, kept):
        assert (one.discriminator_channels, one.discriminator_fold) == ((4, 8), 1)
    assert not former.keys() & to_dict(config).keys()


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("unchanged"))


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_of_the_learning_does_something(name, unchanged, tmp_path):
    assert not torch.equal(unchanged, trained(tmp_path, **{name: CHANGES[name]}))


def test_without_a_change_the_same_is_learned(unchanged, tmp_path):
    assert torch.equal(unchanged, trained(tmp_path))


def test_lambda_v_and_gamma_do_something(tmp_path):
    rows = transitions(2)
    (a, _), (b, _) = make(tmp_path / "a", gamma=0.0), make(tmp_path / "b", gamma=0.9)
    assert a.q_loss(rows).total != b.q_loss(rows).total
    last = [make(lambda_v=v).generator_loss(batch(), T - 1).total.item() for v in (0.0, 1.0, 2.0)]
    assert last[0] == 0 and last[2] == pytest.approx(2 * last[1])


def test_the_shapes_of_the_networks_are_settings():
    def size(**settings):
        return sum(p.numel() for p in make(**settings).parameters())

    sizes = [
        *(
            size(),
            size(channels=(8, 8)),
            size(fold=2),
            size(blocks=2),
            size(memory=6),
            size(norm="none"),
            size(output="tanh"),
        ),
        *(
            size(discriminator_channels=(8, 8, 8)),
            size(discriminator_fold=4),
            size(dense_head=True),
            size(rl_every=0),
        ),
    ]
    assert len(set(sizes)) == len(sizes)


def test_translating_is_one_translation_and_reconstructing_goes_through_the_predictor():
    system, clip = make(), batch()["frames"]
    for net in (*system.g.values(), *system.p.values()):
        nn.init.normal_(net.head[-1].weight, std=0.1)
    there, _ = system.translate(clip, "x_to_y")
    torch.testing.assert_close(there, system.g["y"](clip)[0])
    torch.testing.assert_close(system.translate(clip, "y_to_x")[0], system.g["x"](clip)[0])
    before = system.reconstruct(clip)
    assert before.shape == clip.shape
    nn.init.normal_(system.p["y"].head[-1].weight, std=0.1)
    after = system.reconstruct(clip)
    changed = (after - before).abs().amax((0, 2, 3, 4)) > 1e-5
    assert changed.tolist() == [False] + [True] * (T - 1)


def test_learning_begins_at_the_colour_transfer(tmp_path):
    """Y is X with red and blue exchanged and darker; a residual translator says so untrained, a tanh one
    knows nothing.
    """
    x = torch.randint(0, 256, (20, SIZE, SIZE, 3), generator=torch.manual_seed(0), dtype=torch.uint8)
    x[..., 0] //= 4  # so that the channels can be told apart by their spread
    y = (
        (x.float() @ torch.tensor([[0.9, 0, 0.1], [0, 0.5, 0], [0.1, 0, 0.9]]) * 0.5 + 20)
        .round()
        .to(torch.uint8)
    )
    system, plain = make(), make(output="tanh")
    for one in (system, plain):
        one.prepare(x, y)
    for direction, source, target in (("x_to_y", x, y), ("y_to_x", y, x)):
        made = to_uint8(system.translate(to_float(source)[None], direction)[0])[0]
        assert (
            (made.int() - target.int()).abs().float().mean()
            < 3
            < (source.int() - target.int()).abs().float().mean()
        )
    assert not hasattr(plain.g["y"], "colour")


def test_the_next_frame_of_the_source_is_the_action():
    system, clip = make(), batch()["frames"]
    nn.init.normal_(system.g["y"].head[-1].weight, std=0.1)
    stepped = torch.cat(list(system.rollout(clip[:, :1], T - 1, clip[:, 1:].unbind(1))), 1)
    torch.testing.assert_close(stepped, system.translate(clip)[0][:, 1:])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sequence_length": 3, "context_frames": 3}, "sequence_length=3 leaves no frame"),
        ({"height": 18}, "height=18 is not divisible by 4.*fold"),
        ({"sigma1": 1.5}, r"sigma1 must be in \[0, 1\]"),
        ({"channels": ()}, "channels must list positive widths"),
        ({"lambda_rc": -1.0}, "lambda_rc must not be negative"),
        ({"replay_size": 0}, "replay_size must be at least 2"),
        (
            {"height": 4, "width": 4, "norm": "instance"},
            r"one cell \(4 pixels.*norm='instance'; use .* or norm='none'",
        ),
        (
            {"height": 8, "width": 8, "norm": "instance", "channels": (8, 8)},
            r"one cell \(8 pixels.*norm='instance'",
        ),
        (
            {"height": 8, "width": 8, "norm": "group", "channels": (8, 1)},
            r"one cell \(8 pixels.*norm='group'",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        plan("rl_v2v", "tiny", settings)


@pytest.mark.parametrize(
    "settings",
    [
        {
            "height": 8,
            "width": 8,
            "norm": "instance",
            "channels": (8, 8),
            "blocks": 0,
        },  # its one norm sees 2x2
        {"height": 4, "width": 4, "norm": "group"},
        {"height": 4, "width": 4, "norm": "none"},
        {"height": 4, "width": 8, "norm": "instance"},
    ],
)
def test_small_maps_are_used_where_their_norm_has_more_than_one_value(settings):
    system = make(**settings)
    clip = torch.rand(1, T, 3, system.config.height, system.config.width)
    assert system.translate(clip)[0].shape == clip.shape


def quick_check(**settings):
    """(system, training config) of the preset that the source checks a machine with."""
    _, config, training = plan("rl_v2v", "sanity", settings)
    torch.manual_seed(0)
    return RLV2V(config), training


def test_the_quick_check_has_all_four_losses():
    """L_g has no weight of its own: it is what is left where the others have none."""

    def total(**settings):
        system, _ = quick_check(rl_every=0, **settings)
        c = system.config
        torch.manual_seed(0)
        data = dict(
            zip(FRAMES.values(), torch.rand(2, 2, c.sequence_length, 3, c.height, c.width), strict=True)
        )
        with torch.no_grad():
            return [
                system.generator_loss(data, t).total.item()
                for t in range(c.context_frames, c.sequence_length)
            ]

    alone = total(lambda_v=0.0, lambda_rr=0.0, lambda_rc=0.0)
    for name, moments in (
        ("lambda_v", [False, True]),
        ("lambda_rr", [True, False]),
        ("lambda_rc", [True, False]),
    ):
        with_it = total(**{"lambda_v": 0.0, "lambda_rr": 0.0, "lambda_rc": 0.0, name: 1.0})
        assert [a != b for a, b in zip(alone, with_it, strict=True)] == moments, name
    assert alone[0] > 0 and alone[1] == 0


def test_the_quick_check_teaches_every_network(tmp_path):
    """In as many steps as it has, each parameter receives a gradient in each of its phases; L_rr and L_rc are
    among them.
    """
    system, training = quick_check()
    system.setup_training(tmp_path)
    stepper, learnt = Stepper(system.optimizers(), torch.device("cpu")), set()

    def watched(phase, loss, batch):
        result = stepper(phase, loss, batch)
        learnt.update(
            (phase, name) for name, p in system.named_parameters() if p.grad is not None and p.grad.any()
        )
        for p in system.parameters():
            p.grad = None
        return result

    c = system.config
    for step in range(training.epochs * training.steps_per_epoch):
        torch.manual_seed(step)
        x, y = torch.rand(2, training.batch_size, c.sequence_length, 3, c.height, c.width) * 2 - 1
        system.training_step(
            [{"frames": x, "frames_y": y, "key": torch.arange(training.batch_size)}], watched
        )
    phases = {
        "g": ("generator", "policy"),
        "p": ("generator", "policy"),
        "d": ("discriminator",),
        "q": ("q",),
    }
    wanted = {(phase, name) for name, _ in system.named_parameters() for phase in phases[name[0]]}
    assert wanted == learnt, sorted(wanted - learnt)
    assert set(by_domain(system.replay)["positions"].tolist()) == {
        c.context_frames,
        c.sequence_length - 1,
    }


def test_a_clip_of_its_last_step_alone_is_not_trained_and_opens():
    """Runs of it exist: the preset "sanity" once had four frames and a state of three."""
    _, config, _ = plan("rl_v2v", "sanity", {"context_frames": 3})
    RLV2V(config)
    data = types.SimpleNamespace(size=(32, 32))
    with pytest.raises(
        ConfigError, match=r"context_frames=3 leaves only the last step.*sequence_length=5 or more"
    ):
        build(RLV2V, config, data)
    assert build(RLV2V, plan("rl_v2v", "sanity")[1], data).config.context_frames == 2


def test_frames_too_small_for_their_structure_are_refused():
    _, config, _ = plan("rl_v2v", "tiny", {"lambda_structure": 2.0})
    with pytest.raises(ConfigError, match=r"lambda_structure=2 compares squares of 8 pixels.*are 4x16"):
        build(RLV2V, config, types.SimpleNamespace(size=(4, 16)))
    assert build(RLV2V, config, types.SimpleNamespace(size=(8, 16))).config.height == 8


@pytest.mark.versionless  # what the system itself keeps
def test_memory_is_flat_over_hundreds_of_steps(tmp_path):
    """A graph, a list or a replay that grew with every step would show; the first steps fill caches and the
    replay.
    """
    system, stepper = make(tmp_path, replay_size=24, rl_every=4, channels=(4,), discriminator_channels=(4, 4))
    data, taken = batch(size=1), {}
    for step in range(1, 181):
        system.training_step([data], stepper)
        if step in (60, 180):
            gc.collect()
            taken[step] = psutil.Process().memory_info().rss / 1e6
    assert (
        taken[180] - taken[60] < 2
    )  # MB, of which a step may leave 17 kB; its graph has over a hundred times that
    assert len(system.replay) == 24 and system.replay.count == 90


def test_the_original_preset_has_the_sources_values_and_trains_a_step(tmp_path):
    """On smaller frames, one clip of each domain."""
    _, config, training = plan("rl_v2v", "original")
    source = {
        "sequence_length": 16, "height": 64, "width": 64, "context_frames": 3, "lr": 1e-4, "lr_d": 1e-4, "lr_policy": 1e-4,
        "lambda_v": 1, "lambda_rr": 0.1, "lambda_rc": 0.1, "gamma": 0.99, "tau": 0.001, "sigma1": 0.5, "sigma2": 0.5,
        "replay_size": 10_000, "output": "tanh", "dense_head": True, "gan": "bce", "lambda_steady": 0, "rl_every": 1,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in source} == source
    assert (training.batch_size, training.epochs, training.steps_per_epoch, training.eval_batches) == (
        4,
        10,
        100,
        5,
    )
    system = RLV2V(plan("rl_v2v", "original", {"height": 16, "width": 16})[1])
    system.setup_training(tmp_path)
    given = {name: torch.rand(1, 16, 3, 16, 16) * 2 - 1 for name in ("frames", "frames_y")} | {
        "key": torch.arange(1)
    }
    logs = system.training_step([given], Stepper(system.optimizers(), torch.device("cpu")))
    assert {"q", "policy", "adversarial_x", "discriminator_y"} <= set(logs)
    assert all(torch.isfinite(value) for value in logs.values())
