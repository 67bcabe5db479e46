import pytest
import torch
from uncertainty import calibration, mean_and_spread, plot_reliability


def drawn(width, count=8, pixels=20_000):
    """Truth and samples of a Gaussian whose deviation differs from pixel to pixel."""
    generator = torch.Generator().manual_seed(0)
    deviation = 0.05 + torch.rand(pixels, generator=generator)
    truth = deviation * torch.randn(pixels, generator=generator)
    noise = torch.randn(1, count, pixels, generator=generator)
    return width * deviation * noise, truth[None]


def test_samples_of_the_truths_own_distribution_are_calibrated():
    samples, truth = drawn(1.0)
    found = calibration(*mean_and_spread(samples), truth)
    assert found.ratio == pytest.approx(1, abs=0.02)
    many = calibration(*mean_and_spread(drawn(1.0, 64)[0]), drawn(1.0, 64)[1])
    torch.testing.assert_close(many.bin_spread, many.bin_rmse, rtol=0.1, atol=0)
    assert 0.35 < found.correlation < many.correlation
    assert (found.bin_spread.diff() > 0).all()


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_samples_that_are_too_sure_or_too_unsure(width):
    samples, truth = drawn(width, count=256, pixels=4000)
    found = calibration(*mean_and_spread(samples), truth)
    assert found.ratio == pytest.approx(width, rel=0.05)
    assert found.spread == pytest.approx(found.ratio * found.rmse)


def test_a_spread_that_knows_nothing_does_not_correlate():
    samples, truth = drawn(1.0, count=64)
    mean, spread = mean_and_spread(samples)
    order = torch.randperm(truth.shape[1], generator=torch.Generator().manual_seed(1))
    found = calibration(mean, spread[:, order], truth)
    assert abs(found.correlation) < 0.02
    assert found.bin_rmse.max() / found.bin_rmse.min() < 1.15


def test_what_cannot_be_told(tmp_path):
    with pytest.raises(ValueError, match="no spread"):
        mean_and_spread(torch.zeros(3, 1, 4))
    with pytest.raises(ValueError, match="10 bins"):
        calibration(*torch.zeros(3, 4))
    plot_reliability(calibration(*torch.rand(3, 40)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
