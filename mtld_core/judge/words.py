"""What figures mean, and what they say of a run, in words for somebody who sees them for the first time."""

from mtld_core.judge.life import falls_apart

LEAST_MOVING = 0.5  # dB of skill over what moves, below which a preview shows little of it
LEAST_GAP = 0.05  # dB of action_shuffle_gap_db, below which actions do not matter
STEADY = 1.25  # times the truth's flicker, above which a picture flickers, and as far below is too still
# what runs are compared by: figure -> (in words, whether more is better)
STANDINGS = {
    "psnr": ("nearness to the truth", True),
    "lpips": ("looks", False),
    "moving_skill_db": ("what moves", True),
    "frames_per_second": ("speed", True),
}
BLURRED = 25  # dB of a reconstruction, below which small things are lost

# beginning of a figure's name, and what it is; of several that fit, the longest counts
MEANINGS = """
psnr: how close the frames are to the truth, in dB; 20: a blur, 35: a difference is hard to see
psnr_x_to_y: how close translations of X are to their truth in Y, in dB
psnr_y_to_x: how close translations of Y are to their truth in X, in dB
ssim: likeness of structure to the truth; 1: the same
lpips: distance from the truth as a network sees it; 0: the same
skill_db: gain over the best simple guess (last frame repeated, median frame), in dB; 0: none
moving_skill_db: the same skill over the pixels that move alone, which are few
windows: how many held-out windows were judged
baseline: what a simple guess reaches, in dB: to be compared with psnr
baseline_copy_psnr: psnr of the last frame repeated, in dB
baseline_median_psnr: psnr of the training part's median frame, in dB
baseline_identity_psnr: psnr of the source left as it is, in dB
baseline_mean_image_psnr: psnr of the target's mean image, in dB
baseline_colour_transfer_psnr: psnr of recolouring the source, in dB
action_shuffle_gap_db: what other windows' actions cost, in dB; 0: actions do not matter
controllability_db: how far held actions lead apart, over how far the truth moves, in dB; 0: as far
action_labels: which recorded action each invented one stands for most often
reconstruction_psnr: psnr of frames taken in and drawn again, in dB: the most that rollouts can reach
first_psnr: psnr of images as they are drawn first, in dB
update_gain_db: what the last drawing gains over the first, in dB
latent_variance: how much latents vary; near 0 they have collapsed
codebook_use: share of the codes that are in use; 1: all
codebook_perplexity: number of codes that are in use evenly; near 1 they have collapsed
action_codebook: how the invented actions are used; near 1 of perplexity they have collapsed
action_latent_variance: how much the invented actions vary; near 0 they have collapsed
frechet: how far the frames as a whole are from real ones, as a network sees them; 0: the same
flicker: how much the translated frames change from one to the next; best near flicker_truth
flicker_source: how much the source's frames change from one to the next
flicker_truth: how much the true translation's frames change from one to the next
judged at step: the training step that these figures are of
"""


def meaning(name):
    """What a figure of report.json is, a sentence; "" for one that is not known."""
    lines = [line.split(": ", 1) for line in MEANINGS.split("\n")]
    known = [line for line in lines if name.startswith(line[0])]
    return max(known, key=lambda line: len(line[0]))[-1]


def verdict(metrics, better=True):
    """How good a run is, and what to do, in one sentence.

    metrics: as report.json has them. better: whether no earlier judging of the run gave more.
    """
    if not metrics:
        return "not judged yet: train on"
    way = "train on"
    if not better:
        way = "it was better before, so take checkpoint 'best', or lower the learning rate"
    if "flicker_x_to_y" in metrics:
        return _of_translations(metrics, way)
    skill, psnr = metrics["skill_db"], metrics["psnr"]
    if skill is None:
        blurred = "small things are blurred" if psnr < BLURRED else "good enough to build on"
        return f"it rebuilds frames at {psnr:.1f} dB, {blurred}: {way}"
    copied, median = metrics["baseline_copy_psnr"], metrics["baseline_median_psnr"]
    rival = "repeating the last frame" if copied >= median else "showing the median frame"
    if skill < 0:
        on = "train on, and if it stays so lower the learning rate"
        return f"worse than {rival} by {-skill:.1f} dB: {on if better else way}"
    if lines := falls_apart(metrics):
        return f"{lines[0]}: {way}"
    moving = metrics.get("moving_skill_db")
    if moving is not None and moving < LEAST_MOVING:
        return f"what stands still is right, moving things are not there yet: {way}"
    if metrics.get("action_shuffle_gap_db", LEAST_GAP) < LEAST_GAP:
        return f"it moves, but actions do not matter yet: {way}"
    both = "" if moving is None else ", moving things too"
    look = "see what it draws (notebook 03), or " if better else ""
    return f"better than {rival} by {skill:.1f} dB{both}: {look}{way}"


def compared(row, rows, flicker):
    """What is good and what is bad in a run beside others, in one sentence.

    row, rows: of a table, as compare.json has them. flicker: of what really came.
    """
    said, first, last = [verdict(row["figures"]).partition(": ")[0]], [], []
    for name, (words, more) in STANDINGS.items():
        values = [each[name] for each in rows if each["kind"] != "baseline"]
        if None not in values and values.count(row[name]) == 1 < len(values):
            place = sorted(values, reverse=more).index(row[name])
            (first if place == 0 else last if place == len(values) - 1 else []).append(words)
    said += [f"the best of these in {' and '.join(first)}"] if first else []
    said += [f"the last in {' and '.join(last)}"] if last else []
    if (skill := row["skill_best_db"]) is not None:
        best = min((each for each in rows if each["kind"] == "baseline"), key=lambda each: each["mse"])
        way = "better" if skill > 0 else "worse"
        said.append(f"{way} by {abs(skill):.1f} dB than {best['run']}, the best that costs nothing")
    times = row["flicker"] / flicker if flicker else 1
    if not 1 / STEADY < times < STEADY and len(row["psnr_by_horizon"]) > 2:
        said.append(f"it flickers {times:.2g} times as much as what really came")
    return "; ".join(said)


def _of_translations(metrics, way):
    gains = []
    for direction in ("x_to_y", "y_to_x"):
        if metrics[f"psnr_{direction}"] is not None:
            gains.append(metrics[f"psnr_{direction}"] - metrics[f"baseline_psnr_{direction}"])
    if not gains:
        return f"nobody knows the right translations, so look at the preview: {way}"
    return f"translations are {min(gains):+.1f} dB against recolouring the source (above 0: better): {way}"
