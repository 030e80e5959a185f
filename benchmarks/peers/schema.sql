-- The tables of the peers: the same facts, keys and indexes that OrderTrack keeps, and nothing more.
CREATE TABLE users (
    id   bigint PRIMARY KEY,
    name text NOT NULL,
    role text NOT NULL
);

CREATE TABLE orders (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES users (id),
    description text NOT NULL,
    status      text NOT NULL DEFAULT 'Pending',
    version     integer NOT NULL DEFAULT 1,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON orders (customer_id, id DESC);

CREATE TABLE order_events (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id        bigint NOT NULL REFERENCES orders (id),
    version         integer NOT NULL,
    type            text NOT NULL,
    status          text NOT NULL,
    previous_status text,
    actor_id        bigint NOT NULL,
    actor_name      text NOT NULL,
    actor_role      text NOT NULL,
    note            text,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (order_id, version)
);
