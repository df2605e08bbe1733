from .entropy import (
    FORK_RULES as FORK_RULES,
)
from .entropy import (
    choose_fork as choose_fork,
)
from .entropy import (
    expected_surprisal as expected_surprisal,
)
from .entropy import (
    token_entropy as token_entropy,
)
from .entropy import (
    top_fraction as top_fraction,
)
from .filters import (
    FILTERS as FILTERS,
)
from .filters import (
    Filter as Filter,
)
from .filters import (
    keep_all as keep_all,
)
from .filters import (
    kept_share as kept_share,
)
from .filters import (
    renormalise as renormalise,
)
from .filters import (
    top_n as top_n,
)
from .filters import (
    within_outcome as within_outcome,
)
from .grpo import (
    VARIANTS as VARIANTS,
)
from .grpo import (
    PolicyLoss as PolicyLoss,
)
from .grpo import (
    Reduction as Reduction,
)
from .grpo import (
    Scale as Scale,
)
from .grpo import (
    Variant as Variant,
)
from .grpo import (
    advantages as advantages,
)
from .grpo import (
    informative_groups as informative_groups,
)
from .grpo import (
    loss_normaliser as loss_normaliser,
)
from .grpo import (
    overlong_penalty as overlong_penalty,
)
from .grpo import (
    policy_loss as policy_loss,
)
from .ib import (
    ESTIMATORS as ESTIMATORS,
)
from .ib import (
    MAX_EXCESS as MAX_EXCESS,
)
from .ib import (
    MAX_GAIN as MAX_GAIN,
)
from .ib import (
    Estimator as Estimator,
)
from .ib import (
    Evidence as Evidence,
)
from .ib import (
    Weights as Weights,
)
from .ib import (
    advantage_entropy as advantage_entropy,
)
from .ib import (
    answer_conditioned as answer_conditioned,
)
from .ib import (
    answer_information as answer_information,
)
from .ib import (
    answer_log_ratio as answer_log_ratio,
)
from .ib import (
    description_excess as description_excess,
)
from .ib import (
    reference_length as reference_length,
)
from .latent import (
    SAMPLERS as SAMPLERS,
)
from .latent import (
    Elbo as Elbo,
)
from .latent import (
    Gaussian as Gaussian,
)
from .latent import (
    LatentModel as LatentModel,
)
from .latent import (
    Sampler as Sampler,
)
from .latent import (
    cluster_weights as cluster_weights,
)
from .latent import (
    elbo as elbo,
)
from .latent import (
    kl_per_dimension as kl_per_dimension,
)
from .latent import (
    masked_mean as masked_mean,
)
from .latent import (
    selector_log_prob as selector_log_prob,
)
from .metrics import (
    FORK as FORK,
)
from .metrics import (
    SURE as SURE,
)
from .metrics import (
    Interval as Interval,
)
from .metrics import (
    Tokens as Tokens,
)
from .metrics import (
    avg_at_k as avg_at_k,
)
from .metrics import (
    bootstrap_interval as bootstrap_interval,
)
from .metrics import (
    distinct_n as distinct_n,
)
from .metrics import (
    maj_at_k as maj_at_k,
)
from .metrics import (
    paired_differences as paired_differences,
)
from .metrics import (
    pass_at_k as pass_at_k,
)
from .metrics import (
    rep_n as rep_n,
)
from .metrics import (
    self_bleu as self_bleu,
)
from .metrics import (
    self_rouge_l as self_rouge_l,
)
from .names import (
    check_names as check_names,
)
from .probe import (
    active_units as active_units,
)
from .probe import (
    mutual_information as mutual_information,
)
from .probe import (
    shuffled_information as shuffled_information,
)
from .psa import (
    FUSIONS as FUSIONS,
)
from .psa import (
    PSA as PSA,
)
from .psa import (
    Fusion as Fusion,
)
from .psa import (
    Injection as Injection,
)
from .psa import (
    InputFusion as InputFusion,
)
from .psa import (
    ResidualFusion as ResidualFusion,
)
from .psa import (
    Shape as Shape,
)
from .psa import (
    SoftmaxFusion as SoftmaxFusion,
)
from .psa import (
    Strength as Strength,
)
from .psa import (
    attend_with_slot as attend_with_slot,
)
from .psa import (
    slot_gate as slot_gate,
)
