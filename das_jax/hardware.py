"""What the manufacturers publish of TPUs and GPUs."""

from dataclasses import dataclass

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")


@dataclass(frozen=True)
class Chip:
    """What the manufacturer publishes of one JAX device: a chip, or half of a `tpu7x`.

    Attributes:
      name: as in a topology's name.
      slices: the shapes that can be rented.
      clock: cycles/s, chosen so that the matrix units reach the published peak.
      peak: bfloat16 FLOP/s.
      hbm_bandwidth: bytes/s.
      hbm: bytes that programs may use.
      link_bandwidth: bytes/s of one link between chips, one way.
      vector_lanes: 32-bit vector operations in a cycle.
      wrap: chips along an axis from which on its links close a ring.
      kinds: what JAX calls its devices.
      per_chip: devices on a chip.
      options: what the compiler must be told besides the name.
    """

    name: str
    slices: tuple[str, ...]
    clock: float
    peak: float
    hbm_bandwidth: float
    hbm: float
    link_bandwidth: float
    vector_lanes: int
    wrap: int
    kinds: tuple[str, ...]
    per_chip: int = 1
    options: tuple[tuple[str, str], ...] = ()

    @property
    def axes(self) -> int:
        """Dimensions of the torus."""
        return self.slices[0].count("x") + 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            CUBES,
            clock=1.05e9,
            peak=275e12,
            hbm_bandwidth=1228e9,
            hbm=30.75 * 2**30,
            link_bandwidth=45e9,
            vector_lanes=8192,
            wrap=4,
            kinds=("TPU v4",),
            options=(("chip_config_name", "megacore"),),  # One device per chip, not one per core.
        ),
        Chip(
            "v5e",
            FLAT,
            clock=1.5e9,
            peak=197e12,
            hbm_bandwidth=819e9,
            hbm=15.75 * 2**30,
            link_bandwidth=45e9,
            vector_lanes=4096,
            wrap=16,
            kinds=("TPU v5 lite", "TPU v5e"),
        ),
        Chip(
            "v5p",
            CUBES,
            clock=1.75e9,
            peak=459e12,
            hbm_bandwidth=2765e9,
            hbm=95.73 * 2**30,
            link_bandwidth=90e9,
            vector_lanes=8192,
            wrap=4,
            kinds=("TPU v5", "TPU v5p"),
        ),
        Chip(
            "v6e",
            FLAT,
            clock=1.75e9,
            peak=918e12,
            hbm_bandwidth=1640e9,
            hbm=31.24 * 2**30,
            link_bandwidth=90e9,
            vector_lanes=8192,
            wrap=16,
            kinds=("TPU v6 lite", "TPU v6e"),
        ),
        Chip(
            "tpu7x",
            CUBES,
            clock=2.2e9,
            peak=1153e12,
            hbm_bandwidth=3690e9,
            hbm=94.74 * 2**30,
            link_bandwidth=100e9,
            vector_lanes=8192,
            wrap=4,
            kinds=("TPU7x", "TPU7"),
            per_chip=2,
        ),
    )
}

GPU_PEAKS = {"NVIDIA A100": 312e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
"""bfloat16 FLOP/s, without sparsity, by the beginning of JAX's name of the device."""


def peak_flops(kind: str) -> float | None:
    """bfloat16 FLOP/s of one JAX device of that kind, or None for a device that is not listed."""
    peaks = {kind: chip.peak for chip in CHIPS.values() for kind in chip.kinds}
    if kind in peaks:
        return peaks[kind]
    return next((peak for name, peak in GPU_PEAKS.items() if kind.startswith(name)), None)


def hbm_bytes(kind: str) -> int | None:
    """Bytes that programs may use of one TPU device of that kind, or None for a device that is not listed."""
    return next((int(chip.hbm) for chip in CHIPS.values() if kind in chip.kinds), None)
