"""How long a real run waits for its text: plain training of a BERT of base size on the demo's papers."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.gpu.measure import Report, part, spread

RUN = """
output_dir: {place}/run
model: {{path: {place}/model}}
data: {{length: {length}}}
domains:
  - name: acl
    source: {{kind: demo, name: acl}}
training: {{steps: {steps}, batch_size: {batch_size}, log_every: {log_every}, checkpoint_every: 1000}}
method: {{name: naive}}
evaluation: {{examples: 16}}
"""


def main(report: Report, tiny: bool) -> None:
    shape = {"length": 64, "steps": 80, "batch_size": 512, "log_every": 10}
    if tiny:
        shape = {"length": 64, "steps": 4, "batch_size": 4, "log_every": 2}
    environment = os.environ.copy()
    os.environ["JAX_PLATFORMS"] = "cpu"  # The device is the run's alone.
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        write_model(place / "model", tiny)
        (place / "run.yaml").write_text(RUN.format(place=place, **shape))
        command = [sys.executable, "-m", "das_jax.cli", "pretrain", str(place / "run.yaml")]
        subprocess.run(command, env=environment, check=True)
        lines = next(place.glob("run/*-acl/metrics.jsonl")).read_text().splitlines()
    rows = [json.loads(line) for line in lines][1:]  # The first has the start in it.
    for name in ("waiting", "seconds_per_step", "tokens_per_second", "mfu"):
        if name in rows[0]:
            report.add(name, spread([row[name] for row in rows]) | shape)


def write_model(directory: Path, tiny: bool) -> None:
    """BERT-base with random weights and the demo's tokenizer, as a HuggingFace directory."""
    import jax

    from das_jax.config.load import load_config
    from das_jax.model import huggingface
    from das_jax.model.huggingface_config import architecture_of
    from das_jax.model.language_model import LanguageModel
    from das_jax.training.workspace import model_directory

    demo = model_directory(load_config(Path("configs/quickstart.yaml")).config)
    config = json.loads((demo / "config.json").read_text())
    if not tiny:
        wide = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        config |= wide | {"num_hidden_layers": 12}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    architecture = architecture_of(directory)
    params = jax.device_get(jax.jit(LanguageModel(architecture).init)(jax.random.key(0)))
    huggingface.export(directory, params, config, architecture, huggingface.load_tokenizer(demo))


if __name__ == "__main__":
    part("waiting", main)
