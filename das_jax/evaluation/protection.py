"""What a method protects: importance per layer, what of it is left free, and what maps have in common."""

import contextlib
import itertools
from dataclasses import dataclass

import numpy as np

from das_jax.errors import UserError
from das_jax.evaluation.curves import stage_directories, stage_name
from das_jax.evaluation.scores import RunScores
from das_jax.methods.das.importance import FEWEST_UNITS, GENERAL_FILE, LM, rank_correlation
from das_jax.methods.das.importance_map import ImportanceMap, load_measured
from das_jax.model.units import Units
from das_jax.training.run_directory import RunDirectory

GENERAL = "general knowledge"
TOP = 0.1
"""The share of a layer's units that counts as its most important ones."""


@dataclass(frozen=True)
class MapAgreement:
    """How much maps of one kind of unit have in common, within layers, the mean over layers and seeds.

    On the diagonal: of the two halves of one map's sample, which tells how much of the rest is noise.

    Attributes:
      correlation_MxM: Spearman's, of raw maps.
      overlap_MxM: the share of the most important tenth of one that is in that of the other.
      chance: the overlap of unrelated maps.
    """

    correlation_MxM: np.ndarray
    overlap_MxM: np.ndarray
    chance: float


@dataclass(frozen=True)
class Protection:
    """The importance of one run, the mean over its seeds.

    Attributes:
      maps: whose importance it is: general knowledge, if it was measured, and every domain, in order.
      seeds: how many are averaged.
      units: units per layer of every kind.
      raw_MxL: the mean |gate gradient| of every layer, per kind.
      free_MxL: the mean of 1 - I, I accumulated up to the map, per kind.
      agreement: per kind that has enough units to rank.
    """

    maps: tuple[str, ...]
    seeds: int
    units: dict[str, int]
    raw_MxL: dict[str, np.ndarray]
    free_MxL: dict[str, np.ndarray]
    agreement: dict[str, MapAgreement]

    @property
    def layers(self) -> int:
        return next(iter(self.raw_MxL.values())).shape[1]


def read_maps(run: RunScores) -> dict[str, ImportanceMap]:
    """The importance maps of a run's finished stages, in order; none if its method measures none.

    One that is damaged, or another's, is left out; `das_jax.training.lost` names it.
    """
    found = {}
    for stage in stage_directories(run.directory):
        for file, name in (
            (GENERAL_FILE, GENERAL),
            (LM.file, stage_name(stage)),
        ):
            if (stage / file).exists() and stage_name(stage) in run.rows:
                with contextlib.suppress(UserError):
                    found[name] = load_measured(stage / file, RunDirectory(run.directory).base)
    return found


def protection_of(runs: tuple[RunScores, ...]) -> Protection | None:
    """The importance of a run with one or several seeds, None if its method measures none."""
    seeds = [read_maps(run) for run in runs]
    names = tuple(name for name in seeds[0] if all(name in maps for maps in seeds))
    if not names:
        return None
    stacks = [[maps[name] for name in names] for maps in seeds]
    kinds = {kind: np.shape(getattr(stacks[0][0].raw, kind))[-1] for kind in Units._fields}

    def by_layer(field: str, kind: str) -> np.ndarray:
        """The mean over units and seeds, [M, L]."""
        values = [[getattr(getattr(each, field), kind) for each in stack] for stack in stacks]
        return np.asarray(values, np.float64).mean(axis=(0, -1))

    return Protection(
        names,
        len(runs),
        kinds,
        raw_MxL={kind: by_layer("raw", kind) for kind in kinds},
        free_MxL={kind: 1 - by_layer("importance", kind) for kind in kinds},
        agreement={
            kind: _agreement(stacks, kind) for kind, units in kinds.items() if units >= FEWEST_UNITS
        },
    )


def _agreement(stacks: list[list[ImportanceMap]], kind: str) -> MapAgreement:
    count = len(stacks[0])
    correlation, overlap = np.empty((2, len(stacks), count, count))
    for s, stack in enumerate(stacks):
        for i, j in itertools.combinations_with_replacement(range(count), 2):
            if i == j:
                pair = np.asarray(getattr(stack[i].halves, kind))
            else:
                pair = np.stack([getattr(stack[m].raw, kind) for m in (i, j)])
            correlation[s, i, j] = correlation[s, j, i] = rank_correlation(*pair)
            overlap[s, i, j] = overlap[s, j, i] = top_overlap(*pair)
    units = np.shape(getattr(stacks[0][0].raw, kind))[-1]
    return MapAgreement(correlation.mean(axis=0), overlap.mean(axis=0), _top(units) / units)


def top_overlap(first_LxU: np.ndarray, second_LxU: np.ndarray) -> float:
    """The share of the most important tenth of each layer's units in one map that is in that of the
    other, the mean over layers; unrelated maps share a tenth of it.
    """
    top = _top(first_LxU.shape[-1])
    tops = [np.argsort(-map_LxU, axis=-1)[:, :top] for map_LxU in (first_LxU, second_LxU)]
    return float(np.mean([np.isin(*layers).mean() for layers in zip(*tops, strict=True)]))


def _top(units: int) -> int:
    return max(1, round(TOP * units))
