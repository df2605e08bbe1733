# %% [markdown]
# # Exercises 05 · Information bottleneck
#
# **Belongs to** notebook `05_information_bottleneck.ipynb`; read that first. **You write** five short functions: the reasoning without its box, what it tells about the answer, what it
# costs, the filter, and the advantages that go with the filter. Together they are stages 7 to 9 of a training step.
#
# | minutes of work | minutes of computing | memory |
# |---|---|---|
# | 40 | 0.3 | 0.7 GB |
#
# Computing was measured on one processor core without a GPU. Symbols: question $q$, verified answer $a$, trajectory $o = (o_1 \dots o_T)$, reward $R$, advantage $A$, branch set
# $B_i$, of which $N$ are kept. The running example has $a$ = 544 and R = [1, 0, 0, 1].
#
# **How it works.** Each exercise is a function with a blank. Replace `raise NotImplementedError(…)` with your code, run the cell, then run the check below it: it says ✓, or what is
# wrong. *Difficulty* and *importance* run from 1 to 5. Help is folded away: Help 1 is about meaning, Help 2 about code.
#
# $$S_{IB}(o) = \underbrace{\pi(a|q,o)^{1/|a|} - \pi(a|q)^{1/|a|}}_{\text{what } o \text{ tells about } a} - \underbrace{\min(\mathrm{excess}(o), E)}_{\text{what it costs}}
# \qquad \text{[D], for } S_{IB} = \beta_{IB} I(o;a) - I(q;o) \text{ [P]}$$

# %%
import math
import random
import sys
from dataclasses import asdict, replace
from statistics import fmean

import torch
from torch import Tensor

from i2b_lpo.config import BranchConfig
from i2b_lpo.method import bootstrap_interval, reference_length, rep_n
from i2b_lpo.model import Sampling, load_policy
from i2b_lpo.rollout import FOUR, QUESTION, grow_trees, teacher_force
from i2b_lpo.tasks import KINDS, build, load_task, parse_problem
from i2b_lpo.trace import Score
from i2b_lpo.views import comparison, ib_ranking, ib_scatter

sys.path.insert(0, "..")  # the folder that holds the checks
from checks import set_05 as check

# %% [markdown]
# ## 1 · Take the box away
#
# Difficulty ●○○○○ (1/5) · importance ●●●●● (5/5) · 6 minutes · **you learn** how an answer leaks into its own score.
#
# The policy reads a solution, and we ask how likely it finds the verified answer. What it reads must not contain the answer's box: cut the text where its **last** box begins.
# A text without a box stays as it is.


# %% tags=["exercise"]
def before_box(text: str) -> str:
    r"""The reasoning: what a solution says before its last box.

    Args:
        text: a solution, with or without \boxed{…}.
    """
    # --8<-- solution: the text up to its last box, or all of it
    start = text.rfind("\\boxed")
    return text if start < 0 else text[:start]
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# I(o;a) asks whether the *derivation* leads to a. If the box stays, the policy needs no derivation: it copies. Text after the box may repeat the answer, so it has to go too; an
# earlier box that was withdrawn is reasoning and stays.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `str.rfind` gives the position of the last occurrence, or −1. In a string, a backslash is written `"\\"`.
#
# </details>

# %%
check.before_box(before_box)


# %% [markdown]
# `answer_logps` asks a policy for log π of each token of `544}` after `\boxed{`. **Negative control**: the same with the box left in. There are three solutions: rollout 0, which is right; rollout 1,
# which is wrong, with a box that somebody corrected; and a bare box.

# %%
torch.set_grad_enabled(False)  # nothing is trained here
policy = load_policy("tiny-base", dtype=torch.float64)
prompt = policy.prompt_ids(QUESTION.text)


def coded(text: str) -> list[int]:
    return policy.tokenizer.encode(text, add_special_tokens=False)


def answer_logps(start: list[int], answer: str) -> list[float]:
    """log π of each token of the answer, and of the closing brace."""
    before = [*start, *coded("\\boxed{")]
    own = coded(answer + "}")
    logits = policy.model(torch.tensor([[*before, *own]])).logits[0]
    rows = logits[len(before) - 1 : -1, : policy.vocab_size]  # (|a|, V)
    return rows.log_softmax(-1)[range(len(own)), own].tolist()


# %% tags=["expected"]
solutions = {
    "right derivation": FOUR[0],
    "wrong one, box corrected": FOUR[1].replace("{534}", "{544}"),
    "bare box": "\\boxed{544}",
}
print("chance of 544, per token  box cut off  box left in")
for name, text in solutions.items():
    found = [
        math.exp(fmean(answer_logps([*prompt, *coded(said)], "544")))
        for said in (before_box(text), text)
    ]
    print(f"{name:25} {found[0]:11.2f} {found[1]:12.2f}")

