# %% [markdown]
# # Exercises 02 · Forks and branches
#
# **Belongs to** notebook `02_branching.ipynb`; read that first. **You write** the candidates Ω, the prefix of a fork, the mask of the update, a batch of prefixes of different lengths, and a fair budget. The set
# ends with a comparison: entropy forks against a baseline and a control.
#
# | minutes of work | minutes of computing | memory |
# |---|---|---|
# | 45 | 0.3 | 0.7 GB |
#
# Computing was measured on one processor core without a GPU. Symbols: a rollout's entropies $H_t$, the fork $t^*$, the prefix $c$ of $p$ tokens (prompt included), $M$ rollouts per question, $K$ branches per fork. The code counts from 0.
#
# **How it works.** Each exercise is a function with a blank. Replace `raise NotImplementedError(…)` with your code, run the cell, then run the check below it: it says ✓, or what is
# wrong. *Difficulty* and *importance* run from 1 to 5. Help is folded away: Help 1 is about meaning, Help 2 about code.

# %%
import math
import sys
from dataclasses import asdict

import torch
from torch import Tensor

from i2b_lpo.config import BranchConfig
from i2b_lpo.method import bootstrap_interval, token_entropy
from i2b_lpo.model import Sampling, decode, load_policy
from i2b_lpo.rollout import FOUR, QUESTION, grow_trees, teacher_force
from i2b_lpo.tasks import load_task
from i2b_lpo.views import branch_tree, comparison, entropy_strip

sys.path.insert(0, "..")  # the folder that holds the checks
from checks import set_02 as check

# %% [markdown]
# ## 1 · Ω, the candidates
#
# Difficulty ●○○○○ (1/5) · importance ●●●●○ (4/5) · 5 minutes · **you learn** what "the top 5 %" means for a rollout of 25 tokens.
#
# $\Omega = \{t : H_t \text{ in the top 5 \% of this rollout}\}$ [S]: ⌈0.05 T⌉ positions, at least one [D].


# %% tags=["exercise"]
def candidates(entropies: list[float], fraction: float) -> list[int]:
    """Positions of the highest entropies, in ascending order; of equal
    entropies the earlier ones.

    Args:
        entropies: H_t of one rollout, T of them.
        fraction: share of the positions, rounded up to whole ones.
    """
    # --8<-- solution: the ⌈fraction · T⌉ highest, by position
    size = max(1, math.ceil(fraction * len(entropies)))
    order = sorted(range(len(entropies)), key=lambda t: -entropies[t])
    return sorted(order[:size])
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# This is a rank, not a threshold: every rollout has candidates, even if it is certain throughout. Each rollout is ranked separately.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Sort the positions by entropy (`key=`), keep the first few, then sort these by position. `math.ceil` rounds up.
#
# </details>

# %%
check.candidates(candidates)

# %% tags=["expected"]
policy = load_policy("tiny-base", dtype=torch.float64)
example = teacher_force(policy, QUESTION, FOUR)
guess = example.rollouts[2]  # the one that guesses
H = guess.entropies
for t in candidates(H, 0.05):
    print(f"t = {t:2}  {guess.pieces[t]!r:8} H_t = {H[t]:.2f} nat")

lowest = min(H[t] for t in candidates(H, 0.05))
outside = max(h for h in H if h < lowest)
entropy_strip(example, 2, threshold=round((lowest + outside) / 2, 2))

# %% [markdown]
# - 5 % of 59 tokens are 2.95, so there are three candidates. The first token of the answer is one of them: a fork may be there. `'1'`, the factor to be split, is uncertain too, but a different factor isn't a different strategy.
#
# ## 2 · The prefix ends before the fork
#
# Difficulty ●●○○○ (2/5) · importance ●●●●● (5/5) · 6 minutes · **you learn** what lets a branch decide otherwise at all.
#
# The token at the fork is decided again [D]. Give the prefix $c$ and its number of tokens $p$.


# %% tags=["exercise"]
def prefix_before(
    prompt: list[int], ids: list[int], t_star: int
) -> tuple[list[int], int]:
    """What a branch from t* shares with its parent.

    Args:
        prompt: token ids of the prompt.
        ids: token ids of the parent rollout, T of them.
        t_star: position of the fork in the rollout, 0 ≤ t* < T.

    Returns:
        The prefix c; its number of tokens p, prompt included.
    """
    # --8<-- solution: everything before o_t*, and p
    c = [*prompt, *ids[:t_star]]
    return c, len(c)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# The fork was chosen because the policy was uncertain which token to put at t\*. If the branch takes this token from its parent, the uncertain part is already settled.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Join two lists; a slice `[:n]` ends before position n. Whatever you build, p is its length.
#
# </details>

# %%
check.prefix_before(prefix_before)

# %% [markdown]
# Here are eight branches from the running example's fourth solution at t\* = 34, where it says `Factor`; next to them the **control**: the token kept.

