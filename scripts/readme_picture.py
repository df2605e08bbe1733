"""Draw the README's picture: the tree of one validation question. Needs Chromium.

python scripts/readme_picture.py
"""

from __future__ import annotations

from pathlib import Path

import torch

from i2b_lpo.config import BranchConfig, IBConfig
from i2b_lpo.model import Sampling, load_policy, load_steering
from i2b_lpo.rollout import filter_traces, grow_trees, score_traces
from i2b_lpo.tasks import load_task
from i2b_lpo.views import branch_tree

PICTURE = Path(__file__).parent.parent / "docs" / "tree.png"


def main() -> None:
    """Grow, score, filter and draw one tree of the bundled policy."""
    torch.set_num_threads(1)
    policy = load_policy("tiny-base")
    trees = grow_trees(
        policy,
        load_task("shop").questions("validation", 1, seed=1),
        Sampling(160),
        BranchConfig(branches=3),
        rollouts=2,
        steering=load_steering(policy),
        generator=torch.Generator().manual_seed(0),
    )
    (tree,) = filter_traces(score_traces(policy, trees, IBConfig()), IBConfig())
    view = branch_tree(tree)
    print(view.to_png(PICTURE, width=1000, scale=1.5))
    print(view)


if __name__ == "__main__":
    main()
