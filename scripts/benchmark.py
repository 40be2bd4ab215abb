"""Measures a train step and an importance pass on this machine's CPU, das_jax against PyTorch.

    python scripts/benchmark.py                              # 4 layers of roberta-base
    python scripts/benchmark.py --layers 12 --pairs 9        # all of it
    python scripts/benchmark.py --only das_jax.step.masked torch.step.masked

Needs the extra `test`, for torch. Every contender is a process of its own; they take turns, so that what
else the machine does hits all of them. Only the ratios within one run mean anything.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np

MASK_RATE, TEMPERATURE, LEARNING_RATE = 0.15, 0.05, 1e-4
FIRST_TEXT_TOKEN, MASK_TOKEN = 4, 50264
KINDS = ("heads", "intermediate", "output")

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""For every contender: a step's arrays are fresh memory, which the system hands out page by page."""

Run = Callable[[], Any]


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


@dataclasses.dataclass(frozen=True)
class Sizes:
    layers: int
    batch_size: int
    length: int

    @property
    def tokens(self) -> int:
        return self.batch_size * self.length

    @property
    def masked(self) -> int:
        return max(1, round((self.length - 2) * MASK_RATE))

    def batch(self) -> np.ndarray:
        """Random text, [B, T], between the tokens that begin and end a chunk."""
        rng = np.random.default_rng(0)
        tokens_BxT = rng.integers(FIRST_TEXT_TOKEN, MASK_TOKEN, (self.batch_size, self.length))
        tokens_BxT[:, 0], tokens_BxT[:, -1] = 0, 2
        return tokens_BxT.astype(np.int32)

    def importance(self, heads: int, intermediate: int, output: int) -> dict[str, np.ndarray]:
        """I^(<=t-1) of every unit, [L, U]."""
        rng = np.random.default_rng(1)
        return {
            kind: rng.random((self.layers, units), np.float32)
            for kind, units in zip(KINDS, (heads, intermediate, output), strict=True)
        }


# das_jax: its own step and its own importance pass.


def das_jax_parts(sizes: Sizes, anchor: str) -> tuple[Any, ...]:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from das_jax.data.batch import Batch
    from das_jax.data.masking import Masking
    from das_jax.methods.das.das import DAS, ContrastiveSettings, DASMemory, DASSettings
    from das_jax.model.masked_lm import MaskedLM
    from das_jax.model.units import Units, unit_shapes
    from das_jax.planning.architectures import KNOWN
    from das_jax.training.sharding import make_sharding

    roberta = KNOWN["FacebookAI/roberta-base"]
    model = MaskedLM(dataclasses.replace(roberta, num_layers=sizes.layers), unrolled=True)
    sharding = make_sharding(1)
    method = DAS(
        model,
        Masking(MASK_TOKEN, tuple(range(FIRST_TEXT_TOKEN)), roberta.vocab_size, MASK_RATE),
        DASSettings(contrastive=ContrastiveSettings(temperature=TEMPERATURE, anchor=anchor)),
        sharding.batch,
    )
    params = sharding.put("params", jax.jit(model.init)(jax.random.key(0)))
    units = (shape[1] for shape in unit_shapes(model.architecture).values())
    memory = sharding.put("memory", DASMemory(Units(**sizes.importance(*units))))
    tokens_BxT = sizes.batch()
    rows = len(tokens_BxT)
    batch = sharding.shard_batch(
        Batch(tokens_BxT, np.arange(rows, dtype=np.int32), np.ones(rows, np.float32))
    )
    return method, sharding, params, memory, batch, sharding.replicate(jax.random.key(1))


def das_jax_step(sizes: Sizes, anchor: str) -> Run:
    method, sharding, params, memory, batch, rng = das_jax_parts(sizes, anchor)
    import jax

    from das_jax.training.optimizer import Optimizer, adamw
    from das_jax.training.step import compile_train_step, first_state, recipe

    optimizer = Optimizer(adamw(0.9, 0.999, 1e-8, 0.0), lambda _: LEARNING_RATE)
    made = recipe(method, optimizer)
    state = first_state(made, sharding, params, memory, rng)
    del params, memory
    step = compile_train_step(made, sharding)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state.params, metrics))

    return run


def das_jax_importance(sizes: Sizes) -> Run:
    method, sharding, params, _, batch, rng = das_jax_parts(sizes, "masked")
    import jax

    from das_jax.methods.das.importance import MASKED_LM, GateGradientSums
    from das_jax.training.sums import compile_sums

    sums = compile_sums(GateGradientSums(method, MASKED_LM), sharding)
    return lambda: jax.block_until_ready(sums(params, batch, rng))


