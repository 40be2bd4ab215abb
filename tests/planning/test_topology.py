"""Names of topologies and the sentences for those that cannot be had."""

import importlib.util

import pytest

from das_jax.errors import UserError
from das_jax.hardware import CHIPS
from das_jax.planning.topology import find_chip, open_topology


def test_unknown_chip_names_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no TPU topology 'v9:2x4'.*v5e:2x4.*v6e:2x4"):
        find_chip("v9:2x4")


@pytest.mark.parametrize("name", ["v5e:3x5", "v5e:8", "v5e", "v5e:2x2x1"])
def test_unknown_slice_names_those_that_exist(name: str) -> None:
    with pytest.raises(UserError, match=f"no TPU topology '{name}'; v5e has 1x1, 2x2, 2x4"):
        find_chip(name)


def test_missing_compiler_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'das-jax\[plan\]'"):
        open_topology("v5e:2x4")


def test_torus_has_the_dimensions_of_the_shape() -> None:
    assert {name: chip.axes for name, chip in CHIPS.items()} == {
        "v4": 3,
        "v5e": 2,
        "v5p": 3,
        "v6e": 2,
        "tpu7x": 3,
    }
