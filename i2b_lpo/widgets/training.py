"""Training dashboard: a run in its own thread, watched and stopped without losing it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from i2b_lpo.views.base import View
from i2b_lpo.views.curves import training_curves
from i2b_lpo.views.strip import entropy_strip
from i2b_lpo.views.text import number, visible
from i2b_lpo.widgets.base import Shown, Widget, control, row

if TYPE_CHECKING:
    from i2b_lpo.config import RunConfig
    from i2b_lpo.model.policy import Policy
    from i2b_lpo.model.steering import Steering
    from i2b_lpo.tasks.task import Task
    from i2b_lpo.training.learner import Learner
    from i2b_lpo.training.step import StepRecord

__all__ = ["TrainingDashboard"]

KEYS = ("reward", "entropy", "distinct_strategies")


class TrainingDashboard(Widget):
    """Start, watch and stop a training run; a stopped run continues when started again.

    The run has its own thread, so the notebook stays usable. While it runs, don't draw from torch's
    global random state elsewhere: a step seeds it and restores it.

    Args:
        config: the settings of the run.
        policy: what is trained, in place.
        task: where the questions come from.
        output: folder of the run; a run that is already there continues.
        steering: the latents of branches with z.
        keys: the metrics that are drawn.

    Attributes:
        start, stop: the buttons.
        steps: how many steps one press of Start makes; all of them by default.
        bar: how many steps are done.
        history: the metrics of each step so far.
        record: the whole last step; None before it.

    Raises:
        ValueError: the settings save no checkpoints, so a stop would lose the run.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        task: Task,
        *,
        output: str | Path,
        steering: Steering | None = None,
        keys: tuple[str, ...] = KEYS,
    ) -> None:
        super().__init__()
        if not config.checkpoint.every:
            raise ValueError(
                "checkpoint.every is 0, so a stop would lose the run; give at least 1."
            )
        self._config, self._policy, self._task = config, policy, task
        self._steering, self._output, self._keys = steering, Path(output), keys
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._view: View | None = None
        self.history: list[dict[str, float]] = []
        self.record: StepRecord | None = None
        self.start = control(
            ipywidgets.Button, "Start", "Start the training, or go on with it",
            button_style="primary",
        )  # fmt: skip
        self.stop = control(
            ipywidgets.Button, "Stop", "End the run after its current step, saved", disabled=True
        )
        self.steps = control(
            ipywidgets.BoundedIntText, "Steps a press", "After so many the run pauses, saved",
            min=1, max=config.steps, value=config.steps,
        )  # fmt: skip
        self.bar = control(ipywidgets.IntProgress, "steps", "Steps that are done", max=config.steps)
        self.now = ipywidgets.HTML()
        self.curves, self.rollout = Shown(), Shown()
        self.start.on_click(self._start)
        self.stop.on_click(self._stop)
        self.panel.children = [
            row(self.start, self.stop),
            row(self.steps, self.bar),
            self.note,
            self.now,
            self.curves,
            self.rollout,
        ]
        self.note.say("Not started.")

    @property
    def running(self) -> bool:
        """Whether the training's thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the run has ended, or for that long; True if it has."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.running

    def close(self) -> None:
        """Stop the run after its current step, saved, and take the widget off the page."""
        self._ending.set()
        self.wait()
        super().close()

    def _start(self, button: Any) -> None:
        if self.running:
            return
        name = f"training in {self._output.resolve()}"
        if any(thread.name == name for thread in threading.enumerate()):
            self.note.warn("A training in this folder still runs; stop it, then start this one.")
            return
        self.start.disabled, self.stop.disabled = True, False
        self._ending.clear()
        self.note.say("Running.")
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _stop(self, button: Any) -> None:
        self.stop.disabled = True
        self._ending.set()
        self.note.say("Stopping after this step …")

    def _run(self) -> None:
        from i2b_lpo.training.checkpoint import newest_checkpoint
        from i2b_lpo.training.loop import train

        try:
            found = newest_checkpoint(self._output)
            self.history = [] if found is None else found.history()
            goal = len(self.history) + self.steps.value
            self._show()
            self.history = train(
                self._config,
                self._policy,
                self._task,
                steering=self._steering,
                output=self._output,
                resume=found is not None,
                on_step=self._seen,
                stop=lambda: self._ending.is_set() or len(self.history) >= goal,
                progress=False,
            )
            self._show()
        except Exception as error:  # nothing above a thread would report it
            first = (str(error).splitlines() or [type(error).__name__])[0]
            self.note.warn(f"The training ended: {first}")
        else:
            steps = f"{len(self.history)} of {self._config.steps} steps"
            ended = len(self.history) == self._config.steps
            self.note.say(
                f"Finished: {steps}."
                if ended
                else f"Stopped after {steps}, saved; Start continues from there."
            )
        finally:
            self.start.disabled, self.stop.disabled = False, True

    def _seen(self, learner: Learner, record: StepRecord) -> None:
        self.record = record
        step = int(record.metrics["step"])
        self.history = [*self.history[:step], record.metrics]
        self._show()

    def _show(self) -> None:
        if not self.history:
            return
        last = self.history[-1]
        self.bar.value = len(self.history)
        self._view = training_curves(self.history, keys=[k for k in self._keys if k in last])
        self.curves.show(self._view)
        told = ", ".join(f"{k} {number(last[k])}" for k in ("reward", "entropy"))
        self.now.value = f"<b>step {int(last['step'])}</b>: {told} nat, mean of the step"
        if self.record is not None:
            trace = self.record.traces[0]
            best = max(range(len(trace.rollouts)), key=lambda i: trace.rollouts[i].reward or 0.0)
            if len(trace.rollouts[best]):
                strip = entropy_strip(trace, best)
                self.rollout.show(replace(strip, description=f"A rollout of the step. {strip}"))

    @property
    def view(self) -> View | None:
        """The curves; None before the first step."""
        return self._view

    def describe(self) -> str:
        """How far the run is, and its curves."""
        config = self._config
        method = (
            f"{config.branch.branches} branches a fork" if config.branch.branches else "no forks"
        )
        curves = "" if self._view is None else f" {self._view.describe()}"
        return visible(
            f"Training dashboard: {config.policy} on {config.task}, {config.questions} questions a "
            f"step, {config.rollout.rollouts} rollouts each, {method}; {len(self.history)} of "
            f"{config.steps} steps done. {self.note.text}{curves}"
        )
