"""What a tree says in words: while one points at it, in its columns, and as a whole."""

from __future__ import annotations

from i2b_lpo.trace import Rollout, Trace
from i2b_lpo.views.base import Table
from i2b_lpo.views.group import reward_sign
from i2b_lpo.views.lanes import Fork, Layout
from i2b_lpo.views.text import escape, number, signed, visible

__all__ = [
    "count",
    "fate",
    "fork_hover",
    "lane_hover",
    "score_text",
    "strategy_word",
    "token_hover",
    "tree_table",
    "tree_words",
]

AROUND = 8  # tokens before and after the one that is pointed at
NAMED = 16  # trajectories that the words describe


# --- in the figure ------------------------------------------------------------------------------


def token_hover(trace: Trace, i: int, t: int) -> str:
    """A token between its neighbours, with its numbers."""
    rollout, start = trace.rollouts[i], trace.start(i)
    before = "".join(rollout.pieces[max(0, t - AROUND) : t])[-40:]
    after = "".join(rollout.pieces[t + 1 : t + 1 + AROUND])
    since = "" if rollout.branch is None else f", s = {t - start} since its fork"
    return (
        f"{escape(before)}<b>{escape(rollout.pieces[t], 40)}</b>{escape(after, 40)}"
        f"<br>trajectory {i}, token {t}{since}"
        f"<br>H = {rollout.entropies[t]:.3f} nat<br>log π = {rollout.logprobs_t1[t]:.3f} nat"
    )


def fork_hover(trace: Trace, fork: Fork) -> str:
    """What was drawn at a fork, by the parent and by each branch."""
    rollout = trace.rollouts[fork.parent]
    before = "".join(rollout.pieces[max(0, fork.t - AROUND) : fork.t])[-40:]
    return (
        f"<b>fork of trajectory {fork.parent} at token {fork.t}</b>"
        f"<br>H = {number(fork.entropy, 3)} nat<br>after “{escape(before)}” it drew "
        + "<br>".join(
            f"{escape(_first(trace.rollouts[i], fork.t))} [{i}]"
            for i in (fork.parent, *fork.members)
        )
    )


def lane_hover(trace: Trace, i: int) -> str:
    """A trajectory: where it comes from, its z, its score and its text."""
    rollout, branch = trace.rollouts[i], trace.rollouts[i].branch
    lines = [f"<b>trajectory {i}</b>, {len(rollout)} tokens{_cut(rollout)}"]
    if branch is not None:
        lines.append(
            f"round {branch.round}: branch of {branch.parent} from token {trace.start(i)}, "
            f"fusion {escape(branch.fusion, 20)}"
        )
        if branch.z:
            some = ", ".join(signed(value, 2) for value in branch.z[:4])
            more = ", …" if len(branch.z) > 4 else ""
            decay = "constant" if branch.decay is None else f"s<sub>0</sub> = {branch.decay:g}"
            lines.append(f"z = ({some}{more}), γ<sub>0</sub> = {branch.gamma:g}, {decay}")
    if (score := rollout.score) is not None:
        lines.append(
            f"S<sub>IB</sub> {signed(score.value, 2)}: answer {signed(score.answer, 2)}, "
            f"cost {signed(score.cost, 2)}"
        )
    text = [escape(line, 60) for line in rollout.text.split("\n")]
    return "<br>".join([*lines, *text[:12], *(["…"] if len(text) > 12 else [])])


def strategy_word(piece: str) -> str:
    """A token that is a word with a capital, such as a strategy's; else nothing."""
    word = visible(piece.strip(), 14)
    return word if len(word) > 1 and word.isalpha() and word[0].isupper() else ""


def score_text(rollout: Rollout) -> str:
    """S_IB as a column shows it."""
    return "–" if rollout.score is None else signed(rollout.score.value, 2)


def fate(rollout: Rollout) -> str:
    """What the filter did; it never acts on a root."""
    return "root" if rollout.branch is None else "kept" if rollout.kept else "pruned"


# --- the whole ----------------------------------------------------------------------------------


def count(trace: Trace) -> str:
    """How many roots, branches and rounds there are."""
    branches = [rollout for rollout in trace.rollouts if rollout.branch is not None]
    roots = len(trace.rollouts) - len(branches)
    rounds = max((r.branch.round for r in branches if r.branch is not None), default=0)
    said = f"{roots} root{'s' * (roots != 1)}, {len(branches)} branch{'es' * (len(branches) != 1)}"
    return said + f" in {rounds} rounds" * (rounds > 1)


def tree_words(trace: Trace, layout: Layout) -> str:
    """The tree as a whole, then its first trajectories, each with its forks."""
    rollouts = trace.rollouts
    right = sum(rollout.correct for rollout in rollouts)
    summary = f"{count(trace)}, {trace.new_tokens()} tokens; {right} of {len(rollouts)} correct"
    branches = [rollout for rollout in rollouts if rollout.branch is not None]
    if not all(rollout.kept for rollout in rollouts):
        summary += f"; {sum(r.kept for r in branches)} of {len(branches)} branches kept"
    said = []
    for i in layout.order[:NAMED]:
        rollout, start = rollouts[i], trace.start(i)
        parts = [f"{i} {reward_sign(rollout)[0]} {len(rollout) - start} tokens{_cut(rollout)}"]
        if rollout.branch is not None:
            parts[0] += f" from {_first(rollout, start)}"
        if rollout.score is not None:
            parts.append(f"S_IB {signed(rollout.score.value, 2)}")
        if not rollout.kept:
            parts.append("pruned")
        parts += [
            f"forks at token {f.t} (H {number(f.entropy, 2)} nat) into "
            + ", ".join(map(str, f.members))
            for f in layout.forks
            if f.parent == i
        ]
        said.append(", ".join(parts))
    more = f"; and {len(layout.order) - NAMED} more" if len(layout.order) > NAMED else ""
    return f"Branch tree: {summary}. From the top: {'; '.join(said)}{more}."


def tree_table(trace: Trace, layout: Layout) -> Table:
    """The tree's numbers, a row for each trajectory, from top to bottom."""
    entropies = {i: f.entropy for f in layout.forks for i in f.members}
    rows = []
    for i in layout.order:
        rollout, start = trace.rollouts[i], trace.start(i)
        branch, score = rollout.branch, rollout.score
        rows.append(
            (
                str(i),
                "–" if branch is None else str(branch.parent),
                "–" if branch is None else str(start),
                number(entropies.get(i), 2),
                "–" if branch is None else branch.fusion,
                str(len(rollout) - start),
                reward_sign(rollout)[0],
                *(
                    ("–",) * 3
                    if score is None
                    else tuple(signed(part, 2) for part in (score.value, score.answer, score.cost))
                ),
                fate(rollout),
                "–" if branch is None else ", ".join(signed(v, 2) for v in branch.z) or "–",
                rollout.text,
            )
        )
    names = ("parent", "fork at token", "H there (nat)", "fusion", "own tokens", "reward")
    return (("trajectory", *names, "S_IB", "answer", "cost", "filter", "z", "text"), *rows)


def _first(rollout: Rollout, t: int) -> str:
    return visible(repr(rollout.pieces[t]), 40) if t < len(rollout) else "nothing"


def _cut(rollout: Rollout) -> str:
    return "" if rollout.finished else " (cut off)"
