import numpy as np
import paddle
import pytest

from distill.export.folding import fold_batch_norm
from distill.models import create_model


@pytest.mark.parametrize("name", ["ResNet18", "ResNet34_vd", "ResNet50_vc", "ResNeXt101_32x8d_wsl"])
@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_the_function_stays_and_batch_normalisation_goes(name, data_format):
    paddle.seed(1)
    model = create_model(name, 7, width=0.125, data_format=data_format)
    random = np.random.default_rng(0)
    for key, value in model.state_dict().items():
        if key.endswith("_mean"):
            value.set_value(random.normal(0, 0.1, value.shape).astype("f4"))
        elif key.endswith("_variance"):
            value.set_value(random.uniform(0.5, 2, value.shape).astype("f4"))
    model.eval()
    before = {key: value.numpy() for key, value in model.state_dict().items()}
    folded = fold_batch_norm(model)
    images = random.normal(size=(2, 3, 45, 64)).astype("f4")
    with paddle.no_grad():
        given = images if data_format == "NCHW" else images.transpose(0, 2, 3, 1).copy()
        expected = model(paddle.to_tensor(given)).numpy()
        received = folded(paddle.to_tensor(images)).numpy()
    np.testing.assert_allclose(received, expected, atol=1e-5 * np.abs(expected).max())
    assert not [key for key in folded.state_dict() if "_mean" in key]
    assert len(folded.state_dict()) < len(before) / 2
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])
