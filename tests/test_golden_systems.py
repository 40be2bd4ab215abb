"""The mathematics of the methods beside DAS, against arrays made by an independent float64 implementation.

Tolerances as in test_golden.py, relative to an array's largest entry.
"""

import jax

from das_jax.objectives.masked_lm import masked_lm_loss, masked_lm_loss_per_example
from tests.golden_case import Case


def test_the_model_itself(system_case: Case) -> None:
    case, masked = system_case, system_case.masked("a.")

    @jax.jit
    def forward(params):
        hidden, clean = (
            case.model.encode(params, tokens, case.array("a.attention_mask"))
            for tokens in (masked.tokens, case.array("a.input_ids"))
        )
        logits = case.model.logits(params, hidden)
        at_masked = case.model.logits(params, hidden, masked.positions)
        labels = masked.labels, masked.weights
        losses = masked_lm_loss(at_masked, *labels), masked_lm_loss_per_example(at_masked, *labels)
        return hidden, clean, logits, *losses

    names = "hidden", "clean_hidden", "logits", "mlm", "mlm_per_example"
    for name, value in zip(names, forward(case.params), strict=True):
        case.assert_close(value, case.arrays[f"a.{name}"], 1e-5, name)


def test_parameters_by_name_and_back(system_case: Case) -> None:
    theta = system_case.of("theta")
    tensors = theta.tensors(theta.params_from())
    assert set(tensors) == set(theta.arrays)
    for name, value in tensors.items():
        theta.assert_close(value, theta.arrays[name], 1e-7, name)
