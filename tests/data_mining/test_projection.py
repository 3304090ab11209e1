import numpy as np
import pytest
from sklearn.decomposition import PCA

from data_mining.projection import Projection, fit_projection


@pytest.fixture
def sample():
    """ReLU-like: non-negative, with a large mean, variances that differ."""
    random = np.random.default_rng(0)
    return np.maximum(random.normal(size=(200, 12)) @ random.normal(size=(12, 12)) + 5, 0).astype(np.float32)


def test_components_are_those_of_scikit_learn_up_to_sign(sample):
    ours, theirs = fit_projection(sample, 5), PCA(5, svd_solver="full").fit(sample)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-5)
    np.testing.assert_allclose(np.abs(ours.components.T), np.abs(theirs.components_), atol=1e-4)
    assert ours.explained == pytest.approx(theirs.explained_variance_ratio_.sum(), abs=1e-5)
    assert (ours.components[np.abs(ours.components).argmax(axis=0), range(5)] > 0).all()


def test_projected_vectors_have_length_one_and_keep_cosines(sample):
    projected = fit_projection(sample, 12).apply(sample).astype(np.float64)
    centred = sample - sample.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(projected @ projected.T, centred @ centred.T, atol=2e-3)


def test_the_batch_does_not_show(sample):
    projection = fit_projection(sample, 7)
    together = projection.apply(sample)
    assert together.dtype == np.float16
    assert np.array_equal(together, np.concatenate([projection.apply(row[None]) for row in sample]))


def test_it_survives_a_file(sample, tmp_path):
    projection = fit_projection(sample, 4)
    np.save(tmp_path / "p.npy", projection.to_array())
    again = Projection.from_array(np.load(tmp_path / "p.npy"))
    assert np.array_equal(again.apply(sample), projection.apply(sample))
    assert again.explained == pytest.approx(projection.explained)


def test_no_more_dimensions_than_the_sample_spans(sample):
    assert fit_projection(sample[:4], 10).components.shape == (12, 3)


def test_identical_images_have_no_direction(sample):
    same = np.repeat(sample[:1], 30, axis=0)
    projection = fit_projection(same, 10)
    assert projection.components.shape == (12, 1)
    assert not projection.apply(same).any()
    assert projection.explained == 1.0


def test_whitened_directions_vary_alike(sample):
    projection = fit_projection(sample, 6, whiten=True)
    theirs = PCA(6, svd_solver="full", whiten=True).fit(sample)
    ours = (sample.astype(np.float64) - projection.mean) @ projection.components
    ours /= ours[:, 0].std()
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs.transform(sample)) * (200 / 199) ** 0.5, atol=2e-2)
    cosines = projection.apply(sample).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(cosines, axis=1), 1, atol=1e-3)


def test_whitening_does_not_blow_up_noise_nor_what_equals_the_mean():
    random = np.random.default_rng(0)
    sample = random.normal(size=(300, 4)).astype(np.float32) * [100.0, 10.0, 1e-2, 1e-3] + 50
    projection = fit_projection(sample.astype(np.float32), 4, whiten=True)
    assert np.linalg.norm(projection.components, axis=0).max() <= 100.1
    assert (projection.apply(projection.mean[None]) == 0).all()
