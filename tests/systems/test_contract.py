"""What every system must keep, the registered ones and toys that stress the contract. A new system is found
by itself.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import drawn, moving_square
from toys import TOYS, ToyGAN, ToyPlayer, ToyStage

from mtld_core import systems
from mtld_core.config import ConfigError, UserError, field_names, from_dict, to_dict
from mtld_core.data import Arc, Dataset, DomainPair
from mtld_core.frames import to_float
from mtld_core.machine.threads import Threads
from mtld_core.runs.checkpoint import list_checkpoints, load_train_state, load_weights
from mtld_core.systems.base import Reconstructs, Samples, Translates
from mtld_core.systems.opening import open_run
from mtld_core.systems.rl_v2v import system as rl_v2v
from mtld_core.train import fit
from mtld_core.train.controls import Controls
from mtld_core.train.loop import Training
from mtld_core.train.settings import TrainConfig, build, plan
from mtld_core.train.stepper import Stepper

EVERY = [*systems.SYSTEMS, *TOYS]
# what leads through other parts of a system than its preset "tiny" does
OTHER_WAYS = {
    "mtld": [
        {"latent": "map", "shuffle_factor": 8, "skip": "warp"},
        {"perceptual": "vgg", "lpips_frames": 0.3, "lambda_temporal": 1.0},
        {"decoder": "transposed", "decoder_channels": (8, 8), "decode_frames": 0, "rebuild_frames": 1.0},
        {
            "latent": "components",
            "gru_gives": "change",
            "grow_until": 0.5,
            **dict.fromkeys(("lambda_l1", "lambda_reconstruction", "lambda_latent", "lambda_lpips"), 0),
            **dict.fromkeys(("lambda_adv", "lambda_fm"), 0),
        },
    ],
    "tinydreams": [
        {"action_mode": "cross", "gradient_checkpointing": True, "lambda_lpips": 0.1, "lambda_fft": 1.0},
        {
            "tokenizer": "patch",
            "decoder": "attention",
            "output": "direct",
            "rollout_gradient": False,
            "lambda_ssim": 1.0,
        },
    ],
    "tokenizer": [{"quantise": "fsq"}],
    "latent_actions": [{"encoder": "space_time"}],
    "dynamics": [{"actions": "latent"}, {"lambda_pixels": 1.0}, {"objective": "masked"}],
    "weight_rnn": [
        {"learning": "apart", "adversarial_on": "reconstructions", "target_layers": ("encoder.0",)},
        {"update": "low_rank", "target_layers": ("mu", "stem", "decoder.0")},
        {"update": "per_channel", "lambda_adv": 0.0, "watched": "features"},
    ],
    "rl_v2v": [{"lambda_steady": 1.0, "gan": "bce", "dense_head": True, "rl_every": 2}],
}
WAYS = [(name, {}) for name in EVERY] + [(name, way) for name, ways in OTHER_WAYS.items() for way in ways]
every_way = pytest.mark.parametrize(("name", "way"), WAYS, ids=str)
KINDS = {name: systems.system_class(name) for name in systems.SYSTEMS} | TOYS
ROLLING = [
    name for name, cls in KINDS.items() if issubclass(cls, Samples) or not issubclass(cls, Reconstructs)
]
SAMPLING = [name for name, cls in KINDS.items() if issubclass(cls, Samples)]
TRANSLATING = [name for name, cls in KINDS.items() if issubclass(cls, Translates)]


@pytest.fixture(autouse=True)
def toys_are_registered(monkeypatch):
    for name, cls in TOYS.items():
        monkeypatch.setitem(systems.SYSTEMS, name, f"toys:{cls.__name__}")


def data(actions=True):
    """Six arcs of 16 frames of 16x16, with two discrete actions."""
    frames = torch.cat([torch.from_numpy(moving_square(16, seed=i)) for i in range(6)])
    spans = [Arc(f"arc_{i}", 16 * i, 16 * i + 16, torch.arange(16).numpy()) for i in range(6)]
    chosen = torch.arange(len(frames)) % 2 if actions else None
    return Dataset("memory", "arcs", frames, spans, torch.zeros(0, dtype=torch.int64).numpy(), chosen)


def pair():
    x, y = data(), data()
    y.frames = 255 - y.frames.flip(0)
    return DomainPair(x, y, "memory")


@functools.cache
def domains(name):
    cls, config, _ = tiny(name)
    return build(cls, config, data()).needs().domains


def data_for(name):
    """What a system needs: one domain with actions, or two domains."""
    return pair() if domains(name) == 2 else data()


@functools.cache
def stages(objective="mse"):
    """Tiny runs of the stages that others are built on, by the setting that names them."""
    folder = Path(tempfile.mkdtemp())
    for name in ("tokenizer", "latent_actions"):
        run(
            name,
            folder / name,
            overrides={"quantise": "fsq"} if (name, objective) == ("tokenizer", "masked") else {},
        )
    return {f"{name}_run": str(folder / name) for name in ("tokenizer", "latent_actions")}


def tiny(name, overrides=None, **settings):
    """`plan` of the preset "tiny", on top of trained stages where it needs any; one thread, for results to be
    the same.
    """
    overrides = overrides or {}
    below = stages(overrides.get("objective", "mse")) if name == "dynamics" else {}
    return plan(name, "tiny", below | overrides, threads=1, **settings)


def run(name, run_dir, dataset=None, **settings):
    """(report, system) of a tiny run."""
    cls, config, training = tiny(name, run_dir=str(run_dir), **settings)
    dataset = dataset or data_for(name)
    system = build(cls, config, dataset, training.seed)
    return fit(system, dataset, training), system


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """`whole_run(name)` -> (folder, report, system) of a tiny run from its beginning to its end, for several
    tests to look at.
    """
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def whole_run(name):
        with drawn():
            return folder / name, *run(name, folder / name)

    return whole_run


def tensors(state, prefix=""):
    """Every tensor and number in nested dicts and lists, by its path."""
    if isinstance(state, dict):
        return {k: v for name, value in state.items() for k, v in tensors(value, f"{prefix}/{name}").items()}
    if isinstance(state, (list, tuple)):
        return {k: v for i, value in enumerate(state) for k, v in tensors(value, f"{prefix}/{i}").items()}
    return {prefix: state}


def everything(run_dir):
    """All that the newest checkpoint of a run holds, but the clock's readings."""
    folder = list_checkpoints(run_dir)[0]
    state = {name: value for name, value in load_train_state(folder).items() if not name.endswith("seconds")}
    replay = state["extra"].get("replay")
    if isinstance(replay, dict):  # how it is cut into files depends on when checkpoints were written
        names = [f"{begin:012d}.npy" for begin, _, _ in replay.pop("segments")]
        replay["rows"] = np.concatenate([np.load(run_dir / "replay" / name) for name in names]).tobytes()
    return tensors({"state": state, "model": load_weights(folder, ema=False), "ema": load_weights(folder)})


