"""The page in a real browser, while a real client trains."""

import itertools
import re
from pathlib import Path

import httpx
import pytest
from curvserve_client import Client, RemoteSession, connect
from curvserve_client.errors import NonFinite

from curvserve.api_keys import new_key
from tests.page.conftest import Opened, Watched
from tests.page.relay import relay
from tests.page.training import batches, train, training
from tests.server.process import PATIENCE, Server, serving

LIVE = "() => document.getElementById('connection').textContent === 'live'"
NETWORK = "Failed to load resource: net::ERR_|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE"

SIGNATURES = """() => Object.fromEntries([...document.querySelectorAll('.card')].map((card) => [
  card.id,
  card.innerText + [...card.querySelectorAll('canvas')].map((each) => each.toDataURL()).join()
]))"""
"""What each panel shows, its words and its pixels."""

MOVED = f"""(before) => {{
  const now = ({SIGNATURES})();
  return Object.keys(before).every((id) => id === 'failures' || now[id] !== before[id]);
}}"""

PANELS = {
    "loss",
    "metrics",
    "curvature",
    "damping",
    "updates",
    "layers",
    "rate",
    "latency",
    "queue",
    "versions",
    "failures",
    "sessions",
    "clients",
}


def version(watched: Watched) -> int:
    """The version at which the page has the newest loss."""
    found = re.search(r"version ([\d,]+)", watched.reading("loss"))
    return int(found[1].replace(",", "")) if found else 0


def knows(watched: Watched, versions: list[int]) -> None:
    """Wait until the page knows these steps, and no others."""
    watched.until("(all) => `${curvserve.steps.map((s) => s.version)}` === `${all}`", versions)


def step_that_overflows(session: RemoteSession) -> None:
    images, labels = next(batches())
    with pytest.raises(NonFinite):
        session.step(images, labels, lr=3e38, damping=1e-30)


def seen(watched: Watched, session: RemoteSession) -> None:
    """Take steps until the page has seen the curvature of one."""
    watched.until(LIVE)
    while not watched.page.evaluate("curvserve.curvature.length"):
        train(session, 1)
    watched.until("(known) => curvserve.version === known", session.version)
    watched.until("() => document.getElementById('layers-reading').textContent.includes('layers')")


def test_a_session_without_steps_says_how_to_begin_and_every_panel_moves_once_it_has_some(
    opened: Opened, server: Server, session: RemoteSession
) -> None:
    watched = opened(f"{server.address}/#{session.name}")
    watched.until(LIVE)
    page = watched.page
    page.wait_for_selector("#begin:not([hidden])")
    assert f'connect("{server.address}", session="{session.name}")' in page.inner_text(
        "#begin-code"
    )
    assert watched.reading("loss") == "No steps yet."
    before = page.evaluate(SIGNATURES)
    assert set(before) == PANELS
    with training(server.address, session.name):
        watched.until(MOVED, before)  # from nothing
        watched.until(MOVED, page.evaluate(SIGNATURES))  # and on
    assert not page.is_visible("#begin")
    assert re.fullmatch(r"[\d.]+ at version \d+", watched.reading("loss"))
    assert re.match(r"accuracy [\d.]+", watched.reading("metrics"))
    assert re.match(r"All layers at version \d+: median [\d.e-]+,", watched.reading("curvature"))
    assert "8 layers" in watched.reading("layers")
    assert re.match(r"Total: p50 [\d.]+ m?s, p95", watched.reading("latency"))
    assert page.locator("#layers tbody th").all_inner_texts()[0] == "0.weight"


def test_a_page_that_is_opened_late_has_the_past_at_once(
    opened: Opened, server: Server, session: RemoteSession
) -> None:
    address = f"{server.address}/#{session.name}"
    train(session, 2)  # nobody watches
    seen(opened(address), session)
    late = opened(address)
    late.until("(known) => curvserve.version === known", session.version)
    late.until("() => document.getElementById('layers-reading').textContent.includes('layers')")
    knows(late, list(range(1, session.version + 1)))
    assert late.page.evaluate("curvserve.curvature[0].version") > 2


def test_everything_is_reached_and_used_by_keyboard(
    opened: Opened, server: Server, session: RemoteSession
) -> None:
    with Client(server.address) as client:
        client.create_session("mnist_cnn", "zz-other").close()
        watched = opened(f"{server.address}/#{session.name}")
        seen(watched, session)
        page = watched.page
        page.wait_for_selector("#session option[value=zz-other]", state="attached")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the panels"
        walked = []
        for _ in range(5):
            page.keyboard.press("Tab")
            walked.append(page.evaluate("document.activeElement.id || document.activeElement.href"))
        assert walked[0] == "session" and walked[1].endswith("/docs") and walked[2] == "theme"
        page.focus("#session")
        page.keyboard.press("ArrowDown")
        watched.until("() => curvserve.session?.name === 'zz-other'")
        assert page.evaluate("location.hash") == "#zz-other"
        watched.until("() => !document.getElementById('begin').hidden")
        page.focus("#session")
        page.keyboard.press("ArrowUp")
        watched.until("(known) => curvserve.version === known", session.version)
        page.focus("#curvature select")
        page.keyboard.press("ArrowDown")
        watched.until(
            "() => document.getElementById('curvature-reading').textContent.startsWith('0.weight')"
        )
        page.focus("#theme")
        page.keyboard.press("Enter")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.reload()  # it is remembered
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        client.delete_session("zz-other")
        page.wait_for_selector("#session option[value=zz-other]", state="detached")


