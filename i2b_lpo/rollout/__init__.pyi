from .branching import (
    Fork as Fork,
    branch_out as branch_out,
    choose_forks as choose_forks,
    grow_trees as grow_trees,
)
from .example import (
    FOUR as FOUR,
    PREFIX as PREFIX,
    QUESTION as QUESTION,
    teacher_force as teacher_force,
)
from .rollouts import (
    Reward as Reward,
    records as records,
    roll_out as roll_out,
    sample as sample,
    verified as verified,
)
from .scoring import (
    answer_logprobs as answer_logprobs,
    conditioned_entropies as conditioned_entropies,
    filter_traces as filter_traces,
    gather_evidence as gather_evidence,
    reasoning_ids as reasoning_ids,
    score_traces as score_traces,
)
