"""A plotly figure whose clicks reach Python, and how it gets onto the page.

`plotly.graph_objects.FigureWidget` alone stays an empty grid on a slow page. It opens on the page
before it has its data and sends them in a second message, which anywidget holds back until the
figure's 5 MB of JavaScript are loaded; then the figure is drawn, and what comes later is no longer
drawn, or (after two seconds of loading) isn't delivered at all. So here

* the message that opens the figure holds all of it, and no later one is needed,
* the JavaScript is sent once for all figures of the page, not with each of them,
* it draws once its place on the page has a width, so it has the right one at once,
* a still picture of the same figure is shown in its place until then.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import anywidget
import ipywidgets
import plotly
import plotly.graph_objects as go
from traitlets import Instance, Unicode

from i2b_lpo.views.base import CONFIG

__all__ = ["LiveFigure"]

# Run in the page. `render` may be slow or late: nothing is sent to it that could be lost.
DRAW = """
const named = (model, key) =>
  model.widget_manager.get_model(model.get(key).slice("IPY_MODEL_".length));

async function plotly(model) {
  const library = await named(model, "_library");
  library.loaded ??= import(URL.createObjectURL(
    new Blob([library.get("source")], { type: "text/javascript" })));
  return library.loaded;
}

const width = (el) => new Promise((found) => {
  const watch = new ResizeObserver(() => {
    if (el.clientWidth) { watch.disconnect(); found(); }
  });
  watch.observe(el);
});

export default {
  async render({ model, el, signal }) {
    if (signal?.aborted) return;
    const still = await named(model, "_still");
    const [{ default: create }] = await Promise.all([plotly(model), width(el)]);
    if (signal?.aborted) return;
    const figure = create();
    figure.initialize({ model });
    const remove = figure.render({ el });
    el.once("plotly_afterplot", () => still.set("outputs", []));
    return remove;
  }
};
"""


class Library(anywidget.AnyWidget):
    """Plotly's JavaScript for figures that can be clicked; one for all of them."""

    _esm = "export default {}"
    source = Unicode().tag(sync=True)


@cache
def _library() -> Library:
    file = Path(plotly.__file__).parent / "package_data" / "widgetbundle.js"
    return Library(source=file.read_text(encoding="utf-8"))


class LiveFigure(go.FigureWidget):  # type: ignore[misc]
    """A figure that can be clicked.

    Args:
        figure: what it shows.
        still: shows the same until this one is drawn; then the page empties it.
    """

    _esm = DRAW
    _library = Instance(ipywidgets.Widget).tag(sync=True, **ipywidgets.widget_serialization)
    _still = Instance(ipywidgets.Output).tag(sync=True, **ipywidgets.widget_serialization)

    def __init__(self, figure: go.Figure, still: ipywidgets.Output) -> None:
        self._whole = False
        super().__init__(figure)
        self._config = CONFIG | {"responsive": True}
        self._library, self._still = _library(), still
        self.add_class("i2b-live")
        self._whole = True
        self.open()

    def open(self) -> None:
        """Open it on the page once it is complete: plotly's class does so before it has data."""
        if self._whole:
            super().open()
