-- ENUMERATION=strict: every registration of an address is a row of its own, which answers by what was done to it alone.
--
-- One of them at most holds the address: it is the account, an ordinary row. The others are shadows: their email_key is
-- one that no address has, their codes are silent (no key makes them), their mails are never sent. Which row holds the
-- address is decided whenever one of them gets a code, by the rule of open registrations: it may be taken from nobody,
-- from oneself, or from a pending account whose code is dead, within the address' budget of codes.

ALTER TABLE users ADD COLUMN shadow_of text;             -- of a shadow: the address that it does not hold
ALTER TABLE users ADD COLUMN forget_after timestamptz;   -- of an unproven registration under ENUMERATION=strict
ALTER TABLE users ADD CONSTRAINT users_shadow_key
    CHECK ((shadow_of IS NOT NULL) = (email_key = 'shadow:' || id::text));
ALTER TABLE users ADD CONSTRAINT users_shadow_unproven CHECK (shadow_of IS NULL OR activated_at IS NULL);
CREATE INDEX users_shadows ON users (shadow_of) WHERE shadow_of IS NOT NULL;
CREATE INDEX users_forgotten ON users (forget_after) WHERE forget_after IS NOT NULL;

ALTER TABLE mails DROP CONSTRAINT mails_kind_check;
ALTER TABLE mails ADD CONSTRAINT mails_kind_check CHECK (kind IN ('code', 'notice', 'silent'));
ALTER TABLE mails DROP CONSTRAINT mails_check;
ALTER TABLE mails ADD CONSTRAINT mails_code CHECK (kind = 'notice' OR code_id IS NOT NULL);

-- What all registrations of an address share, whoever made them; its row is the lock that they queue up for.
CREATE TABLE shared_addresses (
    email_key  text PRIMARY KEY,
    codes_sent timestamptz[] NOT NULL,             -- of the last day: those that really left, the address' budget
    noticed_at timestamptz,                        -- when its owner was last told of a registration
    touched_at timestamptz NOT NULL
);
CREATE INDEX shared_addresses_touched ON shared_addresses (touched_at);

