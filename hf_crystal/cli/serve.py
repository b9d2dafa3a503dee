"""`hf-crystal serve`: predictions and generation for programs, over HTTP or as tools of an assistant."""

import sys
from typing import Annotated

import typer

from .demo import check_address
from .progress import quiet_transformers

EXAMPLE = "Example: hf-crystal serve --port 8000\n\nTools of an assistant (MCP): hf-crystal serve --mcp"


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8000,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Property model; may be repeated, the first is the default. By default all embedded ones."),
    ] = None,
    generator: Annotated[
        str | None, typer.Option(help="Generator; by default the embedded one. none: only property models.")
    ] = None,
    device: Annotated[str, typer.Option(help="Torch device, such as cpu or cuda:0.")] = "cpu",
    reference: Annotated[
        str | None, typer.Option(help="Known phases, as of predict --reference, where a model is not embedded.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=1, max=86400, help="Seconds for one request, waiting included.")
    ] = 60.0,
    mcp: Annotated[bool, typer.Option("--mcp", help="Tools of an assistant on standard input and output.")] = False,
) -> None:
    """Serve predict, generate and describe: HTTP with JSON, or tools for assistants (MCP).

    The page /docs shows the requests. Stop with Ctrl+C or SIGTERM: requests that have begun are finished. There are no
    accounts and no encryption; beyond this machine put a proxy in front that has both.
    """
    if not mcp:
        check_address(host, port, "serve")
    quiet_transformers()
    from ..app.reading import keep_silent
    from ..app.service import Service
    from ..app.tools import Tools
    from ..loading import check_property_model

    keep_silent()
    for name in model or ():
        check_property_model(name)
    tools = Tools(Service(model, "" if generator == "none" else generator, device), reference)
    if mcp:
        from ..app.assistant import build_assistant

        build_assistant(tools).run()
        return
    from ..app.server import build_server, run_server

    app = build_server(tools, time_limit)
    print("hf-crystal: loading models", file=sys.stderr)
    tools.warm_up()
    print(f"hf-crystal: serving at http://{host}:{port}, requests at /docs (stop with Ctrl+C)", file=sys.stderr)
    run_server(app, host, port, time_limit)
    print("hf-crystal: stopped", file=sys.stderr)
