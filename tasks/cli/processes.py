"""The processes that stay: workers, Beat, Flower."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.application import LogJson, app


@app.command()
def worker(
    site: Annotated[str | None, typer.Option("--site", help="Do the disk work of this site.")] = None,
    control: Annotated[bool, typer.Option("--control", help="Dispatch and reap, for all sites.")] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=256, help="Processes.")] = 2,
    log_json: LogJson = False,
) -> None:
    """Work: on one site's runs, or on the control queue. SIGTERM stops it; what it had begun goes on elsewhere.

    Example: understudy worker --site prod --concurrency 4
    """
    from tasks import serve

    if control == (site is not None):
        raise typer.BadParameter("give either --site NAME or --control", param_hint="--site/--control")
    serve.worker(site=site, concurrency=concurrency, as_json=log_json)


@app.command()
def beat(log_json: LogJson = False) -> None:
    """Send the ticks that set off what is due. A second one elsewhere does no harm.

    Example: understudy beat
    """
    from tasks import serve

    serve.beat(as_json=log_json)


@app.command()
def flower(
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5555,
    address: Annotated[str, typer.Option("--address", help="Who reaches it sees all tasks.")] = "127.0.0.1",
) -> None:
    """Show workers and tasks in a browser.

    Example: understudy flower --port 5555
    """
    from tasks import serve

    serve.flower(port=port, address=address)
