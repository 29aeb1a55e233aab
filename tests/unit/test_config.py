"""bridge.yaml: what it takes, what it says of mistakes, and that it repeats no value."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config import Config, load
from bridge.errors import ConfigError
from bridge.sinks.webhook import WebhookConfig
from bridge.sources.models import ReplaySourceConfig, TtsSourceConfig

SECRET = "hunter2hunter2"

WHOLE = """\
sources:
  eu1:
    type: tts
    url: https://eu1.cloud.thethings.network/api/v3
    api_key: ${env:TTS_API_KEY}
    identifiers:
      - application: plant-a
      - gateway: off
sinks:
  crm:
    type: webhook
    url: https://crm.example/hook
    headers: {X-Env: prod}
rules: [rules.yaml]
"""
RULES = "rules:\n  - name: all\n    match: {}\n    send: [crm]\n"
ENVIRON = {"TTS_API_KEY": SECRET}


def loaded(
    folder: Path, text: str = WHOLE, environ: Mapping[str, str] = ENVIRON, rules: str = RULES
) -> Config:
    (folder / "bridge.yaml").write_text(text)
    (folder / "rules.yaml").write_text(rules)
    return load(folder / "bridge.yaml", environ)


def advice(folder: Path, text: str, environ: Mapping[str, str] = ENVIRON, rules: str = RULES) -> list[str]:
    """The mistakes of *text*, with file names cut to their last part."""
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, environ, rules)
    said = str(caught.value)
    assert SECRET not in said
    return said.replace(f"{folder}/", "").splitlines()


def webhook(config: Config) -> WebhookConfig:
    sink = config.sinks["crm"]
    assert isinstance(sink, WebhookConfig)
    return sink


def tts(config: Config) -> TtsSourceConfig:
    source = config.sources["eu1"]
    assert isinstance(source, TtsSourceConfig)
    return source


def test_a_whole_file_is_taken_with_the_documented_defaults(tmp_path: Path) -> None:
    """The figures of DESIGN.md §2.2."""
    config = loaded(tmp_path)
    assert tts(config).api_key.get_secret_value() == SECRET
    assert tts(config).url == "https://eu1.cloud.thethings.network"
    assert (tts(config).overlap, tts(config).recycle) == (10.0, 240.0)
    assert (webhook(config).max_in_flight, webhook(config).timeout) == (64, 10.0)
    assert (webhook(config).retry.initial, webhook(config).retry.max) == (5.0, 3600.0)
    assert config.durability == "power"
    assert (config.dedup_window, config.max_size) == (172_800.0, 4 * 2**30)
    assert config.dead_letter_retention == 30 * 86_400.0
    assert config.outbox_path == Path("bridge.db")
    assert [rule.name for rule in config.rule_set.rules] == ["all"]


def test_identifiers_are_taken_as_they_are_written(tmp_path: Path) -> None:
    """A gateway may be called `off`, which YAML 1.1 makes false."""
    assert [entity.id for entity in tts(loaded(tmp_path)).entities] == ["plant-a", "off"]


def test_paths_are_relative_to_the_file_they_stand_in(tmp_path: Path) -> None:
    """Not to the working directory."""
    text = "sources: {lab: {type: replay, path: recorded.sse}}\n"
    (tmp_path / "bridge.yaml").write_text(text)
    source = load(tmp_path / "bridge.yaml", {}).sources["lab"]
    assert isinstance(source, ReplaySourceConfig)
    assert source.path == tmp_path / "recorded.sse"


def test_a_secret_comes_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    """As Kubernetes mounts them, and as editors write them."""
    (tmp_path / "key").write_text(f"{SECRET}\n")
    config = loaded(tmp_path, WHOLE.replace("${env:TTS_API_KEY}", "${file:key}"))
    assert tts(config).api_key.get_secret_value() == SECRET


def test_secrets_are_in_no_repr(tmp_path: Path) -> None:
    """Neither in logs nor in tracebacks."""
    config = loaded(tmp_path)
    assert SECRET not in repr(config)
    assert SECRET not in str(config.model_dump())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("${env:TTS_API_KEY}", "${env:NO_SUCH}", "5: sources.eu1.api_key: environment variable NO_SUCH"),
        ("${env:TTS_API_KEY}", "${file:nope}", "5: sources.eu1.api_key: the secret file cannot be read"),
        ("${env:TTS_API_KEY}", "x${env:A}", "5: sources.eu1.api_key: ${env:...} and ${file:...} must be"),
        (
            "    url: https://crm",
            "    urll: https://crm",
            "12: sinks.crm.urll: unknown key; did you mean url?",
        ),
        ("type: webhook", "type: webhok", "11: sinks.crm.type: must be one of"),
        ("type: tts", "type: [tts]", "3: sources.eu1.type: must be one of"),
        ("https://crm.example/hook", "crm.example", "12: sinks.crm.url: write a URL such as"),
        ("headers: {X-Env: prod}", "timeout: 10", "13: sinks.crm.timeout: write a duration with its unit"),
        ("headers: {X-Env: prod}", "qos: 1", "13: sinks.crm.qos: is no key of this section"),
        ("headers: {X-Env: prod}", "rety: {}", "13: sinks.crm.rety: unknown key; did you mean retry?"),
        ("rules: [rules.yaml]", "rules: [nope.yaml]", "14: rules[0]: no such file"),
        ("rules: [rules.yaml]", "outbox: mysql://x", "14: outbox: write sqlite:bridge.db"),
        ("rules: [rules.yaml]", "admin: {listen: 8080}", "14: admin.listen: write host:port"),
        ("rules: [rules.yaml]", "admin: {listen: '0.0.0.0:8080'}", "14: admin.listen: listening beyond"),
        ("rules: [rules.yaml]", "redact: [data.]", "14: redact[0]: write a path as"),
        ("  crm:", "  c r m:", "10: sinks.c r m"),
        ("    type: webhook\n", "", "10: sinks.crm.type: is required"),
        (
            "headers: {X-Env: prod}",
            "batch: {max_events: 2}\n    content_type: text/plain",
            "13: sinks.crm.batch: a batch is JSON, and content_type says something else",
        ),
        (
            "headers: {X-Env: prod}",
            "format: template\n    template: '{{ nope }}'",
            "14: sinks.crm.template: nope is not defined; there is",
        ),
        ("headers: {X-Env: prod}", "format: template", "10: sinks.crm.template: goes with format: template"),
        ("rules: [rules.yaml]", "max_size: 5", "14: max_size: must be at least 1048576"),
        ("rules: [rules.yaml]", "admin: [x]", "14: admin: must be a map"),
        ("rules: [rules.yaml]", "log: 5", "14: log: must be a map"),
        ("headers: {X-Env: prod}", "batch: {max_events: many}", "13: sinks.crm.batch.max_events: must be a"),
        ("headers: {X-Env: prod}", "allow_private_networks: 5", "13: sinks.crm.allow_private_networks: must"),
        ("      - gateway: off", "      - gateway: Off Grid", "8: sources.eu1.identifiers[1]: ids are"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_to_do(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    """One line each."""
    assert old in WHOLE
    said_all = advice(tmp_path, WHOLE.replace(old, new))
    assert any(line.startswith(f"bridge.yaml:{said}") for line in said_all), said_all


def test_a_list_with_wrong_entries_is_not_called_empty_too(tmp_path: Path) -> None:
    """Only what is wrong is told."""
    wrong = WHOLE.replace("application: plant-a", "aplication: x").replace("gateway: off", "gateway: A B")
    assert [line.split(": ")[1] for line in advice(tmp_path, wrong)] == [
        "sources.eu1.identifiers[0].aplication",
        "sources.eu1.identifiers[1]",
    ]
    empty = WHOLE.replace("\n      - application: plant-a\n      - gateway: off", " []")
    assert advice(tmp_path, empty) == ["bridge.yaml:6: sources.eu1.identifiers: must not be empty"]


def test_all_mistakes_of_all_files_come_at_once(tmp_path: Path) -> None:
    """Nobody corrects one, runs, corrects the next."""
    text = WHOLE.replace("timeout", "x").replace("type: webhook", "type: webhook\n    timout: 1s")
    said = advice(tmp_path, text.replace("eu1:", "eu1:\n    recicle: 1m"), {}, RULES.replace("crm", "crn"))
    assert [line.split(":")[0] for line in said] == ["bridge.yaml"] * 3 + ["rules.yaml"]


def test_no_file_is_one_clear_line(tmp_path: Path) -> None:
    """With what to do."""
    with pytest.raises(ConfigError, match=r"bridge\.yaml: cannot be read: No such file.*-c"):
        load(tmp_path / "bridge.yaml", {})


def test_placeholders_stand_for_secrets_where_none_are_at_hand(tmp_path: Path) -> None:
    """`check --no-secrets` in CI: everything else is still checked."""
    text = WHOLE.replace("https://crm.example/hook", "${env:CRM_URL}\n    secret: ${file:/run/secrets/crm}")
    (tmp_path / "bridge.yaml").write_text(text)
    (tmp_path / "rules.yaml").write_text(RULES)
    config = load(tmp_path / "bridge.yaml", {}, no_secrets=True)
    assert webhook(config).url == "https://placeholder.invalid"


def test_variables_lie_over_the_file(tmp_path: Path) -> None:
    """Case ignored, `-` written `_`, values as YAML."""
    environ = ENVIRON | {
        "BRIDGE_SINKS__CRM__TIMEOUT": "5s",
        "BRIDGE_SINKS__CRM__HEADERS__X_ENV": "staging",
        "BRIDGE_SINKS__CRM__RETRY": "{initial: 1s}",
        "BRIDGE_OUTBOX": "sqlite:/data/x.db",
        "BRIDGE_ADMIN__LISTEN": "127.0.0.1:9",
    }
    config = loaded(tmp_path, environ=environ)
    assert webhook(config).timeout == 5.0
    assert webhook(config).headers["X-Env"].get_secret_value() == "staging"
    assert webhook(config).retry.initial == 1.0
    assert config.outbox_path == Path("/data/x.db")
    assert config.admin.listen == "127.0.0.1:9"


def test_what_kubernetes_sets_is_ignored(tmp_path: Path) -> None:
    """A service called bridge gives every pod BRIDGE_PORT."""
    environ = ENVIRON | {"BRIDGE_PORT": "tcp://10.0.0.1:80", "BRIDGE_SERVICE_HOST": "10.0.0.1"}
    assert loaded(tmp_path, environ=environ).hash


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("BRIDGE_SINKS__CRN__TIMEOUT", "5s", "$BRIDGE_SINKS__CRN__TIMEOUT: sinks has no entry crn"),
        ("BRIDGE_SNKS__CRM__TIMEOUT", "5s", "$BRIDGE_SNKS__CRM__TIMEOUT: snks is no key of the config"),
        ("BRIDGE_OUTBOX__X", "5s", "$BRIDGE_OUTBOX__X: outbox"),
        (
            "BRIDGE_SINKS__CRM__TIMEOUT",
            SECRET,
            "$BRIDGE_SINKS__CRM__TIMEOUT: sinks.crm.timeout: write a duration",
        ),
        ("BRIDGE_SINKS__CRM__TIMEOUT", "[", "$BRIDGE_SINKS__CRM__TIMEOUT: its value is not YAML"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, variable: str, value: str, said: str) -> None:
    """It has no line, so its name stands there."""
    text = WHOLE + "outbox: sqlite:bridge.db\n"
    assert any(line.startswith(said) for line in advice(tmp_path, text, ENVIRON | {variable: value}))


def test_the_hash_is_of_what_runs(tmp_path: Path) -> None:
    """The same for the same files, another for another rule or variable."""
    first = loaded(tmp_path).hash
    assert loaded(tmp_path).hash == first
    assert loaded(tmp_path, rules=RULES.replace("all", "every")).hash != first
    assert loaded(tmp_path, environ=ENVIRON | {"BRIDGE_DURABILITY": "process"}).hash != first


@given(st.text(max_size=200))
def test_garbage_is_a_config_error_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Whatever stands in the file."""
    folder = tmp_path_factory.mktemp("garbage")
    (folder / "bridge.yaml").write_text(text, newline="")
    with suppress(ConfigError):
        load(folder / "bridge.yaml", {})
