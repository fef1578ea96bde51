"""``pfl serve``: the aggregator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pfl_mobile.cli.bundles import Key
from pfl_mobile.cli.common import EXIT_CODES, Json, console, print_json, table
from pfl_mobile.cli.merging import CLIP_NORM, DELTA, EPSILON, MIN_SEPARATION, PRIVACY, Rule, privacy_file
from pfl_mobile.cli.studies import parameters
from pfl_mobile.errors import ConfigError, missing_package
from pfl_mobile.files.reading import read_text

if TYPE_CHECKING:
    from pfl_mobile.privacy import PrivacyConfig
    from pfl_server.federation.config import FederationConfig
    from pfl_server.services import Services
    from pfl_server.settings import LimitsConfig, ServerSettings

#: Where the URL of the database may stand, as it can hold a password.
DATABASE_URL = "PFL_DATABASE_URL"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "serve",
        epilog="Example:  pfl serve keyboard-bundle --open-enrolment --cohort 20 --rounds 200.  "
        + EXIT_CODES,
    )(serve)


def serve(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="The bundle that is trained.")
    ] = None,
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", help="For the database and files that have no other place."),
    ] = Path("pfl-server-data"),
    db: Annotated[
        str | None,
        typer.Option(
            "--db",
            metavar="URL",
            envvar=DATABASE_URL,
            show_envvar=True,
            help="sqlite:///PATH or postgresql://USER@HOST/NAME; default: SQLite in the data folder.",
        ),
    ] = None,
    blobs: Annotated[
        str | None,
        typer.Option("--blobs", metavar="DIR|s3://...", help="Tensor files; default: in the data folder."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="federation.json; other options change it."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", metavar="S", help="See `pfl strategies`; default: as the bundle says."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter of the strategy."),
    ] = None,
    rule: Rule = None,
    mode: Annotated[str | None, typer.Option("--mode", help="synchronous or buffered.")] = None,
    cohort: Annotated[
        int | None,
        typer.Option("--cohort", help="Updates that close a round; default: as --privacy says, or 50."),
    ] = None,
    minimum: Annotated[
        int | None, typer.Option("--minimum", help="Updates that a round needs at its deadline.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Rounds in all; default: as --privacy says, or 100.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option("--deadline", metavar="S", help="Seconds of a round.")
    ] = None,
    min_separation: Annotated[int | None, MIN_SEPARATION] = None,
    max_examples: Annotated[
        int | None,
        typer.Option(
            "--max-examples", help="Examples that a device counts for at most, without noise; default: 1000."
        ),
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option("--group", metavar="NAME", help="A group of devices; may be repeated.")
    ] = None,
    privacy: Annotated[Path | None, PRIVACY] = None,
    epsilon: Annotated[float | None, EPSILON] = None,
    delta: Annotated[float | None, DELTA] = None,
    clip_norm: Annotated[float | None, CLIP_NORM] = None,
    no_privacy: Annotated[bool, typer.Option("--no-privacy", help="Add no noise.")] = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8800,
    processes: Annotated[int, typer.Option("--processes", min=1, help="That answer requests.")] = 1,
    open_enrolment: Annotated[
        bool,
        typer.Option("--open-enrolment", help="Any device may enrol; else it needs a token of an admin."),
    ] = False,
    open_sampling: Annotated[
        bool,
        typer.Option(
            "--open-sampling",
            help="Let privacy rest on a secret draw of devices although anybody may enrol as many as they like.",
        ),
    ] = False,
    attestation: Annotated[
        str | None,
        typer.Option("--attestation", metavar="MODULE:OBJECT", help="Checks devices' attestations."),
    ] = None,
    dashboard: Annotated[str | None, typer.Option("--dashboard", help="public, admin or off.")] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", help="public, admin or off.")] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(
            "--trust-proxy", metavar="ADDRESS", help="A proxy whose X-Forwarded headers are believed."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="PEM", help="Certificate chain.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="PEM", help="Its private key.")] = None,
    limits: Annotated[
        Path | None, typer.Option("--limits", metavar="FILE", help="Rate and size limits, JSON.")
    ] = None,
    public_key: Key = None,
    openapi: Annotated[bool, typer.Option("--openapi", help="Print the OpenAPI document and end.")] = False,
    as_json: Json = False,
) -> None:
    """Run the aggregator: devices enrol, train in rounds, and upload updates that are merged with privacy.

    Starts with SQLite and local files and nothing else to set up. Unless options say else, the mean of a round is an
    average, with noise for the budget that assumes nothing on who takes part. The first start decides what the
    federation computes; later starts without such options go on with it. The admin token comes from PFL_ADMIN_TOKEN
    or the file that PFL_ADMIN_TOKEN_FILE names; without one, admin actions are off.
    """
    try:
        from pfl_server import launch
        from pfl_server.counting import logs
        from pfl_server.services import Services
    except ModuleNotFoundError as error:
        raise missing_package(error, "pfl serve") or error from error
    if openapi:
        from pfl_server.app import openapi_document

        print_json(openapi_document())
        return
    from pfl_mobile.bundle.sign import load_public_key, public_hex

    if bundle is None:
        raise ConfigError("the bundle that is trained is missing", mend="pfl serve BUNDLE")
    settings = _settings(
        bundle=bundle.absolute(),
        public_key=None if public_key is None else public_hex(load_public_key(public_key)),
        data=data,
        database=db,
        blobs=blobs,
        host=host,
        port=port,
        processes=processes,
        enrolment="open" if open_enrolment else "token",
        attestation=attestation,
        dashboard=dashboard,
        metrics=metrics,
        trust_proxy=tuple(trust_proxy or ()),
        tls_cert=tls_cert,
        tls_key=tls_key,
        **({} if limits is None else {"limits": _limits(limits)}),
    )
    given: dict[str, dict[str, Any]] = {
        "strategy": {"name": strategy, "parameters": parameters(set_) if set_ else None},
        "rule": {"name": rule},
        "rounds": {
            "mode": mode,
            "cohort": cohort,
            "minimum": minimum,
            "total": rounds,
            "deadline_s": deadline,
            "min_separation": min_separation,
            "max_examples": max_examples,
        },
    }
    stated = {
        k: v for k, v in {"epsilon": epsilon, "delta": delta, "clip_norm": clip_norm}.items() if v is not None
    }
    federation = _federation(
        settings,
        config,
        given,
        group,
        _privacy(privacy, stated, no_privacy),
        stated,
        no_privacy,
        open_sampling,
    )
    logs.set_up()
    # the address first: a start that fails must not decide what the federation computes
    with launch.open_bundle(settings) as opened, launch.listen(settings) as listening:
        services = Services.open(settings, opened, federation)
        try:
            _show(services, launch.url(settings, listening), as_json, public_key)
        except BaseException:
            services.close()
            raise
        launch.run(settings, opened, services, listening)


def _settings(**given: Any) -> ServerSettings:
    from pydantic import ValidationError

    from pfl_server.settings import ServerSettings

    if (given["tls_cert"] is None) != (given["tls_key"] is None):
        raise ConfigError("TLS needs a certificate and its key", mend="give both --tls-cert and --tls-key")
    for name in ("tls_cert", "tls_key"):
        if given[name] is not None and not os.access(given[name], os.R_OK):
            raise ConfigError(f"{given[name]} cannot be read", mend="check the path and its permissions")
    try:
        return ServerSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]}: {first['msg']}", mend="see pfl serve --help") from error


def _limits(file: Path) -> LimitsConfig:
    from pydantic import ValidationError

    from pfl_server.settings import LimitsConfig

    try:
        return LimitsConfig.model_validate_json(_read(file))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{file}: {'.'.join(map(str, first['loc'])) or 'limits'}: {first['msg']}",
            mend="correct that limit",
        ) from error


def _read(file: Path) -> str:
    try:
        return read_text(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", mend="check the path") from error


def _privacy(file: Path | None, stated: dict[str, float], none: bool) -> PrivacyConfig | None:
    """What protects, where it is given as a whole."""
    if none and (file is not None or "epsilon" in stated or "delta" in stated):
        raise ConfigError("--no-privacy goes with no other privacy option", mend="decide for one")
    return privacy_file(file, stated)


def _federation(
    settings: ServerSettings,
    file: Path | None,
    given: dict[str, dict[str, Any]],
    groups: list[str] | None,
    privacy: PrivacyConfig | None,
    stated: dict[str, float],
    none: bool,
    open_sampling: bool,
) -> FederationConfig | None:
    """The configuration that the options make; None where there is a federation already, which they agree with.

    Raises:
        OtherSettingsError: they do not.
    """
    from pfl_server.federation.config import FederationConfig
    from pfl_server.federation.defaults import federation_config
    from pfl_server.federation.restart import refuse_others
    from pfl_server.launch import stored_config

    said: dict[str, Any] = {
        name: kept
        for name, values in given.items()
        if (kept := {k: v for k, v in values.items() if v is not None})
    }
    if groups:
        said["groups"] = tuple(groups)
    if open_sampling:
        said["open_sampling"] = True
    text = None if file is None else _read(file)
    base = None if text is None else FederationConfig.load(text)
    if base is not None and stated:
        raise ConfigError(f"{file} says what protects the updates", mend="leave --epsilon and the like out")
    stored = stored_config(settings)
    if stored is not None:
        whole = None if text is None else (str(file), text)
        refuse_others(stored, said, file=whole, privacy=privacy, stated=stated, none=none)
        return None
    return federation_config(said, base=base, privacy=privacy, private=not none, **stated)


def _show(services: Services, url: str, as_json: bool, public_key: str | None) -> None:
    """Say what will run before it runs, and what is other than at the last start."""
    from pfl_server.federation.restart import as_started, other_than_before
    from pfl_server.storage.database import shown
    from pfl_server.summary import noise_ratio, summary

    facts = summary(services, url)
    started = as_started(
        services.settings,
        database=shown(services.database.url),
        admin=services.admin_token is not None,
        public_key=public_key,
    )
    changed = other_than_before(services.settings.data.absolute(), started)
    if as_json:
        print_json(facts | {"changed": changed, "config": services.runtime.config.model_dump(mode="json")})
        return
    settings, out = services.settings, console()
    out.print(table(["", ""], facts.items()))
    for change in changed:
        out.print(f"[bold]other than before:[/] {escape(change)}")
    if settings.enrolment == "token" and services.admin_token is None:
        out.print(
            "[bold]no device can enrol:[/] set PFL_ADMIN_TOKEN and issue tokens, or use --open-enrolment"
        )
    if noise_ratio(services) > 1:
        out.print(
            "[bold]noise above the updates:[/] the mean of a round's updates is at most one clip norm long and its "
            "noise is longer, so a model may learn nothing. Larger cohorts, fewer rounds, a longer --min-separation "
            "and fewer shared values help; `pfl privacy plan --width` tells by how much"
        )
    if not settings.on_loopback and settings.tls_cert is None and not settings.trust_proxy:
        out.print(
            "[bold]plain HTTP:[/] credentials can be read on the way; use --tls-cert, or a proxy that ends TLS"
        )
