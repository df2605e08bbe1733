from .files import (
    RUN as RUN,
    compose as compose,
    names as names,
    options as options,
    read_run as read_run,
    refuse_old as refuse_old,
    to_toml as to_toml,
    write_run as write_run,
)
from .groundwork import (
    LatentConfig as LatentConfig,
    PretrainConfig as PretrainConfig,
)
from .presets import (
    PRESETS as PRESETS,
    preset as preset,
)
from .runs import (
    EvaluateConfig as EvaluateConfig,
    RunConfig as RunConfig,
    SampleConfig as SampleConfig,
    TourConfig as TourConfig,
)
from .sections import (
    NO_IB as NO_IB,
    BranchConfig as BranchConfig,
    CheckpointConfig as CheckpointConfig,
    EvaluationConfig as EvaluationConfig,
    GRPOConfig as GRPOConfig,
    IBConfig as IBConfig,
    OptimizerConfig as OptimizerConfig,
    RolloutConfig as RolloutConfig,
    flat as flat,
)
