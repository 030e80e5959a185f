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
CALLERS = "ordertrack/services/callers.py"
ORDERS = "ordertrack/services/orders.py"
ORDER_WRITES = "ordertrack/services/order_writes.py"
LISTS = "ordertrack/services/order_lists.py"
QUERY = "ordertrack/services/order_query.py"
SEARCH = "ordertrack/services/order_search.py"
WALK = "ordertrack/services/order_walk.py"
ACCOUNTS = "ordertrack/services/accounts.py"
PASSWORDS = "ordertrack/services/passwords.py"
SESSIONS = "ordertrack/services/sessions.py"
HOUSEKEEPING = "ordertrack/services/housekeeping.py"
ROLES = "ordertrack/services/database_roles.py"
AUDIT = "ordertrack/services/audit.py"
EVENTLOG = "ordertrack/eventlog.py"
LOG_TAIL = "ordertrack/log_tail.py"
DATABASE_GATE = "ordertrack/realtime/database_gate.py"
HUB = "ordertrack/realtime/hub.py"
SOCKETIO_HANDLERS = "ordertrack/realtime/socketio_handlers.py"
CONNECTIONS = "ordertrack/realtime/connections.py"
RELAY = "ordertrack/realtime/relay.py"
WEBSOCKET = "ordertrack/server/websocket.py"
SETUP = "ordertrack/realtime/setup.py"
ENGINEIO_SERVER = "ordertrack/sio/engineio_server.py"
PENDING_SESSIONS = "ordertrack/sio/pending_sessions.py"
PACKETS = "ordertrack/sio/packets.py"
WS_FRAMES = "ordertrack/server/ws_frames.py"
LOOP = "ordertrack/server/loop.py"
SEND_QUEUE = "ordertrack/server/send_queue.py"
ORDER_SOCKET = "ordertrack/realtime/order_socket.py"
ORIGINS = "ordertrack/origins.py"
HTTP_CONNECTION = "ordertrack/server/http_connection.py"
EVENTLET_HUB = "ordertrack/eventlet_hub.py"
WAITING_CONNECTIONS = "ordertrack/server/waiting_connections.py"
AUTH = "ordertrack/auth.py"
DB = "ordertrack/db.py"
CONNECTOR = "ordertrack/connector.py"
ROW_QUEUE = "ordertrack/services/row_queue.py"
APP = "ordertrack/app.py"
HEADERS = "ordertrack/web/middleware/security_headers.py"
LEAN_FLASK = "ordertrack/web/lean_flask.py"
FIRST_MIGRATION = "migrations/versions/0001_initial.py"
RIGHTS_MIGRATION = "migrations/versions/0003_rights.py"


def only(file: list[str], *tests: str) -> list[str]:
    """Some tests of a file, where the others take long."""
    return [f"{file[0]}::{test}" for test in tests]


POLICY_TESTS = ["tests/unit/test_policy.py"]
LIFECYCLE_TESTS = ["tests/web/test_lifecycle.py"]
ORDER_TESTS = ["tests/web/test_orders.py"]
ACCOUNT_TESTS = ["tests/web/test_accounts.py"]
TAIL_TESTS = ["tests/faults/test_log_tail.py"]
HUB_TESTS = ["tests/realtime/test_hub.py"]
SOCKETIO_HANDLER_TESTS = ["tests/realtime/test_socketio_handlers.py"]
CONNECTIONS_TESTS = ["tests/realtime/test_connections.py"]
TOKEN_TESTS = ["tests/realtime/test_tokens.py"]
NGINX_TESTS = ["tests/proxy/test_nginx.py"]
CSRF_TESTS = ["tests/web/test_csrf.py"]
LEAN_FLASK_TESTS = ["tests/web/test_lean_flask.py"]
RACE_TESTS = ["tests/services/test_races.py"]
TIME_TESTS = ["tests/realtime/test_time.py"]
SETTINGS_TESTS = ["tests/realtime/test_settings.py"]
REVOCATION_TESTS = ["tests/realtime/test_revocation_while_connecting.py"]
RIGHTS_TESTS = ["tests/services/test_rights_after_waiting.py"]
GROUP_TESTS = ["tests/services/test_order_groups.py"]
LIST_TESTS = ["tests/services/test_order_lists.py"]
PLAN_TESTS = ["tests/services/test_plans.py"]
PASSWORD_TESTS = ["tests/web/test_passwords.py"]
HOUSEKEEPING_TESTS = ["tests/services/test_housekeeping.py"]
ROLE_TESTS = ["tests/services/test_serving_role.py"]
DATABASE_CONNECTION_TESTS = ["tests/services/test_connections.py"]
FAILOVER_TESTS = ["tests/faults/test_failover.py"]
PACKETS_TESTS = ["tests/sio/test_packets.py"]
SPAWNING_TESTS = ["tests/server/test_spawning.py"]
PENDING_TESTS = ["tests/sio/test_pending_sessions.py"]
SOCKETIO_TESTS = ["tests/sio/test_socketio.py"]
FLUSH_TESTS = ["tests/server/test_flush.py"]
WEBSOCKET_TESTS = ["tests/server/test_websocket.py"]
EVENTLET_HUB_TESTS = ["tests/server/test_eventlet_hub.py"]
WAITING_TESTS = ["tests/server/test_waiting_connections.py"]
AUDIT_TESTS = ["tests/cli/test_audit.py"]
BOARD_TESTS = ["tests/web/test_board.py"]
SESSION_TESTS = ["tests/services/test_sessions.py"]
EVENTLOG_TESTS = ["tests/services/test_eventlog.py"]
HTTP_LIST_TESTS = ["tests/web/test_order_lists.py"]
AUTHORISATION_TESTS = ["tests/web/test_authorisation.py"]
TRANSIENT_ERROR_TESTS = only(
    DATABASE_CONNECTION_TESTS, "test_transient_errors_are_unavailable_and_others_are_defects"
)
RELAY_TESTS = ["tests/realtime/test_relay.py"]
REPLAY_TESTS = ["tests/realtime/test_replay_bounds.py"]