# PyTorch: the model of transformers, gates by hooks.


class Torch:
    """RobertaForMaskedLM whose units can be gated, and the losses of DAS on it."""

    def __init__(self, sizes: Sizes, attention: str) -> None:
        import torch
        from transformers import RobertaConfig, RobertaForMaskedLM

        torch.set_num_threads(processors())
        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=50265,
            num_hidden_layers=sizes.layers,
            max_position_embeddings=514,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            attn_implementation=attention,
        )
        self.sizes, self.torch, self.model = sizes, torch, RobertaForMaskedLM(config)
        self.tokens_BxT = torch.tensor(sizes.batch(), dtype=torch.int64)
        self.importance = {
            kind: torch.tensor(values)
            for kind, values in sizes.importance(12, config.intermediate_size, 768).items()
        }
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
            return ((inputs[0].unflatten(-1, (12, 64)) * gate).flatten(-2),)

        return hook

    def _gate(self, kind: str, layer: int) -> Callable:
        def hook(module: Any, inputs: tuple, output: Any) -> Any:
            return None if self.gates is None else output * self.gates[kind][..., layer, None, :]

        return hook

    def corrupt(self, tokens_BxT: Any) -> tuple[Any, Any, Any]:
        """The corrupted tokens [B, T], the masked positions [B, M] and the tokens there."""
        torch = self.torch
        score_BxT = torch.rand(tokens_BxT.shape).masked_fill(tokens_BxT < FIRST_TEXT_TOKEN, -1)
        positions_BxM = score_BxT.topk(self.sizes.masked).indices
        labels_BxM = tokens_BxT.gather(1, positions_BxM)
        action_BxM = torch.rand(labels_BxM.shape)
        random_BxM = torch.randint_like(labels_BxM, self.model.config.vocab_size)
        replaced_BxM = torch.where(action_BxM < 0.9, random_BxM, labels_BxM)
        replaced_BxM = replaced_BxM.masked_fill(action_BxM < 0.8, MASK_TOKEN)
        return tokens_BxT.scatter(1, positions_BxM, replaced_BxM), positions_BxM, labels_BxM

    def encode(self, tokens_BxT: Any, gates: Any = None) -> Any:
        self.gates = gates
        hidden_BxTxD = self.model.roberta(tokens_BxT).last_hidden_state
        self.gates = None
        return hidden_BxTxD

    def masked_lm(self, hidden_BxTxD: Any, positions_BxM: Any, labels_BxM: Any) -> Any:
        """The loss of the masked positions, whose logits alone are computed."""
        rows = self.torch.arange(len(labels_BxM))[:, None]
        logits_NxV = self.model.lm_head(hidden_BxTxD[rows, positions_BxM].flatten(0, 1))
        return self.torch.nn.functional.cross_entropy(logits_NxV, labels_BxM.flatten())

    def with_all_logits(self, tokens_BxT: Any, gates: Any = None) -> tuple[Any, Any]:
        """The last hidden state and the logits of every position."""
        self.gates = gates
        output = self.model(tokens_BxT, output_hidden_states=True)
        self.gates = None
        return output.hidden_states[-1], output.logits

    def masked_lm_of_all(self, logits_BxTxV: Any, positions_BxM: Any, labels_BxM: Any) -> Any:
        labels_BxT = self.torch.full(logits_BxTxV.shape[:2], -100)
        labels_BxT = labels_BxT.scatter(1, positions_BxM, labels_BxM)
        return self.torch.nn.functional.cross_entropy(
            logits_BxTxV.flatten(0, 1), labels_BxT.flatten()
        )

    def contrastive(self, *views_BxTxD: Any) -> Any:
        functional = self.torch.nn.functional
        anchor, positive, previous = (
            functional.normalize(view.mean(1), dim=-1) for view in views_BxTxD
        )
        similarity_Bx2B = anchor @ self.torch.cat([positive, previous]).T / TEMPERATURE
        return functional.cross_entropy(similarity_Bx2B, self.torch.arange(len(anchor)))

    def soft_masks(self) -> list[tuple[Any, Any]]:
        """The parameters that units own, with 1 - I shaped to scale their gradients."""
        masks = []
        for number, layer in enumerate(self.model.roberta.encoder.layer):
            left = {kind: 1 - self.importance[kind][number] for kind in KINDS}
            heads_D = left["heads"].repeat_interleave(64)
            this = layer.attention.self
            for module in (this.query, this.key, this.value):
                masks += [(module.weight, heads_D[:, None]), (module.bias, heads_D)]
            masks.append((layer.attention.output.dense.weight, heads_D[None]))
            for module, kind in ((layer.intermediate, "intermediate"), (layer.output, "output")):
                masks += [
                    (module.dense.weight, left[kind][:, None]),
                    (module.dense.bias, left[kind]),
                ]
        return masks


