"""The measurements: what they count, what they keep, and that docs/performance.md says what was kept."""

import dataclasses
import json

import h5py
import measure
import numpy as np
import pytest
import tables
import torch
import weight_rnn
from conftest import write_arcs
from steps import Steps
from torch.utils.flop_counter import FlopCounterMode

from mtld_core.config import UserError
from mtld_core.data import open_dataset, split_windows

MACHINE = {"gflops": 1.0, "copied_gb_per_second": 1.0}
ROW = {"step of": "it", "ms": 1234.5, "kernels": 12000, "share": 0.1234}


def counted(call):
    with measure.Work() as work:
        call()
    return work


def test_a_step_takes_data_by_its_path_or_as_it_was_opened(tmp_path):
    arcs = write_arcs(tmp_path / "arcs", [8] * 3)
    for data in (arcs, str(arcs), open_dataset(arcs, progress=False)):
        logs = Steps("tokenizer", "tiny", {}, data)()
        assert all(value.isfinite() for value in logs.values())


def test_products_convolutions_and_attention_are_counted():
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    conv = torch.nn.Conv2d(4, 6, 3, padding=1)
    assert counted(lambda: conv(x)).flop == 2 * 2 * 64 * 4 * 6 * 9
    assert counted(lambda: conv(x).sum().backward()).flop == 3 * 2 * 2 * 64 * 4 * 6 * 9
    with torch.inference_mode():
        assert counted(lambda: conv(x)).flop == 2 * 2 * 64 * 4 * 6 * 9
        assert counted(lambda: torch.nn.functional.linear(x, x[0, 0])).flop == 2 * 64 * 8 * 8
    q = torch.randn(1, 2, 16, 8, requires_grad=True)
    once = 2 * 2 * 16 * 16 * 8  # one product of all queries and keys
    attend = torch.nn.functional.scaled_dot_product_attention
    assert counted(lambda: attend(q, q, q)).flop == 2 * once
    assert counted(lambda: attend(q, q, q).sum().backward()).flop == 7 * once


def test_views_are_no_kernels_and_memory_has_a_floor_of_its_own():
    a, b = torch.randn(2, 64, 64).unbind()
    viewed = counted(lambda: a.T.reshape(8, -1)[:2].detach())
    assert viewed.kernels == 1  # to reshape a transpose is to copy it
    copied = 3 * 64 * 64 * 4 / 1e9  # seconds, at 1 GB/s: two read, one written
    assert counted(lambda: a + b).floor(MACHINE) == pytest.approx(copied)
    assert counted(lambda: a @ b).floor(MACHINE) == pytest.approx(2 * 64**3 / 1e9)


def test_a_step_is_counted_as_torch_does_it_and_under_a_gradient_penalty_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = Steps("mtld", "tiny", {"height": 16, "width": 16}, "sample")
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    assert counted(step).flop == counter.get_total_flops() > 0
    step = Steps("weight_rnn", "tiny", {"height": 16, "width": 16}, "sample")
    assert counted(step).flop > 0


