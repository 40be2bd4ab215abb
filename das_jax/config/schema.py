"""Every setting there is, its type, its default and what it means.

The defaults are what we recommend, the same as the preset `das_jax`; `paper` is the paper's values.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from das_jax.data.settings import (
    BeamSettings,
    ChoicesSettings,
    ClozeSettings,
    DocumentsName,
    HarnessSettings,
    MinimalPairsSettings,
    ObjectiveName,
    Recognised,
    Source,
    TaskSettings,
)
from das_jax.methods.settings.every_method import MethodSettings
from das_jax.methods.settings.policies import PoliciesSettings
from das_jax.settings import (
    BatchSize,
    Count,
    CountOrZero,
    Length,
    LocalPath,
    Name,
    Seed,
    Several,
    settings,
)

Share = Annotated[float, Field(gt=0, lt=1)]
Part = Annotated[float, Field(ge=0, le=1)]

SCHEDULE_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": (),
    "rewarmed": ("floor",),
    "constant": (),
    "infinite": ("settling", "constant", "cooldown", "floor", "trunk"),
    "wsd": ("cooldown", "trunk"),
}
"""What each schedule reads of `training`, besides its learning rate and warm-up."""

OPTIMIZER_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "adamw": ("eps", "second_moment"),
    "lion": (),
    "muon": ("eps", "momentum", "rms"),
}
"""What each optimizer reads of `training`, besides `b1`, `b2` and its weight decay."""

B2: Mapping[str, float] = {"adamw": 0.999, "lion": 0.99, "muon": 0.999}
"""`training.b2`, when absent."""


@settings
class ModelSettings:
    path: LocalPath
    """A HuggingFace checkpoint: a directory, a hub name, `demo:bert-tiny`, `demo:minilm-l6` or
    `demo:smollm2-135m`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type of the matrix products; `auto` is bfloat16 on accelerators and float32 on CPU."""
    remat: Literal["none", "selective", "full"] = "none"
    """What the backward pass recomputes: nothing, all but the large matrix products, or everything."""
    layers: Literal["scanned", "unrolled"] = "scanned"
    """One program for all layers in a loop, or every layer compiled on its own: faster to run on a TPU,
    several times slower to compile."""
    attention: Literal["auto", "dense", "fused", "flash", "cudnn", "triton"] = "auto"
    """Attention as matrix products (`dense`), or in kernels that keep no array of weights: on a TPU `fused`,
    for texts read both ways, or `flash`, in blocks, for long texts, windows and causal models; on an NVIDIA
    GPU `cudnn`, or `triton`, which can drop weights. `auto` takes the one that fits the machine, the model
    and `data.length`."""


@settings
class DataSettings:
    length: Length = 128
    """Tokens in one chunk, special tokens included."""
    heldout: Share = 0.05
    """The share of the documents kept away from training, for the held-out loss."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the documents kept away from training and from the held-out loss, to choose settings by: a
    run then measures its models on both."""
    documents: DocumentsName = "joined"
    """Of decoders: whether attention crosses the documents of a chunk (`joined`), or stays inside each
    (`apart`), where positions begin anew and nothing is predicted across a boundary. A chunk of examples
    holds one if they are joined, and as many as fit if they are apart."""
    special_tokens: Recognised = "markers"
    """Which added tokens of the tokenizer are recognised where a text of a corpus spells them: `markers`,
    all but those for masks, padding, unknown words, beginning and end; `all`; or `none`. End tasks,
    cloze facts and examples always recognise all, as the exported tokenizer does."""
    cache_dir: LocalPath = "~/.cache/das_jax"
    """Where demo assets, prepared token chunks and compiled programs live."""
    beam: BeamSettings | None = None
    """Prepares corpora with Apache Beam, on many machines; the chunks are the same."""


@settings
class CorpusSettings:
    name: Name
    """What the run directory and the reports call it."""
    source: Source
    """Where its text comes from."""
    objective: ObjectiveName | None = None
    """What is predicted: hidden tokens (`masked`), every next token (`causal`), or that of responses alone
    (`supervised`, of a source with `prompt` and `response`, or `messages`). When absent, what the model was
    made for: `masked` or `causal`."""
    steps: Count | None = None
    """Optimizer steps on this corpus; `training.steps` when absent."""


@settings
class GeneralSettings:
    name: Name = "general"
    """What the run directory and the reports call it."""
    source: Source
    """Where its text comes from."""
    steps: CountOrZero = 0
    """Plain warm-up steps on this text before the first domain."""
    warmup_learning_rate: PositiveFloat | None = None
    """The highest learning rate of those steps; `training.learning_rate` when absent."""
    may_rise: PositiveFloat | None = None
    """A promise: by so many nats per predicted token the held-out loss on this text may rise while the
    domains are learned. It is looked at after every domain, and said where it is broken."""


@settings
class TrainingSettings:
    steps: Count = 2500
    """Optimizer steps per domain."""
    batch_size: BatchSize = 256
    """Examples per step, over all devices."""
    accumulate: BatchSize = 1
    """Micro-batches that one step's gradients are summed over, for batches that do not fit. The LM
    loss is the mean over the whole batch; DAS contrasts the texts of a micro-batch with each other, and the
    terms of DER++'s stored rows count by the predictions of the new text beside them."""
    learning_rate: PositiveFloat = 1e-4
    """The highest learning rate of a domain."""
    schedule: Literal["linear", "cosine", "rewarmed", "constant", "infinite", "wsd"] = "linear"
    """How the learning rate goes on after the warm-up: falls to 0, `linear` or as a `cosine`; falls as a
    cosine to `floor` (`rewarmed`); stays (`constant`); stays, and falls to 0 over `cooldown` as 1 - sqrt
    (`wsd`); or settles at `constant`, from which later domains start without a warm-up, and falls to `floor`
    over `cooldown` (`infinite`)."""
    warmup: Part = 0.1
    """The share of a domain's steps over which the learning rate rises."""
    settling: Part = 0.3
    """The share of the first domain's steps over which an infinite schedule falls to `constant`."""
    constant: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The constant rate of an infinite schedule, as a share of `learning_rate`."""
    cooldown: Part = 0.1
    """The share of a domain's steps, the last ones, over which the rate of `wsd` and `infinite` falls."""
    trunk: bool = True
    """Whether the next domain goes on from the parameters before the cooldown, which have not seen its
    batches, and the annealed ones only serve; a copy of the trained parameters is kept meanwhile. Else it
    goes on from the annealed ones."""
    floor: Share = 0.1
    """The lowest rate, as a share of the rate it falls from: of `learning_rate` with `rewarmed`, of the
    constant one with `infinite`."""
    optimizer: Literal["adamw", "lion", "muon"] = "adamw"
    """AdamW; Lion, which moves every element by the learning rate (give it a tenth to a third of AdamW's); or
    Muon, which makes the momenta of the layers' matrices orthogonal and leaves all else to AdamW. The warm-up
    on general text is always AdamW's."""
    b1: Share = 0.9
    """AdamW's decay of the mean of the gradients; with Lion, how much of its direction is momentum."""
    b2: Share | None = None
    """AdamW's decay of the mean of their squares, 0.999 when absent; with Lion that of its momentum, 0.99."""
    eps: PositiveFloat = 1e-8
    """What AdamW adds to the denominator."""
    momentum: Share = 0.95
    """Muon's decay of the mean of the gradients of matrices."""
    rms: PositiveFloat = 0.2
    """The root mean square of Muon's direction for a matrix; 0.2 is about AdamW's, so that the learning rates
    of AdamW serve."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay: the share of a parameter that a learning rate of 1 would take away in a step."""
    clip: PositiveFloat | None = None
    """The largest norm of a step's gradient, before a method's mask: a larger one is scaled down to it. When
    absent, gradients are taken as they are."""
    second_moment: Literal["fresh", "carried"] = "fresh"
    """What a domain begins with as AdamW's mean of the squared gradients and its count of steps: nothing, or
    what the domain before it left. The mean of the gradients always begins afresh."""
    mask_rate: Share = 0.15
    """The share of the tokens that the masked-LM loss predicts."""
    log_every: Count = 50
    """Steps between two lines of metrics."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints."""


