# %% [markdown]
# # Exercises 06 · GRPO
#
# **Belongs to** notebook `06_grpo.ipynb`; read that first. **You write** five short functions: the advantages of a group, one token's clipped term, the loss of a batch, the share of tokens that the clip
# stops, and pass@k. With the first four you train the bundled policy yourself.
#
# | minutes of work | minutes of computing | memory |
# |---|---|---|
# | 45 | 0.7 | 1.0 GB |
#
# Computing was measured on one processor core without a GPU. Symbols: rewards $R$, group size $G$, advantage $A$, ratio $\rho = \pi_\theta/\pi_{old}$, mask $m$ (1 on new tokens). The code counts from 0.
#
# **How it works.** Each exercise is a function with a blank. Replace `raise NotImplementedError(…)` with your code, run the cell, then run the check below it: it says ✓, or what is
# wrong. *Difficulty* and *importance* run from 1 to 5. Help is folded away: Help 1 is about meaning, Help 2 about code.

# %%
import math
import sys
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from i2b_lpo.method import pass_at_k as library_pass_at_k
from i2b_lpo.model import Policy, Sampling, load_policy, policy_logprobs
from i2b_lpo.rollout import FOUR, QUESTION, roll_out, teacher_force
from i2b_lpo.tasks import load_task
from i2b_lpo.training import Batch, pack, reward_table, trajectories_of
from i2b_lpo.views import group_advantages as draw_group, training_curves
from i2b_lpo.views.surrogate import surrogate

sys.path.insert(0, "..")  # the folder that holds the checks
from checks import set_06 as check

# %% [markdown]
# ## 1 · Better than its group?
#
# Difficulty ●●○○○ (2/5) · importance ●●●●● (5/5) · 10 minutes · **you learn** what an answer is compared with, and what a group of equal rewards must get.
#
# $$A_i = \frac{R_i - \mathrm{mean}(R)}{\mathrm{std}(R) + \epsilon}$$
#
# Mean and standard deviation are those of **one question's** answers, with ddof 1 [D]. A group of equal rewards has nothing to compare: its advantages are **exactly 0**.


# %% tags=["exercise"]
def group_advantages(rewards: Tensor, epsilon: float) -> Tensor:
    """Advantage of every answer over its own group.

    Args:
        rewards: R, one row per question, (Q, G).
        epsilon: ε, added to the standard deviation.

    Returns:
        A, (Q, G).
    """
    # --8<-- solution: scale each row; exactly 0 if it is uniform
    centred = rewards - rewards.mean(1, keepdim=True)  # (Q, G)
    spread = rewards.std(1, correction=1, keepdim=True)  # (Q, 1)
    equal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return (centred / (spread + epsilon)).masked_fill(equal, 0.0)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# No value network says how hard a question is: the other answers to the same question do. So nothing may come from other rows. And ε only bounds the division: the mean of eight rewards of 0.9
# misses 0.9 by a rounding error, and that divided by ε is not 0. Such rows have to be detected separately.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `.mean(dim, keepdim=True)` and `.std(dim, correction=…, keepdim=True)` keep a column, so that it broadcasts. A row is all equal if its largest entry is its smallest (`amax`, `amin`); `masked_fill` writes the 0.
#
# </details>

# %%
check.group_advantages(group_advantages)

# %% [markdown]
# Twelve questions with 8 rollouts each; the picture shows the first.

# %%
policy, task = load_policy("tiny-base"), load_task("shop")
traces = roll_out(
    policy, task.batch(0, 12, seed=1), Sampling(max_new_tokens=160),
    rollouts=8, generator=torch.Generator().manual_seed(1),
)
R = reward_table(traces)  # (Q, G)
A = group_advantages(R, 1e-4)

# %% tags=["expected"]
example = teacher_force(policy, QUESTION, FOUR)
four = torch.tensor([[r.reward for r in example.rollouts]])
print("the running example:", [f"{a:+.4f}" for a in
                               group_advantages(four, 1e-4)[0].tolist()])
print("sum of each group below 1e-5:", bool(A.sum(1).abs().max() < 1e-5))
print("groups with nothing to compare:", int((~A.any(1)).sum()), "of 12")
draw_group(traces[0], A[0].tolist())

# %% [markdown]
# ## 2 · One token's term
#
# Difficulty ●●●○○ (3/5) · importance ●●●●● (5/5) · 12 minutes · **you learn** which tokens a clip silences, and why the min stands *outside* the product.
#
# $$\min\big(\rho A,\ \mathrm{clip}(\rho,\ 1-\epsilon_{low},\ 1+\epsilon_{high})\, A\big), \qquad \text{for } A < 0 \text{ at least } 3A \text{ (dual clip) [C]}$$


