"""The mail worker: claims owed mails, writes them in the reader's language and sends them to the mail server."""
