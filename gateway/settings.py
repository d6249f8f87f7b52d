"""Every setting of the gateway: one TOML file, and the environment on top of it.

`broker.port = 8884` in the file is `FLEETGATE_BROKER__PORT=8884` in the environment, which wins. Everything but
`audience` and what identifies this installation at its broker has a safe default; `fleetgate init` writes a file
that runs as it is. Relative paths count from the folder of the file (without a file: from the current folder).
docs/settings.md describes each, and a test holds it complete.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from provisioning.errors import InvalidError, SetupError
from provisioning.topics import DEFAULT_PREFIX, PREFIX_PATTERN
from provisioning.workers import ALL_ROLES, WorkerRole, parse_roles

ENVIRONMENT_PREFIX: Final = "FLEETGATE_"
CONFIG_VARIABLE: Final = "FLEETGATE_CONFIG"
DEFAULT_FILES: Final = (Path("fleetgate.toml"), Path("/etc/fleetgate/fleetgate.toml"))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True)


class DatabaseSettings(_Section):
    """Where everything is remembered."""

    url: str = Field(
        "sqlite:///fleetgate.db",
        description="`sqlite:///FILE` (a relative file counts from the settings file) or `postgresql://USER@HOST/NAME`",
    )
    pool_size: int = Field(
        8, ge=2, le=200, description="database connections kept open; threads beyond it wait"
    )


class BrokerSettings(_Section):
    """How the gateway reaches its own listener of the broker, and who it is there."""

    host: str = Field("127.0.0.1", min_length=1, description="host of the broker's listener for the gateway")
    port: int = Field(8884, ge=1, le=65535, description="port of that listener")
    cafile: Path = Field(
        Path("broker/broker-ca.pem"), description="CA that signed the broker's server certificate (PEM)"
    )
    certfile: Path = Field(Path("private/gateway.pem"), description="the gateway's client certificate (PEM)")
    keyfile: Path = Field(Path("private/gateway.key"), description="its private key (PEM)")
    client_id: str = Field(
        "",
        max_length=64,
        description="secret, stable MQTT client id, one a worker: it names the queue that the broker keeps meanwhile; "
        "empty: made from the root secret and the worker's name",
    )
    group: str = Field(
        "",
        max_length=64,
        pattern=r"^[A-Za-z0-9_-]*$",
        description="secret name of the shared subscription; whoever knows it could take messages away",
    )
    name: str = Field("main", min_length=1, max_length=64, description="this broker's name in the database")
    protocol: Literal["5", "3.1.1"] = Field(
        "5", description="MQTT version that the gateway speaks: `5` or `3.1.1`"
    )
    session_expiry_seconds: int = Field(
        3600,
        ge=0,
        le=0xFFFFFFFE,
        description="how long the broker queues while this worker is away: an hour or more with one worker, "
        "about 60 with several",
    )
    keepalive_seconds: int = Field(
        120, ge=10, le=65535, description="MQTT keepalive of the gateway's connection"
    )
    capath: Path = Field(
        Path("broker/capath"),
        description="folder of the CAs that the device listener trusts; the gateway writes it",
    )


class HttpSettings(_Section):
    """The HTTP API, metrics and health; and how the command line reaches them. Without the role `api`: no API."""

    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; loopback unless a proxy does TLS"
    )
    port: int = Field(8080, ge=0, le=65535, description="port to listen on")
    base_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="where the command line finds the API; by default `http://HOST:PORT` of the two above",
    )
    key_file: Path = Field(
        Path("private/admin.key"), description="file with the API key that the command line uses; mode 0600"
    )

    @property
    def url(self) -> str:
        """The API's address for a client on this machine, without a slash at its end."""
        if self.base_url is not None:
            return self.base_url.rstrip("/")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class BlobsSettings(_Section):
    """Where artifacts are kept."""

    url: str = Field(
        "blobs",
        min_length=1,
        description="a folder (a relative one counts from the settings file), or `s3://BUCKET/PREFIX`; "
        "credentials come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` …)",
    )
    most_bytes: int = Field(
        8 << 30, ge=1, le=1 << 40, description="bytes of the largest artifact that may be pushed"
    )


