"""What a run does, without compiling any of it."""

from pathlib import Path

import yaml

from das_jax.config.load import load_config
from das_jax.planning.architectures import KNOWN
from das_jax.planning.program import PlannedRun
from das_jax.training.sharding import make_sharding
from das_jax.training.workspace import DEMO_MODEL


def test_every_program_counts_for_every_seed(tmp_path: Path) -> None:
    config = {
        "output_dir": "unused",
        "model": {"path": DEMO_MODEL, "attention": "dense"},
        "general": {"source": {"kind": "demo", "name": "news"}, "steps": 7},
        "domains": [
            {"name": "a", "source": {"kind": "demo", "name": "acl"}, "steps": 3},
            {"name": "b", "source": {"kind": "demo", "name": "drugs"}},
        ],
        "training": {"steps": 10, "batch_size": 8},
        "method": {"name": "das", "importance": {"examples": 20, "batch_size": 8}},
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config))

    def runs(*overrides: str) -> dict[str, int]:
        run = PlannedRun(load_config(file, overrides).config, KNOWN[DEMO_MODEL], make_sharding(1))
        return {program.name: program.runs for program in run.programs()}

    once = {"train step": 13, "domain importance": 6, "general importance": 3, "warm-up step": 7}
    assert runs() == once
    assert runs("--seeds=[4,5,6]") == {name: 3 * count for name, count in once.items()}