@settings
class EvaluationSettings:
    examples: Count = 512
    """Held-out chunks per corpus, at most."""
    batch_size: BatchSize = 64
    """Chunks per evaluation step, over all devices."""
    tasks: tuple[TaskSettings, ...] = ()
    """The end tasks: text classification, which shows what a model knows of a domain. They may change
    between two starts of a run."""
    cloze: tuple[ClozeSettings, ...] = ()
    """Sets of facts, sentences with a blank, that `das-jax evaluate` asks every model for."""
    choices: tuple[ChoicesSettings, ...] = ()
    """Multiple choice, which decoders answer as they are: by the likelihood of every choice."""
    minimal_pairs: tuple[MinimalPairsSettings, ...] = ()
    """Sets of minimal pairs, of whose two sentences a model should find the right one more likely; what it
    knows of language in general."""
    harness: HarnessSettings | None = None
    """Tasks of EleutherAI's lm-evaluation-harness, which measures what stages of a decoder export; it needs
    the extra `harness`."""
    prompts: tuple[str, ...] = ()
    """Beginnings of texts that `das-jax evaluate` lets a decoder go on with, before the first domain and
    after every stage; the report shows what they write."""
    prompt_tokens: Count = 40
    """Tokens behind a prompt, at most."""
    finetune_seeds: BatchSize = 5
    """Classifiers per end task and model; they are trained together."""