def differing(a, b):
    assert a.keys() == b.keys()
    return [
        name
        for name in a
        if not (torch.equal(a[name], b[name]) if torch.is_tensor(a[name]) else a[name] == b[name])
    ]


@pytest.mark.parametrize("name", EVERY)
def test_config_round_trip_and_names_apart_from_the_training_fields(name):
    cls = systems.system_class(name)
    assert not set(field_names(cls.Config)) & set(field_names(TrainConfig))
    for preset in cls.PRESETS:
        _, config, training = plan(name, preset, steps=1)
        assert from_dict(cls.Config, json.loads(json.dumps(to_dict(config)))) == config
        assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(training)))) == training


@pytest.mark.parametrize("name", EVERY)
def test_trains_reports_and_opens_again(name, whole_run):
    folder, report, system = whole_run(name)
    assert report == json.loads((folder / "report.json").read_text())
    assert (report["status"], report["step"], report["system"]) == ("finished", 20, name)
    metrics, needs = report["metrics"], system.needs()
    assert metrics["psnr"] > 5 and len(metrics["psnr_by_horizon"]) == needs.window - needs.context * (
        not isinstance(system, Reconstructs)
    )
    steered = system.action_space is not None and not isinstance(system, Reconstructs)
    assert ("action_shuffle_gap_db" in metrics) == ("controllability_db_by_horizon" in metrics) == steered
    assert ("flicker_x_to_y" in metrics) == isinstance(system, Translates)
    directions = (
        ["_x_to_y", "_y_to_x"] if isinstance(system, Translates) else [""] * isinstance(system, Samples)
    )
    likeness = {key: value for key, value in metrics.items() if key.startswith("frechet")}
    assert list(likeness) == [f"frechet_efficientnet_lite0{direction}" for direction in directions]
    assert all(value > 0 for value in likeness.values())
    assert (
        (metrics["skill_db"] is None)
        == isinstance(system, Reconstructs)
        == ("baseline_copy_psnr" not in metrics)
    )
    lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert (
        lines[-2:] == [10, 20] and len(lines) <= 3
    )  # every 10 steps; a slow machine's first line comes early
    opened = open_run(folder, device="cpu")
    assert not opened.training and opened.run.step == 20
    weights = load_weights(list_checkpoints(folder)[0])
    assert not differing(weights, dict(opened.state_dict()))


