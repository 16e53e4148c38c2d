"""Windows, splits and batches: invariants over random datasets, exact resume, and the speed of a batch."""

import dataclasses
import statistics
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtld_core.chance import seed_of
from mtld_core.config import UserError
from mtld_core.data import Arc, Batches, Dataset, DomainPair, split_windows, with_ends
from mtld_core.frames import rows_of, scale_in_place, to_float


def make(lengths, cuts=(), actions=None, height=4, width=4):
    """A dataset whose frame i holds the value i % 251 in every byte."""
    borders = np.cumsum([0, *lengths]).tolist()
    arcs = [
        Arc(f"arc_{i}", a, a + n, np.arange(n))
        for i, (a, n) in enumerate(zip(borders, lengths, strict=False))
    ]
    values = (torch.arange(borders[-1]) % 251).to(torch.uint8)
    frames = values[:, None, None, None].expand(-1, height, width, 3).contiguous()
    return Dataset("/data", "arcs", frames, arcs, np.array(sorted(cuts), np.int64), actions)


@st.composite
def datasets(draw):
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=9))
    return make(
        lengths, draw(st.sets(st.integers(1, sum(lengths) - 1), max_size=5)) if sum(lengths) > 1 else ()
    )


def rows(starts, length):
    return (starts[:, None] + torch.arange(length)).numpy()


@given(datasets(), st.integers(1, 12), st.booleans())
def test_windows_are_all_that_cross_no_border_and_no_cut(data, length, cross_cuts):
    arc_of = np.concatenate([np.full(len(arc), i) for i, arc in enumerate(data.arcs)])
    shot_of = arc_of * 1000 + np.searchsorted(data.cuts, np.arange(len(arc_of)), side="right")
    label = arc_of if cross_cuts else shot_of
    expected = [i for i in range(len(label) - length + 1) if len(set(label[i : i + length])) == 1]
    if expected:
        assert data.windows(length, cross_cuts).tolist() == expected
    else:
        with pytest.raises(UserError):
            data.windows(length, cross_cuts)


def test_a_window_too_long_names_the_longest_arc():
    with pytest.raises(
        UserError, match=r"windows of 16 frames do not fit, the longest arc \('arc_1'\) has 9"
    ):
        make([4, 9]).windows(16)
    with pytest.raises(UserError, match="crosses a hard cut"):
        make([20], [10]).windows(16)


@given(datasets(), st.integers(1, 8), st.sampled_from([0.05, 0.1, 0.3, 0.5]))
def test_training_and_held_out_frames_keep_apart(data, length, holdout):
    try:
        train, held = split_windows(data, length, holdout)
    except UserError:
        return
    assert len(train)
    assert len(held)
    assert set(train.tolist()) | set(held.tolist()) <= set(data.windows(length).tolist())
    for arc in data.arcs:
        inside = [starts[(starts >= arc.start) & (starts < arc.stop)] for starts in (train, held)]
        if len(inside[0]) and len(inside[1]):
            assert inside[1].min() - (inside[0].max() + length - 1) > length, (
                "at least `length` frames between them"
            )


