# %% [markdown]
# # Exercises 01 · Token entropy
#
# **Belongs to** notebook `01_entropy.ipynb`; read that first. **You write** five short functions: the entropy of a token, the rows it is read from, two means,
# how rich in decisions the most uncertain tokens are, and how many ways K draws open.
#
# | minutes of work | minutes of computing | memory |
# |---|---|---|
# | 40 | 0.2 | 0.6 GB |
#
# Computing was measured on one processor core without a GPU. Symbols: question $q$, rollout $o = (o_1 \dots o_T)$, vocabulary size $V$, policy $\pi$. The code counts from 0.
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

from i2b_lpo.method import bootstrap_interval
from i2b_lpo.model import Sampling, load_policy
from i2b_lpo.rollout import FOUR, QUESTION, roll_out, teacher_force
from i2b_lpo.tasks import STRATEGIES, load_task
from i2b_lpo.views import comparison, entropy_strip, training_curves

sys.path.insert(0, "..")  # the folder that holds the checks
from checks import set_01 as check

# %% [markdown]
# ## 1 · Entropy from logits
#
# Difficulty ●●○○○ (2/5) · importance ●●●●● (5/5) · 8 minutes · **you learn** what H counts and what it must not count.
#
# $$H_t = -\sum_v \pi(v|\cdot)\,\log \pi(v|\cdot) \qquad \text{[P]}$$
#
# In nats, from raw logits, over the tokenizer's vocabulary: ids from `vocab_size` on are padded ids and don't count [C].


# %% tags=["exercise"]
def token_entropies(logits: Tensor, vocab_size: int) -> Tensor:
    """Entropy of each row in nats.

    Args:
        logits: raw logits, (T, V) with V ≥ vocab_size; −inf is possible.
        vocab_size: ids from here on have no text.

    Returns:
        H_t, (T,).
    """
    # --8<-- solution: π of the real ids, then −Σ π log π
    log_pi = logits[:, :vocab_size].log_softmax(-1)  # (T, vocab_size)
    pi = log_pi.exp()
    surprise = -log_pi.masked_fill(pi == 0, 0.0)  # 0 · log 0 counts as 0
    return (pi * surprise).sum(-1)  # (T,)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# H is the mean surprise −log π(v), weighted by π(v). A padded id must not take any of the probability, so it has to be removed *before* π is computed. A token with π = 0
# is never drawn, so it never surprises: its term is 0, although its surprise alone is infinite.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Slice the last dimension, then `log_softmax(-1)`; `.exp()` of it is π. `masked_fill(condition, 0.0)` replaces entries, and `torch.special.xlogy(x, y)` is x · log y with 0 at x = 0.
#
# </details>

# %%
check.token_entropies(token_entropies)

# %% tags=["expected"]
pi = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.97, 0.01, 0.01, 0.01]])
for row, H in zip(pi, token_entropies(pi.double().log(), 4)):
    shares = " ".join(f"{p_v:.2f}" for p_v in row)
    print(f"π = {shares}: H = {H:.4f} nat, like {H.exp():.2f} choices")

# %% [markdown]
# ## 2 · Which row belongs to which token?
#
# Difficulty ●○○○○ (1/5) · importance ●●●●● (5/5) · 5 minutes · **you learn** the off-by-one slip that raises no error but moves every fork.
#
# A policy has read prompt and solution in one pass. **Row i predicts token i + 1.** Pick the rows that predict the solution's tokens.


# %% tags=["exercise"]
def solution_rows(logits: Tensor, start: int) -> Tensor:
    """The rows of logits that predict the solution's tokens.

    Args:
        logits: of prompt and solution, (1, start + T, V).
        start: number of tokens of the prompt.

    Returns:
        Row t predicts token t of the solution, (T, V).
    """
    # --8<-- solution: the T rows of the only sequence
    return logits[0, start - 1 : -1]
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# What decides the solution's first token? The prompt's last row, when the policy has read the prompt to its end. And what the row of the solution's last token predicts
# was never drawn.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Use one index for the batch and one slice for the rows. The slice must have T rows: check the first and the last one.
#
# </details>

# %%
check.solution_rows(solution_rows)

