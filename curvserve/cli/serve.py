"""`curvserve serve`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..memory import keep_freed
from .completion import complete_model
from .endings import Status, refusal, refusing
from .root import add_working_folder, app


def _read_config(ctx: typer.Context, file: Path | None) -> Path | None:
    from .config import ConfigError, read_options

    if file is not None:
        try:
            ctx.default_map = read_options(file, serve, without="config")
        except ConfigError as error:
            raise refusal(str(error), Status.USAGE) from None
    return file


# every option may be given as CURVSERVE_<NAME> too
@app.command(context_settings={"auto_envvar_prefix": "CURVSERVE"})
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A registered model, torchvision:NAME, or package.module:attribute; may be "
            "repeated.",
            autocompletion=complete_model,
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
        typer.Option(help="TOML file of keys; see `curvserve keys`."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain.")] = None,
    uds: Annotated[
        Path | None,
        typer.Option(
            help="Unix socket to listen on instead of a port; its owner alone can call.",
        ),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps sessions; without it none is kept."),
    ] = None,
    durability: Annotated[
        Literal["full", "process", "snapshot", "none"] | None,
        typer.Option(
            help="What an acknowledged step survives: power loss (full, with --data-dir the "
            "default), kill -9 (process), nothing until the next snapshot (snapshot), nothing.",
        ),
    ] = None,
    snapshot_every: Annotated[
        int,
        typer.Option(min=1, help="Steps between two snapshots."),
    ] = 256,
    queue: Annotated[
        int,
        typer.Option(min=1, help="Requests of one session that may wait."),
    ] = 32,
    sessions_per_key: Annotated[
        int,
        typer.Option(
            min=0,
            help="Live sessions that one API key may have begun; 0 for no limit. The key's entry "
            "may say another number.",
        ),
    ] = 0,
    requests_per_key: Annotated[
        int,
        typer.Option(
            min=0,
            help="Requests of one API key that may wait or be computed, over all sessions; "
            "likewise.",
        ),
    ] = 0,
    head_seconds: Annotated[
        float,
        typer.Option(
            min=0.001,
            help="Within which a request's head has to arrive.",
        ),
    ] = 20.0,
    body_seconds: Annotated[
        float,
        typer.Option(min=0.001, help="Within which its body has to arrive."),
    ] = 60.0,
    stall_seconds: Annotated[
        float,
        typer.Option(
            min=0.001,
            help="After which a caller that does not take its answer is cut off.",
        ),
    ] = 60.0,
    work_seconds: Annotated[
        float,
        typer.Option(min=0.001, help="Deadline of a received request."),
    ] = 600.0,
    shutdown_seconds: Annotated[
        int,
        typer.Option(min=0, help="What admitted work gets at the end."),
    ] = 30,
    notice_seconds: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Between not ready and the closed door, for a load balancer to notice.",
        ),
    ] = 0.0,
    executor: Annotated[
        Literal["inline", "ray"],
        typer.Option(
            help="Who computes: threads of this process, or workers on a Ray cluster, for each "
            "session its own (pip install 'curvserve[ray]').",
        ),
    ] = "inline",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="auto, host:port or ray://host:port of a Ray cluster; without it one is begun on "
            "this machine.",
        ),
    ] = None,
    workers_per_session: Annotated[
        int,
        typer.Option(min=1, help="Workers that divide the batches of a session."),
    ] = 1,
    cpus_per_worker: Annotated[
        float,
        typer.Option(min=0.01, help="CPUs that a worker occupies and computes with."),
    ] = 1.0,
    shard_state: Annotated[
        bool,
        typer.Option(
            "--shard-state",
            help="Each worker keeps a slice of what the rule remembers: less memory, for rules "
            "that step each coordinate apart.",
        ),
    ] = False,
    placement: Annotated[
        Literal["strict_pack", "pack", "spread", "strict_spread"],
        typer.Option(help="Whether the workers of a session are on one machine or on many."),
    ] = "pack",
    place_seconds: Annotated[
        float,
        typer.Option(min=0.001, help="How long a session waits for free devices."),
    ] = 60.0,
    worker_seconds: Annotated[
        float,
        typer.Option(min=0.001, help="After which a worker that does not answer is lost."),
    ] = 300.0,
    park_seconds: Annotated[
        float,
        typer.Option(min=0.001, help="After which an idle session lets go of its workers."),
    ] = 600.0,
    log_format: Annotated[
        Literal["console", "json"],
        typer.Option(help="How a line of log is written."),
    ] = "console",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(help="The least that is logged; info: requests."),
    ] = "info",
    config: Annotated[
        Path | None,
        typer.Option(
            callback=_read_config,
            is_eager=True,
            help="TOML file of these options, `-` as `_`; flags and the environment come first.",
        ),
    ] = None,
) -> None:
    """Serve models until interrupted."""
    # before torch is loaded: workers that wait must not take a core from a trainer beside them
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # but may look for more work a moment before they sleep: a step has hundreds of parallel regions
    # (docs/decisions/0032: libgomp does so only while there are no more workers than cores)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    keep_freed()
    add_working_folder()
    from ..api_keys import KeyFileError, KeyRing
    from ..cluster.options import ClusterOptions, NoCluster
    from ..failpoints import UnknownFailpoint, arm
    from ..models import ModelError, all_with_weights, resolve_all
    from ..server import Limits, create_app, logs
    from ..server.device import DeviceNotFound, find_devices
    from ..server.quotas import NoKeys
    from ..server.run import CannotListen, address_of, listen, listen_at
    from ..server.run import serve as run
    from ..server.tls import TLSFileError, tls_context
    from ..sessions.storage import StorageError
    from ..sessions.stores import NoDataFolder, store_opener

    logs.configure(log_format, log_level)
    limits = Limits(
        queue=queue,
        sessions_per_key=sessions_per_key,
        requests_per_key=requests_per_key,
        head_seconds=head_seconds,
        body_seconds=body_seconds,
        stall_seconds=stall_seconds,
        work_seconds=work_seconds,
        shutdown_seconds=shutdown_seconds,
        park_seconds=park_seconds,
        notice_seconds=notice_seconds,
    )
    with refusing(
        KeyFileError,
        TLSFileError,
        ModelError,
        DeviceNotFound,
        CannotListen,
        NoCluster,
        NoDataFolder,
        NoKeys,
        StorageError,
        UnknownFailpoint,
    ):
        arm()
        keys = KeyRing.read(api_keys) if api_keys else None
        tls = tls_context(tls_cert, tls_key)
        recipes = all_with_weights(resolve_all(model or ["mnist_cnn"]), weights or [])
        names = [recipe.name for recipe in recipes]
        if executor == "ray":
            from ..cluster.beginning import begin

            options = ClusterOptions(
                address=ray_address,
                workers=workers_per_session,
                placement=placement,
                cpus=cpus_per_worker,
                shard_state=shard_state,
                place_seconds=place_seconds,
                worker_seconds=worker_seconds,
            )
            devices, computing = begin(recipes, device or [], options)
        else:
            devices, computing = find_devices(device or [], names), None
        who = f"ray, {workers_per_session} workers" if computing else executor
        open_store = store_opener(data_dir, durability, devices.values(), who)
        application = create_app(
            recipes,
            devices,
            limits,
            keys=keys,
            open_store=open_store,
            snapshot_every=snapshot_every,
            executor=computing,
        )
        if uds is not None:
            listener = listen_at(uds)
        else:
            listener = listen(host, port, insecure=insecure or keys is not None)
        application.state.context.durability.open()
    address = address_of(listener, tls=tls is not None)
    run(application, listener, f"curvserve: serving {', '.join(names)} at {address}", tls)
