"""Files, errors, secrets, numbers and processes; no model and no data."""
