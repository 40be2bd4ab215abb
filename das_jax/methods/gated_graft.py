"""Methods that freeze the pretrained model and train one graft for all domains, through gates of each."""

import dataclasses
from collections.abc import Mapping

import jax

from das_jax.methods.contract import Domain, History, Learned, Moment, Place, Plan, Transforms
from das_jax.methods.grafted import fresh
from das_jax.methods.hard_attention import DECAYS, Gates, HardAttention, HATMemory, row_of
from das_jax.methods.net import Net
from das_jax.methods.partition import Rules
from das_jax.methods.settings.gates import GatedGraftSettings
from das_jax.model.grafts.gates import folded, unit_shapes
from das_jax.model.grafts.graft import Graft
from das_jax.model.language_model import Params
from das_jax.model.leaves import LEAVES, Leaves


class GatedGraft(HardAttention):
    """What a graft's units have learned is closed to later domains, and the model itself is frozen, so that
    nothing is forgotten; what is left free, all domains share.
    """

    settings: GatedGraftSettings

    kind = "frozen model and a graft, gates"

    def grafted(self, stage: int) -> Graft:
        """What is put into the model for a stage; it may grow from one to the next."""
        raise NotImplementedError

    def leaves(self, graft: Graft) -> Leaves:
        """Its parameters, and the units between which they lie."""
        return graft.leaves()

    def trains(self, stage: int) -> Rules:
        """Which of its parameters a stage trains."""
        return (("graft/.*", True),)

    @property
    def units(self) -> Mapping[str, tuple[int, int]]:
        first = self.grafted(0)
        return unit_shapes(first, self.leaves(first), self.model.architecture)

    def check(self) -> None:
        self.grafted(0).check(self.model.architecture)

    def plan(self, place: Place) -> Plan:
        stage = place.index or 0
        return Plan(
            dataclasses.replace(self.model, graft=self.grafted(stage)),
            trains=(*self.trains(stage), (".*", False)),
            decays=DECAYS,
            learning_rate=self.settings.learning_rate,
        )

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """Inserts what is new of the graft, and draws e."""
        return super().begin(learned._replace(params=self.inserted(learned.params, domain)), domain)

    def inserted(self, params: Params, domain: Domain) -> Params:
        """The parameters with the graft as it starts, which the first domain inserts."""
        return params if "graft" in params else {**params, "graft": self.drawn(params, domain)}

    def drawn(self, params: Params, domain: Domain) -> Params:
        """A graft of this stage as it starts, from a key of its own."""
        key = jax.random.fold_in(domain.rng, 1)
        return fresh(self.grafted(domain.index), self.model.architecture, key, params)

    def through(self, net: Net, gates: Gates) -> Net:
        """With the gates in the graft's matrices, and without what else is trained."""
        graft = net.model.graft
        assert graft is not None
        own = folded(net.params["graft"], gates, self.leaves(graft))
        return net._replace(params={**net.params, "graft": own})

    def transforms(self, memory: HATMemory, moment: Moment) -> Transforms:
        return self.closing(memory, (*self.leaves(self.grafted(0)), *LEAVES), lambda path: None)

    def net(self, learned: Learned, plan: Plan) -> Net:
        embedding = learned.params["graft"]["embedding"]
        return self.through(Net(plan.model, learned.params), self.served(embedding))

    def net_of(self, history: History, latest: Learned, stage: int) -> Net:
        model = dataclasses.replace(self.model, graft=self.grafted(stage))
        gates = self.served(row_of(latest.memory.embeddings, stage))
        return self.through(Net(model, latest.params), gates)
