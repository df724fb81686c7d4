"""Histograms of parameters and gradients, counted on the device."""

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.training.state import leaf_names

BINS = 64


@jax.jit
def _count(tree):
  return jax.tree.map(lambda leaf: jnp.histogram(leaf, bins=BINS), tree)


def histograms(tree) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """{leaf's name: (counts [64], edges [65])} of a tree of arrays."""
  leaves = leaf_names(tree)
  return {
    name: (np.asarray(counts), np.asarray(edges))
    for name, (counts, edges) in _count(leaves).items()
  }
