"""What devices can compute at most: of GPUs as published, of CPUs measured.

The numbers count a multiply-add as two operations, without sparsity. `float32`
is what JAX computes float32 with: TF32 on the tensor cores where there are any.
"""

import dataclasses
import time

import numpy as np

_PRODUCT_SIZE = 2048
_TRIALS = 3


@dataclasses.dataclass(frozen=True)
class Peak:
  """The peak of a device.

  Attributes:
    kind: what jax' `device_kind` contains; the first entry that fits counts.
    bfloat16: TFLOP/s, dense, or None if the device has no unit for it.
    float32: TFLOP/s, dense.
    source: where the numbers are published.
  """

  kind: str
  bfloat16: float | None
  float32: float
  source: str


_HALF = 'half of what it gives with sparsity'
_H100 = f"NVIDIA's H100 data sheet: {_HALF}"
_ADA = "NVIDIA's Ada GPU architecture white paper, appendix, FP32 accumulate"
_GA102 = "NVIDIA's Ampere GA102 white paper, appendix, FP32 accumulate"
GPUS = (
  Peak('H200', 989.5, 494.5, f"NVIDIA's H200 data sheet: {_HALF}"),
  Peak('H100 PCIe', 756.5, 378.0, _H100),
  Peak('H100 NVL', 835.5, 417.5, _H100),
  Peak('H100', 989.4, 494.7, "NVIDIA's H100 white paper, dense"),
  Peak('A100', 312.0, 156.0, "NVIDIA's A100 data sheet"),
  Peak('A10G', 70.0, 35.0, "NVIDIA's A10G data sheet"),
  Peak('A10', 125.0, 62.5, "NVIDIA's A10 data sheet"),
  Peak('L40S', 362.05, 183.0, "NVIDIA's L40S data sheet"),
  Peak('L40', 181.05, 90.5, "NVIDIA's L40 data sheet"),
  Peak('L4', 121.0, 60.0, f"NVIDIA's L4 data sheet: {_HALF}"),
  Peak('RTX 4090', 165.2, 82.6, _ADA),
  Peak('RTX 3090', 71.0, 35.6, _GA102),
  Peak('V100-PCIE', None, 14.0, "NVIDIA's V100 data sheet"),
  Peak('V100', None, 15.7, "NVIDIA's V100 data sheet"),
  Peak('T4', None, 8.1, "NVIDIA's T4 data sheet"),
)


def of_gpu(device_kind: str, dtype: str) -> tuple[float, str] | None:
  """The published peak of one GPU.

  Args:
    device_kind: as jax has it, such as 'NVIDIA H100 80GB HBM3'.
    dtype: of the computation, float32 or bfloat16.

  Returns:
    (FLOP/s, source), or None if the table does not have it.
  """
  words = f' {device_kind} '.replace('-', ' ')
  for peak in GPUS:
    value = getattr(peak, dtype)
    if f' {peak.kind} '.replace('-', ' ') in words:
      return None if value is None else (1e12 * value, peak.source)
  return None


def of_cpu(dtype: str) -> float:
  """FLOP/s of the fastest of some large matrix products, by jax and numpy.

  numpy's are float32 in any case: a CPU may compute bfloat16 by way of it.
  """
  import jax
  import jax.numpy as jnp

  rng = np.random.default_rng(0)
  matrix = rng.standard_normal((_PRODUCT_SIZE,) * 2, np.float32)
  product = jax.jit(jnp.dot)
  times = []
  for name in {dtype, 'float32'}:
    array = jnp.asarray(matrix, name)
    for trial in range(_TRIALS + 1):
      start = time.perf_counter()
      product(array, array).block_until_ready()
      if trial:  # the first one compiles
        times.append(time.perf_counter() - start)
  for _ in range(_TRIALS):
    start = time.perf_counter()
    np.dot(matrix, matrix)
    times.append(time.perf_counter() - start)
  return 2 * _PRODUCT_SIZE**3 / min(times)
