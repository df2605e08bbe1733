from .checks import (
    check as check,
)
from .entropy import (
    FORK_RULES as FORK_RULES,
    choose_fork as choose_fork,
    expected_surprisal as expected_surprisal,
    token_entropy as token_entropy,
    top_fraction as top_fraction,
)
from .filters import (
    FILTERS as FILTERS,
    Filter as Filter,
    keep_all as keep_all,
    kept_share as kept_share,
    renormalise as renormalise,
    top_n as top_n,
    within_outcome as within_outcome,
)
from .grpo import (
    VARIANTS as VARIANTS,
    Scale as Scale,
    Variant as Variant,
    advantages as advantages,
    informative_groups as informative_groups,
    overlong_penalty as overlong_penalty,
)
from .ib import (
    ESTIMATORS as ESTIMATORS,
    MAX_EXCESS as MAX_EXCESS,
    MAX_GAIN as MAX_GAIN,
    Estimator as Estimator,
    Evidence as Evidence,
    Weights as Weights,
    advantage_entropy as advantage_entropy,
    answer_conditioned as answer_conditioned,
    answer_information as answer_information,
    answer_log_ratio as answer_log_ratio,
    description_excess as description_excess,
    reference_length as reference_length,
)
from .latent import (
    Elbo as Elbo,
    Gaussian as Gaussian,
    LatentModel as LatentModel,
    cluster_weights as cluster_weights,
    elbo as elbo,
    kl_per_dimension as kl_per_dimension,
    masked_mean as masked_mean,
    selector_log_prob as selector_log_prob,
)
from .loss import (
    PolicyLoss as PolicyLoss,
    Reduction as Reduction,
    loss_normaliser as loss_normaliser,
    policy_loss as policy_loss,
)
from .methods import (
    METHODS as METHODS,
    Hook as Hook,
    Method as Method,
    PerToken as PerToken,
    with_method as with_method,
)
from .metrics import (
    FORK as FORK,
    SURE as SURE,
    Interval as Interval,
    Tokens as Tokens,
    avg_at_k as avg_at_k,
    bootstrap_interval as bootstrap_interval,
    distinct_n as distinct_n,
    maj_at_k as maj_at_k,
    paired_differences as paired_differences,
    pass_at_k as pass_at_k,
    rep_n as rep_n,
    self_bleu as self_bleu,
    self_rouge_l as self_rouge_l,
)
from .probe import (
    active_units as active_units,
    mutual_information as mutual_information,
    shuffled_information as shuffled_information,
)
from .psa import (
    FUSIONS as FUSIONS,
    PSA as PSA,
    Fusion as Fusion,
    Injection as Injection,
    InputFusion as InputFusion,
    ResidualFusion as ResidualFusion,
    Shape as Shape,
    SoftmaxFusion as SoftmaxFusion,
    Strength as Strength,
    attend_with_slot as attend_with_slot,
    slot_gate as slot_gate,
    tokens_since_fork as tokens_since_fork,
)
from .samplers import (
    SAMPLERS as SAMPLERS,
    Sampler as Sampler,
)
