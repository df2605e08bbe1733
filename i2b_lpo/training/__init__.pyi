from .batch import (
    Batch as Batch,
    Trajectory as Trajectory,
    pack as pack,
    trajectories_of as trajectories_of,
)
from .checkpoint import (
    Checkpoint as Checkpoint,
    newest_checkpoint as newest_checkpoint,
    restore as restore,
    save_checkpoint as save_checkpoint,
)
from .latents import (
    Example as Example,
    collect as collect,
    continuation_logprobs as continuation_logprobs,
    fork_examples as fork_examples,
    next_strategy as next_strategy,
    steering_report as steering_report,
    train_latents as train_latents,
)
from .learner import (
    Learner as Learner,
    TokenScorer as TokenScorer,
    build_learner as build_learner,
)
from .loop import (
    train as train,
)
from .pretraining import (
    build_model as build_model,
    build_tokenizer as build_tokenizer,
    pretrain as pretrain,
)
from .processes import (
    agree as agree,
    gathered as gathered,
    launcher_gone as launcher_gone,
    own_device as own_device,
    put_gradients as put_gradients,
    scatter_like as scatter_like,
    shard as shard,
    together as together,
    unsharded as unsharded,
)
from .step import (
    StepRecord as StepRecord,
    advantages_of as advantages_of,
    reward_table as reward_table,
    select as select,
    train_step as train_step,
)
from .updating import (
    update as update,
    without_z as without_z,
)
