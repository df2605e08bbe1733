# %% [markdown]
# # Exercises 07 · The whole of I²B-LPO
#
# **Belongs to** notebook `07_i2b_lpo.ipynb`; read that first. **You write** the five places where a whole step most easily goes wrong: the mask of a tree, the order of advantages and filter, the log-probs with and without z, the
# loss, and the comparison of two methods.
#
# | minutes of work | minutes of computing | memory |
# |---|---|---|
# | 45 | 0.3 | 0.8 GB |
#
# Computing was measured on one processor core without a GPU. Symbols: $M$ roots, $K$ branches each, group $G = M(1+K)$, branch set $B_i$, of which $N$ are kept, reward $R$, advantage $A$, latent $z$, mask $m$, tokens since the fork $s$. The code
# counts from 0.
#
# **How it works.** Each exercise is a function with a blank. Replace `raise NotImplementedError(…)` with your code, run the cell, then run the check below it: it says ✓, or what is
# wrong. *Difficulty* and *importance* run from 1 to 5. Help is folded away: Help 1 is about meaning, Help 2 about code.

# %%
import random
import sys
from dataclasses import replace
from itertools import accumulate
from statistics import fmean

import torch
from torch import Tensor

from i2b_lpo.config import preset
from i2b_lpo.method import policy_loss, with_method
from i2b_lpo.model import Sampling, load_policy, load_steering
from i2b_lpo.rollout import FOUR, PREFIX, QUESTION, teacher_force
from i2b_lpo.tasks import load_task
from i2b_lpo.trace import Branch
from i2b_lpo.training import TokenScorer, pack, trajectories_of
from i2b_lpo.views import branch_tree, training_curves

sys.path.insert(0, "..")  # the folder that holds the checks
from checks import set_07 as check

# %% [markdown]
# ## 1 · Which tokens train?
#
# Difficulty ●●○○○ (2/5) · importance ●●●●● (5/5) · 8 minutes · **you learn** to count each drawn token once, however often it appears in the batch.
#
# A row of the batch is prompt, answer, padding. A branch's answer begins with what it inherits from its parent. **m = 1 on a trajectory's own tokens; 0 on prompt, inherited prefix and padding.**


# %% tags=["exercise"]
def new_tokens(
    prompt: int, starts: list[int], lengths: list[int], width: int
) -> Tensor:
    """The mask m of a right-padded batch.

    Args:
        prompt: tokens of the prompt, the same in each row.
        starts: tokens that each answer inherits; 0 for a root.
        lengths: tokens of each answer, the inherited ones included.
        width: columns of the batch.

    Returns:
        m, bool, (B, width).
    """
    # --8<-- solution: True from the first own token to the last
    column = torch.arange(width)  # (width,)
    first = prompt + torch.tensor(starts)[:, None]  # (B, 1)
    end = prompt + torch.tensor(lengths)[:, None]
    return (column >= first) & (column < end)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# The parent drew the prefix, once. If each of its K branches trained it again, the same decision would be rewarded and punished in one step, K + 1 times over. Whoever drew a token trains it; nobody drew padding.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `torch.arange(width)` compared with a column (`[:, None]`) gives a table. Join two comparisons with `&`. Note that both lists count within the answer, and the columns don't.
#
# </details>

# %%
check.new_tokens(new_tokens)

# %% [markdown]
# The running example as a tree: one root and K = 3 branches of its fork at p = 66. The notebook found 85 + 51 + 25 + 40 = 201 new tokens.

# %%
from i2b_lpo.rollout import score_traces

policy, task = load_policy("tiny-base"), load_task("shop")
config = with_method(preset("tiny"), "i2b-lpo")
four = teacher_force(policy, QUESTION, FOUR)
fork, prompt = len(policy.tokenizer.encode(PREFIX)), len(four.prompt_ids)
root, *others = four.rollouts
made = [replace(r, branch=Branch(0, p=prompt + fork)) for r in others]
(four,) = score_traces(
    policy, [replace(four, rollouts=(root, *made))], config.ib
)