# %% [markdown]
# - With the box left in, writing the right number into a box is worth as much as deriving it.
#
# ## 2 · What it tells about the answer
#
# Difficulty ●●○○○ (2/5) · importance ●●●●● (5/5) · 8 minutes · **you learn** three decisions behind one bracket: per token, as a probability, minus what was known before.
#
# $$\pi(a|q,o)^{1/|a|} - \pi(a|q)^{1/|a|} \qquad \text{[D]}$$
#
# π(a) is the product of the probabilities of the answer's |a| tokens. You get their logarithms, after the reasoning and after the question alone.


# %% tags=["exercise"]
def told(after: list[float], before: list[float]) -> float:
    """How much more likely the reasoning makes the answer, per token.

    Args:
        after: log π of each token of a, after q and o, in nats.
        before: the same after q alone.

    Returns:
        A number from −1 to 1.
    """
    # --8<-- solution: the difference of two |a|-th roots
    with_o = math.exp(sum(after) / len(after))
    without = math.exp(sum(before) / len(before))
    return with_o - without
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# The product of four probabilities is smaller than that of two, although the policy may be just as sure. The |a|-th root undoes that: it is the probability of a *typical* answer token
# (the geometric mean). The second root is what the question alone already tells, so that an easy guess earns nothing.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# The log of an |a|-th root is the mean of the logarithms. So take the mean first and `math.exp` second, for both lists; then subtract.
#
# </details>

# %%
check.told(told)

# %% tags=["expected"]
example = teacher_force(policy, QUESTION, FOUR)
before = answer_logps(prompt, "544")
print(" i  R  told   without the root   in nats")
for i, o in enumerate(example.rollouts):
    after = answer_logps([*prompt, *coded(before_box(o.text))], "544")
    product = math.exp(sum(after)) - math.exp(sum(before))
    nats = fmean(after) - fmean(before)
    print(f" {i}  {o.reward:.0f}  {told(after, before):.2f}"
          f" {product:18.2f} {nats:9.1f}")

# %% [markdown]
# - **This tells right from wrong without reading a box.** In nats the two wrong ones are 0.4 apart, more than the total cost of a concise solution; as probabilities they are alike, both near 0. Without the root, an answer with more digits would score lower.
#
# ## 3 · What it costs
#
# Difficulty ●●○○○ (2/5) · importance ●●●●○ (4/5) · 10 minutes · **you learn** why a cost needs two clips, and three parts that look alike but aren't.
#
# $$\mathrm{excess}(o) = \tfrac{1}{T_{ref}} \sum_t \min(-\log\pi(o_t|q,o_{<t}),\, \kappa) + \mathrm{rep4}(o) + (T/T_{ref} - 1)_+ \qquad \text{[D]}$$
#
# Return min(excess, E) with E = 4, λ = 1. $(x)_+$ is x if positive, else 0. T_ref is the usual length in the group, rep4 the share of repeated 4-grams.


# %% tags=["exercise"]
def cost(
    nats: list[float], rep4: float, t_ref: float, kappa: float
) -> float:
    """Description length of a trajectory that gains nothing.

    Args:
        nats: −log π(o_t|q, o_<t) of its T tokens.
        rep4: share of its 4-grams that occurred before, 0 to 1.
        t_ref: usual length in tokens.
        kappa: κ, the most nats that one token adds.

    Returns:
        min(excess, 4).
    """
    # --8<-- solution: surprise + repetition + length, clipped
    surprise = sum(min(one, kappa) for one in nats) / t_ref
    length = max(0, len(nats) / t_ref - 1)
    return min(surprise + rep4 + length, 4)
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# κ limits one *token*: a slip may cost 10 nats once without outweighing a hundred ordinary tokens. E limits one *trajectory*: a runaway loop of 300 lines is bad, but not worse than "worst". Both
# keep a single number from deciding everything. And we divide by T_ref, not T, because padding makes T larger.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Use one `min` per token, inside a generator that is summed; one `max` with 0 for the length; and one `min` around everything.
#
# </details>

# %%
check.cost(cost)

# %% [markdown]
# Your two parts make S_IB. We score the four kinds of trace from the paper's case study on 30 problems: they are written by fixed recipes, with one seed for all four traces of a problem (notebook 05, part 3).

