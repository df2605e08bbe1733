# %% [markdown]
# # Exercises 04 · PSA: how z enters
#
# **Belongs to** notebook `04_psa.ipynb`; read that first. **You write** five short functions: the strength γ(s), attention with a slot, the slot's place among the keys, the rows that
# are read with z, and a measure of what z adds.
#
# | minutes of work | minutes of computing | memory |
# |---|---|---|
# | 42 | 0.2 | 0.6 GB |
#
# Computing was measured on one processor core without a GPU. Symbols: latent $z$, slot $k_z = U_k z$, $v_z = U_v z$; $p$ tokens before the fork, $s$ tokens since it;
# strength $\gamma(s)$. $q, K, V$ are those of attention here. The code counts from 0.
#
# **How it works.** Each exercise is a function with a blank. Replace `raise NotImplementedError(…)` with your code, run the cell, then run the check below it: it says ✓, or what is
# wrong. *Difficulty* and *importance* run from 1 to 5. Help is folded away: Help 1 is about meaning, Help 2 about code.

# %%
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from i2b_lpo.method import Strength, bootstrap_interval
from i2b_lpo.model import (
    Prefix,
    Sampling,
    decode,
    decode_branches,
    injected,
    load_policy,
    load_steering,
    slot_mask,
)
from i2b_lpo.rollout import FOUR, PREFIX, QUESTION
from i2b_lpo.tasks import STRATEGIES
from i2b_lpo.views import comparison, gamma_curves

sys.path.insert(0, "..")  # the folder that holds the checks
from checks import set_04 as check

# %% [markdown]
# ## 1 · z speaks, then fades
#
# Difficulty ●●○○○ (2/5) · importance ●●●●○ (4/5) · 7 minutes · **you learn** where the slot is open, where it is closed, and why you never take the logarithm of γ itself.
#
# $$\gamma(s) = \gamma_0\, e^{-s/s_0} \;\text{ for } s \ge 0 \quad \text{[D]}, \qquad \log\gamma = -\infty \;\text{ for rows before the fork}$$
#
# Return log γ. It must hold for γ₀ = 0, and for rows so far from the fork that γ itself would be rounded to 0.


# %% tags=["exercise"]
def log_strength(since: Tensor, gamma_0: float, s_0: float) -> Tensor:
    """log γ(s) of each row.

    Args:
        since: s, tokens since the fork, negative before it; any shape.
        gamma_0: γ at the fork, from 0 to 1.
        s_0: tokens in which γ falls by the factor e.

    Returns:
        log γ(s), −inf where the slot is closed; shape of `since`.
    """
    # --8<-- solution: a sum of logs, and −inf before the fork
    start = math.log(gamma_0) if gamma_0 > 0 else -math.inf
    faded = start - since / s_0
    return faded.masked_fill(since < 0, -math.inf)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# The logarithm of a product is a sum: one part is fixed at the fork, the other falls by 1/s₀ with every token. A computer rounds e⁻⁸⁰⁰ to 0, but −800 is a number like any other.
# Rows before the fork must not know z at all: weight 0, and log 0 = −∞.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `math.log(0)` raises an error, so ask whether γ₀ is 0 before you take it; `-math.inf` is a number. `masked_fill(condition, value)` overwrites the entries where the condition holds.
#
# </details>

# %%
check.log_strength(log_strength)

# %% tags=["expected"]
s = torch.arange(25)
ours = {
    f"s_0 = {s_0}": log_strength(s, 1.0, s_0).exp().tolist()
    for s_0 in (1, 4, 8)
}
constant = Strength(0.5, None).log_gamma(s).exp().tolist()
gamma_curves({**ours, "control: constant ½": constant})

# %% [markdown]
# - Half of γ is gone after s₀ · log 2 tokens. The bundled latents have s₀ = ½: z acts on the decision and hardly on anything after it.
#
# ## 2 · Attention with a slot
#
# Difficulty ●●●○○ (3/5) · importance ●●●●● (5/5) · 10 minutes · **you learn** that γ has to scale the slot's *weight*, and that few places in the formula do that.
#
# $$o = \text{softmax}\big([\;q\cdot k_z/\sqrt d + \log\gamma\;;\; qK^\top/\sqrt d\;]\big)\;[v_z; V]$$
#
# This is one head and one row. z adds a slot to K and V, but not to Q [P]; log γ is in the score [D].


