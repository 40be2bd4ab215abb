"""PyTorch: the model of transformers, gates by hooks, and the losses of DAS on it."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from .contender import Contender
from .sizes import FIRST_TEXT_TOKEN, KINDS, LEARNING_RATE, TEMPERATURE, Sizes

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
COMPILE_MODES = {"compiled": "default", "autotuned": "max-autotune-no-cudagraphs"}


def precision() -> contextlib.AbstractContextManager:
    """bfloat16 products on a GPU, float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if CUDA else contextlib.nullcontext()


def model_of(sizes: Sizes, attention: str) -> Any:
    """The model of transformers, float32, with random weights."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high" if CUDA else "highest")
    torch.manual_seed(0)
    config = dict(sizes.config)
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    causal = hasattr(config, "rope_parameters")
    kind = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    model = kind.from_config(config, attn_implementation=attention, dtype=torch.float32)
    if attention == "sdpa":
        _without_masks(model)
    return model.to(DEVICE)


def _without_masks(model: Any) -> None:
    """All tokens are real, so no mask is needed. Compiled, transformers makes one all the same, with
    which SDPA cannot take flash attention.
    """
    module = sys.modules[type(model).__module__]
    for name in ("create_bidirectional_mask", "create_causal_mask"):
        if hasattr(module, name):
            setattr(module, name, lambda *_, **__: None)


class Gated:
    """RobertaForMaskedLM whose units can be gated, and the losses of DAS on it."""

    def __init__(self, sizes: Sizes, attention: str) -> None:
        self.sizes, self.model = sizes, model_of(sizes, attention)
        self.tokens_BxT = torch.tensor(sizes.batch(), dtype=torch.int64, device=DEVICE)
        self.importance = {
            kind: torch.tensor(values, device=DEVICE) for kind, values in sizes.importance().items()
        }
        config = self.model.config
        self.heads = config.num_attention_heads
        self.head_size = config.hidden_size // self.heads
        self.gates: Any = None
        for number, layer in enumerate(self.model.roberta.encoder.layer):
            layer.attention.output.dense.register_forward_pre_hook(self._gate_heads(number))
            layer.intermediate.dense.register_forward_hook(self._gate("intermediate", number))
            layer.output.dense.register_forward_hook(self._gate("output", number))

    def _gate_heads(self, layer: int) -> Callable:
        def hook(module: Any, inputs: tuple) -> Any:
            if self.gates is None:
                return None
            gate = self.gates["heads"][..., layer, None, :, None]  # [L, H] or [B, L, H]
            heads = inputs[0].unflatten(-1, (self.heads, self.head_size))
            return ((heads * gate.to(heads.dtype)).flatten(-2),)

        return hook

    def _gate(self, kind: str, layer: int) -> Callable:
        def hook(module: Any, inputs: tuple, output: Any) -> Any:
            if self.gates is None:
                return None
            return output * self.gates[kind][..., layer, None, :].to(output.dtype)

        return hook

    def corrupt(self, tokens_BxT: Any) -> tuple[Any, Any, Any]:
        """The corrupted tokens [B, T], the masked positions [B, M] and the tokens there."""
        score_BxT = torch.rand(tokens_BxT.shape, device=DEVICE)
        score_BxT = score_BxT.masked_fill(tokens_BxT < FIRST_TEXT_TOKEN, -1)
        positions_BxM = score_BxT.topk(self.sizes.masked).indices
        labels_BxM = tokens_BxT.gather(1, positions_BxM)
        action_BxM = torch.rand(labels_BxM.shape, device=DEVICE)
        random_BxM = torch.randint_like(labels_BxM, self.model.config.vocab_size)
        replaced_BxM = torch.where(action_BxM < 0.9, random_BxM, labels_BxM)
        replaced_BxM = replaced_BxM.masked_fill(action_BxM < 0.8, self.sizes.mask_token)
        return tokens_BxT.scatter(1, positions_BxM, replaced_BxM), positions_BxM, labels_BxM

    def encode(self, tokens_BxT: Any, gates: Any = None) -> Any:
        self.gates = gates
        hidden_BxTxD = self.model.roberta(tokens_BxT).last_hidden_state
        self.gates = None
        return hidden_BxTxD

    def masked_lm(self, hidden_BxTxD: Any, positions_BxM: Any, labels_BxM: Any) -> Any:
        """The loss of the masked positions, whose logits alone are computed."""
        rows = torch.arange(len(labels_BxM), device=DEVICE)[:, None]
        logits_NxV = self.model.lm_head(hidden_BxTxD[rows, positions_BxM].flatten(0, 1))
        return functional.cross_entropy(logits_NxV, labels_BxM.flatten())

    def with_all_logits(self, tokens_BxT: Any, gates: Any = None) -> tuple[Any, Any]:
        """The last hidden state and the logits of every position."""
        self.gates = gates
        output = self.model(tokens_BxT, output_hidden_states=True)
        self.gates = None
        return output.hidden_states[-1], output.logits

    def masked_lm_of_all(self, logits_BxTxV: Any, positions_BxM: Any, labels_BxM: Any) -> Any:
        labels_BxT = torch.full(logits_BxTxV.shape[:2], -100, device=DEVICE)
        labels_BxT = labels_BxT.scatter(1, positions_BxM, labels_BxM)
        return functional.cross_entropy(logits_BxTxV.flatten(0, 1), labels_BxT.flatten())

    def contrastive(self, *views_BxTxD: Any) -> Any:
        anchor, positive, previous = (
            functional.normalize(view.mean(1), dim=-1) for view in views_BxTxD
        )
        similarity_Bx2B = anchor @ torch.cat([positive, previous]).T / TEMPERATURE
        own = torch.arange(len(anchor), device=DEVICE)
        return functional.cross_entropy(similarity_Bx2B, own)

    def soft_masks(self) -> tuple[list[Any], list[Any]]:
        """The parameters that units own, and 1 - I shaped to scale their gradients."""
        masks = []
        for number, layer in enumerate(self.model.roberta.encoder.layer):
            left = {kind: 1 - self.importance[kind][number] for kind in KINDS}
            heads_D = left["heads"].repeat_interleave(self.head_size)
            this = layer.attention.self
            for module in (this.query, this.key, this.value):
                masks += [(module.weight, heads_D[:, None]), (module.bias, heads_D)]
            masks.append((layer.attention.output.dense.weight, heads_D[None]))
            for module, kind in ((layer.intermediate, "intermediate"), (layer.output, "output")):
                masks += [
                    (module.dense.weight, left[kind][:, None]),
                    (module.dense.bias, left[kind]),
                ]
        parameters, lefts = zip(*masks, strict=True)
        return list(parameters), list(lefts)


def fastest_attention(sizes: Sizes) -> str:
    """Lets SDPA take the kernel that is fastest for these sizes, forward and backward, and says which."""
    if not CUDA:
        return ""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    config = sizes.config
    heads, width = config["num_attention_heads"], config["hidden_size"]
    groups, size = config.get("num_key_value_heads", heads), config.get("head_dim", width // heads)
    causal = "rms_norm_eps" in config
    rate = 0.0 if causal else 0.1
    seconds = {}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        inputs = [
            torch.randn(
                *(sizes.batch_size, each, sizes.length, size),
                device=DEVICE,
                dtype=torch.bfloat16,
                requires_grad=True,
            )
            for each in (heads, groups, groups)
        ]
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):

                def attend(inputs: Any = inputs) -> None:
                    out = functional.scaled_dot_product_attention(
                        *inputs, dropout_p=rate, is_causal=causal, enable_gqa=groups != heads
                    )
                    torch.autograd.grad(out, inputs, torch.ones_like(out))

                seconds[name] = _quickest(attend)
        except RuntimeError:  # This kernel cannot.
            continue
    if not seconds:
        return "SDPA takes what it wants"
    best = min(seconds, key=seconds.__getitem__)
    torch.backends.cuda.enable_flash_sdp(best == "FLASH_ATTENTION")
    torch.backends.cuda.enable_cudnn_sdp(best == "CUDNN_ATTENTION")
    times = ", ".join(f"{name} {1e3 * each:.3f} ms" for name, each in seconds.items())
    return f"SDPA takes {best} ({times} a layer)"


def _quickest(call: Callable[[], Any]) -> float:
    """Seconds of the quickest of ten calls: other programs may be at work."""
    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return min(times[2:])


def _contender(step: Callable[[], Any], model: Any, remarks: str = "") -> Contender:
    if not CUDA:
        return Contender(step, lambda _: None, remarks=remarks)

    def end() -> None:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()

    return Contender(
        step,
        lambda _: torch.cuda.synchronize(),
        begin=torch.cuda.reset_peak_memory_stats,
        end=end,
        bytes=torch.cuda.max_memory_allocated,
        remarks=remarks,
    )


def _update(
    model: Any,
    losses: Callable[[], Any],
    masks: tuple[list[Any], list[Any]] | None = None,
    fused: bool | None = True,
) -> Callable[[], Any]:
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0, fused=fused)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with precision():
            loss = losses()
        loss.backward()
        if masks is not None:
            parameters, lefts = masks
            torch._foreach_mul_([parameter.grad for parameter in parameters], lefts)
        optimizer.step()
        return loss.detach()

    return step


def _compiled(function: Callable, compiled: str | None) -> Callable:
    if compiled is None:
        return function
    return torch.compile(function, fullgraph=True, dynamic=False, mode=COMPILE_MODES[compiled])


def step(sizes: Sizes, anchor: str | None, compiled: str | None = None) -> Contender:
    """The same passes as das_jax, written for speed: logits of masked positions, SDPA, fused AdamW.

    Args:
      sizes: of the model and the batch.
      anchor: as `contrastive.anchor`; None for plain masked-LM training.
      compiled: a key of `COMPILE_MODES`, or None for eager.
    """
    remarks = fastest_attention(sizes)
    gated = Gated(sizes, "sdpa")
    gated.model.train()

    def losses(tokens_BxT: Any, corrupted: Any, positions_BxM: Any, labels_BxM: Any) -> Any:
        hidden_BxTxD = gated.encode(corrupted)
        masked_lm = gated.masked_lm(hidden_BxTxD, positions_BxM, labels_BxM)
        if anchor is None:
            return masked_lm
        first = hidden_BxTxD if anchor == "masked" else gated.encode(tokens_BxT)
        views = first, gated.encode(tokens_BxT), gated.encode(tokens_BxT, gated.importance)
        return masked_lm + gated.contrastive(*views)

    losses = _compiled(losses, compiled)
    tokens_BxT = gated.tokens_BxT
    return _contender(
        _update(
            gated.model,
            lambda: losses(tokens_BxT, *gated.corrupt(tokens_BxT)),
            None if anchor is None else gated.soft_masks(),
        ),
        gated.model,
        remarks,
    )


def published(sizes: Sizes) -> Contender:
    """Four passes, each with the logits of all positions, and the optimizer as it comes."""
    gated = Gated(sizes, "eager")
    gated.model.train()
    tokens_BxT = gated.tokens_BxT

    def losses() -> Any:
        corrupted, positions_BxM, labels_BxM = gated.corrupt(tokens_BxT)
        _, logits_BxTxV = gated.with_all_logits(corrupted)
        passes = (
            gated.with_all_logits(tokens_BxT),
            gated.with_all_logits(tokens_BxT),
            gated.with_all_logits(tokens_BxT, gated.importance),
        )
        masked_lm = gated.masked_lm_of_all(logits_BxTxV, positions_BxM, labels_BxM)
        return masked_lm + gated.contrastive(*(hidden for hidden, _ in passes))

    step = _update(gated.model, losses, gated.soft_masks(), fused=None)
    return _contender(step, gated.model)


def importance(sizes: Sizes, compiled: str | None = None) -> Contender:
    """Gates of every example's own, one backward pass, no weight gradients."""
    remarks = fastest_attention(sizes)
    gated = Gated(sizes, "sdpa")
    gated.model.eval().requires_grad_(False)
    sums = {
        kind: torch.zeros(2, *values.shape, device=DEVICE)
        for kind, values in gated.importance.items()
    }

    def losses(gates: Any, corrupted: Any, positions_BxM: Any, labels_BxM: Any) -> Any:
        hidden_BxTxD = gated.encode(corrupted, gates)
        return gated.masked_lm(hidden_BxTxD, positions_BxM, labels_BxM) * sizes.batch_size

    losses = _compiled(losses, compiled)

    def step() -> Any:
        gates = {
            kind: torch.ones(sizes.batch_size, *values.shape, device=DEVICE, requires_grad=True)
            for kind, values in gated.importance.items()
        }
        with precision():
            loss = losses(gates, *gated.corrupt(gated.tokens_BxT))
        gradients = torch.autograd.grad(loss, list(gates.values()))
        for kind, gradient_BxLxU in zip(KINDS, gradients, strict=True):
            sums[kind] += torch.stack([gradient_BxLxU.abs().sum(0), gradient_BxLxU.square().sum(0)])
        return loss.detach()

    return _contender(step, gated.model, remarks)