@pytest.mark.parametrize("name", ROLLING)
def test_start_and_step_give_the_rollout(name):
    cls, config, _ = tiny(name)
    dataset = data()
    system = build(cls, config, dataset).eval()
    context = dataset.frames[: system.needs().context]
    actions = [torch.tensor([t % 2]) for t in range(20)] if system.action_space else None
    with torch.inference_mode():
        state, stepped = system.start(context), []
        for t in range(20):
            state, frame = system.step(state, actions and actions[t])
            assert frame.shape == (1, 3, 16, 16)
            stepped.append(frame)
        rolled = torch.cat(list(system.rollout(context, 20, actions)), 1)
    assert rolled.shape == (1, 20, 3, 16, 16)
    torch.testing.assert_close(torch.stack(stepped, 1), rolled, rtol=1e-4, atol=1e-4)


def images(system, seed, count=4):
    """float `[1, count, 3, H, W]`: what a system draws from noise."""
    with torch.inference_mode():
        return torch.cat(list(system.rollout(None, count, generator=torch.Generator().manual_seed(seed))), 1)


@pytest.mark.parametrize("name", SAMPLING)
def test_a_draw_from_noise_follows_its_generator(name):
    cls, config, _ = tiny(name)
    system = build(cls, config, data()).eval()
    drawn = images(system, 3)
    with torch.inference_mode():
        state, stepped = system.start(None, torch.Generator().manual_seed(3)), []
        for _ in range(4):
            state, frame = system.step(state)
            stepped.append(frame)
    assert drawn.shape == (1, 4, 3, 16, 16) and drawn.isfinite().all()
    torch.testing.assert_close(torch.stack(stepped, 1), drawn, rtol=1e-4, atol=1e-4)
    assert images(system, 3).equal(drawn) and not images(system, 4).equal(drawn)


@pytest.mark.parametrize("name", [name for name in ROLLING if name not in SAMPLING])
def test_who_cannot_draw_from_noise_says_what_it_needs(name):
    cls, config, _ = tiny(name)
    with pytest.raises(ConfigError, match=r"cannot start from noise: give it \d context frames"):
        build(cls, config, data()).start(None)


@pytest.mark.parametrize("direction", ["x_to_y", "y_to_x"])
@pytest.mark.parametrize("name", TRANSLATING)
def test_a_translation_in_pieces_is_that_of_the_whole_clip(name, direction):
    cls, config, _ = tiny(name)
    system = build(cls, config, data()).eval()
    clip = to_float(data().frames[None, :11])
    with torch.inference_mode():
        whole, _ = system.translate(clip, direction)
        state, pieces = None, []
        for piece in clip.split([4, 1, 6], 1):
            made, state = system.translate(piece, direction, state)
            pieces.append(made)
        twice, _ = system.translate(clip.repeat(2, 1, 1, 1, 1), direction)
    assert whole.shape == clip.shape and whole.isfinite().all()
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(twice, whole.repeat(2, 1, 1, 1, 1), rtol=1e-4, atol=1e-4)


# ---- precision and parts


@functools.cache
def trunk():
    """Random weights of VGG16's convolutions, as torchvision names them."""
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    return {f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()}


