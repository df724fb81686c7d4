from .errors import UserError as UserError
from .models.alexnet import AlexNet as AlexNet
from .models.variants import VARIANTS as VARIANTS
from .run import load_config as load_config
from .run import open_run as open_run
from .run import Run as Run
from .run import train as train
from .training.build import make_train_step as make_train_step

__version__: str