def importance_published(sizes: Sizes) -> Contender:
    """One example after the other, through everything: the gradients of gates that a batch shares."""
    gated = Gated(sizes, "eager")
    gated.model.eval()
    gates = {
        kind: torch.ones_like(values, requires_grad=True)
        for kind, values in gated.importance.items()
    }
    sums = {kind: torch.zeros_like(values) for kind, values in gated.importance.items()}

    def step() -> None:
        for tokens_T in gated.tokens_BxT:
            corrupted, positions_1xM, labels_1xM = gated.corrupt(tokens_T[None])
            with precision():
                _, logits = gated.with_all_logits(corrupted, gates)
                loss = gated.masked_lm_of_all(logits, positions_1xM, labels_1xM)
            loss.backward()
            for kind, gate in gates.items():
                sums[kind] += gate.grad.abs()
                gate.grad = None
            gated.model.zero_grad(set_to_none=True)

    return _contender(step, gated.model)


def causal(sizes: Sizes, compiled: str | None = None) -> Contender:
    """Plain training of a decoder with the loss of transformers: the logits of every token at once."""
    remarks = fastest_attention(sizes)
    model = model_of(sizes, "sdpa").train()
    tokens_BxT = torch.tensor(sizes.batch(), dtype=torch.int64, device=DEVICE)
    loss = _compiled(
        lambda tokens_BxT: model(tokens_BxT, labels=tokens_BxT, use_cache=False).loss, compiled
    )
    return _contender(_update(model, lambda: loss(tokens_BxT)), model, remarks)


BUILDERS: dict[str, Callable[[Sizes], Contender]] = {
    "torch.step.published": published,
    "torch.importance": importance,
    "torch.importance.published": importance_published,
    "torch.importance.compiled": functools.partial(importance, compiled="compiled"),
    "torch.step.causal.compiled": functools.partial(causal, compiled="compiled"),
}
for _name, _anchor in (("plain", None), ("masked", "masked"), ("clean", "clean")):
    BUILDERS[f"torch.step.{_name}"] = functools.partial(step, anchor=_anchor)
    for _mode in COMPILE_MODES:
        BUILDERS[f"torch.step.{_name}.{_mode}"] = functools.partial(
            step, anchor=_anchor, compiled=_mode
        )