# %% tags=["exercise"]
def clipped_term(
    ratio: Tensor, advantage: Tensor, low: float, high: float
) -> Tensor:
    """What each token adds to J.

    Args:
        ratio: ρ, any shape.
        advantage: A, the same shape.
        low: ε_low.
        high: ε_high.

    Returns:
        The clipped term, the same shape; with the dual clip at 3 A.
    """
    # --8<-- solution: the smaller product; at least 3 A if A < 0
    inside = ratio.clamp(1 - low, 1 + high)
    smaller = torch.minimum(ratio * advantage, inside * advantage)
    bounded = torch.maximum(smaller, 3 * advantage)
    return torch.where(advantage < 0, bounded, smaller)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# A > 0 wants ρ to grow; once ρ is above 1 + ε_high, the product with the clip is smaller and flat: no more push. A < 0 wants ρ to shrink; below 1 − ε_low it is flat. On the other side, where the update has gone the *wrong* way, ρ A is the
# smaller product and keeps its slope: the token is pulled back. This works for both signs because the min is taken over the products, not over the ratios.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `Tensor.clamp(least, most)`, `torch.minimum` of two products, then `torch.maximum` with the bound and `torch.where` on the sign of A.
#
# </details>

# %%
check.clipped_term(clipped_term)

# %% tags=["expected"]
grid = torch.arange(1, 201).double() / 50
terms = {
    sign: clipped_term(grid, torch.full_like(grid, sign), 0.2, 0.28)
    for sign in (1.0, -1.0)
}
surrogate(grid.tolist(), {a: row.tolist() for a, row in terms.items()})

# %% [markdown]
# - Grey is silent. In the left panel this is right of 1.28; in the right panel, left of 0.8 and right of 3. If your right panel is grey from 1.28 to 3, your clip is on the wrong side.
#
# ## 3 · The loss of a batch
#
# Difficulty ●●○○○ (2/5) · importance ●●●●● (5/5) · 8 minutes · **you learn** that the denominator decides how much a long answer weighs.
#
# $$\text{loss} = -\frac{1}{\Sigma|m|} \sum_i \sum_t m_{it}\, \text{term}_{it} \qquad \text{(token mean) [C]}$$


# %% tags=["exercise"]
def batch_loss(terms: Tensor, mask: Tensor) -> Tensor:
    """GRPO's loss, the token mean.

    Args:
        terms: each token's term, (B, T); anything, even NaN, on padding.
        mask: m, True on new tokens only, (B, T).

    Returns:
        The loss, a scalar.
    """
    # --8<-- solution: minus the mean over the counted tokens
    counted = terms.masked_fill(~mask, 0.0)  # (B, T)
    return -counted.sum() / mask.sum()
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# Take two answers of 3 and 30 tokens: in the token mean the long one has ten times the weight; in a mean per sequence both have one half. Neither may depend on how wide the batch was padded: 0 · NaN is NaN, so padding has
# to be removed *before* any arithmetic.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `~mask` is the padding and everything else that doesn't count. Set it to 0, sum, divide by the number of `True`, and flip the sign.
#
# </details>

# %%
check.batch_loss(batch_loss)

# %% [markdown]
# These are notebook 06's nine tokens of four answers, with rewards [1, 0, 0, 1] and clip 0.2/0.28. There the loss was −0.2525738461.

# %% tags=["expected"]
LOG_RATIOS = [[-0.1, 0.4, 0.0], [0.0, -0.2], [0.3], [-0.05, 0.05, -0.5]]
log_ratio = torch.zeros(4, 3, dtype=torch.float64)  # (G, T)
mask = torch.zeros(4, 3, dtype=torch.bool)
for i, row in enumerate(LOG_RATIOS):
    log_ratio[i, : len(row)] = torch.tensor(row)
    mask[i, : len(row)] = True
a = group_advantages(four.double(), 1e-4)[0][:, None].expand(4, 3)
for columns in (0, 60):
    wide = torch.nn.functional.pad(mask, (0, columns))
    terms = clipped_term(log_ratio.exp(), a, 0.2, 0.28)
    terms = torch.nn.functional.pad(terms, (0, columns), value=math.nan)
    loss = batch_loss(terms, wide).item()
    print(f"{columns:2} columns more: loss {loss:+.7f}")

