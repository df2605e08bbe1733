from .measuring import (
    EntropyProfile as EntropyProfile,
    Evaluation as Evaluation,
    StrategyUse as StrategyUse,
    entropy_profile as entropy_profile,
    evaluate as evaluate,
    measure as measure,
)
