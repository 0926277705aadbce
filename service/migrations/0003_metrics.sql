-- What each worker has counted, so that workers that are gone stay counted, with Redis away or wiped too.
CREATE TABLE metrics_workers (
    worker   text PRIMARY KEY,                     -- one run of one process; '' sums up those that are gone
    version  bigint NOT NULL,                      -- a late write never replaces a newer one
    totals   jsonb NOT NULL,                       -- cumulative numbers by name
    levels   jsonb NOT NULL DEFAULT '{}',
    leaving  boolean NOT NULL DEFAULT false,       -- its last report is in
    folded   jsonb NOT NULL DEFAULT '{}',          -- so much of its totals is inside those of ''
    seen_at  timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);                          -- rewritten every second: room for the new version on the same page
INSERT INTO metrics_workers (worker, version, totals) VALUES ('', 0, '{}');

-- The latencies of the sliding window: one mergeable sketch per minute, worker and route.
CREATE TABLE metrics_slices (
    start    bigint NOT NULL,                      -- Unix seconds
    worker   text NOT NULL,
    route    text NOT NULL,
    version  bigint NOT NULL,
    sketch   bytea NOT NULL,
    PRIMARY KEY (start, worker, route)
) WITH (fillfactor = 70);
