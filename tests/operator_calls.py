"""What the tests of the operators that are parallel in time share."""

import pytest


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        if value.numel():
            error = (found[name] - value).abs().max() / (1 + value.abs().max())
            assert error < tolerance, f"{name}: {error}"


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
