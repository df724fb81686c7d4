"""The train and evaluation step in Keras on TensorFlow, for `bench step`."""

import os

import keras
import numpy as np
import tensorflow as tf

from alexnet_jax.bench import step_peers


def make_network(model: dict, num_classes: int, size: int) -> keras.Sequential:
  """Returns the network of images [batch, size, size, 3], with our names.

  Args:
    model: `config.model` of the config.
    num_classes: number of logits.
    size: width of the images, in pixels.

  Raises:
    NotImplementedError: if the network has what this has not.
  """
  network = keras.Sequential([keras.layers.Input((size, size, 3))])
  for layer in step_peers.layers(model, num_classes):
    for part in _parts(layer, model):
      network.add(part)
  return network


def _parts(layer, model):
  if layer.kind == 'conv':
    return _convolution(layer, model)
  if layer.kind == 'lrn':
    return [ResponseNorm(model, name=layer.name)]
  if layer.kind == 'pool':
    pool = (model['pool_size'], model['pool_stride'])
    return [keras.layers.MaxPooling2D(*pool, name=layer.name)]
  if layer.kind == 'dense':
    return [keras.layers.Dense(layer.width, name=layer.name)]
  if layer.kind == 'dropout':
    return [keras.layers.Dropout(model['dropout'])]
  flatten = layer.kind == 'flatten'
  return [keras.layers.Flatten() if flatten else keras.layers.ReLU()]


def _convolution(layer, model):
  padding = model['paddings'][layer.index]
  parts = []
  if not isinstance(padding, str):
    sides = (padding, padding) if isinstance(padding, int) else tuple(padding)
    parts.append(keras.layers.ZeroPadding2D((sides, sides)))
    padding = 'valid'
  convolution = keras.layers.Conv2D(
    layer.width,
    model['kernels'][layer.index],
    model['strides'][layer.index],
    padding.lower(),
    groups=model['groups'][layer.index],
    name=layer.name,
  )
  return [*parts, convolution]


class ResponseNorm(keras.layers.Layer):
  """TensorFlow's local response normalization, which has no bfloat16."""

  def __init__(self, model: dict, **options):
    """Takes its numbers from `config.model`."""
    super().__init__(**options)
    # TensorFlow does not divide alpha by the size.
    by = 1 if model['lrn_convention'] == 'paper' else model['lrn_size']
    self._options = {
      'depth_radius': model['lrn_size'] // 2,
      'bias': model['lrn_k'],
      'alpha': model['lrn_alpha'] / by,
      'beta': model['lrn_beta'],
    }

  def call(self, x):
    wide = tf.cast(x, tf.float32)
    norm = tf.nn.local_response_normalization(wide, **self._options)
    return tf.cast(norm, x.dtype)


class Runner:
  """Network, optimizer and a batch that stays on the device."""

  def __init__(self, kind: str, task: dict):
    """Builds them.

    Args:
      kind: plain or jit_compile.
      task: see `step.make_task`.
    """
    _use(task['platform'])
    config = task['config']
    model, optimizer = config['model'], config['optimizer']
    dtype = model['dtype']
    keras.config.set_dtype_policy(
      dtype if dtype == 'float32' else f'mixed_{dtype}'
    )
    keras.utils.set_random_seed(0)
    size = config['data']['crop_size']
    self._network = make_network(model, task['num_classes'], size)
    self._optimizer = keras.optimizers.SGD(
      optimizer['learning_rate'],
      momentum=optimizer['momentum'],
      nesterov=optimizer['nesterov'],
    )
    self._optimizer.build(self._network.trainable_variables)
    self._decay = optimizer['weight_decay']
    wrap = tf.function(jit_compile=kind == 'jit_compile')
    self._train_step, self._eval_step = wrap(self._train), wrap(self._eval)
    self._batch = tuple(map(tf.constant, step_peers.noise_batch(task)))

  def load(self, params: dict, images: np.ndarray, labels: np.ndarray) -> None:
    """Takes weights and a batch; see `step_ours.Runner.reference`."""
    for layer, leaves in params.items():
      weights = [leaves['kernel'], leaves['bias']]
      self._network.get_layer(layer).set_weights(weights)
    self._batch = tf.constant(images), tf.constant(labels)

  def describe(self) -> dict:
    """Returns {parameters: how many}."""
    return {'parameters': self._network.count_params()}

  def _logits_and_loss(self, images, labels, training):
    logits = tf.cast(self._network(images, training=training), tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return logits, tf.reduce_mean(losses)

  def _train(self, images, labels):
    variables = self._network.trainable_variables
    with tf.GradientTape() as tape:
      _, loss = self._logits_and_loss(images, labels, training=True)
    grads = tape.gradient(loss, [v.value for v in variables])
    # Keras' own weight decay stands outside of the momentum.
    grads = [g + self._decay * w for g, w in zip(grads, variables, strict=True)]
    self._optimizer.apply(grads, variables)
    return loss

  def _eval(self, images, labels):
    logits, loss = self._logits_and_loss(images, labels, training=False)
    best = tf.argmax(logits, 1, tf.int32)
    return loss, tf.reduce_sum(tf.cast(best == labels, tf.int32))

  def train(self) -> tf.Tensor:
    """Makes an update; returns the mean loss of the batch before it."""
    return self._train_step(*self._batch)

  def evaluate(self) -> tf.Tensor:
    """Evaluates the batch; returns its mean loss."""
    return self._eval_step(*self._batch)[0]

  def loss(self, loss: tf.Tensor) -> float:
    """Waits for a step; returns its mean loss."""
    return float(loss)


def _use(platform):
  threads = len(os.sched_getaffinity(0))
  tf.config.threading.set_intra_op_parallelism_threads(threads)
  tf.config.threading.set_inter_op_parallelism_threads(threads)
  if platform != 'gpu':
    tf.config.set_visible_devices([], 'GPU')
  elif not tf.config.get_visible_devices('GPU'):
    raise RuntimeError('TensorFlow sees no GPU, but ours runs on one')
