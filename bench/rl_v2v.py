"""Does a translator find the right translation, and does its RL half help?

    python data_prep/make_domains.py domains
    python bench/rl_v2v.py domains runs/v2v [--seeds 0 1 2] [--rl 0 4] [--overrides '{"steps": 300}']

The tables of docs/systems/rl_v2v.md and docs/experiments/rl_v2v.md. Trains the preset "small" for every seed
and every `rl_every` (0: the RL half is off), one after the other, and judges each against the known truth.
Figures are medians over the seeds. A run that is there already is not trained again.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mtld_core.runtime import command
from mtld_core.train import fit
from mtld_core.train.controls import Controls
from mtld_core.train.settings import build, open_data, plan

ROWS = {
    "gain X to Y, dB": lambda m: m["psnr_x_to_y"] - m["baseline_psnr_x_to_y"],
    "gain Y to X, dB": lambda m: m["psnr_y_to_x"] - m["baseline_psnr_y_to_x"],
    "PSNR X to Y, dB": lambda m: m["psnr_x_to_y"],
    "PSNR Y to X, dB": lambda m: m["psnr_y_to_x"],
    "flicker X to Y over the truth's": lambda m: m["flicker_x_to_y"] / m["flicker_truth_x_to_y"],
    "flicker Y to X over the truth's": lambda m: m["flicker_y_to_x"] / m["flicker_truth_y_to_x"],
    "recycle PSNR, dB": lambda m: m["psnr"],
    "processor seconds": lambda m: m["processor_seconds"],
}


def one(data, out, overrides):
    """Figures of one run, trained where it is not there yet."""
    done = out / "bench.json"
    if not done.exists():
        cls, config, training = plan("rl_v2v", "small", overrides | {"run_dir": str(out)})
        dataset = open_data(data, config)
        system = build(cls, config, dataset, training.seed)
        began = time.process_time()
        figures = fit(system, dataset, training, Controls(lambda line: None))["metrics"]
        done.write_text(json.dumps(figures | {"processor_seconds": time.process_time() - began}))
    return json.loads(done.read_text())


@command
def main():
    parser = argparse.ArgumentParser(
        description="Train translators with and without their RL half, and compare."
    )
    parser.add_argument("data", help="two domains with their truth (data_prep/make_domains.py)")
    parser.add_argument("out", type=Path, help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--rl", type=int, nargs="+", default=[0, 4], help="values of rl_every; 0: without the RL half"
    )
    parser.add_argument("--overrides", type=json.loads, default={}, help="JSON object with other settings")
    given = parser.parse_args()
    columns = {}
    for rl in given.rl:
        runs = [
            one(
                given.data,
                given.out / f"rl{rl}_seed{seed}",
                {"rl_every": rl, "seed": seed, **given.overrides},
            )
            for seed in given.seeds
        ]
        columns[f"rl_every={rl}" if rl else "without RL"] = runs
    print(
        f"\nmedian over seeds {given.seeds} (each of them)\n\n| | {' | '.join(columns)} "
        f"|\n|---|{'---|' * len(columns)}"
    )
    for label, figure in ROWS.items():
        cells = []
        for runs in columns.values():
            values = [figure(run) for run in runs]
            cells.append(f"{statistics.median(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})")
        print(f"| {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
