from .measuring import (
    EntropyProfile as EntropyProfile,
)
from .measuring import (
    Evaluation as Evaluation,
)
from .measuring import (
    StrategyUse as StrategyUse,
)
from .measuring import (
    entropy_profile as entropy_profile,
)
from .measuring import (
    evaluate as evaluate,
)
from .measuring import (
    measure as measure,
)
