"""Train a policy's latents: CVAE and fusion together, with the policy frozen (METHOD §3).

rollouts of the base → forks → (prefix, continuation) → −ELBO with the steered policy as decoder.

Generator solutions are never used: latents learn from what the policy itself has sampled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from i2b_lpo.config import LatentConfig
from i2b_lpo.method.entropy import choose_fork
from i2b_lpo.method.latent import Elbo, cluster_weights, elbo, kl_per_dimension, selector_log_prob
from i2b_lpo.method.probe import active_units, mutual_information, shuffled_information
from i2b_lpo.method.psa import Injection, Strength
from i2b_lpo.model.logprobs import row_logprobs
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.model.steering import Steering, embed_pairs, new_steering
from i2b_lpo.rollout.rollouts import roll_out
from i2b_lpo.tasks.task import Task
from i2b_lpo.trace import Question, Trace

__all__ = [
    "Example",
    "collect",
    "continuation_logprobs",
    "fork_examples",
    "next_strategy",
    "steering_report",
    "train_latents",
]

LEAST = 5  # a strategy with fewer examples is left out of I(z; strategy)
SELECTOR_BATCH = 256
FUSION_RATE = 10  # the projections of z start small and have far to go: they learn this much faster
CLUSTERS = 8  # kinds of continuation to distinguish if a task has no labeller


@dataclass(frozen=True)
class Example:
    """A rollout split at a fork.

    Attributes:
        question: what was asked.
        prefix: the p tokens c before the fork, prompt included.
        rest: the tokens sampled from the fork on, end token included.
        label: the strategy chosen at the fork, "" if the fork decides something else.
    """

    question: Question
    prefix: tuple[int, ...]
    rest: tuple[int, ...]
    label: str


def next_strategy(strategies: Sequence[str], prefix: str) -> str:
    r"""The first of a trace's strategies, in order, that isn't named before the fork.

    >>> next_strategy(["Split", "Grid"], "Split 14\n23*10=230\n")
    'Grid'
    """
    named = sum(prefix.count(word) for word in set(strategies))
    return strategies[named] if named < len(strategies) else ""


def fork_examples(
    policy: Policy,
    task: Task,
    traces: Sequence[Trace],
    config: LatentConfig,
    generator: torch.Generator,
) -> list[Example]:
    """Split each rollout at up to `config.forks` different forks."""
    examples = []
    for trace in traces:
        for rollout in trace.rollouts:
            labels = task.label(trace.question, rollout.text)
            drawn = [
                choose_fork(rollout.entropies, config.rule, generator=generator)
                for _ in range(config.forks)
            ]
            for t in sorted(set(drawn)):
                before, rest = "".join(rollout.pieces[:t]), "".join(rollout.pieces[t:])
                label = "" if labels is None else next_strategy(labels.strategies, before)
                if not rest.startswith(label):  # the fork decides something else
                    label = ""
                prefix = (*trace.prompt_ids, *rollout.ids[:t])
                examples.append(Example(trace.question, prefix, rollout.ids[t:], label))
    return examples


def collect(
    source: Policy,
    task: Task,
    config: LatentConfig,
    *,
    split: str = "train",
    questions: int | None = None,
    batch: int = 128,
) -> tuple[list[Example], int]:
    """Sample rollouts from `source` and split them; returns the examples and the tokens drawn."""
    generator = torch.Generator().manual_seed(config.seed)
    asked = task.questions(split, questions or config.questions, seed=config.seed)
    with tqdm(total=len(asked), desc="rollouts", unit="question") as bar:
        traces = roll_out(
            source,
            asked,
            Sampling(config.max_new_tokens, config.temperature),
            rollouts=config.rollouts,
            generator=generator,
            batch=batch,
            on_batch=bar.update,
        )
    tokens = sum(trace.new_tokens() for trace in traces)
    return fork_examples(source, task, traces, config, generator), tokens


def continuation_logprobs(
    policy: Policy, examples: Sequence[Example], injection: Injection | None, horizon: int
) -> Tensor:
    """Log π(continuation|c, z) of each example, summed over its first `horizon` tokens, (B,)."""
    rows = [(e.prefix, e.rest[:horizon]) for e in examples]
    logp, _ = row_logprobs(policy, rows, injection=injection)
    return torch.stack([own.sum() for own in logp])


def _kinds(examples: Sequence[Example], embeddings: Tensor, seed: int) -> list[str]:
    """What training is balanced over: the labeller's strategies, or clusters of embeddings."""
    if any(e.label for e in examples):
        return [e.label for e in examples]
    from sklearn.cluster import KMeans

    count = min(CLUSTERS, len(examples))
    found = KMeans(count, random_state=seed, n_init=3).fit_predict(
        embeddings.double().cpu().numpy()
    )
    return [str(kind) for kind in found]


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Turn off gradients for the policy's parameters, and restore them afterwards."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        model.train(training)