class DownloadsSettings(_Section):
    """The listener that devices download artifacts from."""

    host: str = Field(
        "0.0.0.0",  # noqa: S104 - devices come from elsewhere; only signed addresses are served
        min_length=1,
        description="address to listen on",
    )
    port: int = Field(8081, ge=0, le=65535, description="port to listen on; only signed addresses are served")
    public_url: str = Field(
        "http://localhost:8081",
        pattern=r"^https?://[^\s?#]{1,128}$",
        description="how devices reach it: offers begin with this",
    )
    certfile: Path | None = Field(
        None, description="certificate for HTTPS (PEM); none: plain HTTP, or a proxy does TLS"
    )
    keyfile: Path | None = Field(None, description="its private key (PEM)")
    url_seconds: int = Field(
        86_400, ge=60, le=31 * 86_400, description="how long an address in an offer is good"
    )
    most_concurrent: int = Field(
        64, ge=1, le=10_000, description="downloads at once; beyond it, devices are told to come back"
    )


class LimitsSettings(_Section):
    """What bounds memory and time, whatever devices send."""

    batch_messages: int = Field(
        200, ge=1, le=5000, description="most messages that are worked in one transaction"
    )
    queue_messages: int = Field(
        2000,
        ge=10,
        le=100_000,
        description="messages in memory at which the gateway stops reading from the broker",
    )
    hello_rate_per_minute: int = Field(
        30,
        ge=1,
        le=100_000,
        description="hellos and presences taken from one topic per minute; more are dropped",
    )
    hello_burst: int = Field(20, ge=1, le=100_000, description="of which this many may come at once")
    held_messages: int = Field(
        10_000,
        ge=0,
        le=1_000_000,
        description="presences and progress held for a hello that is still on its way",
    )
    drain_seconds: float = Field(
        20.0,
        gt=0,
        le=600,
        description="longest time from SIGTERM to the end, while what is queued is finished",
    )


LEAST_MINUTES_DAYS: Final = 60
"""As far back as the API's figures per hour go: 1440 hours."""


class RetentionSettings(_Section):
    """How long the past is kept. 0: for ever."""

    events_days: int = Field(
        90,
        ge=0,
        le=36_500,
        description="days that events are kept, which are devices' timelines; figures keep what they counted; "
        "0: for ever",
    )
    minutes_days: int = Field(
        90,
        ge=0,
        le=36_500,
        description="days that `fleetgate stats --per minute` and `--per hour` can look back; at least 60; "
        "0: for ever",
    )
    sessions_days: int = Field(
        90, ge=0, le=36_500, description="days that a connection is kept after its end; 0: for ever"
    )
    inbox_days: int = Field(
        180,
        ge=0,
        le=36_500,
        description="days after which a refusal that was not seen again leaves the inbox; 0: never",
    )
    refused_uploads_hours: int = Field(
        24,
        ge=0,
        le=876_000,
        description="hours after which an artifact is deleted that no bundle came to use; more than a push takes; "
        "0: never",
    )

    @field_validator("minutes_days")
    @classmethod
    def _minutes_days(cls, days: int) -> int:
        if 0 < days < LEAST_MINUTES_DAYS:
            raise ValueError(
                f"0 or at least {LEAST_MINUTES_DAYS}: figures per hour go back as far as 1440 hours"
            )
        return days


class LogSettings(_Section):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is written"
    )
    as_json: bool = Field(
        False, alias="json", description="one JSON object a line, for machines; else text for people"
    )
    repeat_seconds: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="equal events within this time are counted and not written; 0: write all",
    )


