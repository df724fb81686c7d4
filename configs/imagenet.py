"""ImageNet (ILSVRC-2012): AlexNet with local response normalization.

    python -m alexnet_jax.main --config configs/imagenet.py

It takes what `prepare tfds` built; --config.data.source=imagenet takes the two
tars themselves, from the folder --config.data.path=TARS.

The network in one tower, trained as in the paper. The batch is 128 for each
device: with 8 GPUs give --config.global_batch_size=1024 and, by the usual rule,
--config.optimizer.learning_rate=0.08 --config.schedule.warmup_epochs=5.

What to expect: not measured here, for want of ImageNet and a GPU. Others report
57 to 58 % top-1 on center crops for this network.

The paper's N(0, 0.01) with biases of 1 is known to stay at ln(classes), so this
takes Caffe's initialization. Tried at full size on 1,504 photographs of 20
classes (Caltech-101), batches of 32, one seed each; mean loss of steps 281 to
300, where guessing costs ln(20) = 2.996:

| kernels | biases | pixels | loss |
|---|---|---|---|
| paper: 0.01 | 1 | as they are | 2.993: flat |
| paper: 0.01 | 0.1 | as they are | 2.083 |
| caffe: 0.01, dense 0.005 | 0.1 | as they are | below 2.0, where it ended |
| source_release: conv3-5 0.03 | 1 | as they are | not a number at step 8 |
| he | 0 | divided by 58 | 2.923: leaves slowly |
"""

from alexnet_jax.config import make_config


def get_config():
  config = make_config()
  config.data.source = 'tfds'
  config.model.num_classes = 1000
  config.model.kernel_init = 'caffe'
  config.model.bias_init = 0.1
  return config