@settings
class MeshSettings:
    data: Literal["all"] | Count = "all"
    """Devices along the batch axis."""
    state: Literal["replicated", "optimizer", "parameters"] = "replicated"
    """What each device holds only a part of: nothing, the optimizer's state (ZeRO-1), or the parameters
    too (FSDP)."""
    parameters: Literal["all"] | Several = "all"
    """Over how many devices that is split: groups of so many, neighbours if they can be, have the whole
    state each, and only gradients go from group to group, once a step."""
    gather: Literal["layer", "step"] = "layer"
    """When parameters that are split are put together: a layer's when a pass comes to it, forward and
    backward, which needs the least memory; or all once a step, which moves a quarter with three passes."""
    exchange: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type in which gradients and parameters travel between devices; `auto` is that of the matrix
    products. bfloat16 rounds them: a method whose loss reads `params` itself may want float32."""


@settings
class ExportSettings:
    dtype: Literal["float32", "checkpoint", "bfloat16"] = "float32"
    """The type of the weights that a stage leaves for HuggingFace: `float32`, exactly what was trained;
    `checkpoint`, that of the model it began with; or `bfloat16`. Rounding to 16 bits undoes movements below
    a 256th, which those of protected units are; what later stages and measures read again is rounded, and
    what is trained is not. What stands beside its base model, and classifiers, are float32."""


@settings
class Config:
    preset: Literal["das_jax", "das_jax_decoder", "merge", "paper"] = "das_jax"
    """The values of all that is not set: what we recommend for DAS, the paper's, or plain training that is
    merged after every domain."""
    output_dir: LocalPath
    """The run directory; a run that was killed goes on from what is in it."""
    seed: Seed = 0
    """Of everything random: masking, dropout, order and samples."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """Repeats the whole sequence with each of these in place of `seed`, in output_dir/seed-N."""
    model: ModelSettings
    data: DataSettings = DataSettings()
    general: GeneralSettings | None = None
    """General text: its held-out loss shows forgetting; `steps` > 0 warms the model up on it."""
    domains: Annotated[tuple[CorpusSettings, ...], Field(min_length=1)]
    """The corpora, in the order in which they are learned."""
    training: TrainingSettings = TrainingSettings()
    method: MethodSettings
    policies: PoliciesSettings = PoliciesSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    export: ExportSettings = ExportSettings()
    mesh: MeshSettings = MeshSettings()
