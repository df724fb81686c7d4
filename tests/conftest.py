"""Four fake devices for every test, and no silent broadcasting."""

import os

# Before jax is imported; processes that tests start inherit them.
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=4'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
os.environ['KERAS_BACKEND'] = 'jax'