# %% tags=["expected"]
factor, sampling = example.rollouts[3], Sampling(max_new_tokens=160)
prompt = list(example.prompt_ids)
c, p = prefix_before(prompt, list(factor.ids), 34)
kept = [*c, factor.ids[34]]
print(f"p = {p}, o_t* = {factor.pieces[34]!r}")
for name, start in (("decided again", c), ("control: kept", kept)):
    drawn = decode(
        policy, [start], sampling, rollouts=8,
        generator=torch.Generator().manual_seed(3),
    )
    whole = [
        policy.text([*start[len(prompt) :], *row[:n].tolist()])
        for row, n in zip(drawn.ids, drawn.lengths)
    ]
    words = [text.split("\n")[4].split()[0] for text in whole]
    print(f"{name}: {', '.join(words)}")
    print(f"   copies of the parent: {whole.count(factor.text)} of 8")

# %% [markdown]
# ## 3 · The mask of the update
#
# Difficulty ●●○○○ (2/5) · importance ●●●●● (5/5) · 8 minutes · **you learn** to tell new tokens from a prefix and from padding.
#
# A tree's trajectories become rows: prompt, then all tokens of the trajectory, then padding on the right. A branch's row holds its parent's tokens too. $m = 1$ only on **new** tokens, so that every drawn token is
# trained once.


# %% tags=["exercise"]
def update_mask(
    prompt: int, starts: list[int], lengths: list[int]
) -> Tensor:
    """m of the trajectories of one tree.

    Args:
        prompt: number of tokens of the prompt.
        starts: tokens that each trajectory takes from its parent, G
            numbers; 0 for a root.
        lengths: tokens of each trajectory, those of the parent included.

    Returns:
        1 on new tokens, else 0; integers, (G, prompt + longest).
    """
    # --8<-- solution: 1 from the first new token to the last
    column = torch.arange(prompt + max(lengths))  # (width,)
    first = prompt + torch.tensor(starts)[:, None]  # (G, 1)
    end = prompt + torch.tensor(lengths)[:, None]  # (G, 1)
    return ((column >= first) & (column < end)).long()
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# Ask of each column: was this token drawn *for this row*? The prompt wasn't; what a branch takes from its parent was drawn for the parent; nobody drew the padding.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Compare `torch.arange(width)`, (width,), with two columns of bounds, (G, 1): broadcasting gives (G, width). A loop over rows with `m[i, a:b] = 1` works just as well.
#
# </details>

# %%
check.update_mask(update_mask)

# %% tags=["expected"]
plain = BranchConfig(branches=3, fusion="none")  # K = 3, without z
(tree,) = grow_trees(
    policy, [QUESTION], sampling, plain, rollouts=2,
    generator=torch.Generator().manual_seed(7),
)
starts = [tree.start(i) for i in range(len(tree.rollouts))]
lengths = [len(rollout) for rollout in tree.rollouts]
m = update_mask(len(tree.prompt_ids), starts, lengths)
print("m", tuple(m.shape), "= (G, prompt + longest)")
print(f"Σm = {m.sum()}, drawn tokens {tree.new_tokens()},",
      f"cells of the batch {m.numel()}")
branch_tree(tree)

# %% [markdown]
# - Σm equals the number of drawn tokens: METHOD's invariant. It is the cheapest test of a tree, and it catches most slips.
#
# ## 4 · A batch of prefixes
#
# Difficulty ●●●○○ (3/5) · importance ●●●●○ (4/5) · 12 minutes · **you learn** two slips that raise no error: a position that counts padding, and padding that is attended to.
#
# All forks of all questions continue in one batch. Their prefixes are right-aligned: padding on the **left**, so that all rows draw their next token in the last column. A row's first real token has position 0.