# %% [markdown]
# Now use both functions on the running example's fourth solution, the one with `Factor`. Notebook 01 showed the first.

# %% tags=["expected"]
policy = load_policy("tiny-base", dtype=torch.float64)
prompt = policy.prompt_ids(QUESTION.text)
trace = teacher_force(policy, QUESTION, FOUR)
factor = trace.rollouts[3]
with torch.no_grad():
    logits = policy.model(torch.tensor([[*prompt, *factor.ids]])).logits
rows = solution_rows(logits, len(prompt))
H = token_entropies(rows, policy.vocab_size)

mine = replace(factor, entropies=tuple(H.tolist()))
entropy_strip(replace(trace, rollouts=(mine,)), 0)

# %% [markdown]
# - Two strategy words stand out, `Split` and `Factor`, and the first factor to be split. If your bright tokens are the blanks *after* these words, you are one row off.
#
# ## 3 · Two means
#
# Difficulty ●○○○○ (1/5) · importance ●●●○○ (3/5) · 4 minutes · **you learn** that "mean entropy" is two different numbers.
#
# The loss takes a mean over all tokens; `evaluate` reports a mean over rollouts of each rollout's mean. Write both.


# %% tags=["exercise"]
def two_means(entropies: list[list[float]]) -> tuple[float, float]:
    """Mean entropy over tokens, and over rollouts.

    Args:
        entropies: H_t of each rollout, in nats; lengths differ.

    Returns:
        The mean over all tokens; the mean of the rollouts' means.
    """
    # --8<-- solution: one mean over tokens, one over rollouts
    tokens = [h for rollout in entropies for h in rollout]
    return fmean(tokens), fmean(fmean(rollout) for rollout in entropies)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# In the first mean a rollout of 80 tokens weighs four times as much as one of 20. In the second both weigh the same.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `fmean` takes any iterable: first a flat list, then a generator of means.
#
# </details>

# %%
check.two_means(two_means)

# %%
task = load_task("shop")
questions = task.questions("validation", 24, seed=1)
sampling = Sampling(max_new_tokens=160)
traces = roll_out(
    policy, questions, sampling, rollouts=4,
    generator=torch.Generator().manual_seed(1),
)
rollouts = [rollout for trace in traces for rollout in trace.rollouts]

# %% tags=["expected"]
guesses = [r for r in rollouts if "Guess" in r.pieces]
others = [r for r in rollouts if "Guess" not in r.pieces]
print("                 rollouts  tokens each  over tokens  over rollouts")
for name, some in (("all", rollouts), ("with a guess", guesses),
                   ("without", others)):
    over_tokens, over_rollouts = two_means([r.entropies for r in some])
    print(f"{name:16} {len(some):8}  {fmean(map(len, some)):11.0f}",
          f" {over_tokens:11.3f}  {over_rollouts:13.3f}")

# %% [markdown]
# ## 4 · Does Ω find the decisions?
#
# Difficulty ●●●○○ (3/5) · importance ●●●●○ (4/5) · 15 minutes · **you learn** to state a finding as a ratio to a baseline, and to test it with a control.
#
# $\Omega = \{t : H_t \text{ in the top 5 \% of this rollout}\}$ [S], ⌈0.05 T⌉ tokens. How many times as frequent are strategy words in Ω as among all tokens of the rollout?
#
# $$\text{enrichment} = \frac{\text{share of words in } \Omega}{\text{share of words among all tokens}}$$
#
# **Baseline**: 1, by definition. **Negative control**: the same after shuffling the entropies within the rollout.


