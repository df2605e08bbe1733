"""Steering: the trained CVAE and fusion of one policy, on disk and in use.

From a prefix to a branch's injection: embed c → prior P(z|c) → K latents → injection.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from i2b_lpo.config import LatentConfig, RunConfig, SampleConfig
from i2b_lpo.infra.secrets import redact
from i2b_lpo.infra.weights import check_sums, replaced
from i2b_lpo.method.latent import Gaussian, LatentModel, masked_mean
from i2b_lpo.method.psa import FUSIONS, Fusion, Injection, Shape, Strength
from i2b_lpo.method.samplers import SAMPLERS
from i2b_lpo.model.inject import shape_of
from i2b_lpo.model.padding import mark, micro_batches, right_pad
from i2b_lpo.model.policy import BUNDLED, Policy, asset_path, check_finite

__all__ = [
    "Steering",
    "embed",
    "embed_pairs",
    "latest_version",
    "load_steering",
    "new_steering",
    "save_steering",
]

SETTINGS = "steering.json"
WEIGHTS = "steering.safetensors"


@dataclass(frozen=True)
class Steering:
    """What turns a prefix into latents, and latents into an injection.

    Attributes:
        policy: name of the policy it was trained on.
        cvae: prior and posterior (METHOD §3).
        fusion: U_k, U_v, U_n of PSA, or the projections of a control.
        fusion_name: its name in `i2b_lpo.method.FUSIONS`.
        strength: γ(s) it was trained with.
        card: how it was trained and what was measured.
        version: counts the trainings: each that replaces earlier latents raises it. Branches
            record it, and an update refuses those of another version.
    """

    policy: str
    cvae: LatentModel
    fusion: Fusion
    fusion_name: str
    strength: Strength
    card: dict[str, Any] = field(default_factory=dict)
    version: int = 1

    @torch.no_grad()
    def prior(self, policy: Policy, prefixes: Sequence[Sequence[int]]) -> Gaussian:
        """P(z|c) of each prefix c, a list of token ids."""
        return self.cvae.prior(embed(policy, prefixes, [(0, len(c)) for c in prefixes]))

    @torch.no_grad()
    def posterior(
        self, policy: Policy, prefixes: Sequence[Sequence[int]], rest: Sequence[Sequence[int]]
    ) -> Gaussian:
        """Q(z|c, continuation): which z would lead from the prefix to this continuation."""
        return self.cvae.posterior(*embed_pairs(policy, prefixes, rest))

    def draw(
        self,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        k: int,
        *,
        sampler: str = "independent",
        generator: torch.Generator,
    ) -> Tensor:
        """K latents for each prefix from a named sampler, (B, K, d_z).

        Raises:
            ValueError: unknown sampler.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f"Unknown sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
        return SAMPLERS[sampler](self.prior(policy, prefixes), k, generator)

    def injection(self, z: Tensor) -> Injection:
        """What the latents z, (B, d_z) in any precision, inject."""
        precision = next(self.fusion.parameters()).dtype
        injection: Injection = self.fusion(z.to(precision), self.strength)
        return injection


@torch.no_grad()
def embed(
    policy: Policy,
    rows: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]],
    *,
    tokens: int = 16384,
) -> Tensor:
    """Mean of the policy's own last hidden states over a span of each row, (B, d) (METHOD §3).

    Args:
        policy: its model embeds, without z.
        rows: token ids.
        spans: first token and end of what is averaged; the tokens before it are context.
        tokens: padded tokens in one pass; it bounds the memory.

    Raises:
        ValueError: no rows, or a span that is missing, empty or beyond its row.
    """
    if not rows or len(rows) != len(spans):
        raise ValueError("embed needs at least one row, and a span for each.")
    for at, (row, (start, end)) in enumerate(zip(rows, spans, strict=True)):
        if not 0 <= start < end <= len(row):
            raise ValueError(
                f"Row {at} has {len(row)} tokens, of which {start}..{end} is no span to average."
            )
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for part in micro_batches(range(len(rows)), tokens, lambda i: len(rows[i])):
        ids, attended = right_pad([rows[i] for i in part], policy.pad_id)
        counted = mark([spans[i] for i in part], ids.shape[1])
        ids, attended, counted = (t.to(policy.device) for t in (ids, attended, counted))
        states = policy.model.get_decoder()(
            input_ids=ids, attention_mask=attended, use_cache=False
        ).last_hidden_state
        for i, row in zip(part, masked_mean(states, counted), strict=True):
            found[i] = row
    return torch.stack(found)


def embed_pairs(
    policy: Policy, prefixes: Sequence[Sequence[int]], rest: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Embeddings of prefixes c and of their continuations, read after c, each (B, d)."""
    whole = [[*c, *o] for c, o in zip(prefixes, rest, strict=True)]
    ends = [(len(c), len(w)) for c, w in zip(prefixes, whole, strict=True)]
    before = embed(policy, prefixes, [(0, len(c)) for c in prefixes])
    return before, embed(policy, whole, ends)


def new_steering(
    policy: Policy, *, d_z: int, fusion: str = "psa", strength: Strength | None = None
) -> Steering:
    """Untrained steering for `policy`; its random numbers come from torch's global state.

    Raises:
        ValueError: unknown fusion, or d_z below 1.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"Unknown fusion {fusion!r}; choose one of {', '.join(FUSIONS)}.")
    if d_z < 1:
        raise ValueError(f"d_z is {d_z}; a latent needs at least 1 dimension.")
    shape = shape_of(policy.model)
    cvae = LatentModel(shape.hidden, d_z)
    return Steering(policy.name, cvae, FUSIONS[fusion](shape, d_z), fusion, strength or Strength())


