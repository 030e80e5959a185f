"""The peer as tutorials write it: Flask-SocketIO on eventlet, Flask-SQLAlchemy, Flask-JWT-Extended.

Environment: PORT, JWT_SECRET, and libpq's PG* variables.
"""

import eventlet

eventlet.monkey_patch()

# ruff: noqa: E402 (patched first)
import os
from datetime import UTC, datetime
from typing import Any

import eventlet.wsgi
from flask import Flask, abort, request
from flask_jwt_extended import JWTManager, current_user, decode_token, jwt_required
from flask_jwt_extended.exceptions import JWTExtendedException
from flask_socketio import ConnectionRefusedError as Refused
from flask_socketio import SocketIO, join_room
from flask_sqlalchemy import SQLAlchemy
from jwt import PyJWTError

NEXT = {"Pending": "Processing", "Processing": "Shipped", "Shipped": "Completed"}
STAFF = {"driver", "admin"}

app = Flask(__name__)
app.config.update(
    JWT_SECRET_KEY=os.environ["JWT_SECRET"],
    SQLALCHEMY_DATABASE_URI="postgresql+psycopg2://",
    SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 10},
)
db = SQLAlchemy(app)
jwt = JWTManager(app)
socketio = SocketIO(app, async_mode="eventlet")


class User(db.Model):
    __tablename__ = "users"
    id = db.Column(db.BigInteger, primary_key=True)
    name = db.Column(db.Text)
    role = db.Column(db.Text)


class Order(db.Model):
    __tablename__ = "orders"
    id = db.Column(db.BigInteger, primary_key=True)
    customer_id = db.Column(db.ForeignKey("users.id"))
    description = db.Column(db.Text)
    status = db.Column(db.Text)
    version = db.Column(db.Integer)
    created_at = db.Column(db.DateTime(timezone=True))
    updated_at = db.Column(db.DateTime(timezone=True))
    customer = db.relationship(User)
    events = db.relationship("OrderEvent", order_by="OrderEvent.version", lazy="dynamic")

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "description": self.description,
            "status": self.status,
            "version": self.version,
            "customer": {"id": str(self.customer_id), "name": self.customer.name},
            "driver": None,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
            "next_statuses": [NEXT[self.status]] if self.status in NEXT else [],
        }


class OrderEvent(db.Model):
    __tablename__ = "order_events"
    id = db.Column(db.BigInteger, db.Identity(), primary_key=True)
    order_id = db.Column(db.ForeignKey("orders.id"))
    version = db.Column(db.Integer)
    type = db.Column(db.Text)
    status = db.Column(db.Text)
    previous_status = db.Column(db.Text)
    actor_id = db.Column(db.BigInteger)
    actor_name = db.Column(db.Text)
    actor_role = db.Column(db.Text)
    note = db.Column(db.Text)
    updated_at = db.Column(db.DateTime(timezone=True))

    def to_dict(self) -> dict[str, Any]:
        return {
            "order_id": str(self.order_id),
            "version": self.version,
            "type": self.type,
            "status": self.status,
            "previous_status": self.previous_status,
            "actor": {"id": str(self.actor_id), "name": self.actor_name, "role": self.actor_role},
            "note": self.note,
            "updated_at": self.updated_at.isoformat(),
        }


@jwt.user_lookup_loader
def load_user(_header: dict[str, Any], claims: dict[str, Any]) -> User | None:
    return db.session.get(User, int(claims["sub"]))


def may_see(user: User, order: Order | None) -> bool:
    return order is not None and (user.role in STAFF or order.customer_id == user.id)


@app.get("/api/orders/<int:order_id>")
@jwt_required()
def read_order(order_id: int) -> Any:
    order = db.session.get(Order, order_id)
    if not may_see(current_user, order):
        abort(404)
    return order.to_dict(), {"ETag": f'"{order.version}"'}


@app.put("/api/orders/<int:order_id>/status")
@jwt_required()
def change_status(order_id: int) -> Any:
    status = request.get_json()["status"]
    order = db.session.get(Order, order_id, with_for_update={"key_share": True, "of": Order})
    if not may_see(current_user, order):
        abort(404)
    if current_user.role not in STAFF:
        abort(403)
    if NEXT.get(order.status) != status:
        abort(409)
    event = OrderEvent(
        order_id=order.id,
        version=order.version + 1,
        type="status_changed",
        status=status,
        previous_status=order.status,
        actor_id=current_user.id,
        actor_name=current_user.name,
        actor_role=current_user.role,
        note=request.get_json().get("note"),
        updated_at=datetime.now(UTC),
    )
    order.status, order.version, order.updated_at = status, event.version, event.updated_at
    db.session.add(event)
    db.session.commit()
    socketio.emit("order_update", event.to_dict(), to=f"order:{order.id}")
    return order.to_dict(), {"ETag": f'"{order.version}"'}


users_of_sockets: dict[str, int] = {}


@socketio.on("connect")
def connect(auth: dict[str, str] | None) -> None:
    try:
        claims = decode_token((auth or {}).get("token", ""))
    except (JWTExtendedException, PyJWTError):
        raise Refused("invalid_token") from None
    users_of_sockets[request.sid] = int(claims["sub"])


@socketio.on("disconnect")
def disconnect(*_: Any) -> None:
    users_of_sockets.pop(request.sid, None)


@socketio.on("subscribe")
def subscribe(wish: dict[str, Any]) -> dict[str, Any]:
    if "orders" in wish:
        return {"ok": True, "results": [subscribe_one(one) for one in wish["orders"]]}
    return subscribe_one(wish)


def subscribe_one(wish: dict[str, Any]) -> dict[str, Any]:
    user = db.session.get(User, users_of_sockets[request.sid])
    order = db.session.get(Order, int(wish["order_id"]))
    if not may_see(user, order):
        return {"ok": False, "error": {"status": 404, "code": "not_found"}}
    join_room(f"order:{order.id}")
    missed = order.events.filter(OrderEvent.version > wish["after"]) if "after" in wish else ()
    return {
        "ok": True,
        "order": order.to_dict(),
        "version": order.version,
        "events": [event.to_dict() for event in missed],
    }


if __name__ == "__main__":
    # What a tutorial would not know, but without which it could not hold the clients of these
    # benchmarks: eventlet serves 1,024 connections and queues 50 unless told otherwise.
    listener = eventlet.listen(("127.0.0.1", int(os.environ["PORT"])), backlog=4096)
    eventlet.wsgi.server(listener, app, max_size=100_000, log_output=False)
