# %% [markdown]
# # Exercises 03 · Latents
#
# **Belongs to** notebook `03_latents.ipynb`; read that first. **You write** the embedding, the KL of the ELBO, free bits, mirrored latents and a measure of what they open. At the end the bundled latents steer a collapsed policy, compared with a
# baseline and two controls.
#
# | minutes of work | minutes of computing | memory |
# |---|---|---|
# | 40 | 0.2 | 0.7 GB |
#
# Computing was measured on one processor core without a GPU. Symbols: prefix $c$, latent $z \in \mathbb{R}^{d_z}$, prior $P(z|c) = N(\mu_p, \mathrm{diag}\,\sigma_p^2)$, posterior $Q(z|c, \text{continuation}) = N(\mu_q, \mathrm{diag}\,\sigma_q^2)$, $K$ latents per fork.
#
# **How it works.** Each exercise is a function with a blank. Replace `raise NotImplementedError(…)` with your code, run the cell, then run the check below it: it says ✓, or what is
# wrong. *Difficulty* and *importance* run from 1 to 5. Help is folded away: Help 1 is about meaning, Help 2 about code.

# %%
import random
import sys
from dataclasses import asdict, replace
from statistics import fmean

import torch
from torch import Tensor

from i2b_lpo.config import LatentConfig
from i2b_lpo.method import SAMPLERS, bootstrap_interval, elbo
from i2b_lpo.model import (
    Prefix,
    Sampling,
    decode,
    decode_branches,
    load_policy,
    load_steering,
    right_pad,
)
from i2b_lpo.rollout import FOUR, QUESTION, roll_out, teacher_force
from i2b_lpo.tasks import STRATEGIES, load_task
from i2b_lpo.training import fork_examples
from i2b_lpo.views import comparison, kl_bars

sys.path.insert(0, "..")  # the folder that holds the checks
from checks import set_03 as check

# %% [markdown]
# ## 1 · An embedding that doesn't see its neighbours
#
# Difficulty ●○○○○ (1/5) · importance ●●●●○ (4/5) · 5 minutes · **you learn** why a mean over a padded batch needs its mask twice.
#
# An embedding is the mean of the hidden states of its own tokens, $\sum_t m_t h_t / \sum_t m_t$ [D].


# %% tags=["exercise"]
def mean_embedding(states: Tensor, mask: Tensor) -> Tensor:
    """Masked mean of hidden states.

    Args:
        states: h, (B, T, d).
        mask: m, 1 on the tokens that count, else 0, (B, T).

    Returns:
        One embedding per row, (B, d).
    """
    # --8<-- solution: divide the masked sum by the count
    counted = mask[..., None].to(states.dtype)  # (B, T, 1)
    return (states * counted).sum(1) / counted.sum(1)  # (B, d)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# A row of 3 tokens in a batch of width 60 must get the same embedding as it gets alone. Padding has hidden states too; they must be neither added nor counted.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `mask[..., None]` has shape (B, T, 1) and multiplies (B, T, d) row by row. Sum over T in the numerator and in the denominator.
#
# </details>

# %%
check.mean_embedding(mean_embedding)

# %% tags=["expected"]
base = load_policy("tiny-base", dtype=torch.float64)
trace = teacher_force(base, QUESTION, FOUR)
rows = [[*trace.prompt_ids, *r.ids] for r in trace.rollouts]


@torch.no_grad()
def hidden(rows):
    ids, mask = right_pad(rows, base.pad_id)  # (B, T) twice
    decoder = base.model.get_decoder()
    return decoder(ids, attention_mask=mask).last_hidden_state, mask


states, mask = hidden(rows)
alone = torch.cat([mean_embedding(*hidden([row])) for row in rows])
for name, pooled in (
    ("yours", mean_embedding(states, mask)),
    ("control: all columns [C]", states.mean(1)),
):
    moved = (pooled - alone).norm(dim=1) / alone.norm(dim=1)
    print(f"{name:25}", *(f"{m:5.2f}" for m in moved))

