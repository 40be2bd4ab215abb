import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.data.batch import Batch
from das_jax.errors import UserError
from das_jax.training.sharding import check_divisible, make_sharding


def test_rows_are_split_in_order_and_parameters_are_everywhere() -> None:
    sharding = make_sharding(4)
    batch = sharding.shard_batch(
        Batch(jnp.arange(16).reshape(8, 2), jnp.arange(8, dtype=jnp.uint32), jnp.ones(8))
    )
    shards = sorted(batch.index.addressable_shards, key=lambda shard: shard.device.id)
    assert [shard.data.tolist() for shard in shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    copied = sharding.replicate({"w": jnp.ones(3)})["w"]
    assert [shard.data.shape for shard in copied.addressable_shards] == [(3,)] * 4


def test_all_devices_by_default() -> None:
    assert make_sharding().num_shards == jax.device_count() == 8
    assert make_sharding(3).num_shards == 3


def test_round_up() -> None:
    np.testing.assert_array_equal([make_sharding(4).round_up(n) for n in (1, 4, 5)], [4, 4, 8])


def test_more_devices_than_there_are() -> None:
    with pytest.raises(UserError, match=r"mesh\.data asks for 9 devices, but there are 8"):
        make_sharding(9)


@pytest.mark.parametrize(
    ("size", "devices", "hint"), [(30, 8, "use 24 or 32"), (3, 8, "use 8"), (9, 2, "use 8 or 10")]
)
def test_a_batch_that_does_not_divide(size: int, devices: int, hint: str) -> None:
    with pytest.raises(
        UserError, match=f"training.batch_size is {size}.*{devices} devices; {hint}"
    ):
        check_divisible(size, make_sharding(devices), "training.batch_size")
    check_divisible(devices * 2, make_sharding(devices), "training.batch_size")
