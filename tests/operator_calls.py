"""What the tests of the operators that are parallel in time share."""

import pytest
from torch.func import functional_call, grad, vmap


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        if value.numel():
            error = (found[name] - value).abs().max() / (1 + value.abs().max())
            assert error < tolerance, f"{name}: {error}"


def rms(v):
    return v.double().square().mean().sqrt()


def check_per_sample_gradients(layer, x):
    """vmap of grad over the first dimension of x equals each sample's gradients by themselves."""
    parameters = {k: v.detach() for k, v in layer.named_parameters()}

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,)).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for i in range(len(x)):
        for name, value in grad(loss)(parameters, x[i]).items():
            assert (found[name][i] - value).abs().max() < 1e-12


def permuted(value):
    """The same values in a dense layout with the last two dimensions exchanged."""
    if value is None or value.dim() < 2:
        return value
    return value.detach().mT.contiguous().mT.requires_grad_()


def pairs(main, kinds, backends):
    """Every backend with every kind, but on kernels, which the interpreter runs slowly, those but
    the main kind only in `make test-all`.
    """
    found = []
    for on in backends:
        for kind in kinds:
            minor = on == backends[2] or (on == "triton" and kind != main)
            found.append(pytest.param(on, kind, marks=[pytest.mark.slow] if minor else []))
    return pytest.mark.parametrize(("on", "kind"), found, indirect=["on"])
