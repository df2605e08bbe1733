"""Views with controls: each widget is an object with named parts that show and change one thing.

A widget ends a cell as a view does; without a running kernel its figure and its words remain. Torch
is imported when a policy is first used, so you can explore a saved trace without it.
"""

from __future__ import annotations

from i2b_lpo.widgets.base import Widget
from i2b_lpo.widgets.branches import BranchExplorer, explore
from i2b_lpo.widgets.gamma import GammaDesigner
from i2b_lpo.widgets.group import GroupDesigner
from i2b_lpo.widgets.heads import HeadExplorer
from i2b_lpo.widgets.latents import LatentExplorer
from i2b_lpo.widgets.reader import EntropyReader
from i2b_lpo.widgets.scores import ScoreDesigner
from i2b_lpo.widgets.training import TrainingDashboard

__all__ = [
    "BranchExplorer",
    "EntropyReader",
    "GammaDesigner",
    "GroupDesigner",
    "HeadExplorer",
    "LatentExplorer",
    "ScoreDesigner",
    "TrainingDashboard",
    "Widget",
    "explore",
]
