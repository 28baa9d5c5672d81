"""Metrics, health and dashboard of a side: who gets in, and who does not. A real process."""

import json

import pytest

from silotune.errors import ConfigError
from silotune.observe import read_token, read_url
from silotune.observe_config import ObserveConfig

SERVER = 'name = "here"\npublic_address = "127.0.0.1:1"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory, observed):
    made = tmp_path_factory.mktemp("observed")
    (made / "server.toml").write_text(SERVER)
    with observed.running(made):
        yield made


def test_health_needs_no_token_and_says_why_not(folder, observed):
    answer, text = observed.ask(folder, "/health")
    assert (answer.status, text) == (503, "not running\n")


def test_everything_else_needs_the_token(folder, observed):
    token = read_token(folder)
    assert (folder / "observe.token").stat().st_mode & 0o777 == 0o600
    for path, headers in (
        ("/metrics", {}),
        ("/", {}),
        ("/health/../metrics", {}),
        ("//metrics", {}),
        ("/metrics?token=", {}),
        ("/metrics?token=guess", {}),
        ("/metrics", {"Authorization": "Bearer"}),
        ("/metrics", {"Authorization": f"Bearer {token}x"}),
        ("/metrics", {"Authorization": f"Basic {token}"}),
        ("/metrics", {"Cookie": f"silotune={token}"}),
    ):
        assert observed.ask(folder, path, **headers)[0].status == 401, (path, headers)
    assert observed.ask(folder, "/health", method="POST")[0].status == 401
    answer, text = observed.ask(folder, "/metrics", Authorization=f"Bearer {token}")
    assert answer.status == 200
    assert "silotune_process_ready" in text


def test_a_browser_gets_a_cookie_and_an_address_without_the_token(folder, observed):
    token = read_token(folder)
    answer, _ = observed.ask(folder, f"/metrics?token={token}&x=1")
    assert answer.status == 303
    assert answer.headers["location"] == "/metrics?x=1"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    kept = cookie.partition(";")[0]
    assert observed.ask(folder, "/metrics", Cookie=kept)[0].status == 200
    assert observed.ask(folder, f"//evil.example?token={token}")[0].headers["location"][:2] == "/e"


def test_another_page_cannot_post_with_the_cookie_nor_under_another_name(folder, observed):
    token = read_token(folder)
    cookie = observed.ask(folder, f"/?token={token}")[0].headers["set-cookie"].partition(";")[0]
    own = read_url(folder)
    # 404: past the guard, and nothing is mounted there.
    assert observed.ask(folder, "/x", method="POST", Cookie=cookie, Origin=own)[0].status == 404
    for origin in ("http://evil.example", "null", own + "0"):
        headers = {"Cookie": cookie, "Origin": origin}
        assert observed.ask(folder, "/x", method="POST", **headers)[0].status == 403
    assert observed.ask(folder, "/x", method="POST", Cookie=cookie)[0].status == 403
    assert observed.ask(folder, "/health", Host="evil.example")[0].status == 421
    named = {"Host": "evil.example:80", "Authorization": f"Bearer {token}"}
    assert observed.ask(folder, "/metrics", **named)[0].status == 421


def test_it_comes_back_at_the_same_address(tmp_path, observed):
    (tmp_path / "server.toml").write_text(SERVER)
    with observed.running(tmp_path):
        first, token = read_url(tmp_path), read_token(tmp_path)
    with observed.running(tmp_path):
        assert (read_url(tmp_path), read_token(tmp_path)) == (first, token)
    assert json.loads((tmp_path / "run" / "observe.json").read_text())["url"] == first


def test_an_address_that_others_reach_must_be_asked_for():
    for host in ("0.0.0.0", "192.168.1.4", "::", "silo.example"):
        with pytest.raises(ConfigError, match="not noised"):
            ObserveConfig(host=host)
        assert ObserveConfig(host=host, expose=True).host == host
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"):
        ObserveConfig(host=host)