def test_a_step_that_is_not_finite_is_counted_marked_and_announced(
    opened: Opened, server: Server, session: RemoteSession
) -> None:
    watched = opened(f"{server.address}/#{session.name}")
    seen(watched, session)
    assert watched.reading("failures") == "No non-finite steps"
    step_that_overflows(session)
    watched.until(
        "() => document.getElementById('failures-reading').textContent === '1 non-finite step'"
    )
    assert "1 failed (marked)" in watched.reading("loss")
    announced = watched.page.inner_text("#announcer")
    assert re.fullmatch(r"A step failed at version \d+: non_finite", announced)
    assert watched.page.get_attribute("#announcer", "aria-live") == "polite"
    again = opened(f"{server.address}/#{session.name}")  # which was not there when it happened
    again.until(
        "() => document.getElementById('failures-reading').textContent === '1 non-finite step'"
    )


def test_every_control_and_picture_has_a_name(
    opened: Opened, server: Server, session: RemoteSession
) -> None:
    watched = opened(f"{server.address}/#{session.name}")
    seen(watched, session)
    tree = watched.page.locator("body").aria_snapshot()
    roles = "button|link|combobox|checkbox|textbox|img|region|table"
    assert not re.findall(rf"^\s*- (?:{roles})(?:\s*\[.*\])?:?$", tree, re.MULTILINE)
    for named in (
        'combobox "Session"',
        'combobox "Layer"',
        'button "Switch to dark colours"',
        'checkbox "log scale"',
        'heading "Loss" [level=2]',
        'region "Curvature"',
    ):
        assert f"- {named}" in tree, tree
    assert re.search(r"- 'img \"All layers at version \d+: median", tree)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_can_be_told_from_what_is_behind_them(
    opened: Opened, server: Server, scheme: str
) -> None:
    watched = opened(server.address, color_scheme=scheme)
    names = ["ground", "card", "raised", "text", "quiet", "accent", "good", "warn", "bad"]
    lines = [f"series-{number}" for number in range(1, 7)]
    found = watched.page.evaluate(
        """async (names) => {
          const { colour } = await import('/page/elements.js');
          return Object.fromEntries(names.map((name) => [name, colour(name)]));
        }""",
        names + lines,
    )
    assert watched.page.evaluate("document.documentElement.dataset.theme") == scheme
    for behind, text in itertools.product(("ground", "card"), ("text", "quiet", "accent", "bad")):
        assert contrast(found[behind], found[text]) >= 4.5, (behind, text)
    assert contrast(found["raised"], found["text"]) >= 4.5
    for line in [*lines, "good", "warn"]:
        assert contrast(found["card"], found[line]) >= 3, line


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours: WCAG 2.2, success criterion 1.4.3."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_a_phone_shows_everything_without_scrolling_sideways(
    opened: Opened, server: Server, session: RemoteSession
) -> None:
    watched = opened(f"{server.address}/#{session.name}", 390, 844)
    seen(watched, session)
    assert watched.page.evaluate("document.documentElement.scrollWidth") == 390
    cut = watched.page.evaluate(
        "[...document.querySelectorAll('.card')]"
        ".filter((card) => card.scrollWidth > card.clientWidth).map((card) => card.id)"
    )
    assert cut == []


