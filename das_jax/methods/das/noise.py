"""What makes two passes over one text differ: a model's own dropout or, where it has none, noise on units."""

from dataclasses import dataclass
from typing import Literal

import jax

from das_jax.data.objective import Text
from das_jax.errors import UserError
from das_jax.methods.net import Net
from das_jax.model.architecture import Architecture
from das_jax.model.units import Units, unit_shapes

NoiseName = Literal["dropout", "units"]


@dataclass(frozen=True)
class Noise:
    """Of a pass.

    Dropout is for models that were trained with it: imposed on one that was not, it breaks the model, and
    what is measured then is the broken one.

    Attributes:
      name: the model's own dropout, or a factor 1 + scale * normal on every unit, drawn for an example and
        the same at all its tokens.
      scale: s, of unit noise.
    """

    name: NoiseName = "dropout"
    scale: float = 0.05

    @classmethod
    def of(cls, architecture: Architecture, name: NoiseName | None, scale: float) -> "Noise":
        """What is asked for, or what suits a model.

        Args:
          architecture: of the model.
          name: what is asked for; None for dropout where the model has it.
          scale: of unit noise.

        Raises:
          UserError: the model has no dropout that is asked for.
        """
        if name == "dropout" and not architecture.drops_out:
            raise UserError(
                "method.importance.noise is dropout, but every dropout rate in the model's config.json is 0, "
                "and dropout breaks a model that never knew it; leave it out, for unit noise"
            )
        return cls(name or ("dropout" if architecture.drops_out else "units"), scale)

    def encode(
        self, net: Net, text: Text, keys_B: jax.Array | None, gates: Units | None = None
    ) -> jax.Array:
        """The last hidden state of a noisy pass, [B, T, D]; without keys there is no noise.

        Derivatives by the gates are those of gates that multiply the noise.
        """
        if self.name == "dropout" or keys_B is None:
            return net.encode(text, keys_B, gates)
        noise = unit_noise(net.model.architecture, keys_B, self.scale)
        if gates is not None:
            noise = jax.tree.map(lambda gate, x: gate * x, _by_example(gates), noise)
        return net.encode(text, gates=noise)


DROPOUT = Noise()


def unit_noise(architecture: Architecture, keys_B: jax.Array, scale: float) -> Units:
    """1 + scale * normal, of every example's own, [B, L, U]."""
    shapes = unit_shapes(architecture)

    def draw(key: jax.Array) -> Units:
        keys = jax.random.split(key, len(shapes))
        drawn = map(jax.random.normal, keys, shapes.values())
        return Units(*(1 + scale * each for each in drawn))

    return jax.vmap(draw)(keys_B)


def _by_example(gates: Units) -> Units:
    """[L, U] as [1, L, U]; [B, L, U] as it is."""
    return Units(*(gate if gate.ndim == 3 else gate[None] for gate in gates))
