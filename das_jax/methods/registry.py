"""Every method: its settings and its class."""

from collections.abc import Callable
from typing import Any

from das_jax.data.masking import Masking
from das_jax.data.salient_masking import SalientMasking
from das_jax.data.span_masking import SpanMasking
from das_jax.errors import UserError
from das_jax.methods.adapter import Adapter, ParallelAdapter, PfeifferAdapter
from das_jax.methods.bcl import BCL
from das_jax.methods.block_expansion import BlockExpansion
from das_jax.methods.classic import CLASSIC
from das_jax.methods.contract import Method
from das_jax.methods.cpt import CPT
from das_jax.methods.das.das import DAS
from das_jax.methods.das.dga import DGA
from das_jax.methods.demix import DEMix
from das_jax.methods.derpp import DERpp
from das_jax.methods.distill import Distill
from das_jax.methods.elle import ELLE
from das_jax.methods.ewc import EWC
from das_jax.methods.hat import HAT
from das_jax.methods.hat_adapter import HATAdapter
from das_jax.methods.independent import Independent
from das_jax.methods.l2 import L2
from das_jax.methods.lora import LoRA
from das_jax.methods.naive import Naive
from das_jax.methods.olora import OLoRA
from das_jax.methods.policies.averaging import Averaging
from das_jax.methods.policies.decay_to_start import DecayToStart
from das_jax.methods.policies.ema import EMA
from das_jax.methods.policies.general_share import GeneralShare
from das_jax.methods.policies.ir_dro import IRDRO
from das_jax.methods.policies.rho1 import RHO1
from das_jax.methods.policies.sharpness import Sharpness
from das_jax.methods.policy import Policy
from das_jax.methods.pool import Pool
from das_jax.methods.prompt import Prompt
from das_jax.methods.replay import Replay
from das_jax.methods.self_replay import SelfReplay
from das_jax.methods.settings.das import DASSettings, DGASettings
from das_jax.methods.settings.gates import (
    BCLSettings,
    CLASSICSettings,
    CPTSettings,
    HATAdapterSettings,
    HATSettings,
)
from das_jax.methods.settings.grafts import (
    AdapterSettings,
    BlockExpansionSettings,
    DEMixSettings,
    LoRASettings,
    OLoRASettings,
    ParallelAdapterSettings,
    PfeifferAdapterSettings,
    PromptSettings,
)
from das_jax.methods.settings.growth import ELLESettings
from das_jax.methods.settings.policies import (
    IRDROSettings,
    PoliciesSettings,
    RHO1Settings,
    SpansSettings,
)
from das_jax.methods.settings.whole_model import (
    DERppSettings,
    DistillSettings,
    EWCSettings,
    IndependentSettings,
    L2Settings,
    NaiveSettings,
    PoolSettings,
    ReplaySettings,
    SelfReplaySettings,
)

METHODS: dict[type, type[Method]] = {
    DASSettings: DAS,
    DGASettings: DGA,
    NaiveSettings: Naive,
    IndependentSettings: Independent,
    PoolSettings: Pool,
    ReplaySettings: Replay,
    DERppSettings: DERpp,
    DistillSettings: Distill,
    SelfReplaySettings: SelfReplay,
    AdapterSettings: Adapter,
    PfeifferAdapterSettings: PfeifferAdapter,
    ParallelAdapterSettings: ParallelAdapter,
    PromptSettings: Prompt,
    BlockExpansionSettings: BlockExpansion,
    DEMixSettings: DEMix,
    ELLESettings: ELLE,
    EWCSettings: EWC,
    HATSettings: HAT,
    HATAdapterSettings: HATAdapter,
    CPTSettings: CPT,
    CLASSICSettings: CLASSIC,
    BCLSettings: BCL,
    L2Settings: L2,
    LoRASettings: LoRA,
    OLoRASettings: OLoRA,
}

SELECTIONS: dict[type, type[Policy]] = {RHO1Settings: RHO1, IRDROSettings: IRDRO}


def method_class(settings: Any) -> type[Method]:
    """The class that the settings configure; the contract's own, plain training, if there are none."""
    return Method if settings is None else METHODS[type(settings)]


def masking_of(settings: PoliciesSettings, plain: Masking, marks: Callable[[], bytes]) -> Masking:
    """What the domains are learned with.

    Args:
      settings: of all policies.
      plain: what held-out text is measured with, and general text is learned with before the first domain.
      marks: makes those of the vocabulary, if they are needed; see `data.word_marks`.
    """
    if (chosen := settings.masking) is None:
        return plain
    usual = plain.common
    usual |= {"p": chosen.p, "longest": chosen.max, "per_span": chosen.per == "span"}
    if isinstance(chosen, SpansSettings):
        return SpanMasking(**usual, marks=marks())
    return SalientMasking(**usual, marks=marks(), one_per_chunk=chosen.one_per_chunk)


def policies_of(
    settings: PoliciesSettings, method: Method, *, b2: float, carried: bool, batch_size: int
) -> tuple[Policy, ...]:
    """The policies that the settings configure, in the order in which they act.

    Args:
      settings: of all policies.
      method: what they are combined with.
      b2: Adam's decay of the second moment.
      carried: whether that goes on from domain to domain.
      batch_size: examples of a step.

    Raises:
      UserError: the method refuses one.
    """
    found: list[Policy] = []
    if settings.general_share:
        found.append(GeneralShare(method, settings.general_share))
    if settings.decay_to_start:
        found.append(DecayToStart(method, settings.decay_to_start))
    if settings.selection is not None:
        found.append(SELECTIONS[type(settings.selection)](method, settings.selection))
    if settings.sharpness is not None:
        found.append(Sharpness(method, settings.sharpness))
    if settings.ema is not None:
        found.append(EMA(method, settings.ema))
    if settings.averaging is not None:
        found.append(Averaging(method, settings.averaging, b2, carried, batch_size))
    for policy in found:
        if policy.name in method.refuses:
            raise UserError(
                f"method.name {method.settings.name} cannot be combined with policies.{policy.name}; leave "
                "one of them out"
            )
    return tuple(found)
