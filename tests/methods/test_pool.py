from pathlib import Path

import pytest

from das_jax.config.load import load_config
from das_jax.data.objective import HiddenTokens
from das_jax.methods.contract import Place
from das_jax.methods.pool import Pool
from das_jax.methods.settings.whole_model import PoolSettings
from das_jax.model.language_model import LanguageModel
from das_jax.training.stages import stages_of

CONFIG = """\
output_dir: runs/x
model: {path: somewhere}
general: {name: all, source: {kind: demo, name: news}, steps: 1}
domains:
  - {name: law, source: {kind: demo, name: acl}}
  - {name: code, source: {kind: jsonl, path: code.jsonl}}
method: {name: pool}
"""
DOMAINS = ("law", "news", "code")


@pytest.mark.parametrize(
    ("temperature", "shares"), [(1.0, (0.1, 0.5, 0.4)), (2.0, (0.1**0.5, 0.5**0.5, 0.4**0.5))]
)
def test_all_domains_are_one_stage_in_the_shares_of_their_sizes(
    model: LanguageModel, objective: HiddenTokens, temperature: float, shares: tuple[float, ...]
) -> None:
    settings = PoolSettings(temperature=temperature)
    assert Pool.stages(settings, DOMAINS) == (DOMAINS,)
    streams = Pool(model, objective, settings).plan(Place(0, DOMAINS, (10, 50, 40))).streams
    assert tuple(stream.name for stream in streams) == DOMAINS
    total = sum(shares)
    assert [s.share for s in streams] == pytest.approx([share / total for share in shares])


def test_its_stage_has_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(CONFIG)
    for general, names in (("all", ["all", "all-1"]), ("news", ["news", "all"])):
        config = load_config(tmp_path / "x.yaml", [f"--general.name={general}"]).config
        assert [stage.name for stage in stages_of(config)] == names
