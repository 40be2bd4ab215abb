"""What a comparison amounts to: a sentence of every run beside the first, with all that it is ranked by."""

from collections.abc import Sequence

from das_jax.evaluation.comparison import (
    NOT_PAIRED,
    ONE_SEED,
    SHOWN,
    Ranked,
    last_difference,
    rank,
    rankings,
    relative_flops,
)
from das_jax.evaluation.score_table import Kind
from das_jax.evaluation.summary import Summary

SHORT: dict[Kind, str] = {
    "tasks": "end-task",
    "heldout": "held-out",
    "cloze": "cloze",
    "choices": "multiple-choice",
    "minimal_pairs": "minimal-pair",
    "harness": "harness",
}
COLUMNS: dict[Kind, str] = {
    "tasks": "end tasks",
    "heldout": "texts",
    "cloze": "sets of facts",
    "choices": "sets of questions",
    "minimal_pairs": "sets of minimal pairs",
    "harness": "tasks of the harness",
}
PHRASES = {
    SHOWN["better"]: "better in",
    SHOWN["worse"]: "worse in",
    SHOWN["unclear"]: "no difference that these seeds can show in",
    SHOWN[""]: "equal in",
    ONE_SEED: "one pre-training seed, which shows nothing of another, has",
    NOT_PAIRED: "not compared, as the seeds are not the same, in",
}


def headlines(summaries: Sequence[Summary]) -> list[str]:
    """A sentence of every run but the first: what seeds show it to be better in, what worse, what they do
    not show, on how many texts and tasks it ends better and worse, and its cost.
    """
    return [_headline(summaries, summary) for summary in summaries[1:]]


def _headline(summaries: Sequence[Summary], summary: Summary) -> str:
    found: dict[str, list[str]] = {}
    for kind, measure in rankings(summaries):
        less = summary.tables[kind].less_is_better(measure)
        for ranked in rank(summaries, kind, measure):
            if ranked.summary is summary:
                text = f"{SHORT[kind]} {measure}{_difference(ranked, less)}"
                found.setdefault(ranked.shown, []).append(text)
    parts = [
        f"{said} {', '.join(found[shown])}" for shown, said in PHRASES.items() if shown in found
    ]
    parts += [each for kind in summary.tables if (each := _columns(summary, summaries[0], kind))]
    flops = relative_flops(summary, summaries[0])
    parts.append("FLOPs not known" if flops is None else f"{flops:.2f} times the FLOPs")
    return f"{summary.name} against {summaries[0].name}: {'; '.join(parts)}."


def _difference(ranked: Ranked, less_is_better: bool) -> str:
    difference = ranked.difference
    if difference is None or ranked.shown == SHOWN[""]:
        return ""
    if ranked.shown == ONE_SEED:
        return f" {difference.mean:+.3f} ({SHOWN[difference.direction(not less_is_better)]})"
    return f" {difference.mean:+.3f} {difference.interval('+')}"


def _columns(summary: Summary, reference: Summary, kind: Kind) -> str:
    """On how many columns the last model is better and worse; empty where the runs do not pair."""
    table = summary.tables[kind]
    columns = [
        last_difference(summary, reference, kind, column) for column in range(len(table.columns))
    ]
    known = [each for each in columns if each is not None]
    if not known:
        return ""
    means = [each.direction(table.larger_is_better) for each in known]
    better, worse = means.count("better"), means.count("worse")
    if better == worse == 0:
        return f"ends equal on {len(known)} {COLUMNS[kind]}"
    text = f"ends better on {better}, worse on {worse} of {len(known)} {COLUMNS[kind]}"
    if len(reference.seeds) > 1:
        sure = [each.verdict(table.larger_is_better) for each in known]
        text += f" ({sure.count('better') + sure.count('worse') or 'none'} beyond chance)"
    return text
