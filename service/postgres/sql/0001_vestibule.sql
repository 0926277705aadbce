-- Accounts, their mails and codes, idempotency keys, counters, limits and metrics.
--
-- Everything lies in a schema of its own, named in every statement: other programs' tables of any name do no harm, and
-- nothing depends on search_path. A code travels in exactly one mail and a code mail carries exactly one code, so the
-- code is derived from the id of its mail's row and stored nowhere.

CREATE TABLE vestibule.accounts (
    id            uuid PRIMARY KEY,                -- UUIDv7: time-ordered, so the index grows at one end
    email_key     text NOT NULL UNIQUE,            -- casefolded local part @ ASCII domain
    email         text NOT NULL,                   -- as typed
    password_hash text NOT NULL,                   -- plain $2b$ bcrypt: any product can check it
    locale        text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    registration  integer NOT NULL DEFAULT 1,      -- raised when an account that nobody holds is registered again
    registered_at timestamptz NOT NULL DEFAULT now(),
    activated_at  timestamptz,
    version       integer NOT NULL DEFAULT 1       -- raised by every issue of a mail: who read an older one looks again
);

CREATE TABLE vestibule.mails (
    id           uuid PRIMARY KEY,                 -- UUIDv7; the code is derived from it
    account_id   uuid NOT NULL REFERENCES vestibule.accounts ON DELETE CASCADE,
    registration integer NOT NULL,
    number       integer NOT NULL,                 -- the account's version at issue: a total order
    kind         text NOT NULL CHECK (kind IN ('code', 'notice')),
    state        text NOT NULL DEFAULT 'queued'
                 CHECK (state IN ('queued', 'sending', 'accepted', 'delivered', 'dead', 'superseded')),
    due_at       timestamptz NOT NULL DEFAULT now(),-- queued: the next try; sending: the end of the lease
    tries        integer NOT NULL DEFAULT 0,
    deaths       integer NOT NULL DEFAULT 0,       -- leases that ended without an outcome: their worker died
    fence        integer NOT NULL DEFAULT 0,       -- raised by the claim: a late outcome of an earlier claim is refused
    owed_since   timestamptz NOT NULL DEFAULT now(),-- of the first mail of a chain of reissues: 24 h run from it
    created_at   timestamptz NOT NULL DEFAULT now(),
    accepted_at  timestamptz,
    expires_at   timestamptz NOT NULL,             -- the hard cap; lowered when the mail is accepted
    guesses      integer NOT NULL DEFAULT 0,
    counted      boolean NOT NULL DEFAULT true,    -- false for a reissue: it uses up no budget
    key_id       text NOT NULL,                    -- which key derives the code, also after a rotation
    reason       text,                             -- of the last failure, without addresses
    traceparent  text,
    UNIQUE (account_id, number)
);
CREATE INDEX mails_due ON vestibule.mails (due_at) WHERE state IN ('queued', 'sending');
CREATE INDEX mails_failing ON vestibule.mails (due_at) WHERE state IN ('queued', 'sending') AND reason IS NOT NULL;
CREATE INDEX mails_accepted ON vestibule.mails (accepted_at) WHERE accepted_at IS NOT NULL;
CREATE INDEX mails_dead ON vestibule.mails (reason) WHERE state = 'dead';

CREATE TABLE vestibule.answers (
    digest       bytea PRIMARY KEY,                -- keyed digest of an idempotency key and an address
    body_digest  bytea NOT NULL,
    account_id   uuid REFERENCES vestibule.accounts ON DELETE CASCADE,  -- null: the address was taken (strict mode)
    registration integer,
    expires_at   timestamptz NOT NULL DEFAULT now() + interval '24 hours'
);
CREATE INDEX answers_expiry ON vestibule.answers (expires_at);
CREATE INDEX answers_account ON vestibule.answers (account_id);

-- One row per worker and day, so that no two workers wait for one row; written in the transaction that it counts.
CREATE TABLE vestibule.business_counts (
    day            date NOT NULL,
    worker         text NOT NULL,
    registrations  bigint NOT NULL DEFAULT 0,
    activations    bigint NOT NULL DEFAULT 0,
    resends        bigint NOT NULL DEFAULT 0,
    mails_accepted bigint NOT NULL DEFAULT 0,
    mails_dead     bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (day, worker)
);

-- The limits' sliding windows while Redis is away. Unlogged: a use is worth no disk write, and after a crash of the
-- server the windows may start over.
CREATE UNLOGGED TABLE vestibule.rate_limits (
    bucket     text NOT NULL,                      -- a digest of the bucket's name: no client's address lies here
    ticket     text NOT NULL,                      -- names the use, to count a repeat once and to give it back
    expires_at timestamptz NOT NULL,               -- the last moment at which it counts
    PRIMARY KEY (bucket, ticket)
);
CREATE INDEX rate_limits_bucket ON vestibule.rate_limits (bucket, expires_at);
CREATE INDEX rate_limits_expiry ON vestibule.rate_limits (expires_at);

-- What each worker has counted, so that workers that are gone stay counted, with Redis away or wiped too.
CREATE TABLE vestibule.metrics_workers (
    worker  text PRIMARY KEY,                      -- one run of one process; '' sums up those that are gone
    version bigint NOT NULL,                       -- a late write never replaces a newer one
    totals  jsonb NOT NULL,                        -- cumulative numbers by name
    levels  jsonb NOT NULL DEFAULT '{}',
    leaving boolean NOT NULL DEFAULT false,        -- its last report is in
    folded  jsonb NOT NULL DEFAULT '{}',           -- so much of its totals is inside those of ''
    seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);                          -- rewritten often: room for the new version on the same page
INSERT INTO vestibule.metrics_workers (worker, version, totals) VALUES ('', 0, '{}');

-- The latencies of the sliding window: one mergeable histogram per minute, worker and route.
CREATE TABLE vestibule.metrics_slices (
    start     bigint NOT NULL,                     -- Unix seconds
    worker    text NOT NULL,
    route     text NOT NULL,
    version   bigint NOT NULL,
    histogram bytea NOT NULL,
    PRIMARY KEY (start, worker, route)
) WITH (fillfactor = 70);

-- For products that share the database. The key of an address, the same under every collation; a domain that is not
-- ASCII must be given in its ASCII form (IDNA), which PostgreSQL cannot compute.
CREATE FUNCTION vestibule.email_key(address text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    IF address !~ '^[\x01-\x7f]+$' THEN
        RAISE EXCEPTION 'vestibule.email_key takes ASCII addresses only: give the domain in its ASCII form';
    END IF;
    RETURN translate(address, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', 'abcdefghijklmnopqrstuvwxyz');
END
$$;

CREATE VIEW vestibule.active_users AS
SELECT id, email, email_key, password_hash, created_at, activated_at
FROM vestibule.accounts WHERE activated_at IS NOT NULL;