DEFECTS = [
    # --- who may do what ------------------------------------------------------------------------
    Defect(
        "policy-owner-of-everything", POLICY,
        "if order.customer_id == actor.id:", "if actor.id:", POLICY_TESTS,
    ),
    Defect(
        "policy-drivers-are-never-narrowed", POLICY,
        "self.role is Role.DRIVER and self.scope is DriverScope.ALL", "self.role is Role.DRIVER",
        POLICY_TESTS,
    ),
    Defect(
        "statements-never-narrow-drivers", CALLERS,
        "u.role = 'driver' AND :drivers_see_all", "u.role = 'driver'", LIFECYCLE_TESTS + LIST_TESTS,
    ),
    Defect(
        "policy-deleted-orders-are-seen", POLICY,
        "return not order.is_deleted and bool(", "return bool(", POLICY_TESTS,
    ),
    Defect(
        "policy-anybody-reads-a-deleted-history", POLICY,
        "        return actor.role is Role.ADMIN\n    return can_see",
        "        return True\n    return can_see", POLICY_TESTS,
    ),
    Defect(
        "policy-drivers-may-touch", POLICY,
        "return bool(held & {Standing.OWNER, Standing.ADMIN})", "return bool(held)",
        ORDER_TESTS + POLICY_TESTS,
    ),
    Defect(
        "policy-admins-edit-final-orders", POLICY,
        "return status in lifecycle.TRANSITIONS and status not in lifecycle.TERMINAL",
        "return status in lifecycle.TRANSITIONS", POLICY_TESTS,
    ),
    Defect(
        "policy-owners-edit-for-ever", POLICY,
        "    return Standing.OWNER in held and status == lifecycle.INITIAL\n\n\ndef can_delete",
        "    return Standing.OWNER in held\n\n\ndef can_delete", POLICY_TESTS,
    ),
    Defect(
        "policy-owners-delete-for-ever", POLICY,
        "an admin always.\"\"\"\n    if Standing.ADMIN in held:\n        return True\n"
        "    return Standing.OWNER in held and status == lifecycle.INITIAL",
        "an admin always.\"\"\"\n    if Standing.ADMIN in held:\n        return True\n"
        "    return Standing.OWNER in held", POLICY_TESTS,
    ),
    Defect(
        "policy-customers-are-staff", POLICY,
        "return self.role is not Role.USER", "return bool(self.role)", POLICY_TESTS,
    ),
    Defect(
        "lifecycle-owners-cancel-late", LIFECYCLE,
        "{Status.SHIPPED: _STAFF, Status.CANCELLED: _ADMIN_ONLY}",
        "{Status.SHIPPED: _STAFF, Status.CANCELLED: _CUSTOMER_SIDE}", LIFECYCLE_TESTS,
    ),
    Defect(
        "callers-deactivated-users-go-on", CALLERS,
        "WHERE u.id = :user AND u.active", "WHERE u.id = :user",
        RACE_TESTS,
    ),
    Defect(
        "callers-sessions-outlive-a-sign-out", CALLERS,
        "AND s.id = :session AND s.revoked_at IS NULL)", "AND s.id = :session)", ACCOUNT_TESTS,
    ),
    Defect(
        "callers-everybody-is-staff", CALLERS,
        "if not actor.is_staff:", "if not actor:", HTTP_LIST_TESTS,
    ),
    Defect(
        "callers-drivers-are-admins", CALLERS,
        "if actor.role is not Role.ADMIN:", "if not actor.is_staff:",
        AUTHORISATION_TESTS,
    ),
    # --- changing orders ------------------------------------------------------------------------
    Defect(
        "changes-take-the-transactions-time", RIGHTS_MIGRATION,
        "coalesce(appended, greatest(clock_timestamp(),", "coalesce(appended, greatest(now(),",
        only(RIGHTS_TESTS, "test_a_change_that_waited_is_dated_after_the_wait"),
    ),
    Defect(
        "events-take-a-time-of-their-own", RIGHTS_MIGRATION,
        "SELECT CASE WHEN version = NEW.version THEN updated_at\n",
        "SELECT CASE WHEN version = NEW.version THEN NULL\n",
        only(
            RIGHTS_TESTS,
            "test_a_change_that_waited_is_dated_after_the_wait",
            "test_an_order_and_its_first_event_have_the_same_time",
        ),
    ),
    Defect(
        "times-go-back-with-the-clock", RIGHTS_MIGRATION,
        "OLD.updated_at + interval '1 microsecond'));", "'-infinity'));", RIGHTS_TESTS,
    ),
    Defect(
        "move-ignores-the-version", ORDER_WRITES,
        "AND (:if_version IS NULL OR o.version = :if_version)",
        "AND (:if_version IS NULL OR o.version >= 0)", ORDER_TESTS,
    ),
    Defect(
        "move-reaches-deleted-orders", ORDER_WRITES,
        "FROM actor a, free\n         WHERE o.id = free.id AND o.deleted_at IS NULL",
        "FROM actor a, free\n         WHERE o.id = free.id",
        ORDER_TESTS + LIFECYCLE_TESTS,
    ),
    Defect(
        "move-by-any-driver", ORDER_WRITES,
        "AND o.status = ANY (:as_driver)\n                   AND {callers.STAFF_SEES}\n",
        "AND o.status = ANY (:as_driver)\n                   AND true\n",
        LIFECYCLE_TESTS,
    ),
    Defect(
        "move-without-the-row-queue", ORDERS,
        'with _row_queue.take(parameters["id"]), db.transaction() as t:', "with db.transaction() as t:",
        RACE_TESTS,
    ),
    Defect(
        "changes-without-the-row-queue", ORDERS,
        "with _row_queue.take(order_id), db.transaction() as t:", "with db.transaction() as t:",
        RACE_TESTS,
    ),
    Defect(
        "row-queue-lets-everybody-through", ROW_QUEUE, "_AT_ONCE = 2", "_AT_ONCE = 1000", RACE_TESTS,
    ),
    Defect(
        "move-is-not-tried-again", ORDERS,
        "= order_writes.move\n    for _ in range(5):\n", "= order_writes.move\n    for _ in range(1):\n",
        RACE_TESTS,
    ),
    Defect(
        "changes-do-not-lock-the-row", ORDERS,
        '        t.execute(text(LOCK_ROW), {"id": order_id})\n        actor', "        actor",
        LIFECYCLE_TESTS
        + only(RIGHTS_TESTS, "test_a_change_that_waited_is_judged_by_the_rights_after_the_wait"),
    ),
    Defect(
        "moves-wait-within-their-statement", ORDER_WRITES,
        "free AS ({LOCK_ROW} SKIP LOCKED),", "free AS ({LOCK_ROW}),",
        only(RIGHTS_TESTS, "test_a_change_that_waited_is_judged_by_the_rights_after_the_wait"),
    ),
    Defect(
        "moves-do-not-wait", ORDERS,
        '        t.execute(text(LOCK_ROW), {"id": parameters["id"]})\n', "",
        only(RIGHTS_TESTS, "test_a_change_that_waited_is_judged_by_the_rights_after_the_wait"),
    ),
    Defect(
        "groups-wait-within-their-statement", ORDER_WRITES,
        "ORDER BY id FOR NO KEY UPDATE SKIP LOCKED),", "ORDER BY id FOR NO KEY UPDATE),",
        only(
            GROUP_TESTS,
            "test_rights_that_end_while_a_change_waits_for_its_group_are_gone",
            "test_a_locked_order_delays_no_other_order_of_its_group",
        ),
    ),
    Defect(
        "groups-move-by-any-driver", ORDER_WRITES,
        "{_steps(Standing.DRIVER)}\n                   AND {callers.STAFF_SEES}\n",
        "{_steps(Standing.DRIVER)}\n", GROUP_TESTS,
    ),
    Defect(
        "groups-ignore-the-version", ORDER_WRITES,
        "AND (a.if_version IS NULL OR o.version = a.if_version)",
        "AND (a.if_version IS NULL OR o.version >= 0)", GROUP_TESTS,
    ),
    Defect(
        "groups-reach-deleted-orders", ORDER_WRITES,
        "ON free.id = a.order_id\n         WHERE o.id = free.id AND o.deleted_at IS NULL",
        "ON free.id = a.order_id\n         WHERE o.id = free.id", GROUP_TESTS,
    ),
    Defect(
        "groups-take-signed-out-callers", CALLERS,
        "AND s.id = w.session_id AND s.revoked_at IS NULL\n",
        "AND s.id = w.session_id\n", GROUP_TESTS,
    ),
    Defect(
        "groups-forget-the-second-change-of-an-order", ORDER_WRITES,
        'if first[call["id"]] is call else _ALONE', "if first else _ALONE", GROUP_TESTS,
    ),
    Defect(
        "groups-mix-their-orders-up", ORDER_WRITES,
        "SELECT a.id, a.description FROM a ORDER BY a.n", "SELECT a.id, a.description FROM a ORDER BY a.n DESC",
        GROUP_TESTS,
    ),
    Defect(
        "groups-are-refused-together", ORDER_WRITES,
        "if len(calls) == 1 or not db.is_refusal(error):", "if calls:", GROUP_TESTS,
    ),
    Defect(
        "groups-are-repeated-whatever-happened", ORDER_WRITES,
        "if len(calls) == 1 or not db.is_refusal(error):", "if len(calls) == 1:",
        GROUP_TESTS
        + only(
            ["tests/faults/test_database.py"],
            "test_writes_whose_connection_dies_at_their_commit_are_there_once",
        ),
    ),
    Defect(
        "groups-of-a-lost-connection-are-repeated", DB,
        'and cause.diag.severity_nonlocalized == "ERROR"\n', 'and cause.diag.severity_nonlocalized != "FATAL"\n', GROUP_TESTS,
    ),
    Defect(
        "stuck-groups-are-waited-for", ORDER_WRITES,
        "if time.monotonic() - self._began < _STUCK:", "if self._began:", GROUP_TESTS,
    ),
    Defect(
        "newer-versions-match", ORDERS,
        "if wanted is not None and wanted != current:",
        "if wanted is not None and wanted > current:", ORDER_TESTS,
    ),
    Defect(
        "keys-are-not-compared", ORDERS,
        "if row.request_hash != fingerprint:", "if not fingerprint:",
        ["tests/web/test_idempotency.py"],
    ),
    Defect(
        "orders-wait-for-their-key-within-their-statement", ORDERS,
        "\n           AND pg_try_advisory_xact_lock(:lock)),", "\n           AND :lock IS NOT NULL),",
        only(RIGHTS_TESTS, "test_an_order_that_waited_for_its_key_is_judged_by_the_rights_after_the_wait"),
    ),
    Defect(
        "keys-without-their-queue", ORDERS,
        'with _key_queue.take(parameters["lock"]), db.transaction() as t:', "with db.transaction() as t:",
        only(RIGHTS_TESTS, "test_a_stuck_key_leaves_connections_for_the_others"),
    ),
    Defect(
        "keys-of-older-releases-are-errors", ORDERS,
        "if not _is_taken(error):", "if error:",
        only(RIGHTS_TESTS, "test_a_repeated_key_waits_for_the_first_call_and_finds_its_order"),
    ),
    Defect(
        "inactive-drivers-are-assigned", ORDERS,
        "User.role == Role.DRIVER.value, User.active)", "User.role == Role.DRIVER.value)",
        ORDER_TESTS,
    ),
    Defect(
        "drivers-are-deactivated-while-they-are-assigned", ORDERS,
        "        .with_for_update(read=True)\n", "",
        only(
            RIGHTS_TESTS,
            "test_a_driver_is_not_deactivated_in_the_middle_of_an_assignment",
            "test_a_driver_who_is_being_deactivated_is_assigned_no_order",
        ),
    ),
    Defect(
        "percent-signs-are-wildcards", QUERY,
        '.replace("%", "\\\\%")', "", HTTP_LIST_TESTS,
    ),
    Defect(
        "own-lists-are-everybodys", WALK,
        'return [Branch("true", "customer_id",', 'return [Branch("true", "all",',
        HTTP_LIST_TESTS,
    ),
    Defect(
        "histories-are-open", ORDERS,
        "if row is None or not may_read(actor, row):",
        "if row is None:", AUTHORISATION_TESTS,
    ),
    Defect(
        "versions-from-the-future-are-taken", ORDERS,
        "if after is not None and after > row.version:",
        "if after is not None and after > 1_000_000_000:", SOCKETIO_HANDLER_TESTS,
    ),
    Defect(
        "one-event-less-is-replayed", ORDERS,
        "TOO_MANY if missed > REPLAY_LIMIT", "TOO_MANY if missed >= REPLAY_LIMIT",
        ["tests/clients/test_streams.py"],
    ),
    Defect(
        "answers-have-no-budget", ORDERS,
        "full = full or number > budget.events or size > budget.bytes", "full = False",
        REPLAY_TESTS,
    ),
    Defect(
        "what-will-not-fit-is-read-all-the-same", ORDERS,
        "while unread and number <= budget.events and size <= budget.bytes:", "while unread:",
        REPLAY_TESTS,
    ),
    # --- lists ----------------------------------------------------------------------------------
    Defect(
        "lists-look-at-everything", WALK,
        'bound = branch.reach if conditions else ":wanted"',
        'bound = "NULL" if conditions else ":wanted"', LIST_TESTS,
    ),
    Defect(
        "drivers-list-the-orders-of-others", WALK,
        'Branch(narrowed, "assigned", every)', "Branch(narrowed, path, rest)", LIST_TESTS,
    ),
    Defect(
        "drivers-find-the-orders-of-others-by-number", QUERY,
        '[STAFF, "o.deleted_at IS NULL", sees]', '[STAFF, "o.deleted_at IS NULL"]', LIST_TESTS,
    ),
    Defect(
        "customers-search-before-they-are-refused", QUERY,
        "STAFF: Final = \"a.role <> 'user'\"", 'STAFF: Final = "true"', PLAN_TESTS,
    ),
    Defect(
        "counts-beyond-their-bound-look-exact", LISTS,
        "Count(min(row.number, at_most), row.number > at_most)",
        "Count(min(row.number, at_most), False)", LIST_TESTS,
    ),
    Defect(
        "searches-by-index-leave-some-out", SEARCH,
        "    if len(found) > CANDIDATES:\n", "    if not CANDIDATES:\n", LIST_TESTS,
    ),
    # --- the log --------------------------------------------------------------------------------
    Defect(
        "replay-repeats-the-last-seen", EVENTLOG,
        "AND version > wanted.after AND version <= wanted.upto",
        "AND version >= wanted.after AND version <= wanted.upto", ["tests/web/test_history.py"],
    ),
    Defect(
        "tail-skips-the-next-transaction", LOG_TAIL,
        "WHERE e.xid >= pg_snapshot_xmax($1)", "WHERE e.xid > pg_snapshot_xmax($1)", TAIL_TESTS,
    ),
    Defect(
        "tail-forgets-who-was-running", LOG_TAIL,
        "WHERE e.xid = ANY (ARRAY(SELECT pg_snapshot_xip($1)))",
        "WHERE e.xid = ANY (ARRAY(SELECT pg_snapshot_xip($1))) AND false", TAIL_TESTS,
    ),
    Defect(
        "tail-goes-back-when-nothing-is-new", LOG_TAIL,
        "Cursor.at(snapshot, max(self.position.last, last))", "Cursor.at(snapshot, last)",
        TAIL_TESTS,
    ),
    Defect(
        "tail-reads-on-in-another-database", LOG_TAIL,
        "if last >= int(end):", "if last < 0:", TAIL_TESTS,
    ),
    Defect(
        "tail-repeats-what-was-running", LOG_TAIL,
        "frozenset(xid for xid in running_then if xid <= last)", "frozenset(running_then)", TAIL_TESTS,
    ),
    Defect(
        "tail-cuts-what-is-too-much", LOG_TAIL,
        "if len(rows) > self._most:", "if not self._most:",
        only(
            RELAY_TESTS,
            "test_too_many_rows_for_one_read_make_all_clients_resume",
        ),
    ),
    Defect(
        "events-choose-their-transaction", RIGHTS_MIGRATION,
        "            NEW.xid := pg_current_xact_id();\n            SELECT", "            SELECT",
        ROLE_TESTS,
    ),
    Defect(
        "servers-choose-an-events-time", ROLES,
        '"order_events": _Rights(update=False, not_inserted=_STAMPED),',
        '"order_events": _Rights(update=False),', ROLE_TESTS,
    ),
    Defect(
        "servers-choose-an-orders-time", ROLES,
        'frozenset({"id", "customer_id", "created_at", "updated_at"})',
        'frozenset({"id", "customer_id", "created_at"})', ROLE_TESTS,
    ),
    Defect(
        "events-can-be-rewritten", FIRST_MIGRATION,
        "{table}_append_only_rows BEFORE UPDATE OR DELETE ON",
        "{table}_append_only_rows BEFORE DELETE ON", EVENTLOG_TESTS,
    ),
    Defect(
        "log-triggers-can-be-put-to-sleep", FIRST_MIGRATION,
        "ENABLE ALWAYS TRIGGER", "ENABLE TRIGGER", EVENTLOG_TESTS,
    ),
    Defect(
        "sign-outs-go-at-once", RIGHTS_MIGRATION,
        "IF OLD.reason = 'signed_out' AND OLD.created_at < now() - {KEPT} THEN",
        "IF OLD.reason = 'signed_out' THEN", ROLE_TESTS,
    ),
    # --- fan-out --------------------------------------------------------------------------------
    Defect(
        "fanout-does-not-notice-what-it-missed", HUB,
        "                subscription.newest = version", "                subscription.newest = 0", HUB_TESTS,
    ),
    Defect(
        "fanout-does-not-read-again", HUB,
        "            if not outdated:\n                return answers",
        "            return answers", HUB_TESTS,
    ),
    Defect(
        "fanout-repeats-what-was-answered", HUB,
        "(own.state is State.SETTLING and version > own.watermark)", "own.state is State.SETTLING",
        HUB_TESTS,
    ),
    Defect(
        "fanout-forgets-the-earlier-answer", HUB,
        "earlier.watermark if earlier else 0", "0", HUB_TESTS,
    ),
    Defect(
        "fanout-drops-watermarks-too-early", HUB,
        "in self._settling_before_read:\n",
        "in self._settling_before_read + self._settling_since_read:\n", HUB_TESTS,
    ),
    Defect(
        "fanout-loses-what-was-held", HUB,
        "        for announcement in subscription.held:",
        "        for announcement in subscription.held[:0]:",
        HUB_TESTS,
    ),
    Defect(
        "fanout-delivers-twice", HUB,
        "list(dict.fromkeys(chain(of_order, *feeds)))", "[*chain(of_order, *feeds)]",
        HUB_TESTS,
    ),
    Defect(
        "fanout-every-driver-in-the-staff-feed", HUB,
        "if actor.sees_all else", "if actor.is_staff else", HUB_TESTS,
    ),
    Defect(
        "fanout-drivers-keep-what-they-lost", HUB,
        'if event.type == "driver_assigned":',
        'if event.type == "never":', HUB_TESTS + SOCKETIO_HANDLER_TESTS,
    ),
    Defect(
        "rooms-identify-before-admitting", SOCKETIO_HANDLERS,
        "                self._connections.admit(watcher)\n"
        "                session.application = watcher\n"
        "                self._gate.identify(watcher)\n",
        "                self._gate.identify(watcher)\n"
        "                self._connections.admit(watcher)\n"
        "                session.application = watcher\n",
        REVOCATION_TESTS,
    ),
    Defect(
        "rooms-renew-without-a-second-look", SOCKETIO_HANDLERS,
        "        try:\n            # Revoked just before, the session had no connection yet that could be closed.\n"
        "            self._gate.identify(watcher)\n"
        "        except InvalidToken as error:\n            watcher.close_with_error(error)\n"
        "            raise\n", "", REVOCATION_TESTS,
    ),
    Defect(
        "gate-queries-for-ended-connections", DATABASE_GATE,
        "            if not watcher.is_alive:", "            if watcher is None:",
        only(SOCKETIO_HANDLER_TESTS, "test_a_connection_that_has_ended_takes_no_turn_at_the_database"),
    ),
    Defect(
        "guests-without-a-share", CONNECTIONS,
        "len(own) >= self._per_user", "len(own) > 1_000_000", CONNECTIONS_TESTS,
    ),
    Defect(
        "guests-go-on-as-others", CONNECTIONS,
        "if credential.caller.user_id != watcher.credential.caller.user_id:",
        "if not credential:", CONNECTIONS_TESTS,
    ),
    Defect(
        "guests-all-sessions-end", CONNECTIONS,
        "if revoked.session_id in (None, watcher.credential.caller.session_id):", "if revoked:",
        CONNECTIONS_TESTS,
    ),
    Defect(
        "relay-follows-whatever-happens", RELAY,
        "return loop.monotonic() - self._last_turn < self._poll + _LONGEST_TURN", "return True",
        TIME_TESTS,
    ),
    Defect(
        "relay-does-not-tell-the-others", RELAY,
        'f"NOTIFY {CHANNEL}" if notify else ""', '""',
        only(RELAY_TESTS, "test_a_commit_of_another_process_is_published_before_the_poll"),
    ),
    Defect(
        "relay-notifies-when-alone", RELAY,
        "self._notify and not self._alone, False", "self._notify, False",
        only(RELAY_TESTS, "test_one_process_alone_notifies_nobody_and_two_notify_each_other"),
    ),
    Defect(
        "relay-announces-itself-to-nobody", RELAY,
        '        cursor.execute(f"NOTIFY {CHANNEL}")\n', "",
        only(RELAY_TESTS, "test_a_relay_that_hears_of_another_notifies_it_of_what_it_kept_to_itself"),
    ),
    Defect(
        "relay-keeps-to-itself-what-nobody-heard", RELAY,
        "            self._notify = True\n        self._woken.set()", "        self._woken.set()",
        only(RELAY_TESTS, "test_a_relay_that_hears_of_another_notifies_it_of_what_it_kept_to_itself"),
    ),
    Defect(
        "relay-publishes-events-before-revocations", RELAY,
        "            for revoked in revocations:\n                self._revoke(revoked)\n"
        "            for event in events:\n                self._publish(event)\n",
        "            for event in events:\n                self._publish(event)\n"
        "            for revoked in revocations:\n                self._revoke(revoked)\n",
        only(RELAY_TESTS, "test_a_revocation_before_an_event_is_applied_before_the_event_is_published"),
    ),
    Defect(
        "relay-takes-a-broken-socket-for-a-lost-connection", RELAY,
        "        except OSError as error:\n", "        except KeyError as error:\n",
        only(
            RELAY_TESTS,
            "test_a_socket_error_while_publishing_does_not_pass_for_a_lost_connection",
        ),
    ),
    Defect(
        "relay-reads-on-in-another-timeline", RELAY,
        "if self._timeline not in (None, timeline):", 'if self._timeline == "never":',
        only(RELAY_TESTS, "test_an_interrupted_restart_of_the_cursor_is_repeated"),
    ),
    Defect(
        "relay-restarts-without-closing-clients", RELAY,
        "        self._on_gap()\n", "",
        only(
            RELAY_TESTS,
            "test_too_many_rows_for_one_read_make_all_clients_resume",
        ),
    ),
    Defect(
        "relay-catches-up-after-any-outage", RELAY,
        "elif outage > _LONGEST_OUTAGE:", "elif outage < 0:",
        only(
            RELAY_TESTS,
            "test_all_clients_resume_after_a_long_outage_and_none_after_a_short_one",
        ),
    ),
    Defect(
        "relay-follows-a-standby", RELAY,
        "        if timeline is None:\n", '        if timeline == "never":\n',
        only(
            FAILOVER_TESTS,
            "test_a_standby_is_not_followed_and_writes_find_the_primary_among_the_hosts",
        ),
    ),
    Defect(
        "failed-logins-wake-the-relay", DB,
        "    if appended:\n        _call_after_append()", "    _call_after_append()",
        only(RELAY_TESTS, "test_every_append_wakes_the_relay_and_nothing_else_does"),
    ),
    Defect(
        "moves-wake-nobody", DB,
        "if rows and self._appends:", "if not rows and self._appends:",
        only(RELAY_TESTS, "test_every_append_wakes_the_relay_and_nothing_else_does"),
    ),
    Defect(
        "nobody-resumes-after-a-gap", SETUP,
        "        loop.spawn(close_each, stopped, settings.drain_seconds / 2)\n", "",
        FAILOVER_TESTS,
    ),
    # --- what strangers may take ----------------------------------------------------------------
    Defect(
        "pending-sessions-are-not-bounded", PENDING_SESSIONS,
        "full = len(self._all) > self._most", "full = not self._most",
        only(PENDING_TESTS, "test_the_oldest_of_the_address_is_evicted_and_then_the_oldest_of_all"),
    ),
    Defect(
        "pending-sessions-of-one-address-are-not-bounded", PENDING_SESSIONS,
        "if len(own) > self._per_address or (full", "if (full",
        only(PENDING_TESTS, "test_the_oldest_of_the_address_is_evicted_and_then_the_oldest_of_all"),
    ),
    Defect(
        "any-page-connects-by-the-cookie", ENGINEIO_SERVER,
        "and not self.origins.vouch(environ):", "and not self.origins:",
        only(SOCKETIO_TESTS, "test_handshakes_of_other_origins_are_refused_and_checked_strictly_with_the_cookie"),
    ),
    Defect(
        "browsers-words-on-the-site-are-ignored", ORIGINS,
        "        if site is not None:\n            return site in _OWN_SITES\n", "",
        only(SOCKETIO_TESTS, "test_handshakes_of_other_origins_are_refused_and_checked_strictly_with_the_cookie"),
    ),
    Defect(
        "jsonp-is-answered", ENGINEIO_SERVER,
        '    if "j" in query:\n', '    if "never" in query:\n',
        only(["tests/sio/test_polling.py"], "test_there_is_no_jsonp"),
    ),
    Defect(
        "lengths-may-be-longer-than-needed", WS_FRAMES,
        "if length < (126 if width == 2 else 65_536) or length >> 63:", "if length >> 63:",
        only(WEBSOCKET_TESTS, "test_a_protocol_violation_is_closed_with_its_code"),
    ),
    Defect(
        "frames-need-no-mask", WS_FRAMES,
        "if not data[at + 1] & _MASKED:", "if data[at + 1] < 0:",
        only(WEBSOCKET_TESTS, "test_a_protocol_violation_is_closed_with_its_code"),
    ),
    Defect(
        "messages-are-of-any-size", WS_FRAMES,
        "length + len(self._message or b\"\") > self.limit:", "length > self.limit:",
        only(
            WEBSOCKET_TESTS,
            "test_endless_fragments_take_no_memory",
            "test_a_protocol_violation_is_closed_with_its_code",
        ),
    ),
    Defect(
        "floods-are-not-ended", WEBSOCKET,
        "return full_at if full_at - now <= self.message_burst / self.messages_per_second else None",
        "return full_at",
        only(WEBSOCKET_TESTS, "test_a_flood_of_messages_is_closed"),
    ),
    Defect(
        "raw-sockets-hold-back-any-number", ORDER_SOCKET,
        "if self._unsent_bytes > self._unsent_limit:", "if self._unsent_bytes < 0:",
        only(REPLAY_TESTS, "test_a_plain_websocket_that_does_not_read_its_replay_is_closed"),
    ),
    Defect(
        "pipelining-keeps-the-loop", HTTP_CONNECTION,
        "while self._serve_one():\n                if self._reader.has_more:",
        "while self._serve_one():\n                if self._server.stopping:", WAITING_TESTS,
    ),
    Defect(
        "bytes-in-time-keep-the-loop", HTTP_CONNECTION,
        "is_ready, self._is_new = self._is_new, False", "is_ready = self._is_new", WAITING_TESTS,
    ),
    Defect(
        "epoll-reports-what-nobody-waits-for", EVENTLET_HUB,
        "_ONESHOT: Final = 0x4000_0000", "_ONESHOT: Final = 0", EVENTLET_HUB_TESTS,
    ),
    Defect(
        "ended-wait-wakes-its-greenlet", EVENTLET_HUB,
        "wait[0] = None\n                if", "if", EVENTLET_HUB_TESTS,
    ),
    Defect(
        "who-waits-for-a-closed-file-is-not-told", EVENTLET_HUB,
        "        self._obsolete(descriptor)\n", "        self._waits.pop(descriptor, None)\n",
        EVENTLET_HUB_TESTS,
    ),
    Defect(
        "trampoline-after-our-wait-is-not-armed", EVENTLET_HUB,
        "self.register(fileno)", "self.register(fileno, new=True)", EVENTLET_HUB_TESTS,
    ),
    Defect(
        "idle-connections-of-one-address-are-not-bounded", WAITING_CONNECTIONS,
        "if len(own) > self._per_address:", "if not own:", WAITING_TESTS,
    ),
    Defect(
        "idle-connections-are-not-bounded", WAITING_CONNECTIONS,
        "if len(self._all) > self._most:", "if not self._all:", WAITING_TESTS,
    ),
    Defect(
        "flushes-take-the-whole-turn", LOOP,
        "while dirty and now < end:", "while dirty:", FLUSH_TESTS,
    ),
    Defect(
        "frames-are-mixed-up", SEND_QUEUE,
        "if found[1] is not frame or found[0] is not frames:", "if found[1] is not frame:",
        FLUSH_TESTS,
    ),
    Defect(
        "joins-are-mixed-up", SEND_QUEUE,
        "if _last.joined[0] is not frames:", "if not _last.joined[1]:", FLUSH_TESTS,
    ),
    Defect(
        "closes-come-all-at-once", LOOP,
        "due = began + seconds * number / len(leaving)", "due = began",
        TIME_TESTS,
    ),
    Defect(
        "context-outlives-its-task", LOOP,
        "        this.gr_context = None  #", "        #",
        SPAWNING_TESTS,
    ),
    Defect(
        "first-task-is-kept-by-its-greenlet", LOOP,
        "        job.clear()\n", "",
        SPAWNING_TESTS,
    ),
    Defect(
        "integers-of-any-length-are-read", PACKETS,
        "if len(digits) > MAX_DIGITS:", "if False:",
        PACKETS_TESTS,
    ),
    Defect(
        "answers-wait-for-broadcasts", LOOP,
        "        self.answering.append(ws)\n", "        self.dirty.append(ws)\n",
        FLUSH_TESTS,
    ),
    Defect(
        "large-answers-wait-for-the-next-turn", WEBSOCKET,
        "if len(frame) > LARGE_ANSWER:", "if False:",
        only(SOCKETIO_TESTS, "test_large_answers_are_made_only_as_the_client_reads_them"),
    ),
    Defect(
        "two-epolls-watch-a-websocket", HTTP_CONNECTION,
        "        if self._has_waited:", "        if False:",
        only(WEBSOCKET_TESTS, "test_one_epoll_watches_a_socket_that_has_become_a_websocket"),
    ),
    # --- who speaks -----------------------------------------------------------------------------
    Defect(
        "identity-takes-refresh-tokens", AUTH,
        'if claims.get("type") != "access" or "exp" not in claims:', 'if "exp" not in claims:',
        TOKEN_TESTS,
    ),
    Defect(
        "identity-cached-tokens-never-expire", AUTH,
        "if credential.expires_at <= time.time():", "if credential.expires_at <= 0:",
        SESSION_TESTS,
    ),
    Defect(
        "identity-any-issuer", AUTH,
        '        "JWT_DECODE_ISSUER": ISSUER,\n', "", TOKEN_TESTS,
    ),
    Defect(
        "identity-any-audience", AUTH,
        '        "JWT_DECODE_AUDIENCE": AUDIENCE,\n', "", TOKEN_TESTS,
    ),
    Defect(
        "identity-other-sites-may-put", AUTH,
        'frozenset({"POST", "PUT", "PATCH", "DELETE"})', 'frozenset({"POST"})', CSRF_TESTS,
    ),
    Defect(
        "identity-no-csrf-token", AUTH,
        '"JWT_COOKIE_CSRF_PROTECT": True', '"JWT_COOKIE_CSRF_PROTECT": False', CSRF_TESTS,
    ),
    Defect(
        "cookies-travel-in-the-clear", AUTH,
        '"JWT_COOKIE_SECURE": settings.cookie_secure', '"JWT_COOKIE_SECURE": False', NGINX_TESTS,
    ),
    Defect(
        "no-strict-transport", HEADERS,
        'if self._strict_transport and environ.get("wsgi.url_scheme") == "https":',
        'if environ.get("wsgi.url_scheme") == "never":', NGINX_TESTS,
    ),
    Defect(
        "answers-may-be-cached", HEADERS,
        '    ("Cache-Control", "no-store"),\n', "", ["tests/web/test_pages.py"],
    ),
    Defect(
        "routes-are-remembered-without-their-method", LEAN_FLASK,
        "shape = (self.default_method, path[: found.start()], path[found.end() :])",
        'shape = ("", path[: found.start()], path[found.end() :])', LEAN_FLASK_TESTS,
    ),
    Defect(
        "hosts-fill-the-memory", LEAN_FLASK,
        "if len(self._hosts) >= MAX_HOSTS:", "if len(self._hosts) < 0:", LEAN_FLASK_TESTS,
    ),
    Defect(
        "open-sessions-stay-open", "ordertrack/extensions.py",
        "if self.session.registry.registry:", "if exc is not None:", LEAN_FLASK_TESTS,
    ),
    Defect(
        "packaged-pythons-are-warned-of", "ordertrack/interpreter.py",
        'is_of_the_operating_system = prefix == "/usr"', "is_of_the_operating_system = False",
        ["tests/unit/test_interpreter.py"],
    ),
    Defect("proxys-scheme-is-ignored", APP, "x_proto=n", "x_proto=0", NGINX_TESTS),
    Defect("proxys-client-is-ignored", APP, "x_for=n", "x_for=n + 1", NGINX_TESTS),
    Defect(
        "unknown-addresses-answer-faster", ACCOUNTS,
        "matches = passwords.matches(stored, password)",
        "matches = user_id is not None and passwords.matches(stored, password)",
        SESSION_TESTS,
    ),
    Defect(
        "sessions-never-expire", ACCOUNTS,
        "if session.expires_at <= datetime.now(UTC):", "if session.expires_at is None:",
        SESSION_TESTS,
    ),
    Defect(
        "deactivation-leaves-sessions", ACCOUNTS,
        "        if not active:\n", "        if active:\n", ACCOUNT_TESTS + SOCKETIO_HANDLER_TESTS,
    ),
    Defect(
        "new-roles-are-not-told", ACCOUNTS,
        """        t.add(
            Revocation(
                user_id=user.id,
                reason="role_changed",
                actor_id=by,
                old_role=before,
                new_role=role.value,
            )
        )
""", "", SOCKETIO_HANDLER_TESTS,
    ),
    Defect(
        "admins-demote-each-other", ACCOUNTS,
        "users = _locked(t, {caller.user_id, user_id})", "users = _locked(t, {user_id})",
        only(RIGHTS_TESTS, "test_two_admins_do_not_demote_each_other"),
    ),
    Defect(
        "logins-do-not-wait-for-a-deactivation", ACCOUNTS,
        'user = t.get(User, user_id, with_for_update={"read": True}, populate_existing=True)',
        "user = t.get(User, user_id, populate_existing=True)",
        only(
            RIGHTS_TESTS,
            "test_a_login_during_a_change_of_the_account_is_refused",
            "test_the_session_of_a_login_just_before_a_deactivation_is_revoked",
        ),
    ),
    Defect(
        "logins-by-a-password-that-was-changed", ACCOUNTS,
        "or not user.active or user.password_hash != stored:", "or not user.active:",
        only(RIGHTS_TESTS, "test_a_login_during_a_change_of_the_account_is_refused"),
    ),
    Defect(
        "reset-links-work-twice", PASSWORDS,
        "or not hmac.compare_digest(_fingerprint(user), reset.fingerprint)",
        "or not reset.fingerprint", PASSWORD_TESTS,
    ),
    Defect(
        "reset-links-never-expire", AUTH,
        "loads(token, max_age=RESET_SECONDS)", "loads(token)", PASSWORD_TESTS,
    ),
    Defect(
        "reset-links-leave-sessions", PASSWORDS,
        "        sessions.revoke_where(t, Session.user_id == user.id)\n", "", PASSWORD_TESTS,
    ),
    Defect(
        "reset-links-for-the-deactivated", PASSWORDS,
        "            or not user.active\n            or not hmac", "            or not hmac",
        PASSWORD_TESTS,
    ),
    Defect(
        "new-passwords-leave-other-sessions", PASSWORDS,
        "        sessions.revoke_where(t, Session.user_id == user.id, others)\n", "", PASSWORD_TESTS,
    ),
    Defect(
        "new-passwords-need-no-old-one", PASSWORDS,
        "if not matches(stored, current):", "if not current:", PASSWORD_TESTS,
    ),
    Defect(
        "anybody-ends-any-session", SESSIONS,
        "if not revoke_where(t, Session.user_id == actor.id, Session.id == session_id):",
        "if not revoke_where(t, Session.id == session_id):", PASSWORD_TESTS,
    ),
    Defect(
        "ended-sessions-keep-their-sockets", SESSIONS,
        'Revocation(user_id=u, session_id=s, reason="signed_out", actor_id=u) for u, s in revoked',
        'Revocation(user_id=u, session_id=s, reason="signed_out", actor_id=u) for u, s in []',
        SOCKETIO_HANDLER_TESTS,
    ),
    Defect(
        "admins-take-their-own-rights", ACCOUNTS,
        "if user.id == actor.id and (role not in (None, Role.ADMIN) or active is False):",
        "if user.id != user.id:", ACCOUNT_TESTS,
    ),
    # --- limits and errors ----------------------------------------------------------------------
    *(
        Defect(
            f"sqlstate-{state}-is-a-defect", DB, f'"{state}"', '"XX000"', TRANSIENT_ERROR_TESTS,
        )
        for state in ("40P01", "40001", "25006", "25P03", "25P04")
    ),
    *(
        Defect(
            f"sqlstates-{group}-are-defects", DB, f'"{group}"', '"XX"', TRANSIENT_ERROR_TESTS,
        )
        for group in ("08", "53", "57")
    ),
    Defect(
        "slow-lists-do-not-say-why", DB,
        'if state == "57014":', 'if state == "XX000":',
        only(HTTP_LIST_TESTS, "test_a_list_that_times_out_is_answered_with_advice"),
    ),
    Defect(
        "writes-are-tried-twice", DB,
        "self._reads = not _WRITES.search(sql)", "self._reads = True",
        only(
            DATABASE_CONNECTION_TESTS,
            "test_a_read_that_loses_its_connection_is_retried_and_a_write_is_not",
        ),
    ),
    Defect(
        "reads-are-tried-once", DB,
        "if isinstance(original, NoAnswer) or not _is_lost_connection(original):", "if original:",
        only(
            DATABASE_CONNECTION_TESTS,
            "test_a_read_that_loses_its_connection_is_retried_and_a_write_is_not",
        ),
    ),
    Defect(
        "dead-connections-are-given-out", DB,
        "(connection.closed or has_input(connection.fileno()))", "connection.closed",
        only(
            DATABASE_CONNECTION_TESTS,
            "test_a_connection_that_died_in_the_pool_is_replaced_before_anything_is_sent",
        ),
    ),
    Defect(
        "reads-are-compiled", CONNECTOR, '    "jit": "off",\n', "",
        only(
            DATABASE_CONNECTION_TESTS,
            "test_sessions_have_the_settings_that_statements_rely_on_and_compile_nothing",
        ),
    ),
    Defect(
        "standbys-are-served-from", CONNECTOR,
        '            "target_session_attrs": "read-write",\n', "",
        only(DATABASE_CONNECTION_TESTS, "test_a_dsn_without_target_session_attrs_asks_for_a_primary"),
    ),
    Defect(
        "poolers-by-transaction-are-not-found-out", CONNECTOR,
        'if shared or _ask(first, "SELECT pg_backend_pid()") != before:', "if not before:",
        only(DATABASE_CONNECTION_TESTS, "test_a_pooler_that_pools_by_transaction_is_detected"),
    ),
    # --- old rows -------------------------------------------------------------------------------
    Defect(
        "housekeeping-takes-all-at-once", HOUSEKEEPING,
        '{"limit": BATCH}', '{"limit": None}', HOUSEKEEPING_TESTS,
    ),
    Defect(
        "housekeeping-goes-on-for-ever", HOUSEKEEPING,
        "for _ in range(MAX_BATCHES):", "for _ in range(1_000_000):", HOUSEKEEPING_TESTS,
    ),
    Defect(
        "every-process-keeps-house", HOUSEKEEPING,
        """        if not t.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}):
            return 0
""", "", HOUSEKEEPING_TESTS,
    ),
    Defect(
        "young-sessions-go", HOUSEKEEPING,
        "\"revoked_at < now() - interval '7 days'\"", '"revoked_at < now()"', HOUSEKEEPING_TESTS,
    ),
    Defect(
        "housekeeping-fails-once-and-for-all", HOUSEKEEPING,
        "            except Exception:\n", "            except ValueError:\n", HOUSEKEEPING_TESTS,
    ),
    Defect(
        "setting-of-messages-has-no-effect", SETUP,
        "        max_message_bytes=settings.max_body_bytes,\n", "", SETTINGS_TESTS,
    ),
    Defect(
        "setting-of-queues-has-no-effect", SETUP,
        "        max_queue_bytes=settings.queue_max_bytes,\n", "", SETTINGS_TESTS,
    ),
    Defect(
        "setting-of-patience-has-no-effect", SETUP,
        "        max_queue_seconds=settings.queue_max_seconds,\n", "", SETTINGS_TESTS,
    ),
    Defect(
        "setting-of-connections-has-no-effect", SETUP,
        "        max_connections=settings.max_connections,\n", "", SETTINGS_TESTS,
    ),
    Defect(
        "setting-of-guests-has-no-effect", SETUP,
        "limit=settings.max_connections,", "limit=1_000_000,", SETTINGS_TESTS,
    ),
    # --- the board and the audit ------------------------------------------------------------------
    Defect(
        "board-shows-page-one-again", WALK,
        'return "o.id < :before", "o.id DESC"', 'return "o.id <> :before", "o.id DESC"',
        LIST_TESTS,
    ),
    Defect(
        "export-stops-after-a-batch", LISTS,
        "        if before is None:\n", "        if page.orders:\n", LIST_TESTS,
    ),
    Defect(
        "board-shows-deleted-orders", WALK,
        '*(["o.deleted_at IS NULL"] if self.path == "all" else ())', "*()", LIST_TESTS,
    ),
    Defect(
        "drivers-see-an-empty-list-of-deleted-orders", LISTS,
        "    if query.filters.deleted:\n        callers.require_admin(page.actor)\n", "",
        BOARD_TESTS,
    ),
    Defect(
        "audit-takes-gaps", AUDIT,
        "if event.version != version + 1:", "if event.version < version:",
        AUDIT_TESTS,
    ),
    Defect(
        "audit-takes-any-actor", AUDIT,
        "if after not in lifecycle.next_statuses(before, _standings(event)):", "if not after:",
        AUDIT_TESTS,
    ),
    Defect(
        "audit-takes-any-time", AUDIT,
        "if event.created_at <= before.created_at:", "if before.created_at is None:",
        AUDIT_TESTS,
    ),
    Defect(
        "audit-takes-any-order-of-rows", AUDIT,
        "    if event.id <= before.id:\n", "    if before.id is None:\n",
        AUDIT_TESTS,
    ),
    Defect(
        "audit-takes-any-right", AUDIT,
        "    if not allowed:\n", "    if allowed is None:\n", AUDIT_TESTS,
    ),
    Defect(
        "audit-takes-any-role", AUDIT,
        "return not self._roles[user_id].isdisjoint({role, None})", "return True", AUDIT_TESTS,
    ),
]  # fmt: skip
