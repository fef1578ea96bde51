"""The dashboard: its pages, what they show and hide, who may see them and act."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape
from sqlalchemy import event, select, text
from starlette.testclient import TestClient

from pfl_server.app import create_app
from pfl_server.dashboard.access import COUNTED_S, FORM_COOKIE, SESSION_COOKIE, safe_next
from pfl_server.dashboard.charts import BarPart, Level, Line, Mark, Point, bar, line_chart, ticks
from pfl_server.dashboard.sign_in import SESSION_S, Sessions
from pfl_server.federation.config import EvaluationConfig, FederationConfig
from pfl_server.reports import wording as words
from pfl_server.reports.quality import history, shown_groups
from pfl_server.services import Services
from pfl_server.settings import ServerSettings
from pfl_server.storage.models import (
    Assignment,
    AuditEntry,
    EndedSession,
    EnrolledDevice,
    EnrolmentToken,
    EvaluationSum,
    Federation,
    Round,
    Version,
)
from tests.server.conftest import ADMIN_TOKEN, GENEROUS, Clock, Server
from tests.server.filled import GROUPS, fill, filled_config
from tests.server.pages import Node, read

PAGES = ("/", "/live", "/rounds", "/rounds/3", "/rounds/7", "/rounds/12", "/versions", "/privacy", "/devices")
ADMIN_PAGES = ("/tokens", "/audit", "/versions/3/roll-back", "/versions/3/tensors")
HOSTILE = """<script>alert("1")</script>'&quot;{{7*7}}</td>"""


@pytest.fixture
def federation_config() -> FederationConfig:
    return filled_config()


@pytest.fixture
def filled(server: Server) -> Server:
    fill(server.services, rounds=12, devices=150, cohort=30)
    return server


@pytest.fixture
def admin(filled: Server) -> Server:
    """A filled server whose client has signed in."""
    sign_in(filled)
    return filled


def page(server: Server, path: str, status: int = 200) -> Node:
    answer = server.client.get(path)
    assert answer.status_code == status, answer.text
    return read(answer.text)


def sign_in(server: Server, token: str = ADMIN_TOKEN, **more: Any) -> Any:
    form = page(server, "/sign-in").one("form")
    fields = {i.attributes["name"]: i.attributes.get("value", "") for i in form.all("input")}
    return server.client.post("/sign-in", data=fields | {"token": token} | more, follow_redirects=False)


def csrf(server: Server) -> str:
    return page(server, "/tokens").all("form")[0].all("input")[0].attributes["value"]


def act(server: Server, path: str, **fields: str) -> Any:
    return server.client.post(path, data={"csrf": csrf(server)} | fields, follow_redirects=False)


def audit(server: Server) -> list[str]:
    with server.services.database.read() as session:
        return list(session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)))


