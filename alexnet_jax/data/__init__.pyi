from .batches import (
  BatchOptions as BatchOptions,
  eval_batches as eval_batches,
  train_batches as train_batches,
)
from .sources import make_source as make_source