# %% tags=["exercise"]
def enrichment(
    entropies: list[float], is_word: list[bool], fraction: float
) -> float:
    """How many times as frequent words are in Ω as in the rollout.

    Args:
        entropies: H_t, T of them.
        is_word: whether token t is a strategy word; at least one is.
        fraction: share of the tokens in Ω, rounded up to whole tokens.
    """
    # --8<-- solution: find Ω, then divide two shares
    size = -int(-fraction * len(entropies) // 1)
    order = sorted(range(len(entropies)), key=lambda t: -entropies[t])
    among = fmean(is_word[t] for t in order[:size])
    return among / fmean(is_word)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# There are two shares with different denominators: |Ω| in one, T in the other. If Ω were picked blindly, both would be equal on average and the ratio would be 1.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `sorted(range(T), key=…)` gives positions instead of values; `math.ceil` rounds up; `fmean` of booleans is a share.
#
# </details>

# %%
check.enrichment(enrichment)


# %%
def ratios(shuffle: bool) -> list[float]:
    rng, found = random.Random(0), []
    for rollout in rollouts:
        entropies = list(rollout.entropies)
        is_word = [piece in STRATEGIES for piece in rollout.pieces]
        if shuffle:
            rng.shuffle(entropies)
        if any(is_word):
            found.append(enrichment(entropies, is_word, 0.05))
    return found


# %% tags=["expected"]
arms = {
    "entropy": ratios(shuffle=False),
    "control: shuffled": ratios(shuffle=True),
}
intervals = {
    name: {"metrics": {"enrichment": asdict(bootstrap_interval(found))}}
    for name, found in arms.items()
}
view = comparison(intervals, metrics=("enrichment",))
view.figure.update_layout(title_text="Strategy words in Ω; 1 is chance")
view

# %% [markdown]
# - The control's interval contains 1. So the words are found by *where* the entropy is, not by how we count.
#
# ## 5 · One step further: how many ways do K draws open?
#
# Difficulty ●●●○○ (3/5) · importance ●●●●○ (4/5) · 8 minutes · **you learn** why forking a collapsed policy gains nothing.
#
# K branches are drawn at a fork whose next token has the distribution π. With how many *different* tokens do they start, on average? A token v is among them unless all K
# draws miss it.


# %% tags=["exercise"]
def expected_distinct(pi: Tensor, k: int) -> float:
    """Mean number of different tokens in k independent draws.

    Args:
        pi: probabilities of the next token, (V,).
        k: number of draws, K.
    """
    # --8<-- solution: sum the chances that v is drawn at all
    return float((1 - (1 - pi) ** k).sum())
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# The number of different tokens is a sum over v of "v was drawn at least once", 1 or 0. The mean of a sum is the sum of the means, so you need not count combinations.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# The chance that one draw misses v is 1 − π(v); the chance that k draws miss it is the k-th power of that. One line on the whole tensor, and a sum.
#
# </details>

# %%
check.expected_distinct(expected_distinct)

# %%
p = len(prompt) + 34  # tokens before the running example's fork
ids = torch.tensor([[*prompt, *factor.ids]])
chances = {}
for name in ("tiny-base", "tiny-grpo"):
    each = load_policy(name, dtype=torch.float64)
    with torch.no_grad():
        logits = each.model(ids).logits
    row = logits[0, p - 1, : each.vocab_size]  # predicts token p
    chances[name] = row.softmax(-1)
    H = token_entropies(row[None], each.vocab_size).item()
    print(f"{name}: H = {H:.2f} nat")

# %% tags=["expected"]
curves = {
    name: [
        {"step": k, "different tokens": expected_distinct(pi, k)}
        for k in range(1, 9)
    ]
    for name, pi in chances.items()
}
view = training_curves(curves)
view.figure.update_xaxes(title_text="K, draws at the fork p = 66")
words = ", ".join(
    f"{name} {expected_distinct(pi, 3):.2f}" for name, pi in chances.items()
)
replace(view, description=f"Different tokens in K = 3 draws: {words}.")

# %% [markdown]
# - K = 3 draws of the base open 2.3 ways, and those of the collapsed policy hardly more than one: sampling more often doesn't help. Notebook 03 draws latents instead.
#
# ## Discuss
#
# Ω takes 5 % of *every* rollout, however certain the policy is. Would a threshold in nats be a better rule for choosing forks during training, while the policy is collapsing? What would happen to the number of
# branches in a batch?
#
# <details><summary>Some thoughts</summary>
#
# A threshold never forks where nothing is open, so it wastes no tokens on copies. But the number of branches then falls as the policy collapses: exploration stops just when it is needed, and groups
# get different sizes, which changes the advantages. A rank keeps G fixed, at the price of forks in name only (notebook 01, section 9). A mixture is possible: rank, but only above a floor.
#
# </details>
