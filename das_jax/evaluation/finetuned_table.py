"""What fine-tuning on one task gave, as a table for the terminal."""

from rich.table import Table

from das_jax.data.tasks import Task
from das_jax.evaluation.baselines import baselines
from das_jax.evaluation.finetune import Finetuned
from das_jax.evaluation.statistics import estimate, samples_note


def finetuned_table(task: Task, finetuned: Finetuned) -> Table:
    """A row per seed, their mean with half of its 95 % interval, and the baselines."""
    names = list(finetuned.scores[0])
    note = samples_note("fine-tuning", range(len(finetuned.scores)))
    table = Table(title=f"{task.settings.name}: test scores", caption=note)
    table.add_column("seed")
    table.add_column("epoch", justify="right")
    for name in names:
        table.add_column(name.replace("_", "-"), justify="right")
    for seed, (epoch, scores) in enumerate(zip(finetuned.epochs, finetuned.scores, strict=True)):
        table.add_row(str(seed), str(epoch), *(f"{scores[name]:.3f}" for name in names))
    table.add_section()
    means = [str(estimate([scores[name] for scores in finetuned.scores])) for name in names]
    table.add_row("mean", "", *means, style="bold")
    for baseline, scores in baselines(task).items():
        table.add_row(baseline, "", *(f"{scores[name]:.3f}" for name in names), style="dim")
    return table
