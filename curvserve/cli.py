"""The command line. Nothing heavy is imported before a command runs: `--help` is instant."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import __version__
from .memory import keep_freed

app = typer.Typer(
    help="Serve loss, gradients and curvature of PyTorch models over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"curvserve {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Serve loss, gradients and curvature of PyTorch models over HTTP."""


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A registered model, torchvision:NAME, or package.module:attribute; may be "
            "repeated."
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="MODEL=FILE.safetensors: what its sessions begin with; may be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8000,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="auto (the default), cpu, or a GPU as cuda:0; MODEL=cuda:1 for one of several."
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen where others can call, without API keys.")
    ] = False,
    api_keys: Annotated[
        Path | None,
        typer.Option(envvar="CURVSERVE_API_KEYS", help="TOML file of keys; see `curvserve keys`."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="CURVSERVE_TLS_CERT", help="PEM certificate chain.")
    ] = None,
    uds: Annotated[
        Path | None,
        typer.Option(
            envvar="CURVSERVE_UDS",
            help="Unix socket to listen on instead of a port; its owner alone can call.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="CURVSERVE_TLS_KEY", help="Its private key, PEM.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="CURVSERVE_DATA_DIR", help="Folder that keeps sessions; without it none is kept."
        ),
    ] = None,
    durability: Annotated[
        Literal["full", "process", "snapshot", "none"] | None,
        typer.Option(
            envvar="CURVSERVE_DURABILITY",
            help="What an acknowledged step survives: power loss (full, with --data-dir the "
            "default), kill -9 (process), nothing until the next snapshot (snapshot), nothing.",
        ),
    ] = None,
    snapshot_every: Annotated[
        int,
        typer.Option(min=1, envvar="CURVSERVE_SNAPSHOT_EVERY", help="Steps between two snapshots."),
    ] = 256,
    queue: Annotated[
        int,
        typer.Option(
            min=1, envvar="CURVSERVE_QUEUE", help="Requests of one session that may wait."
        ),
    ] = 32,
    head_seconds: Annotated[
        float,
        typer.Option(
            min=0.001,
            envvar="CURVSERVE_HEAD_SECONDS",
            help="Within which a request's head has to arrive.",
        ),
    ] = 20.0,
    body_seconds: Annotated[
        float,
        typer.Option(
            min=0.001, envvar="CURVSERVE_BODY_SECONDS", help="Within which its body has to arrive."
        ),
    ] = 60.0,
    stall_seconds: Annotated[
        float,
        typer.Option(
            min=0.001,
            envvar="CURVSERVE_STALL_SECONDS",
            help="After which a caller that does not take its answer is cut off.",
        ),
    ] = 60.0,
    work_seconds: Annotated[
        float,
        typer.Option(
            min=0.001, envvar="CURVSERVE_WORK_SECONDS", help="Deadline of a received request."
        ),
    ] = 600.0,
    shutdown_seconds: Annotated[
        int,
        typer.Option(
            min=0, envvar="CURVSERVE_SHUTDOWN_SECONDS", help="What admitted work gets at the end."
        ),
    ] = 30,
    notice_seconds: Annotated[
        float,
        typer.Option(
            min=0.0,
            envvar="CURVSERVE_NOTICE_SECONDS",
            help="Between not ready and the closed door, for a load balancer to notice.",
        ),
    ] = 0.0,
    log_format: Annotated[
        Literal["console", "json"],
        typer.Option(envvar="CURVSERVE_LOG_FORMAT", help="How a line of log is written."),
    ] = "console",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(
            envvar="CURVSERVE_LOG_LEVEL", help="The least that is logged; info: requests."
        ),
    ] = "info",
) -> None:
    """Serve models until interrupted."""
    # before torch is loaded: workers that wait must not take a core from a trainer beside them
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # but may look for more work a moment before they sleep: a step has hundreds of parallel regions
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    keep_freed()
    _add_working_folder()
    from .api_keys import KeyFileError, KeyRing
    from .failpoints import UnknownFailpoint, arm
    from .models import ModelError, all_with_weights, resolve_all
    from .server import Limits, create_app, logs
    from .server.device import DeviceNotFound, find_devices
    from .server.run import CannotListen, address_of, listen, listen_at
    from .server.run import serve as run
    from .server.tls import TLSFileError, tls_context
    from .sessions.storage import StorageError
    from .sessions.stores import NoDataFolder, store_opener

    logs.configure(log_format, log_level)
    limits = Limits(
        queue=queue,
        head_seconds=head_seconds,
        body_seconds=body_seconds,
        stall_seconds=stall_seconds,
        work_seconds=work_seconds,
        shutdown_seconds=shutdown_seconds,
        notice_seconds=notice_seconds,
    )
    try:
        arm()
        keys = KeyRing.read(api_keys) if api_keys else None
        tls = tls_context(tls_cert, tls_key)
        recipes = all_with_weights(resolve_all(model or ["mnist_cnn"]), weights or [])
        devices = find_devices(device or [], [recipe.name for recipe in recipes])
        open_store = store_opener(data_dir, durability, devices.values())
        application = create_app(
            recipes,
            devices,
            limits,
            keys=keys,
            open_store=open_store,
            snapshot_every=snapshot_every,
        )
        if uds is not None:
            listener = listen_at(uds)
        else:
            listener = listen(host, port, insecure=insecure or keys is not None)
        application.state.context.durability.open()
    except (
        KeyFileError,
        TLSFileError,
        ModelError,
        DeviceNotFound,
        CannotListen,
        NoDataFolder,
        StorageError,
        UnknownFailpoint,
    ) as error:
        raise _refusal(str(error)) from None
    names = ", ".join(recipe.name for recipe in recipes)
    address = address_of(listener, tls=tls is not None)
    run(application, listener, f"curvserve: serving {names} at {address}", tls)


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 100,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with MNIST/raw/*-ubyte; the bundled digits without it."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up until Ctrl-C.")] = False,
) -> None:
    """Serve mnist_cnn, train it over HTTP on handwritten digits, and say how it went."""
    from .demo import DemoFailed, run

    try:
        run(steps=steps, data_dir=data_dir, port=port, keep=keep)
    except DemoFailed as error:
        raise _refusal(str(error)) from None


@app.command()
def bench(
    model: Annotated[
        str, typer.Option(help="A registered model, or package.module:attribute.")
    ] = "mnist_cnn",
    batch: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 64,
    quantity: Annotated[
        list[str] | None, typer.Option(help="DiagGGNMC, BatchGrad, ...; may be repeated.")
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="CPU threads; may be repeated. 1, and 2 where there are two."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Passes of each contestant.")] = 20,
    device: Annotated[str, typer.Option(help="auto, cpu, or a GPU as cuda:0.")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Time the curvature of a model here, against BackPACK and others that are installed.

    Contestants take turns in one process, and each one's numbers are checked first.
    """
    _add_working_folder()
    from .bench import command
    from .models import ModelError
    from .server.device import DeviceNotFound, find_device

    try:
        command.bench(model, batch, quantity, threads, rounds, find_device(device), json)
    except (ModelError, DeviceNotFound, command.BenchFailed) as error:
        raise _refusal(str(error)) from None


@app.command()
def models(
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="As `serve --model` takes them: checked, and told of in full.",
        ),
    ] = None,
) -> None:
    """List the registered models, or check some and tell which quantities they have."""
    _add_working_folder()
    from .models import ModelError
    from .models.listing import described, listed

    try:
        for line in described(references) if references else listed():
            typer.echo(line)
    except ModelError as error:
        raise _refusal(str(error)) from None


keys = typer.Typer(help="API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@keys.command()
def new(
    name: Annotated[str, typer.Option(help="Whom the key is for.")],
    scope: Annotated[
        Literal["read", "train", "admin"],
        typer.Option(help="What it allows; each includes those before it."),
    ] = "train",
) -> None:
    """Make a key: its entry is printed, to be added to a key file, and the key itself shown once.

    The key goes to standard error, so that `curvserve keys new --name loop >> keys.toml` keeps the
    entry alone.
    """
    from .api_keys import KeyFileError, new_key

    try:
        key, entry = new_key(name, [scope])
    except KeyFileError as error:
        raise _refusal(str(error)) from None
    typer.echo(f"the key of {name}, shown this once: {key}", err=True)
    typer.echo(entry.to_toml())


def _add_working_folder() -> None:
    """Find package.module:attribute in the working folder too, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _refusal(message: str) -> typer.Exit:
    typer.echo(f"curvserve: {message}", err=True)
    return typer.Exit(1)
