"""Both dashboards in a real browser, from a real federation."""

import contextlib
import http.server
import json
import re
import shutil
import threading
import time

import pytest

from silotune.observe import read_token, read_url
from silotune.supervision import read_state

HOSTILE = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def browser():
    """The machine's own Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        pytest.skip("no chromium on this machine (`apt-get install chromium`)")
    with playwright.sync_playwright() as runner:
        # Chromium's sandbox does not start for root.
        one = runner.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def opened(browser):
    """Open a page; it fails on anything that the page complains of."""
    with contextlib.ExitStack() as stack:
        complaints = []

        def open_(url, width=1200, **options):
            context = browser.new_context(viewport={"width": width, "height": 900}, **options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
            page.on("request", lambda r: r.url.startswith(url[:17]) or complaints.append(r.url))
            page.goto(url)
            return page

        yield open_
        assert [c for c in complaints if "data:," not in c] == []


@pytest.fixture(scope="module")
def trained(federation):
    run = federation.run_file(name="shown")
    federation.until_online(2)
    federation.silotune("server", "run", federation.server, run)
    return federation


def _address(folder):
    return f"{read_url(folder)}/?token={read_token(folder)}"


def test_the_commands_print_the_address_and_only_one_of_them_the_token(trained):
    silo = trained.silos[0]
    for side, folder in (("server", trained.server), ("client", silo)):
        assert trained.silotune(side, "dashboard", folder).strip() == _address(folder)
        said = trained.silotune(side, "status", folder)
        assert read_url(folder) in said
        assert read_token(folder) not in said


def test_the_aggregators_page_shows_the_run_and_leaves_no_token_in_the_address(trained, opened):
    page = opened(_address(trained.server))
    assert page.url == read_url(trained.server) + "/"
    assert "3 of 3 rounds done" in page.inner_text("#part-run")
    rows = page.locator("#part-rounds tbody tr")
    assert rows.count() == 3
    merchants = page.inner_text("#part-merchants")
    for silo in trained.silos:
        assert silo.name in merchants
    assert merchants.count("3 of 3") == 2
    assert page.evaluate("document.cookie") == ""


def test_the_merchants_page_shows_what_its_ledger_says(trained, opened):
    silo = trained.silos[0]
    rows = json.loads(trained.silotune("client", "ledger", "show", silo, "--json"))
    page = opened(_address(silo))
    text = page.inner_text("main")
    assert f"ε ≤ {rows[-1]['epsilon']:.2f}"[:-1] in text
    assert "verified" in page.inner_text("#part-budget")
    for row in rows:
        assert row["sha256"] in page.inner_html("#part-releases")
    assert "promotion-response" in page.inner_text("#part-policy")


def test_the_page_follows_what_happens_and_keeps_what_the_reader_opened(trained, opened):
    page = opened(_address(trained.server))
    page.locator("#settings summary").click()
    page.locator("h1").click()
    path = trained.server / "runs" / "shown" / "status.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"state": "failed", "message": HOSTILE}))
        page.locator(".banner", has_text="window.pwned").first.wait_for()
        assert page.evaluate("window.pwned") is None
        assert page.locator("#part-run img").count() == 0
    finally:
        path.write_text(before)
    page.locator("#part-run .state", has_text="finished").wait_for()
    assert page.locator("#settings").get_attribute("open") is not None


def test_a_merchants_name_is_text_in_a_real_browser(trained, opened):
    path = trained.server / "merchants" / "hostile.json"
    path.write_text(json.dumps({"name": HOSTILE, "public_key": "k", "nominal_users": 1}))
    try:
        page = opened(_address(trained.server))
        page.wait_for_timeout(1500)
        assert page.evaluate("window.pwned") is None
        assert page.locator("img").count() == 0
        assert HOSTILE[:20] in page.inner_text("#part-head")
    finally:
        path.unlink()


def test_it_is_read_without_script_and_at_the_width_of_a_telephone(trained, opened):
    for folder in (trained.server, trained.silos[0]):
        page = opened(_address(folder), width=360, java_script_enabled=False)
        assert page.locator("table").count() > 1
        assert page.locator("svg[role=img][aria-label]").count() == page.locator("svg").count() > 0
        assert page.locator("th:not([scope])").count() == 0
        width = opened(_address(folder), width=360).evaluate("document.body.scrollWidth")
        assert width <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(trained, opened, scheme):
    page = opened(_address(trained.silos[0]), color_scheme=scheme)
    read = "n => getComputedStyle(document.documentElement).getPropertyValue(n).trim()"
    colour = {n: page.evaluate(read, f"--{n}") for n in (*_INKS, *_GROUNDS)}
    for ink in _INKS:
        for ground in _GROUNDS:
            # WCAG 2.2, 1.4.3: text of ordinary size.
            assert _contrast(colour[ink], colour[ground]) >= 4.5, (scheme, ink, ground)


_INKS, _GROUNDS = ("ink", "muted", "blue", "green", "vermillion"), ("page", "surface")


def _contrast(one, other):
    def luminance(text):
        parts = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_without_the_token_or_by_another_name_nothing_is_shown(trained, observed):
    silo = trained.silos[0]
    bearer = {"Authorization": f"Bearer {read_token(silo)}"}
    for path in ("/", "/state.json", "/?token=guess", "/client.toml", "/../client.toml"):
        answer, text = observed.ask(silo, path)
        assert (answer.status, len(text) < 100) == (401, True)
    for method in ("POST", "GET"):
        assert observed.ask(silo, "/stop", method)[0].status == 401
    assert observed.ask(silo, f"/stop?token={read_token(silo)}", "POST")[0].status == 401
    assert observed.ask(silo, "/", **bearer, Host="rebound.example")[0].status == 421
    assert observed.ask(silo, "/client.toml", **bearer)[0].status == 404
    assert observed.ask(silo, "/stop", **bearer)[0].status == 405


@contextlib.contextmanager
def _page_of_someone_else(html):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_another_page_of_this_machine_cannot_press_the_button(trained, browser, host):
    silo = trained.silos[0]
    before = read_state(silo)
    form = f'<form method="post" action="{read_url(silo)}/stop"></form>'
    with _page_of_someone_else(f"{form}<script>document.forms[0].submit()</script>") as port:
        context = browser.new_context()
        page = context.new_page()
        # The reader has the dashboard open: the cookie is there, and same-site with any port.
        page.goto(_address(silo))
        with page.expect_response(re.compile("/stop$")) as caught:
            page.goto(f"http://{host}:{port}/")
        assert caught.value.status in (401, 403)
        context.close()
    time.sleep(1)
    assert read_state(silo) == before


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_link_of_another_page_leads_there(trained, browser, host):
    # A strict cookie is not sent along a redirect that another site's page began.
    link = f'<a href="{_address(trained.server)}">there</a>'
    with _page_of_someone_else(link) as port, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"http://{host}:{port}/")
        page.locator("a").click()
        page.locator("#part-run").wait_for()
        assert page.url == read_url(trained.server) + "/"


def test_the_step_of_a_link_holds_neither_the_token_nor_what_its_address_says(trained, observed):
    token = read_token(trained.server)
    hostile = f"/%22%3E%3Cscript%3E?token={token}&y=%22%3E%3Cscript%3E"
    answer, text = observed.ask(trained.server, hostile, **{"Sec-Fetch-Site": "cross-site"})
    assert answer.status == 200
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert text.count("<") == 1
    assert token not in text


def test_the_button_stops_the_silo_by_keyboard_without_script_and_it_starts_again(trained, browser):
    silo = trained.silos[1]
    ledger = trained.silotune("client", "ledger", "show", silo, "--json")
    with (
        browser.new_context(java_script_enabled=False) as plain,
        browser.new_context() as scripted,
    ):
        watching = scripted.new_page()
        watching.goto(_address(silo))
        page = plain.new_page()
        page.goto(_address(silo))
        page.locator("summary", has_text="Stop this silo").focus()
        for key in ("Enter", "Tab", "Enter"):
            page.keyboard.press(key)
        page.locator("text=Stopping.").wait_for(timeout=60_000)
        until = time.monotonic() + 60
        while read_state(silo) is not None:
            assert time.monotonic() < until, trained.logs()
            time.sleep(0.1)
        watching.locator("#gone", has_text="does not answer").wait_for(timeout=60_000)
    assert trained.silotune("client", "ledger", "show", silo, "--json") == ledger
    trained.silotune("client", "ledger", "verify", silo)
    trained.silotune("client", "start", silo)
    trained.until_online(2)
