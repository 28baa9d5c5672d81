"""Units, image and compose file: read as their programs read them, and held against the CLI.

No container engine runs here, so no image is built: what holds is what these tests read.
"""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from silotune.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SIDES = {"silotune-server.service": "server", "silotune-client@.service": "client"}
HARDENED = {
    "NoNewPrivileges": "true",
    "ProtectSystem": "strict",
    "ProtectHome": "true",
    "PrivateTmp": "true",
    "CapabilityBoundingSet": "",
    "RestrictNamespaces": "true",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "SystemCallFilter": "@system-service",
    "UMask": "0077",
    "LimitCORE": "0",
    "Restart": "always",
    "KillMode": "mixed",
}


def unit(path):
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(path.read_text())
    return {name: dict(parser[name]) for name in parser.sections()}


def options(words):
    """The command of the CLI that ``words`` name, with its options; fails where there is none."""
    command = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"`silotune` has no {name!r}"
        command = command.commands[name]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    for word in words:
        if word.startswith("-"):
            assert word in known, f"{command.name} has no {word}"
    # Parses: every argument that it needs is there.
    command.make_context(command.name, list(words)).close()
    return words


def test_there_is_a_unit_for_each_side():
    assert {u.name for u in UNITS} == set(SIDES)


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_a_unit_starts_what_the_cli_has_in_its_own_folder_without_rights(path):
    found = unit(path)
    service = found["Service"]
    for key, value in HARDENED.items():
        assert service[key] == value, key
    assert service["User"] not in ("root", "nobody", "")
    program, *words = shlex.split(service["ExecStart"])
    assert program == "/opt/silotune/bin/silotune"
    assert words[:3] == [SIDES[path.name], "start", "--foreground"]
    options(words)
    state = f"/var/lib/{service['StateDirectory']}"
    assert service["WorkingDirectory"] == state
    # ProtectSystem=strict: nothing else can be written.
    assert words[-1].startswith(f"{state}/")
    assert service["StateDirectoryMode"] == "0700"
    assert ("%i" in words[-1]) == ("@" in path.name)
    # A supervisor waits 15 s for its processes.
    assert int(service["TimeoutStopSec"]) > 15
    assert found["Unit"]["StartLimitIntervalSec"] == "0"


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_systemd_reads_the_units(path, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    # Its program is elsewhere on this machine.
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/opt/silotune/bin/silotune", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    copy.write_text(copy.read_text().replace("Restart=always", "Restart=whenever"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True
    )
    assert "whenever" in done.stderr


def container():
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    lines = [x for x in text.splitlines() if x and not x.startswith("#")]
    return [tuple(x.split(None, 1)) for x in lines]


def test_the_image_holds_the_source_and_no_folder_with_keys():
    lines = container()
    copied = [arguments.split() for word, arguments in lines if word == "COPY"]
    for sources in copied:
        for source in sources[:-1]:
            if not source.startswith(("--from=", "/opt/")):
                assert (ROOT / source).exists(), source
    names = {s for c in copied for s in c[:-1] if not s.startswith("-")}
    # Named one by one: nothing that lies in the tree gets in by itself.
    assert names == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "CHANGELOG.md"),
        *("silotune", "privacy", "client", "server", "simulations", "/opt/silotune"),
    }
    assert not [word for word, _ in lines if word == "ADD"]
    allowed = (DEPLOY / "Containerfile.dockerignore").read_text().split()
    assert {x[1:] for x in allowed if x.startswith("!")} == names - {"/opt/silotune"}


def test_the_image_runs_as_a_user_without_rights():
    lines = container()
    stages = [i for i, (word, _) in enumerate(lines) if word == "FROM"]
    last = dict(lines[stages[-1] :])
    assert last["USER"] == "10001:10001"
    assert "--uid 10001" in last["RUN"]
    assert last["WORKDIR"] == last["VOLUME"] == "/var/lib/silotune"
    assert last["ENTRYPOINT"] == '["silotune"]'
    assert (ROOT / "pyproject.toml").read_text().count('silotune = "silotune.cli:run"') == 1


def test_the_compose_file_keeps_merchants_apart_and_starts_what_the_cli_has():
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = found["services"]
    assert set(services) == {"aggregator", "merchant-a", "merchant-b"}
    for name, one in services.items():
        assert one["user"] == "10001:10001"
        assert one["cap_drop"] == ["ALL"]
        assert one["read_only"] is True
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert one["restart"] == "always"
        # No secret, key or environment of any kind in the file.
        assert not {"environment", "env_file", "secrets", "privileged"} & set(one)
        side = "server" if name == "aggregator" else "client"
        words = options(one["command"])
        assert one["command"][:3] == [side, "start", "--foreground"]
        health = one["healthcheck"]["test"]
        assert health[:2] == ["CMD", "silotune"]
        assert options(health[2:]) == [words[-1]]
        # Its folder is on its own volume.
        (volume,) = one["volumes"]
        source, target = volume.split(":")
        assert source in found["volumes"]
        assert words[-1].startswith(f"{target}/")
        assert (ROOT / "deploy" / one["build"]["context"]).resolve() == ROOT
        assert (ROOT / one["build"]["dockerfile"]).exists()
    assert len({one["volumes"][0] for one in services.values()}) == 3
    # One way in, to the aggregator; merchants share no network with each other.
    assert [name for name, one in services.items() if "ports" in one] == ["aggregator"]
    merchants = [set(one["networks"]) for name, one in services.items() if name != "aggregator"]
    assert not set.intersection(*merchants)
    for networks in merchants:
        assert networks & set(services["aggregator"]["networks"])
        assert networks <= set(found["networks"])


def test_commands_in_comments_exist_too():
    for path in (DEPLOY / "compose.yaml", DEPLOY / "systemd" / "silotune-server.service"):
        for side, command in re.findall(
            r"\b(server|client) (init|start|enrol)\b", path.read_text()
        ):
            assert command in typer.main.get_command(app).commands[side].commands
