"""tools/demo.py in a browser without a window: pictures that follow the seed, edits, and mistakes that it survives."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import started

ROOT = Path(__file__).parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: WebGL, which the canvas wants, without a GPU; no sandbox, since tests may run as root.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--window-size=1300,1000",
    "--use-angle=swiftshader",
]
WAIT = 60


@pytest.fixture(scope="module")
def browser():
    driver = shutil.which("chromedriver")
    if BROWSER is None or driver is None:
        pytest.skip(f"needs {'chromium' if BROWSER is None else 'chromedriver'} in the PATH")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the package selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, "--enable-unsafe-swiftshader"]:
        options.add_argument(flag)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield Page(started)
    started.quit()


class Page:
    """A page as its visitor sees it."""

    def __init__(self, driver):
        self.driver = driver

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def first(self, selector):
        return self.until(lambda: self.all(selector))[0]

    def until(self, there):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.driver, WAIT, 0.1, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: there())

    def picture(self, name):
        """The address of a picture, which is named after its content."""
        return self.until(lambda: self.first(f"#{name} img").get_attribute("src"))

    def changed(self, name, act):
        before = self.picture(name)
        act()
        self.until(lambda: self.picture(name) != before)
        return self.picture(name)

    def press(self, name):
        self.driver.execute_script("arguments[0].click()", self.first(f"#{name}"))

    def write(self, selector, text):
        from selenium.webdriver.common.keys import Keys

        field = self.first(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.DELETE)

    def message(self, act):
        act()
        text = self.until(lambda: self.first("[data-testid=toast-text]").get_attribute("textContent"))
        for button in self.all("[data-testid=toast-close]"):
            self.driver.execute_script("arguments[0].click()", button)
        self.until(lambda: not self.all("[data-testid=toast-text]"))
        return text


@pytest.fixture(scope="module")
def server(biflow_run, finished_run, tmp_path_factory, browser):
    """The tool, serving two tiny runs; its temporary files lie in a folder of their own."""
    pytest.importorskip("gradio", reason="needs the package gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, ROOT / "tools" / "demo.py", biflow_run, finished_run, "--port", port]
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = started.Started(command, folder, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    served = Served(f"http://127.0.0.1:{port}/", process, folder)
    browser.until(lambda: "\n" in served.said() or process.poll() is not None)
    assert served.said() == f"{served.address} shows 2 run(s); Ctrl-C ends it\n"
    yield served
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT)


@dataclass(frozen=True)
class Served:
    """A server of two tiny runs."""

    address: str
    process: started.Started
    folder: Path

    def said(self):
        """What it has printed; the file's place is where it prints on."""
        return os.pread(self.process.outputs[0].fileno(), 2**16, 0).decode()


def test_pictures_follow_the_seed_and_mistakes_are_survived(server, browser):
    browser.driver.get(server.address)
    begin = browser.picture("samples-0")
    assert browser.picture("samples-1") != begin
    for number in (0, 1):
        assert re.fullmatch(r"[\d.e+]+ ms per picture \(20 pictures, cpu\)", browser.first(f"#time-{number}").text)
    other = browser.changed("samples-0", lambda: browser.press("next-seed"))
    assert browser.first("#seed input").get_attribute("value") == "1"
    browser.write("#seed input", "")
    text = browser.message(lambda: browser.press("sample"))
    assert text == "seed: found nothing, expected a whole number from 0 to 9007199254740991"
    assert browser.picture("samples-0") == other
    browser.write("#seed input", "0")
    assert browser.changed("samples-0", lambda: browser.press("sample")) == begin
    browser.write("#walk input[type=number]", "1")
    browser.until(lambda: browser.picture("samples-0") == other)  # the end of the walk is the other seed's


def test_a_picture_is_edited(server, browser):
    from selenium.webdriver.common.action_chains import ActionChains

    browser.until(lambda: browser.all("button[role=tab]"))[1].click()
    browser.picture("edited")
    assert browser.message(lambda: browser.press("fill")).startswith("there is no hole; paint one over the picture")
    canvas = browser.first("#canvas canvas")
    stroke = ActionChains(browser.driver).move_to_element_with_offset(canvas, -40, -40).click_and_hold()
    stroke.move_by_offset(40, 0).move_by_offset(40, 40).release().perform()
    browser.changed("edited", lambda: browser.press("fill"))
    browser.until(lambda: browser.first("#edited-how").text.endswith("then 5 ways to fill it."))
    browser.changed("edited", lambda: browser.press("change"))
    browser.until(lambda: browser.first("#edited-how").text.endswith("then 5 times as class 9."))


def test_nothing_comes_from_elsewhere_and_nothing_is_left(server, browser):
    """The last of this file: it ends the server."""
    loaded = browser.driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert len(loaded) > 10
    assert [name for name in loaded if not name.startswith((server.address, "data:", f"blob:{server.address}"))] == []
    port = int(server.address.strip("/").rsplit(":", 1)[1])
    with socket.socket() as elsewhere:
        elsewhere.settimeout(5)
        assert elsewhere.connect_ex(("127.0.0.2", port)) != 0  # a server for all addresses would answer there
    browser.driver.get("about:blank")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(WAIT) == 0 and server.said().endswith("\nended\n")
    assert list(server.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such run folder"),
        (["{run}", "--average", "mian"], "no average 'mian' (there is: main, none); nearest match: 'main'"),
        (["{run}", "--port", "70000"], "--port: found 70000, expected 1 to 65535"),
        (["{run}", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 7860: cannot listen there: "),
    ],
)
def test_mistakes_are_one_line(refused, biflow_run, arguments, message):
    assert message in refused("demo", *(argument.format(run=biflow_run) for argument in arguments))


def test_a_taken_port_and_a_missing_package_are_one_line(refused, biflow_run, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused("demo", biflow_run, "--port", port)
        assert f"--host 127.0.0.1 --port {port}: cannot listen there: Address already in use" in line
    monkeypatch.setattr("genflow.demo.server.find_spec", lambda name: None)
    line = refused("demo", biflow_run)
    assert line == "error: this feature needs the package 'gradio': pip install \"genflow[demo]\""