def test_with_five_arcs_some_are_held_out_whole():
    data = make([10] * 20)
    train, held = split_windows(data, 4, holdout=0.1)
    assert sorted(set((held // 10).tolist())) == [5, 15]
    assert len(held) == 2 * 7
    assert not set((train // 10).tolist()) & {5, 15}


def images(lengths, **about):
    return dataclasses.replace(make(lengths), kind="images", about=about)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=9), st.sampled_from([0.05, 0.1, 0.3]), st.integers(1, 4)
)
def test_of_images_in_classes_evenly_spaced_ones_are_held_out_of_every_class(lengths, holdout, length):
    data = images(lengths)
    try:
        train, held = split_windows(data, length, holdout)
    except UserError:
        assert max(lengths) < 3 * length
        return
    learned, judged = set(rows(train, length).ravel().tolist()), set(rows(held, length).ravel().tolist())
    assert learned and judged and not learned & judged
    for arc in data.arcs:
        inside = [i for i in range(arc.start, arc.stop) if i in judged]
        if len(arc) >= 4 * length:
            assert len(inside) >= length and any(i in learned for i in range(arc.start, arc.stop))
        if length == 1 and len(arc) > 1:
            assert len(inside) == max(1, round(holdout * len(arc)))
            assert len(inside) == 1 or np.ptp(np.diff(inside)) <= 1, "evenly spaced"
            assert learned >= set(range(arc.start, arc.stop)) - judged, "all the rest is learned from"


def test_too_few_images_to_hold_one_out():
    with pytest.raises(UserError, match=r"the largest class has 1 images, and 2 are needed; add frames"):
        split_windows(images([1] * 9), 1)


def test_of_mixed_pictures_in_one_arc_the_tail_is_held_out():
    """So it was before classes were split evenly: what a run on MNIST began with stays."""
    train, held = split_windows(images([100], unordered=True), 1)
    assert held.tolist() == [*range(90, 100)] and train.tolist() == [*range(89)]
    assert len(split_windows(images([50, 50], unordered=True), 1)[1]) == 10


def test_a_cut_in_the_tail_moves_it_back():
    train, held = split_windows(make([100], cuts=[95]), 8, holdout=0.1)
    assert held.tolist() == [87]
    assert train.max() + 8 + 8 <= 87


def test_restitution_and_too_little_to_hold_out():
    train, held = split_windows(make([20]), 8, restitution=True)
    assert train.tolist() == held.tolist() == list(range(13))
    with pytest.raises(UserError, match=r"longest arc has 20 frames, and 24 in one shot .*restitution=true"):
        split_windows(make([20]), 8)


def test_the_ends_of_shots_come_a_fourth_as_often_as_their_middle():
    data = make([40, 20], cuts=[20])  # three shots of 20 frames
    starts = data.windows(12)
    frames = torch.bincount(rows_of(with_ends(starts, 12), 12).flatten())
    for shot in frames.view(3, 20):
        assert shot[0] == shot[-1] == 12 / 4 and shot.max() <= 12 + 2
    assert (
        with_ends(starts, 7).tolist() == starts.tolist()
    )  # a short window's ends are not far from its middle
    assert with_ends(torch.tensor([5, 6]), 8).tolist() == [5, 6]  # there is no middle


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
def test_every_window_comes_once_an_epoch(windows, batch_size, count, seed):
    data = make([windows + 2])
    batches = Batches(data, [data.windows(3)], 3, batch_size, seed, count)
    seen, keys = [], []
    for _ in range(3 * batches.steps_per_epoch):
        for batch in batches.next():
            seen += ((batch["frames"][:, 0, 0, 0, 0] + 1) * 127.5).round().int().tolist()
            keys += batch["key"].tolist()
    for epoch in range(3):
        assert sorted(seen[epoch * windows : (epoch + 1) * windows]) == list(range(windows))
    assert keys == [seed_of(seed, "train", i) for i in range(len(keys))]


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 12))
def test_a_restored_stream_goes_on_identically(windows, batch_size, before):
    data = make([windows + 1])
    first, second = (Batches(data, [data.windows(2)], 2, batch_size, seed=3, count=2) for _ in range(2))
    for _ in range(before):
        first.next()
    second.load_state(first.state())
    for _ in range(8):
        for a, b in zip(first.next(), second.next(), strict=True):
            assert torch.equal(a["frames"], b["frames"])
            assert torch.equal(a["key"], b["key"])


def test_what_is_drawn_can_be_gathered_in_slices():
    """The numbers of a batch are drawn on the host, whoever gathers the frames, and all of them or some."""
    data = make([50], actions=torch.arange(50) * 2)
    whole, drawn = (Batches(data, [data.windows(5)], 5, 6, seed=0) for _ in range(2))
    stream = drawn.streams[0]
    for _ in range(20):
        expected = {name: value.clone() for name, value in whole.next()[0].items()}
        chosen, keys = stream.draw()
        parts = [stream.gather(chosen[i : i + 3], keys[i : i + 3], slot=i) for i in (0, 3)]
        for name, value in expected.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), value)
    assert drawn.state() == whole.state()