def save_steering(
    steering: Steering, folder: str | Path, *, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write weights and settings; `load_steering` reads them back.

    The folder is written atomically: earlier latents in it are replaced, other files are kept.
    Weights are stored as `dtype`; bfloat16 would lose the small steps of reinforcement learning.

    Raises:
        ValueError: `folder` holds files but no latents.
        OSError: it can't be written, e.g. the disk is full; what was there is intact.
    """
    tensors = {}
    for name, part in (("cvae", steering.cvae), ("fusion", steering.fusion)):
        for key, parameter in part.named_parameters():
            tensors[f"{name}.{key}"] = parameter.detach().to(dtype).contiguous().cpu()
        for key, buffer in part.named_buffers():  # bfloat16 would spoil their range
            tensors[f"{name}.{key}"] = buffer.contiguous().cpu()
    settings = {
        "policy": steering.policy,
        "version": steering.version,
        "fusion": steering.fusion_name,
        "strength": asdict(steering.strength),
        "d_z": steering.cvae.d_z,
        "width": steering.cvae.width,
        "card": steering.card,
    }
    with replaced(folder, mark=SETTINGS) as new:
        save_file(tensors, new / WEIGHTS)
        text = json.dumps(redact(settings), indent=2) + "\n"
        (new / SETTINGS).write_text(text, encoding="utf-8")


def _making(policy: Policy, run: RunConfig | SampleConfig | None, folder: Path) -> str:
    """The command, ready to paste, that makes the latents a run lacks."""
    wanted = LatentConfig(device=policy.device.type)
    sets = {}
    if run is not None:
        wanted = dataclasses.replace(wanted, task=run.task, data=run.data)
        sets = {name: getattr(run.rollout, name) for name in ("temperature", "max_new_tokens")}
    words = ["--policy", policy.name]
    for name in ("task", "data", "device"):
        if getattr(wanted, name) != getattr(LatentConfig, name):
            words += [f"--{name}", getattr(wanted, name)]
    for name, value in sets.items():
        if value != getattr(LatentConfig, name):
            words += ["--set", f"{name}={value}"]
    return shlex.join(["i2b-lpo", "train-latents", *words, "--output", str(folder)])


def load_steering(
    policy: Policy,
    where: str | Path | None = None,
    *,
    run: RunConfig | SampleConfig | None = None,
) -> Steering:
    """Load the steering of `policy`: its bundled one, or a folder of `i2b-lpo train-latents`.

    Args:
        policy: what they were trained for.
        where: the folder; default the policy's own.
        run: the settings of the run that needs them, for the command that makes them.

    Raises:
        ValueError: there is none (the message holds the command that makes it), it is damaged or
            changed, or it was made for a policy of other sizes.
    """
    bundled = where is None and policy.name in BUNDLED
    folder = _own_folder(policy) if where is None else Path(where).expanduser()
    if bundled:
        check_sums(folder, bundled=True)
    command = redact(_making(policy, run, folder))
    if not (folder / SETTINGS).is_file():
        raise ValueError(
            f"There are no latents for {policy.name} in {folder}; make them with: {command}"
        )
    try:
        if not bundled:
            check_sums(folder)
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        shape: Shape = shape_of(policy.model)
        cvae = LatentModel(shape.hidden, settings["d_z"], settings["width"])
        fusion = FUSIONS[settings["fusion"]](shape, settings["d_z"])
        tensors = load_file(folder / WEIGHTS)
        check_finite(tensors)
        for name, part in (("cvae", cvae), ("fusion", fusion)):
            states = {
                n.removeprefix(f"{name}."): t for n, t in tensors.items() if n.startswith(name)
            }
            part.load_state_dict(states)
            part.to(policy.device).eval().requires_grad_(False)
        return Steering(
            settings["policy"], cvae, fusion, settings["fusion"],
            Strength(**settings["strength"]), settings["card"], _version(settings),
        )  # fmt: skip
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        first, *_ = str(error).splitlines()
        raise ValueError(
            f"The latents in {folder} don't fit {policy.name} or are damaged ({first}); make them "
            f"again with: {command}"
        ) from error


def latest_version(policy: Policy) -> int:
    """Version of the latents `policy` has, bundled or in the folder named after it; 0 if none."""
    file = _own_folder(policy) / SETTINGS
    return _version(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else 0


def _own_folder(policy: Policy) -> Path:
    name = f"{policy.name.replace('/', '--')}-latents"
    return asset_path(name) if policy.name in BUNDLED else Path(name).expanduser()


def _version(settings: dict[str, Any]) -> int:
    version = settings.get("version", 1)  # latents from before versions are a first training
    if type(version) is not int or version < 1:
        raise ValueError(f"their version is {version!r}")
    return version
