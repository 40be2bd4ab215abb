import pytest

from das_jax.data.masking import Masking
from das_jax.methods.contract import Place
from das_jax.methods.pool import Pool
from das_jax.methods.settings import PoolSettings
from das_jax.model.masked_lm import MaskedLM

DOMAINS = ("law", "news", "code")


@pytest.mark.parametrize(
    ("temperature", "shares"), [(1.0, (0.1, 0.5, 0.4)), (2.0, (0.1**0.5, 0.5**0.5, 0.4**0.5))]
)
def test_all_domains_are_one_stage_in_the_shares_of_their_sizes(
    model: MaskedLM, masking: Masking, temperature: float, shares: tuple[float, ...]
) -> None:
    settings = PoolSettings(temperature=temperature)
    assert Pool.stages(settings, DOMAINS) == (DOMAINS,)
    streams = Pool(model, masking, settings).plan(Place(0, DOMAINS, (10, 50, 40))).streams
    assert tuple(stream.name for stream in streams) == DOMAINS
    total = sum(shares)
    assert [s.share for s in streams] == pytest.approx([share / total for share in shares])