def test_calls_take_turns():
    order = []
    found = measure.in_turn({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert order == list("ab" * 3) and set(found) == {"a", "b"}


def test_a_table_rounds_what_is_measured():
    assert measure.table([ROW])[2] == "| it | 1,234 | 12,000 | 0.123 |"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where results go; measuring takes no time and counts."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(measure, "machine", lambda: measure.names() | MACHINE)
    monkeypatch.setattr("sys.argv", ["tables.py"])
    made = []
    monkeypatch.setattr(tables, "TABLES", {"steps": lambda about: made.append(about) or [ROW]})
    return made


def test_what_was_measured_is_printed_again_and_not_measured(results, capsys, monkeypatch):
    assert tables.main() == 0 and len(results) == 1
    first = capsys.readouterr().out
    assert "| it | 1,234 |" in first
    assert tables.main() == 0 and len(results) == 1 and capsys.readouterr().out == first
    monkeypatch.setattr("sys.argv", ["tables.py", "--again"])
    assert tables.main() == 0 and len(results) == 2


@pytest.mark.parametrize("change", [{"code": "other"}, {"machine": {"torch": "1.0"}}])
def test_figures_of_other_code_or_another_machine_are_measured_anew(results, change):
    tables.main()
    kept = json.loads(tables.RESULTS.read_text())
    for name, value in change.items():
        kept[name] = value if isinstance(value, str) else kept[name] | value
    tables.RESULTS.write_text(json.dumps(kept))
    tables.main()
    assert len(results) == 2


def test_the_page_shows_what_is_kept():
    page = tables.PAGE.read_text()
    assert tables.in_page(json.loads(tables.RESULTS.read_text()), page) == page
    with pytest.raises(UserError, match="no place for the table 'machine'"):
        tables.in_page(json.loads(tables.RESULTS.read_text()), "a page without it")


# ---- bench/weight_rnn.py: a class that was not seen


@pytest.fixture
def digits(tmp_path):
    """A file as make_mnist.py writes it: 90 mixed pictures of three classes, of which 2 is the brightest."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3, dtype=np.uint8), 30))
    noise = np.random.default_rng(1).integers(0, 60, (90, 16, 16, 3))
    with h5py.File(tmp_path / "digits.h5", "w") as file:
        file["frames"] = (noise + 80 * labels[:, None, None, None]).astype(np.uint8)
        file["digits"] = labels
        file.attrs["recording"] = json.dumps({"unordered": True})
    return open_dataset(tmp_path / "digits.h5")


def test_of_each_class_as_many_are_held_out_and_an_unseen_one_is_nowhere(digits):
    dataset = weight_rnn.by_class(digits)
    means = [dataset.frames[arc.start : arc.stop].float().mean() for arc in dataset.arcs]
    assert [arc.name for arc in dataset.arcs] == ["0", "1", "2"]
    assert [mean.item() for mean in means] == pytest.approx([29.5, 109.5, 189.5], abs=1)
    _, held = split_windows(dataset, 1)
    assert (held // 30).bincount().tolist() == [3, 3, 3]
    others, unseen = weight_rnn.without(dataset, "1")
    learned, held = split_windows(others, 1)
    assert unseen.tolist() == list(range(30, 60))
    assert sorted([*learned, *held]) == [*range(30), *range(60, 90)]
    with pytest.raises(UserError, match=r"--unseen: .* has no class '7'; known: 0, 1, 2"):
        weight_rnn.without(dataset, "7")
    with pytest.raises(UserError, match="needs another class, and more than 16 images of '1'"):
        weight_rnn.without(dataclasses.replace(dataset, arcs=dataset.arcs[1:2]), "1")


def test_few_images_of_a_class_are_learned_from(digits, tmp_path, monkeypatch, capsys):
    """On 16 noisy pictures, brighter than all that was seen, every kind gets better; what is judged is
    neither seen nor learned from.
    """
    out = tmp_path / "out"
    given = f"{digits.path} {out} --unseen 2 --preset tiny --minutes 0.005 --seeds 0 --tuned 2 30"
    settings = {"threads": 1, "lambda_adv": 0.0, "update": "per_channel", "lr": 0.04}
    monkeypatch.setattr("sys.argv", ["weight_rnn.py", *given.split(), "--overrides", json.dumps(settings)])
    monkeypatch.setattr(weight_rnn, "seconds_a_step", lambda cases, dataset, learned: (0.02, 0.01))
    seen = []
    tuned = weight_rnn.tuned
    monkeypatch.setattr(weight_rnn, "tuned", lambda *given: seen.append(given) or tuned(*given))
    judged, rebuilt = [], weight_rnn.rebuilt
    monkeypatch.setattr(weight_rnn, "rebuilt", lambda *given: judged.append(given[1]) or rebuilt(*given))
    assert weight_rnn.main() == 0
    figures = json.loads((out / "figures.json").read_text())
    assert figures["steps"] == {"on": [True, 15], "off_steps": [False, 15], "off_time": [False, 30]}
    plain = ["classes that were seen", "as it is", "tuned for 2", "tuned for 30"]
    (on,), (off,) = figures["on"], figures["off_time"]
    assert set(on) == {*plain, "after 4 rounds", "tuned for 2, predictor", "tuned for 30, predictor"}
    assert list(off) == plain and "tuned for 30, predictor" in capsys.readouterr().out
    for found in (on, off):
        assert found["tuned for 30"] > found["as it is"] + 1
    assert [call[3] for call in seen] == [2, 2, 30, 30, 2, 30, 4, 60]  # of as much time: twice as many
    assert all(len(shots) == 16 and shots.min() >= 60 for _, _, shots, *_ in seen)
    _, dataset, shots, *_ = seen[0]
    both = torch.cat([judged[0], dataset.frames[shots]]).flatten(1).unique(dim=0)
    assert len(judged[0]) == 14 and len(both) == 30 and both.float().mean() > 185
    system, *rest = seen[1]
    moved = weight_rnn.tuned(system, *rest)
    names = {name.split(".")[0] for name, value in moved.state_dict().items()
             if not value.equal(system.state_dict()[name])}  # fmt: skip
    assert names == {"predictor"}
