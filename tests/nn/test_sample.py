"""Drawing one of several classes."""

import torch

from mtld_core.nn.sample import sample


def test_classes_are_drawn_as_often_as_they_are_likely():
    shares = torch.tensor([0.5, 0.2, 0.3, 0.0])
    many = shares.log().expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    for temperature, expected in ((1.0, shares), (2.0, shares.sqrt() / shares.sqrt().sum())):
        drawn = torch.bincount(sample(many, temperature, generator), minlength=4) / 20_000
        torch.testing.assert_close(drawn, expected, atol=0.02, rtol=0)
        assert drawn[3] == 0


def test_without_a_generator_and_at_temperature_0_it_is_the_likeliest():
    logits = torch.randn(2, 5, 7)
    generator = torch.Generator().manual_seed(0)
    for drawn in (sample(logits), sample(logits, 0.0, generator)):
        assert torch.equal(drawn, logits.argmax(-1))
    assert not torch.equal(sample(logits, 1.0, generator), logits.argmax(-1))
