from .batches import BatchOptions as BatchOptions
from .batches import eval_batches as eval_batches
from .batches import train_batches as train_batches
from .sources import make_source as make_source
