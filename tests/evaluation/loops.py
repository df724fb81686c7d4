"""What evaluation must give, by plain loops."""

import jax
import numpy as np

from alexnet_jax.training import build
from alexnet_jax.training import measure


def probabilities(workdir, num_crops):
  """A plain loop over images and crops: ([examples, classes], labels)."""
  run = measure.load_network(workdir)
  loader = measure.make_eval_loader(run, 'validation')
  mean = build.stored_mean(run.config, workdir)
  state = jax.device_get(run.state)
  apply = jax.jit(state.apply_fn)
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  size, rows, labels = run.config.data.crop_size, [], []
  for index in range(loader.source.num_examples):
    square, label = loader.square(index)
    free = loader.resize_size - size
    corners = [(free // 2, free // 2)]
    if num_crops == 10:
      corners += [(0, 0), (0, free), (free, 0), (free, free)]
    views = [square[t : t + size, x : x + size] for t, x in corners]
    if num_crops == 10:
      views += [view[:, ::-1] for view in views]
    assert len(views) == num_crops
    pixels = (np.stack(views).astype(np.float32) - mean) / run.config.data.std
    logits = np.asarray(apply(variables, pixels), np.float64)
    powers = np.exp(logits)
    rows.append((powers / powers.sum(1, keepdims=True)).mean(0))
    labels.append(label)
  return np.array(rows), np.array(labels)


def expected_values(mean, labels):
  order = np.argsort(-mean, axis=1, kind='stable')
  own = mean[np.arange(len(labels)), labels]
  return {
    'eval/loss': -np.log(own).mean(),
    'eval/top1': (order[:, 0] == labels).mean(),
    'eval/top5': (order[:, :5] == labels[:, None]).any(1).mean(),
  }
