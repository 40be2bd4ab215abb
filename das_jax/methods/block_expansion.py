"""Block expansion: new layers between the old ones (Wu et al., LLaMA Pro, ACL 2024)."""

from das_jax.methods.grafted import Grafted
from das_jax.methods.settings.grafts import BlockExpansionSettings
from das_jax.model.grafts.blocks import Blocks


class BlockExpansion(Grafted):
    """The model grows before the first domain, and is at first what it was."""

    settings: BlockExpansionSettings

    paper = "Wu et al., ACL 2024"
    kind = "frozen model, which grows"

    @property
    def graft(self) -> Blocks:
        return Blocks(self.settings.every, residual=self.model.architecture.placement == "post")