class Settings(BaseSettings):
    """All settings of one worker. Use `Settings.load`."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    audience: str = Field(
        "localhost",
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9._:-]+$",
        description="name of this gateway in every signed message: the broker's host as devices dial it",
    )
    prefix: str = Field(
        DEFAULT_PREFIX, description="first levels of every topic; also in the broker's ACL files"
    )
    state_directory: Path = Field(
        Path("state"), description="folder of the lock and of what else the gateway keeps; its own"
    )
    root_secret_file: Path = Field(
        Path("private/root-secret"),
        description="the secret that challenges are derived from; the same for all workers, 0600",
    )
    signing_key_file: Path = Field(
        Path("private/signing-key.pem"),
        description="the gateway's own signing key (P-256, PEM), which devices may pin",
    )
    worker: str = Field(
        "worker-1",
        pattern="^[A-Za-z0-9._-]{1,64}$",
        description="this worker's name, which no other has; its counters bear it",
    )
    roles: Annotated[tuple[WorkerRole, ...], NoDecode] = Field(
        ALL_ROLES,
        description="what this worker does: a list, or words with commas, of `ingest`, `api`, `scheduler`, "
        "`authorities`",
    )
    database: DatabaseSettings = Field(
        default_factory=DatabaseSettings, description="where everything is remembered"
    )
    broker: BrokerSettings = Field(
        default_factory=BrokerSettings, description="the broker, and who we are there"
    )
    http: HttpSettings = Field(default_factory=HttpSettings, description="the HTTP API, and how to reach it")
    blobs: BlobsSettings = Field(default_factory=BlobsSettings, description="where artifacts are kept")
    downloads: DownloadsSettings = Field(
        default_factory=DownloadsSettings, description="where devices download from"
    )
    limits: LimitsSettings = Field(default_factory=LimitsSettings, description="bounds of memory and time")
    retention: RetentionSettings = Field(
        default_factory=RetentionSettings, description="how long the past is kept"
    )
    log: LogSettings = Field(default_factory=LogSettings, description="what is written to standard error")

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, prefix: str) -> str:
        if PREFIX_PATTERN.fullmatch(prefix) is None:
            raise ValueError("one to four topic levels of A–Z, a–z, 0–9 and . _ -, joined by /")
        return prefix

    @field_validator("roles", mode="before")
    @classmethod
    def _roles(cls, given: object) -> object:
        words = [given] if isinstance(given, str) else given
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            return given
        try:
            return parse_roles(words)
        except InvalidError as error:
            raise ValueError(str(error)) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, whose content is what the constructor is given."""
        return env_settings, init_settings

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Settings from a file and the environment, with every path made absolute.

        Args:
            path: the TOML file; by default that of `FLEETGATE_CONFIG`, else the first of `DEFAULT_FILES` that is
                there, else none.

        Raises:
            SetupError: the file cannot be read, or a value is wrong: says which, what was got, what is expected.
        """
        file = find_file(path)
        data = {} if file is None else _read(file)
        try:
            loaded = cls(**data)
        except ValidationError as error:
            raise SetupError(_explain(error, data, file)) from error
        return loaded._resolved(Path.cwd() if file is None else file.absolute().parent)

    def _resolved(self, base: Path) -> Self:
        def absolute(section: BaseModel) -> dict[str, Path]:
            return {
                name: base / value
                for name, value in ((name, getattr(section, name)) for name in type(section).model_fields)
                if isinstance(value, Path)
            }

        sections = {
            name: section.model_copy(update=absolute(section))
            for name in type(self).model_fields
            if isinstance(section := getattr(self, name), _Section)
        }
        database = self.database.url
        if database.startswith("sqlite:///") and not database.startswith("sqlite:////"):
            file = database.removeprefix("sqlite:///")
            if file and not file.startswith(":"):
                sections["database"] = self.database.model_copy(update={"url": f"sqlite:///{base / file}"})
        if "://" not in self.blobs.url:
            sections["blobs"] = self.blobs.model_copy(update={"url": str(base / self.blobs.url)})
        return self.model_copy(update=absolute(self) | sections)


def find_file(path: Path | None) -> Path | None:
    """The settings file: `path`, else `FLEETGATE_CONFIG`, else the first default that is there, else None."""
    if path is not None:
        return path
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    return next((candidate for candidate in DEFAULT_FILES if candidate.is_file()), None)


def describe(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, str, object]]:
    """Every setting: its dotted name, its description, its default (a Path as it is written in the file)."""
    for name, info in model.model_fields.items():
        dotted = prefix + (info.alias or name)
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from describe(kind, f"{dotted}.")
        else:
            yield dotted, info.description or "", info.default


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SetupError(f"settings file {file} is not there; `fleetgate init` makes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"settings file {file} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"settings file {file} is not TOML: {error}") from error


def _explain(error: ValidationError, data: Mapping[str, Any], file: Path | None) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    variable = ENVIRONMENT_PREFIX + "__".join(place).upper()
    if any(name.upper() == variable for name in os.environ):
        where = f"environment variable {variable}"
    elif file is not None and _holds(data, place):
        where = str(file)
    else:
        where = "the environment"
    if first["type"] == "extra_forbidden":
        return f"setting {'.'.join(place)} in {where} is not known; docs/settings.md lists them all"
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"setting {'.'.join(place)} in {where}: got {first['input']!r}, expected {expected}"


def _holds(data: object, place: list[str]) -> bool:
    for part in place:
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return True