class TestPages:
    def test_markup_is_sound_and_nothing_is_inline(self, admin: Server) -> None:
        paths = (*PAGES, "/tokens", "/audit", "/versions/3/roll-back")
        for node in (node for path in paths for node in _nodes(page(admin, path))):
            assert node.tag != "style"
            assert not any(name.startswith("on") or name == "style" for name in node.attributes), node
            if node.tag == "script":
                assert node.attributes["src"].startswith("/static/")
            if node.tag in ("input", "select") and node.attributes.get("type") != "hidden":
                assert node.parent is not None
                assert node.parent.tag == "label" or "hidden" in node.attributes, "a field without a label"
            if node.tag == "form" and node.attributes["method"] == "post":
                assert node.all("input")[0].attributes["name"] == "csrf"

    def test_the_overview_of_an_empty_federation_says_so(self, server: Server) -> None:
        sign_in(server)
        root = page(server, "/")
        assert root.one("p", "sentence").text == "No round has begun yet."
        assert not root.all("svg", "chart")
        for path in ("/rounds", "/versions", "/privacy", "/devices", "/tokens"):
            page(server, path)

    def test_the_overview_answers_the_first_questions(self, admin: Server) -> None:
        root = page(admin, "/")
        assert root.one("p", "sentence").text == "Round 12 is open: 18 of 30 updates, 4 min left."
        tiles = [t.text for t in root.one("ul", "tiles").all("li")]
        assert [t.split()[0] for t in tiles] == ["Served", "Right", "Privacy", "Active"]
        steps = [li.all("b")[0].text for li in root.all("ul", "bars")[0].all("li")]
        assert steps == ["Invited", "Downloaded", "Uploaded", "Merged"]
        assert "The update has values that are NaN or infinite" in root.text
        assert "Groups, worst first" in root.text
        assert "rolled back to version 4" in _chart(root).text
        assert "A dotted line marks a roll-back." in root.text

    def test_a_chart_has_lines_axes_and_a_tooltip_for_each_point(self, admin: Server) -> None:
        chart = _chart(page(admin, "/"))
        assert {line.attributes["class"] for line in chart.all("polyline")} == {
            "line global",
            "line personalized",
            "line worst",
        }
        labels = [t.text for t in chart.all("text", "label")]
        assert labels == ["model version", "right within 3 guesses (%)"]
        titles = [t.text for c in chart.all("circle", "dot") for t in c.all("title")]
        assert len(titles) == len(chart.all("circle", "dot")) > 20
        assert all(re.search(r"Version \d+, .*: \d+\.\d % over \d+ devices", t) for t in titles)

    def test_another_metric_can_be_chosen(self, admin: Server) -> None:
        root = page(admin, "/?metric=loss")
        assert "Lower is better" in root.text
        assert "loss" in [t.text for t in _chart(root).all("text", "label")]
        assert "right within 3 guesses" in page(admin, f"/?metric={HOSTILE}").text

    @pytest.mark.parametrize(
        "place", ["note", "group", "bundle", "metric", "error", "facts", "reason", "audit"]
    )
    def test_hostile_names_are_text(self, admin: Server, place: str) -> None:
        with admin.services.database.write() as session:
            now = admin.clock()
            if place == "note":
                session.get_one(Version, 8).note = HOSTILE
                session.add(
                    EnrolmentToken(id="f" * 32, sha256="f" * 64, note=HOSTILE, group=HOSTILE, created=now)
                )
            elif place == "group":
                for row in session.scalars(select(EvaluationSum).where(EvaluationSum.group == "english")):
                    row.group = HOSTILE
            elif place == "bundle":
                session.get_one(Federation, 1).bundle_name = HOSTILE
            elif place == "metric":
                for row in session.scalars(select(EvaluationSum).where(EvaluationSum.metric == "loss")):
                    row.metric = HOSTILE
            elif place == "error":
                session.get_one(Round, 7).error = HOSTILE
            elif place == "facts":
                session.scalars(select(EnrolledDevice).order_by(EnrolledDevice.id).limit(1)).one().facts = {
                    HOSTILE: HOSTILE
                }
            elif place == "reason":
                session.execute(
                    text("UPDATE assignments SET reason = :r WHERE state = 'refused'"), {"r": HOSTILE}
                )
            else:
                session.add(AuditEntry(at=now, actor=HOSTILE, action=HOSTILE, detail={HOSTILE: [HOSTILE]}))
            device = session.scalars(select(EnrolledDevice.id).order_by(EnrolledDevice.id).limit(1)).one()
        if place == "group":
            object.__setattr__(admin.services.runtime.config, "groups", (*GROUPS, HOSTILE))
        met = False
        paths = (*PAGES, "/tokens", "/audit", f"/devices?device={device}", f"/?metric={HOSTILE}")
        for path in paths:
            answer = admin.client.get(path)
            assert answer.status_code == 200
            assert "<script>alert" not in answer.text
            met = met or str(escape(HOSTILE)) in answer.text
            read(answer.text)
        assert met, "it was shown nowhere, so nothing was tested"

    def test_lists_go_on_to_older_pages(self, admin: Server) -> None:
        fill_more(admin, 30)
        first = page(admin, "/versions")
        older = first.one("p", "pages").all("a")[0].attributes["href"]
        assert older == "/versions?before=18"
        assert page(admin, older).all("tbody")[0].all("tr")[0].all("td")[0].text == "17"

    def test_a_missing_thing_is_a_readable_page(self, admin: Server) -> None:
        for path in (
            "/rounds/99",
            "/versions/99/roll-back",
            "/static/x.css",
            "/rounds/abc",
            "/rounds?before=-1",
        ):
            answer = admin.client.get(path)
            assert answer.status_code in (404, 422)
            assert read(answer.text).all("h1")
            assert answer.headers["content-type"].startswith("text/html")

    def test_headers_forbid_everything_that_is_not_needed(self, admin: Server) -> None:
        for path in ("/", "/sign-in", "/rounds/99", "/docs", "/static/dashboard.css"):
            headers = admin.client.get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
        assert admin.client.get("/").headers["cache-control"] == "no-store"

    def test_static_files_are_named_by_content_and_kept_for_ever(self, admin: Server) -> None:
        link = page(admin, "/").all("link")[0].attributes["href"]
        answer = admin.client.get(link)
        assert answer.headers["content-type"].startswith("text/css")
        assert "immutable" in answer.headers["cache-control"]

    def test_the_documentation_loads_nothing_from_elsewhere(self, server: Server) -> None:
        root = page(server, "/docs")
        wanted = [n.attributes["src"] for n in root.all("script")]
        wanted += [n.attributes["href"] for n in root.all("link")]
        assert len(wanted) == 4
        for address in wanted:
            assert address.startswith("/static/")
            assert len(server.client.get(address).content) > 100
        assert server.client.get("/redoc").status_code == 404

    def test_the_pages_are_not_in_the_documentation_of_the_api(self, server: Server) -> None:
        assert not set(PAGES) & set(server.client.get("/openapi.json").json()["paths"])


