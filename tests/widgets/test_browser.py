"""The widgets in a real browser: JupyterLab runs notebooks 02, 04 and 07, a person's hands follow.

Then every kind of widget on a page that is slow in each of the ways that left figures empty: a slow
processor, processors that others keep busy, JavaScript that arrives late.

Needs Chromium and playwright. Without them the whole file is skipped with one sentence, unless
I2B_NEED_BROWSER=1 says that this is a failure. Screenshots are kept in artifacts/.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "artifacts"
CHROMIUM = os.environ.get("I2B_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
SECONDS = 170  # that a whole notebook may take
HARMLESS = "ResizeObserver loop"  # Chromium's note that a layout took one more frame
# Anywidget's note that a part of the page took more than two seconds. From then on it delivers no
# message to that part, so no figure may need one.
GAVE_UP = "[anywidget] Failed to initialize model."

# Of a widget: that it shows figures, that none is an empty grid, and that each one that can be
# clicked is drawn and has no still picture in its place any more.
DRAWN = """css => {
  const shown = [...document.querySelectorAll(css + ' .js-plotly-plot')];
  const live = [...document.querySelectorAll(css + ' .i2b-live')];
  return shown.length > 0
    && shown.every(figure => figure.querySelector('.trace, .hm') && figure.clientHeight > 100)
    && live.every(figure => shown.includes(figure)
      && !figure.parentElement.querySelector('.jp-OutputArea-output'));
}"""

# Plotly's JavaScript for live figures, 5 MB, arrives when `release()` is called.
HOLD = """(() => {
  const held = new Promise(done => { window.release = done; });
  window.held = held;
  const address = URL.createObjectURL.bind(URL);
  URL.createObjectURL = blob => {
    const url = address(blob);
    if (blob.size < 1e6) return url;
    const late = `await window.held; export * from "${url}"; export { default } from "${url}";`;
    return address(new Blob([late], { type: "text/javascript" }));
  };
})()"""

HEADS = """\
from i2b_lpo.model.policy import load_policy
from i2b_lpo.model.steering import load_steering
from i2b_lpo.widgets import *

policy = load_policy("tiny-grpo")
steering = load_steering(policy)
HeadExplorer(policy, steering)"""
WIDGETS = {  # of notebooks 02 to 06, with little to compute
    "HeadExplorer": HEADS,
    "LatentExplorer": """\
import torch

z = torch.randn(2, 3, steering.cvae.d_z, generator=torch.Generator().manual_seed(0))
LatentExplorer(policy, steering, {"Factor": z[0], "Guess": z[1]})""",
    "BranchExplorer": """\
explorer = BranchExplorer(policy, steering, max_new_tokens=40)
explorer""",
    "ScoreDesigner": """\
from i2b_lpo.config import IBConfig
from i2b_lpo.rollout.scoring import gather_evidence

