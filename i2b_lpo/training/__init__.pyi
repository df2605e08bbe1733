from .batch import (
    Batch as Batch,
)
from .batch import (
    Trajectory as Trajectory,
)
from .batch import (
    pack as pack,
)
from .batch import (
    trajectories_of as trajectories_of,
)
from .checkpoint import (
    Checkpoint as Checkpoint,
)
from .checkpoint import (
    newest_checkpoint as newest_checkpoint,
)
from .checkpoint import (
    restore as restore,
)
from .checkpoint import (
    save_checkpoint as save_checkpoint,
)
from .latents import (
    Example as Example,
)
from .latents import (
    collect as collect,
)
from .latents import (
    continuation_logprobs as continuation_logprobs,
)
from .latents import (
    fork_examples as fork_examples,
)
from .latents import (
    next_strategy as next_strategy,
)
from .latents import (
    steering_report as steering_report,
)
from .latents import (
    train_latents as train_latents,
)
from .loop import (
    StepRecord as StepRecord,
)
from .loop import (
    advantages_of as advantages_of,
)
from .loop import (
    reward_table as reward_table,
)
from .loop import (
    select as select,
)
from .loop import (
    train as train,
)
from .loop import (
    train_step as train_step,
)
from .pretraining import (
    build_model as build_model,
)
from .pretraining import (
    build_tokenizer as build_tokenizer,
)
from .pretraining import (
    pretrain as pretrain,
)
from .processes import (
    agree as agree,
)
from .processes import (
    gathered as gathered,
)
from .processes import (
    launcher_gone as launcher_gone,
)
from .processes import (
    own_device as own_device,
)
from .processes import (
    put_gradients as put_gradients,
)
from .processes import (
    scatter_like as scatter_like,
)
from .processes import (
    shard as shard,
)
from .processes import (
    together as together,
)
from .processes import (
    unsharded as unsharded,
)
from .updating import (
    Learner as Learner,
)
from .updating import (
    TokenScorer as TokenScorer,
)
from .updating import (
    build_learner as build_learner,
)
from .updating import (
    update as update,
)
from .updating import (
    variant_of as variant_of,
)
from .updating import (
    without_z as without_z,
)