CREATE FUNCTION silent_code(code_id text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT '~.' || right(code_id, 32)
$$;

-- Whether another registration may take the address over from this row.
CREATE FUNCTION is_vacant(row_of users, attempts integer, at timestamptz) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT row_of.activated_at IS NULL AND NOT (row_of.code_attempts < attempts AND (
        row_of.code_mail = 'owed' OR (row_of.code_mail IN ('accepted', 'delivered') AND at < row_of.code_expires_at)
    ))
$$;

-- Wait for whoever else works on the address. An account from before brings the codes along that it has had.
CREATE FUNCTION lock_address(address text) RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO shared_addresses AS a (email_key, codes_sent, touched_at)
    VALUES (address, coalesce((SELECT codes_issued FROM users WHERE email_key = address), '{}'), now())
    ON CONFLICT (email_key) DO UPDATE SET touched_at = now()
$$;

-- Decide whether the row `taker` holds the locked address from now on, and say what its mail is: code, notice or silent.
--
-- Whoever loses the address keeps its row as it was, but that its codes fall silent: so it goes on to answer as before,
-- and its old code can no longer activate anything. The owner is told once a day, and only of a new registration.
CREATE FUNCTION take_address(
    address text, taker uuid, telling boolean, attempts integer, limits integer[], seconds integer[]
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    shared shared_addresses;
    holder users;
    vacant boolean;
    room boolean;
    owed text := 'silent';
BEGIN
    SELECT * INTO shared FROM shared_addresses a WHERE a.email_key = address;
    SELECT * INTO holder FROM users u WHERE u.email_key = address FOR UPDATE;
    vacant := is_vacant(holder, attempts, now());  -- both are found out whatever the other says: it takes the same time
    room := codes_free_at(shared.codes_sent, limits, seconds) <= now();
    IF room AND (holder.id IS NULL OR holder.id = taker OR vacant) THEN
        owed := 'code';
    ELSIF telling AND holder.id IS DISTINCT FROM taker AND NOT vacant
          AND coalesce(shared.noticed_at <= now() - interval '1 day', true) THEN
        owed := 'notice';
    END IF;

    UPDATE users u SET
        shadow_of = u.email_key, email_key = 'shadow:' || u.id::text,
        code_id = silent_code(u.code_id), old_code_id = silent_code(u.old_code_id)
    WHERE u.id = holder.id AND (owed = 'code') <> (holder.id = taker);
    UPDATE mails m SET kind = 'silent', code_id = silent_code(m.code_id)
    WHERE m.user_id = holder.id AND m.state IN ('queued', 'sending') AND m.kind = 'code'
      AND (owed = 'code') <> (holder.id = taker);

    UPDATE shared_addresses a SET
        codes_sent = CASE WHEN owed = 'code' THEN codes_of_a_day(a.codes_sent, now()) || now() ELSE a.codes_sent END,
        noticed_at = CASE WHEN owed = 'notice' THEN now() ELSE a.noticed_at END
    WHERE a.email_key = address;
    RETURN owed;
END
$$;

-- Register under ENUMERATION=strict, and answer with the registration that stands for this address and password.
--
-- A password that is new to the address makes a row. One that is known changes nothing while its code lives or its own
-- budget is used up; else it gets a new code. `owed` is NULL where nothing was owed. Attack: telling a taken address by
-- the work: a new row, a mail, and the writes of take_address come with it, whoever holds the address.
CREATE FUNCTION register_strictly(
    new_id uuid, new_registration uuid, address text, typed text, hashed text, new_locale text, new_code text,
    mail uuid, trace text, attempts integer, max_age integer, keep_days integer, kept integer, limits integer[],
    seconds integer[],
    OUT entered uuid, OUT registered uuid, OUT born timestamptz, OUT owed text
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    own users;
    code text;
BEGIN
    PERFORM lock_address(address);
    SELECT * INTO own FROM users u
    WHERE (u.email_key = address OR u.shadow_of = address) AND u.password_hash = hashed FOR UPDATE;
    IF own.id IS NULL OR (own.registration_id <> new_registration AND is_vacant(own, attempts, now())
                          AND codes_free_at(own.codes_issued, limits, seconds) <= now()) THEN
        entered := coalesce(own.id, new_id);
        owed := take_address(address, entered, true, attempts, limits, seconds);
        code := CASE WHEN owed = 'code' THEN new_code ELSE silent_code(new_code) END;
        INSERT INTO users AS u (id, email_key, shadow_of, email, password_hash, locale, registration_id, registered_at,
                                code_id, code_expires_at, codes_issued, forget_after)
        VALUES (entered, CASE WHEN owed = 'code' THEN address ELSE 'shadow:' || entered::text END,
                CASE WHEN owed <> 'code' THEN address END, typed, hashed, new_locale, new_registration, now(),
                code, now() + make_interval(secs => max_age), ARRAY[now()], now() + make_interval(days => keep_days))
        ON CONFLICT ON CONSTRAINT users_pkey DO UPDATE SET
            email_key = EXCLUDED.email_key, shadow_of = EXCLUDED.shadow_of, email = EXCLUDED.email,
            locale = EXCLUDED.locale, registration_id = EXCLUDED.registration_id, registered_at = now(),
            superseded = with_superseded(u.superseded, u.old_code_id, u.code_id),
            code_id = EXCLUDED.code_id, code_expires_at = EXCLUDED.code_expires_at, code_attempts = 0,
            code_mail = 'owed', code_accepted_at = NULL,
            old_code_id = NULL, old_code_expires_at = NULL, old_code_attempts = NULL,
            codes_issued = codes_of_a_day(u.codes_issued, now()) || now(), forget_after = EXCLUDED.forget_after
        RETURNING u.registration_id, u.created_at INTO registered, born;
        UPDATE mails m SET state = 'dead', reason = 'superseded'
        WHERE m.user_id = entered AND m.state = 'queued';
        INSERT INTO mails (id, user_id, kind, code_id, locale, traceparent)
        VALUES (mail, entered, owed, code,
                coalesce((SELECT h.locale FROM users h WHERE owed = 'notice' AND h.email_key = address), new_locale), trace);
        DELETE FROM users WHERE users.id IN (
            SELECT s.id FROM users s WHERE s.shadow_of = address ORDER BY s.registered_at DESC OFFSET kept
        );
    ELSE
        entered := own.id;
        registered := own.registration_id;
        born := own.created_at;
    END IF;
END
$$;

-- Give a registration another code under ENUMERATION=strict, as the statement for open registrations does; `left_today`
-- and `resend_at` are what its owner hears. `owed` is NULL where it was too soon, or the row is another's or active.
CREATE FUNCTION issue_strictly(
    account uuid, hashed text, new_code text, mail uuid, new_locale text, trace text, attempts integer, max_age integer,
    keep_days integer, limits integer[], seconds integer[], own_limits integer[], own_seconds integer[],
    OUT owed text, OUT resend_at timestamptz, OUT left_today integer
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    address text;
    own users;
    code text;
BEGIN
    SELECT coalesce(u.shadow_of, u.email_key) INTO address FROM users u WHERE u.id = account;
    IF address IS NULL THEN
        RETURN;
    END IF;
    PERFORM lock_address(address);
    SELECT * INTO own FROM users u WHERE u.id = account FOR UPDATE;
    IF own.password_hash = hashed AND own.activated_at IS NULL THEN
        IF silent_code(own.code_id) = silent_code(new_code) THEN
            owed := 'repeated';
        ELSIF codes_free_at(own.codes_issued, own_limits, own_seconds) <= now() THEN
            owed := take_address(address, account, false, attempts, limits, seconds);
            code := CASE WHEN owed = 'code' THEN new_code ELSE silent_code(new_code) END;
            UPDATE users u SET
                email_key = CASE WHEN owed = 'code' THEN address ELSE 'shadow:' || account::text END,
                shadow_of = CASE WHEN owed <> 'code' THEN address END,
                superseded = CASE
                    WHEN u.old_code_id IS NOT NULL AND u.code_mail NOT IN ('accepted', 'delivered')
                    THEN with_superseded(u.superseded, u.code_id) ELSE with_superseded(u.superseded, u.old_code_id) END,
                old_code_id = CASE
                    WHEN u.old_code_id IS NOT NULL AND u.code_mail NOT IN ('accepted', 'delivered')
                    THEN u.old_code_id ELSE u.code_id END,
                old_code_expires_at = CASE
                    WHEN u.old_code_id IS NOT NULL AND u.code_mail NOT IN ('accepted', 'delivered')
                    THEN u.old_code_expires_at ELSE u.code_expires_at END,
                old_code_attempts = CASE
                    WHEN u.old_code_id IS NOT NULL AND u.code_mail NOT IN ('accepted', 'delivered')
                    THEN u.old_code_attempts ELSE u.code_attempts END,
                code_id = code, code_expires_at = now() + make_interval(secs => max_age), code_attempts = 0,
                code_mail = 'owed', code_accepted_at = NULL, locale = coalesce(new_locale, u.locale),
                codes_issued = codes_of_a_day(u.codes_issued, now()) || now(),
                forget_after = now() + make_interval(days => keep_days)
            WHERE u.id = account
            RETURNING * INTO own;
            -- A notice that never left is owed still.
            IF owed = 'silent' AND EXISTS (
                SELECT FROM mails m WHERE m.user_id = account AND m.state = 'queued' AND m.kind = 'notice'
            ) THEN
                owed := 'notice';
            END IF;
            UPDATE mails m SET state = 'dead', reason = 'superseded' WHERE m.user_id = account AND m.state = 'queued';
            INSERT INTO mails (id, user_id, kind, code_id, locale, traceparent)
            VALUES (mail, account, owed, code, own.locale, trace);
        ELSE
            RETURN;
        END IF;
        resend_at := codes_free_at(own.codes_issued, own_limits, own_seconds);
        left_today := codes_left_today(own.codes_issued, own_limits, own_seconds, now());
    END IF;
END
$$;
