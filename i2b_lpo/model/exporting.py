"""Write a trained policy as an ordinary Hugging Face folder with a model card."""

from __future__ import annotations

from pathlib import Path

from i2b_lpo.config import read_run, to_toml
from i2b_lpo.infra.files import write_text
from i2b_lpo.infra.secrets import redact
from i2b_lpo.model.policy import load_policy, save_policy

__all__ = ["export"]


def export(source: str, folder: Path, *, run: Path | None = None) -> None:
    """Copy the policy `source` (bundled name or folder) to `folder` and write its `README.md`.

    Args:
        source: bundled name, folder or hub name of the policy.
        folder: a new folder, or an earlier export.
        run: the folder of the run that trained it; its settings and last metrics go into the card,
            without secrets.

    Raises:
        ValueError: `source` isn't a policy, or `folder` holds something else.
    """
    folder = folder.expanduser()
    policy = load_policy(source)
    lines = ["---", "library_name: transformers", "tags: [i2b-lpo, grpo]", "---", ""]
    lines += [
        f"# {folder.name}",
        "",
        "Written by i2b-lpo, an independent reconstruction of I²B-LPO (arXiv 2601.05870).",
        "",
    ]
    if run is None:
        lines += [f"A copy of `{source}`.", ""]
    else:
        config = read_run(run)
        steps = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        lines += [
            "## Training",
            "",
            f"Started from `{redact(config.policy)}`, task `{redact(config.task)}`, "
            f"{len(steps)} steps, seed {config.seed}.",
            "",
        ]
        lines += ["```toml", to_toml(config).rstrip(), "```", "", "Last step:", ""]
        lines += ["```json", steps[-1] if steps else "{}", "```", ""]
    lines += [
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model = AutoModelForCausalLM.from_pretrained("{folder.name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{folder.name}")',
        "```",
        "",
    ]
    save_policy(policy, folder)
    write_text(folder / "README.md", "\n".join(lines))
