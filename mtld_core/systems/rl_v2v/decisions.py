"""The decisions of RL-V2V-GAN as a Markov process: pure functions, so that each can be checked by hand.

State: the last p frames of a clip. Action: the frame that comes next, one of two candidates. Next state: the
oldest frame goes, the action comes. n transitions; the domain of each one says whose networks value it.
"""

import torch


def next_state(states, actions):
    """Drop each state's oldest frame: `[n, p, 3, H, W]`, actions `[n, 3, H, W]` -> `[n, p, 3, H, W]`."""
    return torch.cat([states[:, 1:], actions[:, None]], 1)


def reward(adversarial, recurrent, recycle, lambda_rr, lambda_rc):
    """Reward `[n]` of a step inside the clip, of losses `[n]`: -(L_g + lambda_rr L_rr + lambda_rc L_rc)."""
    return -(adversarial + lambda_rr * recurrent + lambda_rc * recycle)


def last_reward(adversarial, lambda_v):
    """Reward `[n]` of the clip's last step, after which nothing comes: -lambda_v L_v."""
    return -lambda_v * adversarial


def choose(values, explore, coin, sigma2):
    """Choose a candidate, 0 or 1, for each transition: int64 `[n]`.

    With probability sigma2 a fair coin decides, otherwise the larger Q. values: Q of both, `[n, 2]`. explore,
    coin: uniform in [0, 1), `[n]`.
    """
    return torch.where(explore < sigma2, (coin < 0.5).long(), values.argmax(1))


def q_target(rewards, done, next_values, gamma):
    """What Q(s, a) should be, `[n]`: r + gamma Q'(s', mu'(s')), and r alone where the clip has ended.

    next_values: Q'(s', mu'(s')), `[n]`. done: bool `[n]`.
    """
    return rewards + gamma * torch.where(done, 0.0, next_values)


@torch.no_grad()
def soft_update(slow, fast, tau):
    """Move the parameters of `slow` towards those of `fast`: slow + tau (fast - slow)."""
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), tau)
