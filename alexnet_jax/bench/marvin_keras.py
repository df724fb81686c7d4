"""A process that trains Marvin with Keras on TensorFlow; see `marvin`.

python -m alexnet_jax.bench.marvin_keras DATA.npz ANSWER.json SETTINGS

DATA has x_train and x_val, float32 [n, 28, 28, 3], normalized, and y_train and
y_val, int32 [n]. SETTINGS is a JSON object {seed, epochs, batch_size,
learning_rate, b1, b2, epsilon}. Nothing here needs JAX.
"""

import json
import os
import pathlib
import sys
import time

import numpy as np


def main() -> None:
  """Trains; writes {accuracy, epoch_seconds, parameters} as ANSWER."""
  data_file, answer_file, settings = sys.argv[1:]
  os.environ['KERAS_BACKEND'] = 'tensorflow'
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  with np.load(data_file) as data:
    answer = train(dict(data), **json.loads(settings))
  pathlib.Path(answer_file).write_text(json.dumps(answer))


def train(
  data: dict[str, np.ndarray],
  *,
  seed: int,
  epochs: int,
  batch_size: int,
  **optimizer,
) -> dict:
  """Trains Marvin, and measures it on the validation digits at the end.

  Returns:
    {accuracy, epoch_seconds: of each epoch, parameters: their number}.
  """
  import keras

  keras.utils.set_random_seed(seed)
  model = _network(keras.layers, keras.Sequential)
  model.compile(
    optimizer=keras.optimizers.Adam(
      optimizer['learning_rate'],
      beta_1=optimizer['b1'],
      beta_2=optimizer['b2'],
      epsilon=optimizer['epsilon'],
    ),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=['accuracy'],
  )
  times = []
  clock = keras.callbacks.LambdaCallback(
    on_epoch_begin=lambda epoch, logs: times.append(time.perf_counter()),
    on_epoch_end=lambda epoch, logs: times.append(time.perf_counter()),
  )
  model.fit(
    data['x_train'],
    data['y_train'],
    batch_size=batch_size,
    epochs=epochs,
    callbacks=[clock],
    verbose=0,
  )
  logits = model.predict(data['x_val'], batch_size=batch_size, verbose=0)
  return {
    'accuracy': float(np.mean(logits.argmax(1) == data['y_val'])),
    'epoch_seconds': np.subtract(times[1::2], times[::2]).tolist(),
    'parameters': model.count_params(),
  }


def _network(layers, sequential):
  return sequential(
    [
      layers.Input((28, 28, 3)),
      layers.Conv2D(32, 3, activation='relu'),
      layers.MaxPooling2D(2),
      layers.Conv2D(64, 3, activation='relu'),
      layers.MaxPooling2D(2),
      layers.Flatten(),
      layers.Dense(256, activation='relu'),
      layers.Dropout(0.5),
      layers.Dense(256, activation='relu'),
      layers.Dropout(0.5),
      layers.Dense(10),
    ]
  )


if __name__ == '__main__':
  main()