# %% tags=["exercise"]
def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_z: Tensor,
    value_z: Tensor,
    log_gamma: Tensor,
) -> Tensor:
    """Output of one head for one row, with the slot of z.

    Args:
        query: q, (d,).
        keys: K, of the tokens that this row sees, (T, d).
        values: V, (T, d).
        key_z: k_z, (d,).
        value_z: v_z, (d,).
        log_gamma: log γ(s), a scalar; −inf closes the slot.

    Returns:
        o, (d,).
    """
    # --8<-- solution: scores, one softmax, a weighted sum
    root = math.sqrt(len(query))
    slot = query @ key_z / root + log_gamma
    scores = torch.cat([slot[None], keys @ query / root])  # (1 + T,)
    return scores.softmax(0) @ torch.cat([value_z[None], values])
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# The slot is one extra token that only this row sees. Softmax turns scores into weights with exp, and exp(score + log γ) = γ · exp(score): γ times the weight that an open slot would have,
# before all weights are scaled to sum to 1. With γ = 0 the weight is 0, and the tokens share everything as if z didn't exist.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `a @ b` of two vectors is a scalar tensor; `a[None]` turns it into a tensor of length 1. `torch.cat` puts it in front of the T scores; the values need the same order.
#
# </details>

# %%
check.attend(attend)

# %% [markdown]
# Your function also reveals the slot's weight: let $v_z$ be 1 where all tokens have 0. **Negative control**: γ in the wrong place, as a factor of $k_z$ and so of the score.

# %%
query = torch.tensor([2.0, 0.0, 0.0, 0.0])  # q of notebook 04, step 1
keys = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 0, 0]])
key_z = torch.tensor([0.5, 1, 0, 0])
mark, blank = torch.tensor([1.0, 0, 0, 0]), torch.zeros(3, 4)
log_gamma = log_strength(torch.arange(25), 1.0, 4.0)
curves = {
    "log γ in the score": [
        attend(query, keys, blank, key_z, mark, log)[0].item()
        for log in log_gamma
    ],
    "control: γ · k_z": [
        attend(query, keys, blank, g * key_z, mark, 0 * g)[0].item()
        for g in log_gamma.exp()
    ],
}

# %% tags=["expected"]
view = gamma_curves(curves)
view.figure.update_layout(
    title_text="Weight of the slot of z; s<sub>0</sub> = 4 tokens",
    yaxis_title_text="weight of the slot",
)
marker = {"mode": "lines+markers+text"}
view.figure.update_traces(name="half of it is left", selector=marker)
ends = ", ".join(f"{name} {row[-1]:.3f}" for name, row in curves.items())
replace(view, description=(
    "Weight of the slot from 0.29 at the fork on, over 24 tokens; "
    f"γ = e^(−s/4). At its end: {ends}."
))

# %% [markdown]
# - **γ as a factor of the key never closes the slot**: a score of 0 is exp(0) = 1, against 4.09 for the three tokens. z would push to the end of every solution.
#
# ## 3 · The slot has no place in the text
#
# Difficulty ●●○○○ (2/5) · importance ●●●○○ (3/5) · 7 minutes · **you learn** why an extra column must not move a single token.
#
# Keys of tokens are rotated by an angle that depends on their position ("rotary"). The slot's key isn't, and the tokens keep their positions [D]. The slot is column 0.