# %% tags=["exercise"]
def left_padded(
    rows: list[list[int]], pad_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Prefixes of different lengths as one batch.

    Args:
        rows: token ids of each prefix, B of them.
        pad_id: the id to pad with.

    Returns:
        ids; mask, 1 on real tokens; positions, 0 on padding;
        each (B, longest), integers.
    """
    # --8<-- solution: pad on the left, mask, count positions
    width = max(map(len, rows))
    ids = [[pad_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    real = torch.tensor(mask)  # (B, width)
    positions = (real.cumsum(-1) - 1).clamp(min=0)  # (B, width)
    return torch.tensor(ids), real, positions
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# A row must not notice its neighbours: with or without them, its logits are the same. It can notice them in two ways: by attending to padding, and by being at the wrong position.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Build ids and mask as lists of lists. The positions follow from the mask: a running sum (`cumsum(-1)`) numbers the real tokens from 1. Padding may have any valid position: use 0.
#
# </details>

# %%
check.left_padded(left_padded)

# %% tags=["expected"]
prefixes = []
for rollout in example.rollouts:
    for t in candidates(rollout.entropies, 0.05):
        prefixes.append(prefix_before(prompt, list(rollout.ids), t)[0])
ids, mask, positions = left_padded(prefixes, policy.pad_id)


def next_token_entropy(ids, mask, positions):
    with torch.no_grad():
        logits = policy.model(
            ids, attention_mask=mask, position_ids=positions
        ).logits
    return token_entropy(logits[:, -1], policy.vocab_size)  # (B,)


batch = next_token_entropy(ids, mask, positions)
alone = torch.cat(
    [next_token_entropy(*left_padded([c], 0)) for c in prefixes]
)
print("ids", tuple(ids.shape), "= (forks, longest prefix)")
print(f"lengths from {min(map(len, prefixes))}",
      f"to {max(map(len, prefixes))} tokens")
equal = int(((batch - alone).abs() < 1e-9).sum())
print(f"rows equal to the row alone: {equal} of {len(prefixes)}")
column = torch.arange(ids.shape[1]).expand_as(ids)
slip = next_token_entropy(ids, mask, column)
equal = int(((slip - alone).abs() < 1e-9).sum())
print(f"control, positions count columns: {equal} of {len(prefixes)}")

# %% [markdown]
# ## 5 · One step further: a fair price
#
# Difficulty ●●●○○ (3/5) · importance ●●●●○ (4/5) · 14 minutes · **you learn** to compare ways of exploring at the same number of drawn tokens.
#
# A branch costs only its own tokens. Trajectories are taken in order until the next one would exceed the budget. How many does the budget pay for?


# %% tags=["exercise"]
def affordable(lengths: list[int], starts: list[int], budget: int) -> int:
    """Number of trajectories that a budget of tokens pays for.

    Args:
        lengths: tokens of each trajectory, in the order of taking,
            those of the parent included.
        starts: tokens that it takes from its parent; 0 for a root.
        budget: drawn tokens; may be met exactly.
    """
    # --8<-- solution: pay in order until one is too expensive
    taken = 0
    for length, start in zip(lengths, starts):
        budget -= length - start
        if budget < 0:
            break
        taken += 1
    return taken
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# If prefixes were paid for again, forks would look more expensive than they are. If a trajectory that doesn't fit were skipped, the budget would favour short ones, and a short one is often a guess.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Write a loop that subtracts each cost and stops when the rest is negative; or use `itertools.accumulate` and count the running sums within the budget.
#
# </details>

# %%
check.affordable(affordable)

# %% [markdown]
# **Baseline**: independent samples. **Negative control**: the same number of forks, chosen uniformly. 32 questions, 300 drawn tokens each. Each root is followed by its branches.

# %%
task = load_task("shop")
questions = task.questions("validation", 32, seed=2)


def trees_of(samples, branch):
    return grow_trees(
        policy, questions, sampling, branch, rollouts=samples,
        generator=torch.Generator().manual_seed(0),
    )


arms = {
    "baseline: independent": trees_of(8, BranchConfig()),
    "entropy forks": trees_of(2, plain),
    "control: uniform forks": trees_of(
        2, BranchConfig(branches=3, fusion="none", rule="uniform")
    ),
}


# %%
def strategies(tree, budget):
    """Different strategies of the trajectories that are paid for."""
    order = [i for i, r in enumerate(tree.rollouts) if r.branch is None]
    for members in tree.branch_sets():
        parent = tree.rollouts[members[0]].branch.parent
        at = order.index(parent) + 1
        order[at:at] = members
    n = affordable(
        [len(tree.rollouts[i]) for i in order],
        [tree.start(i) for i in order], budget,
    )
    labels = [
        task.label(tree.question, tree.rollouts[i].text)
        for i in order[:n]
    ]
    return len({x.signature for x in labels if x.well_formed})


# %% tags=["expected"]
key = "distinct strategies"
intervals = {
    arm: {"metrics": {key: asdict(bootstrap_interval(
        [strategies(tree, 300) for tree in trees]
    ))}}
    for arm, trees in arms.items()
}
view = comparison(intervals, metrics=(key,))
view.figure.update_layout(
    title_text="300 drawn tokens a question, 32 questions"
)
view

# %% [markdown]
# - 32 questions are few: read the intervals, not the order of the means. On 200 questions (notebook 02, section 8) independent samples are ahead, then entropy forks, then uniform ones. Uniform forks lie later, so this control mixes uncertainty and depth; the notebook has one of equal depth.
#
# ## Discuss
#
# On a policy that is still varied, independent samples open more ways for the same tokens than any fork. Why fork at all? Name two situations in which a fork is worth its price, and one way to measure it.
#
# <details><summary>Some thoughts</summary>
#
# A branch set shares its prefix, so a difference in reward within the set can be credited to what follows the fork: better credit assignment, not more variety. When prefixes are long and expensive (thousands of tokens), a branch near the end
# costs little, while an independent sample pays for everything again. And on a collapsed policy neither opens anything; there, latents must tell the branches to differ. You could measure the variance of the advantage within branch sets,
# or the reward per drawn token on questions that only a late step decides.
#
# </details>