# %% tags=["expected"]
lengths = [len(r) for r in four.rollouts]
starts = [four.start(i) for i in range(4)]
m = new_tokens(prompt, starts, lengths, prompt + max(lengths))
print("new tokens:", m.sum(1).tolist(), " all:", int(m.sum()))
twice = m.sum() + 3 * fork
print("with the prefix in the mask it would be:", int(twice))
branch_tree(four)

# %% [markdown]
# ## 2 · First the advantages, then the filter
#
# Difficulty ●●●○○ (3/5) · importance ●●●●● (5/5) · 12 minutes · **you learn** what the order of stages 7 and 9 decides.
#
# $A_i = (R_i - \mathrm{mean}) / (\mathrm{std} + 10^{-4})$ over **all G**, ddof 1. Then the N best of **each** branch set by S_IB stay [P]; roots are exempt [D]. A pruned branch has advantage 0.


# %% tags=["exercise"]
def select(
    rewards: Tensor, scores: Tensor, sets: dict[int, list[int]], keep: int
) -> Tensor:
    """Advantages of one group after the filter.

    Args:
        rewards: R of all trajectories, (G,).
        scores: S_IB of all trajectories, (G,).
        sets: root i → its branch set B_i, as positions in the group.
        keep: N, branches kept of each set.

    Returns:
        A, 0 for a pruned branch, (G,).
    """
    # --8<-- solution: A of all G; then 0 for what each set loses
    A = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    for members in sets.values():
        ranked = sorted(members, key=lambda i: scores[i], reverse=True)
        A[ranked[keep:]] = 0.0
    return A
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# The mean says how hard the question is, and a failure that is thrown away afterwards was still a failure. If you filter first, the mean is that of the survivors, and all the right ones look ordinary. A set is one fork; each keeps N, or a poor fork
# would lose everything it tried.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `rewards.std()` already has ddof 1. Sort a set's positions by their score, highest first; all after the first N get 0. Your A is a new tensor, so you may change it in place; `rewards` you may not.
#
# </details>

# %%
check.select(select)

# %% [markdown]
# Twelve sampled trees, M = 2 and K = 3. **Baseline**: no filter (N = K). **Negative control**: Top-2 on scores shuffled within each branch set.

# %%
from i2b_lpo.rollout import grow_trees

steering = load_steering(policy)
trees = grow_trees(
    policy, task.batch(0, 12, seed=0), Sampling(max_new_tokens=160),
    config.branch, rollouts=2, steering=steering,
    generator=torch.Generator().manual_seed(0),
)
trees = score_traces(policy, trees, config.ib)
rng = random.Random(0)


def after(keep: int, shuffle: bool = False) -> list[float]:
    "Advantages of the branches that are kept, over all trees."
    found = []
    for tree in trees:
        R = torch.tensor([r.reward for r in tree.rollouts])
        S = torch.tensor([r.score.value for r in tree.rollouts])
        sets = {tree.rollouts[b[0]].branch.parent: list(b)
                for b in tree.branch_sets()}
        for members in sets.values() if shuffle else ():
            S[members] = S[rng.sample(members, len(members))]
        A = select(R, S, sets, keep)
        found += [A[i].item() for b in sets.values() for i in b if A[i]]
    return found


# %% tags=["expected"]
none, best = after(keep=3), after(keep=2)
control = [a for _ in range(50) for a in after(keep=2, shuffle=True)]
print("             mean A of the branches that train")
for name, found in (("no filter", none), ("Top-2", best),
                    ("Top-2, shuffled", control)):
    print(f"{name:16} {fmean(found):+.2f}")
print("Top-2 shifts it upwards:", fmean(best) > fmean(none) + 0.05)
print("shuffled scores don't:", abs(fmean(control) - fmean(none)) < 0.05)

