from das_jax.hardware import CHIPS, peak_flops


def test_peaks_by_the_name_that_jax_gives_a_device() -> None:
    assert peak_flops("TPU v5 lite") == peak_flops("TPU v5e") == 197e12
    assert peak_flops("TPU v5") == CHIPS["v5p"].peak == 459e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("cpu") is None


def test_no_name_is_given_twice() -> None:
    names = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(names) == len(set(names))
