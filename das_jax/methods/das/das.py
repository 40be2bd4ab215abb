"""DAS: soft-masked gradients and a contrastive loss (Ke et al., ICLR 2023)."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from das_jax.data.batch import Batch
from das_jax.data.objective import Drawn
from das_jax.errors import UserError
from das_jax.methods.contract import (
    Cost,
    Domain,
    Learned,
    Method,
    Metrics,
    Moment,
    Place,
    Plan,
    Transforms,
    UpdateTrace,
)
from das_jax.methods.das import importance, importance_map
from das_jax.methods.das.importance import Losses, RawImportance
from das_jax.methods.das.noise import Noise
from das_jax.methods.das.noise_check import said_of_noise
from das_jax.methods.net import Net
from das_jax.methods.settings.das import ContrastiveSettings as ContrastiveSettings
from das_jax.methods.settings.das import DASSettings
from das_jax.methods.soft_mask import adaptive_soft_mask, effective_mask, soft_mask
from das_jax.methods.unmasked import unmasked_update
from das_jax.model.heads import POOLS
from das_jax.model.language_model import Params
from das_jax.model.leaves import OWNERS
from das_jax.model.units import Rules, Units, full_units, sharing
from das_jax.objectives.contrastive import contrastive_loss


class DASMemory(NamedTuple):
    """I^(<=t), all that DAS carries from domain to domain, [L, U]."""

    importance: Units


class Keys(NamedTuple):
    """Dropout keys of the four passes, one per example each, [B]."""

    lm: jax.Array
    view1: jax.Array
    view2: jax.Array
    gated: jax.Array


class DAS(Method):
    """Measures what must not be forgotten, protects it from updates, and learns what complements it."""

    settings: DASSettings

    paper = "Ke et al., ICLR 2023"
    kind = "whole model, masked updates"

    def check(self) -> None:
        """Looks at what suits the model, and at the file of I^(0), which is needed after the warm-up only."""
        self._check_model()
        if (initial := self.settings.importance.initial) is not None:
            importance_map.load(initial, self.model.architecture)

    def plan(self, place: Place) -> Plan:
        self._check_model()
        # A step would say it, after the warm-up and the measuring; only it knows the devices.
        self._contrasted(place.batch_size, "a step")
        return super().plan(place)

    @classmethod
    def lost(cls, settings: Any, directory: Path, index: int, base: Path) -> list[str]:
        found = []
        for file in cls.measured(settings, index):
            try:
                importance_map.load_measured(directory / file, base)
            except UserError as error:
                reason = str(error).partition(";")[0]
                found.append(
                    f"{reason}; the report goes without it, what it protects is in the checkpoints"
                )
        return found

    @classmethod
    def measured(cls, settings: Any, index: int) -> list[str]:
        """The files of the maps that are measured before and after a stage."""
        settings = settings.importance
        if settings.source == "random":
            return []
        general = index == 0 and settings.general and settings.initial is None
        return [*[importance.GENERAL_FILE] * general, importance.LM.file]

    @property
    def noise(self) -> Noise:
        """Of the proxy's passes, and of views."""
        settings = self.settings.importance
        return Noise.of(self.model.architecture, settings.noise, settings.noise_scale)

    @property
    def proxy(self) -> Losses:
        """What general knowledge is measured by."""
        return importance.general(self.model.architecture, self.settings.importance)

    @property
    def anchored_by_lm(self) -> bool:
        """Whether the language-model pass is the first view, too."""
        said = self.settings.contrastive.anchor
        return self.model.architecture.causal if said is None else said != "clean"

    @property
    def owners(self) -> Rules:
        """Which units own what, and how the heads that share a key-value head do."""
        return sharing(OWNERS, self.settings.soft_mask.shared)

    def _check_model(self) -> None:
        """Raises UserError for what does not suit the model."""
        architecture, contrastive = self.model.architecture, self.settings.contrastive
        Noise.of(architecture, self.settings.importance.noise, 1.0)
        if contrastive.anchor == ("masked" if architecture.causal else "lm"):
            kind, other = (
                ("a decoder", "lm") if architecture.causal else ("a masked model", "masked")
            )
            raise UserError(
                f"method.contrastive.anchor is {contrastive.anchor}, but the model is {kind}; say {other} or "
                "clean, or leave it out"
            )
        if contrastive.views == "complement" and self.anchored_by_lm:
            raise UserError(
                "method.contrastive.views is complement, which needs anchor: clean; the language-model pass, "
                "which a decoder's first view is, learns with all units"
            )

    def init(self, params: Params) -> DASMemory:
        return DASMemory(full_units(self.model.architecture, 0.0))

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """I^(0), the general knowledge, before the first domain."""
        return learned if domain.index > 0 else self.learn_general(learned, domain)

    def learn_general(self, learned: Learned, domain: Domain) -> Learned:
        """I^(0): of the proxy KL, or from a file; 0 if it is not to be protected."""
        settings = self.settings.importance
        if not settings.general:
            return learned
        if (initial := settings.initial) is not None:
            loaded = domain.read(
                lambda: importance_map.load(initial, self.model.architecture).importance,
                like=learned.memory.importance,
            )
            loaded = importance.of_kinds(loaded, settings.kinds, 0.0)
            return learned._replace(memory=DASMemory(loaded))
        if settings.source == "measured" and self.noise.name == "units":
            noise, size = self.noise, settings.batch_size
            domain.log(said_of_noise(self, noise, learned.params, domain, size))
        return self._learn_importance(self.proxy, learned, domain, "general knowledge")

    def end(self, learned: Learned, domain: Domain) -> Learned:
        """I^(<=t), with what the model now knows of this domain."""
        return self._learn_importance(importance.LM, learned, domain, domain.name)

    def _learn_importance(
        self, losses: Losses, learned: Learned, domain: Domain, of_what: str
    ) -> Learned:
        settings = self.settings.importance
        if settings.source == "random":
            rng = jax.random.fold_in(domain.rng, losses.number)
            own = self._normalised(importance.drawn(self.model.architecture, rng))
            domain.log(f"importance of {of_what}: drawn at random")
            return learned._replace(memory=_with_own(learned.memory, own))
        raw = importance.measure(
            self, losses, learned.params, domain, settings, f"importance of {of_what}"
        )
        correlations, warning = importance.self_test(raw)
        domain.log(
            f"importance of {of_what}: {raw.examples} examples, split-half correlation "
            + ", ".join(f"{kind} {rho:.2f}" for kind, rho in correlations.items())
        )
        if warning:
            domain.log(f"warning: {warning}")
        own = self._normalised(raw.mean)
        memory = _with_own(learned.memory, own)
        self._save_map(raw, own, memory.importance, domain, losses)
        return learned._replace(memory=memory)

    def _normalised(self, raw: Units) -> Units:
        settings = self.settings.importance
        own = importance.normalise(raw, settings.normalization)
        return importance.of_kinds(own, settings.kinds, 0.0)

    def _save_map(
        self, raw: RawImportance, own: Units, accumulated: Units, domain: Domain, losses: Losses
    ) -> None:
        if domain.directory is not None:
            path = domain.directory / losses.file
            try:
                importance_map.save(path, self.model.architecture, raw, own, accumulated)
            except UserError as error:  # The memory has what protects; the file is for people.
                domain.log(f"warning: {error}; training goes on without it")

    def loss(
        self, net: Net, memory: DASMemory, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        draw_key, *dropout_keys = jax.random.split(moment.rng, 5)
        drawn = self.objective.draw(batch.tokens, batch.example_keys(draw_key))
        keys = Keys(*(batch.example_keys(key) for key in dropout_keys))
        return self.loss_of(net, memory, drawn, moment, keys)

    def loss_of(
        self,
        net: Net,
        memory: DASMemory,
        drawn: Drawn,
        moment: Moment,
        keys: Keys | None,
    ) -> tuple[jax.Array, Metrics]:
        """LM loss + lambda * contrastive (eq. 9), of what was drawn already.

        Args:
          net: the model.
          memory: holds I^(<=t-1), the gates of the view "only the previous knowledge".
          drawn: what is read, and what is predicted.
          moment: where in the run this is.
          keys: dropout keys of the passes; None switches dropout off.
        """
        settings = self.settings.contrastive

        hidden_BxTxD = net.encode(drawn.text, None if keys is None else keys.lm)
        lm = self.lm_loss(net, hidden_BxTxD, drawn, moment)
        if settings.weight == 0:
            return lm, {self.objective.loss: lm}
        rows = self._contrasted(len(drawn.labels), "a device")
        owned = importance.of_kinds(memory.importance, self.settings.importance.kinds, 1.0)
        free: Units | None = None
        if settings.views == "complement":
            free = jax.tree.map(lambda x: 1 - x, memory.importance)
        text = drawn.clean.rows(rows)

        def noisy(keys_B: jax.Array | None) -> jax.Array:
            return self.noise.encode(net, text, keys_B, free)

        view1, view2, gated = (None, None, None) if keys is None else (k[rows] for k in keys[1:])
        views = (
            hidden_BxTxD[rows] if self.anchored_by_lm else noisy(view1),
            noisy(view2),
            # What the earlier domains know is given as it is, but for the model's own dropout.
            net.encode(text, gated, owned),
        )
        pool = POOLS[settings.pool]
        anchor, positive, previous = (pool(view, text.mask) for view in views)
        contrastive = contrastive_loss(
            *(anchor, positive, previous, settings.temperature),
            axis_name=self.axis_name,
            exchange=net.model.dtype,
            centre=settings.centre,
        )
        loss = lm + settings.weight * contrastive
        return loss, {self.objective.loss: lm, "contrastive": contrastive}

    def _contrasted(self, batch_size: int, of: str) -> slice:
        """The examples of a shard that the views are made of: the same ones on any number of devices."""
        step = self.settings.contrastive.subsample
        if self.settings.contrastive.weight and batch_size % step:
            raise UserError(
                f"method.contrastive.subsample is {step}, which does not divide the {batch_size} examples "
                f"of {of}; change it, or training.batch_size"
            )
        return slice(None, None, step)

    def cost(self) -> Cost:
        settings = self.settings.contrastive
        if settings.weight == 0:
            return Cost()
        return Cost(full=1 + (2 if self.anchored_by_lm else 3) / settings.subsample)

    def transforms(self, memory: DASMemory, moment: Moment) -> Transforms:
        settings = self.settings.soft_mask
        if settings.apply_to == "none":
            return Transforms()
        mask = adaptive_soft_mask if settings.adapt else soft_mask
        return Transforms(**{settings.apply_to: mask(self._protected(memory), self.owners)})

    def observe(self, memory: DASMemory, trace: UpdateTrace) -> Metrics:
        """The effective mask: what is left of the movement, per kind of unit; and how strong the mask is, if
        that is adapted.
        """
        settings, metrics = self.settings.soft_mask, {}
        if settings.apply_to == "none":
            return {}
        protected = self._protected(memory)
        if settings.adapt:
            strength = metrics["mask_strength"] = trace.first_moment.strength
            # Exact but for what the strength changed while the first moment remembers.
            protected = jax.tree.map(lambda importance: strength * importance, protected)
        unmasked = trace.finished
        if settings.apply_to != "update":
            unmasked = unmasked_update(
                trace, protected, settings.apply_to == "gradient", self.owners
            )
        ratios = effective_mask(trace.masked, unmasked, self.owners, protected)
        return metrics | {f"effective_mask/{kind}": ratio for kind, ratio in ratios.items()}

    def _protected(self, memory: DASMemory) -> Units:
        return importance.with_floor(memory.importance, self.settings.soft_mask.floor)


def _with_own(memory: DASMemory, own: Units) -> DASMemory:
    return DASMemory(importance.accumulate(own, memory.importance))
