from .errors import UserError as UserError
from .models.alexnet import AlexNet as AlexNet
from .models.variants import VARIANTS as VARIANTS
from .run import (
  load_config as load_config,
  open_run as open_run,
  Run as Run,
  train as train,
)
from .training.build import make_train_step as make_train_step

__version__: str
