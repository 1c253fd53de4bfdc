"""Comparisons of nests of tensors; each states in which sense two nests are equal."""

from __future__ import annotations

import pytest
import torch

from rlplay import nested


def equal_tensors(some, others):
    """Return whether all leaves are equal. NaN is not equal to NaN; containers are not compared."""
    pairs = zip(nested.leaves(some), nested.leaves(others), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def assert_identical(some, others, where=""):
    """Compare structure, dtypes and values, which must be equal exactly. NaN is not equal to NaN."""
    assert nested.structure(some) == nested.structure(others)
    for name, x, y in zip(nested.names(some, where), nested.leaves(some), nested.leaves(others), strict=True):
        assert x.dtype == y.dtype, name
        assert torch.equal(x, y), f"{name}: {x} is not {y}"


def assert_same_bytes(some, others):
    """Compare structure, shapes, dtypes and every byte. NaN is equal to NaN of the same bits."""
    assert nested.structure(some) == nested.structure(others)
    for name, x, y in zip(nested.names(some), nested.leaves(some), nested.leaves(others), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        assert torch.equal(_bytes(x), _bytes(y)), f"{name}: {x} is not {y}"


def _bytes(x):
    return x.reshape(-1).view(torch.uint8)


def assert_identical_on_any_device(some, others):
    """Compare values, which must be equal exactly; the nests may live on different devices."""
    for name, x, y in zip(nested.names(some), nested.leaves(some), nested.leaves(others), strict=True):
        assert torch.equal(x.cpu(), y.cpu()), name


def assert_equal_up_to_rounding(some, others):
    """Compare structure, dtypes and values, which may differ by rounding errors of float32. NaN is equal to NaN."""
    assert nested.structure(some) == nested.structure(others)
    for name, x, y in zip(nested.names(some), nested.leaves(some), nested.leaves(others), strict=True):
        torch.testing.assert_close(
            x, y, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}", equal_nan=True
        )


def is_closed(feed):
    """Check that `next` raises since the feed is closed; return True if the feed agrees."""
    with pytest.raises(RuntimeError, match="closed"):
        next(feed)
    return not feed.open
