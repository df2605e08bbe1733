"""What holds for every test: no network, fixed Hypothesis examples, threads, nbval's rules."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from nbval.plugin import IPyNbCell

from i2b_lpo.verify.pool import WorkerPool

OFFLINE = Path(__file__).parent / "offline"
collect_ignore = ["offline"]

# This process by running the guard, child processes by finding it on their path.
runpy.run_path(str(OFFLINE / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(
    path for path in (str(OFFLINE), os.environ.get("PYTHONPATH")) if path
)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # in a notebook they would be outputs
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

# nbval has no option for these. Committed outputs hold PNG and text only, while a running kernel
# also sends the live forms; progress bars and warnings go to stderr. All else is compared.
NOT_COMPARED = (
    "application/vnd.jupyter.widget-view+json",
    "application/vnd.plotly.v1+json",
    "image/svg+xml",
    "stderr",
    "text/html",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for notebook in {item.parent for item in items if isinstance(item, IPyNbCell)}:
        notebook.skip_compare += NOT_COMPARED


@pytest.fixture(autouse=True)
def _torch_threads() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: WorkerPool, pairs: object, limit: float) -> None:
        raise AssertionError(f"stage 1 left {pairs} to math-verify")

    monkeypatch.setattr(WorkerPool, "compare_many", refuse)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of a tiny policy, as `save_policy` writes it."""
    from tiny import tiny_policy

    from i2b_lpo.model.policy import save_policy

    save_policy(tiny_policy(), tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy and its latents."""
    import torch
    from tiny import tiny_policy

    from i2b_lpo.model.policy import save_policy
    from i2b_lpo.model.steering import new_steering, save_steering

    folder = tmp_path_factory.mktemp("home")
    policy = tiny_policy(max_position_embeddings=512)
    save_policy(policy, folder / "policy")
    torch.manual_seed(0)
    save_steering(new_steering(policy, d_z=4), folder / "latents")
    return folder


@pytest.fixture
def foreign(saved: Path) -> Path:
    """The same as another program would have written it: without sums."""
    (saved / "sha256.json").unlink()
    return saved