# %% [markdown]
# ## 4 · What the clip stops
#
# Difficulty ●●○○○ (2/5) · importance ●●●●○ (4/5) · 7 minutes · **you learn** to read a clip fraction: "far from 1" and "stopped" are two different things.
#
# What share of the new tokens gets no gradient because of a clip? Here ε_low = ε_high = 0.2 and the dual clip is at 3.


# %% tags=["exercise"]
def clipped_share(ratio: Tensor, advantages: Tensor, mask: Tensor) -> float:
    """Share of the new tokens whose gradient a clip has stopped.

    Args:
        ratio: ρ, (B, T).
        advantages: A of each trajectory, (B,).
        mask: m, True on new tokens only, (B, T).
    """
    # --8<-- solution: share of tokens that a clip has stopped
    a = advantages[:, None]  # (B, 1)
    above, below, dual = ratio > 1.2, ratio < 0.8, ratio > 3
    stopped = (above & (a > 0)) | ((below | dual) & (a < 0))
    return stopped[mask].float().mean().item()
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# Look at exercise 2's picture: a token is stopped where its panel is grey. The sign of A says which panel. With A = 0 there is no push, so nothing to stop.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `advantages[:, None]` broadcasts to every token of its row. Join conditions with `&` and `|`, in brackets; `tensor[mask]` selects the counted ones; the mean of zeros and ones is a share.
#
# </details>

# %%
check.clipped_share(clipped_share)

# %% [markdown]
# Now your four functions **train**: six groups of exercise 1, five updates on the *same* rollouts. From the second update on, the policy is no longer the one that sampled, so ρ ≠ 1 and the clip has work to do.
#
# What did it learn? The reward of these six doesn't tell, since it stays as it is. Look at the *other* six questions: has log π of their right answers grown more than that of their wrong ones? **Baseline**: before the first update
# the difference is 0. **Negative control**: the same with the rewards shuffled within each group.


# %%
def log_probs(who: Policy, batch: Batch) -> Tensor:  # (B, T)
    return policy_logprobs(
        who.model, batch.input_ids, batch.attention_mask, batch.mask,
        temperature=1.0, vocab_size=who.vocab_size,
    )[0]


# %%
def margin(who: Policy, unseen: Batch) -> float:
    "How much more log π of right answers has grown than of wrong ones."
    with torch.no_grad():
        grown = (log_probs(who, unseen) - unseen.old_logp) * unseen.mask
    right = A[6:].flatten() > 0
    return (grown.sum(1)[right].mean() - grown.sum(1)[~right].mean()).item()


def fit(gains: Tensor, low: float = 0.2, high: float = 0.2) -> list[dict]:
    who = load_policy("tiny-base")
    adamw = torch.optim.AdamW(who.model.parameters(), lr=4e-4)
    seen = pack(trajectories_of(traces[:6], gains), who.pad_id)
    unseen = pack(trajectories_of(traces[6:], A[6:]), who.pad_id)
    rows, A_i = [], gains.flatten().float()
    for step in range(5):
        ratio = (log_probs(who, seen) - seen.old_logp).exp()
        a = A_i[:, None].expand_as(ratio)
        share = clipped_share(ratio.detach(), A_i, seen.mask)
        rows.append({"step": step, "clipped": share if low < 1 else 0.0,
                     "margin (nat)": margin(who, unseen)})
        adamw.zero_grad()
        batch_loss(clipped_term(ratio, a, low, high), seen.mask).backward()
        torch.nn.utils.clip_grad_norm_(who.model.parameters(), 1.0)
        adamw.step()
    return rows


# %%
chance = torch.Generator().manual_seed(2)
shuffled = torch.stack([r[torch.randperm(8, generator=chance)] for r in R])

# %% tags=["expected"]
runs = {
    "GRPO": fit(A[:6]),
    "no clip": fit(A[:6], low=1.0, high=1e6),
    "control (shuffled R)": fit(group_advantages(shuffled[:6], 1e-4)),
}
last = {name: rows[-1]["margin (nat)"] for name, rows in runs.items()}
begin = [rows[0] for rows in runs.values()]
print("before the first update: clipped 0, margin 0:", all(
    row["clipped"] == 0 and abs(row["margin (nat)"]) < 1e-3
    for row in begin))
