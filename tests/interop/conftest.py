"""What the tests of weights in and out share."""

import json

import jax
import numpy as np
import pytest

from alexnet_jax.interop import networks


@pytest.fixture
def random_images():
  """Images about as they are after their normalization."""

  def make(size, count=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (count, size, size, 3)).astype(np.float32)

  return make


@pytest.fixture
def our_logits():
  """Of an `Imported` network, in float32."""

  def compute(imported, images):
    network = networks.module(imported.model, imported.num_classes)
    variables = {'params': imported.params, 'batch_stats': imported.batch_stats}
    return np.asarray(jax.jit(network.apply)(variables, images))

  return compute


@pytest.fixture
def command_result(capsys):
  """Calls a command's main with --json: (exit code, result or None, errors)."""

  def call(main, *arguments):
    capsys.readouterr()
    code = main([*map(str, arguments), '--json'])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else None, err

  return call
