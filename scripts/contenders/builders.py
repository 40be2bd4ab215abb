"""Every contender by name; only its own framework is imported."""

from .contender import Contender
from .sizes import Sizes


def build(name: str, sizes: Sizes) -> Contender:
    """A contender on this machine's device.

    Raises:
      KeyError: there is none of that name.
    """
    if name.startswith("das_jax."):
        from . import das_jax_steps

        return das_jax_steps.build(name, sizes)
    from . import torch_steps

    return torch_steps.BUILDERS[name](sizes)
