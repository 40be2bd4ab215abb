"""DAS: soft-masked gradients and a contrastive loss (Ke et al., ICLR 2023)."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from das_jax.data.batch import Batch
from das_jax.data.masking import Masked
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
from das_jax.methods.net import Net
from das_jax.methods.settings.das import ContrastiveSettings as ContrastiveSettings
from das_jax.methods.settings.das import DASSettings, ImportanceSettings
from das_jax.methods.soft_mask import adaptive_soft_mask, effective_mask, soft_mask
from das_jax.methods.unmasked import unmasked_update
from das_jax.model.heads import mean_pool
from das_jax.model.language_model import Params
from das_jax.model.units import Units, full_units
from das_jax.objectives.contrastive import contrastive_loss


class DASMemory(NamedTuple):
    """I^(<=t), all that DAS carries from domain to domain, [L, U]."""

    importance: Units


class Keys(NamedTuple):
    """Dropout keys of the four passes, one per example each, [B]."""

    masked: jax.Array
    view1: jax.Array
    view2: jax.Array
    gated: jax.Array


class DAS(Method):
    """Measures what must not be forgotten, protects it from updates, and learns what complements it."""

    settings: DASSettings

    paper = "Ke et al., ICLR 2023"
    kind = "whole model, masked updates"

    def check(self) -> None:
        """Looks at the file of I^(0), which is needed after the warm-up only."""
        if (initial := self.settings.importance.initial) is not None:
            importance_map.load(initial, self.model.architecture)

    def plan(self, place: Place) -> Plan:
        # A step would say it, after the warm-up and the measuring; only it knows the devices.
        self._contrasted(place.batch_size, "a step")
        return super().plan(place)

    @classmethod
    def lost(cls, settings: Any, directory: Path, index: int, base: Path) -> list[str]:
        found = []
        for losses in cls.measured(settings, index):
            try:
                importance_map.load_measured(directory / losses.file, base)
            except UserError as error:
                reason = str(error).partition(";")[0]
                found.append(
                    f"{reason}; the report goes without it, what it protects is in the checkpoints"
                )
        return found

    @classmethod
    def measured(cls, settings: Any, index: int) -> list[Losses]:
        """What importance is measured of before and after a stage."""
        settings = settings.importance
        if settings.source == "random":
            return []
        general = index == 0 and settings.general and settings.initial is None
        return [*[cls.proxy(settings)] * general, importance.MASKED_LM]

    @classmethod
    def proxy(cls, settings: ImportanceSettings) -> Losses:
        """What general knowledge is measured by."""
        return importance.PROXIES[settings.proxy]

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
        proxy = self.proxy(settings)
        return self._learn_importance(proxy, learned, domain, "general knowledge")

    def end(self, learned: Learned, domain: Domain) -> Learned:
        """I^(<=t), with what the model now knows of this domain."""
        return self._learn_importance(importance.MASKED_LM, learned, domain, domain.name)

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
        mask_key, *dropout_keys = jax.random.split(moment.rng, 5)
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(mask_key))
        keys = Keys(*(batch.example_keys(key) for key in dropout_keys))
        return self.objective(net, memory, batch.tokens, masked, moment, keys)

    def objective(
        self,
        net: Net,
        memory: DASMemory,
        tokens_BxT: jax.Array,
        masked: Masked,
        moment: Moment,
        keys: Keys | None,
    ) -> tuple[jax.Array, Metrics]:
        """MLM + lambda * contrastive (eq. 9), of a corruption already drawn.

        Args:
          net: the model.
          memory: holds I^(<=t-1), the gates of the view "only the previous knowledge".
          tokens_BxT: the clean text.
          masked: the same, corrupted.
          moment: where in the run this is.
          keys: dropout keys of the passes; None switches dropout off.
        """
        settings = self.settings.contrastive
        mask_BxT = net.model.mask(tokens_BxT)

        def encode(
            name: str, rows: slice, tokens_BxT: jax.Array, gates: Units | None = None
        ) -> jax.Array:
            keys_B = None if keys is None else getattr(keys, name)[rows]
            return net.encode(tokens_BxT[rows], mask_BxT[rows], keys_B, gates)

        hidden_BxTxD = encode("masked", slice(None), masked.tokens)
        masked_lm = self.masked_lm_loss(net, hidden_BxTxD, masked, moment)
        if settings.weight == 0:
            return masked_lm, {"masked_lm": masked_lm}
        rows = self._contrasted(tokens_BxT.shape[0], "a device")
        owned = importance.of_kinds(memory.importance, self.settings.importance.kinds, 1.0)
        free: Units | None = None
        if settings.views == "complement":
            free = jax.tree.map(lambda x: 1 - x, memory.importance)
        views = (
            hidden_BxTxD[rows]
            if settings.anchor == "masked"
            else encode("view1", rows, tokens_BxT, free),
            encode("view2", rows, tokens_BxT, free),
            encode("gated", rows, tokens_BxT, owned),
        )
        anchor, positive, previous = (mean_pool(view, mask_BxT[rows]) for view in views)
        contrastive = contrastive_loss(
            *(anchor, positive, previous, settings.temperature),
            axis_name=self.axis_name,
            exchange=net.model.dtype,
        )
        loss = masked_lm + settings.weight * contrastive
        return loss, {"masked_lm": masked_lm, "contrastive": contrastive}

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
        return Cost(full=1 + (2 if settings.anchor == "masked" else 3) / settings.subsample)

    def transforms(self, memory: DASMemory, moment: Moment) -> Transforms:
        settings = self.settings.soft_mask
        if settings.apply_to == "none":
            return Transforms()
        mask = adaptive_soft_mask if settings.adapt else soft_mask
        return Transforms(**{settings.apply_to: mask(self._protected(memory))})

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
            unmasked = unmasked_update(trace, protected, of_second=settings.apply_to == "gradient")
        ratios = effective_mask(trace.masked, unmasked)
        return metrics | {f"effective_mask/{kind}": ratio for kind, ratio in ratios.items()}

    def _protected(self, memory: DASMemory) -> Units:
        return importance.with_floor(memory.importance, self.settings.soft_mask.floor)


def _with_own(memory: DASMemory, own: Units) -> DASMemory:
    return DASMemory(importance.accumulate(own, memory.importance))
