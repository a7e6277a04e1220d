"""From files to micro-batches: sources, rows, formats, chat templates, tokens, token cache, batches."""
