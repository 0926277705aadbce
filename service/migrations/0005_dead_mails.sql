-- Dead mails by reason, for the metrics: read every few seconds, and in a table that keeps all mails.
CREATE INDEX mails_dead ON mails (reason) WHERE state = 'dead';