class Watched(Stepper):
    """A stepper that keeps of each call which parameters got a gradient, and the loss."""

    def __init__(self, system, *settings):
        super().__init__(system.optimizers(), torch.device("cpu"), *settings, system=system)
        names = {parameter: name for name, parameter in system.named_parameters()}
        self.names = {phase: [names[p] for p in parameters] for phase, parameters in self.parameters.items()}
        self.graded, self.losses, self.gradients = [], [], []

    def __call__(self, phase, loss_fn, batch):
        result = super().__call__(phase, loss_fn, batch)
        pairs = zip(self.names[phase], self.parameters[phase], strict=True)
        self.graded.append((phase, [name for name, parameter in pairs if parameter.grad is not None]))
        self.losses.append(result.total)
        there = [p.grad.flatten() for p in self.parameters[phase] if p.grad is not None]
        self.gradients.append((phase, torch.cat(there)))
        return result


def stepped(name, way, monkeypatch, folder, dtype=torch.float32, parts=1, kind=torch.float32, steps=2):
    """(system, its `Watched`) after some steps on one batch of four, numbers in `kind`."""
    for module in ("mtld", "tinydreams"):
        monkeypatch.setattr(f"mtld_core.systems.{module}.system.load_trunk", lambda given: trunk())
    cls, config, _ = tiny(name, way)
    dataset = data()
    system = build(cls, config, dataset).to(kind).train()
    system.setup_training(Path(tempfile.mkdtemp(dir=folder)))
    for network in getattr(system, "frozen", {}).values():
        network.to(kind)
    rows = torch.arange(4)[:, None] * 16 + torch.arange(system.needs().window)
    batch = {
        "frames": dataset.frames[rows].to(kind).movedim(-1, -3) / 127.5 - 1,
        "key": torch.arange(4) + 100,
    }
    batch["actions"] = dataset.actions[rows[:, :-1]]
    batch["frames_y"] = batch["frames"].flip(0)
    stepper = Watched(system, dtype, parts)
    for step in range(steps):
        torch.manual_seed(step)
        system.training_step([batch] * system.needs().batches, stepper)
    return system, stepper


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", EVERY)
def test_trains_in_mixed_precision(name, precision, tmp_path):
    few = {"precision": precision, "log_every_steps": 2, "eval_windows": 4, "preview_every_steps": 0}
    report, system = run(name, tmp_path / "run", overrides=few, steps=6)
    assert (report["status"], report["step"]) == ("finished", 6)
    assert report["precision"] == {"bf16": "bfloat16", "fp16": "float16"}[precision]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = sum(value for line in lines for key, value in line.items() if key.startswith("skipped"))
    assert skipped <= 3 * (precision == "fp16")  # the scale has to find its place
    assert all(value.isfinite().all() for value in system.state_dict().values())


@every_way
def test_half_precision_gives_a_gradient_to_the_same_parameters(name, way, monkeypatch, tmp_path):
    """Eight steps, in which rl_v2v draws every moment: a weight's path depends on the moment, too."""
    graded = [
        stepped(name, way, monkeypatch, tmp_path, dtype, steps=8 if name == "rl_v2v" else 2)[1].graded
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    assert graded[0] and all(names for _, names in graded[0])
    assert graded[1] == graded[0] and graded[2] == graded[0]


def in_turn(values):
    """A function that gives the candidates' `[2, B]` values with one far ahead: the first, the second, ..."""

    def ahead(*given):
        found = values(*given)
        first = torch.arange(found.shape[1]) % 2
        return found + 100 * torch.stack([first, 1 - first])

    return ahead


@every_way
def test_fp16_gives_nearly_the_same_gradient(name, way, monkeypatch, tmp_path):
    """Within 2 % of fp32 in the relative norm, the first step's and phase by phase.

    At a scale of losses that no system's first step exceeds: finding it takes weight_rnn a step. No phase
    changes weights, for Adam's first step has the same size for the smallest difference as for the largest;
    and rl_v2v's candidates win in turn, for which one has more value is nearly a tie at first.
    """
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimizer: None)
    monkeypatch.setattr("mtld_core.systems.rl_v2v.system._values", in_turn(rl_v2v._values))
    monkeypatch.setattr("mtld_core.train.stepper.INITIAL_SCALE", 2.0**4)
    found = []
    for kind in (torch.float32, torch.float16):
        folder = tmp_path / str(kind)
        folder.mkdir()
        found.append(stepped(name, way, monkeypatch, folder, kind, steps=1)[1].gradients)
    assert len(found[0]) == len(found[1]) > 0
    for (phase, wanted), (_, near) in zip(*found, strict=True):
        assert (near - wanted).norm() <= 0.02 * wanted.norm(), phase


