"""`bridge.yaml`: read, overridden, resolved, validated; every mistake at once (DESIGN.md §2.2)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bridge import references, yamltext
from bridge.alerts.sights import AlertSet
from bridge.errors import ConfigError, Mistake
from bridge.fields import Duration, Section, Size, mistakes, relative_to
from bridge.outbox.jetstream import address as jetstream
from bridge.overrides import overridden
from bridge.redact import parse_path
from bridge.render import labelled
from bridge.rulefile import RuleFile, clashes
from bridge.rulefile import parse as parse_rules
from bridge.rules import RuleSet, upstream_names
from bridge.shared import catalogue
from bridge.sinks.registry import SinkConfig
from bridge.sources.registry import SourceConfig
from bridge.tracing import TracingConfig

RULES = "rules/*.yaml"
REDACT = (
    "data.key",
    "data.data.key",
    "data.**.app_s_key",
    "data.**.session_keys",
    "data.**.root_keys",
    "data.**.root_wor_s_key",
    "data.**.password",
    "data.**.secret",
    "remote_ip",
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


def _name(name: str) -> str:
    if not NAME.match(name):
        raise ValueError("a name is letters, digits, dots, dashes and underscores, 63 at most")
    return name


Name = Annotated[str, AfterValidator(_name)]


def _address(value: object) -> object:
    """`host:port`; 0 takes a free port."""
    host, colon, port = str(value).rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError("write host:port, such as 127.0.0.1:8080")
    return value


Address = Annotated[str, BeforeValidator(_address)]


def _outbox(value: str) -> str:
    if jetstream.is_nats(value):
        jetstream.parse(value)
        return value
    if not value.startswith("sqlite:") or not value.removeprefix("sqlite:"):
        raise ValueError("write sqlite:bridge.db, or nats://host:4222?stream=bridge")
    return value


def _redact(path: str) -> str:
    parse_path(path)
    return path


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class AdminConfig(Section):
    listen: Address = "127.0.0.1:8080"
    """Where health, metrics, the API and the page are."""
    token: SecretStr | None = None
    """Bearer token for the API; without one nothing can be changed over HTTP."""
    metrics_listen: Address | None = None
    """A second address with only /metrics /livez /readyz."""
    hosts: tuple[str, ...] = ()
    """Further Host names that may be asked for, besides loopback."""

    @property
    def token_value(self) -> str | None:
        return self.token.get_secret_value() if self.token else None


class LogConfig(Section):
    level: Literal["info", "debug", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, else JSON."""


