"""A dense layer whose gradient is ready for the other devices early."""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp


class Dense(nn.Dense):
  """As `nn.Dense`, with other gradients of its kernel.

  They leave the product of matrices in float32, summed and not rounded in
  between, and what the layers before need of the backward pass waits for them:
  so they are on their way to other devices before those layers begin.
  """

  @nn.compact
  def __call__(self, inputs):
    kernel = self.param(
      'kernel',
      self.kernel_init,
      (inputs.shape[-1], self.features),
      self.param_dtype,
    )
    bias = self.param(
      'bias', self.bias_init, (self.features,), self.param_dtype
    )
    product = _product(inputs.astype(self.dtype), kernel)
    return product + bias.astype(self.dtype)[None]


@jax.custom_vjp
def _product(x, kernel):
  """[batch, inputs] @ [inputs, features], in the dtype of `x`."""
  return x @ kernel.astype(x.dtype)


def _forward(x, kernel):
  return _product(x, kernel), (x, kernel)


def _backward(saved, gradient):
  x, kernel = saved
  kernel_gradient = lax.dot_general(
    *(x, gradient, (((0,), (0,)), ((), ()))),
    preferred_element_type=jnp.float32,
  )
  return lax.optimization_barrier(
    (
      gradient @ kernel.astype(x.dtype).T,
      kernel_gradient.astype(kernel.dtype),
    )
  )


_product.defvjp(_forward, _backward)