@pytest.mark.versionless  # of the lowest version six steps tell, above
@pytest.mark.parametrize("name", EVERY)
def test_sixty_steps_in_fp16_lose_one_at_most(name, tmp_path):
    few = {"precision": "fp16", "log_every_steps": 10, "eval_windows": 2, "preview_every_steps": 0}
    run(name, tmp_path / "run", overrides=few, steps=60, batch_size=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = sum(value for line in lines for key, value in line.items() if key.startswith("skipped"))
    assert skipped <= 1


def test_those_steps_of_rl_v2v_draw_every_moment(monkeypatch, tmp_path):
    from mtld_core.systems.rl_v2v.system import RLV2V

    moments, honest = set(), RLV2V.generator_loss

    def watched(self, batch, t):
        moments.add(t)
        return honest(self, batch, t)

    monkeypatch.setattr(RLV2V, "generator_loss", watched)
    config = stepped("rl_v2v", {}, monkeypatch, tmp_path, steps=8)[0].config
    assert moments == set(range(config.context_frames, config.sequence_length))


@pytest.mark.parametrize("name", EVERY)
def test_wrong_context_is_refused(name):
    cls, config, _ = tiny(name)
    system = build(cls, config, data())
    with pytest.raises(ConfigError, match=r"24x16.*16x16"):
        system.start(torch.zeros(24, 16, 3, dtype=torch.uint8))


@pytest.mark.parametrize("name", EVERY)
def test_two_runs_of_a_seed_are_equal_and_another_seed_is_not(name, tmp_path):
    """A few steps; twenty, in two processes, are compared where a run is killed."""
    few = {"eval_windows": 2, "preview_every_steps": 0}
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(name, tmp_path / folder, seed=seed, overrides=few, steps=4)
    assert not differing(everything(tmp_path / "a"), everything(tmp_path / "b"))
    assert differing(everything(tmp_path / "a"), everything(tmp_path / "c"))


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from mtld_core import systems
from toys import TOYS
systems.SYSTEMS |= {{name: f"toys:{{cls.__name__}}" for name, cls in TOYS.items()}}
import test_contract
import torch._dynamo  # or each run would import it
from mtld_core.train.loop import Training

train_step = Training._train_step
def dying(self):
    if self.step == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(self)

for line in sys.stdin:
    name, run_dir = line.strip().split(maxsplit=1)
    if not (child := os.fork()):
        os.dup2(2, 1)  # what a run says is no answer
        test_contract.tiny(name)  # the stages below it live
        Training._train_step = dying
        sys.exit(test_contract.run(name, run_dir, overrides={{"save_every_steps": 10}})[0]["status"])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killed_run():
    """`killed_run(name, folder)` -> exit code of a process in which a tiny run is killed at its 14th step.

    All are forks of one, so that torch is imported once; the one has no more to do with this process than
    any other has.
    """
    code = KILLED.format(paths=[str(folder) for folder in Path(__file__).parents[:3]])
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=env, **pipes) as process:

        def killed_run(name, folder):
            print(name, folder, file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield killed_run


# with any version one of the real systems tells as much as a toy
TOYS_ONCE = [pytest.param(name, marks=pytest.mark.versionless) for name in TOYS]


@pytest.mark.parametrize("name", [*systems.SYSTEMS, *TOYS_ONCE])
def test_killed_and_resumed_equals_uninterrupted(name, tmp_path, whole_run, killed_run):
    assert killed_run(name, tmp_path / "killed") == -signal.SIGKILL
    assert [path.name for path in list_checkpoints(tmp_path / "killed")] == ["step_00000010"]
    report, _ = run(name, tmp_path / "killed")
    assert report["step"] == 20
    assert not differing(everything(tmp_path / "killed"), everything(whole_run(name)[0]))
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert {10, 20} <= set(steps) and steps == sorted(set(steps))  # a slow machine's first line comes early


@every_way
def test_accumulating_equals_the_whole_batch(name, way, monkeypatch, tmp_path):
    """In fp64 a step taken in parts (of one, one and two samples) moves every weight as the whole batch does.

    With one exception, which docs/architecture.md names: latent actions are whitened by the statistics of the
    part.
    """
    whiten = "mtld_core.systems.world_model.latent_actions.Whitening"
    if name == "latent_actions":
        monkeypatch.setattr(f"{whiten}.train", lambda self, mode=True: torch.nn.Module.train(self, False))
    (whole, one), (split, three) = (
        stepped(
            name,
            way,
            monkeypatch,
            tmp_path,
            parts=parts,
            kind=torch.float64,
            steps=8 if name == "rl_v2v" else 2,
        )
        for parts in (1, 3)
    )
    torch.testing.assert_close(three.losses, one.losses, rtol=1e-6, atol=1e-9)
    there = split.state_dict()
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(there[key], value, rtol=1e-6, atol=1e-9)


def test_extra_state_comes_back_and_the_critic_gets_fresh_batches(tmp_path):
    _, system = run("toy_gan", tmp_path / "run", overrides={"save_every_steps": 10})
    assert system.seen == 20 * 3 * 4
    cls, config, training = plan("toy_gan", "tiny", run_dir=str(tmp_path / "run"), steps=21)
    again = build(cls, config, data(), 0)
    fit(again, data(), training)
    assert again.seen == 21 * 3 * 4 and again.replay[:-1] == system.replay[-4:]


def test_second_stage_holds_the_frozen_first(tmp_path):
    _, first = run("toy_stage", tmp_path / "first")
    dataset = data()
    second = ToyPlayer(ToyPlayer.fit_config(from_dict(ToyPlayer.Config, {}), dataset), first)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    report = fit(second, dataset, TrainConfig(run_dir=str(tmp_path / "second"), steps=20, batch_size=4))
    assert report["metrics"]["judged_windows"] > 0
    (tmp_path / "first").rename(tmp_path / "gone")
    opened = open_run(tmp_path / "second", device="cpu")
    assert isinstance(opened.stage, ToyStage) and isinstance(first, ToyStage)
    assert not differing(before, dict(opened.stage.state_dict()))


def test_a_checkpoint_of_another_system_is_refused(tmp_path):
    run("toy_gan", tmp_path / "run")
    with pytest.raises(UserError, match="'toy_gan', not of 'toy_stage'"):
        run("toy_stage", tmp_path / "run")
    assert isinstance(open_run(tmp_path / "run", device="cpu"), ToyGAN)


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("toy_translator", data(), r"needs 2 domain\(s\).*holds 1"),
        ("toy_stage", pair(), r"needs 1 domain\(s\).*holds 2"),
        ("toy_player", data(actions=False), "needs actions.*has none"),
    ],
)
def test_data_that_a_system_cannot_use_is_refused(name, dataset, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(name, tmp_path / "run", dataset)


def test_other_data_or_another_seed_is_no_resume(tmp_path):
    run("toy_stage", tmp_path / "run", seed=3)
    with pytest.raises(UserError, match=r"training seed=3, now it is 4"):
        run("toy_stage", tmp_path / "run", seed=4)
    shorter = data()
    shorter.arcs.pop()
    with pytest.raises(UserError, match=r"dataset arcs=6, now it is 5"):
        run("toy_stage", tmp_path / "run", shorter, seed=3)


def test_the_moving_average_carries_no_graph(tmp_path):
    """A graph through every step's average would grow for as long as the run lasts."""
    _, _, training = plan("toy_stage", "tiny", run_dir=str(tmp_path))
    system = build(ToyStage, ToyStage.Config(), data(), 0)
    going = Training(system, data(), training, tmp_path, Controls(), Threads(1), 0.0)
    going.run()
    assert not any(p.requires_grad for p in going.ema.parameters())
