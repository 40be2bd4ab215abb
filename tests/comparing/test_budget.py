"""FLOPs in place of steps."""

import dataclasses

import pytest

from das_jax.comparing.budget import at_equal_flops, plain, stage_flops, total_flops
from das_jax.comparing.cells import points_of
from das_jax.comparing.file import read_comparison
from das_jax.config.load import load_config
from das_jax.config.schema import Config
from das_jax.errors import UserError
from tests.comparing.conftest import Write
from tests.project import Project


@pytest.fixture(scope="module")
def config(project: Project) -> Config:
    """DAS, whose step is several of plain training's, and which measures before and after domains."""
    return load_config(project.config, ["--training.steps=100", "--domains.1.steps=50"]).config


def test_steps_are_as_many_as_the_flops_pay_for(config: Config) -> None:
    flops = total_flops(plain(config))
    scaled = at_equal_flops(config, flops)
    papers, reviews = stage_flops(scaled)
    assert papers.measured > reviews.measured > 0  # General knowledge is measured once.
    assert abs(total_flops(scaled) - flops) <= (papers.step + reviews.step) / 2
    assert [domain.steps for domain in scaled.domains] == [papers.steps, reviews.steps]
    assert 20 < papers.steps < 50
    assert abs(papers.steps - 2 * reviews.steps) <= 1


def test_plain_training_keeps_its_steps(config: Config) -> None:
    naive = plain(config)
    assert at_equal_flops(naive, total_flops(naive)) == naive


def test_too_few_flops_are_refused(config: Config) -> None:
    few = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, steps=2),
        domains=tuple(dataclasses.replace(domain, steps=2) for domain in config.domains),
    )
    with pytest.raises(UserError, match=r"pay for \d+ steps on papers, .* at least 6 are needed"):
        at_equal_flops(few, total_flops(plain(few)))


def test_a_comparison_at_equal_flops(write_comparison: Write) -> None:
    path = write_comparison(
        settings={"training.steps": 100},
        systems={"plain": {"method.name": "naive"}, "das": {}},
    )
    naive, das = points_of(read_comparison(path, ["--budget=flop"]))
    assert [domain.steps for domain in naive.config.domains] == [None, None], "as at equal steps"
    assert total_flops(das.config) == pytest.approx(total_flops(naive.config), rel=0.02)