class TestHiding:
    @pytest.mark.parametrize("least", [10, 200])
    def test_figures_over_few_devices_are_not_shown(self, filled: Server, least: int) -> None:
        with filled.services.database.read() as session:
            found = history(session, "top3", tuple(GROUPS), least)
            sums = session.scalars(select(EvaluationSum).where(EvaluationSum.metric == "top3")).all()
        assert found is not None
        by_place = {(s.version, s.group, s.kind): s.devices for s in sums}
        for version in found.versions:
            assert version.personalized is None or by_place[version.version, "", "personalized"] >= least
            for group in version.groups:
                assert group.personalized.devices >= least
        assert (found.latest is None) == (least == 200)

    def test_the_version_of_an_open_round_is_not_shown(self, filled: Server) -> None:
        with filled.services.database.read() as session:
            found = history(session, "top3", (), 3)
        assert found is not None
        assert found.counting == 12
        assert max(v.version for v in found.versions) == 11

    def test_versions_that_slow_devices_still_work_on_are_not_shown(self, filled: Server) -> None:
        with filled.services.database.write() as session:
            task = session.scalars(select(Assignment).where(Assignment.round == 10).limit(1)).one()
            task.state, task.base = "assigned", 9
        with filled.services.database.read() as session:
            found = history(session, "top3", (), 3, behind=5)
        assert found is not None
        assert found.counting == 9
        assert max(v.version for v in found.versions) == 8

    def test_the_page_says_why_nothing_is_shown(self, opened: Services) -> None:
        config = filled_config(evaluation=EvaluationConfig(min_devices=200))
        opened.runtime.config = config
        with TestClient(create_app(opened, coordinate=False)) as client:
            server = Server(opened, client, opened.clock)  # type: ignore[arg-type]
            fill(opened, rounds=5, devices=100, cohort=20)
            sign_in(server)
            root = page(server, "/")
            assert "fewer than 200 devices have reported" in root.text
            assert not root.all("svg", "chart")
            assert "fewer than 200 devices were merged" in page(server, "/rounds/3").text

    @given(
        st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 30), max_size=8),
        st.integers(0, 40),
        st.integers(1, 12),
    )
    def test_no_group_follows_from_the_others(self, groups: dict[str, int], without: int, least: int) -> None:
        total = sum(groups.values()) + without
        shown = shown_groups(groups, total, least)
        rest = total - sum(groups[name] for name in shown)
        assert all(groups[name] >= least for name in shown)
        assert rest == 0 or rest >= least or not shown

    def test_a_group_is_hidden_with_the_one_it_would_give_away(self) -> None:
        assert shown_groups({"a": 20, "b": 9, "c": 2}, 31, 3) == ["a"]
        assert shown_groups({"a": 20, "b": 9, "c": 3}, 32, 3) == ["a", "b", "c"]


