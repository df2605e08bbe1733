"""Trees: what each branch was given, what it decided, what was stored, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny import tiny_policy

import i2b_lpo.rollout.branching
from i2b_lpo.config import BranchConfig
from i2b_lpo.method.entropy import FORK_RULES
from i2b_lpo.method.psa import FUSIONS, Injection, Strength
from i2b_lpo.method.samplers import SAMPLERS
from i2b_lpo.model.cache import KeyValues, gather, new_cache, take_rows
from i2b_lpo.model.decoding import Decoded, Prefix, decode, decode_branches, read_without_z
from i2b_lpo.model.logprobs import policy_logprobs
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.model.steering import Steering, new_steering
from i2b_lpo.rollout.branching import Fork, branch_out, choose_forks, grow_trees
from i2b_lpo.rollout.rollouts import sample
from i2b_lpo.trace import Question, Trace
from i2b_lpo.training.batch import pack, trajectories_of

NEVER = (10**6,)  # an end token that no policy can draw
QUESTIONS = tuple(
    Question(f"q{i}", text, "322")
    for i, text in enumerate(("What is 23*14?", "hi", "Mia buys 23 pens at $14 and 37 cups."))
)
STRENGTH = Strength(0.9, 4.0)
WARM = Sampling(10, temperature=0.8, top_p=0.95)
D_Z = 4


def policy_of(kind: str = "qwen3", dtype: torch.dtype = torch.float64, **changes: Any) -> Policy:
    """A tiny policy with norm weights that aren't all 1; some of its trajectories end early."""
    policy = tiny_policy(kind, dtype=dtype, **changes)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.4 * torch.randn(parameter.shape))
    prompts = policy.prompts(QUESTIONS)
    drawn = decode(replace(policy, eos_ids=NEVER), prompts, WARM, rollouts=4, generator=seeded())
    ends = drawn.ids[::2, 4].tolist()
    return replace(policy, eos_ids=tuple(sorted(set(ends))))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steering_of(policy: Policy, fusion: str = "psa", strength: Strength = STRENGTH) -> Steering:
    """Untrained latents that change what the policy says."""
    torch.manual_seed(6)
    steering = new_steering(policy, d_z=D_Z, fusion=fusion, strength=strength)
    with torch.no_grad():
        for parameter in steering.fusion.parameters():
            parameter.mul_(10)
    for part in (steering.cvae, steering.fusion):
        part.to(policy.model.dtype).eval().requires_grad_(False)
    return steering


def config_of(**changes: Any) -> BranchConfig:
    settings: dict[str, Any] = {"branches": 2, "fraction": 0.4, "sampler": "independent"}
    return BranchConfig(**settings | changes)


def grow(policy: Policy, config: BranchConfig, **changes: Any) -> list[Trace]:
    steering = None if config.fusion == "none" else steering_of(policy, config.fusion)
    settings: dict[str, Any] = {"rollouts": 2, "steering": steering, "generator": seeded(1)}
    return grow_trees(policy, QUESTIONS, WARM, config, **settings | changes)


@torch.no_grad()
def forced(
    policy: Policy, trace: Trace, i: int, steering: Steering | None, temperature: float
) -> tuple[list[float], list[float]]:
    """Log-probs and entropies of trajectory i's own tokens, from prompt + stored ids."""
    rollout = trace.rollouts[i]
    ids = torch.tensor([[*trace.prompt_ids, *rollout.ids]])
    start = len(trace.prompt_ids) + trace.start(i)
    new = (torch.arange(ids.shape[1]) >= start).long()[None]
    injection, since = None, None
    if rollout.branch is not None and rollout.branch.z:
        assert steering is not None
        z = torch.tensor([rollout.branch.z], dtype=policy.model.dtype)
        strength = Strength(rollout.branch.gamma, rollout.branch.decay)
        injection = steering.fusion(z, strength)
        since = torch.arange(ids.shape[1])[None] - (rollout.branch.p - 1)
    logp, entropy = policy_logprobs(
        policy.model, ids, torch.ones_like(ids), new, temperature=temperature,
        vocab_size=policy.vocab_size, injection=injection, since=since,
    )  # fmt: skip
    return logp[0, start:].tolist(), entropy[0, start:].tolist()


# --- a tree's numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize("fusion", ["none", *FUSIONS])
@pytest.mark.parametrize("rounds", [1, 2])
def test_stored_numbers_are_those_of_prompt_and_stored_tokens(
    kind: str, fusion: str, rounds: int
) -> None:
    policy = policy_of(kind)
    steering = None if fusion == "none" else steering_of(policy, fusion)
    trees = grow(policy, config_of(fusion=fusion, rounds=rounds), rollouts=3 - rounds)
    depths = set()
    for tree in trees:
        for i, rollout in enumerate(tree.rollouts):
            own = slice(tree.start(i), None)
            depths.add(tree.start(i))
            logp, entropy = forced(policy, tree, i, steering, 0.8)
            assert rollout.logprobs[own] == pytest.approx(logp, abs=1e-12)
            assert rollout.entropies[own] == pytest.approx(entropy, abs=1e-12)
            if rounds == 1:
                raw, _ = forced(policy, tree, i, steering, 1.0)
                assert rollout.logprobs_t1[own] == pytest.approx(raw, abs=1e-12)
    assert len(depths) > 2