# %% [markdown]
# - A high S_IB mostly means a right answer, so Top-N throws away failures: more reward than punishment is left. That narrows a policy, and the score does it, not the number kept.
#
# ## 3 · Which log-probs for a branch?
#
# Difficulty ●●●●○ (4/5) · importance ●●●●● (5/5) · 12 minutes · **you learn** to keep apart two distributions that differ at the very token the method is about.
#
# A branch was drawn from π(o|q, z). Two modes [D], both with ρ = 1 before the first update:
#
# | mode | `new` is | old | weight on the surrogate |
# |---|---|---|---|
# | `latent` | with z | with z | 1 |
# | `plain` | without z | without z, re-measured | $\min(C,\ \pi_{old}(o_t \mid q) / \pi_{old}(o_t \mid q, z))$ |


# %% tags=["exercise"]
def ratio_and_weight(
    mode: str, new: Tensor, old_z: Tensor, old_plain: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    """Ratio and weight of a branch's tokens.

    Args:
        mode: "latent" or "plain".
        new: log π_θ of the tokens: with z in `latent`, else without.
        old_z: log π_old with z, as they were sampled; shape of `new`.
        old_plain: log π_old without z; shape of `new`.
        cap: C.

    Returns:
        ρ and w, each of the shape of `new`.
    """
    # --8<-- solution: ρ of like with like; the bounded gap as w
    if mode == "latent":
        return (new - old_z).exp(), torch.ones_like(new)
    gap = (old_plain - old_z).exp()
    return (new - old_plain).exp(), gap.clamp(max=cap)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# ρ asks what *the update* has changed, so its two sides may differ only in the weights, not in z. What z changed is the other factor: it says how much more likely the plain policy would have been to draw this token. A token that only z made likely
# weighs little, and none weighs more than C.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# The ratio of two probabilities is `exp` of the difference of their logarithms. `clamp(max=…)` takes the min; `torch.ones_like` gives a weight that changes nothing.
#
# </details>

# %%
check.ratio_and_weight(ratio_and_weight)

# %% [markdown]
# These are the twelve trees' branches, with no parameter changed yet: ρ has to be 1 at each token. **Baseline**: your two modes. **Negative control**: new log-probs without z over old ones with z.

# %%
gains = torch.zeros(12, 8)  # not needed for log-probs
steered = [s for s in trajectories_of(trees, gains) if s.rollout.branch]
batch = pack(steered, policy.pad_id)
with torch.no_grad():
    with_z, _ = TokenScorer(policy, 1.0, steering)(batch)  # (B, T)
    plain, _ = TokenScorer(policy, 1.0)(batch)
own = batch.mask
since = (batch.since - 1)[own]  # s of the row that predicted a token

# %% tags=["expected"]
arms = {
    "latent": ratio_and_weight(
        "latent", with_z[own], batch.old_logp[own], plain[own], 2.0)[0],
    "plain": ratio_and_weight(
        "plain", plain[own], batch.old_logp[own], plain[own], 2.0)[0],
    "control: z on one side": (plain - batch.old_logp)[own].exp(),
}
curves = {}
for name, rho in arms.items():
    off = ((rho < 0.8) | (rho > 1.2)).float()
    print(f"{name:23} ρ = 1 at every token:",
          bool(((rho - 1).abs() < 1e-3).all()))
    curves[name] = [{"step": s, "outside 0.8…1.2": off[since == s].mean()
                     .item()} for s in range(11)]
view = training_curves(curves)
view.figure.update_xaxes(title_text="s, tokens since the fork")
view.figure.update_layout(title_text="Beyond the clip before any update")
at_fork = curves["control: z on one side"][0]["outside 0.8…1.2"]
replace(view, description=(
    "Share of branch tokens with ρ outside the clip before any update, by "
    "s. Both modes: 0 everywhere. The control is outside at the fork for "
    f"more than half of the branches: {at_fork > 0.5}; it falls with s."))

# %% [markdown]
# - The control is clipped most at s = 0, the decision itself, before anything was learnt. So the fault silences the very tokens that the branches were made for, and raises no error.
#
# ## 4 · The loss of a step
#
# Difficulty ●●○○○ (2/5) · importance ●●●●○ (4/5) · 6 minutes · **you learn** what is in the sum, what is in the denominator, and the sign of the self-reward.
#
# $$\text{loss} = -\frac{1}{\Sigma|m|} \sum_{i\ \text{kept}} \sum_t m_{it}\, \{\text{term}_{it} + \alpha A_i H_{it}\}, \qquad \Sigma|m| \text{ over the kept ones too}$$


# %% tags=["exercise"]
def step_loss(
    terms: Tensor, entropy: Tensor, advantages: Tensor,
    mask: Tensor, kept: Tensor, alpha: float,
) -> Tensor:
    """Loss of a step of I²B-LPO.

    Args:
        terms: clipped (and weighted) surrogate of each token, (B, T).
        entropy: H in nats, (B, T).
        advantages: A, (B,).
        mask: m, True on own tokens, (B, T).
        kept: False for a pruned branch, (B,).
        alpha: α of the self-reward.

    Returns:
        The loss, a scalar.
    """
    # --8<-- solution: minus the mean over the kept own tokens
    counted = mask & kept[:, None]  # (B, T)
    inside = terms + alpha * advantages[:, None] * entropy
    return -inside[counted].mean()
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# A pruned branch takes no part, so its tokens may neither push nor dilute. The self-reward has A's sign: it raises the entropy of what succeeded and lowers that of what failed. Without A it would reward hesitation itself.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `[:, None]` broadcasts a row's flag or advantage to each of its tokens. Join the two conditions, add the two parts, select with the joint mask, and take the mean.
#
# </details>

# %%
check.step_loss(step_loss)

# %% tags=["expected"]
R = torch.tensor([r.reward for r in four.rollouts], dtype=torch.float64)
S = torch.tensor([r.score.value for r in four.rollouts])
A = select(R, S, {0: [1, 2, 3]}, 2)
kept = A != 0
H = torch.zeros(m.shape, dtype=torch.float64)
for i, r in enumerate(four.rollouts):
    H[i, prompt : prompt + len(r)] = H.new_tensor(r.entropies)
terms = A[:, None].expand(m.shape)  # at ρ = 1 a token's term is A
zeros = torch.zeros_like(H)
for alpha in (0.0, 0.005):
    mine = step_loss(terms, H, A, m, kept, alpha).item()
    library = policy_loss(zeros[kept], zeros[kept], A[kept], m[kept],
                          entropy=H[kept], alpha=alpha).loss.item()
    print(f"α = {alpha}: loss {mine:+.4f},",
          "equal to the library:", abs(mine - library) < 1e-9)
print("kept:", kept.tolist(), " Σ|m| =", int(m[kept].sum()))

# %% [markdown]
# - −0.5773 is the notebook's −0.8659 · (85 − 25 + 40)/150: branch 1 is pruned from the sum *and* from the denominator.
#
# ## 5 · One step further: at an equal budget
#
# Difficulty ●●○○○ (2/5) · importance ●●●●○ (4/5) · 7 minutes · **you learn** why "after 60 steps" compares nothing.
#
# Branches inherit their prefix, so a step of I²B-LPO writes fewer tokens than one of GRPO. Read both runs at the smaller of their two totals: take the value at the **last entry whose running total of tokens doesn't exceed it**.


# %% tags=["exercise"]
def at_equal_tokens(
    tokens_a: list[int], values_a: list[float],
    tokens_b: list[int], values_b: list[float],
) -> tuple[float, float]:
    """Values of two runs at the same number of generated tokens.

    Args:
        tokens_a: tokens that run a generated in each entry.
        values_a: what was measured in each entry of a.
        tokens_b: as for a.
        values_b: as for a.

    Returns:
        The values of a and b at the smaller of the two totals.
    """
    # --8<-- solution: the last entry of each in the smaller total
    budget = min(sum(tokens_a), sum(tokens_b))

    def reached(tokens: list[int], values: list[float]) -> float:
        totals = accumulate(tokens)
        return [v for v, n in zip(values, totals) if n <= budget][-1]

    return reached(tokens_a, values_a), reached(tokens_b, values_b)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# Compare two cars at the same petrol, not at the same hours. The thirstier one is read earlier, at the point where it had used as much as the other uses in all. Don't take the best point so far: that would be choosing after looking.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `accumulate` from `itertools` gives running totals. Keep the values whose total is within the budget; you want the last of them. An inner function saves writing it twice.
#
# </details>

# %%
check.at_equal_tokens(at_equal_tokens)

# %% [markdown]
# These are the stored numbers of `i2b-lpo tour --seed 0`, in 15 entries of 4 steps: tokens, and the mean reward of the roots (free rollouts without z, in both methods). **Baseline**: GRPO. **Negative control**: a run against itself.

# %%
TOKENS = {
    "GRPO": [28806, 30170, 31415, 33087, 33415, 32770, 34294, 35281,
             35038, 34908, 35291, 34897, 35329, 35601, 35886],
    "I²B-LPO": [21712, 22758, 22376, 24056, 23962, 22692, 25068, 24716,
                26506, 25294, 24763, 23770, 26148, 26094, 24691],
}
REWARD = {
    "GRPO": [.33, .33, .43, .36, .42, .44, .52, .51, .60, .50, .56, .50,
             .55, .57, .53],
    "I²B-LPO": [.27, .27, .41, .30, .34, .44, .44, .52, .47, .52, .55, .46,
                .62, .57, .45],
}

# %% tags=["expected"]
a, b = "GRPO", "I²B-LPO"
ends = {name: rows[-1] for name, rows in REWARD.items()}
print("after 60 steps:  ", ends, {n: sum(t) for n, t in TOKENS.items()})
equal = at_equal_tokens(TOKENS[a], REWARD[a], TOKENS[b], REWARD[b])
print("at equal tokens: ", dict(zip((a, b), equal)))
print("control, a = a:  ",
      at_equal_tokens(TOKENS[a], REWARD[a], TOKENS[a], REWARD[a]))
curves = {
    name: [{"step": round(n / 1000), "root reward": v}
           for n, v in zip(accumulate(TOKENS[name]), REWARD[name])]
    for name in TOKENS
}
view = training_curves(curves)
view.figure.update_xaxes(title_text="thousands of tokens generated")
view.figure.update_layout(title_text="The same budget, read on one axis")
replace(view, description=(
    "Root reward of GRPO and I²B-LPO against generated tokens: both rise "
    "from about .3 to about .5, and neither stays above the other."))

# %% [markdown]
# - A single entry can differ by 0.1 from its neighbour: this is one seed, 96 rollouts per step, no intervals. It **doesn't show** which method is better; the exercise is about where to look. A verdict needs several seeds, and both policies asked the same questions.
#
# ## Discuss
#
# You find a new faulty step: branches are trained with old log-probs *without* z and new ones *with* z. No error is raised, and the reward still rises. Which three numbers of a run would you print so that nobody has to find this by reading code? And which of this
# page's five mistakes would they *not* show?
#
# <details><summary>Some thoughts</summary>
#
# `mean_ratio` and the clip fraction of the first update (1 and 0, on-policy), split by root and branch; and Σ|m| next to the number of generated tokens. These reveal mixed log-probs, and prefix or padding in the mask. They don't reveal a filter
# before the advantages: masks, ratios and losses all look as they should, only A differs. For that, print the sum of the advantages over *all* G (0), or walk through one question by hand, as the notebook does. And no number of a run reveals an unfair comparison.
#
# </details>
