"""The server of the page: where it listens, what it keeps, and how it ends."""

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from genflow.demo.limits import MOST_BYTES, MOST_PIXELS, BodyLimit
from genflow.errors import UserError, missing_extra, reason

if TYPE_CHECKING:
    from genflow.demo.sampled_run import SampledRun


def require_gradio() -> None:
    """See that gradio is there.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("gradio") is None:
        raise missing_extra("gradio", "demo")


def check_address(host: str, port: int) -> None:
    """See, before anything is loaded, that one can listen at an address.

    Raises:
        UserError: it is taken, or not one of this machine.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"--port: found {port}, expected 1 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: cannot listen there: {what}") from None


def serve(subjects: Sequence["SampledRun"], device: str, host: str, port: int) -> None:
    """Serve the page until SIGINT or SIGTERM, which end the process with exit code 0; nothing is kept afterwards.

    Args:
        subjects: the runs.
        device: where they work.
        host, port: where to listen.

    Raises:
        UserError: the server cannot start.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and by what it imports
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="genflow-demo-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads, and of pictures that the page shows
        import gradio
        from PIL import Image
        from starlette.middleware import Middleware

        from genflow.demo.page import CSS, build

        Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow warns there, and refuses twice as many
        page = build(subjects, device)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                css=CSS,
                share=False,
                show_error=True,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MOST_BYTES,
                app_kwargs={"middleware": [Middleware(BodyLimit)]},
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
            )
        except (OSError, ValueError) as error:  # gradio asks its own server whether it is there
            raise UserError(f"the server does not start at {host}, port {port}: {reason(error)}") from error
        print(f"{page.local_url} shows {len(subjects)} run(s); Ctrl-C ends it", flush=True)
        stop.wait()
        page.close(verbose=False)
    print("ended", flush=True)
    os._exit(0)  # a thread may still be at a request, and would see the interpreter being taken down beneath it
