"""The measurements: what they count, what they keep, and that docs/performance.md says what was kept."""

import json

import measure
import pytest
import tables
import torch
from steps import Steps
from torch.utils.flop_counter import FlopCounterMode

from mtld_core.config import UserError

MACHINE = {"gflops": 1.0, "copied_gb_per_second": 1.0}
ROW = {"step of": "it", "ms": 1234.5, "kernels": 12000, "share": 0.1234}


def counted(call):
    with measure.Work() as work:
        call()
    return work


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
