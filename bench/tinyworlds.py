"""The world model beside the public tinyworlds code (AlmondGod/tinyworlds, your own copy), equally wide.

python bench/tinyworlds.py TINYWORLDS_FOLDER

64x64 frames, patch 8, width 128, 4 heads, MLPs of 512, 2 blocks, codes of 4 values in 5 channels, 8 latent
actions; both in turn. Training: batch 32 of T = 4, the whole step with clipping and AdamW. Generation: one
stream, 10 decoding steps a frame.
"""

import argparse
import statistics
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import gemm_rate, seconds

from mtld_core.config import to_dict
from mtld_core.runtime import command, warm_memory
from mtld_core.systems.world_model.dynamics import Dynamics
from mtld_core.systems.world_model.latent_actions import LatentActions
from mtld_core.systems.world_model.tokenizer import Tokenizer
from mtld_core.train.stepper import Stepper

SIZE, BATCH, FRAMES, STEPS = 64, 32, 4, 10
CODES = {"quantise": "fsq", "latent_dim": 5, "levels": 4}
WIDTHS = {"patch_size": 8, "embed_dim": 128, "heads": 4, "hidden_dim": 512, "blocks": 2}


class Theirs:
    """Their three models at our widths, and what their scripts do with them."""

    def __init__(self, folder):
        sys.path.insert(0, str(folder))
        from models.dynamics import DynamicsModel
        from models.latent_actions import LatentActionModel
        from models.video_tokenizer import VideoTokenizer

        widths = {
            "frame_size": (SIZE, SIZE),
            "patch_size": 8,
            "embed_dim": 128,
            "num_heads": 4,
            "hidden_dim": 512,
            "num_blocks": 2,
        }
        self.tokenizer = VideoTokenizer(**widths, latent_dim=5, num_bins=4)
        self.actions = LatentActionModel(n_actions=8, **widths)
        self.dynamics = DynamicsModel(**widths, latent_dim=5, num_bins=4, conditioning_dim=3)
        self.optimizers = {
            model: torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01, fused=True)
            for model in (self.tokenizer, self.dynamics)
        }

    def _update(self, model, loss):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizers[model].step()
        self.optimizers[model].zero_grad(set_to_none=True)

    def tokenizer_step(self, frames):
        self._update(self.tokenizer, self.tokenizer(frames)[0])

    def dynamics_step(self, frames):
        with torch.no_grad():
            codes = self.tokenizer.tokenize(frames)
            latents, actions = (
                self.tokenizer.quantizer.get_latents_from_indices(codes),
                self.actions.encode(frames),
            )
        self._update(self.dynamics, self.dynamics(latents, True, actions, codes)[2])

    @torch.no_grad()
    def frame(self, context):
        """The frame after `context` `[1, T, 3, H, W]`, the way of its inference script."""
        self.tokenizer.eval(), self.dynamics.eval()
        latents = self.tokenizer.quantizer.get_latents_from_indices(self.tokenizer.tokenize(context))
        actions = self.actions.quantizer.get_latents_from_indices(torch.randint(0, 8, (1, context.shape[1])))
        latents = self.dynamics.forward_inference(
            latents, 1, STEPS, self.tokenizer.quantizer.get_latents_from_indices, actions
        )
        self.tokenizer.train(), self.dynamics.train()
        return self.tokenizer.detokenize(latents)[:, -1:]


