"""LoRA: low-rank additions to projections (Hu et al., ICLR 2022)."""

from das_jax.methods.contract import Learned, Net, Plan
from das_jax.methods.grafted import Grafted
from das_jax.methods.settings import LoRASettings
from das_jax.model.grafts.lora import LoRA as LoRAGraft


class LoRA(Grafted):
    """Trains the additions; what serves has them merged into the projections."""

    settings: LoRASettings

    paper = "Hu et al., ICLR 2022"

    @property
    def graft(self) -> LoRAGraft:
        return LoRAGraft(self.settings.r, self.settings.alpha, self.settings.targets)

    def net(self, learned: Learned, plan: Plan) -> Net:
        return Net(self.model, self.graft.merged(learned.params))
