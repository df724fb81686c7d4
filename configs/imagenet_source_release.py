"""ImageNet as net 145 of the 2012 source release was really trained.

    python -m alexnet_jax.main --config configs/imagenet_source_release.py

and `evaluation.evaluate --crops 10`. The Computer History Museum published the
code with the definition of this net, its parameters and the log of its training
as comments (layers/layers-145.cfg and layer-params-145.cfg). It is the paper's
network but for what the paper does not say:

- The first normalization sits on the convolution itself; the ReLU comes after
  the pooling. After the second normalization there is another one, in space:
  5 x 5 pixels of the same channel, scale 0.001 / 25, power 0.75.
- The towers' channels are normalized apart, with alpha / n: 2e-5 a neighbor.
- The third to fifth convolution start with a deviation of 0.03.
- Biases have twice the rate, do not decay, and keep that rate to the end, but
  for those of the first convolution.
- An input of 224 without padding gives 55 because sizes are rounded up.
- The colors are shifted by their standard deviations, not their variances, and
  while they are, pixels after the mean are divided by 1.1.

The rate was changed by hand: weights 0.01; epoch 25: 0.001; 51: 1e-4; 67: the
first convolution 1e-5, and no shift of the colors any more; 72: the first
convolution stands still (its biases, too: the log does not say since when); 79:
the rest 1e-5; 91: stopped. Not as there: it cut and mirrored 32 images alike,
here each is cut by itself.

What to expect: 59.336 % top-1 and 81.790 % top-5 with ten crops, by the file.
Not measured here, for want of ImageNet and a GPU. A trial of this
initialization in one tower had a loss that was not a number at step 8 (see
configs/imagenet.py).
"""

from alexnet_jax.config import make_config
from alexnet_jax.models import variants


def get_config():
  config = make_config()
  config.num_epochs = 91.0
  config.data.source = 'tfds'
  config.data.mean = 'image'
  config.data.pca_lighting = 0.1
  config.data.pca_lighting_unit = 'deviation'
  config.data.pca_lighting_epochs = 67.0
  config.data.pca_lighting_shrink = True

  config.model.update(variants.fields('alexnet_source_release'))
  config.model.num_classes = 1000

  config.optimizer.update_rule = 'paper'
  config.optimizer.decay = 'kernels'
  config.optimizer.bias_lr_multiplier = 2.0
  config.schedule.name = 'recorded'
  config.schedule.lr_multipliers = (
    (25, '*/kernel', 0.1),
    (51, '*/kernel', 0.01),
    (67, 'conv1/kernel', 0.001),
    (72, 'conv1/*', 0.0),
    (79, 'conv[2-5]/kernel', 0.001),
    (79, 'dense*/kernel', 0.001),
    (79, 'head/kernel', 0.001),
  )
  return config
