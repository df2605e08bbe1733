from .branching import (
    Fork as Fork,
)
from .branching import (
    branch_out as branch_out,
)
from .branching import (
    choose_forks as choose_forks,
)
from .branching import (
    grow_trees as grow_trees,
)
from .example import (
    FOUR as FOUR,
)
from .example import (
    PREFIX as PREFIX,
)
from .example import (
    QUESTION as QUESTION,
)
from .example import (
    teacher_force as teacher_force,
)
from .rollouts import (
    Reward as Reward,
)
from .rollouts import (
    records as records,
)
from .rollouts import (
    roll_out as roll_out,
)
from .rollouts import (
    sample as sample,
)
from .rollouts import (
    verified as verified,
)
from .scoring import (
    answer_logprobs as answer_logprobs,
)
from .scoring import (
    conditioned_entropies as conditioned_entropies,
)
from .scoring import (
    filter_traces as filter_traces,
)
from .scoring import (
    gather_evidence as gather_evidence,
)
from .scoring import (
    reasoning_ids as reasoning_ids,
)
from .scoring import (
    score_traces as score_traces,
)