class TestSigningIn:
    def test_pages_lead_to_the_form_and_back(self, filled: Server) -> None:
        answer = filled.client.get("/rounds?before=5", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (
            303,
            "/sign-in?next=%2Frounds%3Fbefore%3D5",
        )
        done = sign_in(filled, next="/rounds?before=5")
        assert (done.status_code, done.headers["location"]) == (303, "/rounds?before=5")
        page(filled, "/")
        assert audit(filled)[-1] == "sign-in"

    @pytest.mark.parametrize("token", ["", "x", ADMIN_TOKEN[:-1], ADMIN_TOKEN + "x", "ü" * 40])
    def test_another_token_is_refused(self, filled: Server, token: str) -> None:
        answer = sign_in(filled, token)
        assert answer.status_code == 403
        assert SESSION_COOKIE not in answer.cookies
        assert "This is not the admin token" in read(answer.text).text
        assert filled.client.get("/", follow_redirects=False).status_code == 303

    def test_the_cookie_is_out_of_reach_and_only_sent_to_this_site(self, filled: Server) -> None:
        cookie = sign_in(filled).headers.get_list("set-cookie")[0]
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert "Secure" not in cookie

    def test_under_tls_the_cookie_is_secure(self, filled: Server) -> None:
        filled.client.base_url = filled.client.base_url.copy_with(scheme="https")
        cookies = sign_in(filled).headers.get_list("set-cookie")
        assert "Secure" in next(c for c in cookies if c.startswith(SESSION_COOKIE))

    def test_the_form_is_tied_to_the_browser(self, filled: Server) -> None:
        wrong = sign_in(filled, csrf="x" * 43)
        assert wrong.status_code == 403
        form = page(filled, "/sign-in").one("form").all("input")[0].attributes["value"]
        filled.client.cookies.delete(FORM_COOKIE)
        answer = filled.client.post("/sign-in", data={"csrf": form, "token": ADMIN_TOKEN})
        assert answer.status_code == 403
        assert SESSION_COOKIE not in filled.client.cookies

    def test_guessing_is_slowed_down(self, filled: Server) -> None:
        for _ in range(5):
            assert sign_in(filled, "wrong").status_code == 403
        answer = sign_in(filled)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        filled.clock.pass_time(13)
        assert sign_in(filled).status_code == 303

    def test_a_session_ends(self, admin: Server) -> None:
        page(admin, "/")
        admin.clock.pass_time(SESSION_S)
        assert admin.client.get("/", follow_redirects=False).status_code == 303

    def test_signing_out_ends_the_session_and_copies_of_its_cookie_in_all_processes(
        self, admin: Server
    ) -> None:
        copy = dict(admin.client.cookies)
        assert act(admin, "/sign-out").status_code == 303
        assert audit(admin)[-1] == "sign-out"
        assert admin.client.get("/", follow_redirects=False).headers["location"].startswith("/sign-in")
        with TestClient(create_app(admin.services, coordinate=False), cookies=copy) as other:
            assert other.get("/", follow_redirects=False).headers["location"].startswith("/sign-in")
            form = {"csrf": "x"}
            assert (
                other.post("/pause", data=form, follow_redirects=False)
                .headers["location"]
                .startswith("/sign-in")
            )

    def test_signing_out_ends_no_other_session(self, admin: Server) -> None:
        first = dict(admin.client.cookies)
        assert sign_in(admin).status_code == 303
        assert act(admin, "/sign-out").status_code == 303
        with TestClient(create_app(admin.services, coordinate=False), cookies=first) as other:
            assert other.get("/", follow_redirects=False).status_code == 200

    def test_ended_sessions_are_forgotten_once_they_would_have_ended(self, admin: Server) -> None:
        for _ in range(2):
            sign_in(admin)
            act(admin, "/sign-out")
            with admin.services.database.read() as session:
                assert len(session.scalars(select(EndedSession)).all()) == 1
            admin.clock.pass_time(SESSION_S)

    @given(st.text(max_size=60))
    def test_forged_cookies_say_nothing(self, cookie: str) -> None:
        sessions = Sessions(b"k" * 32, ADMIN_TOKEN, lambda: 1000.0)
        assert sessions.read("session", cookie) is None

    def test_a_cookie_is_good_for_its_kind_its_time_and_its_token_alone(self) -> None:
        clock = Clock(1000.0)
        sessions = Sessions(b"k" * 32, ADMIN_TOKEN, clock)
        cookie = sessions.new("session", 60)
        assert sessions.read("session", cookie) is not None
        assert sessions.read("form", cookie) is None
        assert Sessions(b"k" * 32, "other token", clock).read("session", cookie) is None
        assert Sessions(b"l" * 32, ADMIN_TOKEN, clock).read("session", cookie) is None
        ends, nonce, mac = cookie.split(".")
        assert sessions.read("session", f"{int(ends) + 60}.{nonce}.{mac}") is None
        clock.pass_time(60)
        assert sessions.read("session", cookie) is None

    @pytest.mark.parametrize(
        "address",
        ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:1", "", None, "/a\n"],
    )
    def test_signing_in_never_leads_to_another_site(self, address: str | None) -> None:
        assert safe_next(address) == "/"


class TestSeeing:
    def serving(
        self, tmp_path: Path, folder: Path, bundle: Any, host: str = "127.0.0.1", **given: Any
    ) -> Services:
        settings = ServerSettings(
            bundle=folder,
            data=tmp_path / "data",
            limits=GENEROUS,
            host=host,
            dashboard=given.get("dashboard"),
        )
        return Services.open(settings, bundle, filled_config(), admin_token=given.get("token"))

    def get(self, services: Services, path: str, client: str = "127.0.0.1", **headers: str) -> Any:
        with TestClient(
            create_app(services, coordinate=False), base_url="http://localhost:8800", client=(client, 50000)
        ) as found:
            return found.get(path, headers=headers, follow_redirects=False)

    def test_public_is_for_looking_only(
        self, tmp_path: Path, federated_folder: Path, federated_bundle: Any
    ) -> None:
        services = self.serving(
            tmp_path, federated_folder, federated_bundle, dashboard="public", token=ADMIN_TOKEN
        )
        fill(services, rounds=12, devices=100, cohort=20)
        with TestClient(create_app(services, coordinate=False)) as client:
            for path in PAGES:
                answer = client.get(path)
                assert answer.status_code == 200
                root = read(answer.text)
                assert not root.all("form")
                assert not any("tensors" in a.attributes["href"] for a in root.all("a"))
            for path in ADMIN_PAGES:
                assert client.get(path, follow_redirects=False).headers["location"].startswith("/sign-in")
            merged = client.get("/rounds/3").text
            assert "Total weight" in merged
            assert "Median norm" not in merged
            assert "shortened to the clipping bound" not in merged
            device = "0" * 32
            assert device not in client.get(f"/devices?device={device}").text
            answer = client.post("/pause", data={"csrf": ""}, follow_redirects=False)
            assert answer.headers["location"].startswith("/sign-in")

    def test_off_is_off(self, tmp_path: Path, federated_folder: Path, federated_bundle: Any) -> None:
        services = self.serving(
            tmp_path, federated_folder, federated_bundle, dashboard="off", token=ADMIN_TOKEN
        )
        with TestClient(create_app(services, coordinate=False)) as client:
            for path in (*PAGES, *ADMIN_PAGES, "/sign-in"):
                assert client.get(path, follow_redirects=False).status_code == 404
            assert client.post("/sign-in", data={"token": ADMIN_TOKEN}).status_code == 404

    @pytest.mark.parametrize(
        ("client", "headers", "status"),
        [
            ("127.0.0.1", {}, 200),
            ("::1", {"host": "[::1]:8800"}, 200),
            ("10.0.0.7", {}, 403),
            ("127.0.0.1", {"host": "rebound.example"}, 403),
            ("127.0.0.1", {"x-forwarded-for": "10.0.0.7"}, 403),
        ],
    )
    def test_without_an_admin_token_it_is_for_this_machine(
        self,
        tmp_path: Path,
        federated_folder: Path,
        federated_bundle: Any,
        monkeypatch: pytest.MonkeyPatch,
        client: str,
        headers: dict[str, str],
        status: int,
    ) -> None:
        monkeypatch.delenv("PFL_ADMIN_TOKEN", raising=False)
        services = self.serving(tmp_path, federated_folder, federated_bundle)
        assert self.get(services, "/", client, **headers).status_code == status

    def test_without_an_admin_token_nobody_acts(
        self, tmp_path: Path, federated_folder: Path, federated_bundle: Any
    ) -> None:
        services = self.serving(tmp_path, federated_folder, federated_bundle)
        for path in (*ADMIN_PAGES, "/sign-in"):
            assert self.get(services, path).status_code == 403

    def test_on_an_open_address_without_a_token_it_is_off(
        self, tmp_path: Path, federated_folder: Path, federated_bundle: Any
    ) -> None:
        services = self.serving(tmp_path, federated_folder, federated_bundle, host="0.0.0.0")
        assert self.get(services, "/").status_code == 404


class TestActing:
    ACTIONS = (
        ("/pause", {}),
        ("/rounds/12/abandon", {"sure": "true"}),
        ("/versions/4/roll-back", {"sure": "true"}),
        ("/tokens", {"note": "x"}),
        ("/sign-out", {}),
    )

    def test_a_form_without_the_session_s_token_is_refused(self, admin: Server) -> None:
        before = audit(admin)
        for path, fields in self.ACTIONS:
            for token in ("", "x" * 43):
                answer = admin.client.post(path, data=fields | {"csrf": token}, follow_redirects=False)
                assert answer.status_code == 403, path
        assert audit(admin) == before

    @pytest.mark.parametrize(
        "headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}]
    )
    def test_a_form_of_another_site_is_refused(self, admin: Server, headers: dict[str, str]) -> None:
        answer = admin.client.post("/pause", data={"csrf": csrf(admin)}, headers=headers)
        assert answer.status_code == 403
        assert "pause" not in audit(admin)

    def test_pause_and_resume(self, admin: Server) -> None:
        assert act(admin, "/pause", note="lunch").status_code == 303
        assert page(admin, "/").one("p", "sentence").text.startswith("Paused:")
        assert act(admin, "/pause").status_code == 409
        assert act(admin, "/resume").status_code == 303
        assert audit(admin)[-2:] == ["pause", "resume"]
        assert "lunch" in page(admin, "/audit").text

    def test_why_it_paused_itself_is_told(self, admin: Server) -> None:
        with admin.services.database.write() as session:
            session.get_one(Federation, 1).state = "paused"
            session.add(
                AuditEntry(
                    at=0.0, actor="aggregator", action="pause", detail={"note": "3 rounds in a row failed"}
                )
            )
        assert "It paused itself: 3 rounds in a row failed." in page(admin, "/").text

    def test_roll_back_asks_first(self, admin: Server) -> None:
        root = page(admin, "/versions/4/roll-back")
        assert "Round 12 is abandoned" in root.text
        assert act(admin, "/versions/4/roll-back").status_code == 422
        assert act(admin, "/versions/4/roll-back", sure="true", note="worse").status_code == 303
        first = page(admin, "/versions").all("tbody")[0].all("tr")[0]
        assert "rolled back to version 4: worse" in first.text
        assert "served" in first.text

    def test_abandon_a_round(self, admin: Server) -> None:
        assert act(admin, "/rounds/12/abandon", sure="true").status_code == 303
        assert "ended by an admin" in page(admin, "/rounds/12").text
        assert act(admin, "/rounds/12/abandon", sure="true").status_code == 409

    def test_a_new_token_is_shown_once(self, admin: Server) -> None:
        answer = act(admin, "/tokens", note="canaries", group="deutsch", uses="5", days="2")
        secret = read(answer.text).one("code", "secret").text
        assert secret.startswith("pfl_enrol_")
        root = page(admin, "/tokens")
        assert secret not in root.text
        row = next(r for r in root.all("tr") if "canaries" in r.text)
        assert "deutsch" in row.text
        assert act(admin, row.one("form").attributes["action"]).status_code == 303
        assert "canaries" not in page(admin, "/tokens").one("tbody").text

    def test_a_token_that_makes_no_sense_is_refused(self, admin: Server) -> None:
        for fields in ({"uses": "0"}, {"uses": "-1"}, {"days": "1.5"}, {"uses": "٣x"}, {"group": "x"}):
            assert act(admin, "/tokens", **fields).status_code == 422, fields

    def test_a_device_is_found_by_its_id_and_revoked(self, admin: Server) -> None:
        with admin.services.database.read() as session:
            found = session.scalars(
                select(EnrolledDevice.id).where(EnrolledDevice.state == "active").limit(1)
            ).one()
        root = page(admin, f"/devices?device={found.upper()}")
        assert found in root.text
        assert act(admin, f"/devices/{found}/revoke", sure="true", note="emulator").status_code == 303
        assert "revoked" in page(admin, f"/devices?device={found}").text
        assert "There is no device" in page(admin, "/devices?device=abc").text

    def test_tensors_can_be_downloaded(self, admin: Server) -> None:
        answer = admin.client.get("/versions/3/tensors")
        with admin.services.database.read() as session:
            assert len(answer.content) == session.get_one(Version, 3).values_bytes
        assert 'filename="version-3.safetensors"' in answer.headers["content-disposition"]


class TestQueries:
    def test_pages_read_few_rows_by_index(self, admin: Server) -> None:
        engine = admin.services.database._engine
        for path in (*PAGES, "/tokens", "/audit"):
            statements: list[tuple[str, Any]] = []

            def note(
                _c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any, into: Any = statements
            ) -> None:
                if statement.lstrip().upper().startswith("SELECT"):
                    into.append((statement, parameters))

            event.listen(engine, "before_cursor_execute", note)
            page(admin, path)
            event.remove(engine, "before_cursor_execute", note)
            assert 0 < len(statements) <= 19, path
            with engine.connect() as connection:
                for statement, parameters in statements:
                    for row in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, parameters):
                        step = str(row[-1])
                        whole = re.match(r"SCAN (assignments|devices|evaluation_sums|refusals)\b", step)
                        # counting devices by state reads an index, never the rows
                        allowed = "devices" in step and "COVERING INDEX" in step
                        assert not whole or allowed, (path, step, statement)

    @pytest.mark.slow
    def test_a_million_assignments_do_not_slow_a_page_down(self, admin: Server) -> None:
        def median() -> float:
            times = []
            for _ in range(5):
                begin = time.perf_counter()
                for path in ("/", "/rounds"):
                    page(admin, path)
                times.append(time.perf_counter() - begin)
            return sorted(times)[2]

        few = median()
        # all in round 0, which is on no page but the last one
        with admin.services.database.write() as session:
            session.execute(
                text(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) "
                    "INSERT INTO assignments (id, round, state, base, sets, assigned, expires, reports, evaluated) "
                    "SELECT printf('%032x', i), 0, 'merged', 0, '{}', 0, 0, '{}', 0 FROM n"
                )
            )
        fill_more(admin, 30)
        assert median() < 3 * few + 0.1

    def test_devices_are_counted_anew_after_some_seconds(self, admin: Server) -> None:
        def active() -> str:
            return page(admin, "/").one("ul", "tiles").all("li")[3].all("strong")[0].text

        before = active()
        with admin.services.database.write() as session:
            session.execute(text("UPDATE devices SET state = 'left'"))
        assert active() == before
        assert page(admin, "/devices").all("ul", "bars")[0].all("li")[0].all("strong")[0].text == "0"
        admin.clock.pass_time(COUNTED_S)
        assert active() == "0"