def train_latents(
    policy: Policy,
    examples: Sequence[Example],
    config: LatentConfig,
    *,
    version: int = 1,
    on_step: Callable[[int, Elbo], None] | None = None,
) -> Steering:
    """Train CVAE and fusion on `examples` with the frozen `policy` as decoder.

    Args:
        policy: the policy on which z will be used; also the embedder.
        examples: from `collect`, with the policy itself or the one it was trained from.
        config: objective, sizes and schedule.
        version: of the latents; if they replace others, that version plus 1.
        on_step: called after each step with its number and ELBO.

    Raises:
        ValueError: fewer examples than a batch.
        FloatingPointError: the loss isn't finite.
    """
    if len(examples) < config.batch:
        raise ValueError(
            f"{len(examples)} examples are fewer than a batch of {config.batch}; collect more."
        )
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    steering = new_steering(
        policy, d_z=config.d_z, fusion=config.fusion, strength=Strength(config.gamma, config.decay)
    )
    cvae, fusion = steering.cvae.to(policy.device), steering.fusion.to(policy.device)
    before, after = embed_examples(policy, examples, config.horizon)
    cvae.standardise(torch.cat([before, after]))
    weights = cluster_weights(_kinds(examples, after, config.seed))

    def draw(size: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.multinomial(weights, size, replacement=True, generator=generator)
        return rows, before[rows], after[rows]

    # A fresh z says nothing and a fresh fusion hears nothing; trained together from there, they
    # settle on one shift for all z. So z first learns how continuations differ …
    optimizer = torch.optim.Adam(cvae.parameters(), lr=config.learning_rate)
    for _ in tqdm(range(config.selector_steps), desc="selector", unit="step"):
        _, e_c, e_o = draw(SELECTOR_BATCH)
        posterior = cvae.posterior(e_c, e_o)
        log_prob = selector_log_prob(cvae, e_c, e_o, posterior.rsample())
        _step(optimizer, elbo(log_prob, posterior, cvae.prior(e_c), beta_kl=config.beta_kl))
    if config.objective == "steer":
        _steer(policy, steering, examples, draw, config, on_step)
    for part in (cvae, fusion):
        part.eval().requires_grad_(False)
        part.zero_grad()  # gradients that the last step left
    card = {"config": asdict(config), "examples": len(examples)}
    return replace(steering, card=card, version=version)


def _steer(
    policy: Policy,
    steering: Steering,
    examples: Sequence[Example],
    draw: Callable[[int], tuple[Tensor, Tensor, Tensor]],
    config: LatentConfig,
    on_step: Callable[[int, Elbo], None] | None,
) -> None:
    """The `steer` objective: … then the fusion learns to hear z, then both together."""
    cvae, fusion = steering.cvae, steering.fusion
    alone = {"params": list(fusion.parameters()), "rate": FUSION_RATE * config.learning_rate}
    both = {"params": list(cvae.parameters()), "rate": config.learning_rate}
    optimizer = torch.optim.Adam([alone, both])
    first = config.fusion_first * config.steps
    with _frozen(policy.model), tqdm(range(config.steps), desc="steer", unit="step") as bar:
        for step in bar:
            rate = min(1.0, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * rate
            optimizer.param_groups[1]["lr"] *= step >= first
            rows, e_c, e_o = draw(config.batch)
            posterior = cvae.posterior(e_c, e_o)
            batch = [examples[i] for i in rows.tolist()]
            injection = fusion(posterior.rsample(), steering.strength)
            log_prob = continuation_logprobs(policy, batch, injection, config.horizon)
            result = elbo(
                log_prob,
                posterior,
                cvae.prior(e_c),
                beta_kl=config.beta_kl * min(1.0, max(0.0, 4 * (step - first) / config.steps)),
                free_bits=config.free_bits,
            )
            if not result.loss.isfinite():
                raise FloatingPointError(
                    f"Step {step}: the ELBO isn't finite; lower the rate: --set "
                    f"learning_rate={config.learning_rate / 2:g}."
                )
            _step(optimizer, result)
            if step % 10 == 0:
                bar.set_postfix(logp=f"{result.log_prob.mean():.2f}", kl=f"{result.kl.mean():.2f}")
            if on_step is not None:
                on_step(step, result)


def _step(optimizer: torch.optim.Optimizer, result: Elbo) -> None:
    optimizer.zero_grad(set_to_none=True)
    result.loss.backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 10.0)
    optimizer.step()


def embed_examples(
    policy: Policy, examples: Sequence[Example], horizon: int
) -> tuple[Tensor, Tensor]:
    """Embeddings of prefixes and of continuations (up to `horizon` tokens), each (N, d)."""
    return embed_pairs(policy, [e.prefix for e in examples], [e.rest[:horizon] for e in examples])


@torch.no_grad()
def steering_report(
    steering: Steering, policy: Policy, examples: Sequence[Example], config: LatentConfig
) -> dict[str, Any]:
    """What the latents do on held-out examples; in nats, with z ~ Q unless stated otherwise.

    Returns:
        `log_prob` with z ~ Q, with z ~ P and without z (per continuation), `kl`,
        `kl_per_dimension`, `elbo`, `active_units`, `information` I(z; strategy) and its shuffled
        control (only with labels).
    """
    before, after = embed_examples(policy, examples, config.horizon)
    posterior, prior = steering.cvae.posterior(before, after), steering.cvae.prior(before)
    torch.manual_seed(config.seed)
    drawn = {"posterior": posterior.sample(), "prior": prior.sample()}
    found: dict[str, float] = {}
    for name, z in [*drawn.items(), ("without", None)]:
        total = 0.0
        for start in range(0, len(examples), config.batch):
            part = slice(start, start + config.batch)
            injection = None if z is None else steering.injection(z[part])
            total += float(
                continuation_logprobs(policy, examples[part], injection, config.horizon).sum()
            )
        found[name] = total / len(examples)
    kl = kl_per_dimension(posterior, prior)
    report: dict[str, Any] = {
        "examples": len(examples),
        "log_prob": {name: round(value, 3) for name, value in found.items()},
        "kl": round(float(kl.sum()), 3),
        "kl_per_dimension": [round(value, 3) for value in kl.tolist()],
        "elbo": round(found["posterior"] - float(kl.sum()), 3),
        "active_units": int(active_units(posterior.mean).sum()),
        "d_z": steering.cvae.d_z,
    }
    # The estimate needs a few examples of each strategy.
    number = Counter(e.label for e in examples)
    kept = [i for i, e in enumerate(examples) if e.label and number[e.label] >= LEAST]
    if kept:
        labels = [examples[i].label for i in kept]
        z = drawn["posterior"][kept]
        report["information"] = round(mutual_information(z, labels), 3)
        report["information_shuffled"] = round(shuffled_information(z, labels), 3)
    return report