def torch_step(sizes: Sizes, anchor: str, compiled: bool = False) -> Run:
    """The same passes as das_jax, written for speed: logits of masked positions, SDPA, fused AdamW."""
    torch = Torch(sizes, "sdpa")
    model, tokens_BxT = torch.model.train(), torch.tokens_BxT

    def losses(tokens_BxT: Any, corrupted: Any, positions_BxM: Any, labels_BxM: Any) -> Any:
        hidden_BxTxD = torch.encode(corrupted)
        first = hidden_BxTxD if anchor == "masked" else torch.encode(tokens_BxT)
        views = first, torch.encode(tokens_BxT), torch.encode(tokens_BxT, torch.importance)
        masked_lm = torch.masked_lm(hidden_BxTxD, positions_BxM, labels_BxM)
        return masked_lm + torch.contrastive(*views)

    if compiled:
        losses = torch.torch.compile(losses)
    return torch_update(torch, model, lambda: losses(tokens_BxT, *torch.corrupt(tokens_BxT)), True)


def torch_published(sizes: Sizes) -> Run:
    """Four passes, each with the logits of all positions, and the optimizer as it comes."""
    torch = Torch(sizes, "eager")
    model, tokens_BxT = torch.model.train(), torch.tokens_BxT

    def losses() -> Any:
        corrupted, positions_BxM, labels_BxM = torch.corrupt(tokens_BxT)
        _, logits_BxTxV = torch.with_all_logits(corrupted)
        passes = (
            torch.with_all_logits(tokens_BxT),
            torch.with_all_logits(tokens_BxT),
            torch.with_all_logits(tokens_BxT, torch.importance),
        )
        masked_lm = torch.masked_lm_of_all(logits_BxTxV, positions_BxM, labels_BxM)
        return masked_lm + torch.contrastive(*(hidden for hidden, _ in passes))

    return torch_update(torch, model, losses, None)


def torch_update(torch: Torch, model: Any, losses: Run, fused: bool | None) -> Run:
    optimizer = torch.torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=0.0, fused=fused
    )
    masks = torch.soft_masks()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses().backward()
        for parameter, left in masks:
            parameter.grad.mul_(left)
        optimizer.step()

    return run


def torch_importance(sizes: Sizes) -> Run:
    """Gates of every example's own, one backward pass, no weight gradients."""
    torch = Torch(sizes, "sdpa")
    torch.model.eval().requires_grad_(False)
    sums = {kind: torch.torch.zeros(2, *values.shape) for kind, values in torch.importance.items()}

    def run() -> None:
        gates = {
            kind: torch.torch.ones(sizes.batch_size, *values.shape, requires_grad=True)
            for kind, values in torch.importance.items()
        }
        corrupted, positions_BxM, labels_BxM = torch.corrupt(torch.tokens_BxT)
        hidden_BxTxD = torch.encode(corrupted, gates)
        loss = torch.masked_lm(hidden_BxTxD, positions_BxM, labels_BxM) * sizes.batch_size
        gradients = torch.torch.autograd.grad(loss, list(gates.values()))
        for kind, gradient_BxLxU in zip(KINDS, gradients, strict=True):
            sums[kind] += torch.torch.stack(
                [gradient_BxLxU.abs().sum(0), gradient_BxLxU.square().sum(0)]
            )

    return run


def torch_importance_published(sizes: Sizes) -> Run:
    """One example after the other, through everything: the gradients of gates that a batch shares."""
    torch = Torch(sizes, "eager")
    torch.model.eval()
    gates = {
        kind: torch.torch.ones_like(values, requires_grad=True)
        for kind, values in torch.importance.items()
    }
    sums = {kind: torch.torch.zeros_like(values) for kind, values in torch.importance.items()}

    def run() -> None:
        for tokens_T in torch.tokens_BxT:
            corrupted, positions_1xM, labels_1xM = torch.corrupt(tokens_T[None])
            _, logits = torch.with_all_logits(corrupted, gates)
            torch.masked_lm_of_all(logits, positions_1xM, labels_1xM).backward()
            for kind, gate in gates.items():
                sums[kind] += gate.grad.abs()
                gate.grad = None
            torch.model.zero_grad(set_to_none=True)

    return run