# %% tags=["exercise"]
def key_columns(
    key_z: Tensor,
    keys: Tensor,
    rope: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The columns of keys that a row with z compares its query with.

    Args:
        key_z: k_z, (d,).
        keys: of the tokens 0 … T − 1, not rotated yet, (T, d).
        rope: rotates keys (n, d) by their positions (n,).

    Returns:
        The slot, then the tokens, (1 + T, d).
    """
    # --8<-- solution: rotate the tokens, then put the slot first
    turned = rope(keys, torch.arange(len(keys)))
    return torch.cat([key_z[None], turned])
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# A position says where in the text a token is, and the policy has learnt how far "three tokens ago" is. z is nowhere in the text. And a token doesn't move because
# something is added next to it: its column is one further, its position isn't.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# The positions are `torch.arange(T)`. First rotate, then join with `torch.cat`: whatever you join earlier is rotated too.
#
# </details>

# %%
check.key_columns(key_columns)

# %% [markdown]
# Now use the keys of a real policy, `tiny-grpo`, and compare with what its own cache holds: prompt and first product of the running example, p = 66 tokens.

# %%
torch.set_grad_enabled(False)  # nothing is trained here
policy = load_policy("tiny-grpo", dtype=torch.float64)
steering = load_steering(policy)
model, encode = policy.model, policy.tokenizer.encode
decoder = model.get_decoder()
c = policy.prompt_ids(QUESTION.text)
c = [*c, *encode(PREFIX, add_special_tokens=False)]
p = len(c)


def rope(keys: Tensor, positions: Tensor) -> Tensor:
    cos, sin = decoder.rotary_emb(keys, positions[None])
    one, two = keys.chunk(2, -1)
    return keys * cos[0] + torch.cat([-two, one], -1) * sin[0]


layer = decoder.layers[0]
h = layer.input_layernorm(decoder.embed_tokens(torch.tensor(c)))
of_heads = layer.self_attn.k_proj(h).view(p, -1, 32)  # (p, 2, 32)
raw = layer.self_attn.k_norm(of_heads)[:, 0]  # first KV head, (p, 32)
cache = DynamicCache()
model(torch.tensor([c]), past_key_values=cache)
own = cache.layers[0].keys[0, 0]  # as the policy holds them, (p, 32)

# %% tags=["expected"]
slot = torch.full((32,), 0.5, dtype=torch.float64)
columns = key_columns(slot, raw, rope)
shifted = rope(raw, torch.arange(p) + 1)
print("shape", tuple(columns.shape), "= 1 slot + 66 tokens")
print("slot as it was made:", torch.equal(columns[0], slot))
gap = (columns[1:] - own).abs().max()
print("tokens as in the policy's cache:", bool(gap < 1e-5))
print("control: the slot counted as a token:",
      f"keys off by up to {(shifted - own).abs().max():.1f}")

# %% [markdown]
# ## 4 · Which rows are read with z?
#
# Difficulty ●●●○○ (3/5) · importance ●●●●● (5/5) · 8 minutes · **you learn** the off-by-one slip after which z does nothing at all, and nothing complains.
#
# A branch of n tokens starts at a fork: p tokens are fixed; token number p will be drawn with z. Rows before the fork are read without z and kept in the cache. **Row i predicts
# token i + 1.** How many tokens stay in the cache, which positions do the rows with z have, and which s?


# %% tags=["exercise"]
def rows_with_z(p: int, n: int) -> tuple[int, list[int], list[int]]:
    """The rows that draw a branch's n tokens.

    Args:
        p: tokens before the fork.
        n: tokens that are drawn: numbers p to p + n − 1.

    Returns:
        Number of tokens in the cache, read without z; the position of
        each row that is read with z; s of each of these rows.
    """
    # --8<-- solution: begin with the row that predicts token p
    first = p - 1
    return first, list(range(first, first + n)), list(range(n))
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# What decides token p? The row that reads token p − 1. It was read before, without z, because the prefix is older than the fork. If z is to have a say in the decision, this row must be
# forgotten and read again. And nothing reads the last token that is drawn.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Work out the case p = 66, n = 3 on paper: which rows predict tokens 66, 67 and 68? The positions are those of the text: the slot's column doesn't count. `range` stops before its end.
#
# </details>

# %%
check.rows_with_z(rows_with_z)

# %% [markdown]
# `read` runs your plan through the policy: cache, slot, then the rows with z. z is what the CVAE's posterior infers from the running example's solution with `Factor`.

# %%
def read(tokens, use, plan):
    """Logits of the rows that `plan` reads with z, (n, V)."""
    crop, positions, since = plan
    cache = DynamicCache()
    model(torch.tensor([tokens[:crop]]), past_key_values=cache)
    for at, layer in enumerate(cache.layers):
        k, v = use.keys[at][:, :, None], use.values[at][:, :, None]
        layer.keys = torch.cat([k, layer.keys], 2)  # (1, 2, 1 + T, 32)
        layer.values = torch.cat([v, layer.values], 2)
    s_0 = use.strength.decay
    log_gamma = log_strength(torch.tensor([since]), 1.0, s_0)  # (1, n)
    seen = torch.ones(1, crop + len(since))
    with injected(model, use, log_gamma, slot_in_cache=True):
        return model(
            torch.tensor([tokens[crop : crop + len(since)]]),
            attention_mask=slot_mask(seen, log_gamma, torch.float64),
            position_ids=torch.tensor([positions]), past_key_values=cache,
        ).logits[0]


names = [text[len(PREFIX) :].split()[0] for text in FOUR]
rest = [encode(t[len(PREFIX) :], add_special_tokens=False) for t in FOUR]
horizon = steering.card["config"]["horizon"]
Q = steering.posterior(policy, [c] * 4, [o[:horizon] for o in rest])
z_of = dict(zip(names, Q.mean))
use = steering.injection(z_of["Factor"][None])

# %% tags=["expected"]
prefix = Prefix(tuple(c), decode(
    policy, [c], Sampling(1, temperature=0), keep_kv=True).kv[0])
library = decode_branches(policy, [prefix], [9],
                          Sampling(9, temperature=0), injection=use)
drawn = library.ids[0].tolist()
logits = read([*c, *drawn], use, rows_with_z(p, 9))
print("greedy branch of the library:", repr(policy.text(drawn)))
print("your rows draw the same:", logits.argmax(-1).tolist() == drawn)

factor = encode("Factor", add_special_tokens=False)[0]
plain = model(torch.tensor([c])).logits[0, -1].softmax(-1)[factor]
one = read(c, use, rows_with_z(p, 1))[0].softmax(-1)[factor]
print(f"π(Factor) at the fork, without z: {plain:.3f}")
print("with z on row p − 1, over one half:", bool(one > 0.5))
print(f"control, cropped at p: row p − 1 is the old one: {plain:.3f}")
good = read(c, use, (p - 1, [p - 1], [0]))
shifted = read(c, use, (p - 1, [p], [0]))
print("control, one position too far: logits off by more than 0.1:",
      bool((good - shifted).abs().max() > 0.1))

# %% [markdown]
# - **Cropped at p, z comes one row too late**: the strategy word is drawn from the old distribution, for every z. No error, no warning, and no variety.
#
# ## 5 · Is it z, or is it noise?
#
# Difficulty ●●○○○ (2/5) · importance ●●●●● (5/5) · 10 minutes · **you learn** to tell a latent that steers from one that only disturbs.
#
# Many sets of K = 6 branches start at the fork, each branch with its own z. Compute two numbers for each set: how many **different strategies** its first words name, and the **share of the
# branches that say the word their z was made for**.


# %% tags=["exercise"]
def set_scores(
    words: list[list[str]], asked: list[str], strategies: set[str]
) -> tuple[list[int], list[float]]:
    """Variety and obedience of sets of K branches.

    Args:
        words: the first word of each branch, one row of K per set.
        asked: words that the K latents were made for; same for all sets.
        strategies: words that name a strategy; others may occur.

    Returns:
        Different strategies in each set; share of each set's branches
        that say the word they were asked for.
    """
    # --8<-- solution: a count and a share for each set
    distinct = [len(strategies & set(row)) for row in words]
    agree = [
        sum(said == wish for said, wish in zip(row, asked)) / len(row)
        for row in words
    ]
    return distinct, agree
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# Noise can make words vary too, with words that name no strategy or strategies that nobody asked for. So the first number counts only strategies, and the second asks whether z was
# *followed*, branch by branch. If all the wanted words occur in a set, but on the wrong branches, it wasn't.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `set(row)` drops repetitions, and `&` keeps what is in both sets. `zip(row, asked)` pairs each branch with its word; a sum of comparisons counts the true ones.
#
# </details>

# %%
check.set_scores(set_scores)

# %% [markdown]
# **Baseline**: plain re-sampling, no z. **Negative controls**: γ₀ = 0 with the right z, which must equal the baseline draw for draw; z ~ N(0, I), which is a quarter as long as the CVAE's z; and `matched`, a
# random direction with the length of a z from the prior.

# %%
asked = ["Round", "Round", "Factor", "Factor", "Guess", "Guess"]
sets = 30
z_Q = torch.stack([z_of[name] for name in asked]).repeat(sets, 1)
chance = torch.Generator().manual_seed(3)
z = {
    sampler: steering.draw(
        policy, [c] * sets, 6, sampler=sampler, generator=chance
    ).flatten(0, 1)
    for sampler in ("independent", "standard_normal", "matched")
}
right = steering.injection(z_Q)
arms = {
    "plain re-sampling": None,
    "control: γ_0 = 0": replace(right, strength=Strength(0.0, 2.0)),
    "control: z ~ N(0, I)": steering.injection(z["standard_normal"]),
    "control: matched": steering.injection(z["matched"]),
    "z ~ P(z|c), the prior": steering.injection(z["independent"]),
    "z of the asked strategy": right,
}
scores = {}
for name, injection in arms.items():
    drawn = decode_branches(
        policy, [prefix] * sets, [1] * sets, Sampling(1), branches=6,
        injection=injection, generator=torch.Generator().manual_seed(1),
    ).ids[:, 0].view(sets, 6)
    words = [[policy.text([i]).strip() for i in row] for row in drawn]
    scores[name] = set_scores(words, asked, set(STRATEGIES))

# %% tags=["expected"]
same = scores["plain re-sampling"] == scores["control: γ_0 = 0"]
print("γ_0 = 0 equals plain re-sampling:", same)
said = "different strategies of 6", "share that follows its z"
measured = {
    name: {"metrics": {
        metric: asdict(bootstrap_interval([float(x) for x in found]))
        for metric, found in zip(said, pair)
    }}
    for name, pair in scores.items()
}
view = comparison(measured, metrics=said)
view.figure.update_layout(title_text="30 sets of 6 branches, one fork")
view

# %% [markdown]
# - Re-sampling almost always says `Split`, and N(0, I) opens no more strategies than that: it is too quiet. Noise as long as z opens 2.6 where the prior's z opens 3.1: the first number needs mostly *size*.
# - The second number needs *z*: only where z was inferred from a continuation do most branches say the word that their z was made for. So a control for variety must be as loud as z, and variety alone doesn't prove steering.
# - Nobody told the prior's latents which strategy to name, so their second number is no failure.
#
# ## Discuss
#
# 1. The slot's key isn't rotated, but the row's *query* is, by the row's own position. What does the slot look like to the rows p − 1, p, p + 1 … of a long solution? When would that matter?
# 2. z ~ N(0, I) opens nothing here. Would it also fail if the U were trained with z ~ N(0, I) from the start?
#
# <details><summary>Some thoughts</summary>
#
# 1. A key that isn't rotated is a key at position 0: to the query, the slot lies at the very start of the prompt, and the later the row, the farther away it is. So z's pull depends a little on
#    where the fork is. With s₀ of a token or less, only the fork's row matters, but forks lie at different places, and U has to learn to be heard from all of them. With a constant γ, the pull
#    would also change along the solution. The sources leave this open, so it is our choice [D].
# 2. Then z would carry nothing about the continuation: the loss could only fall by ignoring z, and the U would shrink until the slot says the same for every z. z gets a meaning because
#    the posterior *reads* the continuation while U is trained (notebook 03).
#
# </details>
