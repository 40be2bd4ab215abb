"""O-LoRA: every domain's low-rank additions in a subspace of their own (Wang et al., EMNLP 2023 Findings)."""

import dataclasses

import jax

from das_jax.data.batch import Batch
from das_jax.methods.contract import Domain, Learned, Memory, Method, Metrics, Moment, Place, Plan
from das_jax.methods.grafted import fresh
from das_jax.methods.net import Net
from das_jax.methods.settings.grafts import OLoRASettings
from das_jax.model.grafts.graft import without_graft
from das_jax.model.grafts.lora import ordered
from das_jax.model.grafts.olora import EARLIER, joined, overlap
from das_jax.model.grafts.olora import OLoRA as OLoRAGraft
from das_jax.objectives.collectives import global_mean


class OLoRA(Method):
    """MLM + lambda * sum of i < t of |A_i A_t^T|, where the earlier domains' pairs are frozen and still add.

    All pairs are parameters and the model's own stay as they were, so that a checkpoint has both the merged
    model and the LoRA beside its base.
    """

    settings: OLoRASettings

    paper = "Wang et al., EMNLP 2023"
    kind = "frozen model and grafts"
    refuses = ("averaging", "decay_to_start")

    def graft(self, earlier: int) -> OLoRAGraft:
        """What is put into the model after so many domains."""
        settings = self.settings
        return OLoRAGraft(settings.r, settings.alpha, ordered(settings.targets), earlier)

    def plan(self, place: Place) -> Plan:
        return Plan(
            dataclasses.replace(self.model, graft=self.graft(place.index or 0)),
            trains=((f"graft/{EARLIER}/.*", False), ("graft/.*", True), (".*", False)),
            learning_rate=self.settings.learning_rate,
        )

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """A fresh pair; what was learned joins the earlier ones."""
        base = without_graft(learned.params)
        graft = fresh(self.graft(0), self.model.architecture, domain.rng, base)
        if domain.index:
            graft = {**graft, EARLIER: _joined(learned.params["graft"])}
        return learned._replace(params={**base, "graft": graft})

    def loss(
        self, net: Net, memory: Memory, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        loss, parts = super().loss(net, memory, batch, moment)
        graft = net.params["graft"]
        if EARLIER not in graft:
            return loss, parts
        shared = global_mean(overlap(graft, self.settings.norm), self.axis_name)
        return loss + self.settings.strength * shared, {**parts, "overlap": shared}

    def net(self, learned: Learned, plan: Plan) -> Net:
        """With all pairs in the weights."""
        assert isinstance(plan.model.graft, OLoRAGraft)
        return Net(self.model, plan.model.graft.merged(learned.params))


_joined = jax.jit(joined)
