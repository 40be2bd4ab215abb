"""Every formula on a matrix that was worked out by hand."""

import numpy as np
import pytest

from das_jax.evaluation.measures import Matrix, fuar

# Three domains and a general task; row 0 is the model before the first domain.
#                 d1   d2   d3   general
SCORES = np.array(
    [
        [0.50, 0.40, 0.30, 0.80],
        [0.70, 0.45, 0.30, 0.75],
        [0.75, 0.65, 0.28, 0.70],
        [0.60, 0.55, 0.58, 0.72],
    ]
)
MATRIX = Matrix(SCORES[None], (1, 2, 3, 0))


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("overall", (0.60 + 0.55 + 0.58) / 3),
        # Task 1 was best after domain 2, not after its own; row 0 and the last row do not count.
        ("forgetting", ((0.75 - 0.60) + (0.65 - 0.55)) / 2),
        ("forgetting_rate", ((0.70 - 0.60) + (0.65 - 0.55)) / 2),
        ("backward_transfer", -((0.70 - 0.60) + (0.65 - 0.55)) / 2),
        ("forward_transfer", ((0.45 - 0.40) + (0.28 - 0.30)) / 2),
        ("plasticity", ((0.70 - 0.50) + (0.65 - 0.45) + (0.58 - 0.28)) / 3),
        ("general_delta", 0.72 - 0.80),
    ],
)
def test_a_measure_is_what_the_hand_worked_out(measure: str, expected: float) -> None:
    np.testing.assert_allclose(getattr(MATRIX, measure)(), [expected], rtol=0, atol=1e-12)


def test_columns_in_another_order_and_several_tasks_of_a_domain_count_by_their_domain() -> None:
    scores = SCORES[:, [3, 1, 0, 2, 1]]
    matrix = Matrix(scores[None], (0, 2, 1, 3, 2))
    expected = ((0.70 - 0.60) + 2 * (0.65 - 0.55)) / 3
    np.testing.assert_allclose(matrix.forgetting_rate(), [expected], atol=1e-12)
    np.testing.assert_allclose(matrix.general_delta(), [-0.08], atol=1e-12)


def test_every_sample_is_measured_on_its_own() -> None:
    matrix = Matrix(np.stack([SCORES, SCORES[::-1]]), (1, 2, 3, 0))
    expected = [0.15, ((0.75 - 0.50) + (0.65 - 0.40)) / 2]
    np.testing.assert_allclose(
        matrix.forgetting(), [(expected[0] + 0.10) / 2, expected[1]], atol=1e-12
    )


def test_a_run_in_its_middle_is_measured_on_what_it_has_learned() -> None:
    matrix = Matrix(SCORES[None, :3], (1, 2, 3, 0))
    np.testing.assert_allclose(matrix.overall(), [(0.75 + 0.65) / 2])
    np.testing.assert_allclose(matrix.forgetting(), [0.70 - 0.75], atol=1e-12)
    # The third domain is not learned yet; what the first two bring to it is known all the same.
    np.testing.assert_allclose(matrix.forward_transfer(), [(0.05 - 0.02) / 2], atol=1e-12)


def test_with_one_domain_nothing_can_be_forgotten() -> None:
    matrix = Matrix(SCORES[None, :2, :1], (1,))
    np.testing.assert_allclose(matrix.overall(), [0.70])
    assert matrix.forgetting() is None
    assert matrix.backward_transfer() is None
    assert matrix.forgetting_rate() is None
    assert matrix.forward_transfer() is None
    assert matrix.general_delta() is None


def test_fuar_is_losses_over_gains_and_neither_helps_the_other() -> None:
    kept, updated, new = np.array([-0.3, 0.5]), np.array([0.2, -0.4]), np.array([0.1, 0.3])
    assert fuar(kept, updated, new) == pytest.approx(0.3 / (0.2 + 0.4))
    assert fuar(kept, -np.abs(updated), np.array([0.0])) is None
