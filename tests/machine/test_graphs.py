"""Work that is recorded and replayed: when, on what, and what happens where it cannot be."""

import contextlib
import threading
import types

import pytest
import replaying
import torch

from mtld_core.config import UserError
from mtld_core.machine import graphs

CPU = torch.device("cpu")


@pytest.fixture
def counted(monkeypatch):
    """A `Recorded` that adds one to what it is given, and what happened: "ran", "recorded", lines."""
    monkeypatch.setattr(graphs, "record", replaying.record)
    happened = []

    def work(inputs):
        happened.append("recording" if graphs.is_recording() else "ran")
        return {"sum": inputs["x"] + 1}

    return graphs.Recorded(work, CPU, "work", happened.append), happened


def test_work_runs_three_times_and_is_then_replayed(counted):
    recorded, happened = counted
    for i in range(8):
        assert recorded({"x": torch.full((2,), float(i))})["sum"].tolist() == [i + 1, i + 1]
    assert happened == ["ran", "ran", "ran", "recording"]
    assert not graphs.is_recording()


def test_another_shape_begins_anew(counted):
    recorded, happened = counted
    for size in (2, 2, 2, 2, 2, 3, 3, 3, 3, 3):
        assert recorded({"x": torch.ones(size)})["sum"].tolist() == [2.0] * size
    assert happened == 2 * ["ran", "ran", "ran", "recording"]


def test_what_is_no_tensor_has_to_stay_the_same(monkeypatch):
    monkeypatch.setattr(graphs, "record", replaying.record)
    recorded = graphs.Recorded(lambda inputs: inputs[0] * inputs[1], CPU, "work")
    for factor in (2, 2, 2, 2, 2, 3, 3, 3, 3, 3):
        assert recorded((torch.ones(1), factor)).item() == factor


def failing(times, error):
    left = [True] * times

    def record(work, stream, generators):
        if left:
            left.pop()
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            except torch.OutOfMemoryError:
                if error is not None:
                    raise error  # noqa: B904 (as the end of a capture does)
                raise
        return replaying.record(work, stream, generators)

    return record


@pytest.mark.parametrize("error", [None, RuntimeError("operation failed during capture")], ids=str)
def test_where_memory_is_full_it_is_tried_again(error, counted, monkeypatch):
    recorded, happened = counted
    monkeypatch.setattr(graphs, "record", failing(2, error))
    for i in range(14):
        assert recorded({"x": torch.full((1,), float(i))})["sum"].item() == i + 1
    assert happened == 9 * ["ran"] + ["recording"]


def test_a_gpu_that_stays_full_goes_on_without(counted, monkeypatch):
    recorded, happened = counted
    monkeypatch.setattr(graphs, "record", failing(1000, None))
    for i in range(4 * graphs.MOST_TRIES):
        assert recorded({"x": torch.full((1,), float(i))})["sum"].item() == i + 1
    [line] = [line for line in happened if "recorded" in line]
    assert line == "work cannot be recorded as a CUDA graph (CUDA out of memory): going on without"


def test_another_thread_warms_up_for_itself(counted):
    recorded, happened = counted
    for _ in range(2):
        recorded({"x": torch.zeros(1)})
    thread = threading.Thread(target=lambda: [recorded({"x": torch.zeros(1)}) for _ in range(5)])
    thread.start()
    thread.join()
    assert happened == 5 * ["ran"] + ["recording"]
    assert recorded({"x": torch.ones(1)})["sum"].item() == 2  # what is recorded is replayed by any


def test_what_is_forgotten_is_recorded_anew(counted):
    recorded, happened = counted
    for i in range(12):
        if i == 6:
            recorded.forget()
            assert recorded.outputs is None
        assert recorded({"x": torch.full((1,), float(i))})["sum"].item() == i + 1
    assert happened == 2 * ["ran", "ran", "ran", "recording"]


def test_a_launch_that_fails_is_as_one_that_cannot_be_recorded(counted, monkeypatch):
    recorded, happened = counted

    def record(work, stream, generators):
        def replay():
            raise RuntimeError("no room for this graph")

        return replay, work()

    monkeypatch.setattr(graphs, "record", record)
    for i in range(6):
        assert recorded({"x": torch.full((1,), float(i))})["sum"].item() == i + 1
    assert "work cannot be recorded as a CUDA graph (no room for this graph): going on without" in happened


@pytest.mark.parametrize("in_order", [True, False])
def test_a_failed_capture_leaves_nothing_behind(in_order, monkeypatch):
    """By fakes: the stream from before is current again, the pool is closed, generators are released."""
    happened, current = [], ["before"]

    class Graph:
        def register_generator_state(self, generator):
            happened.append(f"register {generator}")

    @contextlib.contextmanager
    def capture(graph, pool=None, stream=None, capture_error_mode=""):
        current[0] = "side"  # where a capture that fails leaves it
        happened.append("capture")
        yield

    def end(device, pool):
        if in_order:
            raise RuntimeError("not currently recording to this pool")
        happened.append(f"end {pool}")

    for name, fake in {
        "CUDAGraph": Graph,
        "graph": capture,
        "graph_pool_handle": lambda: "pool",
        "device": lambda device: contextlib.nullcontext(),
        "current_stream": lambda: current[0],
        "set_stream": lambda stream: current.__setitem__(0, stream),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    release = lambda device, pool: happened.append(f"release {pool}")  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)
    with pytest.raises(ValueError, match="in the work"):
        stream = types.SimpleNamespace(device="cuda:0", device_index=0)
        graphs.record(lambda: (_ for _ in ()).throw(ValueError("in the work")), stream, ["chance"])
    closed = [] if in_order else ["end pool", "release pool"]
    assert happened == ["register chance", "capture", *closed, "register chance", "capture"]
    assert current == ["before"]


def test_what_goes_wrong_at_first_is_said_and_done_again(monkeypatch):
    said, fails = [], [True]

    def work(inputs):
        if fails:
            fails.pop()
            raise RuntimeError("no such stream")
        return inputs + 1

    recorded = graphs.Recorded(work, CPU, "work", said.append)
    assert [recorded(torch.zeros(())).item() for _ in range(6)] == [1.0] * 6
    assert said == ["work cannot be recorded as a CUDA graph (no such stream): going on without"]


def test_what_the_user_can_mend_is_no_reason_to_go_on():
    def work(inputs):
        raise UserError("make the model smaller")

    with pytest.raises(UserError, match="smaller"):
        graphs.Recorded(work, CPU, "work")(torch.zeros(()))
