"""CLASSIC: an adapter with gates, and a contrast between a text under this domain's gates and under those of
earlier ones (Ke et al., CLASSIC: Continual and Contrastive Learning of Aspect Sentiment Classification Tasks,
EMNLP 2021).
"""

import dataclasses

import jax
import jax.numpy as jnp

from das_jax.data.objective import Drawn
from das_jax.methods.contract import Cost, Domain, Learned, Metrics, Moment, Place, Plan
from das_jax.methods.hard_attention import Gates, HATMemory
from das_jax.methods.hat_adapter import HATAdapter
from das_jax.methods.net import Net
from das_jax.methods.settings.gates import CLASSICSettings
from das_jax.model.heads import mean_pool
from das_jax.objectives.contrastive import nt_xent
from das_jax.objectives.view_mixing import first_mixing, mixture


class CLASSIC(HATAdapter):
    """`hat_adapter`, and from the second domain on NT-Xent between the pooled text under the domain's gates
    and a mixture of that and of the views under the gates of earlier domains, which have no gradient and no
    dropout. What mixes them is drawn anew for every domain, and is not served.
    """

    settings: CLASSICSettings

    paper = "Ke et al., EMNLP 2021"
    refuses = (*HATAdapter.refuses, "decay_to_start")

    def _views(self, earlier: int) -> int:
        """How many earlier domains a step looks at."""
        return earlier if self.settings.views is None else min(earlier, self.settings.views)

    def plan(self, place: Place) -> Plan:
        return dataclasses.replace(
            super().plan(place), cost=Cost(forward=self._views(place.index or 0))
        )

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        began = super().begin(learned, domain)
        views = self._views(domain.index)
        if not views:
            return began
        mixing = first_mixing(jax.random.fold_in(domain.rng, 2), views + 1)
        graft = {**began.params["graft"], "mixing": mixing}
        return began._replace(params={**began.params, "graft": graft})

    def loss_of(
        self,
        net: Net,
        memory: HATMemory,
        drawn: Drawn,
        moment: Moment,
        dropout_keys_B: jax.Array | None,
    ) -> tuple[jax.Array, Metrics]:
        gated, gates = self.gated(net, moment)
        hidden_BxTxD = gated.encode(drawn.text, dropout_keys_B)
        lm = self.lm_loss(gated, hidden_BxTxD, drawn, moment)
        loss, parts = self.regularised(lm, gates, memory)
        if "mixing" not in net.params["graft"]:
            return loss, parts
        still = net._replace(
            params={**net.params, "graft": jax.lax.stop_gradient(net.params["graft"])}
        )

        def view(embedding: Gates) -> jax.Array:
            through = self.through(still, self.served(embedding))
            return mean_pool(through.encode(drawn.text), drawn.text.mask)

        earlier_KxBxD = jax.lax.map(view, self.looked_at(memory, moment))
        current_BxD = mean_pool(hidden_BxTxD, drawn.text.mask)
        views_BxDxK = jnp.moveaxis(jnp.concatenate([earlier_KxBxD, current_BxD[None]]), 0, -1)
        contrast = nt_xent(
            current_BxD,
            mixture(net.params["graft"]["mixing"], views_BxDxK),
            self.settings.temperature,
            axis_name=self.axis_name,
            exchange=net.model.dtype,
        )
        return loss + contrast, {**parts, "contrast": contrast}

    def looked_at(self, memory: HATMemory, moment: Moment) -> Gates:
        """e of earlier domains, [views, L, U] by kind: of all, or of some that the step draws."""
        earlier = len(jax.tree.leaves(memory.embeddings)[0]) - 1
        views = self._views(earlier)
        if views == earlier:
            return {kind: rows[:-1] for kind, rows in memory.embeddings.items()}
        key = jax.random.fold_in(moment.rng, moment.step)
        drawn = jnp.sort(jax.random.choice(key, earlier, (views,), replace=False))
        return {kind: rows[drawn] for kind, rows in memory.embeddings.items()}
