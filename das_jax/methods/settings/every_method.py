"""The settings of every method, and what they cannot be combined with.

Apart from the methods, as all settings are, so that a configuration is checked before these import what is
heavy.
"""

from typing import Annotated

from pydantic import Field

from das_jax.methods.settings.das import DASSettings, DGASettings
from das_jax.methods.settings.gates import (
    BCLSettings,
    CLASSICSettings,
    CPTSettings,
    HardAttentionSettings,
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
from das_jax.methods.settings.policies import PoliciesSettings
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

MethodSettings = Annotated[
    AdapterSettings
    | ParallelAdapterSettings
    | PfeifferAdapterSettings
    | BCLSettings
    | BlockExpansionSettings
    | CLASSICSettings
    | CPTSettings
    | DASSettings
    | DEMixSettings
    | DERppSettings
    | DGASettings
    | DistillSettings
    | ELLESettings
    | EWCSettings
    | HATSettings
    | HATAdapterSettings
    | IndependentSettings
    | L2Settings
    | LoRASettings
    | NaiveSettings
    | OLoRASettings
    | PoolSettings
    | PromptSettings
    | ReplaySettings
    | SelfReplaySettings,
    Field(discriminator="name"),
]


def positions_before(method: MethodSettings) -> int:
    """How many of the model's positions the method's own vectors take, before every text."""
    return method.length if isinstance(method, PromptSettings) else 0


def _mask(method: MethodSettings) -> tuple[str, str]:
    """The key that says where a mask acts, and what it says."""
    if isinstance(method, DASSettings | DGASettings):
        return "method.soft_mask.apply_to", method.soft_mask.apply_to
    if isinstance(method, HardAttentionSettings):
        return "method.apply_to", method.apply_to
    return "", ""


def needs_fresh_moments(method: MethodSettings) -> str | None:
    """Why Adam's second moment cannot be carried from domain to domain, and what to set; None if it can."""
    if isinstance(method, OLoRASettings):
        return "method.name olora begins every domain with additions of its own; set it to fresh"
    if isinstance(method, ELLESettings):
        return (
            "method.name elle makes the model grow, and the moments would not fit; set it to fresh"
        )
    if isinstance(method, CLASSICSettings):
        return "method.name classic mixes views by parameters that are new in every domain; set it to fresh"
    key, where = _mask(method)
    if where != "gradient":
        return None
    return (
        f"with {key}: gradient it holds gradients that other domains' masks scaled; set one to fresh, or the "
        "other to update"
    )


def needs_two_moments(method: MethodSettings) -> str | None:
    """The key and value that only an optimizer with a first and a second moment can have; None if none."""
    key, where = _mask(method)
    return f"{key} is first_moment" if where == "first_moment" else None


def wrong_lists(method: MethodSettings, domains: int) -> tuple[str, str] | None:
    """The key of a list that has not one number for every domain but the first, and why it must; None if
    there is none.
    """
    if isinstance(method, ELLESettings):
        for part, numbers in vars(method.growth).items():
            if isinstance(numbers, tuple) and len(numbers) != domains - 1:
                key = f"method.growth.{part}"
                return key, (
                    f"{key} has {len(numbers)} numbers, but of {domains} domains the model grows before "
                    f"{domains - 1}; give one for each of these, or one for all in place of the list"
                )
    return None


def needs_one_state(method: MethodSettings, policies: PoliciesSettings) -> str | None:
    """Why the next domain has to go on from the very parameters that serve; None if it need not."""
    if policies.averaging is not None:
        return "policies.averaging merges what one domain after the other goes on from"
    if isinstance(method, HardAttentionSettings):
        return f"method.name {method.name} keeps the units of earlier domains as they were served"
    if isinstance(method, OLoRASettings):
        return "method.name olora keeps the additions of earlier domains as they were served"
    return None


def general_text(method: MethodSettings) -> bool | float:
    """How much general text a method is set to read; 0 or false for none."""
    # A teacher of before the first domain needs no text.
    return False if isinstance(method, DistillSettings) else getattr(method, "general", False)
