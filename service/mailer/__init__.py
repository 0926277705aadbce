"""The mail worker: claims owed mails, writes them in the reader's language and hands them to the mail server."""
