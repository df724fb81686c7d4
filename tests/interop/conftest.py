"""Shared by the tests of weights in and out."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax.interop import networks
from alexnet_jax.models import variants
from tests.system import commands


@pytest.fixture(scope='session')
def trained_run(tmp_path_factory):
  """A run with a mean image, averages and batch norms."""
  folder = tmp_path_factory.mktemp('trained')
  recipe = commands.write_recipe(
    folder,
    num_steps=4,
    eval_every_steps=4,
    log_every_steps=4,
    ema_decay=0.9,
    data__mean='image',
    model__norm='batch',
    model__norm_layers=(1,),
    model__paddings=('SAME', (1, 2)),
  )
  commands.train_here(recipe, folder / 'run')
  return folder / 'run'


NARROW, HIDDEN = (16, 32, 48, 48, 32), (64, 48)


@pytest.fixture
def narrow(monkeypatch):
  """Named networks with few channels, as those that the tests build."""
  for name in ('alexnet', 'alexnet_caffe', 'caffenet', 'alexnet_bn'):
    fields = {**variants.VARIANTS[name], 'channels': NARROW, 'hidden': HIDDEN}
    monkeypatch.setitem(variants.VARIANTS, name, fields)
  whole = variants.VARIANTS['alexnet_torchvision'] | {'hidden': HIDDEN}
  monkeypatch.setitem(variants.VARIANTS, 'alexnet_torchvision', whole)


def random_images(size, count=2):
  """Images about as they are after their normalization."""
  rng = np.random.default_rng(0)
  return rng.normal(0, 1, (count, size, size, 3)).astype(np.float32)


def our_logits(imported, images):
  """Computes the logits of a `TrainedNetwork` in float32."""
  network = networks.module(imported.model, imported.num_classes)
  variables = {'params': imported.params, 'batch_stats': imported.batch_stats}
  return np.asarray(jax.jit(network.apply)(variables, images))


def read_weights(path):
  """Returns ({name: array}, metadata) of a file that `save` wrote."""
  with safetensors.safe_open(path, 'numpy') as file:
    fields = json.loads(file.metadata()['alexnet_jax'])
  return safetensors.numpy.load_file(path), fields


def write_weights(path, tensors, fields):
  text = {'format': 'pt', 'alexnet_jax': json.dumps(fields)}
  safetensors.numpy.save_file(tensors, path, text)
  return path


@pytest.fixture
def ask(call):
  """Calls a command with a line: (exit code, result or None, errors)."""
  return lambda command, line: call(command, *line.split())
