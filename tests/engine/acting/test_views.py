"""Tensors of an actor that are views of each other stay views in its copies; arrays that would not are refused."""

from __future__ import annotations

import pickle

import cloudpickle
import numpy as np
import pytest
import torch

from rlplay.engine import BaseActorModule
from rlplay.engine.acting.copying.copy_actor import copy_actor
from rlplay.engine.acting.copying.parcel import packed

CPU = torch.device("cpu")


class Actor(BaseActorModule):
    def __init__(self, **kept):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        vars(self).update(kept)


def sent(actor):
    """Return the copy of an actor that arrives in another process."""
    return pickle.loads(cloudpickle.dumps(packed(copy_actor(actor, CPU))))


@pytest.mark.parametrize("copied", [lambda actor: copy_actor(actor, CPU).module, sent])
def test_tensors_that_are_views_of_each_other_are_views_in_the_copy(copied):
    state = torch.zeros(3)
    actor = Actor(state=state, views={"first": [state[:1]]})
    actor.call = lambda: actor.views["first"][0].add_(1)
    twin = copied(actor)
    twin.call()
    assert [twin.state.tolist(), actor.state.tolist()] == [[1, 0, 0], [0, 0, 0]]


DTYPES = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
def test_buffers_of_dtypes_that_torch_does_not_pickle_are_sent_to_another_process(dtype):
    actor = Actor()
    actor.register_buffer("table", torch.ones(3).to(dtype))
    twin = sent(actor)
    assert twin.table.dtype == dtype
    assert torch.equal(twin.table.view(torch.uint8), actor.table.view(torch.uint8))


def two_arrays():
    array = np.zeros(3)
    return array, array[1:]


def array_of_tensor():
    tensor = torch.zeros(3)
    return tensor, tensor.numpy()


def tensor_of_array():
    array = np.zeros(3)
    return array, torch.from_numpy(array)


@pytest.mark.parametrize("make", [two_arrays, array_of_tensor, tensor_of_array])
def test_arrays_that_share_memory_are_refused_with_the_paths_to_them(make):
    state, view = make()
    paths = r"`actor\.(state|view\[0\])` is a NumPy array that shares memory with `actor\."
    with pytest.raises(TypeError, match=paths):
        copy_actor(Actor(state=state, view=[view]), CPU)


def test_an_array_that_two_attributes_refer_to_is_one_array_in_the_copy():
    array = np.zeros(3)
    twin = copy_actor(Actor(one=array, other=[array]), CPU).module
    assert twin.one is twin.other[0]
    assert twin.one is not array
