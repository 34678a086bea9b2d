"""What GPUs reach at most, by the names under which torch knows them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Rates of a data sheet, dense, in multiply-adds per second: half of its FLOP/s.

    Args:
        reduced_rate: in bfloat16, summed in float32.
        full_rate: in float32 without TF32, which GenFlow does not switch on.
    """

    reduced_rate: float
    full_rate: float


def _of(reduced: float, full: float) -> Chip:
    """Of TFLOP/s, as data sheets give them."""
    return Chip(reduced * 1e12 / 2, full * 1e12 / 2)


H100_SXM = _of(989, 67)
_A100 = _of(312, 19.5)

#: By ``torch.cuda.get_device_name()``, whole: parts of a GPU (MIG) and models for laptops are others.
CHIPS: dict[str, Chip] = {
    "NVIDIA A10": _of(125, 31.2),
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA B200": _of(2250, 75),
    "NVIDIA GeForce RTX 3090": _of(71, 35.6),
    "NVIDIA GeForce RTX 4090": _of(165.2, 82.6),
    "NVIDIA H100 80GB HBM3": H100_SXM,
    "NVIDIA H100 NVL": _of(835, 60),
    "NVIDIA H100 PCIe": _of(756, 51),
    "NVIDIA H200": H100_SXM,
    "NVIDIA L4": _of(121, 30.3),
    "NVIDIA L40S": _of(362, 91.6),
    "NVIDIA RTX 6000 Ada Generation": _of(364.2, 91.1),
    "NVIDIA RTX A6000": _of(154.8, 38.7),
}


def seconds_at_peak(macs: float, device_name: str, precision: str) -> float | None:
    """Seconds in which a GPU would do so many multiply-adds at its rate; None where that is not known.

    Args:
        macs: the multiply-adds.
        device_name: as torch calls the GPU.
        precision: ``bfloat16`` or ``float32``; with ``bfloat16`` those that remain in float32 count like the others.
    """
    chip = CHIPS.get(device_name)
    if chip is None:
        return None
    return macs / (chip.reduced_rate if precision == "bfloat16" else chip.full_rate)