def test_a_position_beyond_the_windows_is_refused():
    data = make([10])
    with pytest.raises(UserError, match="window 10 of an epoch and there are 8"):
        Batches(data, [data.windows(3)], 3, 2, seed=0).load_state({"epoch": 0, "index": 10})


def test_seeds_and_epochs_have_orders_of_their_own():
    data = make([200])

    def draw(seed, skip=0):
        batches = Batches(data, [data.windows(1)], 1, 200, seed)
        for _ in range(skip):
            batches.next()
        return batches.next()[0]["frames"].clone()

    orders = [draw(0), draw(1), draw(0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(orders) for b in orders[:i])
    assert torch.equal(draw(0), orders[0])


def test_frames_are_the_windows_in_floats_and_actions_lead_on():
    data = make([50], actions=torch.arange(50) * 2)
    for batch in Batches(data, [data.windows(5)], 5, 4, seed=0, count=2).next():
        first = ((batch["frames"][:, 0, 0, 0, 0] + 1) * 127.5).round().long()
        assert batch["frames"].shape == (4, 5, 3, 4, 4)
        torch.testing.assert_close(batch["frames"], to_float(data.frames[torch.from_numpy(rows(first, 5))]))
        assert torch.equal(batch["actions"], 2 * torch.from_numpy(rows(first, 4)))


def test_batches_of_one_call_do_not_share_memory():
    data = make([50])
    a, b = Batches(data, [data.windows(2)], 2, 4, seed=0, count=2).next()
    assert not torch.equal(a["frames"], b["frames"])


def test_domains_are_drawn_independently():
    pair = DomainPair(make([40]), make([90]), "/data")
    batches = Batches(pair, [domain.windows(4) for domain in pair.domains], 4, 8, seed=0)
    state = batches.state()
    first = {name: value.clone() for name, value in batches.next()[0].items()}
    assert first["frames"].shape == first["frames_y"].shape == (8, 4, 3, 4, 4)
    assert not torch.equal(first["frames"], first["frames_y"])
    batches.next()
    batches.load_state(state)
    assert torch.equal(batches.next()[0]["frames_y"], first["frames_y"])


def batch_speed(batch_size, length, size, repeats=7):
    """How fast a batch comes, as a share of the speed of the least that it can be: the same bytes converted into
    memory that is warm and scaled there, one call each.
    """
    store = torch.randint(0, 256, (512, size, size, 3), dtype=torch.uint8)
    data = Dataset("/data", "arcs", store, [Arc("a", 0, 512, np.arange(512))], np.array([], np.int64))
    batches = Batches(data, [data.windows(length)], length, batch_size, seed=0)
    plain = torch.randint(0, 256, (batch_size, length, size, size, 3), dtype=torch.uint8)
    warm = torch.zeros(plain.shape)
    batches.next()

    def seconds(work):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def floor():
        scale_in_place(warm.copy_(plain))

    times = [(seconds(floor), seconds(batches.next)) for _ in range(repeats)]
    reference, ours = (statistics.median(column) for column in zip(*times, strict=True))
    return reference / ours


@pytest.mark.clocked
@pytest.mark.parametrize("shape", [(16, 16, 64), (8, 16, 128)])
def test_a_batch_comes_at_half_the_speed_of_the_floor(shape):
    threads, ratios = torch.get_num_threads(), []
    torch.set_num_threads(1)  # with more, threads that wait for a busy core decide the figure
    while len(ratios) < 8 and max(ratios, default=0) < 0.5:
        ratios.append(batch_speed(*shape))
    torch.set_num_threads(threads)
    print(f"{shape}: {[round(ratio, 2) for ratio in ratios]} of the speed of the floor")
    assert max(ratios) >= 0.5


def test_longer_judged_windows_get_a_longer_tail_and_their_own_starts():
    train, held = split_windows(make([200]), 4, judged=65)
    assert len(held) and held.max() == 200 - 65 and train.max() + 4 <= held.min() - 4
    train, held = split_windows(make([30, 30, 30, 80, 30]), 4, judged=40)
    assert held.min() >= 90 and held.max() + 40 <= 170 and not ((train >= 90) & (train < 170)).any()
    assert len(split_windows(make([20]), 8, restitution=True, judged=12)[1]) == 9