class Ours:
    """Our stages at those widths, untrained: what they cost does not depend on what they have learned."""

    def __init__(self, context, **dynamics):
        common = WIDTHS | {"height": SIZE, "width": SIZE, "context_frames": context}
        codes = CODES if dynamics["objective"] == "masked" else {"latent_dim": 16}
        tokenizer = Tokenizer.Config(**common, **codes, sequence_length=max(2, context))
        actions = LatentActions.Config(**common, sequence_length=context + 1)
        config = Dynamics.Config(
            **common,
            sequence_length=context + 1,
            latent_dim=codes["latent_dim"],
            decode_steps=STEPS,
            actions="latent",
            tokenizer=to_dict(tokenizer),
            latent_actions=to_dict(actions),
            **dynamics,
        )
        self.tokenizer, self.dynamics = Tokenizer(tokenizer), Dynamics(config)
        self.steppers = {
            model: Stepper(model.optimizers(), torch.device("cpu"), clip_norm=1.0)
            for model in (self.tokenizer, self.dynamics)
        }

    def step(self, model, frames):
        model.training_step([{"frames": frames, "key": torch.arange(len(frames))}], self.steppers[model])

    def stream(self, context):
        """A function that draws the next frame of one endless rollout."""
        self.dynamics.eval()
        with torch.inference_mode():
            state = [self.dynamics.start(context)]

        @torch.inference_mode()
        def next_frame():
            state[0], frame = self.dynamics.step(state[0], torch.randint(0, 8, (1,)))
            return frame

        return next_frame


def in_turn(cases, rounds):
    """Median seconds of each case, all of them in turn; in every turn a call to warm up, and three that
    count.

    cases: name -> (call, context to call it in): our training keeps freed memory warm
    (`runtime.warm_memory`), theirs does not.
    """
    times = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, (call, context) in cases.items():
            with context():
                used = [seconds(call) for _ in range(4)][1:]
            if turn:
                times[name] += used
    return {name: statistics.median(found) for name, found in times.items()}


def compare(folder):
    torch.manual_seed(0)
    rate = gemm_rate(torch.device("cpu"))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; matrix product {rate:.0f} GFLOP/s")
    theirs, frames = Theirs(folder), torch.rand(BATCH, FRAMES, 3, SIZE, SIZE) * 2 - 1
    ours = Ours(3, objective="masked")
    for name, a, b in (
        ("tokenizer", theirs.tokenizer_step, ours.tokenizer),
        ("dynamics", theirs.dynamics_step, ours.dynamics),
    ):
        cases = {
            "theirs": (lambda a=a: a(frames), nullcontext),
            "theirs, memory kept warm": (lambda a=a: a(frames), warm_memory),
            "ours": (lambda b=b: ours.step(b, frames), warm_memory),
        }
        found = in_turn(cases, 3)
        for other in list(cases)[:2]:
            print(
                f"training step, {name}: {other} {found[other]:.3f} s, ours {found['ours']:.3f} s: "
                f"{found[other] / found['ours']:.2f} times",
                flush=True,
            )
    for context in (4, 16):
        window = torch.rand(1, context, 3, SIZE, SIZE) * 2 - 1
        cases = {
            "theirs": (lambda w=window: theirs.frame(w), nullcontext),
            "masked": (Ours(context, objective="masked").stream(window), nullcontext),
            "mse": (Ours(context, objective="mse").stream(window), nullcontext),
        }
        rates = {name: 1 / found for name, found in in_turn(cases, 7).items()}
        print(
            f"frames/s, context {context}: theirs {rates['theirs']:.2f}, masked {rates['masked']:.1f} "
            f"({rates['masked'] / rates['theirs']:.1f} times), mse {rates['mse']:.0f}",
            flush=True,
        )
    next_frame = Ours(16, objective="mse").stream(torch.rand(1, 16, 3, SIZE, SIZE) * 2 - 1)
    times = [seconds(next_frame) for _ in range(1000)]
    early, late = statistics.median(times[10:110]), statistics.median(times[-100:])
    print(
        f"mse, context 16: {1000 * early:.2f} ms a frame around frame 60, {1000 * late:.2f} ms around frame "
        "950"
    )


@command
def main():
    parser = argparse.ArgumentParser(description="The world model beside the public tinyworlds code.")
    parser.add_argument("folder", type=Path, help="your own copy of AlmondGod/tinyworlds")
    compare(parser.parse_args().folder.resolve())


if __name__ == "__main__":
    sys.exit(main())
