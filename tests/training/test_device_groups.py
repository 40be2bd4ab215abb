"""Groups of neighbours, of slices that only their coordinates describe."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from das_jax.training.device_groups import device_groups


def slice_of(*sides: int, host: tuple[int, ...] = (2, 2, 1), cores: int = 1) -> list[Any]:
    """The devices of a TPU slice, host by host, as JAX lists them."""
    hosts = [range(side // of) for side, of in zip(sides, host, strict=True)]
    return [
        SimpleNamespace(
            platform="tpu",
            coords=tuple(a * side + b for a, side, b in zip(at, host, within, strict=True)),
            core_on_chip=core,
            process_index=number,
        )
        for number, at in enumerate(itertools.product(*hosts))
        for within in itertools.product(*map(range, host))
        for core in range(cores)
    ]


@pytest.mark.parametrize(
    ("sides", "cores", "size", "box", "hosts"),
    [
        ((8, 8, 1), 1, 2, (1, 2, 1), 1),
        ((8, 8, 1), 1, 4, (2, 2, 1), 1),
        ((8, 8, 1), 1, 8, (2, 4, 1), 2),
        ((8, 8, 1), 1, 16, (4, 4, 1), 4),
        ((2, 4, 1), 1, 4, (2, 2, 1), 1),
        ((4, 4, 4), 1, 4, (2, 2, 1), 1),
        ((4, 4, 4), 1, 8, (2, 2, 2), 2),
        ((2, 2, 2), 2, 2, (1, 1, 1), 1),  # Two cores of a chip.
        ((2, 2, 2), 2, 8, (2, 2, 1), 1),
    ],
)
def test_a_group_is_a_box_on_as_few_hosts_as_can_be(
    sides: tuple[int, ...], cores: int, size: int, box: tuple[int, ...], hosts: int
) -> None:
    devices = slice_of(*sides, cores=cores)
    groups = device_groups(devices, size)
    assert groups.shape == (len(devices) // size, size)
    assert {id(device) for device in groups.flat} == {id(device) for device in devices}
    for group in groups:
        places = np.array([device.coords for device in group])
        assert sorted(places.max(axis=0) - places.min(axis=0) + 1) == sorted(box)
        assert len({(*device.coords, device.core_on_chip) for device in group}) == size
        assert len({device.process_index for device in group}) == hosts


def test_other_devices_follow_each_other_host_by_host() -> None:
    elsewhere = [SimpleNamespace(platform="gpu", id=i) for i in range(8)]
    ids = [[device.id for device in group] for group in device_groups(elsewhere, 4)]
    assert ids == [[0, 1, 2, 3], [4, 5, 6, 7]]
    no_box = slice_of(2, 4, 1)[:6]
    assert device_groups(no_box, 3).ravel().tolist() == no_box