ib, trees = IBConfig(), [explorer.trace]
ScoreDesigner(trees, gather_evidence(policy, trees, ib.estimator), ib)""",
    "GroupDesigner": "GroupDesigner(explorer.trace)",
}

try:
    from playwright.sync_api import Page, TimeoutError, sync_playwright
except ImportError:
    sync_playwright = None  # type: ignore[assignment]

if sync_playwright is None or CHROMIUM is None:
    WHY = (
        "The browser test needs a Chromium and playwright: install Chromium (on Debian: apt "
        "install chromium), then pip install 'playwright>=1.50,<2'."
    )
    if os.environ.get("I2B_NEED_BROWSER") == "1":
        pytest.fail(WHY, pytrace=False)
    pytest.skip(WHY, allow_module_level=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab over copies of the notebooks, with a home of its own."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    for stem, cells in {"late": [HEADS], "slow": list(WIDGETS.values())}.items():
        own = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        own.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(own, home / "notebooks" / f"{stem}_page.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {  # all cells are on the page at once, and nothing asks the network
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, values in settings.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    places = {
        name: str(home / name)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    # The kernels find this Python by their own kernelspec, and never a network.
    environment = os.environ | places | {"JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
                "--ip=127.0.0.1",
                f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
                f"--ServerApp.root_dir={home / 'notebooks'}", "--LabApp.news_url=None",
                f"--LabApp.workspaces_dir={home / 'workspaces'}",
                f"--LabApp.user_settings_dir={home / 'settings'}",
            ],
            env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        _answers(f"{address}/api/kernelspecs", server, home / "log")
        yield address
    finally:
        server.terminate()  # which ends its kernels too
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _answers(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.3)
    raise AssertionError(f"JupyterLab doesn't answer:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Notebook:
    """A notebook that JupyterLab runs from top to bottom, and one of its widgets.

    `slower` is how many times slower than it is the page's processor shall be; `held`, whether
    plotly's JavaScript waits for a call of `release()`.
    """

    def __init__(
        self,
        browser: Any,
        lab: str,
        stem: str,
        widget: str,
        *,
        slower: int = 1,
        held: bool = False,
    ) -> None:
        self.stem, self.css = stem, f".i2b-{widget}"
        self.errors: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(60_000)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        if held:
            self.page.add_init_script(HOLD)
        self.page.goto(f"{lab}/lab/workspaces/w{stem}?reset")
        self.page.locator(".jp-DirListing-item", has_text=f"{stem}_").dblclick()
        self._connected(f"{lab}/api/sessions?")
        if slower > 1:
            tools = self.page.context.new_cdp_session(self.page)
            tools.send("Emulation.setCPUThrottlingRate", {"rate": slower})
        self._run_all()
        self.panel.locator(".js-plotly-plot").first.wait_for(timeout=1000 * SECONDS)
        self.idle()
        self.panel.scroll_into_view_if_needed()
        self.page.wait_for_timeout(1000)
        if not held:
            self.all_drawn(self.css)

    def _connected(self, sessions: str) -> None:
        """Wait for this page's kernel: run before that, Lab asks for one and drops the cells.

        Its own "idle" says nothing yet, so the server is asked as well.
        """
        self.page.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with urllib.request.urlopen(sessions, timeout=30) as answer:
                kernels = [s["kernel"] for s in json.load(answer) if self.stem in s["path"]]
            if any(k["connections"] and k["execution_state"] == "idle" for k in kernels):
                self.idle()
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"JupyterLab connects to no kernel for notebook {self.stem}")

    def _run_all(self) -> None:
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_text("Run All Cells", exact=True).click()

    def _said(self, message: Any) -> None:
        if message.type == "error" and HARMLESS not in message.text:
            self.errors.append(message.text)

    def idle(self) -> None:
        """Wait until the kernel has nothing left to do."""
        self.page.wait_for_selector(
            '.jp-Notebook-ExecutionIndicator[data-status="idle"]', state="attached",
            timeout=1000 * SECONDS,
        )  # fmt: skip

    @property
    def panel(self) -> Any:
        return self.page.locator(self.css).first

    def all_drawn(self, css: str) -> None:
        """Every figure of a widget shows its traces; wait for those that aren't drawn yet."""
        PICTURES.mkdir(exist_ok=True)
        try:
            self.page.wait_for_function(DRAWN, arg=css, timeout=90_000)
        except TimeoutError as late:
            self.page.screenshot(path=PICTURES / f"{self.stem}-failed.png")
            raise AssertionError(f"{css} has a figure that isn't drawn: {self.errors}") from late

    def drawn(self) -> str:
        """The data of the widget's figures, as the browser has them."""
        return str(
            self.page.evaluate(
                """css => JSON.stringify([...document.querySelectorAll(css + ' .js-plotly-plot')]
                     .map(plot => plot.data.map(d => [d.x, d.y, d.z, d.text])))""",
                self.css,
            )
        )

    def changes(self, act: Callable[[], None], read: Callable[[], str] | None = None) -> None:
        """Do something, and wait until what the widget shows is another thing."""
        read = read or self.drawn
        before = read()
        act()
        until = time.monotonic() + 40
        while time.monotonic() < until:
            if read() not in ("", "[]", before):
                return
            self.page.wait_for_timeout(200)
        self.page.screenshot(path=PICTURES / f"{self.stem}-failed.png")
        raise AssertionError(f"{act} changed nothing; the console says {self.errors}")

    def slide(self, label: str, key: str) -> None:
        """Press a key on a slider."""
        slider = self.panel.locator(".widget-inline-hbox", has_text=label)
        slider.locator(".noUi-handle").focus()
        self.page.keyboard.press(key)

    def press(self, label: str) -> None:
        self.panel.get_by_role("button", name=label).click()

    def point(self, css: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click a mark of a figure, at a share of its width and height."""
        mark = self.panel.locator(css)
        mark.scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)
        box = mark.bounding_box()
        assert box is not None
        self.page.mouse.move(box["x"] + x * box["width"] - 2, box["y"] + y * box["height"])
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        self.page.wait_for_timeout(300)  # plotly clicks what it hovers over
        self.page.mouse.down()
        self.page.mouse.up()

    def sizes(self) -> Any:
        """Width and height of every figure of the notebook, and the width there is for it."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot =>
                 [plot._fullLayout.width, plot._fullLayout.height, plot.clientWidth])"""
        )

    def resize(self, width: int, height: int) -> None:
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.wait_for_timeout(1000)

    def end(self) -> None:
        """Figures must fill and follow the window, the console tell no error; keep pictures."""
        narrow = [figure for figure in self.sizes() if abs(figure[0] - figure[2]) > 2]
        assert narrow == [], f"width, height and room of figures that leave some: {narrow}"
        PICTURES.mkdir(exist_ok=True)
        heights = []
        for width, height in ((1280, 900), (1920, 1080)):
            self.resize(width, 2400)  # the widget as a whole
            self.panel.screenshot(path=PICTURES / f"{self.stem}{self.css}-{width}.png")
            self.resize(width, height)
            self.page.screenshot(path=PICTURES / f"{self.stem}-{width}.png")
            heights.append([figure[1] for figure in self.sizes()])
        assert heights[0] == heights[1], f"the figures' heights were {heights[0]}, now {heights[1]}"
        assert all(figure[0] > 1000 for figure in self.sizes()), self.sizes()
        self.page.close()
        assert self.errors == []


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Meanwhile others use the processors, too."""
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def click_a_head(notebook: Notebook) -> None:
    """A click on the head explorer's grid shows that head."""

    def detail() -> str:
        return str(notebook.panel.locator(".js-plotly-plot .gtitle").nth(1).text_content())

    cell = ".i2b-live .heatmaplayer image >> nth=0"
    notebook.changes(lambda: notebook.point(cell, 0.875, 0.875), detail)
    assert "Layer 3, head 3" in detail()


