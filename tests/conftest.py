import matplotlib
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


@pytest.fixture
def bases():
    """Orthonormal bases (3, 12, 4), float64."""
    flat = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    return flat.reshape(12, 3, 4).transpose(0, 1).contiguous()