# %%
def scored(traces):
    """The traces, with S_IB by your functions in every rollout."""
    found = []
    for trace in traces:
        start, a = list(trace.prompt_ids), trace.question.answer
        rights = [o.reward > 0 for o in trace.rollouts]
        t_ref = reference_length([*map(len, trace.rollouts)], rights)
        before, rollouts = answer_logps(start, a), []
        for o in trace.rollouts:
            said = [*start, *coded(before_box(o.text))]
            tells = told(answer_logps(said, a), before)
            nats = [-logp for logp in o.logprobs_t1]
            costs = cost(nats, rep_n(list(o.ids), 4), t_ref, 4.0)
            score = Score(tells - costs, tells, costs)
            rollouts.append(replace(o, score=score))
        found.append(replace(trace, rollouts=tuple(rollouts)))
    return found


task, traces = load_task("shop"), []
for question in task.questions("validation", 30, seed=0):
    problem = parse_problem(question.text)
    four = [build(k, problem, random.Random(question.id)) for k in KINDS]
    traces.append(teacher_force(policy, question, four))
traces = scored(traces)

# %% tags=["expected"]
view = ib_scatter(traces, kinds=[KINDS] * 30)
view.figure.update_layout(height=370)
view

# %% [markdown]
# - Up is "tells the answer", right is "costs". Neither axis alone separates the four kinds: drifts lie below, verbose traces and loops to the right.
#
# Which order do the scores give? **Baselines**: the reward R, which sees only the box, and your cost alone. **Negative control**: your scores, shuffled within each problem; the picture adds them automatically.

# %% tags=["expected"]
ranks = {
    "your S_IB": [[o.score.value for o in t.rollouts] for t in traces],
    "baseline: R": [[o.reward for o in t.rollouts] for t in traces],
    "cost alone": [[-o.score.cost for o in t.rollouts] for t in traces],
}
view = ib_ranking(ranks, KINDS)
view.figure.update_layout(
    title_text="The order that each gives to the four kinds of trace",
    height=350,
)
view

# %% [markdown]
# - The paper's order is concise > drift > verbose > loop; the middle two are close. The reward can't tell a loop from a concise solution: three of the four kinds have the right box.
# - **The cost alone gives this order more sharply than S_IB does.** Judged by such recipes, one would drop the answer part. These traces fail in form, and a cost sees form. Whether it also tells right from wrong among the policy's own
#   solutions is another question, which notebook 05, part 4, answers: much less than S_IB. A ranking is only as good as the traces it is tried on.
# - Shuffled scores know nothing, so all get ½. The bars are means of 20 shuffles, with a range from the lowest to the highest single shuffle: with 30 problems, chance alone goes that far.
#
# ## 4 · The filter
#
# Difficulty ●●○○○ (2/5) · importance ●●●●○ (4/5) · 8 minutes · **you learn** who competes with whom, and who doesn't compete at all.
#
# $$\mathrm{keep}_i = \mathrm{TopN}_{j \in B_i}\, S_{IB}(o_j) \qquad \text{[P]}$$
#
# Roots are in no branch set and are always kept [D].


# %% tags=["exercise"]
def keep_best(
    scores: list[float], sets: list[list[int]], n: int
) -> list[bool]:
    """Which trajectories of a tree take part in the update.

    Args:
        scores: S_IB of the G trajectories; all are different.
        sets: the branch sets, lists of indices; roots are in none.
        n: N, how many to keep of each set.

    Returns:
        A flag for each of the G trajectories, False where pruned.
    """
    # --8<-- solution: prune all but the N best of each set
    flags = [True] * len(scores)
    for members in sets:
        ranked = sorted(members, key=lambda j: scores[j], reverse=True)
        for j in ranked[n:]:
            flags[j] = False
    return flags
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# The branches of one set share their prefix, so a higher score is due to what *they* did. Branches of different sets had different starting points; in one list, the easier start would
# win. A root is the only trajectory that trains the prefix.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# Start with everything kept, so that roots need no special case. `sorted(members, key=…)` gives indices; prune all after the first N.
#
# </details>

# %%
check.keep_best(keep_best)

# %% tags=["expected"]
(example,) = scored([example])
S_IB = [o.score.value for o in example.rollouts]
sets = [[1, 2, 3]]  # rollout 0 is the root, the others are its branches
print("S_IB:", [f"{s:+.2f}" for s in S_IB])
print("R:   ", [int(o.reward) for o in example.rollouts])
for n in (2, 1):
    print(f"kept with N = {n}:", keep_best(S_IB, sets, n))

# %% [markdown]
# - N = 2 keeps a wrong branch: two of three must stay, and one is right.
#
# ## 5 · Advantages first
#
# Difficulty ●●●○○ (3/5) · importance ●●●●● (5/5) · 8 minutes · **you learn** what a pruned trajectory still does for the update.
#
# $$A_i = \frac{R_i - \text{mean}}{\text{std} + \varepsilon} \quad\text{over all } G, \qquad \varepsilon = 10^{-4}, \text{ ddof } 1$$
#
# The push is A if a trajectory is kept, and 0 if it is pruned [D].