def test_a_figure_whose_javascript_is_late_is_a_still_picture_until_then(
    browser: Any, lab: str
) -> None:
    notebook = Notebook(browser, lab, "late", "HeadExplorer", held=True)
    notebook.page.wait_for_timeout(2500)  # longer than anywidget waits
    still = notebook.panel.locator(".js-plotly-plot >> nth=0 >> .hm")
    assert still.count() > 0 and not notebook.page.evaluate(DRAWN, notebook.css)
    notebook.panel.screenshot(path=PICTURES / "late-still.png")
    notebook.page.evaluate("release()")
    notebook.all_drawn(notebook.css)
    click_a_head(notebook)
    notebook.end()


def test_every_widget_draws_on_a_slow_page_of_a_busy_machine(browser: Any, lab: str) -> None:
    with busy(2):
        notebook = Notebook(browser, lab, "slow", "HeadExplorer", slower=6)
        for widget in WIDGETS:
            notebook.all_drawn(f".i2b-{widget}")
    notebook.resize(1280, 2400)
    for widget in WIDGETS:
        place = notebook.page.locator(f".i2b-{widget}").first
        place.screenshot(path=PICTURES / f"slow-{widget}.png")
    notebook.page.close()
    assert [error for error in notebook.errors if error != GAVE_UP] == []


def test_branches_in_notebook_02(browser: Any, lab: str) -> None:
    notebook = Notebook(browser, lab, "02", "BranchExplorer")

    def grow() -> None:
        notebook.slide("K, branches", "ArrowRight")
        notebook.press("Grow the tree")

    notebook.changes(grow)
    notebook.idle()
    notebook.all_drawn(notebook.css)

    def chosen() -> str:
        return str(notebook.panel.locator("select").nth(3).input_value())

    notebook.changes(lambda: notebook.point(".i2b-live .barlayer .point >> nth=-60"), chosen)
    notebook.idle()
    notebook.end()


def test_heads_in_notebook_04(browser: Any, lab: str) -> None:
    notebook = Notebook(browser, lab, "04", "HeadExplorer")
    notebook.changes(lambda: notebook.slide("s, tokens since", "ArrowRight"))
    notebook.idle()
    notebook.all_drawn(notebook.css)
    click_a_head(notebook)
    notebook.idle()
    notebook.css = ".i2b-GammaDesigner"
    notebook.changes(lambda: notebook.slide("γ_0", "ArrowLeft"))
    notebook.css = ".i2b-HeadExplorer"
    notebook.end()


def test_training_in_notebook_07(browser: Any, lab: str) -> None:
    notebook = Notebook(browser, lab, "07", "TrainingDashboard")
    notebook.changes(lambda: notebook.press("Start"))
    notebook.panel.get_by_text("Stopped after 2 of 40 steps, saved").wait_for()
    notebook.end()
