"""The network and its steps in Keras on TensorFlow, for `bench step`.

Nothing here needs JAX.
"""

import os

import keras
import numpy as np
import tensorflow as tf

from alexnet_jax.bench import peer_network
from alexnet_jax.bench import step_agreement


def make_network(model: dict, num_classes: int, size: int) -> keras.Sequential:
  """The network of images [batch, size, size, 3]; layers have our names.

  Args:
    model: `config.model` of the config.
    num_classes: number of logits.
    size: width of the images, in pixels.

  Raises:
    peer_network.NotWritten: if the network has what this has not.
  """
  peer_network.check(model)
  layers = [keras.layers.Input((size, size, 3))]
  groups = max(model['groups'])
  for number, width in enumerate(model['channels'], 1):
    layers += _convolution(model, number, _scaled(width, model, groups))
    if number in model['pool_layers']:
      pool = (model['pool_size'], model['pool_stride'])
      layers.append(keras.layers.MaxPooling2D(*pool, name=f'pool{number}'))
  layers.append(keras.layers.Flatten())
  for number, hidden in enumerate(model['hidden'], 1):
    dense = keras.layers.Dense(
      _scaled(hidden, model), activation='relu', name=f'dense{number}'
    )
    pair = [dense, keras.layers.Dropout(model['dropout'])]
    layers += reversed(pair) if model['dropout_position'] == 'before' else pair
  layers.append(keras.layers.Dense(num_classes, name='head'))
  return keras.Sequential(layers)


def _scaled(width, model, divisor=1):
  factor = model['width_multiplier']
  if factor == 1.0:
    return width
  return max(divisor, round(width * factor / divisor) * divisor)


def _convolution(model, number, width):
  index = number - 1
  padding = model['paddings'][index]
  layers = []
  if not isinstance(padding, str):
    sides = (padding, padding) if isinstance(padding, int) else tuple(padding)
    layers.append(keras.layers.ZeroPadding2D((sides, sides)))
    padding = 'valid'
  layers.append(
    keras.layers.Conv2D(
      width,
      model['kernels'][index],
      model['strides'][index],
      padding.lower(),
      groups=model['groups'][index],
      name=f'conv{number}',
    )
  )
  after = [keras.layers.ReLU()]
  if model['norm'] == 'lrn' and number in model['norm_layers']:
    norm = ResponseNorm(model, name=f'lrn{number}')
    after.insert(0 if model['norm_before_relu'] else 1, norm)
  return layers + after


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

  def __init__(self, name: str, task: dict):
    """See `step.make_task`; `name` is keras plain or keras jit_compile."""
    _use(task['platform'])
    config = task['config']
    model, optimizer = config['model'], config['optimizer']
    dtype = model['dtype']
    keras.config.set_dtype_policy(
      dtype if dtype == 'float32' else f'mixed_{dtype}'
    )
    keras.utils.set_random_seed(0)
    size = config['data']['crop_size']
    self.network = make_network(model, task['num_classes'], size)
    self._optimizer = keras.optimizers.SGD(
      optimizer['learning_rate'],
      momentum=optimizer['momentum'],
      nesterov=optimizer['nesterov'],
    )
    self._optimizer.build(self.network.trainable_variables)
    self._decay = optimizer['weight_decay']
    wrap = tf.function(jit_compile=name.endswith('jit_compile'))
    self._train_step, self._eval_step = wrap(self._train), wrap(self._eval)
    rng = np.random.default_rng(0)
    shape = (config['global_batch_size'], size, size, 3)
    self.set_batch(
      rng.standard_normal(shape, np.float32),
      rng.integers(0, task['num_classes'], shape[:1], np.int32),
    )

  def set_batch(self, images: np.ndarray, labels: np.ndarray) -> None:
    """Takes images [batch, height, width, 3], float32, and labels, int32."""
    self._batch = tf.constant(images), tf.constant(labels)

  def describe(self) -> dict:
    """What there is to know without computing."""
    return {'parameters': self.network.count_params()}

  def _logits_and_loss(self, images, labels, training):
    logits = tf.cast(self.network(images, training=training), tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return logits, tf.reduce_mean(losses)

  def _train(self, images, labels):
    variables = self.network.trainable_variables
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
    """One update; the mean loss of the batch before it."""
    return self._train_step(*self._batch)

  def _evaluate(self):
    return self._eval_step(*self._batch)[0]

  def step(self, what: str):
    """A step, train or evaluate; its mean loss, which may not be there yet."""
    return {'train': self.train, 'evaluate': self._evaluate}[what]()

  def loss(self, loss) -> float:
    """The same, once the step is done."""
    return float(loss)

  def device_peak(self) -> int | None:
    """Largest memory in use on the device so far; None on the CPU."""
    if not tf.config.get_visible_devices('GPU'):
      return None
    return tf.config.experimental.get_memory_info('GPU:0')['peak']


def _use(platform):
  threads = len(os.sched_getaffinity(0))
  tf.config.threading.set_intra_op_parallelism_threads(threads)
  tf.config.threading.set_inter_op_parallelism_threads(threads)
  if platform != 'gpu':
    tf.config.set_visible_devices([], 'GPU')
  elif not tf.config.get_visible_devices('GPU'):
    raise RuntimeError('TensorFlow sees no GPU, but ours runs on one')


def check(name: str, task: dict, folder: str) -> dict:
  """Losses of a few updates; see `step_agreement`."""
  runner = Runner(name, task)
  params, images, labels = step_agreement.read(folder)
  for layer, leaves in params.items():
    weights = [leaves['kernel'], leaves['bias']]
    runner.network.get_layer(layer).set_weights(weights)
  runner.set_batch(images, labels)
  losses = [float(runner.train()) for _ in range(step_agreement.STEPS)]
  return {'losses': losses, **runner.describe()}
