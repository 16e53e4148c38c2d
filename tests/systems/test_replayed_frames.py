"""Generated and played frames that are replayed as CUDA graphs: a stand-in on the CPU records their tensor
operations (tests/replaying.py).
"""

import pytest
import replaying
import torch
from rolling import Toy, ToyConfig
from steered import steered_run, write_recording
from test_contract import ROLLING, data, tiny
from toys import TOYS

from mtld_core import open_run
from mtld_core.generate import rollout
from mtld_core.generate.rollouts import one_behind, stepping
from mtld_core.machine import graphs, memory
from mtld_core.play import Play
from mtld_core.train.settings import build

STEPS = 14
WAYS = [(name, {}) for name in ROLLING if name not in TOYS]
WAYS += [("dynamics", {"objective": "masked", "temperature": 1.0}), ("dynamics", {"context_frames": 3})]
WAYS += [("tinydreams", {"latents": 4, "temperature": 1.0})]


@pytest.fixture
def on_a_gpu(monkeypatch):
    """A context in which the CPU counts as a GPU; gives the list of what was recorded."""
    recorded = []

    def record(work, device, generators):
        recorded.append(work)
        return replaying.record(work, device, generators)

    def on_its_way(tensor):
        copy = tensor.clone()  # now, for the next frame takes its place
        return lambda: copy

    def use(patch):
        patch.setattr(graphs, "can_record", lambda device: True)
        patch.setattr(graphs, "record", record)
        patch.setattr(memory, "on_its_way", on_its_way)
        return recorded

    return use


@pytest.mark.parametrize(("name", "way"), WAYS, ids=str)
def test_replayed_frames_are_the_frames(name, way, monkeypatch, on_a_gpu, capsys):
    """To the bit, from two starts, one after the other."""
    cls, config, _ = tiny(name, way)
    dataset = data()
    torch.manual_seed(0)
    system = build(cls, config, dataset).eval()
    k = system.needs().context
    actions = [torch.tensor([t % 2]) for t in range(STEPS)] if system.action_space else [None] * STEPS
    generator = torch.Generator()

    @torch.inference_mode()
    def frames(step, first):
        generator.manual_seed(first)
        state, found = system.start(dataset.frames[first : first + k], generator), []
        for action in actions:
            state, frame = step(state, action)
            found.append(frame.clone())
        return found

    expected = [frames(stepping(system), first) for first in (0, 20)]
    with monkeypatch.context() as patch:
        recorded = on_a_gpu(patch)
        step = stepping(system)
        found = [frames(step, first) for first in (0, 20)]
        assert recorded
        assert "cannot be recorded" not in capsys.readouterr().out
    for these, those in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


@pytest.mark.parametrize("name", ["dynamics", "tinydreams", "mtld"])
def test_a_rollout_is_the_same(name, monkeypatch, on_a_gpu):
    cls, config, _ = tiny(name)
    dataset = data()
    system = build(cls, config, dataset).eval()
    actions = [t % 2 for t in range(STEPS)] if system.action_space else None
    given = system, dataset.frames[: system.needs().context], STEPS, actions
    expected = rollout(*given)
    with monkeypatch.context() as patch:
        recorded = on_a_gpu(patch)
        assert torch.equal(rollout(*given), expected)
        # whose own rollout draws several frames in one pass
        assert bool(recorded) == (name != "mtld")


def test_a_game_is_the_same(tmp_path, monkeypatch, on_a_gpu):
    recording = write_recording(tmp_path / "recording.h5", [1, 0, 2, 1, 1, 2, 0, 1] * 3)
    system = open_run(steered_run(monkeypatch, tmp_path, recording))
    moves = [1, 2, 2, 0, 1, 1, 2, 0]

    def played():
        play, found = Play(system), []
        for _ in range(2):
            found += [play.act(move) for move in moves]
            play.reset()
        return torch.stack(found)

    expected = played()
    with monkeypatch.context() as patch:
        on_a_gpu(patch)
        assert torch.equal(played(), expected)


def test_what_asks_for_a_value_goes_on_without_a_graph(monkeypatch, on_a_gpu, capsys):
    """The toy's step asks for its action's value."""
    system = Toy(ToyConfig(), action_space=2).eval()
    context = torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8)
    given = system, context, STEPS, [t % 2 for t in range(STEPS)]
    expected = rollout(*given)
    with monkeypatch.context() as patch:
        on_a_gpu(patch)
        assert torch.equal(rollout(*given), expected)
    assert "a step of toy cannot be recorded as a CUDA graph" in capsys.readouterr().out


def test_a_frame_is_fetched_while_the_next_one_is_made(monkeypatch):
    said = []

    def on_its_way(tensor):
        said.append(f"send {tensor}")
        return lambda: said.append(f"fetch {tensor}") or tensor

    def made():
        for i in range(3):
            said.append(f"make {i}")
            yield i

    monkeypatch.setattr(memory, "on_its_way", on_its_way)
    assert list(one_behind(made())) == [0, 1, 2]
    order = "make 0, send 0, make 1, send 1, fetch 0, make 2, send 2, fetch 1, fetch 2"
    assert ", ".join(said) == order
