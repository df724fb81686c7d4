"""What a reader of another framework's file gives."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Imported:
  """A trained network in this package's terms.

  Attributes:
    params: {layer: {'kernel' or 'scale', 'bias'}}, float32 numpy arrays in the
      layouts of `models.alexnet.AlexNet`.
    batch_stats: {layer: {'mean', 'var'}} of batch norms, float32; may be empty.
    model: fields of `config.model`.
    data: fields of `config.data`: how images are prepared for it.
    mean: what is subtracted from pixels of 0 to 255, float32, red, green, blue:
      [3], or an image [crop_size, crop_size, 3] where data['mean'] is `image`.
    num_classes: number of logits.
    class_names: of the classes; None where the file does not say.
  """

  params: dict[str, dict[str, np.ndarray]]
  batch_stats: dict[str, dict[str, np.ndarray]]
  model: dict
  data: dict
  mean: np.ndarray
  num_classes: int
  class_names: tuple[str, ...] | None = None
