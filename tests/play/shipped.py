"""What a shipped run of a game must show, on episodes that it never saw: a class that a game's tests inherit."""

import collections
from pathlib import Path

import pytest
import torch
from dreams import dream, rebounds

from data_prep.record_game import record
from mtld_core import metrics
from mtld_core.data import open_dataset
from mtld_core.frames import differs
from mtld_core.judge.rollouts import Judge
from mtld_core.play import Play
from mtld_core.systems.opening import open_run

EXAMPLES = Path(__file__).parents[2] / "examples"
BEGINNING = 40  # frames: Atari's games flicker at first


def recorded(folder, env, policy):
    """Five episodes or more under another seed than the one that the runs learned from."""
    path = folder / f"{policy}.h5"
    record(env, 1500, path, seed=4711, episode_steps=300, policy=policy, progress=False)
    return open_dataset(path, progress=False)


def balls(game, frames):
    """Share of frames with a ball."""
    return game.ball_place(frames).isfinite().all(-1).double().mean().item()


class Shipped:
    """It predicts better than copying, it obeys, and after a thousand steps it still is a game."""

    game = None  # the module that finds ball and paddles
    env = ""
    met = frozenset()  # names of `game.COURT.turns` where the recorded ball certainly turns
    ball_share = 0.66, 1.32  # of the recording's share of frames with a ball

    @pytest.fixture(scope="class")
    def folder(self):
        return EXAMPLES / self.game.__name__

    @pytest.fixture(scope="class")
    def shipped(self, folder):
        return open_run(folder, device="cpu")

    @pytest.fixture(scope="class")
    def played(self, tmp_path_factory):
        """Episodes by one who plays well."""
        return recorded(tmp_path_factory.mktemp("played"), self.env, "lookahead")

    @pytest.fixture(scope="class")
    def random(self, tmp_path_factory):
        """Episodes under sticky random actions."""
        return recorded(tmp_path_factory.mktemp("random"), self.env, "sticky")

    @pytest.fixture(scope="class")
    def dreams(self, shipped, random):
        """Eight dreams under sticky random actions: (frames `[8, 1000, 64, 64, 3]`, the last hundred steps as
        [(state, frames)]).
        """
        late = collections.deque(maxlen=100)
        frames = []
        for state, frame in dream(shipped, random, 1000):
            late.append((state, frame))
            frames.append(frame)
        return torch.stack(frames, 1), list(late)

    def test_it_is_small_and_names_no_place(self, folder):
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 2.5e6
        for name in ("config.json", "report.json", "README.md"):
            text = (folder / name).read_text()
            assert "/root" not in text and "/home" not in text

    def test_it_sees_further_than_copying(self, shipped, played):
        needs = shipped.needs()
        starts = torch.cat([played.arc_windows(arc, needs.context + 16)[::12] for arc in played.arcs])
        judge = Judge(played, starts, needs, 16, played.frames[::5], max_windows=48)
        figures = judge(shipped)
        assert figures["skill_db_by_horizon"][0] >= 2
        assert min(figures["skill_db_by_horizon"]) > 0
        assert figures["action_shuffle_gap_db"] > 0.1

    def test_after_a_thousand_steps_it_still_is_a_game(self, dreams, random):
        frames = dreams[0][:, 900:]
        settled = torch.cat([random.frames[arc.start + BEGINNING : arc.stop] for arc in random.arcs])
        median = settled.median(0).values
        static = torch.stack([differs(frame, median) for frame in settled]).float().mean(0)[..., None] <= 0.01
        error = metrics.mse(frames.flatten(0, 1) * static, median * static) / static.double().mean()
        assert metrics.psnr(error).mean() >= 40
        moved, real = (x.int().diff(dim=-4).abs().double().mean() for x in (frames, settled))
        assert 0.6 <= moved / real <= 1.5
        least, most = self.ball_share
        assert least <= balls(self.game, frames) / balls(self.game, settled) <= most

    def test_it_obeys_after_a_thousand_steps(self, dreams, shipped):
        share, tries = self.game.goes_where_told(shipped, dreams[1])
        assert tries == 200 and share >= 0.95

    def test_its_ball_turns_where_the_real_one_turns(self, shipped, played):
        found = [(name, dreamt) for name, really, dreamt in rebounds(shipped, played, self.game) if really]
        assert len(found) >= 30 and {name for name, _ in found} >= self.met
        assert sum(dreamt for _, dreamt in found) >= 0.8 * len(found), collections.Counter(found)

    def test_it_can_be_played_at_once(self, shipped):
        play = Play(shipped)
        assert "RIGHT" in play.labels
        for action in (2, 2, 3):
            play.act(action)
        assert len(play.frames) == 4 and not torch.equal(play.frames[0], play.frames[-1])