# %% tags=["exercise"]
def push(rewards: Tensor, kept: Tensor) -> Tensor:
    """Advantages as they enter the update.

    Args:
        rewards: R of all trajectories of a question, (G,).
        kept: bool, False where the filter pruned, (G,).

    Returns:
        A of the kept ones, 0 of the pruned ones, (G,).
    """
    # --8<-- solution: advantages of all G, then the filter
    spread = rewards.std() + 1e-4
    A = (rewards - rewards.mean()) / spread
    return A * kept
    # --8<-- end


# %% [markdown]
# <details><summary>Help 1: what it means</summary>
#
# A says how much better a trajectory is than *its group*. Whether the filter keeps it is irrelevant: the pruned ones were drawn from the same policy, and they tell how hard the
# question is. If you remove them first, and only right ones are kept, the group has no level left to be better than.
#
# </details>
# <details><summary>Help 2: how to write it</summary>
#
# `Tensor.std()` divides by G − 1 by default. A bool tensor counts as 0 and 1 in a product.
#
# </details>

# %%
check.push(push)

# %% tags=["expected"]
R = torch.tensor([o.reward for o in example.rollouts])
for n in (2, 1):
    kept = torch.tensor(keep_best(S_IB, sets, n))
    late = torch.zeros(4)
    late[kept] = push(R[kept], kept[kept])
    orders = {"all G first": push(R, kept), "control: after": late}
    for order, A in orders.items():
        print(f"N = {n}  {order:15}", *(f"{a:+z.2f}" for a in A))

# %% [markdown]
# - **N = 1: computed after the filter, all advantages are 0**, because only right ones are left. On all G the two keep +0.87: they were right where others failed.
#
# Now use all five functions on 24 of the policy's own trees (M = 2, K = 3, plain re-sampling). **Baseline**: no filter. **Negative control**: the filter on scores shuffled within their tree.

# %%
forest = scored(grow_trees(
    policy, task.questions("validation", 24, seed=0), Sampling(160),
    BranchConfig(branches=3, fusion="none"), rollouts=2,
    generator=torch.Generator().manual_seed(0),
))
rng = random.Random(0)
said = "right among the kept − among all", "mean push of the kept"
measured = {}
for name, n in ("no filter", 3), ("S_IB, 2 of 3", 2), ("shuffled", 2):
    right, pushes = [], []
    for t in forest:
        scores = [o.score.value for o in t.rollouts]
        if name == "shuffled":
            rng.shuffle(scores)
        kept = torch.tensor(keep_best(scores, t.branch_sets(), n))
        R = torch.tensor([o.reward for o in t.rollouts])
        R, kept, pushed = R[2:], kept[2:], push(R, kept)[2:]  # no roots
        right.append((R[kept].mean() - R.mean()).item())
        pushes.append(pushed[kept].mean().item())
    measured["control: " * (name == "shuffled") + name] = {"metrics": {
        metric: asdict(bootstrap_interval(values))
        for metric, values in zip(said, (right, pushes))
    }}

# %% tags=["expected"]
view = comparison(measured, metrics=said)
view.figure.update_layout(title_text="24 trees of 2 roots and 6 branches")
view

# %% [markdown]
# - The first number compares each tree with itself. Keeping by S_IB keeps more right branches, and the mean push is no longer about 0: the update mostly says "more of this". Shuffled scores do neither.
#
# ## Discuss
#
# 1. A solution says `322+222=544` and then `\boxed{534}`. Its box is cut off: what score does it get, and is that fair? What besides the box could leak the answer?
# 2. The filter makes the update positive-only. Is that good or bad for a policy that is about to collapse? What would you keep instead?
#
# <details><summary>Some thoughts</summary>
#
# 1. It gets nearly the full score for what it tells, with a reward of 0: the derivation is right. One may call that fair, since the only slip is in copying. But a policy trained on S_IB alone could
#    learn to list many results and box none; so the advantages are still made from the reward, and S_IB only chooses. Whatever comes right before the box can leak: "so the answer is 544".
# 2. It pushes towards what was drawn *and* right, hence towards what is already likely: the vicious circle of notebook 06. Keeping the best of the right ones and the best of the wrong ones (`within_outcome`) leaves
#    the mean push where it was; recomputing the advantages over the kept ones (`renormalise`) brings it back to 0, and makes a set of equal rewards silent.
#
# </details>