# %% [markdown]
# - This shows how far an embedding moves when it is computed in a batch, in units of its length. Only the two longest rows are safe from the control's fault.
#
# ## 2 · KL, the right way round
#
# Difficulty ●●○○○ (2/5) · importance ●●●●● (5/5) · 10 minutes · **you learn** the price that the ELBO puts on what z knows.
#
# $$KL(Q\|P)_d = \log\frac{\sigma_{p,d}}{\sigma_{q,d}} + \frac{\sigma_{q,d}^2 + (\mu_{q,d}-\mu_{p,d})^2}{2\sigma_{p,d}^2} - \frac12$$
#
# The released code reverses it [C].


# %% tags=["exercise"]
def gaussian_kl(
    mu_q: Tensor, sigma_q: Tensor, mu_p: Tensor, sigma_p: Tensor
) -> Tensor:
    """KL(Q‖P) of each dimension, in nats.

    Args:
        mu_q, sigma_q: mean and standard deviation of Q, (B, d_z).
        mu_p, sigma_p: those of P, (B, d_z).

    Returns:
        (B, d_z), not summed.
    """
    # --8<-- solution: the three terms of the formula
    ratio = (sigma_p / sigma_q).log()
    far = sigma_q.square() + (mu_q - mu_p).square()
    return ratio + far / (2 * sigma_p.square()) - 0.5
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# KL(Q‖P) is the mean of log Q − log P over draws *from Q*: the cost of believing P where Q is true. Two tests need no computer: it is 0 for Q = P, and a Q that is sure of its z (small σ_q) costs more, but only logarithmically.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Write down the terms in the order of the formula. Use `.square()` for squares; don't sum.
#
# </details>

# %%
check.gaussian_kl(gaussian_kl)

# %% tags=["expected"]
mu_q = torch.tensor([[2.0, 0.0, 0.5, -1.0]]).double()
sigma_q = torch.tensor([[0.5, 1.0, 2.0, 0.1]]).double()
zero, one = 0 * mu_q, 0 * mu_q + 1
there = gaussian_kl(mu_q, sigma_q, zero, one)[0]
back = gaussian_kl(zero, one, mu_q, sigma_q)[0]
print(" μ_q   σ_q   KL(Q‖P)   KL(P‖Q), reversed")
for row in zip(mu_q[0], sigma_q[0], there, back):
    print("{:4.1f}  {:4.1f}  {:8.4f}  {:8.4f}".format(*row))

# %% [markdown]
# - The first answers the notebook's question (2.3181). The last, a posterior that is sure, costs 2.3 nats, and 97 reversed: the reversed KL doesn't let z know anything.
#
# ## 3 · Free bits
#
# Difficulty ●●○○○ (2/5) · importance ●●●○○ (3/5) · 6 minutes · **you learn** where the mean over the batch belongs.
#
# $$\sum_d \max\big(\lambda,\ \mathrm{mean}_b\, KL_{bd}\big) \qquad \text{[D]}$$


# %% tags=["exercise"]
def charged_kl(kl: Tensor, free_bits: float) -> Tensor:
    """What the loss charges for a batch.

    Args:
        kl: KL(Q‖P) of each example and dimension, (B, d_z).
        free_bits: λ, nats per dimension that are free.

    Returns:
        A scalar tensor.
    """
    # --8<-- solution: mean, then max, then sum
    return kl.mean(0).clamp(min=free_bits).sum()
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# Below λ, z gains nothing by saying less, so it needn't fall silent. λ is granted to a *dimension*, on average over the batch, not to each example.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Three operations, in the formula's order from the inside out. `clamp(min=…)` takes the max with a number.
#
# </details>

# %%
check.charged_kl(charged_kl)

# %% [markdown]
# Now use your two functions on the bundled latents: posterior and prior of held-out forks, compared with the library's `elbo`.

