"""The MLP: learns what no line can, whatever torch is set to, and its members' mean is one network."""

import numpy as np
import torch

from depthdial.control.predictors.fitting import fit_predictor
from depthdial.control.predictors.mlp_training import _Members
from tests.control.predictors.tables import r2


def test_it_learns_what_no_line_can():
    features = np.random.default_rng(0).normal(size=(400, 3))
    values = np.abs(features[:, :1])
    curve, line = (fit_predictor(kind, features[:300], values[:300]).predict(features[300:]) for kind in ("mlp", "ridge"))
    assert r2(curve, values[300:])[0] > 0.6 > 0.1 > r2(line, values[300:])[0]


def test_the_callers_torch_settings_change_nothing():
    draw = np.random.default_rng(1)
    features, values = draw.normal(size=(40, 3)), draw.normal(size=(40, 2))
    plain = fit_predictor("mlp", features, values).arrays()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"):
            odd = fit_predictor("mlp", features, values).arrays()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all((plain[name] == odd[name]).all() for name in plain)


def test_the_mean_of_the_members_is_one_network():
    draw = torch.Generator().manual_seed(0)
    members = _Members(*(torch.randn(t.shape, generator=draw) for t in _Members.drawn(4, 3, draw)))
    x = torch.randn(10, 4, generator=draw)
    weight_in, bias_in, weight_out, bias_out = members.mean()
    one = np.maximum(x.double().numpy() @ weight_in + bias_in, 0) @ weight_out + bias_out
    assert np.allclose(one, members.output(x).mean(dim=0).numpy(), atol=1e-4)
