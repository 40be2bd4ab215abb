"""All families, by their `model_type`."""

from das_jax.model.families.bert import BERT, ROBERTA, XLM_ROBERTA
from das_jax.model.families.family import Family
from das_jax.model.families.gemma import GEMMA2, GEMMA3
from das_jax.model.families.gpt2 import GPT2
from das_jax.model.families.llama import LLAMA, QWEN2, QWEN3
from das_jax.model.families.modernbert import MODERNBERT

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
    "modernbert": MODERNBERT,
    "gpt2": GPT2,
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
}

TEXT_PARTS = {"gemma3": "gemma3_text"}
"""Models that read images too, and which of ours their text part alone is."""
