from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.data.batch import Batch
from das_jax.errors import UserError
from das_jax.training.sharding import Sharding, check_divisible, make_sharding


def test_rows_are_split_in_order_and_parameters_are_everywhere() -> None:
    sharding = make_sharding(4)
    batch = sharding.shard_batch(
        Batch(jnp.arange(16).reshape(8, 2), jnp.arange(8, dtype=jnp.uint32), jnp.ones(8))
    )
    shards = sorted(batch.index.addressable_shards, key=lambda shard: shard.device.id)
    assert [shard.data.tolist() for shard in shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    copied = sharding.replicate({"w": jnp.ones(3)})["w"]
    assert [shard.data.shape for shard in copied.addressable_shards] == [(3,)] * 4


def test_micro_batches_have_the_same_rows_on_every_mesh() -> None:
    """The first half of the rows is the first of two micro-batches, whoever holds it."""
    index = jnp.arange(8, dtype=jnp.uint32)
    for devices in (1, 2, 4):
        sharding = make_sharding(devices)
        batch = sharding.shard_batch(Batch(jnp.ones((8, 3)), index, jnp.ones(8)), micro_batches=2)
        assert batch.index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert batch.tokens.shape == (2, 4, 3)
        assert {shard.data.shape for shard in batch.index.addressable_shards} == {(2, 4 // devices)}


def test_groups_split_rows_over_all_devices_and_the_state_within() -> None:
    sharding = make_sharding(8, "parameters", parameters=2)
    rows = np.arange(16, dtype=np.uint32)
    index = sharding.shard_batch(Batch(jnp.ones((16, 3)), rows, jnp.ones(16))).index
    shards = sorted(index.addressable_shards, key=lambda shard: shard.device.id)
    assert np.concatenate([shard.data for shard in shards]).tolist() == rows.tolist()
    w = np.arange(2.0**15, dtype=np.float32).reshape(8, -1)
    held = sorted(
        sharding.put("params", {"w": w})["w"].addressable_shards, key=lambda shard: shard.device.id
    )
    for shard in held:
        half = shard.device.id % 2
        np.testing.assert_array_equal(shard.data, w[:, half * 2**11 : (half + 1) * 2**11])
    assert make_sharding(8, "parameters", parameters=8) == make_sharding(8, "parameters")


def test_rows_beside_a_batch_are_split_like_its_own() -> None:
    """They may be fewer or more than the batch's, and each has its part of every micro-batch."""
    extra = {"tokens": np.arange(24).reshape(12, 2), "domain": np.arange(12)}
    index = jnp.arange(8, dtype=jnp.uint32)
    for devices in (1, 2):
        sharding = make_sharding(devices)
        batch = sharding.shard_batch(Batch(jnp.ones((8, 3)), index, jnp.ones(8), extra), 2)
        assert batch.index.shape == (2, 4)
        assert batch.extra["domain"].tolist() == np.arange(12).reshape(2, 6).tolist()
        assert batch.extra["tokens"][1, 0].tolist() == [12, 13]
        held = {shard.data.shape for shard in batch.extra["tokens"].addressable_shards}
        assert held == {(2, 6 // devices, 2)}
    plain = sharding.shard_batch(Batch(jnp.ones((8, 3)), index, jnp.ones(8)))
    assert len(jax.tree.leaves(plain)) == 3


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((12, 768, 3072), 2),
        ((12, 3072, 768), 1),
        ((50_265, 768), 1),  # The larger axis does not divide.
        ((24, 1024), 1),
        ((128, 128), 0),
        ((64, 255), None),  # Small.
        ((50_265,), None),
        ((), None),
    ],
)
def test_where_an_array_is_split(shape: tuple[int, ...], axis: int | None) -> None:
    assert make_sharding(8).split_axis(shape) == axis


def test_what_is_split_is_fetched_whole() -> None:
    w = np.arange(2.0**15, dtype=np.float32).reshape(8, -1)
    for state, parts in (("replicated", ()), ("optimizer", ("opt_state",))):
        sharding = make_sharding(8, state)
        for part in ("params", "opt_state", "memory"):
            placed = sharding.put(part, {"w": w})["w"]
            held = {shard.data.size for shard in placed.addressable_shards}
            assert held == {w.size // 8 if part in parts else w.size}
            np.testing.assert_array_equal(sharding.fetch({"w": placed})["w"], w)


def test_rows_come_back_in_the_order_of_hosts() -> None:
    """A ring through four chips of two hosts begins and ends at the first."""
    devices = np.array([SimpleNamespace(process_index=host) for host in (0, 1, 1, 0)])
    sharding = Sharding(SimpleNamespace(devices=devices, size=4))  # type: ignore[arg-type]
    placed = np.array([[0, 1], [4, 5], [6, 7], [2, 3]]).reshape(8, 1)
    np.testing.assert_array_equal(sharding.fetch_rows(placed), np.arange(8).reshape(8, 1))


def test_all_devices_by_default() -> None:
    assert make_sharding().num_shards == jax.device_count() == 8
    assert make_sharding(3).num_shards == 3


def test_round_up() -> None:
    np.testing.assert_array_equal([make_sharding(4).round_up(n) for n in (1, 4, 5)], [4, 4, 8])


def test_more_devices_than_there_are() -> None:
    with pytest.raises(UserError, match=r"mesh\.data asks for 9 devices, but there are 8"):
        make_sharding(9)


def test_groups_that_the_devices_do_not_make() -> None:
    with pytest.raises(
        UserError,
        match=r"mesh\.parameters is 3, but the number of devices, 8, does not divide by it; use 2, 4 or all$",
    ):
        make_sharding(8, "optimizer", parameters=3)
    with pytest.raises(
        UserError, match=r"mesh\.parameters is 8, .* devices, 1, does not .*; use all$"
    ):
        make_sharding(1, "optimizer", parameters=8)


@pytest.mark.parametrize(
    ("size", "devices", "hint"), [(30, 8, "use 24 or 32"), (3, 8, "use 8"), (9, 2, "use 8 or 10")]
)
def test_a_batch_that_does_not_divide(size: int, devices: int, hint: str) -> None:
    with pytest.raises(
        UserError, match=f"training.batch_size is {size}.*{devices} devices; {hint}"
    ):
        check_divisible(size, make_sharding(devices), "training.batch_size")
    check_divisible(devices * 2, make_sharding(devices), "training.batch_size")


def test_a_batch_whose_micro_batches_do_not_divide() -> None:
    check_divisible(48, make_sharding(8), "training.batch_size", micro_batches=3)
    with pytest.raises(
        UserError,
        match=r"training.batch_size is 56, which does not divide by the 8 devices x 3 micro-batches "
        r"\(training.accumulate\); use 48 or 72, or set training.accumulate or mesh.data",
    ):
        check_divisible(56, make_sharding(8), "training.batch_size", micro_batches=3)