def test_steps_that_were_missed_while_the_wire_was_cut_are_replayed(
    opened: Opened, server: Server, session: RemoteSession
) -> None:
    with relay(server.address) as wire:
        watched = opened(f"{wire.address}/#{session.name}")
        watched.expected = NETWORK
        watched.until(LIVE)
        train(session, 2)
        watched.until("(known) => curvserve.version === known", session.version)
        wire.cut()
        watched.until("() => /^(reconnecting|server gone)/.test(connection.textContent)")
        train(session, 3)
        wire.mend()
        watched.until("(known) => curvserve.version === known", session.version)
        watched.until(LIVE)
        assert "last-event-id" in watched.headers[-1]
        knows(watched, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("kept", [True, False])
def test_a_server_that_was_killed_and_started_again_is_found_again(
    opened: Opened, tmp_path: Path, kept: bool
) -> None:
    arguments = ["--model", "mnist_cnn", "--log-level", "error"]
    arguments += ["--data-dir", str(tmp_path)] if kept else []
    with serving(*arguments) as first:
        watched = opened(first.address)
        watched.expected = NETWORK
        with connect(first.address, model="mnist_cnn") as session:
            train(session, 3)
        watched.until("() => curvserve.version === 3")
        first.process.kill()
        first.process.wait(PATIENCE)
        watched.until("() => /^(reconnecting|server gone)/.test(connection.textContent)")
    with serving(*arguments, "--port", first.address.rpartition(":")[2]) as second:
        with connect(second.address, model="mnist_cnn") as session:
            train(session, 1)
        now = [1, 2, 3, 4] if kept else [1]
        watched.until("(now) => curvserve.version === now.at(-1)", now)
        watched.until(LIVE)
        knows(watched, now)


def test_a_server_with_keys_asks_for_one_and_keeps_it_in_the_tab(
    opened: Opened, tmp_path: Path
) -> None:
    key, entry = new_key("page", ["read"])
    file = tmp_path / "keys.toml"
    file.write_text(entry.to_toml())
    file.chmod(0o600)
    arguments = ("--model", "mnist_cnn", "--api-keys", str(file), "--log-level", "error")
    with serving(*arguments) as guarded:
        watched = opened(guarded.address)
        watched.expected = "401"
        page = watched.page
        page.wait_for_selector("#key-value")
        assert page.evaluate("document.activeElement.id") == "key-value"
        page.keyboard.type("cs_wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-problem:not(:empty)")
        assert page.inner_text("#key-problem") == "no such API key is known here"
        page.fill("#key-value", key)
        page.keyboard.press("Enter")
        watched.until(LIVE)
        watched.until("() => document.querySelector('#clients tbody tr')")
        httpx.get(f"{guarded.address}/livez")  # without a key: its address is not told
        for _ in range(5):
            httpx.get(f"{guarded.address}/v1/models", headers={"Authorization": f"Bearer {key}"})
        watched.until("() => curvserve.status.clients[0].requests > 4")
        assert page.locator("#clients tbody th").all_inner_texts() == ["page"]
        assert not page.is_visible("#key")
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        assert all(key not in url for url in watched.requested)
        page.goto(f"{guarded.address}/docs")
        page.wait_for_selector("details")


def test_a_server_without_sessions_says_how_to_make_one(opened: Opened) -> None:
    with serving("--model", "mnist_cnn", "--log-level", "error") as bare:
        with Client(bare.address) as client:
            client.delete_session("mnist_cnn")
        watched = opened(bare.address)
        watched.page.wait_for_selector("#begin:not([hidden])")
        assert watched.page.inner_text("#begin-title") == "No sessions"
        with Client(bare.address) as client, client.create_session("mnist_cnn", "made") as session:
            watched.until("() => curvserve.session?.name === 'made'")
            train(session, 1)
            watched.until("() => curvserve.version === 1")


def test_the_page_of_the_api_shows_every_call_and_needs_nobody_else(
    opened: Opened, server: Server
) -> None:
    watched = opened(f"{server.address}/docs")
    page = watched.page
    page.wait_for_selector("details")
    document = page.request.get(f"{server.address}/openapi.json").json()
    wanted = {
        f"{method.upper()} {path}" for path, calls in document["paths"].items() for method in calls
    }
    shown = page.eval_on_selector_all(
        "main > details > summary",
        "(all) => all.map(({children: [a, b]}) => `${a.textContent} ${b.textContent}`)",
    )
    assert set(shown) == wanted
    page.focus("main > details > summary")
    page.keyboard.press("Enter")
    assert page.is_visible("main > details .inside")
    assert "POST" in page.inner_text("#calls") and "stale_version" in page.inner_html("#calls")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_page_that_is_written_into_runs_nothing(opened: Opened, server: Server) -> None:
    watched = opened(f"{server.address}/docs")
    watched.expected = "Content Security Policy"
    watched.page.evaluate(
        """() => {
          const script = document.createElement('script');
          script.textContent = 'globalThis.ran = true';
          const picture = document.createElement('img');
          picture.src = 'http://example.org/x.png';
          document.body.append(script, picture);
          return new Promise((resolve) => { picture.onerror = resolve; });
        }"""
    )
    assert watched.page.evaluate("globalThis.ran") is None
    refused = [line for line in watched.said if "Content Security Policy" in line]
    assert any("script-src 'self'" in line for line in refused)
    assert any("img-src 'self'" in line for line in refused)
    watched.requested = [url for url in watched.requested if "example.org" not in url]


CUT = """async (text) => {
  const { Stream } = await import('/page/stream.js');
  globalThis.fetch = async () => new Response(new ReadableStream({ start(controller) {
    for (const byte of new TextEncoder().encode(text)) controller.enqueue(new Uint8Array([byte]));
    controller.close();
  } }));
  const events = [];
  await new Promise((resolve) => {
    const stream = new Stream('/', () => ({}), {
      open: () => {},
      event: (kind, members) => events.push([kind, members]),
      state: (state) => { if (state === 'waiting') { stream.stop(); resolve(); } },
    });
  });
  return events;
}"""
"""Reads a stream that comes byte by byte."""


def test_events_are_whole_however_their_bytes_are_cut(opened: Opened, server: Server) -> None:
    text = (
        ': ping\n\nevent: step\nid: 7\ndata: {"loss":\ndata: "ä€"}\r\n\r\n'
        "event: status\rdata: 1\r\r\n"
    )
    found = opened(f"{server.address}/docs").page.evaluate(CUT, text)
    assert found == [["step", {"loss": "ä€"}], ["status", 1]]