class TestOnPostgresql:
    @pytest.fixture
    def settings(self, tmp_path: Path, federated_folder: Path, postgres_url: str) -> ServerSettings:
        return ServerSettings(
            bundle=federated_folder, data=tmp_path / "data", database=postgres_url, limits=GENEROUS
        )

    def test_every_page_and_answer_is_the_same(self, admin: Server) -> None:
        root = page(admin, "/")
        assert root.one("p", "sentence").text == "Round 12 is open: 18 of 30 updates, 4 min left."
        assert len(_chart(root).all("polyline")) >= 3
        for path in (*PAGES, "/tokens", "/audit", "/versions/3/roll-back"):
            page(admin, path)
        for path in ("status", "rounds", "rounds/7", "versions", "devices", "tokens", "audit", "privacy"):
            assert admin.client.get(f"/v1/admin/{path}", headers=admin.admin).status_code == 200


class TestCharts:
    @given(
        st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(float("nan"))), max_size=40),
        st.booleans(),
    )
    def test_any_values_can_be_drawn(self, values: list[float | None], zero: bool) -> None:
        line = Line("x", "global", [Point(i, v, str(v)) for i, v in enumerate(values)])
        drawn = line_chart([line], title="t", x_label="x", y_label="y", from_zero=zero, marks=[Mark(2, "m")])
        points = [v for v in values if v is not None and v == v]
        assert bool(drawn) == bool(points)
        root = read(drawn)
        for svg in root.all("svg"):
            box = [float(v) for v in svg.attributes["viewbox"].split()]
            assert len(svg.all("circle", "dot")) == len(points)
            for dot in svg.all("circle", "dot"):
                assert 0 <= float(dot.attributes["cx"]) <= box[2]
                assert 0 <= float(dot.attributes["cy"]) <= box[3]

    @given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.integers(1, 12))
    def test_ticks_cover_the_range_with_few_round_steps(self, low: float, span: float, most: int) -> None:
        found = ticks(low, low + span, most)
        slack = 1e-6 * (abs(low) + span + 1)
        assert found[0] <= low + slack
        assert found[-1] >= low + span - slack
        assert 2 <= len(found) <= most + 3

    def test_gaps_break_the_line(self) -> None:
        line = Line("x", "global", [Point(i, y) for i, y in enumerate([1.0, 2.0, None, 3.0, 4.0, None, 5.0])])
        drawn = read(line_chart([line], title="t", x_label="x", y_label="y")).all("svg", "wide")[0]
        assert [len(p.attributes["points"].split()) for p in drawn.all("polyline")] == [2, 2]

    def test_names_and_titles_are_escaped(self) -> None:
        line = Line(HOSTILE, "global", [Point(0, 1.0, HOSTILE), Point(1, 2.0, HOSTILE)])
        drawn = line_chart(
            [line],
            title=HOSTILE,
            x_label=HOSTILE,
            y_label=HOSTILE,
            y_text=lambda _: HOSTILE,
            levels=[Level(1.5, HOSTILE)],
        )
        assert "<script>" not in drawn
        assert not read(drawn).all("script")
        assert "<script>" not in bar([BarPart(1, "main", HOSTILE)], 2, HOSTILE)

    def test_parts_of_a_bar_never_exceed_it(self) -> None:
        drawn = read(bar([BarPart(3, "main", "a"), BarPart(9, "bad", "b")], 4, "x"))
        widths = [
            float(r.attributes["width"][:-1]) for r in drawn.all("rect") if r.attributes["class"] != "track"
        ]
        assert sum(widths) == pytest.approx(100)
        assert len(read(bar([BarPart(1, "main", "a")], 0, "x")).all("rect")) == 1