CONTENDERS: dict[str, Callable[[Sizes], Run]] = {
    "das_jax.step.masked": lambda sizes: das_jax_step(sizes, "masked"),
    "das_jax.step.clean": lambda sizes: das_jax_step(sizes, "clean"),
    "torch.step.masked": lambda sizes: torch_step(sizes, "masked"),
    "torch.step.masked.compiled": lambda sizes: torch_step(sizes, "masked", compiled=True),
    "torch.step.clean": lambda sizes: torch_step(sizes, "clean"),
    "torch.step.published": torch_published,
    "das_jax.importance": das_jax_importance,
    "torch.importance": torch_importance,
    "torch.importance.published": torch_importance_published,
}
RATIOS = (
    ("das_jax.step.masked", "torch.step.published"),
    ("das_jax.step.clean", "torch.step.published"),
    ("das_jax.step.masked", "torch.step.masked"),
    ("das_jax.step.masked", "torch.step.masked.compiled"),
    ("das_jax.step.clean", "torch.step.clean"),
    ("das_jax.importance", "torch.importance.published"),
    ("das_jax.importance", "torch.importance"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=4, help="12 for all of roberta-base")
    parser.add_argument("--batch-size", type=int, default=8, help="examples of a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of an example")
    parser.add_argument("--pairs", type=int, default=5, help="turns of every contender")
    parser.add_argument(
        "--processors",
        type=int,
        default=processors(),
        help="1 compares processor time on a busy machine",
    )
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", metavar="FILE", help="also write every time, in seconds")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.processors])
    sizes = Sizes(options.layers, options.batch_size, options.length)
    if options.worker is not None:
        serve(CONTENDERS[options.worker](sizes))
        return
    results = measure(options.only, options.pairs)
    show(results, sizes)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"sizes": dataclasses.asdict(sizes), "contenders": results}, file, indent=1)


def serve(run: Run) -> None:
    """Runs once for every line on standard input, and answers with the seconds and the peak memory."""
    for _ in range(2):
        run()
    # From here on the peak is that of a step, not of compiling it.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    print("ready", flush=True)
    for _ in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        run()
        answer = {
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - start_cpu,
            "bytes": peak_memory(),
        }
        print(json.dumps(answer), flush=True)


def peak_memory() -> int:
    """The most memory that this process has held since the peak was reset, bytes."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(names: list[str], turns: int) -> dict[str, dict[str, Any]]:
    """The seconds of every turn and the peak memory of every contender."""
    workers = {name: start(name) for name in names}
    results: dict[str, dict[str, Any]] = {
        name: {"seconds": [], "cpu": [], "bytes": 0} for name in names
    }
    for turn in range(turns):
        # Forwards and backwards, so that none always comes after the same one.
        for name in names if turn % 2 == 0 else reversed(names):
            process = workers[name]
            process.stdin.write("\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            for clock in ("seconds", "cpu"):
                results[name][clock].append(answer[clock])
            results[name]["bytes"] = answer["bytes"]
            print(f"{name}: {answer['seconds']:.2f} s", file=sys.stderr, flush=True)
    for process in workers.values():
        process.communicate()
    return results


def start(name: str) -> subprocess.Popen:
    """A contender, built and warmed up, waiting for its turn."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
    environment = {**os.environ, **HUGE_PAGES}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    print(f"building {name}", file=sys.stderr, flush=True)
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"{name} failed")
    return process


def ratios(
    results: dict[str, dict[str, Any]], clock: str
) -> Iterator[tuple[str, str, list[float]]]:
    for ours, theirs in RATIOS:
        if ours in results and theirs in results:
            times = (results[name][clock] for name in (theirs, ours))
            yield ours, theirs, [a / b for a, b in zip(*times, strict=True)]


def show(results: dict[str, dict[str, Any]], sizes: Sizes) -> None:
    print(
        f"roberta-base with {sizes.layers} layers, {sizes.batch_size} x {sizes.length} tokens, "
        f"float32, {processors()} processors\n"
    )
    print("| contender | median s | min-max | median CPU s | tokens/s | peak GB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, result in results.items():
        seconds = result["seconds"]
        print(
            f"| {name} | {median(seconds):.2f} | {min(seconds):.2f}-{max(seconds):.2f} "
            f"| {median(result['cpu']):.2f} | {sizes.tokens / median(seconds):.0f} "
            f"| {result['bytes'] / 1e9:.2f} |"
        )
    print("\n| speed of | against | clock | median of pairs | min-max |\n|---|---|---|---:|---:|")
    for clock in ("seconds", "cpu"):
        for ours, theirs, values in ratios(results, clock):
            print(
                f"| {ours} | {theirs} | {clock} | {median(values):.2f} x "
                f"| {min(values):.2f}-{max(values):.2f} |"
            )


if __name__ == "__main__":
    main()
