"""What training minimizes: the cross-entropy, smoothed labels, penalties."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.training.state import leaf_names


@dataclasses.dataclass(frozen=True)
class Objective:
  """What training minimizes, and for which parameters.

  Attributes:
    label_smoothing: share of the target that all classes have alike.
    l1: factor of the sum of |w| over all kernels that joins the loss.
    l2: factor of the sum of w ** 2 over all kernels that joins the loss.
    frozen: names of parameters that do not train, such as conv1/kernel.
  """

  label_smoothing: float = 0.0
  l1: float = 0.0
  l2: float = 0.0
  frozen: frozenset[str] = frozenset()

  @property
  def is_plain(self) -> bool:
    """Whether it is the cross-entropy and nothing else."""
    return not (self.label_smoothing or self.l1 or self.l2)

  def penalty(self, params) -> jax.Array:
    """float32 []."""
    kernels = [w for n, w in leaf_names(params).items() if n.endswith('kernel')]
    absolute = sum(jnp.sum(jnp.abs(w)) for w in kernels) if self.l1 else 0.0
    squares = sum(jnp.sum(jnp.square(w)) for w in kernels) if self.l2 else 0.0
    return jnp.asarray(self.l1 * absolute + self.l2 * squares, jnp.float32)

  def value(self, logits, labels, params) -> jax.Array:
    """The mean over a batch, float32 [].

    Args:
      logits: float32 [batch, num_classes].
      labels: int32 [batch].
      params: of the network, for the penalties.
    """
    if self.is_plain:
      # Comparing, where indexing would have a scatter as its gradient.
      own = labels[:, None] == jnp.arange(logits.shape[1])[None]
      losses = optax.softmax_cross_entropy(logits, own.astype(logits.dtype))
      return losses.mean()
    targets = optax.smooth_labels(
      jax.nn.one_hot(labels, logits.shape[1]), self.label_smoothing
    )
    losses = optax.softmax_cross_entropy(logits, targets)
    return losses.mean() + self.penalty(params)


PLAIN = Objective()  # the mean cross-entropy