# %% tags=["expected"]
grpo, task = load_policy("tiny-grpo"), load_task("shop")
steering = load_steering(grpo)
traces = roll_out(
    base, task.questions("validation", 40, seed=2), Sampling(160),
    rollouts=2, generator=torch.Generator().manual_seed(2),
)
chance = torch.Generator().manual_seed(2)
parted = fork_examples(base, task, traces, LatentConfig(), chance)
forks = [fork for fork in parted if fork.label]  # a strategy is chosen

prefixes = [fork.prefix for fork in forks]
rest = [fork.rest[:8] for fork in forks]
Q = steering.posterior(grpo, prefixes, rest)
P = steering.prior(grpo, prefixes)
kl = gaussian_kl(Q.mean, Q.stddev, P.mean, P.stddev)
library = elbo(torch.zeros(len(kl)), Q, P, free_bits=0.4)
gap = abs(charged_kl(kl, 0.4) - library.loss)
print(len(forks), "forks; charged as by the library:", bool(gap < 1e-4))

above = kl.mean(0) > 0.4
view = kl_bars(kl.mean(0).tolist(), above.tolist())
view.figure.update_layout(showlegend=False, title_text=(
    "KL(Q‖P) of each dimension of z; hatched: below λ = 0.4 nat"
))
replace(view, description=(
    f"KL of the {len(above)} dimensions of z as bars, some above λ = 0.4 "
    f"nat and charged in full, the hatched ones below it."
))

# %% [markdown]
# ## 4 · One step further: mirrored latents
#
# Difficulty ●●●○○ (3/5) · importance ●●●○○ (3/5) · 9 minutes · **you learn** a coupled draw: each latent is still distributed as the prior, but two of them know of each other.
#
# From $n$ draws of noise $\epsilon$, make $K = 2n$ latents: $\mu_p + \sigma_p\,\epsilon$, and each of them mirrored at $\mu_p$.


