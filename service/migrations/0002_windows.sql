-- The limits' sliding windows while Redis is away.
--
-- Unlogged: a use is worth no disk write, and after a crash of the server the windows may start over.

CREATE UNLOGGED TABLE window_uses (
    bucket     text NOT NULL,         -- a digest of the bucket's name: no client's address lies here
    ticket     text NOT NULL,         -- names the use, to count a repeat once and to give it back
    expires_at timestamptz NOT NULL,  -- the last moment at which it counts
    PRIMARY KEY (bucket, ticket)
);
CREATE INDEX window_uses_by_bucket ON window_uses (bucket, expires_at);
CREATE INDEX window_uses_by_expiry ON window_uses (expires_at);

-- Decide requests in their order, each over its buckets as one: count in all, or in none.
--
-- `asked` is a list of {"ticket", "count", "buckets": [{"key", "limit", "seconds"}]}. Answers one row for each bucket,
-- in order, with the decision on its request, what remains after it, and the seconds until one more is free.
--
-- Race: workers and machines at a window with one place left. Each takes the buckets' locks first, in the same order,
-- so that none waits in a circle, and keeps them to the end of its transaction. Every statement in here sees what was
-- committed before it began (READ COMMITTED), so behind the lock nothing is unseen.
CREATE FUNCTION decide_windows(asked jsonb)
RETURNS TABLE (admitted boolean, remaining integer, reset_seconds double precision)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    request record;
    moment timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock(22101, lock)  -- a number of our own, so that no other user of locks is met
    FROM (
        SELECT DISTINCT hashtext(b ->> 'key') AS lock
        FROM jsonb_array_elements(asked) AS r, jsonb_array_elements(r -> 'buckets') AS b
        WHERE (r ->> 'count')::boolean
        ORDER BY lock
    ) AS in_order;

    FOR request IN
        SELECT r ->> 'ticket' AS ticket, (r ->> 'count')::boolean AS counts, r -> 'buckets' AS buckets
        FROM jsonb_array_elements(asked) WITH ORDINALITY AS list (r, place) ORDER BY place
    LOOP
        moment := clock_timestamp();  -- behind the locks: now() is from before the wait for them

        admitted := NOT EXISTS (
            SELECT FROM jsonb_to_recordset(request.buckets) AS b (key text, "limit" integer)
            WHERE b."limit" <= (
                SELECT count(*) FROM (
                    SELECT FROM window_uses u WHERE u.bucket = b.key AND u.expires_at >= moment LIMIT b."limit"
                ) AS live
            ) AND NOT EXISTS (SELECT FROM window_uses u WHERE u.bucket = b.key AND u.ticket = request.ticket)
        );

        IF admitted AND request.counts THEN
            INSERT INTO window_uses (bucket, ticket, expires_at)
            SELECT b.key, request.ticket, moment + make_interval(secs => b.seconds)
            FROM jsonb_to_recordset(request.buckets) AS b (key text, seconds double precision)
            ON CONFLICT DO NOTHING;
        END IF;

        -- Of the newest `limit` uses the oldest is the one whose end gives a place.
        RETURN QUERY
        SELECT admitted, b."limit" - newest.used,
               coalesce(extract(epoch FROM newest.first_end - moment)::double precision + 0.000001, 0)
        FROM ROWS FROM (jsonb_to_recordset(request.buckets) AS (key text, "limit" integer))
                WITH ORDINALITY AS b (key, "limit", place),
            LATERAL (
                SELECT count(*)::integer AS used, min(live.expires_at) AS first_end
                FROM (
                    SELECT u.expires_at FROM window_uses u WHERE u.bucket = b.key AND u.expires_at >= moment
                    ORDER BY u.expires_at DESC LIMIT b."limit"
                ) AS live
            ) AS newest
        ORDER BY b.place;
    END LOOP;
END
$$;