@pytest.mark.parametrize("fusion", ["none", "psa"])
def test_stored_numbers_hold_in_float32(fusion: str) -> None:
    policy = policy_of(dtype=torch.float32)
    steering = None if fusion == "none" else steering_of(policy, fusion)
    for tree in grow(policy, config_of(fusion=fusion, rounds=2)):
        for i, rollout in enumerate(tree.rollouts):
            logp, entropy = forced(policy, tree, i, steering, 0.8)
            assert rollout.logprobs[tree.start(i) :] == pytest.approx(logp, abs=1e-4)
            assert rollout.entropies[tree.start(i) :] == pytest.approx(entropy, abs=1e-4)


# --- what the policy was given --------------------------------------------------------------------


class Watch:
    """Every pass of a policy: its tokens, and of each row what it can see in the cache."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.policy = policy
        self.first: list[tuple[list[Prefix], int, list[dict[str, Any]]]] = []
        self.decoded: list[Decoded] = []
        self.refed: list[list[list[int]]] = []
        self.passes = 0
        self.pending: list[Prefix] | None = None
        monkeypatch.setattr(i2b_lpo.rollout.branching, "decode_branches", self.branches)
        monkeypatch.setattr(i2b_lpo.rollout.branching, "read_without_z", self.without_z)
        policy.model.register_forward_pre_hook(self.hook, with_kwargs=True)

    def branches(self, policy: Policy, prefixes: Any, *args: Any, **kwargs: Any) -> Decoded:
        self.pending, self.count = list(prefixes), kwargs["branches"]
        self.slot = int(kwargs["injection"] is not None and kwargs["injection"].keys is not None)
        self.decoded.append(decode_branches(policy, prefixes, *args, **kwargs))
        return self.decoded[-1]

    def without_z(self, policy: Policy, rows: Any, segments: Any) -> Any:
        self.refed.append([list(segment) for segment in segments])
        return read_without_z(policy, rows, segments)

    def hook(self, _: Any, __: Any, kwargs: Any) -> None:
        self.passes += 1
        if self.pending is None:
            return
        rows = []
        for at, ids in enumerate(kwargs["input_ids"].tolist()):
            mask = kwargs["attention_mask"]
            visible = mask[at].bool() if mask.dim() == 2 else mask[at, 0, -1, 1:] == 0
            assert visible[-1], "the token that is read can't see itself"
            columns = visible[:-1].nonzero()[:, 0]
            layers = kwargs["past_key_values"].layers
            states = [
                torch.stack([getattr(layer, n)[at][:, self.slot :][:, columns] for layer in layers])
                for n in ("keys", "values")
            ]
            position = kwargs["position_ids"][at].tolist()
            rows.append({"ids": ids, "position": position, "states": [s.clone() for s in states]})
        self.first.append((self.pending, self.count, rows))
        self.pending = None


@torch.no_grad()
def fresh(policy: Policy, ids: Sequence[int]) -> KeyValues:
    """Keys and values of `ids`, read anew without z."""
    layers = policy.model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values.layers
    return KeyValues(*(torch.stack([getattr(x, n)[0] for x in layers]) for n in ("keys", "values")))


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize("fusion", ["none", "psa", "input"])
@pytest.mark.parametrize("rounds", [2, 3])
def test_the_context_given_to_the_model_is_prompt_and_stored_prefix_at_every_depth(
    kind: str, fusion: str, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(kind)
    watch = Watch(policy, monkeypatch)
    trees = grow(policy, config_of(fusion=fusion, rounds=rounds))
    assert len(watch.first) == len(watch.decoded) == rounds
    reader = policy_of(kind)
    widths = set()
    for number, (prefixes, samples, rows) in enumerate(watch.first, 1):
        stored = [
            (tree, i)
            for tree in trees
            for i, rollout in enumerate(tree.rollouts)
            if rollout.branch is not None and rollout.branch.round == number
        ]
        # Branches stand in the batch fork by fork; in the trees likewise, tree by tree.
        assert len(stored) == len(rows) == len(prefixes) * samples
        lengths = watch.decoded[number - 1].lengths.tolist()
        drawn = watch.decoded[number - 1].ids.tolist()
        unseen = list(range(len(rows)))
        for tree, i in stored:
            rollout, start = tree.rollouts[i], tree.start(i)
            context = (*tree.prompt_ids, *rollout.ids[:start])
            own = list(rollout.ids[start:])
            at = next(
                n
                for n in unseen
                if prefixes[n // samples].ids == context and drawn[n][: lengths[n]] == own
            )
            unseen.remove(at)
            row = rows[at]
            assert rollout.branch is not None
            assert rollout.branch.p == len(context)
            assert row["ids"] == [context[-1]]
            assert row["position"] == [len(context) - 1]
            expected = fresh(reader, context[:-1])
            for got, want in zip(row["states"], (expected.keys, expected.values), strict=True):
                assert got.shape == want.shape
                torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
            widths.add(len(context))
        assert not unseen
    assert len(widths) > 4, "all rows have one length: padding is not tried"


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_tokens_read_again_are_counted_exactly(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of()
    watch = Watch(policy, monkeypatch)
    trees = grow(policy, config_of(rounds=rounds))
    total = 0
    for tree in trees:
        # A branch of a branch at token t needs its parent's own tokens before the fork's last one.
        again = {
            (branch.parent, branch.p): max(
                0,
                branch.p - 1 - max(tree.rollouts[branch.parent].branch.p - 1, 0),  # type: ignore[union-attr]
            )
            for branch in (rollout.branch for rollout in tree.rollouts)
            if branch is not None and branch.round > 1
        }
        assert tree.meta["refed_tokens"] == sum(again.values())
        total += sum(again.values())
    assert total == sum(len(segment) for call in watch.refed for segment in call)
    assert len(watch.refed) == rounds - 1, "the second reading is one batch a round"
    assert (total > 0) == (rounds > 1)
    assert all(tree.meta["fork_rule"] == "top_fraction" for tree in trees)
    assert all(tree.meta["sampler"] == "independent" for tree in trees)


def test_a_round_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    watch = Watch(policy, monkeypatch)
    trees = grow(policy, config_of(fusion="none"), rollouts=3)
    assert [len(rows) for _, _, rows in watch.first] == [3 * 3 * 2]
    longest = max(len(r) - t.start(i) for t in trees for i, r in enumerate(t.rollouts) if r.branch)
    roots = max(len(r) for t in trees for r in t.rollouts if not r.branch)
    # Roots: the prompts and a pass for each token but the last; branches: one for each token.
    assert watch.passes == roots + longest


# --- the fork -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_fork_itself_is_decided_with_z(fusion: str) -> None:
    # The same greedy policy re-decides the token at the fork: without z it takes the same one.
    policy = replace(policy_of(), eos_ids=NEVER)
    prompt = tuple(policy.prompts(QUESTIONS)[0])
    root = decode(policy, [prompt], Sampling(8, 0), keep_kv=True)
    ids = tuple(root.ids[0].tolist())
    steering = steering_of(policy, fusion)
    z = 3 * torch.randn(16, D_Z, generator=seeded(), dtype=torch.float64)
    for t in (0, 3, 7):
        prefix = Prefix(prompt + ids[:t], root.kv[0])
        plain = decode_branches(policy, [prefix], [8 - t], Sampling(8, 0), branches=16)
        assert plain.ids.tolist() == [list(ids[t:])] * 16
        torch.testing.assert_close(plain.entropy[5], root.entropy[0, t:], rtol=0, atol=1e-12)
        steered = decode_branches(
            policy, [prefix], [8 - t], Sampling(8, 0), branches=16, injection=steering.injection(z)
        )
        assert len(set(steered.ids[:, 0].tolist())) > 1, "z doesn't reach the decision"
        assert (steered.entropy[:, 0] - plain.entropy[:, 0]).abs().min() > 1e-4


@pytest.mark.parametrize("fusion", ["none", "psa"])
def test_the_token_at_the_fork_is_decided_again(fusion: str) -> None:
    policy = policy_of()
    trees = grow(policy, config_of(branches=6, rounds=2, fusion=fusion), rollouts=3)
    again = []
    for tree in trees:
        for rollout in tree.rollouts:
            if rollout.branch is None:
                continue
            parent = tree.rollouts[rollout.branch.parent]
            t = rollout.branch.p - len(tree.prompt_ids)
            assert t < len(parent), "the fork lies behind its parent's end"
            assert rollout.ids[:t] == parent.ids[:t]
            again.append(rollout.ids[t] != parent.ids[t])
    assert any(again)
    assert len(again) == 3 * 3 * (6 + 36)


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("rule", FORK_RULES)
def test_forks_lie_among_the_tokens_that_are_a_trajectorys_own(rule: str, rounds: int) -> None:
    policy = policy_of()
    for tree in grow(policy, config_of(rule=rule, rounds=rounds, fusion="none")):
        for i, rollout in enumerate(tree.rollouts):
            if rollout.branch is None:
                continue
            parent = rollout.branch.parent
            assert tree.start(parent) <= tree.start(i) < len(tree.rollouts[parent])
            before = tree.rollouts[parent].branch
            assert rollout.branch.round == (1 if before is None else before.round + 1)
            if rule == "argmax":
                own = tree.rollouts[parent].entropies[tree.start(parent) :]
                assert own[tree.start(i) - tree.start(parent)] == max(own)


def test_choose_forks_is_the_rule_on_own_entropies() -> None:
    policy = policy_of()
    (tree,) = grow_trees(
        policy, QUESTIONS[:1], WARM, config_of(fusion="none"), rollouts=2, generator=seeded()
    )
    branches = [i for i, rollout in enumerate(tree.rollouts) if rollout.branch]
    parents = [(0, i) for i in (0, *branches)]
    forks = choose_forks([tree], parents, config_of(rule="argmax"), seeded())
    assert [(fork.tree, fork.parent) for fork in forks] == parents
    for fork in forks:
        start, entropies = tree.start(fork.parent), tree.rollouts[fork.parent].entropies
        assert fork.t >= start
        assert entropies[fork.t] == max(entropies[start:])
    drawn = {
        choose_forks([tree], [(0, 0)], config_of(rule="uniform"), seeded(seed))[0].t
        for seed in range(80)
    }
    assert drawn == set(range(len(tree.rollouts[0])))


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.6])
def test_forks_are_drawn_from_the_share_that_the_settings_name(fraction: float) -> None:
    policy = policy_of()
    (tree,) = grow_trees(
        policy, QUESTIONS[:1], WARM, config_of(fusion="none"), rollouts=1, generator=seeded()
    )
    entropies = tree.rollouts[0].entropies
    count = max(1, math.ceil(fraction * len(entropies)))
    top = sorted(range(len(entropies)), key=lambda t: entropies[t])[-count:]
    settings = config_of(fraction=fraction)
    drawn = {choose_forks([tree], [(0, 0)], settings, seeded(s))[0].t for s in range(120)}
    assert drawn == set(top)


@pytest.mark.parametrize("fusion", ["none", "psa"])
def test_a_fork_at_the_first_token_of_the_answer(
    fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of()
    # Entropy is highest at the first token, for every trajectory.
    monkeypatch.setattr(i2b_lpo.rollout.branching, "choose_fork", lambda *_, **__: 0)
    trees = grow(policy, config_of(fusion=fusion, rounds=2))
    steering = steering_of(policy)
    for tree in trees:
        assert tree.meta["refed_tokens"] == 0
        for i, rollout in enumerate(tree.rollouts):
            if rollout.branch is None:
                continue
            assert rollout.branch.p == len(tree.prompt_ids)
            logp, entropy = forced(policy, tree, i, steering, 0.8)
            assert rollout.logprobs == pytest.approx(logp, abs=1e-12)
            assert rollout.entropies == pytest.approx(entropy, abs=1e-12)
    assert len({rollout.ids[0] for rollout in trees[0].rollouts}) > 1


def test_a_prompt_of_one_token_can_be_branched_at_its_end() -> None:
    # Nothing is left in the cache then, except the slot.
    policy = replace(policy_of(), eos_ids=NEVER)
    injection = steering_of(policy).injection(
        torch.randn(2, D_Z, generator=seeded(), dtype=torch.float64)
    )
    prefix = Prefix((7,), fresh(policy, (7,)))
    for latent in (None, injection):
        found = decode_branches(policy, [prefix], [4], Sampling(4, 0), branches=2, injection=latent)
        mixed = decode_branches(
            policy, [prefix, Prefix((7, 8, 9), fresh(policy, (7, 8, 9)))], [4, 4], Sampling(4, 0),
            injection=latent,
        )  # fmt: skip
        assert found.ids[0].tolist() == mixed.ids[0].tolist()
        torch.testing.assert_close(found.logprob[0], mixed.logprob[0], rtol=0, atol=1e-12)


# --- the tree -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "k", "rounds"), [(1, 1, 1), (2, 3, 1), (3, 2, 2), (1, 2, 3)])
@pytest.mark.parametrize("fusion", ["none", "psa"])
def test_a_tree_has_its_roots_first_and_k_neighbours_from_every_fork(
    m: int, k: int, rounds: int, fusion: str
) -> None:
    policy = policy_of()
    trees = grow(policy, config_of(branches=k, rounds=rounds, fusion=fusion), rollouts=m)
    assert [tree.question for tree in trees] == list(QUESTIONS)
    group = m * sum(k**depth for depth in range(rounds + 1))
    steering = steering_of(policy)
    for tree, prompt in zip(trees, policy.prompts(QUESTIONS), strict=True):
        assert tree.prompt_ids == tuple(prompt)
        assert len(tree.rollouts) == group
        assert (tree.policy, tree.temperature, tree.top_p) == (policy.name, 0.8, 0.95)
        depths = [0 if r.branch is None else r.branch.round for r in tree.rollouts]
        assert depths == sorted(depths)
        assert [depths.count(depth) for depth in range(rounds + 1)] == [
            m * k**depth for depth in range(rounds + 1)
        ]
        sets = tree.branch_sets()
        assert all(b == list(range(b[0], b[0] + k)) for b in sets), "a branch set isn't together"
        parents = [tree.rollouts[b[0]].branch.parent for b in sets]  # type: ignore[union-attr]
        inner = [i for i, depth in enumerate(depths) if depth < rounds]
        assert parents == inner, "not every trajectory of a round was forked once, in order"
        for rollout in tree.rollouts:
            assert rollout.text == policy.text(rollout.ids)
            assert rollout.pieces == policy.pieces(rollout.ids)
            assert rollout.reward in (0.0, 1.0)
            assert rollout.reason
            assert rollout.kept
            assert rollout.score is None
            assert rollout.finished == (rollout.ids[-1] in policy.eos_ids)
            assert not set(rollout.ids[:-1]) & set(policy.eos_ids)
            branch = rollout.branch
            if branch is not None and fusion == "none":
                assert (branch.fusion, branch.z, branch.gamma, branch.decay) == (
                    "none",
                    (),
                    0,
                    None,
                )
            elif branch is not None:
                assert (branch.fusion, branch.gamma, branch.decay) == ("psa", 0.9, 4.0)
                assert len(branch.z) == steering.cvae.d_z
        latents = [r.branch.z for r in tree.rollouts if r.branch is not None]
        if fusion == "psa":
            assert len(set(latents)) == len(latents)


def test_every_branch_has_a_latent_of_its_own_that_was_drawn_at_its_prefix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, generator = [], seeded()

    def draw(_: Steering, __: Policy, prefixes: Any, k: int, **settings: Any) -> torch.Tensor:
        assert settings["generator"] is generator
        asked.append((k, settings["sampler"]))
        marked = [[[len(c), sum(c), i, 1] for i in range(k)] for c in prefixes]
        return torch.tensor(marked, dtype=torch.float64) / 1000

    monkeypatch.setattr(Steering, "draw", draw)
    config = config_of(branches=3, rounds=2, sampler="spread")
    for tree in grow(policy_of(), config, generator=generator):
        for members in tree.branch_sets():
            for place, i in enumerate(members):
                branch = tree.rollouts[i].branch
                assert branch is not None
                context = (*tree.prompt_ids, *tree.rollouts[i].ids[: tree.start(i)])
                expected = [branch.p / 1000, sum(context) / 1000, place / 1000, 1 / 1000]
                assert list(branch.z) == expected
    assert asked == [(3, "spread")] * 2


@pytest.mark.parametrize("fusion", ["none", "psa"])
def test_a_branch_holds_its_parents_tokens_and_measurements(fusion: str) -> None:
    for tree in grow(policy_of(), config_of(fusion=fusion, rounds=2)):
        for i, rollout in enumerate(tree.rollouts):
            if rollout.branch is None:
                assert tree.start(i) == 0
                continue
            parent, t = tree.rollouts[rollout.branch.parent], tree.start(i)
            for name in ("ids", "pieces", "entropies", "logprobs", "logprobs_t1"):
                assert getattr(rollout, name)[:t] == getattr(parent, name)[:t]
            assert len(rollout) > t


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_whole_trajectory_is_no_longer_than_the_limit(rounds: int) -> None:
    policy = replace(policy_of(), eos_ids=NEVER)
    trees = grow(policy, config_of(rounds=rounds, rule="uniform"))
    starts = set()
    for tree in trees:
        for i, rollout in enumerate(tree.rollouts):
            assert len(rollout) == WARM.max_new_tokens
            assert not rollout.finished
            starts.add(tree.start(i))
    assert len(starts) > 4


@pytest.mark.parametrize("rounds", [1, 2])
def test_generated_tokens_are_counted_once(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    watch = Watch(policy, monkeypatch)
    drawn = []
    monkeypatch.setattr(
        i2b_lpo.rollout.rollouts,
        "decode",
        lambda *args, **kwargs: drawn.append(decode(*args, **kwargs)) or drawn[-1],  # type: ignore[func-returns-value]
    )
    trees = grow(policy, config_of(rounds=rounds))
    total = sum(int(found.lengths.sum()) for found in (*drawn, *watch.decoded))
    masks = sum(int(found.mask.sum()) for found in (*drawn, *watch.decoded))
    assert sum(tree.new_tokens() for tree in trees) == total == masks
    assert len(watch.decoded) == rounds
    for tree in trees:
        # A token counts where it was generated: m = 1 from `start` on, 0 on the branch's prefix.
        own = [
            [t >= tree.start(i) for t in range(len(rollout))]
            for i, rollout in enumerate(tree.rollouts)
        ]
        assert sum(map(sum, own)) == tree.new_tokens()
        assert tree.new_tokens() < sum(map(len, tree.rollouts))


def test_no_branches_are_ordinary_rollouts() -> None:
    policy = policy_of()
    trees = grow(policy, config_of(branches=0), steering=None)
    plain, _ = sample(policy, QUESTIONS, WARM, rollouts=2, generator=seeded(1))
    assert [[r.ids for r in t.rollouts] for t in trees] == [
        [r.ids for r in t.rollouts] for t in plain
    ]
    assert all(r.branch is None and r.reward is not None for t in trees for r in t.rollouts)


@pytest.mark.parametrize("fusion", ["none", "psa"])
def test_roots_are_the_rollouts_of_the_same_generator(fusion: str) -> None:
    policy = policy_of()
    trees = grow(policy, config_of(fusion=fusion))
    plain, _ = sample(policy, QUESTIONS, WARM, rollouts=2, generator=seeded(1))
    for tree, flat in zip(trees, plain, strict=True):
        assert [r.ids for r in tree.rollouts[:2]] == [r.ids for r in flat.rollouts]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_seed_gives_one_forest(sampler: str) -> None:
    policy = policy_of()
    first, again, other = (
        grow(policy, config_of(rounds=2, sampler=sampler), generator=seeded(seed))
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_batches_hold_whole_questions_and_dont_change_greedy_branches() -> None:
    policy = policy_of()
    greedy = Sampling(10, temperature=0)
    config = config_of(fusion="none", rule="argmax", rounds=2)
    found, sizes = [], []
    for batch in (1, 12, 24, 128):
        done: list[int] = []
        sizes.append(done)
        found.append(
            grow_trees(
                policy, QUESTIONS, greedy, config, rollouts=2, generator=seeded(), batch=batch,
                on_batch=done.append,
            )
        )  # fmt: skip
    # 2 roots, 4 branches, 8 branches of branches: 8 rows a question at most.
    assert sizes == [[1, 1, 1], [1, 1, 1], [3], [3]]
    for trees in found[1:]:
        for tree, want in zip(trees, found[0], strict=True):
            assert [r.ids for r in tree.rollouts] == [r.ids for r in want.rollouts]
            assert [r.branch for r in tree.rollouts] == [r.branch for r in want.rollouts]
            for r, w in zip(tree.rollouts, want.rollouts, strict=True):
                assert r.entropies == pytest.approx(w.entropies, abs=1e-12)
                assert r.logprobs == pytest.approx(w.logprobs, abs=1e-12)


@pytest.mark.parametrize("fusion", ["none", *FUSIONS])
def test_the_update_sees_new_tokens_only_and_scores_them_as_sampled(fusion: str) -> None:
    policy = policy_of(dtype=torch.float32)
    trees = grow(policy, config_of(fusion=fusion, rounds=2))
    group = len(trees[0].rollouts)
    samples = trajectories_of(trees, torch.arange(3.0 * group).view(3, group))
    assert sum(s.new_tokens for s in samples) == sum(tree.new_tokens() for tree in trees)
    found = []
    for extra in (0, 7):
        batch = pack(samples, policy.pad_id)
        assert int(batch.mask.sum()) == sum(tree.new_tokens() for tree in trees)
        assert not batch.mask[batch.attention_mask == 0].any()
        wide = {
            name: torch.nn.functional.pad(getattr(batch, name), (0, extra), value=fill)
            for name, fill in (("input_ids", 3), ("attention_mask", 0), ("mask", 0), ("since", 5))
        }
        injection = None
        if fusion != "none":
            assert batch.z is not None
            injection = steering_of(policy, fusion).injection(batch.z)
        with torch.no_grad():
            logp, _ = policy_logprobs(
                policy.model, wide["input_ids"], wide["attention_mask"], wide["mask"],
                temperature=0.8, vocab_size=policy.vocab_size, injection=injection,
                since=wide["since"],
            )  # fmt: skip
        found.append(logp[:, : batch.mask.shape[1]])
        # Roots stand in the same batch as branches, with no z.
        torch.testing.assert_close(found[-1], batch.old_logp, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    # Advantages stay with their trajectories, tree by tree.
    batch = pack(samples, 0)
    each = [
        row[own].unique().tolist() for row, own in zip(batch.advantages, batch.mask, strict=True)
    ]
    assert each == [[i] for i in range(3 * group)]


# --- decode_branches ------------------------------------------------------------------------------


def prefixes_of(policy: Policy, t: Sequence[int] = (0, 3, 7)) -> list[Prefix]:
    """Prefixes of differing lengths from rollouts that were read in one padded batch."""
    prompts = policy.prompts(QUESTIONS)
    endless = replace(policy, eos_ids=NEVER)
    roots = decode(endless, prompts, WARM, generator=seeded(2), keep_kv=True)
    return [
        Prefix((*prompt, *ids[:n]), read)
        for prompt, ids, n, read in zip(prompts, roots.ids.tolist(), t, roots.kv, strict=True)
    ]


def injection_of(policy: Policy, rows: int, fusion: str = "psa") -> Injection:
    z = torch.randn(rows, D_Z, generator=seeded(8), dtype=torch.float64).to(policy.model.dtype)
    return steering_of(policy, fusion).injection(z)


def rows_of(decoded: Decoded) -> list[list[int]]:
    return [row[:n] for row, n in zip(decoded.ids.tolist(), decoded.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize("fusion", ["none", *FUSIONS])
def test_branches_from_kept_keys_equal_branches_from_a_fresh_prefill(
    kind: str, fusion: str
) -> None:
    policy = policy_of(kind)
    kept = prefixes_of(policy)
    anew = [Prefix(prefix.ids, fresh(policy, prefix.ids)) for prefix in kept]
    injection = None if fusion == "none" else injection_of(policy, 6, fusion)
    one, two = (
        decode_branches(
            policy, prefixes, [9, 7, 3], WARM, branches=2, injection=injection, generator=seeded()
        )
        for prefixes in (kept, anew)
    )
    assert one.ids.tolist() == two.ids.tolist()
    for name in ("entropy", "logprob", "logprob_t1"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=0, atol=1e-12)
    if fusion == "none":
        for at, ids in enumerate(rows_of(one)):
            context = kept[at // 2].ids
            whole = torch.tensor([[*context, *ids]])
            with torch.no_grad():
                logits = policy.model(input_ids=whole, use_cache=False).logits
            log_p = logits[0, len(context) - 1 : -1, : policy.vocab_size].log_softmax(-1)
            got = one.logprob_t1[at, : len(ids)]
            want = log_p[range(len(ids)), ids]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fusion", ["none", *FUSIONS])
def test_a_branch_is_the_same_whichever_rows_stand_beside_it(fusion: str) -> None:
    policy = policy_of()
    prefixes, limits = prefixes_of(policy), [9, 4, 6]
    injection = None if fusion == "none" else injection_of(policy, 6, fusion)
    greedy = Sampling(20, temperature=0)
    together = decode_branches(policy, prefixes, limits, greedy, branches=2, injection=injection)
    for at, ids in enumerate(rows_of(together)):
        alone = decode_branches(
            policy, [prefixes[at // 2]], [limits[at // 2]], greedy,
            injection=None if injection is None else injection.select(torch.tensor([at])),
        )  # fmt: skip
        assert rows_of(alone) == [ids]
        assert alone.finished[0] == together.finished[at]
        for name in ("entropy", "logprob"):
            got, want = getattr(together, name)[at, : len(ids)], getattr(alone, name)[0]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    if injection is not None:
        assert len({tuple(row) for row in rows_of(together)}) > 3, "z changes nothing"


def test_every_prefix_has_a_limit_of_its_own() -> None:
    policy = replace(policy_of(), eos_ids=NEVER)
    prefixes = prefixes_of(policy)
    for limits, bound, expected in (
        ([1, 4, 2], 99, [1, 1, 4, 4, 2, 2]),
        ([1, 4, 2], 3, [1, 1, 3, 3, 2, 2]),
        ([5, 5, 5], 1, [1] * 6),
    ):
        steps: list[tuple[int, int]] = []
        found = decode_branches(
            policy, prefixes, limits, Sampling(bound, 0), branches=2,
            on_step=lambda *step, steps=steps: steps.append(step),
        )  # fmt: skip
        assert found.lengths.tolist() == expected
        assert not found.finished.any()
        assert found.ids.shape == (6, max(expected))
        assert found.mask.sum() == sum(expected)
        assert found.ids[~found.mask].eq(policy.pad_id).all()
        assert not found.entropy[~found.mask].any()
        live = [sum(n > step for n in expected) for step in range(1, max(expected) + 1)]
        assert steps == list(enumerate(live, 1))


def test_branches_follow_the_policy_that_the_temperature_and_nucleus_leave() -> None:
    policy = policy_of()
    prefix = prefixes_of(policy)[1]
    narrow = decode_branches(
        policy, [prefix], [5], Sampling(5, top_p=1e-9), branches=3, generator=seeded()
    )
    greedy = decode_branches(policy, [prefix], [5], Sampling(5, 0), branches=3)
    assert narrow.ids.tolist() == greedy.ids.tolist()
    hot = decode_branches(policy, [prefix], [5], Sampling(5, 1.5), branches=8, generator=seeded())
    assert len({tuple(row) for row in hot.ids.tolist()}) > 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefixes": []}, "at least one prefix"),
        ({"prefixes": "empty"}, "none of them empty"),
        ({"limits": [3, 3]}, "limit of at least 1 token"),
        ({"limits": [3, 0, 3]}, "limit of at least 1 token"),
        ({"branches": 0}, "at least 1 branch"),
        ({"generator": None}, "generator="),
        ({"limits": [999] * 3, "sampling": Sampling(999)}, "exceed the 128 positions"),
        ({"prefixes": "long"}, r"A row has read \d+ tokens; it can't give"),
    ],
)
def test_branches_that_cant_be_are_refused(changes: dict[str, Any], message: str) -> None:
    policy = policy_of()
    prefixes = prefixes_of(policy)
    if changes.get("prefixes") == "empty":
        changes = {"prefixes": [Prefix((), prefixes[0].kv), *prefixes[1:]]}
    elif changes.get("prefixes") == "long":
        ids = (*prefixes[0].ids, *range(20))
        with pytest.raises(ValueError, match=message):
            Prefix(ids, prefixes[0].kv)
        return
    given: dict[str, Any] = {
        "prefixes": prefixes, "limits": [3] * 3, "sampling": WARM, "branches": 2,
        "generator": seeded(),
    } | changes  # fmt: skip
    with pytest.raises(ValueError, match=message):
        decode_branches(policy, **given)


# --- keys and values ------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 3), st.booleans())
def test_gathered_rows_are_padded_on_the_left_and_can_be_taken_out_again(
    lengths: list[int], samples: int, slot: bool
) -> None:
    generator = seeded(sum(lengths) + samples)
    rows = [
        KeyValues(*torch.randn(2, 2, 3, n, 4, generator=generator)) for n in lengths
    ]  # 2 layers, 3 heads
    batch = len(rows) * samples
    z = torch.randn(2, 2, batch, 3, 4, generator=generator)
    injection = Injection(STRENGTH, keys=z[0], values=z[1]) if slot else None
    cache, mask = gather(rows, samples, injection)
    width = max(lengths)
    assert mask.shape == (batch, width)
    assert mask.dtype == torch.long
    for at in range(batch):
        own = rows[at // samples]
        assert mask[at].tolist() == [0] * (width - len(own)) + [1] * len(own)
    if slot:
        layers: list[Any] = cache.layers
        for index, layer in enumerate(layers):
            assert torch.equal(layer.keys[:, :, 0], z[0, index])
            assert torch.equal(layer.values[:, :, 0], z[1, index])
    if width + slot:
        whole = torch.cat([torch.zeros(batch, int(slot)), mask], 1).bool()
        for at, taken in enumerate(take_rows(cache, range(batch), whole)):
            assert torch.equal(taken.keys, rows[at // samples].keys)
            assert torch.equal(taken.values, rows[at // samples].values)


def test_taken_rows_are_copies_and_cropped_ones_views() -> None:
    cache = new_cache()
    states = torch.randn(2, 2, 3, 5, 4, generator=seeded())
    cache.update(states[0], states[1], 0)
    mask = torch.tensor([[True] * 5, [False, True, True, True, False]])
    (row,) = take_rows(cache, [1], mask)
    assert len(row) == 3
    assert torch.equal(row.keys[0], states[0, 1, :, 1:4])
    assert torch.equal(row.values[0], states[1, 1, :, 1:4])
    layer: Any = cache.layers[0]
    layer.keys.zero_()
    assert row.keys.any()
    two = row.crop(2)
    assert len(two) == 2
    assert torch.equal(two.values, row.values[:, :, :2])
    assert two.keys.data_ptr() == row.keys.data_ptr()
    assert len(row.crop(0)) == 0
    with pytest.raises(ValueError, match="A row has read 3 tokens; it can't give 4"):
        row.crop(4)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_slot_is_needed_for_every_gathered_row(count: int) -> None:
    row = KeyValues(*torch.randn(2, 1, 3, 2, 4, generator=seeded()))
    z = torch.randn(2, 1, count, 3, 4, generator=seeded())
    with pytest.raises(ValueError, match=rf"4 rows are given {count} latent"):
        gather([row, row], 2, Injection(STRENGTH, keys=z[0], values=z[1]))


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_decoding_hands_over_what_it_has_read_of_each_row(kind: str) -> None:
    policy = policy_of(kind)
    prompts = policy.prompts(QUESTIONS)
    found = decode(policy, prompts, WARM, rollouts=3, generator=seeded(), keep_kv=True)
    assert len(set(found.lengths.tolist())) > 1, "all rows leave the batch at once"
    assert len(found.kv) == 9
    for at, (ids, read) in enumerate(zip(rows_of(found), found.kv, strict=True)):
        want = fresh(policy, [*prompts[at // 3], *ids[:-1]])
        assert len(read) == len(want)
        torch.testing.assert_close(read.keys, want.keys, rtol=0, atol=1e-10)
        torch.testing.assert_close(read.values, want.values, rtol=0, atol=1e-10)
    assert decode(policy, prompts, WARM, generator=seeded()).kv == []


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_reading_on_without_z_equals_one_reading(kind: str) -> None:
    policy = policy_of(kind)
    whole = [[3, 5, 7, 11, 13, 17, 19], [2, 4, 6], [9, 8, 7, 6, 5, 4, 3, 2, 1]]
    had = (4, 2, 1)
    rows = [fresh(policy, ids[:n]) for ids, n in zip(whole, had, strict=True)]
    found = read_without_z(policy, rows, [ids[n:] for ids, n in zip(whole, had, strict=True)])
    for read, ids in zip(found, whole, strict=True):
        want = fresh(policy, ids)
        assert len(read) == len(ids)
        torch.testing.assert_close(read.keys, want.keys, rtol=0, atol=1e-10)
        torch.testing.assert_close(read.values, want.values, rtol=0, atol=1e-10)
    for row, n in zip(rows, had, strict=True):
        assert len(row) == n


# --- what can't be done ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({}, {"rollouts": 0}, "rollouts is 0"),
        ({}, {"steering": None}, "'psa' needs latents; pass steering="),
        ({"fusion": "other"}, {}, "Unknown branch.fusion 'other'; choose one of psa, input"),
        ({"rule": "other"}, {}, "Unknown branch.rule 'other'; choose one of top_fraction"),
        ({"rule": "other", "fusion": "none"}, {}, "Unknown branch.rule 'other'"),
        ({"sampler": "other"}, {}, "Unknown branch.sampler 'other'; choose one of independent"),
        ({"fusion": "residual"}, {}, "trained for the fusion 'psa', not for 'residual'.*--fusion"),
    ],
)
def test_a_forest_that_cant_be_is_refused_before_anything_is_sampled(
    config: dict[str, Any], changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of()
    given: dict[str, Any] = {"rollouts": 2, "steering": steering_of(policy)} | changes
    watch = Watch(policy, monkeypatch)
    generator = seeded()
    before = generator.get_state()
    with pytest.raises(ValueError, match=message):
        grow_trees(policy, QUESTIONS, WARM, config_of(**config), generator=generator, **given)
    assert watch.passes == 0
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("version", [1, 7])
def test_a_branch_records_what_its_latent_was_drawn_with(version: int) -> None:
    policy = policy_of()
    steering = replace(steering_of(policy), version=version)
    for tree in grow(policy, config_of(), steering=steering):
        for branch in (r.branch for r in tree.rollouts if r.branch):
            assert (branch.fusion, branch.gamma, branch.decay) == ("psa", 0.9, 4.0)
            assert branch.version == version
    for tree in grow(policy, config_of(fusion="none")):
        assert {r.branch.version for r in tree.rollouts if r.branch} == {0}


def test_resampling_ignores_latents_it_is_given() -> None:
    policy = policy_of()
    config = config_of(fusion="none")
    assert grow(policy, config, steering=steering_of(policy)) == grow(policy, config)


def test_branch_out_adds_to_trees_that_hold_roots() -> None:
    policy = policy_of()
    trees, read = sample(policy, QUESTIONS, WARM, rollouts=2, generator=seeded(1), keep_kv=True)
    kept = {(i, j): read[2 * i + j] for i in range(3) for j in range(2)}
    given = dict(kept)
    config, steering = config_of(rounds=2), steering_of(policy)
    generator = seeded(4)
    found = branch_out(policy, trees, given, WARM, config, steering, generator)
    assert given == kept, "the caller's readings were changed"
    assert all(r.reward is None for tree in found for r in tree.rollouts)
    assert [tree.rollouts[:2] for tree in found] == [tree.rollouts for tree in trees]
    assert Fork(0, 1, 2) == Fork(tree=0, parent=1, t=2)


def test_branch_out_branches_where_it_is_told() -> None:
    policy = policy_of()
    trees, read = sample(policy, QUESTIONS, WARM, rollouts=2, generator=seeded(1), keep_kv=True)
    places = [(i, j) for i in range(3) for j in range(2)]
    kept = dict(zip(places, read, strict=True))
    config, steering = config_of(rounds=2), steering_of(policy)
    given = (policy, trees, kept, WARM, config, steering)
    expected, chance = branch_out(*given, seeded(4)), seeded(4)
    forks = choose_forks(trees, places, config, chance)  # what the rule itself would have said
    found = branch_out(*given, chance, forks=forks)
    assert [t.rollouts for t in found] == [t.rollouts for t in expected]
    assert {t.meta["fork_rule"] for t in found} == {"given"}
    other = [Fork(f.tree, f.parent, 0) for f in forks]  # any token may be one, the first included
    for tree in branch_out(*given[:4], replace(config, rounds=1), steering, chance, forks=other):
        assert {tree.start(i) for i in range(len(tree.rollouts))} == {0}
        assert all(len(members) == config.branches for members in tree.branch_sets())
    before = chance.get_state()
    for t in (-1, len(trees[0].rollouts[1])):
        with pytest.raises(ValueError, match="at a token of its root"):
            branch_out(*given, chance, forks=[Fork(0, 1, t)])
    assert torch.equal(chance.get_state(), before)


def test_branches_dont_keep_a_graph_and_leave_the_policy_as_it_was() -> None:
    policy = policy_of()
    steering = steering_of(policy)
    steering.fusion.requires_grad_(True)  # as while PSA is trained
    before = {key: p.clone() for key, p in policy.model.state_dict().items()}
    trees = grow(policy, config_of(rounds=2), steering=steering)
    assert trees == grow(policy, config_of(rounds=2))
    assert all(p.grad is None for p in steering.fusion.parameters())
    assert all(torch.equal(p, before[key]) for key, p in policy.model.state_dict().items())
    assert not any("forward" in vars(module) for module in policy.model.modules())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in policy.model.modules()
    )


def test_one_tree_in_words() -> None:
    policy = policy_of()
    (tree,) = grow_trees(
        policy, QUESTIONS[:1], WARM, config_of(rounds=2), rollouts=1, steering=steering_of(policy),
        generator=seeded(1),
    )  # fmt: skip
    lines = str(tree).splitlines()
    assert len(lines) == 1 + len(tree.rollouts)
    indent = [len(line) - len(line.lstrip()) for line in lines[1:]]
    assert indent[0] == 2
    assert max(indent) == 6
    assert all(after - before <= 2 for before, after in pairwise(indent))