class TestWords:
    @pytest.mark.parametrize(
        ("seconds", "expected"),
        [
            (-3, "0 s"),
            (59.9, "59 s"),
            (60, "1 min"),
            (3600, "1 h"),
            (7800, "2 h 10 min"),
            (36_000, "10 h"),
            (3e5, "3 d"),
        ],
    )
    def test_durations(self, seconds: float, expected: str) -> None:
        assert words.duration(seconds) == expected

    @pytest.mark.parametrize(
        ("number", "expected"),
        [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_960, "100 kB"), (12_345_678, "12.3 MB")],
    )
    def test_sizes(self, number: int, expected: str) -> None:
        assert words.size(number) == expected

    @given(st.floats(1e-9, 1e6))
    def test_spent_is_rounded_up_and_left_down(self, value: float) -> None:
        up, down = float(words.epsilon(value)), float(words.epsilon_left(value))
        assert down <= value * (1 + 1e-8)
        assert up >= value * (1 - 1e-8)
        assert up - down <= 0.0101 * value

    @pytest.mark.parametrize(("value", "expected"), [(8.0, "8"), (5.939, "5.94"), (0.25, "0.25"), (0.0, "0")])
    def test_epsilon(self, value: float, expected: str) -> None:
        assert words.epsilon(value) == expected

    def test_small_probabilities(self) -> None:
        assert words.power(1e-6) == "10⁻⁶"
        assert words.power(2.5e-5) == "2.5e-05"

    def test_every_reason_has_words(self) -> None:
        from typing import get_args

        from pfl_mobile.protocol.bodies import Decline

        for code in get_args(Decline.model_fields["reason"].annotation):
            assert words.reason(code) != code
        assert words.reason("update-not-finite").startswith("The update")
        assert words.reason(None)


def fill_more(server: Server, rounds: int) -> None:
    """Add merged rounds after the newest one."""
    with server.services.database.write() as session:
        session.get_one(Round, 12).state = "abandoned"
        federation, old = session.get_one(Federation, 1), session.get_one(Version, 12)
        for number in range(13, 13 + rounds):
            session.add(
                Version(
                    number=number,
                    round=number,
                    parent=number - 1,
                    state_blob=old.state_blob,
                    values_sha256=old.values_sha256,
                    values_bytes=old.values_bytes,
                    privacy=old.privacy,
                    created=server.clock(),
                )
            )
            session.flush()
            session.add(
                Round(
                    number=number,
                    state="merged",
                    base=number - 1,
                    result=number,
                    plan={},
                    seed=0,
                    sets={},
                    target=5,
                    minimum=1,
                    opened=server.clock(),
                    closed=server.clock(),
                    lease_until=0.0,
                    summary={},
                )
            )
        federation.version = 12 + rounds


def _chart(root: Node) -> Node:
    return root.all("svg", "wide")[0]


def _nodes(root: Node) -> list[Node]:
    return [n for child in root.children for n in (child, *_nodes(child))]
