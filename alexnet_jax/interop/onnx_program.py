"""Converts a trained network to an ONNX program with jax2onnx."""

from collections.abc import Callable
import importlib
import logging

import jax
import numpy as np

from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

# Largest difference between probabilities of ONNX Runtime and JAX, in float32.
TOLERANCE = 1e-4
_CHECKED = 4  # images


def require() -> None:
  """Raises UserError unless jax2onnx and onnxruntime can be imported."""
  try:
    for name in ('jax2onnx', 'onnxruntime'):
      importlib.import_module(name)
  except ImportError as error:
    raise UserError(
      f'--onnx needs jax2onnx and onnxruntime ({error}):'
      f' {how_to_install("onnx")}'
    ) from None


def convert(
  function: Callable[[jax.Array], jax.Array], image_shape: tuple[int, int, int]
) -> tuple[bytes, float]:
  """Returns the program, checked against the function.

  Args:
    function: uint8 [batch, height, width, 3] -> probabilities, float32 [batch,
      classes]; with the plain implementations of all operations.
    image_shape: (height, width, 3).

  Returns:
    (a serialized ONNX model with the input `images` and the output
    `probabilities`, for any number of images; the largest difference from the
    function's probabilities that was seen).

  Raises:
    UserError: if jax2onnx cannot convert it, or what it made computes something
      else.
  """
  import jax2onnx

  images = jax.ShapeDtypeStruct(('batch', *image_shape), np.uint8)
  # It warns of shapes that it leaves out, which nobody needs.
  logging.getLogger('onnx_ir').setLevel(logging.ERROR)
  try:
    model = jax2onnx.to_onnx(
      function,
      [images],
      model_name='alexnet_jax',
      input_names=['images'],
      output_names=['probabilities'],
    )
  except Exception as error:  # its plugins raise anything
    raise UserError(
      f'jax2onnx cannot convert this network ({type(error).__name__}: {error});'
      ' leave --onnx out'
    ) from error
  program = model.SerializeToString()
  return program, _difference(program, function, image_shape)


def _difference(program, function, image_shape):
  """Returns that of ONNX Runtime; refuses one that is too large."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # errors
  session = onnxruntime.InferenceSession(
    program, options, providers=['CPUExecutionProvider']
  )
  rng = np.random.default_rng(0)
  # Smooth, as photographs are: images of noise all look alike to a network.
  patches = rng.integers(0, 256, (_CHECKED, 4, 4, 3), np.uint8)
  rows, columns = (np.arange(side) * 4 // side for side in image_shape[:2])
  images = patches[:, rows][:, :, columns]
  (found,) = session.run(['probabilities'], {'images': images})
  error = float(np.abs(found - np.asarray(jax.jit(function)(images))).max())
  if not error <= TOLERANCE:
    raise UserError(
      f'the converted network is another one: its probabilities differ by up to'
      f' {error:.1e}, expected {TOLERANCE} at most; leave --onnx out'
    )
  return error