print("GRPO: margin above 0.1 nat:", last["GRPO"] > 0.1)
print("control: margin below 0.1:", last["control (shuffled R)"] < 0.1)
print("without clip it goes farther:", last["no clip"] > last["GRPO"])
view = training_curves(runs)
view.figure.update_xaxes(title_text="updates on the same rollouts")
view.figure.update_layout(title_text="Three ways to learn", height=270)
replace(view, description=(
    "Five updates on the same rollouts, three runs. GRPO's clipped share "
    f"has grown: {runs['GRPO'][-1]['clipped'] > 0}. The margin on "
    "unseen questions grows under GRPO, most without the clip, and not in "
    f"the control: {last['GRPO'] > last['control (shuffled R)']}."))

# %% [markdown]
# - The rewards carry the lesson: with shuffled rewards, the same five updates teach nothing about other questions.
# - Without the clip the margin grows faster. Is the clip a brake, then? Yes: these are 48 answers to six questions, and single tokens become thousands of times as likely, or as rare. The brake keeps the policy near the one that
#   sampled the rollouts; to make progress, take new rollouts, not more updates. The library makes one update per batch.
#
# ## 5 · One step further: what did GRPO buy?
#
# Difficulty ●●●○○ (3/5) · importance ●●●●○ (4/5) · 8 minutes · **you learn** the estimate of pass@k that is right on average, and what the number says about collapse.
#
# Of n answers to a question, c are right. **pass@k** is the chance that k of them, drawn *without replacement*, include at least one right answer. (n answers say nothing about k > n; the library refuses that, the released code says 1 [C].)


# %% tags=["exercise"]
def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n answers include a right one.

    Args:
        n: answers to the question.
        c: how many of them are right.
        k: answers that are drawn, at most n.
    """
    # --8<-- solution: 1 minus the chance that all k are wrong
    return 1 - math.comb(n - c, k) / math.comb(n, k)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# Count hands of cards: how many hands of k can be dealt from all n answers, and how many from the n − c wrong ones alone? The second divided by the first is the chance of holding only wrong ones.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `math.comb(n, k)` counts hands, and is 0 if there are fewer than k cards.
#
# </details>

# %%
check.pass_at_k(pass_at_k)

# %%
asked = task.questions("validation", 24, seed=3)
right = {}
for name in ("tiny-base", "tiny-grpo"):
    drawn = roll_out(
        load_policy(name), asked, Sampling(max_new_tokens=160), rollouts=8,
        generator=torch.Generator().manual_seed(3),
    )
    right[name] = reward_table(drawn).sum(1).int().tolist()  # c, each of 8

# %% tags=["expected"]
curves = {
    name: [{"step": k, "pass@k": fmean(pass_at_k(8, c, k) for c in counts)}
           for k in range(1, 9)]
    for name, counts in right.items()
}
bought = {name: rows[-1]["pass@k"] - rows[0]["pass@k"]
          for name, rows in curves.items()}
same = all(
    math.isclose(pass_at_k(8, c, k), library_pass_at_k(8, c, k))
    for c in range(9) for k in range(1, 9)
)
print("equal to the library:", same)
view = training_curves(curves)
view.figure.update_xaxes(title_text="k, answers to a question")
view.figure.update_layout(title_text="pass@k on 24 questions", height=270)
replace(view, description=(
    "pass@k on 24 questions for k from 1 to 8. tiny-grpo begins higher: "
    f"{curves['tiny-grpo'][0]['pass@k'] > curves['tiny-base'][0]['pass@k']}"
    "; seven more answers buy tiny-base more: "
    f"{bought['tiny-base'] > bought['tiny-grpo']}."))

# %% [markdown]
# - At k = 1 the trained policy is far ahead; at k = 8 the base has nearly caught up. GRPO made the first answer better, and the other seven copies of it.
#
# ## Discuss
#
# The mean of `tiny-grpo`'s rewards is high, and many of its groups are uniform. Somebody proposes: "Divide by std; then the few mixed groups push harder, and learning continues." Does it? What would have to change for `Grid` to come back?
#
# <details><summary>Some thoughts</summary>
#
# Dividing by std makes the *rare outcome* of a group weigh more, whatever the group: 1 of 8 right gets +2.47. But an advantage can only reward what was drawn. In a mixed group of the collapsed policy, all eight answers
# go the same way and differ in a slip of arithmetic, so the push goes to careful arithmetic, never to a different way. This takes different *samples*: a higher temperature (more expensive answers, and digits get hot too), forks at
# uncertain tokens that are decided again, latents that choose differently. Notebooks 02 to 04 add these, and 07 puts them together.
#
# </details>
