"""`hf-crystal demo`: the web page on this machine."""

import contextlib
import errno
import socket
import sys
from typing import Annotated

import typer

from .progress import quiet_transformers

EXAMPLE = "Example: hf-crystal demo --port 7860"


def demo(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve the web page: predict, generate, look inside. Needs no network; stop with Ctrl+C."""
    if not 1 <= port <= 65535:
        raise typer.BadParameter(f"{port} is not in 1 … 65535", param_hint="--port")
    check_address(host, port, "demo")
    from ..app.page import build_page, launch_page

    quiet_transformers()
    page = build_page()
    print(f"hf-crystal: the page is at http://{host}:{port} (stop with Ctrl+C)", file=sys.stderr)
    launch_page(page, server_name=host, server_port=port, inbrowser=open_browser, quiet=True)


def check_address(host: str, port: int, command: str) -> None:
    """Refuse an address that cannot be listened on, before the models are loaded; `ValueError` with a way out."""
    try:
        with contextlib.closing(_listening(host, port)):
            return
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise ValueError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    with contextlib.closing(_listening(host, 0)) as free:
        other = free.getsockname()[1]
    raise ValueError(f"port {port} of {host} is in use; choose another: hf-crystal {command} --port {other}")


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
