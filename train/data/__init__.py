"""From files to tokens: rows (read, checked), formats, templates, encode, batch."""
