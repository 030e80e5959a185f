"""The defects: where, what it says, what it would say, and the tests that must notice.

A text must stand exactly once in its file: where the code has moved on, the defect moves with it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Defect:
    name: str
    file: str
    old: str
    new: str
    tests: list[str]


POLICY = "ordertrack/policy.py"
LIFECYCLE = "ordertrack/lifecycle.py"
ACTORS = "ordertrack/services/actors.py"
ORDERS = "ordertrack/services/orders.py"
ACCOUNTS = "ordertrack/services/accounts.py"
SCREENS = "ordertrack/services/screens.py"
AUDIT = "ordertrack/services/audit.py"
EVENTLOG = "ordertrack/eventlog.py"
FANOUT = "ordertrack/realtime/fanout.py"
ROOMS = "ordertrack/realtime/rooms.py"
GUESTS = "ordertrack/realtime/guests.py"
RELAY = "ordertrack/realtime/relay.py"
TRANSPORT = "ordertrack/realtime/transport.py"
LIVE = "ordertrack/realtime/live.py"
IDENTITY = "ordertrack/identity.py"
DB = "ordertrack/db.py"
TURNS = "ordertrack/turns.py"
APP = "ordertrack/app.py"
HEADERS = "ordertrack/blueprints/headers.py"

UNIT_POLICY = ["tests/unit/test_policy.py"]
LIFECYCLE_TESTS = ["tests/http/test_lifecycle.py"]
ORDER_TESTS = ["tests/http/test_orders.py"]
ACCOUNT_TESTS = ["tests/http/test_accounts.py"]
TAIL_TESTS = ["tests/faults/test_log_tail.py"]
SEAM_TESTS = ["tests/realtime/test_fanout.py"]
ROOM_TESTS = ["tests/realtime/test_rooms.py"]
GUEST_TESTS = ["tests/realtime/test_guests.py"]
TOKEN_TESTS = ["tests/realtime/test_tokens.py"]
NGINX_TESTS = ["tests/proxy/test_nginx.py"]
COOKIE_TESTS = ["tests/http/test_cookies.py"]
STUCK_TESTS = ["tests/faults/test_database.py"]
RACE_TESTS = ["tests/services/test_races.py"]
TIME_TESTS = ["tests/realtime/test_time.py"]
LIMIT_TESTS = ["tests/realtime/test_limits.py"]

DEFECTS = [
    # --- who may do what ------------------------------------------------------------------------
    Defect(
        "policy-owner-of-everything", POLICY,
        "if order.customer_id == actor.id:", "if actor.id:", UNIT_POLICY,
    ),
    Defect(
        "policy-drivers-are-never-narrowed", POLICY,
        "(scope is DriverScope.ALL or order.driver_id == actor.id)", "scope", UNIT_POLICY,
    ),
    Defect(
        "policy-deleted-orders-are-seen", POLICY,
        "return not order.is_deleted and bool(", "return bool(", UNIT_POLICY,
    ),
    Defect(
        "policy-anybody-reads-a-deleted-history", POLICY,
        "        return actor.role is Role.ADMIN\n    return can_see",
        "        return True\n    return can_see", UNIT_POLICY,
    ),
    Defect(
        "policy-drivers-may-touch", POLICY,
        "return bool(held & {Standing.OWNER, Standing.ADMIN})", "return bool(held)",
        ORDER_TESTS + UNIT_POLICY,
    ),
    Defect(
        "policy-admins-edit-final-orders", POLICY,
        "return status not in lifecycle.TERMINAL", "return True", UNIT_POLICY,
    ),
    Defect(
        "policy-owners-edit-for-ever", POLICY,
        "    return Standing.OWNER in held and status is lifecycle.INITIAL\n\n\ndef can_delete",
        "    return Standing.OWNER in held\n\n\ndef can_delete", UNIT_POLICY,
    ),
    Defect(
        "policy-owners-delete-for-ever", POLICY,
        "an admin always.\"\"\"\n    if Standing.ADMIN in held:\n        return True\n"
        "    return Standing.OWNER in held and status is lifecycle.INITIAL",
        "an admin always.\"\"\"\n    if Standing.ADMIN in held:\n        return True\n"
        "    return Standing.OWNER in held", UNIT_POLICY,
    ),
    Defect(
        "policy-customers-are-staff", POLICY,
        "return self.role is not Role.USER", "return bool(self.role)", UNIT_POLICY,
    ),
    Defect(
        "lifecycle-owners-cancel-late", LIFECYCLE,
        "{Status.SHIPPED: _STAFF, Status.CANCELLED: _ADMIN_ONLY}",
        "{Status.SHIPPED: _STAFF, Status.CANCELLED: _CUSTOMER_SIDE}", LIFECYCLE_TESTS,
    ),
    Defect(
        "actors-deactivated-users-go-on", ACTORS,
        "WHERE u.id = :user AND u.active", "WHERE u.id = :user",
        RACE_TESTS,
    ),
    Defect(
        "actors-sessions-outlive-a-sign-out", ACTORS,
        "AND s.id = :session AND s.revoked_at IS NULL)", "AND s.id = :session)", ACCOUNT_TESTS,
    ),
    Defect(
        "actors-resolve-forgets-deactivation", ACTORS,
        "            User.active,\n", "", RACE_TESTS,
    ),
    Defect(
        "actors-resolve-forgets-sign-outs", ACTORS,
        "            Session.revoked_at.is_(None),\n", "", ACCOUNT_TESTS,
    ),
    Defect(
        "actors-everybody-is-staff", ACTORS,
        "if not actor.is_staff:", "if not actor:", ["tests/http/test_lists.py"],
    ),
    Defect(
        "actors-drivers-are-admins", ACTORS,
        "if actor.role is not Role.ADMIN:", "if not actor.is_staff:",
        ["tests/http/test_authorisation.py"],
    ),
    # --- changing orders ------------------------------------------------------------------------
    Defect(
        "move-takes-the-transactions-time", ORDERS,
        "               updated_at = clock_timestamp()\n", "               updated_at = now()\n",
        RACE_TESTS,
    ),
    Defect(
        "touch-takes-the-transactions-time", ORDERS,
        'text("SELECT clock_timestamp()")', 'text("SELECT now()")', RACE_TESTS,
    ),
    Defect(
        "move-ignores-the-version", ORDERS,
        "AND (:if_version IS NULL OR o.version = :if_version)",
        "AND (:if_version IS NULL OR o.version >= 0)", ORDER_TESTS,
    ),
    Defect(
        "move-reaches-deleted-orders", ORDERS,
        "WHERE o.id = :id AND o.deleted_at IS NULL\n           AND (a.role", "WHERE o.id = :id\n"
        "           AND (a.role", ORDER_TESTS + LIFECYCLE_TESTS,
    ),
    Defect(
        "move-by-any-driver", ORDERS,
        "AND (:all_drivers OR o.driver_id = a.id)\n", "AND (:all_drivers OR true)\n",
        LIFECYCLE_TESTS,
    ),
    Defect(
        "move-without-turns", ORDERS,
        "        with _turns.take(order_id):\n            row = _MOVE.one(**parameters)",
        "        row = _MOVE.one(**parameters)", STUCK_TESTS,
    ),
    Defect(
        "edit-without-turns", ORDERS,
        "(no longer editable), `VersionMismatch`.\n    \"\"\"\n"
        "    with _turns.take(order_id), db.transaction() as t:",
        "(no longer editable), `VersionMismatch`.\n    \"\"\"\n    with db.transaction() as t:",
        RACE_TESTS,
    ),
    Defect(
        "delete-without-turns", ORDERS,
        "`Forbidden`, `Conflict`, `VersionMismatch`.\n    \"\"\"\n"
        "    with _turns.take(order_id), db.transaction() as t:",
        "`Forbidden`, `Conflict`, `VersionMismatch`.\n    \"\"\"\n    with db.transaction() as t:",
        RACE_TESTS,
    ),
    Defect(
        "assign-without-turns", ORDERS,
        "when the order is final, `VersionMismatch`.\n    \"\"\"\n"
        "    with _turns.take(order_id), db.transaction() as t:",
        "when the order is final, `VersionMismatch`.\n    \"\"\"\n    with db.transaction() as t:",
        RACE_TESTS,
    ),
    Defect(
        "turns-for-everybody-at-once", TURNS, "_AT_ONCE = 2", "_AT_ONCE = 1000", RACE_TESTS,
    ),
    Defect(
        "move-is-not-tried-again", ORDERS,
        "    for _ in range(5):\n", "    for _ in range(1):\n", RACE_TESTS,
    ),
    Defect(
        "changes-do-not-lock-the-row", ORDERS,
        ".with_for_update(key_share=True)", "", LIFECYCLE_TESTS,
    ),
    Defect(
        "newer-versions-match", ORDERS,
        "if wanted is not None and wanted != current:",
        "if wanted is not None and wanted > current:", ORDER_TESTS,
    ),
    Defect(
        "keys-are-not-compared", ORDERS,
        "if earlier.request_hash != fingerprint:", "if not fingerprint:",
        ["tests/http/test_idempotency.py"],
    ),
    Defect(
        "inactive-drivers-are-assigned", ORDERS,
        "driver is None or driver.role != Role.DRIVER.value or not driver.active",
        "driver is None or driver.role != Role.DRIVER.value", ORDER_TESTS,
    ),
    Defect(
        "percent-signs-are-wildcards", ORDERS,
        '.replace("%", "\\\\%")', "", ["tests/http/test_lists.py"],
    ),
    Defect(
        "own-lists-are-everybodys", ORDERS,
        '"own": "o.customer_id = a.id"', '"own": "a.id > 0"', ["tests/http/test_lists.py"],
    ),
    Defect(
        "histories-are-open", ORDERS,
        "if order is None or not policy.can_read_history(actor, order, scope):",
        "if order is None:", ["tests/http/test_authorisation.py"],
    ),
    Defect(
        "versions-from-the-future-are-taken", ORDERS,
        "if after is not None and after > order.version:",
        "if after is not None and after > 1_000_000_000:", ROOM_TESTS,
    ),
    Defect(
        "one-event-less-is-replayed", ORDERS,
        "TOO_MANY if missed > REPLAY_LIMIT", "TOO_MANY if missed >= REPLAY_LIMIT",
        ["tests/clients/test_streams.py"],
    ),
    # --- the log --------------------------------------------------------------------------------
    Defect(
        "replay-repeats-the-last-seen", EVENTLOG,
        "AND version > wanted.after AND version <= wanted.upto",
        "AND version >= wanted.after AND version <= wanted.upto", ["tests/http/test_history.py"],
    ),
    Defect(
        "tail-skips-the-next-transaction", EVENTLOG,
        "WHERE e.xid >= pg_snapshot_xmax($1)", "WHERE e.xid > pg_snapshot_xmax($1)", TAIL_TESTS,
    ),
    Defect(
        "tail-forgets-who-was-running", EVENTLOG,
        "WHERE e.xid = ANY (ARRAY(SELECT pg_snapshot_xip($1)))",
        "WHERE e.xid = ANY (ARRAY(SELECT pg_snapshot_xip($1))) AND false", TAIL_TESTS,
    ),
    Defect(
        "tail-goes-back-when-nothing-is-new", EVENTLOG,
        "Cursor.at(found[0][0], max(self.place.last, last))", "Cursor.at(found[0][0], last)",
        TAIL_TESTS,
    ),
    Defect(
        "tail-reads-on-in-another-database", EVENTLOG,
        "if last >= int(end):", "if last < 0:", TAIL_TESTS,
    ),
    Defect(
        "tail-repeats-what-was-running", EVENTLOG,
        "frozenset(xid for xid in open_then if xid <= last)", "frozenset(open_then)", TAIL_TESTS,
    ),
    # --- fan-out --------------------------------------------------------------------------------
    Defect(
        "fanout-does-not-notice-what-it-missed", FANOUT,
        "                transit.newest = version", "                transit.newest = 0", SEAM_TESTS,
    ),
    Defect(
        "fanout-does-not-read-again", FANOUT,
        "            if not behind:\n                return answers",
        "            return answers", SEAM_TESTS,
    ),
    Defect(
        "fanout-repeats-what-was-answered", FANOUT,
        "(passing.floor is not None and version > passing.floor)", "passing.floor is not None",
        SEAM_TESTS,
    ),
    Defect(
        "fanout-forgets-the-earlier-answer", FANOUT,
        "_Transit(there.get(watcher))", "_Transit(None)", SEAM_TESTS,
    ),
    Defect(
        "fanout-drops-floors-too-early", FANOUT,
        "in self._settled:\n", "in self._settled + self._settling:\n", SEAM_TESTS,
    ),
    Defect(
        "fanout-loses-what-was-held-back", FANOUT,
        "        for announcement in transit.held:", "        for announcement in transit.held[:0]:",
        SEAM_TESTS,
    ),
    Defect(
        "fanout-hears-twice", FANOUT,
        "return list(dict.fromkeys(chain(room, *feeds)))", "return [*chain(room, *feeds)]",
        SEAM_TESTS,
    ),
    Defect(
        "fanout-every-driver-in-the-staff-feed", FANOUT,
        "(actor.role is Role.DRIVER and scope is DriverScope.ALL)", "actor.role is Role.DRIVER",
        SEAM_TESTS,
    ),
    Defect(
        "fanout-drivers-keep-what-they-lost", FANOUT,
        'if event.type == "driver_assigned" and self._scope is DriverScope.ASSIGNED:',
        'if event.type == "never":', SEAM_TESTS + ROOM_TESTS,
    ),
    Defect(
        "rooms-identify-before-admitting", ROOMS,
        "                self._guests.admit(watcher)\n                self._watchers[sid] = watcher\n"
        "                self._identify(watcher.credential.principal)\n",
        "                self._identify(watcher.credential.principal)\n"
        "                self._guests.admit(watcher)\n                self._watchers[sid] = watcher\n",
        RACE_TESTS,
    ),
    Defect(
        "rooms-renew-without-a-second-look", ROOMS,
        "        try:\n            # Had it ended just before, the watcher was not found by it.\n"
        "            self._identify(credential.principal)\n"
        "        except InvalidToken as error:\n            watcher.sign_out(error)\n"
        "            raise\n", "", RACE_TESTS,
    ),
    Defect(
        "guests-without-a-share", GUESTS,
        "len(own) >= self._per_user", "len(own) > 1_000_000", GUEST_TESTS,
    ),
    Defect(
        "guests-go-on-as-others", GUESTS,
        "if credential.principal.user_id != guest.credential.principal.user_id:",
        "if not credential:", GUEST_TESTS,
    ),
    Defect(
        "guests-all-sessions-end", GUESTS,
        "if right.session_id in (None, guest.credential.principal.session_id):", "if right:",
        GUEST_TESTS,
    ),
    Defect(
        "relay-follows-whatever-happens", RELAY,
        "return transport.monotonic() - self._last_turn < self._poll + _PATIENCE", "return True",
        TIME_TESTS,
    ),
    Defect(
        "relay-does-not-tell-the-others", RELAY,
        "                if others_wait:\n", "                if not others_wait is not None:\n",
        ["tests/realtime/test_relay.py"],
    ),
    Defect(
        "closes-come-all-at-once", TRANSPORT,
        "due = began + seconds * number / len(leaving)", "due = began",
        TIME_TESTS,
    ),
    # --- who speaks -----------------------------------------------------------------------------
    Defect(
        "identity-takes-refresh-tokens", IDENTITY,
        'if claims.get("type") != "access" or "exp" not in claims:', 'if "exp" not in claims:',
        TOKEN_TESTS,
    ),
    Defect(
        "identity-cached-tokens-never-expire", IDENTITY,
        "if credential.expires_at <= time.time():", "if credential.expires_at <= 0:",
        ["tests/services/test_sessions.py"],
    ),
    Defect(
        "identity-any-issuer", IDENTITY,
        '        "JWT_DECODE_ISSUER": ISSUER,\n', "", TOKEN_TESTS,
    ),
    Defect(
        "identity-any-audience", IDENTITY,
        '        "JWT_DECODE_AUDIENCE": AUDIENCE,\n', "", TOKEN_TESTS,
    ),
    Defect(
        "identity-other-sites-may-put", IDENTITY,
        'frozenset({"POST", "PUT", "PATCH", "DELETE"})', 'frozenset({"POST"})', COOKIE_TESTS,
    ),
    Defect(
        "identity-no-csrf-token", IDENTITY,
        '"JWT_COOKIE_CSRF_PROTECT": True', '"JWT_COOKIE_CSRF_PROTECT": False', COOKIE_TESTS,
    ),
    Defect(
        "cookies-travel-in-the-clear", IDENTITY,
        '"JWT_COOKIE_SECURE": settings.cookie_secure', '"JWT_COOKIE_SECURE": False', NGINX_TESTS,
    ),
    Defect(
        "no-strict-transport", HEADERS,
        'if settings.cookie_secure and environ.get("wsgi.url_scheme") == "https":',
        'if environ.get("wsgi.url_scheme") == "never":', NGINX_TESTS,
    ),
    Defect(
        "answers-may-be-cached", HEADERS,
        '    ("Cache-Control", "no-store"),\n', "", ["tests/http/test_pages.py"],
    ),
    Defect("proxys-scheme-is-ignored", APP, "x_proto=n", "x_proto=0", NGINX_TESTS),
    Defect("proxys-client-is-ignored", APP, "x_for=n", "x_for=n + 1", NGINX_TESTS),
    Defect(
        "unknown-addresses-answer-faster", ACCOUNTS,
        "matches = passwords.matches(stored, password)",
        "matches = user_id is not None and passwords.matches(stored, password)",
        ["tests/services/test_sessions.py"],
    ),
    Defect(
        "sessions-never-expire", ACCOUNTS,
        "if session.expires_at <= datetime.now(UTC):", "if session.expires_at is None:",
        ["tests/services/test_sessions.py"],
    ),
    Defect(
        "deactivation-leaves-sessions", ACCOUNTS,
        "        if not active:\n", "        if active:\n", ACCOUNT_TESTS + ROOM_TESTS,
    ),
    Defect(
        "new-roles-are-not-told", ACCOUNTS,
        't.add(AccessChange(user_id=user.id, reason="role_changed"))', "pass", ROOM_TESTS,
    ),
    Defect(
        "admins-take-their-own-rights", ACCOUNTS,
        "if user.id == actor.id and (role not in (None, Role.ADMIN) or active is False):",
        "if user.id != user.id:", ACCOUNT_TESTS,
    ),
    # --- limits and errors ----------------------------------------------------------------------
    *(
        Defect(
            f"sqlstate-{state}-is-a-defect", DB, f'"{state}"', '"XX000"',
            ["tests/services/test_unavailable.py"],
        )
        for state in ("57014", "40P01", "40001", "53300", "57P01", "57P02", "57P03", "53100")
    ),
    Defect(
        "setting-of-messages-has-no-effect", LIVE,
        "        max_message_bytes=settings.max_body_bytes,\n", "", LIMIT_TESTS,
    ),
    Defect(
        "setting-of-queues-has-no-effect", LIVE,
        "        max_queue_bytes=settings.queue_max_bytes,\n", "", LIMIT_TESTS,
    ),
    Defect(
        "setting-of-patience-has-no-effect", LIVE,
        "        max_queue_seconds=settings.queue_max_seconds,\n", "", LIMIT_TESTS,
    ),
    Defect(
        "setting-of-connections-has-no-effect", LIVE,
        "        max_connections=settings.max_connections,\n", "", LIMIT_TESTS,
    ),
    Defect(
        "setting-of-guests-has-no-effect", LIVE,
        "most=settings.max_connections,", "most=1_000_000,", LIMIT_TESTS,
    ),
    # --- screens and the audit ------------------------------------------------------------------
    Defect(
        "board-shows-page-one-again", SCREENS,
        "OR o.id < :before)", "OR o.id <> :before)", ["tests/http/test_board.py"],
    ),
    Defect(
        "export-stops-after-a-batch", SCREENS,
        "        if len(found) < EXPORT_BATCH:\n", "        if found:\n",
        ["tests/http/test_board.py"],
    ),
    Defect(
        "board-shows-deleted-orders", SCREENS,
        "visible = \"a.role <> 'user' AND o.deleted_at IS NULL\"", "visible = \"a.role <> 'user'\"",
        ["tests/http/test_board.py"],
    ),
    Defect(
        "drivers-see-an-empty-list-of-deleted-orders", SCREENS,
        "    if filters.deleted:\n        actors.require_admin(actor)\n", "",
        ["tests/http/test_board.py"],
    ),
    Defect(
        "audit-takes-gaps", AUDIT,
        "if event.version != version + 1:", "if event.version < version:",
        ["tests/cli/test_audit.py"],
    ),
    Defect(
        "audit-takes-any-actor", AUDIT,
        "if after not in lifecycle.next_statuses(before, _standings(event)):", "if not after:",
        ["tests/cli/test_audit.py"],
    ),
]  # fmt: skip
