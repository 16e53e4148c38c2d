"""Figures in words: what each one is, and what they say of a run."""

import pytest

from mtld_core.judge.words import meaning, verdict

pytestmark = pytest.mark.versionless  # figures into words
GOOD = {
    "psnr": 30.0,
    "skill_db": 3.0,
    "baseline_copy_psnr": 25.0,
    "baseline_median_psnr": 20.0,
    "moving_skill_db": 2.0,
}
TRANSLATED = {"flicker_x_to_y": 0.1, "psnr": 30.0, "skill_db": None}
TRUE = {"psnr_x_to_y": 20.0, "baseline_psnr_x_to_y": 18.0, "psnr_y_to_x": 15.0, "baseline_psnr_y_to_x": 18.0}
LIFE = {
    "until": [16, 64],
    "static_psnr": [40.0, 10.0],
    "motion": [1.0, 1.0],
    "precision": [1.0, 1.0],
    "coverage": [1.0, 1.0],
    "real_coverage": [1.0, 1.0],
    "real_precision": 1.0,
    "real_static_psnr": 45.0,
}


@pytest.mark.parametrize(
    ("figures", "better", "words"),
    [
        ({}, True, "not judged yet: train on"),
        ({"skill_db": -2.0}, True, "worse than repeating the last frame by 2.0 dB: train on, and if it stays so lower"),
        ({"skill_db": -2.0}, False, "worse than repeating the last frame by 2.0 dB: it was better before, so take"),
        ({"skill_db": -2.0, "baseline_median_psnr": 26.0}, False, "worse than showing the median frame by"),
        ({"moving_skill_db": 0.1}, True, "moving things are not there yet: train on"),
        ({"moving_skill_db": 0.1}, False, "moving things are not there yet: it was better before, so take"),
        ({"action_shuffle_gap_db": 0.01}, True, "actions do not matter yet: train on"),
        ({"life": LIFE}, True, "the dream falls apart after about 16 steps: in the end what is static is at 10 dB: train"),
        ({"action_shuffle_gap_db": 1.0}, True, "better than repeating the last frame by 3.0 dB, moving things too: see"),
        ({"action_shuffle_gap_db": 1.0}, False, "by 3.0 dB, moving things too: it was better before, so take checkpoint 'best'"),
        ({"moving_skill_db": None}, True, "better than repeating the last frame by 3.0 dB: see what it draws"),
        ({"skill_db": None, "psnr": 20.0}, True, "rebuilds frames at 20.0 dB, small things are blurred: train on"),
        ({"skill_db": None, "psnr": 30.0}, True, "rebuilds frames at 30.0 dB, good enough to build on"),
        (TRANSLATED | TRUE, True, "translations are -3.0 dB against recolouring the source"),
        (TRANSLATED | dict.fromkeys(TRUE), True, "nobody knows the right translations, so look at the preview"),
    ],
)  # fmt: skip
def test_a_verdict_in_one_sentence(figures, better, words):
    said = verdict(GOOD | figures if figures else {}, better)
    assert words in said and "\n" not in said


FIGURES = (
    "psnr ssim lpips skill_db moving_skill_db windows baseline_copy_psnr baseline_median_psnr action_shuffle_gap_db "
    "controllability_db reconstruction_psnr first_psnr update_gain_db latent_variance latent_variance_least "
    "codebook_use codebook_perplexity action_codebook_use action_codebook_perplexity action_latent_variance_least "
    "action_labels psnr_x_to_y baseline_psnr_y_to_x baseline_identity_psnr_x_to_y baseline_mean_image_psnr_x_to_y "
    "baseline_colour_transfer_psnr_x_to_y flicker_x_to_y flicker_source_y_to_x frechet_efficientnet_lite0"
)


@pytest.mark.parametrize("name", FIGURES.split())
def test_every_figure_says_what_it_is(name):
    assert 20 < len(meaning(name)) < 110


def test_the_longest_name_that_fits_counts():
    assert "recolouring" in meaning("baseline_colour_transfer_psnr_x_to_y")
    assert meaning("psnr") != meaning("psnr_x_to_y") and meaning("flicker_x_to_y") != meaning(
        "flicker_source_x_to_y"
    )
    assert meaning("nonsense") == ""
