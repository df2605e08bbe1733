"""What all widgets share: how they show themselves, their figures, their words and their errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets

from i2b_lpo.views import markup
from i2b_lpo.views.base import View
from i2b_lpo.views.text import visible
from i2b_lpo.widgets.live import LiveFigure

__all__ = ["Clickable", "Note", "Shown", "Widget", "control", "row", "table"]


class Widget(ABC):
    """Controls around views.

    In Jupyter it shows `panel`; its text form is `describe()`. Without a kernel, the figure of
    `view` represents it.

    Attributes:
        panel: the whole widget, an ipywidgets box.
        note: the sentence that says what is going on, or what went wrong.
    """

    def __init__(self) -> None:
        self.note = Note()
        self.panel = ipywidgets.VBox([])
        self.panel.add_class(f"i2b-{type(self).__name__}")

    @property
    @abstractmethod
    def view(self) -> View | None:
        """The main figure as it is now; None if there is none yet."""

    @abstractmethod
    def describe(self) -> str:
        """What the widget shows now, in words: deterministic, one line."""

    def __repr__(self) -> str:
        return visible(self.describe())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        # Frontends show the live panel; those that can't show the figure, or the words.
        shown = self.view
        still: dict[str, Any] = {} if shown is None else shown._repr_mimebundle_()
        live: dict[str, Any] = self.panel._repr_mimebundle_()
        return still | live | {"text/plain": repr(self)}

    def close(self) -> None:
        """Take the widget off the page and out of the kernel."""
        waiting = [self.panel]
        while waiting:
            part = waiting.pop()
            waiting += getattr(part, "children", ())
            part.close()

    @contextmanager
    def working(self, button: Any, sentence: str) -> Iterator[None]:
        """Show `sentence` and disable `button` meanwhile; bad input becomes a sentence too."""
        button.disabled = True
        self.note.say(sentence)
        try:
            yield
        except ValueError as error:
            self.note.warn(str(error))
        else:
            self.note.say("")
        finally:
            button.disabled = False


def control(kind: Callable[..., Any], description: str, tooltip: str, **traits: Any) -> Any:
    """An ipywidgets control with its label and its help text."""
    style = {} if kind is ipywidgets.Button else {"style": {"description_width": "100px"}}
    width = "170px" if kind is ipywidgets.Button else traits.pop("width", "272px")
    return kind(
        description=description, tooltip=tooltip, layout={"width": width, "max_width": "100%"},
        **style, **traits,
    )  # fmt: skip


def row(*children: Any) -> ipywidgets.Box:
    """Controls side by side, or below each other where there is no room."""
    layout = {"display": "flex", "flex_flow": "row wrap", "width": "100%"}
    return ipywidgets.Box(children, layout=layout)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of plain text, the first as header; JupyterLab itself puts no space between cells."""
    return markup.table(rows, style="border-collapse:separate;border-spacing:16px 0")


class Note(ipywidgets.HTML):  # type: ignore[misc]
    """One sentence; screen readers are told when it changes."""

    text = ""

    def say(self, sentence: str) -> None:
        """Say what is going on; "" for nothing."""
        self._show(sentence, "")

    def warn(self, sentence: str) -> None:
        """Say what is wrong and what to do."""
        self._show(sentence, "⚠ ")

    def _show(self, sentence: str, mark: str) -> None:
        self.text = visible(sentence)
        self.value = (
            f'<span role="status">{mark}{markup.text(self.text)}</span>' if sentence else ""
        )


class Shown(ipywidgets.Output):  # type: ignore[misc]
    """A place for views that only show."""

    def show(self, *views: View) -> None:
        """Replace what was there with these views."""
        bundles = [view._repr_mimebundle_() for view in views]
        self.outputs = tuple(
            {"output_type": "display_data", "data": bundle, "metadata": {}} for bundle in bundles
        )


class Clickable(ipywidgets.Box):  # type: ignore[misc]
    """A place for a view whose points answer a click.

    A keyboard can't click, so each click only sets the value of a control next to it.
    """

    def __init__(self, on_click: Callable[[float, float, bool], None]) -> None:
        super().__init__(layout={"width": "100%", "display": "block"})
        self._on_click = on_click

    @property
    def figure(self) -> LiveFigure:
        """The figure that is shown."""
        figure: LiveFigure = self.children[-1]
        return figure

    def show(self, view: View) -> None:
        """Replace what was there with this view."""
        still = Shown()
        still.show(view)
        figure = LiveFigure(view.figure, still)
        for trace in figure.data:
            if trace.hoverinfo != "skip":
                trace.on_click(self._clicked)
        before: tuple[Any, ...] = self.children
        self.children: tuple[Any, ...] = (still, figure)
        for old in before:
            old.close()

    def _clicked(self, trace: Any, points: Any, state: Any) -> None:
        if points.point_inds:
            self._on_click(points.xs[0], points.ys[0], bool(state is not None and state.shift))
