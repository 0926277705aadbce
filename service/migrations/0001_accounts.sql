-- Accounts, their codes, owed mails, idempotency keys and business counters.
--
-- Everything that decides a race about an account lies in its one row of users, so that a conditional UPDATE of that
-- row decides it: Postgres re-checks the condition against the newest version of a row that it had to wait for.

CREATE TABLE users (
    id              uuid PRIMARY KEY,
    email_key       text NOT NULL UNIQUE,          -- casefolded local part @ ASCII domain
    email           text NOT NULL,                 -- as typed
    password_hash   text NOT NULL,                 -- plain $2b$ bcrypt: any product can check it
    locale          text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    registration_id uuid NOT NULL UNIQUE,          -- of the registration that stands; status addresses are derived from it
    registered_at   timestamptz NOT NULL,
    activated_at    timestamptz,
    activated_by    uuid,                          -- the redeem that won: a repeat of it hears the same

    code_id          text NOT NULL,                -- names a code that is stored nowhere
    code_expires_at  timestamptz NOT NULL,         -- the hard cap; lowered when the mail is accepted
    code_attempts    integer NOT NULL DEFAULT 0,
    code_mail        text NOT NULL DEFAULT 'owed' CHECK (code_mail IN ('owed', 'accepted', 'delivered', 'dead')),
    code_accepted_at timestamptz,

    old_code_id         text,                      -- the code before, alive until the newer one's mail is accepted
    old_code_expires_at timestamptz,
    old_code_attempts   integer,

    superseded   text[] NOT NULL DEFAULT '{}',     -- dead code ids, to tell a mixed-up mail from a wrong guess
    codes_issued timestamptz[] NOT NULL,           -- of the last day, oldest first: the address' budget

    CHECK ((activated_at IS NULL) = (activated_by IS NULL)),
    CHECK ((old_code_id IS NULL) = (old_code_expires_at IS NULL)),
    CHECK ((old_code_id IS NULL) = (old_code_attempts IS NULL))
);

-- When the next code may be issued: for each window of l.n codes in l.s seconds, when the n-th last one leaves it.
CREATE FUNCTION codes_free_at(issued timestamptz[], limits integer[], seconds integer[]) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(max(nth.t + make_interval(secs => l.s)), to_timestamp(0))
    FROM unnest(limits, seconds) AS l (n, s),
         LATERAL (SELECT t FROM unnest(issued) AS t ORDER BY t DESC OFFSET l.n - 1 LIMIT 1) AS nth
$$;

-- How many codes the tightest of the windows of a day still allows; NULL without such a window.
CREATE FUNCTION codes_left_today(issued timestamptz[], limits integer[], seconds integer[], at timestamptz) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT min(greatest(0, l.n - (SELECT count(*) FROM unnest(issued) AS t WHERE t > at - make_interval(secs => l.s))))::integer
    FROM unnest(limits, seconds) AS l (n, s) WHERE l.s = 86400
$$;

-- The issue times that any window can still see.
CREATE FUNCTION codes_of_a_day(issued timestamptz[], at timestamptz) RETURNS timestamptz[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(array_agg(t ORDER BY t), '{}') FROM unnest(issued) AS t WHERE t > at - interval '1 day'
$$;

-- The dead code ids with some more, the last sixteen: more than a day's budget of codes.
CREATE FUNCTION with_superseded(dead text[], VARIADIC more text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT kept[greatest(1, cardinality(kept) - 15):] FROM (SELECT array_remove(dead || more, NULL) AS kept) AS joined
$$;

CREATE TABLE mails (
    id          uuid PRIMARY KEY,
    user_id     uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    kind        text NOT NULL DEFAULT 'code' CHECK (kind IN ('code', 'notice')),
    code_id     text,
    locale      text NOT NULL,
    state       text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'sending', 'accepted', 'dead')),
    attempts    integer NOT NULL DEFAULT 0,        -- raised by the claim: a mail that kills its worker stops by itself
    fence       bigint NOT NULL DEFAULT 0,         -- raised by the claim: a late outcome of an earlier claim is refused
    due_at      timestamptz NOT NULL DEFAULT now(),-- queued: the next attempt; sending: the lease's end
    created_at  timestamptz NOT NULL DEFAULT now(),
    accepted_at timestamptz,
    reason      text,                              -- of the last failure, without addresses
    traceparent text,
    CHECK ((kind = 'code') = (code_id IS NOT NULL)),
    CHECK ((state = 'accepted') = (accepted_at IS NOT NULL))
);
CREATE INDEX mails_due ON mails (due_at) WHERE state IN ('queued', 'sending');
CREATE INDEX mails_of_user ON mails (user_id);
CREATE INDEX mails_accepted ON mails (accepted_at) WHERE state = 'accepted';

CREATE TABLE idempotency_keys (
    digest          bytea PRIMARY KEY,             -- keyed digest of key and address
    body_digest     bytea NOT NULL,
    claim           uuid NOT NULL,                 -- of the request that runs or ran
    claimed_until   timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    user_id         uuid REFERENCES users ON DELETE CASCADE,
    registration_id uuid,                          -- set by the registration's own transaction: the key is bound
    created_at      timestamptz
);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);

-- One row per worker and day, so that no two workers wait for one row; written in the transaction that it counts.
CREATE TABLE business_counts (
    day           date NOT NULL,
    worker        text NOT NULL,
    registrations bigint NOT NULL DEFAULT 0,
    activations   bigint NOT NULL DEFAULT 0,
    resends       bigint NOT NULL DEFAULT 0,
    mails_accepted bigint NOT NULL DEFAULT 0,
    mails_dead    bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (day, worker)
);
