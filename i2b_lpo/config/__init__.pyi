from .files import (
    RUN as RUN,
)
from .files import (
    compose as compose,
)
from .files import (
    names as names,
)
from .files import (
    options as options,
)
from .files import (
    read_run as read_run,
)
from .files import (
    refuse_old as refuse_old,
)
from .files import (
    to_toml as to_toml,
)
from .files import (
    write_run as write_run,
)
from .groundwork import (
    LatentConfig as LatentConfig,
)
from .groundwork import (
    PretrainConfig as PretrainConfig,
)
from .runs import (
    METHODS as METHODS,
)
from .runs import (
    PRESETS as PRESETS,
)
from .runs import (
    EvaluateConfig as EvaluateConfig,
)
from .runs import (
    RunConfig as RunConfig,
)
from .runs import (
    SampleConfig as SampleConfig,
)
from .runs import (
    TourConfig as TourConfig,
)
from .runs import (
    preset as preset,
)
from .sections import (
    NO_IB as NO_IB,
)
from .sections import (
    BranchConfig as BranchConfig,
)
from .sections import (
    CheckpointConfig as CheckpointConfig,
)
from .sections import (
    EvaluationConfig as EvaluationConfig,
)
from .sections import (
    GRPOConfig as GRPOConfig,
)
from .sections import (
    IBConfig as IBConfig,
)
from .sections import (
    OptimizerConfig as OptimizerConfig,
)
from .sections import (
    RolloutConfig as RolloutConfig,
)
from .sections import (
    flat as flat,
)
