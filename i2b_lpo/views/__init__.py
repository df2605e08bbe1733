"""Figures of the records: each function takes plain records and returns a `View`. No torch here.

>>> from i2b_lpo.views import memory_budget
>>> print(memory_budget({"weights": 2**30, "AdamW": 2**31}))
Memory: 3.0 GiB in all: weights 1.0 GiB, AdamW 2.0 GiB.
"""

from __future__ import annotations

from i2b_lpo.views.activation import head_activation
from i2b_lpo.views.attention import head_detail, head_grid
from i2b_lpo.views.base import STYLES, Style, View, styles
from i2b_lpo.views.curves import training_curves
from i2b_lpo.views.evaluation import comparison, strategy_shares
from i2b_lpo.views.gamma import gamma_curves
from i2b_lpo.views.group import group_advantages
from i2b_lpo.views.histogram import entropy_histogram
from i2b_lpo.views.ib import ib_scatter
from i2b_lpo.views.latents import kl_bars, latent_map
from i2b_lpo.views.memory import memory_budget
from i2b_lpo.views.pipeline import training_step
from i2b_lpo.views.ranking import ib_ranking
from i2b_lpo.views.strip import entropy_strip
from i2b_lpo.views.surrogate import surrogate
from i2b_lpo.views.text import escape, visible
from i2b_lpo.views.tree import branch_tree
from i2b_lpo.views.words import next_word

__all__ = [
    "STYLES",
    "Style",
    "View",
    "branch_tree",
    "comparison",
    "entropy_histogram",
    "entropy_strip",
    "escape",
    "gamma_curves",
    "group_advantages",
    "head_activation",
    "head_detail",
    "head_grid",
    "ib_ranking",
    "ib_scatter",
    "kl_bars",
    "latent_map",
    "memory_budget",
    "next_word",
    "strategy_shares",
    "styles",
    "surrogate",
    "training_curves",
    "training_step",
    "visible",
]