# %% tags=["exercise"]
def mirrored(mu: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Pairs of latents, mirrored at the prior's mean.

    Args:
        mu, sigma: mean and standard deviation of P(z|c), (B, d_z).
        noise: draws from N(0, I), (B, n, d_z).

    Returns:
        (B, 2n, d_z): first the n draws, then their mirror images in
        the same order.
    """
    # --8<-- solution: place the noise, then its mirror image
    step = sigma[:, None] * noise  # (B, n, d_z)
    return torch.cat([mu[:, None] + step, mu[:, None] - step], 1)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# A Gaussian is symmetric about its mean: the mirror image of a draw is as likely as the draw. So nothing changes for a single latent; but a pair can't lie on the same side.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `mu[:, None]` has shape (B, 1, d_z) and fits (B, n, d_z). `torch.cat([a, b], 1)` joins along the second dimension.
#
# </details>

# %%
check.mirrored(mirrored)

# %% tags=["expected"]
K = 4
chance = torch.Generator().manual_seed(0)
noise = torch.randn(len(forks), K // 2, 8, generator=chance)
pairs = mirrored(P.mean, P.stddev, noise)  # (B, K, d_z)
middle = (pairs.mean(1) - P.mean).abs().max()
print("the mean of a set is μ_p:", bool(middle < 1e-4))

draw = SAMPLERS["independent"]
free = draw(P, K, torch.Generator().manual_seed(1))
for name, z in (("independent", free), ("mirrored", pairs)):
    unit = (z - P.mean[:, None]) / P.stddev[:, None]
    apart = (unit[:, 0] - unit[:, 2]).norm(dim=-1).mean()  # one pair
    size = unit.norm(dim=-1).mean()
    print(f"{name:12} size {size:.1f} σ_p, a pair apart {apart:.1f} σ_p")

# %% [markdown]
# - The latents are equally long but further apart: √2 times as far within a pair.
#
# ## 5 · What do latents open?
#
# Difficulty ●●○○○ (2/5) · importance ●●●●○ (4/5) · 10 minutes · **you learn** to measure variety within a branch set, and to tell what a latent knows from how loud it is.
#
# Here a branch set is the first words of the K branches of one fork. How many different strategies does a set contain, on average?


# %% tags=["exercise"]
def coverage(sets: list[list[str]], strategies: list[str]) -> float:
    """Mean number of different strategies in a set.

    Args:
        sets: for each fork the first words of its K branches.
        strategies: words that count; others don't.
    """
    # --8<-- solution: count within each set, then average
    return fmean(len(set(words) & set(strategies)) for words in sets)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# Four branches that all say Split contain one strategy; four that say Split, Guess, Split and a blank contain two. Which fork is which must not matter: count within sets, average between them.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `set(…)` drops repetitions, `&` keeps what is in both sets, and `fmean` takes a generator.
#
# </details>

# %%
check.coverage(coverage)

# %%
one_token, seeded = Sampling(1), torch.Generator().manual_seed
read = decode(
    grpo, prefixes, one_token, keep_kv=True, generator=seeded(0)
).kv
start = [Prefix(*both) for both in zip(prefixes, read)]


def first_words(z):
    """First words of the K branches of each fork; z (B, K, d_z)."""
    found = decode_branches(
        grpo, start, [1] * len(start), one_token, branches=K,
        injection=None if z is None else steering.injection(
            z.flatten(0, 1)
        ),
        generator=seeded(1),
    )
    pieces = grpo.pieces(found.ids[:, 0].tolist())
    words = [piece.strip() for piece in pieces]
    return [words[i : i + K] for i in range(0, len(words), K)]


# %% [markdown]
# **Baseline**: plain re-sampling, no z. **Negative control**: z ~ N(0, I). It is a quarter as long as the CVAE's z, so there is also `matched`: a random direction with the length of a draw from the prior at the same prefix.
# And a control for the mirrored draw: the same words, dealt to the sets again.

# %% tags=["expected"]
names = list(STRATEGIES)
quiet = SAMPLERS["standard_normal"](P, K, seeded(0))
loud = SAMPLERS["matched"](P, K, seeded(0))
sets = {
    "baseline: no z": first_words(None),
    "control: z ~ N(0, I)": first_words(quiet),
    "control: matched": first_words(loud),
    "z ~ P(z|c)": first_words(free),
    "mirrored z": first_words(pairs),
}
dealt = [word for words in sets["mirrored z"] for word in words]
random.Random(0).shuffle(dealt)
sets["mirrored, words dealt anew"] = [
    dealt[i : i + K] for i in range(0, len(dealt), K)
]
found = {name: coverage(some, names) for name, some in sets.items()}
intervals = {
    name: {"metrics": {"strategies": asdict(bootstrap_interval(
        [coverage([words], names) for words in some]
    ))}}
    for name, some in sets.items()
}
view = comparison(intervals, metrics=("strategies",))
view.figure.update_layout(title_text="Strategies in a set of K = 4")
low = max(found[name] for name in list(sets)[:2])
high = min(found[name] for name in list(sets)[2:])
replace(view, description=(
    "Strategies in a set of K = 4, with 95 % intervals: baseline and "
    f"N(0, I) below 1.3: {low < 1.3}; the others above 1.8: {high > 1.8}."
))

# %% [markdown]
# - The collapsed policy writes one strategy, and no more with N(0, I); the CVAE's latents open more than two. But noise as long as they are opens 2.2 of these 2.5: **variety needs mostly size**. What z *knows* shows in which word comes (notebook 03, section 9), not in how
#   many words come.
# - Mirroring adds nothing that so few forks could show: the intervals overlap, even with its own control (the words dealt again).
#
# ## Discuss
#
# At the optimum of the ELBO, mixing over the prior gives back the training distribution, so K independent latents are as varied as K samples of the *base*. Would you then train the latents on the traces of a policy
# that explores more, for example at temperature 1.5? What could go wrong, and what would be a fair baseline?
#
# <details><summary>Some thoughts</summary>
#
# Hotter traces contain more strategies and more nonsense, and z learns both: a latent may then ask for a slip. Balancing by strategy helps, and so does keeping only right traces, but the latter uses the answers, which the baseline must then be allowed
# to use too. A fair baseline samples at 1.5 itself, with the same number of drawn tokens. And look at reward, not only at coverage.
#
# </details>