class Config(BaseSettings):
    """The whole of bridge.yaml.

    `load` lays environment variables over the file itself: a variable has to name something that exists,
    and a mistake has to name the variable.
    """

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    sources: dict[Name, SourceConfig] = {}
    sinks: dict[Name, SinkConfig] = {}
    rules: Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])] = (
        RULES,
    )
    """Rule files, relative to this file; may have * in them."""
    outbox: Annotated[str, AfterValidator(_outbox)] = "sqlite:bridge.db"
    """Where deliveries wait: a file relative to the working directory, or NATS JetStream."""
    durability: Literal["power", "process"] = "power"
    """power: on the platter before anything else happens; process: survives a crash of bridge only."""
    dedup_window: Annotated[Duration, Field(gt=0)] = 172_800.0
    """How long a unique_id is remembered."""
    max_size: Annotated[Size, Field(ge=1 << 20)] = 4 << 30
    """Bytes the store may use."""
    overflow: Literal["drop_oldest", "block"] = "drop_oldest"
    """What happens at max_size."""
    dead_letter_retention: Annotated[Duration, Field(gt=0)] = 2_592_000.0
    trace_retention: Annotated[Duration, Field(ge=0)] = 86_400.0
    shutdown_timeout: Annotated[Duration, Field(ge=0)] = 20.0
    redact: tuple[Annotated[str, AfterValidator(_redact)], ...] = REDACT
    """Paths whose values are never stored."""
    tracing: TracingConfig = TracingConfig()
    admin: AdminConfig = AdminConfig()
    log: LogConfig = LogConfig()

    _rules: RuleSet = PrivateAttr(default_factory=lambda: RuleSet.of(()))
    _alerts: AlertSet = PrivateAttr(default_factory=lambda: AlertSet(()))
    _rule_files: tuple[RuleFile, ...] = ()
    _hash: str = PrivateAttr(default="")
    _document: yamltext.Document | None = PrivateAttr(default=None)
    _files: tuple[Path, ...] = PrivateAttr(default=())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @property
    def rule_files(self) -> tuple[RuleFile, ...]:
        """With what lint and `bridge test` need of them; none after `let_go_of_files`."""
        return self._rule_files

    def let_go_of_files(self) -> None:
        """What runs needs their rules and alerts alone; the rest of 10,000 rules takes 10 MB."""
        self._rule_files = ()

    @property
    def rule_set(self) -> RuleSet:
        return self._rules

    @property
    def alert_set(self) -> AlertSet:
        return self._alerts

    def names(self) -> list[str]:
        """What `names: auto` asks The Things Stack for: all that rules and alerts need; [] for everything."""
        return upstream_names([*(rule.match for rule in self._rules.rules), *self._alerts.matchers()])

    @property
    def hash(self) -> str:
        """Of the files and overrides it was made from: the same on every copy that runs the same config."""
        return self._hash

    def mistake(self, path: yamltext.Path, advice: str) -> Mistake:
        """*advice* on the key at *path* of the file, with its line."""
        document = self._document or yamltext.Document("", None, {})
        return document.mistake(path, advice)

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything it was made from: itself, folders and files of rules, secrets."""
        return self._files

    @property
    def nats(self) -> jetstream.Address | None:
        """None where the outbox is a file."""
        return jetstream.parse(self.outbox) if jetstream.is_nats(self.outbox) else None

    @property
    def outbox_path(self) -> Path:
        """Only where `nats` is None."""
        return Path(self.outbox.removeprefix("sqlite:"))


def as_written(path: yamltext.Path) -> bool:
    """Identifiers and names keep their text: an application may be called `off` or `0123`."""
    return path[:1] == ("sources",) and len(path) > 2 and path[2] in ("identifiers", "names", "user")


def load(path: Path, environ: Mapping[str, str], *, no_secrets: bool = False) -> Config:
    """The config of the file *path*; raises ConfigError with every mistake in it and its rule files.

    *no_secrets* puts a placeholder wherever one is asked for.
    """
    text = read(path, str(path), "write one, or name it with -c")
    written = yamltext.parse(text, str(path), as_written)
    if written.value is not None and not isinstance(written.value, dict):
        raise ConfigError([Mistake(str(path), 1, "", "must be a map with sources, sinks and rules")])
    found: list[Mistake] = []
    document = written
    value: Any = {}
    try:
        document = overridden(written, environ, Config.model_fields.keys())
        value = document.value
        resolve = (
            references.placeholders(document.value)
            if no_secrets
            else references.from_environment(environ, path.parent)
        )
        value = references.resolved(document, resolve)
    except ConfigError as error:
        found.extend(error.mistakes)
    rule_files, texts = rules_of(document, path.parent, found)
    with labelled([label for each in rule_files for alert in each.alerts for label in alert.label_names()]):
        config = validated(document, value, path.parent, found)
    if found or config is None:
        raise ConfigError(found)
    config._document = document
    config._rule_files = tuple(rule_files)
    config._rules = RuleSet.of([rule for each in rule_files for rule in each.rules], catalogue().is_int64)
    config._alerts = AlertSet([alert for each in rule_files for alert in each.alerts], catalogue().is_int64)
    config._files = (
        path,
        *rule_places(document, path.parent),
        *references.files(document.value, path.parent),
    )
    config._hash = hashlib.sha256("\0".join([repr(document.value), *texts]).encode()).hexdigest()
    return config


def validated(document: yamltext.Document, value: Any, folder: Path, found: list[Mistake]) -> Config | None:
    try:
        with relative_to(folder):
            config = Config(**value)
    except ValidationError as error:
        known = {mistake.key for mistake in found}
        found.extend(each for each in mistakes(error, document, Config) if each.key not in known)
        return None
    host = config.admin.listen.rpartition(":")[0].strip("[]")
    if config.admin.token is None and not is_loopback(host):
        advice = "listening beyond loopback needs admin.token; set it, or listen on 127.0.0.1"
        found.append(document.mistake(("admin", "listen"), advice))
    return config


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def rules_of(
    document: yamltext.Document, folder: Path, found: list[Mistake]
) -> tuple[list[RuleFile], list[str]]:
    """The rule files, and the texts they were made from."""
    value = document.value or {}
    sinks = [str(name) for name in value.get("sinks") or {}]
    files: list[RuleFile] = []
    texts: list[str] = []
    for path in rule_paths(document, folder, found):
        try:
            text = read(path, str(path), "correct the path in rules")
            texts.append(text)
            files.append(parse_rules(text, str(path), sinks=sinks))
        except ConfigError as error:
            found.extend(error.mistakes)
    found.extend(clashes(files))
    return files, texts


def rule_paths(document: yamltext.Document, folder: Path, found: list[Mistake]) -> Iterator[Path]:
    """Every file the patterns of `rules` name, once; a pattern that names none is a mistake."""
    value = (document.value or {}).get("rules")
    patterns = [RULES] if value is None else [value] if isinstance(value, str) else value
    seen: set[Path] = set()
    for number, pattern in enumerate(patterns if isinstance(patterns, list) else []):
        if not isinstance(pattern, str) or not pattern:
            continue
        paths = sorted(matching(folder, pattern))
        if not paths and value is not None:
            found.append(document.mistake(("rules", number), "no such file; correct the path"))
        yield from (path for path in paths if path not in seen)
        seen.update(paths)


def rule_places(document: yamltext.Document, folder: Path) -> list[Path]:
    """The rule files, and the folders in which a pattern may find more of them."""
    files = list(rule_paths(document, folder, []))
    return sorted({*files, *(file.parent for file in files)})


def matching(folder: Path, pattern: str) -> list[Path]:
    if not any(sign in pattern for sign in "*?["):
        path = folder / pattern
        return [path] if path.exists() else []
    where = Path(pattern)
    if where.is_absolute():
        return list(Path(where.anchor).glob(str(where.relative_to(where.anchor))))
    return list(folder.glob(pattern))


def read(path: Path, shown: str, advice: str) -> str:
    """The text of a file; raises ConfigError."""
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError([Mistake(shown, 0, "", f"cannot be read: {error.strerror}; {advice}")]) from None
    except UnicodeDecodeError:
        raise ConfigError([Mistake(shown, 0, "", "is not UTF-8 text")]) from None


def path_from(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """`-c`, else `$BRIDGE_CONFIG`, else ./bridge.yaml."""
    return given or Path(environ.get("BRIDGE_CONFIG") or "bridge.yaml")
