"""Frames from a system: what is given out, in which mode, from which contexts and actions."""

import numpy as np
import pytest
import torch
from rolling import Toy, ToyConfig, picture

from mtld_core import generate as generation
from mtld_core.config import UserError


def test_rollout_is_the_predictions_only():
    first = picture()
    frames = generation.rollout(Toy(ToyConfig()).eval(), first, 5)
    assert frames.shape == (5, 16, 24, 3) and frames.dtype == torch.uint8
    assert np.array_equal(frames, [np.roll(first, i, 1) for i in range(1, 6)])
    frames += 1  # an ordinary tensor, not one of inference mode
    assert not torch.is_inference_mode_enabled()


def test_context_as_array_tensor_or_several_frames():
    system, first = Toy(ToyConfig(context=2)).eval(), picture()
    clip = np.stack([picture(seed=1), first])
    wanted = generation.rollout(system, clip, 2)
    assert np.array_equal(wanted[0], np.roll(first, 1, 1))
    assert torch.equal(generation.rollout(system, torch.from_numpy(clip), 2), wanted)
    flipped = clip[:, :, ::-1]  # negative strides
    assert torch.equal(generation.rollout(system, flipped, 2), generation.rollout(system, flipped.copy(), 2))


@pytest.mark.parametrize("context", [picture().astype(np.float32), picture()[..., 0], picture()[None, None]])
def test_a_context_of_another_kind_is_refused(context):
    with pytest.raises(UserError, match=r"uint8 \[H, W, 3\]"):
        generation.rollout(Toy(ToyConfig()), context, 2)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    system = Toy(ToyConfig(noise=0.2)).eval()
    a, b, c = (generation.rollout(system, picture(), 4, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)
    streamed = list(generation.stream(system, picture(), 4, seed=3))
    assert torch.equal(torch.stack(streamed), a)


def test_every_module_gets_its_mode_back():
    system = Toy(ToyConfig()).train()
    system.frozen.eval()
    frames = generation.rollout(system, picture(), 2)
    assert np.array_equal(frames[0], np.roll(picture(), 1, 1))  # no dropout
    assert system.training and system.drop.training and not system.frozen.training
    stream = generation.stream(system, picture(), 5)
    next(stream)
    assert not torch.is_inference_mode_enabled()  # the caller's own code runs as before
    stream.close()
    assert system.drop.training


def test_rollout_uses_the_systems_own_pieces():
    class Pieces(Toy):
        def rollout(self, context, num_frames, actions=None, generator=None):
            pieces = torch.cat(list(super().rollout(context, num_frames, actions, generator)), 1)
            yield from pieces.split(3, 1)

    wanted = generation.rollout(Toy(ToyConfig()).eval(), picture(), 7)
    assert torch.equal(generation.rollout(Pieces(ToyConfig()).eval(), picture(), 7), wanted)


def test_actions_reach_the_system():
    first = picture()
    for space, actions in ((4, [3, 0, 2]), (([0.0], [5.0]), [[3.0], [0.0], [2.0]])):
        frames = generation.rollout(Toy(ToyConfig(), space).eval(), first, 3, actions)
        assert np.array_equal(frames, [np.roll(first, i, 1) for i in (3, 3, 5)])


@pytest.mark.parametrize(
    "space, actions, message",
    [
        (None, [1, 1], "takes no actions"),
        (3, None, "one action for each predicted frame: 2; none"),
        (3, [1], "2; 1 were given"),
        (3, [0, 3], "action 1 is 3; each must be an integer from 0 to 2"),
        (3, [0, 0.5], "action 1 is 0.5"),
        (3, ["up", 0], "action 0 is 'up'"),
        (([0, 0], [1, 1]), [[0, 0], [0, 2]], r"action 1 is \[0, 2\]; each must be 2 numbers"),
        (([0, 0], [1, 1]), [[0, 0, 0], [0, 0]], "action 0"),
        (([0, 0], [1, 1]), [[0, float("nan")], [0, 0]], "action 0"),
    ],
)
def test_actions_that_do_not_fit_are_refused(space, actions, message):
    with pytest.raises(UserError, match=message):
        generation.rollout(Toy(ToyConfig(), space), picture(), 2, actions)
