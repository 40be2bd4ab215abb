"""What is shared of a warm-up, and what every run has of its own."""

from pathlib import Path

from das_jax.comparing.warm_up import begin_with_warm_up, keep_warm_up
from das_jax.config.load import load_config
from das_jax.files import write_json, write_text
from das_jax.training.run_directory import RunDirectory
from tests.project import Project


def test_only_what_is_written_once_is_linked(project: Project, tmp_path: Path) -> None:
    """Wherever the comparison is: here below a directory that is called as what is linked."""
    place = tmp_path / "checkpoints"
    one, two = (
        load_config(project.config, [f"--output_dir={place / name}"]).config
        for name in ("one", "two")
    )
    run, other = (RunDirectory(place / name) for name in ("one", "two"))
    files = ("checkpoints/5/weights", "huggingface/model", "metrics.jsonl", "tensorboard/events")
    for file in (*(f"00-news/{file}" for file in files), "base/config.json"):
        write_text(run.path / file, "x")
    (run.path / "01-papers" / "checkpoints").mkdir(parents=True)
    texts = ("news", "papers", "reviews")
    inputs = {**{f"the text of {name}": "x" for name in texts}, f"the model {one.model.path}": "x"}
    write_json(run.path / "inputs.json", inputs)
    row = dict.fromkeys(texts, 1.0)
    run.write_scores({"base model": row, "news": row, "papers": row}, None, "nats per masked token")
    keep_warm_up(one, tmp_path / "kept")
    assert begin_with_warm_up(two, tmp_path / "kept")
    links = {file: (other.path / "00-news" / file).stat().st_nlink for file in files}
    assert links == dict(zip(files, (3, 3, 1, 1), strict=True))
    assert list(other.scores()) == ["base model", "news"]
    assert not begin_with_warm_up(two, tmp_path / "kept"), "a run that is begun is left alone"
