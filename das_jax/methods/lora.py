"""LoRA: low-rank additions to projections (Hu et al., ICLR 2022)."""

from das_jax.methods.contract import Learned, Plan
from das_jax.methods.grafted import Grafted
from das_jax.methods.net import Net
from das_jax.methods.settings.grafts import LoRASettings
from das_jax.model.grafts.lora import LoRA as LoRAGraft
from das_jax.model.grafts.lora import ordered


class LoRA(Grafted):
    """Trains the additions; what serves has them merged into the projections."""

    settings: LoRASettings

    paper = "Hu et al., ICLR 2022"

    @property
    def graft(self) -> LoRAGraft:
        settings = self.settings
        return LoRAGraft(settings.r, settings.alpha, ordered(settings.targets))

    def net(self, learned: Learned, plan: Plan) -> Net:
        return Net(self.model, self.graft.merged(learned.params))
